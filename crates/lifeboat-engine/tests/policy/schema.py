"""Holds documents against a JSON schema: `schema.py SCHEMA < LINES`, each line one document. Prints what does not fit, one line each.

A schema lets members in that it does not know, so that facts can be added; here it must not, or a fact without a description would pass.
"""

import json
import sys

from jsonschema import Draft202012Validator, FormatChecker


def close(schema):
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            close(value)
    elif isinstance(schema, list):
        for value in schema:
            close(value)


with open(sys.argv[1], encoding="utf-8") as file:
    schema = json.load(file)
Draft202012Validator.check_schema(schema)
undescribed = [name for name, part in schema["properties"].items() if "description" not in part and "$ref" not in part]
if undescribed:
    print(f"without a description: {undescribed}")
examples = schema.get("examples", [])
if not examples:
    print("the schema has no examples")
close(schema)
validator = Draft202012Validator(schema, format_checker=FormatChecker())
lines = [json.loads(line) for line in sys.stdin]
for document in examples + lines:
    for error in validator.iter_errors(document):
        print(f"{error.json_path}: {error.message}")
print(f"checked {len(lines)} and {len(examples)} examples")
