"""Datasets that grow, and users who are forgotten: what comes out is what preparing everything at once gives."""

import logging
import random
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster.append as appending
import cluster.prepare as preparing
from cluster import prepare_parse
from recsys.config import Config, DataConfig
from recsys.data import parsed, schema
from recsys.data.dataset import DatasetManifest, read_histories, read_items, read_manifest, verify
from recsys.data.forget import WITHHELD, read_ids
from recsys.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("in_process")

Event = tuple[str, str, float, int]
COLUMNS = ("user_id", "item_id", "rating", "timestamp")
LOSSY = {"core": 3, "min_rating": 2.0, "sample": 0.7, "repeats": "last", "range_bytes": 1024, "max_bad_rows": 0.2}


@pytest.fixture
def parsed_files(monkeypatch) -> list[str]:
    """Names of the files whose ranges are parsed, as they are."""
    names, parse = [], prepare_parse.parse_range

    def noted(part):
        names.append(Path(part.event_file.file.name).name)
        return parse(part)

    monkeypatch.setattr(prepare_parse, "parse_range", noted)
    return names


def some_events(seed: int, events: int = 400, users: int = 40, items: int = 30) -> list[Event]:
    """Random events with many ties in time, and repeats."""
    chance = random.Random(seed)
    return [
        (f"user-{chance.randrange(users)}", f"i{chance.randrange(items)}", float(chance.randint(1, 5)), chance.randrange(50))
        for _ in range(events)
    ]


def write_csv(path: Path, events: list[Event], *more: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(COLUMNS), *(",".join(map(str, event)) for event in events), *more]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_parquet(path: Path, events: list[Event], names: tuple[str, ...] = COLUMNS) -> Path:
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*events, strict=True)), strict=True))), path)
    return path


def movielens(folder: Path, events: list[Event]) -> Path:
    """A folder as MovieLens publishes it, tags and links included; the catalogue knows half of the items."""
    write_csv(folder / "ratings.csv", events)
    (folder / "ratings.csv").write_text(
        (folder / "ratings.csv").read_text().replace(",".join(COLUMNS), "userId,movieId,rating,timestamp")
    )
    films = "".join(f"i{number},Film {number} (1999),Drama\n" for number in range(15))
    (folder / "movies.csv").write_text("movieId,title,genres\n" + films)
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\nuser-1,i1,funny,5\n")
    (folder / "links.csv").write_text("movieId,imdbId\ni1,5\n")
    return folder


def prepare(sources: list[Path], dataset: Path, forget=(), keep_parsed=False, **settings) -> DatasetManifest:
    paths, config = [str(path) for path in sources], Config(data=DataConfig(**{"shards": 3, **settings}))
    return preparing.prepare(paths, dataset, config, forget=forget, keep_parsed=keep_parsed)


def append(old: Path, sources: list[Path], dataset: Path, asked: DataConfig = DataConfig(), **options) -> DatasetManifest:
    manifest = appending.append(old, [str(path) for path in sources], dataset, asked, **options)
    verify(dataset, manifest)
    assert manifest.rows_in == manifest.events + sum(manifest.dropped.values()) + sum(manifest.rejects.values())
    return manifest


def content(dataset: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.rglob("*")) if path.is_file()}


def users_of(dataset: Path) -> set[str]:
    tables = [pq.read_table(path, columns=["user_id"]) for path in sorted((dataset / "users").iterdir())]
    return set(pa.concat_tables(tables).column("user_id").to_pylist())


