"""sasrec: what comes next by what came last; nothing sees what is behind it; pieces and padding change nothing."""

from dataclasses import replace

import numpy as np
import planted
import pytest
import torch

from recsys.config import Config
from recsys.data.histories import Histories
from recsys.data.windows import Sequences, last_windows, training_windows
from recsys.evaluation import ranking
from recsys.models import Catalogue, build
from recsys.training import checkpoint, hardware, loop
from recsys.training.micro_batch import MicroBatch
from recsys.training.negatives import Negatives
from recsys.training.trial import random_sequences, try_gradients

ITEMS, STEPS = 30, 8


@pytest.fixture(scope="module")
def world():
    """Every user walks his part of one cycle through all films, so that each film is watched as often as any other and what
    comes next is told by the last film alone."""
    cycle = np.random.default_rng(0).permutation(ITEMS).astype(np.int32)
    starts = np.tile(np.arange(ITEMS), 10)
    item = np.concatenate([cycle[(start + np.arange(STEPS)) % ITEMS] for start in starts])
    users = len(starts)
    offsets, valid_from = np.arange(users + 1, dtype=np.int64) * STEPS, np.full(users, STEPS - 2, np.int32)
    ones, times = np.ones(len(item), np.float32), np.zeros(len(item), np.int64)
    held = Histories(np.arange(users, dtype=np.int32), offsets, item, ones, times, valid_from, valid_from + 1)
    return planted.World(held, Catalogue(users, ITEMS, np.bincount(held.segment("train").item, minlength=ITEMS)))


MODEL = {"dim": 16, "negatives": None, "dropout": 0.0}


@pytest.fixture(autouse=True, params=["hstu", "transformer"])
def block(request, monkeypatch):
    """Every promise, whatever the encoder is made of."""
    monkeypatch.setitem(MODEL, "block", request.param)
    return request.param


def config_of(**model: object) -> Config:
    return planted.config_of("sasrec", **(MODEL | model))


def model_of(world: planted.World, **model: object) -> torch.nn.Module:
    return build(config_of(**model).model, world.catalogue, seed=0)


def fit_sequences(world, config: Config) -> torch.nn.Module:
    """On the world's own users, whatever the model is fed."""
    state = planted.start(world, config)
    negatives, train = Negatives(config.model, world.catalogue.item_counts, 0), world.train()
    chosen = hardware.choose(config.train, device=torch.device("cpu"))
    for epoch in range(config.train.epochs):
        order = np.random.default_rng(epoch).permutation(len(train))
        fed = [train.take(part) for part in np.array_split(order, 10)]
        if config.model.name == "mf":
            fed = [part.pairs() for part in fed]
        loop.train_epoch(state.model, fed, state.optimizers, hardware=chosen, negatives=negatives, epoch=epoch)
    return state.model


def test_what_comes_next_is_told_by_the_last_event_where_a_table_of_users_and_popularity_fail(world):
    scores = {}
    for name, more in (("sasrec", MODEL | {"dropout": 0.1}), ("mf", {"dim": 16})):
        model = fit_sequences(world, planted.config_of(name, **more))
        sums = ranking.evaluate(model, world.histories, segment="test", item_counts=world.catalogue.item_counts, ks=(1,))
        scores[name] = sums.metrics()["hr@1"]
    assert scores["sasrec"] > 0.95
    assert scores["mf"] < 0.6
    assert sums.popularity_metrics()["hr@1"] < 0.2


def gradients(model: torch.nn.Module, batch: Sequences, most: int | None) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for piece in batch.pieces(most):
        model(piece).backward()
    return {name: p.grad.to_dense() for name, p in model.named_parameters()}


def batch_of(lengths: list[int]) -> Sequences:
    rng = np.random.default_rng(1)
    item = rng.integers(ITEMS, size=sum(lengths)).astype(np.int32)
    histories = Histories.of_events(np.arange(len(lengths), dtype=np.int32), np.array(lengths), item)
    windows = training_windows(histories, 8, 0)
    return Sequences(windows, torch.arange(ITEMS), float(windows.lengths.sum()))


