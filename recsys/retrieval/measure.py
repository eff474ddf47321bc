"""What can only be said of a bundle once its files are there: golden queries, and the audit of its index."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.manifest import IndexReport
from recsys.bundle.read import Bundle
from recsys.retrieval import ann, golden
from recsys.retrieval.audit import LEAST
from recsys.retrieval.recommender import Recommender

GOLDEN_QUERIES = 8
SETTINGS = {"hnsw": "ef_search", "ivf": "probes"}
"""What says how far an index looks, by its kind."""
FARTHEST = 4096
TIMED = 256  # users, for latencies
GOLDEN_EVENTS = 50  # of a history at most: its newest


def measure(bundle: Bundle, audit_users: int) -> dict[str, Any]:
    """The fields `golden` and `index` of the manifest, from the bundle's own users, spread evenly over all of them.

    To be given to `recsys.bundle.write.write_bundle` as its `finish`.
    """
    recommender = Recommender(bundle)
    fields: dict[str, Any] = {"golden": golden.record(bundle, recommender.recommend, _histories(bundle))}
    if bundle.manifest.index is not None and bundle.item_vectors is not None and bundle.indexed is not None:
        fields["index"] = _audited(recommender, bundle, bundle.manifest.index, audit_users)
    return fields


def _audited(recommender: Recommender, bundle: Bundle, report: IndexReport, audit_users: int) -> IndexReport:
    """The report with recall as users are served. A list without what was seen reaches farther down, where an index misses more
    than at its head: .91 in place of .965 by one catalogue's graph."""
    assert bundle.item_vectors is not None and bundle.indexed is not None
    users = [bundle.users.id(row) for row in _spread(len(bundle.users), audit_users)]
    recalls = np.array(recommender.recalls(users, report))
    # Where it is asked for few, as it holds few items, or few are known: what it finds with nothing left out. The bound of a
    # few would be below the floor without a miss.
    are_few = len(recalls) < min(LEAST, len(users)) or not len(recalls)
    vectors_BD = _vectors(recommender, audit_users if are_few else TIMED)
    report = ann.audit(bundle.index, report, vectors_BD, bundle.item_vectors, bundle.indexed)
    if are_few:
        return report
    measured = {"recall_at_10": float(recalls.mean()), "recall_low": ann.lower_bound(recalls), "users": len(recalls)}
    return report.model_copy(update=measured)


@dataclass(frozen=True)
class Sweep:
    """setting: what says how far the index looks; own: what it is set to; reports: of other settings and its own, rising."""

    setting: str
    own: int
    reports: list[IndexReport]


def sweep(recommender: Recommender, users: int, progress: Callable[[int, int], None]) -> Sweep | None:
    """The index's recall and time (as the export measures them) if it looked less far, or farther. None where it has no such
    setting.

    users: whose vectors are asked for. progress: told how many settings are done, of how many.
    """
    bundle, report = recommender.bundle, recommender.bundle.manifest.index
    setting = None if report is None else SETTINGS.get(report.kind)
    if report is None or setting is None:
        return None
    assert bundle.indexed is not None
    own = report.parameters[setting]
    most = min(report.indexed, FARTHEST) if setting == "ef_search" else report.parameters["lists"]
    reports = list[IndexReport]()
    for effort in (efforts := _efforts(own, most)):
        progress(len(reports), len(efforts))
        tuned = report.model_copy(update={"parameters": report.parameters | {setting: effort}})
        reports.append(_audited(recommender, bundle, tuned, users))
    progress(len(efforts), len(efforts))
    return Sweep(setting, own, reports)


def _efforts(own: int, most: int) -> list[int]:
    """From an eighth to eight times its own by doubling, as far as there is."""
    return sorted({own, *(max(1, min(most, round(own * 2.0**power))) for power in range(-3, 4))})


def _spread(count: int, wanted: int) -> list[int]:
    return sorted({int(row) for row in np.linspace(0, count - 1, min(wanted, count))}) if count else []


def _histories(bundle: Bundle) -> list[golden.History]:
    histories = bundle.histories
    slices = [histories.events(row, "end") for row in _spread(len(bundle.users), GOLDEN_QUERIES)]
    newest = [slice(max(events.start, events.stop - GOLDEN_EVENTS), events.stop) for events in slices]
    return [(histories.item[events].tolist(), histories.rating[events].tolist()) for events in newest]


def _vectors(recommender: Recommender, audit_users: int) -> NDArray[np.float32]:
    """[B, D] vectors of users as they are served; of items where no user has one."""
    users = recommender.bundle.users
    tastes = [recommender.taste(users.id(row)) for row in _spread(len(users), audit_users)]
    vectors = [taste.vector for taste in tastes if taste.vector is not None]
    if vectors:
        return np.stack(vectors)
    assert recommender.bundle.item_vectors is not None and recommender.bundle.indexed is not None
    return recommender.bundle.item_vectors[recommender.bundle.indexed[:audit_users]]
