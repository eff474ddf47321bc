"""Routes for whoever runs the service: switch bundles, set a canary, forget a user. There are none without an admin's key."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Path
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from recsys.bundle import store
from recsys.errors import RecsysError
from recsys.retrieval.recommender import Recommender
from serve import problems
from serve.args import MAX_ID_LENGTH
from serve.events.event import StoreError
from serve.events.feed import Feed
from serve.live import Live
from serve.pages import answered
from serve.problems import Problem
from serve.schemas import CanaryInfo, Id, _In, _Out
from serve.urgency import give_way

PREFIX = "/v1/admin/"

Result = TypeVar("Result")


class Switch(_In):
    """Which version answers from now on."""

    version: Id | None = None
    """Left out: the one before the current."""


class Canary(_In):
    """Which version answers a share of the users."""

    version: Id
    share: float = Field(gt=0, lt=1)


class Switched(_Out):
    version: str


class Forgotten(_Out):
    events: int
    """How many events the store had of him. Files that were rolled, datasets and bundles do not forget by this."""


def add_admin(app: FastAPI, live: Callable[[], Live], feed: Feed | None, body_of: Callable[[Request], Any]) -> None:
    """body_of: awaited, the JSON of a request."""
    # Bundles are verified and opened one after the other, and answers go first.
    aside = ThreadPoolExecutor(1, "admin", initializer=give_way)

    async def apart(call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(aside, call)

    @app.post(f"{PREFIX}bundle", tags=["admin"], response_model=Switched)
    async def switch(request: Request) -> Response:
        """Verify a version and serve it: at once here, and on other replicas when they look next (`watch_s`)."""
        wanted = problems.checked(Switch, await body_of(request))
        return answered({"version": await apart(partial(_switched, live(), wanted.version))})

    @app.put(f"{PREFIX}canary", tags=["admin"], response_model=CanaryInfo)
    async def canary(request: Request) -> Response:
        """Verify a version and answer a share of the users from it."""
        wanted = problems.checked(Canary, await body_of(request))
        await apart(partial(_with_canary, live(), wanted.version, wanted.share))
        return answered({"version": wanted.version, "share": wanted.share})

    @app.delete(f"{PREFIX}canary", tags=["admin"], status_code=204)
    async def no_canary() -> Response:
        """Answer all users from the current version."""
        await apart(partial(_with_canary, live(), None, 0.0))
        return Response(status_code=204)

    @app.delete(f"{PREFIX}users/{{user_id:path}}", tags=["admin"], response_model=Forgotten)
    async def forget(user_id: Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH)]) -> Response:
        """Keep none of the events that came of a user while serving."""
        if feed is None:
            raise Problem("events_off", "So there are none of this user.")
        try:
            return answered({"events": await asyncio.to_thread(feed.forget, user_id)})
        except StoreError:
            detail = "What there was of this user may not all be gone. Ask again; the service's log says why."
            raise Problem("no_events", detail, {"Retry-After": "1"}) from None


def _switched(live: Live, version: str | None) -> str:
    folder = _watched(live)
    with _told(live):
        told = store.rollback(folder, Recommender) if version is None else store.promote(folder, version, Recommender)
    live.look()
    _refuse_unless(live, live.served.recommender.bundle.version == told)
    return told


def _with_canary(live: Live, version: str | None, share: float) -> None:
    folder = _watched(live)
    with _told(live):
        store.set_canary(folder, version, share, Recommender)
    live.look()
    canary = live.served.canary
    _refuse_unless(live, version is None or (canary is not None and canary.bundle.version == version))


def _watched(live: Live) -> FilePath:
    """The folder of the versions. Raises Problem where one version's own is served, which nothing can switch."""
    if live.is_fixed:
        raise _refused("one version's own folder is served here; serve the folder above it")
    return live.served.recommender.bundle.folder.parent


def _refuse_unless(live: Live, taken: bool) -> None:
    if not taken:
        raise _refused(live.rejected.why if live.rejected is not None else "it was not taken")


@contextmanager
def _told(live: Live) -> Iterator[None]:
    try:
        yield
    except RecsysError as error:
        raise _refused(live.without_paths(str(error))) from None
    except OSError as error:
        raise _refused(f"the bundles' folder cannot be written here ({error.strerror})") from None


def _refused(why: str) -> Problem:
    return problems.invalid([{"where": "version", "what": why.rstrip(".")}])
