"""Decoys: key networks of other owners, published with the package, which no locked model may take for its own.

Left alone, key networks that were trained apart end at much the same residual, whatever their owners' keys, and open
each other's models. The decoys stand for all of those: grey encoders of three owners, trained without rivals and
decoys (`benchmarks/lock_decoys.py` wrote them). The residual of colour images is that of their mean over colours.
"""

from functools import cache
from importlib.resources import files

import torch
from safetensors.torch import load
from torch import Tensor

from intaglio.lock.frames import for_frames, frames
from intaglio.triggers.sample_specific import SampleSpecificEncoder

FILE = "decoys.safetensors"


def keyed_by_decoys(images: Tensor, planes: Tensor, generator: torch.Generator, *, relief: float = 1.0) -> Tensor:
    """Images or clips `[N, ...]`, each as one of the decoys keys it, for the codes in `planes` `[N, 1, H, W]`.

    Nothing is differentiated. `relief` multiplies the bounds of the residual, as in training.
    """
    grey = frames(images).mean(dim=1, keepdim=True)
    planes = for_frames(planes, images)
    decoy_of = for_frames(torch.randint(len(_decoys()), (len(images),), generator=generator), images)
    residual = torch.zeros_like(grey)
    with torch.no_grad():
        for number, (encoder, mixing) in enumerate(_decoys()):
            encoder.to(images.device)
            encoder.relief = relief
            chosen = (decoy_of == number).nonzero()[:, 0]
            if len(chosen):
                made = encoder(grey[chosen], planes[chosen], mixing.to(images))
                residual[chosen] = made - grey[chosen]
        return (frames(images) + residual).view_as(images)


@cache
def _decoys() -> list[tuple[SampleSpecificEncoder, Tensor]]:
    """Each encoder with the mixing that it was trained for."""
    weights = load(files("intaglio.lock").joinpath(FILE).read_bytes())
    found = []
    for number in range(1 + max(int(name.split(".")[0]) for name in weights)):
        own = {name.split(".", 1)[1]: value for name, value in weights.items() if name.startswith(f"{number}.")}
        mixing = own.pop("mixing")
        encoder = SampleSpecificEncoder(1, width=own["network.down.0.0.weight"].shape[0], features=mixing.shape[2])
        encoder.load_state_dict(own)
        found.append((encoder.requires_grad_(False).eval(), mixing))
    return found
