"""One line of `recsys doctor`: what was looked at, what was found, and what would be better."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """bad: something will fail; note: it works, but could be better, or may surprise."""

    name: str
    status: Status
    value: str
    advice: str = ""
    """What would be better, and how; empty only where all is well."""

    @classmethod
    def of(cls, name: str, value: str, *, bad: str = "", note: str = "") -> "Finding":
        """bad, note: advice, where there is cause for it; the graver one is kept."""
        return cls(name, "bad" if bad else "note" if note else "ok", value, bad or note)


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:,.1f} GiB"
