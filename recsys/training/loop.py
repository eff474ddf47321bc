"""One epoch: forward, backward, exchange of touched rows, clipping, update."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from recsys.config import TrainConfig
from recsys.data.histories import Histories, Pairs
from recsys.data.seeds import seed_of
from recsys.data.windows import Sequences, training_windows
from recsys.errors import RecsysError
from recsys.training import collective, rows
from recsys.training.averaging import WeightMean
from recsys.training.hardware import Hardware
from recsys.training.micro_batch import MicroBatch
from recsys.training.negatives import Negatives


@dataclass(frozen=True)
class EpochStats:
    """What an epoch came to, over all workers.

    loss: mean over events; grad_norm: root mean square over steps of the norm of all gradients, before clipping;
    skipped: steps that fp16's scaler left out; seconds are this worker's: wait for data, compute everything else.
    """

    loss: float
    events: int
    steps: int
    skipped: int
    grad_norm: float
    seconds: float
    wait_seconds: float

    def __add__(self, later: "EpochStats") -> "EpochStats":
        """Both together: one epoch, taken in two goes."""
        events, kept = self.events + later.events, self.steps + later.steps - self.skipped - later.skipped
        squares = (s.grad_norm**2 * (s.steps - s.skipped) for s in (self, later))
        return EpochStats(
            loss=(self.loss * self.events + later.loss * later.events) / max(events, 1),
            events=events,
            steps=self.steps + later.steps,
            skipped=self.skipped + later.skipped,
            grad_norm=math.sqrt(sum(squares) / max(kept, 1)),
            seconds=self.seconds + later.seconds,
            wait_seconds=self.wait_seconds + later.wait_seconds,
        )

    @property
    def compute_seconds(self) -> float:
        """Seconds not spent waiting for data."""
        return self.seconds - self.wait_seconds

    def as_dict(self) -> dict[str, float]:
        """For a line of metrics.jsonl."""
        return asdict(self) | {"compute_seconds": self.compute_seconds}


OnStep = Callable[[int, Callable[[], EpochStats]], None]


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """The row-wise optimizer of a model's row tables, then Adam for its other parameters, those of the two it needs; last what
    averages the weights, if that is asked for. None for a model whose parameters take no gradients."""
    tables = [table for table in bare(model).row_tables().values() if table.requires_grad]
    others = [p for p in model.parameters() if p.requires_grad and not any(p is table for table in tables)]
    row_wise = [rows.ROW_OPTIMIZERS[config.optimizer](tables, config.learning_rate)] if tables else []
    adam = [torch.optim.Adam(others, config.learning_rate)] if others else []
    mean = [WeightMean([*tables, *others], config.average)] if config.average and (tables or others) else []
    return [*row_wise, *adam, *mean]


def distribute(model: nn.Module) -> nn.Module:
    """Wrap in DDP what is not a row table. A model of tables only, or a lone worker's, stays as it is."""
    tables = {id(table) for table in bare(model).row_tables().values()}
    ignored = [name for name, parameter in model.named_parameters() if id(parameter) in tables]
    if collective.world_size() == 1 or len(ignored) == len(list(model.parameters())):
        return model
    # DDP knows a parameter of the outermost module as "name" in one place and as ".name" in another.
    both = [*ignored, *(f".{name}" for name in ignored)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, both)
    # Every rank builds the same parameters from the seed; buffers tell each rank where its own users' rows are.
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, init_sync=False)
    wrapped.register_comm_hook(None, _sum_gradients)
    return wrapped


