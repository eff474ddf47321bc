"""What replicas log that people should know, told in the terminal that serves: once, however many replicas say it."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from serve.urgency import give_way

LEVELS = ("WARNING", "ERROR", "CRITICAL")
EVERY_S, PATIENCE_S = 0.5, 5.0
AT_ONCE = 1 << 22  # bytes of a file
SAME_S = 15.0
"""For so long the same is not told again, of another replica, or of the same if it has said nothing else since."""
ROUND_S, MOST = 60.0, 20
"""In so long no more lines are told than that."""
LONGEST = 2_000  # characters of a line

Tell = Callable[[str], None]


@contextmanager
def told_while(folder: Path, tell: Tell) -> Iterator[None]:
    """For a `with`: what is logged in a folder of Serve's logs, of a Ray that has just started, in a thread."""
    ended = threading.Event()

    def keep_looking() -> None:
        give_way()
        news, last = News(folder, tell), False
        while not last:
            last = ended.wait(EVERY_S)  # and once more, for the last words
            with contextlib.suppress(Exception):  # a terminal that is gone, or cannot show it
                news.look()

    thread = threading.Thread(target=keep_looking, name="news", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(PATIENCE_S)


class News:
    """Reads on in the logs of replicas on this host."""

    def __init__(self, folder: Path, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._tell, self._clock = folder, tell, clock
        self._read: dict[Path, tuple[int, int]] = {}  # which file had this name, and how far it is read
        self._told: dict[str, tuple[Path, float]] = {}  # of whom each is known, and since when
        self._last: dict[Path, str] = {}  # what each has said last
        self._began, self._lines = clock(), 0

    def look(self) -> None:
        """Tell what is new."""
        if self._clock() - self._began >= ROUND_S:
            self._began, self._lines = self._clock(), 0
            self._told = {text: told for text, told in self._told.items() if self._clock() - told[1] < SAME_S}
        for path in sorted(self._folder.glob("replica_*.log")):
            for line in self._new_lines(path):
                if (text := _told_of(line)) is not None:
                    self._tell_unless_told(path, text)

    def _new_lines(self, path: Path) -> list[str]:
        """Whole lines; of a file that was begun anew, as Ray does with full ones, from its beginning."""
        try:
            with path.open("rb") as file:
                told = os.fstat(file.fileno())
                number = told.st_ino
                before, start = self._read.get(path, (number, 0))
                file.seek(start if number == before and start <= told.st_size else 0)
                whole, newline, cut = file.read(AT_ONCE).rpartition(b"\n")
                self._read[path] = number, file.tell() - len(cut) % AT_ONCE  # nothing is as long as that
        except OSError:  # it is just being renamed
            return []
        return whole.decode("utf-8", "replace").split("\n") if newline else []

    def _tell_unless_told(self, path: Path, text: str) -> None:
        again, self._last[path] = self._last.get(path) == text, text
        by, when = self._told.get(text, (path, -SAME_S))
        is_known = self._clock() - when < SAME_S and (again or by != path)
        if is_known or self._lines > MOST:
            return
        self._told[text] = path, self._clock()
        self._lines += 1
        self._tell(f"{time.strftime('%H:%M:%S')} {text if self._lines <= MOST else f'More, unread: {self._folder}'}")


def _told_of(line: str) -> str | None:
    """The message of a line of Serve's, as text or JSON; None of one that is no warning, or of none, such as a traceback's."""
    if line.startswith("{"):
        try:
            record = json.loads(line)
            level, message = str(record.get("levelname")), str(record.get("message"))
        except (ValueError, RecursionError):
            return None
    else:
        level, message = line.partition(" ")[0], line.partition(" -- ")[2]
    if level not in LEVELS or not message:
        return None
    return message[:LONGEST] if level == "WARNING" else f"{level} {message[:LONGEST]}"
