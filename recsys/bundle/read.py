"""Open a bundle: verified, its parts checked against each other, arrays mapped into memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.bundle import inventory
from recsys.bundle import manifest as layout
from recsys.bundle.arrays import read_array
from recsys.bundle.ids import UserIds
from recsys.bundle.manifest import Manifest
from recsys.bundle.onnx_file import refuse_unsafe
from recsys.data import schema
from recsys.errors import BundleError

# By kind: what holds vectors whole, as halves or bytes, and as codes.
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "flat": (faiss.IndexFlat, faiss.IndexScalarQuantizer, faiss.IndexPQ),
    "hnsw": (faiss.IndexHNSWFlat, faiss.IndexHNSWSQ, faiss.IndexHNSWPQ),
    "ivf": (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ),
}
SCALAR = {faiss.ScalarQuantizer.QT_fp16: "fp16", faiss.ScalarQuantizer.QT_8bit: "int8"}


@dataclass(frozen=True)
class StoredHistories:
    """Every user's events by row: offsets [U + 1] into item, rating and time [E]; bounds [U, 2] (valid_from, test_from)."""

    offsets: NDArray[np.int64]
    item: NDArray[np.int32]
    rating: NDArray[np.float32]
    time: NDArray[np.int64]
    bounds: NDArray[np.int32]

    def events(self, row: int, known_until: str) -> slice:
        """Where the events of a user before validation (`valid`), before test (`test`), or all (`end`) lie."""
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        if known_until != "end":
            end = start + int(self.bounds[row, 0 if known_until == "valid" else 1])
        return slice(start, end)


@dataclass(frozen=True)
class Bundle:
    """An open bundle. Shapes: U users, N items, D dimensions, L of them learnt, P items that were watched in training.

    popular: [P] int32; item_vectors: [N, D], user_vectors: [U, D], gram: [L, L], encoder: an ONNX model that is safe to parse,
    item_inputs: [N, I] that it is fed with in place of item_vectors: None where the model has none;
    indexed: int32, ascending: items that `index` holds and personalised lists are made of.
    """

    folder: Path
    manifest: Manifest
    items: pa.Table
    popular: NDArray[np.int32]
    users: UserIds
    histories: StoredHistories
    item_vectors: NDArray[np.float32] | None = None
    user_vectors: NDArray[np.float32] | None = None
    gram: NDArray[np.float64] | None = None
    encoder: bytes | None = None
    item_inputs: NDArray[np.float32] | None = None
    index: Any = None
    indexed: NDArray[np.int32] | None = None

    @property
    def learnt_vectors(self) -> NDArray[np.float32]:
        """[N, L] what was learnt of the items, without a trend behind it. Only of a model that has vectors."""
        assert self.item_vectors is not None
        return self.item_vectors[:, : self.manifest.learnt]

    @property
    def version(self) -> str:
        """What answers name as their origin."""
        return self.manifest.version


def open_bundle(folder: Path, *, everything: bool = False) -> Bundle:
    """Open a bundle, or refuse it with the reason. everything: hash all files, whatever the receipt says.

    Raises BundleError where a file is missing, unexpected, altered or unsafe, or the parts do not fit each other.
    """
    folder = Path(folder)
    manifest, digest = inventory.read_manifest(folder)
    inventory.verify(folder, manifest, digest, everything=everything)
    return load(folder, manifest)


def load(folder: Path, manifest: Manifest) -> Bundle:
    """Map the files of a verified bundle and check them against each other. Raises BundleError."""
    users, items, dim, learnt = manifest.users, manifest.items, manifest.dim, manifest.learnt
    index, indexed = _read_index(folder, manifest)
    bundle = Bundle(
        folder=folder,
        manifest=manifest,
        items=_read_items(folder, manifest),
        popular=read_array(folder / layout.POPULAR, np.int32, (None,)),
        users=_read_user_ids(folder, users),
        histories=_read_histories(folder, users, manifest.events),
        item_vectors=_optional(folder, manifest, layout.ITEM_VECTORS, np.float32, (items, dim)),
        user_vectors=_optional(folder, manifest, layout.USER_VECTORS, np.float32, (users, dim)),
        gram=_optional(folder, manifest, layout.FOLD_IN_GRAM, np.float64, (learnt, learnt)),
        encoder=_read_encoder(folder, manifest),
        item_inputs=_optional(folder, manifest, layout.ITEM_INPUTS, np.float32, (items, None)),
        index=index,
        indexed=indexed,
    )
    _cross_check(bundle)
    return bundle


