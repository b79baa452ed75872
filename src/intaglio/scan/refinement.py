"""Refined windows: a composed window trigger, improved by trying again one place at a time while the rest stays.

First-order answers miss triggers whose pixels only work together. Starting from the best window of a class, every
round changes each place of the window to each other state (black, white, untouched), ranks the places by what that
gains, and keeps the best of taking 1, 2, 4, 8, 16 or all of the gaining changes together. The objective is the mean
over base images of the class's lead over the best other class.

Scores only. Source: ours; a greedy, black-box form of trigger inversion (Neural Cleanse, Wang et al. 2019).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.scan.composition import Responses, best_square, centred, lead, spread
from intaglio.scan.places import facing

#: Side of the window in places, and rounds of refinement.
SIDE, ROUNDS = 6, 4
UNTOUCHED = -1
_STATES = (UNTOUCHED, 0, 1)
_TOGETHER = (1, 2, 4, 8, 16, SIDE * SIDE)


@dataclass(frozen=True)
class Window:
    """States `[side, side]` (-1 untouched, else an index into the values) of the places from `(row, column)` on."""

    row: int
    column: int
    states: Tensor

    def stamp(self, images: Tensor, values: Tensor, cells: tuple[int, int], states: Tensor | None = None) -> Tensor:
        """`images` `[M, ...]` under each of `states` `[S, side, side]` (default: its own): `[S, M, ...]`."""
        states = self.states[None] if states is None else states
        whole = torch.full((len(states), *cells), UNTOUCHED)
        whole[:, self.row : self.row + states.shape[1], self.column : self.column + states.shape[2]] = states
        pixels = spread(whole, images.shape[-2:])
        colours = values[pixels.clamp_min(0)].permute(0, 3, 1, 2)
        return torch.where(facing((pixels == UNTOUCHED)[:, None], images), images, facing(colours, images))


def refine(classifier: Classifier, responses: Responses, target: int, bases: Tensor, rounds: int = ROUNDS) -> Window:
    """The refined window of one class; costs at most B (1 + rounds (2 side^2 + 6)) queries for B base images."""
    window = _first_window(responses, target)
    cells = (responses.slopes.shape[-2], responses.slopes.shape[-1])

    def objective(states: Tensor) -> Tensor:
        stamped = window.stamp(bases, responses.values, cells, states)
        scores = centred(classifier.log_probs(stamped.flatten(0, 1)))
        return lead(scores.view(len(states), len(bases), -1), target).mean(dim=1)

    states = window.states
    best = objective(states[None])[0]
    for _ in range(rounds):
        changes = _single_changes(states)
        gains, choice = (objective(changes.flatten(0, 1)) - best).view(changes.shape[:2]).max(dim=1)
        places = gains.argsort(descending=True, stable=True)
        changed = changes[torch.arange(len(changes)), choice].flatten(1).diagonal()
        together = []
        for count in _TOGETHER:
            taken = places[:count][gains[places[:count]] > 0]
            flat = states.flatten().clone()
            flat[taken] = changed[taken]
            together.append(flat.view_as(states))
        values = objective(torch.stack(together))
        if values.max() <= best:
            break
        best, states = values.max(), together[int(values.argmax())]
    return Window(window.row, window.column, states)


def _first_window(responses: Responses, target: int) -> Window:
    """The square with the largest sum of positive effects, its places set where the effect is positive."""
    effect, best = responses.extremes[:, target].max(dim=0)
    part = best_square(effect.clamp_min(0), SIDE)
    return Window(part[0].start, part[1].start, torch.where(effect[part] > 0, best[part], UNTOUCHED))


def _single_changes(states: Tensor) -> Tensor:
    """`[places, 2, side, side]`: for each place, the states with that place in each of its two other states."""
    count = states.numel()
    changes = states.flatten().repeat(count, len(_STATES) - 1, 1)
    for place, state in enumerate(states.flatten().tolist()):
        changes[place, :, place] = torch.tensor([other for other in _STATES if other != state])
    return changes.view(count, len(_STATES) - 1, *states.shape)
