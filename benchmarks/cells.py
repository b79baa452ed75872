"""Measurements that are kept in the cache as soon as they are made, so that an interrupted benchmark goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fetch import cache_folder
from intaglio.files import write_json


class Cells:
    """A benchmark's measurements by name; calling it makes one, unless it was made before.

    With `cached_only` nothing is made any more: what is not there is left out (empty). A measurement that holds an
    "error" is given back and not kept: perhaps it can be made tomorrow.
    """

    def __init__(self, folder: str) -> None:
        self._name = folder
        self.cached_only = False

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return cache_folder() / self._name

    def __call__(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self.folder / f"{name.replace('/', '_').replace(' ', '-')}.json"
        if not path.exists():
            if self.cached_only:
                return {}
            made = measure()
            print(name, made, flush=True)
            if "error" in made:
                return made
            write_json(path, made)
        found: dict[str, Any] = json.loads(path.read_text())
        return found
