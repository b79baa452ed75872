"""Triggers: how an input is altered. Each family is one file; `TRIGGERS` names those that recipes can draw.

All of them take images, and clips frame by frame; `TemporalTrigger` takes clips alone, so it is in no recipe of images.
"""

from intaglio.plugins import named
from intaglio.triggers.base import Trigger
from intaglio.triggers.blended import BlendedTrigger
from intaglio.triggers.chain import ChainTrigger
from intaglio.triggers.input_aware import InputAwareGenerator, InputAwareTrigger
from intaglio.triggers.patch import PatchTrigger
from intaglio.triggers.pixels import PixelTrigger
from intaglio.triggers.sinusoid import SinusoidTrigger
from intaglio.triggers.stamp import StampTrigger
from intaglio.triggers.temporal import TemporalTrigger
from intaglio.triggers.universal_adversarial import UniversalAdversarialTrigger
from intaglio.triggers.warp import WarpTrigger

TRIGGERS: dict[str, type[Trigger]] = {
    "patch": PatchTrigger,
    "blended": BlendedTrigger,
    "pixels": PixelTrigger,
    "sinusoid": SinusoidTrigger,
    "warp": WarpTrigger,
}


def trigger_named(name: str) -> type[Trigger]:
    """The trigger family of this name: one of `TRIGGERS`, or a plug-in's.

    Raises:
        RecipeError: unknown.
        IntaglioError: a plug-in that can't be used.
    """
    return named("trigger", name, TRIGGERS, Trigger)


__all__ = [
    "TRIGGERS",
    "BlendedTrigger",
    "ChainTrigger",
    "InputAwareGenerator",
    "InputAwareTrigger",
    "PatchTrigger",
    "PixelTrigger",
    "SinusoidTrigger",
    "StampTrigger",
    "TemporalTrigger",
    "Trigger",
    "UniversalAdversarialTrigger",
    "WarpTrigger",
    "trigger_named",
]
