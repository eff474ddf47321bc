"""The alerts by Prometheus's own judgement: each fires on planted series that call for it, and not on those of a good day."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).resolve().parents[3] / "k8s" / "monitoring" / "rules.yaml"
PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")

MINUTES = 20

REQUESTS = "ray_recsys_requests_total"
SECONDS = "ray_recsys_request_seconds_bucket"


def rising(by: int) -> str:
    return f"0+{by}x{MINUTES}"


def still(value: int) -> str:
    return f"{value}x{MINUTES}"


def requests(good: int, bad: int) -> dict[str, str]:
    """A minute."""
    return {f'{REQUESTS}{{status="200"}}': rising(good), f'{REQUESTS}{{status="503"}}': rising(bad)}


def throttled(count: int) -> dict[str, str]:
    """Of a thousand a minute."""
    return {f'{REQUESTS}{{status="200"}}': rising(1000 - count), "ray_recsys_throttled_total": rising(count)}


def seconds(within: int, all_: int) -> dict[str, str]:
    """How many of a minute's requests took a quarter of a second at most."""
    labels = 'route="recommend"'
    return {f'{SECONDS}{{{labels},le="{le}"}}': rising(by) for le, by in (("0.25", within), ("1", all_), ("+Inf", all_))}


def bundles(*versions: str) -> dict[str, str]:
    return {
        f'ray_recsys_bundle{{role="current",version="{version}",replica="{number}"}}': still(1)
        for number, version in enumerate(versions)
    }


# Of each: a bad day, and a good one that is near it.
DAYS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "RecsysFails": (requests(980, 20), requests(995, 5)),
    "RecsysThrottled": (throttled(20), throttled(5)),
    "RecsysSlow": (seconds(950, 1000), seconds(995, 1000)),
    "RecsysIndexMisses": ({"ray_recsys_index_trusted": still(0)}, {"ray_recsys_index_trusted": still(1)}),
    "RecsysDegraded": ({"ray_recsys_index_degraded": rising(1)}, {"ray_recsys_index_degraded": still(7)}),
    "RecsysBundleRejected": ({"ray_recsys_bundle_rejected": still(1)}, {"ray_recsys_bundle_rejected": still(0)}),
    "RecsysReplicasDisagree": (bundles("a", "b"), bundles("a", "a")),
}


def rules() -> dict[str, dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_every_alert_has_its_days() -> None:
    assert set(rules()) == set(DAYS)


@pytest.mark.parametrize("alert", DAYS)
def test_an_alert_fires_on_a_bad_day_and_not_on_a_good_one(alert: str, tmp_path: Path) -> None:
    rule = rules()[alert]
    fired = {"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in day.items()],
            "alert_rule_test": [{"eval_time": f"{MINUTES}m", "alertname": alert, "exp_alerts": expected}],
        }
        for day, expected in zip(DAYS[alert], ([fired], []), strict=True)
    ]
    planted = tmp_path / "tests.yml"
    planted.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([str(PROMTOOL), "test", "rules", str(planted)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
