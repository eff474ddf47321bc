"""The whole of prepare, its steps mapped in this process instead of by Ray: what comes out for what went in."""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cluster.prepare as preparing
from cluster import prepare_shards
from recsys.config import Config, DataConfig
from recsys.data import schema
from recsys.data.dataset import DatasetManifest, read_histories, read_items, read_manifest, verify
from recsys.data.hashing import shard_of
from recsys.data.histories import Histories
from recsys.errors import ConfigError, DataError, RecsysError

pytestmark = pytest.mark.usefixtures("in_process")

Event = tuple[str, str, float, int]


def write_csv(path: Path, events: Iterable[Event]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{user},{item},{rating},{time}\n" for user, item, rating, time in events)
    path.write_text("user_id,item_id,rating,timestamp\n" + "".join(lines))
    return path


def prepare(source: Path | list[Path], dataset: Path, **settings) -> DatasetManifest:
    paths = [str(path) for path in (source if isinstance(source, list) else [source])]
    return preparing.prepare(paths, dataset, Config(data=DataConfig(**settings)))


def content(dataset: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.rglob("*")) if path.is_file()}


def segments_of(dataset: Path) -> dict[str, tuple[list[str], list[str], list[str]]]:
    """Item ids of each user's three segments."""
    manifest = read_manifest(dataset)
    verify(dataset, manifest)
    items = read_items(dataset).column(schema.ITEM_ID).to_pylist()
    found = {}
    for file in manifest.user_files:
        for row in pq.read_table(dataset / schema.USERS_FOLDER / file.name).to_pylist():
            ids = [items[item] for item in row["item"]]
            found[row["user_id"]] = (
                ids[: row["valid_from"]],
                ids[row["valid_from"] : row["test_from"]],
                ids[row["test_from"] :],
            )
    return found


def some_events(seed: int = 0, users: int = 60, items: int = 40, events: int = 1500) -> list[Event]:
    """Random events, all at different times, some of them repeats."""
    chance = random.Random(seed)
    times = chance.sample(range(10**9), events)
    return [(f"u{chance.randrange(users)}", f"i{chance.randrange(items)}", chance.randint(1, 5), time) for time in times]


# --- the folder ------------------------------------------------------------------------------------------------------


