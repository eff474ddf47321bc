"""Writes ranx_metrics.json: the metrics of `cases.py` by ranx, an independent library, for tests/unit/recsys/test_oracle.py.

    python -m venv oracle && oracle/bin/pip install ranx==0.3.21 && oracle/bin/python tests/oracles/ranx_metrics.py

It needs newer NumPy and pandas than the project is tested with, so its answers are kept, and it is not among the dependencies.
ranx leaves the order of equal scores to chance; it is handed the places of `listed`, so that ties are broken by item number.
"""

import json
from importlib.metadata import version
from pathlib import Path

from cases import KS, cases, listed
from ranx import Qrels, Run, evaluate

NAMES = {"hr": "hit_rate", "recall": "recall", "ndcg": "ndcg", "mrr": "mrr"}


def main() -> None:
    """Compute and write."""
    made = cases()
    held = {f"u{user:03}": {f"i{item}": 1 for item in case.held} for user, case in enumerate(made)}
    places = {
        f"u{user:03}": {f"i{item}": float(len(items) - place) for place, item in enumerate(items)}
        for user, items in enumerate(listed(made))
    }
    asked = {f"{ours}@{k}": f"{theirs}@{k}" for k in KS for ours, theirs in NAMES.items()}
    found = evaluate(Qrels(held), Run(places), list(asked.values()), return_mean=False)
    told = {ours: [float(value) for value in found[theirs]] for ours, theirs in asked.items()}
    content = {"library": f"ranx {version('ranx')}", "metrics": told}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content) + "\n", "utf-8")


if __name__ == "__main__":
    main()
