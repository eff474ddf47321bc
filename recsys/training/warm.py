"""Beginning from what an earlier run learnt: rows of users and items that both know, with their moments."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from recsys.training.checkpoint import TrainState
from recsys.training.loop import bare


@torch.no_grad()
def begin_from(
    state: TrainState,
    weights: Mapping[str, Tensor],
    optimizers: list[dict[str, Any]],
    places: Mapping[str, Tensor],
) -> None:
    """Put an earlier run's rows into a fresh state of the same model; new rows stay as they begin.

    weights, optimizers: as `checkpoint.read_everything` gives them. places: by table ("user", "item"), for each of its rows
    here [R] int64 the row it has there, -1 for a new one. Whatever is not a table is taken over whole. Moments are those of the
    row-wise optimizers; Adam's begin anew.
    """
    model = bare(state.model)
    tables = model.tables()
    names = {name: next(key for key, p in model.named_parameters() if p is table) for name, table in tables.items()}
    current = model.state_dict()
    for key, tensor in weights.items():
        if key in current and key not in names.values() and current[key].shape == tensor.shape:
            current[key].copy_(tensor)
    for name, table in tables.items():
        known = torch.nonzero(places[name] >= 0).squeeze(1)
        there = places[name][known]
        table[known.to(table.device)] = weights[names[name]][there].to(table.device)
        if not table.requires_grad:
            continue
        optimizer, number = _of(table, state.optimizers)
        then = optimizers[optimizer]["state"].get(number, {}) if optimizer < len(optimizers) else {}
        _copy_moments(state.optimizers[optimizer].state.get(table, {}), then, known, there)


def _of(table: Tensor, optimizers: Sequence[Optimizer]) -> tuple[int, int]:
    """Which optimizer updates a table, and its number among the parameters there, as `state_dict` counts them."""
    for place, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, parameter in enumerate(parameters):
            if parameter is table:
                return place, number
    raise AssertionError("a table that nothing updates")


def _copy_moments(now: dict[str, Any], then: Mapping[str, Any], known: Tensor, there: Tensor) -> None:
    for key, value in then.items():
        if key not in now:  # of another optimizer
            continue
        if isinstance(value, Tensor):
            now[key][known.to(now[key].device)] = value[there].to(now[key].device)
        else:
            now[key] = value
