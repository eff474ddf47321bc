"""What an event is, and what a store of events does, whichever it is."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

LATEST = 1000
"""Events of one user that are served, the latest; older ones stay in the store."""
TO_ROLL = 100_000
"""Events that are read at once to be rolled."""


class LiveEvent(NamedTuple):
    """Somebody took an item. id: an event is kept once, however often it is sent. time: Unix seconds."""

    id: str
    user: str
    item: str
    rating: float | None
    kind: str | None
    time: int


class Stored(NamedTuple):
    """An event and its place: a later one's comes behind it, whatever it looks like."""

    place: str
    event: LiveEvent


class Rolled(NamedTuple):
    """How many files have been rolled, and the place of the last event in them; "" before the first."""

    files: int
    place: str


class StoreError(Exception):
    """The store cannot be read or written now. What was being written may be there: send it again, under the same ids."""


class EventStore(Protocol):
    """Keeps events. Threads may share it, and so may processes. All but `close` raise StoreError.

    is_remote: it is asked over a network, which takes its time.
    """

    is_remote: bool

    def identity(self) -> str:
        """A name of its own, drawn when it was made, by which files that were rolled from it are known."""
        ...

    def append(self, events: Sequence[LiveEvent]) -> list[bool]:
        """Keep events, all or none; on disk when it comes back. For each whether it is new: False where its id was there."""
        ...

    def of(self, users: Sequence[str]) -> dict[str, list[LiveEvent]]:
        """The latest events of some users, in the order in which they came; users without any are left out.

        Whatever was appended before, by whichever process, is in it.
        """
        ...

    def after(self, place: str, most: int = TO_ROLL) -> list[Stored]:
        """The next events behind a place, in their order; "" is before the first."""
        ...

    def rolled(self) -> Rolled:
        """What has been rolled to files."""
        ...

    def note_rolled(self, rolled: Rolled) -> None:
        """So much has been."""
        ...

    def forget(self, user: str) -> int:
        """Keep nothing of a user any longer. Returns how many events he had."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...
