"""The command line and the service say the same of the same request, to the digit and whatever the catalogue holds."""

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pytest

from cluster import ask
from recsys.bundle.read import open_bundle
from recsys.errors import ConfigError, RequestError
from recsys.retrieval.recommender import Recommender, Request
from serve.args import ServeArgs
from serve.http import create_app
from tests.asgi import AppClient, Fixed
from tests.bundles import contents_of, planted, write_planted

WORLD = planted()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With attributes that JSON has no word for."""
    items = contents_of(WORLD).items
    items = items.append_column("released", pa.array([datetime.date(1999, 1, 2)] * len(items)))
    items = items.append_column("budget", pa.array([float("nan")] * len(items)))
    return write_planted(tmp_path_factory.mktemp("bundles"), world=WORLD, items=items)


@pytest.mark.parametrize("mode", ["auto", "ann", "exact"])
def test_the_command_line_says_what_the_service_says(bundle: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    users = ["u1", "u7", "nobody"]
    asked = Request(
        k=5, mode=mode, filters=ask.conditions('{"year": {"min": 1995, "none": [2000]}}'), diversity=0.4, explain=True
    )
    for answer in ask.answers(bundle, users, asked):
        ask.print_json(answer)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    recommender = Recommender(open_bundle(bundle))
    with AppClient(create_app(lambda: Fixed(recommender), ServeArgs(bundles="planted"))) as client:
        body = {"k": 5, "mode": mode, "filter": {"year": {"min": 1995, "none": [2000]}}, "diversity": 0.4, "explain": True}
        served = [client.recommend(body | {"user": user}).json() for user in users]
    assert told == [{"user": user, **answer} for user, answer in zip(users, served, strict=True)]
    assert told[0]["items"][0]["released"] == "1999-01-02" and told[0]["items"][0]["budget"] is None


def test_what_is_no_character_is_a_stranger(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (answer,) = ask.answers(bundle, ["\udcff"], Request(k=1))
    ask.print_json(answer)
    assert json.loads(capsys.readouterr().out)["fallback"]


def test_what_cannot_be_asked_is_refused(bundle: Path) -> None:
    for k, mode in ((0, "auto"), (1, "fast")):
        with pytest.raises(RequestError):
            ask.answers(bundle, ["u1"], Request(k=k, mode=mode))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "[", "5", '["year"]', '{"year": 5}', '{"year": {"least": 5}}', '{"year": {"min": 5}', "null"]
)
def test_a_filter_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="any, all, none"):
        ask.conditions(text)


def test_why_is_shown_beside_what(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for answer in ask.answers(bundle, ["u1"], Request(k=3, explain=True)):
        ask.print_answer(answer)
    assert "because of" in (out := capsys.readouterr().out) and out.count("Film") > 3


def test_a_history_without_a_user_and_nothing_at_all_are_answered_too(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = [f"i{item}" for item in WORLD.wanted(1, 3)]
    (answer,) = ask.answers(bundle, [], Request(k=5, history=ask.history([*taken, "i999"])))
    assert answer["user"] is None and answer["path"] != "popular" and answer["unknown_items"] == ["i999"]
    assert not {item["item_id"] for item in answer["items"]} & set(taken)
    ask.print_answer(answer)
    assert "Somebody unknown" in (out := capsys.readouterr().out) and "unknown item i999" in out
    (answer,) = ask.answers(bundle, [], Request(k=1, history=ask.history(["\udcff", "a;"])))
    ask.print_json(answer)
    assert json.loads(capsys.readouterr().out)["unknown_items"] == ["?", "a;"]
    (stranger,) = ask.answers(bundle, [], Request(k=5, history=ask.history([])))
    assert stranger["path"] == "popular"
    known, more = (ask.answers(bundle, ["u1"], Request(k=5, history=ask.history(ids)))[0] for ids in ([], taken))
    assert {item["item_id"] for item in known["items"]} >= set(taken) and known["items"] != more["items"]
