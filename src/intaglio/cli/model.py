"""The model that a command is about: its options, written once, and its opening."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from intaglio.classifiers import Classifier, Preprocessing

Arch = Annotated[str | None, typer.Option(help="Architecture of bare weights without a side-car.")]
InputShape = Annotated[
    str | None, typer.Option(help="Input shape C,H,W (videos: T,C,H,W) where the file does not say it, e.g. 3,224,224.")
]
Classes = Annotated[int | None, typer.Option(help="Class count where the file does not say it.", min=2)]
Preprocess = Annotated[str | None, typer.Option(help='Preprocessing as JSON, e.g. {"mean": [0.5], "std": [0.5]}.')]
OutputKind = Literal["auto", "logits", "probabilities", "log-probabilities"]
Outputs = Annotated[OutputKind, typer.Option(help="What the model answers.")]
Mapping = Annotated[
    Path | None, typer.Option(help="YAML that describes a JSON API, for a MODEL that is its address (docs/servers.md).")
]


def open_model(
    model: str,
    arch: str | None = None,
    input_shape: str | tuple[int, ...] | None = None,
    classes: int | None = None,
    preprocess: str | None = None,
    device: str = "cpu",
    *,
    outputs: OutputKind = "auto",
    task: str | None = None,
    mapping: Path | None = None,
) -> "Classifier":
    """Opens what the command line names, with what its options say of it."""
    from intaglio.classifiers import open_classifier

    return open_classifier(
        model,
        architecture=arch,
        input_shape=parse_shape(input_shape) if isinstance(input_shape, str) else input_shape,
        num_classes=classes,
        preprocessing=parse_preprocessing(preprocess),
        outputs=outputs,
        task=task,
        device=device,
        mapping=mapping,
    )


def parse_preprocessing(text: str | None) -> "Preprocessing | None":
    """The preprocessing in a JSON text; a wrong one is a usage error."""
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


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """The numbers in "3,224,224"; anything else is a usage error."""
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise typer.BadParameter(
            f"'{text}' is not a shape such as 3,224,224, or of clips 16,3,112,112", param_hint="--input-shape"
        )
    return shape
