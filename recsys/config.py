"""All settings, typed and documented: one TOML file and `--set section.key=value`."""

import difflib
import math
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from recsys.errors import ConfigError

Split = Literal["auto", "time", "leave_last_out", "users", "items", "given"]
Repeats = Literal["last", "first", "keep"]

# An event of a macro-batch, as read and as permuted: item and rating, with user or time.
MACRO_BATCH_BYTES = 32

# Said here too, so that settings can be checked before PyTorch is loaded: the models, metrics that have a @k, and errors.
MODEL_NAMES = ("popularity", "mf", "ials", "spectral", "bpmf", "sasrec", "two_tower")
RANKING_METRICS = ("hr", "recall", "ndcg", "mrr")
LOWER_IS_BETTER = ("rmse", "mae")

# What each model can learn by.
LOSSES = {
    "mf": ("softmax", "bpr", "ccl", "mse"),
    "ials": ("squares",),
    "spectral": ("squares",),
    "bpmf": ("mse",),
    "sasrec": ("softmax", "gbce"),
    "two_tower": ("softmax",),
}

# Models that can be part of a blend, where they learn an order; a bundle holds one encoder, and so a blend.
BLENDED = ("mf", "ials", "spectral", "sasrec", "two_tower")

# Models that are fed whole users. A step is so many of them, of the others so many positives, where nothing is set.
OF_HISTORIES = ("sasrec", "two_tower")
EACH_DIMENSION, LEAST_DIMENSIONS, MOST_DIMENSIONS = 32, 8, 256  # users or items, of spectral
LEAST_USERS, MOST_USERS, LEAST_STEPS, POSITIVES = 8, 128, 40, 4096
AVERAGED, AVERAGED_EPOCHS, LEAST_AVERAGED = ("mf",), 4, 100  # models; epochs that the mean reaches back; steps of one, at least

# What suits a model where nothing is set, if it is not what the settings below say (which is what suits mf).
SUITED: dict[str, dict[str, dict[str, Any]]] = {
    "sasrec": {
        "model": {"negatives": None},
        "train": {
            "learning_rate": 0.002,
            "average": 0.999,
            "epochs": 100,
            "patience": 10,
            "plateau_patience": 4,
        },
    },
    "two_tower": {
        "model": {"negatives": None, "heads": 4, "cosine": True},
        "train": {"learning_rate": 0.001, "epochs": 100, "patience": 10, "plateau_patience": 4},
    },
    "ials": {"model": {"loss": "squares"}, "train": {"epochs": 16, "patience": 3}},
    "spectral": {"model": {"loss": "squares"}, "train": {"epochs": 8, "patience": 2}},
    "bpmf": {"model": {"loss": "mse", "dim": 12}, "train": {"epochs": 12, "patience": 4, "metric": "rmse"}},
}


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class DataConfig(Section):
    """How sources become a dataset folder (`recsys prepare`)."""

    format: str = "auto"
    """auto recognises it by its files; or ml-100k, movielens-dat, movielens-csv, lightgcn, ncf, sequence, tabular."""
    fold: str | None = None
    """Which published split to take where a source has several, such as `u1` or `ua` of ml-100k."""
    user_column: str | None = None
    """Column holding the user's id in csv, tsv and parquet; unset: recognised by usual names."""
    item_column: str | None = None
    """Column holding the item's id; unset: recognised by usual names."""
    rating_column: str | None = None
    """Column holding the rating; unset: recognised by usual names, absent: every rating is 1."""
    time_column: str | None = None
    """Column holding Unix seconds or ISO 8601; unset: recognised by usual names."""
    catalogue: str | None = None
    """File describing items (csv, tsv or parquet) for a tabular source."""
    delimiter: str | None = Field(None, pattern=r'^[^"\r\n[:^ascii:]]+$')
    """Field delimiter of text files; unset: by file name and first line."""
    encoding: Literal["utf-8", "latin-1"] | None = None
    """Encoding of text files; unset: as the format's publisher uses."""
    min_rating: float | None = None
    """Implicit feedback: keep only events rated at least this; unset keeps all."""
    core: int = Field(0, ge=0)
    """k-core: drop users and items with fewer events than this, again and again until none is left."""
    sample: float = Field(1.0, gt=0, le=1)
    """Fraction of users to keep, chosen by a hash of their id, so histories stay whole."""
    repeats: Repeats = "last"
    """What becomes of a user's second event on an item."""
    split: Split = "auto"
    """How held-out events are chosen; `auto`: the published split, else leave_last_out."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """Share held out for validation: of events (time, given), of users (users), of items (items)."""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share held out for test: of events (time), of users (users), of items (items)."""
    valid_time: int | None = None
    """Split `time`: Unix second at which validation begins; unset: by valid_fraction."""
    test_time: int | None = None
    """Split `time`: Unix second at which test begins; unset: by test_fraction."""
    shown_fraction: float = Field(0.8, gt=0, lt=1)
    """Split `users`: share of a held-out user's events that the model is shown."""
    shards: int | None = Field(None, ge=1)
    """Number of user files; unset: 20, and one more for each further million events."""
    row_group_events: int = Field(131_072, ge=1)
    """Events in a row group of a user file: the unit that training shuffles."""
    range_bytes: int = Field(32 << 20, ge=1 << 10)
    """Big text files are read in parallel as ranges of this many bytes."""
    max_bad_rows: float = Field(0.01, ge=0, le=1)
    """Share of rows that may be rejected before the run fails."""
    strict: bool = False
    """Fail on columns nobody asked for, instead of warning once."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seeds the permutation of sources without order, and the choice of held-out users and items."""


