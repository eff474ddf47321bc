"""The picture of a dataset is a picture, with and without times."""

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from cluster.pictures import draw_dataset
from recsys.data.summary import summarise
from tests.datasets import random_histories, write_dataset


@pytest.mark.parametrize("days", [[], [(0, 3), (86_400, 5), (172_800, 1)]])
def test_draws_curves_on_white(tmp_path: Path, days: list[tuple[int, int]]):
    write_dataset(tmp_path / "dataset", random_histories(), shards=2)
    summary = replace(summarise(tmp_path / "dataset"), daily=days)
    draw_dataset(summary, tmp_path / "curves.png")
    pixels = imread(tmp_path / "curves.png")
    assert pixels.shape[1] > (1200 if days else 800) and pixels.shape[0] > 300
    assert 0.5 < pixels[..., :3].mean() < 1.0
    assert len({tuple(pixel) for pixel in pixels.reshape(-1, pixels.shape[2])[::7]}) > 10
