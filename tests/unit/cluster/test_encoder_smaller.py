"""Smaller encoders: as bytes they say nearly the same, without units that said nothing they say exactly the same."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.encoder_export import compare, to_onnx
from cluster.encoder_smaller import as_bytes
from cluster.export import _check_encoder
from recsys.bundle.manifest import FoldIn
from recsys.bundle.read import Bundle, open_bundle
from recsys.config import EncoderConfig, ModelConfig
from recsys.data.histories import Histories
from recsys.errors import BundleError, ConfigError
from recsys.models import Catalogue, build
from recsys.models.pruning import pruned
from recsys.retrieval.recommender import Recommender
from tests.bundles import planted, write_planted
from tests.encoders import ENCODED, encoder_bytes

ITEMS, DIM, LENGTH = 60, 32, 5
WORLD = planted(items=ITEMS, dim=DIM)


@pytest.fixture(scope="module", autouse=True)
def own_receipts(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@cache
def model() -> torch.nn.Module:
    """Of the planted items' vectors; not trained, so every unit says something."""
    config = ModelConfig(name="sasrec", block="transformer", dim=DIM, heads=2, blocks=2, max_length=LENGTH)
    made = build(config, Catalogue(24, ITEMS, np.r_[np.ones(57, np.int64), np.zeros(3, np.int64)]), 0).eval()
    with torch.no_grad():
        made.item_table.copy_(torch.from_numpy(WORLD.item_vectors))
    return made


@cache
def plain() -> bytes:
    return to_onnx(model(), DIM)


def bundle_with(folder: Path, encoder: bytes) -> Bundle:
    fold_in = FoldIn(kind="onnx", parameters={"max_length": LENGTH})
    return open_bundle(write_planted(folder, world=WORLD, **(ENCODED | {"encoder": encoder, "fold_in": fold_in})))


def test_bytes_are_smaller_and_near(tmp_path):
    smaller = as_bytes(plain())
    assert len(smaller) < 0.55 * len(plain()) and as_bytes(plain()) == smaller
    bundle = bundle_with(tmp_path, smaller)  # so its operators are of the standard
    report = compare(bundle, model(), plain())
    assert 1e-4 < report.difference < 0.05 and 0.999 < report.cosine < 1
    Recommender(bundle)  # golden queries are answered


def test_bytes_of_another_encoder_are_refused(tmp_path):
    bundle = bundle_with(tmp_path, encoder_bytes(DIM))
    with pytest.raises(BundleError, match="cosine"):
        compare(bundle, model(), plain())


def test_an_encoder_that_was_wrong_before_it_was_rounded_is_refused(tmp_path):
    other = copy.deepcopy(model())
    with torch.no_grad():
        other.encoder.position.copy_(model().encoder.position.roll(1, 0))
    with pytest.raises(BundleError, match="from the model"):
        compare(bundle_with(tmp_path, as_bytes(plain())), other, plain())


def vectors(of: torch.nn.Module) -> torch.Tensor:
    return of.user_vectors(open_histories())


@cache
def open_histories():
    lengths = np.array([len(seen) for seen in WORLD.seen])
    return Histories.of_events(np.arange(len(lengths), dtype=np.int32), lengths, np.concatenate(WORLD.seen).astype(np.int32))


def test_pruning_nothing_changes_nothing():
    same = pruned(model(), 0.0)
    assert torch.equal(vectors(same), vectors(model())) and same.encoder is not model().encoder
    assert same.item_table is model().item_table  # tables are as large as the catalogue


def test_dead_units_go_first_and_nothing_is_lost(tmp_path):
    """Half of the units do nothing: nobody listens to them, or they take nothing in."""
    half_dead, dead = copy.deepcopy(model()), np.random.default_rng(0).permutation(4 * DIM)[: 2 * DIM]
    with torch.no_grad():
        for block in half_dead.encoder.blocks:
            block.narrow.weight[:, dead[::2]] = 0
            block.widen.weight[dead[1::2]], block.widen.bias[dead[1::2]] = 0, 0
    smaller = pruned(half_dead, 0.5)
    assert [block.widen.out_features for block in smaller.encoder.blocks] == [2 * DIM, 2 * DIM]
    torch.testing.assert_close(vectors(smaller), vectors(half_dead), rtol=0, atol=1e-6)
    content = to_onnx(smaller, DIM)
    assert len(content) < 0.8 * len(plain())
    report = compare(bundle_with(tmp_path, content), smaller, whole=half_dead)
    assert report.difference < 1e-5 and report.cosine == pytest.approx(1, abs=1e-6)


def test_what_pruning_costs_is_told(tmp_path):
    smaller = pruned(model(), 0.5)
    report = compare(bundle_with(tmp_path, to_onnx(smaller, DIM)), smaller, whole=model())
    assert report.difference < 1e-5  # from the model that was written
    assert 0.5 < report.cosine < 0.9999


def test_one_unit_is_left():
    smaller = pruned(model(), 0.999)
    assert smaller.encoder.blocks[0].widen.out_features == 1 and vectors(smaller).isfinite().all()


def test_who_has_nothing_to_prune_is_told():
    with pytest.raises(ConfigError, match="no feed-forward layers"):
        pruned(build(ModelConfig(name="sasrec", dim=8, blocks=0), Catalogue(4, 5, np.ones(5, np.int64)), 0), 0.5)
    for name in ("mf", "popularity"):
        with pytest.raises(ConfigError, match=f"{name} has no encoder"):
            _check_encoder([ModelConfig(name=name)], EncoderConfig(storage="int8"))
        _check_encoder([ModelConfig(name=name)], EncoderConfig())
    _check_encoder([ModelConfig(name="sasrec", block="transformer")], EncoderConfig(pruned=0.5))
    _check_encoder([ModelConfig(name="ials"), ModelConfig(name="sasrec")], EncoderConfig(storage="int8"))
    with pytest.raises(ConfigError, match=r"model\.block=transformer"):
        _check_encoder([ModelConfig(name="ials"), ModelConfig(name="sasrec")], EncoderConfig(pruned=0.5))
