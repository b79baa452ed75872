"""Options that several commands share, written once."""

from pathlib import Path
from typing import Annotated

import typer

JsonFile = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for standard output.")
]
HtmlFile = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a self-contained HTML report.")]
MethodOption = Annotated[
    list[str] | None, typer.Option("--option", help="An option of NAME; may be repeated.", metavar="KEY=VALUE")
]
TestData = Annotated[
    str | None, typer.Option("--test", metavar="DATA", help="Images to measure on; else the test split of --data.")
]
RegistryPlace = Annotated[
    str | None, typer.Option("--registry", metavar="URL", help="Registry to record this in: a file, or a database URL.")
]
Seed = Annotated[int, typer.Option(help="Every random choice follows from it.")]
RecipeSeed = Annotated[int | None, typer.Option("--seed", help="Instead of the recipe's own.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1 ...; ONNX models run on the CPU.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def option_pairs(texts: list[str] | None) -> dict[str, str]:
    """What `--option KEY=VALUE` said, by key.

    Raises:
        BadParameter: a text without an equals sign.
    """
    pairs = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"'{text}' is not of the form KEY=VALUE", param_hint="--option")
        pairs[key.strip().replace("-", "_")] = value.strip()
    return pairs
