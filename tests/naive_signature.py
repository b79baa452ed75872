"""The one-pixel signature as its definition says it: one image at a time, no tensors of places or values."""

import torch
from torch import Tensor

from intaglio.classifiers import Classifier


def naive_signature(
    classifier: Classifier, bases: Tensor, values: Tensor, size: int = 1, grid: tuple[int, int] | None = None
) -> Tensor:
    """`[B, 5, K, rows, columns]` of bases `[B, C, H, W]` and values `[V, C]`; the variants in their usual order."""
    extent = grid or (bases.shape[-2], bases.shape[-1])
    signature = torch.zeros(len(bases), 5, classifier.num_classes, *extent)
    for number, base in enumerate(bases):
        before = classifier.log_probs(base[None])[0]
        for row in range(extent[0]):
            for column in range(extent[1]):
                answers = [
                    classifier.log_probs(altered(base, value, row, column, extent, size)[None])[0] for value in values
                ]
                for index in range(classifier.num_classes):
                    centred = [
                        float((answer[index] - answer.mean()) - (before[index] - before.mean())) for answer in answers
                    ]
                    signature[number, :, index, row, column] = torch.tensor(
                        [
                            max(abs(float(answer[index].exp() - before[index].exp())) for answer in answers),
                            max(float(answer[index] - before[index]) for answer in answers),
                            max(float(before[index] - answer[index]) for answer in answers),
                            max(centred),
                            centred.index(max(centred)),
                        ]
                    )
    return signature


def altered(base: Tensor, value: Tensor, row: int, column: int, extent: tuple[int, int], size: int) -> Tensor:
    """`base` with every pixel whose cell is within the square at `(row, column)` set to `value`."""
    image = base.clone()
    _, height, width = base.shape
    for y in range(height):
        for x in range(width):
            down, right = y * extent[0] // height - row, x * extent[1] // width - column
            if -((size - 1) // 2) <= min(down, right) and max(down, right) <= size // 2:
                image[:, y, x] = value
    return image
