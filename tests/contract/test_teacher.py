"""Learning from a teacher's scores: the loss is what the formula says, and what labels do not show is learnt."""

from dataclasses import replace

import numpy as np
import planted
import pytest
import torch

from recsys.data.histories import Histories
from recsys.data.windows import Sequences, training_windows
from recsys.evaluation import ranking
from recsys.models import Catalogue, build, losses
from recsys.models.teacher import Scored, Teacher, soft_targets
from recsys.training import hardware, loop
from recsys.training.negatives import Negatives

ITEMS, STEPS, USERS = 20, 8, 100
CYCLE = np.random.default_rng(0).permutation(ITEMS).astype(np.int32)


def world_of(item: np.ndarray) -> planted.World:
    """Users with STEPS events each, the last two of them held out."""
    users = len(item) // STEPS
    offsets, valid_from = np.arange(users + 1, dtype=np.int64) * STEPS, np.full(users, STEPS - 2, np.int32)
    ones, times = np.ones(len(item), np.float32), np.zeros(len(item), np.int64)
    histories = Histories(
        np.arange(users, dtype=np.int32), offsets, item.astype(np.int32), ones, times, valid_from, valid_from + 1
    )
    return planted.World(histories, Catalogue(users, ITEMS, np.ones(ITEMS, np.int64)))


def round_and_round() -> planted.World:
    """What comes next is told by the last film alone."""
    return world_of(np.concatenate([CYCLE[(start + np.arange(STEPS)) % ITEMS] for start in range(USERS)]))


def without_order() -> planted.World:
    """The same films, and nothing to be seen in what comes next."""
    rng = np.random.default_rng(1)
    return world_of(np.concatenate([rng.permutation(ITEMS)[:STEPS] for _ in range(USERS)]))


def config_of(**model: object):
    small = {"dim": 16, "dropout": 0.0, "negatives": None}
    return planted.config_of("sasrec", **(small | model))


def fit(world: planted.World, teacher: Teacher | None = None, **model: object) -> torch.nn.Module:
    config = config_of(**model)
    state = planted.start(world, config)
    state.model.teacher = teacher
    negatives, train = Negatives(config.model, world.catalogue.item_counts, 0), world.train()
    chosen = hardware.choose(config.train, device=torch.device("cpu"))
    for epoch in range(12):
        order = np.random.default_rng(epoch).permutation(len(train))
        fed = [train.take(part) for part in np.array_split(order, 5)]
        loop.train_epoch(state.model, fed, state.optimizers, hardware=chosen, negatives=negatives, epoch=epoch)
    return state.model


def told(model: torch.nn.Module) -> float:
    """How often the next film of a round is told."""
    world = round_and_round()
    sums = ranking.evaluate(model, world.histories, segment="test", item_counts=world.catalogue.item_counts, ks=(1,))
    return sums.metrics()["hr@1"]


@pytest.fixture(scope="module")
def knows() -> torch.nn.Module:
    return fit(round_and_round(), dim=24, blocks=2)


def test_a_student_learns_what_its_labels_do_not_show(knows):
    taught = fit(without_order(), Teacher(knows, weight=0.9, temperature=1.0), blocks=1)
    assert told(knows) > 0.95 and told(taught) > 0.8
    assert told(fit(without_order(), blocks=1)) < 0.3


def test_a_teacher_that_nobody_listens_to_changes_nothing(knows):
    alone, ignoring = fit(without_order()), fit(without_order(), Teacher(knows, weight=0.0, temperature=1.0))
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(dict(ignoring.named_parameters())[name], parameter)


def test_the_teacher_stays_as_it_was_and_is_no_part_of_the_student(knows):
    before = {name: tensor.clone() for name, tensor in knows.state_dict().items()}
    student = fit(without_order(), Teacher(knows, weight=0.5, temperature=2.0))
    assert not knows.training and all(torch.equal(before[name], tensor) for name, tensor in knows.state_dict().items())
    assert not any("teacher" in name for name in student.state_dict()) and len(list(student.children())) == 1


def made(events: int, negatives: int, dim: int, seed: int, sharpness: float, hits: losses.Hits) -> Scored:
    generator = torch.Generator().manual_seed(seed)
    parts = (torch.randn(rows, dim, generator=generator, dtype=torch.float64) for rows in (events, events, negatives))
    return Scored(*(part.requires_grad_() for part in parts), hits, sharpness)


def by_hand(student: Scored, teacher: Scored, item: torch.Tensor, drawn: torch.Tensor, temperature: float) -> torch.Tensor:
    """The formula, event by event, over the candidates it has."""
    loss = torch.zeros((), dtype=torch.float64)
    for row in range(len(item)):
        kept = drawn != item[row]
        logits = []
        for scored in (student, teacher):
            candidates = torch.cat([scored.positive[row : row + 1], scored.negatives[kept]])
            logits.append(candidates @ scored.user[row] * scored.sharpness / temperature)
        loss = loss - temperature**2 * (logits[1].detach().softmax(0) * logits[0].log_softmax(0)).sum()
    return loss


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_and_its_gradients_are_those_of_the_formula(monkeypatch, temperature):
    monkeypatch.setitem(losses.BLOCK_ELEMENTS, "cpu", 40)  # three events a block, the last of one
    item, drawn = torch.tensor([3, 1, 4, 1, 5, 9, 2]), torch.tensor([1, 5, 7, 3, 8, 1, 0, 6, 11, 12, 13])
    hits = losses.accidental_hits(item, drawn)
    student, teacher = made(7, 11, 4, 0, 1.5, hits), made(7, 11, 6, 1, 0.7, hits)
    found, wanted = soft_targets(student, teacher, temperature), by_hand(student, teacher, item, drawn, temperature)
    torch.testing.assert_close(found, wanted)
    # The graph is gone through once, as the training loop does.
    ours, theirs = (torch.autograd.grad(2 * loss, student[:3]) for loss in (found, wanted))
    torch.testing.assert_close(ours, theirs)
    assert all(part.grad is None for part in teacher[:3])


@pytest.mark.parametrize(
    "more", [{}, {"negative_source": "popularity", "negatives": 8}, {"loss": "gbce"}, {"cosine": True}], ids=str
)
def test_pieces_of_a_batch_add_up_to_the_whole(knows, more):
    student = build(config_of(**more).model, without_order().catalogue, seed=0).double()
    student.teacher = Teacher(build(config_of().model, without_order().catalogue, seed=1).double(), weight=0.5, temperature=2.0)
    windows = training_windows(without_order().train().take(np.arange(12)), STEPS, 0)
    batch = Sequences(windows, torch.arange(ITEMS), float(windows.lengths.sum()))
    whole, pieces = gradients(student, [batch]), gradients(student, batch.pieces(16))
    assert len(batch.pieces(16)) > 3
    torch.testing.assert_close(pieces, whole)
    student.teacher = None
    assert not torch.allclose(gradients(student, [batch])["item_table"], whole["item_table"])


def gradients(model: torch.nn.Module, batches: list[Sequences]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for batch in batches:
        model(batch).backward()
    return {name: p.grad.to_dense() for name, p in model.named_parameters()}


def test_a_step_without_events_is_none(knows):
    student = build(config_of().model, without_order().catalogue, seed=0)
    student.teacher = Teacher(knows, weight=0.5, temperature=1.0)
    lonely = Histories.of_events(np.zeros(1, np.int32), np.array([1]), np.array([4], np.int32))
    batch = Sequences(training_windows(lonely, STEPS, 0), torch.arange(ITEMS))
    student(replace(batch, total=1.0)).backward()
    assert not student.item_table.grad.any()
