"""Gibbs sampling of `recsys.models.bpmf`: each table is drawn given the other, again and again, and the draws are averaged.

Of a table a sweep draws, each given all the rest: the mean m of its biases and the precision Λ of its rows round their priors
(Gauss-Wishart; the mean of vectors is zero, biases say the rest), the other table's links z, and the rows. A row with n ratings
r on rows y is Gaussian, of the precision P = Λ + α Σ yyᵀ and the mean P⁻¹ (Λ (m + Σ z / √n) + α Σ r y), α being the precision
of a rating.

Users' rows are drawn where they are owned. Of an item every worker sums its own users' part ([W, W] an item), draws by the same
seeds, and takes the first worker's rows. Links are ridge regressions on who rated what, with noise added to both sides, which
makes the solution a draw; conjugate gradients find it, [N, W] travelling a step.

Shapes: R rows (of a block: B), C rows of the other table, E events, W columns of a vector with its bias.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recsys.data.seeds import seed_of
from recsys.training import collective
from recsys.training.sparse_events import Rows, SparseEvents

# Sweeps an epoch, and epochs whose draws are forgotten: the chain comes from where it began.
SWEEPS, BURN_IN = 10, 2
# Precision of the links' prior, over that of the rows (docs/log.md), and steps to solve for them.
LINK_RIDGE, LINK_STEPS = 1.5, 12
# Numbers in a block of rows: the precisions of its rows.
BLOCK_NUMBERS = 1 << 22
# For how many rows a mean of zero counts beforehand (Salakhutdinov & Mnih).
PRIOR_ROWS = 2.0

# Keeps a division by nothing from being one: what is solved stays as it is.
TINY = 1e-30

OnBlock = Callable[[], None]
Seed = Callable[..., int]


@torch.no_grad()
def train_epoch(model: Any, events: SparseEvents, epoch: int, seed: int, on_block: OnBlock = lambda: None) -> tuple[float, int]:
    """SWEEPS draws of everything in each chain, in place. All workers call it; on_block is called after each half of a sweep.

    Returns the mean squared error of a chain's averaged rows on the events trained on, and how many these are.
    """
    chains = range(model.config.chains)
    told = [
        _train_chain(model, *_sides(model, events, chain), epoch, seed_of(seed, epoch, chain), on_block) for chain in chains
    ]
    return sum(error for error, _ in told) / len(told), told[0][1]


def blocks_of(model: Any) -> int:
    """How often a worker gives word in an epoch."""
    return 2 * SWEEPS * int(model.config.chains)


def _train_chain(model: Any, users: "_Side", items: "_Side", epoch: int, seed: int, on_block: OnBlock) -> tuple[float, int]:
    for sweep in range(SWEEPS):
        error, count = _squared_error(model, users, items, place=0)
        generator = np.random.default_rng(seed_of(seed, sweep, "noise"))
        alpha = generator.gamma(count / 2 + 1, 2 / (error + 2))
        for side, others in ((items, users), (users, items)):
            spread = _draw_side(model, side, others, alpha, lambda *told, at=sweep: seed_of(seed, at, *told))
            on_block()
        # As a row is solved from its events: the noise of ratings over the variance of users' vectors.
        model.ridge.fill_(1 / (alpha * spread))
        drawn = (epoch - BURN_IN) * SWEEPS + sweep + 1
        for side in (users, items):
            side.part(1).lerp_(side.part(0), 1 / max(drawn, 1))
    error, count = _squared_error(model, users, items, place=1)
    return error / max(count, 1), int(count)


@dataclass(frozen=True)
class _Side:
    """A chain's columns of a table, with what its rows rated or were rated by.

    counts: [R] by all workers' events; ranges: of rows, each with a generator of its own; shared: the rows are the same on all
    workers, and each has a part of their events.
    """

    name: str
    table: Tensor
    rows: Rows
    counts: Tensor
    ranges: tuple[tuple[int, int], ...]
    shared: bool

    def part(self, place: int) -> Tensor:
        """[R, W] the latest draw (0), the mean of the draws (1), the links (2): a view."""
        width = self.table.shape[1] // 3
        return self.table[:, place * width : (place + 1) * width]

    def over_events(self, sums: Tensor) -> Tensor:
        """Sums over the rows' events, of all workers."""
        return collective.sum_over_ranks(sums) if self.shared else sums

    def over_rows(self, sums: Tensor) -> Tensor:
        """Sums over the rows, of all workers."""
        return sums if self.shared else collective.sum_over_ranks(sums)

    def summed(self, others: Tensor) -> Tensor:
        """[C, …] → [R, …] Σ over each row's events."""
        starts = self.rows.offsets[:-1].to(others.device)
        return self.over_events(F.embedding_bag(self.rows.column.long(), others.contiguous(), starts, mode="sum"))

    @property
    def shrink(self) -> Tensor:
        """[R, 1] 1 / √n"""
        return self.counts.clamp(min=1).to(self.table.dtype).rsqrt()[:, None]

    def noise(self, seed: Seed, what: str) -> Tensor:
        """[R, W] standard normal, the same for a row whoever owns it."""
        width = self.table.shape[1] // 3
        parts = [
            torch.randn(last - first, width, generator=torch.Generator().manual_seed(seed(self.name, what, first)))
            for first, last in self.ranges
        ]
        return torch.cat([torch.zeros(0, width), *parts]).to(self.table.device)


