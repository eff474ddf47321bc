"""Routes for whoever runs the service: switch bundles, set a canary, forget a user. There are none without an admin's key."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Path
from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from recsys.bundle import store
from recsys.errors import RecsysError
from recsys.retrieval.answers import to_json
from recsys.retrieval.recommender import Recommender
from serve import problems
from serve.args import MAX_ID_LENGTH
from serve.events.event import StoreError
from serve.events.feed import Feed
from serve.live import Live
from serve.problems import Problem
from serve.schemas import CanaryInfo, Id, _In, _Out

PREFIX = "/v1/admin/"


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

    @app.post(f"{PREFIX}bundle", tags=["admin"], response_model=Switched)
    async def switch(request: Request) -> Response:
        """Verify a version and serve it: at once here, and on other replicas when they look next (`watch_s`)."""
        wanted = _checked(Switch, await body_of(request))
        return _json({"version": await asyncio.to_thread(_switched, live(), wanted.version)})

    @app.put(f"{PREFIX}canary", tags=["admin"], response_model=CanaryInfo)
    async def canary(request: Request) -> Response:
        """Verify a version and answer a share of the users from it."""
        wanted = _checked(Canary, await body_of(request))
        await asyncio.to_thread(_with_canary, live(), wanted.version, wanted.share)
        return _json({"version": wanted.version, "share": wanted.share})

    @app.delete(f"{PREFIX}canary", tags=["admin"], status_code=204)
    async def no_canary() -> Response:
        """Answer all users from the current version."""
        await asyncio.to_thread(_with_canary, live(), None, 0.0)
        return Response(status_code=204)

    @app.delete(f"{PREFIX}users/{{user_id:path}}", tags=["admin"], response_model=Forgotten)
    async def forget(user_id: Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH)]) -> Response:
        """Keep none of the events that came of a user while serving."""
        if feed is None:
            raise Problem("no_events", "This service keeps none.")
        try:
            return _json({"events": await asyncio.to_thread(feed.forget, user_id)})
        except StoreError:
            raise Problem("no_events", "Ask again; the service's log says why.", {"Retry-After": "1"}) from None


def _switched(live: Live, version: str | None) -> str:
    folder = live.served.recommender.bundle.folder.parent
    try:
        if version is None:
            told = store.rollback(folder, check=Recommender)
        else:
            told = store.promote(folder, version, check=Recommender)
    except RecsysError as error:
        raise _refused(error) from None
    except OSError as error:
        raise _not_written(error) from None
    live.look()
    _refuse_unless(live, live.served.recommender.bundle.version == told)
    return told


def _refuse_unless(live: Live, taken: bool) -> None:
    if live.is_fixed:
        raise _refused(RecsysError("one version's own folder is served here; serve the folder above it"))
    if not taken:
        raise _refused(RecsysError(live.rejected.why if live.rejected is not None else "it was not taken"))


def _with_canary(live: Live, version: str | None, share: float) -> None:
    try:
        store.set_canary(live.served.recommender.bundle.folder.parent, version, share, check=Recommender)
    except RecsysError as error:
        raise _refused(error) from None
    except OSError as error:
        raise _not_written(error) from None
    live.look()
    canary = live.served.canary
    _refuse_unless(live, version is None or (canary is not None and canary.bundle.version == version))


def _not_written(error: OSError) -> Problem:
    return _refused(RecsysError(f"the bundles' folder cannot be written here ({error.strerror})"))


def _refused(error: RecsysError) -> Problem:
    return problems.invalid([{"where": "version", "what": str(error).rstrip(".")}])


def _checked(model: Any, value: Any) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise problems.invalid(problems.explain(error.errors(include_url=False, include_input=False))) from None


def _json(content: Any) -> Response:
    return Response(to_json(content), media_type="application/json")
