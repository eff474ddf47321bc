"""What OpenAPI says can be sent, and what it says cannot: whatever comes, the answer is never the service's own failure."""

import contextlib
from collections.abc import Iterator
from unittest import SkipTest

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis.generation import GenerationMode

from serve.args import ServeArgs
from serve.events.feed import Feed
from serve.events.sqlite import SqliteEvents
from serve.http import create_app
from serve.live import Live
from tests.bundles import write_planted

KEY = "a-key-for-the-fuzz-of-32-letters"


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_CACHE", str(folder / "cache"))
        write_planted(folder / "bundles", version="a")
        (folder / "keys.toml").write_text(f'[all]\nkey = "{KEY}"\nadmin = true')
        args = ServeArgs(bundles=str(folder / "bundles"), keys=str(folder / "keys.toml"))
        live, store = Live(args), SqliteEvents(folder / "events.sqlite")
        yield schemathesis.openapi.from_asgi("/openapi.json", create_app(lambda: live, args, Feed(store)))
        store.close()


def test_no_request_makes_the_service_fail(schema: schemathesis.BaseSchema) -> None:
    """Each operation of the document, with bodies and parameters that it allows and that it does not."""
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {"/v1/recommend", "/v1/events", "/v1/admin/bundle"} <= {operation.path for operation in operations}
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with contextlib.suppress(Unsatisfiable, SkipTest):  # some have nothing that could be wrong
                fuzz(operation.as_strategy(generation_mode=mode))


def fuzz(cases: SearchStrategy[schemathesis.Case]) -> None:
    @given(case=cases)
    @settings(max_examples=30, suppress_health_check=list(HealthCheck), database=None)
    def answers(case: schemathesis.Case) -> None:
        response = case.call(headers={"Authorization": f"Bearer {KEY}"})
        assert response.status_code < 500 or response.status_code == 503, f"{case.method} {case.path}: {response.text}"
        statuses.add((case.method, case.path, response.status_code))

    statuses: set[tuple[str, str, int]] = set()
    answers()
    assert statuses and all(status not in (401, 403) for _, _, status in statuses)
