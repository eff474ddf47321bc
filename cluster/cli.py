"""The `recsys` command: the one place where the product is put together.

Commands import what they need when they run, so that `recsys --help` answers at once.
"""

import signal
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import console
from cluster.cli_bench import bench_app
from cluster.cli_bundle import bundle_app
from cluster.cli_events import events_app
from cluster.cli_runs import runs_app
from recsys import __version__
from recsys.config import Config, describe, load_config
from recsys.errors import ConfigError, Interrupted, RecsysError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
STOPPED = 128 + signal.SIGINT

app.add_typer(bundle_app, name="bundle")
app.add_typer(events_app, name="events")
app.add_typer(bench_app, name="bench")
app.add_typer(runs_app, name="runs")

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file of settings; `recsys config` prints one.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One setting; may be repeated.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")]
StorageOption = Annotated[Path, typer.Option("--storage", help="Folder of runs, where RUN is a name.")]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the bundle; by default the run's.")]


def main() -> None:
    """Run the command; errors meant for people come without a traceback.

    Exit codes: 2 usage, 3 data, 4 bundle, 5 runtime, 130 and 143 stopped.
    """
    try:
        app()
    except RecsysError as error:
        console.err.print(f"{type(error).__name__}: {error}", markup=False)
        sys.exit(error.exit_code)
    except OSError as error:  # no right to a file, no room, no such folder: the path says what to mend
        console.err.print(f"{type(error).__name__}: {error}", markup=False)
        sys.exit(5)
    except SystemExit as ended:
        if ended.code == STOPPED:  # Typer's own, without a word
            console.err.print("Interrupted.")
        raise
    except Exception:
        traceback.print_exc()
        console.err.print("This should not have happened: please report it with the lines above.")
        sys.exit(5)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Train recommenders on Ray and serve them: prepare → train → export → serve."""
    if version:
        console.out.print(__version__)
        raise typer.Exit


@app.command("config")
def show_config(config: ConfigOption = None, set_: SetOption = None) -> None:
    """Print the effective settings as TOML, every field with its documentation."""
    section_shown = None
    for section, key, value, documentation in describe(load_config(config, set_ or ())):
        if section != section_shown:
            print(f"\n[{section}]" if section_shown else f"[{section}]")
            section_shown = section
        print("\n".join(f"# {line}" for line in documentation.splitlines()))
        print(f"# {key} =" if value is None else f"{key} = {_toml(value)}")


@app.command()
def doctor(config: ConfigOption = None, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Look at this machine, Ray and what is installed; say what would be better. Exit code 5 if something will fail."""
    import os

    from cluster.doctor import examine, show

    report = examine(load_config(config, set_ or ()), os.environ)
    console.print_json(report.as_dict()) if json_ else show(report)
    if report.status == "bad":
        raise typer.Exit(5)


