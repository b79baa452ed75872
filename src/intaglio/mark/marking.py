"""`mark`: one call from a model and a key to a marked model and the commitment that proves it later."""

import copy
import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from intaglio.classifiers import Classifier, Preprocessing, TorchClassifier, weights_file
from intaglio.classifiers.derived import with_weights
from intaglio.data import Data, ImageData, image_data
from intaglio.errors import DataError, ModelError, RecipeError
from intaglio.evidence.batches import TriggerPlan, draw_batch, plan_triggers
from intaglio.evidence.commitment import DecisionRule, SignedCommitment, commit, sign_commitment
from intaglio.evidence.key import Key
from intaglio.mark.adversarial_parametric import AdversarialParametric
from intaglio.mark.deep_fidelity import DeepFidelity, Mode
from intaglio.mark.foreign import photos
from intaglio.mark.margin import Margin
from intaglio.mark.rehearsal import Rehearsal
from intaglio.mark.scheme import Host, Progress
from intaglio.triggers.keyed import KEYED_TRIGGERS

SCHEMES: dict[str, type[DeepFidelity]] = {
    scheme.name: scheme for scheme in (DeepFidelity, AdversarialParametric, Margin, Rehearsal)
}
#: Triggers in one disclosure batch: what one verification asks, and lays open.
BATCH_SIZE = 100
#: Kinds of triggers that are made of public images.
_OF_PUBLIC = ("public-blend",)


class Marked(NamedTuple):
    """A marked module and its owner's signed commitment."""

    module: nn.Module
    commitment: SignedCommitment


def mark(
    module: nn.Module | TorchClassifier,
    data: Data,
    key: Key,
    *,
    scheme: str = DeepFidelity.name,
    mode: Mode = "fixll-pfl",
    trigger: str = "noise-blocks",
    batches: int = 2,
    batch_size: int = BATCH_SIZE,
    public: Tensor | None = None,
    preprocessing: Preprocessing | None = None,
    layer: str | None = None,
    rule: DecisionRule | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Marked:
    """Embeds an ownership mark whose triggers and labels derive from `key`; the given module stays as it is.

    Args:
        data: clean training images with labels; clips `[N, T, C, H, W]` are marked as images are.
        scheme: one of `SCHEMES`.
        mode: what is trained, and what keeps it faithful to the host: see `DeepFidelity`.
        trigger: "noise-blocks"; "noise-chain", as in the paper; or "public-blend": blends of `public` images, by
            default pieces of two photographs.
        batches, batch_size: disclosure batches and triggers in each; one batch answers one dispute.
        preprocessing: from raw pixels to the module's input; a `TorchClassifier` brings its own.
        layer: the final linear layer, by default found by tracing.
        rule: when a suspect is claimed; by default at p <= 2^-64.
        options: of the scheme, such as `epochs`.

    Raises:
        RecipeError: an unknown scheme, mode, trigger or option.
        ModelError: no final linear layer, images that the module can't take, or weights that can't be changed.
        DataError, ClassifierError: data or answers that can't be used.
        EvidenceError: sizes or public images that can't be committed to.
    """
    try:
        method = scheme_named(scheme)(mode=mode, **options)
    except TypeError as error:
        raise RecipeError(f"scheme {scheme}: {error}") from error
    if trigger not in KEYED_TRIGGERS:
        raise RecipeError(f"unknown trigger '{trigger}'; there are {', '.join(KEYED_TRIGGERS)}")
    if isinstance(module, Classifier):
        preprocessing = preprocessing or module.preprocessing
        module = with_weights(module).module
    if not isinstance(module, nn.Module):
        raise ModelError(f"a mark is embedded in a torch.nn.Module, got a {type(module).__name__}")
    preprocessing = preprocessing or Preprocessing()
    data = image_data(data)
    if data.input_shape[-3] not in (1, 3):
        raise DataError(f"marks are laid open as PNG: grey or RGB images, not {data.input_shape[-3]} channels")
    public = public_images(trigger, data.input_shape, public)
    plan = plan_triggers(
        key,
        trigger=trigger,
        input_shape=data.input_shape,
        num_classes=_class_count(module, data, preprocessing, layer),
        batches=batches,
        batch_size=batch_size,
        public=public,
    )
    triggers = draw_triggers(key, plan, public)
    marked = method.embed(
        module, data, triggers, preprocessing=preprocessing, layer=layer, seed=seed, progress=progress
    )
    commitment = commit(
        key, plan, scheme=scheme, mode=mode, model_sha256=weights_sha256(marked), public=public, rule=rule
    )
    return Marked(marked, sign_commitment(key, commitment))


def scheme_named(name: str) -> type[DeepFidelity]:
    """The scheme of this name.

    Raises:
        RecipeError: there is none.
    """
    if name not in SCHEMES:
        raise RecipeError(f"unknown scheme '{name}'; there are {', '.join(SCHEMES)}")
    return SCHEMES[name]


def draw_triggers(key: Key, plan: TriggerPlan, public: Tensor | None = None) -> ImageData:
    """Every trigger of a plan, all batches in their order.

    Raises:
        EvidenceError: another key's plan, or other public images than the plan's.
    """
    drawn = [draw_batch(key, plan, index, public) for index in range(plan.batches)]
    return ImageData(
        torch.cat([batch.images for batch in drawn]), torch.cat([batch.labels for batch in drawn]), name="triggers"
    )


def public_images(trigger: str, input_shape: tuple[int, ...], public: Tensor | None) -> Tensor | None:
    """The public images that this kind of trigger is made of: those given, else the photographs; None for others.

    For clips these are photographs that stand still.

    Raises:
        RecipeError: images are given for triggers that are not made of any.
    """
    if trigger in _OF_PUBLIC:
        return photos(input_shape) if public is None else public
    if public is not None:
        raise RecipeError(f"triggers of the kind '{trigger}' are not made of public images")
    return None


def weights_sha256(module: nn.Module) -> str:
    """Hex SHA-256 of the safetensors file that `save_classifier` writes of this module."""
    return hashlib.sha256(weights_file(module)).hexdigest()


def _class_count(module: nn.Module, data: ImageData, preprocessing: Preprocessing, layer: str | None) -> int:
    host = Host.of(copy.deepcopy(module).eval(), preprocessing, data.images, layer)
    return host.answers(host.module, data.images[:2])[0].shape[1]
