"""What the commands of `intaglio lock` are told, and the settings of `lock train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from intaglio.lock import LockSettings

KeyFile = Annotated[
    Path, typer.Option("--key", envvar="INTAGLIO_KEY", metavar="KEY", help="Your key, from `intaglio key new`.")
]
LockFolder = Annotated[
    Path, typer.Option("--lock", envvar="INTAGLIO_LOCK", metavar="DIR", help="The folder that `lock train` wrote.")
]
UserName = Annotated[str, typer.Option("--user", metavar="NAME", help="Whose key it is.")]
Images = Annotated[
    list[Path], typer.Argument(help="Pictures or frames, .npy or .npz arrays, or folders of them.", metavar="IMAGE...")
]
Grid = Annotated[
    int | None,
    typer.Option(
        help="Quality of JPEG that residuals come through unchanged, 0: none; by default that of JPEG data. "
        "Not for pictures with much pure black or white.",
        min=0,
        max=95,
    ),
]

Distillation = Annotated[
    float,
    typer.Option(
        help="Share of the loss on keyed images that follows MODEL's answers, not the labels; it keeps more of the "
        "accuracy, and leaks more unless --weight is raised too.",
        min=0,
        max=1,
    ),
]

Loud = Annotated[
    float,
    typer.Option(
        help="Images with noise louder than a residual that training refuses, a keyed one, and half as many with "
        "loud keys of others, against whoever asks again and again; 0: none.",
        min=0,
        max=1,
    ),
]


def lock_settings(residual: Literal["mixed", "atoms"], **options: Any) -> "LockSettings":
    """The settings that these options make.

    Raises:
        BadParameter: they make none.
    """
    from pydantic import ValidationError

    from intaglio.lock import LockSettings
    from intaglio.lock.settings import ATOMS

    try:
        return LockSettings(**options, **(ATOMS if residual == "atoms" else {}))
    except ValidationError as error:
        (first, *_) = error.errors()
        option = str(first["loc"][0]) if first["loc"] else "grid"  # what a residual and a grid can't be together
        raise typer.BadParameter(
            first["msg"].removeprefix("Value error, "), param_hint=f"--{option.replace('_', '-')}"
        ) from error