def test_the_folder_is_what_the_contract_says(tmp_path):
    events = some_events()
    manifest = prepare(write_csv(tmp_path / "a.csv", events), tmp_path / "dataset", row_group_events=20, shards=5)
    assert manifest == read_manifest(tmp_path / "dataset")
    assert sorted(content(tmp_path / "dataset")) == [
        "dataset.json",
        "items.parquet",
        *(f"users/all-{shard:05d}.parquet" for shard in range(5)),
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    next_user = 0
    for file in manifest.user_files:
        parquet = pq.ParquetFile(tmp_path / "dataset" / "users" / file.name)
        assert parquet.schema_arrow.equals(schema.USERS)
        table = parquet.read()
        ids = table.column("user_id").to_pylist()
        assert ids == sorted(ids) and set(shard_of(ids, 5)) == {file.shard}
        assert table.column("user").to_pylist() == list(range(next_user, next_user + file.rows))
        assert file.first_user == next_user
        groups = [Histories.from_arrow(parquet.read_row_group(group)) for group in range(parquet.num_row_groups)]
        assert [(len(group), len(group.item), int(group.valid_from.sum())) for group in groups] == [
            (group.rows, group.events, group.train_events) for group in file.row_groups
        ]
        assert len(groups) > 3 and max(len(group.item) for group in groups) < 60
        next_user += file.rows
    histories = read_histories(tmp_path / "dataset", manifest)
    items = read_items(tmp_path / "dataset")
    assert items.column("item_id").to_pylist() == sorted({item for _, item, _, _ in events})
    trained = np.bincount(histories.segment("train").item, minlength=len(items))
    assert items.column("count").to_pylist() == trained.tolist() and items.column_names[-1] == "count"
    assert manifest.mean_rating == pytest.approx(histories.segment("train").rating.mean(), rel=1e-6)
    assert (manifest.first_time, manifest.last_time) == (histories.time.min(), histories.time.max())
    assert manifest.segments == {name: len(histories.segment(name).item) for name in schema.SEGMENTS}


def test_histories_are_in_time_order_and_ties_keep_the_order_of_the_source(tmp_path):
    events = [("u", item, 1, time) for item, time in [("a", 5), ("b", 1), ("c", 5), ("d", 5), ("e", 2), ("f", 5)]]
    prepare(write_csv(tmp_path / "a.csv", events), tmp_path / "dataset", range_bytes=1024)
    assert segments_of(tmp_path / "dataset") == {"u": (["b", "e", "a", "c"], ["d"], ["f"])}


def test_the_same_source_and_config_give_the_same_bytes_whatever_the_ranges(tmp_path):
    source = write_csv(tmp_path / "a.csv", some_events())
    for name in ("one", "two"):
        prepare(source, tmp_path / name, range_bytes=1024)
    prepare(source, tmp_path / "whole")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    one, whole = content(tmp_path / "one"), content(tmp_path / "whole")
    assert {name for name in one if one[name] != whole[name]} == {"dataset.json"}  # it tells range_bytes


def test_d12_shuffled_shards_in_another_order_give_the_same_users(tmp_path):
    events = some_events()
    paths = [write_csv(tmp_path / "ordered" / f"{part}.csv", events[part::3]) for part in range(3)]
    shuffled = random.Random(1).sample(events, len(events))
    others = [write_csv(tmp_path / "shuffled" / f"{part}.csv", shuffled[part::3]) for part in range(3)]
    first, again = prepare(paths, tmp_path / "one"), prepare(paths[::-1], tmp_path / "two")
    other = prepare(others, tmp_path / "three")
    assert first.fingerprint == again.fingerprint and content(tmp_path / "one") == content(tmp_path / "two")
    assert first.user_files == other.user_files and first.items_sha256 == other.items_sha256
    assert first.dropped["repeats"] == other.dropped["repeats"] > 0


# --- nothing is lost (invariant 5) -----------------------------------------------------------------------------------

fields = st.tuples(
    st.sampled_from(["ann", "bob", "ćwirek", ""]),
    st.sampled_from(["x", "y", "z", ""]),
    st.sampled_from(["1", "4.5", "5", "nan", "x"]),
)


@settings(max_examples=30)
@given(
    lines=st.lists(fields, min_size=1, max_size=40),
    options=st.fixed_dictionaries(
        {
            "repeats": st.sampled_from(["last", "first", "keep"]),
            "split": st.sampled_from(["time", "leave_last_out", "users", "items"]),
            "core": st.integers(0, 2),
            "min_rating": st.sampled_from([None, 2.0]),
            "sample": st.sampled_from([1.0, 0.5]),
            "shards": st.sampled_from([1, 3]),
        }
    ),
)
def test_every_row_is_an_event_a_reject_or_dropped_with_a_reason(tmp_path_factory, lines, options):
    folder = tmp_path_factory.mktemp("rows")
    text = "".join(f"{user},{item},{rating},{time}\n" for time, (user, item, rating) in enumerate(lines))
    (folder / "a.csv").write_text("user_id,item_id,rating,timestamp\n" + text)
    try:
        manifest = prepare(folder / "a.csv", folder / "dataset", max_bad_rows=1.0, **options)
    except DataError as error:
        assert "no events are left" in str(error) or "data.core" in str(error)
        return
    good = [line for line in lines if line[0] and line[1] and line[2] in ("1", "4.5", "5")]
    assert manifest.rows_in == len(lines)
    assert manifest.rows_in == manifest.events + sum(manifest.dropped.values()) + sum(manifest.rejects.values())
    assert sum(manifest.rejects.values()) == len(lines) - len(good)
    histories = read_histories(folder / "dataset", manifest)
    assert len(histories.item) == manifest.events == sum(manifest.segments.values())
    written = [row for path in sorted((folder / "dataset" / "rejects").glob("*")) for row in pq.read_table(path).to_pylist()]
    assert Counter(row["reason"] for row in written) == manifest.rejects
    all_lines = text.split("\n")
    assert all(all_lines[row["position"] - 2] == row["raw"] for row in written)


def test_d10_few_bad_rows_are_kept_apart_and_many_stop_the_run(tmp_path):
    good = "".join(f"u{i % 50},i{i % 7},3,{i}\n" for i in range(1000))
    source = tmp_path / "ratings.csv"
    source.write_text("user_id,item_id,rating,timestamp\n" + good + "u1,i1,4.x,9\n" + "u1,,3,1\n" * 4)
    manifest = prepare(source, tmp_path / "dataset")
    assert manifest.rejects == {"no item id": 4, "rating is not a number": 1}
    rejects = pq.read_table(tmp_path / "dataset" / "rejects" / "part-00000.parquet").to_pylist()
    assert rejects[0] == {"file": str(source), "position": 1002, "reason": "rating is not a number", "raw": "u1,i1,4.x,9"}

    source.write_text(source.read_text() + "u1,i1,nan,1\n" * 10)
    (tmp_path / "dataset.rejects").mkdir()
    (tmp_path / "dataset.rejects" / "mine.txt").write_text("mine")
    with pytest.raises(DataError) as refused:
        prepare(source, tmp_path / "dataset")
    message = str(refused.value)
    assert f"{source}, line 1002: rating is not a number" in message and "u1,i1,4.x,9" in message
    assert "15 of 1,015 rows were bad (1.48%, limit 1.00%)" in message and "data.max_bad_rows=0.02" in message
    kept = pq.read_table(tmp_path / "dataset.rejects" / "part-00000.parquet").to_pylist()
    assert (tmp_path / "dataset.rejects" / "mine.txt").read_text() == "mine"
    assert len(kept) == 15 and str(tmp_path / "dataset.rejects") in message
    assert read_manifest(tmp_path / "dataset") == manifest, "the good dataset stays"
    assert prepare(source, tmp_path / "dataset", max_bad_rows=0.02).rejects["rating is not finite"] == 10
    source.write_text(source.read_text() + "u1,i1,nan,1\n" * 500)
    with pytest.raises(DataError, match="so many are no accident: mend the source"):
        prepare(source, tmp_path / "dataset")


def test_d4_a_source_of_which_nothing_is_left_is_refused(tmp_path):
    source = write_csv(tmp_path / "a.csv", some_events())
    with pytest.raises(DataError, match=r"a\.csv: no events are left of 1,500 rows \(1,500 dropped by rating\)"):
        prepare(source, tmp_path / "dataset", min_rating=6.0)
    with pytest.raises(DataError, match=r"data\.core = 1000"):
        prepare(source, tmp_path / "dataset", core=1000)
    bad = write_csv(tmp_path / "b.csv", [("", "", 1, 1)] * 3)
    with pytest.raises(DataError, match=r"b\.csv.*no user id"):
        prepare(bad, tmp_path / "dataset")
    with pytest.raises(DataError, match=r"of 3 rows \(3 no user id\)"):
        prepare(bad, tmp_path / "dataset", max_bad_rows=1.0)
    assert not (tmp_path / "dataset").exists()


def test_a_catalogue_of_other_ids_is_told(tmp_path, caplog):
    source = write_csv(tmp_path / "in" / "events.csv", some_events())
    for first, told in (("i1", 0), ("film 1", 1)):
        caplog.clear()
        (tmp_path / "in" / "items.csv").write_text(f"item_id,title\n{first},Heat\n")
        prepare(source.parent, tmp_path / "dataset")
        assert sum("items.csv: describes none of the items" in record.getMessage() for record in caplog.records) == told


# --- filters ---------------------------------------------------------------------------------------------------------


def test_min_rating_and_sample_keep_whole_users(tmp_path):
    events = some_events()
    source = write_csv(tmp_path / "a.csv", events)
    liked = prepare(source, tmp_path / "liked", min_rating=4)
    assert liked.dropped["rating"] == sum(rating < 4 for _, _, rating, _ in events)
    half = prepare(source, tmp_path / "half", sample=0.5)
    whole = prepare(source, tmp_path / "whole")
    assert 0.2 * whole.users < half.users < 0.8 * whole.users
    everything, sampled = segments_of(tmp_path / "whole"), segments_of(tmp_path / "half")
    assert sampled == {user: everything[user] for user in sampled}


@pytest.mark.parametrize(("repeats", "core", "share"), [("last", 10, 563 / 1200), ("keep", 14, 618 / 1200)])
def test_core_is_the_largest_set_in_which_everybody_has_enough(tmp_path, repeats, core, share):
    chance = random.Random(0)
    skewed = [[int(50 * chance.random() ** 2) for _ in range(2)] for _ in range(1200)]
    events = [(f"u{user}", f"i{item}", 1, time) for time, (user, item) in enumerate(skewed)]
    manifest = prepare(write_csv(tmp_path / "a.csv", events), tmp_path / "dataset", core=core, repeats=repeats)
    left = events if repeats == "keep" else list({(user, item): (user, item, 1, 1) for user, item, _, _ in events}.values())
    while True:
        users, items = Counter(event[0] for event in left), Counter(event[1] for event in left)
        fewer = [event for event in left if users[event[0]] >= core and items[event[1]] >= core]
        if len(fewer) == len(left):
            break
        left = fewer
    assert len(left) == share * len(events)
    assert (manifest.events, manifest.users, manifest.items) == (len(left), len(users), len(items))
    assert read_items(tmp_path / "dataset").column("item_id").to_pylist() == sorted(items)
    assert set(segments_of(tmp_path / "dataset")) == set(users)


# --- splits ----------------------------------------------------------------------------------------------------------


def test_time_cuts_hold_out_the_shares_asked_for(tmp_path):
    source = write_csv(tmp_path / "a.csv", some_events(items=10**6))
    manifest = prepare(source, tmp_path / "dataset", split="time", valid_fraction=0.2, test_fraction=0.1)
    assert manifest.segments == {"train": 1050, "valid": 300, "test": 150}
    histories = read_histories(tmp_path / "dataset", manifest)
    parts = [histories.segment(name).time for name in schema.SEGMENTS]
    assert parts[0].max() < parts[1].min() <= parts[1].max() < parts[2].min()
    chosen = prepare(source, tmp_path / "chosen", split="time", valid_time=int(parts[1].min()), test_time=int(parts[2].min()))
    assert chosen.user_files == manifest.user_files


def test_time_cuts_are_found_to_the_second_within_one_hour(tmp_path):
    events = [(f"u{time % 9}", f"i{time}", 1, time) for time in range(100)]
    manifest = prepare(write_csv(tmp_path / "a.csv", events), tmp_path / "dataset", split="time")
    assert manifest.segments == {"train": 80, "valid": 10, "test": 10}


def test_users_are_held_out_in_files_of_their_own(tmp_path):
    events = some_events(users=200, events=4000)
    manifest = prepare(write_csv(tmp_path / "a.csv", events), tmp_path / "dataset", split="users", shards=4, shown_fraction=0.5)
    assert Counter(file.role for file in manifest.user_files) == {"train": 4, "valid": 4, "test": 4}
    assert [file.train_events > 0 for file in manifest.user_files] == [file.role == "train" for file in manifest.user_files]
    histories = read_histories(tmp_path / "dataset", manifest)
    assert sorted(histories.user) == list(range(manifest.users))
    for role, segment in (("valid", "valid"), ("test", "test")):
        held = read_histories(tmp_path / "dataset", manifest, role)
        assert 10 <= len(held) <= 35
        assert (held.segment(segment).lengths == held.lengths - np.floor(held.lengths / 2)).all()
        assert len(held.segment(segment).item) == manifest.segments[segment]
    trained = read_histories(tmp_path / "dataset", manifest, "train")
    assert manifest.segments["train"] == len(trained.item) == len(trained.segment("train").item)
    counts = np.bincount(trained.item, minlength=manifest.items)
    assert read_items(tmp_path / "dataset").column("count").to_pylist() == counts.tolist()
    assert sum(manifest.segments.values()) == manifest.events


def test_cold_items_have_no_train_event(tmp_path):
    manifest = prepare(write_csv(tmp_path / "a.csv", some_events()), tmp_path / "dataset", split="items", test_fraction=0.2)
    histories = read_histories(tmp_path / "dataset", manifest)
    train, valid, test = (set(histories.segment(name).item.tolist()) for name in schema.SEGMENTS)
    assert len(train | valid | test) == len(train) + len(valid) + len(test)
    assert valid and test


def lightgcn(folder: Path, train: str, test: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text(train)
    (folder / "test.txt").write_text(test)
    return folder


def test_given_splits_stand_and_validation_is_carved_by_a_permutation_of_no_order(tmp_path):
    train = "".join(f"{user} " + " ".join(f"{item}" for item in range(20)) + "\n" for user in range(30))
    source = lightgcn(tmp_path / "in", train, "".join(f"{user} 98 99\n" for user in range(30)))
    manifest = prepare(source, tmp_path / "dataset")
    assert (manifest.split, manifest.has_time, manifest.has_rating) == ("given", False, False)
    found = segments_of(tmp_path / "dataset")
    assert all(len(valid) == 2 and sorted(test) == ["98", "99"] for _, valid, test in found.values())
    assert len({tuple(valid) for _, valid, _ in found.values()}) > 20, "each user's own permutation"
    prepare(source, tmp_path / "other", seed=1)
    assert segments_of(tmp_path / "other") != found
    prepare(source, tmp_path / "whole", split="leave_last_out")
    assert all(len(valid) == len(test) == 1 for _, valid, test in segments_of(tmp_path / "whole").values())


# --- no peeking (invariant 9) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", ["last", "first", "keep"])
def test_other_events_after_the_test_begins_leave_what_is_before_as_it_was(tmp_path, repeats):
    events, chance = some_events(), random.Random(5)
    border = sorted(event[3] for event in events)[-300]
    changed = [event if event[3] < border else (event[0], f"i{chance.randrange(40)}", 1, event[3]) for event in events]
    chosen = {"split": "time", "repeats": repeats, "valid_time": border - 10**8, "test_time": border}
    before, after = (prepared_segments(tmp_path / name, each, **chosen) for name, each in (("one", events), ("two", changed)))
    assert {user: parts[:2] for user, parts in before.items()} == {user: parts[:2] for user, parts in after.items()}
    assert before != after


@pytest.mark.parametrize("repeats", ["last", "first", "keep"])
def test_another_last_event_leaves_what_is_before_as_it_was(tmp_path, repeats):
    events = sorted(some_events(), key=lambda event: event[3])
    last = {user: (item, time) for user, item, _, time in events}
    watched = Counter((user, item) for user, item, _, _ in events)
    tested = {user: time for user, (item, time) in last.items() if watched[user, item] == 1}
    new = {user: next(f"i{n}" for n in range(99) if not watched[user, f"i{n}"]) for user in tested}
    changed = [(user, new[user] if tested.get(user) == time else item, 1, time) for user, item, _, time in events]
    all_items = [("filler", f"i{number}", 1, number) for number in range(99)]
    both = (("one", events + all_items), ("two", changed + all_items))
    before, after = (prepared_segments(tmp_path / name, each, repeats=repeats) for name, each in both)
    assert len(tested) > 10
    assert {user: parts[:2] for user, parts in before.items()} == {user: parts[:2] for user, parts in after.items()}
    assert {user for user in before if before[user][2] != after[user][2]} == set(tested)


def test_other_published_test_events_leave_train_as_it_was(tmp_path):
    train = "".join(f"{user} " + " ".join(f"{(user * 7 + item * 3) % 50}" for item in range(12)) + "\n" for user in range(30))
    tests = ["".join(f"{user} {user % 9 + 50 + shift} {user % 50}\n" for user in range(30)) for shift in (0, 1)]
    everything = "filler " + " ".join(map(str, range(70))) + "\n"
    found = []
    for number, test in enumerate(tests):
        prepare(lightgcn(tmp_path / f"in{number}", train + everything, test), tmp_path / f"out{number}")
        found.append(segments_of(tmp_path / f"out{number}"))
    assert {user: parts[:2] for user, parts in found[0].items()} == {user: parts[:2] for user, parts in found[1].items()}
    assert found[0] != found[1]


def prepared_segments(folder: Path, events: list[Event], **settings) -> dict[str, tuple[list[str], list[str], list[str]]]:
    prepare(write_csv(folder / "a.csv", events), folder / "dataset", **settings)
    return segments_of(folder / "dataset")


# --- the destination -------------------------------------------------------------------------------------------------


def test_other_files_are_never_overwritten(tmp_path):
    source = write_csv(tmp_path / "a.csv", some_events())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    (tmp_path / "file").write_text("x")
    for name in ("photos", "file"):
        with pytest.raises(ConfigError, match=name):
            prepare(source, tmp_path / name)
    with pytest.raises(ConfigError, match="local or mounted"):
        preparing.prepare([str(source)], Path("s3://bucket/dataset"), Config())
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "cat"


def test_an_existing_dataset_is_kept_if_it_is_the_same_and_replaced_if_not(tmp_path):
    source, dataset = write_csv(tmp_path / "a.csv", some_events()), tmp_path / "dataset"
    first = prepare(source, dataset)
    made = (dataset / "dataset.json").stat().st_ino
    assert prepare(source, dataset) == first and (dataset / "dataset.json").stat().st_ino == made
    (dataset / "items.parquet").write_bytes(b"damaged")
    assert prepare(source, dataset) == first and (dataset / "dataset.json").stat().st_ino != made
    assert prepare(source, dataset, core=5) != first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_run_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    source = write_csv(tmp_path / "a.csv", some_events())

    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(preparing, "write_items", full)
    with pytest.raises(OSError, match="No space"):
        prepare(source, tmp_path / "dataset")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_what_a_killed_run_left_is_removed_and_a_run_at_work_is_left_alone(tmp_path):
    source, dataset = write_csv(tmp_path / "a.csv", some_events()), tmp_path / "data[1]"
    code = "import pathlib, sys, time; from recsys.data.folder import building\n"
    code += "with building(pathlib.Path(sys.argv[1])) as folder: print(folder, flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code, str(dataset)], stdout=subprocess.PIPE, text=True) as run:
        left = Path(run.stdout.readline().strip())
        prepare(source, dataset)
        assert left.is_dir() and run.poll() is None, "its builder is alive"
        run.kill()
    assert left.is_dir()
    prepare(source, dataset)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "data[1]"]


def test_a_dataset_made_inside_its_source_is_no_source_the_next_time(tmp_path):
    source = write_csv(tmp_path / "a.csv", some_events())
    bad = write_csv(tmp_path / "b.csv", [("", "", 1, 1)] * 99)
    with pytest.raises(DataError, match="limit"):
        prepare(tmp_path, tmp_path / "dataset")
    bad.unlink()
    assert (tmp_path / "dataset.rejects").is_dir()
    first = prepare(tmp_path, tmp_path / "dataset")
    assert [file.path for file in first.sources] == [str(source)]
    assert prepare(tmp_path, tmp_path / "dataset", core=2).sources == first.sources


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    source = write_csv(tmp_path / "a.csv", some_events())
    with pytest.raises(ConfigError, match=r"a\.csv/dataset: cannot be written here"):
        prepare(source, source / "dataset")


def test_events_lost_between_the_steps_are_noticed(tmp_path, monkeypatch):
    def forgetful(stage, ranges, config, ordered, shard):
        return 1, 1

    monkeypatch.setattr(prepare_shards, "_gather", forgetful)
    with pytest.raises(RecsysError, match=r"1,500 events were staged but 20 read back"):
        prepare(write_csv(tmp_path / "a.csv", some_events()), tmp_path / "dataset")


def test_events_lost_after_gathering_are_not_told_as_dropped(tmp_path, monkeypatch):
    whole = prepare_shards.Shards.read

    def short(shards, number):
        shard = whole(shards, number)
        return shard._replace(events=shard.events.take(np.arange(len(shard.events) - 1)))

    monkeypatch.setattr(prepare_shards.Shards, "read", short)
    with pytest.raises(RecsysError, match=r"4 events were lost between gathering and writing"):
        prepare(write_csv(tmp_path / "a.csv", some_events()), tmp_path / "dataset", shards=4, repeats="keep")


def test_the_manifest_tells_what_made_the_dataset(tmp_path):
    source = write_csv(tmp_path / "a.csv", some_events())
    prepare(source, tmp_path / "dataset", core=2)
    told = json.loads((tmp_path / "dataset" / "dataset.json").read_text())
    assert told["sources"][0]["path"] == str(source) and told["sources"][0]["size"] == source.stat().st_size
    assert Config.model_validate(told["config"]).data == DataConfig(core=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "given"}, "brings no split"),
        ({"split": "users", "valid_fraction": 0.6, "test_fraction": 0.5}, "must leave something"),
        ({"split": "time", "valid_time": 10, "test_time": 5}, "after the test begins"),
    ],
)
def test_splits_that_cannot_be_made_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        prepare(write_csv(tmp_path / "a.csv", some_events()), tmp_path / "dataset", **settings)
    timeless = tmp_path / "b.csv"
    timeless.write_text("user,item\na,b\n")
    with pytest.raises(ConfigError, match="has no times"):
        prepare(timeless, tmp_path / "dataset", split="time")
