"""Labels of test images are the training set's, by the names of the classes."""

import pytest
import torch

from intaglio.data import ImageData, VideoData
from intaglio.data.matching import in_classes_of
from intaglio.errors import DataError


def named(labels: list[int], classes: str = "", name: str = "data") -> ImageData:
    return ImageData(torch.zeros(len(labels), 1, 2, 2), torch.tensor(labels), tuple(classes), name)


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        ("ac", [0, 1, 1, 0], [0, 2, 2, 0]),
        ("cab", [0, 1, 2], [2, 0, 1]),
        ("b", [0, -1], [1, -1]),
    ],
)
def test_labels_follow_the_names(classes: str, labels: list[int], expected: list[int]) -> None:
    matched = in_classes_of(named([0, 1, 2], "abc"), named(labels, classes))
    assert matched.labels.tolist() == expected
    assert matched.classes == ("a", "b", "c")


@pytest.mark.parametrize(("training", "test"), [("abc", "abc"), ("abc", ""), ("", "ac")])
def test_without_two_lists_of_names_nothing_changes(training: str, test: str) -> None:
    given = named([0, 1, 1], test)
    assert in_classes_of(named([0, 1, 2], training), given) is given


def test_clips_stay_clips() -> None:
    clips = VideoData(torch.zeros(2, 3, 1, 2, 2), torch.tensor([0, 1]), ("a", "c"), videos=torch.tensor([4, 4]))
    matched = in_classes_of(named([0, 1, 2], "abc"), clips)
    assert isinstance(matched, VideoData)
    assert (matched.labels.tolist(), matched.videos.tolist()) == ([0, 2], [4, 4])


def test_strange_classes_are_named() -> None:
    training = named([0, 1, 2], "abc", "tr")
    with pytest.raises(
        DataError, match=r"^te: has classes that tr has not: x, y; the two must name their classes alike$"
    ):
        in_classes_of(training, named([0], "xay", "te"))
    with pytest.raises(DataError, match="has not: p, q, r, s, t and 2 more; "):
        in_classes_of(training, named([0], "pqrstuv", "te"))
