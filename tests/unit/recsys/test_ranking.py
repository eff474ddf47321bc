"""Full ranking against a brute-force oracle in NumPy, ties, strangers and cold items included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.histories import Histories
from recsys.evaluation import ranking
from recsys.evaluation.lists import top_lists
from recsys.models.popularity import Popularity

KS = (1, 3, 5)


class Scores:
    """A model given by its matrix of scores: user vectors are rows of it, item vectors the unit vectors."""

    def __init__(self, scores_UN: np.ndarray) -> None:
        self.scores = torch.from_numpy(scores_UN).float()

    def user_vectors(self, histories: Histories) -> torch.Tensor:
        return self.scores[torch.from_numpy(histories.user).long()]

    def item_vectors(self) -> torch.Tensor:
        return torch.eye(self.scores.shape[1])


class Rates(Scores):
    rates = True


def histories_of(users: list[tuple[list[int], list[int], list[int]]], ratings: float = 1.0) -> Histories:
    """From (train, valid, test) items of each user."""
    lengths = np.array([sum(map(len, user)) for user in users])
    item = np.array([item for user in users for segment in user for item in segment], np.int32)
    train, valid = (np.array([len(user[segment]) for user in users], np.int32) for segment in (0, 1))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rating = np.full(len(item), ratings, np.float32)
    numbers = np.arange(len(users), dtype=np.int32)
    return Histories(numbers, offsets, item, rating, np.zeros(len(item), np.int64), train, train + valid)


def counts_of(users, items: int) -> np.ndarray:
    return np.bincount([item for user in users for item in user[0]], minlength=items)


def valid_sums(model, users, ks=(1,), ratings: float = 1.0) -> ranking.RankingSums:
    counts = counts_of(users, model.scores.shape[1])
    return ranking.evaluate(model, histories_of(users, ratings), segment="valid", item_counts=counts, ks=ks)


def oracle(scores, users, counts, segment: int, exclude_seen: bool) -> dict[str, float]:
    """Sort every known user's eligible items by (-score, item), look the held-out ones up, one user at a time."""
    sums, known, lists = (
        dict.fromkeys((f"{m}@{k}" for m in ("hr", "recall", "ndcg", "mrr") for k in KS), 0.0),
        0,
        {k: set() for k in KS},
    )
    for row, user in enumerate(users):
        if not user[segment] or not user[0]:
            continue
        known += 1
        seen = {item for part in user[:segment] for item in part} if exclude_seen else set()
        eligible = [item for item in range(len(counts)) if counts[item] and item not in seen]
        order = sorted(eligible, key=lambda item: (-scores[row][item], item))
        held = set(user[segment])
        for k in KS:
            top = order[:k]
            lists[k] |= set(top)
            places = [place for place, item in enumerate(top) if item in held]
            sums[f"hr@{k}"] += bool(places)
            sums[f"recall@{k}"] += len(places) / len(held)
            ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(held))))
            sums[f"ndcg@{k}"] += sum(1 / math.log2(place + 2) for place in places) / ideal
            sums[f"mrr@{k}"] += 1 / (places[0] + 1) if places else 0
    means = {name: value / max(known, 1) for name, value in sums.items()}
    return means | {f"coverage@{k}": len(lists[k]) / max((counts > 0).sum(), 1) for k in KS}


@st.composite
def worlds(draw):
    """Users with three segments over few items, and scores with many ties."""
    items, people = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    segment = st.lists(st.integers(0, items - 1), max_size=4)
    users = draw(st.lists(st.tuples(segment, segment, segment), min_size=people, max_size=people))
    score = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=items, max_size=items)
    return users, np.array(draw(st.lists(score, min_size=people, max_size=people)))


@settings(max_examples=150)
@given(worlds(), st.sampled_from(["valid", "test"]), st.booleans(), st.sampled_from([None, 1, 2]))
def test_equals_the_oracle(world, segment, exclude_seen, batch_size):
    users, scores = world
    counts = counts_of(users, scores.shape[1])
    sums = ranking.evaluate(
        Scores(scores),
        histories_of(users),
        segment=segment,
        item_counts=counts,
        ks=KS,
        exclude_seen=exclude_seen,
        batch_size=batch_size,
    )
    where = {"valid": 1, "test": 2}[segment]
    assert sums.metrics() == pytest.approx(oracle(scores, users, counts, where, exclude_seen))
    by_popularity = oracle(np.tile(counts, (len(users), 1)), users, counts, where, exclude_seen)
    assert sums.popularity_metrics() == pytest.approx(by_popularity)
    held = [user for user in users if user[where]]
    assert sums.people() == {
        "users": sum(bool(user[0]) for user in held),
        "strangers": sum(not user[0] for user in held),
        "events": sum(len(set(user[where])) for user in held),
        "cold_events": sum(not counts[item] for user in held for item in set(user[where])),
    }


