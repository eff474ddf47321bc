"""Train on a dataset folder: `python train.py DATASET [--config FILE] [--set section.key=value …] [--name NAME]`.

The same as `recsys train`, for `ray job submit --working-dir . -- python train.py …`: lines of progress, then one of JSON.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from cluster.trainer import train
from recsys.config import load_config
from recsys.errors import RecsysError


def main() -> None:
    """Train, and print the result as one line of JSON. Exit codes: 2 usage, 3 data, 5 runtime, 130 and 143 stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path, help="a dataset folder, as `recsys prepare` makes it")
    parser.add_argument("--config", type=Path, help="TOML file of settings")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="one setting; may be repeated")
    parser.add_argument("--name", help="name of the run; by default from model, dataset and settings")
    parser.add_argument(
        "--from", dest="begin_from", type=Path, metavar="RUN", help="a finished run to begin from, by string ids"
    )
    parser.add_argument("--teacher", type=Path, metavar="RUN", help="a finished run of the same dataset to learn from, too")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    result = train(
        options.dataset,
        config,
        name=options.name,
        begin_from=options.begin_from,
        teacher=options.teacher,
        on_epoch=lambda row: print(json.dumps(row), flush=True),
        on_note=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(json.dumps(asdict(result) | {"folder": str(result.folder)}))


if __name__ == "__main__":
    try:
        main()
    except RecsysError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
