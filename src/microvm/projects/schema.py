"""The JSON Schema of `microvm.toml`, for editors: the model's docstrings are its descriptions."""

from typing import Any

from pydantic import TypeAdapter

from microvm.model.constraints import NAME_REGEX, STRICT
from microvm.model.declaration import MicroVM

_DESCRIBED = {"use_attribute_docstrings": True}
"""Only here: to read docstrings out of the sources takes longer than a whole validation."""


def schema() -> dict[str, Any]:
    """Return the schema of a project file (JSON Schema 2020-12)."""
    plain = dict(STRICT)
    STRICT.update(_DESCRIBED)
    try:
        inner = TypeAdapter(MicroVM).json_schema(ref_template="#/$defs/{model}")
    finally:
        STRICT.clear()
        STRICT.update(plain)
    definitions = inner.pop("$defs", {})
    definitions["MicroVM"] = inner
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "microvm.toml",
        "type": "object",
        "additionalProperties": False,
        "required": ["microvms"],
        "properties": {
            "$schema": {"description": "Where this schema is.", "type": "string"},
            "defaults": {
                "description": "What all MicroVMs of this project have in common, as far as it "
                "has an effect in them.",
                "$ref": "#/$defs/MicroVM",
            },
            "microvms": {
                "description": "The MicroVMs by name.",
                "type": "object",
                "propertyNames": {"pattern": f"^{NAME_REGEX}$"},
                "additionalProperties": {"$ref": "#/$defs/MicroVM"},
            },
        },
        "$defs": definitions,
    }