class ModelConfig(Section):
    """What is learnt."""

    name: str = "mf"
    """Which model: popularity, mf, ials, spectral, bpmf, sasrec or two_tower."""
    dim: int = Field(64, ge=1)
    """Dimensions of a user and an item vector, before biases. bpmf: 12, in each chain; spectral, if unset: a 32nd of the users
    or of the items, whichever are fewer, as the next power of two from 8 to 256."""
    loss: Literal["softmax", "bpr", "ccl", "gbce", "mse", "squares"] = "softmax"
    """softmax, bpr and ccl (mf) and gbce (sasrec) learn an order from what was watched; mse (mf, bpmf) learns ratings; squares
    (ials, spectral) has 1 as the score of what was watched and 0, of a weight, of all else."""
    temperature: float = Field(1.0, gt=0)
    """softmax, gbce: divides the scores: smaller means harder negatives. With cosine, and so of two_tower: 0.1."""
    cosine: bool = False
    """Vectors are compared by cosine, and exported normalised. two_tower: true; ccl always does; mse, which learns ratings,
    cannot."""
    margin: float = Field(0.9, ge=-1, le=1)
    """ccl: cosine up to which a negative costs nothing."""
    negative_weight: float = Field(150.0, gt=0)
    """ccl: what the mean over negatives weighs against the positive."""
    calibration: float = Field(0.75, ge=0, le=1)
    """gbce: how much of the confidence that sampling negatives adds is taken off: 0 none of it, 1 all."""
    negatives: int | None = Field(1024, ge=1)
    """Negatives drawn a step, shared by the whole effective batch (all losses but mse). None: every trained item up to 20,000
    of them (for softmax, the exact one), else 2048. sasrec, two_tower: None."""
    negative_source: Literal["uniform", "popularity", "in_batch"] = "uniform"
    """Where negatives come from; in_batch takes the batch's own positives."""
    logq: bool = True
    """Correct softmax for how likely each negative was to be drawn."""
    biases: bool = True
    """mf: learn a bias for each item, and with mse for each user."""
    l2: float = Field(0.25, ge=0)
    """mf: L2 penalty on the rows of each event, over the root of how many events such a row has on average."""
    chains: int = Field(4, ge=1)
    """bpmf: chains of draws, each with vectors of its own, whose scores are averaged; a served vector has dim of each."""
    max_length: int = Field(200, ge=1)
    """sasrec, two_tower: events of a user that are looked back on, at most; longer histories are learnt from in several
    windows."""
    block: Literal["hstu", "transformer"] = "hstu"
    """sasrec: of what it is made: gated attention without softmax (hstu), or the transformer's and a feed-forward layer."""
    blocks: int = Field(2, ge=0)
    """sasrec: how many of them."""
    heads: int = Field(1, ge=1)
    """sasrec: heads of the attention; they divide dim. two_tower: ways in which a history is averaged: 4."""
    width: int = Field(4, ge=1)
    """sasrec of transformer blocks, two_tower: width of the feed-forward layers, as a multiple of dim."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """sasrec, two_tower: share of what goes in, and of what each half of a block or a tower adds, that is left out while
    training. Small models want less: 0.1 with 32 dimensions."""
    attributes: tuple[str, ...] | None = None
    """two_tower: columns of items.parquet that tell what an item is; unset: all but ids and counts."""
    attribute_items: int = Field(5, ge=1)
    """two_tower: items that a category (a genre, a word of a title, ...) needs; those with fewer share one place a column."""
    id_dropout: float = Field(0.5, ge=0, lt=1)
    """two_tower: share of the items of a step that are told by their attributes alone, as one that nobody trained on is."""
    unobserved_weight: float | None = Field(None, gt=0)
    """ials: α, the weight of every pair's square beside an event's 1; larger shuns more of what was not watched. Unset: 20
    times the share of all pairs that have an event, at most 1."""
    ridge: float | None = Field(None, gt=0)
    """ials: λ, the L2 penalty: times (n + α·others)^frequency_power for a row with n events, others being the rows of the other
    table. Unset: such that with a power of 1 it is 0.15 over the events that a user has on average."""
    frequency_power: float = Field(1.0, ge=0, le=1)
    """ials: ν. 0: one penalty for all rows; 1: in proportion to what pulls at a row, which wants a much smaller ridge."""
    smoothing: float | None = Field(None, gt=0)
    """spectral: s, added to the events of each user and item before they are evened out; larger trusts rare ones less. Unset:
    the events that a user has on average."""
    popularity_power: float = Field(0.4, ge=0, le=1)
    """spectral: p, the power of an item's events (and s) by which it is ranked higher; 0.5 is what squares ask for."""
    fold_in_ridge: float = Field(15.0, gt=0)
    """mf: ridge that holds a folded-in vector near the average user."""
    trend_days: float | None = Field(None, ge=0)
    """Days after which an event counts half for what is popular now, which strangers get and personal lists lean to; 0: all
    count alike. Unset: chosen on validation, and none where that shows no clear gain."""
    trend_weight: float | None = Field(None, ge=0)
    """What an item's recent events above its usual ones add to a personal score, for each standard deviation over the items.
    Unset: chosen on validation. Not for models of ratings."""


