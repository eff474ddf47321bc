"""Files of a source wherever they lie: folders, `.zip` members, `.gz`, and s3:// or gs:// through pyarrow."""

import gzip
import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from recsys.data import schema
from recsys.errors import DataError, RecsysError

HEAD_BYTES = 1 << 16
ENCRYPTED = 1
_REJECTS = re.compile(r"\.rejects/part-\d{5}\.parquet$")
CATALOGUES = ("movies.dat", "movies.csv", "u.item", "sas_to_original_items.txt")


@dataclass(frozen=True)
class File:
    """One file. `name` is what messages and the manifest call it; `path` is what opens it, or the archive it is in.

    part: which of the sources that were joined it belongs to; see joined.py.
    """

    name: str
    path: str
    member: str | None = None
    part: int = 0

    @property
    def place(self) -> tuple[str, str | None]:
        """What makes it this file and no other, whatever it is called."""
        return self.path, self.member

    @property
    def base(self) -> str:
        """The last part of the name, without `.gz`."""
        return PurePosixPath(self.name).name.removesuffix(".gz")

    @property
    def suffix(self) -> str:
        """Such as `.csv`, in lower case, without `.gz`."""
        return PurePosixPath(self.base).suffix.lower()

    @property
    def folder(self) -> str:
        """Where the file is, as named."""
        return str(PurePosixPath(self.name).parent)

    @property
    def compressed(self) -> bool:
        """Whether its bytes must be unpacked before they can be read in ranges."""
        return self.member is not None or self.name.endswith(".gz")


def list_files(path: str) -> list[File]:
    """All files of a folder, of a `.zip`, or the one file named (also inside a `.zip`), sorted by name.

    Hidden files (starting with `.` or `_`) are passed over, and so are datasets made in the folder and their rejects.
    Raises DataError where there is nothing.
    """
    archive, member = _split_archive(path)
    if archive is not None:
        files = [file for file in _members(archive) if not member or file.member == member or _under(file, member)]
    else:
        files = _stored(path)
    if not files:
        raise DataError(f"{path}: no files in it. Give a folder, a .zip or a file of interactions.")
    return sorted(files, key=lambda file: file.name)


def beside(given: Sequence[File]) -> list[File]:
    """Known catalogues that lie in the folder of a single file which was named alone."""
    if len(given) != 1 or given[0].base in CATALOGUES:
        return []
    there = [given[0].name.removesuffix(PurePosixPath(given[0].name).name) + name for name in CATALOGUES]
    return [file for path in there if _exists(path) for file in list_files(path)]


@contextmanager
def opened(file: File) -> Iterator[IO[bytes]]:
    """The stored bytes of a file (of a `.zip` member: its content), as a stream."""
    with said_plainly(file.name):
        filesystem, path = locate(file.path)
        with filesystem.open_input_file(path) as raw:
            if file.member is None:
                yield cast(IO[bytes], raw)
            else:
                with zipfile.ZipFile(raw) as archive, archive.open(file.member) as member:
                    yield member


def unpacked(file: File, stored: Any) -> IO[bytes]:
    """The content of a stream of stored bytes."""
    return cast(IO[bytes], gzip.GzipFile(fileobj=stored)) if file.name.endswith(".gz") else stored


def head(file: File, size: int = HEAD_BYTES) -> bytes:
    """The first bytes of the content. Raises DataError if there are none."""
    with opened(file) as stored:
        content = read_full(unpacked(file, stored), size)
    if not content:
        raise DataError(f"{file.name}: empty. Remove it or fetch it again.")
    return content


def read_all(file: File) -> bytes:
    """The whole content; for catalogues, which fit in memory."""
    with opened(file) as stored:
        return unpacked(file, stored).read()


def read_full(stream: IO[bytes], size: int) -> bytes:
    """`size` bytes, fewer only at the end: streams of archives may give less at once."""
    parts = io.BytesIO()
    while parts.tell() < size and (part := stream.read(size - parts.tell())):
        parts.write(part)
    return parts.getvalue()


