"""What every model owes, tried on planted tastes on which popularity fails."""

import numpy as np
import planted
import pytest
import torch

from cluster.finished import folded_in
from recsys.config import LOSSES, ModelConfig
from recsys.data.histories import Histories
from recsys.errors import ConfigError
from recsys.evaluation import ranking
from recsys.models import MODELS, PERSONALISED, Popularity, build

# Every way to learn an order, each of which must find the tastes; a model is tried on those it can learn by.
ORDERS = [
    {"loss": "softmax"},
    {"loss": "softmax", "cosine": False, "temperature": 1.0},
    {"loss": "softmax", "negative_source": "popularity"},
    {"loss": "softmax", "negative_source": "in_batch"},
    {"loss": "bpr", "cosine": False},
    {"loss": "softmax", "l2": 1e-3},
    {"loss": "softmax", "negatives": None},
    {"loss": "softmax", "cosine": True, "temperature": 0.1},
    {"loss": "ccl", "epochs": 40},
    {"loss": "gbce", "cosine": True, "epochs": 80},
    {"loss": "squares"},
    {"loss": "squares", "unobserved_weight": 1.0, "frequency_power": 0.0, "ridge": 5.0},
    {"loss": "gbce", "calibration": 0.5, "epochs": 80},  # it starts after 20 to 60, as the weights are drawn, of either block
]
CASES = [(name, order) for name in PERSONALISED for order in ORDERS if order["loss"] in LOSSES[name]]


@pytest.fixture(scope="module")
def world():
    return planted.two_tastes()


@pytest.fixture(scope="module", params=CASES, ids=str)
def fitted(request, world):
    name, order = request.param
    epochs = order.get("epochs", planted.QUICK.epochs)  # these are slower to start
    settings = {key: value for key, value in order.items() if key != "epochs"}
    return planted.fit(world, planted.config_of(name, planted.QUICK.model_copy(update={"epochs": epochs}), **settings))


def scores_of(model, histories, world):
    known = histories.segment("train")
    scores = model.user_vectors(known) @ model.item_vectors().T
    scores[np.repeat(np.arange(len(known)), known.lengths), known.item] = -torch.inf
    return scores


def hit_rate(metrics: dict[str, float]) -> float:
    return metrics["hr@10"]


def test_recommends_withheld_films_of_every_users_taste(fitted, world):
    top = scores_of(fitted, world.histories, world).topk(5).indices
    wrong = [user for user in range(planted.USERS) if not set(top[user].tolist()) <= world.withheld(user)]
    assert len(wrong) <= planted.USERS // 50, f"users shown films of the other taste: {wrong}"


def test_popularity_fails_where_the_model_does_not(fitted, world):
    sums = ranking.evaluate(fitted, world.histories, segment="test", item_counts=world.catalogue.item_counts)
    assert hit_rate(sums.metrics()) > 0.9
    assert hit_rate(sums.popularity_metrics()) < 0.6


def test_vectors_are_a_multiple_of_eight_wide_and_finite(fitted, world):
    users, items = fitted.user_vectors(world.histories), fitted.item_vectors()
    assert users.shape == (planted.USERS, items.shape[1])
    assert items.shape[0] == planted.ITEMS
    assert items.shape[1] % 8 == 0
    assert users.isfinite().all() and items.isfinite().all()


def vectors_of_strangers(model, known, counts):
    """As they are made when served, of users the model has no rows for."""
    if model.known_user == "history":
        nobody = np.full(len(known), 10**6, np.int32)
        return model.user_vectors(Histories.of_events(nobody, known.lengths, known.item))
    vectors = folded_in(model, counts)
    assert vectors is not None
    return vectors(known)


def test_a_folded_in_history_finds_the_taste_as_well(fitted, world):
    vectors = vectors_of_strangers(fitted, world.train(), world.catalogue.item_counts)
    sums = ranking.evaluate(
        fitted,
        world.histories,
        segment="valid",
        item_counts=world.catalogue.item_counts,
        user_vectors=lambda _: vectors,
    )
    assert hit_rate(sums.metrics()) > 0.9


