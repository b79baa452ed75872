"""The published JSON Schema is the one that verdicts are made by."""

import json
from pathlib import Path

from intaglio.scan import Verdict

PUBLISHED = Path(__file__).parents[1] / "docs" / "verdict.schema.json"


def test_published_schema_is_up_to_date() -> None:
    assert json.loads(PUBLISHED.read_text()) == Verdict.model_json_schema(mode="serialization")
