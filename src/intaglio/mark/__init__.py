"""Mark: prove that a suspect is a copy of your model."""

from intaglio.mark.adversarial_parametric import AdversarialParametric
from intaglio.mark.deep_fidelity import MODES, DeepFidelity, Mode
from intaglio.mark.margin import Margin
from intaglio.mark.marking import SCHEMES, Marked, draw_triggers, mark, public_images, weights_sha256
from intaglio.mark.rehearsal import Rehearsal
from intaglio.mark.scheme import Host, Scheme
from intaglio.mark.verification import OwnershipClaim, verify_mark

__all__ = [
    "MODES",
    "SCHEMES",
    "AdversarialParametric",
    "DeepFidelity",
    "Host",
    "Margin",
    "Marked",
    "Mode",
    "OwnershipClaim",
    "Rehearsal",
    "Scheme",
    "draw_triggers",
    "mark",
    "public_images",
    "verify_mark",
    "weights_sha256",
]
