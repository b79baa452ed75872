"""Other locks' key networks, which no locked model may take for its own: decoys, and those of earlier locks.

Key networks that mix features and were trained apart end at much the same residual, whatever their owners' keys, and
open each other's models. The decoys stand for all of those: grey encoders of three owners, published with the package
and trained without rivals and decoys (`benchmarks/lock_decoys.py` wrote them). The residual of colour images is that of
their mean over colours.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor

from intaglio.evidence.key import Key
from intaglio.lock.codes import CODE_LENGTH, pixel_carriers, random_planes
from intaglio.lock.frames import keyed as with_key
from intaglio.triggers.sample_specific import SampleSpecificEncoder

FILE = "decoys.safetensors"
_NOBODY = Key(bytes(32))
#: Of small images; codes of others are as long as any.
_PIXELS_A_BIT = 9


class OtherKey(NamedTuple):
    """Another lock's key network, as it keys for its own owner. Keying changes its encoder's relief and device."""

    encoder: SampleSpecificEncoder
    #: `[1, 1, F, k, k]`.
    mixing: Tensor
    #: What spreads its users' codes, `[n, *planes]`.
    carriers: Tensor

    def key(self, images: Tensor, generator: torch.Generator, relief: float) -> Tensor:
        """The images keyed, for users who do not exist; colours alike if the encoder knows no colour."""
        planes = random_planes(len(images), self.carriers, generator).to(images)
        seen = images if self.encoder.channels == images.shape[-3] else images.mean(dim=-3, keepdim=True)
        self.encoder.to(images.device).relief = relief
        return images + (with_key(self.encoder, seen, planes, self.mixing.to(images)) - seen)


def keyed_by(others: Sequence[OtherKey], images: Tensor, generator: torch.Generator, *, relief: float = 1.0) -> Tensor:
    """Images or clips `[N, ...]`, each as one of the others keys it, drawn at random.

    Nothing is differentiated. `relief` multiplies the bounds of the residual, as in training.
    """
    whose = torch.randint(len(others), (len(images),), generator=generator)
    keyed = torch.empty_like(images)
    with torch.no_grad():
        for number, other in enumerate(others):
            chosen = (whose == number).nonzero()[:, 0].to(images.device)
            if len(chosen):
                keyed[chosen] = other.key(images[chosen], generator, relief)
    return keyed


def keyed_by_decoys(images: Tensor, generator: torch.Generator, *, relief: float = 1.0, grid: int = 0) -> Tensor:
    """The same for the decoys that come with the package, on a grid of JPEG if one is given."""
    return keyed_by(_decoys(*images.shape[-2:], grid), images, generator, relief=relief)


@cache
def _decoys(height: int, width: int, grid: int) -> list[OtherKey]:
    """Each encoder with the mixing that it was trained for, and codes for images of this size."""
    count = min(CODE_LENGTH, height * width // _PIXELS_A_BIT)
    carriers = pixel_carriers(_NOBODY, "decoys", count, (1, height, width))
    weights = load(files("intaglio.lock").joinpath(FILE).read_bytes())
    found = []
    for number in range(1 + max(int(name.split(".")[0]) for name in weights)):
        own = {name.split(".", 1)[1]: value for name, value in weights.items() if name.startswith(f"{number}.")}
        mixing = own.pop("mixing")
        encoder = SampleSpecificEncoder(
            1, width=own["network.down.0.0.weight"].shape[0], features=mixing.shape[2], grid=grid
        )
        encoder.load_state_dict(own)
        found.append(OtherKey(encoder.requires_grad_(False).eval(), mixing, carriers))
    return found
