"""What may be done to clips before a video model sees them: frames dropped, shuffled, resampled or filtered; a codec.

As defences: a trigger that lives in the order of frames, in few of them or in fine detail may not outlast one of these,
and what a clean clip shows should. All treat every clip of a batch alike, whatever else is in the batch.
"""

import math
from fractions import Fraction
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from intaglio.data.videos.decoding import load_av
from intaglio.data.videos.storage import to_bytes
from intaglio.errors import DataError, RecipeError
from intaglio.seeds import torch_generator
from intaglio.tampering.inputs import InputTransform

Codec = Literal["h264", "mpeg4", "mjpeg"]


class ClipTransform(InputTransform):
    """A function of raw clips `[N, T, C, H, W]`: the frames of a clip are looked at together."""

    def apply(self, images: Tensor) -> Tensor:
        """As `InputTransform.apply`.

        Raises:
            DataError: images.
        """
        if images.ndim != 5:
            raise DataError(f"{self.name} works on clips [N, T, C, H, W], got images {list(images.shape)}")
        return self.run(images)


class DropFrames(ClipTransform):
    """Loses `round(share * T)` frames, each replaced by the nearest one that is left (of two, the earlier).

    Args:
        share: of the frames, in [0, 1); one is always kept.
        seed: draws which; the same ones of all clips of one length.

    Raises:
        RecipeError: a share outside its range.
    """

    name = "drop-frames"

    def __init__(self, *, share: float = 0.25, seed: int = 0) -> None:
        if not 0 <= share < 1:
            raise RecipeError(f"the share of frames to drop lies in [0, 1), got {share}")
        self.share = share
        self.seed = seed

    def run(self, images: Tensor) -> Tensor:
        count = images.shape[1]
        order = torch.randperm(count, generator=torch_generator(self.seed, "inputs", self.name, count))
        kept = order[min(round(self.share * count), count - 1) :].sort().values
        distances = (torch.arange(count)[:, None] - kept).abs()
        return images[:, kept[distances.argmin(dim=1)]]


class ShuffleFrames(ClipTransform):
    """Shuffles the frames within each `window` consecutive ones.

    Args:
        window: 2 or more; longer than the clip, all its frames are shuffled.
        seed: draws the order; the same one for all clips of one length.

    Raises:
        RecipeError: a window of less than 2.
    """

    name = "shuffle-frames"

    def __init__(self, *, window: int = 4, seed: int = 0) -> None:
        if not isinstance(window, int) or window < 2:
            raise RecipeError(f"frames are shuffled within windows of 2 or more, got {window}")
        self.window = window
        self.seed = seed

    def run(self, images: Tensor) -> Tensor:
        count = images.shape[1]
        generator = torch_generator(self.seed, "inputs", self.name, count)
        parts = torch.split(torch.arange(count), self.window)
        return images[:, torch.cat([part[torch.randperm(len(part), generator=generator)] for part in parts])]


class ResampleTime(ClipTransform):
    """Plays a clip at another rate, `max(round(factor * T), 1)` frames, and back, linear both ways; ends stay ends.

    Args:
        factor: of the number of frames, above 0; 1 changes nothing.

    Raises:
        RecipeError: a factor that isn't above 0.
    """

    name = "resample-time"

    def __init__(self, *, factor: float = 0.5) -> None:
        if not (factor > 0 and math.isfinite(factor)):
            raise RecipeError(f"the factor is above 0 and finite, got {factor}")
        self.factor = factor

    def run(self, images: Tensor) -> Tensor:
        count = images.shape[1]
        signals = images.flatten(2).transpose(1, 2)
        there = interpolate(signals, max(round(self.factor * count), 1), mode="linear", align_corners=True)
        back = interpolate(there, count, mode="linear", align_corners=True)
        return back.transpose(1, 2).reshape(images.shape)


class _TemporalFilter(ClipTransform):
    """A filter over `width` frames around each one; at the ends the first and the last frame go on.

    Args:
        width: odd, 1 or more; 1 changes nothing.

    Raises:
        RecipeError: another width.
    """

    def __init__(self, *, width: int = 3) -> None:
        if not isinstance(width, int) or width < 1 or width % 2 == 0:
            raise RecipeError(f"a filter is an odd number of frames wide, got {width}")
        self.width = width

    def windows(self, images: Tensor) -> Tensor:
        """`[N, T, C, H, W, width]`."""
        before, after = images[:, :1], images[:, -1:]
        half = self.width // 2
        longer = torch.cat([before.repeat_interleave(half, 1), images, after.repeat_interleave(half, 1)], dim=1)
        return longer.unfold(1, self.width, 1)


class TemporalMedian(_TemporalFilter):
    """The median of every pixel over `width` frames: what is seen for less than half of them is gone."""

    name = "median-time"

    def run(self, images: Tensor) -> Tensor:
        return self.windows(images).median(dim=-1).values


