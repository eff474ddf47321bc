"""Round every answer, in plain ASGI: the request's id, security headers, a limit on bodies, nothing unexpected let out."""

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.keys import Keys
from serve.problems import Problem

log = logging.getLogger("serve")

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""What is taken over from a client's X-Request-Id: printable, no spaces, not long. Else one is made."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_ENCODED = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]  # once, not at each answer


def route_path(scope: Scope) -> str:
    """The address without the prefix under which the service hangs, as the router sees it."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    behind = path[len(prefix) :] if prefix and path.startswith(prefix) else path
    return behind if not behind or behind.startswith("/") else path


def request_id_of(scope: Scope) -> str:
    """The id that `Envelope` gave to a request."""
    identifier: str = scope["state"]["request_id"]
    return identifier


class Envelope:
    """Gives every request an id, every answer its headers; turns what nobody expected into a plain 500.

    echo: whether X-Request-Id is written into the answer. Ray's proxy does so itself, and twice would be wrong.
    answered: told the path, status and seconds of each answer.
    """

    def __init__(self, app: ASGIApp, echo: bool, answered: Callable[[str, int, float], None]) -> None:
        self.app, self.echo, self.answered = app, echo, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identifier = _identify(scope)
        scope.setdefault("state", {})["request_id"] = identifier
        started, began = False, time.perf_counter()

        async def send_wrapped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._add_headers(message, identifier)
                self.answered(route_path(scope), message["status"], time.perf_counter() - began)
            await send(message)

        try:
            await self.app(scope, receive, send_wrapped)
        except ClientDisconnect:
            log.info("request %s: hung up before it was whole: %s %s", identifier, scope["method"], scope["path"])
        except Exception:
            log.exception("request %s failed: %s %s", identifier, scope["method"], scope["path"])
            if started:
                raise
            await _internal(identifier).response(identifier)(scope, receive, send_wrapped)

    def _add_headers(self, message: Message, identifier: str) -> None:
        headers = [*message["headers"], *_ENCODED]
        if all(name != b"cache-control" for name, _ in headers):
            headers.append((b"cache-control", b"no-store"))
        if self.echo:
            headers.append((b"x-request-id", identifier.encode()))
        message["headers"] = headers


class Gate:
    """Lets nobody in who has no key, but to what is free: pages and health. Without an admin's key there are no admin's
    addresses. Addresses are those that the router sees, behind whatever prefix the service has.
    """

    def __init__(self, app: ASGIApp, keys: Keys, free: Collection[str], admin: str) -> None:
        """admin: what an admin's addresses begin with."""
        self.app, self.keys, self.free, self.admin = app, keys, free, admin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and route_path(scope) not in self.free:
            try:
                self._admit(scope)
            except Problem as problem:
                await problem.response(request_id_of(scope))(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        admin = route_path(scope).startswith(self.admin)
        if admin and not self.keys.has_admin:
            raise Problem("not_found", "See /docs for what there is.")
        self.keys.admit(_presented(scope), admin=admin)


LINGER_BYTES, LINGER_S = 8 << 20, 1.0
"""So much of a body that is refused, and for so long, is taken from its connection and dropped before the refusal is said."""


class BodyLimit:
    """Refuses bodies over a limit, by their declared length before reading, else as soon as too much has come; and those that
    do not come in time, since a caller who sends a byte now and then would hold a place for ever."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _declared_length(scope) > self.max_bytes:
            await _let_in(scope, receive)
            await self._too_large().response(request_id_of(scope))(scope, receive, send)
            return
        read, whole, late = 0, False, asyncio.get_running_loop().time() + self.timeout_s

        async def receive_counted() -> Message:
            nonlocal read, whole
            if whole:  # what comes now is that he hung up, some day
                return await receive()
            try:
                async with asyncio.timeout_at(late):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            read, whole = read + len(message.get("body", b"")), not message.get("more_body", False)
            if read > self.max_bytes:
                await _let_in(scope, receive)
                raise self._too_large()
            return message

        await self.app(scope, receive_counted, send)

    # The rest of such a body is not read, so the connection cannot be used again.
    def _too_large(self) -> Problem:
        detail = f"At most {self.max_bytes} bytes are read. Send shorter lists, or several requests."
        return Problem("too_large", detail, {"Connection": "close"})

    def _too_slow(self) -> Problem:
        detail = f"A body must be here {self.timeout_s:g} s after its request began."
        return Problem("too_slow", detail, {"Connection": "close"})


async def _let_in(scope: Scope, receive: Receive) -> None:
    """Drop what is on its way. A connection that is closed with bytes unread is reset, and the caller, who still sends, or a
    proxy before him, may lose what was said to him last."""
    if any(name == b"expect" for name, _ in scope["headers"]):
        return  # he waits to be told that he may send
    left, more = LINGER_BYTES, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while more and left > 0:
                message = await receive()
                left, more = left - len(message.get("body", b"")), message.get("more_body", False)


def _identify(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if REQUEST_ID.fullmatch(text):
                return text
            break
    return uuid.uuid4().hex


def _presented(scope: Scope) -> str | None:
    """The key of `Authorization: Bearer` or `X-API-Key`."""
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        if name == b"x-api-key":
            return str(text)
        if name == b"authorization" and text[:7].lower() == "bearer ":
            return str(text[7:].strip())
    return None


def _declared_length(scope: Scope) -> int:
    lengths: list[Any] = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0][:20]) if lengths and lengths[0].isdigit() else 0


def _internal(identifier: str) -> Problem:
    return Problem("internal", f"Nothing was wrong with asking. Look for {identifier} in the service's log.")
