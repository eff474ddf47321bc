"""SASRec by RecTools, an epoch a turn, with RecTools' own settings unless given.

TRAIN: npz of user and item [E], each user's in order, and users and items, how many there are; VALID: npz of user and item,
what is known besides when test is scored. OUT: npz, after each turn lists [U, K] for valid and test, -1 for no item.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from turns import Turn


class Clock(Callback):
    """Seconds of the last epoch, without what RecTools does once before it trains."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer, module):
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer, module):
        Clock.seconds = time.perf_counter() - self.began


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    seed_everything(options.seed)
    given, later = np.load(options.train), np.load(options.valid)
    train = events_of(given["user"], given["item"])
    known = events_of(*(np.concatenate([given[name], later[name]]) for name in ("user", "item")))
    dataset, users = Dataset.construct(train), int(given["users"])
    model = model_of(options)
    lengths = np.minimum(np.bincount(given["user"]) - 1, options.length)
    lengths = lengths[lengths > 0]  # who has one event has nothing to be told
    while True:
        turn = Turn()
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        turn.seconds = Clock.seconds
        lists = {name: lists_of(model, events, users, options.k) for name, events in (("valid", train), ("test", known))}
        np.savez(options.out, **lists)
        turn.tell(events=int(lengths.sum()), places=len(lengths) * options.length)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("valid")
    parser.add_argument("out")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--precision", default="32-true", help="as Lightning names it")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def events_of(user, item):
    """RecTools' table. There are no times, but an order: of each user's events, and that is all it looks at."""
    return pd.DataFrame(
        {
            Columns.User: user,
            Columns.Item: item,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(np.arange(len(user)), unit="s"),
        }
    )


def model_of(options):
    def trainer():
        return Trainer(
            accelerator="cpu",
            devices=1,
            precision=options.precision,
            callbacks=[Clock()],
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    return SASRecModel(
        n_factors=options.dim,
        n_blocks=options.blocks,
        n_heads=options.heads,
        session_max_len=options.length,
        batch_size=options.batch,
        dropout_rate=options.dropout,
        lr=options.learning_rate,
        loss="softmax",
        recommend_torch_device="cpu",
        get_trainer_func=trainer,
    )


def lists_of(model, events, users, k):
    """[U, K] what comes after these events, without their items."""
    asked = np.unique(events[Columns.User].to_numpy())
    told = model.recommend(asked, Dataset.construct(events), k=k, filter_viewed=True)
    lists = np.full((users, k), -1, np.int32)
    lists[told[Columns.User].to_numpy(), told[Columns.Rank].to_numpy() - 1] = told[Columns.Item].to_numpy()
    return lists


if __name__ == "__main__":
    main()
