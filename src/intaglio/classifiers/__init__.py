"""What is under examination: `Classifier`, its adapters, and the safe opening of model files."""

from intaglio.classifiers.access import Access
from intaglio.classifiers.base import Classifier
from intaglio.classifiers.callable_classifier import CallableClassifier
from intaglio.classifiers.http_classifier import HttpClassifier
from intaglio.classifiers.http_conduct import Clock, Conduct
from intaglio.classifiers.http_mapping import HttpMapping, read_mapping
from intaglio.classifiers.http_transcript import Exchange, Transcript, image_digest
from intaglio.classifiers.onnx_classifier import OnnxClassifier
from intaglio.classifiers.onnx_export import export_onnx
from intaglio.classifiers.opening import open_classifier
from intaglio.classifiers.preprocessing import Preprocessing
from intaglio.classifiers.safetensors_file import save_classifier, weights_file
from intaglio.classifiers.sidecar import Sidecar
from intaglio.classifiers.torch_classifier import TorchClassifier

__all__ = [
    "Access",
    "CallableClassifier",
    "Classifier",
    "Clock",
    "Conduct",
    "Exchange",
    "HttpClassifier",
    "HttpMapping",
    "OnnxClassifier",
    "Preprocessing",
    "Sidecar",
    "TorchClassifier",
    "Transcript",
    "export_onnx",
    "image_digest",
    "open_classifier",
    "read_mapping",
    "save_classifier",
    "weights_file",
]
