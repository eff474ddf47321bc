"""Dataset folders for tests, written without Ray: valid by the manifest, small, with known content."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data import schema
from recsys.data.dataset import DatasetManifest, RowGroup, UserFile, file_sha256
from recsys.data.histories import Histories
from recsys.data.negatives import write_negatives


def random_histories(
    users: int = 120, items: int = 50, *, events: tuple[int, int] = (3, 30), held_out: bool = True, seed: int = 0
) -> Histories:
    """Users of random lengths and random distinct items, the last one test and the last but one validation."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(events[0], min(events[1], items), users, endpoint=True)
    item = np.concatenate([rng.permutation(items)[:length] for length in lengths]).astype(np.int32)
    rating = rng.integers(1, 6, len(item)).astype(np.float32)
    return last_two_held_out(lengths, item, rating) if held_out else Histories.of_events(_numbers(users), lengths, item, rating)


def planted_histories(users: int = 240, *, groups: int = 4, items: int = 80, watched: int = 12, seed: int = 0) -> Histories:
    """Users of `groups` tastes, each watching only items of his own (item % groups), all equally popular: whoever learns the
    taste finds the held-out items among the few left of it; popularity cannot."""
    rng = np.random.default_rng(seed)
    item = [rng.permutation(items // groups)[:watched] * groups + user % groups for user in range(users)]
    return last_two_held_out(np.full(users, watched), np.concatenate(item))


def last_two_held_out(lengths: np.ndarray, item: np.ndarray, rating: np.ndarray | None = None) -> Histories:
    """Leave-last-out: of `lengths[u]` events of user u the last is test and the last but one validation."""
    return Histories(
        user=_numbers(len(lengths)),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item=item.astype(np.int32),
        rating=np.ones(len(item), np.float32) if rating is None else rating.astype(np.float32),
        time=np.arange(len(item), dtype=np.int64),
        valid_from=np.maximum(lengths - 2, 0).astype(np.int32),
        test_from=np.maximum(lengths - 1, 0).astype(np.int32),
    )


def write_dataset(
    folder: Path,
    histories: Histories,
    *,
    items: int | None = None,
    shards: int = 5,
    row_group_events: int = 200,
    roles: Sequence[str] | None = None,
    user_ids: Sequence[str] | None = None,
    item_ids: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    genres: Sequence[Sequence[str]] | None = None,
    split: str = "leave_last_out",
    has_rating: bool = True,
    shard_of: Sequence[int] | None = None,
    negatives: Mapping[str, Sequence[str]] | None = None,
) -> DatasetManifest:
    """Write a dataset folder and return its manifest.

    `histories.user` must be 0, 1, 2, …; shards are equal runs of users (`shard_of`: sorted shard of each user), so unlike
    a prepared dataset the shard is not a hash of the id. `roles`: each user's role, for a split by user; users of one shard
    and role must follow one another. split: what the manifest says of it, without `roles`. negatives: user id → item ids, as a
    source publishes them.
    """
    users = len(histories)
    items = int(histories.item.max(initial=-1)) + 1 if items is None else items
    user_ids = [f"u{number}" for number in range(users)] if user_ids is None else user_ids
    shard_of = np.arange(users) * shards // max(users, 1) if shard_of is None else np.asarray(shard_of)
    role_of = np.array(["all"] * users if roles is None else roles)
    (folder / schema.USERS_FOLDER).mkdir(parents=True)
    files = [
        _write_user_file(folder, histories, rows, role, int(shard), user_ids, row_group_events)
        for shard in np.unique(shard_of)
        for role in schema.ROLES
        if len(rows := np.flatnonzero((shard_of == shard) & (role_of == role)))
    ]
    trained = histories.take(np.isin(role_of, ["all", "train"])).segment("train")
    _write_items(folder, np.bincount(trained.item, minlength=items), item_ids, titles, genres)
    split = split if roles is None else "users"
    manifest = _manifest(folder, histories, items, files, trained, has_rating, split)
    if negatives is not None:
        manifest = manifest.model_copy(update={"negatives": write_negatives(folder, negatives, files)})
    (folder / schema.DATASET_FILE).write_text(manifest.model_dump_json(indent=1), "utf-8")
    return manifest


def to_arrow(histories: Histories, user_ids: Sequence[str]) -> pa.Table:
    """Rows of a user file (schema.USERS)."""
    lists = {name: getattr(histories, name) for name in (schema.ITEM, schema.RATING, schema.TIME)}
    columns = {
        schema.USER: histories.user,
        schema.USER_ID: list(user_ids),
        **{name: pa.ListArray.from_arrays(histories.offsets.astype(np.int32), values) for name, values in lists.items()},
        schema.VALID_FROM: histories.valid_from,
        schema.TEST_FROM: histories.test_from,
    }
    return pa.table(columns, schema=schema.USERS)


def _numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32)


def _write_user_file(
    folder: Path, histories: Histories, rows: np.ndarray, role: str, shard: int, user_ids: Sequence[str], row_group_events: int
) -> UserFile:
    name = f"{role}-{shard:05d}.parquet"
    path = folder / schema.USERS_FOLDER / name
    part = histories.take(rows)
    assert np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))), "a file's users follow one another"
    cuts = _row_group_cuts(part.lengths, row_group_events)
    table = to_arrow(part, [user_ids[row] for row in rows])
    with pq.ParquetWriter(path, schema.USERS) as writer:
        for first, last in cuts:
            writer.write_table(table.slice(first, last - first), row_group_size=last - first)
    return UserFile(
        name=name,
        role=role,
        shard=shard,
        rows=len(part),
        events=len(part.item),
        first_user=int(part.user[0]),
        row_groups=tuple(_row_group(part.take(np.arange(first, last)), role) for first, last in cuts),
        size=path.stat().st_size,
        sha256=file_sha256(path),
    )


