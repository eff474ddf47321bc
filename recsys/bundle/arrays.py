"""Arrays of a bundle: plain `.npy` files, streamed out, checked and memory-mapped in; never a pickle."""

import mmap
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from recsys.bundle.manifest import AGAIN
from recsys.errors import BundleError

AT_ONCE = 1 << 18  # rows of an array that are looked at together: of ten million, the marks of what is finite alone are .6 GB


class ArrayWriter:
    """Writes an array of a known shape as it comes, block after block along its first axis.

    Raises BundleError where a number is NaN or infinite, or, on leaving, where the blocks did not add up to the shape.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.path, self.shape, self.dtype, self.rows = path, shape, np.dtype(dtype), 0
        self._file = path.open("wb")
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, header)

    def append(self, block: NDArray[Any]) -> None:
        """The next rows."""
        _refuse_not_finite(self.path, block, self.rows)
        self._file.write(np.ascontiguousarray(block, self.dtype).data)
        self.rows += len(block)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None and self.rows != self.shape[0]:
            raise BundleError(f"{self.path.name}: {self.rows:,} rows came, {self.shape[0]:,} were due; nothing was published.")


def write_array(path: Path, array: NDArray[Any], dtype: DTypeLike) -> None:
    """Write one array. Raises BundleError where it holds NaN or infinity."""
    with ArrayWriter(path, array.shape, dtype) as writer:
        for first in range(0, len(array), AT_ONCE):
            writer.append(array[first : first + AT_ONCE])


def read_array(path: Path, dtype: DTypeLike, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Map an array into memory, read-only. shape: None where any length will do.

    Raises BundleError unless the header is that of a plain C-ordered array of this type and shape, and the file ends
    where it should. Nothing is unpickled: an array of objects is refused by its header.
    """
    try:
        with path.open("rb") as file:
            found_shape, fortran, found = _read_header(file)
            start = file.tell()
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not a plain .npy array ({error}). {AGAIN}") from None
    expected = np.dtype(dtype)
    fits = len(found_shape) == len(shape) and all(b is None or a == b for a, b in zip(found_shape, shape, strict=True))
    if found != expected or fortran or not fits:
        raise BundleError(f"{path}: holds {found} {found_shape}, not {expected} {shape}. {AGAIN}")
    if path.stat().st_size != start + expected.itemsize * int(np.prod(found_shape, dtype=np.int64)):
        raise BundleError(f"{path}: longer or shorter than its header says. {AGAIN}")
    if 0 in found_shape:
        return np.zeros(found_shape, expected)  # an empty file cannot be mapped
    return np.asarray(np.memmap(path, expected, "r", offset=start, shape=found_shape))  # a plain array indexes faster


def release(array: NDArray[Any]) -> None:
    """Let go of the pages of an array of `read_array` that were read: who asks for them reads them anew."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        base.madvise(mmap.MADV_DONTNEED)


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"npy version {version}")
    return npy.read_array_header_1_0(file, max_header_size=1024)


def _refuse_not_finite(path: Path, block: NDArray[Any], row: int) -> None:
    if block.dtype.kind == "f" and not np.isfinite(block).all():
        bad = int(np.flatnonzero(~np.isfinite(block.reshape(len(block), -1)).all(1))[0]) + row
        raise BundleError(f"{path.name}: row {bad:,} is not finite; nothing was published. Train with a smaller learning rate.")
