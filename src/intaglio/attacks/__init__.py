"""Attacks: how a training set is poisoned with a trigger, and how well that works."""

from intaglio.attacks.dirty_label import BadNets, DirtyLabelAttack, PoisonedDataset
from intaglio.attacks.goal import AllToAll, AllToOne, Goal, SourceSpecific
from intaglio.attacks.success import accuracy, attack_success_rate, robust_accuracy

__all__ = [
    "AllToAll",
    "AllToOne",
    "BadNets",
    "DirtyLabelAttack",
    "Goal",
    "PoisonedDataset",
    "SourceSpecific",
    "accuracy",
    "attack_success_rate",
    "robust_accuracy",
]
