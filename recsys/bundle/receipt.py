"""Receipts: what this host has hashed already, so that a bundle is hashed once a host and opens in a second after."""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where receipts lie: $RECSYS_CACHE, else the user's cache folder."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "recsys-cluster"
    return Path(os.environ.get("RECSYS_CACHE") or own) / "receipts"


def stamp(path: Path) -> list[int]:
    """What changes when a file does: size, time of modification and of change, inode, device."""
    stat = path.stat(follow_symlinks=False)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def read(folder: Path, manifest_sha256: str) -> dict[str, list[int]]:
    """Stamps of the files that were hashed and found right under this manifest; empty without a receipt."""
    try:
        receipt = json.loads(_path(folder, manifest_sha256).read_bytes())
    except (OSError, ValueError):
        return {}  # a receipt only saves time: without one, everything is hashed
    stamps = receipt.get("files") if isinstance(receipt, dict) else None
    return stamps if isinstance(stamps, dict) else {}


def write(folder: Path, manifest_sha256: str, stamps: dict[str, list[int]]) -> None:
    """Leave a receipt, replaced as a whole. Without a writable cache folder the next open hashes again, and says so."""
    path = _path(folder, manifest_sha256)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({"bundle": str(folder.resolve()), "files": stamps}, file)
        Path(file.name).replace(path)
    except OSError as error:
        logger.warning("No receipt for %s (%s): the next open hashes every file again. Set RECSYS_CACHE.", folder, error)


def _path(folder: Path, manifest_sha256: str) -> Path:
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache_folder() / f"{manifest_sha256[:32]}-{place}.json"
