"""A prepared dataset in memory, and what vectors or lists, whoever made them, are worth on what it holds out."""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.data import schema
from recsys.data.dataset import read_manifest
from recsys.data.histories import Histories
from recsys.evaluation import ranking
from recsys.evaluation.counting import Eligible
from recsys.evaluation.given_lists import judge
from recsys.evaluation.sums import RankingSums
from recsys.models.popularity import Popularity

RECSYS = Path(sys.executable).with_name("recsys")


class Vectors:
    """What the ranking asks of a model, of vectors that are there: users [U, D], items [N, D]."""

    def __init__(self, users: Tensor, items: Tensor) -> None:
        self.users, self.items = users, items

    @classmethod
    def saved(cls, path: Path) -> "Vectors":
        """As a peer leaves them."""
        with np.load(path) as arrays:
            return cls(torch.from_numpy(arrays["users"]).float(), torch.from_numpy(arrays["items"]).float())

    def user_vectors(self, histories: Histories) -> Tensor:
        """[B, D]"""
        return self.users[torch.from_numpy(histories.user.astype(np.int64))]

    def item_vectors(self) -> Tensor:
        """[N, D]"""
        return self.items


class HeldOut:
    """Everybody's history, users by number, and what is held out of it."""

    def __init__(self, dataset: Path) -> None:
        self.dataset, self.manifest = dataset, read_manifest(dataset)
        files = sorted(self.manifest.user_files, key=lambda file: file.first_user)
        parts = [pq.read_table(dataset / schema.USERS_FOLDER / file.name) for file in files]
        self.histories = Histories.from_arrow(pa.concat_tables(parts))
        self.items = self.manifest.items
        self.counts = np.bincount(self.train.item, minlength=self.items).astype(np.int64)

    @property
    def train(self) -> Histories:
        """What may be learnt from."""
        return self.histories.segment(schema.TRAIN)

    def rank(self, model: object, segment: str, ks: Sequence[int] = (10,)) -> RankingSums:
        """Every user of the segment against every item with a train event, what he has seen before left out."""
        return ranking.evaluate(model, self.histories, segment=segment, ks=ks, item_counts=self.counts)

    def judge(self, lists: NDArray[np.int32], segment: str) -> RankingSums:
        """The same of lists [U, K] of items, -1 for none."""
        first, last = self.histories.bounds(segment)
        held = np.flatnonzero(last > first)
        popular = np.full((len(held), lists.shape[1]), -1, np.int32)  # popularity is told by `popularity`
        return judge(
            lists[held],
            popular,
            self.histories.take(held),
            segment=segment,
            eligible=Eligible(self.counts),
            ks=(lists.shape[1],),
            exclude_seen=True,
        )

    def popularity(self, segment: str, ks: Sequence[int] = (10,)) -> dict[str, float]:
        """The most watched first, for everybody."""
        return self.rank(Popularity(self.counts), segment, ks).popularity_metrics()

    def save(self, path: Path) -> None:
        """The train events for a peer: user and item [E], each user's in order; users and items, how many there are."""
        pairs = self.train.pairs()
        np.savez(path, user=pairs.user, item=pairs.item, users=len(self.histories), items=self.items)

    def save_valid(self, path: Path) -> None:
        """The events between train and test, which are known when test is scored: user and item [E]."""
        pairs = self.histories.segment(schema.VALID).pairs()
        np.savez(path, user=pairs.user, item=pairs.item)


def prepare(source: str, folder: Path, settings: Iterable[str] = ()) -> HeldOut:
    """A dataset made of raw files by `recsys prepare`, which must succeed; a dataset folder is taken as it is."""
    if (Path(source) / schema.DATASET_FILE).is_file():
        return HeldOut(Path(source))
    words = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run([RECSYS, "prepare", source, folder, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"recsys prepare {source} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return HeldOut(folder)
