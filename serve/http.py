"""Routes under /v1, and what they answer where something is wrong. Needs no Ray: any Recommender will do."""

from functools import cache, partial
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from recsys.errors import RequestError
from serve import problems, schemas
from serve.admin import PREFIX as ADMIN
from serve.admin import add_admin
from serve.args import MAX_ID_LENGTH, ServeArgs
from serve.convert import manifest_json, problem_of
from serve.events.feed import Feed
from serve.keys import Keys
from serve.live import Live
from serve.metrics import Metrics, Silent
from serve.middleware import BodyLimit, Envelope, Gate, request_id_of, route_path
from serve.openapi import document, refusals
from serve.pages import answered, page_routes
from serve.problems import Problem
from serve.service import Json, Provider, Service, parse

QUESTION = "/v1/recommend"
FREE = ("", "/healthz", "/readyz", "/openapi.json")
"""Addresses that take no key, beside the pages."""

IdPath = Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH, description="Percent-encoded; slashes may stay.")]


def create_app(
    provider: Provider,
    args: ServeArgs,
    feed: Feed | None = None,
    metrics: Metrics | None = None,
    *,
    echo_request_id: bool = True,
) -> FastAPI:
    """The whole HTTP application.

    provider: what is served, asked at every batch; None: not ready. feed: where events go that come; None: nowhere. metrics:
    what counts; None: nothing does.
    echo_request_id: False where an outer server writes X-Request-Id into answers by itself, as Ray's proxy does.
    """
    # Swagger's pages would be loaded from elsewhere: /docs is a page of our own.
    # No redirects to the address without its last slash: they would send a body again, to wherever the Host header says.
    app = App(title="recsys", version="1", docs_url=None, redoc_url=None, responses=refusals(), redirect_slashes=False)
    metrics, keys = metrics or Silent(), None if args.keys is None else Keys(FilePath(args.keys), args.replicas)
    service = Service(provider, args, feed, metrics)
    app.state.service = service
    _add_recommend(app, service)
    _add_catalogue(app, service)
    _add_state(app, service)
    app.router.routes.extend(page_routes())
    _add_problem_handlers(app)
    guards = [Middleware(BodyLimit, max_bytes=args.max_body_bytes, timeout_s=args.receive_timeout_s)]
    if keys is not None:
        add_admin(app, service.live, feed, _body_of)
        guards.append(Middleware(Gate, keys=keys, free={*FREE, *(route.path for route in page_routes())}, admin=ADMIN))
    guards.append(Middleware(Envelope, echo=echo_request_id, answered=metrics.answered))
    for guard in guards:  # the last is the outermost
        app.add_middleware(guard.cls, *guard.args, **guard.kwargs)
        app.direct = {question: guard.cls(way, *guard.args, **guard.kwargs) for question, way in app.direct.items()}
    many = schemas.many_model(service.request_model, args.max_requests)
    documents = cache(partial(document, app, service.request_model, many))
    app.openapi = lambda: documents(admin=keys is not None and keys.has_admin)  # type: ignore[method-assign]
    return app


