"""The catalogue of a dataset: items of the events and of the source's catalogue, numbered by their string ids."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data import schema
from recsys.data.sources.catalogue import catalogue_table, first_of_each


def join_catalogue(event_items: pa.Array, catalogue: pa.Table | None) -> pa.Table:
    """Every item, sorted by id, with what the catalogue says of it. event_items: unique ids.

    Numbers so depend on which items exist, never on who watched them.
    """
    described = first_of_each(catalogue) if catalogue is not None else catalogue_table([], [])
    known = described.column(schema.ITEM_ID).combine_chunks()
    bare = event_items.filter(pc.invert(pc.is_in(event_items, known)))
    missing = pa.nulls(len(bare))
    rows = {field.name: missing.cast(field.type) for field in described.schema} | {schema.ITEM_ID: bare}
    rows[schema.GENRES] = pa.array([[]] * len(bare), schema.ITEMS.field(schema.GENRES).type)
    items = pa.concat_tables([described, pa.table(rows, schema=described.schema)])
    return items.take(pc.array_sort_indices(items.column(schema.ITEM_ID))).combine_chunks()


def write_items(items: pa.Table, counts: NDArray[np.int64], path: Path) -> None:
    """items.parquet: numbered, what is known of each, and its train events last."""
    numbers = pa.array(np.arange(len(items), dtype=np.int32))
    table = items.add_column(0, schema.ITEM, numbers).append_column(schema.COUNT, pa.array(counts))
    pq.write_table(table.replace_schema_metadata(None), path, compression="snappy")
