"""The page at `/` and the documentation at `/docs`: a few static files, read once, served from memory."""

import hashlib
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from recsys.retrieval.answers import to_json

PAGES = {"/": "index.html", "/docs": "docs.html"}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def answered(content: Any) -> Response:
    """An answer of the API."""
    return Response(to_json(content), media_type="application/json")


def page_routes() -> list[Route]:
    """A route for each page, and `/web/<file>` for what the pages load."""
    web = files("serve").joinpath("web")
    names = sorted(entry.name for entry in web.iterdir() if not entry.name.startswith(("_", ".")))
    assets = {f"/web/{name}": name for name in names if not name.endswith(".html")}
    return [_route(path, name, web.joinpath(name).read_bytes()) for path, name in {**PAGES, **assets}.items()]


def _route(path: str, name: str, content: bytes) -> Route:
    media_type = TYPES[name[name.rindex(".") :]]
    # no-cache: kept, but asked about each time, so that an upgrade never mixes old files with new.
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "Cache-Control": "no-cache"}

    async def serve_file(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=f"{media_type}; charset=utf-8")

    return Route(path, serve_file, methods=["GET"])
