"""The command line and the service say the same of the same request, to the digit and whatever the catalogue holds."""

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pytest

from cluster import ask
from recsys.bundle.read import open_bundle
from recsys.errors import RequestError
from recsys.retrieval.recommender import Recommender
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
    for answer in ask.answers(bundle, users, 5, mode):
        ask.print_json(answer)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    recommender = Recommender(open_bundle(bundle))
    with AppClient(create_app(lambda: Fixed(recommender), ServeArgs(bundles="planted"))) as client:
        served = [client.recommend({"user": user, "k": 5, "mode": mode}).json() for user in users]
    assert told == [{"user": user, **answer} for user, answer in zip(users, served, strict=True)]
    assert told[0]["items"][0]["released"] == "1999-01-02" and told[0]["items"][0]["budget"] is None


def test_what_is_no_character_is_a_stranger(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (answer,) = ask.answers(bundle, ["\udcff"], 1, "auto")
    ask.print_json(answer)
    assert json.loads(capsys.readouterr().out)["fallback"]


def test_what_cannot_be_asked_is_refused(bundle: Path) -> None:
    for k, mode in ((0, "auto"), (1, "fast")):
        with pytest.raises(RequestError):
            ask.answers(bundle, ["u1"], k, mode)