def bare(model: nn.Module) -> Any:
    """The model itself, out of DDP."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def train_epoch(
    model: nn.Module,
    batches: Iterable[Any],
    optimizers: list[Optimizer],
    *,
    hardware: Hardware,
    scaler: torch.amp.GradScaler | None = None,
    negatives: Negatives | None = None,
    clip_norm: float | None = None,
    epoch: int = 0,
    first_step: int = 0,
    micro_batch: MicroBatch | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> EpochStats:
    """Train on every batch, in order. All workers must bring equally many; an empty one counts for nothing.

    batches: Pairs of tensors, or Histories to learn whole (as `model.batch` says), this worker's part of each step. `total` of
    Pairs may be set to the step's events over all workers; otherwise it is asked for.
    negatives: drawn by (seed, epoch, step), the first step being `first_step`: more than 0 when an epoch is resumed.
    micro_batch: most events whose gradients are made at once; a larger batch is gone through in pieces, and its gradients add
    up to the same. Halved, for good, where memory runs out.
    seed: with epoch, step and rank decides what is drawn at random in a step, such as dropout; with epoch, where histories
    longer than a window are cut.
    on_step: told (step, what came of the steps so far) after each; the latter asks all workers, so all must call it.
    Raises RecsysError when the loss is no longer a number, or memory does not suffice for half a micro-batch either.
    """
    model.train()
    run = _Epoch(model, optimizers, hardware, scaler or hardware.scaler(), clip_norm, micro_batch or MicroBatch())
    for step, batch in enumerate(run.timed(batches), first_step):
        torch.manual_seed(seed_of(seed, epoch, step, collective.rank()))
        batch = _sequences(batch, model, seed, epoch)
        run.step(_prepare(batch, hardware.device, negatives, epoch, step), f"epoch {epoch + 1}, step {step + 1}")
        if on_step:
            on_step(step, run.stats)
    return run.stats()


@dataclass
class _Epoch:
    """What one epoch needs at hand, and its running sums, kept on the device so that a GPU need not stop for them."""

    model: nn.Module
    optimizers: list[Optimizer]
    hardware: Hardware
    scaler: torch.amp.GradScaler
    clip_norm: float | None
    micro_batch: MicroBatch
    began: float = field(default_factory=lambda: time.perf_counter())
    wait_seconds: float = 0.0
    steps: int = 0
    local_events: int = 0

    def __post_init__(self) -> None:
        # Loss, squares of the gradients' norms, steps skipped.
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.hardware.device)

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, their waiting time noted."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.wait_seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def step(self, batch: Any, where: str) -> None:
        """One update of the parameters."""
        loss = self._gradients_within_memory(batch, where)
        rows.exchange(bare(self.model).row_tables())
        norm = gradient_norm(self.model) / self.scaler.get_scale()
        self._tame(norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self._note(loss * batch.total, norm, batch, where)

    def _gradients(self, batch: Any) -> Tensor:
        """Leave the gradients of the step's local events, piece by piece. Returns the loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.hardware.device)
        *first, last = batch.pieces(self.micro_batch.events)
        with _alone(self.model):
            for piece in first:
                loss += self._backward(piece)
        return loss + self._backward(last)

    def _backward(self, piece: Any) -> Tensor:
        with self.hardware.autocast():
            loss = self.model(piece)
        self.scaler.scale(loss).backward()
        detached: Tensor = loss.detach()
        return detached

    def _gradients_within_memory(self, batch: Any, where: str) -> Tensor:
        """Once more with half the micro-batch where memory ran out. After the `except`, whose traceback holds what was made."""
        before, refusal = self.micro_batch.events or len(batch), ""
        for _ in range(2):
            try:
                return self._gradients(batch)
            except torch.OutOfMemoryError as error:
                refusal = str(error)
            tried = self.micro_batch.events or len(batch)
            self.micro_batch.halve(len(batch))
            self.model.zero_grad(set_to_none=True)
            self.hardware.free_memory()
        raise RecsysError(
            f"{where}: out of memory with {before:,} events at once, and again with {tried:,} ({refusal}). "
            f"Set train.micro_batch={max(1, tried // 4)}, or fewer model.negatives, or a smaller model.dim."
        )

    def _tame(self, norm: Tensor) -> None:
        """Clip the gradients; where some worker's overflowed, spoil all workers', so that all of them skip the step."""
        if self.clip_norm is None and not self.scaler.is_enabled():
            return
        factor = (self.clip_norm or torch.inf) / norm
        scale_gradients(self.model, torch.where(norm.isfinite(), factor.clamp(max=1), torch.nan))

    def _note(self, loss: Tensor, norm: Tensor, batch: Any, where: str) -> None:
        finite = norm.isfinite()
        skipped = ~finite if self.scaler.is_enabled() else torch.zeros_like(finite)
        self.sums += torch.stack([loss.double(), torch.where(skipped, 0, norm.square()), skipped.double()])
        self.steps += 1
        self.local_events += len(batch)
        if self.hardware.device.type == "cpu" or self.steps % 64 == 0:
            self._refuse_nan(where)

    def _refuse_nan(self, where: str) -> None:
        loss = float(self.sums[0])
        if not math.isfinite(loss):
            raise RecsysError(
                f"{where}: the loss is {loss}. Train anew (another --name, if you gave one) with a smaller "
                "train.learning_rate, or train.clip_norm=1; if it happens at once, look with `recsys inspect` for ratings "
                "far out of range."
            )

    def stats(self) -> EpochStats:
        """The sums over all workers."""
        self._refuse_nan("end of the epoch")
        local = torch.stack([self.sums[0], self.sums.new_tensor(self.local_events)])
        loss, events = collective.sum_over_ranks(local).tolist()
        squares, skipped = self.sums[1:].tolist()
        return EpochStats(
            loss=loss / max(events, 1),
            events=int(events),
            steps=self.steps,
            skipped=int(skipped),
            grad_norm=math.sqrt(squares / max(self.steps - skipped, 1)),
            seconds=time.perf_counter() - self.began,
            wait_seconds=self.wait_seconds,
        )