class TrainConfig(Section):
    """How it is learnt."""

    epochs: int = Field(30, ge=1)
    """Most passes over the training events. sasrec, two_tower: 100; ials: 16; spectral: 8; bpmf: 12, of 10 draws each, those of
    the first two forgotten."""
    batch_size: int | None = Field(None, ge=1)
    """Effective batch, over all workers together: positives a step; of sasrec and two_tower, users. Unset: 4096 positives; of
    users 128, and where these are more than a 40th of all, a 40th, but at least 8."""
    micro_batch: int | None = Field(None, ge=1)
    """Most events a worker makes gradients of at once (of windows with padding); unset: found by trying. Changes speed and
    memory, not what is learnt."""
    optimizer: Literal["adam", "adagrad"] = "adam"
    """Row-wise optimizer of the tables: only rows a step touched are read and written. Other parameters have Adam."""
    learning_rate: float = Field(0.01, gt=0)
    """Step size at the first epoch. sasrec: 0.002; two_tower: 0.001."""
    average: float | None = Field(None, ge=0, lt=1)
    """Decay, a step, of a running mean of the weights, which is then what is measured and kept; 0: the weights themselves.
    sasrec: 0.999. Unset: of mf such that it reaches back over a ninth of the steps so far, four epochs at most, where all
    events, held out or not, are 100 steps or more; else 0."""
    teacher_weight: float = Field(0.5, ge=0, le=1)
    """--teacher: the part of the loss that is learnt from the teacher's scores; the rest is from what was watched."""
    teacher_temperature: float = Field(1.0, gt=0)
    """--teacher: divides the scores of both inside the softmax: larger shows more of what the teacher ranks low."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of all gradients together; unset: no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the matrix products; auto takes what measures fastest on this hardware."""
    threads: int | None = Field(None, ge=1)
    """Threads a worker computes with; unset: its share of the cores."""
    metric: str = "ndcg@10"
    """Validation metric that chooses the best epoch: ndcg@k, hr@k, recall@k, mrr@k or rmse. Of ratings (mse): rmse."""
    metric_ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 20), min_length=1)
    """Cut-offs at which ranking metrics are reported."""
    patience: int = Field(5, ge=1)
    """Stop after this many epochs without a better metric; the best weights are restored. sasrec,
    two_tower: 10."""
    plateau_patience: int = Field(2, ge=0)
    """Epochs without a better metric before the learning rate falls. sasrec, two_tower: 4."""
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    """What the learning rate is multiplied by then."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seeds initial weights, order and negatives."""


