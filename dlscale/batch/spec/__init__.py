"""Job files: text in, a checked job out."""

from dlscale.batch.spec.models import json_schema, load_spec, parse_spec, to_data

__all__ = ["json_schema", "load_spec", "parse_spec", "to_data"]
