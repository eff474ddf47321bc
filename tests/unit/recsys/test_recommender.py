"""The one recommender: exactly K, the same list in any batch, and honest about what it fell back to."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.bundle.manifest import FoldIn
from recsys.bundle.read import open_bundle
from recsys.config import IndexConfig
from recsys.errors import RequestError
from recsys.retrieval.recommender import Answer, Event, Recommender, Request
from recsys.retrieval.requests import Condition
from tests.bundles import SUMMED, planted, write_planted

ITEMS = 600
WORLD = planted(users=40, items=ITEMS, untrained=7)
TRAINED = ITEMS - 7


pytestmark = pytest.mark.usefixtures("own_receipts_and_one_thread")


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return Recommender(open_bundle(write_planted(tmp_path_factory.mktemp("flat"), world=WORLD)))


@pytest.fixture(scope="module", params=["flat", "hnsw", "ivf"])
def any_index(request, tmp_path_factory):
    config = IndexConfig(kind=request.param, ivf_lists=20, ivf_probes=12)
    folder = write_planted(tmp_path_factory.mktemp(request.param), world=WORLD, index=config, recall_floor=0.5)
    return Recommender(open_bundle(folder))


@pytest.fixture(scope="module")
def popularity(tmp_path_factory):
    return Recommender(open_bundle(write_planted(tmp_path_factory.mktemp("pop"), world=WORLD, model="popularity")))


def ask(recommender, **fields) -> Answer:
    (answer,) = recommender.recommend([Request(**fields)])
    assert isinstance(answer, Answer), answer
    return answer


def ids(numbers):
    return tuple(f"i{number}" for number in numbers)


# Planted answers


def test_a_known_user_gets_the_unseen_items_of_his_taste(any_index):
    for user in range(40):
        answer = ask(any_index, user=f"u{user}", k=10)
        assert answer.items.tolist() == WORLD.wanted(user, 10)
        assert not answer.fallback and answer.path == ("exact" if any_index.bundle.manifest.index.kind == "flat" else "ann")
        assert (answer.items % WORLD.tastes == user % WORLD.tastes).all()


def test_a_history_is_folded_in(flat):
    answer = ask(flat, history=tuple(Event(f"i{item}") for item in (1, 5, 9)), k=10)
    assert (answer.items % WORLD.tastes == 1).all() and not answer.fallback
    assert not {1, 5, 9} & set(answer.items.tolist())


def test_scores_are_the_inner_products(flat):
    answer = ask(flat, user="u3", k=5)
    assert answer.scores == pytest.approx(WORLD.item_vectors[answer.items] @ WORLD.user_vectors[3], abs=1e-6)
    assert answer.scores.dtype == np.float32 and answer.items.dtype == np.int32


def test_popular_is_by_count_then_number(popularity):
    answer = ask(popularity, user="u3", k=20)
    counts = popularity.items.counts
    wanted = sorted(
        (item for item in range(TRAINED) if item not in set(WORLD.seen[3].tolist())), key=lambda item: (-counts[item], item)
    )
    assert answer.items.tolist() == wanted[:20] and answer.path == "popular" and not answer.fallback
    assert answer.scores.tolist() == counts[answer.items].tolist()


# Invariant 1: exactly K


@st.composite
def any_request(draw):
    """Every way to narrow a list, extremes included."""
    items = st.lists(st.integers(0, ITEMS + 5).map(lambda item: f"i{item}"), max_size=60)
    nearly_all = st.integers(0, 4).map(lambda left: [f"i{item}" for item in range(ITEMS - left)])
    history = st.lists(st.builds(Event, st.integers(0, ITEMS + 5).map(lambda item: f"i{item}")), max_size=30).map(tuple)
    return Request(
        user=draw(st.none() | st.integers(0, 45).map(lambda user: f"u{user}")),
        history=draw(st.none() | history),
        k=draw(st.sampled_from([1, 3, 10, 100, 1000])),
        exclude_seen=draw(st.sampled_from([None, True, False])),
        exclude=tuple(draw(items | nearly_all)),
        allow=draw(st.none() | items.map(tuple) | nearly_all.map(tuple)),
        mode=draw(st.sampled_from(["auto", "ann", "exact"])),
        filters=tuple(draw(st.lists(any_condition(), max_size=2))),
        diversity=draw(st.sampled_from([0.0, 0.0, 0.5])),
        popularity=draw(st.sampled_from([0.0, 0.0, -1.0])),
        explain=draw(st.sampled_from([False, False, False, True])),
    )


def any_condition():
    """On the planted years, 1990 + number % 30, and ids: from all items to none."""
    year = st.integers(1985, 2025)
    ids = st.lists(st.integers(0, ITEMS).map(lambda item: f"i{item}"), min_size=1, max_size=5).map(tuple)
    return st.one_of(
        st.builds(Condition, st.just("year"), min=st.none() | year, max=year).filter(
            lambda made: made.min is None or made.min <= made.max
        ),
        st.builds(Condition, st.just("year"), none=st.lists(year, min_size=1, max_size=3).map(tuple)),
        st.builds(Condition, st.just("genres"), any=st.sampled_from([("Drama", "Western"), ("Western",)])),
        st.builds(Condition, st.just("item_id"), any=ids),
        st.builds(Condition, st.just("item_id"), none=ids),
    )


def meets(item: int, condition: Condition) -> bool:
    value = {"year": 1990 + item % 30, "genres": "Drama", "item_id": f"i{item}"}[condition.column]
    return (
        (condition.any is None or value in condition.any)
        and (condition.none is None or value not in condition.none)
        and (condition.min is None or value >= condition.min)
        and (condition.max is None or value <= condition.max)
    )


def eligible(request):
    """By brute force: the items that may be in the answer."""
    allowed = set(range(ITEMS)) if request.allow is None else {int(item[1:]) for item in request.allow}
    allowed = {item for item in allowed if item < ITEMS and all(meets(item, condition) for condition in request.filters)}
    seen = {int(event.item[1:]) for event in request.history or ()}
    if request.user is not None and int(request.user[1:]) < 40:
        seen |= set(WORLD.seen[int(request.user[1:])].tolist())
    hidden = {int(item[1:]) for item in request.exclude} | (seen if request.exclude_seen is not False else set())
    return {item for item in allowed - hidden if item < TRAINED}


@given(st.lists(any_request(), min_size=1, max_size=6))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exactly_k_whatever_is_filtered(any_index, asked):
    for request, answer in zip(asked, any_index.recommend(asked), strict=True):
        possible = eligible(request)
        assert len(answer.items) == len(set(answer.items.tolist())) == min(request.k, len(possible))
        assert set(answer.items.tolist()) <= possible
        if not request.reranks:
            assert list(zip(-answer.scores, answer.items, strict=True)) == sorted(
                zip(-answer.scores, answer.items, strict=True)
            )
        assert answer.because is None or len(answer.because) == len(answer.items)
        assert answer.item_ids == list(ids(answer.items))
        assert answer.reason if len(answer.items) < request.k else True
        if answer.path == "exact" and not request.reranks:
            scores = any_index.bundle.item_vectors @ vector_of(any_index, request)
            assert answer.scores == pytest.approx(np.sort(scores[list(possible)])[::-1][: request.k], abs=1e-5)


def vector_of(recommender, request):
    return recommender._tastes.of(request.user, request.history).vector


def test_all_but_three_excluded_leaves_three(any_index):
    left = WORLD.wanted(7, 3)
    answer = ask(any_index, user="u7", exclude=ids(set(range(ITEMS)) - set(left)))
    assert answer.items.tolist() == left and "only 3" in answer.reason
    answer = ask(any_index, user="u7", allow=ids(left))
    assert answer.items.tolist() == left


def test_nothing_left_is_empty_with_a_reason(any_index, popularity):
    for recommender in (any_index, popularity):
        for request in ({"exclude": ids(range(ITEMS))}, {"allow": ()}, {"allow": ("nope",)}, {"allow": ids([ITEMS - 1])}):
            for who in ({"user": "u1"}, {}):
                answer = ask(recommender, **request, **who)
                assert answer.item_ids == [] and "no eligible item is left" in answer.reason


def test_seen_items_come_back_when_asked(flat):
    assert set(WORLD.seen[5].tolist()) & set(ask(flat, user="u5", k=ITEMS, exclude_seen=False).items.tolist())
    assert not set(WORLD.seen[5].tolist()) & set(ask(flat, user="u5", k=ITEMS).items.tolist())


def test_the_bundle_says_whether_seen_items_are_hidden(tmp_path):
    recommender = Recommender(open_bundle(write_planted(tmp_path, world=WORLD, exclude_seen=False)))
    assert set(WORLD.seen[5].tolist()) <= set(ask(recommender, user="u5", k=ITEMS).items.tolist())


def test_filters_narrow_a_list_by_whichever_path_suits(any_index):
    kind = any_index.bundle.manifest.index.kind
    broad, half, narrow = Condition("year", min=1995.0), Condition("year", max=2000.0), Condition("year", max=1991.0)
    by_index = "exact" if kind == "flat" else "ann"
    for condition, path in ((broad, by_index), (half, by_index), (narrow, "exact")):
        answer = ask(any_index, user="u7", k=10, filters=(condition,))
        assert answer.items.tolist() == [item for item in WORLD.wanted(7, ITEMS) if meets(item, condition)][:10]
        assert answer.path == path and answer.reason is None
    stranger = ask(any_index, k=5, filters=(narrow,))
    popular = [item for item in any_index.bundle.popular.tolist() if meets(item, narrow)]
    assert stranger.items.tolist() == popular[:5] and stranger.path == "popular"


def test_all_but_three_and_all_filtered(any_index):
    left = WORLD.wanted(7, 3)
    answer = ask(any_index, user="u7", filters=(Condition("item_id", any=ids(left)),))
    assert answer.items.tolist() == left and "only 3" in answer.reason
    for filters in ((Condition("genres", none=("Drama",)),), (Condition("year", min=2000.0), Condition("year", max=1999.0))):
        answer = ask(any_index, user="u7", filters=filters)
        assert answer.item_ids == [] and "no eligible item is left" in answer.reason


# Invariant 4: the same list in any batch


@given(st.lists(any_request(), min_size=2, max_size=12))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_answer_does_not_depend_on_its_neighbours(any_index, asked):
    for request, answer in zip(asked, any_index.recommend(asked), strict=True):
        alone = ask(any_index, **vars(request))
        assert alone.item_ids == answer.item_ids and (alone.scores == answer.scores).all()
        assert (alone.path, alone.reason) == (answer.path, answer.reason)


def test_stored_and_sent_history_give_the_same_list(tmp_path):
    recommender = Recommender(open_bundle(write_planted(tmp_path, world=WORLD, known_user="history")))
    for user in range(40):
        sent = tuple(Event(f"i{item}", 1.0) for item in WORLD.seen[user])
        by_name, by_history = ask(recommender, user=f"u{user}"), ask(recommender, history=sent)
        assert by_name.item_ids == by_history.item_ids and (by_name.scores == by_history.scores).all()


def test_order_and_repeats_of_a_history_do_not_matter(flat):
    events = [Event("i1", 4.0), Event("i5", 2.0), Event("i9", 5.0)]
    once = ask(flat, history=tuple(events))
    again = ask(flat, history=(Event("i9", 1.0), *reversed(events)))
    assert once.item_ids == again.item_ids and (once.scores == again.scores).all()


# Invariant 2: the index is audited


def test_an_index_below_the_floor_is_not_asked(tmp_path):
    folder = write_planted(tmp_path, world=WORLD, index=IndexConfig(kind="hnsw"), report={"recall_low": 0.5})
    recommender = Recommender(open_bundle(folder))
    for mode in ("auto", "ann"):
        answer = ask(recommender, user="u1", mode=mode)
        assert answer.path == "exact" and "audit" in answer.reason and answer.items.tolist() == WORLD.wanted(1, 10)
    assert ask(recommender, user="u1", mode="exact").reason is None


def test_modes(any_index):
    kind = any_index.bundle.manifest.index.kind
    assert ask(any_index, user="u1", mode="exact").path == "exact"
    assert ask(any_index, user="u1", mode="auto").path == ("exact" if kind == "flat" else "ann")
    assert ask(any_index, user="u1", mode="auto").reason is None
    assert (ask(any_index, user="u1", mode="ann").reason is not None) == (kind == "flat")
    for narrowed in ({"k": 300}, {"k": 1, "allow": ids(range(50))}, {"k": 1, "exclude": ids(range(300))}):
        assert ask(any_index, user="u1", mode="ann", **narrowed).path == "exact"
        assert ask(any_index, user="u1", mode="ann", **narrowed).reason  # ANN was asked for, so it is said why not
        assert ask(any_index, user="u1", mode="auto", **narrowed).reason is None


# Who is not known


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ({"user": "stranger"}, "the user is unknown"),
        ({}, "no user"),
        ({"history": ()}, "the history is empty"),
        ({"history": (Event("nope"),)}, "no item of the history"),
        ({"history": (Event(f"i{ITEMS - 1}"),)}, "not watched|watched in training"),
        ({"user": "\ud800", "history": None}, "the user is unknown"),
    ],
)
def test_strangers_get_the_popular_list_and_are_told(flat, who, reason):
    answer = ask(flat, k=10, **who)
    popular = [
        item for item in flat.bundle.popular.tolist() if ids([item])[0] not in {e.item for e in who.get("history") or ()}
    ]
    assert answer.path == "popular" and answer.fallback and answer.items.tolist() == popular[:10]
    assert any(part in answer.reason for part in reason.split("|"))


def test_unknown_items_are_named(flat):
    answer = ask(flat, history=(Event("x"), Event("i1"), Event("x")), exclude=("y", "i2"), allow=("i3", "i4", "z"))
    assert answer.unknown_items == ["x", "y", "z"] and set(answer.item_ids) == {"i3", "i4"}


def test_events_since_the_bundle_add_to_what_is_stored(flat):
    live = ask(flat, user="u1", history=(Event("i2"),), k=ITEMS)
    assert not ({2} | set(WORLD.seen[1].tolist())) & set(live.items.tolist())
    stored = tuple(Event(f"i{item}") for item in WORLD.seen[1])
    assert live.item_ids == ask(flat, history=(*stored, Event("i2")), k=ITEMS).item_ids


def test_a_user_nobody_trained_on_is_answered_from_his_history(tmp_path):
    vectors = WORLD.user_vectors.copy()
    vectors[4] = 0
    recommender = Recommender(open_bundle(write_planted(tmp_path, world=replace(WORLD, user_vectors=vectors))))
    answer = ask(recommender, user="u4")
    assert not answer.fallback and (answer.items % WORLD.tastes == 0).all()


def test_evaluation_does_not_know_what_it_scores(flat):
    before_test = Recommender(flat.bundle, known_until="test")
    held_out = int(WORLD.seen[6][-1])
    assert held_out in ask(before_test, user="u6", k=ITEMS).items
    assert held_out not in ask(flat, user="u6", k=ITEMS).items
    assert len(before_test.user("u6").history) == len(flat.user("u6").history) - 1


# Requests that cannot be


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"k": 0}, "bad_k"),
        ({"k": -1}, "bad_k"),
        ({"k": True}, "bad_k"),
        ({"k": 1.5}, "bad_k"),
        ({"mode": "fast"}, "bad_mode"),
        ({"filters": (Condition("genre", any=("Drama",)),)}, "bad_filter"),
        ({"filters": (Condition("year"),)}, "bad_filter"),
        ({"user": 5}, "bad_user"),
        ({"exclude": (5,)}, "bad_exclude"),
        ({"exclude": "i1"}, "bad_exclude"),
        ({"allow": (None,)}, "bad_allow"),
        ({"history": (Event(5),)}, "bad_history"),
        ({"history": (Event("i1", float("nan")),)}, "bad_rating"),
        ({"history": (Event("i1", 10**400),)}, "bad_rating"),
        ({"history": (Event("i1", 1e300),)}, "bad_rating"),
        ({"history": (Event("i1", -float("inf")),)}, "bad_rating"),
        ({"history": (Event("i1", "5"),)}, "bad_rating"),
        ({"history": (Event("i1", 1.0, 2**63),)}, "bad_time"),
    ],
)
def test_one_bad_request_leaves_its_neighbours_alone(flat, fields, code):
    good = Request(user="u1", k=3)
    first, error, last = flat.recommend([good, Request(**fields), good])
    assert isinstance(error, RequestError) and error.code == code and str(error)
    assert first.item_ids == last.item_ids == list(ids(WORLD.wanted(1, 3)))
    with pytest.raises(RequestError):
        flat.check(Request(**fields))


def test_no_request_no_answer(flat):
    assert flat.recommend([]) == []


def test_a_huge_k_gives_what_exists(any_index):
    answer = ask(any_index, user="u2", k=10**12)
    assert answer.items.tolist() == WORLD.wanted(2, ITEMS)


def test_a_user_who_is_the_sum_of_his_items_is_answered_alike_known_or_not(tmp_path):
    recommender = Recommender(open_bundle(write_planted(tmp_path, world=WORLD, **SUMMED)))
    counts = recommender.bundle.items.column("count").to_numpy()
    for user in range(8):
        seen = WORLD.seen[user]
        answer = ask(recommender, user=f"u{user}", k=10)
        assert (answer.items % WORLD.tastes == user % WORLD.tastes).all()
        by_hand = ((counts[seen] + 2.0) ** -0.9 @ WORLD.item_vectors[seen]) * (len(seen) + 2.0) ** -0.5
        assert answer.scores == pytest.approx(WORLD.item_vectors[answer.items] @ by_hand, abs=1e-6)
        told = ask(recommender, history=tuple(Event(item) for item in ids(seen[::-1])), k=10)
        assert told.items.tolist() == answer.items.tolist() and told.scores.tolist() == answer.scores.tolist()
    assert (recommender.similar("i5", 10).items % WORLD.tastes == 1).all()


# Similar items, titles, users


def test_similar_items_are_of_the_same_taste(flat, popularity):
    answer = flat.similar("i5", 10)
    assert (answer.items % WORLD.tastes == 1).all() and 5 not in answer.items and len(answer.items) == 10
    assert answer.scores == pytest.approx(WORLD.item_vectors[answer.items] @ WORLD.item_vectors[5], abs=1e-6)
    for recommender, item in ((flat, f"i{ITEMS - 1}"), (popularity, "i5")):
        answer = recommender.similar(item, 5)
        assert answer.path == "popular" and answer.fallback and answer.reason and item not in answer.item_ids
    with pytest.raises(RequestError, match="search by title"):
        flat.similar("nope")
    with pytest.raises(RequestError, match="k is 0"):
        flat.similar("i5", 0)


def test_similar_items_are_alike_not_liked(tmp_path):
    """A bias beyond the dimensions of taste: without it, nothing changes."""
    liked = np.random.default_rng(0).random((ITEMS, 8)).astype(np.float32) * 3
    world = replace(
        WORLD, item_vectors=np.hstack([WORLD.item_vectors, liked]), user_vectors=np.pad(WORLD.user_vectors, ((0, 0), (0, 8)))
    )
    fold_in = FoldIn(kind="ridge", parameters={"free": 8, "weight": 0.1, "ridge": 1.0})
    recommender = Recommender(open_bundle(write_planted(tmp_path, world=world, fold_in=fold_in)))
    assert (recommender.similar("i5", 10).items % WORLD.tastes == 1).all()


def test_a_user_is_shown_with_titles_newest_first(flat):
    user = flat.user("u3", limit=2)
    assert user.events == 5 and [event["item_id"] for event in user.history] == list(ids(WORLD.seen[3][[4, 3]]))
    assert user.history[0]["title"] == f"Film {WORLD.seen[3][4]}" and user.history[0]["rating"] == 1.0
    with pytest.raises(RequestError, match="send a history"):
        flat.user("stranger")


def test_search_describes(flat):
    assert [found["item_id"] for found in flat.search("film 59", 3)] == [
        "i59",
        *[f["item_id"] for f in flat.search("film 59", 3)[1:]],
    ]
    assert flat.search("nothing like it") == []


def test_retrieval_loads_no_torch():
    code = (
        "import sys, recsys.retrieval.recommender, recsys.bundle.write, recsys.bundle.store; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
