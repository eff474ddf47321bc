"""Small valid bundles for tests, with planted answers: users of a taste want the items of that taste they have not seen."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.bundle import inventory
from recsys.bundle.manifest import MANIFEST_FILE, MANIFEST_HASH, FileEntry, FoldIn
from recsys.bundle.read import Bundle
from recsys.bundle.users import blocks_of
from recsys.bundle.write import BundleContents, write_bundle
from recsys.config import IndexConfig
from recsys.data import schema
from recsys.data.histories import Histories
from recsys.retrieval import ann
from recsys.retrieval.fold_in import gram_of
from recsys.retrieval.measure import measure

RIDGE = FoldIn(kind="ridge", parameters={"free": 8, "weight": 0.1, "ridge": 1.0, "unit": 1})

SUMMED: dict[str, Any] = {
    "model": "spectral",
    "known_user": "history",
    "fold_in": FoldIn(kind="sum", parameters={"smoothing": 2.0, "power": 0.9}),
    "gram": None,
}
"""What makes `write_planted` write a bundle in which users are sums of their items."""


@dataclass(frozen=True)
class Planted:
    """What is in the bundle: T tastes; item i is of taste i % T, user u of taste u % T, and watched `seen[u]`."""

    tastes: int
    item_vectors: np.ndarray
    user_vectors: np.ndarray
    seen: list[np.ndarray]
    untrained: np.ndarray

    def wanted(self, user: int, k: int) -> list[int]:
        """What exact search must find for a user: by (-score, item), what he saw and what nobody trained on left out."""
        scores = self.item_vectors.astype(np.float64) @ self.user_vectors[user]
        hidden = set(self.seen[user].tolist()) | set(self.untrained.tolist())
        order = np.lexsort((np.arange(len(scores)), -scores.astype(np.float32)))
        return [int(item) for item in order if int(item) not in hidden][:k]


def planted(users: int = 24, items: int = 60, *, tastes: int = 4, dim: int = 8, untrained: int = 3, seed: int = 0) -> Planted:
    """Vectors of unit length round each taste's axis; the last `untrained` items have none."""
    rng = np.random.default_rng(seed)
    axes = np.eye(dim, dtype=np.float32)[:tastes]
    item_vectors = _unit(axes[np.arange(items) % tastes] + 0.2 * rng.standard_normal((items, dim)))
    user_vectors = _unit(axes[np.arange(users) % tastes] + 0.2 * rng.standard_normal((users, dim)))
    item_vectors[items - untrained :] = 0
    trained = np.arange(items - untrained)
    seen = [np.sort(rng.choice(trained[trained % tastes == user % tastes], 5, replace=False)) for user in range(users)]
    return Planted(tastes, item_vectors, user_vectors, seen, np.arange(items - untrained, items))


def write_planted(
    root: Path,
    name: str = "films",
    *,
    world: Planted | None = None,
    model: str = "mf",
    index: IndexConfig | None = None,
    titles: Sequence[str] | None = None,
    known_user: str = "table",
    version: str | None = None,
    promote: bool = True,
    report: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Publish a bundle of a planted world: users u0 …, items i0 …; the last event of a user is test, the one before validation.

    model="popularity" has no vectors. `report` and `changes` override fields of the index report and of BundleContents.
    """
    world = world or planted()
    contents = contents_of(world, model=model, index=index, titles=titles, known_user=known_user, **changes)
    return write_bundle(root, name, contents, version=version, promote=promote, finish=lambda bundle: _finish(bundle, report))


def contents_of(
    world: Planted,
    *,
    model: str = "mf",
    index: IndexConfig | None = None,
    titles: Sequence[str] | None = None,
    known_user: str = "table",
    **changes: Any,
) -> BundleContents:
    """What `write_bundle` takes, from a planted world."""
    users, items = len(world.user_vectors), len(world.item_vectors)
    histories = _histories(world)
    counts = np.bincount(histories.segment("train").item, minlength=items)
    counts[: items - len(world.untrained)] += 1
    trained = np.arange(items - len(world.untrained), dtype=np.int32)
    fields: dict[str, Any] = {
        "model": model,
        "items": _items(counts, titles),
        "popular": trained[np.lexsort((trained, -counts[trained]))],
        "users": users,
        "events": len(histories.item),
        "blocks": list(blocks_of([f"u{user}" for user in range(users)], histories)),
        "dataset": "planted",
    }
    if model != "popularity":
        built, unmeasured = ann.build(world.item_vectors, trained, index or IndexConfig())
        fields |= {
            "item_vectors": world.item_vectors,
            "index": built,
            "report": unmeasured,
            "known_user": known_user,
            "fold_in": RIDGE.model_copy(update={"parameters": RIDGE.parameters | {"free": world.item_vectors.shape[1]}}),
            "gram": gram_of(world.item_vectors, trained),
        }
        if known_user == "table":
            fields["blocks"] = list(blocks_of([f"u{user}" for user in range(users)], histories, world.user_vectors))
    return BundleContents(**(fields | changes))


def reseal(folder: Path, **changes: Any) -> None:
    """Write the manifest anew as an attacker or a broken writer would: consistent with itself."""
    fields = json.loads((folder / MANIFEST_FILE).read_bytes()) | changes
    content = json.dumps(fields).encode()
    (folder / MANIFEST_FILE).write_bytes(content)
    (folder / MANIFEST_HASH).write_bytes(inventory.hash_line(content))


def rehash(folder: Path, name: str) -> None:
    """Make the manifest agree with a file as it is now."""
    files = json.loads((folder / MANIFEST_FILE).read_bytes())["files"]
    files[name] = FileEntry(size=(folder / name).stat().st_size, sha256=inventory.file_sha256(folder / name)).model_dump()
    reseal(folder, files=files)


def flip(path: Path) -> None:
    """Flip the last bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _finish(bundle: Bundle, report: dict[str, Any] | None) -> dict[str, Any]:
    fields = measure(bundle, audit_users=1000)
    if report:
        fields["index"] = fields["index"].model_copy(update=report)
    return fields


def _histories(world: Planted) -> Histories:
    lengths = np.array([len(seen) for seen in world.seen])
    item = np.concatenate(world.seen).astype(np.int32)
    histories = Histories.of_events(np.arange(len(lengths), dtype=np.int32), lengths, item, time=np.arange(len(item)))
    return Histories(
        histories.user,
        histories.offsets,
        histories.item,
        histories.rating,
        histories.time,
        (lengths - 2).astype(np.int32),
        (lengths - 1).astype(np.int32),
    )


def _items(counts: np.ndarray, titles: Sequence[str] | None) -> pa.Table:
    numbers = range(len(counts))
    columns = {
        schema.ITEM: list(numbers),
        schema.ITEM_ID: [f"i{number}" for number in numbers],
        schema.TITLE: [f"Film {number}" for number in numbers] if titles is None else list(titles),
        schema.YEAR: [1990 + number % 30 for number in numbers],
        schema.GENRES: [["Drama"] for _ in numbers],
        schema.COUNT: counts,
    }
    return pa.table(columns, schema=schema.ITEMS.append(pa.field(schema.COUNT, pa.int64())))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