class IndexConfig(Section):
    """How items are searched."""

    kind: Literal["auto", "flat", "hnsw", "ivf"] = "auto"
    """FAISS index; auto chooses by the size of the catalogue."""
    flat_until: int = Field(300_000, ge=0)
    """auto: up to this many items the index is exact. With a storage other than fp32 20,000 at most."""
    hnsw_until: int = Field(2_000_000, ge=0)
    """auto: up to this many items HNSW, beyond it IVF."""
    hnsw_m: int = Field(32, ge=2)
    """Neighbours a node keeps."""
    hnsw_ef_construction: int = Field(200, ge=1)
    """Candidates looked at while building."""
    hnsw_ef_search: int = Field(128, ge=1)
    """Candidates looked at while searching."""
    hnsw_graph: Literal["products", "directions"] = "products"
    """What makes items neighbours: large inner products, or like directions, whatever the vectors' lengths. The latter finds
    more where lengths differ threefold, and less where they differ more than tenfold: export says what each finds."""
    ivf_lists: int | None = Field(None, ge=1)
    """Cells; unset: 4 times the root of the number of items."""
    ivf_probes: int = Field(32, ge=1)
    """Cells searched."""
    storage: Literal["fp32", "fp16", "int8", "pq"] = "fp32"
    """How the index holds vectors: whole, as halves, as bytes, or as codes of product quantization. The whole ones stay beside
    it and rescore the head of each list."""
    rerank: int = Field(4, ge=1)
    """fp16, int8 and pq: how many times a list's length is rescored with the whole vectors."""
    pq_dims: Literal[1, 2, 4, 8] = 4
    """pq: dimensions that share a code."""
    pq_bits: int = Field(8, ge=4, le=8)
    """pq: bits of a code; fewer where there are too few items to learn so many codes from."""
    recall_floor: float = Field(0.95, ge=0, le=1)
    """Below this recall@10 against exact search the server answers exactly."""
    audit_users: int = Field(1000, ge=1)
    """Real user vectors on which recall and latency are measured at export."""


class EncoderConfig(Section):
    """How a model's encoder is written (`recsys export`)."""

    storage: Literal["fp32", "int8"] = "fp32"
    """Numbers that its matrices are held and multiplied as."""
    pruned: float = Field(0.0, ge=0, lt=1)
    """Share of the units of each feed-forward layer that is left out, those of the smallest norms first; nothing is trained
    anew."""


