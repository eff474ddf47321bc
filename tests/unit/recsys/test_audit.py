"""An index that misses too much is found out while it serves, and comes back when it is mended."""

from concurrent.futures import Executor, Future

import numpy as np
import pytest

from recsys.bundle.manifest import IndexReport
from recsys.bundle.read import open_bundle
from recsys.config import IndexConfig
from recsys.retrieval import ann, audit
from recsys.retrieval.audit import Audit
from recsys.retrieval.recommender import Answer, Recommender, Request
from tests.bundles import planted, write_planted

WORLD = planted(users=40, items=3000, tastes=8, dim=16, untrained=7)
GOOD = IndexConfig(kind="hnsw")
BAD = IndexConfig(kind="ivf", ivf_lists=40, ivf_probes=1)


class AtOnce(Executor):
    """Runs what is submitted before it comes back."""

    def submit(self, work, *arguments):
        future: Future = Future()
        future.set_result(work(*arguments))
        return future


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


pytestmark = pytest.mark.usefixtures("own_receipts_and_one_thread")


@pytest.fixture(scope="module")
def bad_bundle(tmp_path_factory):
    """Its report claims that the index were good."""
    folder = write_planted(
        tmp_path_factory.mktemp("bad"),
        world=WORLD,
        index=BAD,
        report={"recall_low": 0.99, "recall_at_10": 0.995, "users": 1000},
    )
    return open_bundle(folder)


def watched(bundle, **changes):
    clock = Clock()
    watch = Audit(bundle.manifest.recall_floor, bundle.manifest.index, executor=AtOnce(), clock=clock, **changes)
    return Recommender(bundle, audit=watch), clock


def ask(recommender, user, **fields) -> Answer:
    (answer,) = recommender.recommend([Request(user=f"u{user}", **fields)])
    assert isinstance(answer, Answer), answer
    return answer


def test_an_index_that_misses_too_much_is_found_out_and_asked_again_once_mended(bad_bundle):
    recommender, _ = watched(bad_bundle)
    asked = distrust(recommender)
    assert asked < audit.LEAST
    report = recommender.audit
    assert not report.trusted and report.low < 0.95 and report.queries == asked
    answer = ask(recommender, 3)
    assert answer.path == "exact" and "missed too much" in answer.reason and not answer.fallback
    assert answer.items.tolist() == WORLD.wanted(3, 10)
    for number in range(2 * audit.LEAST):  # it is audited still, and does not get better by itself
        assert ask(recommender, number % 40).path == "exact"
    searcher = recommender._searcher
    trained = np.arange(3000 - 7, dtype=np.int32)
    searcher._index, searcher._report = ann.build(WORLD.item_vectors, trained, GOOD)
    for number in range(audit.WINDOW):
        ask(recommender, number % 40)
    assert recommender.audit.trusted and ask(recommender, 3).path == "ann"


def distrust(recommender) -> int:
    """How many lists it takes."""
    for number in range(audit.WINDOW):
        if not recommender.audit.trusted:
            return number
        assert ask(recommender, number % 40).path == "ann"
    raise AssertionError("it is trusted still")


def test_it_is_the_bound_that_counts_and_coming_back_takes_more_than_staying():
    watch = Audit(0.9, measured(0.97), executor=AtOnce(), clock=Clock())
    assert (watch.report().recall, watch.report().queries) == (pytest.approx(0.97), 0)
    for _ in range(audit.WINDOW):  # a bound of .905: enough to stay
        watch.offer(lambda: 0.92)
    assert watch.trusted and watch.report().low == pytest.approx(0.9048, abs=1e-3)
    for _ in range(audit.WINDOW):
        watch.offer(lambda: 0.9)
    assert not watch.trusted
    for _ in range(2 * audit.WINDOW):  # ... and not to come back
        watch.offer(lambda: 0.92)
    assert not watch.trusted
    for _ in range(audit.WINDOW):
        watch.offer(lambda: 0.95)
    assert watch.trusted


def test_a_few_bad_lists_alarm_nobody():
    watch = Audit(0.95, measured(0.99), executor=AtOnce(), clock=Clock())
    for _ in range(20):
        watch.offer(lambda: 0.8)
    assert watch.trusted


def measured(recall):
    made = {"kind": "hnsw", "parameters": {}, "indexed": 5000, "users": 1000, "ann_ms": 0.1, "exact_ms": 1.0}
    return IndexReport(recall_at_10=recall, recall_low=recall - 0.01, **made)


def test_beyond_the_time_there_is_the_index_goes_on_and_says_so(bad_bundle):
    recommender, clock = watched(bad_bundle, capacity=0.5)
    distrust(recommender)
    watch = recommender._searcher.audit
    watch.took(1.2)  # the second that is saved up is gone, and more
    answer = ask(recommender, 3)
    assert answer.path == "ann" and answer.fallback and "no time" in answer.reason and len(answer.items) == 10
    assert recommender.audit.degraded == 1
    assert ask(recommender, 3, mode="exact").path == "exact"  # who asks for it gets it
    clock.now += 0.5  # half of it goes to exact search, and .2 s are owed
    assert ask(recommender, 3).path == "exact"


def test_audits_keep_to_their_share_of_the_time():
    clock = Clock()
    watch = Audit(0.9, measured(1.0), share=0.01, executor=AtOnce(), clock=clock)
    audited = []

    def compare():
        clock.now += 0.02
        audited.append(clock.now)
        return 1.0

    while clock.now < 100:
        clock.now += 0.001
        watch.offer(compare)
    assert 0.9 <= len(audited) * 0.02 / 100 / 0.01 <= 1.01
    assert watch.report().audit_ms == pytest.approx(20)


def test_no_share_no_audit_and_a_failed_one_says_nothing(caplog):
    off = Audit(0.9, measured(1.0), share=0, executor=AtOnce(), clock=Clock())
    off.offer(lambda: pytest.fail("no budget"))
    watch = Audit(0.9, measured(1.0), executor=AtOnce(), clock=Clock())

    def fails():
        raise ValueError("of a defect")

    watch.offer(fails)
    assert watch.trusted and watch.report().queries == 0 and "of a defect" in caplog.text
    watch.offer(lambda: 1.0)
    assert watch.report().queries == 1


def test_what_leaves_nothing_out_is_not_watched(tmp_path):
    flat = Recommender(open_bundle(write_planted(tmp_path, world=WORLD)), audit=Audit(0.95, measured(1.0)))
    assert flat.audit is None and ask(flat, 3).path == "exact"


def test_an_audit_sees_what_is_hidden_and_filtered_as_the_answer_does(bad_bundle):
    """A list that the index cannot complete is exact, and says nothing of the index."""
    recommender, _ = watched(bad_bundle)
    for _ in range(5):
        ask(recommender, 3, k=2000)
    assert recommender.audit.queries == 0
    ask(recommender, 3, exclude=tuple(f"i{item}" for item in range(100)))
    assert recommender.audit.queries == 1
