"""Watching a sealed model: fresh questions every round, history, breaks, and suspects that can't be reached."""

import json
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from http_servers import FakeTime, Given, serving
from intaglio.classifiers import Access, CallableClassifier, Classifier
from intaglio.errors import EvidenceError, IntaglioError, ModelError, NothingToExamineError, RecipeError, RemoteError
from intaglio.evidence.key import Key
from intaglio.evidence.registry import Registry
from intaglio.seal import Watch, WatchEvent, check_seal, sealed_answers, watch_seal
from intaglio.seal.watching import post_json, require_checked
from intaglio.tampering import Noise
from seal_models import KEY, PAIRS, SHAPE, classifier, toy_seal


def intact() -> Classifier:
    return classifier()


def tampered() -> Classifier:
    return classifier(Noise(sigma=1e-3).apply(classifier().module))


def gone() -> Classifier:
    raise RemoteError("http://127.0.0.1:1: can't be reached:\n connection refused")


def nan() -> Classifier:
    return CallableClassifier(
        lambda images: torch.full((len(images), 3), torch.nan), input_shape=SHAPE, num_classes=3, outputs="logits"
    )


def thousand() -> Classifier:
    return CallableClassifier(
        lambda images: torch.zeros(len(images), 1000), input_shape=SHAPE, num_classes=1000, outputs="logits"
    )


def unreadable() -> Classifier:
    raise PermissionError(13, "Permission denied")


def cut_off() -> Classifier:
    raise ConnectionResetError(104, "Connection reset by peer")


def in_turn(*suspects: Callable[[], Classifier]) -> Callable[[], Classifier]:
    left = list(suspects)
    return lambda: left.pop(0)()


def watching(suspect: Callable[[], Classifier], **options: Any) -> tuple[Watch, FakeTime]:
    time = FakeTime()
    return watch_seal(suspect, toy_seal(), KEY, every=60, clock=time.clock, **options), time


def test_an_intact_model_is_watched_in_silence() -> None:
    posted: list[Any] = []
    watch, time = watching(intact, times=4, queries=6, webhook="http://x", post=lambda *call: posted.append(call))
    assert (watch.intact, watch.checks, watch.unreachable, watch.interrupted) == (True, 4, 0, False)
    assert watch.statement == (
        "Intact in 4 checks. It has seen about 85% of the seal: make the next one with another --seed."
    )
    assert time.slept == [60, 60, 60]
    assert [event.outcome for event in watch.events] == ["intact"] * 4
    assert [event.at[:19] for event in watch.events] == [f"2026-03-01T12:0{minute}:00" for minute in range(4)]
    assert all(event.check is not None and event.check.queries == 6 for event in watch.events)
    assert watch.shown == pytest.approx(1 - (1 - 3 / PAIRS) ** 4, abs=1e-4)
    assert watch.alarm_bound == pytest.approx(24 * toy_seal().record.noise.flip_bound)
    assert posted == []
    assert Watch.from_json(watch.to_json()) == watch
    require_checked(watch)


def test_what_was_watched_before_there_was_a_bound_is_still_read() -> None:
    watch, _ = watching(intact, times=1, queries=2)
    older = watch.to_dict()
    del older["alarm_bound"]
    assert Watch.from_json(json.dumps(older)) == watch.model_copy(update={"alarm_bound": 1.0})


def test_a_little_of_the_seal_is_not_worth_a_word() -> None:
    watch, _ = watching(intact, times=2, queries=4)
    assert (watch.shown, watch.statement) == (0.4375, "Intact in 2 checks.")


def test_every_round_asks_a_fresh_part() -> None:
    asked: list[frozenset[bytes]] = []

    def recorder() -> Classifier:
        model, seen = classifier(), set[bytes]()

        def answer(images: Tensor) -> Tensor:
            seen.update(image.numpy().tobytes() for image in images)
            if len(seen) == 4:
                asked.append(frozenset(seen))
            return model.predict(images)

        return CallableClassifier(answer, input_shape=SHAPE, num_classes=3, access=Access.LABELS)

    watching(recorder, times=6, queries=4)
    assert len(asked) == 6
    assert len(set(asked)) >= 3


