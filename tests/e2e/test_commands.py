"""Every command on the generated sample, and what each says when something is wrong."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bundles import flip
from tests.commands import QUICK, Recsys, lines_of_json

pytestmark = pytest.mark.ray


def test_config_prints_toml_that_it_reads_back(recsys: Recsys, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(recsys("config", "--set", "train.epochs=7").stdout)
    again = recsys("config", "--config", tmp_path / "a.toml").stdout
    assert "epochs = 7" in again and again == (tmp_path / "a.toml").read_text()


def test_an_unknown_setting_is_refused_with_the_nearest_name(recsys: Recsys) -> None:
    assert "Did you mean learning_rate?" in recsys("config", "--set", "train.learning_rat=1", rc=2).stderr


def test_inspect_counts_and_draws(recsys: Recsys, way: dict[str, Path], tmp_path: Path) -> None:
    told = recsys("inspect", way["dataset"], "--picture", tmp_path / "curves.png").stdout
    assert "600" in told and "Most watched" in told
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert lines_of_json(recsys("inspect", way["dataset"], "--json", "--picture", tmp_path / "x.png").stdout)[0]["users"] == 600


def test_a_dataset_grows_and_forgets(recsys: Recsys, way: dict[str, Path], tmp_path: Path) -> None:
    events = {"user_id": ["somebody new"] * 2, "item_id": ["1", "unheard of"], "rating": [5.0, 4.0], "timestamp": [1, 2]}
    pq.write_table(pa.table(events), tmp_path / "events.parquet")
    (tmp_path / "gone").write_text("1\n2\n")
    grown = ("--append", way["dataset"], "--forget", tmp_path / "gone", tmp_path / "events.parquet", tmp_path / "grown")
    told = recsys("prepare", *grown).stdout
    assert "599" in told and "dropped: forgotten" in told
    assert "made of what?" in recsys("prepare", tmp_path / "grown", rc=2).stderr
    assert "neither new sources" in recsys("prepare", "--append", way["dataset"], tmp_path / "x", rc=2).stderr
    assert "no dataset.json here" in recsys("prepare", "--append", tmp_path, tmp_path / "gone", tmp_path / "x", rc=3).stderr


def test_training_beats_popularity_where_popularity_was_made_to_fail(way: dict[str, Path]) -> None:
    result = json.loads((way["run"] / "result.json").read_bytes())
    assert result["test"]["ndcg@10"] > 1.5 * result["test_popularity"]["ndcg@10"]
    rows = [json.loads(line) for line in (way["run"] / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert (way["run"] / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_returns_the_finished_run(recsys: Recsys, way: dict[str, Path]) -> None:
    before = (way["run"] / "metrics.jsonl").read_bytes()
    storage = f"cluster.storage={way['root'] / 'runs'}"
    recsys("train", way["dataset"], *QUICK, "--set", storage, "--name", "first")
    assert (way["run"] / "metrics.jsonl").read_bytes() == before


def test_a_service_is_started_loaded_and_stopped_to_be_measured(recsys: Recsys, way: dict[str, Path], tmp_path: Path) -> None:
    asked = ("--rates", "20", "--seconds", "1", "--connections", "4", "--at-once", "2", "--out", tmp_path / "bench")
    told = recsys("bench", "serve", way["bundles"] / "films", *asked).stdout
    assert "answered a second" in told and "nothing to sweep" in told
    written = json.loads((tmp_path / "bench" / "bench.json").read_text())
    (load,) = written["rates"]
    assert load["rate"] == 20 and load["asked"] == 20 and load["failed"] == {} and load["p99"] > 0
    assert written["peak"]["per_second"] > 0 and written["settings"]["at_once"] == 2
    assert (tmp_path / "bench" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in (way["bundles"] / "films").iterdir() if "events" in path.name]
    away = recsys(
        "bench", "serve", way["bundles"] / "films", "--url", "http://127.0.0.1:1", "--out", tmp_path / "x", rc=5
    ).stderr
    assert "127.0.0.1:1 cannot be asked" in away and not [*(tmp_path / "x").iterdir()]
    assert "--rates 1;2" in recsys("bench", "serve", way["bundles"] / "films", "--rates", "1;2", rc=2).stderr


def test_evaluate_says_of_run_and_bundle_what_training_measured(recsys: Recsys, way: dict[str, Path]) -> None:
    trained = json.loads((way["run"] / "result.json").read_bytes())
    for what in (way["run"], way["bundles"] / "films"):
        (told,) = lines_of_json(recsys("evaluate", what, "--json").stdout)
        assert {name: told["metrics"][name]["value"] for name in trained["test"]} == pytest.approx(trained["test"], abs=1e-4)
    shown = recsys("evaluate", way["bundles"] / "films").stdout
    assert "ndcg@10" in shown and "95% interval" in shown and "full: test of the split leave_last_out" in shown
    assert "There are: full, negatives, by-user" in recsys("evaluate", way["run"], "--protocol", "nonsense", rc=2).stderr
    assert "no negatives are stored" in recsys("evaluate", way["run"], "--protocol", "negatives", rc=3).stderr
    assert "neither a run folder nor a bundle" in recsys("evaluate", way["root"] / "nowhere", rc=3).stderr
    changed = recsys("export", way["run"], way["root"] / "changed", "--set", "model.dim=3", rc=2).stderr
    assert "a run stays as it was trained" in changed and not (way["root"] / "changed").exists()


def test_recommend_prints_titles_and_json(recsys: Recsys, way: dict[str, Path]) -> None:
    bundle = way["bundles"] / "films"
    told = recsys("recommend", bundle, "--user", "1", "--user", "2", "--k", "5", "--json").stdout
    first, second = lines_of_json(told)
    assert (first["user"], second["user"]) == ("1", "2")
    assert len(first["items"]) == len(second["items"]) == 5
    alone = lines_of_json(recsys("recommend", bundle, "--user", "2", "--k", "5", "--json").stdout)[0]
    assert alone == second  # who else is asked for does not matter
    assert first["items"][0]["title"] in recsys("recommend", bundle, "--user", "1", "--k", "5").stdout


def test_a_stranger_gets_the_popular_list_marked_so(recsys: Recsys, way: dict[str, Path]) -> None:
    answer = lines_of_json(recsys("recommend", way["bundles"] / "films", "--user", "nobody", "--json").stdout)[0]
    assert answer["path"] == "popular" and answer["fallback"] and len(answer["items"]) == 10


def test_score_writes_the_lists_that_recommend_prints(recsys: Recsys, way: dict[str, Path], tmp_path: Path) -> None:
    bundle = way["bundles"] / "films"
    assert "600 users" in recsys("score", bundle, "--out", tmp_path / "lists", "--k", "5").stdout
    lists = {row["user_id"]: row["item_id"] for row in pq.read_table(tmp_path / "lists").to_pylist()}
    assert len(lists) == 600
    for answer in lines_of_json(recsys("recommend", bundle, "--user", "1", "--user", "2", "--k", "5", "--json").stdout):
        assert lists[answer["user"]] == [item["item_id"] for item in answer["items"]]


def test_bundles_are_listed_shown_verified_and_rolled_back(recsys: Recsys, way: dict[str, Path], tmp_path: Path) -> None:
    for _ in range(2):
        recsys("export", way["run"], tmp_path, "--name", "films")
    versions = sorted(p.name for p in (tmp_path / "films").iterdir() if p.is_dir())
    assert len(versions) == 2
    recsys("bundle", "verify", tmp_path / "films")
    assert json.loads(recsys("bundle", "show", tmp_path / "films").stdout)["version"] == versions[1]
    recsys("bundle", "rollback", tmp_path / "films")
    assert json.loads(recsys("bundle", "show", tmp_path / "films").stdout)["version"] == versions[0]
    recsys("bundle", "promote", tmp_path / "films", versions[1])
    assert json.loads(recsys("bundle", "show", tmp_path / "films").stdout)["version"] == versions[1]
    assert all(version in recsys("bundle", "list", tmp_path).stdout for version in versions)
    flip(tmp_path / "films" / versions[1] / "item_vectors.npy")
    assert "item_vectors.npy" in recsys("bundle", "verify", tmp_path / "films", rc=4).stderr


def test_refit_learns_from_every_event(recsys: Recsys, way: dict[str, Path], tmp_path: Path) -> None:
    recsys("export", way["run"], tmp_path, "--name", "films", "--refit")
    manifest = json.loads(recsys("bundle", "show", tmp_path / "films").stdout)
    assert manifest["vectors_from"] == ["train", "valid", "test"]


def test_what_is_not_there_is_said_with_the_right_exit_code(recsys: Recsys, tmp_path: Path) -> None:
    assert "nowhere" in recsys("prepare", tmp_path / "nowhere", tmp_path / "d", rc=3).stderr
    assert "recsys prepare" in recsys("train", tmp_path, rc=3).stderr
    (tmp_path / "raw.zip").touch()
    assert "recsys prepare" in recsys("train", tmp_path / "raw.zip", rc=3).stderr
    recsys("export", tmp_path, tmp_path / "b", rc=3)
    recsys("bundle", "list", tmp_path / "nowhere", rc=4)
    recsys("recommend", tmp_path, "--user", "1", rc=4)
    recsys("nonsense", rc=2)
