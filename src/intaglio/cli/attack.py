"""`intaglio attack`: poison a training set as published attacks do, and see how well it works."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intaglio.cli.options import Debug, Device, JsonFile, Quiet, Seed

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
    data: Annotated[str, typer.Option(help="Training images: a folder, .npz, IDX folder or task name.")],
    out: Annotated[Path, typer.Option(help="Folder for the poisoned set, its manifest and the victim.")],
    option: Annotated[
        list[str] | None, typer.Option(help="An option of NAME; may be repeated.", metavar="KEY=VALUE")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Also train and measure the victim.")] = False,
    arch: Annotated[str, typer.Option(help="The victim's architecture.")] = "resnet8",
    width: Annotated[int | None, typer.Option(min=1, help="Its width.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the poisoned set.")] = 5,
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
    from intaglio.cli.console import deliver_json, progress_bar, say
    from intaglio.data import TASKS, open_data
    from intaglio.errors import RecipeError
    from intaglio.files import require_writable
    from intaglio.networks import Architecture
    from intaglio.training import TrainingSettings

    pairs = dict(_pair(text) for text in option or [])
    if json not in (None, "-"):
        require_writable(json)
    try:
        chosen = make_attack(name, pairs, seed=seed)
    except RecipeError as error:
        raise typer.BadParameter(str(error), param_hint="NAME and --option") from error
    images = open_data(data)
    shape, classes = images.input_shape, images.num_classes
    network = Architecture(name=arch, input_shape=shape, num_classes=classes, width=width) if train else None
    with progress_bar("training the victim", quiet=quiet or not train) as progress:
        record = attack_data(
            chosen,
            images,
            out,
            test=open_data(data, "test") if train else None,
            architecture=network,
            settings=TrainingSettings(epochs=epochs),
            task=data if data in TASKS else None,
            seed=seed,
            device=device,
            progress=progress,
        )
    deliver_json(record.to_json(), json)
    say(*_summary(out, record), quiet=quiet, json_to_stdout=json == "-")
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"'{text}' is not of the form KEY=VALUE", param_hint="--option")
    return key.strip().replace("-", "_"), value.strip()


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
