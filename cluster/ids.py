"""String ids of users and items by number: by them, and by nothing else, two datasets are joined."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.data import schema
from recsys.data.dataset import UserFile, read_items, read_plain


def item_ids(dataset: Path) -> pa.Array:
    """[N] by number."""
    return read_items(dataset).column(schema.ITEM_ID).combine_chunks()


def user_ids(dataset: Path, files: Iterable[UserFile]) -> pa.Array:
    """[U] of these files, by number: of all of a dataset's, row = user."""
    ordered = sorted(files, key=lambda file: file.first_user)
    columns = [read_plain(dataset / schema.USERS_FOLDER / file.name, [schema.USER_ID]).column(0) for file in ordered]
    return pa.concat_arrays([chunk for column in columns for chunk in column.chunks] or [pa.array([], pa.string())])


def places(ids: pa.Array, there: pa.Array) -> NDArray[np.int64]:
    """For each id where it is `there`, -1 if nowhere."""
    found = pc.fill_null(pc.index_in(ids, value_set=there), -1)
    numbers: NDArray[np.int64] = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers
