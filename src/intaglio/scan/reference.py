"""What is normal for each class of a task: class features measured against the task's clean models.

Any patch turns some classes into some others (boots into bags): what matters is whether it does so more easily in
this model than in clean ones of the same task.
"""

import torch
from torch import Tensor, nn

#: A spread is at least this share of the feature's median spread over classes: no class is normal to the last digit.
_LEAST_SPREAD = 0.3
#: Of a normal distribution, the standard deviation over the mean absolute deviation.
_TO_STANDARD = 1.25
_LIMIT = 8.0


class Reference(nn.Module):
    """z = clamp((f - median_c) / spread_c), with median and spread of class c and feature f over clean models.

    `middle` and `spread` are `[K, F]`; z tells the same whatever the order of the classes that are asked about.
    """

    middle: Tensor
    spread: Tensor

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(classes, features))
        self.register_buffer("spread", torch.ones(classes, features))

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """Features `[N, T, F]` of the classes `[N, T]`, standardised class by class."""
        return ((features - self.middle[classes]) / self.spread[classes]).clamp(-_LIMIT, _LIMIT)

    def learn(self, features: Tensor, classes: Tensor) -> None:
        """Takes what is normal from clean models' features `[N, T, F]` of their examined classes `[N, T]`.

        A class that was never examined is compared with all classes together.
        """
        flat, owner = features.flatten(0, 1), classes.flatten()
        overall = flat.median(dim=0).values
        deviation = (flat - overall).abs().mean(dim=0)
        for index in range(len(self.middle)):
            mine = flat[owner == index]
            self.middle[index] = mine.median(dim=0).values if len(mine) else overall
            self.spread[index] = (mine - self.middle[index]).abs().mean(dim=0) if len(mine) > 1 else deviation
        least = _LEAST_SPREAD * self.spread.median(dim=0).values
        self.spread.copy_(_TO_STANDARD * torch.maximum(self.spread, least) + 1e-3)
