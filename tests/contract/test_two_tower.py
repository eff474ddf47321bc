"""two_tower: a new film of a genre finds those who like the genre; a history is averaged causally; ids may be missing."""

from dataclasses import replace

import numpy as np
import planted
import pyarrow as pa
import pytest
import torch

from recsys.config import Config
from recsys.data.attributes import attributes_of
from recsys.data.histories import Histories
from recsys.data.windows import Sequences, training_windows
from recsys.evaluation import ranking
from recsys.evaluation.candidates import candidates
from recsys.models import Catalogue, build
from recsys.models.base import listed_items
from recsys.training import hardware, loop
from recsys.training.negatives import Negatives
from recsys.training.trial import random_sequences, try_gradients

GENRES, ITEMS, TRAINED, USERS, WATCHED, NEW = 4, 84, 60, 240, 8, 2
NAMELESS = ITEMS - 1  # a film that nobody watched and nobody described


@pytest.fixture(scope="module")
def world():
    """Film i is of genre i % 4, and user u watches films of genre u % 4 only. Films from 60 on are new: what is watched of
    them is held out, so that neither counts nor ids say anything of them."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        old, new = (np.arange(first + user % GENRES, last, GENRES) for first, last in ((0, TRAINED), (TRAINED, NAMELESS)))
        rows.append(np.concatenate([rng.permutation(old)[:WATCHED], rng.permutation(new)[:NEW]]))
    item = np.concatenate(rows).astype(np.int32)
    every = Histories.of_events(np.arange(USERS, dtype=np.int32), np.full(USERS, WATCHED + NEW), item)
    shown = np.full(USERS, WATCHED, np.int32)
    histories = replace(every, valid_from=shown, test_from=shown)
    counts = np.bincount(histories.segment("train").item, minlength=ITEMS)
    genres = [[f"genre {number % GENRES}"] for number in range(NAMELESS)] + [None]
    attributes = attributes_of(pa.table({"genres": genres}))
    return planted.World(histories, Catalogue(USERS, ITEMS, counts, attributes=attributes))


def config_of(**model: object) -> Config:
    return planted.config_of("two_tower", **({"dim": 12, "negatives": None, "dropout": 0.0, "id_dropout": 0.5} | model))


def model_of(world: planted.World, **model: object) -> torch.nn.Module:
    return build(config_of(**model).model, world.catalogue, seed=0)


def fit(world: planted.World, **model: object) -> torch.nn.Module:
    config = config_of(**model)
    state, train = planted.start(world, config), world.train()
    negatives = Negatives(config.model, world.catalogue.item_counts, 0)
    chosen = hardware.choose(config.train, device=torch.device("cpu"))
    for epoch in range(6):
        order = np.random.default_rng(epoch).permutation(USERS)
        fed = [train.take(part) for part in np.array_split(order, 10)]
        loop.train_epoch(state.model, fed, state.optimizers, hardware=chosen, negatives=negatives, epoch=epoch)
    return state.model


@pytest.mark.parametrize(
    "more",
    [{}, {"cosine": False, "temperature": 1.0}, {"negative_source": "in_batch", "negatives": 64}],
    ids=str,
)
def test_new_films_find_those_who_like_their_genre(world, more):
    """Of 23 new films 5 or 6 are of a user's genre, of which he watched two: who knows his genre has them among the first 6."""
    model, counts = fit(world, **more), world.catalogue.item_counts
    ranked = candidates(listed_items(model, counts), counts, "items")
    assert ranked.kind == "cold" and ranked.eligible.sum() == NAMELESS - TRAINED
    sums = ranking.evaluate(model, world.histories, segment="test", item_counts=counts, ks=(6,), ranked=ranked)
    assert sums.people()["cold_events"] == 0
    assert sums.metrics()["recall@6"] > 0.98
    assert sums.random_metrics()["recall@6"] == pytest.approx(6 / 23)
    assert sums.popularity_metrics()["recall@6"] < 0.5  # films of equal count, by number


def test_old_films_and_new_ones_may_stand_in_one_list(world):
    model, counts = fit(world), world.catalogue.item_counts
    listed = candidates(listed_items(model, counts), counts, "leave_last_out")
    assert listed.kind == "listed" and listed.eligible.sum() == NAMELESS
    scores = model.user_vectors(world.train()) @ model.item_vectors().T
    genre = scores[:, :NAMELESS].topk(10).indices % GENRES
    assert (genre == torch.arange(USERS)[:, None] % GENRES).double().mean() > 0.98


def test_a_film_of_which_nothing_is_known_is_not_listed_and_says_nothing(world):
    model = model_of(world)
    assert not model.listed[NAMELESS] and model.listed[:NAMELESS].all()
    assert not model.item_vectors()[NAMELESS].any() and not model.item_inputs()[NAMELESS].any()
    lonely = Histories.of_events(np.arange(3, dtype=np.int32), np.array([1, 0, 2]), np.array([NAMELESS, NAMELESS, 5], np.int32))
    vectors = model.user_vectors(lonely)
    assert not vectors[:2].any() and vectors[2].any()
    only = Histories.of_events(np.zeros(1, np.int32), np.array([1]), np.array([5], np.int32))
    torch.testing.assert_close(model.user_vectors(only)[0], vectors[2])


