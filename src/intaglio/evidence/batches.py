"""The trigger batches of a mark: drawn from seeds that are secret until disclosed, and bound to all they belong to.

    seed of batch j      key.derive("mark/<mark id>/<j>")                                secret; disclosed one at a time
    generator's seed     SHA-256(canonical JSON of {seed, j, the whole plan})
    leaf j               canonical JSON of {images_sha256, index, labels, seed}

The generator's seed depends on the owner's public key and on the committed public images as well. Otherwise a claimant
who knows the suspect could fix the labels first, and then shape public images, or borrow a disclosed seed, until the
suspect answers as claimed; so every change draws all images and labels anew, and each try is a throw of dice.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from intaglio.errors import DataError, EvidenceError, RecipeError
from intaglio.evidence.canonical import Hex16, Hex32, Name, canonical_json, validated
from intaglio.evidence.key import Key
from intaglio.results import Result
from intaglio.triggers.keyed import keyed_batch

#: A bundle from a stranger may state any size: 256 MiB of images in a batch are refused before they are drawn.
_MOST_VALUES = 1 << 26

Side = Annotated[int, Field(ge=1, le=1 << 16)]


class TriggerPlan(Result):
    """What the triggers of a mark are drawn for; with the key, or with a disclosed seed, they can be drawn again."""

    mark_id: Hex16  #: 16 random bytes
    trigger: Name  #: one of `triggers.keyed.KEYED_TRIGGERS`
    owner_public_key: Hex32
    input_shape: tuple[Side, ...] = Field(min_length=3, max_length=4)
    num_classes: int = Field(ge=2, le=1 << 24)
    batches: int = Field(ge=1, le=1 << 16)
    batch_size: int = Field(ge=1, le=1 << 20)
    public_images_sha256: Hex32 | None = None  #: of the public images that triggers are made of, if any

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Self:
        if math.prod(self.input_shape) * self.batch_size > _MOST_VALUES:
            raise ValueError(f"a batch has more than {_MOST_VALUES} pixel values")
        return self


@dataclass(frozen=True, eq=False)
class Batch:
    """One disclosure batch."""

    index: int
    seed: bytes  #: secret until disclosed
    images: Tensor  #: float32 [batch_size, *input_shape], multiples of 1/255
    labels: Tensor  #: int64 [batch_size]

    def leaf(self) -> bytes:
        """What the commitment's Merkle tree holds for this batch."""
        return batch_leaf(self.index, self.seed.hex(), images_sha256(self.images), self.labels.tolist())


def plan_triggers(
    key: Key,
    *,
    trigger: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    batches: int,
    batch_size: int,
    public: Tensor | None = None,
) -> TriggerPlan:
    """A new plan with a fresh mark id: made before a model is marked, and part of its commitment afterwards.

    Raises:
        EvidenceError: sizes that make no sense, or public images that are not 8-bit.
    """
    fields = {
        "mark_id": os.urandom(16).hex(),
        "trigger": trigger,
        "owner_public_key": key.public_key.hex(),
        "input_shape": input_shape,
        "num_classes": num_classes,
        "batches": batches,
        "batch_size": batch_size,
        "public_images_sha256": None if public is None else images_sha256(public),
    }
    return validated(TriggerPlan, fields, "triggers")


def draw_batch(key: Key, plan: TriggerPlan, index: int, public: Tensor | None = None) -> Batch:
    """Batch `index` of a plan, from the owner's key.

    Raises:
        EvidenceError: another key's plan, no such batch, or other public images than the plan's.
    """
    if key.public_key.hex() != plan.owner_public_key:
        raise EvidenceError(f"the mark belongs to key {plan.owner_public_key[:16]}, not to {key.public_key.hex()[:16]}")
    return redraw_batch(plan, index, key.derive(f"mark/{plan.mark_id}/{index}"), public)


def redraw_batch(plan: TriggerPlan, index: int, seed: bytes, public: Tensor | None = None) -> Batch:
    """Batch `index` of a plan, from its disclosed seed: no key needed.

    Raises:
        EvidenceError: no such batch, other public images than the plan's, or a kind of trigger that is not known.
    """
    if not 0 <= index < plan.batches:
        raise EvidenceError(f"there is no batch {index}: the mark has {plan.batches}, counted from 0")
    stated = None if public is None else images_sha256(public)
    if stated != plan.public_images_sha256:
        problem = "are missing" if stated is None else "are not the committed ones"
        raise EvidenceError(f"the public images that the triggers are made of {problem}")
    bound = canonical_json({"plan": _plan_fields(plan), "index": index, "seed": seed.hex()})
    secret = hashlib.sha256(bound).digest()
    try:
        images, labels = keyed_batch(
            plan.trigger, secret, plan.batch_size, plan.input_shape, plan.num_classes, public=public
        )
    except (RecipeError, DataError) as error:
        raise EvidenceError(f"the triggers can't be drawn: {error}") from error
    return Batch(index, seed, images, labels)


def batch_leaf(index: int, seed: str, images_digest: str, labels: list[int]) -> bytes:
    """Canonical JSON of one batch: what is hashed into the Merkle tree."""
    return canonical_json({"index": index, "seed": seed, "images_sha256": images_digest, "labels": labels})


def images_sha256(images: Tensor) -> str:
    """Hex SHA-256 over the 8-bit pixels: `"uint8 N,C,H,W\\n"`, then the bytes in that order.

    `images` are uint8, or float32 in [0, 1] whose values are multiples of 1/255.

    Raises:
        EvidenceError: neither.
    """
    pixels = to_pixels(images)
    header = f"uint8 {','.join(str(side) for side in pixels.shape)}\n"
    return hashlib.sha256(header.encode() + pixels.numpy().tobytes()).hexdigest()


def to_pixels(images: Tensor) -> Tensor:
    """The uint8 pixels of such images, on the CPU.

    Raises:
        EvidenceError: the images are not 8-bit.
    """
    images = images.detach().cpu()
    if images.dtype == torch.uint8:
        return images.contiguous()
    levels = images.double() * 255
    pixels = levels.round()
    if not bool(((levels - pixels).abs() < 1e-3).all() and (pixels >= 0).all() and (pixels <= 255).all()):
        raise EvidenceError("images that are committed to must be 8-bit: multiples of 1/255 between 0 and 1")
    return pixels.to(torch.uint8).contiguous()


def _plan_fields(plan: TriggerPlan) -> dict[str, object]:
    """The plan alone, also where it is part of a commitment."""
    return {name: value for name, value in plan.to_dict().items() if name in TriggerPlan.model_fields}
