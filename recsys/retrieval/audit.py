"""What an index misses, watched while it serves: some queries are answered exactly, too, off their path and within a budget.

Where it misses too much, answers are exact as far as there is time for that; beyond it the index goes on, and answers say so.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
from pydantic import BaseModel, ConfigDict

from recsys.bundle.manifest import IndexReport
from recsys.retrieval.ann import lower_bound

log = logging.getLogger(__name__)

WINDOW = 1000
"""The latest audited queries that are looked at. It begins full of what was measured at export, so that a few cannot alarm."""
LEAST = 200
"""Audited queries that a distrusted index needs to be asked again. Of so many without a miss the bound is .987."""
BACK = 0.25
"""It is asked again when its bound is so far from the floor towards 1, so that it does not come and go at the border."""
BURST_S = 1.0
"""Seconds of exact search that may be saved up."""


class AuditReport(BaseModel):
    """What the index misses, as who answers sees it: some queries are answered a second time, exactly."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    trusted: bool
    """Whether the index is asked; else answers are exact, as far as there is time."""
    queries: int
    """How many were audited since the bundle was opened."""
    recall: float
    """The mean share of exact lists that it found, of the latest 1000 queries, those of the export among them."""
    low: float
    """Its 95% lower bound."""
    floor: float
    """Below it the index is not trusted."""
    audit_ms: float | None
    """What the latest audit took."""
    degraded: int
    """Queries that an index answered which was not trusted, for want of time to search exactly."""


class Audit:
    """Whether an index is to be trusted. Threads may share it."""

    def __init__(
        self,
        floor: float,
        measured: IndexReport,
        *,
        share: float = 0.01,
        capacity: float = 0.5,
        executor: Executor | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """floor: recall below which the index is not asked; measured: at export. share: of the time, what audits may take;
        capacity: what exact search may take of it in place of the index. executor: where audits run, by default one thread."""
        self.floor, self._share, self._capacity, self._clock = floor, share, capacity, clock
        self._executor = executor or ThreadPoolExecutor(1, "audit")
        self._lock = threading.Lock()
        self._trusted, self._under_way, self._not_before = True, False, clock()
        self._recalls = deque([measured.recall_at_10] * min(measured.users, WINDOW), WINDOW)
        self._recall, self._low, self._audited = measured.recall_at_10, measured.recall_low, 0
        self._audit_s: float | None = None
        self._saved_s, self._counted_at, self._degraded = BURST_S, clock(), 0

    @property
    def trusted(self) -> bool:
        """Whether the index is asked."""
        return self._trusted

    def offer(self, compare: Callable[[], float | None]) -> None:
        """Audit a query if there is time. compare: the share of the exact list that the index finds; None: not asked."""
        with self._lock:
            if self._under_way or not self._share or self._clock() < self._not_before:
                return
            self._under_way = True
        self._executor.submit(self._run, compare)

    def may_go_exact(self, queries: int) -> bool:
        """Whether there is time to answer exactly; where there is not, so many answers are degraded."""
        with self._lock:
            now = self._clock()
            self._saved_s = min(self._saved_s + self._capacity * (now - self._counted_at), BURST_S)
            self._counted_at = now
            if self._saved_s > 0:
                return True
            self._degraded += queries
            return False

    def took(self, seconds: float) -> None:
        """Answers were exact that the index would have given."""
        with self._lock:
            self._saved_s -= seconds

    def report(self) -> AuditReport:
        """How it stands."""
        with self._lock:
            audit_ms = None if self._audit_s is None else 1000 * self._audit_s
            return AuditReport(
                trusted=self._trusted,
                queries=self._audited,
                recall=self._recall,
                low=self._low,
                floor=self.floor,
                audit_ms=audit_ms,
                degraded=self._degraded,
            )

    def _run(self, compare: Callable[[], float | None]) -> None:
        began, recall = self._clock(), None
        try:
            recall = compare()
        except Exception:
            log.exception("an audit failed")
        took = self._clock() - began
        with self._lock:
            self._under_way, self._not_before = False, self._clock() + took * (1 / self._share - 1)
            if recall is not None:
                self._audit_s = took
                self._note(recall)

    def _note(self, recall: float) -> None:
        self._audited += 1
        self._recalls.append(recall)
        self._recall, self._low = float(np.mean(self._recalls)), lower_bound(np.array(self._recalls))
        if self._trusted and self._low < self.floor:
            log.warning(
                "the index finds %.3f of exact lists, at least: asked no longer while there is time to be exact", self._low
            )
            self._trusted = False
            self._recalls.clear()
        elif not self._trusted and len(self._recalls) >= LEAST and self._low >= self.floor + BACK * (1 - self.floor):
            log.warning("the index finds %.3f of exact lists, at least: asked again", self._low)
            self._trusted = True
