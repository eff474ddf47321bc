"""`manifest.json` of a bundle: what it holds, what made it, how good it is, and a hash of every file."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
MANIFEST_HASH = "manifest.sha256"  # of manifest.json, as `sha256sum -c` reads it: a flipped bit there is caught too
CURRENT_FILE = "CURRENT"
CANARY_FILE = "CANARY"
SERVED_FILE = "SERVED"
AGAIN = "Export again, or serve another version: recsys bundle list, recsys bundle promote"
"""What to do where a bundle is not as it was written."""

ITEM_VECTORS = "item_vectors.npy"  # [N, D] float32, row = item; zeros where `index.faiss` does not hold the item
USER_VECTORS = "user_vectors.npy"  # [U, D] float32, row = user; only where known_user = "table"
INDEX = "index.faiss"  # inner product; id = item
POPULAR = "popular.npy"  # [P] int32 items, most watched first, in train or lately; what a stranger gets
ITEMS = "items.arrow"  # uncompressed IPC, row = item: the dataset's items.parquet
USER_HASHES = "users/hashes.npy"  # [U] uint64, sorted: first 8 bytes of blake2b(user_id), big endian
USER_ROWS = "users/rows.npy"  # [U] int32: row of that user in history/ and user_vectors.npy
USER_IDS = "users/ids.arrow"  # the id strings by row, to confirm a hash
HISTORY_OFFSETS = "history/offsets.npy"  # [U + 1] int64
HISTORY_ITEM = "history/item.npy"  # [E] int32
HISTORY_RATING = "history/rating.npy"  # [E] float32
HISTORY_TIME = "history/time.npy"  # [E] int64
HISTORY_BOUNDS = "history/bounds.npy"  # [U, 2] int32: valid_from, test_from
FOLD_IN_GRAM = "fold_in_gram.npy"  # [L, L] float64, of the L learnt dimensions; only where something is solved: "ridge"
ENCODER = "encoder.onnx"  # items [1, L, I] → user, its learnt dimensions; only where fold_in = "onnx"
ITEM_INPUTS = "item_inputs.npy"  # [N, I] float32: what the encoder is fed; only where that is not item_vectors.npy
FILES = frozenset(
    {
        ITEM_VECTORS,
        USER_VECTORS,
        INDEX,
        POPULAR,
        ITEMS,
        USER_HASHES,
        USER_ROWS,
        USER_IDS,
        HISTORY_OFFSETS,
        HISTORY_ITEM,
        HISTORY_RATING,
        HISTORY_TIME,
        HISTORY_BOUNDS,
        FOLD_IN_GRAM,
        ENCODER,
        ITEM_INPUTS,
    }
)
"""Every file a bundle of this format version may hold: any other name, and so any path out of it, is refused."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Part):
    """Size in bytes and SHA-256 of one file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class IndexReport(_Part):
    """The index, and its recall and latency against exact search, measured at export on real user vectors.

    Recall of lists as they are served, without what was seen; users: for so many of those tried the index was asked, or, where
    it was for none, of lists with nothing left out. Latencies in milliseconds a query, one thread, batches of 64, nothing left
    out. `recall_low`: 95% lower bound over users. storage: how the
    index holds vectors; difference: how far that moves the scores of a few of its own items, of the largest.
    """

    kind: Literal["flat", "hnsw", "ivf"]
    storage: Literal["fp32", "fp16", "int8", "pq"] = Field("fp32", exclude_if=lambda storage: storage == "fp32")
    parameters: dict[str, int]
    difference: float = Field(0.0, ge=0, exclude_if=lambda difference: not difference)
    indexed: int
    recall_at_10: float
    recall_low: float
    users: int
    ann_ms: float
    exact_ms: float


class EncoderReport(_Part):
    """How far the encoder is from the model it was made from, measured at export on real histories.

    difference: the largest of any number of any of their vectors, as a share of the largest number or, where that is below 1,
    as it is; longest: events of the longest history; milliseconds: to encode one of `max_length` events, one thread.
    storage: of its weights; pruned: the share of feed-forward units left out, and then the model it was made from is the pruned
    one. cosine: of its vectors with those of the whole model, on average; where either was asked for.
    """

    histories: int
    longest: int
    difference: float
    milliseconds: float
    storage: Literal["fp32", "int8"] = Field("fp32", exclude_if=lambda storage: storage == "fp32")
    pruned: float = Field(0.0, ge=0, lt=1, exclude_if=lambda share: not share)
    cosine: float | None = Field(None, exclude_if=lambda cosine: cosine is None)


class GoldenQuery(_Part):
    """A history, oldest event first, and the exact answer the bundle must give to it before it is served."""

    items: tuple[int, ...]
    ratings: tuple[float, ...]
    answer: tuple[int, ...]
    scores: tuple[float, ...]


class TrendReport(_Part):
    """What is popular now counts for more than what ever was: an event half after `half_life_days` (`lately` in items.arrow, by
    which `popular.npy` is ordered). weight: what a standard deviation of the gain over `count` adds to personal scores. Where
    it is not 0, item vectors have the product behind what was learnt, and a user vector has 1 there."""

    half_life_days: float = Field(gt=0)
    weight: float = Field(ge=0)


class FoldInPart(_Part):
    """Of a blend: how its vectors in dimensions [first, last) are made, then taken times `weight`; the rest as in `FoldIn`.

    known: where a known user's come from: user_vectors.npy, or his history, and then the table has zeros there.
    """

    kind: Literal["ridge", "softmax", "sum", "onnx"]
    parameters: dict[str, float]
    first: int = Field(ge=0)
    last: int = Field(gt=0)
    weight: float
    known: Literal["table", "history"]


class FoldIn(_Part):
    """How a history becomes a vector: `ridge` solves (weight·G + VᵀV + ridge·I) u = Vᵀt over the history's items, `softmax`
    descends the loss that training had, `sum` adds up their vectors, weighted by how often items are watched, `onnx` runs an
    encoder over its last `max_length` items, `parts` puts the vectors of several side by side, `none` is for
    models without vectors. `recsys.retrieval.fold_in`, `.softmax_fold_in` and `.sum_fold_in` have the formulas, `.encoder` what
    an encoder is given."""

    kind: Literal["ridge", "softmax", "sum", "onnx", "parts", "none"]
    parameters: dict[str, float] = {}
    parts: tuple[FoldInPart, ...] = Field((), exclude_if=lambda parts: not parts)

    @property
    def needs_gram(self) -> bool:
        """Whether anything is solved."""
        return "ridge" in (self.kind, *(part.kind for part in self.parts))

    @property
    def encodes(self) -> bool:
        """Whether anything is encoded."""
        return "onnx" in (self.kind, *(part.kind for part in self.parts))


class Manifest(_Part):
    """Written last: a folder without it is not a bundle."""

    format_version: int = FORMAT_VERSION
    name: str
    version: str
    created: str
    writer: str
    model: str
    config: dict[str, Any]
    dataset: str
    split: str | None = Field(None, exclude_if=lambda split: split is None)  # how the dataset holds out
    vectors_from: tuple[str, ...]
    metrics_on: str
    metrics: dict[str, float]
    popularity: dict[str, float]
    items: int
    users: int
    events: int
    dim: int
    learnt_dim: int | None = Field(None, ge=1, exclude_if=lambda dim: dim is None)  # of dim, where a trend stands behind them
    known_user: Literal["table", "history", "none"]
    fold_in: FoldIn
    trend: TrendReport | None = Field(None, exclude_if=lambda trend: trend is None)
    exclude_seen: bool
    known_until: Literal["valid", "test", "end"] = "end"
    recall_floor: float
    index: IndexReport | None
    encoder: EncoderReport | None = None
    golden: tuple[GoldenQuery, ...]
    files: dict[str, FileEntry]

    @property
    def whole_part(self) -> FoldInPart:
        """How a model that is no blend folds in, as the only part of one."""
        told, known = self.fold_in, "table" if self.known_user == "table" else "history"
        return FoldInPart(
            kind=told.kind,
            parameters=told.parameters,
            first=0,
            last=self.learnt,
            weight=1.0,
            known=known,
        )

    @property
    def encoded_part(self) -> FoldInPart:
        """What the encoder makes. Only of a bundle that has one."""
        return next((part for part in self.fold_in.parts if part.kind == "onnx"), None) or self.whole_part

    @property
    def learnt(self) -> int:
        """Dimensions of what was learnt of a user or an item: all, or those before the trend."""
        return self.dim if self.learnt_dim is None else self.learnt_dim
