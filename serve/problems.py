"""What goes wrong over HTTP, as `application/problem+json` (RFC 9457): a code, what to do, and the request's id."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

Model = TypeVar("Model", bound=BaseModel)

MEDIA_TYPE = "application/problem+json"

PROBLEMS: dict[str, tuple[int, str]] = {
    "bad_json": (400, "The body is not JSON"),
    "unauthorized": (401, "A key is needed"),
    "forbidden": (403, "This key may not do that"),
    "not_found": (404, "There is nothing at this address"),
    "events_off": (404, "This service keeps no events"),
    "unknown_item": (404, "No such item"),
    "unknown_user": (404, "No such user"),
    "method_not_allowed": (405, "This address does not do that"),
    "too_slow": (408, "The body did not come in time"),
    "too_large": (413, "The body is too large"),
    "not_json": (415, "The body must be JSON"),
    "invalid": (422, "The request cannot be answered as it is"),
    "too_many": (429, "This key asks too often"),
    "internal": (500, "The service failed"),
    "no_events": (503, "No events are kept at the moment"),
    "overloaded": (503, "Too many requests are waiting"),
    "too_many_explanations": (503, "Too many lists wait that take long"),
    "not_ready": (503, "No bundle is open yet"),
}
"""Every code that is given out, with its status and title. /docs explains them under `#problem-<code>`."""


# Where pydantic's own words are of Python.
WORDS = {
    "string_type": 'should be a string, such as "1"',
    "dict_type": "should be a JSON object",
    "list_type": "should be a list",
    "missing": "is missing",
    "extra_forbidden": "there is no such field",  # or parameter
}
TYPES = ("str", "bool", "int", "float")
"""Where a value may be of several, pydantic tells of each under its name."""
OBJECTS = {"HistoryEvent": '{"item": "1"}', "ColumnFilter": '{"any": ["Comedy"]}', "NewEvent": '{"user": "1", "item": "1"}'}
"""What an object of a class could be."""


class Problem(Exception):  # noqa: N818 - RFC 9457's word, and not always an error of ours
    """An answer that is not what was asked for. `extra`: further members of the document, such as `errors`."""

    def __init__(self, code: str, detail: str, headers: Mapping[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.code, self.detail, self.headers, self.extra = code, detail, dict(headers or {}), extra
        self.status, self.title = PROBLEMS[code]

    def document(self, request_id: str) -> dict[str, Any]:
        """The members of the problem document."""
        return {
            "type": f"/docs#problem-{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "request_id": request_id,
            **self.extra,
        }

    def response(self, request_id: str) -> Response:
        """The whole HTTP answer."""
        return Response(orjson.dumps(self.document(request_id)), self.status, self.headers, MEDIA_TYPE)


def overloaded(retry_after_s: int) -> Problem:
    """The queue is full."""
    detail = f"Try again in {retry_after_s} s; add replicas if this goes on."
    return Problem("overloaded", detail, {"Retry-After": str(retry_after_s)})


def invalid(errors: list[dict[str, Any]]) -> Problem:
    """A request that fails validation; errors: `where` and `what`, of which the first makes the detail."""
    first = errors[0]
    more = f" ({len(errors) - 1} more under errors)" if len(errors) > 1 else ""
    return Problem("invalid", f"{first['where']}: {first['what']}{more}.", errors=errors)


def checked(model: type[Model], value: Any) -> Model:
    """A value as a model of ours. Raises Problem with what is wrong where."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(explain(error.errors(include_url=False, include_input=False))) from None


def explain(errors: Sequence[Any]) -> list[dict[str, Any]]:
    """Pydantic's errors as `where` and `what`; the input is not repeated, since it may be anything, and long."""
    return [{"where": _path(error["loc"]), "what": _in_words(error)} for error in errors[:20]]


def _in_words(error: Any) -> str:
    if error["type"] == "model_type":
        example = OBJECTS.get(error["ctx"]["class_name"])
        return f"should be a JSON object{f', such as {example}' if example else ''}"
    told: str = error["msg"]
    return WORDS.get(error["type"]) or told[:1].lower() + told[1:]


def _path(location: tuple[int | str, ...]) -> str:
    if len(location) > 1 and location[-1] in TYPES:
        location = location[:-1]
    steps = [f"[{step}]" if isinstance(step, int) else f".{str(step)[:100]}" for step in location]
    return "".join(steps).removeprefix(".") or "body"
