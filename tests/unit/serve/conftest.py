"""A planted bundle behind the HTTP application, asked in this process: no Ray, no sockets."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from recsys.bundle.read import open_bundle
from recsys.retrieval.recommender import Recommender
from serve.args import ServeArgs
from serve.http import create_app
from tests.asgi import AppClient, Fixed
from tests.bundles import Planted, planted, write_planted

TITLES = [f"Film {number}" for number in range(57)] + ["Żółć Ω 🎬", "<img src=x onerror=alert(1)>", "Σ/slash?"]


@pytest.fixture(scope="session")
def world() -> Planted:
    return planted()


@pytest.fixture(scope="session")
def recommender(world: Planted, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return Recommender(open_bundle(write_planted(tmp_path_factory.mktemp("bundles"), world=world, titles=TITLES)))


@pytest.fixture(scope="session")
def client_of(recommender: Recommender) -> Iterator[Callable[..., AppClient]]:
    """A client of the application with some arguments, for the planted recommender, another, none, or what is `live`."""
    made: list[AppClient] = []

    def make(recommender: Any = recommender, live: Any = None, **args: Any) -> AppClient:
        served = live or (None if recommender is None else Fixed(recommender))
        made.append(AppClient(create_app(lambda: served, ServeArgs(bundles="planted", **args))))
        return made[-1]

    yield make
    for client in made:
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def client(client_of: Callable[..., AppClient]) -> AppClient:
    return client_of()
