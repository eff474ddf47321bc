"""A bundle's lists for users whose last events are held out, made by the Recommender that serves them.

Shapes: B users of a block, K places, E scored events of the block, N items, D dimensions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.manifest import Manifest
from recsys.bundle.read import open_bundle
from recsys.data.histories import Histories, ranges
from recsys.data.negatives import StoredNegatives
from recsys.errors import RequestError
from recsys.evaluation.candidates import candidates
from recsys.evaluation.counting import Eligible
from recsys.evaluation.given_lists import judge
from recsys.evaluation.sums import RankingSums
from recsys.models.popularity import Popularity
from recsys.retrieval.filters import contains, without
from recsys.retrieval.recommender import Answer, Event, KnownUntil, Mode, Recommender, Request

NOTHING = -1
DEFAULT_KS = (10, 20)
Items = NDArray[np.int32]


class Lists:
    """An open bundle that is asked for lists as the server is, but knows nothing of what is scored."""

    def __init__(self, folder: Path, *, known_until: KnownUntil, split: str | None = None) -> None:
        """known_until: the segment before which the histories of known users end; split: how what is scored was held out, if by
        the dataset's own split. Raises BundleError."""
        self.bundle = open_bundle(folder)
        self.recommender = Recommender(self.bundle, known_until=known_until)
        self.ks = _cutoffs(self.bundle.manifest)
        listed = np.zeros(self.bundle.manifest.items, bool)
        listed[self.bundle.popular if self.bundle.indexed is None else self.bundle.indexed] = True
        self.ranked = candidates(listed, self.recommender.items.counts, split)
        self.eligible = Eligible(self.ranked.eligible)
        popular = Popularity(self.recommender.items.counts).ranked  # what is popular now is no measure for other lists
        watched = popular[self.ranked.eligible[popular]]
        self.popular = np.concatenate([watched, np.setdiff1d(self.eligible.items, watched)]).astype(np.int32)

    @property
    def cold(self) -> bool:
        """Whether lists are made of cold items alone."""
        return self.ranked.kind == "cold"

    @cached_property
    def _cold_ids(self) -> tuple[str, ...]:
        return tuple(self.recommender.items.ids[item] for item in self.eligible.items)

    def nothing(self) -> RankingSums:
        """Before the first user."""
        return RankingSums.nothing(self.ks, len(self.eligible), len(self.eligible.column))

    def histories(self, rows: range) -> Histories:
        """All events of the users in some rows, whose numbers are their rows."""
        stored, own = self.bundle.histories, slice(rows.start, rows.stop)
        first, last = stored.offsets[rows.start : rows.stop], stored.offsets[rows.start + 1 : rows.stop + 1]
        events = ranges(first, last)
        return Histories(
            user=np.arange(rows.start, rows.stop, dtype=np.int32),
            offsets=np.concatenate([[0], np.cumsum(last - first)]).astype(np.int64),
            item=stored.item[events],
            rating=stored.rating[events],
            time=stored.time[events],
            valid_from=stored.bounds[own, 0].copy(),
            test_from=stored.bounds[own, 1].copy(),
        )

    def judge(
        self, block: Histories, segment: str, *, negatives: StoredNegatives | None, newcomers: bool
    ) -> tuple[RankingSums, RankingSums, Counter[str]]:
        """What the lists as served, and those by exact search, are worth; how many lists were made in which way.

        newcomers: users are told by what they are known for, and not by their ids.
        """
        if not len(block):
            return self.nothing(), self.nothing(), Counter()
        known = block.until(segment)
        allowed = None if negatives is None else self._allowed(block.segment(segment), negatives)
        requests = self._requests(known, allowed, newcomers)
        if self.cold:
            requests = [replace(request, allow=self._cold_ids) for request in requests]
        served = self._ask(requests, "auto")
        paths = Counter[str](answer.path for answer in served)
        exact = self._ask(requests, "exact") if paths["ann"] else served
        popular = self._popular(known, allowed)
        predicted = self._predicted(requests, block.segment(segment))
        sums = [
            judge(
                self._table([answer.items for answer in answers]),
                popular,
                block,
                segment=segment,
                eligible=self.eligible,
                ks=self.ks,
                predicted=predicted,
                exclude_seen=self.bundle.manifest.exclude_seen,
                cold=self.cold,
            )
            for answers in (served, exact)
        ]
        return sums[0], sums[1], paths

    def _requests(self, known: Histories, allowed: Sequence[Items] | None, newcomers: bool) -> list[Request]:
        k, ids = max(self.ks), self.recommender.items.ids
        asked = []
        for row, user in enumerate(known.user):
            who = Request(history=self._events(known, row)) if newcomers else Request(user=self.bundle.users.id(int(user)))
            among = None if allowed is None else tuple(ids[item] for item in allowed[row])
            # among negatives nothing is hidden: they were drawn from what the user has not seen
            asked.append(Request(who.user, who.history, k, exclude_seen=None if among is None else False, allow=among))
        return asked

    def _events(self, known: Histories, row: int) -> tuple[Event, ...]:
        events = range(known.offsets[row], known.offsets[row + 1])
        ids = self.recommender.items.ids
        return tuple(Event(ids[known.item[event]], float(known.rating[event]), int(known.time[event])) for event in events)

    def _ask(self, requests: Sequence[Request], mode: Mode) -> list[Answer]:
        asked = [Request(each.user, each.history, each.k, each.exclude_seen, (), each.allow, mode) for each in requests]
        answers = []
        for answer in self.recommender.recommend(asked):
            if isinstance(answer, RequestError):  # never one without a list
                raise answer
            answers.append(answer)
        return answers

    def _allowed(self, scored: Histories, negatives: StoredNegatives) -> list[Items]:
        row, item = negatives.of(scored.user)
        rows = np.concatenate([row, np.repeat(np.arange(len(scored)), scored.lengths)])
        items = np.concatenate([item, scored.item])
        return [np.unique(items[rows == each]).astype(np.int32) for each in range(len(scored))]

    def _popular(self, known: Histories, allowed: Sequence[Items] | None) -> Items:
        popular, k = self.popular, max(self.ks)
        if allowed is not None:
            return self._table([popular[contains(items, popular)][:k] for items in allowed])
        lists = []
        for first, last in zip(known.offsets[:-1], known.offsets[1:], strict=True):
            seen = np.unique(known.item[first:last]) if self.bundle.manifest.exclude_seen else popular[:0]
            lists.append(without(popular[: k + len(seen)], seen)[:k])
        return self._table(lists)

    def _table(self, lists: Sequence[Items]) -> Items:
        table = np.full((len(lists), max(self.ks)), NOTHING, np.int32)
        for row, items in enumerate(lists):
            table[row, : len(items)] = items
        return table

    def _predicted(self, requests: Sequence[Request], scored: Histories) -> NDArray[np.float64] | None:
        """[E] ratings, by a model of ratings: of a stranger the mean and the item's bias, of an item that nobody trained on
        the user's mean."""
        parameters, items_ND = self.bundle.manifest.fold_in.parameters, self.bundle.item_vectors
        if "mean" not in parameters or items_ND is None:
            return None
        free = int(parameters["free"])
        stranger = np.zeros(items_ND.shape[1], np.float32)
        stranger[free - 1], stranger[free] = parameters["mean"], parameters.get("bias", 0.0)
        tastes = [self.recommender.taste(request.user, request.history).vector for request in requests]
        users_BD = np.stack([stranger if vector is None else vector for vector in tastes]).astype(np.float64)
        row, item = np.repeat(np.arange(len(scored)), scored.lengths), scored.item
        scores: NDArray[np.float64] = np.einsum("ed,ed->e", users_BD[row], items_ND[item])
        return np.where(self.eligible.column[item] >= 0, scores, users_BD[row, free - 1])


def _cutoffs(manifest: Manifest) -> tuple[int, ...]:
    """The k of the metrics that were measured when the bundle was made."""
    told = {int(name.partition("@")[2]) for name in manifest.metrics if "@" in name}
    return tuple(sorted(told)) or DEFAULT_KS
