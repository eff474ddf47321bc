"""Raw formats to uniform tables: `recognise` finds out what was given."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from recsys.config import DataConfig
from recsys.data.sources import movielens, published
from recsys.data.sources.base import Source
from recsys.data.sources.files import File, beside, list_files
from recsys.data.sources.joined import joined
from recsys.data.sources.tabular import CATALOGUES, TABLES, named_catalogue, read_catalogue, tabular
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
COMPANIONS = ("tags.csv", "links.csv", "genome-scores.csv", "genome-tags.csv")
"""Tables that are published beside ratings and hold no events."""

Read = Callable[[Sequence[File], DataConfig, str], Source]


def recognise(paths: Sequence[str], config: DataConfig) -> Source:
    """What the given folders, archives or files are. Raises DataError if no format knows them, or a file is broken.

    Tables of which the recognised format takes no file are a source of their own, and joined to it.
    """
    return joined(_in_order(_sources(paths, config, _read)), config)


def recognise_more(recorded: Sequence[Sequence[str]], paths: Sequence[str], config: DataConfig) -> Source:
    """What `recognise` would say of the files of an earlier source, part by part, and of `paths` together with them.

    Files of `paths` that are recorded already count once. Settings that name columns or a format hold for what is added
    where they fit it; else its columns are known by their usual names. Raises ConfigError if nothing is new.
    """
    parts = [[file for name in names for file in list_files(name)] for names in recorded]
    known = frozenset(file.place for files in parts for file in files)
    for source in _sources(paths, config, _read_fitting, known) if paths else ():
        together = (number for number, files in enumerate(parts) if _are_one([*files, *source.files], config))
        number = next(together, None)
        if number is None:
            parts.append(list(source.files))
        else:
            parts[number] += source.files
    return joined(_in_order(_read_fitting(files, config, files[0].name) for files in parts), config)


def _sources(paths: Sequence[str], config: DataConfig, read: Read, known: frozenset[object] = frozenset()) -> list[Source]:
    listed = {path: _unknown(list_files(path), known) for path in paths}
    given = [file for files in listed.values() for file in files]
    if not given:
        raise ConfigError(f"{', '.join(paths)}: holds nothing that the dataset was not made of. Give new files.")
    files = [file for file in given + beside(given) if file.place not in known]
    source = read(files, config, ", ".join(paths))
    taken = {file.place for file in source.files}
    left = {path: [file for file in files if _is_table(file)] for path, files in listed.items()}
    left = {path: files for path, files in left.items() if files and taken.isdisjoint(file.place for file in listed[path])}
    events = any(_tells(file) for files in left.values() for file in files)
    return [source, *(_sources(list(left), config, _read_fitting, known) if events else [])]


def _unknown(files: list[File], known: frozenset[object]) -> list[File]:
    """Files not known yet; of a folder that has grown, the tables that may hold events."""
    new = [file for file in files if file.place not in known]
    return new if len(new) == len(files) else [file for file in new if _tells(file)]


def _is_table(file: File) -> bool:
    return file.suffix in TABLES and file.base not in COMPANIONS


def _tells(file: File) -> bool:
    """Whether a file may hold events, by its name."""
    return _is_table(file) and file.base.rpartition(".")[0].lower() not in CATALOGUES


def _in_order(parts: Iterable[Source]) -> list[Source]:
    """By format, then by name: whichever came first, the same sources give the same bytes."""
    formats = list(FORMATS)
    return sorted(parts, key=lambda part: (formats.index(part.format), part.events[0].file.name))


def _are_one(files: Sequence[File], config: DataConfig) -> bool:
    """Whether files are one source that leaves none of them out."""
    try:
        source = _read_fitting(files, config, "")
    except (DataError, ConfigError):
        return False
    return {file.place for file in source.files} == {file.place for file in files}


def _read_fitting(files: Sequence[File], config: DataConfig, told: str) -> Source:
    """What files given beside others are: by the settings where they fit, else by usual names."""
    if config.catalogue not in [name for file in files for name in (file.name, file.base)]:
        config = config.model_copy(update={"catalogue": None})  # it describes another part
    unnamed = ("fold", "user_column", "item_column", "rating_column", "time_column", "delimiter", "encoding")
    usual = config.model_copy(update={"format": "auto"} | dict.fromkeys(unnamed))
    try:
        return _read(files, config, told)
    except (DataError, ConfigError):
        if usual == config:
            raise
        try:
            return _read(files, usual, told)
        except (DataError, ConfigError):
            pass
        raise


def _read(files: Sequence[File], config: DataConfig, told: str) -> Source:
    if config.format != "auto" and config.format not in FORMATS:
        raise ConfigError(f"data.format = {config.format!r}: there are auto, {', '.join(FORMATS)}.")
    once = {file.place: file for file in reversed(files)}
    named = _named(sorted((file.name, file) for file in once.values()))
    chosen = _candidates(config)
    for read in chosen.values():
        if (source := read(named, config)) is not None:
            return _as_asked(source, config)
    listed = ", ".join(list(named)[:10])
    raise DataError(f"{told}: holds {listed}: none of the formats {', '.join(chosen)}. Set data.format.")


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
