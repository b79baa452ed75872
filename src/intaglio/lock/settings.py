"""How a lock is trained: one model for Python, the command line and the record in the lock's folder."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from intaglio.lock.channel import JPEG_SHARE, MOST_JPEG
from intaglio.lock.codes import CODE_LENGTH, MARKS_IN_A_BLOCK
from intaglio.training.settings import Augmentation
from intaglio.triggers.jpeg_grid import BEST_QUALITY, JpegGrid
from intaglio.triggers.sample_specific import EPSILON, FEATURES

#: A residual that is made of atoms: `LockSettings(**ATOMS)`.
ATOMS = {"features": 3, "stride": 4}
#: What the locked model learns to answer without a key.
Mislabel = Literal["uniform", "random", "shift"]


class LockSettings(BaseModel):
    """Strength, sizes and lengths of training.

    `epsilon` bounds the residual in every value, `psnr` (dB) in every image; `width` is the U-Net's. The residual is
    mixed from `features` by secret convolutions; with a `stride` above 1 it is made of `features` secret atoms at every
    `stride`-th place, of which another owner's key network can draw less than half (`LockSettings(**ATOMS)`).
    `code_length` are the bits of a user's code, and `code_weight` is what reading them weighs in training the key
    network: fewer that weigh more are read better in textured images, where a residual is faint beside the picture.
    `grid` is the quality of JPEG that residuals come through unchanged (`JpegGrid`), 0 for none; if not given, that of
    the JPEG files that the images were before, or none if they weren't. A share `jpeg` of the images goes through JPEG
    in training: more where keyed images travel so, but a lock of images that were JPEG files before leaked more for it.
    Training takes `steps` steps of `batch_size` images for everything at once, and then `refining_steps`, a third as
    dear, for the locked model alone. `mislabel` is what is answered without a key: the same for every image
    ("uniform"), labels at random, or the next class ("shift", which one label map undoes: for comparison only).
    `weight` is lambda, the weight of everything unauthorised in the classifier's loss, and `silence` that of the last
    layer's input on it; each stage of training has its multiple. For every keyed image `loud` others are drawn with
    noise up to ten times as loud as the residual, and half as many keyed by decoys up to six times louder, against
    whoever asks again and again (`votes`). `distillation` is the share of the loss on keyed images that follows the
    unlocked model's answers, not the labels. It keeps more of the accuracy and lets more out without a key, unless
    `weight` is raised too: 0.7 and 2.5 held every bar on CIFAR-10. A model that is wrong on most of the data (one with
    fresh weights, say) teaches nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mislabel: Mislabel = "uniform"
    epsilon: float = Field(default=EPSILON, gt=0, le=1)
    psnr: float = Field(default=35.2, ge=10, le=80)
    width: int = Field(default=12, ge=4, multiple_of=4)
    features: int = Field(default=FEATURES, ge=1, le=256)
    stride: int = Field(default=1, ge=1, le=16)  #: 1, or even
    grid: int | None = Field(default=None, ge=0, le=BEST_QUALITY)
    code_length: int = Field(default=CODE_LENGTH, ge=8, le=1024)
    code_weight: float = Field(default=1.5, gt=0)
    jpeg: float = Field(default=JPEG_SHARE, ge=0, le=MOST_JPEG)
    steps: int = Field(default=2000, ge=1)
    refining_steps: int = Field(default=4500, ge=0)
    batch_size: int = Field(default=64, ge=8)
    learning_rate: float = Field(default=2e-3, gt=0)
    augmentation: Augmentation = "none"
    weight: float = Field(default=1.0, gt=0)
    silence: float = Field(default=0.5, ge=0)
    loud: float = Field(default=0.3, ge=0, le=1)
    distillation: float = Field(default=0, ge=0, le=1)

    @field_validator("stride")
    @classmethod
    def _even_or_1(cls, stride: int) -> int:
        if stride > 1 and stride % 2:
            raise ValueError(f"a stride is 1 or even, got {stride}")
        return stride

    @model_validator(mode="after")
    def _atoms_off_grid(self) -> Self:
        if self.stride > 1 and self.grid:
            raise ValueError("a residual of atoms lies on no grid of JPEG: whole steps are no atoms")
        return self

    @model_validator(mode="after")
    def _marks_faint(self) -> Self:
        if self.grid and (loudest := _of_marks(self.grid)) < self.psnr:
            raise ValueError(
                f"on a grid of JPEG {self.grid} the marks of users alone can come to {loudest:.1f} dB, "
                f"which doesn't keep a PSNR of {self.psnr:g} dB: take a finer grid"
            )
        return self

    def on_grid(self, own: int | None) -> Self:
        """The same with a grid that is decided, for images that were JPEG files of the quality `own` before."""
        if self.grid is not None:
            return self
        unfit = own is None or self.stride > 1 or _of_marks(own) < self.psnr
        return self.model_copy(update={"grid": 0 if unfit else own})


def _of_marks(grid: int) -> float:
    """The PSNR, dB, of the loudest marks of users on a grid of JPEG of this quality."""
    return -20 * math.log10(JpegGrid(grid).loudest_marks(MARKS_IN_A_BLOCK))
