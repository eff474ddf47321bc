"""Films that never were, watched by people who never lived: data for a machine without data or network.

What is planted, so that a recommender can be told from a popularity list:

- Eight tastes. Every film but the decoys belongs to one; its genres are that taste's. Every user has one taste,
  or a first and a second, and rarely watches anything else.
- Ratings tell the taste: about 4.2 of 5 for films of one's own, about 2.6 for others, in half stars.
- Sixteen decoys, which nearly everybody watches, early, and rates middling. They fill the top of any popularity
  list, yet are hardly ever what somebody watches last.
- Within a taste some films are mildly more watched than others.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DECOYS = 16
DECOY = -1
"""Number of the taste that decoys have instead of one."""

_SECOND_TASTE = 0.4  # share of users who have one
_OTHER_TASTE = 0.015  # how likely a film of no taste of one's own is, beside one of the first taste
_DECOY_PULL = 4.0
_FIRST_SECOND = 1_262_304_000  # 2010-01-01, in Unix seconds
_LAST_START = 12 * 365 * 86_400


@dataclass(frozen=True)
class Taste:
    """Genres of a taste, and what the titles of its films begin with."""

    genres: tuple[str, str]
    openings: tuple[str, ...]


TASTES = (
    Taste(
        ("Comedy", "Romance"),
        ("Two Umbrellas in", "Late for the Wedding in", "The Baker's Daughter of", "A Proposal from", "Honey and Rain in",
         "Love Letters to", "The Wrong Suitcase from", "Dancing Lessons in", "Seven Kisses Before", "Breakfast Above"),
    ),
    Taste(
        ("Crime", "Thriller"),
        ("The Cashier of", "Nobody Leaves", "A Quiet Alibi in", "Blackmail at", "The Last Witness of", "Forty Minutes to",
         "Cold Ledger of", "The Informant from", "Midnight Ransom in", "Fingerprints of"),
    ),
    Taste(
        ("Adventure", "Sci-Fi"),
        ("Signal from", "Orbit Over", "The Machinists of", "Ninth Moon of", "Return to Station", "The Cartographers of",
         "Gravity Well at", "A Thousand Suns Past", "The Sleepers of", "Engines of"),
    ),
    Taste(
        ("Animation", "Children"),
        ("The Snail Who Sailed to", "Pip and Pepper Visit", "The Kite Makers of", "Little Bear of", "The Button Dragon of",
         "Hush, Owls of", "The Paper Whale of", "Tilda's Balloon over", "The Teapot Parade of", "Mouse Mayor of"),
    ),
    Taste(
        ("Horror", "Mystery"),
        ("The Cellar at", "What Knocks in", "Thirteen Candles for", "The Weeping Stairs of", "Do Not Wake",
         "The Drowned Choir of", "Something Under", "The Portrait at", "Fog Season in", "The Hollow Nurse of"),
    ),
    Taste(
        ("Drama", "War"),
        ("Letters from the Siege of", "The Bridge Before", "Winter Regiment at", "A Field Hospital in", "The Long Retreat to",
         "The Bells of", "Brothers at", "The Armistice of", "Bread for", "The Radio Operator of"),
    ),
    Taste(
        ("Action", "Western"),
        ("Six Riders for", "The Marshal of", "Dust Trail to", "A Noose in", "The Last Wagon to", "Thunder Canyon and",
         "Silver Spurs of", "The Widow's Rifle at", "High Stakes in", "Iron Horse to"),
    ),
    Taste(
        ("Documentary", "Musical"),
        ("The Fiddlers of", "Songs We Kept in", "An Orchestra for", "The Piano Tuner of", "One Summer of Brass in",
         "The Choir Bus to", "Record Shops of", "Drummers of", "The Silent Opera of", "Waltz Archive of"),
    ),
)  # fmt: skip
_DECOY_GENRES = ("Action", "Adventure")
_DECOY_OPENINGS = ("The Heroes of", "Captain Comet Saves", "Crown of", "The Great Race to")
_PLACES = (
    "Vellmoor", "Marlowick", "Åskeby", "Port Sorrel", "Quillhaven", "Dunmerrow", "Saint Ombre", "Tarrowgate", "Brindlefjord",
    "Ostrelle", "Kestrelmouth", "Lower Wimsey", "Carrowbeck", "Zephyr Flats", "Nettlebridge", "Old Pavonia", "Grayling Cross",
    "Mirefold", "Orsolya Bay", "Hexton Vale", "Bellacqua", "Ravensole", "Tumbledown Ferry", "Coldharrow", "Fenugreek Hill",
    "Isle of Morn", "Château Lumeau", "Pale Junction", "Windlestraw", "Umberlin",
)  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """What was planted. U users, F films, E events; films are numbered from 0 here and from 1 in the files.

    taste: [F] number of the film's taste or DECOY; pull: [U, F] how likely a user is to choose a film, beside others;
    user, film, rating, time: [E], ordered by user, then time.
    """

    taste: NDArray[np.int64]
    pull: NDArray[np.float64]
    user: NDArray[np.int64]
    film: NDArray[np.int64]
    rating: NDArray[np.float64]
    time: NDArray[np.int64]


def write_sample(folder: Path, *, users: int = 2000, films: int = 600, seed: int = 0) -> None:
    """Write `ratings.csv` and `movies.csv` in MovieLens' form, made up as this module's docstring says.

    The same arguments write the same bytes. The defaults make about 80,000 ratings.
    """
    planted = plant(users, films, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "movies.csv").write_bytes(_movies_csv(planted.taste, np.random.default_rng([seed, 1])).encode())
    (folder / "ratings.csv").write_bytes(_ratings_csv(planted).encode())


def plant(users: int, films: int, seed: int) -> Planted:
    """Draw tastes, who watches what and when, and ratings. Raises ValueError unless there are more films than decoys."""
    if films < DECOYS + len(TASTES):
        raise ValueError(f"films = {films}: at least {DECOYS + len(TASTES)}, {DECOYS} decoys and one of each taste.")
    chance = np.random.default_rng(seed)
    taste = _tastes_of_films(films, chance)
    affinity = _affinities(users, chance)
    pull = affinity[:, taste] * chance.permutation((np.arange(films) + 20.0) ** -0.4)
    pull[:, taste == DECOY] = _DECOY_PULL * pull.max()
    user, film = _watch(pull, taste == DECOY, chance)
    rating = _rate(affinity[user, taste[film]], taste[film] == DECOY, chance)
    return Planted(taste, pull, user, film, rating, _times(user, users, chance))


def _tastes_of_films(films: int, chance: np.random.Generator) -> NDArray[np.int64]:
    """[F] tastes in equal shares, mixed, so that a film's number does not give its taste away."""
    taste = np.concatenate([np.full(DECOYS, DECOY), np.arange(films - DECOYS) % len(TASTES)])
    return chance.permutation(taste)


