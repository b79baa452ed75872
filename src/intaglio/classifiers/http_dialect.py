"""What a remote classifier must know about the language its server speaks."""

from typing import Protocol

from torch import Tensor

from intaglio.classifiers.access import Access


class Dialect(Protocol):
    """From a preprocessed batch to a request, and from its answer to labels or scores."""

    @property
    def format(self) -> str:
        """The language's name."""

    @property
    def url(self) -> str:
        """Where requests are posted."""

    @property
    def access(self) -> Access:
        """LABELS or SCORES: what answers hold."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one raw image."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; none where they aren't known."""

    @property
    def batch_size(self) -> int:
        """The most images in a request."""

    @property
    def fixed_batch(self) -> int | None:
        """The only number of images that a request may hold; None where any up to `batch_size` will do."""

    def request(self, batch: Tensor) -> bytes:
        """The body that asks about a preprocessed batch."""

    def answer(self, body: bytes, count: int) -> Tensor:
        """Scores float32 `[count, K]` or labels int64 `[count]`, checked.

        Raises:
            RemoteError: anything else.
        """
