"""The HTML report of a model of clips: a map for each frame, the frame of the place, and what it refuses."""

import base64
import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intaglio.errors import DataError
from intaglio.report import render_report
from intaglio.report.pictures import MARGIN, ColourScale, enlargement, map_picture
from intaglio.report.sections import build_sections
from intaglio.report.wording import place
from intaglio.scan.verdict import CalibrationSummary, ClassEvidence, EncodedMaps, Place, Subject, Verdict

FRAMES, SIDE, CELLS, BLOCKS = 6, 32, 16, 8


def make_verdict(frame: int | None = 4, flagged: bool = True, **changes: Any) -> Verdict:
    """Three classes; that of class 2 peaks at rows 20-25, columns 4-9, in one frame or in all of them."""
    rng = np.random.default_rng(1)
    maps = rng.gamma(3, 0.1, (3, CELLS, CELLS)).astype(np.float32)
    each = rng.gamma(3, 0.03, (3, FRAMES, BLOCKS, BLOCKS)).astype(np.float32)
    maps[2, 10:13, 2:5] += 5
    each[2, slice(None) if frame is None else frame, 5:7, 1:3] += 2
    spot = Place(row=20, column=4, height=6, width=6, frame=frame)
    anywhere = Place(row=0, column=0, height=6, width=6)
    evidence = [
        ClassEvidence(index=index, suspicion=2.0 - index, peak=float(maps[index].max()), place=where)
        for index, where in ((2, spot), (0, anywhere), (1, anywhere))
    ]
    verdict = Verdict(
        statement="Suspicious, but not calibrated for this task.",
        flagged=flagged,
        p_value=0.02,
        alpha=0.05,
        score=3.0,
        target_class=2 if flagged else None,
        calibrated=False,
        detector="one-pixel-signature",
        subject=Subject(
            source="clips.safetensors", sha256=None, format="safetensors", input_shape=(FRAMES, 3, SIDE, SIDE),
            num_classes=3, access="WEIGHTS", task=None, classes=("left", "right", "up"),
        ),
        task=None,
        queries=9000,
        seconds=12.0,
        peak_memory_mb=500.0,
        seed=0,
        grid=(CELLS, CELLS),
        versions={"torch": "2"},
        calibration=CalibrationSummary(
            name="task-free", tasks=("mnist",), clean_models=40, backdoored_models=40,
            clean_scores=tuple(np.linspace(-2, 2, 40).tolist()), statement="Ranked against images.",
        ),
        evidence=tuple(evidence),
        maps=EncodedMaps.encode(maps, base="mean of 3 clips", variant="logit", classes=(0, 1, 2)),
        frame_maps=EncodedMaps.encode(each, base="mean of 2 clips", variant="logit", classes=(0, 1, 2)),
    )  # fmt: skip
    return verdict.model_copy(update=changes)


def test_every_class_shows_a_map_for_each_frame() -> None:
    page = render_report([make_verdict()])
    for index in range(3):
        found = re.findall(rf'alt="Signature map of class {index} in frame (\d)', page)
        assert found == list("012345")
    assert page.count('<ol class="frames" start="0">') == 3
    assert page.count('<li class="found">') == 1
    assert re.search(r"class 2 in frame 4, which holds the place", page)
    assert "frame\N{NO-BREAK SPACE}4, rows\N{NO-BREAK SPACE}20\N{EN DASH}25, columns\N{NO-BREAK SPACE}4" in page
    assert "where a trigger would lead, its place in frame 4" in page
    assert "in all frames at once," in page
    assert "8\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}8 blocks" in page
    assert "<dt>Frames</dt>" in page
    assert render_report([make_verdict()]) == page


def test_a_place_in_all_frames_has_no_number() -> None:
    page = render_report([make_verdict(None)])
    assert "its place in all frames alike" in page
    assert '<li class="found">' not in page
    assert place(make_verdict(None).evidence[0].place).startswith("rows")


def test_clean_models_and_images_have_no_place_in_time() -> None:
    (section,) = build_sections([make_verdict(flagged=False)])
    assert section.target_frame is None
    images = make_verdict(None, frame_maps=None)
    subject = images.subject.model_copy(update={"input_shape": (3, SIDE, SIDE)})
    page = render_report([images.model_copy(update={"subject": subject})])
    assert 'class="frames"' not in page
    assert "<dt>Frames</dt>" not in page
    assert "where a trigger would lead</dd>" in page
    assert "at once" not in page


def test_only_the_frame_of_the_place_is_boxed() -> None:
    (section,) = build_sections([make_verdict()])
    assert section.frame_scale is not None
    assert section.frame_scale.high == pytest.approx(2, abs=0.5)
    (target,) = (shown for shown in section.maps if shown.is_target)
    assert [frame.number for frame in target.frames if frame.found] == [4]
    pictures = [
        np.array(Image.open(BytesIO(base64.b64decode(frame.picture.partition(",")[2])))) for frame in target.frames
    ]
    factor = enlargement((BLOCKS, BLOCKS))
    # the place is rows 20-25 of 32, so blocks 5 and 6; columns 4-9, so blocks 1 and 2; a box begins with black
    corner = (MARGIN + 5 * factor - 1, MARGIN + 1 * factor - 1)
    assert [picture[corner].tolist() == [0, 0, 0, 255] for picture in pictures] == [False] * 4 + [True, False]


def test_a_map_without_a_box() -> None:
    values = np.zeros((2, 2), np.float32)
    picture = np.array(Image.open(BytesIO(map_picture(values, ColourScale(0, 1), None))))
    inner = picture[MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert (inner == inner[0, 0]).all()
    assert not picture[:MARGIN].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (3, 5, 8, 8), "data": ""}, r"maps of shape \(3, 5, 8, 8\), expected \(3, 6, 8, 8\)"),
        ({"shape": (3, 8, 8), "data": ""}, r"maps of shape \(3, 8, 8\), expected \(3, 6, 8, 8\)"),
        ({"shape": (3, 6, 40, 8), "data": ""}, "maps of frames of shape"),
        ({"shape": (3, 6, 0, 8), "data": ""}, "maps of frames of shape"),
        ({"classes": (0, 1)}, r"maps of frames .* for classes \(0, 1\)"),
        ({"data": "AAAA"}, "maps that can't be decoded"),
        ({"data": base64.b64encode(np.full((3, 6, 8, 8), np.nan, "<f2").tobytes()).decode()}, "NaN or infinity"),
    ],
)
def test_maps_of_frames_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    verdict = make_verdict()
    assert verdict.frame_maps is not None
    with pytest.raises(DataError, match=message):
        render_report([verdict.model_copy(update={"frame_maps": verdict.frame_maps.model_copy(update=change)})])


@pytest.mark.parametrize("frame", [-1, FRAMES])
def test_frames_that_are_not_there(frame: int) -> None:
    verdict = make_verdict()
    where = verdict.evidence[0].place.model_copy(update={"frame": frame})
    entry = verdict.evidence[0].model_copy(update={"place": where})
    with pytest.raises(DataError, match=f"class 2: its suspicious place is in frame {frame}, which is none"):
        render_report([verdict.model_copy(update={"evidence": (entry, *verdict.evidence[1:])})])


def test_verdicts_of_before_frames_can_still_be_read() -> None:
    old = make_verdict(None, frame_maps=None).to_dict()
    del old["frame_maps"]
    for entry in old["evidence"]:
        del entry["place"]["frame"]
    assert Verdict.model_validate(old) == make_verdict(None, frame_maps=None)
