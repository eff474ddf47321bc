"""Is a folder exactly what its manifest says? Asked before anything in it is parsed."""

import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from recsys.bundle import receipt
from recsys.bundle.manifest import AGAIN, FILES, FORMAT_VERSION, MANIFEST_FILE, MANIFEST_HASH, FileEntry, Manifest
from recsys.errors import BundleError

LARGEST_MANIFEST = 64 << 20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_line(manifest: bytes) -> bytes:
    """What MANIFEST_HASH holds for these bytes of a manifest."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST_FILE}\n".encode()


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest, and its SHA-256. Raises BundleError where it is missing, altered, of a future version or unsafe."""
    path = folder / MANIFEST_FILE
    content = _read_plain(path)
    if _read_plain(folder / MANIFEST_HASH) != hash_line(content):
        raise BundleError(f"{path}: altered since it was written ({MANIFEST_HASH} differs). {AGAIN}")
    return _parse(path, content), hashlib.sha256(content).hexdigest()


def verify(folder: Path, manifest: Manifest, manifest_sha256: str, *, everything: bool = False, remember: bool = True) -> None:
    """Hash what this host has not hashed yet (or `everything`), and leave a receipt (unless told not to `remember`).

    Raises BundleError naming a file that is missing, unexpected, no plain file, cut or altered.
    """
    _compare_names(folder, set(manifest.files))
    known = {} if everything else receipt.read(folder, manifest_sha256)
    stamps = {name: receipt.stamp(folder / name) for name in manifest.files}
    for name, entry in manifest.files.items():
        if known.get(name) == stamps[name]:
            continue
        check_file(folder / name, entry)
    if remember and known != stamps:
        receipt.write(folder, manifest_sha256, stamps)


def check_file(path: Path, entry: FileEntry) -> None:
    """Raises BundleError unless a file has the size and the hash that the manifest says."""
    size = path.stat().st_size
    if size != entry.size:
        raise BundleError(f"{path}: {size:,} bytes, the manifest says {entry.size:,}. {AGAIN}")
    _compare(path, file_sha256(path), entry)


def check_bytes(path: Path, content: bytes, entry: FileEntry) -> None:
    """The same for what was read from a file: these very bytes can then be parsed."""
    _compare(path, hashlib.sha256(content).hexdigest(), entry)


def _compare(path: Path, found: str, entry: FileEntry) -> None:
    if found != entry.sha256:
        raise BundleError(f"{path}: altered since it was written (SHA-256 differs). {AGAIN}")


def names_in(folder: Path) -> Iterator[str]:
    """Every file below a folder, by its relative name. Raises BundleError at a link or anything else but files and folders."""
    for path in sorted(folder.iterdir()):
        mode = path.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from (f"{path.name}/{name}" for name in names_in(path))
        elif stat.S_ISREG(mode):
            yield path.name
        else:
            raise BundleError(f"{path}: a link or special file, which no bundle holds. {AGAIN}")


def _compare_names(folder: Path, named: set[str]) -> None:
    found = set(names_in(folder)) - {MANIFEST_FILE, MANIFEST_HASH}
    for name in sorted(named - found):
        raise BundleError(f"{folder / name}: missing. Restore it or export again.")
    for name in sorted(found - named):
        raise BundleError(f"{folder / name}: not in the manifest. Remove it or export again.")


def _read_plain(path: Path) -> bytes:
    try:
        found = path.stat(follow_symlinks=False)
    except (OSError, ValueError):
        raise BundleError(f"{path}: missing, so {path.parent} is no bundle. Make one: recsys export RUN") from None
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_MANIFEST:
        raise BundleError(f"{path}: a link, a special file or too big. {AGAIN}")
    return path.read_bytes()


def _parse(path: Path, content: bytes) -> Manifest:
    try:
        fields = json.loads(content, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON ({error}). {AGAIN}") from None
    _check_version(path, fields)
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}. {AGAIN}") from None
    for name in sorted(set(manifest.files) - FILES):
        raise BundleError(f"{path}: names {name!r}, which is no file of a bundle. {AGAIN}")
    return manifest


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key is there twice")
    return fields


def _check_version(path: Path, fields: Any) -> None:
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{path}: names no format version. {AGAIN}")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {version}, written by {fields.get('writer')}; this release reads up to {FORMAT_VERSION}. "
            f"Install a release that reads format version {version}, or export again with this one."
        )
