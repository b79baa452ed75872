"""Tiny videos for the tests: encoded on the spot, each frame a flat grey that tells its place."""

from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

#: Container and codec -> (file name, codec, pixel format, options).
FORMATS = {
    "mp4, H.264": ("v.mp4", "libx264", "yuv420p", {"bf": "2"}),
    "mp4, MPEG-4": ("v.mp4", "mpeg4", "yuv420p", {}),
    "avi, MPEG-4": ("v.avi", "mpeg4", "yuv420p", {"bf": "2", "qmin": "1", "qmax": "2"}),
    "avi, H.264": ("v.avi", "libx264", "yuv420p", {"bf": "2"}),
    "avi, MJPEG": ("v.avi", "mjpeg", "yuvj420p", {}),
    "mkv, H.264": ("v.mkv", "libx264", "yuv420p", {"bf": "2"}),
    "mkv, FFV1": ("v.mkv", "ffv1", "bgr0", {}),
    "mov, H.264": ("v.mov", "libx264", "yuv420p", {}),
    "webm, VP9": ("v.webm", "libvpx-vp9", "yuv420p", {"deadline": "realtime"}),
    "webm, VP8": ("v.webm", "libvpx", "yuv420p", {"deadline": "realtime"}),
}

SHAPE = (32, 48)


def level(place: int) -> int:
    """The grey of the frame at `place`."""
    return 10 + 8 * place


def places(frames: Tensor) -> list[int]:
    """Which frames these are `[n, C, H, W]`, by their grey."""
    return [round((value - 10) / 8) for value in frames.float().mean(dim=(1, 2, 3)).tolist()]


def encode(
    path: Path,
    frames: int = 30,
    *,
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    shape: tuple[int, int] = SHAPE,
    options: dict[str, str] | None = None,
    key_every: int = 8,
    start: int = 0,
) -> Path:
    """Writes a video whose frame i is of the grey `level(start + i)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = shape
        stream.pix_fmt = pixels
        stream.gop_size = key_every
        for place in range(start, start + frames):
            picture = np.full((*shape, 3), level(place), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode())
    return path


def noise(frames: int, channels: int = 3, seed: int = 0) -> Tensor:
    """A clip of random bytes, uint8 `[T, C, 32, 48]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, channels, *SHAPE), generator=generator, dtype=torch.uint8)
