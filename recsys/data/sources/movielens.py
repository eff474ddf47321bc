"""MovieLens of every vintage, and MovieTweetings, which took over its format."""

from codecs import BOM_UTF8

from recsys.config import DataConfig
from recsys.data.sources import catalogue
from recsys.data.sources.base import Columns, Delimited, EventFile, Source, no_catalogue
from recsys.data.sources.files import File, head
from recsys.errors import ConfigError, DataError

FOLDS = ("u1", "u2", "u3", "u4", "u5", "ua", "ub")
GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
FIELDS = ("user", "item", "rating", "time")
COLUMNS = Columns(*FIELDS)
CSV_HEADER = b"userid,movieid,rating,timestamp"


def ml_100k(files: dict[str, File], config: DataConfig) -> Source | None:
    """`u.data` with `u.item`, or one of the published folds if data.fold names it."""
    if "u.data" not in files and not (config.fold and f"{config.fold}.base" in files):
        return None
    names = [("u.data", 0)] if config.fold is None else [(f"{_fold(config)}.base", 0), (f"{_fold(config)}.test", 2)]
    for name, _ in names:
        if name not in files:
            raise DataError(f"fold {config.fold}: no {name} beside {', '.join(sorted(files))}. Give the whole ml-100k folder.")
    layout = Delimited("\t", FIELDS, COLUMNS)
    item = files.get("u.item")
    return Source(
        format="ml-100k",
        events=tuple(EventFile(files[name], layout, role) for name, role in names),
        has_rating=True,
        has_time=True,
        given=config.fold is not None,
        catalogue_files=(item,) if item else (),
        catalogue=(lambda: catalogue.read_u_item(item, GENRES_100K)) if item else no_catalogue,
    )


def dat(files: dict[str, File], config: DataConfig) -> Source | None:
    """`ratings.dat` and `movies.dat` with `::` between fields: ml-1m, ml-10m, MovieTweetings."""
    ratings, movies = files.get("ratings.dat"), files.get("movies.dat")
    if ratings is None or b"::" not in head(ratings):
        return None
    return Source(
        format="movielens-dat",
        events=(EventFile(ratings, Delimited("::", FIELDS, COLUMNS, encoding=config.encoding or "utf-8")),),
        has_rating=True,
        has_time=True,
        catalogue_files=(movies,) if movies else (),
        catalogue=(lambda: catalogue.read_dat(movies, config.encoding)) if movies else no_catalogue,
    )


def csv(files: dict[str, File], config: DataConfig) -> Source | None:
    """`ratings.csv` and `movies.csv`: ml-20m, 25m, 32m, latest and latest-small."""
    ratings, movies = files.get("ratings.csv"), files.get("movies.csv")
    if ratings is None:
        return None
    header, _, _ = head(ratings).partition(b"\n")
    if header.strip().removeprefix(BOM_UTF8).lower() != CSV_HEADER:
        return None
    layout = Delimited(",", FIELDS, COLUMNS, quoted=True, skip=len(header) + 1, first_line=2)
    return Source(
        format="movielens-csv",
        events=(EventFile(ratings, layout),),
        has_rating=True,
        has_time=True,
        catalogue_files=(movies,) if movies else (),
        catalogue=(lambda: catalogue.read_table(movies, ",", config.encoding, "movieId")) if movies else no_catalogue,
    )


def _fold(config: DataConfig) -> str:
    if config.fold not in FOLDS:
        raise ConfigError(f"data.fold = {config.fold!r}: ml-100k has {', '.join(FOLDS)}.")
    return config.fold
