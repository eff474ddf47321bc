"""Columns of which reading a value can run code are found, wherever they hide, and refused wherever data come in."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import DataConfig
from recsys.data import schema
from recsys.data.dataset import check_file, file_sha256, read_items
from recsys.data.sources import recognise
from recsys.errors import DataError

PICKLED = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def bombs(path: Path, rows: int) -> pa.Table:
    """items.parquet with a column that Ray Data unpickles."""
    field = pa.field("poster", pa.large_binary(), metadata=PICKLED)
    told = schema.ITEMS.append(field).append(pa.field(schema.COUNT, pa.int64()))
    columns = [range(rows), [f"i{i}" for i in range(rows)], ["A"] * rows, [None] * rows, [[]] * rows]
    return pa.table([*map(list, columns), [pickle.dumps(Bomb(path))] * rows, [1] * rows], schema=told)


@pytest.mark.parametrize(
    "kind",
    [
        pa.uuid(),
        pa.list_(pa.uuid()),
        pa.list_(pa.field("item", pa.large_binary(), metadata=PICKLED)),
        pa.map_(pa.string(), pa.json_()),
        pa.struct([("a", pa.struct([("b", pa.uuid())]))]),
        pa.dictionary(pa.int32(), pa.uuid()),
        pa.dictionary(pa.int32(), pa.list_(pa.uuid())),
        pa.run_end_encoded(pa.int32(), pa.uuid()),
    ],
    ids=str,
)
def test_an_extension_type_is_found_wherever_it_is(kind: pa.DataType) -> None:
    assert schema.extension_column(pa.schema([("plain", pa.string()), ("odd", kind)])) == "odd"


def test_plain_columns_are_plain() -> None:
    kinds = [pa.string(), pa.list_(pa.string()), pa.struct([("x", pa.int8())]), pa.dictionary(pa.int32(), pa.string())]
    columns = pa.schema([pa.field(f"c{n}", kind, metadata={b"unit": b"m"}) for n, kind in enumerate(kinds)])
    assert schema.extension_column(columns) is None
    assert all(schema.extension_column(each) is None for each in (schema.EVENTS, schema.USERS, schema.ITEMS, schema.REJECTS))


def test_such_a_catalogue_and_such_a_dataset_are_refused(tmp_path: Path) -> None:
    table = bombs(tmp_path / "ran", 3)
    pq.write_table(table, tmp_path / "items.parquet")
    (tmp_path / "events.csv").write_text("user_id,item_id,rating\nu1,i1,5\nu2,i2,4\n")
    source = recognise([str(tmp_path / "events.csv")], DataConfig(catalogue=str(tmp_path / "items.parquet")))
    assert source.catalogue is not None
    with pytest.raises(DataError, match=r"items\.parquet: column poster is of an extension type"):
        source.catalogue()
    path = tmp_path / schema.ITEMS_FILE
    with pytest.raises(DataError, match="column poster is of an extension type"):
        read_items(tmp_path)
    with pytest.raises(DataError, match="column poster is of an extension type"):
        check_file(path, path.stat().st_size, file_sha256(path))
    path.write_bytes(b"no Parquet")
    with pytest.raises(DataError, match="cannot be read"):
        check_file(path, path.stat().st_size, file_sha256(path))


def test_it_would_run_where_ray_data_is_loaded(tmp_path: Path) -> None:
    """Or the tests above try nothing."""
    pq.write_table(bombs(tmp_path / "ran", 1), tmp_path / "items.parquet")
    code = (
        "import ray.data, pyarrow.parquet as pq, sys; ray.data.DataContext.get_current()\n"
        "from ray.data._internal.object_extensions import arrow\n"
        "pq.read_table(sys.argv[1]).column('poster')[0].as_py()"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "items.parquet"], check=False, capture_output=True)
    assert (tmp_path / "ran").is_dir()
