"""`intaglio lock`: right answers for authorised users only."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.everywhere import require_picture
from intaglio.cli.lock_options import Images, KeyFile, LockFolder, UserName
from intaglio.cli.lock_training import refine, train
from intaglio.cli.locked import open_lock, open_locked, show
from intaglio.cli.model import Arch, Classes, InputShape, Preprocess
from intaglio.cli.options import Debug, Device, JsonFile, Quiet, Seed
from intaglio.cli.passphrase import PassphraseFile, read_key

lock_app = typer.Typer(name="lock", no_args_is_help=True, help="Lock a model: right answers for key holders only.")
lock_app.command()(train)
lock_app.command()(refine)


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

    opened = open_lock(lock, key, passphrase_file)
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

    opened = open_lock(lock, key, passphrase_file)
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
        opened = open_lock(lock, key, passphrase_file)
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

    opened = open_lock(lock, key, passphrase_file)
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
    classifier = open_locked(model, owner, arch, input_shape, classes, preprocess, device)
    opened, others = Lock.open(lock, owner), [Lock.open(folder, owner) for folder in other or ()]
    images = open_data_for(classifier.input_shape, data, "test")
    table = check_lock(classifier, opened, images, other=others, seed=seed)
    return show(table, json, quiet, f"{classifier.source}: checked")


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
    classifier = open_locked(model, owner, arch, input_shape, classes, preprocess, device)
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
