"""The network that reads a signature: one encoder shared over classes, pooled so that order and number don't matter."""

import torch
from torch import Tensor, nn


class SignatureNetwork(nn.Module):
    """Class features `[N, K, F]` to a model score (logit) `[N]` and per-class suspicions (logits) `[N, K]`.

    h_k = encoder(clamp((f_k - mean) / std));  score = head(max_k h_k, mean_k h_k);  suspicion_k = w . h_k + b

    Permuting the classes permutes the suspicions and leaves the score alike; K may be any number from 2 on.
    Source of the form: Zaheer et al. 2017 (Deep Sets).
    """

    #: Standardised features are clamped here: what lies further out than any model seen says no more.
    LIMIT = 4.0
    mean: Tensor
    std: Tensor

    def __init__(self, features: int, hidden: int = 32, embedding: int = 16, dropout: float = 0.3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.encoder = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, embedding),
            nn.ReLU(),
        )
        self.suspicion = nn.Linear(embedding, 1)
        self.head = nn.Linear(2 * embedding, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        standard = ((features - self.mean) / self.std).clamp(-self.LIMIT, self.LIMIT)
        embedded = self.encoder(standard)
        pooled = torch.cat([embedded.amax(dim=1), embedded.mean(dim=1)], dim=1)
        score: Tensor = self.head(pooled)
        suspicion: Tensor = self.suspicion(embedded)
        return score.squeeze(1), suspicion.squeeze(2)

    def standardise(self, features: Tensor) -> None:
        """Takes mean and standard deviation of each feature from `[N, K, F]`."""
        flat = features.flatten(0, 1)
        self.mean.copy_(flat.mean(0))
        self.std.copy_(flat.std(0).clamp_min(1e-3))
