"""The mapping: a small YAML file that says how to ask any JSON API for the class of an image."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictInt, StrictStr, ValidationError, model_validator

from intaglio.classifiers.http_conduct import Conduct
from intaglio.errors import ModelError

_MAX_BYTES = 1 << 16
_MAX_DEPTH = 32
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS = {"host", "content-length", "transfer-encoding", "connection", "accept-encoding"}
#: Shorter values are no secrets, and blotting them out would mangle messages.
_SHORTEST_SECRET = 4

#: Strict, for YAML reads a bare `yes` or `no` as true or false.
Name = StrictStr | StrictInt

IMAGE = "{image}"
IMAGES = "{images}"


class HttpMapping(BaseModel):
    """How to ask a JSON API, as YAML. An API that takes one picture a request and answers with a class's name:

        request: {model: cats-v2, picture: "data:image/png;base64,{image}"}
        encoding: png
        answer: result.0.label
        gives: labels
        labels: [cat, dog, other]
        headers: {Authorization: "Bearer ${SUSPECT_TOKEN}"}
        conduct: {requests_per_second: 2, max_queries: 100}

    and one that takes several and answers with scores:

        request: {instances: "{images}"}
        each: {b64: "{image}"}
        batch: 16
        answer: predictions.*.scores
        gives: scores

    Entries:
        request: what is posted, any JSON, with one placeholder: `{image}`, for one image a request, or `{images}`, for
            the list of up to `batch` of them, each written as `each` says.
        encoding: `png`, 8-bit PNG in base64 (grey, RGB or RGBA; may stand inside a longer text), or `floats`, nested
            lists `[C][H][W]` of numbers as they leave the preprocessing.
        answer: dotted path or JSON pointer (`/result/0/label`) to the image's label or scores; nothing for the whole
            answer. With `{images}`, `*` stands for each image's place in a list; without it the path ends at that list.
        gives: `labels` (a class's number, or a name if `labels` are given), or `scores` (a list of one number for each
            class, or an object of numbers by name).
        labels: what the server calls the classes: a list in the order of the classes, or names to numbers.
        headers: sent with every request. `${NAME}` is replaced by the environment variable NAME, whose value is never
            recorded or shown. Use no mapping that you haven't read: it decides which variables the server gets to see.
        conduct: time-outs, retries, rate, budget: see `Conduct`.

    Without `request` it holds headers and conduct for an Open Inference Protocol server.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    request: JsonValue = None
    each: JsonValue = IMAGE
    batch: int = Field(default=16, ge=1, le=4096)
    encoding: Literal["png", "floats"] = "png"
    answer: str = ""
    gives: Literal["labels", "scores"] | None = None
    labels: tuple[Name, ...] | dict[Name, StrictInt] | None = None
    headers: dict[str, str] = {}
    conduct: Conduct = Conduct()

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if self.request is None:
            if needy := given - {"headers", "conduct"}:
                raise ValueError(f"'{min(needy)}' needs a 'request'")
            return self
        texts = list(_texts(self.request))
        count = sum(text.count(IMAGE) + text.count(IMAGES) for text in texts)
        if count != 1:
            raise ValueError(f"'request' must hold {IMAGE} or {IMAGES} once, it holds them {count} times")
        if self.single and given & {"each", "batch"}:
            raise ValueError(f"'each' and 'batch' are for {IMAGES}, but 'request' holds {IMAGE}")
        if not self.single and (IMAGES not in texts or sum(text.count(IMAGE) for text in _texts(self.each)) != 1):
            raise ValueError(f"{IMAGES} must stand alone, and 'each' must hold {IMAGE} once")
        if self.encoding == "floats" and IMAGE not in _texts(self.request if self.single else self.each):
            raise ValueError(f"with encoding floats {IMAGE} must stand alone, for it is a list")
        if self.answer.count("*") > (0 if self.single else 1):
            raise ValueError(f"'answer' may hold one *, and only with {IMAGES}")
        if self.gives is None:
            raise ValueError("'gives' must be labels or scores")
        if any(index < 0 for index in self.names.values()):
            raise ValueError("'labels' must give numbers from 0 on")
        if isinstance(self.labels, tuple) and len(self.names) != len(self.labels):
            raise ValueError("'labels' holds a name twice")
        return self

    @property
    def single(self) -> bool:
        """Whether each request asks about one image."""
        return any(IMAGE in text for text in _texts(self.request))

    @property
    def names(self) -> dict[str, int]:
        """What the server calls each class, as text, to its number."""
        if self.labels is None:
            return {}
        if isinstance(self.labels, dict):
            return {str(name): index for name, index in self.labels.items()}
        return {str(name): index for index, name in enumerate(self.labels)}


def read_mapping(path: Path | str) -> HttpMapping:
    """Reads a mapping of at most 64 KiB; YAML's aliases are refused.

    Raises:
        ModelError: missing, not YAML, or with an unknown or wrong entry (the first one is named).
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ModelError(f"mapping {path}: over {_MAX_BYTES} bytes")
        if problem := _wild(content):
            raise ModelError(f"mapping {path}: {problem}")
        return HttpMapping.model_validate(yaml.safe_load(content))
    except OSError as error:
        raise ModelError(f"mapping {path}: can't be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            problem = first["msg"].removeprefix("Value error, ")
            raise ModelError(f"mapping {path}: {f'{where}: ' if where else ''}{problem}") from error
        first_line = str(error).partition("\n")[0]
        raise ModelError(f"mapping {path}: not YAML ({first_line})") from error


def _wild(content: bytes) -> str | None:
    """What makes a small YAML file large or slow to read, if it holds such."""
    depth = 0
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            return "YAML aliases (*name) are not supported; put a * into quotes"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            return f"nested more than {_MAX_DEPTH} deep"
    return None


def _texts(template: JsonValue) -> Iterator[str]:
    """Every text in a template, except the names of entries."""
    if isinstance(template, str):
        yield template
    elif isinstance(template, dict | list):
        for part in template.values() if isinstance(template, dict) else template:
            yield from _texts(part)


def filled_headers(
    headers: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Headers with their environment variables filled in, and the values that must never be shown.

    Raises:
        ModelError: a variable isn't set, or a name or value that no header may have; no value is shown.
    """
    filled: dict[str, str] = {}
    secrets: list[str] = []
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise ModelError(f"mapping: '{name[:60]}' is not a header that can be set")
        for variable in _VARIABLE.findall(value):
            if not environ.get(variable):
                raise ModelError(f"mapping: header {name} needs the environment variable {variable}, which is not set")
            secrets.append(environ[variable])
        text = _VARIABLE.sub(lambda match: environ[match[1]], value)
        if not text.isascii() or not text.isprintable():
            raise ModelError(f"mapping: header {name} holds characters that no header may carry")
        filled[name] = text.strip()
    return filled, tuple(secret for secret in secrets if len(secret) >= _SHORTEST_SECRET)
