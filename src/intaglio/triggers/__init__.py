"""Triggers: how an input is altered. Each family is one file; `TRIGGERS` names them for recipes."""

from intaglio.triggers.base import Trigger
from intaglio.triggers.blended import BlendedTrigger
from intaglio.triggers.patch import PatchTrigger
from intaglio.triggers.pixels import PixelTrigger
from intaglio.triggers.stamp import StampTrigger

TRIGGERS: dict[str, type[Trigger]] = {
    "patch": PatchTrigger,
    "blended": BlendedTrigger,
    "pixels": PixelTrigger,
}

__all__ = ["TRIGGERS", "BlendedTrigger", "PatchTrigger", "PixelTrigger", "StampTrigger", "Trigger"]
