"""A sequence model from run to bundle on a real Ray: encoded as by PyTorch, and answering as evaluation counted."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch

from cluster import encoder_export
from cluster.evaluate import evaluate
from cluster.export import export
from cluster.report import bundle_rows
from cluster.trainer import RunResult, train
from recsys.bundle.manifest import ENCODER
from recsys.bundle.read import Bundle, open_bundle
from recsys.config import ModelConfig, load_config
from recsys.data.histories import Histories
from recsys.errors import BundleError
from recsys.models import Catalogue, build
from recsys.retrieval.encoder import Encoder
from recsys.retrieval.recommender import Answer, Event, Recommender, Request
from recsys.training import checkpoint
from tests.bundles import write_planted
from tests.datasets import last_two_held_out, write_dataset
from tests.encoders import ENCODED

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("small_ray")]

ITEMS, MAX_LENGTH = 50, 6
BLOCKS = ("model.block=transformer", "model.blocks=1", "model.heads=2")  # of which one can be pruned
MODEL = ("model.name=sasrec", "model.dim=12", f"model.max_length={MAX_LENGTH}", *BLOCKS)
TRAIN = ("train.epochs=4", "train.batch_size=32", "train.learning_rate=0.01", "train.precision=fp32", "train.threads=1")
SMALL = ("cluster.num_workers=0", "cluster.readers=1", f"cluster.object_store_bytes={100 << 20}")


def round_and_round(users: int = 200, seed: int = 0) -> Histories:
    """Whoever watched an item watches the next by number: all are equally popular, and order says everything. The first user
    has one event only, others more than a window of them."""
    rng = np.random.default_rng(seed)
    lengths = np.concatenate([[1], rng.integers(3, 20, users - 1)])
    starts = rng.integers(0, ITEMS, users)
    rows = [(start + np.arange(length)) % ITEMS for start, length in zip(starts, lengths, strict=True)]
    return last_two_held_out(lengths, np.concatenate(rows))


HISTORIES = round_and_round()


@pytest.fixture(scope="module")
def run(root) -> RunResult:
    """Of a dataset with one item that nobody watched."""
    write_dataset(root / "dataset", HISTORIES, items=ITEMS + 1, shards=6, row_group_events=120)
    settings = [*MODEL, *TRAIN, *SMALL, f"cluster.storage={root / 'runs'}"]
    return train(root / "dataset", load_config(overrides=settings), name="s")


@pytest.fixture(scope="module")
def bundle(root, run) -> Bundle:
    return open_bundle(export(run.folder, root / "bundles"))


@pytest.fixture(scope="module")
def model(bundle, run):
    config = load_config(base=json.loads((run.folder / "result.json").read_bytes())["config"])
    counts = bundle.items.column("count").to_numpy()
    made = build(config.model, Catalogue(len(HISTORIES), ITEMS + 1, counts), 0)
    made.load_state_dict(checkpoint.read_weights(run.folder / "best"))
    return made.eval()


def answers(bundle: Bundle, until: str, k: int = 10) -> list[Answer]:
    recommender = Recommender(bundle, known_until=until)
    return recommender.recommend([Request(user=f"u{user}", k=k, mode="exact") for user in range(len(HISTORIES))])


def test_the_bundle_holds_an_encoder_and_no_users(bundle):
    manifest, report = bundle.manifest, bundle.manifest.encoder
    assert (manifest.model, manifest.known_user, manifest.fold_in.kind) == ("sasrec", "history", "onnx")
    assert manifest.fold_in.parameters == {"max_length": MAX_LENGTH} and manifest.dim == 16  # 12, padded
    assert not {"user_vectors.npy", "item_inputs.npy", "fold_in_gram.npy"} & set(manifest.files)
    assert report.histories > len(HISTORIES) and report.longest == len(HISTORIES.item)
    assert 0 < report.difference < 1e-5 and report.milliseconds > 0
    assert dict(bundle_rows(bundle.folder))["encoder against the model"].startswith(f"{report.difference:.1e} apart")


@pytest.mark.parametrize("until", ["valid", "test", "end"])
def test_users_are_encoded_as_by_the_model(bundle, model, until):
    theirs = model.user_vectors(HISTORIES.until(until)).numpy()
    recommender = Recommender(bundle, known_until=until)
    for user, vector in enumerate(theirs):
        ours = recommender.taste(f"u{user}").vector
        if ours is None:
            assert not vector.any() and not HISTORIES.until(until).lengths[user]
        else:
            np.testing.assert_allclose(ours, vector, atol=1e-5)


@pytest.mark.parametrize("segment", ["valid", "test"])
def test_lists_and_metrics_are_those_of_evaluation(bundle, run, model, segment):
    counted = run.metrics if segment == "valid" else run.test
    known, held = HISTORIES.until(segment), HISTORIES.segment(segment)
    scores = model.user_vectors(known).numpy() @ model.item_vectors().numpy().T
    gains, hits, same = [], [], []
    for user, answer in enumerate(answers(bundle, segment)):
        seen = known.item[known.offsets[user] : known.offsets[user + 1]]
        if not len(seen) or not held.lengths[user]:
            continue
        scores[user, [*seen, ITEMS]] = -np.inf
        same.append(answer.items.tolist() == np.argsort(-scores[user], kind="stable")[:10].tolist())
        (rank,) = np.flatnonzero(answer.items == held.item[held.offsets[user]]).tolist() or [None]
        hits.append(rank is not None)
        gains.append(0.0 if rank is None else 1 / np.log2(rank + 2))
    assert np.mean(same) > 0.98
    assert np.mean(gains) == pytest.approx(counted["ndcg@10"], abs=1e-3)
    assert np.mean(hits) == pytest.approx(counted["hr@10"], abs=1e-3)
    assert np.mean(gains) > 0.6  # it learnt what was planted, so that the equality says something


def test_a_newcomer_gets_what_follows_his_last_event(bundle):
    recommender = Recommender(bundle)
    for first in range(0, ITEMS - 4, 5):
        forth = tuple(Event(f"i{item}") for item in range(first, first + 3))
        (answer, timed) = recommender.recommend([Request(history=forth, k=3), Request(history=_backwards(forth), k=3)])
        assert f"i{first + 3}" in answer.item_ids and answer.item_ids == timed.item_ids


def _backwards(history: tuple[Event, ...]) -> tuple[Event, ...]:
    """Sent the other way round, with times that tell."""
    return tuple(Event(event.item, None, time) for time, event in enumerate(history))[::-1]


def test_the_encoder_holds_no_trace_of_this_machine_and_is_the_same_again(bundle, model):
    content = (bundle.folder / ENCODER).read_bytes()
    assert encoder_export.to_onnx(model, 16) == content
    assert b"site-packages" not in content and b"/" not in b"".join(_names(content))
    assert len(content) < 100_000  # no table of items in it


def _names(content: bytes) -> list[bytes]:
    graph = onnx.load_model_from_string(content).graph
    texts = [entry.value for part in (graph, *graph.node, *graph.input) for entry in part.metadata_props]
    return [text.encode() for text in texts + [node.doc_string for node in graph.node]]


def test_exporting_says_nothing(model, capfd, recwarn):
    encoder_export.to_onnx(model, 16)
    assert capfd.readouterr() == ("", "") and not recwarn.list


def test_an_encoder_that_is_not_the_models_is_not_published(bundle, model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.encoder.position.copy_(model.encoder.position.roll(1, 0))
    with pytest.raises(BundleError, match="from the model"):
        encoder_export.compare(bundle, other)
    encoder_export.compare(bundle, model)


def test_refit_learns_from_every_segment(bundle, root, run):
    refitted = open_bundle(export(run.folder, root / "bundles", name="refit", refit=True))
    assert refitted.manifest.vectors_from == ("train", "valid", "test") and refitted.manifest.encoder.difference < 1e-5
    assert refitted.encoder != bundle.encoder and refitted.manifest.metrics == bundle.manifest.metrics


def test_a_smaller_encoder_and_index_by_settings(bundle, root, run):
    wanted = load_config(overrides=["encoder.storage=int8", "encoder.pruned=0.5", "index.storage=int8"])
    smaller = open_bundle(export(run.folder, root / "bundles", name="smaller", encoder=wanted.encoder, index=wanted.index))
    report, size = smaller.manifest.encoder, smaller.manifest.files[ENCODER].size
    assert (report.storage, report.pruned, smaller.manifest.index.storage) == ("int8", 0.5, "int8")
    assert size < bundle.manifest.files[ENCODER].size and report.difference > 1e-4 and 0.5 < report.cosine < 0.9999
    assert dict(bundle_rows(smaller.folder))["smaller encoder"].startswith("int8, 50% of its feed-forward units left out")
    assert "ndcg@10 on test, by the whole encoder" in dict(bundle_rows(smaller.folder))
    assert "ndcg@10 on test" in dict(bundle_rows(bundle.folder))
    found = evaluate(smaller.folder)  # golden queries hold, and what it costs is measured on its own lists
    assert found.sums.metrics()["ndcg@10"] > 0.5 * run.test["ndcg@10"]


@pytest.mark.parametrize("block", ["hstu", "transformer"])
@pytest.mark.parametrize(("max_length", "cosine"), [(1, True), (2, False), (6, False)])
def test_any_window_either_score_and_block(tmp_path, max_length, cosine, block):
    config = ModelConfig(name="sasrec", block=block, dim=8, heads=2, blocks=2, max_length=max_length, cosine=cosine)
    model = build(config, Catalogue(24, 60, np.r_[np.ones(57, np.int64), np.zeros(3, np.int64)]), 0).eval()
    changes = {"encoder": encoder_export.to_onnx(model, 8), "fold_in": ENCODED["fold_in"]}
    changes["fold_in"] = changes["fold_in"].model_copy(update={"parameters": {"max_length": max_length}})
    # Planted item vectors are not this model's: what counts is that the same numbers go in.
    with torch.no_grad():
        opened = open_bundle(write_planted(tmp_path, **(ENCODED | changes)))
        model.item_table.copy_(torch.from_numpy(np.array(opened.item_vectors)))
    assert encoder_export.compare(opened, model).difference < 1e-5
    assert Encoder(opened).max_length == max_length
