"""The items: their ids, what is known of them, and a search over their titles."""

from collections.abc import Iterable, Sequence
from functools import cached_property, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.data import schema
from recsys.retrieval.rerank import log_standing, standing

NO_ITEMS = np.zeros(0, np.int32)
MARKS = r"[\p{M}'’]+"  # accents, once letters are decomposed, and apostrophes
BETWEEN = r"[^\p{L}\p{N}]+"


class Catalogue:
    """Items by number: describe, find by id, search by title."""

    def __init__(self, items: pa.Table) -> None:
        self.table = items.combine_chunks()
        self.ids: list[str] = self.table.column(schema.ITEM_ID).to_pylist()
        self._numbers = {item_id: number for number, item_id in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def number(self, item_id: str) -> int | None:
        """The number of an item, None for an id that is not in the catalogue."""
        return self._numbers.get(item_id)

    def numbers(self, item_ids: Iterable[str]) -> tuple[NDArray[np.int32], list[str]]:
        """The numbers of the known ids, in order and each once, and the unknown ids."""
        found = dict.fromkeys(item_ids)
        if not found:
            return NO_ITEMS, []
        known = [number for item_id in found if (number := self._numbers.get(item_id)) is not None]
        return np.array(known, np.int32), [item_id for item_id in found if item_id not in self._numbers]

    def describe(self, item: int) -> dict[str, Any]:
        """Every attribute of an item, with its id and title; an item without a title is called by its id."""
        return self.describe_all([item])[0]

    def describe_all(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """`describe` of several items: several hundred together take a fortieth of the time."""
        rows: list[dict[str, Any]] = self._shown.take(pa.array(items, pa.int64())).to_pylist()
        for row in rows:
            row[schema.TITLE] = row.get(schema.TITLE) or row[schema.ITEM_ID]
        return rows

    @cached_property
    def _shown(self) -> pa.Table:
        return self.table.drop_columns([own for own in schema.OWN_OF_BUNDLES if own in self.table.column_names])

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """[N] how often each item was watched in training."""
        if schema.COUNT not in self.table.column_names:
            return np.zeros(len(self), np.int64)
        counts: NDArray[np.int64] = self.table.column(schema.COUNT).to_numpy().astype(np.int64)
        return counts

    @cached_property
    def popularity(self) -> NDArray[np.float32]:
        """[N] what the most popular are ordered by: how often each was watched lately, where a bundle says, or in training."""
        if schema.LATELY not in self.table.column_names:
            return self.counts.astype(np.float32)
        lately: NDArray[np.float32] = self.table.column(schema.LATELY).to_numpy()
        return lately

    @cached_property
    def by_popularity(self) -> NDArray[np.float32]:
        """[N] the standing of each item among those that were watched: from -1, the least popular, to 1, by logarithms."""
        return log_standing(self.popularity, self.counts > 0)

    @cached_property
    def by_arrival(self) -> NDArray[np.float32] | None:
        """[N] the standing of each item by when it was watched first: from -1, the oldest, to 1. None where no times are
        known."""
        if schema.ARRIVED not in self.table.column_names:
            return None
        arrived = self.table.column(schema.ARRIVED)
        return standing(arrived.fill_null(0).to_numpy(), arrived.is_valid().to_numpy())

    def search(self, text: str, limit: int = 20) -> NDArray[np.int32]:
        """Items whose title holds `text`, whatever its case and accents: first where it begins the title, then where it
        begins a word, then anywhere, and last those in which each of its words begins one, in whatever order; each by how often
        the item was watched. `text` is taken as it is: no pattern language."""
        plain = text.encode("utf-8", "ignore").decode()  # JSON may carry half a character
        wanted = _folded(pa.array([plain], pa.string()))[0].as_py().strip()
        if not wanted:
            return np.zeros(0, np.int32)
        whole = pc.match_substring(self._titles, wanted)
        in_words = reduce(pc.and_, (pc.match_substring(self._titles, " " + word) for word in wanted.split()))
        found = np.flatnonzero(pc.or_(whole, in_words))
        titles = self._titles.take(pa.array(found))
        of_word = pc.find_substring(titles, " " + wanted).to_numpy()
        anywhere = pc.find_substring(titles, wanted).to_numpy()
        grade = np.where(of_word == 0, 0, np.where(of_word > 0, 1, np.where(anywhere > 0, 2, 3)))
        best = np.lexsort((found, -self.counts[found], grade))[:limit]
        return found[best].astype(np.int32)

    @cached_property
    def _titles(self) -> pa.Array:
        """Behind a space, as each of their words is."""
        ids = self.table.column(schema.ITEM_ID)
        titles = self.table.column(schema.TITLE) if schema.TITLE in self.table.column_names else ids
        plain = _folded(pa.concat_arrays(pc.coalesce(titles, ids).chunks or [pa.array([], pa.string())]))
        return pc.binary_join_element_wise("", pc.utf8_trim_whitespace(plain), " ")


def _folded(texts: pa.Array) -> pa.Array:
    """Lower case without accents and apostrophes, a space for whatever stands between words."""
    plain = pc.utf8_lower(pc.replace_substring_regex(pc.utf8_normalize(texts, "NFKD"), MARKS, ""))
    return pc.replace_substring_regex(plain, BETWEEN, " ")
