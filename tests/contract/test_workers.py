"""One worker or two, over gloo and without Ray: the same update, and parameters equal bit for bit."""

import faulthandler
from dataclasses import replace
from pathlib import Path

import numpy as np
import planted
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from recsys.config import TrainConfig
from recsys.data.histories import Histories, Pairs
from recsys.evaluation import ranking
from recsys.models.owned import UserRanges
from recsys.training import checkpoint, collective, hardware, loop, passes, trial
from recsys.training.checkpoint import TrainState
from recsys.training.hardware import Hardware
from recsys.training.micro_batch import MicroBatch
from recsys.training.negatives import Negatives
from serve.ports import free_port

CASES = {
    "softmax": {},
    "in_batch": {"negative_source": "in_batch", "cosine": False, "temperature": 1.0},
    "bpr": {"loss": "bpr", "cosine": False},
    "mse": {"loss": "mse"},
    "averaged": {},
    "ials": {"name": "ials", "loss": "squares"},
    "spectral": {"name": "spectral", "loss": "squares"},
    "bpmf": {"name": "bpmf", "loss": "mse"},
    "sasrec": {"name": "sasrec", "block": "transformer", "dropout": 0.0, "negatives": None},
    "sasrec_rows": {"name": "sasrec", "block": "transformer", "dropout": 0.0, "negative_source": "in_batch"},
    "hstu": {"name": "sasrec", "dropout": 0.0, "negatives": None},
    "hstu_rows": {"name": "sasrec", "dropout": 0.0, "negative_source": "in_batch"},
    "two_tower": {"name": "two_tower", "dropout": 0.0, "id_dropout": 0.0, "negatives": None},
    "two_tower_rows": {"name": "two_tower", "dropout": 0.0, "id_dropout": 0.0, "negative_source": "in_batch"},
}
# At the others' rate HSTU's roundings grow to .001 of a weight and more; this is nearer its own (.002).
SLOWER = {"learning_rate": 0.003}
TRAINING = {"hstu": SLOWER, "hstu_rows": SLOWER, "averaged": {"average": 0.9}}
OF_HISTORIES = tuple(case for case in CASES if CASES[case].get("name") in ("sasrec", "two_tower"))
WITHOUT_USERS = (*OF_HISTORIES, "spectral")  # no table of them


