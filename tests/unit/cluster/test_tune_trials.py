"""Trials with planted results: their order, the limit, what is tried next, what is written and drawn."""

from dataclasses import replace
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest

from cluster import runs
from cluster.tuning import served, trials
from cluster.tuning.picture import best_so_far, draw_trials
from cluster.tuning.report import as_json, next_step, table
from cluster.tuning.searcher import OUTCOME, ROW, Trials
from cluster.tuning.space import Goal, Range, Search, Space
from cluster.tuning.study import Study
from cluster.tuning.trials import FAILED, FINISHED, REFUSED, RUNNING, STOPPED, Trial
from recsys.config import Config, load_config, settled

GOAL = Goal(metric="ndcg@10", latency_ms=5)
DOMAINS = {"model.dim": Range(low=8, high=64), "model.loss": ("softmax", "bpr")}
CHOSEN_RGB = np.array([0xC2, 0x41, 0x0C]) / 255
SPACE = Space(DOMAINS, GOAL, Search(trials=3, grace_epochs=2, startup_trials=1))


def trial(number: int, goal: float | None, ms: float | None = 1.0, state: str = FINISHED, dim: int = 8) -> Trial:
    return Trial(number, {"model.dim": dim, "model.loss": "bpr"}, state, goal, ms, epochs=4, best_epoch=3)


PLANTED = [
    trial(0, 0.20),
    trial(1, 0.90, ms=5.1),  # the best, and too slow
    trial(2, 0.40, ms=5.0),  # the limit is allowed
    trial(3, 0.30),
    trial(4, 0.95, ms=None, state=STOPPED),
    replace(trial(5, None, ms=None, state=FAILED), reason="broken"),
]


def test_the_fastest_enough_come_first_and_the_better_before_the_worse():
    assert [each.number for each in trials.ranked(reversed(PLANTED), GOAL)] == [2, 3, 0, 1, 4, 5]
    assert trials.best(PLANTED, GOAL) == PLANTED[2]
    assert trials.best(PLANTED, Goal(metric="ndcg@10")) == PLANTED[1]
    assert trials.best(PLANTED, Goal(metric="rmse")) == PLANTED[0]  # less is better
    assert trials.best(PLANTED[4:], GOAL) is None


def test_trials_are_read_back_as_they_were_written(tmp_path):
    assert trials.read(tmp_path) == []
    trials.write(tmp_path, PLANTED)
    assert trials.read(tmp_path) == PLANTED


def test_the_best_ones_settings_are_a_config_file_of_what_differs(tmp_path):
    base = load_config(overrides=["train.epochs=7", "cluster.num_workers=2", "model.negatives=none"])
    text = trials.as_toml(PLANTED[2], base, GOAL, tune="t")
    (tmp_path / "best.toml").write_text(text, "utf-8")
    assert "0.4000 on validation, 5.00 ms" in text.splitlines()[0]
    config = load_config(tmp_path / "best.toml")
    assert config.model == base.model.model_copy(update={"dim": 8, "loss": "bpr"}) and config.train == base.train
    assert [line for line in text.splitlines() if " = " in line] == [
        'name = "mf"', "dim = 8", 'loss = "bpr"', 'negatives = "none"', "epochs = 7"
    ]  # fmt: skip


def test_the_best_ones_settings_say_by_what_it_was_chosen_and_how_it_was_exported():
    base = load_config(overrides=["encoder.storage=int8"])
    text = trials.as_toml(PLANTED[2], base, Goal(metric="recall@20", latency_ms=5), tune="t")
    assert 'metric = "recall@20"' in text.splitlines() and 'storage = "int8"' in text.splitlines()


def test_the_table_says_which_were_too_slow():
    headers, rows = table(PLANTED, GOAL)
    assert headers == ("trial", "state", "ndcg@10", "epochs", "latency ms", "model.dim", "model.loss")
    assert rows[0] == ("trial-002", "finished", "0.4000", 4, "5.00", "8", "bpr")
    assert [row[1] for row in rows[3:]] == ["too slow", "stopped early", "failed"]