@pytest.mark.parametrize("name", PERSONALISED)
def test_an_item_without_train_events_has_no_say(world, name):
    config = planted.config_of(name)
    counts = world.catalogue.item_counts.copy()
    counts[3] = 0
    model = build(config.model, planted.Catalogue(planted.USERS, planted.ITEMS, counts), seed=0)
    vector = model.item_vectors()[3]
    if getattr(model, "rates", False):  # then it is predicted what its users give on average
        vector[int(model.fold_in_parameters()["free"]) - 1] -= 1
    assert vector.abs().sum() == 0


@pytest.mark.parametrize("name", PERSONALISED)
def test_a_loss_that_a_model_cannot_learn_by_is_refused(world, name):
    other = min({"mse", "gbce"} - set(LOSSES[name]))
    with pytest.raises(ConfigError, match=f"{other}.*{name} learns by one of {LOSSES[name][0]}"):
        build(planted.config_of(name, loss=other).model, world.catalogue, seed=0)


@pytest.mark.parametrize(("name", "loss"), [(name, loss) for name in PERSONALISED for loss in LOSSES[name]])
def test_one_seed_one_model(name, loss, world):
    config = planted.config_of(name, loss=loss, dim=4)
    models = [planted.train(planted.start(world, config, seed), world, 2, seed).model for seed in (0, 0, 1)]
    first, again, other = ([*model.state_dict().values()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("settings", [{"biases": True}, {"biases": False}, {"name": "bpmf"}], ids=str)
def test_ratings_are_predicted(world, settings):
    train = planted.QUICK.model_copy(update={"epochs": 4 if "name" in settings else 30})
    model = planted.fit(world, planted.config_of(loss="mse", train=train, **settings))
    sums = ranking.evaluate(model, world.histories, segment="test", item_counts=world.catalogue.item_counts)
    assert sums.metrics()["rmse"] < 0.4, "the mean of all ratings is off by 1"


def test_biases_and_the_mean_rating_are_in_the_vectors(world):
    model = planted.fit(world, planted.config_of(loss="mse"))
    user, item = model.user_table.detach()[7], model.item_table.detach()[5]
    by_hand = user[:8] @ item[:8] + user[8] + item[8] + world.catalogue.mean_rating
    exported = model.user_vectors(world.histories)[7] @ model.item_vectors()[5]
    torch.testing.assert_close(exported, by_hand)


def test_ratings_of_a_folded_in_history_are_predicted(world):
    train = planted.QUICK.model_copy(update={"epochs": 4})
    model = planted.fit(world, planted.config_of("bpmf", train=train))
    vectors = vectors_of_strangers(model, world.train(), world.catalogue.item_counts)
    counts = world.catalogue.item_counts
    told = {"segment": "test", "item_counts": counts, "user_vectors": lambda _: vectors}
    assert ranking.evaluate(model, world.histories, **told).metrics()["rmse"] < 0.5


def test_a_strangers_rating_is_the_mean_and_the_films_bias(world):
    model = planted.fit(world, planted.config_of(loss="mse"))
    nobody = world.histories.take(np.array([7]))
    nobody.valid_from[:] = 0
    predicted = model.user_vectors(nobody)[0] @ model.item_vectors()[5]
    torch.testing.assert_close(predicted, model.item_table.detach()[5, 8] + world.catalogue.mean_rating)


def test_cosines_are_served_by_plain_dot_products(world):
    model = planted.fit(world, planted.config_of(cosine=True, biases=False))
    for vectors in (model.user_vectors(world.histories), model.item_vectors()):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_biases_of_items_are_added_to_their_cosines(world):
    model = planted.fit(world, planted.config_of(cosine=True))
    user, item = model.user_table.detach()[7], model.item_table.detach()[5]
    by_hand = torch.cosine_similarity(user, item[:8], dim=0) + item[8]
    torch.testing.assert_close(model.user_vectors(world.histories)[7] @ model.item_vectors()[5], by_hand)
    assert item[8] != 0


def test_popularity_is_a_list_by_count_then_number():
    model = build(ModelConfig(name="popularity"), planted.Catalogue(1, 5, np.array([2, 0, 5, 2, 1])), seed=0)
    assert isinstance(model, Popularity)
    assert model.ranked.tolist() == [2, 0, 3, 4]


def test_an_unknown_model_is_refused_with_the_nearest_name(world):
    with pytest.raises(ConfigError, match="Did you mean popularity"):
        build(ModelConfig(name="popularty"), world.catalogue, seed=0)
    assert set(PERSONALISED) | {"popularity"} == set(MODELS)
