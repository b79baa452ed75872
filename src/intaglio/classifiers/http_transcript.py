"""What was asked of a remote model and what it answered, request by request; `intaglio.evidence` signs it."""

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from intaglio.classifiers.http_transport import Reply
from intaglio.results import Result

#: Beyond any number of classes, and within any integer type.
Label = Annotated[int, Field(ge=0, lt=1 << 31)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Exchange(Result):
    """One attempt to ask. Images are named by `image_digest`, in the order asked; labels are in the same order.

    `labels` are the classes answered (of the highest score where scores are answered), `scores` the scores; both are
    empty where there was no usable answer, and `problem` then says why. `status` is None where no HTTP answer came.
    Bodies are kept as SHA-256, so that they can be compared with a server's or a proxy's own records.
    """

    asked_at: str
    method: str
    url: str
    images: tuple[Digest, ...] = ()
    labels: tuple[Label, ...] = ()
    scores: tuple[tuple[float, ...], ...] = ()
    status: int | None = None
    problem: str | None = None
    request_sha256: Digest
    answer_sha256: Digest | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.labels) not in (0, len(self.images)) or len(self.scores) not in (0, len(self.labels)):
            raise ValueError(f"{len(self.labels)} labels and {len(self.scores)} scores of {len(self.images)} images")
        return self


class Transcript:
    """Every request of a remote classifier, in order, failed ones included."""

    def __init__(self) -> None:
        self._exchanges: list[Exchange] = []

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """What was recorded so far."""
        return tuple(self._exchanges)

    def __len__(self) -> int:
        return len(self._exchanges)

    def record(
        self, reply: Reply, images: tuple[str, ...] = (), answer: Tensor | None = None, problem: str | None = None
    ) -> None:
        """Adds one attempt; `answer` is labels int64 `[n]` or scores float32 `[n, K]` of the images."""
        scored = answer is not None and answer.ndim == 2
        labels = answer.argmax(dim=1) if answer is not None and scored else answer
        self._exchanges.append(
            Exchange(
                asked_at=_stamp(reply.sent_at),
                method=reply.method,
                url=reply.url,
                images=images,
                labels=() if labels is None else tuple(labels.tolist()),
                scores=tuple(tuple(row) for row in answer.tolist()) if answer is not None and scored else (),
                status=reply.status,
                problem=problem or reply.problem,
                request_sha256=reply.request_sha256,
                answer_sha256=None if reply.body is None else hashlib.sha256(reply.body).hexdigest(),
            )
        )


def image_digest(image: Tensor) -> str:
    """Hex SHA-256 of one raw image, float32 `[C, H, W]` in [0, 1], before any preprocessing:

    SHA-256("intaglio-image/1 float32 CxHxW\\n" || values in row-major order, little-endian).
    """
    shape = "x".join(str(side) for side in image.shape)
    values = image.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
    return hashlib.sha256(f"intaglio-image/1 float32 {shape}\n".encode() + values.tobytes()).hexdigest()


def _stamp(moment: datetime) -> str:
    """ISO 8601 in UTC, to the microsecond."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
