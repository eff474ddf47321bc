"""A bundle's answers for every user it knows, as parquet: Ray Data round the same Recommender, streamed in runs of users."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from cluster.session import execution
from recsys.bundle import store
from recsys.bundle.read import open_bundle
from recsys.errors import ConfigError, RecsysError, RequestError
from recsys.retrieval.recommender import Mode, Recommender, Request
from recsys.retrieval.requests import check

ROWS = 4096  # users of a task: a file's worth of lists, and a few megabytes
BATCH = 256  # users answered as one matrix
Progress = Callable[[str, int, int], None]

LISTS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.list_(pa.string())),
        ("score", pa.list_(pa.float32())),
        ("path", pa.string()),
        ("reason", pa.string()),
        ("bundle", pa.string()),
    ]
)


def score(
    bundle: Path,
    lists: Path,
    *,
    k: int = 10,
    mode: Mode = "auto",
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> int:
    """Write what every known user should watch next to `lists`/*.parquet (LISTS), all of it or nothing. Returns how many users.

    bundle: a bundle, or a folder with a CURRENT one; workers: Ray actors, one CPU each, that share the mapped files.
    Ray is connected by the caller (`cluster.session`). Raises what `refuse` raises.
    """
    folder = store.resolve(bundle).resolve()  # once: another may be published meanwhile
    users = refuse(folder, lists, k=k, mode=mode)
    with _staged(Path(lists).resolve()) as staging:
        done = 0
        for scored in _scored(Scorer, (folder, staging, k, mode), users, workers):
            done += scored
            progress("score: users", done, users)
        if done != users:
            raise RecsysError(f"{done:,} of {users:,} users were scored; nothing was written. Start again.")
    return users


def refuse(bundle: Path, lists: Path, *, k: int = 10, mode: Mode = "auto") -> int:
    """What `score` would not begin with, told before there is a Ray. Returns how many users there are to score.

    Raises BundleError, RequestError for an impossible `k`, and ConfigError where `lists` holds something already.
    """
    check(Request(k=k, mode=mode))
    _refuse_full(Path(lists))
    return len(Recommender(open_bundle(store.resolve(bundle))).bundle.users)


def _refuse_full(place: Path) -> None:
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"{place}: holds something already. Give a new or an empty folder.")


def _scored(scorer: Any, args: tuple[Any, ...], users: int, workers: int) -> Iterator[int]:
    """How many users each task has dealt with, as they finish."""
    runs = [{"first": first, "last": min(first + ROWS, users)} for first in range(0, users, ROWS)]
    if not runs:
        return
    planned = ray.data.from_items(runs, override_num_blocks=len(runs))
    planned.context.enable_progress_bars = False
    pool = ray.data.ActorPoolStrategy(size=min(workers, len(runs)))
    done = planned.map_batches(scorer, fn_constructor_args=args, batch_size=1, batch_format="pyarrow", compute=pool)
    with execution(done.iter_rows()) as rows:
        yield from (row["users"] for row in rows)


class Scorer:
    """Opens the bundle once an actor, and answers runs of users, a file each: a task that is repeated writes it anew."""

    def __init__(self, folder: Path, lists: Path, k: int, mode: Mode) -> None:
        self.recommender, self.lists, self.k, self.mode = Recommender(open_bundle(folder)), lists, k, mode

    def __call__(self, runs: pa.Table) -> pa.Table:
        """Writes the lists of the users in rows [first, last) of the bundle, for each run; how many users that were."""
        for run in runs.to_pylist():
            starts = range(run["first"], run["last"], BATCH)
            tables = [self._lists(range(start, min(start + BATCH, run["last"]))) for start in starts]
            pq.write_table(pa.concat_tables(tables), self.lists / f"part-{run['first'] // ROWS:05d}.parquet")
        return pa.table({"users": [run["last"] - run["first"] for run in runs.to_pylist()]})

    def _lists(self, rows: range) -> pa.Table:
        requests = [Request(user=self.recommender.bundle.users.id(row), k=self.k, mode=self.mode) for row in rows]
        answers = self.recommender.recommend(requests)
        listed = []
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, RequestError):  # never one without a list
                raise answer
            told = {"path": answer.path, "reason": answer.reason, "bundle": answer.version}
            listed.append({"user_id": request.user, "item_id": answer.item_ids, "score": answer.scores.tolist(), **told})
        return pa.Table.from_pylist(listed, LISTS)


@contextmanager
def _staged(place: Path) -> Iterator[Path]:
    """A folder beside `place` that takes its place if all goes well. Raises ConfigError where none can be made."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    except OSError as error:
        raise ConfigError(f"{place}: cannot be written ({error.strerror}). Choose another folder.") from None
    try:
        staging.chmod(0o755)
        yield staging
        staging.rename(place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already where it was renamed into place
