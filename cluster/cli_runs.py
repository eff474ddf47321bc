"""`recsys runs`: list, show and compare training runs."""

from pathlib import Path
from typing import Annotated

import typer

from cluster import console
from recsys.errors import ConfigError

runs_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at training runs: list, show, compare.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, or its name in the folder of runs.")]
StorageOption = Annotated[Path, typer.Option("--storage", help="Folder of runs, where RUN is a name.")]


@runs_app.command("list")
def runs_list(
    storage: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"), json_: JsonOption = False
) -> None:
    """The runs in a folder, newest last: how far, how good beside popularity, how fast."""
    from cluster import run_reading, run_tables

    found = run_reading.find_runs(storage)
    if json_:
        return print(run_tables.as_json([run_tables.in_short(run) for run in found]))
    console.print_rows(*run_tables.listing(storage, found), fold=False)


@runs_app.command("show")
def runs_show(run: RunArgument, storage: StorageOption = Path("runs"), json_: JsonOption = False) -> None:
    """Everything about one run: settings, hardware, epochs, result, files."""
    from cluster import run_reading, run_tables

    found = run_reading.find_run(run, storage)
    if json_:
        return print(run_tables.as_json(run_tables.in_full(found)))
    for table in run_tables.about(found):
        console.print_rows(*table)
    if columns := run_tables.result_columns(found):
        console.print_metrics("Result" if found.result else "Result, so far", columns)


@runs_app.command("compare")
def runs_compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Two run folders or more, or their names.")],
    storage: StorageOption = Path("runs"),
    out: Annotated[Path, typer.Option("--out", help="The picture of their curves.")] = Path("compare.png"),
    json_: JsonOption = False,
) -> None:
    """What differs between runs, what came of each, and a picture of their curves over one another."""
    from cluster import run_reading, run_tables
    from cluster.outcome import overlay_curves

    if len(runs) < 2:
        raise ConfigError("Give two runs or more to compare; `recsys runs show RUN` is for one.")
    found = [run_reading.find_run(run, storage) for run in runs]
    picture = overlay_curves(found, out)
    if json_:
        return print(run_tables.as_json({**run_tables.compared(found), "picture": picture}))
    for table in run_tables.comparison(found):
        console.print_rows(*table)
    if not run_tables.same_dataset(found):
        console.say("Not all are known to have learnt from the same dataset: their metrics cannot be compared, none is marked.")
    console.say(f"Curves: {picture}" if picture else "No curves: none of these runs has finished an epoch.")
