"""Disclosing one batch of triggers, and checking it with public material alone.

A claimant's own pictures are never accepted: everything disclosed must be what its seed gives, and what the commitment
holds. The stored pixels may differ from the redrawn ones by one grey level in 1 % of the places, which is what another
machine's rounding can do; the suspect is judged on the redrawn ones.
"""

import math
from io import BytesIO
from typing import Annotated

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from intaglio.data.picture import read_picture
from intaglio.errors import DataError, EvidenceError
from intaglio.evidence.batches import (
    Batch,
    TriggerPlan,
    batch_leaf,
    draw_batch,
    images_sha256,
    redraw_batch,
    to_pixels,
)
from intaglio.evidence.canonical import Hex32, decode_base64, encode_base64
from intaglio.evidence.commitment import Commitment
from intaglio.evidence.key import Key
from intaglio.evidence.merkle import merkle_proof, merkle_root, verify_merkle_proof
from intaglio.results import Result

_ROUNDED_SHARE = 0.01
#: Of pictures in one file; four times the largest batch, for public images may be many.
_MOST_VALUES = 1 << 28
_PNG = b"\x89PNG\r\n\x1a\n"

Label = Annotated[int, Field(ge=0)]


class Disclosure(Result):
    """One batch laid open: with the commitment it can be checked by anyone. Never use the batch for another claim."""

    index: int
    seed: Hex32
    images: tuple[str, ...]  #: PNG, base64; of a clip the frames lie one below the other
    labels: tuple[Label, ...]
    proof: tuple[Hex32, ...]  #: Merkle proof of the batch's leaf, from the bottom up


def disclose(key: Key, commitment: Commitment, index: int, public: Tensor | None = None) -> Disclosure:
    """Lays batch `index` open.

    Raises:
        EvidenceError: another key's commitment, no such batch, other public images, images that are neither grey nor
            RGB, or triggers that this machine doesn't draw as the commitment's root says.
    """
    _require_picture(commitment)
    batches = committed_batches(key, commitment, public)
    proof = merkle_proof([batch.leaf() for batch in batches], index)
    batch = batches[index]
    return Disclosure(
        index=index,
        seed=batch.seed.hex(),
        images=encode_pictures(batch.images),
        labels=tuple(batch.labels.tolist()),
        proof=tuple(step.hex() for step in proof),
    )


def committed_batches(key: Key, commitment: Commitment, public: Tensor | None = None) -> list[Batch]:
    """All batches, drawn again and found to be those that the commitment's root stands for.

    Raises:
        EvidenceError: another key's commitment, other public images, or triggers that this machine draws otherwise.
    """
    batches = [draw_batch(key, commitment, number, public) for number in range(commitment.batches)]
    if merkle_root([batch.leaf() for batch in batches]).hex() != commitment.merkle_root:
        raise EvidenceError(
            "the triggers drawn from this key are not those committed to; ask and disclose on a machine and with a "
            "version of intaglio like those that made the commitment"
        )
    return batches


def check_disclosure(commitment: Commitment, disclosure: Disclosure, public: Tensor | None = None) -> Batch:
    """The batch, redrawn from its seed, after everything disclosed was found to be as committed.

    Raises:
        EvidenceError: it is not, with the reason.
    """
    _require_picture(commitment)
    if not len(disclosure.images) == len(disclosure.labels) == commitment.batch_size:
        raise EvidenceError(
            f"disclosed are {len(disclosure.images)} images and {len(disclosure.labels)} labels, committed to were "
            f"{commitment.batch_size}"
        )
    stored = decode_pictures(disclosure.images, commitment.input_shape)
    leaf = batch_leaf(disclosure.index, disclosure.seed, images_sha256(stored), list(disclosure.labels))
    proof = [bytes.fromhex(step) for step in disclosure.proof]
    root = bytes.fromhex(commitment.merkle_root)
    if not verify_merkle_proof(leaf, disclosure.index, commitment.batches, proof, root):
        raise EvidenceError("the disclosed batch is not the one committed to: its images, labels, seed or proof differ")
    batch = redraw_batch(commitment, disclosure.index, bytes.fromhex(disclosure.seed), public)
    if batch.labels.tolist() != list(disclosure.labels):
        raise EvidenceError("the disclosed labels are not those that the seed gives: the claimant chose them")
    difference = (to_pixels(batch.images).int() - stored.int()).abs()
    if int(difference.max()) > 1 or float((difference > 0).float().mean()) > _ROUNDED_SHARE:
        raise EvidenceError("the disclosed images are not those that the seed gives: the claimant made them")
    return batch


def encode_pictures(images: Tensor) -> tuple[str, ...]:
    """8-bit images `[N, 1 or 3, H, W]`, or clips `[N, T, 1 or 3, H, W]`, as base64 PNG files.

    The frames of a clip lie one below the other in one picture.
    """
    return tuple(encode_base64(_png(pixels)) for pixels in to_pixels(images))


def decode_pictures(pictures: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
    """uint8 `[N, *shape]` from base64 PNG files.

    Raises:
        EvidenceError: damaged, not PNG, of another shape, or more than can be held in memory.
    """
    if len(pictures) * math.prod(shape) > _MOST_VALUES:  # blank pictures of any size are small files
        raise EvidenceError(f"{len(pictures)} images of {list(shape)} are more than {_MOST_VALUES} pixel values")
    *time, channels, height, width = shape
    rows = math.prod(time) * height
    decoded = []
    for number, text in enumerate(pictures):
        content = decode_base64(text, f"image {number}")
        if not content.startswith(_PNG):
            raise EvidenceError(f"image {number} is not a PNG file")
        try:
            pixels = read_picture(content, name=f"image {number}")
        except DataError as error:
            raise EvidenceError(str(error)) from error
        if tuple(pixels.shape) != (channels, rows, width):
            raise EvidenceError(
                f"image {number} is {list(pixels.shape)}, but {[channels, rows, width]} was committed to"
            )
        decoded.append(pixels.view(channels, *time, height, width).movedim(0, -3))
    return torch.stack(decoded)


def _png(pixels: Tensor) -> bytes:
    channels = pixels.movedim(-3, 0).flatten(1, -2)  # frames one below the other
    picture = Image.fromarray(channels[0].numpy() if len(channels) == 1 else channels.permute(1, 2, 0).numpy())
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _require_picture(plan: TriggerPlan) -> None:
    shape = plan.input_shape
    if shape[-3] not in (1, 3):
        raise EvidenceError(f"only grey and RGB images [1 or 3, H, W] can be disclosed, not {list(shape)}")