def _sides(model: Any, events: SparseEvents, chain: int) -> tuple[_Side, _Side]:
    """The users' and the items' columns of a chain."""
    users, items = (table.data.chunk(model.config.chains, dim=1)[chain] for table in (model.user_table, model.item_table))
    device = model.user_table.device
    counts = events.of_users.counts.to(device)
    return (
        _Side("users", users, events.of_users, counts, model.owned.ranges, shared=False),
        _Side("items", items, events.of_items, model.item_counts, ((0, len(items)),), shared=True),
    )


def _draw_side(model: Any, side: _Side, others: _Side, alpha: float, seed: Seed) -> float:
    """Draw all there is of a table. Returns the variance of its rows round their priors, without the biases, on average."""
    prior_RW = side.summed(others.part(2)).mul_(side.shrink)
    mean_W, precision_WW = _draw_prior(side, side.part(0) - prior_RW, np.random.default_rng(seed(side.name, "prior")))
    covariance_WW = torch.linalg.inv(precision_WW)
    factor_WW = torch.linalg.cholesky(covariance_WW).to(prior_RW.dtype)
    _draw_links(side, others, side.part(0) - mean_W.to(prior_RW.dtype), factor_WW, seed)
    prior_RW = side.summed(others.part(2)).mul_(side.shrink).add_(mean_W.to(prior_RW.dtype))
    _draw_rows(model, side, others, prior_RW, precision_WW, alpha, side.noise(seed, "rows"))
    for shared in (side, others):
        if shared.shared:  # processors that round otherwise would drift apart
            shared.table.copy_(collective.from_first(shared.table.contiguous()))
    return float(covariance_WW.diagonal()[:-1].mean())


