"""Asks an ASGI application in this process, blocking: no sockets, and one event loop for all its requests."""

import asyncio
import json
from types import TracebackType
from typing import Any, Self

import httpx

from serve.live import Served


class Fixed:
    """Stands for `serve.live.Live` where nothing is exchanged."""

    rejected = None

    def __init__(self, recommender: Any) -> None:
        self.served = Served(recommender)


class AppClient:
    """`httpx` without a network. Exceptions that the application lets out become visible as such."""

    def __init__(self, app: Any) -> None:
        self._runner = asyncio.Runner()
        self.app = app
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        return self._runner.run(self._http.request(method, path, **content))

    def get(self, path: str, **content: Any) -> httpx.Response:
        return self.request("GET", path, **content)

    def post(self, path: str, **content: Any) -> httpx.Response:
        return self.request("POST", path, **content)

    def recommend(self, body: Any) -> httpx.Response:
        return self.post("/v1/recommend", content=json.dumps(body).encode(), headers={"Content-Type": "application/json"})

    def together(self, bodies: list[Any]) -> list[httpx.Response]:
        """Several recommendations asked for at the same moment."""

        async def ask_all() -> list[httpx.Response]:
            return await asyncio.gather(*[self._http.post("/v1/recommend", json=body) for body in bodies])

        return self._runner.run(ask_all())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._runner.run(self._http.aclose())
        self._runner.close()
