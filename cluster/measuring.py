"""What a model's lists are worth to a dataset's users, in this process: without Ray, and without what an epoch needs."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cluster import reading
from cluster.finished import Finished, cutoffs, folded_in
from recsys.config import LOWER_IS_BETTER, Config
from recsys.data import schema
from recsys.data.dataset import DatasetManifest, UserFile
from recsys.data.histories import Histories
from recsys.evaluation import ranking
from recsys.evaluation.candidates import candidates
from recsys.evaluation.sums import RankingSums
from recsys.models.base import listed_items
from recsys.models.means import Means
from recsys.models.popularity import Popularity
from recsys.models.trend import Trend
from recsys.training import collective

MEANS = {schema.VALID: "means", schema.TEST: "test_means"}
LATELY = {schema.VALID: "lately", schema.TEST: "test_lately"}


class Measures(Protocol):
    """A worker's share of a run, or all of a finished one. files: of its own users; border: what is learnt ends there."""

    @property
    def config(self) -> Config: ...

    @property
    def manifest(self) -> DatasetManifest: ...

    @property
    def validates(self) -> bool:
        """Whether anything is held out to choose by."""
        ...

    @property
    def dataset(self) -> Path: ...

    @property
    def border(self) -> str: ...

    @property
    def files(self) -> list[UserFile]: ...

    @property
    def item_counts(self) -> NDArray[np.int64]:
        """[N] events that are trained on."""
        ...

    def alive(self) -> None:
        """Something has been done."""

    def evaluate(
        self, model: Any, segment: str, *, trend: Trend | None = None, every: int = 1, keep_users: bool = False
    ) -> RankingSums:
        """Rank for every user with events in `segment`, or every so many of them. keep_users: also what each list was worth."""
        ...


@dataclass(frozen=True)
class Here:
    """All users of a finished run's dataset."""

    found: Finished

    @property
    def config(self) -> Config:
        """The run's."""
        return self.found.config

    @property
    def manifest(self) -> DatasetManifest:
        """The dataset's."""
        return self.found.manifest

    @property
    def dataset(self) -> Path:
        """Its folder."""
        return self.found.dataset

    @property
    def border(self) -> str:
        """Of the run."""
        return self.found.border

    @property
    def validates(self) -> bool:
        """Whether anything is held out to choose by."""
        return self.border == schema.VALID and self.manifest.segments[schema.VALID] > 0

    @cached_property
    def files(self) -> list[UserFile]:
        """All."""
        return list(reading.trained_until(self.dataset, self.manifest, self.border).user_files)

    @cached_property
    def item_counts(self) -> NDArray[np.int64]:
        """[N] events before the border."""
        return reading.item_counts(self.dataset, self.manifest, self.files, self.border)

    def alive(self) -> None:
        """Nobody asks."""

    def evaluate(
        self, model: Any, segment: str, *, trend: Trend | None = None, every: int = 1, keep_users: bool = False
    ) -> RankingSums:
        """As `Measures` says."""
        sums: RankingSums | None = None
        for file in self.files:
            vectors = folded_in(model, self.item_counts) if file.role in (schema.VALID, schema.TEST) else None
            for histories in reading.stream_histories(self.dataset, file, self.border):
                some = histories if every == 1 else histories.having(segment, every)
                found = self.rank(model, some, segment, user_vectors=vectors, trend=trend, keep_users=keep_users)
                sums = found if sums is None else sums + found
        assert sums is not None, "a dataset has users"
        return sums

    def rank(self, model: Any, histories: Histories, segment: str, **more: Any) -> RankingSums:
        """Some users' lists; more: as `ranking.evaluate` takes it."""
        return ranking.evaluate(
            model,
            histories,
            segment=segment,
            ks=cutoffs(self.config),
            item_counts=self.item_counts,
            exclude_seen=self.manifest.repeats != "keep",
            ranked=candidates(listed_items(model, self.item_counts), self.item_counts, self.manifest.split),
            **more,
        )


def every_nth(manifest: DatasetManifest, asked: int) -> int:
    """Of users with validation events, so that about `asked` are left. How many there are nobody counted: no more than users,
    nor than events."""
    return max(1, min(manifest.users, manifest.segments[schema.VALID]) // asked)


def measured(valid: RankingSums | None, test: RankingSums | None) -> dict[str, Any]:
    """What result.json says of a run's lists, and of popularity's and strangers' beside them."""
    return {
        "metrics": valid.metrics() if valid else {},
        "popularity": valid.popularity_metrics() if valid else {},
        "test": test.metrics() if test else {},
        "test_popularity": test.popularity_metrics() if test else {},
        **_by_chance(random=valid, test_random=test),
        "people": {name: sums.people() for name, sums in ((schema.VALID, valid), (schema.TEST, test)) if sums},
        "strangers": test.stranger_metrics() if test else {},
    }


def popular_lately(share: Measures, model: Any, trend: Trend | None, *segments: str) -> dict[str, dict[str, float]]:
    """What result.json says of the popular list that follows the trend, which strangers get and a model must beat: `lately` on
    validation, `test_lately`. Nothing without a trend, or of that list itself."""
    if trend is None or isinstance(model, Popularity) or share.manifest.split == "items":  # there cold items are ranked
        return {}
    popular = Popularity(share.item_counts)
    return {LATELY[segment]: share.evaluate(popular, segment, trend=trend).metrics() for segment in segments}


def by_means(share: Measures, *segments: str) -> dict[str, dict[str, float]]:
    """What result.json says of ratings by means alone, which a model must beat: `means` on validation, `test_means`."""
    if not segments:
        return {}
    sums = np.zeros(share.manifest.items)
    for file in share.files:
        for histories in reading.stream_histories(share.dataset, file, share.border) if file.train_events else ():
            train = histories.segment(schema.TRAIN)
            sums += np.bincount(train.item, train.rating, minlength=len(sums))
            share.alive()
    sums = collective.sum_over_ranks(torch.from_numpy(sums)).numpy()
    means, errors = Means(share.manifest.mean_rating, sums, share.item_counts), {}
    for segment in segments:
        found = share.evaluate(means, segment).metrics()
        errors[MEANS[segment]] = {name: found[name] for name in LOWER_IS_BETTER if name in found}
    return errors


def _by_chance(**sums: RankingSums | None) -> dict[str, dict[str, float]]:
    """What orders by chance are worth, where that was counted."""
    found = {name: each.random_metrics() for name, each in sums.items() if each}
    return {name: told for name, told in found.items() if told}