def _optional(folder: Path, manifest: Manifest, name: str, dtype: Any, shape: tuple[int | None, ...]) -> NDArray[Any] | None:
    return read_array(folder / name, dtype, shape) if name in manifest.files else None


def _read_histories(folder: Path, users: int, events: int) -> StoredHistories:
    histories = StoredHistories(
        offsets=read_array(folder / layout.HISTORY_OFFSETS, np.int64, (users + 1,)),
        item=read_array(folder / layout.HISTORY_ITEM, np.int32, (events,)),
        rating=read_array(folder / layout.HISTORY_RATING, np.float32, (events,)),
        time=read_array(folder / layout.HISTORY_TIME, np.int64, (events,)),
        bounds=read_array(folder / layout.HISTORY_BOUNDS, np.int32, (users, 2)),
    )
    if histories.offsets[0] != 0 or histories.offsets[-1] != events:
        raise BundleError(f"{folder / layout.HISTORY_OFFSETS}: does not end where the events do. {layout.AGAIN}")
    return histories


def _read_user_ids(folder: Path, users: int) -> UserIds:
    ids = _read_arrow(folder / layout.USER_IDS).column(schema.USER_ID)
    if len(ids) != users:
        raise BundleError(f"{folder / layout.USER_IDS}: {len(ids):,} ids for {users:,} users. {layout.AGAIN}")
    hashes = read_array(folder / layout.USER_HASHES, np.uint64, (users,))
    return UserIds(hashes, read_array(folder / layout.USER_ROWS, np.int32, (users,)), ids)


def _read_items(folder: Path, manifest: Manifest) -> pa.Table:
    items = _read_arrow(folder / layout.ITEMS)
    if items.num_rows != manifest.items or schema.ITEM_ID not in items.column_names:
        raise BundleError(f"{folder / layout.ITEMS}: not the {manifest.items:,} items of the manifest. {layout.AGAIN}")
    return items


def _read_arrow(path: Path) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate()
    except (OSError, ValueError, pa.ArrowException) as error:  # the second of types that a library knows, and cannot read
        raise BundleError(f"{path}: not an Arrow file ({error}). {layout.AGAIN}") from None
    if (column := schema.extension_column(table.schema)) is not None:
        raise BundleError(f"{path}: {schema.REFUSED.format(column)}")
    return table


def _read_index(folder: Path, manifest: Manifest) -> tuple[Any, NDArray[np.int32] | None]:
    """The FAISS index, parsed from bytes that were hashed just before, and the items it holds."""
    if manifest.index is None:
        return None, None
    content = _read_hashed(folder, layout.INDEX, manifest)
    try:
        index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
    except RuntimeError as error:
        raise BundleError(f"{folder / layout.INDEX}: FAISS cannot read it ({error}). {layout.AGAIN}") from None
    return index, _indexed(folder / layout.INDEX, index, manifest)


def _read_encoder(folder: Path, manifest: Manifest) -> bytes | None:
    """The bytes of the encoder, hashed just before, whatever the receipt says: C++ will parse them."""
    if layout.ENCODER not in manifest.files:
        return None
    content = _read_hashed(folder, layout.ENCODER, manifest)
    refuse_unsafe(folder / layout.ENCODER, content)
    return content


def _read_hashed(folder: Path, name: str, manifest: Manifest) -> bytes:
    content = (folder / name).read_bytes()
    inventory.check_bytes(folder / name, content, manifest.files[name])
    return content


