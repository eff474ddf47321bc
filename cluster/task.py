"""What is to be trained: what the driver tells every worker."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recsys.config import Config
from recsys.data import schema

RefitUntil = Literal["test", "end"]

# A thread of OpenMP that waits for its fellows spins this often, a few microseconds, and then sleeps. It spins for a
# millisecond by default, and keeps from readers and fellows the core it waits for; one that sleeps at once is late
# (docs/log.md has the figures). To be set before PyTorch is loaded.
WORKER_ENVIRONMENT = {"GOMP_SPINCOUNT": "1000"}

# What a run may be asked beyond the usual, and what is meant where its config.json does not say.
USUAL: dict[str, Any] = {"refit_until": "end", "refit_rates": None, "measure_test": True, "teacher": None}


@dataclass(frozen=True)
class Task:
    """Paths are absolute, for workers run in folders of their own.

    refit_epochs: train for so many epochs, without validation, on what is before `refit_until`: train and validation (`test`)
    or all segments (`end`). refit_rates: the learning rate of each of these epochs; unset: the config's. measure_test: whether
    the result says what the model is worth on test, if it has not learnt from it. begin_from, teacher: folders of finished
    runs, to begin from and to learn from.
    reader_cpus: that a task of Ray Data reserves which reads for a worker; None where there is no Ray, and memory holds all.
    """

    dataset: Path
    folder: Path
    config: Config
    reader_cpus: float | None = 1
    refit_epochs: int | None = None
    begin_from: Path | None = None
    refit_until: RefitUntil = "end"
    refit_rates: tuple[float, ...] | None = None
    measure_test: bool = True
    teacher: Path | None = None

    @property
    def epochs(self) -> int:
        """Most epochs to train."""
        return self.config.train.epochs if self.refit_epochs is None else self.refit_epochs

    @property
    def border(self) -> str:
        """What is trained on ends here: valid, test or end."""
        return schema.VALID if self.refit_epochs is None else self.refit_until


def unusual(**asked: Any) -> dict[str, Any]:
    """Of the keys of USUAL those that are asked otherwise, as JSON has them: they make a run another run."""
    return {name: _plain(value) for name, value in asked.items() if value != USUAL[name]}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