def test_a_break_ends_the_watch_and_is_told() -> None:
    posted: list[tuple[str, Mapping[str, Any]]] = []
    told: list[WatchEvent] = []
    watch, time = watching(
        in_turn(intact, gone, tampered, intact),
        webhook="http://hook",
        post=lambda url, content: posted.append((url, content)),
        report=told.append,
    )
    assert (watch.intact, watch.checks, watch.unreachable) == (False, 2, 1)
    assert watch.statement.startswith("Broken in check 2, 1 rounds without an answer. Tampered: ")
    assert watch.alarm_bound == pytest.approx(16 * toy_seal().record.noise.flip_bound)
    assert (
        f"In any of the 16 questions of this watch it makes one answer differ with probability {watch.alarm_bound:.2g} "
        "or less." in watch.statement
    )
    assert [event.outcome for event in watch.events] == ["intact", "unreachable", "tampered"]
    assert tuple(told) == watch.events
    assert len(time.slept) == 2
    ((url, content),) = posted
    assert url == "http://hook"
    assert content == watch.events[-1].to_dict()
    assert content["check"]["intact"] is False


def test_a_webhook_that_fails_is_noted() -> None:
    def refuse(url: str, content: Mapping[str, Any]) -> None:
        raise RemoteError("the webhook did not take it: 500")

    watch, _ = watching(tampered, webhook="http://hook", post=refuse)
    assert watch.intact is False
    assert watch.events[-1].problem == "the webhook did not take it: 500"


def test_checks_are_kept_in_the_registry(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "r.sqlite") as registry:
        watching(in_turn(intact, gone, tampered), registry=registry)
        kept = registry.seal_checks(seal_id=toy_seal().record.seal_id)
        assert [entry.intact for entry in kept] == [True, False]
        assert kept[0].suspect == "module"
        assert [entry.statement for entry in registry.history(toy_seal().record.seal_id)] == ["intact", "tampered"]