def test_what_is_told_in_the_end(tmp_path):
    found = SimpleNamespace(folder=tmp_path, trials=PLANTED, best=PLANTED[2], settings=tmp_path / "best.toml", picture=None)
    assert next_step(found, GOAL, tmp_path / "d").endswith(f"recsys train {tmp_path / 'd'} --config {tmp_path / 'best.toml'}")
    told = as_json(found, GOAL)
    assert told["best"] == told["trials"][0]["run"] == "trial-002" and len(told["trials"]) == 6
    found = SimpleNamespace(folder=tmp_path, trials=PLANTED[1:2], best=None, settings=None, picture=None)
    assert "too slow: raise goal.latency_ms" in next_step(found, GOAL, tmp_path)


def test_the_95th_percentile_is_of_single_answers_after_a_warm_up(monkeypatch):
    clock = iter(np.repeat(np.cumsum([0, *[9.0] * 10, *range(1, 101)]), 2)[1:])  # 10 slow ones, then 1 to 100 seconds
    monkeypatch.setattr(served.time, "perf_counter", lambda: float(next(clock)))
    asked = []
    assert served.percentile(asked.append, list(range(110))) == pytest.approx(1000 * np.percentile(np.arange(1, 101), 95))
    assert asked == list(range(110))


def test_too_slow_is_who_is_so_every_time():
    def measured(*milliseconds: float, limit: float | None) -> tuple[float, int]:
        asked = iter(milliseconds)
        return served.least(lambda: next(asked), limit), len(list(asked))

    assert measured(4.0, 9.0, 9.0, limit=5.0) == (4.0, 2) and measured(30.0, 9.0, 9.0, limit=None) == (30.0, 2)
    assert measured(30.0, 4.0, 9.0, limit=5.0) == (4.0, 1) and measured(30.0, 9.0, 20.0, limit=5.0) == (9.0, 0)


def test_a_trial_below_the_median_after_the_grace_epochs_is_stopped():
    study = Study(SPACE, [(trial(0, 0.5), {1: 0.3, 2: 0.4, 3: 0.5}), (trial(1, 0.7), {1: 0.3, 2: 0.6, 3: 0.7})])
    study.ask(2)
    study.ask(3)
    assert [study.should_stop(2, epoch, 0.1) for epoch in (1, 2, 3)] == [False, False, True]
    assert [study.should_stop(3, epoch, 0.65) for epoch in (1, 2, 3)] == [False, False, False]


def test_nothing_is_stopped_before_a_trial_has_finished():
    study = Study(SPACE, [(trial(0, 0.5, state=STOPPED), {1: 0.5, 5: 0.5})])
    study.ask(1)
    assert not study.should_stop(1, 5, 0.0)


def test_the_sampler_looks_where_trials_were_good_and_fast_enough():
    def drawn(limit: float | None) -> float:
        """Mean of what is drawn, where larger is better, and slower."""
        space = Space({"model.dim": Range(low=1, high=100)}, Goal(metric="ndcg@10", latency_ms=limit), Search(startup_trials=5))
        known = [(replace(trial(i, dim / 100, ms=dim / 10), settings={"model.dim": dim}), {}) for i, dim in
                 enumerate(range(2, 100, 4))]  # fmt: skip
        study = Study(space, known)
        return float(np.mean([study.ask(100 + i)["model.dim"] for i in range(15)]))

    assert drawn(None) > 75 and drawn(3.0) < 55


def test_the_same_is_not_tried_twice_and_an_exhausted_space_ends():
    space = Space({"model.dim": (8, 16), "model.biases": (True, False)}, GOAL, Search(startup_trials=1))
    study, known = Study(space), []
    while (settings := study.ask(len(known), known)) is not None:
        study.tell(replace(trial(len(known), 0.1 * settings["model.dim"]), settings=settings))
        known.append(settings)
    assert len(known) == 4


def searcher(folder, space: Space = SPACE, **more) -> Trials:
    return Trials(folder, folder / "data", Config(), space, **more)


