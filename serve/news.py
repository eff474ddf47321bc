"""What replicas log that people should know, told in the terminal that serves: once, however many replicas say it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LEVELS = ("WARNING", "ERROR", "CRITICAL")
EVERY_S = 0.5
ROUND_S = 60.0
"""For so long the same is not told again, nor more than MOST."""
MOST = 20
LONGEST = 2_000  # characters of a line

Tell = Callable[[str], None]


@contextmanager
def told_while(folder: Path, tell: Tell) -> Iterator[None]:
    """For a `with`: what is logged from now on in a folder of Serve's logs, in a thread."""
    ended = threading.Event()

    def keep_looking() -> None:
        news = News(folder, tell)
        while not ended.wait(EVERY_S):
            news.look()

    threading.Thread(target=keep_looking, name="news", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class News:
    """Reads on in the logs of replicas on this host."""

    def __init__(self, folder: Path, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._tell, self._clock = folder, tell, clock
        self._read: dict[Path, int] = {}
        self._told: set[str] = set()
        self._began = clock()

    def look(self) -> None:
        """Tell what is new."""
        if self._clock() - self._began >= ROUND_S:
            self._told, self._began = set(), self._clock()
        for path in sorted(self._folder.glob("replica_*.log")):
            for line in self._new_lines(path):
                if (text := _told_of(line)) is not None:
                    self._tell_once(text)

    def _new_lines(self, path: Path) -> list[str]:
        """Whole lines; all of a file that was begun anew, as full ones are."""
        try:
            start = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(start if path.stat().st_size >= start else 0)
                whole, newline, cut = file.read().rpartition(b"\n")
                self._read[path] = file.tell() - len(cut)
        except OSError:  # it is just being renamed
            return []
        return whole.decode("utf-8", "replace").split("\n") if newline else []

    def _tell_once(self, text: str) -> None:
        if text in self._told or len(self._told) > MOST:
            return
        self._told.add(text)
        self._tell(f"{time.strftime('%H:%M:%S')} {text if len(self._told) <= MOST else f'More, unread: {self._folder}'}")


def _told_of(line: str) -> str | None:
    """The message of a line of Serve's, as text or JSON; None of one that is no warning, or of none, such as a traceback's."""
    if line.startswith("{"):
        try:
            record = json.loads(line)
            level, message = str(record.get("levelname")), str(record.get("message"))
        except ValueError:
            return None
    else:
        level, message = line.partition(" ")[0], line.partition(" -- ")[2]
    if level not in LEVELS or not message:
        return None
    return message[:LONGEST] if level == "WARNING" else f"{level} {message[:LONGEST]}"
