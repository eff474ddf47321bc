"""From a run's best checkpoint and its dataset to a published bundle; users stream through, a row group at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from cluster import runs
from cluster.blending import blend_of_refits
from cluster.finished import PARTS, Finished, helping, open_finished
from cluster.reading import arrivals, item_counts, trained_until
from cluster.trainer import OnEpoch, OnNote, OnStep, train
from recsys.bundle import store
from recsys.bundle.manifest import EncoderReport, FoldIn, FoldInPart, TrendReport
from recsys.bundle.read import Bundle
from recsys.bundle.users import UserBlock
from recsys.bundle.write import BundleContents, write_bundle
from recsys.config import EncoderConfig, IndexConfig, ModelConfig, with_trend
from recsys.data import schema
from recsys.data.dataset import UserFile, check_file, read_items
from recsys.data.histories import Histories
from recsys.errors import ConfigError
from recsys.models import MODELS, Popularity
from recsys.models.base import listed_items
from recsys.models.blend import Blend, encoder_of, parameters
from recsys.models.trend import Trend
from recsys.retrieval import ann
from recsys.retrieval.fold_in import gram_of
from recsys.retrieval.leaning import with_column
from recsys.retrieval.measure import measure

SEGMENTS_BEFORE = {schema.VALID: (schema.TRAIN,), schema.TEST: (schema.TRAIN, schema.VALID), schema.END: schema.SEGMENTS}

Compared = Callable[[Bundle], EncoderReport]


@dataclass(frozen=True)
class _Source:
    """What is exported: a finished run, the dataset it learnt from, and how much of that.

    learnt: the run whose model it is, which is another after a refit. border: what it trained on ends here.
    """

    found: Finished
    learnt: Finished
    border: str

    @cached_property
    def files(self) -> tuple[UserFile, ...]:
        """User files, with the role their users had in training."""
        return trained_until(self.found.dataset, self.found.manifest, self.border).user_files


def export(
    run: Path,
    bundles: Path,
    *,
    name: str | None = None,
    refit: bool = False,
    promote: bool = True,
    index: IndexConfig | None = None,
    encoder: EncoderConfig | None = None,
    version: str | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    on_note: OnNote | None = None,
) -> Path:
    """Publish `<bundles>/<name>/<version>` from a run folder and, if `promote`, serve it from now on. Returns its folder.

    name: by default the run's. refit: first train on all segments for as many epochs as validation chose, at the learning rates
    of that run, on the Ray that the caller connected (`cluster.session`); the metrics stay those of the run. on_epoch, on_step,
    on_note: told of that as `train` tells. index, encoder: settings in place of the run's.
    Raises DataError for a run that is not finished, or where the dataset is not the one it learnt from, BundleError where
    the vectors are not finite, the version exists, or the exported encoder is not the model's, ConfigError for a name that no
    bundle can have, or where there is no encoder to write as asked.
    """
    run = Path(run).resolve()
    name = store.plain(name or run.name)
    source = _open(run)
    _check_encoder(_models(source.found), encoder or source.found.config.encoder)
    if refit and source.found.config.model.name != "popularity":
        source = _refitted(run, source, on_epoch=on_epoch, on_step=on_step, on_note=on_note)
    if refit:
        source = replace(source, border=schema.END)
    index, encoder = index or source.found.config.index, encoder or source.found.config.encoder
    counts = item_counts(source.found.dataset, source.found.manifest, source.files, source.border)
    trend = source.found.trend(source.files, source.border, counts)
    contents = _contents(source, counts, index, trend)
    finish = partial(measure, audit_users=index.audit_users)
    if source.found.config.model.name != "popularity":
        model = source.learnt.model(counts)
        contents = _with_vectors(contents, source, model, counts, index, trend if trend is not None and trend.weight else None)
        if (encodes := encoder_of([model] if model.fold_in != "parts" else model.parts)) is not None:
            contents, compared = _with_encoder(contents, encodes, encoder)
            finish = partial(_measured, compared=compared, audit_users=index.audit_users)
    return write_bundle(Path(bundles), name, contents, version=version, finish=finish, promote=promote)


def _open(run: Path) -> _Source:
    found = open_finished(run)
    return _Source(found, found, found.border)


def _refitted(run: Path, source: _Source, **told: Any) -> _Source:
    return replace(source, learnt=open_finished(_refit(run, source.found, **told)))


def _refit(run: Path, found: Finished, **told: Any) -> Path:
    """Train again on all events, a blend's runs one after the other. Returns the folder."""
    if PARTS in found.result:
        parts = [found.part(part["run"]) for part in helping(found.result)]
        refits = [_refit(part, open_finished(part, found.dataset), **told) for part in parts]
        return blend_of_refits(run, refits, f"{run.name}-refit")
    cluster = found.config.cluster.model_copy(update={"storage": str(run.parent)})
    config = with_trend(found.config.model_copy(update={"cluster": cluster}), found.result.get("trend"))
    epochs, teacher = found.result["best_epoch"], found.result.get("teacher")
    told |= {"refit_rates": runs.learning_rates(run, epochs), "teacher": Path(teacher) if teacher else None}
    return train(found.dataset, config, name=f"{run.name}-refit", refit_epochs=epochs, **told).folder


