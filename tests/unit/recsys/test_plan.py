"""The order of training: complete, repeatable, mixed, and equal in steps whatever the number of ranks."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.dataset import DatasetManifest, RowGroup, UserFile
from recsys.data.plan import Leg, MacroBatch, Plan, epoch_plan, order, owners, plan_after, rest, step_sizes

SIZES = st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=12), min_size=1, max_size=30)
WORLDS = st.integers(1, 7)


def manifest_of(shards: list[list[int]], role: str = "all") -> DatasetManifest:
    """A manifest whose shards have row groups of so many train events."""
    files = tuple(
        UserFile(
            name=f"{role}-{shard:05d}.parquet",
            role=role,
            shard=shard,
            rows=len(groups),
            events=sum(groups),
            first_user=0,
            row_groups=tuple(RowGroup(rows=1, events=size, train_events=size) for size in groups),
            size=1,
            sha256="0" * 64,
        )
        for shard, groups in enumerate(shards)
    )
    return DatasetManifest(
        sources=(), config={}, split="leave_last_out", repeats="last", has_rating=True, has_time=True, rows_in=0, users=0,
        items=0, events=0, segments={}, dropped={}, rejects={}, first_time=None, last_time=None, mean_rating=0.0,
        items_sha256="", items_size=0, user_files=files,
    )  # fmt: skip


def plan_of(
    manifest: DatasetManifest, world: int = 1, *, epoch: int = 0, seed: int = 0, window: int = 5000, mix: int = 4
) -> Plan:
    return epoch_plan(seed, epoch, world, manifest, window_events=window, mix_shards=mix)


@given(SIZES, WORLDS)
def test_every_row_group_with_train_events_comes_exactly_once(shards, world):
    manifest = manifest_of(shards)
    plan = plan_of(manifest, world)
    read = Counter(group for entries in plan.ranks for entry in entries for group in entry.row_groups)
    assert read == {
        (file.name, number): 1
        for file in manifest.user_files
        for number, group in enumerate(file.row_groups)
        if group.train_events
    }
    assert len(plan.ranks) == world
    assert sum(plan.amounts()) == sum(map(sum, shards))


@given(SIZES, WORLDS)
def test_equal_arguments_give_equal_plans(shards, world):
    assert plan_of(manifest_of(shards), world) == plan_of(manifest_of(shards), world)


@given(SIZES, WORLDS)
def test_a_rank_reads_only_shards_it_owns(shards, world):
    manifest = manifest_of(shards)
    owner = owners(manifest, world)
    shard_of = {file.name: file.shard for file in manifest.user_files}
    for rank, entries in enumerate(plan_of(manifest, world).ranks):
        assert {owner[shard_of[name]] for entry in entries for name, _ in entry.row_groups} <= {rank}


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 10), st.integers(2, 12))
def test_macro_batches_mix_shards_and_keep_near_the_window(groups_of_shard, mix, window_groups):
    """Row groups of one size: every macro-batch mixes what is asked for, and none outgrows two windows by more than one."""
    plan = plan_of(manifest_of([[100] * count for count in groups_of_shard]), window=100 * window_groups, mix=mix)
    entries = plan.ranks[0]
    mixed = [len({name for name, _ in entry.row_groups}) for entry in entries]
    assert max(entry.train_events for entry in entries) <= 100 * (2 * window_groups + 1)
    possible = sum(min(count, len(entries)) for count in groups_of_shard) // len(entries)
    assert min(mixed) >= min(mix, len(groups_of_shard), possible)


def test_usual_shards_fill_the_window_and_mix_eight():
    """20 million events as prepared: 40 shards of four row groups."""
    plan = plan_of(manifest_of([[131_072] * 3 + [106_784]] * 40), window=1 << 20, mix=8)
    sizes = [entry.train_events for entry in plan.ranks[0]]
    assert min(sizes) >= 0.85 * (1 << 20) and max(sizes) <= 1.15 * (1 << 20)
    assert all(len({name for name, _ in entry.row_groups}) >= 8 for entry in plan.ranks[0])


def test_few_events_are_one_macro_batch_of_all_shards():
    (entry,) = plan_of(manifest_of([[50]] * 20)).ranks[0]
    assert len(entry.row_groups) == 20


def test_a_giant_user_is_a_macro_batch_that_the_others_do_not_wait_for():
    plan = plan_of(manifest_of([[1_000_000]] + [[100] * 10] * 9), world=2, window=1000)
    assert sorted(plan.amounts()) == [9000, 1_000_000]


@given(SIZES, WORLDS)
def test_ranks_are_balanced_within_the_largest_shard(shards, world):
    amounts = plan_of(manifest_of(shards), world).amounts()
    assert max(amounts) - min(amounts) <= max(map(sum, shards))


def test_owners_spread_shards_without_train_events():
    assert Counter(owners(manifest_of([[0]] * 12), 3)) == {0: 4, 1: 4, 2: 4}


def test_epochs_seeds_and_world_sizes_differ():
    manifest = manifest_of([[100] * 10] * 8)
    orders = [
        plan_of(manifest),
        plan_of(manifest, epoch=1),
        plan_of(manifest, seed=1),
    ]
    assert len({plan.ranks[0] for plan in orders}) == 3
    seeds = [entry.seed for plan in orders for entry in plan.ranks[0]]
    assert len(set(seeds)) == len(seeds)


def test_held_out_files_are_not_trained_on():
    held_out = manifest_of([[0, 0], [0]], role="test")
    assert plan_of(held_out, world=2).ranks == ((), ())


@given(st.lists(st.integers(0, 500), min_size=1, max_size=8), st.integers(1, 300))
def test_ranks_take_equal_steps_that_use_everything_once(amounts, batch_size):
    steps = [list(step_sizes(amounts, rank, batch_size)) for rank in range(len(amounts))]
    assert len({len(of_rank) for of_rank in steps}) == 1
    assert [sum(size for size, _ in of_rank) for of_rank in steps] == amounts
    for shares in zip(*steps, strict=True):
        assert {total for _, total in shares} == {sum(size for size, _ in shares)}


@given(st.lists(st.integers(0, 500), min_size=1, max_size=8), st.integers(8, 300))
def test_the_number_of_steps_and_the_effective_batch_do_not_depend_on_the_ranks(amounts, batch_size):
    together = [total for _, total in step_sizes([sum(amounts)], 0, batch_size)]
    apart = [total for _, total in step_sizes(amounts, 0, batch_size)]
    assert len(apart) == len(together)
    assert all(abs(one - other) <= len(amounts) for one, other in zip(apart, together, strict=True))


@pytest.mark.parametrize("world", [3, 8])
def test_more_ranks_than_shards_leave_some_with_empty_steps(world):
    plan = plan_of(manifest_of([[100], [100]]), world)
    empty = [rank for rank, amount in enumerate(plan.amounts()) if not amount]
    assert len(empty) == world - 2
    assert [size for size, _ in step_sizes(plan.amounts(), empty[0], 40)] == [0] * 5


SHARDS = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=5), min_size=1, max_size=8)
LEGS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 12)), min_size=1, max_size=4)


@given(SHARDS, LEGS, st.integers(1, 5), st.integers(5, 40))
def test_an_epoch_gone_on_with_by_other_ranks_uses_every_event_once(shards, legs, last_world, batch_size):
    manifest = manifest_of(shards)
    options = {"batch_size": batch_size, "window_events": 100, "mix_shards": 2}
    used, taken = Counter(), []
    for world, steps in [*legs, (last_world, None)]:
        plan = plan_after(taken, 0, 3, world, manifest, **options)
        owner = owners(manifest, world)
        for rank, entries in enumerate(plan.ranks):
            sizes = list(step_sizes(plan.amounts(), rank, batch_size))
            own = taken[-1].steps if taken and taken[-1].world_size == world else 0
            left, skip = rest(entries, sum(size for size, _ in sizes[:own]))
            events = [event for entry in left for event in events_of(entry, manifest)][skip:]
            assert len(events) == sum(size for size, _ in sizes[own:])
            now = sizes[own:] if steps is None else sizes[own : own + steps]
            for file, group, place in events[: sum(size for size, _ in now)]:
                assert owner[int(file[-13:-8])] == rank, "only who owns a user's shard may touch his row"
                used[file, group, place] += 1
        if steps is not None:
            steps = min(steps, len(sizes) - own)
            taken = [*taken[:-1], Leg(world, own + steps)] if own else [*taken, Leg(world, steps)]
    everything = [
        (f.name, n, place) for f in manifest.user_files for n, g in enumerate(f.row_groups) for place in range(g.events)
    ]
    assert used == Counter(everything)


def events_of(entry: MacroBatch, manifest: DatasetManifest) -> list[tuple[str, int, int]]:
    """(file, row group, place in it) in the order of use."""
    files = {file.name: file for file in manifest.user_files}
    sizes = [files[name].row_groups[number].train_events for name, number in entry.row_groups]
    all_places = [(*group, place) for group, size in zip(entry.row_groups, sizes, strict=True) for place in range(size)]
    found = [all_places[place] for place in order(sizes, entry.seed, entry.cuts)]
    assert len(found) == entry.train_events
    return found
