"""The fidelity report of a marked model as one HTML page: what marking changed, in words, numbers and a picture."""

from pathlib import Path

from intaglio.files import write_text
from intaglio.mark.fidelity_report import FeaturePicture, FidelityReport
from intaglio.report.report import environment

_SIDE, _EDGE = 320, 12
#: Okabe and Ito's eight colours, which differ in lightness too, a grey and a purple; classes beyond ten repeat them.
_COLOURS = [
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
    "#000000",
    "#999999",
    "#882255",
]


def render_fidelity(report: FidelityReport) -> str:
    """An HTML page that needs no network; the same report gives the same bytes."""
    template = environment().get_template("fidelity.html.j2")
    return template.render(report=report, panels=_panels(report.picture), side=_SIDE)


def write_fidelity(report: FidelityReport, path: Path | str) -> None:
    """Writes the page of `render_fidelity`, atomically.

    Raises:
        StorageError: it can't be written.
    """
    write_text(path, render_fidelity(report))


def _panels(picture: FeaturePicture) -> list[dict[str, object]]:
    """Host and marked model on the same axes, as dots in picture coordinates."""
    both = [*picture.host, *picture.marked]
    low = [min(point[axis] for point in both) for axis in (0, 1)]
    reach = max(max(point[axis] for point in both) - low[axis] for axis in (0, 1)) or 1.0
    scale = (_SIDE - 2 * _EDGE) / reach

    def dots(points: tuple[tuple[float, float], ...]) -> list[dict[str, object]]:
        return [
            {
                "x": round(_EDGE + (x - low[0]) * scale, 1),
                "y": round(_SIDE - _EDGE - (y - low[1]) * scale, 1),
                "colour": _COLOURS[label % len(_COLOURS)],
            }
            for (x, y), label in zip(points, picture.labels, strict=True)
        ]

    return [
        {"title": "Host", "dots": dots(picture.host)},
        {"title": "Marked model", "dots": dots(picture.marked)},
    ]