class TemporalBlur(_TemporalFilter):
    """The mean of every pixel over `width` frames."""

    name = "blur-time"

    def run(self, images: Tensor) -> Tensor:
        return self.windows(images).mean(dim=-1)


class _Coding(NamedTuple):
    """How PyAV names a codec, what it takes, and its worst and best quantiser."""

    encoder: str
    decoder: str
    pixels: str
    worst: int
    best: int


_CODINGS: dict[Codec, _Coding] = {
    "h264": _Coding("libx264", "h264", "yuv420p", 51, 0),
    "mpeg4": _Coding("mpeg4", "mpeg4", "yuv420p", 31, 2),
    "mjpeg": _Coding("mjpeg", "mjpeg", "yuvj420p", 31, 2),
}
#: Encoders refuse smaller frames, and such as have an odd side.
_SMALLEST = 16


class Recompress(ClipTransform):
    """Writes every clip as a video, on purpose with loss, and reads it again; passes no gradient.

    Colours are halved in resolution (4:2:0). `quality` goes evenly from the codec's worst quantiser (H.264: a constant
    rate factor of 51, MPEG-4 and MJPEG: 31) to its best (0, and 2).

    Args:
        codec: h264, mpeg4 or mjpeg (which knows no time).
        quality: 1 to 100; 55 is the usual rate factor of H.264.

    Raises:
        RecipeError: an unknown codec, or a quality outside its range.
        DataError (when called): channels other than 1 or 3; PyAV is not installed, or was built without the codec.
    """

    name = "recompress"
    rate: ClassVar[int] = 25

    def __init__(self, *, codec: Codec = "h264", quality: int = 50) -> None:
        if codec not in get_args(Codec):
            raise RecipeError(f"unknown codec '{codec}'; known are {', '.join(get_args(Codec))}")
        if not isinstance(quality, int) or not 1 <= quality <= 100:
            raise RecipeError(f"the quality lies between 1 and 100, got {quality}")
        self.codec: Codec = codec
        self.quality = quality

    def run(self, images: Tensor) -> Tensor:
        if images.shape[2] not in (1, 3):
            raise DataError(f"{self.name} takes clips of 1 or 3 channels, got {images.shape[2]}")
        clips = to_bytes(images.detach().cpu())
        decoded = torch.stack([torch.from_numpy(self._once(clip)) for clip in clips])
        return decoded.to(images.device).float() / 255

    def _once(self, clip: Tensor) -> NDArray[np.uint8]:
        """A clip uint8 `[T, C, H, W]` as the codec gives it back."""
        height, width = clip.shape[-2:]
        more = [max(_SMALLEST, side + side % 2) - side for side in (width, height)]
        padded = pad(clip.float(), (0, more[0], 0, more[1]), mode="replicate").to(torch.uint8)
        frames = np.ascontiguousarray(padded.permute(0, 2, 3, 1).numpy())
        decoded = self._coded(frames[..., 0] if clip.shape[1] == 1 else frames)
        if len(decoded) != len(frames):
            raise DataError(f"{self.name}: {self.codec} gave {len(decoded)} frames back of {len(frames)}")
        back = np.stack(decoded).reshape(frames.shape)[:, :height, :width]
        return np.ascontiguousarray(back.transpose(0, 3, 1, 2))

    def _coded(self, frames: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        av = load_av()
        coding = _CODINGS[self.codec]
        quantiser = str(round(coding.worst + (coding.best - coding.worst) * (self.quality - 1) / 99))
        # x264's macroblock tree reads memory that nothing wrote: with it the same clip is coded in several ways
        h264 = {"crf": quantiser, "mbtree": "0"}
        quality = h264 if self.codec == "h264" else {"qmin": quantiser, "qmax": quantiser}
        form = "gray" if frames.ndim == 3 else "rgb24"
        try:
            encoder = av.CodecContext.create(coding.encoder, "w")
            decoder = av.CodecContext.create(coding.decoder, "r")
            encoder.height, encoder.width = frames.shape[1:3]
            encoder.pix_fmt = coding.pixels
            encoder.time_base = Fraction(1, self.rate)
            encoder.framerate = Fraction(self.rate)
            encoder.thread_count = decoder.thread_count = 1  # several may code differently, and short clips no faster
            encoder.options = quality
            packets = []
            for place, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format=form).reformat(format=coding.pixels)
                frame.pts = place
                packets += encoder.encode(frame)
            packets += encoder.encode(None)
            decoded = [frame for packet in packets for frame in decoder.decode(packet)] + decoder.decode(None)
        except (av.FFmpegError, ValueError) as error:
            raise DataError(f"{self.name}: {self.codec} can't code clips of {list(frames.shape)}: {error}") from error
        return [frame.to_ndarray(format=form) for frame in decoded]


#: name -> class; those of `INPUT_TRANSFORMS` take clips as well, frame by frame
CLIP_TRANSFORMS: dict[str, type[ClipTransform]] = {
    transform.name: transform
    for transform in (DropFrames, ShuffleFrames, ResampleTime, TemporalMedian, TemporalBlur, Recompress)
}