def gradient_norm(model: nn.Module) -> Tensor:
    """The norm of all gradients together, in float64: users' rows of all workers, the rest as it is on each of them."""
    tables = bare(model).row_tables()
    users = [rows.row_gradient(table)[1] for name, table in tables.items() if name == "user"]
    others = [rows.row_gradient(table)[1] for name, table in tables.items() if name != "user"]
    square = _squares(others + _dense_gradients(model))
    if users:
        square = square + collective.sum_over_ranks(_squares(users))
    return square.sqrt()


@torch.no_grad()
def scale_gradients(model: nn.Module, factor: Tensor) -> None:
    """Multiply every gradient, of rows and of the rest."""
    values = [rows.row_gradient(table)[1] for table in bare(model).row_tables().values()]
    for gradient in values + _dense_gradients(model):
        gradient.mul_(factor.to(gradient.dtype))


def _dense_gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None and not p.grad.is_sparse]


def _squares(gradients: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(gradient).double() for gradient in gradients]
    return torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=torch.float64)


def _sum_gradients(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """DDP's exchange without its division by the number of workers: the loss is divided by the step's events already."""
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    summed: torch.futures.Future[Tensor] = future.then(lambda done: done.value()[0])
    return summed


def _alone(model: nn.Module) -> AbstractContextManager[Any]:
    """Where DDP adds up gradients without telling the other workers yet."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _sequences(batch: Any, model: nn.Module, seed: int, epoch: int) -> Any:
    """Histories cut into this epoch's windows; Pairs as they are."""
    if not isinstance(batch, Histories):
        return batch
    return Sequences(training_windows(batch, bare(model).max_length, seed_of(seed, epoch)))


def _prepare(batch: Any, device: torch.device, negatives: Negatives | None, epoch: int, step: int) -> Any:
    """The batch on the device, with the step's negatives and its events over all workers.

    Windows stay in memory: what is looked up of them is made anew for each piece, and small.
    """
    total = batch.total if batch.total is not None else _count(batch, device)
    if isinstance(batch, Sequences):
        positives = torch.from_numpy(batch.positives).to(device).long()
        return replace(batch, negatives=negatives.draw(epoch, step, positives) if negatives else None, total=total)
    user, item, rating = (torch.as_tensor(column).to(device, non_blocking=True) for column in batch.columns)
    item = item.long()
    drawn = negatives.draw(epoch, step, item) if negatives else None
    return Pairs(user.long(), item, rating, drawn, total)


def _count(batch: Any, device: torch.device) -> Tensor:
    counted = collective.sum_over_ranks(torch.tensor(float(len(batch)), device=device))
    return counted.clamp(min=1)
