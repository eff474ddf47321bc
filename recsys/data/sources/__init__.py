"""Raw formats to uniform tables: `recognise` finds out what was given."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from recsys.config import DataConfig
from recsys.data.sources import movielens, published
from recsys.data.sources.base import Source
from recsys.data.sources.files import File, beside, list_files
from recsys.data.sources.tabular import named_catalogue, read_catalogue, tabular
from recsys.errors import ConfigError, DataError

Recognise = Callable[[dict[str, File], DataConfig], Source | None]

FORMATS: dict[str, Recognise] = {
    "ml-100k": movielens.ml_100k,
    "movielens-dat": movielens.dat,
    "movielens-csv": movielens.csv,
    "lightgcn": published.lightgcn,
    "ncf": published.ncf,
    "sequence": published.sequence,
    "tabular": tabular,
}
"""Asked in this order; the first that knows the files is taken."""

FOLDED = ("ml-100k", "ncf")


def recognise(paths: Sequence[str], config: DataConfig) -> Source:
    """What the given folders, archives or files are. Raises DataError if no format knows them, or a file is broken."""
    if config.format != "auto" and config.format not in FORMATS:
        raise ConfigError(f"data.format = {config.format!r}: there are auto, {', '.join(FORMATS)}.")
    given = [file for path in paths for file in list_files(path)]
    once = {(file.path, file.member): file for file in reversed(given + beside(given))}
    files = _named(sorted((file.name, file) for file in once.values()))
    chosen = _candidates(config)
    for read in chosen.values():
        if (source := read(files, config)) is not None:
            return _as_asked(source, config)
    listed = ", ".join(list(files)[:10])
    raise DataError(f"{', '.join(paths)}: holds {listed}: none of the formats {', '.join(chosen)}. Set data.format.")


def _candidates(config: DataConfig) -> dict[str, Recognise]:
    named = (config.user_column, config.item_column, config.rating_column, config.time_column)
    name = "tabular" if config.format == "auto" and any(named) else config.format
    return FORMATS if name == "auto" else {name: FORMATS[name]}


def _as_asked(source: Source, config: DataConfig) -> Source:
    """The source with the catalogue that was asked for. Raises ConfigError for settings it knows nothing of."""
    if config.fold is not None and source.format not in FOLDED:
        raise ConfigError(
            f"data.fold = {config.fold!r}: the source is {source.format}; only {' and '.join(FOLDED)} have folds."
        )
    if config.min_rating is not None and not source.has_rating:
        raise ConfigError(f"data.min_rating = {config.min_rating}: {source.events[0].file.name} has no ratings. Leave it out.")
    if config.catalogue is None or source.format == "tabular":
        return source
    file = named_catalogue(config.catalogue)
    return replace(source, catalogue_files=(file,), catalogue=lambda: read_catalogue(file, config))


def _named(files: list[tuple[str, File]]) -> dict[str, File]:
    """Files by their last name; by the whole name where that is not enough."""
    bases = [file.base for _, file in files]
    return {file.base if bases.count(file.base) == 1 else name: file for name, file in files}
