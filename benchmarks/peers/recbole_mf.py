"""BPR or SimpleX by RecBole, an epoch a turn, with RecBole's own settings unless given.

TRAIN: npz of user, item [E] and users, items, how many there are. OUT: npz, after each turn users [U, D] and items [N, D],
whose inner products are the scores.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed
from torch.nn.functional import normalize
from turns import Turn

NAME = "events"


class TurnTrainer(Trainer):
    """RecBole's, which trains when it is its turn."""

    def __init__(self, config, model, save):
        super().__init__(config, model)
        self.save = save

    def _train_epoch(self, train_data, *arguments, **settings):
        turn = Turn()
        loss = super()._train_epoch(train_data, *arguments, **settings)
        turn.trained()
        self.save()
        turn.tell(events=len(train_data.dataset))
        return loss


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    given = np.load(options.train)
    with tempfile.TemporaryDirectory() as folder:
        write_events(Path(folder) / NAME, given)
        config = config_of(options, folder)
        init_seed(options.seed, reproducibility=True)
        dataset = create_dataset(config)
        train_data, _, _ = data_preparation(config, dataset)
        model = get_model(options.model)(config, train_data.dataset).to(config["device"])
        places = list(numbers(dataset, given))
        trainer = TurnTrainer(config, model, lambda: save(options, model, places))
        trainer.fit(train_data, saved=False, verbose=False)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=["BPR", "SimpleX"])
    parser.add_argument("train")
    parser.add_argument("out")
    parser.add_argument("--set", action="append", default=[], help="a setting of RecBole's, as key=value")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def write_events(folder, given):
    """RecBole's files. It wants some of each segment; what is held out it must not see, so it gets a train event."""
    folder.mkdir()
    lines = [f"{user}\t{item}" for user, item in zip(given["user"].tolist(), given["item"].tolist(), strict=True)]
    for segment, kept in (("train", lines), ("valid", lines[:1]), ("test", lines[:1])):
        (folder / f"{NAME}.{segment}.inter").write_text("\n".join(["user_id:token\titem_id:token", *kept]) + "\n")


def config_of(options, folder):
    settings = {
        "data_path": folder,
        "checkpoint_dir": f"{folder}/saved",
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "epochs": 1_000_000,  # until there is no turn more
        "use_gpu": False,
        "seed": options.seed,
        "show_progress": False,
    }
    settings |= dict(setting.split("=", 1) for setting in options.set)
    return Config(model=options.model, dataset=NAME, config_dict={name: value_of(value) for name, value in settings.items()})


def value_of(text):
    """A number where it is one."""
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except (TypeError, ValueError):
        return text


def numbers(dataset, given):
    """For users and items: how many there are, our numbers of those trained on, and RecBole's, whose 0 stands for nobody."""
    for field, total in (("user_id", "users"), ("item_id", "items")):
        rows = np.arange(1, dataset.num(field))
        yield int(given[total]), dataset.field2id_token[field][rows].astype(np.int64), rows


@torch.no_grad()
def save(options, model, places):
    model.eval()
    tables = {"users": users_of(model), "items": items_of(model)}
    for (name, table), (total, own, rows) in zip(tables.items(), places, strict=True):
        tables[name] = np.zeros((total, table.shape[1]), np.float32)
        tables[name][own] = table.numpy()[rows]
    np.savez(options.out, **tables)


def users_of(model):
    """[U, D], as `full_sort_predict` makes them."""
    if not hasattr(model, "get_UI_aggregation"):
        return model.user_embedding.weight
    watched = model.item_emb(model.history_item_id)
    return normalize(model.get_UI_aggregation(model.user_emb.weight, watched, model.history_item_len), dim=1)


def items_of(model):
    """[N, D]"""
    return normalize(model.item_emb.weight, dim=1) if hasattr(model, "item_emb") else model.item_embedding.weight


if __name__ == "__main__":
    main()
