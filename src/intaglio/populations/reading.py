"""Reading a recipe's file: plain YAML of a bounded size, checked, with one short line for whatever is wrong."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from intaglio.errors import RecipeError

MAX_BYTES = 2**20
#: Characters of a message: values land in them, and a value may be as long as its file.
_MAX_MESSAGE = 300
Document = TypeVar("Document", bound=BaseModel)


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which make a value of any size from a few bytes, and without keys that hide others."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {line}: an alias (*name) is not taken; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()  # a tag may call anything a mapping
        for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: '{_short(key.value)}' is there more than once")
            names.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, ArithmeticError, AttributeError, LookupError) as error:  # a date of a 13th month, say
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {error}") from error


def read_yaml(path: Path | str, kind: type[Document]) -> Document:
    """A YAML file as a checked document of this kind. Aliases (`*name`) and repeated keys are refused.

    Raises:
        RecipeError: missing, not YAML, or with a value that makes no sense (the first one is named).
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: over {MAX_BYTES} bytes, not a recipe")
        content = _PlainLoader(path.read_text()).get_single_data()
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{path}: not YAML ({_short(str(error).splitlines()[0])})") from error
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise RecipeError(f"{path}: {_short(where)}: {_short(first['msg'].removeprefix('Value error, '))}") from error


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."
