"""The generated films: popularity fails on them, taste succeeds, and a seed says everything."""

import csv
from pathlib import Path

import numpy as np
import pytest

from recsys.data.sources.sample import DECOY, DECOYS, TASTES, Planted, plant, write_sample

USERS, FILMS = 2000, 600


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(USERS, FILMS, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder)
    return folder


def last_events(user: np.ndarray) -> np.ndarray:
    """[E] mask of each user's last event."""
    return np.append(user[1:] != user[:-1], True)


def ndcg_at_10(score_UF: np.ndarray, planted: Planted) -> float:
    """NDCG@10 of each user's last film among those he had not watched before."""
    last = last_events(planted.user)
    score_UF = score_UF.copy()
    score_UF[planted.user[~last], planted.film[~last]] = -np.inf
    target = score_UF[planted.user[last], planted.film[last]]
    rank = (score_UF > target[:, None]).sum(1)
    return float(np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean())


def test_popularity_fails_where_taste_succeeds(planted: Planted) -> None:
    last = last_events(planted.user)
    counts = np.bincount(planted.film[~last], minlength=FILMS).astype(float)
    popularity = ndcg_at_10(np.tile(counts, (USERS, 1)), planted)
    oracle_pull = np.where(planted.taste == DECOY, 0.0, planted.pull)
    oracle = ndcg_at_10(oracle_pull, planted)
    assert 0 < popularity < 0.05
    assert oracle > 3 * popularity
    assert oracle > 0.12


def test_popularity_is_led_by_decoys(planted: Planted) -> None:
    most_watched = np.argsort(-np.bincount(planted.film, minlength=FILMS))[:DECOYS]
    assert (planted.taste[most_watched] == DECOY).all()
    last = planted.film[last_events(planted.user)]
    assert (planted.taste[last] == DECOY).mean() < 0.05


def test_ratings_tell_the_taste(planted: Planted) -> None:
    first_taste_pull = planted.pull[:, planted.taste != DECOY].max(1)
    own = planted.pull[planted.user, planted.film] > 0.1 * first_taste_pull[planted.user]
    decoy = planted.taste[planted.film] == DECOY
    assert planted.rating[own & ~decoy].mean() > planted.rating[~own].mean() + 1


def test_same_seed_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "again", seed=0)
    write_sample(tmp_path / "other", seed=1)
    for name in ("ratings.csv", "movies.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_ratings_have_the_form_of_movielens(folder: Path) -> None:
    with (folder / "ratings.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    user, movie, time = (np.array([int(row[key]) for row in rows]) for key in ("userId", "movieId", "timestamp"))
    rating = np.array([float(row["rating"]) for row in rows])
    assert list(rows[0]) == ["userId", "movieId", "rating", "timestamp"]
    assert 60_000 <= len(rows) <= 100_000
    assert set(user) == set(range(1, USERS + 1)) and set(movie) == set(range(1, FILMS + 1))
    assert len(np.unique(user * 10_000 + movie)) == len(rows)
    assert set(rating * 2) <= set(range(1, 11))
    assert (np.diff(time)[np.diff(user) == 0] > 0).all()


def test_films_have_titles_of_their_own_with_years_and_the_genres_of_their_taste(folder: Path, planted: Planted) -> None:
    with (folder / "movies.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["movieId", "title", "genres"]
    assert len({row["title"].rsplit(" (", 1)[0] for row in rows}) == FILMS
    assert all(1950 <= int(row["title"][-5:-1]) <= 2024 for row in rows)
    for row, taste in zip(rows, planted.taste, strict=True):
        assert taste == DECOY or set(row["genres"].split("|")) <= set(TASTES[taste].genres)


def test_more_films_than_titles_become_sequels(tmp_path: Path) -> None:
    films = DECOYS + 2500
    write_sample(tmp_path, users=5, films=films)
    titles = [line.rsplit(" (", 1)[0] for line in (tmp_path / "movies.csv").read_text("utf-8").splitlines()[1:]]
    assert len({title.split(",", 1)[1] for title in titles}) == films
    assert any(title.endswith(" 2") for title in titles)


def test_too_few_films_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 24"):
        plant(10, 23, seed=0)
