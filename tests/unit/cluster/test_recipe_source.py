"""Raw data of a recipe: found, downloaded from a real server on this machine, gone on with, and never another file."""

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.download import fetch
from cluster.recipe import RecipeSource
from cluster.recipe_source import find_source
from recsys.errors import DataError, RecsysError

CONTENT = bytes(range(256)) * 4096  # 1 MB
ROWS = b"u1 i1\nu1 i2\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file. cuts: after how many bytes each of the first answers breaks off; ranges: whether it knows them."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.status = content, True, 200
        self.cuts: list[int] = []
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/x.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.status != 200:
            return self.send_error(self.server.status)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if first and first >= len(self.server.content):
            return self.send_error(416)
        body = self.server.content[first:]
        self.send_response(206 if wanted and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cuts.pop(0)] if self.server.cuts else body)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(CONTENT)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_downloaded_whole_with_progress(server, tmp_path):
    told = []
    path = tmp_path / "new" / "x.zip"
    fetch(server.url, path, sha256(CONTENT), lambda *what: told.append(what))
    assert path.read_bytes() == CONTENT and [file.name for file in path.parent.iterdir()] == ["x.zip"]
    assert told[-1] == ("download x.zip", len(CONTENT), len(CONTENT)) and len(told) > 1


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_transfer_that_is_cut_is_gone_on_with(server, tmp_path, ranges):
    server.cuts, server.ranges = [300_000], ranges
    fetch(server.url, tmp_path / "x.zip", sha256(CONTENT), pause=0)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_what_is_cut_again_and_again_stays_for_the_next_command(server, tmp_path):
    server.cuts = [300_000, 300_000, 300_000]
    with pytest.raises(RecsysError, match=r"broke off after 900,000 of 1,048,576 bytes.*goes on with it"):
        fetch(server.url, tmp_path / "x.zip", sha256(CONTENT), pause=0)
    assert not (tmp_path / "x.zip").exists()
    fetch(server.url, tmp_path / "x.zip", sha256(CONTENT), pause=0)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT and server.asked[-1] == "bytes=900000-"


def test_a_file_that_was_whole_when_the_command_was_killed_is_taken(server, tmp_path):
    (tmp_path / "x.zip.part").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "x.zip", sha256(CONTENT), pause=0)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT


def test_another_file_than_the_one_that_is_meant_is_refused_and_removed(server, tmp_path):
    with pytest.raises(DataError, match=f"SHA-256 is {sha256(CONTENT)}, expected {sha256(b'')}"):
        fetch(server.url, tmp_path / "x.zip", sha256(b""), pause=0)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_asked_for_once(server, tmp_path):
    server.status = 404
    with pytest.raises(RecsysError, match="404"):
        fetch(server.url, tmp_path / "x.zip", sha256(CONTENT), pause=0)
    assert server.asked == [None]


@pytest.fixture
def places(tmp_path, monkeypatch) -> Path:
    """$RECSYS_DATA, and a cache beside it."""
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def source(rows: bytes = ROWS, **more: str) -> RecipeSource:
    told = {"file": "x.zip", "files": {"x.txt": sha256(rows)}, "published": "a page", "licence": "-", "citation": "-"}
    return RecipeSource.model_validate(told | more)


def archive(path: Path, rows: bytes = ROWS) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/x.txt", rows)
        file.writestr("x/README", "more")
    return path


def test_it_is_found_packed_or_not_by_what_is_in_it(places):
    packed = archive(places / "x.zip")
    assert find_source(source()) == str(packed)
    assert find_source(source(inside="x.txt")) == f"{packed}/x/x.txt"
    packed.unlink()
    (places / "x").mkdir()
    (places / "x" / "x.txt").write_bytes(ROWS)
    assert find_source(source()) == str(places / "x")
    assert find_source(source(inside="x.txt")) == str(places / "x" / "x.txt")


def test_another_content_is_refused_by_name(places):
    archive(places / "x.zip", b"u1 i9\n")
    with pytest.raises(DataError, match=r"x/x\.txt: SHA-256 is .*, the recipe was written for .* from a page"):
        find_source(source())
    with zipfile.ZipFile(places / "x.zip", "w") as file:
        file.writestr("x/other.txt", ROWS)
    with pytest.raises(DataError, match=r"holds no x\.txt"):
        find_source(source())


def test_what_cannot_be_downloaded_is_said_to_be_fetched_by_hand(places):
    with pytest.raises(DataError, match=r"x\.zip: not found\. Get x\.txt from a page and put them into .*data, as x/"):
        find_source(source())


def test_a_download_is_kept_and_not_made_again(places, server, tmp_path):
    server.content = archive(tmp_path / "x.zip").read_bytes()
    wanted = source(url=server.url, sha256=sha256(server.content))
    assert find_source(wanted) == find_source(wanted)
    assert len(server.asked) == 1 and list(places.iterdir()) == []
