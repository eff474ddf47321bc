"""The order of training, as a pure function: which rank reads which row groups, in which macro-batches, each epoch.

Equal arguments give equal plans on every machine, so an epoch can be repeated and a position is a number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recsys.data.dataset import DatasetManifest

_PLAN, _MACRO_BATCH = 0, 1  # keep the streams of random numbers apart


@dataclass(frozen=True)
class Cut:
    """What is left of a macro-batch when an epoch goes on with another number of ranks: first `skip` of what there was are
    done with, then only what comes from `groups` is this rank's."""

    skip: int
    groups: tuple[int, ...]
    """Places in the macro-batch's `row_groups`."""


@dataclass(frozen=True)
class MacroBatch:
    """Row groups that are read together and whose events are permuted together, by a seed of their own."""

    row_groups: tuple[tuple[str, int], ...]
    """(name of the user file, number of the row group in it), in reading order: groups of one file stand together."""
    train_events: int
    """What comes of it: events, for models that learn from events."""
    seed: int
    rows: int
    """What comes of it for models that learn from whole users."""
    cuts: tuple[Cut, ...] = ()
    """One after the other; of events or of rows, as the epoch was begun."""


@dataclass(frozen=True)
class Plan:
    """One epoch: for each rank its macro-batches in order. Together they hold every train event exactly once."""

    ranks: tuple[tuple[MacroBatch, ...], ...]

    def events(self, rank: int) -> int:
        """Train events of a rank."""
        return sum(entry.train_events for entry in self.ranks[rank])

    def rows(self, rank: int) -> int:
        """Users of a rank."""
        return sum(entry.rows for entry in self.ranks[rank])

    def amounts(self, *, of_rows: bool = False) -> list[int]:
        """What each rank has to go through: events, or users for models that learn from whole histories."""
        return [self.rows(rank) if of_rows else self.events(rank) for rank in range(len(self.ranks))]


@dataclass(frozen=True)
class _Group:
    """One row group, while the plan is made."""

    file: str
    number: int
    train_events: int
    rows: int


def epoch_plan(
    seed: int, epoch: int, world_size: int, manifest: DatasetManifest, *, window_events: int, mix_shards: int
) -> Plan:
    """Deal the train events of a dataset to ranks and macro-batches.

    A macro-batch holds about `window_events` events and mixes at least `mix_shards` shards, or all its rank has, as far as
    that needs no more than two windows. Row groups stay whole: one that is larger than the window is a larger macro-batch.
    """
    owner = owners(manifest, world_size)
    shards = _groups_by_shard(manifest)
    ranks = []
    for rank in range(world_size):
        mine = [groups for shard, groups in shards.items() if owner[shard] == rank]
        rng = np.random.default_rng([seed, epoch, world_size, rank, _PLAN])
        seeds = np.random.default_rng([seed, epoch, world_size, rank, _MACRO_BATCH])
        dealt = _deal(mine, rng, window_events, mix_shards)
        ranks.append(tuple(_macro_batch(groups, int(seeds.integers(2**63))) for groups in dealt))
    return Plan(tuple(ranks))


@dataclass(frozen=True)
class Leg:
    """Steps of one epoch taken by one number of ranks."""

    world_size: int
    steps: int


def plan_after(
    legs: Sequence[Leg],
    seed: int,
    epoch: int,
    world_size: int,
    manifest: DatasetManifest,
    *,
    batch_size: int,
    window_events: int,
    mix_shards: int,
    of_rows: bool = False,
) -> Plan:
    """The plan by which `world_size` ranks go on with an epoch of which `legs` were taken: an event is used once, whoever
    began. No legs: `epoch_plan`. Legs by the same number of ranks, one after the other, are one leg."""
    worlds = [leg.world_size for leg in legs] + [world_size]
    plan = epoch_plan(seed, epoch, worlds[0], manifest, window_events=window_events, mix_shards=mix_shards)
    steps = 0
    for leg, after in zip(legs, worlds[1:], strict=True):
        steps += leg.steps
        if leg.world_size != after:
            plan, steps = _dealt_again(plan, steps, after, manifest, batch_size, of_rows=of_rows), 0
    return plan


def order(sizes: Sequence[int], seed: int, cuts: Sequence[Cut]) -> NDArray[np.int64]:
    """The permutation of a macro-batch: places in its events (or rows) as read, in the order in which they are used.

    sizes: events (or rows) of each of its row groups.
    """
    places: NDArray[np.int64] = np.random.default_rng(seed).permutation(sum(sizes))
    if cuts:
        group = np.repeat(np.arange(len(sizes)), sizes)
        for cut in cuts:
            places = places[cut.skip :]
            places = places[np.isin(group[places], cut.groups)]
    return places


def rest(entries: Sequence[MacroBatch], done: int, *, of_rows: bool = False) -> tuple[tuple[MacroBatch, ...], int]:
    """What of a rank's entries is left when `done` events (or rows) of them were used, and how many of the first of these."""
    for place, entry in enumerate(entries):
        amount = entry.rows if of_rows else entry.train_events
        if done < amount:
            return tuple(entries[place:]), done
        done -= amount
    return (), 0


