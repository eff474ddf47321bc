"""What can only be said of a bundle once its files are there: golden queries, and the audit of its index."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.read import Bundle
from recsys.retrieval import ann, golden
from recsys.retrieval.recommender import Recommender

GOLDEN_QUERIES = 8
GOLDEN_EVENTS = 50  # of a history at most: its newest


def measure(bundle: Bundle, audit_users: int) -> dict[str, Any]:
    """The fields `golden` and `index` of the manifest, from the bundle's own users, spread evenly over all of them.

    To be given to `recsys.bundle.write.write_bundle` as its `finish`.
    """
    recommender = Recommender(bundle)
    fields: dict[str, Any] = {"golden": golden.record(bundle, recommender.recommend, _histories(bundle))}
    if bundle.manifest.index is not None and bundle.item_vectors is not None and bundle.indexed is not None:
        vectors_BD = _vectors(recommender, audit_users)
        fields["index"] = ann.audit(bundle.index, bundle.manifest.index, vectors_BD, bundle.item_vectors, bundle.indexed)
    return fields


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
