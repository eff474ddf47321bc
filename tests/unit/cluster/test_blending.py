"""What a blend takes over from its parts, and when it is made anew."""

from types import SimpleNamespace

import pytest

from cluster import runs
from cluster.blending import _config, _is_done, _Search
from cluster.finished import PARTS, helping
from cluster.measuring import every_nth
from recsys.config import load_config
from recsys.errors import ConfigError


@pytest.mark.parametrize("asked", [{}, {"trend_days": 0.0}, {"trend_days": 7.0, "trend_weight": 0.5}])
def test_a_blend_leans_as_its_parts_were_told_to(asked):
    first = load_config(overrides=["model.name=mf", *(f"model.{key}={value}" for key, value in asked.items())])
    model = _config(first).model
    assert model.name == "blend" and {key: getattr(model, key) for key in model.model_fields_set - {"name"}} == asked


def parts(*worth: float) -> list[SimpleNamespace]:
    return [SimpleNamespace(result={"metrics": {"ndcg@10": each}}) for each in worth]


def test_a_blend_is_done_while_its_runs_are_what_it_was_made_of(tmp_path):
    told = {"dataset": "here", PARTS: ["one", "two"]}
    assert not _is_done(tmp_path, told, parts(0.1, 0.2))
    runs.write_json(tmp_path / runs.CONFIG, told)
    runs.write_json(tmp_path / runs.RESULT, {PARTS: [{"metrics": part.result["metrics"]} for part in parts(0.1, 0.2)]})
    assert _is_done(tmp_path, told, parts(0.1, 0.2))
    assert not _is_done(tmp_path, told, parts(0.1, 0.3))  # trained anew under its name
    with pytest.raises(ConfigError, match="another run"):
        _is_done(tmp_path, told | {"dataset": "there"}, parts(0.1, 0.2))


def test_parts_that_do_not_help_are_left_out():
    first, second = {"run": "one", "weight": 0.5}, {"run": "two", "weight": 0.0}
    assert helping({PARTS: [first, second]}) == [first]


@pytest.mark.parametrize(
    ("users", "events", "every"),
    [(100, 100, 1), (1_000, 1_000, 10), (1_000_000, 1_000, 10), (1_000, 1_000_000, 10), (10, 0, 1)],
)
def test_every_so_many_are_asked_of_those_who_can_have_events(users, events, every):
    assert every_nth(SimpleNamespace(users=users, segments={"valid": events}), 100) == every


@pytest.mark.parametrize("peak", [0.0, 0.3, 1.0, 2.4, 7.0, 50.0])
def test_the_best_weight_is_found_wherever_it_is(monkeypatch, peak):
    """A part that deserves 50 times the first's weight gets about that; one that deserves none gets 0."""
    monkeypatch.setattr(_Search, "__init__", lambda self: None)
    monkeypatch.setattr(_Search, "_worth", lambda self, times: 1 - abs(times[1] - peak) - abs(times[2] - 0.4))
    search = _Search()
    search.items, search.spreads, search.names = [None] * 3, [1.0, 2.0, 1.0], ["one", "two", "three"]
    search.metric, search.note, search.progress, search.most = "ndcg@10", lambda text: None, lambda *_: None, 0
    first, second, third = search.weights()
    assert (first, third) == (1.0, 0.4)
    assert second * 2 == pytest.approx(peak, rel=0.13)