def test_a_locked_registry_silences_no_alarm(tmp_path: Path) -> None:
    posted: list[Mapping[str, Any]] = []

    def refuse(url: str, content: Mapping[str, Any]) -> None:
        posted.append(content)
        raise RemoteError("the webhook did not take it: 500")

    place = tmp_path / "r.sqlite"
    with Registry.open(place, timeout=0.01) as registry:
        other = sqlite3.connect(place, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            watch, _ = watching(
                in_turn(intact, tampered), registry=registry, webhook="http://hook", post=refuse, times=9
            )
        finally:
            other.execute("ROLLBACK")
            other.close()
        assert registry.seal_checks() == ()
    assert (watch.intact, watch.checks) == (False, 2)
    assert [event.outcome for event in watch.events] == ["intact", "tampered"]
    assert [content["outcome"] for content in posted] == ["tampered"]
    first, last = (event.problem or "" for event in watch.events)
    assert "locked" in first
    assert last.startswith("the webhook did not take it: 500; ")
    assert "locked" in last


def test_what_cannot_be_reached_is_never_broken() -> None:
    watch, _ = watching(gone, times=3)
    assert (watch.intact, watch.checks, watch.unreachable, watch.shown) == (None, 0, 3, 0.0)
    assert watch.events[0].problem == "http://127.0.0.1:1: can't be reached: connection refused"
    with pytest.raises(NothingToExamineError, match=r"Not checked: 3 rounds without an answer\. http://127"):
        require_checked(watch)


def test_mistakes_show_in_the_first_round_and_are_no_verdict_later() -> None:
    def missing() -> Classifier:
        raise ModelError("no such file: m.onnx")

    def other() -> Classifier:
        return CallableClassifier(lambda images: images, input_shape=(1, 2, 2), num_classes=3)

    for suspect, problem in ((missing, "no such file"), (other, "this is another model"), (nan, "are not finite")):
        with pytest.raises(IntaglioError, match=problem):
            watching(suspect, times=2)
    with pytest.raises(PermissionError):
        watching(unreadable, times=2)
    watch, _ = watching(in_turn(intact, missing, other, intact, intact), times=5)
    assert [event.outcome for event in watch.events] == ["intact", "undecided", "undecided", "intact", "intact"]
    assert (watch.intact, watch.checks, watch.undecided, watch.unreachable) == (None, 3, 2, 0)


@pytest.mark.parametrize("later", [nan, thousand, unreadable])
def test_a_suspect_that_is_something_else_from_some_round_on_is_not_passed_for_intact(
    later: Callable[[], Classifier],
) -> None:
    watch, _ = watching(in_turn(intact, later, later, intact, intact, intact), times=6)
    assert [event.outcome for event in watch.events] == ["intact", *["undecided"] * 2, *["intact"] * 3]
    assert (watch.intact, watch.checks, watch.unreachable, watch.undecided) == (None, 4, 0, 2)
    with pytest.raises(
        NothingToExamineError,
        match=r"Not decided: intact in 4 checks, 2 rounds that could not be judged\..*(not finite|1000 classes|denied)",
    ):
        require_checked(watch)


@pytest.mark.parametrize(
    ("rounds", "verdict"),
    [
        ([intact, gone, intact], True),
        ([intact, cut_off, gone, intact], True),
        ([gone, intact, intact], True),
        ([intact, intact, gone], None),
        ([intact, gone, gone, gone, intact], None),
        ([gone, gone, intact], None),
        ([intact, gone, gone, gone, tampered], False),
    ],
)
def test_too_many_rounds_without_an_answer_are_no_verdict(
    rounds: list[Callable[[], Classifier]], verdict: bool | None
) -> None:
    watch, _ = watching(in_turn(*rounds), times=len(rounds))
    assert (watch.intact, watch.undecided) == (verdict, 0)
    assert watch.checks + watch.unreachable == len(rounds)
    if verdict is None:
        with pytest.raises(NothingToExamineError, match=r"Not decided: intact in .* can't be reached"):
            require_checked(watch)
    else:
        require_checked(watch)


def test_a_suspect_whose_answers_tie_from_some_round_on_is_not_passed_for_intact() -> None:
    def tied() -> Classifier:
        return CallableClassifier(
            lambda images: torch.full((len(images), 3), 1 / 3),
            input_shape=SHAPE,
            num_classes=3,
            outputs="probabilities",
        )

    watch, _ = watching(in_turn(intact, tied, gone, intact), times=4)
    assert [event.outcome for event in watch.events] == ["intact", "undecided", "unreachable", "intact"]
    assert (watch.intact, watch.unreachable, watch.undecided) == (None, 1, 1)
    with pytest.raises(
        NothingToExamineError,
        match="intact in 2 checks, 1 rounds without an answer, 1 rounds that could not be judged",
    ):
        require_checked(watch)
    broken, _ = watching(in_turn(intact, tied, tampered), times=3)
    assert broken.intact is False
    require_checked(broken)


def test_ctrl_c_ends_a_watch_with_what_it_has() -> None:
    def stop() -> Classifier:
        raise KeyboardInterrupt

    watch, _ = watching(in_turn(intact, stop))
    assert (watch.intact, watch.checks, watch.interrupted) == (True, 1, True)
    require_checked(watch)
    nothing, _ = watching(stop)
    assert (nothing.intact, nothing.interrupted) == (None, True)
    with pytest.raises(NothingToExamineError, match=r"Not checked: stopped before the first answer\."):
        require_checked(nothing)


def test_ctrl_c_while_a_break_is_told_does_not_lose_it() -> None:
    def stop(url: str, content: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt

    watch, _ = watching(tampered, webhook="http://hook", post=stop)
    assert (watch.intact, watch.checks, watch.interrupted) == (False, 1, True)


@pytest.mark.parametrize("options", [{"every": 0}, {"every": float("nan")}, {"times": 0}, {"queries": 1}])
def test_settings_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="watching waits more than 0 seconds"):
        watch_seal(intact, toy_seal(), KEY, **{"every": 1, **options})


def test_a_wrong_key_watches_nothing() -> None:
    with pytest.raises(EvidenceError, match="the seal is of key"):
        watch_seal(intact, toy_seal(), Key(b"o" * 32), every=1)


def test_replayed_answers_are_caught_by_questions_not_seen_before() -> None:
    """A suspect that was swapped, but replays the answers it recorded, passes on what it saw and on nothing else."""
    images, answers = sealed_answers(toy_seal(), KEY)
    seen = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(images[: PAIRS // 2].flatten(0, 1), answers[: PAIRS // 2].flatten(), strict=True)
    }
    swapped = tampered()

    def answer(asked: Tensor) -> Tensor:
        own = swapped.predict(asked).tolist()
        return torch.tensor([seen.get(image.numpy().tobytes(), label) for image, label in zip(asked, own, strict=True)])

    replayer = CallableClassifier(answer, input_shape=SHAPE, num_classes=3, access=Access.LABELS)
    caught = sum(not check_seal(replayer, toy_seal(), KEY, max_queries=4, seed=seed).intact for seed in range(40))
    # Two of eight pairs a round, half of them seen: 3/14 of the rounds show it nothing new.
    assert 22 <= caught <= 38


def test_posting() -> None:
    with serving(lambda asked: {"taken": asked.json["outcome"]}) as server:
        post_json(f"{server.url}/hook", {"outcome": "tampered"})
        assert server.asked[0].json == {"outcome": "tampered"}
    with serving(lambda asked: Given(b"", 500)) as server, pytest.raises(RemoteError, match=r"did not take it: .*500"):
        post_json(server.url, {})
    for url in ("http://127.0.0.1:1/", "ftp://x", "not a url"):
        with pytest.raises(RemoteError, match="the webhook did not take it"):
            post_json(url, {})
