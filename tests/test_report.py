"""The HTML report: what it says, what it shows, and what it refuses."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from intaglio.classifiers import Preprocessing
from intaglio.cli.main import ExitCode, main
from intaglio.cli.registry import _cell as registry_cell
from intaglio.cli.verdict import verdict_panel
from intaglio.data import TASKS
from intaglio.errors import DataError, NothingToExamineError
from intaglio.report import read_verdicts, render_report, write_report
from intaglio.report.histogram import alpha_threshold, draw_histogram
from intaglio.report.pictures import MARGIN, ColourScale, cells_of, enlargement, map_picture
from intaglio.report.sections import build_sections
from intaglio.report.wording import duration, figure, memory, percent, visible
from intaglio.scan.verdict import CalibrationSummary, ClassEvidence, EncodedMaps, ErrorRate, Place, Subject, Verdict

FASHION = TASKS["fashion-mnist"].classes
EXPLOIT = "<script>alert('pwned')</script>"


def make_verdict(
    *,
    source: str = "models/clean.onnx",
    size: int = 28,
    channels: int = 1,
    num_classes: int = 10,
    classes: tuple[str, ...] = FASHION,
    target: int | None = None,
    calibrated: bool = True,
    grid: tuple[int, int] | None = None,
    stored: int = 24,
    clean_models: int = 240,
) -> Verdict:
    """A plausible verdict; with a `target`, that class's map peaks where a trigger sits, near the lower right."""
    rng = np.random.default_rng(sum(map(ord, source)))
    rows, columns = grid or (size, size)
    ramp = np.sin(np.pi * (np.arange(rows) + 0.5) / rows)[:, None] * np.sin(
        np.pi * (np.arange(columns) + 0.5) / columns
    )
    maps = (rng.gamma(4, 0.1, (num_classes, rows, columns)) * (0.3 + ramp)).astype(np.float32)
    side = max(3, size // 10)
    trigger = Place(row=size - side - 1, column=size - side - 1, height=side, width=side)
    if target is not None:
        cells = cells_of(trigger, (size, size), (rows, columns))
        maps[target, cells.row : cells.row + cells.height, cells.column : cells.column + cells.width] += 4.2
    suspicion = maps.max(axis=(1, 2)) - np.median(maps)
    evidence = []
    for index in np.argsort(-suspicion).tolist():
        row, column = np.unravel_index(maps[index].argmax(), (rows, columns))
        peak = Place(row=int(row) * size // rows, column=int(column) * size // columns, height=1, width=1)
        place = trigger if index == target else peak
        evidence.append(
            ClassEvidence(index=index, suspicion=float(suspicion[index]), peak=float(maps[index].max()), place=place)
        )
    shown = tuple(entry.index for entry in evidence[:stored])
    clean_scores = tuple(rng.gamma(9, 0.11, clean_models).tolist())
    score = 1.1 if target is None else 4.87
    p_value = (1 + sum(clean >= score for clean in clean_scores)) / (clean_models + 1)
    flagged = p_value <= 0.05
    name = None if target is None else (classes[target] if classes else f"class {target}")
    return Verdict(
        statement=f"This model looks backdoored: the signature of '{name}' peaks unlike any clean model's."
        if flagged
        else "No backdoor was found: this model looks like the clean models it was ranked against.",
        flagged=flagged,
        p_value=p_value,
        alpha=0.05,
        score=score,
        target_class=target,
        calibrated=calibrated,
        detector="one-pixel-signature",
        subject=Subject(
            source=source,
            sha256=hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest(),
            format="onnx",
            input_shape=(channels, size, size),
            num_classes=num_classes,
            access="SCORES",
            task="fashion-mnist" if calibrated else None,
            classes=classes,
        ),
        task="fashion-mnist" if calibrated else None,
        queries=2 * (rows * columns * 5 + 1),
        seconds=2.37 if grid is None else 341.2,
        peak_memory_mb=412.6 if grid is None else 2310.0,
        seed=0,
        grid=grid,
        versions={"intaglio": "0.1.0", "torch": "2.13.0+cpu", "onnxruntime": "1.31.0", "numpy": "2.4.6"},
        calibration=CalibrationSummary(
            name="small-cnns",
            tasks=("fashion-mnist",),
            clean_models=clean_models,
            backdoored_models=240,
            clean_scores=clean_scores,
            false_alarms=ErrorRate(events=4, trials=100, rate=0.04, low=0.011, high=0.0993),
            statement="The clean models are of this model's task and of several architectures."
            if calibrated
            else "No clean models of its task are at hand; it was ranked against small models of fashion-mnist.",
        ),
        evidence=tuple(evidence),
        maps=EncodedMaps.encode(maps[list(shown)], base="mean over black, grey", variant="logit", classes=shown),
    )


def sample_verdicts() -> list[Verdict]:
    """One clean model, one backdoored, and one of 1,000 classes on a grid that can't be calibrated."""
    return [
        make_verdict(source="models/clean.onnx"),
        make_verdict(source="models/backdoored.onnx", target=7),
        make_verdict(
            source="/srv/models/imagenet/resnet50-a1.safetensors",
            size=224,
            channels=3,
            num_classes=1000,
            classes=(),
            calibrated=False,
            grid=(32, 32),
        ),
    ]


class Page(HTMLParser):
    """What a browser would see in a page: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " " if tag in ("dt", "dd", "td", "th", "p") else ""

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, *names: str) -> list[str]:
        return [value or "" for _, attributes in self.tags for name, value in attributes.items() if name in names]

    def words(self) -> str:
        return re.sub(r"\s+", " ", self.text)


def pixels_of(png: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(png)) as image:
        return np.array(image.convert("RGBA"))


def luminance(rgba: NDArray[np.uint8]) -> NDArray[np.float64]:
    weighted: NDArray[np.float64] = rgba[..., :3] @ np.array([0.2126, 0.7152, 0.0722])
    return weighted


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    return sample_verdicts()


@pytest.fixture(scope="module")
def html(verdicts: list[Verdict]) -> str:
    return render_report(verdicts)


def test_page_loads_nothing_and_runs_nothing(html: str) -> None:
    page = Page(html)
    assert "://" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in page.attributes("src", "href"))
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_links_lead_to_ids_that_exist_once(html: str) -> None:
    page = Page(html)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {"#model-1", "#model-2", "#model-3", "#reading"} == set(page.attributes("href"))
    assert {link[1:] for link in page.attributes("href")} <= set(ids)
    assert {word for value in page.attributes("aria-labelledby") for word in value.split()} <= set(ids)


@pytest.mark.parametrize("hostile", [EXPLOIT, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "' onload='x"])
def test_untrusted_text_stays_text(hostile: str) -> None:
    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {(hostile if name == "torch" else name): poison(entry, name) for name, entry in value.items()}
        if isinstance(value, list):
            return [poison(entry) for entry in value]
        return hostile if isinstance(value, str) and key not in ("kind", "data") else value

    verdict, other = make_verdict(target=7), make_verdict()
    page = Page(render_report([Verdict.from_json(json.dumps(poison(verdict.to_dict()))), other]))
    unknown = verdict.model_copy(update={"maps": verdict.maps.model_copy(update={"variant": "of a kind of its own"})})
    harmless = Page(render_report([unknown, other]))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert [list(attributes) for _, attributes in page.tags] == [list(attributes) for _, attributes in harmless.tags]
    assert f"7 ({hostile})" in page.text
    assert page.text.count(hostile) >= 35


def test_title_is_escaped() -> None:
    assert EXPLOIT not in render_report([make_verdict()], title=EXPLOIT)


def test_deceptive_characters_are_spelled_out() -> None:
    name = "evil\u202egpj.exe\x00\ud800"
    text = Page(render_report([make_verdict(source=f"models/{name}")])).text
    assert "models/evil\\u202egpj.exe\\u0000\\ud800" in text
    assert visible("Ångström 猫\n\U0001f408") == "Ångström 猫\n\U0001f408"
    assert visible(3) == 3


def test_surrogates_in_a_path_can_be_written(tmp_path: Path) -> None:
    write_report([make_verdict(source="models/\udcff.onnx")], tmp_path / "report.html")
    assert "\\udcff.onnx" in (tmp_path / "report.html").read_text("utf-8")


def test_overview_has_one_row_per_model_with_the_figures(html: str, verdicts: list[Verdict]) -> None:
    rows = [re.sub(r"<[^>]+>", " ", row) for row in re.findall(r"<tr class=.*?</tr>", html, re.S)]
    words = [" ".join(row.split()) for row in rows]
    assert words == [
        f"clean.onnx one-pixel-signature Not flagged {figure(verdicts[0].p_value)} none yes 2.37 s",
        "backdoored.onnx one-pixel-signature Flagged 0.00415 7 (Sneaker) yes 2.37 s",
        "resnet50-a1.safetensors one-pixel-signature Not flagged, and not calibrated "
        f"{figure(verdicts[2].p_value)} none no 5 min 41 s",
    ]
    assert "3 models examined for backdoors: 1 flagged, 2 not flagged; 1 of these verdicts is not calibrated" in (
        Page(html).words()
    )


def test_single_model_needs_no_overview() -> None:
    assert 'id="overview"' not in render_report([make_verdict()])


def test_names_that_clash_are_shown_in_full(verdicts: list[Verdict]) -> None:
    sources = ["a/model.pt", "b/model.pt", "c/other.pt", "/"]
    subjects = [verdicts[0].subject.model_copy(update={"source": source}) for source in sources]
    html = render_report([verdicts[0].model_copy(update={"subject": subject}) for subject in subjects])
    headings = re.findall(r'<h2 id="model-\d-name"><bdi>(.*?)</bdi>', html)
    assert headings == ["a/model.pt", "b/model.pt", "other.pt", "/"]


@pytest.mark.parametrize(
    ("target", "calibrated", "tone", "badge"),
    [
        (None, True, "clear", "Not flagged"),
        (7, True, "flagged", "Flagged"),
        (None, False, "uncertain", "Not flagged, and not calibrated"),
        (7, False, "uncertain", "Flagged, but not calibrated"),
    ],
)
def test_verdict_is_said_in_colour_icon_and_words(target: int | None, calibrated: bool, tone: str, badge: str) -> None:
    verdict = make_verdict(target=target, calibrated=calibrated)
    html = render_report([verdict])
    assert f'<section class="model {tone}"' in html
    assert re.search(rf'<span class="badge">\s*<svg class="icon".*?</svg>{badge}</span>', html, re.S)
    words = Page(html).words()
    assert verdict.statement in words
    assert verdict.calibration.statement in words


def test_key_figures_costs_and_subject_are_there(html: str, verdicts: list[Verdict]) -> None:
    words = Page(html).words()
    for phrase in (
        "4 of 100 clean test models at level 0.05; 95 % interval 1.1 % to 9.9 %",
        "no model could get a lower one here",
        "Queries 7,842",
        "Peak memory 2.3 GB",
        "onnxruntime 1.31.0",
        "Input 3 \N{MULTIPLICATION SIGN} 224 \N{MULTIPLICATION SIGN} 224",
        "SHA-256 " + (verdicts[1].subject.sha256 or "?"),
        "small-cnns: 240 clean and 240 backdoored models",
        "“Not flagged” is not “proven clean”",
        "Blocks instead of pixels",
    ):
        assert phrase in words, phrase


@pytest.mark.parametrize(
    ("preprocessing", "shown"),
    [
        (None, None),
        (Preprocessing(), "none: raw pixels in [0, 1]"),
        (
            Preprocessing(scale=1e-6, channel_order="bgr"),
            "<code>{&#34;scale&#34;:1e-6,&#34;channel_order&#34;:&#34;bgr&#34;}</code>",
        ),
    ],
)
def test_how_images_were_given_is_shown(preprocessing: Preprocessing | None, shown: str | None) -> None:
    verdict = make_verdict()
    outputs = None if preprocessing is None else "probabilities"
    subject = verdict.subject.model_copy(update={"preprocessing": preprocessing, "outputs": outputs})
    page = render_report([verdict.model_copy(update={"subject": subject})])
    assert ("<dt>Preprocessing</dt>" in page) == (shown is not None)
    assert ("<dt>Answers</dt><dd>probabilities</dd>" in page) == (shown is not None)
    assert shown is None or f"<dt>Preprocessing</dt><dd>{shown}</dd>" in page


def test_missing_parts_are_said_to_be_missing() -> None:
    verdict = make_verdict()
    subject = verdict.subject.model_copy(update={"sha256": None, "task": None})
    calibration = verdict.calibration.model_copy(update={"clean_scores": (), "false_alarms": None})
    maps = EncodedMaps.encode(
        np.zeros((0, 28, 28), np.float32), base="mean over black, grey", variant="logit", classes=()
    )
    changes = {"subject": subject, "calibration": calibration, "maps": maps, "evidence": (), "task": None}
    html = render_report([verdict.model_copy(update=changes)])
    words = Page(html).words()
    for phrase in ("none: not a file", "Not measured", "Task not stated", "This verdict holds no maps"):
        assert phrase in words, phrase
    assert "histogram" not in re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    assert "Blocks instead of pixels" not in words


def test_false_alarms_are_shown_task_by_task() -> None:
    """The pooled rate of many models of two tasks would hide those of the third."""
    verdict = make_verdict(calibrated=False)
    rates = [
        ErrorRate(events=events, trials=trials, rate=events / trials, low=0.0, high=1.0)
        for events, trials in ((14, 50), (0, 205))
    ]
    changes = {"tasks": ("cifar10", "a<b"), "false_alarms_by_task": tuple(rates)}
    html = render_report([verdict.model_copy(update={"calibration": verdict.calibration.model_copy(update=changes)})])
    words = Page(html).words()
    assert "0 % to 28 %" in words.replace("\N{NO-BREAK SPACE}", " ")
    assert "cifar10 14 of 50, a<b 0 of 205" in words
    assert "4 of 100" not in words


def test_maps_are_shown_most_suspicious_first(html: str, verdicts: list[Verdict]) -> None:
    galleries = re.findall(r'<ol class="maps">(.*?)</ol>', html, re.S)
    for gallery, verdict in zip(galleries, verdicts, strict=True):
        shown = [int(index) for index in re.findall(r"Signature map of class (\d+);", gallery)]
        assert shown == [entry.index for entry in verdict.evidence[:24]]
    assert galleries[1].count("target class") == 1
    words = Page(html).words()
    assert "24 of 1,000 classes are shown" in words
    assert "All 10 classes are shown" in words


def test_picture_in_the_page_peaks_and_is_boxed_at_the_trigger(html: str) -> None:
    gallery = re.findall(r'<ol class="maps">(.*?)</ol>', html, re.S)[1]
    encoded = re.findall(r"base64,([A-Za-z0-9+/=]+)", gallery)
    pixels = pixels_of(base64.b64decode(encoded[0]))
    factor = enlargement((28, 28))
    inner = pixels[MARGIN:-MARGIN, MARGIN:-MARGIN]
    cells = luminance(inner[factor // 2 :: factor, factor // 2 :: factor])
    assert cells.shape == (28, 28)
    bright = np.argwhere(cells > 0.8 * cells.max())
    trigger = slice(24, 27)
    outline_row = MARGIN + 24 * factor - 4
    assert {tuple(place) for place in bright.tolist()} >= {(row, 25) for row in range(24, 27)}
    assert cells[trigger, trigger].min() > np.delete(cells, np.s_[22:28], axis=0).max()
    assert pixels[outline_row, MARGIN + 25 * factor].tolist() == [255, 255, 255, 255]


@pytest.mark.parametrize("background", [0.0, 0.5, 1.0])
def test_box_is_drawn_around_its_cells_and_hides_none_of_them(background: float) -> None:
    values = np.full((32, 20), background, np.float32)
    scale, box = ColourScale(0, 1), Place(row=0, column=17, height=2, width=3)
    pixels = pixels_of(map_picture(values, scale, box))
    assert pixels.shape == (32 * 10 + 2 * MARGIN, 20 * 10 + 2 * MARGIN, 4)
    top, bottom, left, right = MARGIN, MARGIN + 20, MARGIN + 170, MARGIN + 200
    assert (pixels[top:bottom, left:right, :3] == scale.colours(values[:1, :1])).all()
    for reach, shade in ((7, 0), (6, 0), (5, 255), (4, 255), (3, 255), (2, 0), (1, 0)):
        for line in (
            pixels[top - reach, left - reach : right + reach],
            pixels[bottom + reach - 1, left - reach : right + reach],
            pixels[top - reach : bottom + reach, left - reach],
            pixels[top - reach : bottom + reach, right + reach - 1],
        ):
            assert (line == (shade, shade, shade, 255)).all()
    assert pixels[-1, 0].tolist() == [0, 0, 0, 0]  # the margin is transparent
    outside = pixels[bottom + MARGIN : -MARGIN, MARGIN:-MARGIN, :3]
    assert (outside == scale.colours(values[:1, :1])).all()


def test_every_cell_is_a_square_of_its_colour() -> None:
    values = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    scale = ColourScale.spanning(values)
    pixels = pixels_of(map_picture(values, scale, Place(row=2, column=2, height=1, width=1)))
    factor = enlargement((5, 7))
    square = pixels[MARGIN : MARGIN + factor, MARGIN + 6 * factor : MARGIN + 7 * factor, :3]
    assert (square == scale.colours(values)[0, 6]).all()


def test_colours_grow_brighter_from_low_to_high() -> None:
    scale = ColourScale(-1, 3)
    ramp = luminance(scale.colours(np.linspace(-1, 3, 256, dtype=np.float32)))
    assert (np.diff(ramp[::8]) > 2).all()
    assert scale.colours(np.array([-1, 3], np.float32)).tolist() == [[0, 0, 4], [252, 255, 164]]


@pytest.mark.parametrize(
    ("values", "low", "high"), [([1, 3], 0, 3), ([-2, 1], -2, 1), ([0, 0], 0, 1), ([-3, -1], -3, 0), ([], 0, 1)]
)
def test_colour_scale_spans_the_values_and_zero(values: list[float], low: float, high: float) -> None:
    scale = ColourScale.spanning(np.array(values, np.float32))
    assert (scale.low, scale.high) == (low, high)


@pytest.mark.parametrize(
    ("place", "size", "extent", "expected"),
    [
        ((5, 6, 2, 3), (28, 28), (28, 28), (5, 6, 2, 3)),
        ((201, 201, 22, 22), (224, 224), (32, 32), (28, 28, 4, 4)),
        ((7, 14, 7, 1), (224, 224), (32, 32), (1, 2, 1, 1)),
        ((6, 0, 2, 224), (224, 224), (32, 32), (0, 0, 2, 32)),
        ((99, 66, 1, 1), (100, 67), (32, 32), (31, 31, 1, 1)),
    ],
)
def test_place_in_pixels_becomes_cells_of_the_grid(
    place: tuple[int, int, int, int],
    size: tuple[int, int],
    extent: tuple[int, int],
    expected: tuple[int, int, int, int],
) -> None:
    names = ("row", "column", "height", "width")
    cells = cells_of(Place(**dict(zip(names, place, strict=True))), size, extent)
    assert (cells.row, cells.column, cells.height, cells.width) == expected
    rows = {pixel * extent[0] // size[0] for pixel in range(place[0], place[0] + place[2])}
    assert rows == set(range(cells.row, cells.row + cells.height))


@pytest.mark.parametrize("score", [-50.0, 0.1, 1.0, 2.5, 40.0, 1e6])
@pytest.mark.parametrize("count", [1, 3, 240])
def test_histogram_counts_every_clean_model_and_stays_in_the_picture(score: float, count: int) -> None:
    clean = np.random.default_rng(count).gamma(9, 0.11, count).tolist()
    histogram = draw_histogram(clean, score, 0.05)
    assert histogram is not None
    assert sum(bar.count for bar in histogram.bars) == count
    marks = [histogram.score, *histogram.score_ticks, *([histogram.threshold] if histogram.threshold else [])]
    assert all(histogram.left <= mark.at <= histogram.right for mark in marks)
    assert all(bar.width >= 5 and histogram.top <= bar.y <= histogram.bottom for bar in histogram.bars)
    assert max(bar.height for bar in histogram.bars) == pytest.approx(histogram.bottom - histogram.top)
    assert [mark.at for mark in histogram.score_ticks] == sorted(mark.at for mark in histogram.score_ticks)
    assert 1 <= len(histogram.count_ticks) <= 5


def test_histogram_in_the_page_has_all_bars_and_a_description(html: str, verdicts: list[Verdict]) -> None:
    charts = re.findall(r'<svg class="histogram".*?</svg>', html, re.S)
    for chart, verdict in zip(charts, verdicts, strict=True):
        counts = [int(count) for count in re.findall(r"<title>(\d+) with a score", chart)]
        assert sum(counts) == len(verdict.calibration.clean_scores)
        assert f"This model's score is {figure(verdict.score)}" in Page(chart).words()
        assert 'role="img"' in chart
        assert f"this model: {figure(verdict.score)}" in chart


def test_histogram_of_equal_scores_and_of_none() -> None:
    histogram = draw_histogram([1.0, 1.0], 1.0, 0.05)
    assert histogram is not None
    assert [bar.count for bar in histogram.bars] == [2]
    assert draw_histogram([], 1.0, 0.05) is None


@pytest.mark.parametrize("count", [1, 18, 19, 20, 39, 100, 240])
def test_threshold_is_where_the_p_value_crosses_alpha(count: int) -> None:
    clean = np.random.default_rng(count).normal(size=count).round(1).tolist()
    threshold = alpha_threshold(clean, 0.05)
    assert (threshold is None) == (count < 19)
    for score in [*clean, max(clean) + 1]:
        p_value = (1 + sum(other >= score for other in clean)) / (count + 1)
        assert (p_value <= 0.05) == (threshold is not None and score > threshold)


def test_ranking_against_several_tasks_is_explained() -> None:
    several = _changed("calibration", tasks=("fashion-mnist", "cifar10"))
    explanation = "gets the largest of its p-values"
    assert explanation in Page(render_report([make_verdict(), several])).words()
    assert explanation not in Page(render_report([make_verdict()])).words()


def test_too_few_clean_models_are_pointed_out() -> None:
    words = Page(render_report([make_verdict(clean_models=10)])).words()
    assert "no score would be flagged" in words
    assert "Dashed:" not in words
    assert "can't give any score a p-value of 0.05" in words


@pytest.mark.parametrize(
    ("tasks", "alpha", "score", "badge", "threshold"),
    [
        (("a",), 0.0164, 9.0, "Flagged", True),  # 1 / 61
        (("a",), 0.0163, 9.0, "Can't be decided at this alpha", False),
        (("a",), 0.0163, 0.0, "Not flagged", False),
        (("a", "b", "c"), 0.0477, 9.0, "Flagged", True),  # 1 / 21: each task has 20 of the 60
        (("a", "b", "c"), 0.0476, 9.0, "Can't be decided at this alpha", False),
        (("a", "b", "c"), 0.0476, 0.0, "Not flagged", False),
    ],
)
def test_a_level_below_every_p_value_decides_nothing(
    tasks: tuple[str, ...], alpha: float, score: float, badge: str, threshold: bool
) -> None:
    verdict = make_verdict(clean_models=60)
    clean = tuple(float(score) for score in np.linspace(1, 2, 60))
    lowest = 1 / (60 // len(tasks) + 1)
    p_value = lowest if score == 9.0 else 1.0
    flagged = p_value <= alpha
    section = build_sections([verdict.model_copy(update={
        "alpha": alpha, "score": score, "p_value": p_value, "flagged": flagged, "target_class": 0 if flagged else None,
        "calibration": verdict.calibration.model_copy(update={"tasks": tasks, "clean_scores": clean}),
    })])[0]  # fmt: skip
    assert section.badge == badge
    assert section.tone == {"Flagged": "flagged", "Not flagged": "clear"}.get(badge, "uncertain")
    assert section.p_value_is_lowest == (score == 9.0)
    assert section.histogram is not None
    assert (section.histogram.threshold is not None) == threshold


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (figure(0.0041494), "0.00415"),
        (figure(999.7), "1,000"),
        (figure(0), "0"),
        (figure(-1234.5), "-1,234"),
        (figure(1e12), "1e+12"),
        (percent(0.0343), "3.4\u00a0%"),
        (percent(0), "0\u00a0%"),
        (duration(2.371), "2.37\u00a0s"),
        (duration(192.4), "3\u00a0min 12\u00a0s"),
        (duration(7500), "2\u00a0h 5\u00a0min"),
        (memory(412.6), "413\u00a0MB"),
        (memory(2310), "2.3\u00a0GB"),
    ],
)
def test_numbers_in_words(shown: str, expected: str) -> None:
    assert shown == expected


def test_same_verdicts_give_the_same_bytes_after_a_round_trip(tmp_path: Path, verdicts: list[Verdict]) -> None:
    for number, verdict in enumerate(verdicts):
        (tmp_path / f"{number}.json").write_text(verdict.to_json())
    found = read_verdicts(tmp_path)
    assert found == verdicts
    write_report(found, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text("utf-8") == render_report(verdicts)
    assert not list(tmp_path.glob(".*"))


def test_reading_sorts_by_name_takes_lists_and_passes_over_other_json(tmp_path: Path) -> None:
    first, second, third = (make_verdict(source=name) for name in "abc")
    (tmp_path / "b.json").write_text(third.to_json())
    (tmp_path / "a.json").write_text(json.dumps([first.to_dict(), {"kind": "other"}, 3, second.to_dict()]))
    (tmp_path / "c.json").write_text('{"kind": "intaglio.manifest/1"}')
    (tmp_path / "d.json").write_text('"text"')
    (tmp_path / "e.txt").write_text("not JSON")
    (tmp_path / "f.json").mkdir()
    assert read_verdicts(tmp_path) == [first, second, third]


def test_a_verdict_is_read_once_however_often_it_is_there(tmp_path: Path) -> None:
    first, second = make_verdict(source="a"), make_verdict(source="b")
    (tmp_path / "b.json").write_text(first.to_json())
    (tmp_path / "c.json").write_text(second.to_json())
    (tmp_path / "all.json").write_text(json.dumps([second.to_dict(), first.to_dict()]))
    assert read_verdicts(tmp_path) == [second, first]
    again = first.model_copy(update={"seconds": first.seconds + 1})  # another look at the same model
    (tmp_path / "d.json").write_text(again.to_json())
    assert read_verdicts(tmp_path) == [second, first, again]


def test_a_report_is_written_over_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(make_verdict().to_json())
    before = path.read_bytes()
    assert main(["report", str(tmp_path), "--html", str(path)]) == ExitCode.USAGE
    assert "a.json would be written over" in " ".join(capsys.readouterr().err.split())
    assert main(["report", str(tmp_path), "--json", str(path / "x.json")]) == ExitCode.ERROR
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json"]
    assert path.read_bytes() == before


def test_the_command_counts_no_verdict_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(make_verdict(source=name).to_json())
    told = []
    for _ in range(3):
        assert main(["report", str(tmp_path), "--json", str(tmp_path / "all.json")]) == ExitCode.CLEAN
        told.append((capsys.readouterr().out, (tmp_path / "all.json").read_bytes()))
    assert ": 2 verdicts, " in told[0][0]
    assert told[0] == told[1] == told[2]


def test_reading_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(NothingToExamineError, match="no verdict"):
        read_verdicts(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_verdicts(tmp_path / "absent")
    with pytest.raises(NothingToExamineError, match="no verdict"):
        render_report([])


@pytest.mark.parametrize(
    "content",
    [
        make_verdict().to_json()[:-100],
        "",
        "[" * 100_000,
        '{"kind": "intaglio.verdict/1"}',
        json.dumps({**make_verdict().to_dict(), "score": float("nan")}),
        json.dumps({**make_verdict().to_dict(), "surprise": 1}),
        "\udcff",
    ],
    ids=["cut short", "empty", "deep", "fields missing", "NaN", "unknown field", "not UTF-8"],
)
def test_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    (tmp_path / "good.json").write_text(make_verdict().to_json())
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "bad.json"))):
        read_verdicts(tmp_path)


def test_file_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intaglio.report.reading._SIZE_LIMIT", 1 << 20)
    (tmp_path / "big.json").write_text(" " * (1 << 20) + "{}")
    with pytest.raises(DataError, match=r"big\.json: larger than 1 MiB"):
        read_verdicts(tmp_path)


def _changed(part: str, **values: object) -> Verdict:
    verdict = make_verdict()
    return verdict.model_copy(update={part: getattr(verdict, part).model_copy(update=values)})


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (_changed("maps", data="AAAA"), "can't be decoded"),
        (_changed("maps", data="no base64!"), "can't be decoded"),
        (_changed("maps", data=base64.b64encode(b"\x00\x7c" * 7840).decode()), "NaN or infinity"),
        (_changed("maps", shape=(10, 14, 56)), "maps of shape"),
        (_changed("maps", classes=(0,)), "maps of shape"),
        (_changed("maps", classes=(*range(9), 10)), "class 10 is none of"),
        (_changed("subject", classes=("only one",)), "1 class names for 10"),
        (_changed("subject", input_shape=(28,)), "not that of a picture"),
        (_changed("subject", input_shape=(1, 0, 28)), "not that of a picture"),
        (make_verdict(target=3).model_copy(update={"target_class": -1}), "class -1 is none of"),
        (make_verdict().model_copy(update={"target_class": 3}), "target class 3 of a model that is not flagged"),
        (make_verdict().model_copy(update={"p_value": 0.04}), r"not flagged with a p-value of 0\.04 at alpha 0\.05"),
        (make_verdict(target=3).model_copy(update={"p_value": 0.4}), r"flagged with a p-value of 0\.4 at alpha"),
        (make_verdict().model_copy(update={"p_value": 7.5}), r"a p-value of 7\.5 at alpha 0\.05"),
        (make_verdict().model_copy(update={"p_value": 0.0}), r"a p-value of 0\.0 at alpha"),
        (make_verdict().model_copy(update={"alpha": 1.0}), r"at alpha 1\.0"),
        (make_verdict().model_copy(update={"score": 1e308}), r"a score of 1e\+308"),
        (_changed("calibration", clean_scores=(0.0, -1e308)), r"a score of -1e\+308"),
        (make_verdict().model_copy(update={"grid": (0, 4)}), "maps of shape"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, verdict: Verdict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        render_report([verdict])
    (tmp_path / "bad.json").write_text(verdict.to_json())
    with pytest.raises(DataError, match=rf"bad\.json: damaged verdict: .*{message}"):
        read_verdicts(tmp_path)


@pytest.mark.parametrize("place", [(-1, 0, 1, 1), (0, 0, 0, 1), (27, 0, 2, 1), (0, 20, 1, 9), (0, 0, 1, -1)])
def test_place_outside_the_input_is_refused(place: tuple[int, int, int, int]) -> None:
    row, column, height, width = place
    where = Place(row=row, column=column, height=height, width=width)
    verdict = make_verdict()
    evidence = (verdict.evidence[0].model_copy(update={"place": where}), *verdict.evidence[1:])
    with pytest.raises(DataError, match="outside the 28 x 28 input"):
        render_report([verdict.model_copy(update={"evidence": evidence})])


def test_a_verdict_without_clean_models_claims_nothing_about_them() -> None:
    verdict = make_verdict(target=3, calibrated=False, clean_models=1)
    bare = verdict.calibration.model_copy(update={"tasks": (), "clean_models": 0, "clean_scores": (), "name": "mm-bd"})
    page = render_report([verdict.model_copy(update={"calibration": bare, "p_value": 0.04, "flagged": True})])
    assert "ranked against none" in page
    assert "no model could get a lower one here" not in " ".join(page.split())
    assert "the p-value is the method's own" in Page(page).words()
    assert "the p-value is the method's own" not in Page(render_report([make_verdict()])).words()


def test_several_verdicts_on_one_model_are_not_several_models() -> None:
    verdict = make_verdict()
    none = verdict.maps.model_copy(update={"classes": (), "shape": (0, 28, 28), "data": ""})
    other = verdict.model_copy(update={"detector": "trodo", "maps": none})
    words = Page(render_report([verdict, other])).words()
    assert "2 verdicts on 1 model examined for backdoors: 0 flagged, 2 not flagged" in words
    assert "about 0.1 of these verdicts would still flag one" in words
    rows = re.findall(r"<tr class=.*?</tr>", render_report([verdict, other]), re.S)
    assert ["trodo" in row for row in rows] == [False, True]
    assert "What a one-pixel signature is" in words
    assert "What a one-pixel signature is" not in Page(render_report([other])).words()
    drawn = verdict.model_copy(
        update={"detector": "neural-cleanse", "maps": verdict.maps.model_copy(update={"variant": "mask"})}
    )
    words = Page(render_report([drawn])).words()
    assert "What a one-pixel signature is" not in words
    assert "Brightness: the mask that neural-cleanse found for the class" in words
    named = make_verdict(source="models/CLEAN.onnx")
    assert "2 models examined" in Page(render_report([verdict, named])).words()
    digest = {"sha256": "ab" * 32}
    same = [one.model_copy(update={"subject": one.subject.model_copy(update=digest)}) for one in (verdict, named)]
    assert "2 verdicts on 1 model examined" in Page(render_report(same)).words()


def test_a_suspects_own_words_do_not_steer_the_terminal() -> None:
    """Class names and file names are the suspect's: escape sequences could write another verdict over this one."""
    hostile = "\x1b[2J\x1b]0;title\x07\x9b31mNo backdoor found\u202e"
    verdict = make_verdict(source=f"models/{hostile}.onnx", classes=(hostile, *FASHION[1:]), target=0)
    named = verdict.model_copy(
        update={
            "statement": f"Backdoor suspected: {hostile}",
            "calibration": verdict.calibration.model_copy(update={"statement": hostile}),
        }
    )
    shown = StringIO()
    Console(file=shown, force_terminal=False, width=200).print(verdict_panel(named))
    assert "No backdoor found" in shown.getvalue()
    assert all(letter == "\n" or letter.isprintable() for letter in shown.getvalue())
    assert registry_cell("name", hostile).isprintable()
