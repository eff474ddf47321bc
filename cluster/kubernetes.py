"""Check the manifests of k8s/ without a cluster: closed schemas here, what no schema can say in the two files beside.

The schemas are KubeRay's, with every field refused that they do not name. Of Kubernetes' own kinds those parts are checked
that KubeRay's embed: pods, claims, network rules, label selectors.
"""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft4Validator

from cluster.kubernetes_calls import CALLS
from cluster.kubernetes_rules import CLUSTER_SPEC, RULES, SET_RULES, Document, closed, name_of
from recsys.errors import ConfigError

KINDS = {
    "RayJob": "ray.io/v1",
    "RayService": "ray.io/v1",
    "Pod": "v1",
    "Namespace": "v1",
    "PersistentVolumeClaim": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
}


def render(overlay: Path) -> list[Document]:
    """The documents of an overlay, by kustomize. Raises ConfigError where neither kubectl nor kustomize is installed."""
    for program, *words in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(program):
            run = subprocess.run([program, *words, str(overlay)], capture_output=True, text=True, check=False)
            if run.returncode:
                raise ConfigError(f"{overlay}: {run.stderr.strip()}")
            return parse(run.stdout)
    raise ConfigError("kustomize renders overlays: install kubectl, which has it built in, or kustomize itself.")


def read(base: Path) -> list[Document]:
    """The documents that a kustomization names, as they stand: for a base, which patches nothing."""
    resources = yaml.safe_load((base / "kustomization.yaml").read_text("utf-8"))["resources"]
    return [document for name in resources for document in parse((base / name).read_text("utf-8"))]


def parse(text: str) -> list[Document]:
    """The documents of a YAML stream."""
    return [document for document in yaml.safe_load_all(text) if document]


def check(documents: Sequence[Document], schemas: Path, root: Path) -> list[str]:
    """Everything that is wrong, one line a fault; nothing if all is well.

    schemas: folder of KubeRay's custom resource definitions. root: the checkout whose train.py and constraints.txt the
    manifests speak of. Where a document does not fit its schema, no rule is tried.
    """
    misfits = [fault for document in documents for fault in _misfits(document, schemas)]
    if misfits:
        return misfits
    faults = [fault for document in documents for rule in (*RULES, *CALLS) for fault in rule(document, root)]
    return faults + [fault for set_rule in SET_RULES for fault in set_rule(documents)]


def _misfits(document: Document, schemas: Path) -> list[str]:
    kind = document.get("kind")
    if kind not in KINDS:
        return [f"{name_of(document)}: of a kind that is not checked here; there are {', '.join(KINDS)}."]
    errors = Draft4Validator(schema_of(kind, schemas)).iter_errors(document)
    return [f"{name_of(document)}: {error.json_path}: {error.message}" for error in errors]


@cache
def schema_of(kind: str, schemas: Path) -> dict[str, Any]:
    """The closed schema of a kind, as JSON schema (draft 4, whose exclusive bounds are OpenAPI's)."""
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    names = {"name": {"type": "string"}, "namespace": {"type": "string"}}
    metadata = {"type": "object", "required": ["name"], "properties": {**names, "labels": texts, "annotations": texts}}
    fields = {"apiVersion": {"enum": [KINDS[kind]]}, "kind": {"enum": [kind]}, "metadata": metadata}
    if kind in CLUSTER_SPEC:
        fields["spec"] = _crd_spec(schemas, kind)
    elif kind in _PARTS:
        fields["spec"] = _PARTS[kind](_crd_spec(schemas, "RayCluster")["properties"])
    return closed({"type": "object", "required": list(fields), "properties": fields})


@cache
def _crd_spec(folder: Path, kind: str) -> dict[str, Any]:
    """Schema of the spec of one of KubeRay's kinds, in the version that is stored."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is
    definition = yaml.load((folder / f"ray.io_{kind.lower()}s.yaml").read_text("utf-8"), Loader=loader)
    stored = next(version for version in definition["spec"]["versions"] if version["storage"])
    return _at(stored["schema"]["openAPIV3Schema"]["properties"], "spec")


# Where in a RayCluster's properties the parts of Kubernetes' own kinds are described.


def _at(schema: dict[str, Any], path: str) -> dict[str, Any]:
    for step in path.split("/"):
        schema = schema[step]
    return schema


def _pod(cluster: dict[str, Any]) -> dict[str, Any]:
    return _at(cluster, "headGroupSpec/properties/template/properties/spec")


def _claim(cluster: dict[str, Any]) -> dict[str, Any]:
    ephemeral = _at(_pod(cluster), "properties/volumes/items/properties/ephemeral")
    return _at(ephemeral, "properties/volumeClaimTemplate/properties/spec")


def _selector(cluster: dict[str, Any]) -> dict[str, Any]:
    return _at(_pod(cluster), "properties/topologySpreadConstraints/items/properties/labelSelector")


def _network_policy(cluster: dict[str, Any]) -> dict[str, Any]:
    rules = _at(cluster, "networkPolicy/properties/workerGroups/items/properties")
    types = {"type": "array", "items": {"enum": ["Ingress", "Egress"]}}
    ways = {"ingress": rules["ingressRules"], "egress": rules["egressRules"]}
    properties = {"podSelector": _selector(cluster), "policyTypes": types, **ways}
    return {"type": "object", "required": ["podSelector", "policyTypes"], "properties": properties}


def _disruption_budget(cluster: dict[str, Any]) -> dict[str, Any]:
    # Kubernetes knows shares and maxUnavailable too, but not for pods whose owner it cannot ask how many there should be.
    properties = {"minAvailable": {"type": "integer", "minimum": 1}, "selector": _selector(cluster)}
    return {"type": "object", "required": ["minAvailable", "selector"], "properties": properties}


_PARTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "Pod": _pod,
    "PersistentVolumeClaim": _claim,
    "NetworkPolicy": _network_policy,
    "PodDisruptionBudget": _disruption_budget,
}
