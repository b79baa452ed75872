"""`intaglio scan`: does this model hide a backdoor?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from intaglio.cli.options import Debug, Device, HtmlFile, JsonFile, Quiet, Seed

if TYPE_CHECKING:
    from intaglio.classifiers import Preprocessing


def scan(
    model: Annotated[
        str, typer.Argument(help="A .onnx, .safetensors, .pt2 or .pt file, or package.module:factory.", metavar="MODEL")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Clean images (folder, .npz, IDX folder or task name) to probe the model with."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="What the model was trained for, e.g. fashion-mnist.")] = None,
    detector: Annotated[list[str] | None, typer.Option(help="Which detector; may be repeated.")] = None,
    alpha: Annotated[float, typer.Option(help="Accepted share of false alarms.")] = 0.05,
    calibration: Annotated[
        Path | None, typer.Option(help="A calibration of your own, from `intaglio population fit`.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Architecture of bare weights without a side-car.")] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="Input shape C,H,W where the file does not say it, e.g. 3,224,224.")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Class count where the file does not say it.")] = None,
    preprocess: Annotated[
        str | None, typer.Option(help='Preprocessing as JSON, e.g. {"mean": [0.5], "std": [0.5]}.')
    ] = None,
    outputs: Annotated[
        Literal["auto", "logits", "probabilities", "log-probabilities"], typer.Option(help="What the model answers.")
    ] = "auto",
    json: JsonFile = None,
    html: HtmlFile = None,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Scan MODEL for a backdoor. Exit code 0: none found, 1: found."""
    from intaglio.classifiers import open_classifier
    from intaglio.cli.console import deliver_file, deliver_json, progress_bar, say
    from intaglio.cli.verdict import json_text, verdict_panel
    from intaglio.files import require_writable
    from intaglio.report import render_report
    from intaglio.scan import clean_images, scan_all

    for output in (html, json if json != "-" else None):
        if output is not None:
            require_writable(output)
    classifier = open_classifier(
        model,
        architecture=arch,
        input_shape=_shape(input_shape),
        num_classes=classes,
        preprocessing=_preprocessing(preprocess),
        outputs=outputs,
        task=task,
        device=device,
    )
    images = clean_images(data, classifier) if data else None
    with progress_bar(f"scanning {classifier.source}", quiet=quiet) as progress:
        verdicts = scan_all(
            classifier,
            clean=images,
            task=task,
            detectors=detector or ["auto"],
            calibration=calibration,
            alpha=alpha,
            seed=seed,
            progress=progress,
        )
    deliver_json(json_text(verdicts), json)
    if html is not None:
        deliver_file(render_report(verdicts), html)
    say(*(verdict_panel(verdict) for verdict in verdicts), quiet=quiet, json_to_stdout=json == "-")
    return int(any(verdict.flagged for verdict in verdicts))


def _preprocessing(text: str | None) -> "Preprocessing | None":
    from pydantic import ValidationError

    from intaglio.classifiers import Preprocessing

    if text is None:
        return None
    try:
        return Preprocessing.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise typer.BadParameter(
            f"{where + ': ' if where else ''}{problem['msg']}", param_hint="--preprocess"
        ) from error


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is not a shape such as 3,224,224", param_hint="--input-shape") from error