def row(epoch: int, value: float) -> dict:
    return {"epoch": epoch, "metrics": {"ndcg@10": value}}


def told(**outcome) -> dict:
    return {OUTCOME: trials.json.dumps(outcome)}


def test_a_trial_that_falls_behind_is_asked_to_stop_as_a_run_is(tmp_path):
    said = []
    trials.write(tmp_path, [trial(0, 0.5)])
    (tmp_path / "trial-000").mkdir()
    runs.write_rows(tmp_path / "trial-000", [row(epoch, 0.5) for epoch in (1, 2, 3)])
    ray_tunes = searcher(tmp_path, on_trial=said.append)
    given = ray_tunes.suggest("a")
    assert given["run"] == "trial-001" and given["config"]["cluster"]["storage"] == str(tmp_path)
    assert ray_tunes.suggest("b") is None  # one at a time
    folder = tmp_path / "trial-001"
    folder.mkdir()
    for epoch, stopped in ((1, False), (2, False), (3, True)):
        runs.write_rows(folder, [row(done, done / 100) for done in range(1, epoch + 1)])
        ray_tunes.on_trial_result("a", {ROW: trials.json.dumps(row(epoch, epoch / 100))})
        assert runs.asked_to_stop(folder) == stopped
    ray_tunes.on_trial_complete("a", told(state=STOPPED))
    kept = trials.read(tmp_path)[1]
    assert (kept.state, kept.goal, kept.epochs, kept.best_epoch) == (STOPPED, 0.03, 3, 3)
    assert [each.state for each in said] == [RUNNING, STOPPED]


def test_what_was_begun_goes_on_before_anything_new_and_what_is_over_stays(tmp_path):
    begun = [trial(0, 0.5), trial(1, None, None, RUNNING, dim=33), trial(2, None, None, REFUSED)]
    trials.write(tmp_path, begun)
    ray_tunes = searcher(tmp_path)
    given = ray_tunes.suggest("a")
    assert given["run"] == "trial-001" and given["config"]["model"]["dim"] == 33
    ray_tunes.on_trial_complete("a", told(state=FINISHED, goal=0.6, latency_ms=2.0, epochs=4, best_epoch=2))
    assert ray_tunes.suggest("b")["run"] == "trial-003"  # one that was refused is made up for
    ray_tunes.on_trial_complete("b", None, error=True)
    assert ray_tunes.suggest("c") == "FINISHED"
    kept = trials.read(tmp_path)
    assert kept[0] == begun[0] and kept[1].goal == 0.6
    assert kept[3].state == FAILED and "logs" in kept[3].reason
    assert searcher(tmp_path).suggest("d")["run"] == "trial-003"  # what failed is tried again


def test_asked_to_leave_nothing_begins_and_what_runs_stays_unfinished(tmp_path):
    ray_tunes = searcher(tmp_path, at_once=2)
    ray_tunes.suggest("a")
    (tmp_path / "trial-000").mkdir()
    ray_tunes.leave()
    assert runs.asked_to_stop(tmp_path / "trial-000") and ray_tunes.suggest("b") == "FINISHED"
    ray_tunes.on_trial_complete("a", told(state=STOPPED))
    assert [each.state for each in trials.read(tmp_path)] == [RUNNING]


def test_settings_that_do_not_go_together_are_noted_and_others_tried(tmp_path):
    space = Space({"model.name": ("sasrec",), "model.dim": (8,), "model.heads": (2, 3, 5)}, GOAL, Search(trials=4))
    ray_tunes = searcher(tmp_path, space)
    for name, heads in (("a", 1), ("b", 2)):
        assert Config.model_validate(ray_tunes.suggest(name)["config"]).model.heads == heads
        ray_tunes.on_trial_complete(name, told(state=FINISHED, goal=0.5, latency_ms=1.0, epochs=1, best_epoch=1))
    assert ray_tunes.suggest("c") == "FINISHED"
    kept = {each.settings.get("model.heads"): each for each in trials.read(tmp_path)}
    assert [kept[heads].state for heads in (2, 3, 5)] == [FINISHED, REFUSED, REFUSED]
    assert "must divide" in kept[3].reason


