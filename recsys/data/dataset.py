"""The dataset folder's manifest, `dataset.json`: what is in the folder and what made it."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.data import schema
from recsys.data.forget import Forgotten
from recsys.data.histories import Histories
from recsys.errors import DataError

FORMAT_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceFile(_Part):
    """A raw file that went in. `path` as it was given, so that the dataset can be made again.

    part: files of one part were recognised together; told where there is more than one part.
    """

    path: str
    size: int
    sha256: str
    part: int = Field(0, ge=0, exclude_if=lambda part: part == 0)


class RowGroup(_Part):
    """What one row group of a user file holds: the unit that training shuffles."""

    rows: int
    events: int
    train_events: int


class UserFile(_Part):
    """One file under users/: a shard, or the part of it that plays one role."""

    name: str
    role: Literal["all", "train", "valid", "test"]
    shard: int
    rows: int
    events: int
    first_user: int
    row_groups: tuple[RowGroup, ...]
    size: int
    sha256: str

    @property
    def train_events(self) -> int:
        """Events that training may see: none in files held out by a split by user."""
        return sum(group.train_events for group in self.row_groups)


class NegativesFile(_Part):
    """negatives.parquet: the items among which a source's protocol ranks each user's held-out item, one row a user."""

    rows: int
    size: int
    sha256: str


class DatasetManifest(_Part):
    """Everything `dataset.json` says. rows_in = events + the sum of `dropped` + the sum of `rejects`.

    forgotten: users who are left out, here and in every dataset made of this one; absent if nobody is.
    negatives: absent unless the source publishes some with its test.
    """

    format_version: int = FORMAT_VERSION
    sources: tuple[SourceFile, ...]
    config: dict[str, Any]
    split: Literal["time", "leave_last_out", "users", "items", "given"]
    repeats: Literal["last", "first", "keep"]
    has_rating: bool
    has_time: bool
    rows_in: int
    users: int
    items: int
    events: int
    segments: dict[str, int]
    dropped: dict[str, int]
    rejects: dict[str, int]
    first_time: int | None
    last_time: int | None
    mean_rating: float
    items_sha256: str
    items_size: int
    user_files: tuple[UserFile, ...]
    forgotten: Forgotten | None = Field(None, exclude_if=lambda forgotten: forgotten is None)
    negatives: NegativesFile | None = Field(None, exclude_if=lambda negatives: negatives is None)

    @cached_property
    def fingerprint(self) -> str:
        """Names the dataset's content: equal for byte-equal folders, whatever they are called."""
        content = self.model_dump(mode="json", exclude={"sources": {"__all__": {"path"}}})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def files(self, *roles: str) -> list[UserFile]:
        """User files of some roles, in the order of their names; all of them if no role is given."""
        return [file for file in self.user_files if not roles or file.role in roles]


def fingerprint_of(folder: Path) -> str | None:
    """Of a dataset folder; None where none is, or none of this release."""
    try:
        return read_manifest(folder).fingerprint
    except DataError:
        return None


def read_manifest(folder: Path) -> DatasetManifest:
    """Open `dataset.json`. Raises DataError where there is none, or it is of another version or cut."""
    path = folder / schema.DATASET_FILE
    try:
        content = json.loads(path.read_bytes())
    except NotADirectoryError:
        raise DataError(f"{folder}: a file, not a dataset folder. If it is raw data: recsys prepare {folder} DATASET") from None
    except FileNotFoundError:
        raise DataError(f"{folder}: no {schema.DATASET_FILE} here. Make it: recsys prepare SOURCE {folder}") from None
    except ValueError:
        raise DataError(f"{path}: cut or altered. Prepare the dataset again.") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: format version {version}, this release reads {FORMAT_VERSION}. Prepare the dataset again.")
    try:
        return DatasetManifest.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}. Prepare the dataset again.") from None


def verify(folder: Path, manifest: DatasetManifest) -> None:
    """Hash every file. Raises DataError naming the first that is missing, cut or altered."""
    check_file(folder / schema.ITEMS_FILE, manifest.items_size, manifest.items_sha256)
    for file in manifest.user_files:
        check_file(folder / schema.USERS_FOLDER / file.name, file.size, file.sha256)
    if manifest.negatives is not None:
        check_file(folder / schema.NEGATIVES_FILE, manifest.negatives.size, manifest.negatives.sha256)


def check_file(path: Path, size: int, sha256: str) -> None:
    """Raises DataError unless the file is there with this size and SHA-256, and no value of it could run anything."""
    if not path.is_file():
        raise DataError(f"{path}: missing. Restore it or prepare the dataset again.")
    if path.stat().st_size != size:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes, the manifest says {size:,}. Prepare the dataset again.")
    if file_sha256(path) != sha256:
        raise DataError(f"{path}: altered since it was written (SHA-256 differs). Prepare the dataset again.")
    if path.suffix == ".parquet":
        _refuse_extensions(path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_items(folder: Path) -> pa.Table:
    """The catalogue, row number = item number."""
    return read_plain(folder / schema.ITEMS_FILE)


def read_user_file(folder: Path, file: UserFile) -> pa.Table:
    """All rows of one user file (schema.USERS)."""
    return read_plain(folder / schema.USERS_FOLDER / file.name)


def read_plain(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file of a dataset, all of it or some columns. Raises DataError where it is none, or at an extension type."""
    _refuse_extensions(path)
    return pq.read_table(path, columns=columns)


def _refuse_extensions(path: Path) -> None:
    try:
        columns = pq.read_schema(path)
    except (OSError, ValueError, pa.ArrowException) as error:  # of types that a library knows, and cannot read
        raise DataError(f"{path}: cannot be read ({error}). Restore it or prepare the dataset again.") from None
    if (column := schema.extension_column(columns)) is not None:
        raise DataError(f"{path}: {schema.REFUSED.format(column)}")


def read_histories(folder: Path, manifest: DatasetManifest, *roles: str) -> Histories:
    """Every user of some roles at once; for what fits in memory. Stream the files otherwise."""
    tables = [read_user_file(folder, file) for file in manifest.files(*roles)]
    return Histories.from_arrow(pa.concat_tables(tables) if tables else schema.USERS.empty_table())
