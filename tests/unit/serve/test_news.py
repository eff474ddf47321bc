"""What replicas log reaches the terminal: warnings and errors, once, whole, and never a flood."""

import json
import threading
from pathlib import Path

import pytest

from serve import news

LINE = "{level} 2026-11-30 03:00:13,551 recsys_recommend {replica} -- {text}\n"


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def reader(tmp_path: Path, told: list[str], now: list[float]) -> news.News:
    return news.News(tmp_path, lambda text: told.append(text.split(" ", 1)[1]), clock=lambda: now[0])


def log(folder: Path, text: str, level: str = "WARNING", replica: str = "a") -> None:
    with (folder / f"replica_recsys_recommend_{replica}.log").open("a") as file:
        file.write(LINE.format(level=level, replica=replica, text=text))


def test_what_matters_is_told_once_by_however_many_replicas(tmp_path: Path, told: list[str], reader: news.News) -> None:
    reader.look()
    for replica in "abc":
        log(tmp_path, "GET /v1/bundle 200", "INFO", replica)
        log(tmp_path, "bundle v2 answers -- from now on", "WARNING", replica)
        log(tmp_path, "v3 is not taken", "ERROR", replica)
    (tmp_path / "proxy_1.log").write_text(LINE.format(level="ERROR", replica="p", text="of the proxy"))
    reader.look()
    reader.look()
    assert told == ["bundle v2 answers -- from now on", "ERROR v3 is not taken"]


def test_what_was_so_before_is_told_again_when_it_is_so_again(
    tmp_path: Path, told: list[str], reader: news.News, now: list[float]
) -> None:
    for text in ("v2 answers", "v1 answers", "v2 answers"):
        for replica in "ab":
            log(tmp_path, text, replica=replica)
            reader.look()
            now[0] += 3
    assert told == ["v2 answers", "v1 answers", "v2 answers"]
    now[0] += news.SAME_S
    log(tmp_path, "v2 answers", replica="c")  # a replica of later
    reader.look()
    assert told[3:] == ["v2 answers"]


def test_one_that_says_the_same_every_second_leaves_room_for_others(
    tmp_path: Path, told: list[str], reader: news.News, now: list[float]
) -> None:
    for second in range(60):
        log(tmp_path, "events cannot be read", "ERROR", "a")
        if second == 40:
            log(tmp_path, "bundle v3 is not taken", "ERROR", "b")
        reader.look()
        now[0] += 1
    assert told.count("ERROR events cannot be read") == 60 / news.SAME_S and "ERROR bundle v3 is not taken" in told


def test_logs_in_json_say_the_same(tmp_path: Path, told: list[str], reader: news.News) -> None:
    lines = [
        json.dumps({"levelname": "ERROR", "message": "keys: not a TOML file", "request_id": "1"}),
        json.dumps({"levelname": "INFO", "message": "fine"}),
        '{"cut',
        '{"a":' * 100_000,
    ]
    (tmp_path / "replica_x.log").write_text("\n".join(lines) + "\nTraceback (most recent call last):\n")
    reader.look()
    assert told == ["ERROR keys: not a TOML file"]


def test_a_line_is_told_when_it_is_whole(tmp_path: Path, told: list[str], reader: news.News) -> None:
    path, line = tmp_path / "replica_x.log", LINE.format(level="ERROR", replica="x", text="zażółć").encode()
    for part in (line[:20], line[20:-3], line[-3:]):
        assert told == []
        with path.open("ab") as file:
            file.write(part)
        reader.look()
    assert told == ["ERROR zażółć"]


def test_a_file_that_begins_anew_is_read_anew(tmp_path: Path, told: list[str], reader: news.News) -> None:
    log(tmp_path, "one, and much more")
    reader.look()
    path = next(tmp_path.glob("replica_*"))
    path.rename(tmp_path / "replica_old.log.1")
    for text in ("two, and more than the file before held", "three"):
        log(tmp_path, text)
    reader.look()
    assert told == ["one, and much more", "two, and more than the file before held", "three"]


def test_a_flood_is_cut_and_the_same_is_told_again_later(
    tmp_path: Path, told: list[str], reader: news.News, now: list[float]
) -> None:
    for number in range(100):
        log(tmp_path, f"request {number} failed", "ERROR")
        reader.look()
    assert told == [*(f"ERROR request {number} failed" for number in range(news.MOST)), f"More, unread: {tmp_path}"]
    now[0] += news.ROUND_S
    log(tmp_path, "request 0 failed", "ERROR")
    reader.look()
    assert told[-1] == "ERROR request 0 failed" and len(told) == news.MOST + 2


def test_a_thread_tells_while_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "EVERY_S", 0.01)
    heard, texts = threading.Event(), []

    def tell(text: str) -> None:
        texts.append(text)
        heard.set()

    with news.told_while(tmp_path / "not yet", tell):
        (tmp_path / "not yet").mkdir()
        log(tmp_path / "not yet", "here")
        assert heard.wait(10) and texts[0].endswith(" here")
        log(tmp_path / "not yet", "last words")
    assert texts[1].endswith(" last words")


def test_a_terminal_that_cannot_show_it_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "EVERY_S", 0.01)
    failed, shown = threading.Event(), threading.Event()

    def tell(text: str) -> None:
        if text.endswith("first"):
            failed.set()
            raise OSError("the pipe is closed")
        shown.set()

    with news.told_while(tmp_path, tell):
        log(tmp_path, "first")
        assert failed.wait(10)
        log(tmp_path, "second")
        assert shown.wait(10)
