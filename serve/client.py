"""A client of the service, sync and async: it tries again when the service is overloaded or away, and raises typed errors.

with Client("http://127.0.0.1:8000") as client:
    client.recommend(user="1", k=5)["items"]
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote

import httpx

from serve.problems import MEDIA_TYPE

Json = dict[str, Any]
Result = TypeVar("Result")

LONGEST_WAIT_S = 30.0


class ServiceError(Exception):
    """The service refused or failed. `status`, `code`, `detail` and `request_id` are those of its problem document."""

    def __init__(self, status: int, code: str, detail: str, request_id: str) -> None:
        super().__init__(f"{status} {code}: {detail} (request {request_id or 'without id'})")
        self.status, self.code, self.detail, self.request_id = status, code, detail, request_id


class RefusedError(ServiceError):
    """4xx: asking again in the same way will not help."""


class NotFoundError(RefusedError):
    """404: no such item, user or address."""


class FailedError(ServiceError):
    """5xx, after all retries."""


class _Api(Generic[Result]):
    """The questions; how they are sent is the clients' affair. Answers are the JSON objects that /docs describes."""

    def recommend(
        self, *, user: str | None = None, history: Iterable[Json | str] | None = None, k: int = 10, **options: Any
    ) -> Result:
        """What to take next. history: ids, or `{item, rating?, time?}`. options: `exclude`, `allow`, `filter`, `mode`,
        `exclude_seen`, `diversity`, `popularity`, `recency`, `explain`."""
        return self._send("POST", "/v1/recommend", json=question(user=user, history=history, k=k, **options))

    def recommend_many(self, requests: Sequence[Json]) -> Result:
        """Several requests (see `question`) at once; under `answers` an answer or a problem for each."""
        return self._send("POST", "/v1/recommend", json={"requests": list(requests)})

    def similar(self, item: str, k: int = 10) -> Result:
        """Items like one."""
        return self._send("GET", f"/v1/items/{quote(item, safe='')}/similar", params={"k": k})

    def search(self, query: str, limit: int = 10) -> Result:
        """Items by words of their titles."""
        return self._send("GET", "/v1/items", params={"query": query, "limit": limit})

    def user(self, user: str, limit: int = 100) -> Result:
        """A known user and the latest of what he took."""
        return self._send("GET", f"/v1/users/{quote(user, safe='')}", params={"limit": limit})

    def took(self, user: str, item: str, **more: Any) -> Result:
        """Somebody took an item just now; the next request knows. more: `rating`, `kind`, `time`, `id`."""
        return self._send("POST", "/v1/events", json={"user": user, "item": item, "id": uuid.uuid4().hex} | more)

    def bundle(self) -> Result:
        """What is served."""
        return self._send("GET", "/v1/bundle")

    def _send(self, method: str, path: str, **content: Any) -> Result:
        raise NotImplementedError


class Client(_Api[Json]):
    """Blocks. Any httpx client can be given instead of a URL's own."""

    def __init__(
        self,
        url: str = "",
        *,
        key: str | None = None,
        http: httpx.Client | None = None,
        retries: int = 4,
        backoff_s: float = 0.1,
    ) -> None:
        self._http = http or httpx.Client(base_url=url, timeout=30, headers=_with(key))
        self._retries, self._backoff_s = retries, backoff_s

    def _send(self, method: str, path: str, **content: Any) -> Json:
        for attempt in range(self._retries + 1):
            outcome = self._try(method, path, content)
            if attempt == self._retries or not worth_another_try(outcome):
                break
            time.sleep(wait_s(attempt, outcome, self._backoff_s))
        return read(outcome)

    def _try(self, method: str, path: str, content: Json) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.request(method, path, **content)
        except httpx.TransportError as error:
            return error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()


class AsyncClient(_Api[Awaitable[Json]]):
    """Awaits. Any httpx client can be given instead of a URL's own."""

    def __init__(
        self,
        url: str = "",
        *,
        key: str | None = None,
        http: httpx.AsyncClient | None = None,
        retries: int = 4,
        backoff_s: float = 0.1,
    ) -> None:
        self._http = http or httpx.AsyncClient(base_url=url, timeout=30, headers=_with(key))
        self._retries, self._backoff_s = retries, backoff_s

    async def _send(self, method: str, path: str, **content: Any) -> Json:
        for attempt in range(self._retries + 1):
            outcome = await self._try(method, path, content)
            if attempt == self._retries or not worth_another_try(outcome):
                break
            await asyncio.sleep(wait_s(attempt, outcome, self._backoff_s))
        return read(outcome)

    async def _try(self, method: str, path: str, content: Json) -> httpx.Response | httpx.TransportError:
        try:
            return await self._http.request(method, path, **content)
        except httpx.TransportError as error:
            return error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()


def _with(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def question(*, user: str | None = None, history: Iterable[Json | str] | None = None, **options: Any) -> Json:
    """The body of one request; what is None is left out."""
    events = None if history is None else [{"item": event} if isinstance(event, str) else event for event in history]
    return {key: value for key, value in {"user": user, "history": events, **options}.items() if value is not None}


def worth_another_try(outcome: httpx.Response | httpx.TransportError) -> bool:
    """Overload, and a service that is away for the moment: asking twice does no harm, since an event counts once by its id.

    A 5xx without a problem document comes from a proxy that lost its replica.
    """
    if isinstance(outcome, httpx.TransportError):
        return not isinstance(outcome, httpx.ReadTimeout | httpx.UnsupportedProtocol)
    ours = outcome.headers.get("content-type", "").startswith(MEDIA_TYPE)
    return outcome.status_code == 503 or (outcome.status_code >= 500 and not ours)


def wait_s(attempt: int, outcome: httpx.Response | httpx.TransportError, backoff_s: float) -> float:
    """What Retry-After asks, and on top an exponential back-off with full jitter, so that clients do not come back together."""
    asked = outcome.headers.get("retry-after", "") if isinstance(outcome, httpx.Response) else ""
    jittered = random.uniform(0, backoff_s * 2**attempt)
    return min(LONGEST_WAIT_S, (int(asked) if asked.isdecimal() else 0) + jittered)


def read(outcome: httpx.Response | httpx.TransportError) -> Json:
    """The answer. Raises ServiceError for a problem, and the transport's error as it is."""
    if isinstance(outcome, httpx.TransportError):
        raise outcome
    if not outcome.is_success:
        raise _error(outcome)
    answer: Json = outcome.json()
    return answer


def _error(response: httpx.Response) -> ServiceError:
    status = response.status_code
    told: Json = response.json() if response.headers.get("content-type", "").startswith(MEDIA_TYPE) else {}
    is_missing = status == 404 and told.get("code") != "events_off"
    kind = NotFoundError if is_missing else RefusedError if status < 500 else FailedError
    request_id = told.get("request_id") or response.headers.get("x-request-id", "")
    return kind(status, told.get("code", "unknown"), told.get("detail", response.reason_phrase), request_id)