@settings(max_examples=60)
@given(st.integers(1, 1500), st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_lists_are_what_a_stable_sort_gives(width, k, values, seed):
    # Wide rows go by chunks, narrow ones do not; few distinct values make ties, -inf stands for masked.
    rng = np.random.default_rng(seed)
    scores = rng.integers(values, size=(3, width)).astype(np.float32)
    scores[rng.random((3, width)) < 0.2] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    expected = np.where(np.take_along_axis(scores, expected, 1) == -np.inf, -1, expected)
    expected = np.pad(expected, ((0, 0), (0, k - expected.shape[1])), constant_values=-1)
    np.testing.assert_array_equal(top_lists(torch.from_numpy(scores), k).numpy(), expected)


def test_halves_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    users = [tuple(rng.integers(8, size=size).tolist() for size in rng.integers(4, size=3)) for _ in range(12)]
    whole, counts, model = histories_of(users), counts_of(users, 8), Scores(rng.random((12, 8)))
    parts = [whole.take(np.arange(0, 5)), whole.take(np.arange(5, 12))]
    one, two = (ranking.evaluate(model, part, segment="test", item_counts=counts, ks=KS) for part in parts)
    both = ranking.evaluate(model, whole, segment="test", item_counts=counts, ks=KS)
    assert (one + two).metrics() == pytest.approx(both.metrics())
    assert (one + two).people() == both.people() == both.over_ranks().people()
    assert both.over_ranks().metrics() == both.metrics()


def test_strangers_get_the_popular_list_and_are_counted_apart():
    users = [([0, 1], [2], []), ([0], [1], []), ([], [0], []), ([2], [], [])]
    sums = ranking.evaluate(
        Scores(np.zeros((4, 3))), histories_of(users), segment="valid", item_counts=counts_of(users, 3), ks=(1,)
    )
    assert (sums.people()["users"], sums.people()["strangers"]) == (2, 1)
    assert sums.stranger_metrics()["hr@1"] == 1.0


def test_an_item_never_trained_on_is_a_miss_and_is_counted():
    users = [([0], [2], []), ([1], [0], [])]
    scores = np.array([[0.0, 0.0, 9.0], [1.0, 0.0, 9.0]])
    sums = valid_sums(Scores(scores), users, ks=(3,))
    assert sums.people()["cold_events"] == 1
    assert sums.metrics()["hr@3"] == 0.5
    assert sums.metrics()["coverage@3"] == 1.0


def test_popularity_as_the_model_is_its_own_row():
    users = [([0, 1], [2], []), ([2, 1], [0], []), ([1], [0], [])]
    counts = counts_of(users, 3)
    sums = ranking.evaluate(Popularity(counts), histories_of(users), segment="valid", item_counts=counts, ks=(1,))
    assert sums.metrics() == sums.popularity_metrics()


def test_held_out_users_can_be_given_vectors_of_their_own():
    users = [([0], [1], []), ([0], [2], []), ([1, 2], [], [])]
    counts, model = counts_of(users, 3), Scores(np.zeros((3, 3)))
    wanted = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    seen = []

    def vectors(known: Histories) -> torch.Tensor:
        seen.append(known.item.tolist())
        return wanted

    sums = ranking.evaluate(model, histories_of(users), segment="valid", item_counts=counts, ks=(1,), user_vectors=vectors)
    assert seen == [[0, 0]], "only what comes before the segment may be shown"
    assert sums.metrics()["hr@1"] == 1.0


def test_errors_are_over_every_rated_event():
    users = [([0], [1], []), ([1], [0], [])]
    sums = ranking.evaluate(
        Rates(np.array([[0.0, 4.0], [2.0, 0.0]])),
        histories_of(users, ratings=3.0),
        segment="valid",
        item_counts=counts_of(users, 2),
        ks=(1,),
    )
    assert sums.metrics()["rmse"] == pytest.approx(1.0)
    assert sums.metrics()["mae"] == pytest.approx(1.0)
    assert (
        "rmse"
        not in ranking.evaluate(
            Scores(np.zeros((2, 2))), histories_of(users), segment="valid", item_counts=counts_of(users, 2)
        ).metrics()
    )
