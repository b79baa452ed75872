"""Marks on video networks: triggers over time and place, their disclosure, and the way from a clip to a proof."""

import math
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

import intaglio.evidence.key as key_module
from intaglio.cli.main import ExitCode, main
from intaglio.data import ImageData
from intaglio.errors import DataError, EvidenceError
from intaglio.evidence.batches import images_sha256, plan_triggers, to_pixels
from intaglio.evidence.commitment import DecisionRule
from intaglio.evidence.disclosure import check_disclosure, decode_pictures, disclose, encode_pictures
from intaglio.evidence.proof import verify_bundle
from intaglio.evidence.reading import centred_labels
from intaglio.evidence.suspect import Suspect
from intaglio.mark import draw_triggers, mark, public_images, verify_mark
from intaglio.mark.fidelity_report import corrupted, fidelity_report
from intaglio.mark.foreign import photos
from intaglio.mark.proof import prove
from intaglio.networks import Architecture
from intaglio.triggers.keyed import KEYED_TRIGGERS, keyed_batch
from protected_clips import CLASSES, OWNER, SHAPE, STRANGER, classifier_of, host, known_network, moving_bars, written

#: Enough to learn 60 triggers by heart.
QUICK: dict[str, Any] = {"epochs": 40, "triggers_per_batch": 40, "learning_rate": 0.01, "pfl_weight": 10}
RULE = DecisionRule(threshold=1e-9)


# --- triggers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEYED_TRIGGERS)
def test_triggers_are_8_bit_clips_that_their_seed_decides(kind: str) -> None:
    shape, secret = (4, 3, 10, 9), bytes(range(32))
    public = public_images(kind, shape, None)
    clips, labels = keyed_batch(kind, secret, 6, shape, 5, public=public)
    assert (clips.shape, clips.dtype) == ((6, *shape), torch.float32)
    assert torch.equal(clips, (clips * 255).round() / 255)
    assert torch.equal(clips, keyed_batch(kind, secret, 6, shape, 5, public=public)[0])
    assert not torch.equal(clips, keyed_batch(kind, secret[1:], 6, shape, 5, public=public)[0])
    assert torch.equal(
        labels, keyed_batch(kind, secret, 6, shape[1:], 5, public=public_images(kind, shape[1:], None))[1]
    )


def test_blocks_last_several_frames_of_a_long_clip() -> None:
    clips, _ = keyed_batch("noise-blocks", bytes(32), 2, (14, 1, 14, 7), 3)
    assert torch.equal(clips[:, ::2], clips[:, 1::2])
    assert torch.equal(clips[..., ::2, :], clips[..., 1::2, :])
    blocks = clips[:, ::2, :, ::2]
    assert blocks.shape == (2, 7, 1, 7, 7)
    assert 0.4 < float(blocks.mean()) < 0.6
    assert not torch.equal(blocks[:, 0], blocks[:, 1])


def test_triggers_of_images_stay_as_they_were() -> None:
    images, _ = keyed_batch("noise-blocks", bytes(range(32)), 12, (1, 28, 28), 10)
    assert images_sha256(images).startswith("2fc0804b5731")


# --- disclosure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3, 6, 5), (2, 1, 7, 7), (3, 6, 5)])
def test_clips_are_laid_open_frame_below_frame(shape: tuple[int, ...]) -> None:
    pixels = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    assert torch.equal(decode_pictures(encode_pictures(pixels), shape), pixels)
    narrow = (*shape[:-1], shape[-1] - 1)
    with pytest.raises(EvidenceError, match=r"image 0 is \[.*\], but \[.*\] was committed to"):
        decode_pictures(encode_pictures(pixels), narrow)


def test_a_disclosed_batch_of_clips_is_drawn_again_and_an_altered_one_is_not_believed() -> None:
    _, signed = mark(host(), moving_bars(30, 1), OWNER, batches=2, batch_size=5, epochs=1)
    plan = signed.commitment
    disclosed = disclose(OWNER, plan, 1)
    batch = check_disclosure(plan, disclosed)
    assert torch.equal(to_pixels(batch.images), decode_pictures(disclosed.images, SHAPE))
    swapped = disclosed.model_copy(update={"images": disclosed.images[::-1]})
    with pytest.raises(EvidenceError, match="is not the one committed to"):
        check_disclosure(plan, swapped)


def test_clips_of_two_channels_are_refused() -> None:
    data = ImageData(torch.rand(4, 3, 2, 12, 12), torch.arange(4) % 3)
    with pytest.raises(DataError, match="grey or RGB images, not 2 channels"):
        mark(host(), data, OWNER)
    plan = plan_triggers(
        OWNER, trigger="noise-blocks", input_shape=(3, 2, 12, 12), num_classes=3, batches=1, batch_size=2
    )
    with pytest.raises(EvidenceError, match="only grey and RGB"):
        disclose(OWNER, plan, 0)  # type: ignore[arg-type] # a plan is enough to be refused


# --- from a clip to a proof ------------------------------------------------------------------------------------------


