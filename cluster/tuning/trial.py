"""One trial, in a process of its own: an ordinary run, trained and measured on validation, exported where that is asked for."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.trainer import RunResult, train
from cluster.tuning import served
from cluster.tuning.trials import FAILED, FINISHED, REFUSED, STOPPED
from recsys.config import Config
from recsys.errors import ConfigError, DataError, Interrupted, RecsysError

ROW, OUTCOME = "row", "outcome"
"""What is reported to Ray Tune, as JSON: a row of metrics.jsonl after each epoch, and at the end Trial's fields."""

Report = Callable[[dict[str, Any]], None]


def run(given: dict[str, Any]) -> None:
    """The function Ray Tune runs. given: dataset, run (its name), config, metric, exports, latency_ms."""
    from ray import tune

    config = Config.model_validate(given["config"])
    told = attempt(Path(given["dataset"]), config, given, lambda row: tune.report({ROW: json.dumps(row)}))
    tune.report({OUTCOME: json.dumps(told)})


def attempt(dataset: Path, config: Config, given: dict[str, Any], report: Report) -> dict[str, Any]:
    """Train, and tell the fields of Trial that came of it. What goes wrong with one trial is told too, and stops no other;
    a dataset that cannot be read is `fatal`."""
    try:
        run = _trained(dataset, config, given["run"], report)
        return measured(run, config, given["metric"], exports=given["exports"], limit=given["latency_ms"])
    except Interrupted:
        return {"state": STOPPED}
    except ConfigError as error:  # settings that do not go together
        return {"state": REFUSED, "reason": str(error)}
    except (RecsysError, OSError) as error:
        return {"state": FAILED, "reason": str(error), "fatal": isinstance(error, DataError)}


def _trained(dataset: Path, config: Config, name: str, report: Report) -> RunResult:
    """The one place where trials train: test is left alone."""
    return train(dataset, config, name=name, on_epoch=report, measure_test=False)


def measured(run: RunResult, config: Config, metric: str, *, exports: bool, limit: float | None) -> dict[str, Any]:
    """What a finished run is worth. exports: by the lists of its bundle, which is made for that and thrown away; limit: the
    milliseconds that an answer may take."""
    told = {"state": FINISHED, "epochs": run.epochs, "best_epoch": run.best_epoch}
    if not exports:
        return told | {"goal": run.metrics[metric], "latency_ms": None}
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=run.folder.parent) as folder:
        bundle = served.exported(run.folder, Path(folder), config)
        return told | {"goal": served.metric(bundle, metric), "latency_ms": served.latency(bundle, limit)}
