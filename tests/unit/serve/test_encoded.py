"""A bundle that encodes histories, behind the HTTP application: order, fresh events and neighbours, as over the wire."""

from collections.abc import Callable, Iterator

import pytest

from recsys.bundle.read import open_bundle
from recsys.retrieval.recommender import Recommender
from tests.asgi import AppClient
from tests.bundles import planted, write_planted
from tests.encoders import ENCODED


@pytest.fixture(scope="module")
def client(client_of: Callable[..., AppClient], tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    folder = write_planted(tmp_path_factory.mktemp("encoded"), world=planted(), **ENCODED)
    yield client_of(Recommender(open_bundle(folder)), max_batch=16)


def ids(client: AppClient, **body: object) -> list[str]:
    response = client.recommend({"k": 5, **body})
    answer = response.json()
    assert response.status_code == 200 and answer["path"] == "exact" and not answer["fallback"], answer
    return [item["item_id"] for item in answer["items"]]


def tastes(items: list[str]) -> set[int]:
    return {int(item[1:]) % 4 for item in items}


def test_fresh_events_change_the_next_list_at_once(client: AppClient) -> None:
    before = ids(client, user="u0")
    assert tastes(before) == {0}
    assert tastes(ids(client, user="u0", history=[{"item": "i1"}, {"item": "i5"}])) == {1}
    assert ids(client, user="u0") == before


def test_a_newcomer_is_answered_by_the_order_or_the_times_of_his_events(client: AppClient) -> None:
    one, two = {"item": "i1"}, {"item": "i2"}
    assert tastes(ids(client, history=[one, two])) == {2} and tastes(ids(client, history=[two, one])) == {1}
    assert ids(client, history=[one | {"time": 9}, two | {"time": 3}]) == ids(client, history=[two, one])


def test_histories_that_come_together_do_not_mix(client: AppClient) -> None:
    bodies = [{"history": [{"item": f"i{item}"} for item in range(first, first + 1 + first % 5)]} for first in range(20)]
    alone = [client.recommend(body).json() for body in bodies]
    assert [response.json() for response in client.together(bodies)] == alone
    assert max(client.app.state.service.batcher.sizes) > 1


def test_the_bundle_says_that_users_are_known_by_their_histories(client: AppClient) -> None:
    told = client.get("/v1/bundle").json()
    assert told["known_user"] == "history" and told["model"] == "sasrec"
    assert client.get("/v1/items/i1/similar?k=3").json()["path"] == "exact"
