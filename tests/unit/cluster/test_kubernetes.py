"""k8s/ is right, and the check would notice if it were not: each fault is put in and must be named."""

import copy
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.kubernetes import check, parse, read, render
from recsys.errors import ConfigError

ROOT = Path(__file__).parents[3]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.parent.relative_to(K8S).as_posix() for path in K8S.rglob("kustomization.yaml"))
SCHEMAS = Path(os.environ.get("RECSYS_KUBERAY") or ROOT.parent / "shared" / "kuberay").absolute()

needs_kustomize = pytest.mark.skipif(
    not (shutil.which("kubectl") or shutil.which("kustomize")), reason="neither kubectl nor kustomize is installed"
)
# Ray's own serve.schema declares a field in a way that pydantic 2 deprecates; it says so when it is first imported.
ray_declares_fields_the_old_way = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field`:pydantic.warnings.PydanticDeprecatedSince20"
)
pytestmark = ray_declares_fields_the_old_way

Manifests = dict[str, dict[str, Any]]


@functools.cache
def base() -> list[dict[str, Any]]:
    return read(K8S / "base")


def faults_of(documents: list[dict[str, Any]], root: Path = ROOT) -> list[str]:
    if not SCHEMAS.is_dir():
        pytest.skip("KubeRay's schemas are not here: set $RECSYS_KUBERAY")
    return check(documents, SCHEMAS, root)


def faults_after(change: Callable[[Manifests], object]) -> str:
    """What the check says of base/ once it is changed; documents by "Kind/name"."""
    documents = copy.deepcopy(base())
    change({f"{document['kind']}/{document['metadata']['name']}": document for document in documents})
    return "\n".join(faults_of(documents))


def put(path: str, value: Any) -> Callable[[Manifests], None]:
    """A change: the value at a path like RayJob/recsys-train:spec.x.0.y; None takes it away."""
    document, _, steps = path.partition(":")
    *above, last = [int(step) if step.isdigit() else step for step in steps.split(".")]

    def change(manifests: Manifests) -> None:
        place = functools.reduce(lambda node, step: node[step], above, manifests[document])
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


def configure(change: Callable[[dict[str, Any]], object]) -> Callable[[Manifests], None]:
    """A change inside the RayService's serveConfigV2."""

    def changed(manifests: Manifests) -> None:
        spec = manifests["RayService/recsys-serve"]["spec"]
        config = yaml.safe_load(spec["serveConfigV2"])
        change(config)
        spec["serveConfigV2"] = yaml.safe_dump(config)

    return changed


def second_group(manifests: Manifests) -> None:
    """Another worker group of the job's, with the first one's name."""
    groups = manifests["RayJob/recsys-train"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    groups.append(copy.deepcopy(groups[0]))


ON_FAILURE = {"deletionRules": [{"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED"}}]}
JOB, SERVICE = "RayJob/recsys-train:spec", "RayService/recsys-serve:spec"
JOB_HEAD, JOB_WORKER = f"{JOB}.rayClusterSpec.headGroupSpec", f"{JOB}.rayClusterSpec.workerGroupSpecs.0"
SERVICE_HEAD = f"{SERVICE}.rayClusterConfig.headGroupSpec"
WORKER_POD = f"{JOB_WORKER}.template.spec"
WORKER_CONTAINER = f"{WORKER_POD}.containers.0"


def test_base_is_right() -> None:
    assert faults_of(base()) == []


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_is_right_as_kustomize_renders_it(overlay: str) -> None:
    assert faults_of(render(K8S / overlay)) == []


def test_base_runs_the_job_and_the_service_that_are_promised() -> None:
    specs = {document["kind"]: document["spec"] for document in base() if "spec" in document}
    assert specs["RayJob"]["entrypoint"].startswith("python train.py ")
    (application,) = yaml.safe_load(specs["RayService"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "serve.app:build"


def test_serve_pods_start_ray_as_the_command_does() -> None:
    from serve.app import RAYS_SETTINGS

    (service,) = [document for document in base() if document["kind"] == "RayService"]
    cluster = service["spec"]["rayClusterConfig"]
    wanted = {name: value for name, value in RAYS_SETTINGS.items() if name != "RAY_USAGE_STATS_ENABLED"}
    assert len(wanted) == 3
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            assert {each["name"]: each["value"] for each in container["env"]} == wanted


def test_dockerfile_builds_on_the_pinned_ray() -> None:
    pin = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert f"ARG RAY_VERSION={pin.removeprefix('ray==')}\n" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(f"{JOB}.backofLimit", 2), "'backofLimit' was unexpected"),
        (put(f"{JOB}.backoffLimit", "two"), "'two' is not of type 'integer'"),
        (put(f"{WORKER_CONTAINER}.imagePullPolice", "Never"), "'imagePullPolice' was unexpected"),
        (put(f"{JOB_WORKER}.maxReplicas", None), "'maxReplicas' is a required property"),
        (put(f"{SERVICE}.rayClusterSpec", {}), "'rayClusterSpec' was unexpected"),
        (put("RayJob/recsys-train:metadata.label", {}), "'label' was unexpected"),
        (put("RayJob/recsys-train:apiVersion", "ray.io/v1alpha1"), "is not one of ['ray.io/v1']"),
        (put("NetworkPolicy/ask-dns:spec.egress.0.port", 53), "'port' was unexpected"),
        (put("PersistentVolumeClaim/recsys-storage:spec.accessMode", "RWX"), "'accessMode' was unexpected"),
        (put("PodDisruptionBudget/recsys-serve:spec.minAvailable", "50%"), "'50%' is not of type 'integer'"),
        (put("Namespace/recsys:kind", "Deployment"), "of a kind that is not checked"),
    ],
)
def test_schema_refuses(change: Callable[[Manifests], None], said: str) -> None:
    assert said in faults_after(change)


ENTRYPOINT = "python train.py /storage/dataset --set cluster.storage=/storage/runs "


@pytest.mark.parametrize(
    ("entrypoint", "said"),
    [
        (ENTRYPOINT + "--epocs 3", "unrecognized arguments: --epocs 3"),
        ("python train.py --set cluster.storage=/storage/runs", "required: dataset"),
        (ENTRYPOINT + "another", "unrecognized arguments: another"),
        (ENTRYPOINT + "--help", "only prints help"),
        (ENTRYPOINT + "--set train.epocs=3", "Did you mean epochs?"),
        (ENTRYPOINT + "--set train.epochs=many", "train.epochs = 'many'"),
        ("python trian.py /storage/dataset", "not `python SCRIPT`"),
        ("ptyhon train.py /storage/dataset", "not `python SCRIPT`"),
        (ENTRYPOINT + "&& recsys export /storage/runs/films", "&& in entrypoint"),
        (ENTRYPOINT + "> log", "> in entrypoint"),
        (ENTRYPOINT + "--set cluster.num_workers=8", "8 CPUs in its workers, 10 needed"),
        (ENTRYPOINT + "--set cluster.num_workers=0", "cluster.num_workers = 0 would train in the head's pod"),
        (ENTRYPOINT + "--set cluster.use_gpu=yes", "0 GPUs in its workers"),
        ("python train.py /storage/dataset", "cluster.storage = runs is on none of its volumes"),
    ],
)
def test_refuses_a_wrong_command(entrypoint: str, said: str) -> None:
    assert said in faults_after(put(f"{JOB}.entrypoint", entrypoint))


def test_script_that_cannot_be_checked_is_not_run(tmp_path: Path) -> None:
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    (tmp_path / "train.py").write_text("def main():\n    raise SystemExit('it ran')\n")
    assert "has no main() that parses by argparse" in "\n".join(faults_of(base(), tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config["applications"][0]["args"].update(bundels="/storage"), "no argument bundels"),
        (lambda config: config["applications"][0]["args"].update(replicas="many"), "replicas: Input should be a valid integer"),
        (lambda config: config["applications"][0]["args"].pop("bundles"), "bundles: Field required"),
        (lambda config: config["applications"][0]["args"].update(bundles="/elsewhere"), "/elsewhere is on no volume"),
        (lambda config: config["applications"][0].update(import_path="serve.app:biuld"), "has no attribute 'biuld'"),
        (lambda config: config["applications"][0].update(import_path="serve.ap:build"), "No module named 'serve.ap'"),
        (lambda config: config["applications"][0].update(rout_prefix="/"), "'rout_prefix' was unexpected"),
        (lambda config: config["http_options"].update(prot=80), "'prot' was unexpected"),
        (lambda config: config["http_options"].update(port="http"), "'http' is not of type 'integer'"),
        (lambda config: config["applications"].append(dict(config["applications"][0])), "serveConfigV2"),
    ],
)
def test_refuses_a_wrong_serve_config(change: Callable[[dict[str, Any]], object], said: str) -> None:
    assert said in faults_after(configure(change))


def renamed(path: str, name: str) -> Callable[[Manifests], None]:
    return put(f"{path}:metadata.name", name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed("RayJob/recsys-train", "a" * 48), "at most 47"),
        (renamed("RayService/recsys-serve", "Recsys"), "at most 47"),
        (put(f"{JOB}.rayClusterSpec", None), "describes no cluster"),
        (put(f"{JOB}.rayClusterSpec.rayVersion", "2.59.0"), "constraints.txt pins ray"),
        (put(f"{WORKER_CONTAINER}.image", "recsys-cluster:latest"), "image recsys-cluster:latest is not tagged"),
        (put(f"{JOB_WORKER}.minReplicas", 3), "minReplicas ≤ replicas ≤ maxReplicas"),
        (second_group, "two worker groups of one name"),
        (put(f"{SERVICE}.rayClusterConfig.autoscalerOptions.version", "v1"), "must be v2"),
        (put(f"{SERVICE_HEAD}.template.spec.restartPolicy", "Always"), "restartPolicy is Never"),
        (put(f"{SERVICE}.rayClusterConfig.autoscalerOptions.securityContext", None), "autoscaler: must drop ALL"),
        (put(f"{JOB}.shutdownAfterJobFinishes", False), "need shutdownAfterJobFinishes"),
        (put(f"{JOB}.deletionStrategy", ON_FAILURE), "exclude each other"),
        (put(f"{JOB}.submissionMode", "HTTPMode"), "HTTPMode has no submitter pod"),
        (put(f"{JOB}.rayClusterSpec.authOptions.mode", "disabled"), "authOptions"),
        (put(f"{JOB}.rayClusterSpec.authOptions.enableK8sTokenAuth", True), "authOptions"),
        (put(f"{JOB_HEAD}.serviceType", "LoadBalancer"), "dashboard must stay within"),
        (put(f"{JOB_HEAD}.enableIngress", True), "dashboard must stay within"),
        (put(f"{JOB_HEAD}.rayStartParams", {}), "head takes no work"),
        (put(f"{WORKER_POD}.hostNetwork", True), "shares the host's network"),
        (put(f"{WORKER_POD}.volumes.1", {"name": "shm", "hostPath": {"path": "/"}}), "volume shm"),
        (put(f"{WORKER_POD}.securityContext", {"runAsNonRoot": True}), "runAsUser by number"),
        (put(f"{WORKER_POD}.securityContext.seccompProfile", None), "needs seccompProfile"),
        (put(f"{WORKER_CONTAINER}.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_PTRACE"]}), "drop ALL"),
        (put(f"{WORKER_CONTAINER}.securityContext.allowPrivilegeEscalation", True), "gain privileges"),
        (put(f"{JOB_HEAD}.template.spec.containers.0.ports.1.hostPort", 8265), "a hostPort"),
        (put(f"{WORKER_POD}.automountServiceAccountToken", None), "does not ask the API server"),
        (put(f"{WORKER_CONTAINER}.resources.requests.memory", "1Gi"), "as much memory as the limit"),
        (put(f"{WORKER_CONTAINER}.env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]), "is written out"),
        (put(f"{WORKER_CONTAINER}.env", [{"name": "RAY_SERVE_THROUGHPUT_OPTIMIZED", "value": "1"}]), "both or neither"),
        (put("NetworkPolicy/deny-all:spec.policyTypes", ["Ingress"]), "no NetworkPolicy that denies everything"),
        (put("NetworkPolicy/train-within:spec.podSelector.matchLabels", {"app": "trian"}), "selects no pod"),
        (put("PodDisruptionBudget/recsys-serve:spec.selector.matchLabels", {"app": "sreve"}), "selects no pod"),
        (renamed("PersistentVolumeClaim/recsys-storage", "storage"), "claims recsys-storage"),
        (put("Namespace/recsys:metadata.labels", {}), "restricted pod security standard"),
    ],
)
def test_rule_refuses(change: Callable[[Manifests], None], said: str) -> None:
    assert said in faults_after(change)


def test_token_needs_a_ray_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("ray==2.51.1\n")
    assert "RayJob/recsys-train: tokens need Ray 2.52 or newer." in faults_of(base(), tmp_path)


def test_secret_by_reference_is_fine() -> None:
    reference = {"secretKeyRef": {"name": "s3", "key": "secret"}}
    env = [{"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": reference}]
    assert faults_after(put(f"{WORKER_CONTAINER}.env", env)) == ""


@needs_kustomize
def test_overlay_that_kustomize_refuses_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [gone.yaml]\n")
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        render(tmp_path)


def test_without_kustomize_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="install kubectl"):
        render(K8S / "base")


def test_shell_pod_is_right() -> None:
    shell = parse((K8S / "shell.yaml").read_text("utf-8"))
    assert faults_of([*base(), *shell]) == []
