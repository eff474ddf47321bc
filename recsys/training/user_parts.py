"""Users' rows in a checkpoint: a file a worker, read back by the ranges that another worker owns.

users-<rank>-of-<workers>.safetensors holds `ranges` [R, 2] and, for each table, a row for each user of them. Names of tensors
are `<file they belong to>/<name>`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys.errors import RecsysError
from recsys.models.owned import UserRanges
from recsys.training import collective

RANGES = "ranges"


def part_file(rank: int, parts: int) -> str:
    """Its name."""
    return f"users-{rank:05d}-of-{parts:05d}.safetensors"


def write(folder: Path, owned: UserRanges, rows: dict[tuple[str, str], Tensor]) -> None:
    """This worker's part. rows: by (file, name), each [users owned, …]."""
    tensors = {f"{file}/{name}": tensor.detach().cpu().contiguous() for (file, name), tensor in rows.items()}
    tensors[RANGES] = torch.tensor(owned.ranges, dtype=torch.int64).reshape(-1, 2)
    path = folder / part_file(collective.rank(), collective.world_size())
    save_file(tensors, path)
    to_disk(path)


def to_disk(path: Path) -> None:
    """Have a file outlive a loss of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read(folder: Path, parts: int, owned: UserRanges | None, files: Sequence[str]) -> dict[tuple[str, str], Tensor]:
    """Rows of the ranges' users, in their order, whoever wrote them; None: of all users. Only of tensors of `files`.

    Reads no more of the parts than it needs. Raises RecsysError where a part is missing or cut, or a user in none of them.
    """
    found: dict[tuple[str, str], Tensor] = {}
    try:
        held = [_ranges(folder / part_file(part, parts)) for part in range(parts)]
        if owned is None:
            owned = UserRanges.of([(first, last) for ranges in held for first, last in ranges.ranges])
        covered = 0
        for part, ranges in enumerate(held):
            slices = list(_overlaps(ranges, owned))
            covered += sum(theirs.stop - theirs.start for theirs, _ in slices)
            _copy(folder / part_file(part, parts), slices, len(owned), files, found)
    except (OSError, SafetensorError) as error:
        raise RecsysError(f"{folder}: users' rows are missing or cut ({error}). Resume from an older checkpoint.") from None
    if covered != len(owned):
        raise RecsysError(f"{folder}: rows of {covered:,} of {len(owned):,} users. Resume from an older checkpoint.")
    return found


def _ranges(path: Path) -> UserRanges:
    with safe_open(path, "pt") as part:
        return UserRanges.of([(int(first), int(last)) for first, last in part.get_tensor(RANGES).tolist()])


def _overlaps(theirs: UserRanges, ours: UserRanges) -> list[tuple[slice, slice]]:
    """Rows of a part beside the rows they become."""
    found = []
    for first, last, rows in theirs.parts():
        for our_first, our_last, our_rows in ours.parts():
            begin, end = max(first, our_first), min(last, our_last)
            if begin < end:
                there, here = rows.start + begin - first, our_rows.start + begin - our_first
                found.append((slice(there, there + end - begin), slice(here, here + end - begin)))
    return found


def _copy(
    path: Path, slices: list[tuple[slice, slice]], users: int, files: Sequence[str], into: dict[tuple[str, str], Tensor]
) -> None:
    with safe_open(path, "pt") as part:
        for key in part.keys():  # noqa: SIM118 - not a mapping
            file, _, name = key.partition("/")
            if file not in files:
                continue
            rows = part.get_slice(key)
            ours = into.setdefault((file, name), rows[:0].new_empty((users, *rows.get_shape()[1:])))
            for there, here in slices:
                ours[here] = rows[there]
