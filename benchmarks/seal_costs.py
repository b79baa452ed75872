"""How long sealing takes, on networks of several sizes and on models that others made; and what these seals notice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.fetch import member
from benchmarks.seal_hosts import FOLDER, KEY, Sources, open_host, slug, split
from benchmarks.third_party import (
    CHESS_CLASSES,
    EFFICIENTNET_PREPROCESSING,
    chess_network,
    efficientnet_network,
)
from intaglio.classifiers import (
    Classifier,
    OnnxClassifier,
    Preprocessing,
    Sidecar,
    TorchClassifier,
    export_onnx,
    open_classifier,
    save_classifier,
)
from intaglio.errors import IntaglioError
from intaglio.files import write_json
from intaglio.networks import Architecture
from intaglio.seal import Seal, check_seal, make_seal
from intaglio.tampering import Noise, Prune, Quantise, Tampering
from intaglio.training import TrainingSettings, train

TAMPERINGS: dict[str, Tampering] = {
    "noise, sigma 1e-5": Noise(sigma=1e-5),
    "noise, sigma 1e-6": Noise(sigma=1e-6),
    "int16": Quantise(bits=16),
    "int8": Quantise(bits=8),
    "fp16": Quantise(number="fp16"),
    "pruning, 1%": Prune(share=0.01),
}
Figures = dict[str, Any]


def resnet18() -> TorchClassifier:
    """ResNet-18 at full width on 32 x 32, trained briefly on CIFAR-10 (JPEG)."""
    path = FOLDER / "hosts" / "resnet18.safetensors"
    if not path.exists():
        data = split("cifar10", "train").take(torch.arange(3000))
        architecture = Architecture(name="resnet18", input_shape=(3, 32, 32), num_classes=10)
        torch.manual_seed(1)
        train(module := architecture.build(), data, TrainingSettings(epochs=1, batch_size=64), seed=1)
        save_classifier(module, path, Sidecar(architecture=architecture))
    opened = open_classifier(path)
    assert isinstance(opened, TorchClassifier)
    return opened


def chess() -> TorchClassifier:
    """The chess-piece network as a module."""
    return TorchClassifier(chess_network(), input_shape=(3, 32, 32), num_classes=13, classes=CHESS_CLASSES)


def efficientnet() -> TorchClassifier:
    """EfficientNet-Lite0 (ImageNet-1k, 224 px) as a module."""
    return TorchClassifier(
        efficientnet_network(),
        input_shape=(3, 224, 224),
        num_classes=1000,
        preprocessing=EFFICIENTNET_PREPROCESSING,
    )


def text_direction() -> OnnxClassifier:
    """The text-direction ONNX file: scores alone, 2 classes."""
    inside = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
    preprocessing = Preprocessing(mean=(0.5,), std=(0.5,))
    return OnnxClassifier(member("text-direction", inside), input_shape=(3, 48, 192), preprocessing=preprocessing)


def lenet_onnx() -> OnnxClassifier:
    """The LeNet host as an ONNX file: scores alone."""
    name = "Fashion-MNIST, LeNet"
    path = FOLDER / "onnx" / f"{slug(name)}.onnx"  # elsewhere: beside the host it would replace its side-car
    if not path.exists():
        host = open_host(name)
        export_onnx(host.module, path, input_shape=host.input_shape)
    return OnnxClassifier(path)


#: name -> (model, pairs, the owner's images)
CASES: dict[str, tuple[Callable[[], Classifier], int, str | None]] = {
    "LeNet, 28x28": (lambda: open_host("Fashion-MNIST, LeNet"), 64, None),
    "MobileNet, 28x28": (lambda: open_host("Fashion-MNIST, MobileNet"), 64, None),
    "ResNet-8, 28x28": (lambda: open_host("Fashion-MNIST, ResNet-8"), 64, None),
    "ResNet-18, 32x32": (resnet18, 64, None),
    "chess pieces, 32x32": (chess, 64, None),
    "EfficientNet-Lite0, 224x224": (efficientnet, 8, None),
    "LeNet as ONNX (scores alone), 28x28": (lenet_onnx, 16, "fashion-mnist"),
    "text direction (ONNX), 48x192": (text_direction, 8, None),
}


def cost(name: str) -> Figures:
    """One case: sealing seconds with 2 threads, and what its seal notices."""
    make, pairs, task = CASES[name]
    try:
        classifier = make()
        torch.set_num_threads(2)
        data = None if task is None else split(task, "test")
        seal = make_seal(classifier, KEY, pairs=pairs, data=data)
        own = check_seal(classifier, seal, KEY)
    except IntaglioError as error:
        return {"skipped": str(error)}
    finally:
        torch.set_num_threads(1)
    noise = seal.record.noise
    return {
        "input_shape": list(classifier.input_shape),
        "classes": classifier.num_classes,
        "pairs": seal.record.pairs,
        "seconds": round(seal.record.seconds, 1),
        "queries": classifier.queries,
        "eta": float(f"{noise.eta:.3g}"),
        "smallest_margin": float(f"{noise.smallest_margin:.3g}"),
        "own": {"intact": own.intact, "queries": own.queries, "seconds": own.seconds},
        "noticed": noticed(classifier, seal) if isinstance(classifier, TorchClassifier) else {},
    }


def noticed(classifier: TorchClassifier, seal: Seal) -> Figures:
    """Questions until tampering is certain, for a few edits; None where a check finds nothing."""
    found: Figures = {}
    for name, tampering in TAMPERINGS.items():
        module = tampering.apply(classifier.module)
        other = TorchClassifier(
            module,
            input_shape=classifier.input_shape,
            num_classes=classifier.num_classes,
            preprocessing=classifier.preprocessing,
        )
        checks = [check_seal(other, seal, KEY, seed=seed) for seed in range(10)]
        found[name] = [check.queries if not check.intact else None for check in checks]
    return found


def costs() -> Figures:
    """Every case, cached."""
    found: Figures = {}
    for name in CASES:
        if name.startswith("ResNet-18") and Sources.cifar10 is None:
            continue
        path: Path = FOLDER / "costs" / f"{slug(name)}.json"
        if not path.exists():
            write_json(path, cost(name))
        found[name] = json.loads(path.read_text())
        print(name, found[name], flush=True)
    return found
