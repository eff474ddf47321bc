"""Every route answers what the recommender says, in the shape that OpenAPI promises."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from recsys.bundle.read import open_bundle
from recsys.config import IndexConfig
from recsys.retrieval.audit import Audit
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Event, Request
from serve import schemas
from serve.problems import PROBLEMS
from tests.asgi import AppClient
from tests.bundles import Planted, planted, write_planted

EVERY_ROUTE = ["/", "/docs", "/openapi.json", "/v1/items?query=film", "/v1/items/i1/similar", "/v1/users/u1", "/v1/bundle"]


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_a_known_user_gets_what_exact_search_over_the_planted_vectors_finds(client: AppClient, world: Planted) -> None:
    for user in range(len(world.user_vectors)):
        answer = client.recommend({"user": f"u{user}", "k": 7}).json()
        assert ids(answer) == [f"i{item}" for item in world.wanted(user, 7)]
        assert (answer["path"], answer["fallback"], answer["reason"]) == ("exact", False, None)
        assert answer["items"][0]["title"].startswith("Film ") and answer["items"][0]["genres"] == ["Drama"]
        scores = [item["score"] for item in answer["items"]]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("mode", ["auto", "ann", "exact"])
def test_a_history_is_answered_as_the_recommender_does(client: AppClient, recommender: Recommender, mode: str) -> None:
    history = [{"item": "i1", "rating": 5.0}, {"item": "i5", "time": 7}, {"item": "i9", "rating": 4}]
    answer = client.recommend({"history": history, "k": 12, "mode": mode}).json()
    events = (Event("i1", 5.0), Event("i5", None, 7), Event("i9", 4.0))
    expected = recommender.recommend([Request(history=events, k=12, mode=mode)])[0]  # type: ignore[arg-type]
    assert ids(answer) == expected.item_ids and answer["path"] == expected.path  # type: ignore[union-attr]
    assert answer["bundle"] == recommender.bundle.version
    assert all(int(item["item_id"][1:]) % 4 == 1 for item in answer["items"][:5])  # his taste


def test_exclude_allow_and_exclude_seen_are_obeyed(client: AppClient, world: Planted) -> None:
    first, second, third = world.wanted(0, 3)
    assert ids(client.recommend({"user": "u0", "k": 2, "exclude": [f"i{first}"]}).json()) == [f"i{second}", f"i{third}"]
    assert ids(client.recommend({"user": "u0", "allow": [f"i{third}", f"i{first}"]}).json()) == [f"i{first}", f"i{third}"]
    seen = {f"i{item}" for item in world.seen[0]}
    assert not seen & set(ids(client.recommend({"user": "u0", "k": 57}).json()))
    assert seen < set(ids(client.recommend({"user": "u0", "k": 57, "exclude_seen": False}).json()))


def test_filters_on_the_catalogues_columns_are_obeyed(client: AppClient, world: Planted) -> None:
    late = [item for item in world.wanted(0, 60) if 2000 <= 1990 + item % 30 <= 2004]
    body = {"user": "u0", "k": 60, "filter": {"year": {"min": 2000, "max": 2004.5}, "genres": {"any": ["Drama"]}}}
    assert ids(client.recommend(body).json()) == [f"i{item}" for item in late]
    nothing = client.recommend({"filter": {"genres": {"all": ["Drama", "Western"]}}}).json()
    assert nothing["items"] == [] and nothing["reason"].endswith("no eligible item is left")
    assert "year" in client.get("/v1/bundle").json()["columns"]


def test_what_an_index_misses_is_told(client: AppClient, client_of: Callable[..., AppClient], tmp_path: Path) -> None:
    assert client.get("/v1/bundle").json()["audit"] is None
    index = IndexConfig(kind="hnsw")
    bundle = open_bundle(write_planted(tmp_path, world=planted(users=40, items=600), index=index, recall_floor=0.9))
    audit = Audit(0.9, bundle.manifest.index, share=1)
    watched = client_of(Recommender(bundle, audit=audit))
    while watched.get("/v1/bundle").json()["audit"]["queries"] < 3:
        assert watched.recommend({"user": "u0"}).json()["path"] == "ann"
    told = schemas.BundleInfo.model_validate_json(watched.get("/v1/bundle").content).audit
    assert told is not None and told.trusted and told.recall == 1 and told.audit_ms


def test_lists_can_be_more_diverse_less_popular_and_explained(client: AppClient, world: Planted) -> None:
    plain = client.recommend({"user": "u0", "k": 12}).json()
    diverse = client.recommend({"user": "u0", "k": 12, "diversity": 0.9}).json()
    assert len({int(name[1:]) % 4 for name in ids(diverse)}) > len({int(name[1:]) % 4 for name in ids(plain)})
    assert ids(client.recommend({"user": "u0", "k": 12, "popularity": -1}).json()) != ids(plain)
    told = client.recommend({"user": "u0", "k": 3, "explain": True})
    schemas.Recommendation.model_validate_json(told.content)
    seen = {f"i{item}" for item in world.seen[0]}
    for item in told.json()["items"]:
        assert item["because"] and {cause["item_id"] for cause in item["because"]} <= seen
        assert all(cause["gain"] > 0 and cause["title"] for cause in item["because"])
    mixed = client.recommend({"requests": [{"user": "u0", "explain": True}, {"user": "u0"}, {"k": 0}]}).json()["answers"]
    assert ["because" in answer["items"][0] for answer in mixed[:2]] == [True, False] and "problem" in mixed[2]
    assert ids(mixed[0]) == ids(mixed[1])


@pytest.mark.parametrize("told", [{"diversity": 1.1}, {"popularity": -2}, {"recency": 0.5}, {"explain": "yes"}])
def test_a_dial_that_cannot_be_is_told(client: AppClient, told: Any) -> None:
    response = client.recommend({"user": "u0", **told})
    assert response.status_code == 422 and next(iter(told)) in response.text


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"genre": {"any": ["Drama"]}}, "no column 'genre'. There are: item_id, title, year, genres, count."),
        ({"year": {"any": ["2000"]}}, "'2000' should be a number"),
        ({"year": {}}, "say any, all, none, equals, min or max"),
        ({"year": {"minimum": 2000}}, "filter.year.minimum: there is no such field"),
        ({"year": {"min": 2001, "max": 2000}}, "min is above max"),
        ({"year": 2000}, "filter.year: should be a JSON object"),
        ({"genres": {"any": "Drama"}}, "filter.genres.any: should be a list"),
        ([], "filter: should be a JSON object"),
    ],
)
def test_a_filter_that_cannot_be_is_told(client: AppClient, told: Any, words: str) -> None:
    response = client.recommend({"user": "u0", "filter": told})
    assert response.status_code == 422 and words in response.text


def test_what_a_filter_asks_for_and_no_item_has_is_told(client: AppClient) -> None:
    answer = client.recommend({"user": "u0", "filter": {"genres": {"any": ["Comdy"]}}}).json()
    assert answer["items"] == [] and answer["reason"] == "no item has genres 'Comdy'; no eligible item is left"
    assert not answer["fallback"] and client.recommend({"user": "u0", "filter": {"year": {"min": 0}}}).json()["reason"] is None
    for asked in ({"none": ["Horor"]}, {"any": ["Drama", "Drma"]}):
        answer = client.recommend({"user": "u0", "k": 3, "filter": {"genres": asked}}).json()
        assert len(answer["items"]) == 3 and answer["reason"] is None


def test_items_that_no_list_can_hold_are_told(client: AppClient, recommender: Recommender) -> None:
    unranked = sorted(set(recommender.items.ids) - {recommender.items.ids[item] for item in recommender.bundle.indexed})
    assert unranked
    answer = client.recommend({"user": "u0", "allow": [*unranked, "i0", "not in the catalogue"], "exclude_seen": False}).json()
    told = f"{len(unranked)} of the allowed items were not watched in training; only 1 eligible item is left"
    assert ids(answer) == ["i0"] and answer["reason"] == told and answer["unknown_items"] == ["not in the catalogue"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"user": 1}, 'user: should be a string, such as \\"1\\"'),
        ({"history": ["i1"]}, 'history[0]: should be a JSON object, such as {\\"item\\": \\"1\\"}'),
        ({"filter": {"genres": ["Comedy"]}}, 'filter.genres: should be a JSON object, such as {\\"any\\": [\\"Comedy\\"]}'),
        ([], "body: should be a JSON object."),
    ],
)
def test_what_should_be_there_instead_is_shown(client: AppClient, body: Any, words: str) -> None:
    response = client.recommend(body)
    assert response.status_code == 422 and words in response.text, response.text


def test_an_unknown_user_gets_popular_items_marked_so(client: AppClient, recommender: Recommender) -> None:
    popular = [recommender.items.ids[item] for item in recommender.bundle.popular[:10]]
    for body in ({"user": "nobody"}, {}, {"history": []}, {"history": [{"item": "not in the catalogue"}]}):
        response = client.recommend(body)
        answer = response.json()
        assert response.status_code == 200 and ids(answer) == popular
        assert answer["path"] == "popular" and answer["fallback"] and answer["reason"]


def test_what_the_catalogue_does_not_have_is_named(client: AppClient) -> None:
    answer = client.recommend({"history": [{"item": "i1"}, {"item": "?"}], "exclude": ["!"]}).json()
    assert answer["unknown_items"] == ["?", "!"]


def test_more_than_there_are_is_all_there_are(client: AppClient, world: Planted) -> None:
    answer = client.recommend({"user": "u3", "k": 1000}).json()
    assert ids(answer) == [f"i{item}" for item in world.wanted(3, 1000)] and len(answer["items"]) == 52


def test_nothing_left_is_an_empty_answer_with_a_reason(client: AppClient) -> None:
    for body in ({"user": "u0", "allow": []}, {"user": "u0", "allow": ["i1"], "exclude": ["i1"]}):
        response = client.recommend(body)
        assert response.status_code == 200 and response.json()["items"] == [] and response.json()["reason"]


def test_a_list_of_requests_is_answered_each_as_alone(client: AppClient) -> None:
    requests: list[dict[str, Any]] = [{"user": f"u{user}", "k": user + 1} for user in range(24)] + [
        {"history": [{"item": "i2"}]}
    ]
    answers = client.recommend({"requests": requests}).json()["answers"]
    assert answers == [client.recommend(request).json() for request in requests]


def test_a_bad_request_in_a_list_is_refused_alone(client: AppClient) -> None:
    good = {"user": "u1", "k": 3}
    bad: list[Any] = [{"k": 0}, 7, None, {"user": 5}, {"kk": 1}, {"history": [{"item": "i1", "rating": "five"}]}]
    response = client.recommend({"requests": [good, *bad, good]})
    first, *refused, last = response.json()["answers"]
    assert response.status_code == 200 and first == last == client.recommend(good).json()
    assert [entry["problem"]["status"] for entry in refused] == [422] * len(bad)
    assert {entry["problem"]["request_id"] for entry in refused} == {response.headers["x-request-id"]}
    assert refused[-1]["problem"]["errors"][0]["where"] == "history[0].rating"


def test_requests_that_come_together_share_a_batch_and_do_not_mix(client_of: Callable[..., AppClient]) -> None:
    client = client_of(max_batch=16)
    bodies: list[dict[str, Any]] = [{"user": f"u{user}", "k": 5} for user in range(24)]
    alone = [client.recommend(body).json() for body in bodies]
    assert [response.json() for response in client.together(bodies)] == alone
    assert max(client.app.state.service.batcher.sizes) > 1  # so they did share


def test_items_like_one_are_of_its_taste(client: AppClient) -> None:
    answer = client.get("/v1/items/i1/similar?k=8").json()
    assert len(answer["items"]) == 8 and "i1" not in ids(answer)
    assert all(int(item[1:]) % 4 == 1 for item in ids(answer))


def test_titles_are_found_whatever_their_case(client: AppClient) -> None:
    assert [item["title"] for item in client.get("/v1/items", params={"query": "FILM 12"}).json()["items"]] == ["Film 12"]
    assert [item["title"] for item in client.get("/v1/items", params={"query": "ω 🎬"}).json()["items"]] == ["Żółć Ω 🎬"]
    assert len(client.get("/v1/items?query=film&limit=5").json()["items"]) == 5
    assert client.get("/v1/items?query=").json()["items"] == []


def test_a_user_is_shown_with_his_latest_events_first(client: AppClient, world: Planted) -> None:
    user = client.get("/v1/users/u2").json()
    assert ids({"items": user["history"]}) == [f"i{item}" for item in world.seen[2][::-1]]
    assert user["events"] == 5
    assert ids({"items": client.get("/v1/users/u2?limit=2").json()["history"]}) == [
        f"i{item}" for item in world.seen[2][:-3:-1]
    ]


def test_the_bundle_is_described(client: AppClient, recommender: Recommender) -> None:
    bundle = client.get("/v1/bundle").json()
    assert (bundle["name"], bundle["version"], bundle["items"], bundle["users"]) == (
        "films",
        recommender.bundle.version,
        60,
        24,
    )
    assert bundle["index"]["recall_at_10"] == 1.0 and bundle["max_k"] == 1000


def test_health_and_readiness(client: AppClient, client_of: Callable[..., AppClient], recommender: Recommender) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok", "bundle": recommender.bundle.version}
    empty = client_of(recommender=None)
    assert empty.get("/healthz").status_code == 200
    for response in (empty.get("/readyz"), empty.recommend({"user": "u1"}), empty.get("/v1/bundle")):
        assert (response.status_code, response.json()["code"]) == (503, "not_ready") and response.headers["retry-after"]


@pytest.mark.parametrize("path", EVERY_ROUTE)
def test_every_answer_carries_strict_headers(client: AppClient, path: str) -> None:
    response = client.get(path, headers={"Origin": "https://elsewhere.example"})
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "http" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_pages_load_nothing_from_elsewhere_and_have_no_inline_code(client: AppClient) -> None:
    for path in ("/", "/docs"):
        page = client.get(path).text
        assert "<script>" not in page and "style=" not in page and " onclick" not in page
        loaded = [part.split('"')[0] for name in ("src=", "href=") for part in page.split(f'{name}"')[1:]]
        assert loaded and all(address.startswith(("/", "#")) and not address.startswith("//") for address in loaded)
        for address in loaded:
            assert address.startswith("#") or client.get(address).status_code == 200, address


def test_a_page_that_the_browser_has_is_not_sent_again(client: AppClient) -> None:
    first = client.get("/web/app.js")
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    again = client.get("/web/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def promised(api: dict[str, Any], path: str, method: str, response: httpx.Response) -> str:
    content = api["paths"][path][method]["responses"][str(response.status_code)]["content"]
    return str(content[response.headers["content-type"]]["schema"])


@pytest.mark.parametrize(
    ("path", "asked", "model"),
    [
        ("/v1/items/{item_id}/similar", "/v1/items/i1/similar", schemas.Recommendation),
        ("/v1/items", "/v1/items?query=film", schemas.ItemList),
        ("/v1/users/{user_id}", "/v1/users/u1", schemas.User),
        ("/v1/bundle", "/v1/bundle", schemas.BundleInfo),
        ("/healthz", "/healthz", schemas.Health),
        ("/readyz", "/readyz", schemas.Ready),
    ],
)
def test_answers_are_what_openapi_promises(client: AppClient, path: str, asked: str, model: type[BaseModel]) -> None:
    response = client.get(asked)
    assert model.__name__ in promised(client.get("/openapi.json").json(), path, "get", response)
    model.model_validate_json(response.content)


def test_recommendations_are_what_openapi_promises(client: AppClient) -> None:
    api = client.get("/openapi.json").json()
    post = api["paths"]["/v1/recommend"]["post"]
    schemas.Recommendation.model_validate_json(client.recommend({"user": "u1"}).content)
    schemas.Recommendations.model_validate_json(client.recommend({"requests": [{"user": "u1"}, {"k": 0}]}).content)
    schemas.ProblemDocument.model_validate_json(client.recommend({"k": 0}).content)
    assert set(post["responses"]) == {"200", "4XX", "5XX"}
    body = post["requestBody"]["content"]["application/json"]
    for example in body["examples"].values():
        assert client.recommend(example["value"]).status_code == 200
    request = api["components"]["schemas"]["RecommendRequest"]
    assert request["properties"]["k"]["maximum"] == 1000 and request["additionalProperties"] is False
    assert set(api["x-problems"]) == set(PROBLEMS)


def test_max_k_is_promised_and_kept(client_of: Callable[..., AppClient]) -> None:
    client = client_of(max_k=5)
    api = client.get("/openapi.json").json()
    assert api["components"]["schemas"]["RecommendRequest"]["properties"]["k"]["maximum"] == 5
    assert len(client.recommend({"user": "u1"}).json()["items"]) == 5
    assert client.recommend({"user": "u1", "k": 6}).status_code == 422
    assert client.get("/v1/items/i1/similar?k=6").status_code == 422
    assert len(client.get("/v1/items/i1/similar").json()["items"]) <= 5


def test_every_reference_in_openapi_leads_somewhere(client: AppClient) -> None:
    text = client.get("/openapi.json").text
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names and names <= set(client.get("/openapi.json").json()["components"]["schemas"])
