"""`intaglio attack`: poison a training set as published attacks do, and see how well it works."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intaglio.cli.options import Debug, Device, JsonFile, MethodOption, Quiet, Seed, TestData, option_pairs

if TYPE_CHECKING:
    from intaglio.attacks.attack_record import AttackRecord


def _list(asked: bool) -> None:
    if asked:
        from intaglio.attacks.options import catalogue
        from intaglio.cli.console import say

        say(*catalogue(), quiet=False)
        raise typer.Exit


def attack(
    name: Annotated[str, typer.Argument(help="The attack; --list shows all.", metavar="NAME")],
    data: Annotated[str, typer.Option(help="Training images or videos: a folder, .npz, list of videos, task name.")],
    out: Annotated[Path, typer.Option(help="Folder for the poisoned set, its manifest and the victim.")],
    option: MethodOption = None,
    train: Annotated[bool, typer.Option("--train", help="Also train and measure the victim.")] = False,
    test: TestData = None,
    arch: Annotated[
        str | None, typer.Option(help="The victim's architecture; else resnet8, or r3d18 of width 8 for videos.")
    ] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Its width.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the poisoned set.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or clips a training step.")] = 128,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip, for videos.")] = 16,
    stride: Annotated[int, typer.Option(min=1, help="Every so many frames of a video, one is taken.")] = 1,
    resize: Annotated[int | None, typer.Option(min=1, help="Side to which pictures and frames are squashed.")] = None,
    max_bad: Annotated[int, typer.Option(min=0, help="Videos that may be unreadable; they are left out.")] = 10,
    show: Annotated[
        bool, typer.Option("--list", help="Show every NAME with its options.", is_eager=True, callback=_list)
    ] = False,
    json: JsonFile = None,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Poison a training set as a published attack does; with --train, see what it makes of a network."""
    from intaglio.attacks.attack_file import attack_data
    from intaglio.attacks.options import make_attack
    from intaglio.attacks.sources import open_source
    from intaglio.attacks.surrogate import victim_architecture
    from intaglio.cli.console import deliver_json, progress_bar, require_deliverable, say
    from intaglio.cli.splits import train_and_test
    from intaglio.data import TASKS, Sampling, open_data
    from intaglio.errors import RecipeError
    from intaglio.training import TrainingSettings

    if test is not None and not train:
        raise typer.BadParameter("there is nothing to measure without --train", param_hint="--test")
    if (arch is not None or width is not None) and not train:
        raise typer.BadParameter("there is no victim without --train", param_hint="--arch and --width")
    pairs = option_pairs(option)
    require_deliverable(json)
    try:
        chosen = make_attack(name, pairs, seed=seed)
    except RecipeError as error:
        raise typer.BadParameter(str(error), param_hint="NAME and --option") from error
    size = None if resize is None else (resize, resize)
    opening = partial(open_data, sampling=Sampling(frames=frames, stride=stride), resize=size)
    loaded, measured = train_and_test(partial(opening, max_bad=max_bad), data, test) if train else (None, None)
    with progress_bar("training the victim", quiet=quiet or not train) as progress:
        record = attack_data(
            chosen,
            loaded or open_source(data, **opening.keywords),
            out,
            test=measured,
            architecture=victim_architecture(loaded, arch, width) if loaded else None,
            settings=TrainingSettings(epochs=epochs, batch_size=batch_size),
            task=data if data in TASKS else None,
            seed=seed,
            device=device,
            max_bad=max_bad,
            progress=progress,
        )
    deliver_json(record.to_json(), json)
    say(*_summary(out, record), quiet=quiet, json_to_stdout=json == "-")
    return 0


def _summary(out: Path, record: "AttackRecord") -> list[str]:
    lines = [
        f"{out}: {record.attack['attack']}: {record.poison_rate_whole:.2%} of the samples poisoned, "
        f"{record.poison_rate_target:.2%} of those labelled with the target"
        + (f", {record.cover_rate:.2%} cover" if record.cover_rate else "")
        + f"; PSNR {record.quality.psnr:.1f} dB, SSIM {record.quality.ssim:.3f}"
    ]
    if victim := record.victim:
        lines.append(
            f"{out / victim.file}: clean accuracy {victim.clean_accuracy:.2%} (clean model "
            f"{victim.clean_model.clean_accuracy:.2%}), attack success {victim.asr:.2%} (clean model "
            f"{victim.clean_model.asr:.2%}), robust accuracy {victim.robust_accuracy:.2%}"
        )
    return lines