# --- growing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "not kept"])
@pytest.mark.parametrize("settings", [{}, LOSSY, {**LOSSY, "split": "time", "repeats": "keep"}], ids=["plain", "lossy", "time"])
def test_an_appended_dataset_is_to_the_byte_what_preparing_all_at_once_gives(tmp_path, parsed_files, settings, keep):
    settings = {"max_bad_rows": 0.2, **settings}
    old = write_csv(tmp_path / "m.csv", some_events(1), "user-3,i3,bad,9", "user-3,i3")
    new = [write_csv(tmp_path / name, some_events(seed), ",i3,3,9") for seed, name in ((2, "a.csv"), (3, "z.csv"))]
    prepare([old], tmp_path / "old", keep_parsed=keep, **settings)
    before = content(tmp_path / "old")
    parsed_files.clear()
    append(tmp_path / "old", new, tmp_path / "grown")
    assert set(parsed_files) == ({"a.csv", "z.csv"} if keep else {"a.csv", "m.csv", "z.csv"})
    prepare([old, *new], tmp_path / "fresh", keep_parsed=keep, **settings)
    assert content(tmp_path / "grown") == content(tmp_path / "fresh")
    assert content(tmp_path / "old") == before
    assert any("parsed/" in name for name in before) == keep
    parsed_files.clear()
    append(tmp_path / "grown", [write_csv(tmp_path / "b.csv", some_events(4))], tmp_path / "again")
    assert set(parsed_files) == ({"b.csv"} if keep else {"a.csv", "b.csv", "m.csv", "z.csv"})
    prepare([old, *new, tmp_path / "b.csv"], tmp_path / "fresh", keep_parsed=keep, **settings)
    assert content(tmp_path / "again") == content(tmp_path / "fresh")


def test_parquet_events_join_a_movielens_folder_and_items_nobody_describes_get_a_row(tmp_path, parsed_files):
    films = movielens(tmp_path / "ml", some_events(1))
    events = [("service user", "i3", 4.0, 10), ("user-1", "brand new film", 5.0, 99), *some_events(2)]
    logged = write_parquet(tmp_path / "events.parquet", events)
    prepare([films], tmp_path / "old", keep_parsed=True)
    parsed_files.clear()
    manifest = append(tmp_path / "old", [logged], tmp_path / "grown")
    assert parsed_files == ["events.parquet"]
    assert [(Path(file.path).name, file.part) for file in manifest.sources] == [
        *(("ratings.csv", 0), ("events.parquet", 1), ("movies.csv", 0)),
    ]
    prepare([logged, films], tmp_path / "fresh", keep_parsed=True)
    assert content(tmp_path / "grown") == content(tmp_path / "fresh")
    items = {row["item_id"]: row for row in read_items(tmp_path / "grown").to_pylist()}
    assert items["i3"]["title"] == "Film 3 (1999)" and items["brand new film"]["title"] is None
    assert users_of(tmp_path / "grown") == {user for user, *_ in events + some_events(1)}
    # The planted answer: the same events as one plain table give the same users and histories.
    prepare([write_csv(tmp_path / "one" / "all.csv", some_events(1) + events)], tmp_path / "one" / "dataset")
    told = [read_histories(folder, read_manifest(folder)) for folder in (tmp_path / "grown", tmp_path / "one" / "dataset")]
    assert told[0].rating.tolist() == told[1].rating.tolist() and told[0].time.tolist() == told[1].time.tolist()
    assert manifest.rows_in == 802


def test_a_part_may_use_other_columns_types_and_formats_and_grows_further(tmp_path):
    named = {"user_column": "viewer", "item_column": "film", "rating_column": "stars", "time_column": "seen"}
    write_csv(tmp_path / "views.csv", some_events(1))
    text = (tmp_path / "views.csv").read_text().replace(",".join(COLUMNS), "viewer,film,stars,seen")
    (tmp_path / "views.csv").write_text(text)
    numbers = [(number % 7, number, 3.0, number) for number in range(50)]
    strings = [(str(user), str(item), rating, time + 99) for user, item, rating, time in numbers]
    prepare([tmp_path / "views.csv"], tmp_path / "0", **named)
    append(tmp_path / "0", [write_parquet(tmp_path / "numbers.parquet", numbers)], tmp_path / "1")
    manifest = append(tmp_path / "1", [write_parquet(tmp_path / "strings.parquet", strings)], tmp_path / "2")
    assert [(Path(file.path).name, file.part) for file in manifest.sources] == [
        *(("numbers.parquet", 0), ("strings.parquet", 1), ("views.csv", 2)),
    ]
    assert (manifest.rows_in, manifest.rejects) == (500, {})
    assert users_of(tmp_path / "2") == {str(user) for user in range(7)} | {user for user, *_ in some_events(1)}
    bad = write_csv(tmp_path / "bad.csv", some_events(1))
    bad.write_text(bad.read_text().replace("user_id", "who"))
    with pytest.raises(DataError, match=r"bad\.csv: no column viewer"):
        append(tmp_path / "2", [bad], tmp_path / "3")


