"""`recsys doctor`: is this machine fit for the work, and what would be better? It looks, and starts nothing."""

import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cluster import console
from cluster import doctor_surroundings as around
from cluster.doctor_findings import Finding, Status
from recsys.config import Config

Check = Callable[[], Iterable[Finding]]
GRAVITY: tuple[Status, ...] = ("ok", "note", "bad")


@dataclass(frozen=True)
class Report:
    """All findings, by group."""

    groups: dict[str, list[Finding]]

    @property
    def findings(self) -> Iterator[Finding]:
        """Those of every group."""
        return (finding for findings in self.groups.values() for finding in findings)

    @property
    def status(self) -> Status:
        """The gravest."""
        return max((finding.status for finding in self.findings), key=GRAVITY.index, default="ok")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the gravest status, and each check with its group."""
        checks = [{"group": group, **asdict(one)} for group, findings in self.groups.items() for one in findings]
        return {"status": self.status, "checks": checks}


def examine(config: Config, env: Mapping[str, str]) -> Report:
    """Make every check there is."""
    return run(plan(config, env))


def plan(config: Config, env: Mapping[str, str]) -> dict[str, dict[str, Check]]:
    """What is looked at, by group; the names stand only where a check itself fails."""
    storage, store = Path(config.cluster.storage), 0 if around.joins(env) else config.cluster.object_store_bytes
    return {
        "hardware": {"hardware": lambda: _hardware(config.cluster.most_workers, store)},
        "choices": {"choices": lambda: _choices(config)},
        "versions": {"versions": around.packages},
        "Ray": {
            "RAY_ADDRESS": lambda: [around.ray_address(env)],
            "Ray's token": lambda: [around.token(env, Path.home())],
            "ports": lambda: around.ports(env),
            "/dev/shm": lambda: [around.shared_memory(store)],
            "Ray's temp folder": lambda: [around.ray_temp(env)],
            "open files": lambda: [around.open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))],
        },
        "folders": {
            "runs": lambda: [around.disk("runs", storage, "choose another cluster.storage")],
            "bundles": lambda: [around.disk("bundles", Path("bundles"), "give `recsys export RUN FOLDER` another")],
            "$RECSYS_DATA": lambda: [around.data_folder(env)],
        },
    }


def run(checks: Mapping[str, Mapping[str, Check]]) -> Report:
    """Make these checks; one that raises is a bad finding."""
    return Report(
        {group: [one for name, check in named.items() for one in _made(name, check)] for group, named in checks.items()}
    )


def _made(name: str, check: Check) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # whatever it is, the other checks are still of use
        told = " ".join(f"{type(error).__name__}: {error}".split())
        yield Finding.of(name, told, bad="This could not be looked at: mend what the error names, and run this again.")


@cache
def _machine() -> Any:
    from recsys.training.machine import found

    return found()


def _hardware(workers: int, store: int) -> Iterable[Finding]:
    from cluster.doctor_machine import hardware_findings
    from recsys.training.machine import driver_gpus

    return hardware_findings(_machine(), workers=workers, store=store, driver_gpus=driver_gpus())


def _choices(config: Config) -> Iterable[Finding]:
    from cluster.doctor_machine import choices

    return choices(_machine(), config)


def show(report: Report) -> None:
    """A table for people; below it what could be better, the gravest last, and how many of each."""
    rows = [row for group, findings in report.groups.items() for row in _rows(group, findings)]
    console.print_rows("This machine", ("", "check", "status", "found"), rows)
    for one in sorted(report.findings, key=lambda finding: GRAVITY.index(finding.status)):
        if one.advice:
            console.out.print(console.printable(f"{one.status:<4} {one.name}: {one.advice}"))
    counts = {status: sum(one.status == status for one in report.findings) for status in GRAVITY}
    console.say(f"{counts['ok']} ok, {counts['note']} to note, {counts['bad']} bad.")


def _rows(group: str, findings: Sequence[Finding]) -> Iterator[tuple[str, ...]]:
    for number, one in enumerate(findings):
        yield ("" if number else group, one.name, one.status, one.value)
