"""Holds the committed contract documents against official validators: openapi-spec-validator, the AsyncAPI initiative's own JSON
Schema (npm: @asyncapi/specs) and python-jsonschema. Run in the root of the tree."""
import glob
import json
import sys

import jsonschema
import yaml
from openapi_spec_validator import validate

problems = []


def check(what, errors):
    for e in errors:
        best = jsonschema.exceptions.best_match([e])
        problems.append(f"{what}: {'/'.join(map(str, best.absolute_path))}: {best.message[:300]}")


with open("api/contract/openapi.yaml") as f:
    validate(yaml.safe_load(f))
with open("internal/testenv/client/node_modules/@asyncapi/specs/schemas/3.0.0.json") as f:
    spec = json.load(f)
with open("api/contract/asyncapi.yaml") as f:
    check("asyncapi.yaml", jsonschema.Draft7Validator(spec).iter_errors(yaml.safe_load(f)))
for name in glob.glob("api/contract/schemas/*.json"):
    with open(name) as f:
        schema = json.load(f)
    check(name, jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA).iter_errors(schema))
# internal/contract's own reading of JSON Schema (check.go) against this one.
with open("internal/contract/testdata/check.json") as f:
    for case in json.load(f):
        if jsonschema.Draft202012Validator(case["schema"]).is_valid(case["value"]) != case["valid"]:
            problems.append(f"{case}: python-jsonschema says otherwise")
print("\n".join(problems))
sys.exit(bool(problems))
