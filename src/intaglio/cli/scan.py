"""`intaglio scan`: does this model hide a backdoor?"""

import traceback
import warnings
from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.model import Arch, Classes, InputShape, Mapping, Outputs, Preprocess, open_model
from intaglio.cli.options import Debug, Device, HtmlFile, JsonFile, Quiet, RegistryPlace, Seed


def scan(
    model: Annotated[
        str,
        typer.Argument(
            help="A .onnx, .safetensors, .pt2, .pt or .pth file, a Hugging Face folder, a model server's URL, or "
            "package.module:factory.",
            metavar="MODEL",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Clean images or videos (folder, .npz, IDX folder or task name) to probe the model with."),
    ] = None,
    training: Annotated[
        str | None,
        typer.Option(help="The labelled images or videos that the model was trained on, to look for poison in."),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(help="Images or videos that the model was asked about, to look for triggers in."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="What the model was trained for, e.g. fashion-mnist.")] = None,
    detector: Annotated[list[str] | None, typer.Option(help="Which detector; may be repeated.")] = None,
    alpha: Annotated[float, typer.Option(help="Accepted share of false alarms, of each detector.")] = 0.05,
    budget: Annotated[
        float | None, typer.Option(help="Seconds that auto may take, roughly; by default what it finds worth taking.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A calibration of your own, from `intaglio population fit`.")
    ] = None,
    arch: Arch = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    outputs: Outputs = "auto",
    mapping: Mapping = None,
    registry: RegistryPlace = None,
    json: JsonFile = None,
    html: HtmlFile = None,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Scan MODEL for a backdoor. Exit code 0: none found, 1: found, 3: too few clean models to tell at this alpha."""
    from intaglio.cli.console import deliver_file, deliver_json, progress_bar, require_deliverable, say
    from intaglio.cli.verdict import json_text, record_verdicts, recordable_digest, verdict_panel
    from intaglio.report import render_report
    from intaglio.scan import clean_images, scan_all
    from intaglio.scan.scanning import UndecidedError, fitting_data, suspected_inputs

    require_deliverable(html, json)
    classifier = open_model(
        model, arch, input_shape, classes, preprocess, device, outputs=outputs, task=task, mapping=mapping
    )
    digest = None if registry is None else recordable_digest(classifier, registry)
    images = clean_images(data, classifier) if data else None
    labelled = fitting_data(training, classifier, "train") if training else None
    suspected = suspected_inputs(inputs, classifier) if inputs else None
    doubt: UndecidedError | None = None
    with progress_bar(f"scanning {classifier.source}", quiet=quiet) as progress:
        try:
            verdicts = scan_all(
                classifier,
                clean=images,
                task=task,
                detectors=detector or ["auto"],
                calibration=calibration,
                training=labelled,
                inputs=suspected,
                alpha=alpha,
                budget=budget,
                seed=seed,
                progress=progress,
            )
        except UndecidedError as error:
            if len(error.undecided) == len(error.verdicts) and not error.failed:  # then there is no verdict to deliver
                raise
            doubt, verdicts = error, list(error.verdicts)
    deliver_json(json_text(verdicts), json)
    if html is not None:
        deliver_file(render_report(verdicts), html)
    say(*(verdict_panel(verdict) for verdict in verdicts), quiet=quiet, json_to_stdout=json == "-")
    decided = [verdict for verdict in verdicts if doubt is None or verdict not in doubt.undecided]
    if registry is not None and digest is not None and decided:  # last, so that one that is gone costs no verdict
        record_verdicts(decided, digest, registry)
    found = any(verdict.flagged for verdict in verdicts)
    if doubt is not None:
        troubles = list(doubt.failed.items())
        for name, trouble in troubles if found else troubles[1:]:
            warnings.warn(f"{name} gave no verdict: {trouble}", stacklevel=1)
            if debug:
                traceback.print_exception(trouble)
        if not found:
            raise next(iter(doubt.failed.values()), doubt)
    return int(found)
