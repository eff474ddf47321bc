"""A training step on this machine's device: fp32 against mixed precision, eager against compiled, Adam fused or not.

python benchmarks/bench_step.py [--models mf sasrec] [--runs 5] [--steps 20] [--set section.key=value]

Needs no Ray and no data: generated events of the shape of MovieLens 1M. Runs on a GPU where there is one.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import interleave, publish, spread, table

from recsys.config import Config, batch_size, load_config
from recsys.data.histories import Histories, Pairs
from recsys.models import MODELS, Catalogue, build
from recsys.training import hardware
from recsys.training.hardware import DTYPES, Hardware
from recsys.training.loop import make_optimizers, train_epoch
from recsys.training.negatives import Negatives

USERS, ITEMS, EVENTS = 6040, 3416, 165  # of ml-1m; events of a user, on average
Work = Callable[[], Any]


def main() -> None:
    options = arguments()
    found = hardware.choose(load_config().train)
    figures = {name: measure(name, found, options) for name in options.models}
    figures = {"device": device_name(found), "threads": found.threads, "models": figures}
    publish("step", "A training step", describe(options, figures), figures, vars(options))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["mf", "sasrec"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], help="a setting, as in recsys train")
    return parser.parse_args()


def measure(name: str, found: Hardware, options: argparse.Namespace) -> dict[str, Any]:
    """Events a second of each way, taken in turn; the first run of each, which compiles and sets up, is left out."""
    config = load_config(overrides=[f"model.name={name}", *options.set])
    batches, events = random_batches(config, options.steps, found.device)
    ways = {way: work(way, config, batches, *setting) for way, setting in ways_of(found).items()}
    seconds = interleave(ways, options.runs)
    return {way: spread([events / run for run in each], 0) for way, each in seconds.items()}


def ways_of(found: Hardware) -> dict[str, tuple[Hardware, bool, bool]]:
    """Hardware, whether compiled, whether Adam is fused."""
    mixed = found if found.precision != "fp32" else replace(found, dtype=DTYPES["bf16"])
    tf32 = {"TF32": (replace(found, dtype=torch.float32), False, False)} if found.device.type == "cuda" else {}
    return tf32 | {
        "fp32": (replace(found, dtype=torch.float32), False, False),
        mixed.precision: (mixed, False, False),
        f"{mixed.precision}, fused Adam": (mixed, False, True),
        f"{mixed.precision}, compiled": (mixed, True, False),
    }


def work(way: str, config: Config, batches: list[Any], on: Hardware, compiled: bool, fused: bool) -> Work:
    """An epoch of the product's own loop over the batches, by a model of its own."""
    rng = np.random.default_rng(0)
    catalogue = Catalogue(USERS, ITEMS, rng.integers(1, 3000, ITEMS))
    model = build(config.model, catalogue, 0).to(on.device)
    optimizers = make_optimizers(model, config.train)
    if fused:
        for optimizer in optimizers:
            if isinstance(optimizer, torch.optim.Adam):
                optimizer.param_groups[0].update(fused=True, foreach=False)
    if compiled:
        model.compile(dynamic=True)
    negatives = Negatives(config.model, catalogue.item_counts, 0)

    def epoch() -> None:
        torch.set_float32_matmul_precision("highest" if way == "fp32" else "high")
        train_epoch(model, batches, optimizers, hardware=on, scaler=on.scaler(), negatives=negatives)
        on.wait()

    return epoch


def random_batches(config: Config, steps: int, device: torch.device) -> tuple[list[Any], int]:
    """Steps of the model's own kind, and how many events they hold."""
    rng, size = np.random.default_rng(0), batch_size(config, USERS)
    if MODELS[config.model.name].batch is Pairs:
        shape = (steps, size)
        columns = rng.integers(0, USERS, shape), rng.integers(0, ITEMS, shape), np.ones(shape, np.float32)
        on = [torch.from_numpy(column).to(device) for column in columns]  # as the product has them, macro-batches ahead
        return [Pairs(*step, total=size) for step in zip(*on, strict=True)], steps * size
    lengths = np.clip(rng.lognormal(np.log(EVENTS) - 0.5, 1.0, (steps, size)), 3, 2000).astype(np.int64)
    items = [rng.integers(0, ITEMS, int(each.sum()), dtype=np.int32) for each in lengths]
    users = np.arange(size, dtype=np.int32)
    return [Histories.of_events(users, *step) for step in zip(lengths, items, strict=True)], int(lengths.sum())


def device_name(found: Hardware) -> str:
    return torch.cuda.get_device_name(found.device) if found.device.type == "cuda" else "CPU"


def describe(options: argparse.Namespace, figures: dict[str, Any]) -> str:
    rows = [
        (name, way, f"{rate['median']:,.0f}", f"{rate['min']:,.0f} to {rate['max']:,.0f}", f"{rate['median'] / first:.2f}")
        for name, ways in figures["models"].items()
        for first in [ways["fp32"]["median"]]
        for way, rate in ways.items()
    ]
    return f"""
`python benchmarks/bench_step.py` trains on generated events of the shape of MovieLens 1M ({USERS:,} users, {ITEMS:,} items,
about {EVENTS} events a user), {options.steps} steps a run, {options.runs} runs of each way in turn, with each model's own
settings and the product's own loop. Device: {figures["device"]}, {figures["threads"]} threads, GOMP_SPINCOUNT
{os.environ.get("GOMP_SPINCOUNT", "not set")} (training workers have 1000). Of `mf` every parameter is updated row by row, so
Adam's fused form has nothing to do there.

{table(("model", "way", "events/s, median", "min to max", "times fp32"), rows)}
"""


if __name__ == "__main__":
    main()