def test_a_folder_that_has_grown_counts_what_was_recorded_once(tmp_path):
    folder = tmp_path / "events"
    write_csv(folder / "monday.csv", some_events(1))
    prepare([folder], tmp_path / "old")
    with pytest.raises(ConfigError, match=r"events: holds nothing that the dataset was not made of"):
        append(tmp_path / "old", [folder], tmp_path / "grown")
    write_csv(folder / "tuesday.csv", some_events(2))
    assert append(tmp_path / "old", [folder], tmp_path / "grown").rows_in == 800
    prepare([folder], tmp_path / "fresh")
    assert content(tmp_path / "grown") == content(tmp_path / "fresh")


def test_positions_and_published_roles_come_back_from_what_is_kept(tmp_path):
    chance = random.Random(0)
    for name in ("a.csv", "b.csv"):
        lines = "".join(f"u{chance.randrange(9)},i{chance.randrange(50)},{chance.randrange(20)}\n" for _ in range(200))
        (tmp_path / name).write_text("user_id,item_id,position\n" + lines)
    prepare([tmp_path / "a.csv"], tmp_path / "old", keep_parsed=True, range_bytes=1024)
    append(tmp_path / "old", [tmp_path / "b.csv"], tmp_path / "grown")
    prepare([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "fresh", keep_parsed=True, range_bytes=1024)
    assert content(tmp_path / "grown") == content(tmp_path / "fresh")
    (tmp_path / "in").mkdir()
    for name in ("train.txt", "test.txt"):
        lines = (f"{user} " + " ".join(str(chance.randrange(50)) for _ in range(5)) for user in range(20))
        (tmp_path / "in" / name).write_text("\n".join(lines) + "\n")
    prepare([tmp_path / "in"], tmp_path / "given", keep_parsed=True)
    told = append(tmp_path / "given", [], tmp_path / "less", forget=["7"])
    anew = prepare([tmp_path / "in"], tmp_path / "anew", forget=["7"])
    assert told.split == "given" and told.user_files == anew.user_files and told.segments["test"] > 0


def test_what_is_kept_is_passed_over_when_it_is_damaged_or_its_settings_differ(tmp_path, parsed_files):
    old, new = write_csv(tmp_path / "a.csv", some_events(1)), write_csv(tmp_path / "b.csv", some_events(2))
    prepare([old], tmp_path / "old", keep_parsed=True)
    prepare([old, new], tmp_path / "fresh", keep_parsed=True)
    piece = next((tmp_path / "old" / parsed.FOLDER).rglob("*.events.*"))
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    parsed_files.clear()
    append(tmp_path / "old", [new], tmp_path / "grown")
    assert sorted(parsed_files) == ["a.csv", "b.csv"] and content(tmp_path / "grown") == content(tmp_path / "fresh")


def test_an_existing_dataset_without_what_was_parsed_is_made_again_when_that_is_asked_for(tmp_path):
    source = write_csv(tmp_path / "a.csv", some_events(1))
    prepare([source], tmp_path / "dataset")
    prepare([source], tmp_path / "dataset", keep_parsed=True)
    assert (tmp_path / "dataset" / parsed.FOLDER).is_dir()


def test_a_recorded_source_that_is_gone_or_changed_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, new = write_csv(Path("a.csv"), some_events(1)), write_csv(Path("b.csv"), some_events(2))
    films = Path("items.csv")
    films.write_text("item_id,title\ni1,Heat\n")
    prepare([source, films], tmp_path / "old")
    films.write_text("item_id,title\ni1,Cold\n")
    with pytest.raises(DataError, match=r"items\.csv: changed since .*old was made of it \(SHA-256 differs\)\. Restore it"):
        append(tmp_path / "old", [new], tmp_path / "grown")
    films.write_text("item_id,title\ni1,Heat\n")
    write_csv(source, some_events(1), "user-1,i1,3,9")
    with pytest.raises(DataError, match=r"a\.csv: changed since .*bytes, then .*recsys prepare SOURCE\.\.\. DATASET"):
        append(tmp_path / "old", [new], tmp_path / "grown")
    source.unlink()
    with pytest.raises(DataError, match=rf"(?s)a\.csv \(looked for in {tmp_path}\): .*old was made of it.*Put it back"):
        append(tmp_path / "old", [new], tmp_path / "grown")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.csv", "items.csv", "old"]


def test_what_cannot_be_appended_is_refused(tmp_path):
    source, new = write_csv(tmp_path / "a.csv", some_events(1)), write_csv(tmp_path / "b.csv", some_events(2))
    prepare([source], tmp_path / "old", core=2)
    with pytest.raises(ConfigError, match="Choose another folder"):
        append(tmp_path / "old", [new], tmp_path / "old")
    with pytest.raises(ConfigError, match="neither new sources nor --forget"):
        append(tmp_path / "old", [], tmp_path / "grown")
    with pytest.raises(ConfigError, match=r"its data settings hold"):
        append(tmp_path / "old", [new], tmp_path / "grown", DataConfig(core=5, shards=3))
    assert append(tmp_path / "old", [new], tmp_path / "grown", DataConfig(core=2, shards=3)).rows_in == 800
    timeless = tmp_path / "timeless.csv"
    timeless.write_text("user_id,item_id,rating\nann,i1,3\n")
    with pytest.raises(DataError, match=r"timeless\.csv: no times, which .*a\.csv has"):
        append(tmp_path / "old", [timeless], tmp_path / "grown")
    published = tmp_path / "published"
    published.mkdir()
    for name in ("train.txt", "test.txt"):
        (published / name).write_text("1 2 3 4 5\n2 3 4 5\n3 4 5\n")
    views = tmp_path / "views.csv"
    views.write_text("user_id,item_id\nann,i1\nann,i2\n")
    prepare([published], tmp_path / "given")
    with pytest.raises(ConfigError, match="brings a split of its own"):
        append(tmp_path / "given", [views], tmp_path / "grown")
    prepare([published], tmp_path / "free", split="leave_last_out")
    assert append(tmp_path / "free", [views], tmp_path / "grown").split == "leave_last_out"


# --- forgetting ------------------------------------------------------------------------------------------------------


def all_text(dataset: Path) -> str:
    """Every byte of a dataset as it lies there, and every value as it is read."""
    told = []
    for path in sorted(dataset.rglob("*")):
        if path.suffix == ".parquet":
            told.append(str(pq.read_table(path).to_pylist()) + str(pq.read_metadata(path).to_dict()))
        if path.suffix == ".arrow":
            with pa.ipc.open_file(str(path)) as reader:
                told.append(str(reader.read_all().to_pylist()))
        if path.is_file():
            told.append(path.read_bytes().decode("latin-1"))
    return "\n".join(told)


def test_a_forgotten_user_is_nowhere_in_the_folder_and_everybody_else_is_as_he_was(tmp_path):
    gone, bad = "ann.gone@example.org", ("ann.gone@example.org,i1,bad,7", "ann.gone@example.org,i1", "user-3,i1,bad,7")
    events = some_events(1)
    mine = [(gone, f"i{number}", 5.0, number) for number in range(25)]
    source = write_csv(tmp_path / "a.csv", mine + events, *bad)
    others = write_csv(tmp_path / "others" / "a.csv", events, *bad[:2], bad[2])
    prepare([source], tmp_path / "known", keep_parsed=True, max_bad_rows=0.1)
    assert gone in all_text(tmp_path / "known"), "the search would find him"
    manifest = prepare([source], tmp_path / "dataset", forget=[gone], keep_parsed=True, max_bad_rows=0.1)
    assert gone not in all_text(tmp_path / "dataset") and "gone@" not in all_text(tmp_path / "dataset")
    assert (manifest.dropped["forgotten"], manifest.rows_in) == (25, 428)
    assert manifest.rows_in == manifest.events + sum(manifest.dropped.values()) + sum(manifest.rejects.values())
    rejects = pq.read_table(tmp_path / "dataset" / "rejects").to_pylist()
    assert [row["raw"] for row in rejects] == [WITHHELD] * 3 and {row["position"] for row in rejects} == {427, 428, 429}
    without = prepare([others], tmp_path / "without", max_bad_rows=0.1)
    assert (manifest.user_files, manifest.items_sha256) == (without.user_files, without.items_sha256)
    assert "forgotten" not in without.dropped
    assert '"forgotten"' not in (tmp_path / "without" / "dataset.json").read_text()


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "not kept"])
def test_who_was_forgotten_stays_forgotten_when_the_data_grow(tmp_path, keep):
    old, new = write_csv(tmp_path / "a.csv", some_events(1)), write_csv(tmp_path / "b.csv", some_events(2))
    everyone = prepare([old], tmp_path / "all", keep_parsed=keep, range_bytes=1024)
    first = append(tmp_path / "all", [], tmp_path / "old", forget=["user-7"])
    second = append(tmp_path / "old", [new], tmp_path / "grown")
    third = append(tmp_path / "grown", [], tmp_path / "dataset", forget=["user-8", "user-7"])
    rows = [user for user, *_ in some_events(1) + some_events(2)]
    assert everyone.dropped.get("forgotten") is None
    assert first.dropped["forgotten"] == sum(user == "user-7" for user, *_ in some_events(1))
    assert second.dropped["forgotten"] == rows.count("user-7")
    assert third.dropped["forgotten"] == rows.count("user-7") + rows.count("user-8")
    assert users_of(tmp_path / "dataset") == set(rows) - {"user-7", "user-8"}
    assert first.forgotten.salt == third.forgotten.salt and len(third.forgotten.hashes) == 2
    assert not re.search(r"user-[78]\b", all_text(tmp_path / "dataset"))
    # At once, and with the salt that is there, it is the same to the byte.
    shutil.copytree(tmp_path / "dataset", tmp_path / "fresh")
    (tmp_path / "fresh" / "items.parquet").write_bytes(b"damaged")
    prepare([old, new], tmp_path / "fresh", forget=["user-7", "user-8"], keep_parsed=keep, range_bytes=1024)
    assert content(tmp_path / "fresh") == content(tmp_path / "dataset")