def _draw_prior(side: _Side, apart_RW: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """m [W] and Λ [W, W] in float64, by how far the rows with events are from what their links say."""
    known_RW = apart_RW.double() * (side.counts > 0)[:, None]
    told = [(side.counts > 0).sum().double()[None], known_RW.sum(0), (known_RW.T @ known_RW).flatten()]
    count, *rest = side.over_rows(torch.cat(told)).tolist()
    width = apart_RW.shape[1]
    total, squares = np.array(rest[:width]), np.array(rest[width:]).reshape(width, width)
    mean = np.zeros(width)
    mean[-1] = total[-1] / (count + PRIOR_ROWS)
    across = np.outer(mean, total)
    scatter = squares - across - across.T + count * np.outer(mean, mean)
    precision = _wishart(np.linalg.inv(np.eye(width) + scatter), width + count, generator)
    mean[-1] += generator.standard_normal() / np.sqrt(precision[-1, -1] * (count + PRIOR_ROWS))
    return torch.from_numpy(mean).to(apart_RW.device), torch.from_numpy(precision).to(apart_RW.device)


def _wishart(scale: NDArray[np.float64], freedom: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """A draw by Bartlett's decomposition."""
    width = len(scale)
    lower = np.tril(generator.standard_normal((width, width)), -1)
    lower[np.diag_indices(width)] = np.sqrt(generator.chisquare(freedom - np.arange(width)))
    factor: NDArray[np.float64] = np.linalg.cholesky((scale + scale.T) / 2) @ lower
    return factor @ factor.T


def _draw_links(side: _Side, others: _Side, centred_RW: Tensor, factor_WW: Tensor, seed: Seed) -> None:
    """The others' links Z, in place: (FᵀF + λ) Z = Fᵀ(rows + noise) + √λ noise, F being who rated what, over √n."""
    shrink_R1, links_CW = side.shrink, others.part(2)

    def product(vectors_CW: Tensor) -> Tensor:
        return others.summed(side.summed(vectors_CW).mul_(shrink_R1.square())).add_(vectors_CW, alpha=LINK_RIDGE)

    noisy_RW = centred_RW + side.noise(seed, "fit") @ factor_WW.T
    target_CW = others.summed(noisy_RW * shrink_R1)
    target_CW += LINK_RIDGE**0.5 * others.noise(seed, "links") @ factor_WW.T
    diagonal_C1 = others.summed(shrink_R1.square()) + LINK_RIDGE
    residual_CW = target_CW - product(links_CW)
    direction_CW = residual_CW / diagonal_C1
    energy_W = others.over_rows((residual_CW * direction_CW).sum(0))
    for _ in range(LINK_STEPS):
        product_CW = product(direction_CW)
        length_W = energy_W / others.over_rows((direction_CW * product_CW).sum(0)).clamp_(min=TINY)
        links_CW += length_W * direction_CW
        residual_CW -= length_W * product_CW
        steepest_CW = residual_CW / diagonal_C1
        left_W = others.over_rows((residual_CW * steepest_CW).sum(0))
        direction_CW = steepest_CW + left_W / energy_W.clamp(min=TINY) * direction_CW
        energy_W = left_W


def _draw_rows(
    model: Any, side: _Side, others: _Side, prior_RW: Tensor, precision_WW: Tensor, alpha: float, noise_RW: Tensor
) -> None:
    """The rows, in place."""
    factors_CW, biases_C = _factors(others)
    drawn_RW = side.part(0)
    for first, last in _blocks(drawn_RW):
        block = side.rows.block(first, last)
        target_E = side.rows.rated(first, last) - model.mean_rating - biases_C[block.column.long()]
        sums = [block.sums(torch.ones_like(target_E), factors_CW * column_C1) for column_C1 in factors_CW.split(1, dim=1)]
        own_BWW = side.over_events(torch.stack(sums, dim=1)).double() * alpha + precision_WW
        wanted_BW = side.over_events(block.sums(target_E, factors_CW)).double() * alpha
        wanted_BW += prior_RW[first:last].double() @ precision_WW
        lower_BWW = torch.linalg.cholesky(own_BWW)
        mean_BW1 = torch.cholesky_solve(wanted_BW[..., None], lower_BWW)
        apart_BW1 = torch.linalg.solve_triangular(lower_BWW.mT, noise_RW[first:last, :, None].double(), upper=True)
        drawn_RW[first:last] = (mean_BW1 + apart_BW1).squeeze(2)


def _squared_error(model: Any, users: _Side, items: _Side, place: int) -> tuple[float, float]:
    """Σ (score − rating)² over all workers' events, and how many these are. place: as in `_Side.part`."""
    factors_CW, biases_C = _factors(items, place)
    ones_RW = users.part(place).contiguous()
    error = torch.zeros((), dtype=torch.float64, device=ones_RW.device)
    for first, last in _blocks(ones_RW):
        block = users.rows.block(first, last)
        scores_E = block.scores(ones_RW[first:last], factors_CW) + biases_C[block.column.long()] + model.mean_rating
        error += (scores_E - users.rows.rated(first, last)).double().square().sum()
    told = torch.stack([error, error.new_tensor(len(users.rows.column))])
    squared, count = collective.sum_over_ranks(told).tolist()
    return squared, count


def _factors(side: _Side, place: int = 0) -> tuple[Tensor, Tensor]:
    """[C, W] what the other table's rows, with their biases, are multiplied with; and [C] this one's biases."""
    rows_CW = side.part(place)
    return torch.cat([rows_CW[:, :-1], torch.ones_like(rows_CW[:, :1])], dim=1), rows_CW[:, -1].contiguous()


def _blocks(rows: Tensor) -> list[tuple[int, int]]:
    step = max(1, BLOCK_NUMBERS // rows.shape[1] ** 2)
    return [(first, min(first + step, len(rows))) for first in range(0, len(rows), step)]
