"""Writes docs/verdict.schema.json, the published JSON Schema of a verdict: python docs/make_schema.py"""

from pathlib import Path

from intaglio.files import write_json
from intaglio.scan import Verdict

OUT = Path(__file__).with_name("verdict.schema.json")

if __name__ == "__main__":
    write_json(OUT, Verdict.model_json_schema(mode="serialization"))
