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
from recsys.errors import BundleError, RecsysError
from recsys.retrieval.audit import Audit
from recsys.retrieval.recommender import Recommender
from serve.args import ServeArgs
from serve.schemas import Rejected
from serve.urgency import give_way

log = logging.getLogger("serve")

CURRENT, CANARY = "current", "canary"
HERE = "…"  # in place of the folder above the bundles, where callers are told


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
    def canary_in_words(self) -> str:
        """For logs."""
        if self.canary is None:
            return "no canary answers"
        return f"canary {self.canary.bundle.version} answers {self.share:.1%} of the users"

    @property
    def all(self) -> list[Recommender]:
        """One, or both."""
        return [self.recommender] if self.canary is None else [self.recommender, self.canary]


class Live:
    """What a replica serves. `look` takes what the store says by now; `watch` looks again and again."""

    served: Served

    def __init__(self, args: ServeArgs) -> None:
        """Raises BundleError where there is no bundle, or a bad one, to begin with."""
        self._args, self._root = args, Path(args.bundles)
        self._one_at_a_time, self._stopped = threading.Lock(), threading.Event()
        self._bad: dict[str, Rejected] = {}  # by role, those that are not taken now
        self._bad_state: dict[Path, str] = {}  # as they were, so that they are not opened again and again
        folder = store.resolve(self._root, args.name)
        self.served, self.swaps = Served(self._opened(folder)), 0
        self._look_for_canary(folder)

    @property
    def rejected(self) -> Rejected | None:
        """What is to be served by now and is not, being bad."""
        return self._bad.get(CURRENT) or self._bad.get(CANARY)

    @property
    def is_fixed(self) -> bool:
        """Whether one version's own folder is served: then nothing else is meant."""
        return self.served.recommender.bundle.folder == self._root

    def look(self) -> bool:
        """Take the store's CURRENT and CANARY where they are others than before. Whether something was taken."""
        with self._one_at_a_time:
            before = self.served
            try:
                folder = store.resolve(self._root, self._args.name)
            except RecsysError as error:
                self._reject(CURRENT, "CURRENT", str(error))
                return False
            if (found := self._taken(CURRENT, folder)) is not None and found is not before.recommender:
                self.served = replace(before, recommender=found)
                self.swaps += 1
                log.warning("bundle %s answers from now on, in place of %s", folder.name, before.recommender.bundle.version)
            self._look_for_canary(folder)
            return self.served != before

    def without_paths(self, text: str) -> str:
        """For callers: not where the bundles lie here."""
        return text.replace(str(self._root), f"{HERE}/{self._root.name}")

    def watch(self) -> None:
        """Look every `watch_s` seconds, in a thread, until `stop`."""
        if self._args.watch_s:
            threading.Thread(target=self._keep_looking, name="bundles", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _keep_looking(self) -> None:
        give_way()
        while not self._stopped.wait(self._args.watch_s):
            try:
                self.look()
            except Exception:  # the old bundle goes on, whatever it is
                log.exception("looking for a new bundle failed")

    def _look_for_canary(self, folder: Path) -> None:
        told, before = None if self.is_fixed else store.canary(folder.parent), self.served
        if told is None or told[0] == self.served.recommender.bundle.version:
            self._bad.pop(CANARY, None)
            self.served = replace(self.served, canary=None, share=0.0)
        else:
            version, share = told
            canary = self._taken(CANARY, folder.parent / version)
            self.served = replace(self.served, canary=canary, share=share if canary is not None else 0.0)
        if (self.served.canary, self.served.share) != (before.canary, before.share):
            log.warning("%s from now on", self.served.canary_in_words)

    def _taken(self, role: str, folder: Path) -> Recommender | None:
        """A bundle's recommender; None for a bad one, which is not opened again until one of its files is another."""
        found = next((each for each in self.served.all if each.bundle.folder == folder), None)
        if found is None:
            try:
                found = self._opened_unless_known_for_bad(folder)
            except RecsysError as error:
                self._reject(role, folder.name, str(error))
                return None
            except Exception as error:  # memory, a disk, a library: it may go better the next time
                log.exception("%s cannot be opened", folder)
                self._reject(role, folder.name, f"{type(error).__name__}: {error}")
                return None
        self._bad.pop(role, None)
        return found

    def _opened_unless_known_for_bad(self, folder: Path) -> Recommender:
        state = store.state(folder)
        if self._bad_state.get(folder) == state:
            raise BundleError(next((bad.why for bad in self._bad.values() if bad.version == folder.name), "It was bad before."))
        try:
            found = self._opened(folder)
        except BundleError:
            self._bad_state[folder] = state
            raise
        self._bad_state.pop(folder, None)
        return found

    def _reject(self, role: str, version: str, why: str) -> None:
        bad = Rejected(version=version, why=self.without_paths(why))
        if self._bad.get(role) != bad:
            log.error("%s is not taken, what was served goes on: %s", version, why)
        self._bad[role] = bad

    def _opened(self, folder: Path) -> Recommender:
        """Opened, its golden queries answered, and what is made once made, so that no request waits for it."""
        bundle = open_bundle(folder)
        device = "cuda" if self._args.gpus else None
        recommender = Recommender(bundle, audit=_audit_of(bundle, self._args), device=device)
        recommender.warm()
        return recommender


def _audit_of(bundle: Bundle, args: ServeArgs) -> Audit | None:
    report, floor = bundle.manifest.index, bundle.manifest.recall_floor
    return None if report is None else Audit(floor, report, share=args.audit_share, capacity=args.exact_share)
