"""What the steps of `prepare` share: the job, and a plain function mapped over entries by Ray Data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray.data

from cluster.session import execution
from recsys.config import DataConfig
from recsys.data.folder import STAGING
from recsys.data.forget import Forgotten
from recsys.data.sources.base import Source
from recsys.errors import RecsysError

Entry = TypeVar("Entry")
Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """One preparation. folder: where the dataset is built; split: the one chosen, never `auto`.

    forgotten: everybody who is left out; forget: ids of those asked for now. keep_parsed: whether parsed ranges stay in
    the dataset; read_back: where an earlier dataset kept its own.
    """

    source: Source
    config: DataConfig
    split: str
    folder: Path
    progress: Progress | None
    forgotten: Forgotten | None = None
    forget: Sequence[str] = ()
    keep_parsed: bool = False
    read_back: Path | None = None

    @property
    def staging(self) -> Path:
        """Where the steps leave files for one another."""
        return self.folder / STAGING


def stream(job: Job, stage: str, function: Callable[[Entry], Result], entries: Sequence[Entry]) -> Iterator[tuple[int, Result]]:
    """(number, function(entry)) of every entry, in the order they are done; one Ray Data task each.

    Raises the function's own RecsysError as it was.
    """

    def work(row: dict[str, Any]) -> dict[str, Any]:
        try:
            result: Any = function(entries[row["index"]])
        except RecsysError as error:  # travels as a result: Ray would log it at length, though it is meant for the user
            result = error
        return {"index": row["index"], "result": _Box(result)}

    numbers = [{"index": index} for index in range(len(entries))]
    rows = ray.data.from_items(numbers, override_num_blocks=len(entries)).map(work)
    with execution(rows.iter_rows()) as finished:
        for done, row in enumerate(finished, start=1):
            result = row["result"].content
            if isinstance(result, RecsysError):
                raise result
            yield row["index"], result
            if job.progress is not None:
                job.progress(stage, done, len(entries))


def in_order(job: Job, stage: str, function: Callable[[Entry], Result], entries: Sequence[Entry]) -> list[Result]:
    """Results of every entry, in the order of the entries."""
    results = dict(stream(job, stage, function, entries))
    return [results[index] for index in range(len(entries))]


@dataclass(frozen=True)
class _Box:
    """Keeps Arrow from taking a result apart."""

    content: Any
