"""`intaglio mark`: embed an ownership mark, and ask a suspect whether it carries it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from intaglio.cli.everywhere import require_apart
from intaglio.cli.model import Arch, Classes, InputShape, Mapping, Preprocess, open_model
from intaglio.cli.options import Debug, Device, JsonFile, Quiet, RegistryPlace, Seed, TestData, option_pairs
from intaglio.cli.passphrase import PassphraseFile, read_key

if TYPE_CHECKING:
    from torch import Tensor

    from intaglio.classifiers import Classifier
    from intaglio.evidence.commitment import Commitment
    from intaglio.evidence.key import Key
    from intaglio.evidence.suspect import Suspect

mark_app = typer.Typer(name="mark", no_args_is_help=True, help="Mark a model as yours, and prove it.")

KeyFile = Annotated[Path, typer.Option("--key", metavar="KEY", help="Your key file, from `intaglio key new`.")]
Public = Annotated[
    Path | None,
    typer.Option(help="Public images (.npz or folder) that triggers are blended from; default: two photographs."),
]


@mark_app.command()
def embed(
    model: Annotated[str, typer.Argument(help="A .safetensors or .pt file, or module:factory.", metavar="MODEL")],
    data: Annotated[str, typer.Option(help="Training images or videos: a folder, .npz, IDX folder or task name.")],
    key: KeyFile,
    out: Annotated[Path, typer.Option(help="Folder for the marked model, its commitment and fidelity report.")],
    test: TestData = None,
    scheme: Annotated[
        str, typer.Option(help="deep-fidelity, or hardened: rehearsal, adversarial-parametric, margin.")
    ] = "deep-fidelity",
    mode: Annotated[
        str, typer.Option(help="What is trained and kept: fixll-pfl, ftal, ... (docs/mark.md).")
    ] = "fixll-pfl",
    trigger: Annotated[
        Literal["noise-blocks", "noise-chain", "public-blend"],
        typer.Option(help="What triggers are; noise-chain is the paper's."),
    ] = "noise-blocks",
    public: Public = None,
    batches: Annotated[int, typer.Option(help="Disclosure batches: how many disputes the mark can serve.", min=1)] = 2,
    batch_size: Annotated[int, typer.Option(help="Triggers in a batch.", min=1)] = 100,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; by default the scheme's own.", min=1)
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the scheme, such as temperature=1; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            help="A suspect is claimed at this p-value or below; others decide by 2^-64 at most, unless they choose."
        ),
    ] = 2.0**-64,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write the marked model as ONNX too.")] = False,
    stamp: Annotated[
        str | None, typer.Option("--stamp", metavar="URL", help="RFC 3161 authority that time-stamps the commitment.")
    ] = None,
    registry: RegistryPlace = None,
    passphrase_file: PassphraseFile = None,
    arch: Arch = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    json: JsonFile = None,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Embed a mark in a copy of MODEL; write the copy, the signed commitment and the fidelity report to --out."""
    from intaglio.classifiers.derived import with_weights
    from intaglio.cli.console import deliver_json, progress_bar, require_deliverable, say
    from intaglio.cli.splits import train_and_test
    from intaglio.data.opening import open_data_for
    from intaglio.errors import EvidenceError, RecipeError
    from intaglio.evidence.commitment import DecisionRule
    from intaglio.evidence.registry import Registry
    from intaglio.files import require_writable
    from intaglio.mark.mark_file import COMMITMENT, MODEL, mark_file
    from intaglio.mark.scheme_options import read_scheme_options
    from intaglio.report.fidelity import write_fidelity

    if not 0 < threshold < 1:
        raise typer.BadParameter("lies between 0 and 1", param_hint="--threshold")
    require_apart(json, out / MODEL, out / COMMITMENT)
    require_deliverable(json)
    require_writable(out / MODEL)
    given = {"mode": mode, "learning_rate": learning_rate, **({} if epochs is None else {"epochs": epochs})}
    pairs = option_pairs(option)
    try:
        options = read_scheme_options(scheme, pairs, given)
    except RecipeError as error:
        raise typer.BadParameter(str(error), param_hint="--scheme and its options") from error
    classifier = with_weights(open_model(model, arch, input_shape, classes, preprocess, device))  # before any data
    owner = read_key(key, passphrase_file)
    if registry is not None:
        Registry.open(registry).close()  # one that is locked, or of a newer version, is refused before the work
    shape = classifier.input_shape
    trained, measured = train_and_test(partial(open_data_for, shape), data, test)
    with progress_bar(f"marking {classifier.source}", quiet=quiet) as progress:
        commitment, fidelity, unverified, undone = mark_file(
            classifier,
            trained,
            owner,
            out,
            test=measured,
            architecture=arch,
            public=_public(public, shape),
            scheme=scheme,
            trigger=trigger,
            batches=batches,
            batch_size=batch_size,
            rule=DecisionRule(threshold=threshold),
            onnx=onnx,
            stamp_url=stamp,
            seed=seed,
            progress=progress,
            **options,
        )
    write_fidelity(fidelity, out / "fidelity.html")
    if registry is not None:
        with Registry.open(registry) as book:
            plan = commitment.commitment
            book.add_owner(owner.public_key)
            book.add_model(
                plan.model_sha256, name=str(out / MODEL), input_shape=plan.input_shape, classes=plan.num_classes
            )
            book.add_commitment(
                commitment.to_json(), plan.mark_id, plan.owner_public_key, plan.model_sha256, stamp=commitment.stamp
            )
    deliver_json(fidelity.to_json(), json)
    say(
        f"{out / MODEL}: marked; {fidelity.trigger_accuracy:.1%} of {fidelity.triggers} triggers answered as committed",
        f"accuracy {fidelity.host_accuracy:.2%}, now {fidelity.clean_accuracy:.2%}; "
        f"{fidelity.agreement_clean:.1%} of the images answered as before",
        f"{out / COMMITMENT}: publish it or time-stamp it (evidence stamp) before any dispute",
        f"{out / 'fidelity.html'} shows what changed",
        *_not_learned(unverified, commitment.commitment.batches),
        *_believed_by_nobody(commitment.commitment),
        quiet=quiet,
        json_to_stdout=json == "-",
    )
    if undone:  # what there is was written, told and registered
        raise EvidenceError(f"{out}: marked, but {'; '.join(undone)}")
    return 0


