"""`intaglio lock`: right answers for authorised users only."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from intaglio.cli.everywhere import require_picture
from intaglio.cli.lock_options import Distillation, Grid, Images, KeyFile, LockFolder, Loud, UserName, lock_settings
from intaglio.cli.model import Arch, Classes, InputShape, Preprocess, open_model
from intaglio.cli.options import Debug, Device, JsonFile, Quiet, Seed, TestData
from intaglio.cli.passphrase import PassphraseFile, read_key

if TYPE_CHECKING:
    from intaglio.classifiers import Classifier
    from intaglio.evidence.key import Key
    from intaglio.lock import LeakTable, Lock

lock_app = typer.Typer(name="lock", no_args_is_help=True, help="Lock a model: right answers for key holders only.")


@lock_app.command()
def train(
    model: Annotated[str, typer.Argument(help="A .safetensors or .pt file, or module:factory.", metavar="MODEL")],
    data: Annotated[str, typer.Option(help="Training images or videos: a folder, .npz, IDX folder or task name.")],
    key: KeyFile,
    out: Annotated[Path, typer.Option(help="Folder for the locked model, the key network and the list of users.")],
    test: TestData = None,
    mislabel: Annotated[
        Literal["uniform", "random", "shift"],
        typer.Option(help="What is answered without a key; shift leaks, and is there for comparison."),
    ] = "uniform",
    residual: Annotated[
        Literal["mixed", "atoms"],
        typer.Option(
            help="What keys an image: atoms shut more strangers' keys out, but let in more of other images' residuals."
        ),
    ] = "mixed",
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 2000,
    refining_steps: Annotated[
        int, typer.Option(help="More steps for the model alone, of the same size; a third as dear.", min=0)
    ] = 4500,
    batch_size: Annotated[int, typer.Option(help="Images a step; fewer where there are few.", min=8)] = 64,
    augmentation: Annotated[
        Literal["none", "flip", "shift", "flip-shift", "noise"],
        typer.Option(help="What training images meet: as MODEL's did, and more where images are few."),
    ] = "none",
    psnr: Annotated[float, typer.Option(help="No keyed image is further from its original than this, in dB.")] = 35.2,
    weight: Annotated[
        float,
        typer.Option(help="What refusing everybody else weighs; less keeps more of the accuracy, and leaks more."),
    ] = 1.0,
    code_length: Annotated[
        int, typer.Option(help="Bits of a user's code; fewer are read better in textured pictures.", min=8, max=1024)
    ] = 96,
    code_weight: Annotated[
        float, typer.Option(help="What reading the code weighs; more where users are not named.")
    ] = 1.5,
    grid: Grid = None,
    distillation: Distillation = 0,
    loud: Loud = 0.3,
    jpeg: Annotated[
        float,
        typer.Option(help="Share of images that meet JPEG in training, up to 0.8; JPEG data leak more for more of it."),
    ] = 0.4,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="A lock whose keys shall open nothing any more; repeat for each that MODEL ever had."
        ),
    ] = None,
    generation: Annotated[
        int | None,
        typer.Option(help="A higher one has new secrets; by default the next after --earlier, or 0.", min=0),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write the locked model as ONNX too.")] = False,
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Write the locked model encrypted under KEY.")] = False,
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
    """Lock a copy of MODEL. Exit code 0: without a key one answer tells nothing (see `lock check`), 1: it leaks."""
    from intaglio.classifiers.derived import with_weights
    from intaglio.cli.console import progress_bar, require_deliverable
    from intaglio.cli.splits import train_and_test
    from intaglio.data.opening import open_data_for
    from intaglio.lock import Lock
    from intaglio.lock.lock_file import lock_file

    require_deliverable(json)
    settings = lock_settings(
        residual,
        mislabel=mislabel,
        steps=steps,
        refining_steps=refining_steps,
        batch_size=batch_size,
        augmentation=augmentation,
        psnr=psnr,
        weight=weight,
        code_length=code_length,
        code_weight=code_weight,
        grid=grid,
        distillation=distillation,
        loud=loud,
        jpeg=jpeg,
    )
    classifier = with_weights(open_model(model, arch, input_shape, classes, preprocess, device))  # before any data
    owner = read_key(key, passphrase_file)
    before = [Lock.open(folder, owner) for folder in earlier or ()]
    trained, measured = train_and_test(partial(open_data_for, classifier.input_shape), data, test)
    with progress_bar(f"locking {classifier.source}", quiet=quiet) as progress:
        written = lock_file(
            classifier,
            trained,
            owner,
            out,
            test=measured,
            architecture=arch,
            onnx=onnx,
            encrypt=encrypt,
            settings=settings,
            generation=generation,
            earlier=before,
            seed=seed,
            device=device,
            progress=progress,
        )
    return _show(written.leaks, json, quiet, f"{written.model}: locked")


@lock_app.command()
def issue(
    user: UserName,
    lock: LockFolder,
    key: KeyFile,
    out: Annotated[
        Path | None, typer.Option(help="Write the user's own key network, as .onnx: who holds the file holds the key.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Issue a key to a new user; with --out also to one who has a key already."""
    from intaglio.cli.console import deliver_json, require_deliverable, say
    from intaglio.lock.key_export import export_key, require_exportable

    opened = _open(lock, key, passphrase_file)
    require_deliverable(json)
    if out is not None:
        require_exportable(out)
    if out is None or user not in opened.users:
        opened.users.issue(user)
    if out is not None:
        export_key(opened.user_key(user), out, input_shape=opened.frame_shape)
    deliver_json(opened.users.to_json(), json)
    where = f"; {out} is the key network: it keys images without the owner's key" if out is not None else ""
    say(f"{user}: key issued{where}", quiet=quiet, json_to_stdout=json == "-")
    return 0


