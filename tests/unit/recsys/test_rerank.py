"""Another order of what was found: against loops that follow the definitions, and on planted tastes."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys.bundle.read import open_bundle
from recsys.errors import RequestError
from recsys.retrieval import rerank
from recsys.retrieval.recommender import Answer, Event, Recommender, Request
from tests.bundles import SUMMED, contents_of, planted, write_planted

WORLD = planted(users=40, items=600, untrained=7)
ARRIVED = np.random.default_rng(3).permutation(600)  # in another order than numbers and popularity


pytestmark = pytest.mark.usefixtures("own_receipts_and_one_thread")


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """A bundle whose items came one after the other; of three nobody knows when."""
    arrived = pa.array(ARRIVED, pa.int64(), mask=ARRIVED < 3)
    items = contents_of(WORLD).items.append_column("arrived", arrived)
    return Recommender(open_bundle(write_planted(tmp_path_factory.mktemp("timed"), world=WORLD, items=items)))


def ask(recommender, **fields) -> Answer:
    (answer,) = recommender.recommend([Request(**fields)])
    assert isinstance(answer, Answer), answer
    return answer


def by_hand(scores, k, dials, diversity, directions):
    """Maximal marginal relevance, item by item."""
    scores = scores.astype(np.float64)
    worth = (scores - scores.mean()) / (scores.std() or 1)
    for turned, standing in dials:
        worth = worth + 2 * turned * standing
    if not diversity:
        return sorted(range(len(scores)), key=lambda place: -worth[place])[:k]
    relevance = (1 - diversity) * (worth - worth.min()) / ((worth.max() - worth.min()) or 1)
    chosen: list[int] = []
    while len(chosen) < min(k, len(scores)):
        left = [place for place in range(len(scores)) if place not in chosen]
        like = {p: max((float(directions[p] @ directions[c]) for c in chosen), default=-1) for p in left}
        chosen.append(max(left, key=lambda p: (relevance[p] - diversity * like[p], -p)))
    return chosen


@given(
    hnp.arrays(np.float32, st.integers(1, 30), elements=st.integers(-5, 5).map(float)),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([0.0, -1.0, 0.5]),
)
def test_the_order_is_that_of_the_definition(scores, k, diversity, turned):
    directions = np.eye(4, dtype=np.float32)[np.arange(len(scores)) % 4]  # exact products: no rounding decides
    dials = [(turned, rerank.standing(np.arange(len(scores)) * 7 % 11, np.ones(len(scores), bool)))] if turned else []
    found = rerank.reranked(scores, k, dials, diversity, directions)
    assert len(set(found.tolist())) == len(found) == min(k, len(scores))
    assert found.tolist() == by_hand(scores, k, dials, diversity, directions)


def test_nothing_found_is_no_fault():
    assert len(rerank.reranked(np.zeros(0, np.float32), 5, diversity=0.5, directions_PL=np.zeros((0, 4), np.float32))) == 0


def test_standing_is_by_rank_and_equal_for_equals():
    values, among = np.array([5, 1, 9, 5, 100]), np.array([True, True, True, True, False])
    assert rerank.standing(values, among) == pytest.approx([0, -0.75, 0.75, 0, 0])
    assert rerank.standing(values, np.zeros(5, bool)).tolist() == [0] * 5


def test_standing_by_logarithms():
    values, among = np.array([1, 10, 100, 10, 5000]), np.array([True, True, True, True, False])
    assert rerank.log_standing(values, among) == pytest.approx([-1, 0, 1, 0, 0])
    assert rerank.log_standing(values, among & (values == 10)).tolist() == [0, -1, 0, -1, 0]
    assert rerank.log_standing(values, np.zeros(5, bool)).tolist() == [0] * 5


@given(st.integers(1, 5000))
def test_more_is_found_than_wanted(k):
    assert k + 190 <= rerank.pool(k) <= k + 1000


def test_diversity_mixes_tastes(timed):
    """A user of one taste: the more diverse, the more of the others, until all four are there."""
    tastes = [len(set((ask(timed, user="u5", diversity=much).items % 4).tolist())) for much in (0.0, 0.9)]
    assert tastes[0] == 1 and tastes[1] > 1
    likeness = []
    for much in (0.0, 0.3, 0.6, 1.0):
        rows = WORLD.item_vectors[ask(timed, user="u5", diversity=much).items]
        likeness.append((rows @ rows.T)[np.triu_indices(len(rows), 1)].mean())
    assert likeness == sorted(likeness, reverse=True) and likeness[-1] < likeness[0] - 0.1


def test_no_dial_is_the_plain_list(timed):
    plain = ask(timed, user="u5", k=20)
    assert ask(timed, user="u5", k=20, diversity=0, popularity=0.0, recency=0).items.tolist() == plain.items.tolist()


@pytest.mark.parametrize("who", [{"user": "u5"}, {}, {"history": (Event("i1"), Event("i5"))}])
def test_dials_move_lists_both_ways(timed, who):
    for dial, standing in (("popularity", timed.items.by_popularity), ("recency", timed.items.by_arrival)):
        means = [standing[ask(timed, k=20, **who, **{dial: turned}).items].mean() for turned in (-1.0, 0.0, 1.0)]
        assert means[0] <= means[1] <= means[2] and means[0] < means[2]


def test_a_hit_does_not_outweigh_every_dial_of_a_stranger(tmp_path):
    """Watched twice as often as the next, as where popularity falls with rank (Zipf), and the oldest of all."""
    contents = contents_of(WORLD)
    items, popular, hit = contents.items, contents.popular, int(contents.popular[0])
    counts = np.zeros(600, np.int64)
    counts[popular] = 10_000 / np.arange(1, len(popular) + 1)
    items = items.set_column(items.column_names.index("count"), "count", pa.array(counts))
    items = items.append_column("arrived", pa.array(np.where(np.arange(600) == hit, 0, ARRIVED + 1), pa.int64()))
    found = Recommender(open_bundle(write_planted(tmp_path, world=WORLD, items=items)))
    assert ask(found).items[0] == hit
    assert hit not in ask(found, recency=1.0).items


def test_recency_is_by_when_an_item_came(timed):
    standing = timed.items.by_arrival
    known = np.flatnonzero(ARRIVED >= 3)
    assert (np.diff(standing[known[np.argsort(ARRIVED[known])]]) > 0).all()
    assert (standing[ARRIVED < 3] == 0).all()


def test_scores_stay_the_models(timed):
    plain = ask(timed, user="u5", k=300)
    told = dict(zip(plain.items.tolist(), plain.scores.tolist(), strict=True))
    turned = ask(timed, user="u5", k=20, diversity=0.2, popularity=0.3)
    for item, score in zip(turned.items.tolist(), turned.scores.tolist(), strict=True):
        assert told[item] == score


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"diversity": -0.1}, "bad_diversity"),
        ({"diversity": float("nan")}, "bad_diversity"),
        ({"popularity": 1.1}, "bad_popularity"),
        ({"recency": "1"}, "bad_recency"),
    ],
)
def test_a_dial_that_cannot_be_is_told(timed, fields, code):
    (error,) = timed.recommend([Request(**fields)])
    assert isinstance(error, RequestError) and error.code == code


def test_what_a_bundle_cannot_tell_is_said(tmp_path):
    popular = Recommender(open_bundle(write_planted(tmp_path, world=WORLD, model="popularity")))
    for fields, word in (({"diversity": 0.5}, "no vectors"), ({"recency": 0.5}, "no times")):
        (error,) = popular.recommend([Request(**fields)])
        assert isinstance(error, RequestError) and word in str(error)
    assert len(ask(popular, popularity=-1.0).items) == 10


# Explanations


@pytest.fixture(scope="module", params=["ridge", "sum"])
def folded(request, tmp_path_factory):
    more = SUMMED if request.param == "sum" else {"known_user": "history"}
    return Recommender(open_bundle(write_planted(tmp_path_factory.mktemp(request.param), world=WORLD, **more)))


def test_a_cause_is_what_the_score_would_lose(folded):
    history = tuple(Event(f"i{item}") for item in (1, 5, 2, 9, 14, 1))
    answer = ask(folded, history=history, k=5, explain=True)
    assert len(answer.because) == 5 and any(answer.because)
    for item, score, causes in zip(answer.item_ids, answer.scores, answer.because, strict=True):
        gains = [cause.gain for cause in causes]
        assert len(causes) <= 3 and gains == sorted(gains, reverse=True) and all(gain > 0 for gain in gains)
        for cause in causes:
            without = tuple(event for event in history if event.item != f"i{cause.item}")
            (less,) = ask(folded, history=without, k=1, allow=(item,), exclude_seen=False).scores
            assert cause.gain == pytest.approx(score - less, abs=1e-5)


def test_each_taste_is_pulled_up_by_its_own(folded):
    """Half of a history is of one taste, half of another."""
    answer = ask(folded, history=tuple(Event(f"i{item}") for item in (0, 4, 8, 1, 5, 9)), k=40, explain=True)
    assert {int(item) % 4 for item in answer.items} >= {0, 1}
    for item, causes in zip(answer.items.tolist(), answer.because, strict=True):
        if item % 4 in (0, 1):
            assert causes[0].item % 4 == item % 4


def test_known_users_are_explained_and_strangers_have_no_causes(timed):
    answer = ask(timed, user="u5", explain=True)
    seen = set(WORLD.seen[5].tolist())
    assert all(causes and {cause.item for cause in causes} <= seen for causes in answer.because)
    assert ask(timed, explain=True).because == [()] * 10
    assert ask(timed, user="u5").because is None


def test_of_a_long_history_the_latest_are_tried(folded):
    items = [item for item in range(560) if item % 4 == 1][:60]
    answer = ask(folded, history=tuple(Event(f"i{item}") for item in items), explain=True)
    assert {cause.item for causes in answer.because for cause in causes} <= set(items[-20:])
