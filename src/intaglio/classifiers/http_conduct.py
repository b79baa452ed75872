"""How a remote model is asked: time-outs, retries, rate, budget and size limit, and the clock that counts them."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=86400)]


class Conduct(BaseModel):
    """Manners and limits. Attempt n (from 0) is followed, if it fails in passing, by a pause of

        jitter * min(longest_pause, first_pause * 2^n),   jitter uniform in [1/2, 1],

    or by what the server's `Retry-After` asks for, if that is longer; above `longest_pause` the request is given up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    connect_timeout: Seconds = 10.0  #: until a connection stands
    read_timeout: Seconds = 30.0  #: between two pieces of an answer
    answer_timeout: Seconds = 120.0  #: from the first byte sent to the last one received
    retries: int = Field(default=4, ge=0, le=20)  #: further attempts after HTTP 408, 429, 5xx, time-outs, broken lines
    first_pause: Seconds = 0.5
    longest_pause: Seconds = 60.0
    requests_per_second: float | None = Field(default=None, gt=0)
    max_queries: int | None = Field(default=None, ge=0)  #: images that may be sent in all, repeated ones included
    max_answer_bytes: int = Field(default=16 << 20, ge=1)

    def pause(self, attempt: int, jitter: float) -> float:
        """Seconds to wait after failed attempt `attempt`, for a `jitter` in [0, 1)."""
        return (0.5 + jitter / 2) * min(self.longest_pause, self.first_pause * 2.0**attempt)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Clock:
    """Time as the remote classifier sees it; tests replace it, so that none of them sleeps."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = _now
    #: Uniform in [0, 1). Not seeded: clients that fail together must not come back together, and no result follows.
    jitter: Callable[[], float] = random.SystemRandom().random
