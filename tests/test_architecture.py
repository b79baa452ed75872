"""The house rules, read off the source: floors, sizes, names, and calls that are never made."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "intaglio"
FILES = sorted(ROOT.rglob("*.py"))

#: From the ground up. A file imports from floors below its own and from its own part, never from a part beside it.
FLOORS: tuple[frozenset[str], ...] = tuple(
    frozenset(floor.split())
    for floor in (
        "errors",
        "files seeds results plugins tensors textual_options",
        "networks data",
        "classifiers",
        "training",
        "triggers",
        "attacks",
        "tampering",
        "populations",
        "evidence",
        "scan mark seal lock",
        "bench checks",
        "report",
        "cli web",
        "__main__",
    )
)
LEVEL = {part: level for level, floor in enumerate(FLOORS) for part in floor}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "misc"}
#: Modules that execute what they read, and calls that do or that talk past the console.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
#: What torch's restricted unpickler raises: the exception alone executes nothing.
HARMLESS = {"pickle.UnpicklingError"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "print", "breakpoint", "__import__"}
FORBIDDEN_METHODS = {"cuda"}


def part_of(path: Path) -> str:
    """The part of the house that a file belongs to: its folder, or its own name on the ground floor."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, int]]:
    """Every module imported, at any depth, as `intaglio.part...` or as another package's; with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            if base == "intaglio":  # `from intaglio import scan`
                yield from ((f"intaglio.{alias.name}", node.lineno) for alias in node.names)
            elif not {f"{base}.{alias.name}" for alias in node.names} <= HARMLESS:
                yield base, node.lineno


def offences(source: str, part: str) -> list[str]:
    """What in a file's source is against the rules, as `line: what`."""
    tree = ast.parse(source)
    found = []
    for module, line in imports(tree, f"intaglio.{part}"):
        top, _, rest = module.partition(".")
        if top in FORBIDDEN_MODULES:
            found.append(f"{line}: imports {module}")
        if top != "intaglio" or part == "__init__":  # the public face names parts of every floor
            continue
        target = rest.split(".")[0]
        if target not in LEVEL:
            found.append(f"{line}: imports {module}, which is on no floor")
        elif target != part and LEVEL[target] >= LEVEL[part]:
            found.append(f"{line}: {part} imports {module} from beside or above it")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in call_offences(node)]
    return found


def call_offences(node: ast.Call) -> Iterator[str]:
    function = node.func
    if isinstance(function, ast.Name) and function.id in FORBIDDEN_CALLS:
        yield f"calls {function.id}"
    if isinstance(function, ast.Attribute):
        if function.attr in FORBIDDEN_METHODS:
            yield f"calls .{function.attr}"
        owner = ast.unparse(function.value)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (owner, function.attr) == ("torch", "load") and options.get("weights_only") != "True":
            yield "calls torch.load without weights_only=True"
        if (owner, function.attr) == ("np", "load") and options.get("allow_pickle") != "False":
            yield "calls np.load without allow_pickle=False"
        if owner == "yaml" and function.attr != "safe_load" and "load" in function.attr:
            yield f"calls yaml.{function.attr}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_keeps_the_rules(path: Path) -> None:
    source = path.read_text()
    assert offences(source, part_of(path)) == []
    assert len(source.splitlines()) <= 400
    assert not FORBIDDEN_NAMES & set(path.relative_to(ROOT).with_suffix("").parts)
    assert ast.get_docstring(ast.parse(source))


def test_every_part_has_its_floor() -> None:
    assert {part_of(path) for path in FILES} - {"__init__"} <= LEVEL.keys()
    assert {"data", "networks", "scan", "report", "cli"} <= {part_of(path) for path in FILES}


@pytest.mark.parametrize(
    ("part", "source", "found"),
    [
        ("scan", "from intaglio.evidence.statistics import auroc", None),
        ("report", "from intaglio.scan.verdict import Verdict", None),
        ("data", "from intaglio.data.images import ImageData\nimport gzip", None),
        ("__init__", "from intaglio.cli import main", None),
        ("files", "from intaglio.errors import StorageError", None),
        ("data", "from intaglio.training import train", "1: data imports intaglio.training from beside or above it"),
        ("data", "from intaglio.networks import NETWORKS", "1: data imports intaglio.networks from beside or above it"),
        ("scan", "def f():\n    import intaglio.mark", "2: scan imports intaglio.mark from beside or above it"),
        ("scan", "from intaglio import report", "1: scan imports intaglio.report from beside or above it"),
        ("scan", "from ..cli import main", "1: scan imports intaglio.cli from beside or above it"),
        ("scan", "from .cli import main", None),
        (
            "errors",
            "from intaglio.files import write_bytes",
            "1: errors imports intaglio.files from beside or above it",
        ),
        ("data", "from intaglio.tools import x", "1: imports intaglio.tools, which is on no floor"),
        ("data", "import pickle", "1: imports pickle"),
        ("data", "from pickle import loads, UnpicklingError", "1: imports pickle"),
        ("data", "from pickle import UnpicklingError", None),
        ("data", "print(1)", "1: calls print"),
        ("data", "module.eval()\ntorch.compile(x)", None),
        ("data", "eval('1')", "1: calls eval"),
        ("data", "x.cuda()", "1: calls .cuda"),
        ("data", "torch.load(path)", "1: calls torch.load without weights_only=True"),
        ("data", "torch.load(path, weights_only=False)", "1: calls torch.load without weights_only=True"),
        ("data", "torch.load(path, weights_only=True)", None),
        ("data", "np.load(path)", "1: calls np.load without allow_pickle=False"),
        ("data", "yaml.safe_load(x)", None),
        ("data", "yaml.load(x)", "1: calls yaml.load"),
    ],
)
def test_the_rules_themselves(part: str, source: str, found: str | None) -> None:
    assert offences(source, part) == ([found] if found else [])
