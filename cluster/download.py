"""A file from the web: gone on with where it broke off, held against its hash, there whole or not at all."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from recsys.data.dataset import file_sha256
from recsys.errors import DataError, RecsysError

ATTEMPTS = 3
TIMEOUT_SECONDS = 30.0
CHUNK = 1 << 18
WHOLE_ALREADY = 416  # there is nothing behind the bytes that are here

Progress = Callable[[str, int, int], None]


def fetch(url: str, path: Path, sha256: str, progress: Progress | None = None, pause: float = 2.0) -> None:
    """Download a file that is to have this SHA-256. What a broken attempt has left in `<path>.part` is gone on with.

    progress: told (stage, bytes, bytes in all). pause: seconds before the second attempt, twice as many before the third.
    Raises RecsysError where it cannot be had, DataError where what came is another file: that is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    for attempt in range(ATTEMPTS):
        try:
            _go_on(url, part, progress or (lambda stage, done, total: None))
            break
        except (OSError, HTTPException) as error:
            if attempt + 1 == ATTEMPTS or isinstance(error, urllib.error.HTTPError):
                raise RecsysError(
                    f"{url}: cannot be downloaded ({error}). The same command goes on with it; or put the file at {path}."
                ) from None
        time.sleep(pause * 2**attempt)
    found = file_sha256(part)
    if found != sha256:
        part.unlink()
        raise DataError(
            f"{url}: SHA-256 is {found}, expected {sha256}. What came was removed: try again, or put the file that is meant "
            f"at {path}."
        )
    part.replace(path)


def _go_on(url: str, part: Path, progress: Progress) -> None:
    """Add to `part` what is missing of it. Raises OSError where the transfer ends before the file does."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if done and error.code == WHOLE_ALREADY:
            return
        raise
    with answer:
        if answer.status != 206:  # the server knows no ranges, and sends all of it
            done = 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if done else "wb") as file:
            while chunk := answer.read(CHUNK):
                done += file.write(chunk)
                progress(f"download {part.stem}", done, total or done)
    if total is not None and done < total:
        raise OSError(f"broke off after {done:,} of {total:,} bytes")
