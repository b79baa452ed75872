"""How much of a model its examiner may see: a ladder on which every level includes the ones below."""

from enum import IntEnum


class Access(IntEnum):
    """What a classifier offers and what a method needs; compare with `<` and `>=`."""

    LABELS = 0  #: only the predicted class
    SCORES = 1  #: logits or probabilities
    GRADIENTS = 2  #: derivatives of the scores with respect to the input
    WEIGHTS = 3  #: parameters and activations