class App(FastAPI):
    """FastAPI, but that the question asked most goes past it to its function, through the same guards: finding the route, and
    minding what a function may open, would take as long as half of the answer. It is documented as all are."""

    def __init__(self, **about: Any) -> None:
        super().__init__(**about)
        self.direct: dict[tuple[str, str], ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        way = self.direct.get((scope["method"], route_path(scope))) if scope["type"] == "http" else None
        await (way or super().__call__)(scope, receive, send)


def _add_recommend(app: App, service: Service) -> None:
    alike = schemas.alike_model(service.args.max_k)

    async def recommend(request: HttpRequest) -> Response:
        """What to take next: for a known user, for a history, for a stranger, or for each of a list of these."""
        _require_json_alone(request)
        service.admit()
        return answered(await service.recommend(await request.body(), request_id_of(request.scope)))

    app.router.add_api_route(
        QUESTION,
        recommend,
        methods=["POST"],
        tags=["recommend"],
        response_model=schemas.Recommendation | schemas.Recommendations,
    )

    async def straight(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await recommend(HttpRequest(scope, receive, send))
        except (Problem, RequestError) as error:
            problem = error if isinstance(error, Problem) else problem_of(error)
            response = problem.response(request_id_of(scope))
        await response(scope, receive, send)

    app.direct["POST", QUESTION] = straight

    @app.post("/v1/events", tags=["events"], response_model=schemas.Kept)
    async def events(request: HttpRequest) -> Response:
        """Somebody took something: kept durably, and known to every request from now on."""
        return answered(await service.keep(await _body_of(request)))

    @app.get("/v1/items/{item_id:path}/similar", tags=["catalogue"], response_model=schemas.Recommendation)
    async def similar(item_id: IdPath, asked: Annotated[alike, Query()]) -> Response:  # type: ignore[valid-type]
        """Items like this one."""
        return answered(await service.similar(item_id, asked.k))  # type: ignore[attr-defined]


def _add_catalogue(app: FastAPI, service: Service) -> None:
    @app.get("/v1/items", tags=["catalogue"], response_model=schemas.ItemList)
    async def search(asked: Annotated[schemas.Titles, Query()]) -> Response:
        """Items by words of their titles."""
        return answered(await service.search(asked.query, asked.limit))

    @app.get("/v1/users/{user_id:path}", tags=["catalogue"], response_model=schemas.User)
    async def user(user_id: IdPath, asked: Annotated[schemas.Latest, Query()]) -> Response:
        """A known user and the latest of what he took."""
        return answered(await service.user(user_id, asked.limit))


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/bundle", tags=["state"], response_model=schemas.BundleInfo)
    async def bundle() -> Response:
        """What is served, what made it, and how good it measured."""
        recommender = service.recommender()
        audit = None if recommender.audit is None else recommender.audit.model_dump()
        more = {
            "max_k": service.args.max_k,
            "columns": recommender.columns,
            "audit": audit,
            "takes_events": service.feed is not None,
        }
        more |= _state(service.live())
        return answered(manifest_json(recommender.bundle.manifest, more))

    @app.get("/healthz", tags=["state"], response_model=schemas.Health)
    async def healthz() -> Response:
        """Whether the process answers."""
        return answered({"status": "ok"})

    @app.get("/readyz", tags=["state"], response_model=schemas.Ready)
    async def readyz() -> Response:
        """Whether a bundle is open, so that requests can be answered; 503 if not."""
        return answered({"status": "ok", "bundle": service.recommender().bundle.version})


def _state(live: Live) -> Json:
    canary = live.served.canary
    return {
        "canary": None if canary is None else {"version": canary.bundle.version, "share": live.served.share},
        "rejected": None if live.rejected is None else live.rejected.model_dump(),
    }


def _add_problem_handlers(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(request: HttpRequest, error: Problem) -> Response:
        return error.response(request_id_of(request.scope))

    @app.exception_handler(RequestError)
    async def refused(request: HttpRequest, error: RequestError) -> Response:
        return problem_of(error).response(request_id_of(request.scope))

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: HttpRequest, error: RequestValidationError) -> Response:
        return problems.invalid(problems.explain(error.errors())).response(request_id_of(request.scope))

    @app.exception_handler(HTTPException)
    async def of_routing(request: HttpRequest, error: HTTPException) -> Response:
        return _routing_problem(request, error).response(request_id_of(request.scope))


def _routing_problem(request: HttpRequest, error: HTTPException) -> Problem:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return Problem("method_not_allowed", f"Here there is only: {allowed}.", error.headers)
    return Problem("not_found", "See /docs for what there is.", error.headers)


def _require_json_alone(request: HttpRequest) -> None:
    """With nothing in the address, which would be passed over. Also keeps other sites' pages from asking in a browser's name:
    only `simple` content types go without CORS."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem("not_json", "Send the header Content-Type: application/json.")
    if request.scope["query_string"]:
        raise problems.invalid([{"where": "query", "what": "this address takes no parameters: put them into the body"}])


async def _body_of(request: HttpRequest) -> Any:
    _require_json_alone(request)
    return parse(await request.body())
