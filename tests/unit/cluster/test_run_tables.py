"""Runs in every state are listed, shown and compared: planted folders, and what must be said of each."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import cli_runs, run_reading, run_tables, runs
from recsys.config import load_config
from recsys.errors import ConfigError, DataError

SETTINGS = {"slow": ("model.dim=16",), "fast": ("model.dim=32", "train.learning_rate=0.5")}


def epoch(number, ndcg, best, speed=1000.0):
    metrics, popularity = {"ndcg@10": ndcg, "coverage@10": 1 - ndcg}, {"ndcg@10": 0.0625, "coverage@10": 0.125}
    return {
        "epoch": number,
        "loss": 4.0 / number,
        "learning_rate": 0.25,
        "events_per_second": speed,
        "wait_share": 0.5,
        "metrics": metrics,
        "popularity": popularity,
        "best": best,
    }


def plant(storage, name, *settings, ndcgs=(0.25, 0.5, 0.375), test=0.4375, dataset="/data/ml-1m", when=0, finished=True):
    """A run folder as training leaves it; ndcgs: of its epochs on validation. Without `finished`, as it is on the way."""
    folder = storage / name
    folder.mkdir(parents=True)
    told = {"dataset": dataset, "fingerprint": f"of {dataset}", "refit_epochs": None}
    runs.write_json(folder / runs.CONFIG, {**told, "config": load_config(overrides=settings).model_dump(mode="json")})
    runs.write_json(folder / runs.ENVIRONMENT, {"ray": "2.60.0", "python": "3.11.7", "hardware": {"workers": 2, "cores": 8}})
    rows = [epoch(i, ndcg, ndcg == max(ndcgs[:i]), speed=1000.0 * i) for i, ndcg in enumerate(ndcgs, 1)]
    runs.write_rows(folder, rows)
    if finished:
        best = rows[ndcgs.index(max(ndcgs))]
        came = {"epochs": len(rows), "best_epoch": best["epoch"], "metrics": best["metrics"], "popularity": best["popularity"]}
        of_test = {"test": {"ndcg@10": test}, "test_popularity": {"ndcg@10": 0.03125}}
        runs.write_json(
            folder / runs.RESULT, {**told, **came, **of_test, "people": {"test": {"users": 6040, "cold_events": 3}}}
        )
    for path in folder.iterdir():
        os.utime(path, (1_800_000_000 + when, 1_800_000_000 + when))
    return folder


def damage(folder):
    """Every way in which a run's folder can be half-written or spoilt, by the run's name: (folder, what its state says)."""

    def spoilt(name, file, content):
        (plant(folder, name) / file).write_bytes(content)

    spoilt("cut-config", runs.CONFIG, b'{"dataset": "/data/ml')
    spoilt("other-config", runs.CONFIG, b'{"model_type": "bert"}')
    spoilt("list-result", runs.RESULT, b"[1, 2]")
    spoilt("words-in-result", runs.RESULT, b'{"epochs": "many", "best_epoch": 1}')
    spoilt("bytes-in-metrics", runs.METRICS, b"\xff\xfe\x00\n")
    spoilt("number-in-metrics", runs.METRICS, b"7\n")
    spoilt("nameless-epoch", runs.METRICS, b'{"loss": 1.0}\n')
    spoilt("list-environment", runs.ENVIRONMENT, b"[]")
    spoilt("deep-result", runs.RESULT, b"[" * 200_000)
    (plant(folder, "no-config") / runs.CONFIG).unlink()
    (plant(folder, "folder-for-file") / runs.RESULT).unlink()
    (folder / "folder-for-file" / runs.RESULT).mkdir()
    return {
        "cut-config": "config.json unreadable",
        "other-config": "config.json unreadable",
        "list-result": "result.json unreadable",
        "words-in-result": "result.json unreadable",
        "bytes-in-metrics": "metrics.jsonl unreadable",
        "number-in-metrics": "metrics.jsonl unreadable",
        "nameless-epoch": "metrics.jsonl unreadable",
        "list-environment": "environment.json unreadable",
        "deep-result": "result.json unreadable",
        "no-config": "half-written, no config.json",
        "folder-for-file": "result.json unreadable",
    }


@pytest.fixture
def storage(tmp_path):
    plant(tmp_path / "runs", "slow", *SETTINGS["slow"], when=20)
    plant(tmp_path / "runs", "fast", *SETTINGS["fast"], ndcgs=(0.5, 0.75), test=0.375, when=10)
    plant(tmp_path / "runs", "going", ndcgs=(0.125, 0.0625), when=30, finished=False)
    return tmp_path / "runs"


def told(capsys):
    return capsys.readouterr().out


def listed(capsys, storage):
    cli_runs.runs_list(storage, json_=True)
    return {run["name"]: run for run in json.loads(told(capsys))}


def test_the_list_says_how_far_how_good_and_how_fast(capsys, storage):
    found = listed(capsys, storage)
    assert list(found) == ["fast", "slow", "going"]  # newest last
    slow = {name: found["slow"][name] for name in ("model", "dataset", "state", "finished", "epochs", "best_epoch", "metric")}
    assert slow == {
        "model": "mf",
        "dataset": "ml-1m",
        "state": "finished",
        "finished": True,
        "epochs": 3,
        "best_epoch": 2,
        "metric": "ndcg@10",
    }
    measured = ("validation", "popularity", "test", "events_per_second")
    assert [found["slow"][name] for name in measured] == [0.5, 0.0625, 0.4375, 2000.0]
    assert [found["going"][name] for name in measured] == [0.125, 0.0625, None, 1500.0]
    assert (found["going"]["state"], found["going"]["best_epoch"]) == ("unfinished at epoch 2", 1)


@pytest.mark.parametrize("width", [80, 200])
def test_the_printed_list_has_a_line_for_each_run_however_narrow_the_screen(capsys, monkeypatch, storage, width):
    monkeypatch.setattr("cluster.console.out.width", width)
    cli_runs.runs_list(storage)
    lines = told(capsys).splitlines()
    (line,) = [line for line in lines if " slow " in line]
    cells = ["slow", "mf", "ml-1m", "finished", "3", "2", "0.5000", "0.0625", "0.4375", "2,000"]
    assert line.replace("│", " ").split()[:10] == cells
    assert any("ndcg@10" in line for line in lines)


def test_runs_chosen_by_several_metrics_name_theirs(capsys, storage):
    plant(storage, "third", "train.metric=coverage@10")
    table = run_tables.listing(storage, run_reading.find_runs(storage))
    cells = {row[0]: row[table.headers.index("validation")] for row in table.rows}
    assert (cells["slow"], cells["third"]) == ("ndcg@10 0.5000", "coverage@10 0.5000")


def test_a_damaged_run_is_shown_as_such_and_hides_no_other(capsys, storage):
    expected = damage(storage)
    found = listed(capsys, storage)
    assert {name: found[name]["state"] for name in expected} == expected
    assert not any(found[name]["finished"] for name in expected)
    assert found["slow"]["state"] == "finished"
    for name in expected:
        cli_runs.runs_show(storage / name)
        assert expected[name] in told(capsys)
        cli_runs.runs_show(storage / name, json_=True)
        assert json.loads(told(capsys))["problems"]
    cli_runs.runs_compare([*(storage / name for name in expected), storage / "slow"], out=storage.parent / "compare.png")


def test_a_row_just_being_written_is_left_for_later(storage):
    with (storage / "going" / runs.METRICS).open("a") as file:
        file.write('{"epoch": 3, "lo')
    run = run_reading.read_run(storage / "going")
    assert (run.state, len(run.epochs)) == ("unfinished at epoch 2", 2)


def test_an_epoch_without_validation_says_only_what_it_has(storage):
    runs.write_rows(storage / "going", [epoch(1, 0.125, True), {"epoch": 2, "metrics": None, "best": None, "of_later": [1]}])
    run = run_reading.read_run(storage / "going")
    assert (run.state, run.best_epoch, run.validation["ndcg@10"]) == ("unfinished at epoch 2", 1, 0.125)


def test_what_is_no_run_is_not_listed(capsys, storage):
    (storage / "empty").mkdir()
    (storage / "bundle").mkdir()
    (storage / "bundle" / "manifest.json").write_text("{}")
    (storage / ".hidden").mkdir()
    (storage / ".hidden" / runs.CONFIG).write_text("{}")
    (storage / "notes.txt").write_text("of another kind")
    assert set(listed(capsys, storage)) == {"slow", "fast", "going"}


def test_a_run_of_popularity_and_a_refit_have_no_curve_and_are_listed(capsys, storage):
    folder = plant(storage, "popular", "model.name=popularity", ndcgs=(0.25,))
    (folder / runs.METRICS).unlink()
    runs.write_json(folder / runs.RESULT, {"epochs": 0, "best_epoch": 0, "metrics": {"ndcg@10": 0.0625}, "popularity": {}})
    refit = plant(storage, "refit")
    runs.write_json(refit / runs.CONFIG, {**runs.read_json(refit / runs.CONFIG), "refit_epochs": 3})
    found = listed(capsys, storage)
    assert (found["popular"]["model"], found["popular"]["validation"]) == ("popularity", 0.0625)
    assert found["refit"]["model"] == "mf (refit)"
    cli_runs.runs_compare([folder, folder], out=storage.parent / "none.png")
    assert "No curves" in told(capsys) and not (storage.parent / "none.png").exists()


def test_show_tells_everything(capsys, monkeypatch, storage):
    monkeypatch.setattr("cluster.console.out.width", 200)
    (storage / "fast" / "best").mkdir()
    (storage / "fast" / "best" / "weights.safetensors").write_bytes(bytes(12_345))
    cli_runs.runs_show(Path("fast"), storage)
    lines = [" ".join(line.replace("│", " ").split()) for line in told(capsys).splitlines()]
    assert "model.dim 32 64" in lines and "train.learning_rate 0.5 0.01" in lines  # the run's, the default
    assert not any(line.startswith("train.epochs") for line in lines)  # is the default
    assert "workers 2" in lines and "ray 2.60.0" in lines
    assert "2 2.0000 0.7500 0.0625 0.25 2,000 50% best" in lines
    assert "ndcg@10 0.7500 0.0625 0.3750 0.0312" in lines
    assert "best/ weights of the best epoch 12,345" in lines
    assert "people of test 6040 users, 3 cold_events" in lines


def test_of_a_long_run_the_first_the_best_and_the_last_epochs_are_shown(storage):
    run = run_reading.read_run(plant(storage, "long", ndcgs=[0.5 - abs(i - 20) / 100 for i in range(40)]))
    (table,) = [table for table in run_tables.about(run) if table.title == "Epochs"]
    assert [row[0] for row in table.rows] == [1, 2, 3, 4, 5, "…", 21, "…", 36, 37, 38, 39, 40]


def test_a_loss_that_is_no_number_is_null_for_programs(capsys, storage):
    folder = plant(storage, "diverged")
    runs.write_rows(folder, [{**epoch(1, 0.25, True), "loss": math.nan}])
    cli_runs.runs_show(folder, json_=True)
    assert json.loads(told(capsys))["rows"][0]["loss"] is None


def test_looking_at_runs_loads_neither_torch_nor_ray():
    check = "import sys, cluster.run_tables; sys.exit(sorted({'torch', 'ray', 'matplotlib'} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_is_found_by_path_and_by_name(monkeypatch, storage):
    monkeypatch.chdir(storage / "slow")
    for run, where in ((storage / "slow", "nowhere"), ("slow", storage), (".", "nowhere")):
        assert run_reading.find_run(Path(run), Path(where)).name == "slow"


def test_an_unknown_run_is_refused_with_the_nearest_name(storage):
    with pytest.raises(DataError, match="Did you mean slow"):
        cli_runs.runs_show(Path("sloww"), storage)
    with pytest.raises(DataError, match="no such folder"):
        cli_runs.runs_list(storage / "nowhere")
    with pytest.raises(ConfigError, match="two runs or more"):
        cli_runs.runs_compare([storage / "slow"])


def test_comparison_shows_what_differs_and_marks_the_best(capsys, monkeypatch, storage):
    monkeypatch.setattr("cluster.console.out.width", 200)
    picture = storage.parent / "both.png"
    cli_runs.runs_compare([storage / "slow", storage / "fast", storage / "going"], out=picture)
    lines = [" ".join(line.replace("│", " ").split()) for line in told(capsys).splitlines()]
    assert "model.dim 16 32 64" in lines and "train.learning_rate 0.01 0.5 0.01" in lines
    assert not any(line.startswith(("train.epochs", "dataset")) for line in lines)  # alike in all
    assert "state finished finished unfinished at epoch 2" in lines
    assert "ndcg@10, validation 0.5000 0.7500 * 0.1250 0.0625" in lines
    assert "ndcg@10, test 0.4375 * 0.3750 0.0312" in lines
    assert "coverage@10, validation 0.5000 0.2500 0.8750 0.1250" in lines  # no merit by itself
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_of_errors_the_smaller_is_the_best():
    assert run_tables._best("rmse", [0.9, 0.8, None]) == 0.8
    assert run_tables._best("ndcg@10", [0.9, 0.8, None]) == 0.9
    assert run_tables._best("ndcg@10", [0.9, None]) is None


def test_runs_of_different_data_are_not_ranked(capsys, storage):
    plant(storage, "elsewhere", ndcgs=(0.875,), dataset="/data/ml-20m")
    cli_runs.runs_compare([storage / "slow", storage / "elsewhere"], out=storage.parent / "both.png")
    printed = told(capsys)
    assert "cannot be compared" in printed and "0.8750 *" not in printed and "ml-20m" in printed
    cli_runs.runs_compare([storage / "slow", storage / "elsewhere"], out=storage.parent / "both.png", json_=True)
    compared = json.loads(told(capsys))
    assert not compared["same_dataset"] and compared["validation"]["ndcg@10"] == [0.5, 0.875]
    assert compared["settings"]["dataset"] == ["/data/ml-1m", "/data/ml-20m"]


def test_runs_of_one_name_are_told_apart_by_their_paths(storage, tmp_path):
    again = plant(tmp_path / "elsewhere", "slow")
    found = [run_reading.read_run(folder) for folder in (storage / "slow", again)]
    assert run_tables.labels(found) == [str(storage / "slow"), str(again)]


def test_a_picture_that_cannot_be_written_is_refused(storage):
    with pytest.raises(ConfigError, match="--out"):
        cli_runs.runs_compare([storage / "slow", storage / "fast"], out=storage / "nowhere" / "compare.png")
