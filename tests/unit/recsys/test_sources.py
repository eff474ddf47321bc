"""What is recognised, how values are read, and how sources that cannot be used are refused."""

import gzip
import logging
import math
import random
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import DataConfig, load_config
from recsys.data import schema
from recsys.data.items import join_catalogue
from recsys.data.sources import recognise
from recsys.data.sources.base import Source
from recsys.data.sources.parse import Range, parse_range
from recsys.data.sources.scan import scan
from recsys.data.sources.values import (
    NO_ITEM,
    NO_USER,
    RATING_INFINITE,
    RATING_NEGATIVE,
    RATING_TEXT,
    TIME_RANGE,
    TIME_TEXT,
    Raw,
    check,
)
from recsys.errors import ConfigError, DataError, RecsysError

GOOD_CSV = "user_id,item_id,rating,timestamp\nann,x,4.5,100\nbob,y,3,200\n"


def write(folder: Path, **files: str | bytes) -> Path:
    """A folder of files; `__` in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def source_of(*paths: Path | str, **settings) -> Source:
    return recognise([str(path) for path in paths], DataConfig(**settings))


def rows_of(source: Source, staging: Path) -> list[tuple]:
    """All events of a source: scanned, cut and parsed."""
    found, index = [], 0
    for number, event_file in enumerate(source.events):
        scanned = scan(event_file, 1 << 10, staging / f"raw-{number}")
        for cut in scanned.cuts:
            parsed = parse_range(Range(index, event_file, scanned.path, cut))
            assert not len(parsed.rejects), parsed.rejects.to_pylist()
            found += parsed.events.select([schema.USER_ID, schema.ITEM_ID, schema.RATING, schema.TIME, schema.ROLE]).to_pylist()
            index += 1
    return [tuple(row.values()) for row in found]


def refusal(source, staging: Path | None = None, **settings) -> str:
    """What is said when a source is refused, at recognition or later."""
    with pytest.raises(DataError) as refused:
        rows_of(source_of(source, **settings), staging or Path(str(source)))
    assert refused.value.exit_code == 3
    return str(refused.value)


# --- recognition -----------------------------------------------------------------------------------------------------


def test_ml_100k_and_its_folds(tmp_path):
    data = "196\t242\t3\t881250949\n"
    item = (
        "242|Kolya (1996)|24-Jan-1997||http://x|"
        + "|".join("1" if i in (5, 18) else "0" for i in range(19))
        + "\n1|Zoë|||"
        + "|0" * 19
    )
    folder = write(
        tmp_path / "ml-100k",
        u__data=data,
        u__item=item.encode("latin-1"),
        u1__base=data,
        u1__test="1\t1\t5\t1\n",
        u__user="1|24|M|x|1",
    )
    source = source_of(folder)
    assert (source.format, source.given, rows_of(source, tmp_path)) == ("ml-100k", False, [("196", "242", 3.0, 881250949, 0)])
    first, second = source.catalogue().to_pylist()
    assert (first["title"], first["year"], first["genres"]) == ("Kolya (1996)", 1996, ["Comedy", "Western"])
    assert (first["release_date"], second["title"], second["year"], second["release_date"]) == (
        "24-Jan-1997",
        "Zoë",
        None,
        None,
    )
    folded = source_of(folder, fold="u1")
    assert folded.given and [row[-1] for row in rows_of(folded, tmp_path)] == [0, 2]
    with pytest.raises(ConfigError, match=r"u9.*ml-100k has u1"):
        source_of(folder, fold="u9")


def test_movielens_dat_with_separators_and_latin_1_in_titles(tmp_path):
    movies = "1::Toy Story (1995)::Animation|Comedy\n2::Love :: Hate (1999)::Drama\n3::Amélie::(no genres listed)\n"
    folder = write(
        tmp_path / "ml", ratings__dat="1::1::5::978300760\n", movies__dat=movies.encode("latin-1"), users__dat="1::F::1::10::1"
    )
    source = source_of(folder)
    assert source.format == "movielens-dat"
    assert rows_of(source, tmp_path) == [("1", "1", 5.0, 978300760, 0)]
    titles = source.catalogue().select(["item_id", "title", "year", "genres"]).to_pylist()
    assert [tuple(row.values()) for row in titles] == [
        ("1", "Toy Story (1995)", 1995, ["Animation", "Comedy"]),
        ("2", "Love :: Hate (1999)", 1999, ["Drama"]),
        ("3", "Amélie", None, []),
    ]


def test_movielens_csv_leaves_tags_and_links_alone(tmp_path, caplog):
    folder = write(
        tmp_path / "ml-latest",
        ratings__csv="userId,movieId,rating,timestamp\r\n1,31,2.5,1260759144\r\n",
        movies__csv='movieId,title,genres\r\n31,"American President, The (1995)",Comedy|Drama\r\n',
        tags__csv="userId,movieId,tag,timestamp\n1,31,x,1\n",
    )
    source = source_of(folder)
    assert rows_of(source, tmp_path) == [("1", "31", 2.5, 1260759144, 0)]
    assert source.catalogue().to_pylist()[0]["title"] == "American President, The (1995)"
    assert not caplog.records


def test_lightgcn_is_a_given_split(tmp_path):
    folder = write(tmp_path / "gowalla", train__txt="0 1 2\n1 3\n", test__txt="0 4\n", user_list__txt="org_id remap_id\n9 0\n")
    source = source_of(folder)
    assert source.given and not source.has_time and not source.ordered and not source.has_valid
    assert [(row[0], row[1], row[4]) for row in rows_of(source, tmp_path)] == [
        ("0", "1", 0),
        ("0", "2", 0),
        ("1", "3", 0),
        ("0", "4", 2),
    ]


def test_ncf_is_a_given_split_and_its_negatives_are_no_events(tmp_path):
    folder = write(
        tmp_path / "ncf",
        a__train__pairs="0\t1\n0\t2\n",
        a__test__rating="0\t3\t5\t978824351\n",
        a__test__negative="(0,3)\t7\t8\n",
    )
    source = source_of(folder)
    assert (source.format, source.given, source.has_time) == ("ncf", True, False)
    assert [(row[1], row[4]) for row in rows_of(source, tmp_path)] == [("1", 0), ("2", 0), ("3", 2)]


def test_two_ncf_sets_in_a_folder_want_a_choice(tmp_path):
    files = {f"{name}__{part}": "0\t1\t5\t1\n" for name in ("a", "b") for part in ("train__rating", "test__rating")}
    folder = write(tmp_path / "ncf", **files)
    with pytest.raises(DataError, match=r"data\.fold"):
        source_of(folder)
    assert rows_of(source_of(folder, fold="b"), tmp_path) == [("0", "1", 1.0, 0, 0), ("0", "1", 1.0, 0, 2)]


def ml_1m(folder: Path) -> Path:
    return write(
        folder,
        interactions__tsv="user_id\tmovie_id\tposition\n1\t3186\t1\n1\t1721\t0\n",
        ml_1m__txt="1 1\n1 2\n",
        sas_to_original_items__txt="1 3186\n2 1721\n",
        sas_to_original_users__txt="1 6040\n",
        movies__dat="3186::Girl, Interrupted (1999)::Drama\n1721::Titanic (1997)::Drama\n",
        README="x",
    )


def test_a_folder_with_a_table_is_the_table_in_its_published_order(tmp_path):
    source = source_of(ml_1m(tmp_path / "ml_1m"))
    assert (source.format, source.ordered, source.has_time, source.has_rating) == ("tabular", True, False, False)
    assert [row[1] for row in rows_of(source, tmp_path)] == ["3186", "1721"]
    assert source.catalogue().column("title").to_pylist() == ["Girl, Interrupted (1999)", "Titanic (1997)"]


@pytest.mark.parametrize("how", ["file", "setting", "member"])
def test_a_sequence_is_taken_when_it_is_named_with_titles_by_its_own_ids(tmp_path, how):
    folder = ml_1m(tmp_path / "ml_1m")
    if how == "member":
        pack(folder, tmp_path / "ml.zip")
    given_path = {"file": folder / "ml_1m.txt", "setting": folder, "member": tmp_path / "ml.zip" / "ml_1m" / "ml_1m.txt"}[how]
    source = source_of(given_path, format="sequence" if how == "setting" else "auto")
    assert (source.format, source.ordered) == ("sequence", True)
    assert [row[:2] for row in rows_of(source, tmp_path)] == [("1", "1"), ("1", "2")]
    assert source.catalogue().select(["item_id", "title"]).to_pylist() == [
        {"item_id": "1", "title": "Girl, Interrupted (1999)"},
        {"item_id": "2", "title": "Titanic (1997)"},
    ]


@pytest.mark.parametrize("packing", ["zip", "gz"])
def test_packed_files_are_the_same_as_plain_ones(tmp_path, packing):
    body = GOOD_CSV + "".join(f"u{i},i{i % 7},1,{i}\n" for i in range(500))
    plain = write(tmp_path / "plain", events__csv=body)
    packed = tmp_path / f"packed.{packing}"
    if packing == "zip":
        pack(plain, packed)
    else:
        packed = write(tmp_path / "gz", events__csv__gz=gzip.compress(body.encode()))
    assert rows_of(source_of(packed), tmp_path) == rows_of(source_of(plain), tmp_path)


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", "::"])
def test_delimiters_and_usual_names_are_recognised(tmp_path, delimiter):
    text = GOOD_CSV.replace("user_id", "UserID").replace("timestamp", "date").replace(",", delimiter)
    path = write(tmp_path, events__csv="\ufeff" + text) / "events.csv"
    assert rows_of(source_of(path), tmp_path) == [("ann", "x", 4.5, 100, 0), ("bob", "y", 3.0, 200, 0)]


def test_columns_named_in_the_config_win(tmp_path):
    path = write(tmp_path, events__csv="who,user_id,what,stars2,t\nann,7,x,2,2020-01-02\n") / "events.csv"
    source = source_of(path, user_column="who", item_column="what", rating_column="stars2", time_column="t")
    second = int(datetime(2020, 1, 2, tzinfo=UTC).timestamp())
    assert rows_of(source, tmp_path) == [("ann", "x", 2.0, second, 0)]


def test_a_catalogue_beside_the_events_and_one_named(tmp_path):
    folder = write(
        tmp_path / "shop", events__csv=GOOD_CSV, items__csv='item_id,title,year,price\nx,"A ""b"", c\nd",1999,7.50\n'
    )
    table = source_of(folder).catalogue()
    assert table.to_pylist() == [{"item_id": "x", "title": 'A "b", c\nd', "year": 1999, "genres": [], "price": "7.50"}]
    other = write(tmp_path / "else", other__tsv="sku\ttitle\nx\tX\n") / "other.tsv"
    with pytest.raises(DataError, match=r"other\.tsv: no column of item ids among sku"):
        source_of(folder, catalogue=str(other)).catalogue()


def test_parquet_shards_with_dictionaries_timestamps_and_whole_numbers(tmp_path):
    times = pa.array([datetime(2020, 1, 1, tzinfo=UTC)] * 2, pa.timestamp("ms", "UTC"))
    table = pa.table(
        {
            "user_id": [1, 2],
            "item_id": pa.array(["x", "y"]).dictionary_encode(),
            "rating": pa.array([5, 4], pa.int8()),
            "time": times,
        }
    )
    (tmp_path / "in").mkdir()
    for number in range(2):
        pq.write_table(table, tmp_path / "in" / f"part-{number}.parquet", row_group_size=1)
    assert rows_of(source_of(tmp_path / "in"), tmp_path) == [("1", "x", 5.0, 1577836800, 0), ("2", "y", 4.0, 1577836800, 0)] * 2


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_typed_times_are_whole_seconds_rounded_down_whatever_their_unit(tmp_path, unit):
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    moments = pa.array([1_500_000_000 * ticks, 1_500_000_001 * ticks - 1, -1, None], pa.timestamp(unit))
    found = check(Raw(pa.array(list("abcd")), pa.array(list("wxyz")), time=moments), np.arange(4), 0)
    expected = [1_500_000_000] if unit == "s" else [1_500_000_000, 1_500_000_000]
    assert found.events.column(schema.TIME).to_pylist()[: len(expected)] == expected
    assert found.bad.tolist() == [2, 3] and found.reasons == [TIME_RANGE, TIME_TEXT]


def test_a_typed_time_beyond_the_calendar_is_rejected_and_shown(tmp_path):
    table = pa.table({"user": ["a", "b"], "item": ["x", "y"], "time": pa.array([2**50, 1000], pa.timestamp("ms"))})
    pq.write_table(table, tmp_path / "a.parquet")
    source = source_of(tmp_path / "a.parquet")
    scanned = scan(source.events[0], 1 << 20, tmp_path)
    parsed = parse_range(Range(0, source.events[0], scanned.path, scanned.cuts[0]))
    assert parsed.events.column(schema.TIME).to_pylist() == [1]
    (reject,) = parsed.rejects.to_pylist()
    assert reject["reason"] == TIME_RANGE and "'user': 'a'" in reject["raw"]


def test_relative_paths_open_from_other_folders_and_a_file_counts_once(tmp_path, monkeypatch):
    write(tmp_path / "here", events__csv=GOOD_CSV)
    monkeypatch.chdir(tmp_path)
    source = source_of("here", "here/events.csv", tmp_path / "here")
    monkeypatch.chdir("/")
    assert len(rows_of(source, tmp_path)) == 2


def test_shards_of_different_kinds_are_refused(tmp_path):
    assert "a.csv and" in refusal(write(tmp_path / "in", a__csv=GOOD_CSV, b__tsv="user_id\titem_id\nu\ti\n"))


def test_a_table_beside_another_format_is_a_part_and_companions_and_catalogues_are_none(tmp_path):
    films = write(
        tmp_path / "ml",
        ratings__csv="userId,movieId,rating,timestamp\n1,2,3,4\n",
        movies__csv="movieId,title,genres\n2,Heat (1995),Drama\n",
        tags__csv="userId,movieId,tag,timestamp\n1,2,good,4\n",
        links__csv="movieId,imdbId\n2,3\n",
    )
    write(tmp_path, events__csv=GOOD_CSV, items__csv="item_id,title,colour\nx,Ran,red\n2,Not Heat,blue\n")
    assert len(rows_of(source_of(*sorted(films.iterdir())), tmp_path)) == 1
    for paths in (
        [films, tmp_path / "events.csv", tmp_path / "items.csv"],
        [tmp_path / "events.csv", tmp_path / "items.csv", films],
    ):
        source = source_of(*paths)
        assert [row[:2] for row in rows_of(source, tmp_path)] == [("1", "2"), ("ann", "x"), ("bob", "y")]
        assert [(file.base, file.part) for file in source.files] == [
            *(("ratings.csv", 0), ("events.csv", 1), ("movies.csv", 0), ("items.csv", 1)),
        ]
        items = join_catalogue(pa.array(["2", "x", "y"]), source.catalogue()).to_pylist()
        assert [(item["title"], item["colour"]) for item in items] == [("Heat (1995)", None), ("Ran", "red"), (None, None)]


def test_parts_whose_catalogues_disagree_on_a_type_are_named(tmp_path):
    films = write(
        tmp_path / "ml",
        ratings__csv="userId,movieId,rating,timestamp\n1,2,3,4\n",
        movies__csv="movieId,title,genres,colour\n2,Heat,,red\n",
    )
    events = write(tmp_path / "in", events__csv=GOOD_CSV)
    pq.write_table(pa.table({"item_id": ["x"], "colour": [7]}), events / "items.parquet")
    with pytest.raises(DataError, match=r"movies\.csv and .*items\.parquet: a column of both has different types"):
        source_of(films, events).catalogue()


def test_columns_nobody_asked_for_may_share_a_name(tmp_path):
    path = write(tmp_path, events__csv=",x,x,user_id,item_id\n0,1,2,u,i\n") / "events.csv"
    assert rows_of(source_of(path), tmp_path) == [("u", "i", 1.0, 0, 0)]
    twice = write(tmp_path, twice__csv="user_id,item_id,item_id\nu,i,i\n") / "twice.csv"
    assert "2 columns are called item_id" in refusal(twice, tmp_path)


def test_hidden_files_are_passed_over(tmp_path):
    folder = write(tmp_path / "spark", _SUCCESS=b"", part__csv=GOOD_CSV)
    assert len(source_of(folder).events) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "parkay"}, "there are auto, ml-100k"),
        ({"fold": "u1"}, "the source is tabular"),
        ({"min_rating": 4.0, "rating_column": None}, "has no ratings"),
    ],
)
def test_settings_that_do_not_fit_the_source_are_refused(tmp_path, settings, message):
    path = write(tmp_path, events__csv="user_id,item_id\na,b\n") / "events.csv"
    with pytest.raises(ConfigError, match=message):
        source_of(path, **settings)


# --- values ----------------------------------------------------------------------------------------------------------


def reasons(**columns) -> list[str]:
    raw = {"user": ["u"], "item": ["i"], **columns}
    size = max(len(values) for values in raw.values())
    arrays = {name: pa.array(values * size if len(values) < size else values) for name, values in raw.items()}
    checked = check(Raw(**arrays), np.arange(size), 0)
    assert len(checked.events) == size - len(checked.bad)
    return checked.reasons


def test_bad_values_are_told_apart():
    assert reasons(rating=[b"4.x", b"", b"nan", b"inf", b"-1", b"1e39", b"1e400", b" 5 ", b".5", b"1e1"]) == [
        *(RATING_TEXT, RATING_TEXT, RATING_INFINITE, RATING_INFINITE),
        *(RATING_NEGATIVE, RATING_INFINITE, RATING_INFINITE),
    ]
    assert reasons(rating=[1.0, math.nan, math.inf, -0.5, None]) == [
        RATING_INFINITE,
        RATING_INFINITE,
        RATING_NEGATIVE,
        RATING_TEXT,
    ]
    assert reasons(user=[b"", b"a"], item=[b"x", b""]) == [NO_USER, NO_ITEM]
    assert reasons(user=[None, "a"], item=["x", None]) == [NO_USER, NO_ITEM]
    times = [b"-1", b"1e20", b"99999999999999999999", b"1700000000000", b"nan", b"2020-13-01", b"x", b"0", b"2020-01-01"]
    assert reasons(time=times) == [TIME_RANGE, TIME_RANGE, TIME_RANGE, TIME_RANGE, TIME_TEXT, TIME_TEXT, TIME_TEXT]


@settings(max_examples=50)
@given(
    moments=st.lists(st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1)), min_size=1),
    form=st.sampled_from(["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S+00:00", "%Y%m%dT%H%M%S"]),
)
def test_iso_times_are_unix_seconds(moments, form):
    text = [moment.replace(microsecond=0).strftime(form).rjust(15, "0") for moment in moments]
    checked = check(
        Raw(pa.array(["u"] * len(text)), pa.array(["i"] * len(text)), None, pa.array(text)), np.arange(len(text)), 0
    )
    expected = [int(moment.replace(microsecond=0, tzinfo=UTC).timestamp()) for moment in moments]
    assert checked.events.column(schema.TIME).to_pylist() == expected


# --- the catalogue ---------------------------------------------------------------------------------------------------

titles = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from('",\n\r\0<b>\u202eא\U0001f600')), max_size=12)


@settings(max_examples=50)
@given(names=st.lists(titles, min_size=1, max_size=8))
def test_titles_come_back_byte_for_byte(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("titles")
    lines = "".join('i{},"{}"\n'.format(number, name.replace('"', '""')) for number, name in enumerate(names))
    write(folder / "in", events__csv="user_id,item_id\nu,i0\n", items__csv="item_id,title\n" + lines)
    items = join_catalogue(pa.array(["i0"]), source_of(folder / "in").catalogue())
    found = dict(zip(items.column("item_id").to_pylist(), items.column("title").to_pylist(), strict=True))
    assert found == {f"i{number}": name or None for number, name in enumerate(names)}


def test_items_are_sorted_by_id_and_those_nobody_describes_are_there_too():
    catalogue = pa.table(
        {
            "item_id": ["b", "a", "b", ""],
            "title": ["B", "A", "other", "none"],
            "year": pa.nulls(4, pa.int32()),
            "genres": [["x"], [], [], []],
        }
    )
    items = join_catalogue(pa.array(["c", "a"]), catalogue)
    assert items.select(["item_id", "title", "genres"]).to_pylist() == [
        {"item_id": "a", "title": "A", "genres": []},
        {"item_id": "b", "title": "B", "genres": ["x"]},
        {"item_id": "c", "title": None, "genres": []},
    ]


# --- faults (the numbers are those of the project's list of faults) ----------------------------------------------------


def parquet_bytes(table: pa.Table, path: Path) -> bytes:
    pq.write_table(table, path)
    return path.read_bytes()


@pytest.fixture
def shard(tmp_path) -> bytes:
    return parquet_bytes(pa.table({"user_id": ["a"] * 999, "item_id": ["x"] * 999}), tmp_path / "shard")


def test_d1_truncated_parquet_is_named(tmp_path, shard):
    folder = write(tmp_path / "in", a__parquet=shard, b__parquet=shard[:-200])
    assert "b.parquet: cut or damaged" in refusal(folder)


def test_d1_damaged_pages_are_named(tmp_path):
    noise = pa.table({"user_id": [str(i * 7919) for i in range(5000)], "item_id": ["x"] * 5000})
    whole = parquet_bytes(noise, tmp_path / "shard")
    folder = write(tmp_path / "in", b__parquet=whole[:50] + b"\xff" * 4000 + whole[4050:])
    assert "b.parquet: cut or damaged" in refusal(folder)


@pytest.mark.parametrize("name", ["b.parquet", "b.csv", "b.csv.gz"])
def test_d2_d3_an_empty_file_is_named_even_among_good_ones(tmp_path, shard, name):
    good = {"a__parquet": shard} if "parquet" in name else {"a__csv": GOOD_CSV}
    folder = write(tmp_path / "in", **good, **{name.replace(".", "__"): b""})
    assert f"{name}: empty" in refusal(folder) or f"{name}: cut" in refusal(folder)


def test_d3_a_shard_without_rows_is_named(tmp_path, shard):
    assert "b.csv: no rows" in refusal(write(tmp_path / "csv", a__csv=GOOD_CSV, b__csv=GOOD_CSV.split("\n")[0]), tmp_path)
    none = parquet_bytes(
        pa.table({"user_id": pa.array([], pa.string()), "item_id": pa.array([], pa.string())}), tmp_path / "none"
    )
    assert "b.parquet: no rows" in refusal(write(tmp_path / "pq", a__parquet=shard, b__parquet=none), tmp_path)


def test_d5_ids_of_different_types_name_file_column_and_types(tmp_path, shard):
    ints = parquet_bytes(pa.table({"user_id": [1], "item_id": ["x"]}), tmp_path / "ints")
    message = refusal(write(tmp_path / "in", a__parquet=shard, b__parquet=ints))
    assert all(part in message for part in ("b.parquet", "user_id", "int64", "string", "a.parquet"))


@pytest.mark.parametrize("kind", [pa.float64(), pa.date32(), pa.binary()])
def test_d5_ids_that_are_no_ids_are_refused(tmp_path, kind):
    shard = parquet_bytes(pa.table({"user_id": pa.nulls(1, kind), "item_id": ["x"]}), tmp_path / "shard")
    message = refusal(write(tmp_path / "in", b__parquet=shard))
    assert f"b.parquet: column user_id is {kind}; a user wants text or whole numbers" in message


@pytest.mark.parametrize("missing", ["user_id", "item_id", "rating", "timestamp"])
def test_d6_a_missing_column_is_named_with_its_file(tmp_path, missing):
    lacking = GOOD_CSV.replace(missing, "other")
    message = refusal(write(tmp_path / "in", a__csv=GOOD_CSV, b__csv=lacking))
    part = {"user_id": "user", "item_id": "item"}.get(missing, missing)
    assert "b.csv: no column" in message and part in message


def test_d6_a_column_of_the_config_that_is_not_there_gets_the_nearest_name(tmp_path):
    message = refusal(write(tmp_path / "in", a__csv="customer,item_id\na,b\n") / "a.csv", user_column="custmer")
    assert "a.csv: no column custmer (data.user_column). Did you mean customer?" in message


def test_d7_unknown_columns_warn_once_or_fail_if_strict(tmp_path, caplog):
    text = GOOD_CSV.replace("\n", ",note\n", 1).replace("00\n", "00,hi\n")
    folder = write(tmp_path / "in", a__csv=text, b__csv=text)
    with caplog.at_level(logging.WARNING):
        assert len(rows_of(source_of(folder), tmp_path)) == 4
    assert [record.getMessage().count("note") for record in caplog.records] == [1]
    assert "columns that nobody asked for: note" in refusal(folder, strict=True)


def test_d9_a_cut_gzip_names_file_and_line(tmp_path):
    chance = random.Random(0)
    body = "user_id,item_id\n" + "".join(f"{chance.random()},{chance.random()}\n" for _ in range(10_000))
    packed = gzip.compress(body.encode())
    folder = write(tmp_path / "in", events__csv__gz=packed[: len(packed) // 2])
    assert "events.csv.gz: cut or damaged after line" in refusal(folder, tmp_path)


def test_d9_a_cut_zip_is_named(tmp_path):
    pack(write(tmp_path / "in", events__csv=GOOD_CSV * 100), tmp_path / "good.zip")
    (tmp_path / "bad.zip").write_bytes((tmp_path / "good.zip").read_bytes()[:-60])
    assert "bad.zip: cut or damaged" in refusal(tmp_path / "bad.zip", tmp_path)


def test_what_is_not_there_or_not_known_is_named(tmp_path, monkeypatch):
    assert refusal(tmp_path / "nowhere").endswith("nowhere: no such file or folder.")
    (tmp_path / "elsewhere.csv").write_text("user_id,item_id\n")
    monkeypatch.delenv("RECSYS_DATA", raising=False)
    assert "Paths count from the folder you are in." in refusal("elsewhere.csv")
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    assert f"There is {tmp_path / 'elsewhere.csv'}." in refusal("elsewhere.csv")
    assert "holds notes.md" in refusal(write(tmp_path / "in", notes__md="x"))
    assert "nothing" in refusal(write(tmp_path / "nothing"))


def pack(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.mkdir(folder.name)
        for path in sorted(folder.iterdir()):
            packed.write(path, f"{folder.name}/{path.name}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items__csv", "item_id,title,tag,tag\nx,X,1,2\n", "more than one column is called tag"),
        ("items__parquet", b"PAR1 nothing PAR1", "cut or damaged"),
        ("items__parquet", pa.table({"item_id": [["x"]], "title": ["X"]}), "convert the column"),
        ("items__parquet", pa.table({"item_id": ["x"], "title": [["X"]]}), "convert the column"),
    ],
)
def test_a_catalogue_that_cannot_be_read_is_named(tmp_path, name, content, message):
    content = parquet_bytes(content, tmp_path / "items") if isinstance(content, pa.Table) else content
    source = source_of(write(tmp_path / "in", events__csv=GOOD_CSV, **{name: content}))
    with pytest.raises(DataError, match=rf"items\..*{message}"):
        source.catalogue()


def test_a_cut_u_item_is_named_with_its_line(tmp_path):
    source = source_of(write(tmp_path, u__data="1\t1\t3\t4\n", u__item="1|Heat (1995)|1-Jan||url|0\n2|Cas"))
    with pytest.raises(DataError, match=r"u\.item, line 2: '2\|Cas' has fewer than 5 fields"):
        source.catalogue()


def test_attributes_never_take_the_name_of_a_column_of_the_contract(tmp_path):
    items = "item_id,item,item_,count\nx,1,2,3\n"
    table = source_of(write(tmp_path, events__csv=GOOD_CSV, items__csv=items)).catalogue()
    attributes = {name: table.column(name).to_pylist() for name in table.column_names[len(schema.ITEMS) - 1 :]}
    assert attributes == {"item__": ["1"], "item_": ["2"], "count_": ["3"]}


def test_a_text_without_newlines_is_named(tmp_path):
    assert "old.csv, line 1" in refusal(write(tmp_path, old__csv=GOOD_CSV.replace("\n", "\r")) / "old.csv", tmp_path)


def test_a_store_that_cannot_be_opened_is_a_runtime_error(monkeypatch):
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(RecsysError, match=r"hdfs://a/b: the store cannot be reached") as refused:
        source_of("hdfs://a/b")
    assert refused.value.exit_code == 5


@pytest.mark.parametrize("override", ["data.seed=-1", "train.seed=-1", "data.delimiter='\"'", "data.delimiter=é"])
def test_settings_that_no_step_could_use_are_refused(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load_config(None, [override])
