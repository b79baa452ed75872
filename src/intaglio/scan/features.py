"""From measurements to numbers that mean the same for every task: no feature has a unit, an order or a size.

Every feature is a ratio, a share or a rank: multiplying all logits by a constant, permuting the classes, or
enlarging the image leaves it alike. One row per examined class; what concerns the whole model is in every row.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from intaglio.scan.composition import FORMS, REFINED, Effect

#: Ratios are taken after adding this share of the model's largest value, so that flat maps give 0 and not noise.
_FLOOR = 1e-2
_PEAK_RADIUS = 2

#: Of what composed triggers do, for each form.
EFFECT_FEATURES = ("flips", "moves", "gain", "margin", "gain_lead", "margin_lead")
#: Of the signature map, averaged over base images.
MAP_FEATURES = (
    "contrast_classes",  # log of the class's peak over the median peak of the other classes
    "contrast_places",  # log of its peak over its median over places
    "contrast_tail",  # log of its peak over its 98th percentile
    "sharpness",  # share of the map's mass within 2 pixels of the peak
    "singleness",  # log of its largest single place over its largest 3x3 average
    "height",  # (peak - mean) / standard deviation over places
    "mass",  # log of its mean over the median mean of the other classes
    "lead",  # (its value - the largest other value) at its peak's place, over the model's largest peak
    "place_height",  # of the class-averaged map: (max - median) / standard deviation
    "place_tail",  # of the class-averaged map: log of max over 98th percentile
    "place_coincidence",  # share of classes whose own peak lies within 2 pixels of the class-averaged map's
    "prior",  # how far the model favours the class on trial images, in mean absolute deviations over classes
)
FEATURES = (*(f"{form}/{name}" for name in EFFECT_FEATURES for form in (*FORMS, REFINED)), *MAP_FEATURES)


def model_features(maps: Tensor, priors: Tensor, effect: Effect, targets: Tensor) -> Tensor:
    """Features `[T, F]` of the examined classes `targets` `[T]`.

    Args:
        maps: the signature's mean positive logit maps `[K, h, w]` of all classes.
        priors: mean centred log-probabilities `[K]` on the trial images.
        effect: what composed triggers of the examined classes do.
    """
    return torch.cat([effect_features(effect), map_features(maps, priors)[targets]], dim=1)


def effect_features(effect: Effect) -> Tensor:
    """`EFFECT_FEATURES` for each form, `[T, 6 * forms]`; leads are over the median of the other examined classes."""
    gain_lead = effect.gain - _median_of_others(effect.gain)
    margin_lead = effect.margin - _median_of_others(effect.margin)
    return torch.cat([effect.flips, effect.moves, effect.gain, effect.margin, gain_lead, margin_lead], dim=1)


def map_features(maps: Tensor, priors: Tensor) -> Tensor:
    """`MAP_FEATURES` `[K, 12]` of maps `[K, h, w]`, none of them negative."""
    smooth = smoothed(maps)
    classes, height, width = smooth.shape
    flat = smooth.flatten(1)
    peak, mean, deviation = flat.amax(1), flat.mean(1), flat.std(1)
    floor = _FLOOR * peak.max() + 1e-12
    rows, columns = peak_places(smooth)
    overall = smooth.mean(0)
    overall_flat = overall.flatten()
    overall_row, overall_column = peak_places(overall)
    near = (rows - overall_row).abs().le(_PEAK_RADIUS) & (columns - overall_column).abs().le(_PEAK_RADIUS)
    others = _largest_of_others(smooth, rows, columns)
    whole = torch.stack(
        [
            (overall_flat.max() - overall_flat.median()) / (overall_flat.std() + floor * _FLOOR),
            _log_ratio(overall_flat.max(), overall_flat.quantile(0.98), floor),
            near.float().mean(),
        ]
    )
    own = torch.stack(
        [
            _log_ratio(peak, _median_of_others(peak), floor),
            _log_ratio(peak, flat.median(1).values, floor),
            _log_ratio(peak, flat.quantile(0.98, dim=1), floor),
            (smooth * _around(rows, columns, height, width)).flatten(1).sum(1) / (flat.sum(1) + floor),
            _log_ratio(maps.flatten(1).amax(1), peak, floor),
            (peak - mean) / (deviation + floor * _FLOOR),
            _log_ratio(mean, _median_of_others(mean), floor),
            (peak - others) / (peak.max() + floor),
        ],
        dim=1,
    )
    spread = (priors - priors.mean()).abs().mean().clamp_min(1e-6)
    prior = (priors - priors.median()) / spread
    return torch.cat([own, whole.expand(classes, -1), prior[:, None]], dim=1)


def smoothed(maps: Tensor) -> Tensor:
    """3x3 averages of maps `[K, h, w]`; at the border, of the places inside."""
    return avg_pool2d(maps[:, None], 3, 1, 1, count_include_pad=False)[:, 0]


def peak_places(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the largest value of maps `[..., h, w]`."""
    place = maps.flatten(-2).argmax(-1)
    return place // maps.shape[-1], place % maps.shape[-1]


def _largest_of_others(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """For each of maps `[K, h, w]`, the largest value that any other has at this one's place: `[K]`.

    By the two largest at every place, which takes less memory than all values at all K places.
    """
    top, owner = maps.topk(2, dim=0)
    (first, second), leader = top[:, rows, columns], owner[0, rows, columns]
    return torch.where(leader == torch.arange(len(maps)), second, first)


def _around(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Float mask `[K, h, w]` of the places within `_PEAK_RADIUS` of each peak."""
    marks = torch.zeros(len(rows), 1, height, width)
    marks[torch.arange(len(rows)), 0, rows, columns] = 1
    return max_pool2d(marks, 2 * _PEAK_RADIUS + 1, 1, _PEAK_RADIUS)[:, 0]


def _median_of_others(values: Tensor) -> Tensor:
    """For each entry along the first axis, the (lower) median of all others; of two entries, the other one."""
    ordered, places = values.sort(dim=0)
    middle = (len(values) - 2) // 2
    ranks = places.argsort(dim=0)
    return torch.where(ranks <= middle, ordered[middle + 1], ordered[middle])


def _log_ratio(top: Tensor, bottom: Tensor, floor: Tensor) -> Tensor:
    return ((top + floor) / (bottom + floor)).log()