def _affinities(users: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """[U, tastes]: 1 for a user's first taste, up to a half for his second, next to nothing for others."""
    affinity = np.full((users, len(TASTES)), _OTHER_TASTE)
    first = chance.integers(len(TASTES), size=users)
    second = (first + chance.integers(1, len(TASTES), size=users)) % len(TASTES)
    has_second = chance.random(users) < _SECOND_TASTE
    affinity[has_second, second[has_second]] = chance.uniform(0.25, 0.5, has_second.sum())
    affinity[np.arange(users), first] = 1.0
    return affinity


def _watch(
    pull: NDArray[np.float64], decoy: NDArray[np.bool_], chance: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[E] users and films in the order watched. The largest of log(pull) + Gumbel noise are a weighted draw without repeats."""
    users, films = pull.shape
    lengths = np.clip(chance.lognormal(3.6, 0.45, users), 15, min(100, films // 4)).astype(np.int64)
    drawn = np.argsort(-(np.log(pull) + chance.gumbel(size=pull.shape)), axis=1, kind="stable")
    user, place = np.nonzero(np.arange(films) < lengths[:, None])
    film = drawn[user, place]
    moment = chance.random(len(film)) * np.where(decoy[film], 0.4, 1.0)
    order = np.lexsort((moment, user))
    return user[order], film[order]


def _rate(affinity: NDArray[np.float64], decoy: NDArray[np.bool_], chance: np.random.Generator) -> NDArray[np.float64]:
    """[E] ratings from 0.5 to 5 in half stars."""
    liked = affinity > _OTHER_TASTE
    mean = np.where(decoy, 3.3, np.where(liked, 4.2, 2.6))
    return np.clip(np.round(chance.normal(mean, 0.6) * 2) / 2, 0.5, 5.0)


def _times(user: NDArray[np.int64], users: int, chance: np.random.Generator) -> NDArray[np.int64]:
    """[E] Unix seconds, increasing within a user."""
    pauses = chance.integers(60, 5 * 86_400, size=len(user))
    elapsed = np.cumsum(pauses)
    first = np.searchsorted(user, np.arange(users))
    started = _FIRST_SECOND + chance.integers(_LAST_START, size=users)
    return started[user] + elapsed - elapsed[first][user]


def _movies_csv(taste: NDArray[np.int64], chance: np.random.Generator) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["movieId", "title", "genres"])
    titles = {number: _titles(number, chance) for number in range(DECOY, len(TASTES))}
    made = dict.fromkeys(titles, 0)
    for film, number in enumerate(taste.tolist(), start=1):
        title = titles[number][made[number] % len(titles[number])]
        sequel = made[number] // len(titles[number])
        made[number] += 1
        name = f"{title} {sequel + 1}" if sequel else title
        table.writerow([film, f"{name} ({chance.integers(1950, 2025)})", _genres(number, chance)])
    return text.getvalue()


def _titles(number: int, chance: np.random.Generator) -> list[str]:
    """Every title a taste can make, in random order."""
    openings = _DECOY_OPENINGS if number == DECOY else TASTES[number].openings
    titles = [f"{opening} {place}" for opening in openings for place in _PLACES]
    return [titles[i] for i in chance.permutation(len(titles))]


def _genres(number: int, chance: np.random.Generator) -> str:
    """Both genres of the taste, or one of them."""
    genres = _DECOY_GENRES if number == DECOY else TASTES[number].genres
    kept = chance.choice(3, p=[0.6, 0.2, 0.2])
    return "|".join(genres) if kept == 0 else genres[kept - 1]


def _ratings_csv(planted: Planted) -> str:
    rows = zip(planted.user.tolist(), planted.film.tolist(), planted.rating.tolist(), planted.time.tolist(), strict=True)
    lines = [f"{user + 1},{film + 1},{rating},{time}\n" for user, film, rating, time in rows]
    return "userId,movieId,rating,timestamp\n" + "".join(lines)
