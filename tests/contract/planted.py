"""A world whose right answers are known: two tastes of films, and a hit that everybody's list would be full of.

Every user watches films of his own taste. Popularity fails: the other taste's films are as much watched as his own's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from recsys.config import Config, ModelConfig, TrainConfig
from recsys.data.attributes import Attributes, attributes_of
from recsys.data.histories import Histories, Pairs
from recsys.models import MODELS, Catalogue, build
from recsys.models.owned import UserRanges
from recsys.training import checkpoint, hardware, loop, passes
from recsys.training.negatives import Negatives
from recsys.training.sparse_events import SparseEvents

USERS, ITEMS, WATCHED = 300, 40, 12


@dataclass(frozen=True)
class World:
    """Even users like even films, odd users odd ones. Each one's last film but one validates, the last tests."""

    histories: Histories
    catalogue: Catalogue

    def taste(self, user: int) -> set[int]:
        """All films a user likes."""
        return set(range(user % 2, ITEMS, 2))

    def train(self) -> Histories:
        """What may be learnt from."""
        return self.histories.segment("train")

    def withheld(self, user: int) -> set[int]:
        """Films of his taste that he is not known to have watched."""
        return self.taste(user) - set(self.train().take(np.array([user])).item.tolist())


def two_tastes(seed: int = 0, users: int = USERS) -> World:
    """Ratings are 5 for a film of the first half of the catalogue, else 3, so that they too can be learnt."""
    rng = np.random.default_rng(seed)
    tastes = [np.arange(user % 2, ITEMS, 2) for user in range(users)]
    item = np.concatenate([rng.permutation(taste)[:WATCHED] for taste in tastes]).astype(np.int32)
    numbers, offsets = np.arange(users, dtype=np.int32), np.arange(users + 1, dtype=np.int64) * WATCHED
    rating = np.where(item < ITEMS // 2, 5, 3).astype(np.float32)
    valid_from = np.full(users, WATCHED - 2, np.int32)
    histories = Histories(numbers, offsets, item, rating, np.arange(len(item), dtype=np.int64), valid_from, valid_from + 1)
    train = histories.segment("train")
    counts = np.bincount(train.item, minlength=ITEMS).astype(np.int64)
    return World(histories, Catalogue(users, ITEMS, counts, float(train.rating.mean())))


def genres() -> Attributes:
    """What is known of the films: a word of a title that three share, and nothing that tells the tastes apart."""
    return attributes_of(pa.table({"title": [f"Part {number // 3}" for number in range(ITEMS)]}))


QUICK = TrainConfig(epochs=12, batch_size=256, learning_rate=0.03, precision="fp32", threads=1)


def config_of(name: str = "mf", train: TrainConfig = QUICK, **model: object) -> Config:
    """Small and quick, unless said otherwise."""
    small = {"name": name, "dim": 8, "negatives": 32, "max_length": 8, "heads": 2, "width": 2, "dropout": 0.1}
    return Config(model=ModelConfig.model_validate(small | model), train=train)


def owned_by(rank: int, world_size: int) -> UserRanges:
    """Users in twelve ranges, dealt in turn."""
    ranges = [(first, first + USERS // 12) for first in range(0, USERS, USERS // 12)]
    return UserRanges.of(ranges[rank::world_size])


def users_of(owned: UserRanges) -> np.ndarray:
    """[owned] their numbers."""
    return np.concatenate([np.zeros(0, int), *(np.arange(first, last) for first, last in owned.ranges)])


def start(
    world: World, config: Config, seed: int = 0, dataset: str = "planted", owned: UserRanges | None = None
) -> checkpoint.TrainState:
    """The state before the first epoch, with the rows of all users or of those owned."""
    chosen = hardware.choose(config.train, device=torch.device("cpu"))
    catalogue = replace(world.catalogue, owned=owned_by(0, 1) if owned is None else owned)
    return checkpoint.start(build(config.model, catalogue, seed), config, dataset, chosen)


def batches(world: World, config: Config, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[Pairs | Histories]:
    """What the model is fed of this rank's users, permuted, in the effective batch's share; as many on every rank."""
    of = pair_batches if MODELS[config.model.name].batch is Pairs else history_batches
    return of(world, config.train.batch_size, epoch, rank, world_size)


def history_batches(world: World, batch_size: int, epoch: int, rank: int, world_size: int) -> Iterator[Histories]:
    """Users with about `batch_size` events together."""
    mine = users_of(owned_by(rank, world_size))
    order = np.random.default_rng((epoch, rank)).permutation(mine)
    share = batch_size // WATCHED // world_size
    for first in range(0, -(-USERS // world_size), share):
        yield world.train().take(order[first : first + share])


def pair_batches(world: World, batch_size: int, epoch: int, rank: int, world_size: int) -> Iterator[Pairs]:
    """Events."""
    pairs = world.train().pairs()
    mine = np.isin(pairs.user, users_of(owned_by(rank, world_size)))
    order = np.random.default_rng((epoch, rank)).permutation(int(mine.sum()))
    columns = [torch.from_numpy(column[mine][order]) for column in pairs.columns]
    share = batch_size // world_size
    for first in range(0, -(-len(pairs) // world_size), share):
        yield Pairs(*(column[first : first + share] for column in columns))


def events_of(world: World, rank: int = 0, world_size: int = 1) -> SparseEvents:
    """What the users of this rank watched, for a model that learns by passes over them."""
    mine = world.train().take(users_of(owned_by(rank, world_size)))
    return SparseEvents.of([(mine.lengths, mine.item, mine.rating)], ITEMS, torch.device("cpu"))


def train(state: checkpoint.TrainState, world: World, epochs: int, seed: int = 0) -> checkpoint.TrainState:
    """Some epochs more, without validation."""
    if state.model.learns != "gradients":
        for _ in range(epochs):
            passes.train_epoch(state.model, events_of(world), state.epoch, seed)
            state.next_epoch()
        return state
    negatives = Negatives(state.config.model, world.catalogue.item_counts, seed)
    chosen = hardware.choose(state.config.train, device=torch.device("cpu"))
    for _ in range(epochs):
        loop.train_epoch(
            state.model,
            batches(world, state.config, state.epoch),
            state.optimizers,
            hardware=chosen,
            scaler=state.scaler,
            negatives=negatives,
            clip_norm=state.config.train.clip_norm,
            epoch=state.epoch,
        )
        state.epoch += 1
    return state


def fit(world: World, config: Config, seed: int = 0) -> torch.nn.Module:
    """A model trained for as many epochs as the config says."""
    return train(start(world, config, seed), world, config.train.epochs, seed).model