@app.command()
def prepare(
    *,
    sources: Annotated[
        list[str] | None, typer.Argument(help="Folders, files, .zip archives or s3://, gs:// addresses of raw data.")
    ] = None,
    dataset: Annotated[Path, typer.Argument(help="The dataset folder to make.")],
    append: Annotated[
        Path | None, typer.Option("--append", metavar="DATASET", help="Add the sources to those of this dataset; it stays.")
    ] = None,
    forget: Annotated[
        str | None, typer.Option("--forget", metavar="IDS", help="Users to leave out: ids with commas, or a file, one a line.")
    ] = None,
    keep_parsed: Annotated[
        bool, typer.Option("--keep-parsed", help="Keep parsed events in the folder, for --append to read back.")
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Turn raw files into a dataset folder."""
    from cluster.append import append as grow
    from cluster.outcome import print_counts, print_prepared
    from cluster.prepare import make, recognised
    from cluster.session import session
    from recsys.data.dataset import fingerprint_of
    from recsys.data.forget import read_ids
    from recsys.data.summary import summarise

    settings = load_config(config, set_ or ())
    if append is None and not sources:
        raise ConfigError(f"{dataset}: made of what? recsys prepare SOURCE... {dataset}")
    users = read_ids(forget) if forget is not None else []
    place = dataset.absolute()  # `.` would name the folder that was replaced
    source = recognised(sources or (), dataset, settings.data) if append is None else None  # told before Ray starts
    before = fingerprint_of(dataset)
    with console.ProgressView() as view, session(settings.cluster):
        if append is not None:
            grow(append, sources or (), dataset, settings.data, view.stage, forget=users, keep_parsed=keep_parsed)
        elif source is not None:
            make(source, dataset, settings.data, view.stage, forget=users, keep_parsed=keep_parsed)
    summary = summarise(place)
    print_counts(dataset, summary)
    print_prepared(summary, replaced=before not in (None, fingerprint_of(place)))
    console.say(f"Next: recsys train {dataset}")


@app.command()
def inspect(
    dataset: Annotated[Path, typer.Argument(help="A dataset folder.")],
    picture: Annotated[Path | None, typer.Option(help="Where the curves go; by default DATASET.png beside the folder.")] = None,
    json_: JsonOption = False,
) -> None:
    """Print a dataset's counts, time span, most watched and rejects; draw its popularity and activity curves."""
    from cluster.outcome import print_counts
    from cluster.pictures import draw_dataset
    from recsys.data.summary import summarise

    summary = summarise(dataset)
    if json_:
        return console.print_json(summary.as_dict())
    print_counts(dataset, summary)
    rows = [(i + 1, item.title or item.item_id, item.count) for i, item in enumerate(summary.most_watched)]
    console.print_rows("Most watched", ("", "item", "train events"), rows, right=("", "train events"))
    place = dataset.resolve()
    path = picture or place.with_name(place.name + ".png")
    try:
        draw_dataset(summary, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}). Choose another place with --picture.") from None
    console.say(f"Curves of popularity and activity: {path}")


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="A dataset folder.")],
    config: ConfigOption = None,
    set_: SetOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; by default from model, dataset and settings.")] = None,
    begin_from: Annotated[
        Path | None, typer.Option("--from", help="A finished run to begin from: rows of the same ids, with their moments.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="A finished sasrec or two_tower of this dataset, whose scores are learnt.")
    ] = None,
) -> None:
    """Train on Ray, choose the best epoch on validation, measure it on test. The same command resumes."""
    from cluster.outcome import print_run
    from cluster.run_reading import folder_of
    from cluster.trainer import train as fit

    settings = load_config(config, set_ or ())
    view = console.ProgressView(settings.train.epochs, settings.train.metric)
    try:
        with view:
            result = fit(
                dataset,
                settings,
                name=name,
                on_epoch=view.epoch,
                on_step=view.step,
                on_note=view.note,
                begin_from=begin_from and (folder_of(begin_from, Path(settings.cluster.storage)) or begin_from),
                teacher=teacher and (folder_of(teacher, Path(settings.cluster.storage)) or teacher),
            )
    except KeyboardInterrupt:
        raise Interrupted("The same command goes on from the last checkpoint.", signal.SIGINT) from None
    print_run(result, settings.train.metric)