def _contents(source: _Source, counts: NDArray[np.int64], index: IndexConfig, trend: Trend | None) -> BundleContents:
    result, manifest = source.found.result, source.found.manifest
    on = schema.TEST if result["test"] else schema.VALID
    return BundleContents(
        model=source.found.config.model.name,
        items=_items(source, counts, trend),
        popular=Popularity(counts if trend is None else trend.lately).ranked,
        trend=None if trend is None else TrendReport(half_life_days=trend.half_life_days, weight=trend.weight),
        users=manifest.users,
        events=manifest.events,
        blocks=_blocks(source, None),
        config=source.found.config.model_dump(mode="json"),
        dataset=manifest.fingerprint,
        split=manifest.split,
        vectors_from=SEGMENTS_BEFORE[source.border],
        metrics_on=on,
        metrics=result["test"] or result["metrics"],
        popularity=result["test_popularity"] or result["popularity"],
        exclude_seen=manifest.repeats != "keep",
        recall_floor=index.recall_floor,
    )


def _with_vectors(
    contents: BundleContents,
    source: _Source,
    model: Any,
    counts: NDArray[np.int64],
    index: IndexConfig,
    trend: Trend | None,
) -> BundleContents:
    listed = listed_items(model, counts)
    indexed = np.flatnonzero(listed).astype(np.int32)
    learnt = _numpy(model.item_vectors())
    learnt[~listed] = 0
    vectors = learnt if trend is None else with_column(learnt, trend.leaning(counts))
    built, report = ann.build(vectors, indexed, index)
    contents = replace(
        contents,
        item_vectors=vectors,
        learnt_dim=None if trend is None else learnt.shape[1],
        index=built,
        report=report,
        known_user=model.known_user,
        blocks=_blocks(source, model if model.known_user == "table" else None, leans=trend is not None),
    )
    if isinstance(model, Blend):
        fold_in = FoldIn(kind="parts", parts=tuple(FoldInPart(**part._asdict()) for part in model.folds()))
    else:
        fold_in = FoldIn(kind=model.fold_in, parameters=parameters(model))
    return replace(contents, fold_in=fold_in, gram=gram_of(learnt, indexed) if fold_in.needs_gram else None)


def _with_encoder(contents: BundleContents, model: Any, wanted: EncoderConfig) -> tuple[BundleContents, Compared]:
    """model: what has the encoder, of a blend its part. If it is fed with other rows than item vectors, these are
    `item_inputs()`: [N, I]."""
    from cluster import encoder_export  # ONNX takes half a second to import
    from cluster.encoder_smaller import as_bytes
    from recsys.models.pruning import pruned

    inputs = _numpy(model.item_inputs()) if hasattr(model, "item_inputs") else None
    width = model.item_vectors().shape[1] if inputs is None else inputs.shape[1]
    smaller = pruned(model, wanted.pruned) if wanted.pruned else model
    plain = encoder_export.to_onnx(smaller, width)
    content = as_bytes(plain) if wanted.storage == "int8" else plain
    made = replace(contents, encoder=content, item_inputs=inputs)

    def compared(bundle: Bundle) -> EncoderReport:
        report = encoder_export.compare(bundle, smaller, None if content is plain else plain, model if wanted.pruned else None)
        return report.model_copy(update=wanted.model_dump())

    return made, compared


