"""What a blend takes over from its parts."""

import pytest

from cluster.blending import _config
from recsys.config import load_config


@pytest.mark.parametrize("asked", [{}, {"trend_days": 0.0}, {"trend_days": 7.0, "trend_weight": 0.5}])
def test_a_blend_leans_as_its_parts_were_told_to(asked):
    first = load_config(overrides=["model.name=mf", *(f"model.{key}={value}" for key, value in asked.items())])
    model = _config(first).model
    assert model.name == "blend" and {key: getattr(model, key) for key in model.model_fields_set - {"name"}} == asked
