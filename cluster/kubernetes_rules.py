"""What no schema says of a manifest: the limits of KubeRay's controller, and what keeps pods and ports safe.

A rule takes one document (which fits its schema) and the checkout, and yields a line for each fault. The limits are those
of KubeRay 1.7's validation and of the restricted pod security standard.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recsys import __version__
from recsys.errors import ConfigError

Document = dict[str, Any]
Faults = Iterator[str]

CLUSTER_SPEC = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
RAY_NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")  # KubeRay adds to it, and the whole must remain a label of DNS
SAFE_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|PRIVATE|ACCESS_?KEY|API_?KEY", re.IGNORECASE)
SERVE_FLAGS = {"RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED"}


class Pod(NamedTuple):
    """A pod template in a manifest. role: head, worker, submitter or plain."""

    where: str
    role: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All of them, those that only run first included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def mounts(self) -> list[str]:
        """Where its last container, the one that works, finds volumes."""
        return [mount["mountPath"] for mount in self.containers[-1].get("volumeMounts", [])]


def name_of(document: Document) -> str:
    """Kind and name, as kubectl writes them."""
    return f"{document.get('kind')}/{(document.get('metadata') or {}).get('name')}"


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The same JSON schema, refusing fields that it does not name wherever it names any."""
    result = dict(schema)
    for group in ("properties", "$defs"):
        if group in schema:
            result[group] = {name: closed(part) for name, part in schema[group].items()}
    for part in ("items", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            result[part] = closed(schema[part])
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def cluster_of(document: Document) -> dict[str, Any] | None:
    """The Ray cluster that a RayJob or RayService describes."""
    cluster: dict[str, Any] | None = document.get("spec", {}).get(CLUSTER_SPEC.get(document["kind"]))
    return cluster


def pods_of(document: Document) -> Iterator[Pod]:
    """Every pod template of a document."""
    spec, name = document.get("spec", {}), name_of(document)
    if document["kind"] == "Pod":
        yield Pod(name, "plain", document["metadata"].get("labels", {}), spec)
    if template := spec.get("submitterPodTemplate"):
        yield _pod(f"{name} submitter", "submitter", template)
    if cluster := cluster_of(document):
        yield _pod(f"{name} head", "head", cluster["headGroupSpec"]["template"])
        for group in cluster.get("workerGroupSpecs", []):
            yield _pod(f"{name} workers {group['groupName']}", "worker", group["template"])


def _pod(where: str, role: str, template: dict[str, Any]) -> Pod:
    return Pod(where, role, template.get("metadata", {}).get("labels", {}), template["spec"])


# KubeRay's limits


def _short_name(document: Document, root: Path) -> Faults:
    if document["kind"] in CLUSTER_SPEC and not RAY_NAME.fullmatch(document["metadata"]["name"]):
        yield f"{name_of(document)}: KubeRay takes at most 47 of a-z, 0-9 and -, the first a letter, the last no dash."


def _own_cluster(document: Document, root: Path) -> Faults:
    if document["kind"] in CLUSTER_SPEC and cluster_of(document) is None:
        yield f"{name_of(document)}: describes no cluster ({CLUSTER_SPEC[document['kind']]})."


def _one_ray_version(document: Document, root: Path) -> Faults:
    ray = pinned(root, "ray")
    cluster = cluster_of(document)
    if cluster and cluster.get("rayVersion") != ray:
        yield f"{name_of(document)}: rayVersion {cluster.get('rayVersion')}, but constraints.txt pins ray {ray}."
    for pod in pods_of(document):
        for image in (container.get("image", "") for container in pod.containers):
            if not re.fullmatch(rf".+:{re.escape(__version__)}-ray{re.escape(ray)}(-gpu)?", image):
                yield f"{pod.where}: image {image} is not tagged {__version__}-ray{ray}, or the same with -gpu."


def pinned(root: Path, package: str) -> str:
    """The version of a package in constraints.txt."""
    found = re.search(rf"^{package}==(\S+)$", (root / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    if not found:
        raise ConfigError(f"{root / 'constraints.txt'}: pins no {package}. Add the version that was tested.")
    return found[1]


def _sane_groups(document: Document, root: Path) -> Faults:
    groups = (cluster_of(document) or {}).get("workerGroupSpecs", [])
    names = [group["groupName"] for group in groups]
    if len(names) != len(set(names)):
        yield f"{name_of(document)}: two worker groups of one name: {', '.join(names)}."
    for group in groups:
        if not group["minReplicas"] <= group.get("replicas", group["minReplicas"]) <= group["maxReplicas"]:
            yield f"{name_of(document)}: group {group['groupName']}: minReplicas ≤ replicas ≤ maxReplicas does not hold."


def _autoscaler_v2(document: Document, root: Path) -> Faults:
    cluster = cluster_of(document) or {}
    if not cluster.get("enableInTreeAutoscaling"):
        return
    options = cluster.get("autoscalerOptions", {})
    if options.get("version") != "v2":
        yield f"{name_of(document)}: autoscalerOptions.version must be v2."
    for pod in pods_of(document):
        if pod.role == "head":
            yield from _container_faults(f"{pod.where} autoscaler", options, pod.spec.get("securityContext", {}))
        if pod.role in ("head", "worker") and pod.spec.get("restartPolicy", "Never") != "Never":
            yield f"{pod.where}: with autoscaler v2 restartPolicy is Never."


def _job_ends_cleanly(document: Document, root: Path) -> Faults:
    if document["kind"] != "RayJob":
        return
    spec = document["spec"]
    stops = spec.get("shutdownAfterJobFinishes", False)
    if not stops and (spec.get("ttlSecondsAfterFinished") or spec.get("suspend")):
        yield f"{name_of(document)}: ttlSecondsAfterFinished and suspend need shutdownAfterJobFinishes: true."
    if stops and spec.get("deletionStrategy", {}).get("deletionRules"):
        yield f"{name_of(document)}: deletionRules and shutdownAfterJobFinishes exclude each other."
    if spec.get("submissionMode") == "HTTPMode" and "submitterPodTemplate" in spec:
        yield f"{name_of(document)}: HTTPMode has no submitter pod."


# Safety


def _guarded_by_token(document: Document, root: Path) -> Faults:
    if (cluster := cluster_of(document)) is None:
        return
    auth = cluster.get("authOptions", {})
    if auth.get("mode") != "token" or auth.get("enableK8sTokenAuth"):
        yield f"{name_of(document)}: authOptions: mode token without enableK8sTokenAuth; Ray's ports run any code sent to them."
    if tuple(map(int, pinned(root, "ray").split(".")[:2])) < (2, 52):
        yield f"{name_of(document)}: tokens need Ray 2.52 or newer."


def _head_keeps_to_itself(document: Document, root: Path) -> Faults:
    if (cluster := cluster_of(document)) is None:
        return
    head = cluster["headGroupSpec"]
    if head.get("enableIngress") or head.get("serviceType", "ClusterIP") != "ClusterIP" or "headService" in head:
        yield f"{name_of(document)}: the dashboard must stay within: no ingress, no service but ClusterIP, no headService."
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield f'{name_of(document)}: the head takes no work: rayStartParams num-cpus "0".'


def _restricted_pods(document: Document, root: Path) -> Faults:
    for pod in pods_of(document):
        if any(pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{pod.where}: shares the host's network, processes or memory."
        for volume in pod.spec.get("volumes", []):
            if not set(volume) - {"name"} <= SAFE_VOLUMES:
                yield f"{pod.where}: volume {volume['name']} is of a kind that the restricted standard refuses."
        for container in pod.containers:
            where = f"{pod.where} container {container['name']}"
            yield from _container_faults(where, container, pod.spec.get("securityContext", {}))
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{where}: a hostPort opens it to the host's network."


def _container_faults(where: str, container: dict[str, Any], pod_context: dict[str, Any]) -> Faults:
    context = pod_context | container.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield f"{where}: must not be root: runAsNonRoot: true, and a runAsUser by number."
    if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
        yield f"{where}: must not gain privileges: allowPrivilegeEscalation: false."
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{where}: must drop ALL capabilities."
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{where}: needs seccompProfile RuntimeDefault."


def _no_needless_token(document: Document, root: Path) -> Faults:
    scales = (cluster_of(document) or {}).get("enableInTreeAutoscaling", False)
    for pod in pods_of(document):
        if pod.spec.get("automountServiceAccountToken") is not False and not (pod.role == "head" and scales):
            yield f"{pod.where}: does not ask the API server, so automountServiceAccountToken: false."


def _memory_is_promised(document: Document, root: Path) -> Faults:
    for pod in pods_of(document):
        for container in pod.containers:
            resources = container.get("resources", {})
            asked, most = (resources.get(side, {}).get("memory") for side in ("requests", "limits"))
            if asked is None or asked != most:
                yield f"{pod.where} container {container['name']}: ask for as much memory as the limit, which Ray counts on."


def _environment(document: Document, root: Path) -> Faults:
    for pod in pods_of(document):
        variables = {one["name"]: one for container in pod.containers for one in container.get("env", [])}
        for name, variable in variables.items():
            if "value" in variable and SECRET_NAME.search(name):
                yield f"{pod.where}: {name} is written out; take it from a secret (valueFrom.secretKeyRef)."
        if len(variables.keys() & SERVE_FLAGS) == 1:
            yield f"{pod.where}: {' and '.join(sorted(SERVE_FLAGS))}: both or neither: one alone leaves workers no proxy."


# All documents together


def _denied_by_default(documents: Sequence[Document]) -> Faults:
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    if {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} not in policies:
        yield "no NetworkPolicy that denies everything (podSelector {}, both policyTypes, no rule): Ray's ports would be open."


def _selectors_find_pods(documents: Sequence[Document]) -> Faults:
    """Labels that KubeRay sets itself (ray.io/…) cannot be known here; all others must be on a pod template."""
    pods = [pod.labels for document in documents for pod in pods_of(document)]
    for document in documents:
        if document["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            selector = document["spec"].get("podSelector") or document["spec"].get("selector") or {}
            labels = {key: value for key, value in selector.get("matchLabels", {}).items() if not key.startswith("ray.io/")}
            if not any(labels.items() <= pod.items() for pod in pods):
                yield f"{name_of(document)}: selects no pod of these manifests."


def _claims_exist(documents: Sequence[Document]) -> Faults:
    claims = {document["metadata"]["name"] for document in documents if document["kind"] == "PersistentVolumeClaim"}
    for pod in (pod for document in documents for pod in pods_of(document)):
        for volume in pod.spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims:
                yield f"{pod.where}: claims {claim}, which is not among these manifests."


def _namespace_is_restricted(documents: Sequence[Document]) -> Faults:
    for document in documents:
        labels = document["metadata"].get("labels", {})
        if document["kind"] == "Namespace" and labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{name_of(document)}: must enforce the restricted pod security standard."


RULES: tuple[Callable[[Document, Path], Faults], ...] = (
    _short_name,
    _own_cluster,
    _one_ray_version,
    _sane_groups,
    _autoscaler_v2,
    _job_ends_cleanly,
    _guarded_by_token,
    _head_keeps_to_itself,
    _restricted_pods,
    _no_needless_token,
    _memory_is_promised,
    _environment,
)
SET_RULES: tuple[Callable[[Sequence[Document]], Faults], ...] = (
    _denied_by_default,
    _selectors_find_pods,
    _claims_exist,
    _namespace_is_restricted,
)
