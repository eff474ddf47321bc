"""Bundles under a root: `<root>/<name>/<version>/`, and which version of each name is served (`CURRENT`), was before (`SERVED`,
the latest last), and for a share of the users is (`CANARY`)."""

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recsys.bundle import inventory
from recsys.bundle.manifest import CANARY_FILE, CURRENT_FILE, MANIFEST_FILE, SERVED_FILE, Manifest
from recsys.bundle.read import Bundle, open_bundle
from recsys.errors import BundleError, ConfigError

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Check = Callable[[Bundle], object]
REMEMBERED = 100  # versions that were served


@dataclass(frozen=True)
class Listed:
    """One published bundle; `current`: whether it is the version served; `canary`: the share of the users that it answers."""

    name: str
    version: str
    current: bool
    folder: Path
    model: str
    items: int
    users: int
    canary: float | None = None


def plain(name: str) -> str:
    """The name itself, if it can be one folder's name. Raises ConfigError."""
    if name in (CURRENT_FILE, CANARY_FILE, SERVED_FILE, MANIFEST_FILE):
        raise ConfigError(f"{name}: a file of that name means something else among bundles. Choose another name.")
    if not PLAIN_NAME.fullmatch(name):
        raise ConfigError(f"{name!r}: use letters, digits, dots, dashes and underscores, beginning with a letter or digit.")
    return name


def versions(folder: Path) -> list[str]:
    """Published versions of a name's folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if _is_version(path))


def current(folder: Path) -> Path:
    """The folder of the version served. Raises BundleError where there is none, or CURRENT names no version."""
    path = folder / CURRENT_FILE
    try:
        version = path.read_text("ascii").removesuffix("\n")
    except (OSError, ValueError):
        raise BundleError(f"{path}: missing or altered. {_way_out(folder)}") from None
    if not PLAIN_NAME.fullmatch(version) or not _is_version(folder / version):
        raise BundleError(f"{path}: names {version[:100]!r}, which is not here. {_way_out(folder)}")
    return folder / version


def was_served(folder: Path) -> bool:
    """Whether a version of a name was ever served, as far as its folder tells."""
    return (folder / CURRENT_FILE).exists() or (folder / SERVED_FILE).exists()


def of_one_name(path: Path) -> Path:
    """The folder of a name's versions: the path itself, or the only one under a root. Raises BundleError."""
    path = Path(path)
    if versions(path):
        return path
    if (path / MANIFEST_FILE).exists():
        raise BundleError(f"{path}: is one version. Give the folder of all versions: {path.resolve().parent}")
    folders = list({folder.resolve(): folder for folder in _names(path)}.values())
    if len(folders) == 1:
        return folders[0]
    if folders:
        raise BundleError(f"{path}: holds several names. Give the folder of one: {', '.join(map(str, folders))}")
    raise BundleError(f"{path}: no bundles here. Make one: recsys export RUN {path}")


def resolve(path: Path, name: str | None = None) -> Path:
    """The bundle meant by a path: a bundle itself, a name's folder (its CURRENT), or a root (of `name`, or of one name only).

    Raises BundleError where nothing, more than one or a bundle of another name is meant.
    """
    path = Path(path)
    if (path / MANIFEST_FILE).exists():
        return _of_name(path, name)
    if (path / CURRENT_FILE).exists():
        return _of_name(current(path), name)
    names = [plain(name)] if name else [folder.name for folder in _names(path)]
    if len(names) == 1 and (path / names[0] / CURRENT_FILE).exists():
        return current(path / names[0])
    found = f"there are {', '.join(names)}; name one of them" if len(names) > 1 else "make one: recsys export RUN"
    if name and (others := [folder.name for folder in _names(path)]):
        found = f"of {name} there is none served; there are {', '.join(others)}"
    raise BundleError(f"{path}: no bundle here: {found}.")