class ClusterConfig(Section):
    """Where it runs and how it streams."""

    num_workers: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 1
    """Training workers; they change speed, not quality. [least, most]: as many as there is room for, also when nodes go.
    0: none, the command's own process trains, which begins sooner, and is not started again when it breaks."""
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    """Whether a worker takes a GPU; auto: if the cluster has one for each."""
    cpus_per_worker: float = Field(1, gt=0)
    """Logical CPUs a worker reserves."""
    storage: str = "runs"
    """Folder of runs; with several hosts, one that all of them mount."""
    window_events: int = Field(1 << 20, ge=1)
    """Shuffle window: events in a macro-batch, permuted together."""
    mix_shards: int = Field(8, ge=1)
    """Shards that a macro-batch mixes at least."""
    readers: int | None = Field(None, ge=1)
    """Tasks a worker reads macro-batches with: of Ray Data, or threads where its shards fit in memory. Unset: its share of the
    cores, at least 2 and at most 8."""
    prefetch: int | None = Field(None, ge=0)
    """Macro-batches read ahead; unset: as many as there are readers, fewer where memory is short."""
    hold_bytes: int | None = Field(None, ge=0)
    """Bytes of shards that a worker may hold in memory; unset: its part of a quarter of what is free. More is streamed."""
    checkpoint_seconds: float = Field(300, gt=0)
    """Within an epoch, a checkpoint after this long; there is one after every epoch anyway."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Also one after so many steps."""
    stall_seconds: float = Field(600, gt=0)
    """A worker that gets nowhere for so long is ended with its stacks written down, and its group started again."""
    max_failures: int = Field(3, ge=0)
    """Times a broken worker group is started again from its last checkpoint."""
    object_store_bytes: int = Field(1 << 30, ge=80 << 20)
    """Object store of a Ray started here; a Ray joined keeps its own."""

    @field_validator("num_workers", mode="wrap")
    @classmethod
    def _told_as_one(cls, value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(value)
        except ValidationError:  # which of the two kinds was meant pydantic cannot know
            raise ValueError("give a whole number, or [least, most] with a least of 1") from None

    @model_validator(mode="after")
    def _least_first(self) -> "ClusterConfig":
        if self.least_workers > self.most_workers:
            raise ValueError(f"num_workers: least before most, not {self.num_workers}")
        return self

    def readers_on(self, cores: int) -> int:
        """How many readers a worker with so many cores has."""
        return self.readers or max(2, min(8, cores))

    def prefetch_on(self, readers: int, room_bytes: int) -> int:
        """How many macro-batches a worker reads ahead that has so much room for them."""
        room = room_bytes // (self.window_events * MACRO_BATCH_BYTES)
        return self.prefetch if self.prefetch is not None else max(1, min(readers, room))

    @property
    def in_process(self) -> bool:
        """Whether the command's own process trains. It counts as one worker."""
        return self.num_workers == 0

    @property
    def least_workers(self) -> int:
        """Fewest workers to train with."""
        return max(self.num_workers, 1) if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Most workers to train with."""
        return max(self.num_workers, 1) if isinstance(self.num_workers, int) else self.num_workers[1]


class Config(Section):
    """Every setting of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    index: IndexConfig = IndexConfig()
    encoder: EncoderConfig = EncoderConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="before")
    @classmethod
    def _what_suits_the_model(cls, values: Any) -> Any:
        """Settings that were not given are those of the model, where it has its own."""
        if not isinstance(values, dict):
            return values
        given = {name: _given(values.get(name)) for name in Config.model_fields}
        suited = SUITED.get(str(given["model"].get("name")), {})
        if given["model"].get("loss") == "mse" and "mse" in LOSSES.get(given["model"].get("name", "mf"), ()):
            suited = {**suited, "train": {**suited.get("train", {}), "metric": "rmse"}}
        if (suited.get("model", {}) | given["model"]).get("cosine") is True:  # no larger than 1, so that 1 says next to nothing
            suited = {**suited, "model": {"temperature": 0.1} | suited.get("model", {})}
        return {**values, **{section: own | given[section] for section, own in suited.items()}}


def with_trend(config: Config, told: dict[str, Any] | None) -> Config:
    """With the trend that a run of these settings chose, as its result.json tells it: a refit has nothing to choose by."""
    chosen = {"trend_days": 0.0} if told is None else {"trend_days": told["half_life_days"], "trend_weight": told["weight"]}
    return config.model_copy(update={"model": config.model.model_copy(update=chosen)})


