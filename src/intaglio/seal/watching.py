"""`watch_seal`: the same question again and again, with a fresh part of the seal each time."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import httpx

from intaglio.classifiers import Classifier, Clock
from intaglio.errors import IntaglioError, NothingToExamineError, RecipeError, RemoteError
from intaglio.evidence.key import Key
from intaglio.evidence.registry import Registry
from intaglio.results import Result
from intaglio.seal.checking import SealCheck, check_seal
from intaglio.seal.sealed import Seal

DEFAULT_QUERIES = 8
_TIMEOUT = 10.0

#: Sends a JSON object to a URL.
Post = Callable[[str, Mapping[str, Any]], None]


class WatchEvent(Result):
    """One round: a check, or why none could be made. `problem` may also tell that a break could not be reported.

    "undecided": the suspect answered, but with scores that tie, from which nothing can be read.
    """

    at: str
    outcome: Literal["intact", "tampered", "unreachable", "undecided"]
    check: SealCheck | None = None
    problem: str | None = None


class Watch(Result):
    """What watching gave. `intact` is false after a break, and None where no check could be made at all.

    `shown`: the expected share of the seal's pairs that the suspect has seen by now. One that records and replays the
    sealed answers passes a check of n pairs with a probability of about shown^n, so a long watch wants a fresh seal.
    """

    kind: Literal["intaglio.seal-watch/1"] = "intaglio.seal-watch/1"
    statement: str
    intact: bool | None
    seal_id: str
    checks: int
    unreachable: int
    undecided: int
    shown: float
    interrupted: bool
    events: tuple[WatchEvent, ...]


def watch_seal(
    suspect: Callable[[], Classifier],
    seal: Seal,
    key: Key,
    *,
    every: float,
    times: int | None = None,
    queries: int = DEFAULT_QUERIES,
    webhook: str | None = None,
    registry: Registry | None = None,
    clock: Clock | None = None,
    post: Post | None = None,
    report: Callable[[WatchEvent], None] | None = None,
) -> Watch:
    """Checks every `every` seconds, `times` times or until stopped, and ends at the first break.

    Each round opens the suspect anew and asks a random part of the seal. A suspect that can't be reached is noted and
    asked again in the next round: it is never taken for a broken one. Ctrl-C ends the watch with what it has found.
    In the first round only a remote failure is waited out; anything else is raised, for it is likely a mistake.

    Args:
        suspect: opens the suspect.
        queries: questions a round.
        webhook: URL that a break is posted to, as the JSON of the check.
        registry: where every check is recorded.
        clock: what time it is, and how to wait.
        post: how to post (default: httpx).
        report: called after every round.

    Raises:
        RecipeError: a waiting time that isn't above 0, fewer than 1 round, or fewer than 2 questions.
        EvidenceError: a seal of another key, or an edited one.
        IntaglioError: in the first round, a suspect that can't be opened or doesn't fit the seal.
    """
    if not every > 0 or (times is not None and times < 1) or queries < 2:
        raise RecipeError(
            f"watching waits more than 0 seconds, at least 1 time, with at least 2 questions, got {every}, {times} and "
            f"{queries}"
        )
    record = seal.verify(key.public_key)
    clock = clock or Clock()
    events: list[WatchEvent] = []
    interrupted = False
    try:
        while times is None or len(events) < times:
            if events:
                clock.sleep(every)
            event = _round(suspect, seal, key, queries, clock, first=not events)
            if event.check is not None and registry is not None:
                registry.record_seal_check(record.seal_id, event.check.suspect, event.check)
            if event.outcome == "tampered" and webhook is not None:
                event = _announced(event, webhook, post or post_json)
            events.append(event)
            if report is not None:
                report(event)
            if event.outcome == "tampered":
                break
    except KeyboardInterrupt:
        interrupted = True
    return _watch(record.seal_id, record.pairs, events, interrupted)


def post_json(url: str, content: Mapping[str, Any]) -> None:
    """Posts JSON.

    Raises:
        RemoteError: it was not taken.
    """
    try:
        httpx.post(url, json=dict(content), timeout=_TIMEOUT).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RemoteError(
            f"the webhook did not take it: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def _round(
    suspect: Callable[[], Classifier], seal: Seal, key: Key, queries: int, clock: Clock, *, first: bool
) -> WatchEvent:
    at = clock.now().isoformat(timespec="seconds")
    try:
        check = check_seal(suspect(), seal, key, max_queries=queries)
    except (IntaglioError, OSError) as error:
        if first and not isinstance(error, RemoteError):  # a misspelt name, another model: waiting won't mend that
            raise
        answered = isinstance(error, NothingToExamineError)
        return WatchEvent(
            at=at, outcome="undecided" if answered else "unreachable", problem=" ".join(str(error).split())
        )
    return WatchEvent(at=at, outcome="intact" if check.intact else "tampered", check=check)


def _announced(event: WatchEvent, webhook: str, post: Post) -> WatchEvent:
    try:
        post(webhook, event.to_dict())
    except IntaglioError as error:
        return event.model_copy(update={"problem": str(error)})
    return event


def _watch(seal_id: str, pairs: int, events: list[WatchEvent], interrupted: bool) -> Watch:
    checks = [event.check for event in events if event.check is not None]
    unseen = 1.0
    for check in checks:
        unseen *= 1 - min(1.0, check.queries / (2 * pairs))
    broken = [check for check in checks if not check.intact]
    intact = None if not checks else not broken
    unreachable = sum(event.outcome == "unreachable" for event in events)
    undecided = len(events) - len(checks) - unreachable
    return Watch(
        statement=_statement(intact, len(checks), unreachable, undecided, broken),
        intact=intact,
        seal_id=seal_id,
        checks=len(checks),
        unreachable=unreachable,
        undecided=undecided,
        shown=round(1 - unseen, 4),
        interrupted=interrupted,
        events=tuple(events),
    )


def _statement(intact: bool | None, checks: int, unreachable: int, undecided: int, broken: list[SealCheck]) -> str:
    missed = f", {unreachable} rounds without an answer" if unreachable else ""
    missed += f", {undecided} rounds with answers that tie" if undecided else ""
    if broken:
        return f"Broken in check {checks}{missed}. {broken[0].statement}"
    if intact is None:
        return f"Not checked: {missed.removeprefix(', ')}."
    return f"Intact in {checks} checks{missed}."


def require_checked(watch: Watch) -> None:
    """Does nothing after a break, or if at least one check was made and every answer could be read.

    A suspect whose answers could be read once and tie now is not the one that was checked: that never ends well.

    Raises:
        NothingToExamineError: no check was made without anyone having stopped the watch, or some answers tied.
    """
    if watch.intact is False:
        return
    if watch.undecided or (watch.intact is None and not watch.interrupted):
        raise NothingToExamineError(f"{watch.statement} {watch.events[-1].problem or ''}".strip())
