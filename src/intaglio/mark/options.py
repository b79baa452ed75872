"""Options that every scheme shares."""

from typing import TypedDict

from intaglio.mark.deep_fidelity import Mode


class DeepFidelityOptions(TypedDict, total=False):
    """Keyword arguments of `DeepFidelity`, all with its defaults."""

    mode: Mode
    epochs: int
    batch_size: int
    triggers_per_batch: int
    learning_rate: float
    temperature: float
    twl_weight: float
    pfl_weight: float
    spl_weight: float
