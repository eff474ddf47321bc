"""In Ray's proxy: what callers are told while no replica stands behind it, and who is let through in a flood.

Ray's proxy passes on what the replicas then refuse. That costs several times what refusing it here does, and takes from them
what they want for answers.
"""

import os
import random
from collections.abc import Callable
from time import monotonic

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.middleware import Envelope, request_id_of
from serve.problems import Problem, overloaded

CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:middlewares"}
"""For the environment in which Ray starts."""

QUESTIONS = "/v1/recommend"
"""What is throttled: health, events, and who runs the service are let through any flood."""

BEYOND = 1.5
"""So many times of what the replicas take is passed on."""
MEMORY_S = 0.5
"""Time in which what was seen counts half."""
VARIABLE = "RECSYS_PROXY_QUESTIONS"
_told = os.environ.get(VARIABLE, "")
MOST = int(_told) if _told.isdecimal() else 1024
"""Questions under way beyond which one is refused: a second's or two's work of this proxy, which is one Python process and the
first to be full where each is of one user (docs/log.md, "Floods"). More than replicas have explanations in line."""
REFUSALS = (b'"overloaded"', b"backpressure")  # the service's word for its main queue, and Ray's
NO_ROUTE = b"Path '"  # Ray's own words for an address of no application


def middlewares() -> list[Middleware]:
    """What Ray puts round its proxy.

    Ray asks this for replicas, too, where callers reach those by themselves, as behind HAProxy: nothing, since a request would
    cost a tenth more, and their own queue refuses.
    """
    from ray.util.metrics import Counter

    if _is_replica():
        return []

    throttled = Counter("recsys_throttled", "Requests refused in the proxy, since replicas refuse or it is full itself.")
    return [Middleware(Throttle, told=throttled.inc), Middleware(Away)]  # the last is the outermost


def _is_replica() -> bool:
    from ray.serve import get_replica_context
    from ray.serve.exceptions import RayServeException

    try:
        get_replica_context()
    except RayServeException:
        return False
    return True


class Away:
    """Makes a 503 of Ray's own 404.

    Ray says it at the start and at the end; clients and balancers take it for the last word on an address. For a Ray of
    the service's own: where others are served, too, their callers see it at addresses that are nobody's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held: Message | None = None
        away = False

        async def send_unless_away(message: Message) -> None:
            nonlocal held, away
            if away:
                return
            if message["type"] == "http.response.start" and message["status"] == 404:
                held = message  # whose 404 it is stands in what follows
                return
            if held is not None and message.get("body", b"").startswith(NO_ROUTE):
                away = True
                headers = {"Retry-After": "1", "Connection": "close"}
                await _answer(Problem("not_ready", "The service starts or stops. Try again.", headers), scope, receive, send)
                return
            if held is not None:
                start, held = held, None
                await send(start)
            await send(message)

        await self.app(scope, receive, send_unless_away)


class Throttle:
    """Once replicas refuse, refuses here, by chance, so that little more than what they take reaches them; and whatever is more
    than this proxy can pass on.

    Adaptive throttling: Beyer et al., Site Reliability Engineering (2016), chapter 21.
    """

    def __init__(self, app: ASGIApp, told: Callable[[], object]) -> None:
        """told: called for each request that is refused here."""
        self.app, self._told = app, told
        self.asked = self.taken = self.refused = 0.0  # of late; refused: by replicas
        self._seen, self._under_way = monotonic(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(QUESTIONS):
            await self.app(scope, receive, send)
            return
        self._forget()
        self.asked += 1
        # Without a refusal of late, many at once are no flood, though none of them is answered yet.
        is_flood = self.refused >= 1 and random.random() < (self.asked - BEYOND * self.taken) / (self.asked + 1)
        if is_flood or self._under_way >= MOST:
            self._told()
            await _answer(overloaded(1) if is_flood else _full(), scope, receive, send)
            return
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.taken += status != 503
            elif status == 503:
                refused = any(word in message.get("body", b"") for word in REFUSALS)
                self.taken, self.refused = self.taken + (not refused), self.refused + refused
                status = 0  # the rest says nothing new
            await send(message)

        self._under_way += 1
        try:
            await self.app(scope, receive, send_and_note)
        finally:
            self._under_way -= 1

    def _forget(self) -> None:
        now = monotonic()
        left = 0.5 ** ((now - self._seen) / MEMORY_S)
        self.asked, self.taken, self.refused, self._seen = self.asked * left, self.taken * left, self.refused * left, now


def _full() -> Problem:
    detail = "Try again in 1 s; Ray's proxy has as much as it can pass on. If this goes on, HAProxy can: --ingress haproxy."
    return Problem("overloaded", detail, {"Retry-After": "1"})


async def _answer(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """With the headers that every answer has."""

    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        await problem.response(request_id_of(scope))(scope, receive, send)

    await Envelope(tell, echo=True, answered=lambda *_: None)(scope, receive, send)
