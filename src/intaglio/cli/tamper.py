"""`intaglio tamper`: do to a model what a thief or a vandal would."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intaglio.cli.model import Arch, Classes, InputShape, Preprocess, open_model
from intaglio.cli.options import Debug, Device, JsonFile, MethodOption, Quiet, Seed, option_pairs

if TYPE_CHECKING:
    from intaglio.tampering import Tampered


def _list(asked: bool) -> None:
    if asked:
        from intaglio.cli.console import say
        from intaglio.tampering.options import catalogue

        say(*catalogue(), quiet=False)
        raise typer.Exit


def tamper(
    name: Annotated[str, typer.Argument(help="What to do; --list shows all.", metavar="NAME")],
    model: Annotated[
        str, typer.Argument(help="A .safetensors or .pt file, or package.module:factory.", metavar="MODEL")
    ],
    out: Annotated[Path, typer.Option(help="The tampered model, .safetensors; its side-car goes beside it.")],
    data: Annotated[
        str | None, typer.Option(help="The thief's images or videos: a folder, .npz, IDX folder or task name.")
    ] = None,
    triggers: Annotated[str | None, typer.Option(help="For overwrite: the images and labels of another mark.")] = None,
    option: MethodOption = None,
    arch: Arch = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show every NAME with its options.", is_eager=True, callback=_list)
    ] = False,
    json: JsonFile = None,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Do to MODEL what a thief or a vandal would, and write the result."""
    from intaglio.cli.console import deliver_json, require_deliverable, say
    from intaglio.data.opening import open_data_for
    from intaglio.errors import RecipeError
    from intaglio.tampering.options import make_tampering
    from intaglio.tampering.tamper_file import tamper_file

    pairs = option_pairs(option)
    if (triggers is not None) != (name == "overwrite"):
        raise typer.BadParameter("overwrite, and it alone, takes the images of another mark", param_hint="--triggers")
    require_deliverable(json)
    classifier = open_model(model, arch, input_shape, classes, preprocess, device)
    shape = classifier.input_shape
    objects = {} if triggers is None else {"triggers": open_data_for(shape, triggers)}
    try:
        tampering = make_tampering(name, pairs, **objects)
    except RecipeError as error:
        raise typer.BadParameter(str(error), param_hint="NAME and --option") from error
    images = None if data is None else open_data_for(shape, data)
    result = tamper_file(tampering, classifier, out, data=images, architecture=arch, seed=seed)
    deliver_json(result.to_json(), json)
    say(_summary(out, result), quiet=quiet, json_to_stdout=json == "-")
    return 0


def _summary(out: Path, result: "Tampered") -> str:
    parts = []
    if result.changed is not None and result.distance is not None:
        parts.append(f"{result.changed:.2%} of the weights changed, by {result.distance:.2g} of their norm")
    if result.agreement is not None:
        parts.append(f"{result.agreement:.2%} of the images are answered as before")
    if result.accuracy_before is not None and result.accuracy_after is not None:
        parts.append(f"accuracy on them {result.accuracy_before:.2%}, now {result.accuracy_after:.2%}")
    return f"{out}: {result.tampering}: {'; '.join(parts) or 'a new network'}"
