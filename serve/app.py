"""The service on Ray Serve: one deployment that takes HTTP, batches and answers.

serve run serve.app:build bundles=/srv/bundles          on any Ray; addresses come from Serve's own settings
recsys serve /srv/bundles                               starts Ray and Serve here, and stops them again
"""

import importlib.util
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve import config, context

from recsys.bundle.read import open_bundle
from recsys.bundle.store import resolve
from recsys.errors import ConfigError, ray_started
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Request
from serve.args import ServeArgs
from serve.ending import end_without_ray, own_sigterm_kept, told_to_stop
from serve.events.event import EventStore, StoreError
from serve.events.feed import Feed, is_address, open_store
from serve.http import create_app
from serve.keys import Keys
from serve.live import Live
from serve.metrics import RayMetrics
from serve.news import Tell, told_while
from serve.ports import end_orphan, require_port
from serve.proxy import CALLBACK, VARIABLE
from serve.urgency import reporters_give_way

log = logging.getLogger("serve")

APP_NAME = "recsys"
OBJECT_STORE_BYTES = 100 << 20  # requests and answers are small
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
HAPROXY_FLAGS = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}  # of use only together
RAYS_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # else replicas and their proxy give way to all else on the host, Ray's own errands among it
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a proxy is replaced after three in vain, which else takes half a minute
    **CALLBACK,
}
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
SWITCH_S = 0.0005
"""So long a thread that opens a bundle keeps answers waiting, each time they have waited for anything: a tenth of the usual."""
HAPROXY_TIMEOUT = "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"  # an hour, if nobody says otherwise
HAPROXY_DRAINING, DRAINING_S = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", 2
"""So long a replica that is to stop answers on, until HAProxy knows: half a minute, else, for balancers on other hosts."""


@ray_serve.deployment(name="recommend")
@ray_serve.ingress()
class Replica:
    """One process that answers: HTTP, batching and recommender in one, so that a request crosses no further border."""

    def __init__(self, args: ServeArgs) -> None:
        _log_as_serve_does()
        sys.setswitchinterval(SWITCH_S)
        self.args, self.live, self.metrics = args, Live(args), RayMetrics()
        self.live.watch()
        self.metrics.watch(self.live)
        store = open_store(args.events, Path(args.bundles), args.name)
        self.feed = None if store is None else Feed(store)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(lambda: self.live, self.args, self.feed, self.metrics, echo_request_id=False)

    def check_health(self) -> None:
        """Ray replaces a replica that fails this three times."""
        self.live.served.recommender.recommend([Request(k=1)])


def _log_as_serve_does() -> None:
    """What this project logs goes where Serve logs, in its form, with request ids."""
    for name in ("serve", "recsys"):
        ours = logging.getLogger(name)
        ours.handlers, ours.propagate = logging.getLogger("ray.serve").handlers, False
        ours.setLevel(logging.INFO)
        for handler in ours.handlers:
            if isinstance(handler, MemoryHandler):  # for speed, Serve keeps a thousand lines back: of requests, which are many
                handler.flushLevel = logging.WARNING


def build(args: ServeArgs) -> ray_serve.Application:
    """The application for `serve run serve.app:build bundles=…`, a RayService, or `serving`."""
    located = _located(args)
    return Replica.options(  # type: ignore[attr-defined, no-any-return]
        num_replicas=args.replicas,
        max_ongoing_requests=args.max_ongoing,
        max_queued_requests=args.max_queued,
        **_refusals(),
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=3,
        ray_actor_options={
            "num_cpus": args.cpus,
            "num_gpus": args.gpus or 0,
            # Ray would set the threads of BLAS and OpenMP by num_cpus.
            "runtime_env": {"env_vars": {name: str(args.threads) for name in THREAD_VARIABLES}},
        },
        logging_config={
            "enable_access_log": args.access_log,
            "log_level": "INFO" if args.access_log else "WARNING",
            "encoding": "JSON" if args.log_format == "json" else "TEXT",
        },
    ).bind(located)


def _refusals() -> dict[str, Any]:
    """What Ray says where more requests are under way than a replica takes, of whatever kind. A Ray from before this could be
    set says no more than 503."""
    made = getattr(config, "BackpressureConfig", None)
    return {} if made is None else {"backpressure_config": made(status_code=503, retry_after_s=1)}


def _located(args: ServeArgs) -> ServeArgs:
    """With whole paths: replicas have their own working folder."""
    paths = {"bundles": args.bundles, "keys": args.keys}
    if args.events not in ("auto", "none") and not is_address(args.events):
        paths["events"] = args.events
    return args.model_copy(update={name: str(Path(path).resolve()) for name, path in paths.items() if path is not None})


def run(args: ServeArgs, ready: Callable[[str], None] | None = None, tell: Tell | None = None) -> None:
    """Serve until SIGINT or SIGTERM. ready: called with the URL once requests are answered. tell: called, from a thread, with
    what replicas have to say, where Ray starts here.

    Raises ConfigError for a port in use, BundleError for a bundle that cannot be served.
    """
    with told_to_stop() as stop, serving(args, owns_process=True, tell=tell) as url:
        if ready:
            ready(url)
        stop.wait()


