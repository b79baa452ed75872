"""scan: does this model hide a backdoor?"""

from intaglio.scan.detector import Detector, Finding, Request
from intaglio.scan.one_pixel import OnePixelSignature
from intaglio.scan.scanning import DETECTORS, clean_images, scan, scan_all
from intaglio.scan.score_detector import Measured, ScoreDetector
from intaglio.scan.signature import one_pixel_responses, one_pixel_signature, signature_maps
from intaglio.scan.verdict import Verdict

__all__ = [
    "DETECTORS",
    "Detector",
    "Finding",
    "Measured",
    "OnePixelSignature",
    "Request",
    "ScoreDetector",
    "Verdict",
    "clean_images",
    "one_pixel_responses",
    "one_pixel_signature",
    "scan",
    "scan_all",
    "signature_maps",
]