def batch_size(config: Config, users: int) -> int:
    """`train.batch_size`, or what suits a dataset of so many users."""
    if config.train.batch_size is not None:
        return config.train.batch_size
    if config.model.name not in OF_HISTORIES:
        return POSITIVES
    # Else an epoch of few users were a handful of steps (docs/log.md, "Few users, few steps").
    return max(LEAST_USERS, min(MOST_USERS, users // LEAST_STEPS))


def dimensions(config: Config, users: int, items: int, begun: int | None = None) -> int:
    """`model.dim`, or of spectral what suits a dataset of so many users and items: more dimensions than these have to tell are
    noise (docs/log.md, "Dimensions of spectral"). begun: those of the run that it begins from, whose rows fit no other."""
    if config.model.name != "spectral" or "dim" in config.model.model_fields_set:
        return config.model.dim
    if begun is not None:
        return begun
    wanted = math.ceil(min(users, items) / EACH_DIMENSION)
    return max(LEAST_DIMENSIONS, min(MOST_DIMENSIONS, 1 << (wanted - 1).bit_length()))


def average(config: Config, users: int, events: int) -> float:
    """`train.average`, or what suits a dataset of so many users and events. A row is changed a few times in an epoch, each time
    by the noise of one step; of small datasets an epoch itself is a few steps (docs/log.md, "A mean of tables")."""
    if config.train.average is not None:
        return config.train.average
    steps = events // batch_size(config, users)
    return 1 - 1 / (AVERAGED_EPOCHS * steps) if config.model.name in AVERAGED and steps >= LEAST_AVERAGED else 0.0


def settled(config: Config, users: int, items: int, events: int, begun: int | None = None) -> Config:
    """With what was left to the dataset, so that a run's settings are whole. events: all, held out or not, so that a refit has
    the same. begun: as `dimensions` takes it."""
    mean, size = average(config, users, events), batch_size(config, users)
    train = config.train.model_copy(update={"batch_size": size, "average": mean})
    model = config.model.model_copy(update={"dim": dimensions(config, users, items, begun)})
    return config.model_copy(update={"train": train, "model": model})


def _given(section: Any) -> dict[str, Any]:
    """What was set of a section, by hand."""
    if isinstance(section, Section):
        return section.model_dump(include=section.model_fields_set)
    return section if isinstance(section, dict) else {}


def check_model(model: ModelConfig) -> None:
    """Raises ConfigError where a model cannot have these settings. A name that is no model's is not looked at."""
    losses = LOSSES.get(model.name)
    if losses and model.loss not in losses:
        raise ConfigError(f"model.loss = {model.loss!r}: {model.name} learns by one of {', '.join(losses)}.")
    if model.cosine and model.loss in ("mse", "squares"):
        raise ConfigError(f"model.cosine: {model.loss} learns scores that are no cosines. Leave one of the two out.")
    if model.name == "sasrec" and model.dim % model.heads:
        raise ConfigError(f"model.heads = {model.heads}: must divide model.dim = {model.dim}.")


def load_config(path: Path | None = None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None) -> Config:
    """Settings from `base` (a dumped Config), then a TOML file, then `section.key=value` strings.

    Raises ConfigError with the nearest name for an unknown key, or with what a value should be.
    """
    values: dict[str, Any] = {name: dict(section) for name, section in (base or {}).items()}
    if path is not None:
        _merge(values, read_toml(path, "Give an existing TOML file to --config."), where=str(path))
    for override in overrides:
        _merge(values, _parse_override(override), where=f"--set {override}")
    return _validated(values)


def config_of(sections: dict[str, Any], where: str) -> Config:
    """Settings from tables that are read already, as `load_config` takes them from a file; `where` stands in the errors."""
    values: dict[str, Any] = {}
    _merge(values, sections, where)
    return _validated(values)


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for a name that is not known: the one that was meant, or all there are."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else f" There are: {', '.join(known)}."


def describe(config: Config) -> Iterator[tuple[str, str, Any, str]]:
    """Every field as (section, key, effective value, documentation)."""
    for section_name in Config.model_fields:
        section = getattr(config, section_name)
        for key, field in type(section).model_fields.items():
            yield section_name, key, getattr(section, key), field.description or ""


def _validated(values: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def read_toml(path: Path, what_next: str) -> dict[str, Any]:
    """What a file says. Raises ConfigError where it cannot be read, with what to do then, or is not TOML."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). {what_next}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None


def _parse_override(override: str) -> dict[str, Any]:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        raise ConfigError(f"--set {override}: write section.key=value, such as --set train.epochs=5.")
    return {section: {key: _parse_value(text.strip())}}


def _parse_value(text: str) -> Any:
    if text.lower() in ("none", "null", ""):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string


def _merge(values: dict[str, Any], more: dict[str, Any], where: str) -> None:
    for section, keys in more.items():
        fields = setting_fields(section, where)
        if not isinstance(keys, dict):
            raise ConfigError(f"{where}: {section} is a section; write {section}.key = value.")
        for key, value in keys.items():
            if key not in fields:
                raise ConfigError(f"{where}: no setting {section}.{key}.{nearest(key, list(fields))}")
            values.setdefault(section, {})[key] = None if value == "none" else value  # TOML has no null


def setting_fields(section: str, where: str) -> dict[str, FieldInfo]:
    """The settings of a section by name. where: what names it. Raises ConfigError with the nearest name for no section."""
    if section not in Config.model_fields:
        raise ConfigError(f"{where}: no section {section}.{nearest(section, list(Config.model_fields))}")
    fields: dict[str, FieldInfo] = type(getattr(Config(), section)).model_fields
    return fields


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][:2])  # the rest is pydantic's: which of several kinds it tried
    what = first["msg"].lower().removeprefix("value error, ")
    told = f"{name} = {first['input']!r}" if "." in name else name
    return f"{told}: {what}. `recsys config` documents every setting."


SPLITS: tuple[str, ...] = get_args(Split)
