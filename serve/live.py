"""The bundle that answers, exchanged while it serves: a new one is opened beside the old one, checked, warmed, and takes its
place in one step; a bad one is refused and the old one goes on. Beside it a canary may answer a share of the users.
"""

import logging
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from recsys.bundle import store
from recsys.bundle.ids import hash_id
from recsys.bundle.read import Bundle, open_bundle
from recsys.errors import RecsysError
from recsys.retrieval.audit import Audit
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Request
from serve.args import ServeArgs

log = logging.getLogger("serve")


@dataclass(frozen=True)
class Served:
    """Who answers: the recommender of CURRENT, and for a `share` of the users the canary's."""

    recommender: Recommender
    canary: Recommender | None = None
    share: float = 0.0

    def of(self, user: str | None) -> Recommender:
        """Whose answers a user gets: always the same one's, as long as there is the canary. Who has no id gets no canary's."""
        if self.canary is None or user is None:
            return self.recommender
        place = hash_id(f"{self.canary.bundle.version} {user}") / 2**64
        return self.canary if place < self.share else self.recommender

    @property
    def all(self) -> list[Recommender]:
        """One, or both."""
        return [self.recommender] if self.canary is None else [self.recommender, self.canary]


@dataclass(frozen=True)
class Rejected:
    """A bundle that was not taken, and why."""

    version: str
    why: str


class Live:
    """What a replica serves. `look` takes what the store says by now; `watch` looks again and again."""

    served: Served
    rejected: Rejected | None
    """The latest that was not taken, until another is."""

    def __init__(self, args: ServeArgs) -> None:
        """Raises BundleError where there is no bundle, or a bad one, to begin with."""
        self._args, self._root = args, Path(args.bundles)
        self._one_at_a_time, self._stopped = threading.Lock(), threading.Event()
        folder = store.resolve(self._root, args.name)
        self._tried: dict[str, str] = {}
        self.served, self.rejected, self.swaps = Served(self._opened(folder)), None, 0
        self._look_for_canary(folder)

    def look(self) -> bool:
        """Take the store's CURRENT and CANARY where they are others than before. Whether something was taken."""
        with self._one_at_a_time:
            before = self.served
            try:
                folder = store.resolve(self._root, self._args.name)
            except RecsysError as error:
                self._reject(str(self._root), "CURRENT", str(error))
                return False
            if folder != before.recommender.bundle.folder and (found := self._tried_out(folder)) is not None:
                self.served = replace(before, recommender=found)
                self.swaps += 1
                log.warning("bundle %s answers from now on, in place of %s", folder.name, before.recommender.bundle.version)
            self._look_for_canary(folder)
            return self.served != before

    def watch(self) -> None:
        """Look every `watch_s` seconds, in a thread, until `stop`."""
        if self._args.watch_s:
            threading.Thread(target=self._keep_looking, name="bundles", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _keep_looking(self) -> None:
        while not self._stopped.wait(self._args.watch_s):
            try:
                self.look()
            except Exception:  # the old bundle goes on, whatever it is
                log.exception("looking for a new bundle failed")

    def _look_for_canary(self, folder: Path) -> None:
        told = None if folder == self._root else store.canary(folder.parent)  # one version's own folder is all that is meant
        if told is None:
            self.served = replace(self.served, canary=None, share=0.0)
            return
        version, share = told
        canary = self.served.canary
        if canary is None or canary.bundle.version != version:
            canary = self._tried_out(folder.parent / version)
        self.served = replace(self.served, canary=canary, share=share if canary is not None else 0.0)

    def _tried_out(self, folder: Path) -> Recommender | None:
        """A bundle's recommender; None for a bad one, which is not tried again until its manifest is another."""
        for recommender in self.served.all:
            if recommender.bundle.folder == folder:
                return recommender
        try:
            state = store.state(folder)
            if self._tried.get(str(folder)) == state:
                return None
            self._tried[str(folder)] = state
            found = self._opened(folder)
        except RecsysError as error:
            self._reject(str(folder), folder.name, str(error))
            return None
        self.rejected = None
        return found

    def _reject(self, where: str, version: str, why: str) -> None:
        if self.rejected is None or self.rejected.why != why:
            log.error("%s is not taken, the bundle before goes on: %s", where, why)
        self.rejected = Rejected(version, why)

    def _opened(self, folder: Path) -> Recommender:
        """Opened, its golden queries answered, and what is made once made, so that no request waits for it."""
        bundle = open_bundle(folder)
        recommender = Recommender(bundle, audit=_audit_of(bundle, self._args))
        recommender.search("a", 1)
        recommender.recommend([Request(k=1)])
        return recommender


def _audit_of(bundle: Bundle, args: ServeArgs) -> Audit | None:
    report, floor = bundle.manifest.index, bundle.manifest.recall_floor
    return None if report is None else Audit(floor, report, share=args.audit_share, capacity=args.exact_share)