def _row_group_cuts(lengths: np.ndarray, row_group_events: int) -> list[tuple[int, int]]:
    group = (np.cumsum(lengths) - lengths) // row_group_events
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(lengths)], strict=True))


def _row_group(part: Histories, role: str) -> RowGroup:
    trains = role in (schema.ALL, schema.TRAIN)
    return RowGroup(rows=len(part), events=len(part.item), train_events=int(part.valid_from.sum()) if trains else 0)


def _write_items(
    folder: Path,
    counts: np.ndarray,
    item_ids: Sequence[str] | None,
    titles: Sequence[str] | None,
    genres: Sequence[Sequence[str]] | None,
) -> None:
    numbers = range(len(counts))
    columns = {
        schema.ITEM: numbers,
        schema.ITEM_ID: [f"i{number}" for number in numbers] if item_ids is None else item_ids,
        schema.TITLE: [f"Title {number}" for number in numbers] if titles is None else titles,
        schema.YEAR: [1950 + number % 70 for number in numbers],
        schema.GENRES: [["Drama"] for _ in numbers] if genres is None else genres,
        schema.COUNT: counts.astype(np.int64),
    }
    pq.write_table(
        pa.table(columns, schema=schema.ITEMS.append(pa.field(schema.COUNT, pa.int64()))), folder / schema.ITEMS_FILE
    )


def _manifest(
    folder: Path, histories: Histories, items: int, files: list[UserFile], trained: Histories, has_rating: bool, split: str
) -> DatasetManifest:
    path = folder / schema.ITEMS_FILE
    return DatasetManifest(
        sources=(),
        config={},
        split=split,
        repeats="last",
        has_rating=has_rating,
        has_time=True,
        rows_in=len(histories.item),
        users=len(histories),
        items=items,
        events=len(histories.item),
        segments={name: len(histories.segment(name).item) for name in schema.SEGMENTS},
        dropped={},
        rejects={},
        first_time=int(histories.time.min()) if len(histories.time) else None,
        last_time=int(histories.time.max()) if len(histories.time) else None,
        mean_rating=float(trained.rating.mean()) if len(trained.rating) else 0.0,
        items_sha256=file_sha256(path),
        items_size=path.stat().st_size,
        user_files=tuple(files),
    )
