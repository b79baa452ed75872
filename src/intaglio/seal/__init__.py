"""Sealing: is the model that answers still exactly the one that was delivered? The model itself is never changed."""

from intaglio.seal.boundary import Boundary
from intaglio.seal.checking import SealCheck, check_seal, sealed_answers
from intaglio.seal.ftg import FineGrained
from intaglio.seal.making import METHODS, make_seal
from intaglio.seal.method import Request, SealMethod, Triggers
from intaglio.seal.noise import NoiseFloor
from intaglio.seal.random_images import RandomImages
from intaglio.seal.sealed import Seal, SealRecord
from intaglio.seal.sensitive import Sensitive
from intaglio.seal.variance import Variance
from intaglio.seal.watching import Watch, WatchEvent, watch_seal

__all__ = [
    "METHODS",
    "Boundary",
    "FineGrained",
    "NoiseFloor",
    "RandomImages",
    "Request",
    "Seal",
    "SealCheck",
    "SealMethod",
    "SealRecord",
    "Sensitive",
    "Triggers",
    "Variance",
    "Watch",
    "WatchEvent",
    "check_seal",
    "make_seal",
    "sealed_answers",
    "watch_seal",
]