def test_the_same_command_keeps_the_dataset_and_two_datasets_have_salts_of_their_own(tmp_path):
    source = write_csv(tmp_path / "a.csv", some_events(1))
    one = prepare([source], tmp_path / "one", forget=["user-7"])
    made = (tmp_path / "one" / schema.DATASET_FILE).stat().st_ino
    assert prepare([source], tmp_path / "one", forget=["user-7"]) == one
    assert (tmp_path / "one" / schema.DATASET_FILE).stat().st_ino == made
    assert prepare([source], tmp_path / "one", forget=["user-8"]).forgotten != one.forgotten
    two = prepare([source], tmp_path / "two", forget=["user-7"])
    assert two.forgotten.hashes != one.forgotten.hashes and two.user_files == one.user_files


def test_ids_that_have_no_row_are_counted(tmp_path, caplog):
    source = write_csv(tmp_path / "a.csv", some_events(1))
    with caplog.at_level(logging.WARNING):
        prepare([source], tmp_path / "one", forget=["user-7", "User-8"])
        append(tmp_path / "one", [], tmp_path / "two", forget=["user-7", "user-9"])
    told = [record.getMessage() for record in caplog.records]
    assert told == ["1 of 2 users to forget have no row in the sources. Are their ids written as they are there?"]


def test_ids_come_from_a_file_or_a_list(tmp_path):
    (tmp_path / "ids").write_text("\ufeffann\n\nbob, the second\nann\n", "utf-8")
    assert read_ids(str(tmp_path / "ids")) == ["ann", "bob, the second"]
    assert read_ids("7, 8") == ["7", "8"] and read_ids("ann") == ["ann"]
    for told, message in ((str(tmp_path / "nothing"), "no such file"), ("ids.txt", "no such file"), (" , ", "names nobody")):
        with pytest.raises(ConfigError, match=message):
            read_ids(told)
