"""`recsys demo` from nothing to an answer over HTTP, and how it chooses its data."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import samples
from recsys.errors import DataError
from tests.commands import QUICK, Recsys


@pytest.fixture
def download_server(tmp_path: Path) -> Iterator[tuple[str, bytes]]:
    """A local HTTP server that serves one file."""
    content = b"a zip, as far as a download is concerned"
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "small.zip").write_bytes(content)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "served"))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/small.zip", content
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_data_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RECSYS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_download_is_checked_and_cached(download_server: tuple[str, bytes], tmp_path: Path) -> None:
    url, content = download_server
    sha256 = hashlib.sha256(content).hexdigest()
    first = samples.choose(None, tmp_path, url, sha256)
    assert "downloaded from" in first.why and Path(first.source).read_bytes() == content
    assert "downloaded before" in samples.choose(None, tmp_path, "http://127.0.0.1:1/gone", sha256).why


def test_a_download_that_is_not_what_was_expected_is_never_used(download_server: tuple[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="SHA-256"):
        samples.choose(None, tmp_path, download_server[0], "0" * 64)
    assert not (tmp_path / "cache").exists()


def test_offline_the_sample_is_generated_and_said_to_be(tmp_path: Path) -> None:
    choice = samples.choose(None, tmp_path, "http://127.0.0.1:1/gone", "0" * 64)
    assert "generated here" in choice.why and (Path(choice.source) / "ratings.csv").is_file()


def test_what_is_asked_for_and_what_is_at_hand_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ml-latest-small.zip").touch()
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    assert samples.choose("mine.csv", tmp_path).source == "mine.csv"
    assert samples.choose(None, tmp_path).why == "found under $RECSYS_DATA"


@pytest.mark.ray
def test_demo_goes_from_ratings_to_an_answer_over_http(recsys: Recsys, sample: Path, tmp_path: Path) -> None:
    told = recsys("demo", "--no-wait", "--data", sample, "--workspace", tmp_path / "demo", "--port", "0", *QUICK).stdout
    assert "as asked by --data" in told
    assert "watched" in told and "Watch next" in told and "First answer over HTTP after" in told
