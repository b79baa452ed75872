"""The command line. It parses, calls the library, prints, and turns outcomes into exit codes; no logic of its own.

0 nothing found / verified, 1 found / not verified, 2 error, 3 nothing to examine, 4 usage.
"""

import os
import sys
import traceback
import warnings
from enum import IntEnum
from pathlib import Path
from typing import Any

import typer

from intaglio.cli.attack import attack
from intaglio.cli.bench import bench
from intaglio.cli.everywhere import complete
from intaglio.cli.evidence import evidence_app
from intaglio.cli.key import key_app
from intaglio.cli.lock import lock_app
from intaglio.cli.mark import mark_app
from intaglio.cli.population import population_app
from intaglio.cli.registry import registry_app
from intaglio.cli.report import report
from intaglio.cli.scan import scan
from intaglio.cli.seal import seal_app
from intaglio.cli.tamper import tamper
from intaglio.errors import IntaglioError, NothingToExamineError, one_line

#: typer's exceptions for a wrong command line and for everything it reports itself, wherever its version keeps them.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
_REPORTED: type[Exception] = typer.BadParameter.__mro__[2]
#: What typer answers with after Ctrl-C where it does not raise `Abort`.
_INTERRUPTED = 130
#: Commands that keep what they have finished, and go on from there.
_RESUMABLE = (("population", "build"), ("population", "fit"), ("bench",), ("lock", "train"), ("lock", "refine"))
_PACKAGE = str(Path(__file__).parents[1])


class ExitCode(IntEnum):
    """What the process answers."""

    CLEAN = 0
    FOUND = 1
    ERROR = 2
    NOTHING = 3
    USAGE = 4


app = typer.Typer(
    name="intaglio",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Backdoors in classifiers: find those that attackers planted, and use your own to prove ownership, detect "
    "tampering and control use.",
    epilog="Exit codes: 0 nothing found / verified / intact, 1 found / not verified / tampered, 2 error, "
    "3 nothing to examine, 4 usage.",
)
app.command()(scan)
for part in (mark_app, seal_app, lock_app):
    app.add_typer(part)
app.command()(attack)
app.command()(bench)
app.command()(tamper)
app.command()(report)
for part in (population_app, key_app, evidence_app, registry_app):
    app.add_typer(part)
complete(app)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"intaglio {installed('intaglio')}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code; prints one line for every error."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    try:
        with warnings.catch_warnings():
            if {"-q", "--quiet"} & set(given):
                warnings.showwarning = _no_warning  # type: ignore[assignment]
            elif not debug:
                warnings.showwarning = _one_line  # type: ignore[assignment]
            answer = app(arguments, standalone_mode=False)
        if answer == _INTERRUPTED:
            raise KeyboardInterrupt
        return int(answer or ExitCode.CLEAN)
    except _USAGE_ERROR as error:
        error.show()  # type: ignore[attr-defined]
        return ExitCode.USAGE
    except NothingToExamineError as error:
        return _fail(error, ExitCode.NOTHING, debug)
    except (IntaglioError, _REPORTED) as error:
        return _fail(error, ExitCode.ERROR, debug)
    except (KeyboardInterrupt, typer.Abort) as error:
        return _fail(error, ExitCode.ERROR, debug, _interrupted(given))
    except MemoryError as error:
        return _fail(error, ExitCode.ERROR, debug, "out of memory")
    except (SystemExit, BrokenPipeError):  # the reader of the output left; typer and rich would end with 1: "found"
        return ExitCode.ERROR
    except OSError as error:
        return _fail(error, ExitCode.ERROR, debug)
    except Exception as error:  # noqa: BLE001  (Python would end with 1: "found")
        return _fail(error, ExitCode.ERROR, debug, f"{type(error).__name__}: {error} (--debug shows where)")


def _interrupted(given: list[str]) -> str:
    """What is said after Ctrl-C: some commands keep what they have done so far."""
    words = [word for word in given if not word.startswith("-")]
    kept = any(tuple(words[: len(command)]) == command for command in _RESUMABLE)
    return f"interrupted{'; run the same command again to go on from what it had finished' if kept else ''}"


def run() -> None:
    """The installed `intaglio` command."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: nobody reads what is printed
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    code = main()
    try:
        sys.stdout.flush()
    except OSError:  # a reader that left, or a full disk; Python would try once more at its end, so the rest is dropped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.ERROR
    sys.exit(code)


def _one_line(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
    """A warning of this package. Those of others are about what it does, not the user: --debug shows them."""
    if filename.startswith(_PACKAGE):
        typer.echo(f"intaglio: warning: {one_line(str(message))}", err=True)


def _no_warning(*_: Any) -> None:
    """With --quiet nothing but errors is printed."""


def _fail(error: BaseException, code: ExitCode, debug: bool, message: str | None = None) -> int:
    if debug:
        traceback.print_exception(error)
    else:
        typer.echo(f"intaglio: {one_line(message or str(error) or type(error).__name__)}", err=True)
    return code
