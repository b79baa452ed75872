"""intaglio: everything that can be done with backdoors in image and video classifiers.

    import intaglio as ig
    verdict = ig.scan("suspect.onnx", task="fashion-mnist")
    verdict.flagged, verdict.p_value, verdict.target_class

Names are imported when first used, so that importing the package costs nothing.
"""

import importlib
import importlib.metadata
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intaglio import attacks, tampering, triggers
    from intaglio.classifiers import (
        Access,
        CallableClassifier,
        Classifier,
        HttpClassifier,
        OnnxClassifier,
        Preprocessing,
        TorchClassifier,
        open_classifier,
        save_classifier,
    )
    from intaglio.data import ImageData, open_data
    from intaglio.errors import IntaglioError
    from intaglio.evidence.key import Key
    from intaglio.evidence.proof import verify_bundle
    from intaglio.evidence.registry import Registry
    from intaglio.lock import train_lock
    from intaglio.mark import mark, verify_mark
    from intaglio.networks import Architecture
    from intaglio.populations import build_population, read_recipe
    from intaglio.report import write_report
    from intaglio.scan import Detector, OnePixelSignature, Verdict, one_pixel_signature, scan
    from intaglio.seal import check_seal, make_seal
    from intaglio.training import TrainingSettings, train

#: Public name -> the module it lives in.
_HOMES = {
    "Access": "classifiers",
    "Architecture": "networks",
    "CallableClassifier": "classifiers",
    "Classifier": "classifiers",
    "Detector": "scan",
    "HttpClassifier": "classifiers",
    "ImageData": "data",
    "IntaglioError": "errors",
    "Key": "evidence.key",
    "OnePixelSignature": "scan",
    "OnnxClassifier": "classifiers",
    "Preprocessing": "classifiers",
    "Registry": "evidence.registry",
    "TorchClassifier": "classifiers",
    "TrainingSettings": "training",
    "Verdict": "scan",
    "build_population": "populations",
    "check_seal": "seal",
    "make_seal": "seal",
    "one_pixel_signature": "scan",
    "open_classifier": "classifiers",
    "open_data": "data",
    "read_recipe": "populations",
    "save_classifier": "classifiers",
    "train": "training",
    "train_lock": "lock",
    "verify_bundle": "evidence.proof",
    "verify_mark": "mark",
    "write_report": "report",
}
_MODULES = ("attacks", "tampering", "triggers")

__all__ = [
    "Access",
    "Architecture",
    "CallableClassifier",
    "Classifier",
    "Detector",
    "HttpClassifier",
    "ImageData",
    "IntaglioError",
    "Key",
    "OnePixelSignature",
    "OnnxClassifier",
    "Preprocessing",
    "Registry",
    "TorchClassifier",
    "TrainingSettings",
    "Verdict",
    "attacks",
    "build_population",
    "check_seal",
    "make_seal",
    "mark",
    "one_pixel_signature",
    "open_classifier",
    "open_data",
    "read_recipe",
    "save_classifier",
    "scan",
    "tampering",
    "train",
    "train_lock",
    "triggers",
    "verify_bundle",
    "verify_mark",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"intaglio.{_HOMES[name]}"), name)
    if name == "__version__":
        return importlib.metadata.version("intaglio")
    if name in _MODULES:
        return importlib.import_module(f"intaglio.{name}")
    raise AttributeError(f"module 'intaglio' has no attribute '{name}'")


class _Package(ModuleType):
    """Keeps `intaglio.scan` and `intaglio.mark` functions, although importing sub-packages of these names would replace
    them: the setters take what the import system announces, which stays reachable as `from intaglio.scan import ...`.
    """

    @property
    def scan(self) -> Any:
        return importlib.import_module("intaglio.scan").scan

    @scan.setter
    def scan(self, module: ModuleType) -> None: ...

    @property
    def mark(self) -> Any:
        return importlib.import_module("intaglio.mark").mark

    @mark.setter
    def mark(self, module: ModuleType) -> None: ...


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