def test_the_first_trial_is_what_nobody_tuned(tmp_path):
    ray_tunes = searcher(tmp_path, Space({"model.name": ("mf",), "model.dim": Range(low=9, high=11)}, GOAL, Search(trials=3)))
    given = ray_tunes.suggest("a")
    assert Config.model_validate(given["config"]).model.dim == 64 and trials.read(tmp_path)[0].settings == {"model.name": "mf"}
    (tmp_path / "trial-000").mkdir()
    ray_tunes.on_trial_result("a", {ROW: trials.json.dumps(row(9, 0.0))})
    assert not runs.asked_to_stop(tmp_path / "trial-000")
    ray_tunes.on_trial_complete("a", told(state=FINISHED, goal=0.9, latency_ms=1.0, epochs=1, best_epoch=1))
    assert 9 <= ray_tunes.suggest("b")["config"]["model"]["dim"] <= 11
    _, rows = table(trials.read(tmp_path), GOAL)
    assert rows[0][0] == "trial-000" and rows[0][-1] == "default"
    assert 9 <= searcher(tmp_path, ray_tunes.space).suggest("c")["config"]["model"]["dim"] <= 11  # after a new start


def test_what_the_dataset_settles_is_left_to_it(tmp_path):
    space = Space({"model.name": ("spectral",), "model.popularity_power": (0.3, 0.4)}, GOAL, Search(trials=2))
    config = Config.model_validate(searcher(tmp_path, space).suggest("a")["config"])
    assert (
        settled(config, 943, 1682, 100_000).model.dim
        == settled(load_config(overrides=["model.name=spectral"]), 943, 1682, 100_000).model.dim
        == 32
    )


def test_where_all_is_fixed_there_are_no_defaults(tmp_path):
    ray_tunes = searcher(tmp_path, Space({"model.dim": (9,)}, GOAL, Search(trials=3)))
    assert ray_tunes.suggest("a")["config"]["model"]["dim"] == 9


def test_a_dataset_that_cannot_be_read_ends_it(tmp_path):
    ray_tunes = searcher(tmp_path)
    ray_tunes.suggest("a")
    ray_tunes.on_trial_complete("a", told(state=FAILED, reason="cut", fatal=True))
    assert ray_tunes.fatal == "cut" and ray_tunes.suggest("b") == "FINISHED"


def test_the_best_so_far_never_gets_worse_and_counts_only_what_may_be_chosen():
    assert best_so_far(PLANTED, SPACE) == ([0, 2, 3], [0.2, 0.4, 0.4])


@pytest.mark.parametrize("timed", [True, False])
def test_the_picture_has_a_panel_for_each_setting_and_one_for_latency(tmp_path, timed):
    planted = [replace(each, settings={"model.dim": 8 + each.number, "model.loss": "softmax"}) for each in PLANTED]
    shown = planted if timed else [replace(each, latency_ms=None) for each in planted]
    space = SPACE if timed else replace(SPACE, goal=Goal(metric="ndcg@10"))
    draw_trials(shown, space, tmp_path / "trials.png", title="t$1$")
    assert dots_of_the_best(tmp_path / "trials.png") == 4 + timed  # by number and its legend, and by both settings


def dots_of_the_best(path) -> int:
    """How many patches of more than a few pixels have the chosen one's colour; edges are blurred."""
    pixels = matplotlib.image.imread(path)[..., :3]
    left = {tuple(place) for place in np.argwhere(np.all(np.abs(pixels - CHOSEN_RGB) < 0.02, axis=-1)).tolist()}
    patches = 0
    while left:
        edge, size = [left.pop()], 0
        while edge:
            y, x = edge.pop()
            size += 1
            near = left & {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
            left -= near
            edge += near
        patches += size > 20
    return patches


def test_a_picture_of_nothing_is_still_one(tmp_path):
    draw_trials([], SPACE, tmp_path / "none.png", title="none")
    assert matplotlib.image.imread(tmp_path / "none.png").shape[0] > 300