class Mixed(nn.Module):
    """Tables and a dense layer, so that DDP and the exchange of rows work side by side."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.user = nn.Parameter(torch.randn(planted.USERS, 4, generator=generator))
        self.item = nn.Parameter(torch.randn(planted.ITEMS, 4, generator=generator))
        self.dense = nn.Parameter(torch.randn(4, 4, generator=generator))

    def forward(self, batch: Pairs) -> torch.Tensor:
        user, item = F.embedding(batch.user, self.user, sparse=True), F.embedding(batch.item, self.item, sparse=True)
        return (((user @ self.dense) * item).sum(1) - batch.rating).square().sum() / batch.total

    def row_tables(self) -> dict[str, nn.Parameter]:
        return {"user": self.user, "item": self.item}


def train_planted(folder: Path, rank: int, world_size: int, case: str) -> None:
    """Two epochs; then a checkpoint by all, and every rank writes what all share and its counts."""
    world = planted.two_tastes()
    world = replace(world, catalogue=replace(world.catalogue, attributes=planted.genres()))
    settings = planted.QUICK.model_copy(update={"clip_norm": 0.05})
    config = planted.config_of(train=settings.model_copy(update=TRAINING.get(case, {})), **CASES[case])
    owned = planted.owned_by(rank, world_size)
    state = planted.start(world, config, owned=owned)
    negatives = Negatives(config.model, world.catalogue.item_counts, 0)
    if state.model.learns != "gradients":
        events = planted.events_of(world, rank, world_size)
        loss, count = [passes.train_epoch(state.model, events, epoch, 0) for epoch in range(2)][-1]
        stats = loop.EpochStats(loss, count, 0, 0, 0.0, 0.0, 0.0)
        leave(folder, rank, world, state, owned, stats)
        return
    if rank == 0:  # one worker tries the micro-batch for all, and must not wait for them
        alone = hardware.choose(settings, device=torch.device("cpu"))
        make = trial.random_pairs(owned.ranges[0], planted.ITEMS, 32, alone.device)
        if state.owned is None:
            make = trial.random_sequences(8, planted.ITEMS, 32, alone.device)
        trial.try_gradients(state.model, alone, make)(64)
    state.model = loop.distribute(state.model)
    for epoch in range(2):
        parts = [*planted.batches(world, config, epoch, 0, 2)], [*planted.batches(world, config, epoch, 1, 2)]
        mine = parts[rank] if world_size == 2 else [joined(*both) for both in zip(*parts, strict=True)]
        chosen = hardware.choose(settings, device=torch.device("cpu"))
        stats = loop.train_epoch(
            state.model,
            mine,
            state.optimizers,
            hardware=chosen,
            negatives=negatives,
            clip_norm=0.05,
            epoch=epoch,
            micro_batch=MicroBatch(48) if state.owned is None else None,
        )
    leave(folder, rank, world, state, owned, stats)


def leave(folder: Path, rank: int, world: planted.World, state: TrainState, owned: UserRanges, stats: loop.EpochStats) -> None:
    """A checkpoint by all, and of each rank what all share and its counts."""
    checkpoint.save(folder / "checkpoint", state)
    mine = world.histories.take(planted.users_of(owned))
    sums = ranking.evaluate(loop.bare(state.model), mine, segment="test", item_counts=world.catalogue.item_counts).over_ranks()
    metrics = torch.tensor([*sums.metrics().values(), *sums.people().values()], dtype=torch.float64)
    counted = torch.tensor([stats.loss, stats.events, stats.grad_norm], dtype=torch.float64)
    shared = {name: tensor for name, tensor in state.weights().items() if not state.is_of_users(tensor)}
    save_file(shared | {"stats": counted, "metrics": metrics}, folder / f"{rank}.safetensors")


def train_mixed(folder: Path, rank: int, world_size: int, _: str) -> None:
    """A model with dense parameters; rank 1 has fewer events and ends on an empty batch."""
    chosen = Hardware(torch.device("cpu"), torch.float32, 1)
    model = loop.distribute(Mixed())
    assert isinstance(model, nn.parallel.DistributedDataParallel) == (world_size > 1)
    optimizers = loop.make_optimizers(model, TrainConfig(learning_rate=0.05))
    generator = torch.Generator().manual_seed(1)
    parts = []
    for events in (4, 6):
        user = torch.randint(planted.USERS // 2, (events,), generator=generator) * 2
        item = torch.randint(planted.ITEMS, (events,), generator=generator)
        parts.append([Pairs(user + r, item, torch.ones(events)) for r in (0, 1)])
    nothing = Pairs(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0))
    parts[1][1] = nothing
    mine = [part[rank] if world_size == 2 else joined(*part) for part in parts]
    loop.train_epoch(model, mine, optimizers, hardware=chosen, clip_norm=1.0)
    of_others = torch.arange(planted.USERS) % world_size != rank
    loop.bare(model).user.detach()[of_others] = 0
    collective.sum_over_ranks(loop.bare(model).user.detach())
    save_file(loop.bare(model).state_dict(), folder / f"{rank}.safetensors")


def overflow(folder: Path, rank: int, world_size: int, _: str) -> None:
    """fp16: only rank 1's gradients overflow, in a row that only it has."""
    model = Mixed()
    model.dense.requires_grad_(False)
    optimizers = loop.make_optimizers(model, TrainConfig(learning_rate=0.05))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    rating = torch.tensor([1.0 if rank == 0 else 1e15])
    batch = Pairs(torch.tensor([rank]), torch.tensor([3 + rank]), rating)
    before = model.item.detach().clone()
    hard = Hardware(torch.device("cpu"), torch.float16, 1)
    stats = loop.train_epoch(model, [batch], optimizers, hardware=hard, scaler=scaler)
    outcome = torch.tensor([stats.skipped, scaler.get_scale() == 2.0**39, torch.equal(model.item, before)])
    save_file({"outcome": outcome}, folder / f"{rank}.safetensors")


def gather(folder: Path, rank: int, world_size: int, _: str) -> None:
    """Parts of unequal length, the first of them empty."""
    part = torch.arange(3.0 * rank).view(-1, 1) + 10 * rank
    save_file({"all": collective.concatenate(part)}, folder / f"{rank}.safetensors")


WORK = {case: (train_planted, case) for case in CASES} | {work.__name__: (work, "") for work in (train_mixed, overflow, gather)}


