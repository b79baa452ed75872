"""What `intaglio lock train` is told, as settings."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from intaglio.lock import LockSettings

Grid = Annotated[
    int | None,
    typer.Option(
        help="Quality of JPEG that residuals come through unchanged, 0: none; by default that of JPEG data. "
        "Not for pictures with much pure black or white.",
        min=0,
        max=95,
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
        option = str(first["loc"][0]) if first["loc"] else "residual"
        raise typer.BadParameter(first["msg"], param_hint=f"--{option.replace('_', '-')}") from error