def locate(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path inside it. AWS_ENDPOINT_URL names another S3."""
    if "://" not in path:
        return pafs.LocalFileSystem(), path
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if path.startswith("s3://") and endpoint:
        address = urlsplit(endpoint)
        return pafs.S3FileSystem(endpoint_override=address.netloc, scheme=address.scheme), path.removeprefix("s3://")
    try:
        filesystem, inner = pafs.FileSystem.from_uri(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: {error}. Sources are local paths, s3:// and gs://.") from None
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise RecsysError(f"{path}: the store cannot be reached: {reason}. Sources are local paths, s3:// and gs://.") from None
    return filesystem, inner


@contextmanager
def said_plainly(name: str) -> Iterator[None]:
    """Turn what reading a broken file raises into a DataError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{name}: no such file or folder.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{name}: cut or damaged ({error}). Fetch it again.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}).") from None
    except OSError as error:
        if "://" in name:
            raise RecsysError(f"{name}: the store did not answer: {error}. Try again later.") from None
        raise DataError(f"{name}: cannot be read: {error}.") from None


def _split_archive(path: str) -> tuple[str | None, str]:
    """Archive and path inside it, if some part of the path is a `.zip` file."""
    parts = path.split("/")
    for end in range(1, len(parts) + 1):
        candidate = "/".join(parts[:end])
        if candidate.lower().endswith(".zip") and _is_file(candidate):
            return candidate, "/".join(parts[end:]).strip("/")
    return None, ""


def _is_file(path: str) -> bool:
    filesystem, inner = locate(path)
    with said_plainly(path):
        return bool(filesystem.get_file_info(inner).type == pafs.FileType.File)


def _exists(path: str) -> bool:
    archive, member = _split_archive(path)
    return any(file.member == member for file in _members(archive)) if archive else _is_file(path)


def _members(archive: str) -> list[File]:
    with opened(File(archive, archive)) as raw, zipfile.ZipFile(raw) as members:
        names = [info.filename for info in members.infolist() if not info.is_dir()]
        if any(info.flag_bits & ENCRYPTED for info in members.infolist()):
            raise DataError(f"{archive}: encrypted. Unpack it and give the folder.")
    return [File(f"{archive}/{name}", _anywhere(archive), name) for name in names if not _hidden(name)]


def _elsewhere(path: str) -> str:
    """A hint for a path that counts from here, or from what RECSYS_DATA names."""
    if "://" in path or Path(path).is_absolute():
        return ""
    there = Path(os.environ.get("RECSYS_DATA") or ".") / path
    return f" There is {there}." if there.exists() else " Paths count from the folder you are in."


def _stored(path: str) -> list[File]:
    filesystem, inner = locate(path)
    with said_plainly(path):
        info = filesystem.get_file_info(inner)
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"{path}: no such file or folder.{_elsewhere(path)}")
        if info.type == pafs.FileType.File:
            return [File(path, _anywhere(path))]
        inside = filesystem.get_file_info(pafs.FileSelector(inner, recursive=True))
    root = path.rstrip("/")
    names = [entry.path[len(inner.rstrip("/")) + 1 :] for entry in inside if entry.type == pafs.FileType.File]
    return [File(f"{root}/{name}", _anywhere(f"{root}/{name}")) for name in _raw(names) if not _hidden(name)]


def _raw(names: list[str]) -> list[str]:
    """Files of a folder but for what `prepare` wrote below it: datasets, and rejects kept beside them."""
    there = set(names)
    marked = {name.removesuffix(f"/{schema.DATASET_FILE}") for name in names if name.endswith(f"/{schema.DATASET_FILE}")}
    datasets = tuple(f"{folder}/" for folder in marked if f"{folder}/{schema.ITEMS_FILE}" in there)
    return [name for name in names if not name.startswith(datasets) and not _REJECTS.search(name)]


def _anywhere(path: str) -> str:
    """The path as workers in other folders can open it."""
    return path if "://" in path else str(Path(path).absolute())


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _under(file: File, folder: str) -> bool:
    return (file.member or "").startswith(folder.rstrip("/") + "/")
