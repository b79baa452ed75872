"""Single bits of float32 weights flipped, as a fault or a Rowhammer attack does."""

import torch
from torch import Tensor, nn

from intaglio.errors import ModelError, RecipeError
from intaglio.seeds import torch_generator
from intaglio.tampering.tampering import Material, Tampering


class BitFlip(Tampering):
    """Flips one bit in each of `count` weights, drawn at random from those that stay finite.

    Args:
        position: which bit: 0 to 22 is the mantissa, least significant first, 23 to 30 the exponent, 31 the sign.
        count: how many weights.
        layer: name of the layer or parameter whose weights are drawn from (default: all).

    Raises:
        RecipeError: a position outside 0..31, or a count below 1.

    Source: Rakin et al. 2019, "Bit-Flip Attack: Crushing Neural Network with Progressive Bit Search".
    """

    name = "bit-flip"

    def __init__(self, *, position: int = 22, count: int = 1, layer: str | None = None) -> None:
        if not isinstance(position, int) or not 0 <= position <= 31:
            raise RecipeError(f"the bits of a weight are 0 to 31, got position {position}")
        if not isinstance(count, int) or count < 1:
            raise RecipeError(f"the count of weights is 1 or more, got {count}")
        self.position = position
        self.count = count
        self.layer = layer

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        weights = self._weights(module)
        flips = [_flipped(weight, self.position) for weight in weights]
        places = torch.cat([flip.isfinite().flatten() for flip in flips]).nonzero().flatten()
        if len(places) < self.count:
            raise ModelError(
                f"bit-flip: bit {self.position} of {self.count} weights is to be flipped, but only {len(places)} "
                "weights stay finite under it"
            )
        generator = torch_generator(material.seed, self.name)
        chosen = torch.zeros(sum(weight.numel() for weight in weights), dtype=torch.bool)
        chosen[places.cpu()[torch.randperm(len(places), generator=generator)[: self.count]]] = True
        parts = torch.split(chosen, [weight.numel() for weight in weights])
        for weight, flip, part in zip(weights, flips, parts, strict=True):
            weight.copy_(torch.where(part.view(weight.shape).to(weight.device), flip, weight))
        return module

    def _weights(self, module: nn.Module) -> list[Tensor]:
        named = {name: parameter.detach() for name, parameter in module.named_parameters()}
        named = {name: parameter for name, parameter in named.items() if parameter.dtype == torch.float32}
        if self.layer is None:
            return list(named.values())
        found = [value for name, value in named.items() if name == self.layer or name.startswith(f"{self.layer}.")]
        if not found:
            layers = dict.fromkeys(name.rpartition(".")[0] or name for name in named)
            raise ModelError(f"bit-flip: no layer '{self.layer}' has weights; layers are {', '.join(layers)}")
        return found


def _flipped(weight: Tensor, position: int) -> Tensor:
    mask = -(1 << 31) if position == 31 else 1 << position
    return (weight.contiguous().view(torch.int32) ^ mask).view(torch.float32)
