"""Replies of a required form: the JSON schema to send, and the check of the reply."""

import json
import re

from agents.backends.errors import BadOutput
from flow_grpo_jax.bounds import json_text
from tools.protocol import clean

KEYWORDS = {"type", "properties", "required", "additionalProperties", "enum", "items"}
KEYWORDS |= {"description", "maxLength"}
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)


def record(**properties):
    """Returns the schema of an object with exactly these fields: name -> schema, in order."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def response_format(schema, name="reply"):
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": True, "schema": schema},
    }


def instructed(messages, schema):
    """Returns the messages with the form spelled out, for servers without `response_format`."""
    first, *rest = messages
    told = f"Answer with one JSON object of this schema and nothing else:\n{json.dumps(schema)}"
    if first["role"] == "system":
        return ({"role": "system", "content": f"{first['content']}\n\n{told}"}, *rest)
    return ({"role": "system", "content": told}, first, *rest)


def repair(messages, error):
    """Returns messages that ask to repair a reply that `read` refused."""
    told = f"This is not of the required form: {error} Write the JSON object again, corrected."
    wrote = {"role": "assistant", "content": error.text}
    return (*messages, wrote, {"role": "user", "content": told})


def read(text, schema):
    """Returns the value of a reply; BadOutput says what the schema does not allow."""
    fenced = _FENCE.fullmatch(text.strip())
    try:
        value = clean(json_text.parse(fenced[1] if fenced else text, parse_constant=_no_number))
    except ValueError as error:
        raise BadOutput(f"It is no JSON ({_short(error)}).", text) from error
    faults = problems(value, schema)
    if faults:
        raise BadOutput(f"{'; '.join(faults[:3])}.", text)
    return value


def problems(value, schema, place="it"):
    """Lists what the schema does not allow about a value; of JSON Schema it knows KEYWORDS."""
    if unknown := set(schema) - KEYWORDS:
        raise ValueError(f"The schema uses {', '.join(sorted(unknown))}, which is not checked.")
    kind = schema.get("type")
    if kind:
        fits = isinstance(value, TYPES[kind])
        if not fits or (isinstance(value, bool) and kind != "boolean"):
            return [f"{place} must be of type {kind}"]
    faults = []
    if "enum" in schema and value not in schema["enum"]:
        faults.append(f"{place} must be one of {json.dumps(schema['enum'])}")
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        faults.append(f"{place} must have at most {schema['maxLength']} characters")
    if kind == "object":
        fields = schema.get("properties", {})
        faults += [
            f"{name!r} is missing" for name in schema.get("required", ()) if name not in value
        ]
        for name, inner in value.items():
            if name in fields:
                faults += problems(inner, fields[name], repr(name))
            elif schema.get("additionalProperties") is False:
                faults.append(f"{name[:40]!r} is not allowed")
    if kind == "array" and "items" in schema:
        for inner in value:
            faults += problems(inner, schema["items"], f"an item of {place}")
    return faults


def _no_number(name):
    raise ValueError(f"{name} is no JSON number")


def _short(error):
    return str(error)[:100] or type(error).__name__