@contextmanager
def serving(args: ServeArgs, *, owns_process: bool = False, tell: Tell | None = None) -> Iterator[str]:
    """The service's URL, for the time of a `with`; afterwards only what was started here is shut down.

    Runs on the Ray this process uses, else the one RAY_ADDRESS names, else one started here on the loopback interface.
    owns_process: the process ends at once where a Ray that was started here is gone before its time is over. tell: as of `run`.
    """
    # Asked here too, before a process is started: what cannot be is refused at once, a bundle hashed once for all replicas.
    if args.keys is not None:
        Keys(Path(args.keys))
    if (store := open_store(args.events, Path(args.bundles), args.name)) is not None:
        _tell_if_away(store)
        store.close()
    Recommender(open_bundle(resolve(Path(args.bundles), args.name)))
    args = args.model_copy(update={"port": require_port(args.host, args.port)})
    with _ray(args) as ours, _telling(tell if ours else None), _serve(args, goes_with_ray=ours and args.ingress == "ray"):
        try:
            ray_serve.run(build(_with_gpus(args) if ours else args), name=APP_NAME, route_prefix="/")
            if ours:
                reporters_give_way()
            yield url_of(args)
        finally:
            if ours and owns_process:
                end_without_ray(ray.get_runtime_context().gcs_address)
            ray_serve.delete(APP_NAME)  # lets requests under way finish


def _with_gpus(args: ServeArgs) -> ServeArgs:
    """What each replica can have of the GPUs that Ray found here: one, or what part there is for it. Raises ConfigError where
    more is told, for which replicas would wait for ever."""
    found = float(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if args.gpus is None and importlib.util.find_spec("torch") is not None:
        return args.model_copy(update={"gpus": min(1.0, math.floor(1000 * found / args.replicas) / 1000)})
    if (args.gpus or 0) * args.replicas > found:
        raise ConfigError(f"gpus: {args.gpus:g} for each replica ({args.replicas}), but Ray sees {found:g} here. Leave it out.")
    return args


def _tell_if_away(store: EventStore) -> None:
    try:
        store.rolled()
    except StoreError as error:
        log.warning("Events cannot be read or kept until their store is back; lists are made without them. %s", error)


def url_of(args: ServeArgs) -> str:
    """Where to ask from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(args.host, args.host)
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{args.port}"


def _telling(tell: Tell | None) -> AbstractContextManager[None]:
    return nullcontext() if tell is None else told_while(logs_folder(), tell)


def logs_folder() -> Path:
    """Where Serve's logs are on this host."""
    here = ray.get_runtime_context()
    return Path(here.get_temp_dir(), here.get_session_name(), "logs", "serve")


def metrics_url() -> str | None:
    """Where Ray tells the metrics of this host, seen from it; None where it does not say."""
    here = ray.get_runtime_context().get_node_id()
    ports = [node.get("MetricsExportPort") for node in ray.nodes() if node["NodeID"] == here]  # type: ignore[no-untyped-call]
    return f"http://127.0.0.1:{ports[0]}/metrics" if ports and ports[0] else None


@contextmanager
def _ray(args: ServeArgs) -> Iterator[bool]:
    """Ray for the time of a `with`: joined, or started and shut down. Whether it was started."""
    if args.ingress == "haproxy":
        _require_haproxy_flags(args)
    address = os.environ.get("RAY_ADDRESS")
    if args.metrics_port is not None and (address or ray.is_initialized()):
        raise ConfigError("metrics_port: a Ray that runs already has its own, which its nodes name. Leave it out.")
    if ray.is_initialized():
        yield False
        return
    for name, value in (RAYS_SETTINGS | {VARIABLE: str(args.max_passed_on)}).items():
        os.environ.setdefault(name, value)
    if not os.environ[VARIABLE].isdecimal():
        raise ConfigError(f"${VARIABLE} is {os.environ[VARIABLE]!r}: set it to a number of questions, or unset it.")
    with own_sigterm_kept():
        ray_started(partial(ray.init, **({"address": address} if address else _local_ray(args)), **QUIET), address)
    try:
        yield not address
    finally:
        ray.shutdown()


def _require_haproxy_flags(args: ServeArgs) -> None:
    if not ray.is_initialized() and not os.environ.get("RAY_ADDRESS"):
        os.environ.update(HAPROXY_FLAGS)
        os.environ.setdefault(HAPROXY_TIMEOUT, str(math.ceil(args.receive_timeout_s)))
        os.environ.setdefault(HAPROXY_DRAINING, str(DRAINING_S))
    elif any(os.environ.get(name) != value for name, value in HAPROXY_FLAGS.items()):
        flags = " ".join(f"{name}={value}" for name, value in HAPROXY_FLAGS.items())
        raise ConfigError(f"ingress=haproxy: set {flags} wherever Ray starts, and here.")


def _local_ray(args: ServeArgs) -> dict[str, Any]:
    # Logical CPUs need not be cores; Serve's own processes reserve none.
    told: dict[str, Any] = {}
    if args.metrics_port is not None:
        end_orphan(args.metrics_port)
        told["_metrics_export_port"] = require_port("0.0.0.0", args.metrics_port, "--metrics-port")
    return told | {
        "address": "local",
        "num_cpus": int(args.replicas * args.cpus) + 2,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
    }


@contextmanager
def _serve(args: ServeArgs, *, goes_with_ray: bool) -> Iterator[None]:
    """Serve for the time of a `with`, listening where the arguments say. Raises ConfigError where one runs already.

    goes_with_ray: it need not be shut down by itself, which Ray comments on in red.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if ray_serve.status().proxies:
        raise ConfigError("Serve already runs on this Ray, at its own address. Use: serve run serve.app:build bundles=…")
    options = {"host": args.host, "port": args.port, "request_timeout_s": args.request_timeout_s}
    ray_serve.start(http_options=options)
    try:
        yield
    finally:
        if goes_with_ray:
            # Else the next service of this process would ask the one that is gone.
            context._set_global_client(None)  # type: ignore[no-untyped-call]
        else:
            ray_serve.shutdown()  # type: ignore[no-untyped-call]