def test_what_is_learnt_of_no_film_says_nothing_of_a_new_one(world):
    """A genre that only new films have is none; the id of a film without train events is not used."""
    genres = [["old"]] * TRAINED + [["new"]] * (ITEMS - TRAINED)
    strange = replace(world.catalogue, attributes=attributes_of(pa.table({"genres": genres})))
    model = build(config_of().model, strange, seed=0)
    assert not model.item_inputs()[TRAINED:].any() and model.item_inputs()[:TRAINED].any(1).all()
    assert model.listed.tolist() == [True] * TRAINED + [False] * (ITEMS - TRAINED)
    assert not model.item_vectors()[TRAINED:].any()


def test_a_genre_of_no_old_film_takes_nothing_from_those_beside_it(world):
    genres = [["old"]] * TRAINED + [["old", "new"]] * (ITEMS - TRAINED)
    strange = replace(world.catalogue, attributes=attributes_of(pa.table({"genres": genres})))
    model = build(config_of().model, strange, seed=0)
    assert model.listed.all()
    torch.testing.assert_close(model.described(torch.arange(ITEMS)), model.described(torch.zeros(ITEMS, dtype=torch.long)))


@pytest.mark.parametrize("cosine", [False, True])
def test_served_as_evaluated(world, cosine):
    model = model_of(world, cosine=cosine, heads=3).eval()
    inputs, served = model.item_inputs(), model.served().eval()
    vectors = model.user_vectors(world.train())
    assert vectors.shape == (USERS, 16)
    for user in (0, 7):
        window = world.train().item[user * WATCHED : (user + 1) * WATCHED]
        torch.testing.assert_close(served(inputs[None, window.astype(int)])[0], vectors[user])


def test_no_place_sees_what_comes_after_it_and_order_counts(world):
    encoder = model_of(world, heads=3).encoder.eval()
    items = torch.randn(2, 8, 12)
    changed = items.clone()
    changed[:, 5:] = torch.randn(2, 3, 12)
    one, other = encoder(items), encoder(changed)
    assert torch.equal(one[:, :5], other[:, :5]) and not torch.isclose(one[:, 5:], other[:, 5:]).all(-1).any()
    assert not torch.isclose(encoder(items.flip(1))[:, -1], one[:, -1]).all()


def test_a_head_that_forgets_nothing_and_weighs_all_alike_is_the_mean(world):
    tower = model_of(world, heads=1).encoder.eval()
    with torch.no_grad():
        tower.half_life.fill_(20.0)  # its logarithm
        tower.gate.weight.zero_()
        tower.mix.weight.copy_(torch.eye(12))
        tower.mix.bias.zero_()
        tower.norm = torch.nn.Identity()
        items = torch.randn(1, 6, 12)
        means = items.cumsum(1) / torch.arange(1, 7)[:, None]
        torch.testing.assert_close(tower(items), means * tower.scale, rtol=1e-4, atol=1e-4)


def test_a_giant_history_is_its_last_window(world):
    model = model_of(world)
    giant = Histories.of_events(
        np.zeros(1, np.int32), np.array([50_000]), np.resize(np.arange(TRAINED, dtype=np.int32), 50_000)
    )
    last = Histories.of_events(np.ones(1, np.int32), np.array([8]), giant.item[-8:])
    assert torch.equal(model.user_vectors(giant), model.user_vectors(last))


@pytest.mark.parametrize("more", [{}, {"negative_source": "in_batch", "negatives": 9}], ids=str)
def test_a_batch_in_buckets_gives_the_gradients_of_the_whole(world, more):
    model = model_of(world, id_dropout=0.0, **more).double()
    windows = training_windows(world.train().take(np.arange(9)), 8, 0)
    batch = Sequences(windows, torch.arange(0, TRAINED, 2), float(windows.lengths.sum()))
    found = []
    for most in (None, 16):
        model.zero_grad()
        for piece in batch.pieces(most):
            model(piece).backward()
        found.append({name: parameter.grad.to_dense().clone() for name, parameter in model.named_parameters()})
    silent = {name for name, gradient in found[0].items() if not gradient.any()}
    assert silent == {  # the second layer of each tower begins at zero, so that the first learns from the second step on
        f"{tower}.{part}"
        for tower in ("encoder.tower", "item_tower")
        for part in ("norm.weight", "norm.bias", "widen.weight", "widen.bias")
    }
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)  # users' vectors are rounded to float32


def test_an_id_is_left_out_as_often_as_it_is_set_unless_nothing_else_is_known(world):
    undescribed = build(config_of(id_dropout=0.75).model, replace(world.catalogue, attributes=None), seed=0).train()
    every = torch.arange(TRAINED)
    assert torch.equal(undescribed.inputs(every), undescribed.item_table[:TRAINED])
    model = model_of(world, id_dropout=0.75).train()
    left_out = sum((model.inputs(every) == model.described(every)).all(1).sum() for _ in range(50)) / 50 / TRAINED
    assert 0.7 < left_out < 0.8
    model.eval()
    assert not (model.inputs(every) == model.described(every)).all(1).any()


def test_the_micro_batch_can_be_tried_and_tables_are_told(world):
    model = model_of(world, negatives=8)
    assert model.tables().keys() == {"item", "attribute"} and model.row_tables().keys() == {"item"}
    chosen = hardware.choose(planted.QUICK, device=torch.device("cpu"))
    try_gradients(model, chosen, random_sequences(8, TRAINED, 5, chosen.device))(100)
    assert model.item_table.grad is None and not model_of(world).row_tables()
