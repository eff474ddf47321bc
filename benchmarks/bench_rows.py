"""Rows: what a training step costs by the way gradients of tables travel between two workers, for tables of growing size.

python benchmarks/bench_rows.py [--rows 100000 1000000 10000000] [--steps 12] [--runs 3] [--smoke]
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import publish, spread, table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from recsys.config import ModelConfig, TrainConfig
from recsys.data.histories import Pairs
from recsys.models.base import Catalogue
from recsys.models.losses import accidental_hits, sampled_softmax
from recsys.models.mf import MF
from recsys.models.owned import UserRanges
from recsys.training.hardware import Hardware
from recsys.training.loop import distribute, make_optimizers, train_epoch
from recsys.training.negatives import Negatives

WORKERS, WARMUP, LOOPBACK, FLOAT = 2, 3, "lo", 4
ROWS, SPARSE, DENSE = "rows", "ddp_sparse", "ddp_dense"
WAYS = (ROWS, SPARSE, DENSE)
WATCHED = 8  # positives, and as many negatives, by whose rows `rows` and `ddp_sparse` are compared
SAME = 0.01  # of what a row has moved: more apart, and the two do not compute the same
FLAT = 1.5  # times as long, from the smallest tables to the largest
SMOKE = {"rows": [2000, 8000], "steps": 2, "runs": 1, "batch": 256, "negatives": 64, "limit_gib": 0.014}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (options, Path(folder)), nprocs=WORKERS)
        measured = json.loads((Path(folder) / "measured.json").read_bytes())
    figures = figures_of(measured, options)
    check_same(figures["rows_apart_from_ddp_sparse"])
    if options.smoke:
        print(describe(options, figures), file=sys.stderr)
        print(json.dumps(figures))
    else:
        publish("rows", "Gradients of tables: by row, or by DDP", describe(options, figures), figures, vars(options))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6, 10**7], help="users and items together")
    parser.add_argument("--item-share", type=float, default=0.5, help="of the rows; only users' are partitioned")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4096, help="events a step, of all workers")
    parser.add_argument("--negatives", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=12, help="timed steps a run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--limit-gib", type=float, default=20, help="what needs more, of all workers together, is left out")
    parser.add_argument("--smoke", action="store_true", help="tiny tables, to see that it works; publishes nothing")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(SMOKE)
    return options


@dataclass(frozen=True)
class Task:
    """What is trained: two tables, random events, each worker's of its own users; alike for every way."""

    rank: int
    rows: int
    options: argparse.Namespace

    @property
    def items(self) -> int:
        return int(self.rows * self.options.item_share)

    @property
    def users(self) -> int:
        return self.rows - self.items

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Users of each worker."""
        ends = [self.users * rank // WORKERS for rank in range(WORKERS + 1)]
        return list(pairwise(ends))

    @cached_property
    def config(self) -> ModelConfig:
        return ModelConfig(dim=self.options.dim, negatives=self.options.negatives, biases=False, l2=0)

    def model(self, ranges: list[tuple[int, int]]) -> MF:
        """With rows for these users; a user's row begins alike in whichever model."""
        counts = np.ones(self.items, np.int64)
        return MF(self.config, Catalogue(self.users, self.items, counts, owned=UserRanges.of(ranges)), seed=0)

    @cached_property
    def negatives(self) -> Negatives:
        return Negatives(self.config, np.ones(self.items, np.int64), 0)

    @cached_property
    def batches(self) -> list[Pairs]:
        """This worker's part of every step; each of its users is in its own range, as a shard's users are."""
        rng = np.random.default_rng(self.rank)
        first, last = self.ranges[self.rank]
        size = (WARMUP + self.options.steps, self.options.batch // WORKERS)
        columns = (torch.from_numpy(rng.integers(*ends, size)) for ends in ((first, last), (0, self.items)))
        return [Pairs(u, i, torch.ones(len(u)), total=self.options.batch) for u, i in zip(*columns, strict=True)]

    def watched_rows(self, items: Tensor) -> Tensor:
        """A copy of the rows of some positives and negatives of the first step: they tell whether two ways learn the same."""
        positives = self.batches[0].item
        return items.detach()[torch.cat([positives[:WATCHED], self.negatives.draw(0, 0, positives)[:WATCHED]])]

    def held(self, way: str) -> int:
        """Bytes of parameters and moments that a worker must hold, computed."""
        return 3 * FLOAT * self.options.dim * (self.items + (self.users // WORKERS if way == ROWS else self.users))

    def needed(self, way: str) -> int:
        """Bytes of all workers: with dense gradients DDP's buckets too, and a table's gradient on its way there."""
        gradients = FLOAT * self.options.dim * (self.rows + max(self.users, self.items)) if way == DENSE else 0
        return WORKERS * (self.held(way) + gradients)

    def fits(self, way: str) -> bool:
        return self.needed(way) <= self.options.limit_gib * 2**30


def work(rank: int, options: argparse.Namespace, folder: Path) -> None:
    """One worker: every size, and within it the ways in turn. The first writes down what it measured."""
    os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=WORKERS)
    measured: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for rows in options.rows:
        task = Task(rank, rows, options)
        ways = [way for way in WAYS if task.fits(way)]
        measured[str(rows)] = {way: [] for way in ways}
        for run in range(options.runs):
            for way in ways:
                measured[str(rows)][way].append(measure(task, way))
                if rank == 0:
                    told = f"{rows:,} rows, run {run + 1} of {options.runs}, {way}: {measured[str(rows)][way][-1]['ms']:.1f} ms"
                    print(told, file=sys.stderr, flush=True)
    if rank == 0:
        (folder / "measured.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


def measure(task: Task, way: str) -> dict[str, Any]:
    """One run of one way. ms: a step's median; held, sent: bytes of a worker; moved: what the watched rows have learnt."""
    watch = Watch()
    model, optimizers, moved = exchanged(task, watch) if way == ROWS else reduced(task, watch, sparse=way == SPARSE)
    found = {
        "ms": watch.milliseconds(),
        "sent": watch.sent_by_a_worker(),
        "held": held_bytes(model, optimizers),
        "moved": moved.flatten().tolist(),
    }
    del model, optimizers
    gc.collect()  # the next way needs the memory
    dist.barrier()
    return found


class Watch:
    """Told of the end of each step."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, int]] = []

    def __call__(self, *_: object) -> None:
        self.ends.append((time.perf_counter(), psutil.net_io_counters(pernic=True)[LOOPBACK].bytes_sent))

    def milliseconds(self) -> float:
        """Median of the steps after the first few."""
        seconds = [time for time, _ in self.ends[WARMUP - 1 :]]
        return 1000 * statistics.median(later - sooner for sooner, later in pairwise(seconds))

    def sent_by_a_worker(self) -> float:
        """Bytes a step."""
        sent = [count for _, count in self.ends[WARMUP - 1 :]]
        return (sent[-1] - sent[0]) / (len(sent) - 1) / WORKERS


def exchanged(task: Task, watch: Watch) -> tuple[nn.Module, list[Optimizer], Tensor]:
    """This project's loop: a worker has its own users' rows, item rows that were touched are exchanged."""
    model = task.model([task.ranges[task.rank]])
    optimizers = make_optimizers(model, TrainConfig())
    touch(optimizers)
    began = task.watched_rows(model.item_table)
    hardware = Hardware(torch.device("cpu"), torch.float32, threads=1)
    train_epoch(distribute(model), task.batches, optimizers, hardware=hardware, negatives=task.negatives, seed=0, on_step=watch)
    return model, optimizers, task.watched_rows(model.item_table) - began


def reduced(task: Task, watch: Watch, *, sparse: bool) -> tuple[nn.Module, list[Optimizer], Tensor]:
    """DistributedDataParallel as its manual has it: every worker has both tables, all gradients are averaged."""
    tables = TwoTables(task, sparse=sparse)
    began = task.watched_rows(tables.items.weight)
    model = DistributedDataParallel(tables, gradient_as_bucket_view=not sparse)
    parameters, rate = list(model.parameters()), TrainConfig().learning_rate
    optimizer: Optimizer = (
        torch.optim.SparseAdam(parameters, rate) if sparse else torch.optim.Adam(parameters, rate, fused=True)
    )
    for step, batch in enumerate(task.batches):
        optimizer.zero_grad()
        model(replace(batch, negatives=task.negatives.draw(0, step, batch.item))).backward()
        optimizer.step()
        watch()
        if step == 0:
            touch([optimizer])
    return model, [optimizer], task.watched_rows(tables.items.weight) - began


class TwoTables(nn.Module):
    """Two `nn.Embedding`s that begin as this project's tables do, under the same loss."""

    def __init__(self, task: Task, *, sparse: bool) -> None:
        super().__init__()
        like = task.model(task.ranges)
        self.temperature = task.config.temperature
        self.users = nn.Embedding.from_pretrained(like.user_table.detach(), freeze=False, sparse=sparse)
        self.items = nn.Embedding.from_pretrained(like.item_table.detach(), freeze=False, sparse=sparse)

    def forward(self, batch: Pairs) -> Tensor:
        """The mean over local events: DDP takes the mean over workers."""
        looked_up = self.items(torch.cat([batch.item, batch.negatives]))
        item_BD, negative_ND = looked_up.split([len(batch.item), len(batch.negatives)])
        hits = accidental_hits(batch.item, batch.negatives)
        return sampled_softmax(self.users(batch.user), item_BD, negative_ND, hits, temperature=self.temperature) / len(batch)


def moments(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return [value for state in states for value in state.values() if isinstance(value, Tensor) and value.dim()]


@torch.no_grad()
def touch(optimizers: Iterable[Optimizer]) -> None:
    """Have the kernel hand out the moments' memory now: it would do so page by page, within the steps."""
    for moment in moments(optimizers):
        moment.add_(0)


def held_bytes(model: nn.Module, optimizers: Iterable[Optimizer]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *moments(optimizers)))


def figures_of(measured: dict[str, dict[str, list[dict[str, Any]]]], options: argparse.Namespace) -> dict[str, Any]:
    """By size and way: milliseconds over runs and bytes of a worker; what was left out, with what it would need."""
    sizes: dict[str, dict[str, Any]] = {}
    for rows, ways in measured.items():
        task = Task(0, int(rows), options)
        sizes[rows] = {
            way: measured_figures(ways[way])
            if way in ways
            else {"left_out_needing_gib": round(task.needed(way) / 2**30, 3), "held_bytes_computed": task.held(way)}
            for way in WAYS
        }
    apart = {rows: difference(ways[ROWS], ways[SPARSE]) for rows, ways in measured.items() if {ROWS, SPARSE} <= ways.keys()}
    return {"sizes": sizes, "growth": growths(sizes), "rows_apart_from_ddp_sparse": apart}


def measured_figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "milliseconds": spread([run["ms"] for run in runs], 2),
        "sent_bytes": round(statistics.median(run["sent"] for run in runs)),
        "held_bytes": runs[0]["held"],
    }


def difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """How far the watched rows end apart, as a share of how far they have moved."""
    a, b = (np.array(runs[0]["moved"]) for runs in (ours, theirs))
    return float(f"{np.abs(a - b).mean() / np.abs(b).mean():.2g}")


def check_same(apart: dict[str, float]) -> None:
    """Raises SystemExit where the times would be of different work."""
    if any(share > SAME for share in apart.values()):
        raise SystemExit(
            f"`{ROWS}` and `{SPARSE}` learn different rows: apart by {apart} of what they moved. Nothing is published."
        )


def growths(sizes: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By way, from the smallest to the largest size at which it ran: times the rows, times the milliseconds."""
    found = {}
    for way in WAYS:
        ran = {int(rows): ways[way]["milliseconds"]["median"] for rows, ways in sizes.items() if "milliseconds" in ways[way]}
        if len(ran) > 1:
            first, last = min(ran), max(ran)
            found[way] = {"from": first, "to": last, "times_as_long": round(ran[last] / ran[first], 2)}
    return found


def describe(options: argparse.Namespace, figures: dict[str, Any]) -> str:
    lines = [line(int(rows), way, ways[way], options) for rows, ways in figures["sizes"].items() for way in WAYS]
    headers = ("rows", "way", "ms a step", "min", "max", "MB held by a worker", "MB sent by a worker a step")
    share = f"{100 * options.item_share:g}%"
    return f"""
`python benchmarks/bench_rows.py` trains a table of users and a table of items ({share} of the rows are items; {options.dim}
columns, float32) by softmax over {options.negatives} shared negatives, {options.batch} random events a step, in {WORKERS}
processes of one thread each, joined by gloo over the loopback interface, without Ray. Every way has the same loss function,
events, negatives and first values:

- `{ROWS}`, this project's loop: a worker holds its own users' rows; touched item rows are exchanged, and the row-wise Adam
  updates what was touched. The loop's checks and its norm of the gradients are part of the step.
- `{SPARSE}`: DistributedDataParallel with sparse gradients of embeddings, and SparseAdam.
- `{DENSE}`: DistributedDataParallel with dense gradients as views of its buckets, and Adam's fused kernel.

Milliseconds are the median of {options.runs} runs, taken in turn, each the median of {options.steps} steps after {WARMUP};
min and max are of the runs. Held are parameters and both moments, counted from the tensors. Sent is measured by the
interface's counter, TCP's own bytes and those of any other program on it included. What would need more than
{options.limit_gib:g} GiB for all workers was left out: with dense gradients that is the parameters, two moments, the buckets,
and a table's gradient on its way there.

{table(headers, lines)}

{consequences(figures)}
"""


def line(rows: int, way: str, told: dict[str, Any], options: argparse.Namespace) -> tuple[Any, ...]:
    if "milliseconds" not in told:
        why = f"left out: needs {told['left_out_needing_gib']:,g} GiB, computed"
        return f"{rows:,}", way, why, "", "", f"{megabytes(told['held_bytes_computed'])}, computed", ""
    milliseconds = (f"{told['milliseconds'][name]:,.1f}" for name in ("median", "min", "max"))
    return f"{rows:,}", way, *milliseconds, megabytes(told["held_bytes"]), megabytes(told["sent_bytes"])


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.2f}"


def consequences(figures: dict[str, Any]) -> str:
    """What the figures come to, in words that they choose."""
    grown = [
        f"A step of `{way}` takes {g['times_as_long']} times as long for {g['to'] / g['from']:,g} times the rows "
        f"({g['from']:,} to {g['to']:,})."
        for way, g in figures["growth"].items()
    ]
    apart = [
        f"At {int(rows):,} rows, item rows of `{ROWS}` and `{SPARSE}` end apart by {100 * share:.1g}% of what they have moved."
        for rows, share in figures["rows_apart_from_ddp_sparse"].items()
    ]
    compared = map(at_size, figures["sizes"].items())
    return "\n\n".join(filter(None, (" ".join((*grown, verdict(figures))), " ".join(filter(None, compared)), " ".join(apart))))


def at_size(size: tuple[str, dict[str, Any]]) -> str:
    """The others as multiples of `rows`."""
    rows, ways = size
    ours = ways[ROWS]
    others = {way: ways[way] for way in WAYS if way != ROWS and "milliseconds" in ways[way]}
    if "milliseconds" not in ours or not others:
        return ""
    multiples = (
        f"`{way}` takes {other['milliseconds']['median'] / ours['milliseconds']['median']:.3g} times the time, "
        f"{other['held_bytes'] / ours['held_bytes']:.3g} times the memory and "
        f"{other['sent_bytes'] / max(ours['sent_bytes'], 1):.3g} times the traffic of `{ROWS}`"
        for way, other in others.items()
    )
    return f"At {int(rows):,} rows {'; '.join(multiples)}."


def verdict(figures: dict[str, Any]) -> str:
    """Whether time follows the size of the tables, as far as more than one size was measured."""
    ours, dense = (figures["growth"].get(way, {}).get("times_as_long") for way in (ROWS, DENSE))
    if ours is None:
        return ""
    flat = (
        f"So a step by rows costs what the rows it touches cost, whatever the tables' size (less than {FLAT} times the time)."
        if ours < FLAT
        else f"So a step by rows is not flat in the size of the tables ({FLAT} times the time or more)."
    )
    if dense is None:
        return flat
    return f"{flat} With dense gradients it {'follows' if dense > FLAT else 'does not follow'} the size of the tables."


if __name__ == "__main__":
    main()
