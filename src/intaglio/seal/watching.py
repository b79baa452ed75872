"""`watch_seal`: the same question again and again, with a fresh part of the seal each time."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import httpx

from intaglio.classifiers import Classifier, Clock
from intaglio.errors import IntaglioError, NothingToExamineError, RecipeError, RemoteError
from intaglio.evidence.key import Key
from intaglio.evidence.registry import Registry
from intaglio.results import Result
from intaglio.seal.checking import SealCheck, check_seal, planned_questions
from intaglio.seal.sealed import Seal, SealRecord

DEFAULT_QUERIES = 8
_TIMEOUT = 10.0
#: What the network does to a suspect that may be as sealed; anything else that keeps a check from being made is not.
_UNREACHABLE = (RemoteError, ConnectionError, TimeoutError)
#: From this share of the seal on, a statement says that the suspect has seen it.
_SHOWN = 0.5

#: Sends a JSON object to a URL.
Post = Callable[[str, Mapping[str, Any]], None]


class WatchEvent(Result):
    """One round: a check, or why none could be made. `problem` may also tell that a check could not be reported.

    "undecided": something is there, but can't be judged: scores that tie or aren't finite, other classes, another file.
    """

    at: str
    outcome: Literal["intact", "tampered", "unreachable", "undecided"]
    check: SealCheck | None = None
    problem: str | None = None


class Watch(Result):
    """What watching gave. `intact` is false after a break, and None where that nothing broke is no sign of health.

    That is so where no check could be made at all, in the last round, or in more than half of the rounds, and where any
    round was undecided: what could be judged once and can't be now is not what was sealed.

    `shown`: the expected share of the seal's pairs that the suspect has seen by now. One that records and replays the
    sealed answers passes a check of n pairs with a probability of about shown^n, so a long watch wants a fresh seal,
    of another seed. `alarm_bound` bounds the probability that a watch as long as this one would ever have called the
    untouched model broken: the bound of one question times all questions, at most 1. (A check's `p_value` is of it
    alone.)
    """

    kind: Literal["intaglio.seal-watch/1"] = "intaglio.seal-watch/1"
    statement: str
    intact: bool | None
    seal_id: str
    checks: int
    unreachable: int
    undecided: int
    shown: float
    alarm_bound: float = 1.0  #: as in what was written before it was reckoned
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

    Each round opens the suspect anew and asks a random part of the seal. A suspect that can't be reached or judged is
    noted and asked again in the next round: it is never taken for a broken one. Ctrl-C ends the watch with what it has
    found. In the first round only a remote failure is waited out; anything else is raised, for it is likely a mistake.
    A break is posted before it is recorded; where either fails, the watch goes on and its event says so.

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
            events.append(_round(suspect, seal, key, queries, clock, first=not events))
            broken = events[-1].outcome == "tampered"
            if broken and webhook is not None:
                events[-1] = _announced(events[-1], webhook, post or post_json)
            if registry is not None:
                events[-1] = _recorded(events[-1], record.seal_id, registry)
            if report is not None:
                report(events[-1])
            if broken:
                break
    except KeyboardInterrupt:
        interrupted = True
    return _watch(record, queries, events, interrupted)


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
        away = isinstance(error, _UNREACHABLE)
        if first and not isinstance(error, RemoteError):  # a misspelt name, another model: waiting won't mend that
            raise
        return WatchEvent(at=at, outcome="unreachable" if away else "undecided", problem=" ".join(str(error).split()))
    return WatchEvent(at=at, outcome="intact" if check.intact else "tampered", check=check)


def _announced(event: WatchEvent, webhook: str, post: Post) -> WatchEvent:
    try:
        post(webhook, event.to_dict())
    except (IntaglioError, OSError) as error:
        return _troubled(event, error)
    return event


def _recorded(event: WatchEvent, seal_id: str, registry: Registry) -> WatchEvent:
    """The event, with what is wrong with the registry if it did not take the check."""
    if event.check is None:
        return event
    try:
        registry.record_seal_check(seal_id, event.check.suspect, event.check)
    except (IntaglioError, OSError) as error:
        return _troubled(event, error)
    return event


def _troubled(event: WatchEvent, error: Exception) -> WatchEvent:
    problems = [] if event.problem is None else [event.problem]
    return event.model_copy(update={"problem": "; ".join([*problems, " ".join(str(error).split())])})


def _watch(record: SealRecord, queries: int, events: list[WatchEvent], interrupted: bool) -> Watch:
    checks = [event.check for event in events if event.check is not None]
    unseen = 1.0
    for check in checks:
        unseen *= 1 - min(1.0, check.queries / (2 * record.pairs))
    broken = [check for check in checks if not check.intact]
    unreachable = sum(event.outcome == "unreachable" for event in events)
    undecided = len(events) - len(checks) - unreachable
    asked = (len(checks) + undecided) * planned_questions(record, queries)
    watch = Watch(
        statement="",
        intact=False if broken else True if _healthy(events) else None,
        seal_id=record.seal_id,
        checks=len(checks),
        unreachable=unreachable,
        undecided=undecided,
        shown=round(1 - unseen, 4),
        alarm_bound=min(1.0, asked * record.noise.flip_bound),
        interrupted=interrupted,
        events=tuple(events),
    )
    return watch.model_copy(update={"statement": _statement(watch, asked)})


def _healthy(events: list[WatchEvent]) -> bool:
    """Whether checks that found nothing are enough to say so: see `Watch`."""
    checks = sum(event.check is not None for event in events)
    undecided = any(event.outcome == "undecided" for event in events)
    return bool(events) and events[-1].check is not None and 2 * checks >= len(events) and not undecided


def _statement(watch: Watch, asked: int) -> str:
    """The watch in words; `asked` is how many questions its rounds had."""
    missed = [f"{watch.unreachable} rounds without an answer"] if watch.unreachable else []
    missed += [f"{watch.undecided} rounds that could not be judged"] if watch.undecided else []
    gaps = "".join(f", {part}" for part in missed)
    if not watch.checks:
        return f"Not checked: {', '.join(missed) or 'stopped before the first answer'}."
    spent = (
        f" It has seen about {watch.shown:.0%} of the seal: make the next one with another --seed."
        if watch.shown >= _SHOWN
        else ""
    )
    if watch.intact is False:
        (found,) = (event.check.statement for event in watch.events if event.outcome == "tampered" and event.check)
        return (
            f"Broken in check {watch.checks}{gaps}. {found} In any of the {asked} questions of this watch it makes one "
            f"answer differ with probability {watch.alarm_bound:.2g} or less.{spent}"
        )
    if watch.intact is None:
        return f"Not decided: intact in {watch.checks} checks{gaps}.{spent}"
    return f"Intact in {watch.checks} checks{gaps}.{spent}"


def require_checked(watch: Watch) -> None:
    """Does nothing after a break, and where the watch says that the suspect is intact.

    Raises:
        NothingToExamineError: it says neither; the last problem is named.
    """
    if watch.intact is None:
        problems = [event.problem for event in watch.events if event.check is None and event.problem]
        raise NothingToExamineError(" ".join([watch.statement, *problems[-1:]]))
