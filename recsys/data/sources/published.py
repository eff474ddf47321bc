"""Research formats that tables in papers are published on."""

from recsys.config import DataConfig
from recsys.data.sources import catalogue
from recsys.data.sources.base import Adjacency, Columns, Delimited, EventFile, Source, no_catalogue
from recsys.data.sources.files import File, head
from recsys.errors import DataError

PAIR = ("user", "item")
TABLES = (".csv", ".tsv", ".parquet")
FOUR = ("user", "item", "rating", "time")


def lightgcn(files: dict[str, File], config: DataConfig) -> Source | None:
    """`train.txt` and `test.txt`, lines `user item item ...`: LightGCN and its successors."""
    if not {"train.txt", "test.txt"} <= files.keys():
        return None
    parts = [("train.txt", 0), ("valid.txt", 1), ("test.txt", 2)]
    events = tuple(EventFile(files[name], Adjacency(), role) for name, role in parts if name in files)
    return Source(format="lightgcn", events=events, has_rating=False, has_time=False, given=True)


def ncf(files: dict[str, File], config: DataConfig) -> Source | None:
    """Neural Collaborative Filtering: `*.train.pairs` or `*.train.rating`, and `*.test.rating`, one item a user,
    to be ranked among the items of `*.test.negative`, where that is there."""
    name = config.fold or ""
    train = _ending(files, f"{name}.train.pairs") or _ending(files, f"{name}.train.rating")
    test = _ending(files, f"{name}.test.rating")
    if train is None or test is None:
        return None
    return Source(
        format="ncf",
        events=(EventFile(train, _ncf_layout(train), 0), EventFile(test, _ncf_layout(test), 2)),
        has_rating=False,
        has_time=False,
        given=True,
        negatives_file=_ending(files, f"{name}.test.negative"),
    )


def sequence(files: dict[str, File], config: DataConfig) -> Source | None:
    """One text of `user item` lines in time order: SASRec, BERT4Rec and their successors."""
    if config.format == "auto" and any(file.suffix in TABLES for file in files.values()):
        return None  # a table with named columns says more
    texts = [file for name, file in files.items() if file.suffix == ".txt" and not name.startswith("sas_to_")]
    texts = [file for file in texts if _is_pairs(file)]
    texts = [file for file in texts if file.base.removesuffix(".txt") == file.folder.rpartition("/")[2]] or texts
    if len(texts) != 1:
        return None
    names, movies = files.get("sas_to_original_items.txt"), files.get("movies.dat")
    read = no_catalogue
    if names is not None and movies is not None:
        read = catalogue.renamed(lambda: catalogue.read_dat(movies, config.encoding), lambda: catalogue.read_pairs(names))
    return Source(
        format="sequence",
        events=(EventFile(texts[0], Delimited(_blank(texts[0]), PAIR, Columns(*PAIR))),),
        has_rating=False,
        has_time=False,
        ordered=True,
        catalogue_files=(names, movies) if names is not None and movies is not None else (),
        catalogue=read,
    )


def _ncf_layout(file: File) -> Delimited:
    first, _, _ = head(file).partition(b"\n")
    return Delimited("\t", FOUR[: first.count(b"\t") + 1], Columns(*PAIR))


def _ending(files: dict[str, File], end: str) -> File | None:
    found = [name for name in sorted(files) if name.endswith(end)]
    if len(found) > 1:
        raise DataError(f"{' and '.join(found)}: which one? Set data.fold to the name before {end}.")
    return files[found[0]] if found else None


def _is_pairs(file: File) -> bool:
    lines = [line for line in head(file).split(b"\n")[:50] if line.strip()]
    headed = bool(lines) and lines[0].split()[0].isalpha()
    return (
        bool(lines)
        and not headed
        and all(len(line.split()) == 2 and len(line.split(_blank(file).encode())) == 2 for line in lines)
    )


def _blank(file: File) -> str:
    return "\t" if b"\t" in head(file).partition(b"\n")[0] else " "