@pytest.mark.parametrize("more", [{}, {"negative_source": "popularity", "negatives": 8}, {"loss": "gbce"}], ids=str)
def test_a_batch_in_buckets_gives_the_gradients_of_the_whole(world, more):
    model, batch = model_of(world, **more).double(), batch_of([2, 3, 30, 5, 9, 8, 2, 4])
    assert len(batch.pieces(16)) > 3
    whole = gradients(model, batch, None)
    assert all(gradient.abs().sum() > 0 for gradient in whole.values())
    torch.testing.assert_close(gradients(model, batch, 16), whole)


def test_padding_costs_nothing_and_touches_no_item(world):
    """Beside a long history a short one is padded, and film 0, whose number padding could be taken for, stays as it is."""
    model = model_of(world, negative_source="popularity", negatives=4).double()
    short = Sequences(
        training_windows(Histories.of_events(np.zeros(1, np.int32), np.array([3]), np.array([4, 5, 6], np.int32)), 8, 0)
    )
    short = replace(short, negatives=torch.tensor([7, 8]), total=2.0)
    padded = replace(short, windows=replace(short.windows, most=3))
    assert (short.windows.padded().shape, padded.windows.padded().shape) == ((1, 8), (1, 3))
    torch.testing.assert_close(gradients(model, short, None), gradients(model, padded, None))
    assert sorted(set(model.item_table.grad._indices()[0].tolist())) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("heads", [1, 2])
def test_no_place_sees_what_comes_after_it(world, heads):
    encoder = model_of(world, heads=heads).encoder.eval()
    items = torch.randn(2, 8, 16)
    changed = items.clone()
    changed[:, 5] += torch.randn(16)
    before, after = encoder(items), encoder(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any(), "every place from there on sees it"
    torch.testing.assert_close(encoder(items[:, :3]), before[:, :3])


def test_a_block_of_hstu_is_what_the_paper_says():
    """One place after the other, in plain NumPy."""
    from recsys.models.hstu import HstuBlock

    torch.manual_seed(0)
    block = HstuBlock(4, heads=2, dropout=0.5, length=6).double().eval()
    torch.nn.init.normal_(block.distance)
    x = torch.randn(1, 5, 4, dtype=torch.float64)
    found = block(x)[0].detach().numpy()
    silu = lambda z: z / (1 + np.exp(-z))  # noqa: E731
    norm = lambda z: (z - z.mean()) / np.sqrt(z.var() + 1e-5)  # noqa: E731
    weight, out, bias = (p.detach().numpy() for p in (block.project.weight, block.out.weight, block.out.bias))
    distance = block.distance.detach().numpy()
    rows = [silu(weight @ norm(row)) for row in x[0].numpy()]
    for place in range(5):
        attended = np.zeros(4)
        for earlier in range(place + 1):
            for head in range(2):
                dims = slice(2 * head, 2 * head + 2)
                value, query, key = rows[earlier][4:8][dims], rows[place][8:12][dims], rows[earlier][12:16][dims]
                attended[dims] += silu(query @ key / np.sqrt(2) + distance[head, place - earlier]) * value / (place + 1)
        expected = x[0, place].numpy() + out @ (norm(attended) * rows[place][:4]) + bias
        np.testing.assert_allclose(found[place], expected, atol=1e-12)


def test_attention_is_that_of_torch():
    from torch.nn import functional as F

    from recsys.models.transformer import causal_attention

    parts = torch.randn(3, 2, 2, 7, 4, dtype=torch.float64).unbind(0)
    torch.testing.assert_close(causal_attention(*parts), F.scaled_dot_product_attention(*parts, is_causal=True))


def test_dropout_leaves_out_its_share_and_keeps_the_mean():
    from recsys.models.transformer import dropout

    torch.manual_seed(0)
    dropped = dropout(torch.ones(1001, 99), 0.25)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 4 / 3]))
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)


