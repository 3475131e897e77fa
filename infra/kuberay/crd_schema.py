"""Holds the manifests beside this file against KubeRay's custom resource definitions (CRDs), as its API server would.

    python infra/kuberay/crd_schema.py CRDS --release v1.7.0

CRDS is the folder helm-chart/kuberay-operator/crds of that release of ray-project/kuberay. All manifests are validated
against the whole CRDs; then crd_fields.json is written: of the fields that our manifests use, type and constraints, and
which of them are required. With it the tests validate offline. A field that is new in a manifest is unknown to them
until this script has seen it in a release.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml

FOLDER = Path(__file__).resolve().parent
FIELDS = FOLDER / "crd_fields.json"
API_VERSION = "ray.io/v1"
KEPT = ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "anyOf", "nullable", "format")
METADATA = {name: {"type": "string"} for name in ("name", "generateName", "namespace")} | {
    name: {"type": "object", "additionalProperties": {"type": "string"}} for name in ("labels", "annotations")
}
"""The CRDs say only that it is an object."""

Schema = dict[str, Any]
POD = "pod template"
"""Not a kind of KubeRay's; its CRDs contain the schema, and the CronJob's pod is held against it."""


def manifests(folder: Path = FOLDER) -> list[tuple[str, str, dict[str, Any]]]:
    """Place, kind and content of everything that the CRDs describe; the RayJob inside the nightly's ConfigMap too."""
    found = []
    for file in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if document["kind"] == "ConfigMap":
                inner = [yaml.safe_load(text) for text in document["data"].values()]
                found += [(f"{file.name}: ConfigMap", each["kind"], each) for each in inner]
            elif document["kind"] == "CronJob":
                pod = document["spec"]["jobTemplate"]["spec"]["template"]
                found.append((f"{file.name}: CronJob", POD, pod))
            elif document["apiVersion"] == API_VERSION:
                found.append((file.name, document["kind"], document))
    return found


def read_crds(folder: Path) -> dict[str, Schema]:
    """Kind -> schema of a release, closed: a field that it does not name is an error."""
    schemas: dict[str, Schema] = {}
    for file in sorted(folder.glob("ray.io_ray*.yaml")):
        crd = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (version,) = (each for each in crd["spec"]["versions"] if each["name"] == "v1")
        schema = version["schema"]["openAPIV3Schema"]
        schema["properties"]["metadata"] = {"type": "object", "properties": METADATA}
        schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
        schemas[crd["spec"]["names"]["kind"]] = closed(schema)
    if not schemas:
        raise SystemExit(
            f"error: {folder} holds no ray.io_ray*.yaml; give helm-chart/kuberay-operator/crds of a release"
        )
    cluster = schemas["RayCluster"]["properties"]["spec"]["properties"]
    schemas[POD] = cluster["headGroupSpec"]["properties"]["template"]
    return schemas


def closed(schema: Schema) -> Schema:
    """A structural schema of Kubernetes as a plain JSON schema without room for unknown fields."""
    result = {key: schema[key] for key in (*KEPT, "required") if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if "properties" in schema:
        result["properties"] = {name: closed(each) for name, each in schema["properties"].items()}
        result["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = closed(schema["items"])
    return result


def reduced(schema: Schema, values: list[Any]) -> Schema:
    """A closed schema without the fields that none of `values` has."""
    result = {key: value for key, value in schema.items() if key not in ("properties", "items")}
    if "properties" in schema:
        used = {name for value in values for name in value} | set(schema.get("required", ()))
        result["properties"] = {
            name: reduced(each, [value[name] for value in values if name in value])
            for name, each in sorted(schema["properties"].items())
            if name in used
        }
    if "items" in schema:
        result["items"] = reduced(schema["items"], [item for value in values for item in value])
    return result


def errors(kind: str, document: dict[str, Any], schemas: dict[str, Schema]) -> list[str]:
    """What is wrong with a manifest, each with its place; nothing where it is right."""
    if kind not in schemas:
        return [f"kind {kind!r} is none of {sorted(schemas)}"]
    validator = jsonschema.Draft202012Validator(schemas[kind])
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def written(value: Any, depth: int = 0) -> str:
    """JSON in which whatever fits stands on one line."""
    line = json.dumps(value, sort_keys=True)
    if not isinstance(value, dict) or len(line) + depth < 118:
        return line
    parts = [f"{' ' * (depth + 1)}{json.dumps(name)}: {written(value[name], depth + 1)}" for name in sorted(value)]
    return "{\n" + ",\n".join(parts) + "\n" + " " * depth + "}"


def main(words: list[str]) -> int:
    """Validate against a release, then write `FIELDS`; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crds", type=Path)
    parser.add_argument("--release", required=True)
    options = parser.parse_args(words)
    schemas = read_crds(options.crds)
    found = manifests()
    wrong = [f"{place} {error}" for place, kind, document in found for error in errors(kind, document, schemas)]
    print("\n".join(wrong) or f"{len(found)} manifests are valid for KubeRay {options.release}")
    if wrong:
        return 1
    kinds = sorted({kind for _, kind, _ in found})
    fields = {kind: reduced(schemas[kind], [each for _, one, each in found if one == kind]) for kind in kinds}
    FIELDS.write_text(written({"release": options.release, "kinds": fields}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
