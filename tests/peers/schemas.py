"""Writes JSON schemas for kubeconform: schemas.py OUT_DIR VERSION OLDER_VERSION CRD_DIR...

OUT_DIR/VERSION/KIND-GROUP-VERSION.json are those that the package kubernetes-validate brings, made fit for reading from a
folder; OUT_DIR/crds holds those of the custom resources of every CRD_DIR, and their definitions. Unknown keys are refused
everywhere.
"""

import json
import pathlib
import sys

import kubernetes_validate
import yaml

out, newer, older, *crds = sys.argv[1:]
out = pathlib.Path(out)
source = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"


def closed(schema):
    """Refuses keys that a schema of a custom resource does not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


for version in [newer, older]:
    folder = out / version
    folder.mkdir(parents=True)
    for file in (source / f"{version}-local-strict").glob("*.json"):
        schema = json.loads(file.read_text())
        # With an address of their own, schemas would be looked for there.
        schema.pop("$id", None)
        text = json.dumps(schema).replace('"/api/_definitions.json#', '"_definitions.json#')
        (folder / file.name).write_text(text)

# An enumeration of operators has a bare "=", which YAML 1.1 takes for something else.
yaml.SafeLoader.yaml_implicit_resolvers.pop("=", None)
(out / "crds").mkdir()
for file in [file for folder in crds for file in pathlib.Path(folder).glob("*.yaml")]:
    text = file.read_text()
    crd = yaml.safe_load(text)["spec"]
    (out / "crds" / file.name).write_text(text)
    group, kind = crd["group"].split(".")[0], crd["names"]["kind"].lower()
    for version in crd["versions"]:
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        (out / "crds" / f"{kind}-{group}-{version['name']}.json").write_text(json.dumps(schema))
