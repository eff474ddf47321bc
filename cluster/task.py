"""What is to be trained: what the driver tells every worker."""

from dataclasses import dataclass
from pathlib import Path

from recsys.config import Config


@dataclass(frozen=True)
class Task:
    """Paths are absolute, for workers run in folders of their own.

    refit_epochs: train on all segments for so many epochs, without validation. begin_from, teacher: folders of finished
    runs, to begin from and to learn from.
    """

    dataset: Path
    folder: Path
    config: Config
    reader_cpus: float = 1
    refit_epochs: int | None = None
    begin_from: Path | None = None
    teacher: Path | None = None

    @property
    def epochs(self) -> int:
        """Most epochs to train."""
        return self.config.train.epochs if self.refit_epochs is None else self.refit_epochs
