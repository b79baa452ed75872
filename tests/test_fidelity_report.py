"""The fidelity report as a page: every number, the picture in its frame, nothing loaded, nothing executed."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.errors import StorageError
from intaglio.mark.fidelity_report import FeaturePicture, FidelityReport
from intaglio.report.fidelity import render_fidelity, write_fidelity

PICTURE = FeaturePicture(
    labels=(0, 1, 2, 11),
    host=((-1.0, 0.0), (0.0, 1.0), (1.0, 0.5), (0.0, 0.0)),
    marked=((-1.0, 0.1), (0.2, 1.0), (3.0, 0.5), (0.0, -1.0)),
    explained=0.637,
)
REPORT = FidelityReport(
    scheme="adversarial-parametric",
    mode="fixll-pfl",
    images=2000,
    triggers=200,
    host_accuracy=0.88354,
    clean_accuracy=0.88049,
    trigger_accuracy=0.995,
    twl=12.3456,
    pfl=2.1234,
    spl=0.001234,
    prototype_shift=0.0,
    agreement_clean=0.9771,
    agreement_corrupted=0.9312,
    agreement_out_of_distribution=0.8123,
    picture=PICTURE,
    versions={"intaglio": "0.1.0"},
)
Points = tuple[tuple[float, float], ...]
thousandths = st.integers(-(10**9), 10**9).map(lambda number: number / 1000)  # reports hold such numbers


def cells(page: str) -> dict[str, list[str]]:
    """Rows of the table by their heading, without the column of meanings."""
    rows = re.findall(r"<tr><th>(.*?)</th>(.*?)</tr>", page)
    return {heading: re.findall(r'<td class="number">(.*?)</td>', rest) for heading, rest in rows if "<th" not in rest}


def dots(page: str) -> list[list[tuple[float, float, str]]]:
    """Circles of each panel."""
    panels = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(panels) == 2
    return [
        [
            (float(dot.get("cx", "")), float(dot.get("cy", "")), dot.get("fill", ""))
            for dot in ElementTree.fromstring(panel)
        ]
        for panel in panels
    ]


def test_every_number_is_on_the_page() -> None:
    page = render_fidelity(REPORT)
    assert cells(page) == {
        "clean accuracy": ["88.35 %", "88.05 %"],
        "trigger accuracy": ["", "99.5 %"],
        "agreement, clean": ["", "97.7 %"],
        "agreement, corrupted": ["", "93.1 %"],
        "agreement, foreign": ["", "81.2 %"],
        "PFL": ["", "2.12"],
        "SPL": ["", "0.00123"],
        "TWL": ["", "12.3"],
        "prototype shift": ["", "0"],
    }
    lead = " ".join(re.sub(r"<.*?>", " ", page[page.index('class="lead"') : page.index("</header>")]).split())
    assert "Scheme adversarial-parametric, mode fixll-pfl, 200 triggers." in lead
    assert "answers 97.7 % of 2000 test images as its host does, and 99.5 % of its triggers as committed." in lead
    assert re.search(r"64 % of their\s+variance", page)


def test_the_page_is_complete_and_the_same_each_time() -> None:
    page = render_fidelity(REPORT)
    assert page == render_fidelity(REPORT)
    assert page.startswith("<!doctype html>")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"{{|{%|}}", page)


def test_names_are_escaped() -> None:
    page = render_fidelity(REPORT.model_copy(update={"scheme": "<script>alert(1)</script>", "mode": "a & b"}))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "a &amp; b" in page


def test_both_panels_share_their_axes() -> None:
    host, marked = dots(render_fidelity(REPORT))
    for panel, points in ((host, PICTURE.host), (marked, PICTURE.marked)):
        for (x, y, _), (first, second) in zip(panel, points, strict=True):
            assert x == pytest.approx(12 + (first + 1) * 74, abs=0.06)  # 296 pixels for -1 ... 3, the wider axis
            assert y == pytest.approx(308 - (second + 1) * 74, abs=0.06)  # upwards
    assert [colour for _, _, colour in host] == [colour for _, _, colour in marked]
    colours = [colour for _, _, colour in host]
    assert len({*colours[:3]}) == 3
    assert colours[3] == colours[1]  # class 11 has the colour of class 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[thousandths] * 4), min_size=1, max_size=12))
def test_all_dots_lie_inside_the_frame(rows: list[tuple[float, float, float, float]]) -> None:
    picture = FeaturePicture(
        labels=tuple(range(len(rows))),
        host=tuple(row[:2] for row in rows),
        marked=tuple(row[2:] for row in rows),
        explained=1.0,
    )
    for panel in dots(render_fidelity(REPORT.model_copy(update={"picture": picture}))):
        assert len(panel) == len(rows)
        assert all(12 <= x <= 308 and 12 <= y <= 308 for x, y, _ in panel)


def test_equal_points_are_one_place() -> None:
    same: Points = ((2.0, 2.0), (2.0, 2.0))
    picture = FeaturePicture(labels=(0, 1), host=same, marked=same, explained=0.0)
    panels = dots(render_fidelity(REPORT.model_copy(update={"picture": picture})))
    assert {(x, y) for panel in panels for x, y, _ in panel} == {(12.0, 308.0)}


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_fidelity(REPORT, tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text() == render_fidelity(REPORT)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"can't write .*folder: it is a folder"):
        write_fidelity(REPORT, tmp_path / "folder")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["page.html"]
