"""`intaglio seal`: seal a model as it is, and ask later whether the one that answers is still exactly that model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intaglio.cli.model import Arch, Classes, InputShape, Mapping, OutputKind, Outputs, Preprocess, open_model
from intaglio.cli.options import Debug, Device, JsonFile, Quiet, RegistryPlace, Seed
from intaglio.cli.passphrase import PassphraseFile, read_key

if TYPE_CHECKING:
    from torch import Tensor

    from intaglio.classifiers import Classifier
    from intaglio.seal import Seal

seal_app = typer.Typer(name="seal", no_args_is_help=True, help="Seal a model; notice when it is tampered with.")

KeyFile = Annotated[Path, typer.Option("--key", metavar="KEY", help="Your key file, from `intaglio key new`.")]
SealFile = Annotated[Path, typer.Option("--seal", metavar="FILE", help="The seal, from `intaglio seal make`.")]
Suspect = Annotated[str, typer.Argument(help="A model file, or the URL of a model server.", metavar="SUSPECT")]


@seal_app.command()
def make(
    model: Annotated[
        str, typer.Argument(help="A .safetensors, .onnx, .pt2 or .pt file, or module:factory.", metavar="MODEL")
    ],
    key: KeyFile,
    out: Annotated[Path, typer.Option(help="The seal to write.", metavar="FILE")],
    method: Annotated[str, typer.Option(help="boundary, variance, ftg, sensitive or random.")] = "boundary",
    data: Annotated[
        str | None,
        typer.Option(help="Images or videos that triggers start from (folder, .npz, task name); default: noise."),
    ] = None,
    allow: Annotated[
        str, typer.Option(help="Variants that you ship and that are no tampering: fp16,bf16,int16,int8,tf32.")
    ] = "",
    pairs: Annotated[int, typer.Option(help="Pairs of triggers.", min=1)] = 64,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Stay silent under torch.compile too (measured; takes a minute).")
    ] = False,
    passphrase_file: PassphraseFile = None,
    arch: Arch = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    outputs: Outputs = "auto",
    json: JsonFile = None,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Seal MODEL without changing it."""
    from intaglio.cli.console import deliver_json, progress_bar, require_deliverable, say
    from intaglio.files import require_new
    from intaglio.seal import make_seal

    require_deliverable(out, json)
    require_new(out, "a seal")
    classifier = open_model(model, arch, input_shape, classes, preprocess, device, outputs=outputs)
    owner = read_key(key, passphrase_file)
    allowed = [name.strip() for name in allow.split(",") if name.strip()]
    with progress_bar(f"sealing {classifier.source}", quiet=quiet) as progress:
        seal = make_seal(
            classifier,
            owner,
            method=method,
            data=_images(data, classifier),
            pairs=pairs,
            allow=allowed,
            compiled=compiled,
            seed=seed,
            progress=progress,
        )
    seal.write(out)
    record, noise = seal.record, seal.record.noise
    deliver_json(record.to_json(), json)
    say(
        f"{out}: {record.pairs} pairs of triggers in {record.seconds:.1f} s; margins from "
        f"{noise.smallest_margin:.2g}, noise floor {noise.eta:.2g} over {len(noise.executions)} ways of computing",
        quiet=quiet,
        json_to_stdout=json == "-",
    )
    return 0