def _indexed(path: Path, index: Any, manifest: Manifest) -> NDArray[np.int32]:
    report = manifest.index
    assert report is not None
    if index.d != manifest.dim or index.ntotal != report.indexed or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise BundleError(f"{path}: {index.ntotal:,} vectors of {index.d}, the manifest says otherwise. {layout.AGAIN}")
    if not isinstance(index, faiss.IndexIDMap):
        raise BundleError(f"{path}: {type(index).__name__} maps no ids. {layout.AGAIN}")
    inner = faiss.downcast_index(index.index)
    # It would refuse the search settings of another kind, at every request.
    if not isinstance(inner, KINDS[report.kind]) or _storage(inner, report.kind) != report.storage:
        raise BundleError(
            f"{path}: {type(inner).__name__}, the manifest says {report.kind} of {report.storage}. {layout.AGAIN}"
        )
    ids = faiss.vector_to_array(index.id_map)
    if len(ids) != index.ntotal or (len(ids) and (ids.min() < 0 or ids.max() >= manifest.items)) or (np.diff(ids) <= 0).any():
        raise BundleError(f"{path}: its id map does not fit the {manifest.items:,} items. {layout.AGAIN}")
    return ids.astype(np.int32)


def _storage(inner: Any, kind: str) -> str | None:
    """How an index of this kind holds vectors; None for what no bundle has."""
    whole, scalar, codes = KINDS[kind]
    if isinstance(inner, scalar):
        holder: Any = faiss.downcast_index(inner.storage) if kind == "hnsw" else inner
        return SCALAR.get(holder.sq.qtype) if hasattr(holder, "sq") else None
    return "pq" if isinstance(inner, codes) else "fp32" if isinstance(inner, whole) else None


def _cross_check(bundle: Bundle) -> None:
    manifest = bundle.manifest
    have = (bundle.item_vectors is not None, bundle.index is not None)
    if have != (manifest.dim > 0, manifest.dim > 0):
        raise BundleError(f"{bundle.folder}: vectors and index do not both fit {manifest.dim} dimensions. {layout.AGAIN}")
    if (bundle.user_vectors is not None) != (manifest.known_user == "table"):
        raise BundleError(f"{bundle.folder}: user vectors where there should be none, or none where needed. {layout.AGAIN}")
    _check_fold_in(bundle)
    leans = manifest.trend is not None and manifest.trend.weight > 0
    if leans != (manifest.learnt_dim is not None) or manifest.learnt > manifest.dim:
        raise BundleError(f"{bundle.folder}: a trend without its dimension, or the reverse. {layout.AGAIN}")
    if manifest.trend is not None and schema.LATELY not in bundle.items.column_names:
        raise BundleError(f"{bundle.folder / layout.ITEMS}: a trend without the column {schema.LATELY}. {layout.AGAIN}")
    popular = bundle.popular
    if len(popular) and (popular.min() < 0 or popular.max() >= manifest.items):
        raise BundleError(f"{bundle.folder / layout.POPULAR}: names items that do not exist. {layout.AGAIN}")
    if bundle.indexed is not None and not np.isin(popular, bundle.indexed).all():
        raise BundleError(f"{bundle.folder / layout.POPULAR}: names items that the index does not hold. {layout.AGAIN}")


def _check_fold_in(bundle: Bundle) -> None:
    manifest = bundle.manifest
    ends = [end for part in manifest.fold_in.parts for end in (part.first, part.last)]
    told = [0, *ends, manifest.learnt]
    if (manifest.fold_in.kind == "parts") != bool(ends) or (ends and (told[::2] != told[1::2] or ends != sorted(ends))):
        raise BundleError(f"{bundle.folder}: parts of a blend that do not lie side by side. {layout.AGAIN}")
    if sum(part.kind == "onnx" for part in manifest.fold_in.parts) > 1:
        raise BundleError(f"{bundle.folder}: a blend of two encoders, where a bundle holds one. {layout.AGAIN}")
    if (bundle.gram is not None) != manifest.fold_in.needs_gram:
        raise BundleError(f"{bundle.folder}: fold-in without its Gram matrix, or the reverse. {layout.AGAIN}")
    encodes = manifest.fold_in.encodes
    if (bundle.encoder is not None) != encodes or (bundle.item_inputs is not None and not encodes):
        raise BundleError(f"{bundle.folder}: fold-in by an encoder without it, or the reverse. {layout.AGAIN}")
