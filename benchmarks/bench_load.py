"""What callers wait at half of the peak, what a list of users saves over asking for each, and what a change of bundles costs.

python benchmarks/bench_load.py                     62k items, five rounds
python benchmarks/bench_load.py --smoke             a small try, nothing written
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from bench_http import USERS, server, write_bundle
from common import publish, spread, table

from recsys.bundle import store
from serve.load import Seen, Target, closed_loop, open_loop, questions

CONNECTIONS, LISTS, AT_ONCE, K = 64, 4, 256, 10

TEXT = """
`python benchmarks/bench_load.py`: the service of [HTTP](http.md) (HAProxy, one replica, top-{k} of {items:,} items, the load
generator on the same two cores), {rounds} rounds of {seconds:g} s in turn. Independent callers (Poisson) ask at half of what
{connections} callers had who ask again as soon as they are answered; their time counts from when their request was due.

{rows}

{at_once} users in one request, {lists} callers: {over_one} times the users a second of one caller who asks for one after the
other, {over_all} times those of {connections} callers at once.

**A bundle changes** every {every:g} s while asked at half of the peak for {swap_seconds:g} s, {changes} times:
{asked:,} asked, {failed} failed. The p99 within a second of a change is {during} ms, of the rest {before} ms.
"""


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_bundle(root, options.items)
        write_bundle(root, options.items)  # another version of the same
        with server("ours", root) as port:
            figures = measure(Target(f"http://127.0.0.1:{port}"), root / "films", options)
    if options.smoke:
        print(json.dumps(figures))
        return
    publish("load", "Under load", describe(figures, options), figures, vars(options) | {"users": USERS, "at_once": AT_ONCE})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=62_000)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--swap-seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=15, help="seconds between changes of the bundle")
    parser.add_argument("--smoke", action="store_true", help="2,000 items, one round of 2 s, nothing written")
    options = parser.parse_args()
    if options.smoke:
        options.items, options.seconds, options.rounds, options.swap_seconds, options.every = 2_000, 2, 1, 16, 7
    return options


def measure(target: Target, bundles: Path, options: argparse.Namespace) -> dict[str, Any]:
    users = [f"u{user}" for user in range(USERS)]
    single, many = questions(users, K), questions(users, K, AT_ONCE)
    kinds: dict[str, list[Seen]] = {"peak": [], "half": [], "one": [], "many": []}
    for turn in range(options.rounds + 1):
        peak = asyncio.run(closed_loop(target, single, CONNECTIONS, options.seconds))
        half = asyncio.run(open_loop(target, single, peak.per_second / 2, options.seconds, seed=turn))
        one = asyncio.run(closed_loop(target, single, 1, options.seconds))
        lists = asyncio.run(closed_loop(target, many, LISTS, options.seconds))
        if turn:  # the first warms up
            for kind, seen in zip(kinds, (peak, half, one, lists), strict=True):
                kinds[kind].append(seen)
    figures: dict[str, Any] = {kind: summary(seen) for kind, seen in kinds.items()}
    ratios = {
        f"over_{kind}": spread(
            [AT_ONCE * m.per_second / s.per_second for m, s in zip(kinds["many"], kinds[kind], strict=True)], 1
        )
        for kind in ("one", "peak")
    }
    rate = figures["peak"]["per_second"]["median"] / 2
    return figures | ratios | {"swap": swap(target, bundles, rate, options)}


def summary(seen: list[Seen]) -> dict[str, Any]:
    """Of some rounds; failures of all."""
    return {
        "per_second": spread([each.per_second for each in seen], 1),
        "p50": spread([each.milliseconds(0.5) or 0 for each in seen], 1),
        "p99": spread([each.milliseconds(0.99) or 0 for each in seen], 1),
        "failed": sum(sum(each.failed.values()) for each in seen),
    }


def swap(target: Target, bundles: Path, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Versions promoted in turn while asked; slow answers near the moments at which the service took them."""
    spawn = multiprocessing.get_context("spawn")  # in a process of its own, as whoever promotes is: not to hold up the callers
    ended, told = spawn.Event(), spawn.SimpleQueue()
    promoting = spawn.Process(target=promote_in_turn, args=(target.url, bundles, options.every, told, ended))
    promoting.start()
    while told.empty():  # until it has begun
        if promoting.exitcode is not None:
            raise RuntimeError("who promotes has failed")
        time.sleep(0.1)
    told.get()
    began = time.monotonic()
    bodies = questions([f"u{user}" for user in range(USERS)], K)
    seen = asyncio.run(open_loop(target, bodies, rate, options.swap_seconds))
    ended.set()
    promoting.join(60)
    if promoting.exitcode != 0:
        raise RuntimeError("who promotes has failed")
    taken: list[float] = []
    while not told.empty():
        taken.append(told.get())
    near = np.zeros(seen.asked, bool)
    for moment in taken:
        near |= np.abs(seen.began - (moment - began)) <= 1
    p99 = [round(float(1000 * np.quantile(seen.took[seen.good & which], 0.99)), 1) for which in (near, ~near)]
    return {"changes": len(taken), "asked": seen.asked, "failed": seen.failed, "p99_near": p99[0], "p99_else": p99[1]}


def promote_in_turn(url: str, bundles: Path, every: float, told: Any, ended: Any) -> None:
    """told: a queue; that it begins, then when each new version first answered, on this machine's clock."""
    versions = store.versions(bundles)
    told.put(0.0)
    while not ended.wait(every):
        next_one = next(version for version in versions if version != store.current(bundles).name)
        store.promote(bundles, next_one)
        while not ended.wait(0.1):
            with urllib.request.urlopen(f"{url}/readyz", timeout=30) as answer:
                if json.load(answer)["bundle"] == next_one:
                    told.put(time.monotonic())
                    break


def describe(figures: dict[str, Any], options: argparse.Namespace) -> str:
    names = {
        "peak": f"{CONNECTIONS} callers",
        "half": "independent, half of that",
        "one": "one caller",
        "many": f"{LISTS} callers, {AT_ONCE} users a request",
    }
    rows = [
        [
            names[kind],
            *map(of_all, (of["per_second"], of["p50"], of["p99"])),
            of["failed"],
        ]
        for kind, of in figures.items()
        if kind in names
    ]
    changed = figures["swap"]
    return TEXT.format(
        **vars(options),
        k=K,
        at_once=AT_ONCE,
        connections=CONNECTIONS,
        rows=table(["", "requests a second", "p50 ms", "p99 ms", "failed"], rows),
        lists=LISTS,
        over_one=of_all(figures["over_one"]),
        over_all=of_all(figures["over_peak"]),
        asked=changed["asked"],
        changes=changed["changes"],
        failed=sum(changed["failed"].values()),
        during=changed["p99_near"],
        before=changed["p99_else"],
    )


def of_all(figure: dict[str, float]) -> str:
    return f"{figure['median']} ({figure['min']}–{figure['max']})"


if __name__ == "__main__":
    main()