@seal_app.command()
def check(
    suspect: Suspect,
    seal: SealFile,
    key: KeyFile,
    max_queries: Annotated[
        int | None, typer.Option(help="Questions at most; default: as many as the seal has triggers.", min=2)
    ] = None,
    registry: RegistryPlace = None,
    mapping: Mapping = None,
    passphrase_file: PassphraseFile = None,
    arch: Arch = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    outputs: Outputs = "auto",
    json: JsonFile = None,
    seed: Annotated[
        int | None, typer.Option(help="Fixes which questions are asked; default: fresh ones every time.")
    ] = None,
    device: Device = "cpu",
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Ask SUSPECT whether it is still exactly the sealed model. Exit code 0: intact, 1: tampered."""
    from intaglio.cli.console import deliver_json, require_deliverable, say
    from intaglio.evidence.registry import Registry
    from intaglio.seal import Seal, check_seal

    require_deliverable(json)
    sealed = Seal.read(seal)
    owner = read_key(key, passphrase_file)
    sealed.verify(owner.public_key)
    classifier = _open(suspect, sealed, arch, input_shape, classes, preprocess, outputs, mapping, device)
    result = check_seal(classifier, sealed, owner, max_queries=max_queries, seed=seed)
    deliver_json(result.to_json(), json)
    say(f"{suspect}: {result.statement}", quiet=quiet, json_to_stdout=json == "-")
    if registry is not None:  # last: a locked registry must not swallow the verdict
        with Registry.open(registry) as book:
            book.record_seal_check(result.seal_id, result.suspect, result)
    return int(not result.intact)


@seal_app.command()
def watch(
    suspect: Suspect,
    seal: SealFile,
    key: KeyFile,
    every: Annotated[float, typer.Option(help="Seconds between two checks.", metavar="SECONDS")],
    times: Annotated[int | None, typer.Option(help="Checks in all; default: until stopped.", min=1)] = None,
    queries: Annotated[int, typer.Option(help="Questions a check.", min=2)] = 8,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Where a break is posted to, as JSON.")] = None,
    registry: RegistryPlace = None,
    mapping: Mapping = None,
    passphrase_file: PassphraseFile = None,
    arch: Arch = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    outputs: Outputs = "auto",
    json: JsonFile = None,
    device: Device = "cpu",
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Check SUSPECT again and again. Ends with exit code 1 at the first break, else 0 after --times or Ctrl-C,
    or 3 if that is no verdict: no check in the last round or in most, or answers that can't be judged."""
    from intaglio.cli.console import deliver_json, require_deliverable, say
    from intaglio.evidence.registry import Registry
    from intaglio.seal import Seal, WatchEvent, watch_seal
    from intaglio.seal.watching import require_checked

    require_deliverable(json)
    sealed = Seal.read(seal)
    owner = read_key(key, passphrase_file)

    def tell(event: WatchEvent) -> None:
        found = [] if event.check is None else [event.check.statement]
        unanswered = "no answer: " if event.outcome == "unreachable" else ""
        problem = [] if event.problem is None else [unanswered + event.problem]
        say(*(f"{event.at} {text}" for text in found + problem), quiet=quiet, json_to_stdout=json == "-")

    with Registry.open(registry) as book:
        result = watch_seal(
            lambda: _open(suspect, sealed, arch, input_shape, classes, preprocess, outputs, mapping, device),
            sealed,
            owner,
            every=every,
            times=times,
            queries=queries,
            webhook=webhook,
            registry=book,
            report=tell,
        )
    deliver_json(result.to_json(), json)
    require_checked(result)
    say(f"{suspect}: {result.statement}", quiet=quiet, json_to_stdout=json == "-")
    return int(result.intact is False)


def _open(
    suspect: str,
    seal: "Seal",
    arch: str | None,
    input_shape: str | None,
    classes: int | None,
    preprocess: str | None,
    outputs: OutputKind,
    mapping: Path | None,
    device: str,
) -> "Classifier":
    """The suspect; one that is no file is taken to have the sealed model's shape, if nothing else is said."""
    shape: str | tuple[int, ...] | None = input_shape
    if not Path(suspect).exists():
        shape, classes = shape or seal.record.input_shape, classes or seal.record.num_classes
    return open_model(suspect, arch, shape, classes, preprocess, device, outputs=outputs, mapping=mapping)


def _images(source: str | None, classifier: "Classifier") -> "Tensor | None":
    from intaglio.data.opening import open_data_for

    return None if source is None else open_data_for(classifier.input_shape, source, "test").images
