"""The raw data of a recipe: found under $RECSYS_DATA, downloaded before, or downloaded now; and the same as it was."""

import os
from collections.abc import Iterator
from pathlib import Path

from cluster.download import Progress, fetch
from cluster.recipe import RecipeSource
from cluster.samples import cache_folder
from recsys.data.sources.files import list_files
from recsys.data.sources.scan import fingerprint
from recsys.errors import DataError


def find_source(source: RecipeSource, progress: Progress | None = None) -> str:
    """What `recsys prepare` is given.

    Raises DataError where it is not there and cannot be downloaded, saying what is to be put where, or is not what the recipe
    was written for; RecsysError where the download breaks off.
    """
    place = next((path for path in _places(source) if path.exists()), None)
    if place is None:
        place = _downloaded(source, progress)
    found = _inside(place, source)
    _check(found, source)
    return found


def _places(source: RecipeSource) -> Iterator[Path]:
    for folder in (os.environ.get("RECSYS_DATA"), str(cache_folder())):
        if folder:
            yield Path(folder) / source.file
            if source.file.endswith(".zip"):
                yield Path(folder) / source.file.removesuffix(".zip")


def _downloaded(source: RecipeSource, progress: Progress | None) -> Path:
    if source.url is None or source.sha256 is None:
        where = os.environ.get("RECSYS_DATA") or "a folder that $RECSYS_DATA names"
        raise DataError(
            f"{source.file}: not found. Get {', '.join(source.files)} from {source.published} and put them into "
            f"{where}, as {source.file.removesuffix('.zip')}/ or packed as {source.file}."
        )
    path = cache_folder() / source.file
    fetch(source.url, path, source.sha256, progress)
    return path


def _inside(place: Path, source: RecipeSource) -> str:
    """In an archive everything lies in a folder of its name."""
    if source.inside is None:
        return str(place)
    folder = place / place.stem if place.is_file() else place
    return str(folder / source.inside)


def _check(path: str, source: RecipeSource) -> None:
    """Raises DataError unless every file the recipe names is there, with its hash."""
    files = {file.base: file for file in list_files(path)}
    for name, expected in source.files.items():
        if name not in files:
            raise DataError(f"{path}: holds no {name}. Get it from {source.published}.")
        _, found = fingerprint(files[name])
        if found != expected:
            raise DataError(
                f"{files[name].name}: SHA-256 is {found}, the recipe was written for {expected}. "
                f"Get the file that is meant from {source.published}."
            )