def joined(one: Pairs | Histories, other: Pairs | Histories) -> Pairs | Histories:
    if isinstance(one, Histories):
        item, user = np.concatenate([one.item, other.item]), np.concatenate([one.user, other.user])
        return Histories.of_events(user, np.concatenate([one.lengths, other.lengths]), item)
    return Pairs(*(torch.cat(columns) for columns in zip(one.columns, other.columns, strict=True)))


def worker(rank: int, world_size: int, port: int, folder: str) -> None:
    """Do all the work in one process a rank: starting one takes longer than everything it does."""
    if world_size > 1:
        faulthandler.enable()  # a process that aborts says where
    torch.set_num_threads(1)
    if world_size > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    for name, (work, case) in WORK.items():
        (Path(folder) / name).mkdir(exist_ok=True)
        work(Path(folder) / name, rank, world_size, case)
    if world_size > 1:
        dist.barrier()  # nobody leaves while another still listens to him
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder where a worker alone wrote."""
    folder, threads = tmp_path_factory.mktemp("one"), torch.get_num_threads()
    worker(0, 1, 0, str(folder))
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder where two workers wrote."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(worker, args=(2, free_port(), str(folder)), nprocs=2)
    return folder


def written(folder: Path, work: str) -> list[dict[str, torch.Tensor]]:
    """What each rank wrote, in their order."""
    return [load_file(path) for path in sorted((folder / work).glob("*.safetensors"))]


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), f"{name} differs between workers"


@pytest.mark.parametrize("case", CASES)
def test_two_workers_are_equal_to_the_bit_and_like_one(one, two, case):
    (alone,), (first, second) = written(one, case), written(two, case)
    assert_same_bits(first, second)
    first_told = 1 if case in OF_HISTORIES else 0  # of a history, what comes after the first event
    assert alone["stats"][1] == planted.USERS * (planted.WATCHED - 2 - first_told), "every event once"
    ours, theirs = (checkpoint.read_weights(folder / case / "checkpoint") for folder in (one, two))
    assert case in WITHOUT_USERS or ours["user_table"].shape[0] == planted.USERS
    for name, tensor in (alone | ours).items():
        torch.testing.assert_close(
            (first | theirs)[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("case", [case for case in CASES if case not in WITHOUT_USERS])
def test_a_checkpoint_of_two_goes_on_with_one_and_the_other_way_round(one, two, case):
    """Every row of every user, and its moments, whoever reads them."""
    world = planted.two_tastes()
    settings = planted.QUICK.model_copy(update={"clip_norm": 0.05} | TRAINING.get(case, {}))
    config = planted.config_of(train=settings, **CASES[case])
    by_one = checkpoint.load(two / case / "checkpoint", planted.start(world, config, seed=7))
    assert torch.equal(by_one.weights()["user_table"], checkpoint.read_weights(two / case / "checkpoint")["user_table"])
    means = [state["mean"] for optimizer in by_one.optimizers for state in optimizer.state.values() if "mean" in state]
    assert len(means) == (2 if case == "averaged" else 0)
    assert not any(torch.equal(mean, table) for mean in means for table in by_one.weights().values())
    for part in range(14):  # twelve ranges of users: two workers have none
        owned = planted.owned_by(part, 14)
        assert len(owned) == (planted.USERS // 12 if part < 12 else 0)
        by_three = checkpoint.load(two / case / "checkpoint", planted.start(world, config, seed=7, owned=owned))
        both = zip(by_three.optimizers, by_one.optimizers, strict=True)  # none where nothing is learnt by gradients
        for here, there in ([next(iter(optimizer.state.values())) for optimizer in pair] for pair in both):
            kept = {"mean"} if "mean" in there else {"first", "second"}
            assert here.keys() == there.keys() == kept | {"step"}
            assert here["step"] == there["step"]
            assert all(torch.equal(here[name], there[name][planted.users_of(owned)]) for name in kept)
        weights = by_one.weights()["user_table"][planted.users_of(owned)]
        assert torch.equal(by_three.weights()["user_table"], weights)


def test_dense_parameters_and_rows_are_updated_alike(one, two):
    (alone,), (first, second) = written(one, "train_mixed"), written(two, "train_mixed")
    assert_same_bits(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)


def test_when_one_overflows_all_skip(two):
    for outcome in written(two, "overflow"):
        assert outcome["outcome"].tolist() == [1, 1, 1]


def test_parts_of_unequal_length_are_put_together_in_the_order_of_ranks(two):
    for gathered in written(two, "gather"):
        assert gathered["all"].flatten().tolist() == [10, 11, 12]
