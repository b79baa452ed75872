"""Cross-fitted ensembles of signature networks: every clean model gets a score from members that never saw it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from intaglio.errors import DataError
from intaglio.scan.reference import Reference
from intaglio.scan.signature_network import SignatureNetwork
from intaglio.seeds import derive_seed, torch_generator
from intaglio.training import TrainingSettings, train

FOLDS = 8
NETWORKS_PER_FOLD = 3
#: A backdoor that works less often than this teaches nothing about what backdoors look like.
LEARNABLE_ASR = 0.5
_NO_TARGET = -1
_SETTINGS = TrainingSettings(
    epochs=60, batch_size=32, optimizer="adamw", learning_rate=3e-3, weight_decay=0.05, label_smoothing=0.0
)
_SUSPICION_WEIGHT = 0.3


@dataclass(frozen=True)
class Examples:
    """Labelled models: features `[N, T, F]` of the examined classes `[N, T]`, whether backdoored `[N]`, ASR `[N]`.

    `target` `[N]` is the row of the attack's target class, -1 where there is no single one; `confidence` `[N]` how sure
    the model is of its answers.
    """

    features: Tensor
    classes: Tensor
    backdoored: Tensor
    target: Tensor
    asr: Tensor
    confidence: Tensor

    def take(self, mask: Tensor) -> "Examples":
        """The models in a boolean mask `[N]`."""
        return Examples(*(getattr(self, part.name)[mask] for part in fields(self)))


class Member(nn.Module):
    """Networks that learned from the same models, averaged; with a reference if all these were of one task."""

    def __init__(self, features: int, networks: int, classes: int | None) -> None:
        super().__init__()
        self.networks = nn.ModuleList(SignatureNetwork(features) for _ in range(networks))
        self.reference = Reference(classes, features) if classes else None

    def prepared(self, features: Tensor, classes: Tensor) -> Tensor:
        """Features as the networks take them."""
        return features if self.reference is None else self.reference(features, classes)

    def forward(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `[N]` and suspicions `[N, T]`."""
        prepared = self.prepared(features, classes)
        answers = [network(prepared) for network in self.networks]
        scores, suspicions = zip(*answers, strict=True)
        return torch.stack(scores).mean(0), torch.stack(suspicions).mean(0)


class Ensemble(nn.Module):
    """`FOLDS` members of `NETWORKS_PER_FOLD` networks each; member m never saw the models of fold m.

    Args:
        classes: how many the task has whose clean models every class is compared with; None: no such comparison.
    """

    def __init__(
        self, features: int, folds: int = FOLDS, networks: int = NETWORKS_PER_FOLD, classes: int | None = None
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(Member(features, networks, classes) for _ in range(folds))

    def forward(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `[N, members]` and mean suspicions `[N, T]` of features `[N, T, F]` of the classes `[N, T]`."""
        scores, suspicions = [], []
        for member in self.members:
            score, suspicion = member(features, classes)
            scores.append(score)
            suspicions.append(suspicion)
        return torch.stack(scores, dim=1), torch.stack(suspicions).mean(0)


def assign_folds(backdoored: Tensor, folds: int, seed: int) -> Tensor:
    """Fold of each model, int64 `[N]`: clean and backdoored models are spread evenly, in an order drawn by `seed`.

    Raises:
        DataError: fewer clean or backdoored models than folds.
    """
    assigned = torch.zeros(len(backdoored), dtype=torch.int64)
    for kind in (True, False):
        places = (backdoored == kind).nonzero().flatten()
        if len(places) < folds:
            what = "backdoored" if kind else "clean"
            raise DataError(f"{len(places)} {what} models are too few to fit a detector; {folds} are the least")
        order = torch.randperm(len(places), generator=torch_generator(seed, "folds", int(kind)))
        assigned[places[order]] = torch.arange(len(places)) % folds
    return assigned


def fit_ensemble(
    examples: Examples, fold: Tensor, *, seed: int, networks: int = NETWORKS_PER_FOLD, classes: int | None = None
) -> Ensemble:
    """Trains member m on all models outside fold m.

    Args:
        classes: of the one task that all models are of; None: several tasks, whose classes can't be compared.
    """
    folds = int(fold.max()) + 1
    ensemble = Ensemble(examples.features.shape[2], folds, networks, classes)
    learnable = ~examples.backdoored | (examples.asr >= LEARNABLE_ASR)
    for index, member in enumerate(ensemble.members):
        assert isinstance(member, Member)
        part = examples.take((fold != index) & learnable)
        if member.reference is not None:
            member.reference.learn(part.features[~part.backdoored], part.classes[~part.backdoored])
        features = member.prepared(part.features, part.classes)
        for number, network in enumerate(member.networks):
            assert isinstance(network, SignatureNetwork)
            _fit_network(network, features, part, derive_seed(seed, index, number))
    return ensemble.eval()


def out_of_fold(ensemble: Ensemble, examples: Examples, fold: Tensor) -> tuple[Tensor, Tensor]:
    """For each model the score `[N]` and suspicions `[N, K]` of the one member that never saw it."""
    scores = torch.zeros(len(fold))
    suspicions = torch.zeros(examples.features.shape[:2])
    with torch.inference_mode():
        for index, member in enumerate(ensemble.members):
            mine = fold == index
            scores[mine], suspicions[mine] = member(examples.features[mine], examples.classes[mine])
    return scores, suspicions


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Several populations as one.

    Raises:
        DataError: they differ in the number of classes examined.
    """
    counts = sorted({part.features.shape[1] for part in parts})
    if len(counts) > 1:
        raise DataError(f"populations with {counts[0]} and {counts[-1]} classes can't be fitted together")
    return Examples(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(Examples)))


def _fit_network(network: SignatureNetwork, features: Tensor, examples: Examples, seed: int) -> None:
    torch.manual_seed(derive_seed(seed, "initialisation"))
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    network.standardise(features)
    targets = torch.stack([examples.backdoored.long(), examples.target], dim=1)
    train(network, (features, targets), _SETTINGS, seed=seed, loss=_loss)


def _loss(network: nn.Module, features: Tensor, targets: Tensor) -> Tensor:
    """BCE(score, backdoored) + 0.3 CE(suspicions, target class), the latter where there is one target."""
    score, suspicion = network(features)
    loss = binary_cross_entropy_with_logits(score, targets[:, 0].float())
    known = targets[:, 1] != _NO_TARGET
    if bool(known.any()):
        loss = loss + _SUSPICION_WEIGHT * cross_entropy(suspicion[known], targets[known, 1])
    return loss
