"""A bundle whose users are encoded from their histories: what the encoder is fed, and that nothing else moves its answer."""

import itertools
import json

import numpy as np
import pytest

from recsys.bundle.manifest import ENCODER, FoldIn
from recsys.bundle.read import open_bundle
from recsys.errors import BundleError
from recsys.retrieval.recommender import Answer, Event, Recommender, Request
from recsys.retrieval.users import _by_time
from tests.bundles import planted, rehash, write_planted
from tests.encoders import ENCODED, MAX_LENGTH, encoded_by_hand, encoder_bytes

WORLD = planted(items=300, untrained=7)


@pytest.fixture(scope="module", autouse=True)
def own_receipts(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    return Recommender(open_bundle(write_planted(tmp_path_factory.mktemp("encoded"), world=WORLD, **ENCODED)))


@pytest.fixture(scope="module")
def repeating(tmp_path_factory):
    """Of a dataset that keeps repeats."""
    folder = write_planted(tmp_path_factory.mktemp("repeating"), world=WORLD, exclude_seen=False, **ENCODED)
    return Recommender(open_bundle(folder))


def ask(recommender, **fields) -> Answer:
    (answer,) = recommender.recommend([Request(**fields)])
    assert isinstance(answer, Answer), answer
    return answer


def events(*items):
    return tuple(Event(f"i{item}") for item in items)


def expected(items, k=10, hidden=None):
    """The list for a window of items, by hand, and its scores."""
    vectors = WORLD.item_vectors
    scores = vectors @ encoded_by_hand(vectors[list(items)].astype(np.float64))
    left = [item for item in np.argsort(-scores) if item < 293 and item not in (items if hidden is None else hidden)]
    return [f"i{item}" for item in left[:k]], scores[left[:k]]


def test_a_known_user_is_answered_from_his_stored_history(recommender):
    for user, seen in enumerate(WORLD.seen):
        answer = ask(recommender, user=f"u{user}")
        ids, scores = expected(seen[-MAX_LENGTH:], hidden=set(seen))
        assert answer.item_ids == ids and answer.path == "exact" and not answer.fallback
        np.testing.assert_allclose(answer.scores, scores, rtol=1e-5)
        assert {int(item[1:]) % 4 for item in answer.item_ids} == {user % 4}  # his taste


def test_the_order_of_a_history_matters(recommender):
    lists = {tuple(ask(recommender, history=events(*order)).item_ids) for order in itertools.permutations((0, 1, 2))}
    assert len(lists) == 3  # what was last decides, and there are three that can be
    assert ask(recommender, history=events(0, 1, 2)).item_ids == expected((0, 1, 2))[0]


def test_times_order_a_history_and_ties_stay_as_sent():
    timed = [("c", 30), ("a", 10), ("b", None), ("d", 30), ("e", None)]
    assert [event.item for event in _by_time([Event(item, None, time) for item, time in timed])] == ["a", "b", "c", "d", "e"]
    assert [event.item for event in _by_time([Event("x"), Event("y", None, -5), Event("z")])] == ["x", "y", "z"]


def test_sent_times_change_the_list(recommender):
    late, early = Event("i0", None, 20), Event("i1", None, 10)
    assert ask(recommender, history=(late, early)).item_ids == ask(recommender, history=events(1, 0)).item_ids
    assert ask(recommender, history=(late, early)).item_ids != ask(recommender, history=events(0, 1)).item_ids


def test_only_the_last_events_are_looked_at_but_all_are_hidden(recommender):
    short, long = (9, 5, 1, 13), (0, 2, 17, 9, 5, 1, 13)
    hidden = tuple(f"i{item}" for item in long)
    assert ask(recommender, history=events(*long)).item_ids == ask(recommender, history=events(*short), exclude=hidden).item_ids
    assert ask(recommender, history=events(*long)).item_ids == expected(short, hidden=long)[0]


def test_fresh_events_come_after_the_stored_ones_whatever_their_time(recommender):
    before = ask(recommender, user="u0")
    after = ask(recommender, user="u0", history=(Event("i1", None, -1),))
    assert after.item_ids == expected((*WORLD.seen[0][-3:], 1), hidden={*WORLD.seen[0], 1})[0]
    assert after.item_ids != before.item_ids and int(after.item_ids[0][1:]) % 4 == 1
    assert ask(recommender, user="u0").item_ids == before.item_ids  # nothing of it is kept


def test_an_item_that_comes_again_moves_to_its_last_place_as_the_dataset_has_it(recommender, repeating):
    again = events(0, 1, 2, 0)
    assert ask(recommender, history=again).item_ids == ask(recommender, history=events(1, 2, 0)).item_ids
    assert ask(repeating, history=again, k=20).item_ids == expected((0, 1, 2, 0), k=20, hidden=())[0]
    assert ask(repeating, history=again, k=20).item_ids != ask(repeating, history=events(1, 2, 0), k=20).item_ids


def test_what_the_model_never_saw_is_left_out_and_told(recommender):
    with_more = (*events(3), Event("?"), Event("i299"), *events(7))
    answer = ask(recommender, history=with_more)
    assert answer.item_ids == ask(recommender, history=events(3, 7)).item_ids and answer.unknown_items == ["?"]
    nothing = ask(recommender, history=events(299))
    assert nothing.path == "popular" and nothing.fallback and nothing.reason == "no item of the history was watched in training"
    assert ask(recommender, history=()).reason == "the history is empty"


def test_a_vector_does_not_depend_on_who_else_asks(recommender, tmp_path):
    rng = np.random.default_rng(0)
    asked = [Request(history=events(*rng.permutation(293)[:length]), k=20) for length in (1, 2, 3, 4, 9, 1, 4)]
    asked += [Request(user=f"u{user}", k=20) for user in range(5)]
    fresh = Recommender(open_bundle(write_planted(tmp_path, world=WORLD, **ENCODED)))  # it remembers nobody yet
    together = recommender.recommend(asked)
    for request, answer in zip(asked, together, strict=True):
        (alone,) = fresh.recommend([request])
        assert alone.item_ids == answer.item_ids and (alone.scores == answer.scores).all()  # to the bit


def test_what_is_remembered_cannot_be_written_to(recommender):
    vector = recommender.taste("u1").vector
    assert recommender.taste("u1").vector is vector and not vector.flags.writeable


def test_evaluation_does_not_know_what_it_scores(recommender):
    for until, end in (("valid", -2), ("test", -1)):
        cut = Recommender(recommender.bundle, known_until=until)
        for user, seen in enumerate(WORLD.seen):
            assert ask(cut, user=f"u{user}").item_ids == ask(recommender, history=events(*seen[:end])).item_ids


def test_inputs_of_their_own(tmp_path):
    inputs = np.concatenate([WORLD.item_vectors[::-1], np.ones((300, 2), np.float32)], axis=1)
    changes = ENCODED | {"encoder": encoder_bytes(8, width=10), "item_inputs": inputs}
    recommender = Recommender(open_bundle(write_planted(tmp_path, world=WORLD, **changes)))
    assert recommender.bundle.item_inputs.shape == (300, 10)
    scores = WORLD.item_vectors @ encoded_by_hand(inputs[[5, 9], :8])
    best = [item for item in np.argsort(-scores) if item < 293 and item not in (5, 9)][:10]
    assert ask(recommender, history=events(5, 9)).items.tolist() == best


def test_golden_queries_are_histories_in_order(recommender):
    golden = recommender.bundle.manifest.golden
    stored = {tuple(seen.tolist()) for seen in WORLD.seen}
    assert len(golden) == 8 and all(query.items in stored and len(query.answer) == 10 for query in golden)
    assert recommender.bundle.manifest.index.users == 24  # the audit's users are encoded


# What cannot be run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": encoder_bytes(16)}, "ONNX Runtime cannot run it|fails at 1"),  # of wider items
        ({"encoder": encoder_bytes(4, width=8)}, r"\(1, 4\), not 8 dimensions"),
        ({"fold_in": FoldIn(kind="onnx")}, "into 'user'"),
        ({"encoder": encoder_bytes().replace(b"items", b"itemz")}, "into 'user'"),
        ({"encoder": encoder_bytes().replace(b"ReduceMean", b"ReduceMoan")}, "ONNX Runtime cannot run it"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_before_it_is_published(tmp_path, changes, message, capfd):
    with pytest.raises(BundleError, match=message):
        write_planted(tmp_path, world=WORLD, **(ENCODED | changes))
    assert not list(tmp_path.glob("films/*/manifest.json"))
    assert capfd.readouterr().err == ""


def test_golden_queries_see_another_encoder(tmp_path):
    folder = write_planted(tmp_path, world=WORLD, **ENCODED)
    content = bytearray(encoder_bytes())
    place = content.index(np.float32(2).tobytes())
    content[place : place + 4] = np.float32(2.1).tobytes()
    (folder / ENCODER).write_bytes(content)
    rehash(folder, ENCODER)
    with pytest.raises(BundleError, match="golden"):
        Recommender(open_bundle(folder))


def test_the_manifest_says_how_histories_are_encoded(recommender):
    told = json.loads((recommender.bundle.folder / "manifest.json").read_bytes())
    assert told["fold_in"] == {"kind": "onnx", "parameters": {"max_length": 4.0}} and told["known_user"] == "history"
    assert {"encoder.onnx", "item_vectors.npy"} < set(told["files"])
    assert not {"user_vectors.npy", "item_inputs.npy", "fold_in_gram.npy"} & set(told["files"])
