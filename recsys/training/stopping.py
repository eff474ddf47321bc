"""When to stop, and when to slow down: by the validation metric."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from recsys.config import LOWER_IS_BETTER, TrainConfig


@dataclass
class EarlyStopping:
    """Remembers the best epoch, and says when too many have passed without a better one."""

    metric: str
    patience: int
    best: float | None = None
    best_epoch: int = -1
    waited: int = 0

    def improved(self, epoch: int, metrics: dict[str, float]) -> bool:
        """Take note of an epoch; whether it is the best so far. Equal is not better. Raises KeyError for no such metric."""
        value = metrics[self.metric]
        better = self.best is None or (value < self.best if self.metric in LOWER_IS_BETTER else value > self.best)
        if better:
            self.best, self.best_epoch, self.waited = value, epoch, 0
        else:
            self.waited += 1
        return better

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Numbers only; patience is a setting and may change on resuming."""
        return {name: value for name, value in asdict(self).items() if name not in ("metric", "patience")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]


def set_rate(optimizers: Sequence[Optimizer], rate: float) -> None:
    """Set the step size of all parameters: of an epoch that repeats how an earlier run slowed down."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def plateau_schedulers(optimizers: Sequence[Optimizer], config: TrainConfig) -> list[ReduceLROnPlateau]:
    """One for each optimizer: call `step(value of config.metric)` after each epoch."""
    mode = "min" if config.metric in LOWER_IS_BETTER else "max"
    return [
        ReduceLROnPlateau(
            optimizer,
            mode=mode,  # type: ignore[arg-type]
            factor=config.plateau_factor,
            patience=config.plateau_patience,
            threshold=0.0,
        )
        for optimizer in optimizers
    ]
