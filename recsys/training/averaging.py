"""A running mean of the weights along training: less noisy than any one step's weights (Polyak & Juditsky 1992)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

# The mean is brought up to date every so many steps at least: a pass over all weights costs as much as a small step, over large
# tables as many. The further back it reaches by now, the less often, about so many times in its reach of 1 / (1 − d).
EVERY, TIMES = 8, 128


class WeightMean(Optimizer):
    """mean ← d · mean + (1 − d) · weight, with d = min(decay, (1 + t) / (10 + t)) a step, so that it soon forgets the start.

    The last in the list of optimizers: its `step` comes after the others' and moves no weight. Its state is of the
    parameters' shapes, and is saved, dealt to workers and taken up again as theirs is.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        super().__init__(list(parameters), {"lr": 0.0})
        self.decay = decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take note of the weights as they are now."""
        for parameter in self._parameters():
            state = self.state[parameter]
            state["step"] = step = state.get("step", 0) + 1
            decay = min(self.decay, (1 + step) / (10 + step))
            # Twice as many, and twice again: where it is brought up to date follows from the step alone.
            every = EVERY << max(0, (round(1 / (1 - decay) / TIMES) // EVERY).bit_length() - 1)
            if "mean" not in state:
                state["mean"] = parameter.detach().clone()
            elif step % every == 0:
                state["mean"].lerp_(parameter, 1 - decay**every)

    def swap(self) -> None:
        """Have the model compute with the means, or, called again, with its weights."""
        for parameter in self._parameters():
            if "mean" in self.state[parameter]:
                state = self.state[parameter]
                parameter.data, state["mean"] = state["mean"], parameter.data

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for group in self.param_groups for parameter in group["params"])


@contextmanager
def averaged(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """While it lasts the model computes with the means of its weights, where they are kept."""
    means = [optimizer for optimizer in optimizers if isinstance(optimizer, WeightMean)]
    for mean in means:
        mean.swap()
    try:
        yield
    finally:
        for mean in means:
            mean.swap()