def owners(manifest: DatasetManifest, world_size: int) -> tuple[int, ...]:
    """[shards] rank that owns each shard and its users' rows: the largest first, to whoever has fewest train events."""
    events = np.zeros(1 + max((file.shard for file in manifest.user_files), default=-1), np.int64)
    for file in manifest.user_files:
        events[file.shard] += file.train_events
    load = [(0, 0, rank) for rank in range(world_size)]
    owner = [0] * len(events)
    for shard in np.argsort(-events, kind="stable").tolist():
        held, count, rank = min(load)
        load[rank] = (held + int(events[shard]), count + 1, rank)
        owner[shard] = rank
    return tuple(owner)


def step_sizes(amounts: list[int], rank: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """For each step of an epoch: how many this rank takes, and how many all ranks take together.

    `amounts`: what each rank has (Plan.amounts). Every rank takes as many steps as the whole needs in batches of
    `batch_size`, each step an even share of what it has; a rank with little or nothing takes empty steps. So the number
    of steps and the effective batch do not depend on how many ranks there are.
    """
    steps = -(-sum(amounts) // batch_size)
    for step in range(steps):
        taken = [amount * (step + 1) // steps - amount * step // steps for amount in amounts]
        yield taken[rank], sum(taken)


def _dealt_again(plan: Plan, steps: int, world_size: int, manifest: DatasetManifest, batch_size: int, *, of_rows: bool) -> Plan:
    """What `steps` steps of a plan have left, dealt to `world_size` ranks, each what comes from shards it owns."""
    files = {file.name: file for file in manifest.user_files}
    owner = owners(manifest, world_size)
    dealt: list[list[MacroBatch]] = [[] for _ in range(world_size)]
    amounts = plan.amounts(of_rows=of_rows)
    for rank, entries in enumerate(plan.ranks):
        done = sum(size for size, _ in list(step_sizes(amounts, rank, batch_size))[:steps])
        for entry in entries:
            amount = entry.rows if of_rows else entry.train_events
            skip, done = min(done, amount), max(done - amount, 0)
            if skip == amount:
                continue
            groups = [files[name].row_groups[number] for name, number in entry.row_groups]
            sizes = [group.rows if of_rows else group.train_events for group in groups]
            left = np.repeat(np.arange(len(sizes)), sizes)[order(sizes, entry.seed, entry.cuts)][skip:]
            counts = np.bincount(left, minlength=len(sizes))
            new_owner = [owner[files[name].shard] for name, _ in entry.row_groups]
            for other in sorted(set(new_owner)):
                mine = tuple(place for place, rank_of in enumerate(new_owner) if rank_of == other)
                if total := int(counts[list(mine)].sum()):
                    cuts = (*entry.cuts, Cut(skip, mine))
                    dealt[other].append(replace(entry, train_events=total, rows=total, cuts=cuts))
    return Plan(tuple(map(tuple, dealt)))


def _groups_by_shard(manifest: DatasetManifest) -> dict[int, list[_Group]]:
    shards: dict[int, list[_Group]] = {}
    for file in manifest.user_files:
        groups = [_Group(file.name, number, group.train_events, group.rows) for number, group in enumerate(file.row_groups)]
        shards.setdefault(file.shard, []).extend(group for group in groups if group.train_events)
    return {shard: groups for shard, groups in sorted(shards.items()) if groups}


def _deal(shards: list[list[_Group]], rng: np.random.Generator, window_events: int, mix_shards: int) -> Iterator[list[_Group]]:
    """Shuffle row groups and deal them, like cards, one by one to macro-batches.

    Shards with fewer groups than there are macro-batches go first, so that each of their groups meets another macro-batch
    and the number of shards in each differs by one at most.
    """
    hands = _macro_batch_count(shards, window_events, mix_shards)
    order = sorted(rng.permutation(len(shards)).tolist(), key=lambda shard: len(shards[shard]) >= hands)
    cards = [shards[shard][number] for shard in order for number in rng.permutation(len(shards[shard])).tolist()]
    for hand in rng.permutation(hands).tolist():
        yield cards[hand::hands]


def _macro_batch_count(shards: list[list[_Group]], window_events: int, mix_shards: int) -> int:
    """As many as windows fit, fewer where mixing needs it, but never so few that one outgrows two windows."""
    events = sum(group.train_events for groups in shards for group in groups)
    mixed = min(mix_shards, len(shards))
    count = min(max(round(events / window_events), 1), sum(map(len, shards)))
    fewest = max(-(-events // (2 * window_events)), 1)
    while count > fewest and sum(min(len(groups), count) for groups in shards) < mixed * count:
        count -= 1
    return count


def _macro_batch(groups: list[_Group], seed: int) -> MacroBatch:
    first = {name: place for place, name in reversed(list(enumerate(group.file for group in groups)))}
    groups = sorted(groups, key=lambda group: first[group.file])  # stable: groups of a file stay in their order
    return MacroBatch(
        row_groups=tuple((group.file, group.number) for group in groups),
        train_events=sum(group.train_events for group in groups),
        seed=seed,
        rows=sum(group.rows for group in groups),
    )
