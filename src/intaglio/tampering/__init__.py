"""Tamperings: what a thief or a vandal does to a model. Each method is one file; `TAMPERINGS` names them."""

from intaglio.plugins import named
from intaglio.tampering.average import Average, average_weights
from intaglio.tampering.bit_flip import BitFlip
from intaglio.tampering.clip_inputs import (
    CLIP_TRANSFORMS,
    ClipTransform,
    DropFrames,
    Recompress,
    ResampleTime,
    ShuffleFrames,
    TemporalBlur,
    TemporalMedian,
)
from intaglio.tampering.distil import Distil
from intaglio.tampering.fine_tune import FineTune
from intaglio.tampering.inputs import (
    INPUT_TRANSFORMS,
    InputTransform,
    Jpeg,
    PixelNoise,
    Resize,
    RoundBits,
    TransformedInput,
)
from intaglio.tampering.noise import Noise
from intaglio.tampering.overwrite import Overwrite
from intaglio.tampering.poison import Poison
from intaglio.tampering.prune import FinePrune, Prune
from intaglio.tampering.quantise import Quantise
from intaglio.tampering.tamper_file import Tampered, tamper_file
from intaglio.tampering.tampering import Material, Tampering
from intaglio.tampering.weight_shift import WeightShift

#: name -> class
TAMPERINGS: dict[str, type[Tampering]] = {
    tampering.name: tampering
    for tampering in (
        FineTune,
        Prune,
        FinePrune,
        Quantise,
        Noise,
        WeightShift,
        BitFlip,
        Distil,
        Average,
        Overwrite,
        Poison,
    )
}


def tampering_named(name: str) -> type[Tampering]:
    """The tampering of this name: one of `TAMPERINGS`, or a plug-in's.

    Raises:
        RecipeError: unknown.
        IntaglioError: a plug-in that can't be used.
    """
    return named("tampering", name, TAMPERINGS, Tampering)


__all__ = [
    "CLIP_TRANSFORMS",
    "INPUT_TRANSFORMS",
    "TAMPERINGS",
    "Average",
    "BitFlip",
    "ClipTransform",
    "Distil",
    "DropFrames",
    "FinePrune",
    "FineTune",
    "InputTransform",
    "Jpeg",
    "Material",
    "Noise",
    "Overwrite",
    "PixelNoise",
    "Poison",
    "Prune",
    "Quantise",
    "Recompress",
    "ResampleTime",
    "Resize",
    "RoundBits",
    "ShuffleFrames",
    "Tampered",
    "Tampering",
    "TemporalBlur",
    "TemporalMedian",
    "TransformedInput",
    "WeightShift",
    "average_weights",
    "tamper_file",
    "tampering_named",
]
