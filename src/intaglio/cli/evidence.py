"""`intaglio evidence`: look at and verify commitments and claims of ownership."""

from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.model import Arch, Classes, Mapping, Preprocess, open_model
from intaglio.cli.options import Debug, Device, JsonFile, Quiet, RegistryPlace

evidence_app = typer.Typer(
    name="evidence", no_args_is_help=True, help="Show, time-stamp and verify commitments and claims."
)

EvidenceFile = Annotated[Path, typer.Argument(help="A commitment or a claim of ownership.", metavar="FILE")]


@evidence_app.command()
def show(
    file: EvidenceFile,
    extract: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the commitment's DSSE envelope (envelope.json) and its time stamp (stamp.tsr) for other tools.",
        ),
    ] = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Show what FILE states, after checking that its signatures fit. Triggers and pictures are left out."""
    from intaglio.cli.console import deliver_json, require_deliverable, say
    from intaglio.evidence.commitment import EXTRACTED
    from intaglio.evidence.documents import read_evidence
    from intaglio.files import require_other

    require_deliverable(json)
    if extract is not None:
        for name in EXTRACTED:
            require_other(extract / name, file)
    evidence, commitment = read_evidence(file)
    if extract is not None:
        commitment.extract(extract)
    deliver_json(evidence.to_json(), json)
    say(*evidence.lines(), quiet=quiet, json_to_stdout=json == "-")
    return 0


@evidence_app.command()
def stamp(
    file: Annotated[Path, typer.Argument(help="A commitment.", metavar="COMMITMENT")],
    authority: Annotated[str, typer.Option(metavar="URL", help="An RFC 3161 time-stamp authority.")],
    registry: RegistryPlace = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Have COMMITMENT time-stamped, and write the stamp into it. Only its digest is sent.

    A stamp that it has already is kept, and recorded where --registry says."""
    from intaglio.cli.console import deliver_json, require_deliverable, say
    from intaglio.errors import EvidenceError
    from intaglio.evidence.commitment import read_commitment
    from intaglio.evidence.registry import Registry
    from intaglio.evidence.timestamp import without_login
    from intaglio.files import require_writable

    require_deliverable(json)
    require_writable(file)
    signed = read_commitment(file)
    signed.verify()
    mark_id, told = signed.commitment.mark_id, f"{file}: has a time stamp already, and the earliest counts"
    if signed.stamp is not None and registry is None:
        raise EvidenceError(told)
    with nullcontext() if registry is None else Registry.open(registry) as book:
        if book is not None and not book.commitments(mark_id=mark_id):  # known before a stamp is asked for
            raise EvidenceError(f"mark {mark_id} has no commitment in the registry")
        if signed.stamp is None:
            signed = signed.stamped(authority)
            signed.write(file)
            told = f"{file}: time-stamped by {without_login(authority)}"
        if book is not None and signed.stamp is not None:
            book.add_stamp(mark_id, signed.stamp)
    deliver_json(signed.to_json(), json)
    say(told, quiet=quiet, json_to_stdout=json == "-")
    return 0


@evidence_app.command()
def verify(
    file: EvidenceFile,
    suspect: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model in question, to be asked again.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The model that was committed to: does it bear the mark itself?")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="The p-value that convinces you, by default 2^-64; the claimant's rule counts if stricter."),
    ] = None,
    roots: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Certificates of the time-stamp authorities that you trust.")
    ] = None,
    before: Annotated[
        datetime | None,
        typer.Option(help="When the suspect appeared (UTC): the commitment must have been stamped before that."),
    ] = None,
    mapping: Mapping = None,
    arch: Arch = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    json: JsonFile = None,
    device: Device = "cpu",
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Verify FILE with no secret. Exit code 0: verified, 1: whole, but not proved, 2: damaged or changed.

    Without --suspect a claim rests on its maker's word for what the suspect answered."""
    from intaglio.cli.console import deliver_json, require_deliverable, say
    from intaglio.evidence.documents import read_evidence, verify_evidence
    from intaglio.evidence.timestamp import read_roots

    if suspect is None and any(value is not None for value in (mapping, arch, classes, preprocess)):
        raise typer.BadParameter(
            "say which model is to be asked: --suspect MODEL", param_hint="--mapping, --arch, --classes, --preprocess"
        )
    if threshold is not None and not 0 < threshold < 1:
        raise typer.BadParameter("lies between 0 and 1", param_hint="--threshold")
    require_deliverable(json)
    trusted = None if roots is None else read_roots(roots)
    asked = committed = None
    if suspect is not None or model is not None:  # takes what the commitment says the marked model takes
        plan = read_evidence(file)[1].commitment
        shape, count = plan.input_shape, classes or plan.num_classes
        if suspect is not None:
            asked = open_model(suspect, arch, shape, count, preprocess, device, mapping=mapping)
        if model is not None:
            committed = open_model(str(model), None, shape, plan.num_classes, None, device)
    proof = verify_evidence(file, suspect=asked, model=committed, threshold=threshold, roots=trusted, before=before)
    deliver_json(proof.to_json(), json)
    say(
        proof.statement,
        *(f"  checked: {line}" for line in proof.checked),
        *(f"  NOT verified: {line}" for line in proof.unverified),
        quiet=quiet,
        json_to_stdout=json == "-",
    )
    return 0 if proof.verified else 1
