"""8-bit images whose margins lie in a narrow window: found by changing a few grey levels at a time."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intaglio.seal.lattice import combine
from intaglio.seal.surface import LEVELS, Moves, Surface, lead, margins


@dataclass(frozen=True)
class Window:
    """Where margins should lie: in [low, high], as near to `target` as can be."""

    low: float
    high: float

    @property
    def target(self) -> float:
        return (self.low + self.high) / 2

    @property
    def tolerance(self) -> float:
        """What counts as met before the model itself is asked."""
        return (self.high - self.low) / 6


@dataclass(frozen=True)
class Refined:
    """Images in whole grey levels `[N, ...]`, their margins `[N, J]`, and which of them are as wanted `[N]`."""

    levels: Tensor
    margins: Tensor
    found: Tensor


def refine(
    surface: Surface,
    levels: Tensor,
    tops: Tensor,
    others: Tensor,
    window: Window,
    *,
    generator: np.random.Generator,
    rounds: int = 12,
    tries: int = 8,
) -> Refined:
    """Moves single grey levels until z_top - z_other is in the window for every one of `others` `[N, J]`.

    In each round every unfinished image gets the `tries` most promising sets of moves (see `combine`), the model is
    asked about the results, and the best one is kept. An image is as wanted if, besides, its `tops` `[N]` class is
    ahead of all others.
    """
    levels = levels.round().clamp(0, LEVELS)
    finished = torch.zeros(len(levels), dtype=torch.bool)
    for _ in range(rounds):
        open_ = (~finished).nonzero().flatten()
        if not len(open_):
            break
        values, moves = surface.moves(levels[open_], tops[open_], others[open_], generator)
        inside = _inside(values, window)
        finished[open_[inside]] = True
        tried, owners = [], []
        for place in (~inside).nonzero().flatten().tolist():
            need = (window.target - values[place]).numpy()
            for chosen in combine(moves[place], need, window.tolerance, tries, generator):
                tried.append(_moved(levels[open_[place]], moves[place], chosen))
                owners.append(int(open_[place]))
        if not tried:
            continue
        owner = torch.tensor(owners)
        results = torch.stack(tried)
        away = (margins(surface.scores(results), tops[owner], others[owner]) - window.target).abs().amax(dim=1)
        for index in sorted(set(owners)):
            mine = (owner == index).nonzero().flatten()
            levels[index] = results[mine[away[mine].argmin()]]
    scores = surface.scores(levels)
    values = margins(scores, tops, others)
    return Refined(levels, values, _inside(values, window) & (lead(scores, tops) >= window.low))


def _inside(values: Tensor, window: Window) -> Tensor:
    return ((values >= window.low) & (values <= window.high)).all(dim=1)


def _moved(levels: Tensor, moves: Moves, chosen: np.ndarray) -> Tensor:
    """A copy of one image with the chosen moves made."""
    changed = levels.flatten().clone()
    changed[torch.from_numpy(moves.pixels[chosen])] += torch.from_numpy(moves.signs[chosen]).float()
    return changed.view(levels.shape)
