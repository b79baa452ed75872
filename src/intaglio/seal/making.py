"""`make_seal`: seals a model as it is. Its weights are read, never written."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from intaglio.classifiers import Classifier, TorchClassifier
from intaglio.data import Data, images_alone
from intaglio.errors import ClassifierError, RecipeError
from intaglio.evidence.canonical import now
from intaglio.evidence.key import Key
from intaglio.results import package_versions
from intaglio.seal.boundary import Boundary
from intaglio.seal.digest import images_digest, weights_digest
from intaglio.seal.draws import Draws, seal_identity
from intaglio.seal.executions import Execution, executions
from intaglio.seal.ftg import FineGrained
from intaglio.seal.method import Progress, Request, SealMethod, Triggers
from intaglio.seal.noise import NoiseFloor, measure_enough, noise_floor
from intaglio.seal.pixels import encode_png
from intaglio.seal.precision import full_precision
from intaglio.seal.random_images import RandomImages
from intaglio.seal.sealed import Seal, SealRecord
from intaglio.seal.sensitive import Sensitive
from intaglio.seal.variance import Variance
from intaglio.seeds import derive_seed

#: name -> class; the first is the default.
METHODS: dict[str, type[SealMethod]] = {
    method.name: method for method in (Boundary, Variance, FineGrained, Sensitive, RandomImages)
}
DEFAULT_PAIRS = 64
#: Triggers whose margin is below so many noise floors would raise false alarms: no method may keep them.
_LEAST_MARGIN = 2.5


@full_precision()
def make_seal(
    classifier: Classifier,
    key: Key,
    *,
    method: str | SealMethod = Boundary.name,
    data: Data | Tensor | None = None,
    pairs: int = DEFAULT_PAIRS,
    allow: Sequence[str] = (),
    compiled: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Seal:
    """Seals `classifier`: chooses pairs of images that almost any change of its weights makes it answer otherwise.

    Args:
        method: its name, or a `SealMethod`.
        data: the owner's images to start from, so that triggers look like them (default: keyed noise).
        pairs: how many pairs of triggers; a check asks as few of them as it needs.
        allow: variants that the owner ships ("fp16", "bf16", "int16", "int8", "tf32"): the seal stays silent on them,
            at the price of missing changes that are smaller.
        compiled: whether torch.compile is among the ways of computing that the seal must be silent under (a minute).
        seed: another one gives fresh triggers; the same key, model, data, settings and seed give the same, so a seal
            whose answers may be known by now is replaced by one of another seed.
        progress: called with (steps done, steps in all).

    Raises:
        ClassifierError: too little access, or no triggers to be found.
        RecipeError: an unknown method or variant, or no pairs wanted.
        DataError: images that the model doesn't take.
    """
    if pairs < 1:
        raise RecipeError(f"a seal has at least 1 pair of triggers, got {pairs}")
    chosen = method if isinstance(method, SealMethod) else make_method(method)
    classifier.require(chosen.requires)
    images = images_alone(data, "data")
    started = time.perf_counter()
    digest = _digest(classifier)
    facts = {
        "digest": digest,
        "preprocessing": classifier.preprocessing.model_dump(mode="json"),
        "outputs": classifier.outputs,
        "data": None if images is None else images_digest(images),
        **chosen.describe(),
        "pairs": pairs,
        "allow": list(allow),
        "compiled": compiled,
        "seed": seed,
    }
    draws = Draws(key, seal_identity(key, facts))
    ways = executions(classifier, allow=allow, compiled=compiled)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(draws.number("torch"), chosen.name))
        triggers = chosen.run(classifier, Request(draws, pairs, ways, images, seed, progress))
    triggers, floor = _silent(triggers, ways, classifier, draws)
    order = draws.shuffled(len(triggers.labels), "places")
    record = SealRecord(
        seal_id=draws.seal_id,
        owner_public_key=key.public_key.hex(),
        method=chosen.describe(),
        digest=digest,
        model_sha256=classifier.sha256,
        input_shape=_shape(classifier.input_shape),
        num_classes=classifier.num_classes,
        classes=classifier.classes,
        task=classifier.task,
        triggers=tuple(encode_png(triggers.levels[index]) for index in order),
        commitments=tuple(draws.commitment(place, int(triggers.labels[index])) for place, index in enumerate(order)),
        noise=floor,
        allowed=tuple(allow),
        created=now(),
        seconds=round(time.perf_counter() - started, 3),
        seed=seed,
        versions=package_versions(),
    )
    return Seal.sign(key, record)


def make_method(name: str) -> SealMethod:
    """A method by name, with its defaults.

    Raises:
        RecipeError: unknown.
    """
    if name not in METHODS:
        raise RecipeError(f"unknown way of sealing '{name}'; known are {', '.join(METHODS)}")
    return METHODS[name]()


def _silent(
    triggers: Triggers, ways: Sequence[Execution], classifier: Classifier, draws: Draws
) -> tuple[Triggers, NoiseFloor]:
    """The pairs that are answered alike in every execution, with margins above the noise; and what was measured."""
    rivals = min(triggers.ways, classifier.num_classes) - 1
    everything = measure_enough(ways, triggers.levels, triggers.labels, rivals, draws)
    mine = everything.take(torch.arange(len(triggers.labels)))
    least = mine.margins[mine.reference].amin(dim=1)
    quiet = (mine.labels == triggers.labels).all(dim=0) & (least > 0) & (least >= _LEAST_MARGIN * everything.eta)
    kept = quiet.view(-1, 2).all(dim=1).nonzero().flatten()
    if not len(kept):
        raise ClassifierError(
            f"{classifier.source}: none of the triggers is answered alike in every way of computing; nothing to seal by"
        )
    places = torch.stack([2 * kept, 2 * kept + 1], dim=1).flatten()
    labels = triggers.labels[places]
    return (
        Triggers(triggers.levels[places], labels, triggers.ways),
        noise_floor(mine.take(places), mine, triggers.labels, everything),
    )


def _digest(classifier: Classifier) -> str:
    if isinstance(classifier, TorchClassifier):
        return weights_digest(classifier.module)
    if classifier.sha256 is None:
        raise ClassifierError(
            f"{classifier.source}: can't be named in a seal, for neither its weights nor its file are known; "
            "open it from a file, or give its SHA-256"
        )
    return classifier.sha256


def _shape(shape: tuple[int, ...]) -> Any:
    return shape
