"""From a user's id to the row of his arrays, however many users there are, without reading them all."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def hash_id(user_id: str) -> int:
    """First 8 bytes of blake2b(user_id), big endian. A lone surrogate, which JSON may carry, hashes too."""
    return int.from_bytes(hashlib.blake2b(user_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def hash_ids(user_ids: Iterable[str]) -> NDArray[np.uint64]:
    """[U] hashes."""
    return np.fromiter(map(hash_id, user_ids), np.uint64)


@dataclass(frozen=True)
class UserIds:
    """hashes: [U] uint64, sorted; rows: [U] int32, whose hash it is; ids: [U] strings by row, to confirm."""

    hashes: NDArray[np.uint64]
    rows: NDArray[np.int32]
    ids: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, user_id: str) -> int | None:
        """The row of a user, None for a stranger."""
        wanted = np.uint64(hash_id(user_id))
        first = int(self.hashes.searchsorted(wanted, "left"))
        while first < len(self.hashes) and self.hashes[first] == wanted:
            row = int(self.rows[first])
            if self.id(row) == user_id:
                return row
            first += 1  # two ids share a hash
        return None

    def id(self, row: int) -> str:
        """The id of the user in a row."""
        text: str = self.ids[row].as_py()
        return text
