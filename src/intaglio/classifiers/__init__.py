"""What is under examination: `Classifier`, its adapters, and the safe opening of model files."""

from intaglio.classifiers.access import Access
from intaglio.classifiers.base import Classifier
from intaglio.classifiers.callable_classifier import CallableClassifier
from intaglio.classifiers.onnx_classifier import OnnxClassifier
from intaglio.classifiers.onnx_export import export_onnx
from intaglio.classifiers.opening import open_classifier
from intaglio.classifiers.preprocessing import Preprocessing
from intaglio.classifiers.safetensors_file import save_classifier
from intaglio.classifiers.sidecar import Sidecar
from intaglio.classifiers.torch_classifier import TorchClassifier

__all__ = [
    "Access",
    "CallableClassifier",
    "Classifier",
    "OnnxClassifier",
    "Preprocessing",
    "Sidecar",
    "TorchClassifier",
    "export_onnx",
    "open_classifier",
    "save_classifier",
]
