"""How a model's score differences respond to single grey levels: by gradients, or by asking."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intaglio.classifiers import Classifier, TorchClassifier
from intaglio.classifiers.outputs import Outputs, to_log_probs
from intaglio.errors import ClassifierError

LEVELS = 255
#: The smallest probability that a logarithm is taken of.
_LEAST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Moves:
    """Single steps of one grey level: `effects` `[M, J]` on J margins; each moves `pixels` `[M]` by `signs` `[M]`."""

    effects: NDArray[np.float64]
    pixels: NDArray[np.int64]
    signs: NDArray[np.int64]


class Surface(Protocol):
    """Margins z_top - z_other of images in grey levels (float32 `[N, ...]`, 0 to 255), and what changes them."""

    def scores(self, levels: Tensor) -> Tensor:
        """Float64 `[N, K]`, of which only differences count: logits, or logarithms of probabilities."""

    def moves(
        self, levels: Tensor, tops: Tensor, others: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, list[Moves]]:
        """Margins float64 `[N, J]`, and for each image the moves that it allows."""


def differences(scores: Tensor, kind: Outputs) -> Tensor:
    """Scores as float64 whose differences are those of the logits."""
    scores = scores.double()
    return scores.clamp_min(_LEAST).log() if kind == "probabilities" else scores


def margins(scores: Tensor, tops: Tensor, others: Tensor) -> Tensor:
    """z_top - z_other, `[N, J]`, for `tops` `[N]` and `others` `[N, J]`."""
    return scores.gather(1, tops[:, None]) - scores.gather(1, others)


def rivals(scores: Tensor, tops: Tensor, count: int) -> Tensor:
    """The `count` highest classes beside `tops`, best first, `[N, count]`."""
    return scores.scatter(1, tops[:, None], -torch.inf).topk(count, dim=1).indices


def lead(scores: Tensor, tops: Tensor) -> Tensor:
    """z_top minus the highest other score, `[N]`; negative where another class is ahead."""
    return margins(scores, tops, rivals(scores, tops, 1)).squeeze(1)


def require_module(classifier: Classifier, what: str) -> TorchClassifier:
    """The classifier, if its gradients can be had.

    Raises:
        ClassifierError: they can't.
    """
    if not isinstance(classifier, TorchClassifier):
        raise ClassifierError(f"{what} needs gradients, which {classifier.source} ({classifier.format}) doesn't offer")
    return classifier


def probabilities(classifier: TorchClassifier, images: Tensor, *, weights: bool = False) -> Tensor:
    """Softmax probabilities `[N, K]` with a gradient to `images` in [0, 1], or to the weights too, in one batch."""
    return to_log_probs(classifier.differentiable(images, weights=weights), classifier.outputs).exp()


class GradientSurface:
    """The surface of a module: effects are derivatives, exact where the network is linear in between.

    `jacobian` is also what larger, continuous steps go by.
    """

    #: Moves considered per image; of more pixels, a random part.
    most_moves = 8192

    def __init__(self, classifier: TorchClassifier) -> None:
        self._classifier = classifier
        self._kind = classifier.outputs

    def scores(self, levels: Tensor) -> Tensor:
        return differences(self._classifier.scores(levels / LEVELS), self._kind)

    def jacobian(self, levels: Tensor, tops: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Margins float64 `[N, J]` and their derivatives float32 `[N, J, pixels]` per grey level."""
        found, slopes = [], []
        size = self._classifier.batch_size
        for part, top, other in zip(
            torch.split(levels, size), torch.split(tops, size), torch.split(others, size), strict=True
        ):
            images = (part / LEVELS).requires_grad_()
            with torch.enable_grad():
                answers = self._classifier.differentiable(images)
                if self._kind == "probabilities":
                    answers = answers.clamp_min(_LEAST).log()
                values = margins(answers, top.to(answers.device), other.to(answers.device))
                columns = values.sum(dim=0)
                last = len(columns) - 1
                slope = [
                    torch.autograd.grad(column, images, retain_graph=index < last)[0].flatten(1)
                    for index, column in enumerate(columns)
                ]
            found.append(values.detach().cpu().double())
            slopes.append(torch.stack(slope, dim=1) / LEVELS)
        return torch.cat(found), torch.cat(slopes)

    def moves(
        self, levels: Tensor, tops: Tensor, others: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, list[Moves]]:
        values, slopes = self.jacobian(levels, tops, others)
        found = []
        for image, slope in zip(levels.flatten(1).numpy(), slopes.double().numpy(), strict=True):
            pixels = np.arange(len(image))
            if 2 * len(pixels) > self.most_moves:
                pixels = generator.choice(len(pixels), self.most_moves // 2, replace=False)
            up, down = pixels[image[pixels] < LEVELS], pixels[image[pixels] > 0]
            effects = np.concatenate([slope[:, up].T, -slope[:, down].T])
            signs = np.concatenate([np.ones(len(up), np.int64), -np.ones(len(down), np.int64)])
            alive = np.abs(effects).max(axis=1) > 0
            found.append(Moves(effects[alive], np.concatenate([up, down])[alive], signs[alive]))
        return values, found


class ProbeSurface:
    """The surface of a model that only answers: each image's moves are tried, `probes` of them, at a query each."""

    def __init__(self, classifier: Classifier, *, probes: int = 64) -> None:
        self._classifier = classifier
        self._kind = classifier.outputs
        self._probes = probes

    def scores(self, levels: Tensor) -> Tensor:
        return differences(self._classifier.scores(levels / LEVELS), self._kind)

    def moves(
        self, levels: Tensor, tops: Tensor, others: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, list[Moves]]:
        values = margins(self.scores(levels), tops, others)
        found = []
        for index, image in enumerate(levels):
            flat = image.flatten()
            pixels = generator.choice(len(flat), min(self._probes, len(flat)), replace=False)
            signs = generator.choice([-1, 1], len(pixels))
            here = flat[torch.from_numpy(pixels)].numpy()
            signs = np.where(here == LEVELS, -1, np.where(here == 0, 1, signs))
            tried = flat.repeat(len(pixels), 1)
            tried[torch.arange(len(pixels)), torch.from_numpy(pixels)] += torch.from_numpy(signs).float()
            scores = self.scores(tried.view(-1, *image.shape))
            changed = margins(scores, tops[index].expand(len(pixels)), others[index].expand(len(pixels), -1))
            effects = (changed - values[index]).numpy()
            alive = np.abs(effects).max(axis=1) > 0
            if not alive.any():
                raise ClassifierError(
                    f"{self._classifier.source}: its scores don't change with single grey levels: they are rounded, "
                    "and too coarse to seal by"
                )
            found.append(Moves(effects[alive], pixels[alive], signs[alive]))
        return values, found
