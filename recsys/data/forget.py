"""Users who are left out for good: told apart by keyed hashes, so that no file of the dataset holds their ids."""

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from recsys.data import schema
from recsys.data.sources.base import Parsed
from recsys.errors import ConfigError

HASH_BYTES = 16
WITHHELD = "(withheld: users of this source are forgotten)"


class Forgotten(BaseModel):
    """Whom a dataset leaves out. salt: hex; hashes: hex of BLAKE2b of each id, keyed by the salt, sorted.

    The hashes tell whether a given id was forgotten. They hide ids from readers and from a search through files, not from
    somebody who holds the salt and tries every id that could be.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    hashes: tuple[str, ...]

    @cached_property
    def known(self) -> frozenset[str]:
        """The hashes, to look one up."""
        return frozenset(self.hashes)

    def hash(self, user_id: str) -> str:
        """The hash of one id."""
        return hashlib.blake2b(user_id.encode(), digest_size=HASH_BYTES, key=bytes.fromhex(self.salt)).hexdigest()

    def also(self, user_ids: Iterable[str]) -> "Forgotten":
        """These users too."""
        more = {self.hash(user_id) for user_id in user_ids}
        return Forgotten(salt=self.salt, hashes=tuple(sorted(self.known | more)))


class LeftOut(NamedTuple):
    """What is left of a range; how many rows were left out, and the hashes of their users."""

    parsed: Parsed
    rows: int
    met: frozenset[str]


def nobody() -> Forgotten:
    """Nobody yet, under a salt of its own."""
    return Forgotten(salt=secrets.token_hex(16), hashes=())


def leave_out(parsed: Parsed, forgotten: Forgotten | None) -> LeftOut:
    """Events of everybody else.

    Rejected rows keep file, position and reason but not their text, in which an id could stand anywhere.
    """
    if forgotten is None:
        return LeftOut(parsed, 0, frozenset())
    users = parsed.events.column(schema.USER_ID).combine_chunks().dictionary_encode()
    users = users.combine_chunks() if isinstance(users, pa.ChunkedArray) else users
    hashes = [forgotten.hash(user_id) for user_id in users.dictionary.to_pylist()]
    gone = np.array([code in forgotten.known for code in hashes], bool)[users.indices.to_numpy()]
    events = parsed.events.filter(pa.array(~gone)) if gone.any() else parsed.events
    withheld = pa.array([WITHHELD] * len(parsed.rejects), pa.string())
    rejects = parsed.rejects.set_column(parsed.rejects.column_names.index("raw"), "raw", withheld)
    return LeftOut(Parsed(events, rejects), int(gone.sum()), forgotten.known.intersection(hashes))


def read_ids(told: str) -> list[str]:
    """User ids from a file, one a line, or from a list with commas. Raises ConfigError if there is none."""
    path = Path(told)
    if path.is_file():
        ids = path.read_text("utf-8-sig").splitlines()
    elif "," not in told and ("/" in told or path.suffix in (".txt", ".csv")):
        raise ConfigError(f"--forget {told}: no such file. Give a file of user ids, one a line, or ids with commas between.")
    else:
        ids = told.split(",")
    found = list(dict.fromkeys(text.strip() for text in ids if text.strip()))
    if not found:
        raise ConfigError(f"--forget {told}: names nobody. Give a file of user ids, one a line, or ids with commas between.")
    return found


def met_nobody(asked: Sequence[str], forgotten: Forgotten | None, met: Iterable[str]) -> int:
    """How many of the ids asked for had no row."""
    hashes = {forgotten.hash(user_id) for user_id in asked} if forgotten else set()
    return len(hashes.difference(met))
