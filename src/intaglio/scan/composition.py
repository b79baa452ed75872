"""From one-pixel responses to whole triggers: what all the pixels that push towards a class can do together.

One pixel is a first-order probe. Adding up its answers gives, for each class t, the trigger that the responses
predict to be the best of its form, and trying that trigger on images tells a backdoor from ordinary sensitivity:

    e_t(i, j) = max over v of R_t(i, j, v), v_t(i, j) its argmax, R the responses averaged over base images
    scattered n   set the n places with the largest e_t to v_t
    window w      set the w x w square with the largest sum of e_t > 0 to v_t, where e_t > 0
    whole d       add d * sign(slope of t) to every value: the trigger that a blended backdoor is closest to

Of a clip, a place is a pixel in all frames: a trigger in some of them is within its reach.

This needs scores only, and no gradient. Source: ours; in purpose a black-box sibling of Neural Cleanse
(Wang et al. 2019), in the last form of a universal fast gradient sign step (Goodfellow et al. 2015).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from intaglio.classifiers import Classifier
from intaglio.scan.places import facing

#: Counts are places: pixels, or blocks of a grid.
SCATTERED = (1, 2, 4, 8, 16, 32, 64)
WINDOWS = (2, 3, 5, 7)
WHOLE = (0.05, 0.1, 0.15)
FORMS = (
    *(f"scattered {count}" for count in SCATTERED),
    *(f"window {side}" for side in WINDOWS),
    *(f"whole {step}" for step in WHOLE),
)
#: What a refined window (see `refinement`) is called beside these.
REFINED = "refined window"


@dataclass(frozen=True)
class Responses:
    """One-pixel answers averaged over base images, as changes of centred log-probabilities.

    `extremes` `[V, K, h, w]`: place set to each of `values` `[V, C]`. `slopes` `[K, h, w]`: change per unit of
    intensity, of all channels together.
    """

    values: Tensor
    extremes: Tensor
    slopes: Tensor

    @property
    def effect(self) -> Tensor:
        """e `[K, h, w]`, without its negative part."""
        return self.extremes.amax(dim=0).clamp_min(0)


@dataclass(frozen=True)
class Effect:
    """What composed triggers do to images, by class t and form: all `[T, forms]`.

    `flips`: share of the images not already answered t that become t. `moves`: share of all images whose answer
    changes. `gain`: mean increase of the centred log-probability of t; `margin`: its mean lead over the best other
    class; both in units of the standard deviation of centred log-probabilities on the unaltered images.
    """

    flips: Tensor
    moves: Tensor
    gain: Tensor
    margin: Tensor


def compose(responses: Responses, target: int, images: Tensor) -> Tensor:
    """`images` `[M, (T,) C, H, W]` under each of the class's composed triggers: `[forms, M, (T,) C, H, W]`."""
    extent = images.shape[-2:]
    effect, best = responses.extremes[:, target].max(dim=0)
    positive = effect.clamp_min(0)
    masks = [_scattered(positive, count) for count in SCATTERED] + [_window(positive, side) for side in WINDOWS]
    pattern = spread(responses.values[best].permute(2, 0, 1), extent)
    covered = spread(torch.stack(masks), extent)[:, None]
    stamped = torch.where(facing(covered, images) > 0, pattern, images)
    direction = spread(responses.slopes[target].sign(), extent)
    whole = torch.stack([(images + step * direction).clamp(0, 1) for step in WHOLE])
    return torch.cat([stamped, whole])


def effect_of(classifier: Classifier, altered: Tensor, before: Tensor, target: int) -> Tensor:
    """What one class's triggers do: `[4, forms]`, the measures of `Effect` in their order.

    Args:
        altered: trial images under each trigger `[forms, M, (T,) C, H, W]`.
        before: centred log-probabilities `[M, K]` of the unaltered trial images.
    """
    answers, unit = before.argmax(dim=1), before.std().clamp_min(1e-6)
    after = centred(classifier.log_probs(altered.flatten(0, 1))).view(*altered.shape[:2], -1)
    eligible = answers != target
    if not bool(eligible.any()):
        eligible = torch.ones_like(eligible)
    answered = after.argmax(dim=2)
    return torch.stack(
        [
            (answered == target)[:, eligible].float().mean(dim=1),
            (answered != answers).float().mean(dim=1),
            (after[..., target] - before[:, target])[:, eligible].mean(dim=1) / unit,
            lead(after, target)[:, eligible].mean(dim=1) / unit,
        ]
    )


def likely_targets(effect: Tensor, count: int) -> Tensor:
    """The `count` classes whose 16 best places add up to most, int64, largest first; all if there are fewer."""
    flat = effect.flatten(1)
    power = flat.topk(min(16, flat.shape[1]), dim=1).values.sum(dim=1)
    return power.argsort(descending=True, stable=True)[:count]


def centred(log_probs: Tensor) -> Tensor:
    """Log-probabilities `[N, K]` less their mean over classes: logits, up to what softmax forgets."""
    return log_probs - log_probs.mean(dim=1, keepdim=True)


def lead(scores: Tensor, target: int) -> Tensor:
    """How far the score of `target` is above the best other class's, for scores `[..., K]`."""
    others = scores.index_fill(scores.ndim - 1, torch.tensor([target]), -torch.inf).amax(dim=-1)
    return scores[..., target] - others


def best_square(effect: Tensor, side: int) -> tuple[slice, slice]:
    """Rows and columns of the `side` x `side` square (at most the whole map) with the largest sum of `[h, w]`."""
    side = min(side, *effect.shape)
    sums = avg_pool2d(effect[None, None], side, 1)[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return slice(row, row + side), slice(column, column + side)


def _scattered(effect: Tensor, count: int) -> Tensor:
    flat = effect.flatten()
    mask = torch.zeros_like(flat)
    mask[flat.topk(min(count, len(flat))).indices] = 1
    return (mask * (flat > 0)).view(effect.shape)


def _window(effect: Tensor, side: int) -> Tensor:
    mask = torch.zeros_like(effect)
    mask[best_square(effect, side)] = 1
    return mask * (effect > 0)


def spread(maps: Tensor, extent: torch.Size) -> Tensor:
    """Maps `[..., h, w]` enlarged to `[..., H, W]`: every pixel takes the value of its block."""
    rows, columns = (
        torch.arange(pixels) * cells // pixels for pixels, cells in zip(extent, maps.shape[-2:], strict=True)
    )
    return maps[..., rows[:, None], columns[None, :]]
