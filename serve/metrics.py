"""What operators see: counters, gauges and histograms, by Ray's own metrics, which every node exports for Prometheus.

Prometheus shows them with `ray_` in front, and counters with `_total` behind. docs/operations.md says what each tells.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from recsys.retrieval.audit import AuditReport
from serve.live import CANARY, CURRENT, Live, Served

log = logging.getLogger("serve")

SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]
SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
ROUTES = ("recommend", "events", "items", "users", "bundle", "admin")
"""What is told apart of `/v1/…`; all else is `other`, so that no address somebody makes up becomes a series of its own."""
EVERY_S = 5.0
"""How often what has a state, such as the bundle, is told."""


class Metrics(Protocol):
    """What is counted."""

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request is done. path: of its address."""
        ...

    def batch(self, replies: Sequence[Any], queued: int, seconds: float) -> None:
        """A batch is done, so many requests waiting when it was taken. replies: JSON objects, or refusals."""
        ...


class Silent:
    """Counts nothing: where there is no Ray."""

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Nothing."""

    def batch(self, replies: Sequence[Any], queued: int, seconds: float) -> None:
        """Nothing."""


class RayMetrics:
    """Counts by `ray.util.metrics`, 2.5 microseconds each. One a replica."""

    def __init__(self) -> None:
        from ray.util import metrics

        made: Callable[..., Any] = metrics.Counter
        self._requests = made("recsys_requests", "Requests.", ("route", "status"))
        self._answers = made("recsys_answers", "Answers to users, by what made the list.", ("path", "fallback", "bundle"))
        self._seconds = metrics.Histogram("recsys_request_seconds", "From request to answer.", SECONDS, ("route",))
        self._batch_seconds = metrics.Histogram("recsys_batch_seconds", "To answer a batch.", SECONDS, ())
        self._batch_size = metrics.Histogram("recsys_batch_size", "Users answered as one matrix.", SIZES, ())
        self._queue = metrics.Gauge("recsys_queue", "Users waiting when the latest batch was taken.")
        self._gauges = {name: metrics.Gauge(f"recsys_{name}", told) for name, told in GAUGES.items()}
        self._index = {name: metrics.Gauge(f"recsys_index_{name}", told, ("role",)) for name, told in INDEX_GAUGES.items()}
        self._bundle = metrics.Gauge("recsys_bundle", "1 for the bundle that answers, and for a canary.", ("version", "role"))
        self._shown: set[tuple[str, str]] = set()
        self._roles: set[str] = set()

    def answered(self, path: str, status: int, seconds: float) -> None:
        """As `Metrics` says."""
        route = route_of(path)
        self._requests.inc(1, {"route": route, "status": str(status)})
        self._seconds.observe(seconds, {"route": route})

    def batch(self, replies: Sequence[Any], queued: int, seconds: float) -> None:
        """As `Metrics` says."""
        self._queue.set(queued)
        self._batch_seconds.observe(seconds)
        self._batch_size.observe(len(replies))
        answers = Counter((r["path"], str(r["fallback"]), r["bundle"]) for r in replies if isinstance(r, dict))
        for (path, fallback, bundle), count in answers.items():
            self._answers.inc(count, {"path": path, "fallback": fallback, "bundle": bundle})

    def watch(self, live: Live) -> None:
        """Tell what has a state, again and again, in a thread."""
        threading.Thread(target=self._keep_telling, args=(live,), name="metrics", daemon=True).start()

    def tell(self, live: Live) -> None:
        """What has a state, as it is."""
        for name, value in state_of(live).items():
            self._gauges[name].set(value)
        served = live.served
        shown = {(served.recommender.bundle.version, CURRENT)}
        shown |= {(served.canary.bundle.version, CANARY)} if served.canary is not None else set()
        for version, role in self._shown | shown:
            self._bundle.set(float((version, role) in shown), {"version": version, "role": role})
        self._shown, self._roles = shown, self._roles | {role for _, role in shown}
        for role in self._roles:
            for name, value in index_of(served, role).items():
                self._index[name].set(value, {"role": role})

    def _keep_telling(self, live: Live) -> None:
        while True:
            try:
                self.tell(live)
            except Exception:  # it may go better the next time
                log.exception("the state cannot be told")
            time.sleep(EVERY_S)


INDEX_GAUGES = {
    "recall": "Share of exact lists that the index finds, of the latest audits.",
    "recall_low": "Its 95% lower bound.",
    "recall_floor": "Below it the index is not trusted.",
    "trusted": "1 while the index is asked.",
    "audits": "Queries audited since the bundle was opened.",
    "degraded": "Answers by an index that is not trusted, for want of time.",
}
"""Of the bundle that answers, and of the canary's."""
GAUGES = {
    "bundle_rejected": "1 while a bundle that was to be served is not, being bad.",
    "bundle_swaps": "Bundles taken since the replica started.",
}


NOTHING_TO_MISS = AuditReport(trusted=True, queries=0, recall=1.0, low=1.0, floor=0.0, audit_ms=None, degraded=0)


def state_of(live: Live) -> dict[str, float]:
    """The values of `GAUGES`."""
    return {"bundle_rejected": float(live.rejected is not None), "bundle_swaps": float(live.swaps)}


def index_of(served: Served, role: str) -> dict[str, float]:
    """The values of `INDEX_GAUGES`: an index that is not watched, for there is nothing to miss, is as good as can be, and so is
    that of a canary that is gone."""
    bundle = served.recommender if role == CURRENT else served.canary
    audit = (None if bundle is None else bundle.audit) or NOTHING_TO_MISS
    told = {"recall": audit.recall, "recall_low": audit.low, "recall_floor": audit.floor, "trusted": float(audit.trusted)}
    return told | {"audits": float(audit.queries), "degraded": float(audit.degraded)}


def route_of(path: str) -> str:
    """Which of the service's questions an address is."""
    first = path.removeprefix("/v1/").split("/", 1)[0] if path.startswith("/v1/") else ""
    return first if first in ROUTES else "other"
