"""The OpenAPI document, made true where FastAPI cannot know: bodies read by hand, problems instead of its own errors."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.admin import PREFIX, Canary, Switch
from serve.problems import MEDIA_TYPE, PROBLEMS
from serve.schemas import NewEvent, NewEvents, ProblemDocument

REF = "#/components/schemas/{model}"

DESCRIPTION = (
    "Who should take what next. Ids are strings, as in the data. Every answer names the bundle that made it, and every answer, "
    "good or bad, carries X-Request-Id: yours, or one made here."
)

EXAMPLES: dict[str, Any] = {
    "user": {"summary": "A known user", "value": {"user": "1", "k": 5}},
    "history": {"summary": "A history", "value": {"history": [{"item": "1", "rating": 5}, {"item": "50"}], "k": 5}},
    "filter": {
        "summary": "Only some items",
        "value": {"user": "1", "filter": {"genres": {"any": ["Comedy", "Drama"], "none": ["Horror"]}, "year": {"min": 1990}}},
    },
    "another order": {
        "summary": "More diverse, explained",
        "value": {"user": "1", "diversity": 0.1, "popularity": -0.3, "explain": True},
    },
    "stranger": {"summary": "A stranger", "value": {}},
    "several": {"summary": "Several at once", "value": {"requests": [{"user": "1"}, {"user": "2", "exclude": ["1"]}]}},
}


EVENTS: dict[str, Any] = {
    "one": {"summary": "One event", "value": {"user": "1", "item": "50", "rating": 5, "id": "any-name"}},
    "several": {"summary": "Several", "value": {"events": [{"user": "1", "item": "1"}, {"user": "2", "item": "1"}]}},
}

ADMIN: tuple[tuple[str, str, type[BaseModel]], ...] = ((f"{PREFIX}bundle", "post", Switch), (f"{PREFIX}canary", "put", Canary))


def refusals() -> dict[int | str, dict[str, Any]]:
    """What every route may answer instead."""
    content = {MEDIA_TYPE: {"schema": {"$ref": REF.format(model="ProblemDocument")}}}
    return {
        "4XX": {"description": "A problem with the request, and what to do about it", "content": content},
        "5XX": {"description": "A problem of the service", "content": content},
    }


def document(app: FastAPI, request: type[BaseModel], requests: type[BaseModel], *, admin: bool) -> dict[str, Any]:
    """The document of an app whose `POST /v1/recommend` takes `request` or `requests`. admin: whether its routes are there."""
    routes = [route for route in app.routes if admin or not getattr(route, "path", "").startswith(PREFIX)]
    api = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=routes)
    _replace_validation_errors(api)
    _add_models(api, request, requests, NewEvent, NewEvents, ProblemDocument)
    api["paths"]["/v1/recommend"]["post"]["requestBody"] = _body(EXAMPLES, request, requests)
    api["paths"]["/v1/events"]["post"]["requestBody"] = _body(EVENTS, NewEvent, NewEvents)
    for path, method, model in ADMIN if f"{PREFIX}bundle" in api["paths"] else ():
        api["paths"][path][method]["requestBody"] = _body({}, model)
        _add_models(api, model)
    api["x-problems"] = {code: {"status": status, "title": title} for code, (status, title) in PROBLEMS.items()}
    return api


def _body(examples: dict[str, Any], *models: type[BaseModel]) -> dict[str, Any]:
    either = [{"$ref": REF.format(model=model.__name__)} for model in models]
    return {"required": True, "content": {"application/json": {"schema": {"anyOf": either}, "examples": examples}}}


def _add_models(api: dict[str, Any], *models: type[BaseModel]) -> None:
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    api["components"]["schemas"].update(schemas["$defs"])


def _replace_validation_errors(api: dict[str, Any]) -> None:
    """Ours are problems, under 4XX."""
    for operations in api["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        api["components"]["schemas"].pop(name, None)
