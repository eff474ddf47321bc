"""Which data `recsys demo` shows: what was asked for, what is at hand, a download, or films made up on the spot."""

import hashlib
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from recsys.data.sources.sample import write_sample
from recsys.errors import DataError

MOVIELENS_URL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
# The release of September 2018: 100,836 ratings of 9,742 films by 610 users.
MOVIELENS_SHA256 = "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"
TIMEOUT_S = 10
LARGEST_DOWNLOAD = 64 << 20


class Choice(NamedTuple):
    """A source for `recsys prepare`, and how it was come by, in words."""

    source: str
    why: str


def choose(asked: str | None, workspace: Path, url: str = MOVIELENS_URL, sha256: str = MOVIELENS_SHA256) -> Choice:
    """The first that can be had of: `asked`, ml-latest-small under $RECSYS_DATA, the cache, a download, a made sample."""
    if asked:
        return Choice(asked, "as asked by --data")
    return at_hand() or cached_or_downloaded(url, sha256) or generated(workspace)


def at_hand() -> Choice | None:
    """ml-latest-small as a folder or .zip under $RECSYS_DATA."""
    folder = os.environ.get("RECSYS_DATA")
    for name in ("ml-latest-small", "ml-latest-small.zip"):
        if folder and (Path(folder) / name).exists():
            return Choice(str(Path(folder) / name), "found under $RECSYS_DATA")
    return None


def cached_or_downloaded(url: str, sha256: str) -> Choice | None:
    """ml-latest-small.zip from the cache, else from GroupLens into the cache; None if it cannot be reached.

    Raises DataError if what came is not the file that was expected: it is never used.
    """
    path = cache_folder() / "ml-latest-small.zip"
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return Choice(str(path), f"downloaded before, in {path.parent}")
    try:
        content = download(url, LARGEST_DOWNLOAD)
    except (OSError, HTTPException):  # such as a connection that breaks off half way
        return None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{url}: SHA-256 is {found}, expected {sha256}. The release may have changed, or the answer is not the file. "
            "Download it yourself and give it with --data."
        )
    replace(path, content)
    return Choice(str(path), f"downloaded from {url}")


def generated(workspace: Path) -> Choice:
    """A sample of invented films with planted tastes, made under the workspace."""
    folder = workspace / "sample"
    write_sample(folder)
    return Choice(str(folder), "generated here: invented films with planted tastes, because no real data could be reached")


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/recsys-cluster, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys-cluster"


def download(url: str, limit: int) -> bytes:
    """The body at a URL. Raises OSError where it cannot be reached or is larger than `limit` bytes."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        content: bytes = answer.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"{url}: larger than {limit:,} bytes")
    return content


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