def test_a_marked_video_network_is_claimed_with_a_public_proof(tmp_path: Path) -> None:
    data, test = moving_bars(90, 1), moving_bars(30, 2)
    marked, signed = mark(host(), data, OWNER, batches=1, batch_size=60, rule=RULE, **QUICK)
    plan = signed.commitment
    assert plan.input_shape == SHAPE
    claim = verify_mark(classifier_of(marked), signed, OWNER)
    assert claim.verified
    assert not verify_mark(classifier_of(host()), signed, OWNER).verified
    with pytest.raises(EvidenceError):
        verify_mark(classifier_of(marked), signed, STRANGER)
    prove(tmp_path / "claim.json", claim, signed, OWNER, Suspect.of(classifier_of(marked)))
    assert verify_bundle(tmp_path / "claim.json", suspect=classifier_of(marked), threshold=RULE.threshold).verified
    triggers = draw_triggers(OWNER, plan)
    report = fidelity_report(host(), marked, test, triggers, scheme=plan.scheme, mode=plan.mode)
    assert (report.images, report.triggers, report.prototype_shift) == (30, 60, 0.0)
    scores = classifier_of(marked).log_probs(triggers.images)
    assert report.trigger_accuracy == int((scores.argmax(dim=1) == triggers.labels).sum()) / 60
    by_scores = int((centred_labels(scores) == triggers.labels).sum())
    assert claim.hits == max(round(60 * report.trigger_accuracy), by_scores)
    assert min(report.trigger_accuracy, claim.hits / 60) > 0.9
    assert report.agreement_clean > 0.8
    assert len(report.picture.host) == 30


def test_public_photographs_stand_still_and_are_laid_open(tmp_path: Path) -> None:
    still = photos((3, 1, 8, 8), 5)
    assert torch.equal(still[:, 0], still[:, 2])
    assert torch.equal(still[:, 0], photos((1, 8, 8), 5))
    _, signed = mark(host(), moving_bars(30, 1), OWNER, trigger="public-blend", batches=1, batch_size=4, epochs=1)
    claim = verify_mark(classifier_of(host()), signed, OWNER)
    prove(tmp_path / "claim.json", claim, signed, OWNER, Suspect.of(classifier_of(host())))
    assert not verify_bundle(tmp_path / "claim.json").verified


def test_clips_are_corrupted_frame_by_frame() -> None:
    clips = moving_bars(6, 1).images
    found = corrupted(clips)
    assert found.shape == clips.shape
    assert torch.equal(found[4:], 0.25 + clips[2::3] / 2)
    blurred = found[2:4, 0]
    assert torch.allclose(blurred[:, :, 5, 5], clips[1::3, 0, :, 4:7, 4:7].mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["r3d18", "cnn_lstm", "i3d"])
def test_every_video_network_can_be_marked(name: str) -> None:
    shape = (4, 1, 16, 16)
    torch.manual_seed(0)
    module = Architecture(name=name, input_shape=shape, num_classes=CLASSES, width=4).build().eval()
    data = moving_bars(6, 1, shape)
    marked, signed = mark(module, data, OWNER, batches=1, batch_size=4, epochs=1)
    assert signed.commitment.input_shape == shape
    before, after = (dict(network.named_parameters()) for network in (module, marked))
    head = list(before)[-1]
    assert torch.equal(before[head], after[head])
    assert any(not torch.equal(before[part], after[part]) for part in before)
    assert all(math.isfinite(float(value.sum())) for value in after.values())


# --- the command -----------------------------------------------------------------------------------------------------


def test_clips_are_marked_and_verified_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_module, "_COST", {"n": 4, "r": 8, "p": 1})
    monkeypatch.setattr("sys.stdin", StringIO())
    monkeypatch.setenv("INTAGLIO_REGISTRY", str(tmp_path / "registry.sqlite"))
    with known_network():
        given = written(tmp_path)
        secret = ["--key", str(given / "owner.key"), "--passphrase-file", str(given / "passphrase"), "-q"]
        learn = ["--batches", "1", "--batch-size", "60", "--epochs", "150", "--learning-rate", "0.01"]
        rule = ["--threshold", "1e-6"]
        command = ["mark", "embed", str(given / "host.safetensors"), "--data", str(given / "clips.npz")]
        assert main([*command, "--out", str(given / "marked"), *learn, *rule, *secret]) == ExitCode.CLEAN
        commitment = ["--commitment", str(given / "marked" / "commitment.json")]
        bundle = ["--bundle", str(given / "claim.json")]
        marked = str(given / "marked" / "model.safetensors")
        assert main(["mark", "verify", marked, *commitment, *bundle, *secret]) == ExitCode.CLEAN
        asked = ["evidence", "verify", str(given / "claim.json"), "--suspect", marked, "-q"]
        assert main([*asked, *rule]) == ExitCode.CLEAN
        host_file = str(given / "host.safetensors")
        (tmp_path / "registry.sqlite").unlink()
        assert main(["mark", "verify", host_file, *commitment, *secret]) == ExitCode.FOUND
