"""Prepare on a real Ray: the same as in one process, errors as they were, remote sources, real data."""

import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from cluster.append import append
from cluster.prepare import prepare
from cluster.session import session
from recsys.config import ClusterConfig, Config, DataConfig
from recsys.data.dataset import verify
from recsys.data.summary import summarise
from recsys.errors import DataError, RecsysError

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """An S3 of our own; its address is in the environment before Ray's workers take that over."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        yield settings["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(store: str) -> Iterator[None]:
    with session(ClusterConfig(num_workers=1, readers=1, object_store_bytes=200 << 20)):
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "shop"
    folder.mkdir()
    chance = random.Random(0)
    for part in range(3):
        lines = (
            f"u{chance.randrange(300)},i{chance.randrange(90)},{chance.randint(1, 5)},{chance.randrange(10**9)}\n"
            for _ in range(4000)
        )
        (folder / f"part-{part}.csv").write_text("user_id,item_id,rating,timestamp\n" + "".join(lines))
    (folder / "items.csv").write_text(
        "item_id,title\n" + "".join(f"i{item},Film {item} ({1990 + item % 9})\n" for item in range(95))
    )
    return folder


SMALL = {"range_bytes": 16 << 10}


def content(dataset: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.rglob("*")) if path.is_file()}


def test_twice_gives_the_same_bytes_and_progress_is_told(source, tmp_path):
    told, lock = [], threading.Lock()  # a lock cannot be sent to workers, nor can a real progress bar

    def tell(*row):
        with lock:
            told.append(row)

    first = prepare([str(source)], tmp_path / "one", Config(data=DataConfig(**SMALL)), progress=tell)
    second = prepare([str(source)], tmp_path / "two", Config(data=DataConfig(**SMALL)))
    assert first == second and content(tmp_path / "one") == content(tmp_path / "two")
    verify(tmp_path / "one", first)
    assert (first.rows_in, first.users, first.items) == (12_000, 300, 95)
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["scan", "parse", "gather", "write"]
    assert all((stage, total, total) in told for stage, _, total in told)
    summary = summarise(tmp_path / "one")
    assert summary.events == first.events and summary.most_watched[0].title.startswith("Film ")


def test_a_dataset_grows_by_mixed_formats_and_forgets_through_ray(source, tmp_path):
    told = []
    logged = tmp_path / "events.parquet"
    pq.write_table(pa.table({"user_id": ["u1", "new"], "item_id": ["i1", "i95"], "rating": [5.0, 3.0], "time": [1, 2]}), logged)
    prepare([str(source)], tmp_path / "old", Config(data=DataConfig(**SMALL)), keep_parsed=True)
    grown = append(
        tmp_path / "old", [str(logged)], tmp_path / "new", DataConfig(), lambda *row: told.append(row), forget=["u2"]
    )
    verify(tmp_path / "new", grown)
    last = {stage: (done, total) for stage, done, total in told}
    assert last["scan"] == (4, 4) and last["parse"] == (1, 1) and last["read back"][0] == last["read back"][1] > 3
    assert (grown.rows_in, grown.users, grown.items) == (12_002, 300, 96)
    assert grown.rows_in == grown.events + sum(grown.dropped.values()) and grown.dropped["forgotten"] > 10
    shutil.copytree(tmp_path / "new", tmp_path / "fresh")
    (tmp_path / "fresh" / "items.parquet").unlink()
    shutil.rmtree(tmp_path / "old" / "parsed")
    anew = append(tmp_path / "old", [str(logged)], tmp_path / "fresh", DataConfig(), forget=["u2"], keep_parsed=True)
    assert anew == grown
    assert content(tmp_path / "fresh") == content(tmp_path / "new")


@pytest.mark.parametrize("split", ["time", "users", "items"])
def test_every_split_with_core_through_ray(source, tmp_path, split):
    manifest = prepare([str(source)], tmp_path / "dataset", Config(data=DataConfig(split=split, core=5, **SMALL)))
    verify(tmp_path / "dataset", manifest)
    assert manifest.rows_in == manifest.events + sum(manifest.dropped.values())
    assert all(manifest.segments[name] > 0 for name in ("train", "valid", "test"))


def test_published_negatives_are_kept_with_the_published_test_only(tmp_path):
    raw = tmp_path / "ncf"
    raw.mkdir()
    (raw / "a.train.pairs").write_text("0\t1\n0\t2\n1\t4\n1\t2\n2\t1\n2\t4\n")
    (raw / "a.test.rating").write_text("0\t3\n1\t1\n2\t2\n")
    (raw / "a.test.negative").write_text("(0,3)\t4\t9\n(1,1)\t3\n(2,2)\t3\n")
    manifest = prepare([str(raw)], tmp_path / "one", Config())
    ids = pq.read_table(tmp_path / "one" / "items.parquet").column("item_id").to_pylist()
    users = pq.read_table(tmp_path / "one" / "users").select(["user", "user_id"]).to_pylist()
    found = {row["user"]: [ids[item] for item in row["item"]] for row in read_rows(tmp_path / "one" / "negatives.parquet")}
    assert {row["user_id"]: found[row["user"]] for row in users} == {"0": ["4"], "1": ["3"], "2": ["3"]}  # nobody knows 9
    assert [Path(file.path).name for file in manifest.sources] == ["a.train.pairs", "a.test.rating", "a.test.negative"]
    verify(tmp_path / "one", manifest)
    grown = append(tmp_path / "one", [], tmp_path / "two", DataConfig(), forget=["1"])
    assert grown.negatives is not None and grown.negatives.rows == 2
    other = prepare([str(raw)], tmp_path / "three", Config(data=DataConfig(split="leave_last_out")))
    assert other.negatives is None and not (tmp_path / "three" / "negatives.parquet").exists()


def read_rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_a_fault_inside_a_task_is_said_as_it_is(source, tmp_path):
    (tmp_path / "shop").mkdir()
    for path in source.iterdir():
        (tmp_path / "shop" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "shop" / "part-3.csv").write_text("user_id,item_id,rating,timestamp\n")
    with pytest.raises(DataError, match=r"part-3\.csv: no rows in it"):
        prepare([str(tmp_path / "shop")], tmp_path / "dataset", Config())
    assert not (tmp_path / "dataset").exists()


def test_sources_on_s3_give_what_local_ones_give(source, tmp_path, store):
    client = boto3.client("s3", endpoint_url=store)
    client.create_bucket(Bucket="films")
    for path in source.iterdir():
        client.upload_file(str(path), "films", f"raw/shop/{path.name}")
    local = prepare([str(source)], tmp_path / "local", Config(data=DataConfig(**SMALL)))
    remote = prepare(["s3://films/raw/shop"], tmp_path / "remote", Config(data=DataConfig(**SMALL)))
    assert next(file.path for file in remote.sources) == "s3://films/raw/shop/part-0.csv"
    assert remote.fingerprint == local.fingerprint
    one = prepare(["s3://films/raw/shop/part-0.csv"], tmp_path / "one", Config(data=DataConfig(**SMALL)))
    assert one.rows_in == 4000
    with pytest.raises(DataError, match=r"s3://films/nothing: no such file or folder"):
        prepare(["s3://films/nothing"], tmp_path / "nothing", Config())


def test_d14_a_store_that_does_not_answer_is_a_runtime_error(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RecsysError, match="the store did not answer") as failed:
        prepare(["s3://films/raw"], tmp_path / "dataset", Config())
    assert failed.value.exit_code == 5


# --- real data -------------------------------------------------------------------------------------------------------

KNOWN = {
    "movietweetings-100k.zip": (100_000, 16_554, 10_506),
    "ml-latest-small.zip": (100_004, 671, 9_125),
    "ml-100k.zip": (100_000, 943, 1_682),
    "ml-1m.zip": (1_000_209, 6_040, 3_883),
    "ml-1m.zip/ml-1m/ml-1m.txt": (999_611, 6_040, 3_416),
    "gowalla-lightgcn.zip": (1_027_370, 29_858, 40_981),
    "ncf-ml-1m.zip": (1_000_209, 6_040, 3_706),
}


@pytest.mark.data
@pytest.mark.parametrize("name", KNOWN)
def test_real_data_has_the_counts_its_publishers_tell(name, tmp_path):
    if "RECSYS_DATA" not in os.environ:
        pytest.skip("RECSYS_DATA is not set: no real ratings to try this on")
    manifest = prepare([str(Path(os.environ["RECSYS_DATA"]) / name)], tmp_path / "dataset", Config())
    assert (manifest.rows_in, manifest.users, manifest.items) == KNOWN[name]
    assert manifest.events == manifest.rows_in - manifest.dropped["repeats"] and not manifest.rejects
    if "gowalla" in name:
        assert (manifest.segments["train"] + manifest.segments["valid"], manifest.segments["test"]) == (810_128, 217_242)
    if "ncf" in name:
        assert manifest.segments["test"] == 6_040
