"""`intaglio lock train` and `lock refine`: a model that answers key holders only, and better than before."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from intaglio.cli.lock_options import Distillation, Grid, KeyFile, LockFolder, Loud, lock_settings
from intaglio.cli.locked import open_locked, show
from intaglio.cli.model import Arch, Classes, InputShape, Preprocess, open_model
from intaglio.cli.options import Debug, Device, JsonFile, Quiet, Seed, TestData
from intaglio.cli.passphrase import PassphraseFile, read_key


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
    return show(written.leaks, json, quiet, f"{written.model}: locked")


def refine(
    model: Annotated[str, typer.Argument(help="The locked model, .safetensors, .pt or .sealed.", metavar="MODEL")],
    unlocked: Annotated[str, typer.Option(help="The model that was locked.", metavar="MODEL")],
    data: Annotated[
        str, typer.Option(help="The training images it was locked with: a folder, .npz, IDX folder, task.")
    ],
    lock: LockFolder,
    key: KeyFile,
    out: Annotated[Path, typer.Option(help="The refined model: .safetensors, .onnx, or .sealed.")],
    test: TestData = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A lock that this one refused (`lock train --earlier`); repeat for each."),
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
    """Refine a copy of a locked MODEL again: keys stay as they are, and wrong keys that open it are refused.

    For a model that wrong keys open, as `lock check` counts them. It takes half as many steps as refining took in
    `lock train`. Exit code as of that.
    """
    from intaglio.classifiers.derived import with_weights
    from intaglio.cli.console import progress_bar, require_deliverable
    from intaglio.cli.splits import train_and_test
    from intaglio.data.opening import open_data_for
    from intaglio.lock import Lock
    from intaglio.lock.lock_file import refine_file

    require_deliverable(json)
    owner = read_key(key, passphrase_file)
    locked = with_weights(open_locked(model, owner, arch, input_shape, classes, preprocess, device))
    before = with_weights(open_model(unlocked, arch, input_shape, classes, preprocess, device))
    opened, refused = Lock.open(lock, owner), [Lock.open(folder, owner) for folder in earlier or ()]
    trained, measured = train_and_test(partial(open_data_for, locked.input_shape), data, test)
    with progress_bar(f"refining {locked.source}", quiet=quiet) as progress:
        written = refine_file(
            locked,
            before,
            trained,
            opened,
            owner,
            out,
            test=measured,
            architecture=arch,
            earlier=refused,
            seed=seed,
            device=device,
            progress=progress,
        )
    return show(written.leaks, json, quiet, f"{written.model}: refined")