def test_vectors_are_of_the_last_events_given_and_of_nothing_else(world):
    model = model_of(world)
    torch.nn.init.normal_(model.encoder.position)
    known = world.histories.until("test")
    whole = model.user_vectors(known)
    for user in (0, 7, 299):
        torch.testing.assert_close(model.user_vectors(known.take(np.array([user])))[0], whole[user])
    longer = Histories.of_events(np.zeros(1, np.int32), np.array([60]), np.resize(world.histories.item[:30], 60))
    last = Histories.of_events(np.ones(1, np.int32), np.array([8]), longer.item[-8:])
    assert torch.equal(model.user_vectors(longer), model.user_vectors(last))
    assert last_windows(longer, 8).lengths.tolist() == [8]


def test_a_user_without_events_on_trained_items_has_no_vector(world):
    counts = world.catalogue.item_counts.copy()
    counts[3] = 0
    model = build(config_of().model, replace(world.catalogue, item_counts=counts), seed=0)
    histories = Histories.of_events(np.arange(3, dtype=np.int32), np.array([0, 2, 3]), np.array([3, 3, 5, 3, 6], np.int32))
    vectors = model.user_vectors(histories)
    assert (vectors[:2] == 0).all() and (vectors[2] != 0).any()
    without = Histories.of_events(np.zeros(1, np.int32), np.array([2]), np.array([5, 6], np.int32))
    torch.testing.assert_close(model.user_vectors(without)[0], vectors[2])


def test_dropout_is_off_where_vectors_are_made_and_on_again_after(world):
    model = model_of(world, dropout=0.5).train()
    one, again = (model.user_vectors(world.train()) for _ in range(2))
    assert torch.equal(one, again) and model.training


@pytest.mark.parametrize(
    ("more", "dense"),
    [({}, True), ({"negatives": 8}, False), ({"negatives": 999}, True), ({"negative_source": "in_batch"}, False)],
    ids=str,
)
def test_the_items_are_a_row_table_unless_every_step_touches_all(world, more, dense):
    model = model_of(world, **more)
    assert ("item" in model.row_tables()) != dense
    assert model.tables().keys() == {"item"}
    optimizers = loop.make_optimizers(model, config_of().train)
    assert [type(optimizer).__name__ for optimizer in optimizers] == [*([] if dense else ["RowAdam"]), "Adam", "WeightMean"]


@pytest.mark.parametrize("more", [{}, {"negatives": 8}], ids=str)
def test_a_step_without_anything_to_tell_moves_nothing(world, more):
    """As a worker takes it whose users have one event each, or who has none left."""
    model = model_of(world, **more)
    before = {name: p.clone() for name, p in model.named_parameters()}
    lonely = Histories.of_events(np.zeros(2, np.int32), np.array([1, 0]), np.array([4], np.int32))
    negatives = Negatives(config_of(**more).model, world.catalogue.item_counts, 0)
    chosen = hardware.choose(planted.QUICK, device=torch.device("cpu"))
    optimizers = [torch.optim.SGD(model.encoder.parameters(), 1.0)]
    stats = loop.train_epoch(
        model, [lonely], optimizers, hardware=chosen, negatives=negatives, clip_norm=1.0, micro_batch=MicroBatch(16)
    )
    assert (stats.events, stats.steps, stats.loss) == (0, 1, 0.0)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_the_micro_batch_can_be_tried(world):
    model = model_of(world)
    chosen = hardware.choose(planted.QUICK, device=torch.device("cpu"))
    before = model.item_table.detach().clone()
    try_gradients(model, chosen, random_sequences(8, ITEMS, 5, chosen.device))(100)
    assert torch.equal(model.item_table, before) and model.item_table.grad is None


def test_a_checkpoint_has_no_users(tmp_path, world):
    state = planted.start(world, config_of())
    assert state.owned is None
    checkpoint.save(tmp_path, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        checkpoint.MODEL_FILE,
        checkpoint.OPTIMIZER_FILE,
        checkpoint.STATE_FILE,
    ]