def listing(root: Path) -> list[Listed]:
    """Every bundle under a root, or of one name's folder, newest last. Raises BundleError at a manifest that is not whole."""
    root = Path(root)
    folders = [root] if versions(root) else _names(root)
    return [_listed(folder, version) for folder in folders for version in versions(folder)]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle, whose own hash is checked. Raises BundleError."""
    return inventory.read_manifest(Path(folder))[0]


def verify(folder: Path, check: Check | None = None) -> int:
    """Hash every file anew, open the bundle, and `check` it (golden queries). Returns how many files. Raises BundleError."""
    bundle = open_bundle(folder, everything=True)
    if check is not None:
        check(bundle)
    return len(bundle.manifest.files)


def promote(folder: Path, version: str, check: Check | None = None) -> str:
    """Serve a version from now on; verified before, so that a bad one never replaces a good one. Returns it."""
    folder = Path(folder)
    _verify_version(folder, version, check)
    with locked(folder):
        point(folder, version)
    return version


def rollback(folder: Path, check: Check | None = None) -> str:
    """Serve again what was served before the current version, and is still here; or where CURRENT is broken, what was served
    last. Returns it. Raises BundleError where there is none, or where another is served by the time that it was verified."""
    folder = Path(folder)
    now, here = _served(folder), versions(folder)
    served = _noted(folder) if now is None else _served_until(folder, now)
    while served and (served[-1] == now or served[-1] not in here):
        served.pop()
    if not served:
        what = "no version that was served" if now is None else f"no version before {now} was served and"
        raise BundleError(f"{folder}: {what} is here. Choose one: recsys bundle list, recsys bundle promote")
    _verify_version(folder, served[-1], check)
    with locked(folder):
        if _served(folder) != now:
            raise BundleError(f"{folder}: another version is served since. Look, then ask again: recsys bundle list")
        _point(folder, served)
    return served[-1]


def canary(folder: Path) -> tuple[str, float] | None:
    """The version that a share of the users of a name is answered from, and the share; None where there is none."""
    try:
        version, share = (folder / CANARY_FILE).read_text("ascii").split()
        return (version, float(share)) if PLAIN_NAME.fullmatch(version) and 0 < float(share) < 1 else None
    except (OSError, ValueError):
        return None


def set_canary(folder: Path, version: str | None, share: float, check: Check | None = None) -> None:
    """Answer a share of the users from another version from now on, verified before; None: no longer.

    Raises BundleError for a version that is not there, is bad or is the one served, ConfigError for a share that is none.
    """
    folder = Path(folder)
    if version is None:
        (folder / CANARY_FILE).unlink(missing_ok=True)
        return
    if not 0 < share < 1:
        raise ConfigError(f"--share {share}: give a share between 0 and 1, such as 0.05.")
    _verify_version(folder, version, check)
    with locked(folder):
        if version == _served(folder):
            raise BundleError(f"{folder}: all users are answered from {version}. A canary is another version.")
        _replace(folder, CANARY_FILE, f"{version} {share}")


def state(folder: Path) -> str:
    """Changes when a file of a bundle does. Raises BundleError where there is none."""
    if not (folder / MANIFEST_FILE).is_file():
        raise BundleError(f"{folder}: no bundle here. See `recsys bundle list`.")
    files = [(str(path), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return json.dumps([[path, stat.st_mtime_ns, stat.st_size, stat.st_ino] for path, stat in files])


def point(folder: Path, version: str) -> None:
    """Replace CURRENT as a whole; call it while `locked`."""
    now = _served(folder)
    served = _noted(folder) if now is None else _served_until(folder, now)
    _point(folder, served if version == now else [*served, version])


def _point(folder: Path, served: list[str]) -> None:
    """Serve the last of what was served. A canary that all users are answered from now is none any more."""
    version = served[-1]
    _replace(folder, SERVED_FILE, "\n".join(served[-REMEMBERED:]))
    _replace(folder, CURRENT_FILE, version)
    if (told := canary(folder)) is not None and told[0] == version:
        (folder / CANARY_FILE).unlink(missing_ok=True)


def _served_until(folder: Path, now: str) -> list[str]:
    """What was served, up to the version that is served now, as far as it was noted."""
    by_age = [version for version in versions(folder) if version < now]  # of before this was noted
    served = _noted(folder) if (folder / SERVED_FILE).exists() else by_age
    # Someone may have written CURRENT by hand, or died between the two.
    return served[: len(served) - served[::-1].index(now)] if now in served else [*served, now]


def _noted(folder: Path) -> list[str]:
    try:
        return (folder / SERVED_FILE).read_text("ascii").split()
    except (OSError, ValueError):
        return []


def _replace(folder: Path, name: str, line: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".current-", delete=False) as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(folder / name)
    sync_folder(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One publisher at a time on a name's folder; the lock goes with the process that held it."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's entries."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify_version(folder: Path, version: str, check: Check | None) -> None:
    if version not in versions(folder):
        raise BundleError(f"{folder}: no version {version}. There are: {', '.join(versions(folder)) or 'none'}.")
    verify(folder / version, check)


def _way_out(folder: Path) -> str:
    return f"Serve what was served last: recsys bundle rollback {folder}, or choose: recsys bundle promote {folder} VERSION"


def _is_version(path: Path) -> bool:
    return bool(PLAIN_NAME.fullmatch(path.name)) and not path.is_symlink() and (path / MANIFEST_FILE).is_file()


def _of_name(bundle: Path, name: str | None) -> Path:
    if name and (own := read_manifest(bundle).name) != name:
        raise BundleError(f"{bundle}: a bundle of {own}, not of {name}. Give the root folder, or leave the name out.")
    return bundle


def _names(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if versions(path)) if root.is_dir() else []


def _listed(folder: Path, version: str) -> Listed:
    manifest = read_manifest(folder / version)
    served = version == _served(folder)
    told = canary(folder)
    share = told[1] if told is not None and told[0] == version and not served else None
    return Listed(folder.name, version, served, folder / version, manifest.model, manifest.items, manifest.users, share)


def _served(folder: Path) -> str | None:
    """The version served; None too where CURRENT is broken, for the listing is where to look then."""
    try:
        return current(folder).name
    except BundleError:
        return None
