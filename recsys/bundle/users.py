"""Write the users of a bundle as they stream through: histories, ids, their hashes, vectors."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.bundle import manifest as layout
from recsys.bundle.arrays import ArrayWriter, write_array
from recsys.bundle.ids import hash_ids
from recsys.data import schema
from recsys.data.histories import Histories

IDS = pa.schema([(schema.USER_ID, pa.string())])


@dataclass(frozen=True)
class UserBlock:
    """Some users, whole: ids [B], histories of B users, vectors [B, D] where the model keeps a table of users.

    A vector of zeros says that the user was not trained, so that he is answered from his history.
    """

    ids: pa.Array
    histories: Histories
    vectors: NDArray[np.float32] | None = None


def write_users(folder: Path, users: int, events: int, blocks: Iterable[UserBlock], dim: int | None) -> None:
    """Write users/, history/ and, where `dim` is given, user_vectors.npy, holding one block at a time (and 8 bytes a user).

    Raises BundleError where the blocks do not add up to `users` and `events`, or a number is not finite.
    """
    (folder / "users").mkdir()
    (folder / "history").mkdir()
    hashes = [np.zeros(0, np.uint64)]
    with ExitStack() as stack:
        files = _open(stack, folder, users, events, dim)
        ids = stack.enter_context(pa.ipc.new_file(str(folder / layout.USER_IDS), IDS))
        files[layout.HISTORY_OFFSETS].append(np.zeros(1, np.int64))
        for block in blocks:
            hashes.append(hash_ids(block.ids.to_pylist()))
            ids.write_batch(pa.record_batch([block.ids.cast(pa.string())], schema=IDS))
            _append(files, block)
    _write_hashes(folder, np.concatenate(hashes))


def _open(stack: ExitStack, folder: Path, users: int, events: int, dim: int | None) -> dict[str, ArrayWriter]:
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        layout.HISTORY_OFFSETS: ((users + 1,), np.int64),
        layout.HISTORY_ITEM: ((events,), np.int32),
        layout.HISTORY_RATING: ((events,), np.float32),
        layout.HISTORY_TIME: ((events,), np.int64),
        layout.HISTORY_BOUNDS: ((users, 2), np.int32),
    }
    if dim is not None:
        shapes[layout.USER_VECTORS] = ((users, dim), np.float32)
    return {name: stack.enter_context(ArrayWriter(folder / name, shape, dtype)) for name, (shape, dtype) in shapes.items()}


def _append(files: dict[str, ArrayWriter], block: UserBlock) -> None:
    histories = block.histories
    before = files[layout.HISTORY_ITEM].rows
    files[layout.HISTORY_ITEM].append(histories.item)
    files[layout.HISTORY_RATING].append(histories.rating)
    files[layout.HISTORY_TIME].append(histories.time)
    files[layout.HISTORY_OFFSETS].append(before + histories.offsets[1:] - histories.offsets[0])
    files[layout.HISTORY_BOUNDS].append(np.stack([histories.valid_from, histories.test_from], axis=1))
    if layout.USER_VECTORS in files and block.vectors is not None:
        files[layout.USER_VECTORS].append(block.vectors)


def _write_hashes(folder: Path, hashes: NDArray[np.uint64]) -> None:
    order = np.argsort(hashes, kind="stable")
    write_array(folder / layout.USER_HASHES, hashes[order], np.uint64)
    write_array(folder / layout.USER_ROWS, order, np.int32)


def blocks_of(ids: Iterable[str], histories: Histories, vectors: NDArray[np.float32] | None = None) -> Iterator[UserBlock]:
    """All users as one block; for what fits in memory."""
    yield UserBlock(pa.array(ids, pa.string()), histories, vectors)
