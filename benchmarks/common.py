"""What every benchmark shares: interleaved timing, the machine it ran on, one JSON line and a page under docs/benchmarks/."""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGES = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
PEERS = ("ray", "torch", "numpy", "pyarrow", "faiss-cpu", "implicit", "fastapi", "uvicorn")


def interleave(contenders: Mapping[str, Callable[[], Any]], runs: int = 5, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each run, taken in turn A B A B …, so that drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(warmup + runs):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            if run >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median with the smallest and the largest."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def training_options(doc: str | None) -> argparse.ArgumentParser:
    """Options of the benchmarks that train on paired seeds: --source, --seeds, --set."""
    parser = argparse.ArgumentParser(description=doc)
    default = Path(os.environ.get("RECSYS_DATA", ".")) / "ml-1m.zip" / "ml-1m" / "ml-1m.txt"
    parser.add_argument("--source", default=str(default))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], help="a setting, as in recsys train")
    return parser


def machine() -> dict[str, Any]:
    """Hardware, versions and commit: a figure without them is a rumour."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version for name in PEERS if (version := _version(name))},
        "commit": _commit(),
        "day": time.strftime("%Y-%m-%d"),
    }


def publish(name: str, title: str, text: str, figures: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write docs/benchmarks/<name>.json and .md, and end with the same as one line of JSON.

    text: Markdown that says what was measured against what, by which command, and what the figures mean.
    """
    content = {"benchmark": name, "figures": figures, "settings": settings, "machine": machine()}
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    (PAGES / f"{name}.md").write_text(_page(title, text, content))
    print(json.dumps(content))


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _page(title: str, text: str, content: Mapping[str, Any]) -> str:
    on = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in on["versions"].items())
    hardware = (
        f"{on['cores']} cores of {on['processor']}, Python {on['python']}, {versions}; commit {on['commit']}, {on['day']}."
    )
    settings = json.dumps(content["settings"], indent=2)
    return f"# {title}\n\n{text.strip()}\n\n## Settings\n\n{hardware}\n\n```json\n{settings}\n```\n"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