def _measured(bundle: Bundle, *, compared: Compared, audit_users: int) -> dict[str, Any]:
    """Fields of the manifest that take the finished files."""
    return {"encoder": compared(bundle), **measure(bundle, audit_users)}


def _models(found: Finished) -> list[ModelConfig]:
    """Its settings, or those of each part of a blend that helps."""
    if PARTS not in found.result:
        return [found.config.model]
    return [open_finished(found.part(part["run"]), found.dataset).config.model for part in helping(found.result)]


def _check_encoder(models: Sequence[ModelConfig], wanted: EncoderConfig) -> None:
    """Raises ConfigError where a smaller encoder is asked for of models none of which has one, or one that cannot be pruned."""
    encoding = [model for model in models if getattr(MODELS[model.name], "fold_in", None) == "onnx"]
    if wanted != EncoderConfig() and not encoding:
        names = ", ".join(model.name for model in models)
        raise ConfigError(f"encoder.storage, encoder.pruned: {names} has no encoder. Leave them out.")
    if wanted.pruned and not any(model.name == "sasrec" and model.block == "transformer" for model in encoding):
        raise ConfigError(
            f"encoder.pruned: the encoder of {encoding[0].name} has no feed-forward layers to prune. Leave it out, or train "
            "sasrec with model.block=transformer."
        )


def _items(source: _Source, counts: NDArray[np.int64], trend: Trend | None) -> pa.Table:
    """The catalogue with how often each item was watched in what vectors were made from, how often lately, and when first."""
    dataset, manifest = source.found.dataset, source.found.manifest
    items = read_items(dataset)
    items = items.set_column(items.schema.get_field_index(schema.COUNT), schema.COUNT, pa.array(counts))
    if trend is not None:
        items = items.append_column(schema.LATELY, pa.array(trend.lately))
    if manifest.has_time:
        items = items.append_column(schema.ARRIVED, arrivals(dataset, manifest, source.files, source.border))
    return items


def _blocks(source: _Source, model: Any, *, leans: bool = False) -> Iterator[UserBlock]:
    """Every user by number, a row group at a time, with vectors where `model` keeps a table of them. leans: to a trend."""
    for file in sorted(source.files, key=lambda file: file.first_user):
        path = source.found.dataset / schema.USERS_FOLDER / file.name
        check_file(path, file.size, file.sha256)
        parquet = pq.ParquetFile(path)
        for group in range(parquet.num_row_groups):
            rows = parquet.read_row_group(group).combine_chunks()
            histories = Histories.from_arrow(rows)
            ids = rows.column(schema.USER_ID)
            vectors = None if model is None else _user_vectors(model, histories, file, source.border, leans=leans)
            yield UserBlock(pa.concat_arrays(ids.chunks), histories, vectors)


def _user_vectors(model: Any, histories: Histories, file: UserFile, border: str, *, leans: bool) -> NDArray[np.float32]:
    """[B, D] from the table; zeros for users it never learnt, who are answered from their histories."""
    known = histories.trained_until(border).segment(schema.TRAIN)
    known = replace(known, user=known.user.copy(), valid_from=known.valid_from.copy())  # torch wants writable arrays
    vectors = _numpy(model.table_vectors(known) if isinstance(model, Blend) else model.user_vectors(known))
    if leans:
        vectors = with_column(vectors, np.ones(len(vectors), np.float32))
    learnt = (known.lengths > 0) & (file.role in (schema.ALL, schema.TRAIN))
    vectors[~learnt] = 0
    return vectors


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy().copy()
    return array
