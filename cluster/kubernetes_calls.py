"""What the manifests call, tried on the code they name, without running it: command, settings, import paths."""

import argparse
import importlib
import importlib.util
import math
import re
import shlex
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError

from cluster.kubernetes_rules import Document, Faults, Pod, closed, cluster_of, name_of, pods_of
from recsys.config import ClusterConfig, load_config
from recsys.errors import ConfigError

SHELL = re.compile(r"[;&|<>$`\n]+")
SPARE_CPUS = 2  # for Ray Data's tasks


def command(document: Document, root: Path) -> Faults:
    """The job's command, tried on the parser of the script it runs, and its settings on the room there is."""
    if document["kind"] != "RayJob":
        return
    entrypoint = document["spec"].get("entrypoint", "")
    if found := SHELL.search(entrypoint):
        yield f"{name_of(document)}: {found[0]} in entrypoint: KubeRay pastes it into the submitter's shell."
        return
    words = shlex.split(entrypoint)
    try:
        _parse_command(words, root)
        config = load_config(None, [value for flag, value in pairwise(words) if flag == "--set"])
    except ConfigError as error:
        yield f"{name_of(document)}: `{entrypoint}`: {error}"
    else:
        yield from _room(document, config.cluster)


class _Understood(Exception):  # noqa: N818 - no error: the arguments were parsed, and that is far enough
    pass


def _stopping_parser(words: list[str]) -> type[argparse.ArgumentParser]:
    """A parser that parses these words, and then stops the program instead of letting it run."""

    class Parser(argparse.ArgumentParser):
        def parse_args(self, args: Any = None, namespace: Any = None) -> NoReturn:
            super().parse_args(words)
            raise _Understood

        def error(self, message: str) -> NoReturn:
            raise ConfigError(message)

        def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
            raise ConfigError("only prints help.")

    return Parser


def _parse_command(words: list[str], root: Path) -> None:
    """Raises ConfigError unless it is `python SCRIPT` with a script of the checkout, and arguments that its parser takes."""
    if words[:1] != ["python"] or len(words) < 2 or not (root / words[1]).is_file():
        raise ConfigError(f"not `python SCRIPT` with a script of {root}.")
    script: Any = _load(root / words[1])
    if not (hasattr(script, "main") and hasattr(script, "argparse")):  # its main() would run in earnest
        raise ConfigError(f"{words[1]} has no main() that parses by argparse, so its arguments cannot be checked.")
    script.argparse = SimpleNamespace(ArgumentParser=_stopping_parser(words[2:]))  # in this copy of the script alone
    with suppress(_Understood):
        script.main()


def _load(path: Path) -> ModuleType:
    """A copy of a script, under another name than __main__, so that it does not run."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # so it is for every .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _room(document: Document, config: ClusterConfig) -> Faults:
    """Whether the workers fit, with CPUs to spare: without any for Ray Data, training waits for ever."""
    if config.in_process:
        yield f"{name_of(document)}: cluster.num_workers = 0 would train in the head's pod, which has no room for it."
    groups = (cluster_of(document) or {}).get("workerGroupSpecs", [])
    cpus = sum(_quantity(group, "cpu") for group in groups)
    if cpus < (needed := config.most_workers * config.cpus_per_worker + SPARE_CPUS):
        yield f"{name_of(document)}: {cpus:g} CPUs in its workers, {needed:g} needed by cluster.num_workers and Ray Data."
    gpus = sum(_quantity(group, "nvidia.com/gpu") for group in groups)
    if config.use_gpu == "yes" and gpus < config.most_workers:
        yield f"{name_of(document)}: {gpus:g} GPUs in its workers, cluster.num_workers = {config.most_workers}."
    for pod in pods_of(document):
        if pod.role in ("head", "worker") and not _mounted(config.storage, pod):
            yield f"{pod.where}: cluster.storage = {config.storage} is on none of its volumes: {', '.join(pod.mounts)}."


def _quantity(group: dict[str, Any], resource: str) -> float:
    """How much of a resource a worker group has at its smallest. Ray counts limits, not requests."""
    limit = str(group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {}).get(resource, 0))
    each = float(limit[:-1]) / 1000 if limit.endswith("m") else float(limit)
    return float(group["minReplicas"] * math.floor(each))  # Ray rounds a pod's CPUs


def _mounted(path: str, pod: Pod) -> bool:
    return "://" in path or any(Path(path).is_relative_to(mount) for mount in pod.mounts)


def serve_config(document: Document, root: Path) -> Faults:
    """serveConfigV2, on Ray's own schema closed, and each application's import path and arguments on the code."""
    if document["kind"] != "RayService":
        return
    from ray.serve.schema import ServeDeploySchema  # takes a second

    config = yaml.safe_load(document["spec"].get("serveConfigV2", ""))
    errors = Draft202012Validator(closed(ServeDeploySchema.model_json_schema())).iter_errors(config)
    if faults := [f"{name_of(document)}: serveConfigV2 {error.json_path}: {error.message}" for error in errors]:
        yield from faults
        return
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        yield f"{name_of(document)}: serveConfigV2: {_explain(error)}"
    workers = [pod for pod in pods_of(document) if pod.role == "worker"]
    for application in config["applications"]:
        faults = _application_faults(application, workers)
        yield from (f"{name_of(document)}: {application['import_path']}: {fault}" for fault in faults)


def _application_faults(application: dict[str, Any], workers: list[Pod]) -> list[str]:
    arguments = application.get("args", {})
    module, _, name = application["import_path"].partition(":")
    try:
        builder = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        return [str(error)]
    model = _arguments_model(builder)
    if model is None:
        return ["takes no pydantic model of arguments, so they cannot be checked."]
    faults = [f"no argument {unknown}." for unknown in sorted(set(arguments) - set(model.model_fields))]
    try:
        model.model_validate(arguments)
    except ValidationError as error:
        faults.append(_explain(error))
    paths = [value for value in arguments.values() if isinstance(value, str) and value.startswith("/")]
    return faults + [f"{path} is on no volume of {pod.where}." for path in paths for pod in workers if not _mounted(path, pod)]


def _arguments_model(builder: Any) -> type[BaseModel] | None:
    """The pydantic model among the types of a builder's parameters, which is how Ray Serve finds it too."""
    hints = [hint for name, hint in get_type_hints(builder).items() if name != "return"]
    types = [one for hint in hints for one in (hint, *get_args(hint))]
    return next((one for one in types if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


CALLS = (command, serve_config)