@app.command()
def tune(
    dataset: Annotated[Path, typer.Argument(help="A dataset folder.")],
    space: Annotated[Path, typer.Argument(metavar="SPACE.toml", help="What to try: [space], [goal], [search].")],
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all; by default what SPACE.toml says, or 20.")] = None,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="Trials that train at the same time.")] = 1,
    name: Annotated[str | None, typer.Option(help="Name of the tune; by default from dataset, space and settings.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Try settings on Ray Tune, chosen by Optuna, and keep the best on validation. The same command goes on."""
    from cluster.tuning.report import as_json, next_step, table
    from cluster.tuning.space import read_space

    settings = load_config(config, set_ or ())
    asked = read_space(space, settings).with_trials(trials)  # told before Ray is loaded
    from cluster.tune import tune as search

    with console.ProgressView() as view:
        found = search(dataset, asked, settings, name=name, at_once=at_once, watcher=view)
    if json_:
        return console.print_json(as_json(found, asked.goal))
    headers, rows = table(found.trials, asked.goal)
    console.print_rows(f"{found.folder}, the best first", headers, rows, right=headers[2:5], fold=False)
    console.say(next_step(found, asked.goal, dataset))


@app.command()
def evaluate(
    what: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A finished run's folder, or a bundle's.")],
    dataset: Annotated[
        Path | None, typer.Argument(help="The dataset, where a run's has moved; a bundle needs it for `negatives` only.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="full, negatives (stored with the dataset) or by-user (80% shown).")] = "full",
    segment: Annotated[str, typer.Option(help="valid or test.")] = "test",
    json_: JsonOption = False,
) -> None:
    """Measure a run or a bundle on what it has not learnt from, with intervals, popularity beside it."""
    from cluster import evaluate_report as report
    from cluster.evaluate import evaluate as measure
    from cluster.run_reading import folder_of

    with console.ProgressView() as view:
        found = measure(folder_of(what) or what, dataset, protocol=protocol, segment=segment, progress=view.stage)
    told = report.as_json(found)
    if json_:
        return console.print_json(told)
    headers = ("metric", found.model, *report.HEADERS[2:])
    console.print_rows(f"{found.kind} {found.what}", headers, report.rows(told), right=headers[1:], fold=False)
    if (row := report.exact_row(told)) is not None:
        right = report.EXACT_HEADERS[1:]
        console.print_rows("By the index against exact search", report.EXACT_HEADERS, [row], right=right, fold=False)
    console.say(report.protocol_line(found))
    console.say(report.people_line(told))


@app.command()
def blend(
    parts: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs of one dataset, the best first.")],
    storage: StorageOption = Path("runs"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the run that is made.")] = None,
) -> None:
    """Make one model of several finished runs, weighed by validation: a run like any other."""
    from cluster.blending import blend as weigh
    from cluster.outcome import print_blend
    from cluster.run_reading import folder_of

    with console.ProgressView() as view:
        folder = weigh(
            [folder_of(part, storage) or part for part in parts], storage, name=name, note=view.note, progress=view.stage
        )
    print_blend(folder)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    bundles: Annotated[Path, typer.Argument(help="Root folder of bundles.")] = Path("bundles"),
    name: NameOption = None,
    refit: Annotated[bool, typer.Option("--refit", help="First train on all events, as long as validation chose.")] = False,
    promote: Annotated[bool, typer.Option("--promote/--no-promote", help="Serve it from now on, or only publish it.")] = True,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Publish a run's best model as a checked bundle with an audited index."""
    from cluster.export import export as publish
    from cluster.outcome import print_bundle
    from cluster.run_reading import folder_of
    from cluster.runs import CONFIG, read_json
    from cluster.session import session

    for each in set_ or ():
        if each.partition(".")[0] not in ("index", "encoder", "cluster"):
            raise ConfigError(f"--set {each}: a run stays as it was trained; of export there are index., encoder. and cluster.")
    run = folder_of(run) or run
    of_run = (read_json(run / CONFIG) or {}).get("config")  # what is not set here stays as the run had it
    settings = load_config(config, set_ or (), base=of_run)
    view = console.ProgressView(metric=settings.train.metric)
    told: dict[str, Any] = {"on_epoch": view.epoch, "on_step": view.step, "on_note": view.note}
    with session(settings.cluster, only_trains=True) if refit else nullcontext(), view:
        folder = publish(
            run, bundles, name=name, refit=refit, promote=promote, index=settings.index, encoder=settings.encoder, **told
        )
    print_bundle(folder)


@app.command()
def reproduce(
    recipe: Annotated[str | None, typer.Argument(help="Name of a recipe, or a recipe's .toml file.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the pages.")] = Path("docs/benchmarks"),
    work: Annotated[Path, typer.Option("--work", help="Folder of datasets and runs.")] = Path("runs/reproduce"),
    seeds: Annotated[str | None, typer.Option("--seeds", help="Make only these, with commas; unset: all.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the recipes, and what their pages say.")] = False,
    json_: JsonOption = False,
) -> None:
    """Make a published figure again: choose on validation, refit, score test once, several seeds. Resumes."""
    from cluster import reproduce_report as report
    from cluster.recipe import all_recipes, find_recipe

    if list_:
        console.print_rows("Recipes", report.LISTED, report.listing(all_recipes(), out), fold=False)
        return console.say(f"ours: as the pages in {out} say" + ("." if out.is_dir() else ", which is not there: give --out."))
    if recipe is None:
        raise ConfigError("reproduce what? `recsys reproduce --list` shows the recipes.")
    found = find_recipe(recipe)
    chosen = _numbers(seeds, "--seeds") if seeds is not None else None
    from cluster.reproduce import reproduce as make
    from cluster.reproduce_page import write

    try:
        with console.ProgressView(metric=found.config.train.metric) as view:
            trials = make(found, work, view, chosen)
    except KeyboardInterrupt:
        raise Interrupted("The same command goes on with what is missing.", signal.SIGINT) from None
    told = report.summary(found, trials, f"recsys reproduce {Path(recipe).name}")
    page = None if told["missing_seeds"] else write(told, out)
    if json_:
        return console.print_json(told)
    headers, rows = report.table(told)
    console.print_rows(f"{found.title}: test", headers, rows, right=headers[1:-1], fold=False)
    if told["compared"]:
        headers, rows = report.differences(told)
        console.print_rows("Differences, with 95% intervals", headers, rows, right=headers[1:], fold=False)
    if (line := report.goal_line(told)) is not None:
        console.say(line)
    missing = ", ".join(map(str, told["missing_seeds"]))
    console.say(
        f"Page: {page}" if page else f"No page yet: seeds {missing} are missing; without --seeds the command makes them."
    )


@app.command()
def recommend(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or a folder with a CURRENT one.")],
    user: Annotated[list[str] | None, typer.Option("--user", help="A user's id; may be repeated.")] = None,
    history_: Annotated[
        list[str] | None,
        typer.Option("--history", help="An item's id that was taken, oldest first; may be repeated. Needs no --user."),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=1000, help="How many items.")] = 10,
    mode: Annotated[str, typer.Option(help="auto, ann or exact.")] = "auto",
    filter_: Annotated[
        str, typer.Option("--filter", help="JSON: what items must have in their columns, as in the service.")
    ] = "{}",
    diversity: Annotated[float, typer.Option(min=0, max=1, help="How unlike one another items should be.")] = 0,
    popularity: Annotated[float, typer.Option(min=-1, max=1, help="Towards what is popular, or away from it.")] = 0,
    recency: Annotated[float, typer.Option(min=-1, max=1, help="Towards what came lately, or long ago.")] = 0,
    explain: Annotated[bool, typer.Option("--explain", help="Say what in the history pulled each item up.")] = False,
    json_: JsonOption = False,
) -> None:
    """Print who should watch what next, without a server: the same recommender answers. Of nobody: what a stranger gets."""
    from cluster.ask import answers, conditions, history, print_answer, print_json
    from recsys.retrieval.requests import Request

    order = {"diversity": diversity, "popularity": popularity, "recency": recency, "explain": explain}
    asked = Request(history=history(history_ or ()), k=k, mode=mode, filters=conditions(filter_), **order)  # type: ignore[arg-type]
    for answer in answers(bundle, user or (), asked):
        (print_json if json_ else print_answer)(answer)


@app.command()
def score(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or a folder with a CURRENT one.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of parquet files to make.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=1000, help="How many items a user.")] = 10,
    mode: Annotated[str, typer.Option(help="auto, ann or exact.")] = "auto",
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Write what every known user should watch next, on Ray, cluster.num_workers at a time."""
    from cluster.score import refuse
    from cluster.score import score as answer_all
    from cluster.session import session

    cluster = load_config(config, set_ or ()).cluster
    known = refuse(bundle, out, k=k, mode=mode)  # type: ignore[arg-type]
    with console.ProgressView() as view:
        view.note(f"{known:,} users to score: starting Ray and {cluster.most_workers} of its actors, which takes a while.")
        with session(cluster):
            users = answer_all(bundle, out, k=k, mode=mode, workers=cluster.most_workers, progress=view.stage)  # type: ignore[arg-type]
    console.say(f"Lists of {users:,} users: {out}")


@app.command()
def serve(
    bundles: Annotated[Path, typer.Argument(help="Root folder of bundles, or one bundle.")],
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless told.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that answer.")] = 1,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs of each, or a part of one; unset: those here.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Which bundle, where the root holds several.")] = None,
    profile: Annotated[
        str, typer.Option(help="laptop, or production: HAProxy, several times faster, needs --host beyond loopback; JSON logs.")
    ] = "laptop",
    ingress: Annotated[str | None, typer.Option(help="ray or haproxy, in place of the profile's.")] = None,
    keys: Annotated[Path | None, typer.Option(help="TOML file of the keys that may ask.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Beyond loopback without keys.")] = False,
    events: Annotated[str, typer.Option(help="Where events go: auto, none, a file, redis, redis://HOST:PORT/0.")] = "auto",
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of Prometheus' metrics; unset: a free one.")
    ] = None,
) -> None:
    """Answer over HTTP until Ctrl-C."""
    from serve.app import logs_folder, metrics_url, run
    from serve.args import make_args

    told = {"host": host, "port": port, "replicas": replicas, "events": events, "open": open_}
    told |= {} if keys is None else {"keys": str(keys.resolve())}
    told |= {
        name: value
        for name, value in {"ingress": ingress, "gpus": gpus, "metrics_port": metrics_port}.items()
        if value is not None
    }
    args = make_args(profile, bundles=str(bundles.resolve()), name=name, **told)
    console.news("Starting, which takes a while.")
    run(args, ready=lambda url: console.say_serving(url, metrics_url(), logs_folder()), tell=console.news)
    console.news("Stopped.")


@app.command()
def demo(
    data: Annotated[str | None, typer.Option(help="Raw data; by default MovieLens, or a made sample when offline.")] = None,
    workspace: Annotated[Path, typer.Option(help="Where dataset, run and bundle go.")] = Path("demo"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Keep serving until Ctrl-C.")] = True,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """The whole way on real films: prepare, train, export, serve, ask over HTTP."""
    from cluster.demo import run_demo
    from serve.app import serving
    from serve.args import ServeArgs
    from serve.client import Client

    def service(bundles: Path) -> AbstractContextManager[str]:
        return serving(ServeArgs(bundles=str(bundles.resolve()), port=port))

    run_demo(data, workspace, wait, load_config(config, set_ or ()), service, Client)


def _numbers(text: str, option: str) -> list[int]:
    """Numbers with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text}: give numbers with commas, such as 0,1,2.") from None


def _toml(value: Any) -> str:
    import json

    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


__all__ = ["Config", "ConfigError", "app", "main"]
