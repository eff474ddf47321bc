"""The dataset folder appears whole under its name, or not at all."""

import contextlib
import fcntl
import glob
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data import schema
from recsys.data.dataset import DatasetManifest
from recsys.data.sources.values import NOT_UTF8
from recsys.errors import ConfigError, DataError

STAGING = ".staging"
LOCK = f"{STAGING}/lock"
MOST_FORGIVEN = 0.2  # share of bad rows up to which they may be an accident


def check_destination(dataset: Path) -> None:
    """Refuse to write where something else is, or where this release cannot."""
    if "://" in str(dataset) or str(dataset).startswith(("s3:/", "gs:/")):
        raise ConfigError(f"{dataset}: datasets are written to a local or mounted folder only; sources may be remote.")
    if not dataset.exists():
        return
    if not dataset.is_dir():
        raise ConfigError(f"{dataset}: a file of this name exists. Choose another name for the dataset.")
    if any(dataset.iterdir()) and not (dataset / schema.DATASET_FILE).is_file():
        raise ConfigError(f"{dataset}: holds other files and no {schema.DATASET_FILE}. Choose another folder, or empty it.")


@contextmanager
def building(dataset: Path) -> Iterator[Path]:
    """A sibling folder to build in; it takes the dataset's name when the block ends well, and is removed otherwise.

    What killed runs left beside the dataset is removed first. Raises ConfigError where nothing can be written.
    """
    try:
        dataset.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(dataset)
        folder = Path(tempfile.mkdtemp(prefix=f".{dataset.name}.", dir=dataset.parent))
    except OSError as error:
        raise ConfigError(f"{dataset}: cannot be written here ({error.strerror}). Choose another place.") from None
    try:
        (folder / STAGING).mkdir()
        with _in_use(folder):
            yield folder
            shutil.rmtree(folder / STAGING)
        if (folder / schema.DATASET_FILE).exists():
            _take_name(folder, dataset)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, manifest: DatasetManifest) -> None:
    """Written last: a folder without it is no dataset."""
    (folder / schema.DATASET_FILE).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")


def stage_rejects(staging: Path, index: int, rejects: pa.Table) -> dict[str, int]:
    """Write a range's rejected rows beside its events. Returns how many for each reason."""
    if len(rejects):
        pq.write_table(rejects, staging / f"rejects-{index:05d}.parquet", compression="snappy")
    counted = rejects.column("reason").value_counts().to_pylist()
    return {count["values"]: count["counts"] for count in counted}


def collect_rejects(staging: Path, folder: Path) -> list[Path]:
    """Move what was rejected to `folder`, as part-00000.parquet and so on, in the order of the source."""
    parts = []
    for number, path in enumerate(sorted(staging.glob("rejects-*.parquet"))):
        folder.mkdir(exist_ok=True)
        parts.append(folder / f"part-{number:05d}.parquet")
        shutil.move(path, parts[-1])
    return parts


def check_rejects(dataset: Path, staging: Path, rows: int, rejects: dict[str, int], limit: float) -> None:
    """Raises DataError if more than `limit` of the rows were bad, keeping them in `<dataset>.rejects/`."""
    bad = sum(rejects.values())
    if bad <= limit * rows:
        return
    kept = dataset.with_name(f"{dataset.name}.rejects")
    for part in kept.glob("part-*.parquet"):  # of an earlier failure; what else is there is not ours
        part.unlink()
    first = pq.read_table(collect_rejects(staging, kept)[0]).slice(0, 1).to_pylist()[0]
    place = "row" if first["file"].endswith(".parquet") else "line"
    raise DataError(
        f"{first['file']}, {place} {first['position']}: {first['reason']}: {first['raw'][:200]!r}.\n"
        f"  {bad:,} of {rows:,} rows were bad ({bad / rows:.2%}, limit {limit:.2%}): "
        f"{', '.join(f'{count:,} {reason}' for reason, count in sorted(rejects.items()))}.\n"
        f"  See {kept}/; {_remedy(first['reason'], bad / rows)}"
    )


def _remedy(reason: str, share: float) -> str:
    if reason == NOT_UTF8:
        return "where that is no damage but another encoding: --set data.encoding=latin-1"
    if share > MOST_FORGIVEN:
        return "so many are no accident: mend the source, or name its columns (--set data.rating_column=NAME, ...)"
    return f"where they can be spared: --set data.max_bad_rows={math.ceil(share * 100 + 1e-9) / 100:g}"


@contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Hold a lock in the folder, which the kernel lets go when the process ends, however it ends."""
    fresh = folder / STAGING / "lock.new"
    with fresh.open("wb") as file:
        with contextlib.suppress(OSError):  # a file system without locks: there, what a killed run leaves stays
            fcntl.flock(file, fcntl.LOCK_EX)
            fresh.rename(folder / LOCK)  # has its name only once it is held
        yield


def _remove_abandoned(dataset: Path) -> None:
    """Remove folders of this dataset whose builder was killed: their lock is there, and nobody holds it."""
    for lock in dataset.parent.glob(f".{glob.escape(dataset.name)}.*/{LOCK}"):
        with contextlib.suppress(OSError), lock.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent.parent, ignore_errors=True)


def _take_name(folder: Path, dataset: Path) -> None:
    folder.chmod(0o777 & ~_umask())
    if dataset.exists():
        retired = Path(tempfile.mkdtemp(prefix=f".{dataset.name}.old.", dir=dataset.parent))
        dataset.replace(retired / "dataset")
        folder.replace(dataset)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        folder.replace(dataset)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
