"""Ray for the time of a `with`: the cluster we are in, else one of our own on this machine."""

import contextlib
import importlib
import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast
from weakref import WeakSet

import ray
from ray.data import DataContext

from recsys.config import ClusterConfig
from recsys.errors import ConfigError, ray_started

RAY_DATA_THREAD = "iter_threaded"
"""Ray Data's name for the threads that fetch what is iterated over; closing an iterator does not wait for them."""
PATIENCE = 10.0  # seconds
MEANWHILE = ("recsys.models", "recsys.training.checkpoint", "recsys.evaluation.ranking", "recsys.retrieval.fold_in")
"""What training needs and takes long to load: PyTorch. Nothing of it loads Ray, as two threads must not load parts of one
another."""

T = TypeVar("T")
_executions: WeakSet[Generator[Any, None, None]] = WeakSet()


@contextmanager
def session(config: ClusterConfig, workers: int | None = None, *, only_trains: bool = False) -> Iterator[None]:
    """Connect to Ray, or start it; shut down what was started here and nothing else.

    Joined is a Ray this process already uses, or the one that RAY_ADDRESS names (`ray job submit` sets it). Otherwise one
    starts here, which lets in only who has its token, without a dashboard, with room for `workers` (`config.most_workers`)
    and their readers. Ray's own log lines stay in its session folder; RAY_LOG_TO_DRIVER=1 shows them.

    only_trains: what training needs is loaded while Ray starts, and Ray starts no processes ahead, as Ray Train's actors, which
    bring environment variables, cannot take them.
    """
    if ray.is_initialized():
        yield
        return
    with _loading(MEANWHILE if only_trains else ()):
        _connect(config, config.most_workers if workers is None else workers, starts_ahead=not only_trains)
    try:
        yield
    finally:
        _end_executions()
        ray.shutdown()


def execution(results: Iterable[T]) -> closing[Generator[T, None, None]]:
    """For a `with`: what Ray Data computes, one by one; the execution is over at the end of it, or of the session.

    One that is abandoned and outlives its Ray takes the process with it: a minute later its client misses Ray and exits.
    """
    stream = cast("Generator[T, None, None]", iter(results))
    _executions.add(stream)
    return closing(stream)


def _end_executions() -> None:
    """Close what is still open, and wait for Ray Data's threads: one that asks a Ray that is gone ends the whole process."""
    for stream in list(_executions):
        try:
            stream.close()
        except ValueError as error:  # another thread is in the middle of it, and closes it when it is through
            if "already executing" not in str(error):
                raise
    deadline = time.monotonic() + PATIENCE
    for thread in threading.enumerate():
        if thread.name == RAY_DATA_THREAD:
            thread.join(max(deadline - time.monotonic(), 0))


def reader_cpus(config: ClusterConfig) -> float:
    """CPUs that a reading task reserves: 1, or 0 where workers leave none, since then it would wait for ever."""
    return 1 if _total("CPU") - config.most_workers * config.cpus_per_worker >= 1 else 0


def takes_gpu(config: ClusterConfig) -> bool:
    """Whether each worker takes a GPU. Raises ConfigError where GPUs are demanded and there are too few."""
    enough = _total("GPU") >= config.least_workers
    if config.use_gpu == "yes" and not enough:
        raise _too_few_gpus(config, f"Ray sees {_total('GPU'):g}")
    return enough and config.use_gpu != "no"


def refuse_without_gpus(config: ClusterConfig) -> None:
    """Raises ConfigError where GPUs are demanded of this machine, and there are too few: before Ray starts on it."""
    elsewhere = not config.in_process and (ray.is_initialized() or os.environ.get("RAY_ADDRESS"))
    if config.use_gpu != "yes" or elsewhere:
        return
    import torch  # which takes long to load, but is needed then

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0  # which some drivers count and cannot use
    if found < config.least_workers:
        raise _too_few_gpus(config, f"PyTorch can use {found} here")


def _too_few_gpus(config: ClusterConfig, found: str) -> ConfigError:
    wanted = "a GPU" if config.least_workers == 1 else f"{config.least_workers} GPUs"
    fewer = "" if config.least_workers == 1 else "Lower cluster.num_workers, or "
    return ConfigError(f"cluster.use_gpu = yes, which takes {wanted}, but {found}. {fewer}{'set' if fewer else 'Set'} auto.")


def _total(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]


def _connect(config: ClusterConfig, workers: int, *, starts_ahead: bool) -> None:
    # Ray reads these when it starts: no reports home, and no warning about a default that is to change.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": os.environ.get("RAY_LOG_TO_DRIVER") == "1"}
    address = os.environ.get("RAY_ADDRESS")

    def join_or_start() -> None:
        if address:
            _knock(address)
            ray.init(address=address, **quiet)
            return
        _ensure_token_can_be_kept()
        _keep_freed_memory()
        # One more process for each training, to learn that a node is to go: here there is but one, and it goes with us.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        ahead: dict[str, Any] = {} if starts_ahead else {"_system_config": {"prestart_worker_first_driver": False}}
        ray.init(address="local", **_local_resources(config, workers), **ahead, **quiet)

    ray_started(join_or_start, address)
    _hush_ray_data()


@contextmanager
def _loading(modules: Sequence[str]) -> Iterator[None]:
    """Load modules in a thread for the time of a `with`, which ends when they are loaded."""

    def load() -> None:
        for module in modules:
            with contextlib.suppress(Exception):  # who needs it loads it again, and is told
                importlib.import_module(module)

    thread = threading.Thread(target=load, name="load", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _knock(address: str) -> None:
    """Raises OSError at once where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _local_resources(config: ClusterConfig, workers: int) -> dict[str, Any]:
    # Logical CPUs need not be cores: workers reserve theirs first, and Ray Data must find some left.
    readers = config.readers_on((os.cpu_count() or 1) // workers)
    needed = math.ceil(workers * config.cpus_per_worker) + readers + 2
    return {
        "num_cpus": max(needed, os.cpu_count() or 1),
        "object_store_memory": config.object_store_bytes,
        "include_dashboard": False,
    }


def _ensure_token_can_be_kept() -> None:
    """A Ray started here asks for a token, which Ray keeps under the home folder; where it cannot, keep it in memory."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    home = Path.home()
    kept = home / ".ray"
    if not os.access(kept if kept.exists() else home, os.W_OK):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _keep_freed_memory() -> None:
    """Let processes of this Ray use freed arrays again, up to 64 MB, where the C library would hand them back to the kernel
    and get them zeroed page by page: a fifth of ingest's time (docs/log.md)."""
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        os.environ.setdefault(name, str(64 << 20))


def _hush_ray_data() -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
