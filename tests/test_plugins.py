"""Plug-ins: the example package through the real command, and what is said of those that can't be used."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from intaglio.checks import check_detector, check_tampering, check_trigger
from intaglio.classifiers import Sidecar, save_classifier
from intaglio.errors import IntaglioError, RecipeError
from intaglio.networks import Architecture
from intaglio.plugins import known_names, named
from intaglio.populations import Recipe
from intaglio.scan import OnePixelSignature
from intaglio.scan.scanning import make_detector
from intaglio.tampering import TAMPERINGS, Noise, Poison, tampering_named
from intaglio.tampering.options import catalogue, make_tampering
from intaglio.triggers import TRIGGERS, PatchTrigger, Trigger, trigger_named

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugin"
COMMAND = str(Path(sys.executable).with_name("intaglio"))


def install(folder: Path, package: str, entries: dict[str, dict[str, str]], module: str, code: str) -> None:
    """A package as an installer leaves it: its module, and its metadata beside it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    metadata = folder / f"{package.replace('-', '_')}-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    lines = []
    for group, names in entries.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    module = EXAMPLE / "intaglio_example_plugin.py"
    install(folder, project["name"], project["entry-points"], module.stem, module.read_text())
    return folder


@pytest.fixture
def plugged(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(example)
    monkeypatch.delitem(sys.modules, "intaglio_example_plugin", raising=False)


def offer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, group: str, name: str, code: str, package: str = "odd"
) -> None:
    """A package that offers `Thing` of a module with this code."""
    module = f"{package}_module"
    install(folder, package, {f"intaglio.{group}": {name: f"{module}:Thing"}}, module, code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)


def test_the_readme_s_claims_about_the_example(plugged: None) -> None:
    module = __import__("intaglio_example_plugin")
    check_detector(module.LoudestClass)
    check_trigger(module.BottomLine)
    check_tampering(module.Shrink, factor=0.5)
    assert type(make_detector("loudest-class")) is module.LoudestClass
    assert trigger_named("bottom-line") is module.BottomLine
    assert tampering_named("shrink") is module.Shrink
    tampering: Any = make_tampering("shrink", {"factor": "0.25"})
    assert tampering.factor == 0.25
    shown = list(catalogue())
    assert "shrink: Every weight times `factor`." in shown
    assert "    factor=0.9  what the weights are multiplied by. [a number]" in shown
    assert isinstance(Poison(trigger="bottom-line").trigger_for(0), module.BottomLine)


def recipe(trigger: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "toy",
            "task": "bands",
            "models": 2,
            "architectures": [{"name": "lenet", "width": [2, 2]}],
            "attacks": [{"trigger": trigger}],
        }
    )


def test_recipes_name_triggers_of_plug_ins(plugged: None) -> None:
    plan = recipe("bottom-line").plan(1)
    attack = plan.build_attack(3)
    assert attack is not None
    assert attack.trigger.describe()["trigger"] == "bottom-line"
    with pytest.raises(ValueError, match="unknown trigger 'top-line'; known are blended, bottom-line, patch, pixels"):
        recipe("top-line")


def test_nothing_is_imported_until_it_is_asked_for(plugged: None) -> None:
    assert "bottom-line" in known_names("trigger", TRIGGERS)
    assert trigger_named("patch") is PatchTrigger
    assert "intaglio_example_plugin" not in sys.modules
    with pytest.raises(RecipeError, match=r"unknown tampering 'melt'; known are fine-tune, .*poison, shrink$"):
        tampering_named("melt")
    assert "intaglio_example_plugin" not in sys.modules


def test_built_in_names_can_not_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch, "triggers", "patch", "raise SystemError('imported')")
    assert trigger_named("patch") is PatchTrigger
    assert known_names("trigger", TRIGGERS) == tuple(TRIGGERS)
    offer(tmp_path, monkeypatch, "tamperings", "noise", "Thing = 1", "odder")
    assert tampering_named("noise") is Noise
    offer(tmp_path, monkeypatch, "detectors", "auto", "Thing = 1", "oddest")
    assert isinstance(make_detector(OnePixelSignature.name), OnePixelSignature)
    assert make_detector("auto").name in ("auto", OnePixelSignature.name)


