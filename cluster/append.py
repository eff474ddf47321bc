"""A dataset that has grown, or from which users are gone: the sources of an earlier one prepared again with new ones."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from cluster.prepare import Earlier, make
from cluster.prepare_steps import Progress
from recsys.config import DataConfig
from recsys.data import parsed
from recsys.data.dataset import DatasetManifest, read_manifest
from recsys.data.folder import check_destination
from recsys.data.sources import recognise_more
from recsys.data.sources.files import list_files
from recsys.errors import ConfigError, DataError


def append(
    old: Path,
    sources: Sequence[str],
    dataset: Path,
    asked: DataConfig,
    progress: Progress | None = None,
    *,
    forget: Sequence[str] = (),
    keep_parsed: bool = False,
) -> DatasetManifest:
    """Make `dataset` of what `old` was made of and of `sources`, with the settings of `old`, which stays as it is.

    The same as preparing all of it at once. What `old` keeps parsed is not parsed again, and then the new dataset keeps it
    too. Users that `old` forgot stay forgotten. Raises DataError where a recorded source is gone or changed, ConfigError
    if there is nothing to do, or `asked` neither leaves the settings alone nor repeats them.
    """
    check_destination(dataset)
    if dataset.resolve() == old.resolve():
        raise ConfigError(f"{dataset}: the dataset to append to stays as it is. Choose another folder for the new one.")
    if not sources and not forget:
        raise ConfigError(f"--append {old}: neither new sources nor --forget. Give files of events before {dataset}.")
    earlier = Earlier(old, read_manifest(old))
    config = _recorded_config(earlier)
    if asked not in (DataConfig(), config):
        raise ConfigError(f"--append {old}: its data settings hold. Leave data.* out, or prepare all sources anew.")
    source = recognise_more(_recorded_parts(earlier), sources, config)
    keep_parsed = keep_parsed or (old / parsed.FOLDER).is_dir()
    return make(source, dataset, config, progress, forget=forget, keep_parsed=keep_parsed, earlier=earlier)


def _recorded_config(earlier: Earlier) -> DataConfig:
    try:
        return DataConfig.model_validate(earlier.manifest.config.get("data"))
    except ValidationError as error:
        told = ".".join(map(str, error.errors()[0]["loc"])) or "data"
        raise DataError(
            f"{earlier.folder}: its setting {told} is not one of this release. "
            f"Prepare all sources anew: recsys prepare SOURCE... DATASET"
        ) from None


def _recorded_parts(earlier: Earlier) -> list[list[str]]:
    """The files the earlier dataset was made of, part by part. Raises DataError if one is gone."""
    parts: dict[int, list[str]] = {}
    for file in earlier.manifest.sources:
        try:
            list_files(file.path)
        except DataError as error:
            relative = "" if "://" in file.path or Path(file.path).is_absolute() else f" (looked for in {Path.cwd()})"
            raise DataError(
                f"{file.path}{relative}: {earlier.folder} was made of it, and it cannot be read: {error}\n"
                f"  Put it back, or prepare the sources you have: recsys prepare SOURCE... DATASET"
            ) from None
        parts.setdefault(file.part, []).append(file.path)
    return [names for _, names in sorted(parts.items())]
