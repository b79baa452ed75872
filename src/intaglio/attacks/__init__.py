"""Attacks: how a training set is poisoned with a trigger, and how well that works. `ATTACKS` names the families.

An attack's `takes` says whether it poisons images, clips, or both.
"""

from intaglio.attacks.adaptive_blend import AdaptiveBlend
from intaglio.attacks.adaptive_patch import AdaptivePatch
from intaglio.attacks.attack import Attack, Victim
from intaglio.attacks.blended import Blended
from intaglio.attacks.clean_label_universal import CleanLabelUniversal
from intaglio.attacks.dirty_label import BadNets, DirtyLabelAttack
from intaglio.attacks.goal import AllToAll, AllToOne, Goal, SourceSpecific
from intaglio.attacks.input_aware import InputAware
from intaglio.attacks.issba import ISSBA
from intaglio.attacks.label_consistent import LabelConsistent
from intaglio.attacks.poisoned import PoisonedDataset
from intaglio.attacks.sig import SIG
from intaglio.attacks.success import accuracy, attack_success_rate, robust_accuracy
from intaglio.attacks.temporal import Temporal
from intaglio.attacks.wanet import WaNet

#: Families by the names of the field.
ATTACKS: dict[str, type[Attack]] = {
    family.name: family
    for family in (
        BadNets,
        Blended,
        SIG,
        LabelConsistent,
        WaNet,
        ISSBA,
        InputAware,
        AdaptiveBlend,
        AdaptivePatch,
        CleanLabelUniversal,
        Temporal,
    )
}

__all__ = [
    "ATTACKS",
    "ISSBA",
    "SIG",
    "AdaptiveBlend",
    "AdaptivePatch",
    "AllToAll",
    "AllToOne",
    "Attack",
    "BadNets",
    "Blended",
    "CleanLabelUniversal",
    "DirtyLabelAttack",
    "Goal",
    "InputAware",
    "LabelConsistent",
    "PoisonedDataset",
    "SourceSpecific",
    "Temporal",
    "Victim",
    "WaNet",
    "accuracy",
    "attack_success_rate",
    "robust_accuracy",
]