BASE = "from intaglio.triggers import Trigger\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nowhere_at_all", "can't be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise RuntimeError('two\\nlines')", "can't be imported: RuntimeError: two lines"),
        ("Other = 1", "can't be imported: AttributeError"),
        ("Thing = 1", r"is a int, not a subclass of intaglio\.triggers\.base\.Trigger"),
        ("class Thing:\n    pass", "is Thing, not a subclass of"),
        (f"{BASE}class Thing(Trigger):\n    name = 'odd-one'", "is abstract: it lacks run"),
        (f"{BASE}class Thing(Trigger):\n    name = 'else'\n    def run(self, images): ...", "calls itself 'else'"),
    ],
)
def test_broken_plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    offer(tmp_path, monkeypatch, "triggers", "odd-one", code)
    assert "odd-one" in known_names("trigger", TRIGGERS)
    where = rf"^trigger 'odd-one' of package odd 0\.1\.0 \(odd_module:Thing\) .*{message}"
    with pytest.raises(IntaglioError, match=where):
        trigger_named("odd-one")
    with pytest.raises(ValueError, match=message):
        recipe("odd-one")


def test_a_broken_tampering_is_listed_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch, "tamperings", "odd-one", "import nowhere_at_all")
    shown = list(catalogue())
    assert any(line.startswith("odd-one: tampering 'odd-one' of package odd 0.1.0") for line in shown)
    assert sum(line.startswith(tuple(f"{name}:" for name in TAMPERINGS)) for line in shown) > 3


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("first", "second"):
        offer(tmp_path / package, monkeypatch, "triggers", "odd-one", "Thing = 1", package)
    with pytest.raises(IntaglioError, match=r"offered by the packages first 0\.1\.0 and second 0\.1\.0: uninstall all"):
        named("trigger", "odd-one", TRIGGERS, Trigger)
    monkeypatch.syspath_prepend(tmp_path / "first")  # twice on the path is still one package
    assert known_names("trigger", TRIGGERS).count("odd-one") == 1


def run(folder: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False)


def test_the_command_finds_them(example: Path, tmp_path: Path) -> None:
    architecture = Architecture(name="lenet", input_shape=(1, 12, 12), num_classes=3, width=4)
    with torch.random.fork_rng(devices=[]):
        save_classifier(architecture.build(), tmp_path / "model.safetensors", Sidecar(architecture=architecture))
    scanned = run(example, "scan", tmp_path / "model.safetensors", "--detector", "loudest-class", "--json", "-")
    verdict = json.loads(scanned.stdout)
    verdict = verdict[0] if isinstance(verdict, list) else verdict
    assert (verdict["detector"], verdict["queries"], verdict["calibrated"]) == ("loudest-class", 200, False)
    out = tmp_path / "small.safetensors"
    shrunk = run(example, "tamper", "shrink", tmp_path / "model.safetensors", "--option", "factor=0.5", "--out", out)
    assert shrunk.returncode == 0, shrunk.stderr
    assert "shrink: 100.00% of the weights changed, by 0.5 of their norm" in shrunk.stdout


def test_the_command_s_one_line_for_a_broken_one(tmp_path: Path) -> None:
    entries = {"intaglio.detectors": {"odd-one": "odd_module:Thing"}}
    install(tmp_path, "odd", entries, "odd_module", "import nowhere_at_all")
    model = EXAMPLE.parent / "models" / "clean.onnx"
    broken = run(tmp_path, "scan", model, "--detector", "odd-one")
    assert broken.returncode == 2
    assert broken.stderr.startswith("intaglio: detector 'odd-one' of package odd 0.1.0 (odd_module:Thing) can't be imp")
    assert len(broken.stderr.splitlines()) == 1
