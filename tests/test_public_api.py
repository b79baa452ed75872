"""`import intaglio as ig`: every public name is there, cheap to import, and `scan` stays the function."""

import inspect
import subprocess
import sys
from importlib.metadata import version

import pytest

import intaglio as ig


@pytest.mark.parametrize("name", ig.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(ig, name)
    assert inspect.getdoc(value)
    assert name in dir(ig)


def test_names_come_from_where_they_live() -> None:
    assert set(ig._HOMES) | set(ig._MODULES) | {"scan", "mark"} == set(ig.__all__)
    assert list(ig.__all__) == sorted(ig.__all__)
    for name, home in ig._HOMES.items():
        assert inspect.getmodule(getattr(ig, name)).__name__.startswith(f"intaglio.{home}")  # type: ignore[union-attr]


def test_the_version_is_that_of_the_package() -> None:
    assert ig.__version__ == version("intaglio")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'intaglio' has no attribute 'unlock_everything'"):
        ig.unlock_everything  # noqa: B018


def test_arguments_of_the_contract() -> None:
    scan = list(inspect.signature(ig.scan).parameters)
    assert scan[:5] == ["model", "clean", "task", "alpha", "seed"]
    assert inspect.signature(ig.scan).parameters["alpha"].default == 0.05
    signature = inspect.signature(ig.one_pixel_signature).parameters
    assert list(signature)[:3] == ["classifier", "bases", "values"]
    assert list(inspect.signature(ig.open_data).parameters)[:2] == ["source", "split"]
    for name in ("flagged", "p_value", "score", "target_class", "calibrated", "queries", "seconds"):
        assert name in ig.Verdict.model_fields
    mark = inspect.signature(ig.mark).parameters
    assert list(mark)[:3] == ["module", "data", "key"]
    assert (mark["scheme"].default, mark["mode"].default) == ("deep-fidelity", "fixll-pfl")
    assert list(inspect.signature(ig.verify_mark).parameters)[:3] == ["suspect", "commitment", "key"]
    for name in ("verified", "hits", "trials", "p_value"):
        assert name in inspect.get_annotations(ig.verify_mark)["return"].model_fields
    for name in ("save", "load"):
        assert inspect.signature(getattr(ig.Key, name)).parameters["passphrase"].kind is inspect.Parameter.KEYWORD_ONLY
    assert ig.Key.generate() != ig.Key.generate()


@pytest.mark.parametrize(
    "first",
    [
        "import intaglio.scan.scanning, intaglio.mark.marking; import intaglio.cli.main",
        "from intaglio import mark, scan; import intaglio.mark.mark_file; intaglio.scan, intaglio.mark",
    ],
)
def test_scan_and_mark_are_functions_whatever_is_imported_first(first: str) -> None:
    code = (
        f"{first}; import intaglio as ig, sys; "
        "from intaglio.scan import scan, DETECTORS; from intaglio.mark import mark; "
        "assert ig.scan is scan and callable(ig.scan); assert sys.modules['intaglio.scan'].DETECTORS is DETECTORS; "
        "assert ig.mark is mark and callable(ig.mark)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, intaglio, intaglio.cli.main; "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'scipy', 'PIL', 'jinja2'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == "[]\n"