@lock_app.command()
def revoke(
    user: UserName,
    lock: LockFolder,
    key: KeyFile,
    passphrase_file: PassphraseFile = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Serve this user no longer. A key network that was handed out goes on working until the model is locked anew."""
    from intaglio.cli.console import deliver_json, require_deliverable, say

    opened = _open(lock, key, passphrase_file)
    require_deliverable(json)
    opened.revoke(user)
    deliver_json(opened.users.to_json(), json)
    say(
        f"{user}: revoked: `lock apply` keys nothing for this user any more, `lock trace` still names the user",
        "a key network that the user holds works until the model is locked anew: "
        f"intaglio lock train MODEL --earlier {lock} --out ANOTHER ... (--earlier for each lock that MODEL ever had)",
        quiet=quiet,
        json_to_stdout=json == "-",
    )
    return 0


@lock_app.command()
def apply(
    images: Images,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the keyed images: pictures as PNG, arrays as they came. Copies that are in it are written "
            "anew; below an IMAGE folder, they aren't keyed again."
        ),
    ],
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="Whose key to apply.")] = None,
    lock: Annotated[
        Path | None, typer.Option("--lock", envvar="INTAGLIO_LOCK", metavar="DIR", help="The lock, for its owner.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", envvar="INTAGLIO_KEY", metavar="KEY", help="The owner's key.")
    ] = None,
    key_network: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A user's key network from `lock issue`, in place of the rest.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Key images, so that the locked model answers them."""
    from json import dumps

    from intaglio.cli.console import deliver_json, progress_bar, require_deliverable, say
    from intaglio.lock.key_export import ExportedKey
    from intaglio.lock.keyed_arrays import Keying
    from intaglio.lock.keyed_files import key_files

    require_deliverable(json)
    if key_network is not None:
        if user is not None:
            raise typer.BadParameter("a --key-network is one user's already", param_hint="--user")
        exported = ExportedKey(key_network)
        keying: Keying = exported
        frame = exported.input_shape
    else:
        if user is None or lock is None or key is None:
            raise typer.BadParameter("needed: --user, --lock and --key, or --key-network alone", param_hint="--user")
        opened = _open(lock, key, passphrase_file)
        opened.users.active(user)
        keying, frame = partial(opened.apply, user=user), opened.frame_shape
    with progress_bar("keying", quiet=quiet) as progress:
        written = key_files(images, out, frame, keying, progress=progress)
    deliver_json(dumps({"written": [str(path) for path in written]}, indent=1) + "\n", json)
    say(f"{out}: {len(written)} files keyed", quiet=quiet, json_to_stdout=json == "-")
    return 0


@lock_app.command()
def trace(
    images: Images,
    lock: LockFolder,
    key: KeyFile,
    alpha: Annotated[
        float, typer.Option(help="Accepted chance of naming someone whose residual isn't in it, for each image.")
    ] = 0.01,
    passphrase_file: PassphraseFile = None,
    json: JsonFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Tell whose key made the images. Exit code 0: one user is named, 1: nobody is, or the images disagree.

    A name says that an image carries a residual made for that user, not that the user put it there.
    """
    from intaglio.cli.console import deliver_json, progress_bar, require_deliverable, say
    from intaglio.lock.traced_files import trace_files

    opened = _open(lock, key, passphrase_file)
    require_deliverable(json)
    with progress_bar("tracing", quiet=quiet) as progress:
        found, places = trace_files(images, opened, alpha=alpha, progress=progress)
    deliver_json(found.to_json(), json)
    matches = zip(places, found.images, strict=True)
    one_by_one = (f"{path}: {match.user or 'nobody'} (p = {match.p_value:.1e})" for path, match in matches)
    say(*one_by_one, *found.lines(), quiet=quiet, json_to_stdout=json == "-")
    return int(found.user is None)


@lock_app.command()
def check(
    model: Annotated[str, typer.Argument(help="The locked model: any model file, or a .sealed one.", metavar="MODEL")],
    data: Annotated[str, typer.Option(help="Test images or videos: a folder, .npz, IDX folder or task name.")],
    lock: LockFolder,
    key: KeyFile,
    other: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Another lock of yours: what do its keys open? May be repeated."),
    ] = None,
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
    """Measure what MODEL gives away without a key. Exit code 0: within 2 points of chance, 1: it leaks.

    Judged is one class for each image. Printed, and not judged, is what scores, louder noise, residuals of the same
    class, wrong keys one by one, and the commonest of 30 answers tell, which may be most of the classes.
    """
    from intaglio.data.opening import open_data_for
    from intaglio.lock import Lock, check_lock

    owner = read_key(key, passphrase_file)
    classifier = _open_locked(model, owner, arch, input_shape, classes, preprocess, device)
    opened, others = Lock.open(lock, owner), [Lock.open(folder, owner) for folder in other or ()]
    images = open_data_for(classifier.input_shape, data, "test")
    table = check_lock(classifier, opened, images, other=others, seed=seed)
    return _show(table, json, quiet, f"{classifier.source}: checked")


@lock_app.command()
def picture(
    model: Annotated[str, typer.Argument(help="The locked model: any model file, or a .sealed one.", metavar="MODEL")],
    data: Annotated[str, typer.Option(help="Test images or videos: a folder, .npz, IDX folder or task name.")],
    user: UserName,
    lock: LockFolder,
    key: KeyFile,
    out: Annotated[Path, typer.Option(help="The picture, as .png.")],
    count: Annotated[int, typer.Option(help="Images to show, class by class.", min=1, max=40)] = 8,
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
    """Draw what a lock does: original, keyed image, their difference made visible, and MODEL's answers to both."""
    from json import dumps

    from intaglio.cli.console import deliver_json, say
    from intaglio.data import classes_in_turn
    from intaglio.data.opening import open_data_for
    from intaglio.files import write_bytes
    from intaglio.lock import Lock, lock_picture

    require_picture(out)
    owner = read_key(key, passphrase_file)
    classifier = _open_locked(model, owner, arch, input_shape, classes, preprocess, device)
    opened = Lock.open(lock, owner)
    opened.users.active(user)
    images = open_data_for(classifier.input_shape, data, "test")
    shown = images.take(classes_in_turn(images.labels)[:count])
    names = classifier.classes or images.classes
    write_bytes(out, lock_picture(classifier, opened, shown.images, shown.labels, user=user, names=names))
    facts = {"picture": str(out), "user": user, "images": len(shown), "model": classifier.source}
    deliver_json(dumps(facts, indent=1) + "\n", json)
    say(
        f"{out}: {len(shown)} images as they are, keyed for {user}, and what {classifier.source} says",
        quiet=quiet,
        json_to_stdout=json == "-",
    )
    return 0


def _open_locked(
    model: str,
    owner: "Key",
    arch: str | None,
    input_shape: str | None,
    classes: int | None,
    preprocess: str | None,
    device: str,
) -> "Classifier":
    """The locked model, from whatever it was written as."""
    from intaglio.lock.container import SUFFIX
    from intaglio.lock.sealed_model import open_sealed

    if Path(model).suffix == SUFFIX:
        return open_sealed(model, owner)
    return open_model(model, arch, input_shape, classes, preprocess, device)


def _open(folder: Path, key: Path, passphrase_file: Path | None) -> "Lock":
    from intaglio.lock import Lock

    return Lock.open(folder, read_key(key, passphrase_file))


def _show(table: "LeakTable", json: str | None, quiet: bool, title: str) -> int:
    from intaglio.cli.console import deliver_json, say

    deliver_json(table.to_json(), json)
    say(title, *table.lines(), quiet=quiet, json_to_stdout=json == "-")
    return int(not (table.tight and table.opens))
