"""What is printed is what the data says: no markup, no emoji codes, no control characters obeyed."""

import tomllib
from http.client import IncompleteRead
from pathlib import Path

import pytest

from cluster import cli, console
from cluster.demo import a_user
from cluster.samples import cached_or_downloaded
from recsys.errors import ConfigError
from tests.datasets import random_histories, write_dataset

TITLES = ["[red]Alarm[/red]", "\\[red]", "\\[/x]", "C:\\", ":smile:", "[/b]", "<b>&amp;", "A [1995]"]


@pytest.mark.parametrize("title", TITLES)
def test_titles_are_shown_to_the_letter(capsys, title):
    console.print_rows(f"Films of {title}", ("title",), [(title,)])
    told = capsys.readouterr().out
    assert f" {title} " in told and f"Films of {title}" in told.replace("\n", " ")


def test_control_characters_do_not_reach_the_terminal():
    assert console.printable("a\x1b[2Jb\n").plain == "a�[2Jb�"


def test_the_printed_settings_are_toml_whatever_they_hold(capsys):
    cli.show_config(set_=["data.user_column=gość 😀", "train.metric_ks=[5, 10]"])
    told = tomllib.loads(capsys.readouterr().out)
    assert told["data"]["user_column"] == "gość 😀" and told["train"]["metric_ks"] == [5, 10]


def test_a_download_that_breaks_off_is_no_download(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise IncompleteRead(b"half")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("cluster.samples.urllib.request.urlopen", broken)
    assert cached_or_downloaded("http://127.0.0.1:1/films.zip", "0" * 64) is None


def test_inspect_draws_beside_the_folder_it_stands_in_and_says_where_it_cannot(monkeypatch, capsys, tmp_path):
    write_dataset(tmp_path / "films", random_histories(), shards=2)
    monkeypatch.chdir(tmp_path / "films")
    cli.inspect(Path())
    assert (tmp_path / "films.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"gone/x\.png: cannot be written .*--picture"):
        cli.inspect(Path(), picture=tmp_path / "gone" / "x.png")


def test_the_demo_shows_the_first_user_of_the_nearest_length(tmp_path):
    histories = random_histories(users=200, events=(3, 50))
    write_dataset(tmp_path / "films", histories, shards=4)
    assert a_user(tmp_path / "films") == f"u{abs(histories.lengths - 30).argmin()}"


def test_an_epochs_line_tells_quality_speed_and_what_was_waited_for():
    row = {
        "epoch": 2, "loss": 1.5, "metrics": {"ndcg@10": 0.25}, "popularity": {"ndcg@10": 0.125}, "events_per_second": 12345.6,
        "wait_share": 0.02, "read_from": "memory", "utilisation": 0.931, "peak_bytes": 1_540_000_000,
    }  # fmt: skip
    told = (
        "loss 1.5000  ndcg@10 0.2500  (popularity 0.1250)  12,346 events/s  2% waiting for data from memory  93% busy  1.5 GB"
    )
    assert console.epoch_line(row, "ndcg@10") == f"epoch   2  {told}"
    assert console.epoch_line({"epoch": 1, "utilisation": None}, "ndcg@10") == "epoch   1"


def test_what_an_earlier_start_had_done_does_not_count_as_speed_and_each_epoch_has_a_clock_of_its_own():
    view = console.ProgressView(epochs=40)
    view.step(10, 5, 25)
    epochs, steps = view.bars.tasks
    assert (epochs.completed, epochs.speed, steps.completed) == (9, None, 5)
    began = steps.start_time
    view.step(11, 1, 25)
    epochs, steps = view.bars.tasks
    assert (epochs.completed, steps.completed) == (10, 1)
    assert steps.start_time > began
