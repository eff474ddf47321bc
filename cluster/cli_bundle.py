"""`recsys bundle`: list, check, switch and compare published bundles."""

from pathlib import Path
from typing import Annotated

import typer

from cluster import console
from recsys.errors import BundleError, ConfigError

bundle_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, check, switch and compare published bundles.")
VersionsArgument = Annotated[Path, typer.Argument(help="Folder of one bundle's versions, or a root with one only.")]


@bundle_app.command("list")
def bundle_list(bundles: Annotated[Path, typer.Argument(help="Root folder of bundles.")] = Path("bundles")) -> None:
    """The bundles under a root, newest last; the one to be served, and a canary, are marked."""
    from recsys.bundle import store

    if not bundles.is_dir():
        raise BundleError(f"{bundles}: no such folder. `recsys export RUN {bundles}` makes it.")
    listed = store.listing(bundles)
    if not listed:
        raise BundleError(f"{bundles}: no bundles here. Make one: recsys export RUN {bundles}")
    for folder in dict.fromkeys(b.folder.parent for b in listed):
        try:
            if store.was_served(folder):
                store.current(folder)
        except BundleError as error:
            console.err.print(str(error), markup=False)
    marks = ["current" if b.current else f"canary, {b.canary:.1%}" if b.canary else "" for b in listed]
    rows = [(b.name, b.version, mark, b.model, b.items, b.users) for b, mark in zip(listed, marks, strict=True)]
    console.print_rows(
        f"Bundles in {bundles}", ("name", "version", "", "model", "items", "users"), rows, right=("items", "users")
    )


@bundle_app.command("show")
def bundle_show(bundle: Annotated[Path, typer.Argument(help="A bundle, or a folder with a CURRENT one.")]) -> None:
    """The manifest as JSON."""
    from recsys.bundle import store

    print(store.read_manifest(store.resolve(bundle)).model_dump_json(indent=2))


@bundle_app.command("verify")
def bundle_verify(bundle: Annotated[Path, typer.Argument(help="A bundle, or a folder with a CURRENT one.")]) -> None:
    """Hash every file, open the bundle, and answer its golden queries."""
    from recsys.bundle import store
    from recsys.retrieval.recommender import Recommender

    folder = store.resolve(bundle)
    files = store.verify(folder, check=Recommender)
    console.say(f"{folder}: {files} files are as the manifest says, golden queries answered as recorded.")


@bundle_app.command("promote")
def bundle_promote(
    bundles: VersionsArgument,
    version: Annotated[str, typer.Argument(help="The version to serve from now on.")],
) -> None:
    """Make a version the one served."""
    from recsys.bundle import store
    from recsys.retrieval.recommender import Recommender

    folder = store.of_one_name(bundles)
    console.say(f"{folder}: now serves {store.promote(folder, version, check=Recommender)}.")


@bundle_app.command("rollback")
def bundle_rollback(bundles: VersionsArgument) -> None:
    """Serve again what was served before the current version."""
    from recsys.bundle import store
    from recsys.retrieval.recommender import Recommender

    folder = store.of_one_name(bundles)
    console.say(f"{folder}: now serves {store.rollback(folder, check=Recommender)}.")


@bundle_app.command("canary")
def bundle_canary(
    bundles: VersionsArgument,
    version: Annotated[str | None, typer.Argument(help="The version that some users are to be answered from.")] = None,
    share: Annotated[float, typer.Option(help="Which share of the users.")] = 0.05,
    off: Annotated[bool, typer.Option("--off", help="No longer.")] = False,
) -> None:
    """Answer a share of the users, always the same, from another version than the rest."""
    from recsys.bundle import store
    from recsys.retrieval.recommender import Recommender

    if (version is None) != off:
        raise ConfigError("recsys bundle canary: give a version, or --off.")
    folder = store.of_one_name(bundles)
    store.set_canary(folder, version, share, check=Recommender)
    console.say(f"{folder}: no canary." if version is None else f"{folder}: {version} answers {share:.1%} of the users.")


@bundle_app.command("compare")
def bundle_compare(
    one: Annotated[Path, typer.Argument(help="A bundle, or a folder with a CURRENT one.")],
    other: Annotated[Path, typer.Argument(help="Another.")],
    users: Annotated[int, typer.Option(min=1, help="How many users are asked for, drawn at random.")] = 1000,
    show: Annotated[int, typer.Option(min=0, help="How many of them are shown.")] = 3,
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="How many items.")] = 10,
    json_: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of tables.")] = False,
) -> None:
    """Set the lists of two bundles side by side, and say how much they have in common."""
    from cluster import bundle_compare as comparing

    found = comparing.compare(one, other, users=users, show=show, k=k)
    (comparing.print_json if json_ else comparing.print_tables)(found)
