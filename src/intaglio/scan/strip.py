"""STRIP: an input that carries a trigger is answered alike whatever is laid over it (Gao et al. 2019)."""

from pathlib import Path

import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier
from intaglio.data import check_images
from intaglio.errors import DataError, RecipeError
from intaglio.scan.detector import Progress, Request
from intaglio.scan.images import clean_sample
from intaglio.scan.score_detector import Measured, ScoreDetector
from intaglio.seeds import torch_generator

#: Clean images whose entropies those of the inputs are compared with: as many as there are, within these bounds.
REFERENCES = (20, 200)
_PERMUTATIONS = 999
_CHUNK = 100


class STRIP(ScoreDetector):
    """Looks for inputs whose answers stay certain under every overlay, more of them than among clean images.

    Each input's suspicion s_i = -(mean entropy of the answers to its blends); p_i is its rank among the suspicions of
    clean images. The score is the higher criticism of these p-values, max over i <= n/2 of
    sqrt(m n / (m + n)) (i/n - p_(i)) / sqrt(p_(i) (1 - p_(i))) for n inputs and m clean images: it sees few very
    certain inputs as well as many fairly certain ones. Its own p-value is that of 999 permutations of inputs and
    clean images: valid if, without triggers, both come from one source.

    Args:
        overlays: clean images laid over each input.

    Raises:
        RecipeError: none.

    Source: Gao et al. 2019, "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks"; the score: Donoho & Jin
    2004, "Higher criticism for detecting sparse heterogeneous mixtures".
    """

    name = "strip"
    requires = Access.SCORES
    needs = ("inputs",)

    def __init__(self, *, overlays: int = 32, calibration: Path | None = None) -> None:
        super().__init__(calibration=calibration)
        if not isinstance(overlays, int) or overlays < 1:
            raise RecipeError(f"STRIP lays at least one image over an input, got {overlays}")
        self.overlays = overlays

    def measure(self, classifier: Classifier, request: Request) -> Measured:
        inputs = request.inputs
        if inputs is None:
            raise DataError(
                f"{self.name} looks for triggers on images that the model was asked about: give some that you suspect "
                "(--inputs, or inputs=images)"
            )
        check_images(inputs, "inputs")
        classes = classifier.predict(inputs)  # first, for it refuses inputs of another shape
        clean = clean_sample(classifier, request, self.overlays + REFERENCES[1])
        overlays, references = clean[: self.overlays], clean[self.overlays :]
        if len(references) < REFERENCES[0]:
            wanted = self.overlays + REFERENCES[0]
            raise DataError(f"{self.name} needs at least {wanted} clean images of the model's task, got {len(clean)}")
        both = torch.cat([references, inputs.to(references)])
        scores = strip_scores(classifier, both, overlays, progress=request.progress)
        known, asked = scores[: len(references)], scores[len(references) :]
        p_values = ranks_among(asked, known)
        excess = (-p_values.log() - 1) / len(asked)  # of mean 0 without triggers
        score = float(higher_criticism(p_values, len(known)))
        return Measured(
            score=score,
            suspicions=torch.zeros(classifier.num_classes).index_add(0, classes.cpu(), excess.float()),
            p_value=_permuted(scores, len(known), score, request.seed),
            details={"suspicions": asked.tolist()},
        )


def strip_scores(classifier: Classifier, inputs: Tensor, clean: Tensor, *, progress: Progress | None = None) -> Tensor:
    """-(1/m) sum over the m clean images c of H(f(min(x + c, 1))), H in nats: float64 `[N]`; higher is more suspicious.

    Both images at full strength, as the paper's code has it: halved, a trigger loses its hold (on 7 backdoored
    Fashion-MNIST models a mean AUROC of 0.92 at full strength, 0.67 with halves). Each costs m queries.

    Args:
        inputs: `[N, C, H, W]`, or clips `[N, T, C, H, W]`.
        clean: the overlays `[m, ...]`.

    Raises:
        DataError: images that the model can't take.
        ClassifierError: too little access.
    """
    check_images(clean, "overlays")
    total = torch.zeros(len(inputs), dtype=torch.float64)
    for done, overlay in enumerate(clean):
        total += entropy(classifier.log_probs((inputs + overlay).clamp(max=1.0))).cpu()
        if progress is not None:
            progress(done + 1, len(clean))
    return -total / len(clean)


def entropy(log_probs: Tensor) -> Tensor:
    """H = -sum_k p_k log p_k in nats, float64 `[N]`, of log-probabilities `[N, K]`; 0 log 0 = 0."""
    exact = log_probs.double()
    return -(exact.exp() * exact.clamp_min(-1e4)).sum(dim=1)


def ranks_among(scores: Tensor, known: Tensor) -> Tensor:
    """p = (1 + #{known >= s}) / (1 + m) for every score s: `[..., n]` among `[..., m]`, float64."""
    ordered = known.sort(dim=-1).values
    below = torch.searchsorted(ordered, scores.contiguous())
    return (1.0 + known.shape[-1] - below.double()) / (1 + known.shape[-1])


def higher_criticism(p_values: Tensor, compared: int) -> Tensor:
    """The largest standardised excess of small p-values `[..., n]`; `compared` is m, how many they are ranks among."""
    count = p_values.shape[-1]
    ordered = p_values.sort(dim=-1).values[..., : (count + 1) // 2]
    expected = torch.arange(1, ordered.shape[-1] + 1, dtype=torch.float64) / count
    spread = (ordered * (1 - ordered)).clamp_min(1 / (compared + 1) ** 2).sqrt()
    size = (count * compared / (count + compared)) ** 0.5
    excess: Tensor = size * (expected - ordered) / spread
    return excess.amax(dim=-1)


def _permuted(scores: Tensor, compared: int, observed: float, seed: int) -> float:
    """How rare a statistic of `observed` or more is when any of these may have been the clean ones."""
    generator, larger = torch_generator(seed, "strip", "permutations"), 0
    for start in range(0, _PERMUTATIONS, _CHUNK):
        rows = min(_CHUNK, _PERMUTATIONS - start)
        drawn = scores[torch.rand(rows, len(scores), generator=generator).argsort(dim=1)]
        again = higher_criticism(ranks_among(drawn[:, compared:], drawn[:, :compared]), compared)
        larger += int((again >= observed - 1e-9).sum())
    return (1 + larger) / (1 + _PERMUTATIONS)