@mark_app.command()
def verify(
    suspect: Annotated[str, typer.Argument(help="A model file, or the URL of a model server.", metavar="SUSPECT")],
    commitment: Annotated[Path, typer.Option(help="commitment.json, from `intaglio mark embed`.")],
    key: KeyFile,
    batch: Annotated[int | None, typer.Option(help="Which batch to ask; default: the first that is not spent.")] = None,
    public: Public = None,
    suspects: Annotated[
        int | None, typer.Option(help="Suspects tried in all, for the correction.", min=1, max=1 << 40)
    ] = None,
    keys: Annotated[int | None, typer.Option(help="Keys tried on this suspect in all.", min=1, max=1 << 40)] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="If verified, write the public proof, which lays the batch open; others verify it."),
    ] = None,
    registry: RegistryPlace = None,
    mapping: Mapping = None,
    passphrase_file: PassphraseFile = None,
    arch: Arch = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    preprocess: Preprocess = None,
    json: JsonFile = None,
    device: Device = "cpu",
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Ask SUSPECT for the labels of secret triggers. Exit code 0: it is a copy (verified), 1: not shown.

    --classes: of SUSPECT, where a thief added some; the first ones are taken for those of the mark."""
    from intaglio.classifiers import HttpClassifier
    from intaglio.cli.console import deliver_json, require_deliverable, say
    from intaglio.errors import EvidenceError
    from intaglio.evidence.commitment import THRESHOLD, read_commitment
    from intaglio.evidence.disclosure import committed_batches
    from intaglio.evidence.registry import Registry
    from intaglio.files import require_new
    from intaglio.mark.marking import public_images
    from intaglio.mark.proof import prove
    from intaglio.mark.verification import verify_mark

    require_deliverable(bundle, json)
    if bundle is not None:  # a claim can't be made again: its batch is spent
        require_new(bundle, "a claim")
    signed = read_commitment(commitment)
    owner = read_key(key, passphrase_file)
    plan = signed.commitment
    shape, count = input_shape or plan.input_shape, classes or plan.num_classes
    classifier = open_model(suspect, arch, shape, count, preprocess, device, mapping=mapping)
    images, known = _public(public, plan.input_shape), classifier.sha256 or classifier.source
    with Registry.open(registry) as book:
        spent = {entry.batch for entry in book.spent_batches(plan.mark_id)}
        if batch is None:
            batch = book.next_batch(plan.mark_id, plan.batches)
        elif batch in spent:
            raise EvidenceError(f"batch {batch} is spent: its triggers were laid open, so they prove nothing any more")
        if bundle is not None or isinstance(classifier, HttpClassifier):  # known before a batch is shown to anybody
            committed_batches(owner, plan, public_images(plan.trigger, plan.input_shape, images))
        claim = verify_mark(
            classifier,
            signed,
            owner,
            batch=batch,
            public=images,
            suspects=suspects or book.suspects_tried(plan.mark_id, including=known),
            keys=keys or book.keys_tried(known, including=plan.mark_id),
        )
        try:
            book.record_verification(plan.mark_id, classifier.source, claim)  # whoever was asked counts, come what may
            if bundle is not None and claim.verified:
                spend = partial(book.spend_batch, plan.mark_id, batch, classifier.source)
                prove(bundle, claim, signed, owner, _suspect(classifier, owner), public=images, spend=spend)
        finally:  # what was found is told, whatever else fails: a suspect is asked once
            deliver_json(claim.to_json(), json)
            say(f"{suspect}: {claim.statement}", quiet=quiet, json_to_stdout=json == "-")
    told = []
    if bundle is not None and not claim.verified:
        told.append(f"{bundle}: not written; batch {batch} is kept, as only a verified claim is worth laying it open")
    if bundle is not None and claim.verified and claim.p_value > THRESHOLD / claim.readings:
        told.append(f"{bundle}: verified by your own rule; others decide by 2^-64, which it misses, unless they choose")
    say(*told, quiet=quiet, json_to_stdout=json == "-")
    return 0 if claim.verified else 1


def _not_learned(unverified: Sequence[int], batches: int) -> list[str]:
    """A line about batches by which not even the marked model itself is claimed."""
    if not unverified:
        return []
    by = "no batch" if len(unverified) == batches else f"{batches - len(unverified)} of {batches} batches only"
    return [f"NOT LEARNED: `mark verify` would claim this model by {by}: take more --epochs, or a larger --batch-size"]


def _believed_by_nobody(plan: "Commitment") -> list[str]:
    """A line about batches so small that not even the marked model itself could convince others of this mark."""
    from intaglio.evidence.binomial import needed_hits, needed_trials
    from intaglio.evidence.commitment import THRESHOLD

    size, classes, threshold = plan.batch_size, plan.num_classes, min(plan.rule.threshold, THRESHOLD)
    if needed_hits(size, classes, threshold / plan.rule.readings) is not None:
        return []
    wanted = needed_trials(classes, threshold / plan.rule.readings)
    return [f"batches of {size} are too small for others, who decide by 2^-64: that takes {wanted} (--batch-size)"]


def _public(source: Path | None, shape: tuple[int, ...]) -> "Tensor | None":
    """The public images (or clips) of a file or folder, rounded to 8 bits."""
    from intaglio.data.opening import open_data_for
    from intaglio.triggers.keyed import eight_bit

    return None if source is None else eight_bit(open_data_for(shape, source, "train").images)


def _suspect(classifier: "Classifier", key: "Key") -> "Suspect":
    """Who was asked; of a remote suspect with the signed transcript."""
    from intaglio.classifiers import HttpClassifier
    from intaglio.evidence.suspect import Suspect
    from intaglio.evidence.transcript import sign_transcript

    if not isinstance(classifier, HttpClassifier):
        return Suspect.of(classifier)
    return Suspect.of(classifier, sign_transcript(classifier.transcript.exchanges, key))
