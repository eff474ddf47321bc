"""Publish a bundle: written aside, checked, renamed into place as a whole, and only then named in CURRENT."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import recsys
from recsys.bundle import inventory, store
from recsys.bundle import manifest as layout
from recsys.bundle.arrays import write_array
from recsys.bundle.manifest import FileEntry, FoldIn, IndexReport, Manifest, TrendReport
from recsys.bundle.read import Bundle, load
from recsys.bundle.users import UserBlock, write_users
from recsys.errors import BundleError

STAGING = ".staging-"
ABANDONED_AFTER_SECONDS = 24 * 3600
Finish = Callable[[Bundle], dict[str, Any]]
COPIED: tuple[str, ...] = ("model", "config", "dataset", "split", "vectors_from", "metrics_on", "metrics", "popularity")
COPIED += ("learnt_dim", "trend", "users", "events", "known_user", "fold_in", "exclude_seen", "known_until", "recall_floor")


@dataclass(frozen=True)
class BundleContents:
    """What a bundle is made of. Shapes: U users, E events, N items, D dimensions, P items watched in training.

    items: the dataset's items.parquet, row = item; popular: [P] int32, most watched first; item_vectors: [N, D], zeros
    for items that the index does not hold; index: a FAISS index with its report; trend, learnt_dim: what lists
    lean to, and, where that stands behind what was learnt, how many dimensions were; gram: [L, L] of these; encoder: an ONNX
    model, item_inputs: [N, I] what it is fed where that is not item_vectors; blocks: users in the order of their rows,
    `users` of them with `events` events, so that they can stream through.
    """

    model: str
    items: pa.Table
    popular: NDArray[np.int32]
    users: int
    events: int
    blocks: Iterable[UserBlock]
    item_vectors: NDArray[np.float32] | None = None
    index: Any = None
    report: IndexReport | None = None
    known_user: str = "none"
    fold_in: FoldIn = field(default_factory=lambda: FoldIn(kind="none"))
    learnt_dim: int | None = None
    trend: TrendReport | None = None
    gram: NDArray[np.float64] | None = None
    encoder: bytes | None = None
    item_inputs: NDArray[np.float32] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    dataset: str = ""
    split: str | None = None
    vectors_from: tuple[str, ...] = ("train",)
    metrics_on: str = "valid"
    metrics: dict[str, float] = field(default_factory=dict)
    popularity: dict[str, float] = field(default_factory=dict)
    exclude_seen: bool = True
    known_until: str = "end"
    recall_floor: float = 0.95


def write_bundle(
    root: Path,
    name: str,
    contents: BundleContents,
    *,
    version: str | None = None,
    finish: Finish | None = None,
    promote: bool = True,
) -> Path:
    """Publish `<root>/<name>/<version>` and, if `promote`, serve it. Returns its folder.

    finish: is given the bundle, open but not yet published, and returns fields of the manifest to replace: what can only
    be measured on the finished files, such as `index` and `golden`. version: by default the time, so that versions sort.
    Raises BundleError where a vector is not finite, the parts do not fit each other, or the version exists already.
    """
    folder = Path(root) / store.plain(name)
    if version:
        store.plain(version)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be made ({error.strerror}). Choose another folder for bundles.") from None
    _sweep(folder)
    with _staging(folder) as staging:
        _write_files(staging, contents)
        manifest = _draft(name, contents, _entries(staging))
        if finish is not None:
            manifest = Manifest.model_validate(manifest.model_dump() | finish(load(staging, manifest)))
        with store.locked(folder):
            return _publish(staging, folder, manifest, version or _now(), promote)


def _publish(staging: Path, folder: Path, manifest: Manifest, version: str, promote: bool) -> Path:
    target = folder / store.plain(version)
    _seal(staging, manifest.model_copy(update={"version": version}))
    _check(staging)
    try:
        staging.rename(target)
    except OSError:
        raise BundleError(f"{target}: exists: someone else published this version. Publish another.") from None
    store.sync_folder(folder)
    if promote:
        store.point(folder, version)
    return target


def _check(folder: Path) -> None:
    """As a reader will: a bundle that cannot be opened is not published."""
    manifest, digest = inventory.read_manifest(folder)
    inventory.verify(folder, manifest, digest, everything=True, remember=False)
    load(folder, manifest)


def _write_files(folder: Path, contents: BundleContents) -> None:
    dim = _dim(contents) if contents.known_user == "table" else None
    write_users(folder, contents.users, contents.events, contents.blocks, dim)
    write_array(folder / layout.POPULAR, contents.popular, np.int32)
    write_table(folder / layout.ITEMS, contents.items)
    if contents.item_vectors is not None:
        write_array(folder / layout.ITEM_VECTORS, contents.item_vectors, np.float32)
    if contents.gram is not None:
        write_array(folder / layout.FOLD_IN_GRAM, contents.gram, np.float64)
    if contents.item_inputs is not None:
        write_array(folder / layout.ITEM_INPUTS, contents.item_inputs, np.float32)
    if contents.encoder is not None:
        (folder / layout.ENCODER).write_bytes(contents.encoder)
    if contents.index is not None:
        _write_index(folder / layout.INDEX, contents.index)


def _write_index(path: Path, index: Any) -> None:
    """Straight into the file: of ten million items it is gigabytes. By a callback, so that a full disk is an OSError."""
    made: Any = faiss  # its type stubs lack what SWIG wraps
    with path.open("wb") as file:
        made.write_index(index, made.PyCallbackIOWriter(file.write))


def write_table(path: Path, table: pa.Table) -> None:
    """Write an uncompressed Arrow file, so that it can be mapped into memory."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _draft(name: str, contents: BundleContents, files: dict[str, FileEntry]) -> Manifest:
    return Manifest(
        name=name,
        version="draft",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        writer=f"recsys-cluster {recsys.__version__}",
        items=contents.items.num_rows,
        dim=_dim(contents),
        index=contents.report,
        golden=(),
        files=files,
        **{key: getattr(contents, key) for key in COPIED},
    )


def _dim(contents: BundleContents) -> int:
    return 0 if contents.item_vectors is None else contents.item_vectors.shape[1]


def _entries(folder: Path) -> dict[str, FileEntry]:
    paths = {name: folder / name for name in inventory.names_in(folder)}
    for path in paths.values():
        _sync(path)
    return {name: FileEntry(size=path.stat().st_size, sha256=inventory.file_sha256(path)) for name, path in paths.items()}


def _seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest last: a folder without it is no bundle."""
    content = (manifest.model_dump_json(indent=1) + "\n").encode()
    for name, written in ((layout.MANIFEST_HASH, inventory.hash_line(content)), (layout.MANIFEST_FILE, content)):
        (folder / name).write_bytes(written)
        _sync(folder / name)
    for path in {folder, *(path.parent for path in folder.rglob("*"))}:
        store.sync_folder(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _now() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
    staging.chmod(0o755)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already where it was renamed into place


def _sweep(folder: Path) -> None:
    """Remove what publishers that died have left."""
    for path in folder.glob(f"{STAGING}*"):
        with suppress(FileNotFoundError):  # another publisher has just finished with it
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                shutil.rmtree(path)
