"""Arguments as `serve run` gives them: strings, and refused by name where they cannot be."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from recsys.errors import ConfigError
from serve.args import PROFILES, ServeArgs, make_args
from serve.events.feed import Feed
from serve.events.sqlite import SqliteEvents
from serve.http import create_app


def test_strings_become_what_they_should_be() -> None:
    args = ServeArgs.model_validate({"bundles": "b", "port": "9000", "replicas": "2", "batch_in_thread": "true", "cpus": "0.5"})
    assert (args.port, args.replicas, args.batch_in_thread, args.cpus) == (9000, 2, True, 0.5)


def test_only_this_machine_is_listened_to_by_default() -> None:
    assert ServeArgs(bundles="b").is_loopback and ServeArgs(bundles="b", host="localhost").is_loopback
    assert not ServeArgs(bundles="b", host="0.0.0.0", open=True).is_loopback
    assert not ServeArgs(bundles="b", host="::", keys="keys.toml").is_loopback


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"bundle": "b"}, "bundle"),
        ({"port": "70000"}, "port"),
        ({"host": ""}, "host"),  # would be every address
        ({"max_k": 0}, "max_k"),
        ({"max_queued": 10}, "max_requests"),
        ({"ingress": "haproxy"}, "8404"),
        ({"host": "0.0.0.0"}, "only with keys"),
        ({"host": "::"}, "only with keys"),
        ({"metrics_port": 8000}, "metrics_port is port"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ServeArgs.model_validate({"bundles": "b", **given})


def test_a_profile_sets_what_goes_together_and_yields_to_what_is_given() -> None:
    args = make_args("production", bundles="b", host="0.0.0.0", keys="keys.toml")
    assert (args.ingress, args.log_format) == ("haproxy", "json")
    assert make_args("production", bundles="b", ingress="ray").ingress == "ray"
    assert make_args(bundles="b") == ServeArgs(bundles="b") == make_args("laptop", bundles="b")
    with pytest.raises(ConfigError, match=", ".join(PROFILES)):
        make_args("productoin", bundles="b")
    with pytest.raises(ConfigError, match="8404"):
        make_args("production", bundles="b")


@pytest.mark.parametrize("given", [{}, {"max_queued": 1, "max_requests": 1, "max_batch": 1}, {"max_queued": 5000}])
def test_what_is_too_much_meets_a_queue_before_ray(given: dict[str, int], tmp_path: Path) -> None:
    args = ServeArgs.model_validate({"bundles": "b", **given})
    feed, service = Feed(SqliteEvents(tmp_path / "events.sqlite")), create_app(lambda: None, args).state.service
    queues = [service.batcher, service.explainer, service.aside, feed._writer]
    assert args.max_ongoing > sum(queue._max_queued + queue._max_batch for queue in queues)
    for replicas in (1, 3):
        more = args.model_copy(update={"replicas": replicas})
        assert more.max_passed_on > replicas * (service.explainer._max_queued + service.explainer._max_batch)


def test_every_argument_is_documented() -> None:
    assert [name for name, field in ServeArgs.model_fields.items() if not field.description] == []


def test_what_ray_itself_refuses_says_when_to_come_again(tmp_path: Path) -> None:
    from serve.app import Replica, build

    assert Replica.backpressure_config.retry_after_s is None, "as it is unless told"
    told = build(make_args(bundles=str(tmp_path)))._bound_deployment.backpressure_config
    assert (told.status_code, told.retry_after_s) == (503, 1)
