"""Negatives that a source publishes with its test: the items among which each user's held-out item is to be ranked.

Shapes: V users with negatives, E negatives of all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data import schema
from recsys.data.dataset import DatasetManifest, NegativesFile, UserFile, check_file, file_sha256
from recsys.data.histories import ranges
from recsys.data.sources.catalogue import decode
from recsys.data.sources.files import File, read_all
from recsys.errors import DataError


@dataclass(frozen=True)
class StoredNegatives:
    """user: [V] int32, ascending; offsets: [V + 1] int64 into item [E] int32."""

    user: NDArray[np.int32]
    offsets: NDArray[np.int64]
    item: NDArray[np.int32]

    def has(self, user: NDArray[np.int32]) -> NDArray[np.bool_]:
        """For each user whether there are negatives of his."""
        known: NDArray[np.bool_] = np.isin(user, self.user)
        return known

    def of(self, user: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The negatives of some users, who all have some: in which row of `user`, and which item."""
        places = np.searchsorted(self.user, user)
        first, last = self.offsets[places], self.offsets[places + 1]
        return np.repeat(np.arange(len(user)), last - first), self.item[ranges(first, last)]


def parse_ncf(file: File) -> dict[str, list[str]]:
    """`*.test.negative` of Neural Collaborative Filtering, lines `(user,item)<tab>negative<tab>...`: user id → item ids.

    It is read whole: 100 ids a user. Raises DataError with the line that is something else.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(decode(read_all(file), None).splitlines(), start=1):
        pair, *negatives = line.split("\t")
        user, comma, _ = pair.removeprefix("(").partition(",")
        if not (comma and pair.startswith("(") and pair.endswith(")") and negatives) or user in found:
            raise DataError(f"{file.name}, line {number}: not `(user,item)` of a new user, and negatives. Fetch it again.")
        found[user] = negatives
    return found


def write_negatives(folder: Path, negatives: Mapping[str, Sequence[str]], files: Sequence[UserFile]) -> NegativesFile:
    """Write negatives.parquet into a folder whose users/ and items.parquet are there already.

    Users that the dataset does not have are left out, and so are items: nobody watched them, so they rank below all.
    """
    ids = pq.read_table(folder / schema.ITEMS_FILE, columns=[schema.ITEM_ID]).column(schema.ITEM_ID)
    numbers = {item_id: number for number, item_id in enumerate(ids.to_pylist())}
    rows: list[tuple[int, list[int]]] = []
    for file in files:
        users = pq.read_table(folder / schema.USERS_FOLDER / file.name, columns=[schema.USER, schema.USER_ID])
        for user, user_id in zip(users.column(schema.USER).to_pylist(), users.column(schema.USER_ID).to_pylist(), strict=True):
            if user_id in negatives:
                rows.append((user, sorted({numbers[item] for item in negatives[user_id] if item in numbers})))
    rows.sort()
    table = pa.table({schema.USER: [row[0] for row in rows], schema.ITEM: [row[1] for row in rows]}, schema=schema.NEGATIVES)
    path = folder / schema.NEGATIVES_FILE
    pq.write_table(table, path, compression="snappy")
    return NegativesFile(rows=len(table), size=path.stat().st_size, sha256=file_sha256(path))


def read_negatives(folder: Path, manifest: DatasetManifest) -> StoredNegatives | None:
    """A dataset's stored negatives; None where its source published none. Raises DataError where the file is altered."""
    told = manifest.negatives
    if told is None:
        return None
    check_file(folder / schema.NEGATIVES_FILE, told.size, told.sha256)
    table = pq.read_table(folder / schema.NEGATIVES_FILE).combine_chunks()
    lengths = pc.list_value_length(table.column(schema.ITEM)).to_numpy()
    return StoredNegatives(
        user=table.column(schema.USER).to_numpy(),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item=pc.list_flatten(table.column(schema.ITEM)).to_numpy(),
    )
