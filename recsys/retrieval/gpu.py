"""Exact search on a GPU: the lists of `topk`, bit by bit.

The GPU multiplies in single precision and keeps what looks best for each query, a few more than wanted. These are scored one
by one on the processor, as everywhere; a query of which something else might belong into its list is searched there.

Shapes: B queries, N items, D dimensions, R items of a block, C candidates, K best.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.retrieval.filters import Items, bucket
from recsys.retrieval.products import Float32Products, off_by
from recsys.retrieval.topk import NOTHING, Floats, Seen, of_queries, orders, top_k

MORE = 16  # candidates beyond those wanted: the worst of them must be worse than the last wanted by more than rounding
AT_ONCE = 1 << 26  # scores: 256 MB
LARGEST = 1e37  # beyond, products need not be finite


class GpuSearch:
    """The items of a bundle on a device. Threads may share it."""

    def __init__(self, items_ND: Floats, never: Items, device: str = "cuda") -> None:
        """never: ascending items that no list may hold. Raises torch.OutOfMemoryError where they have no room there."""
        self._items_ND, self._never, self._device = items_ND, never, torch.device(device)
        self._there_ND = self._sent(items_ND)
        self._hidden_N = torch.zeros(len(items_ND), dtype=torch.bool, device=self._device)
        self._hidden_N[self._sent(never.astype(np.int64))] = True
        self._products = Float32Products(items_ND)

    @torch.inference_mode()
    def top_k(self, queries_BD: Floats, k: int, seen: Seen, may_N: NDArray[np.bool_] | None = None) -> tuple[Items, Floats]:
        """As `topk.top_k`: ids [B, K] and scores [B, K]. may_N: what may be listed at all; unset: all that ever may."""
        k = min(k, len(self._items_ND))
        told_BC, candidates_BC = self._candidates(queries_BD, min(bucket(k + MORE), len(self._items_ND)), seen, may_N)
        candidates_BC[np.isneginf(told_BC)] = NOTHING
        ids_BK, scores_BK = orders(queries_BD, self._items_ND, candidates_BC, k)
        unsure = self._unsure(queries_BD, told_BC, scores_BK)
        if len(unsure):
            ids_BK[unsure], scores_BK[unsure] = self._on_processor(queries_BD[unsure], k, of_queries(seen, unsure), may_N)
        return ids_BK, scores_BK

    def _candidates(
        self, queries_BD: Floats, count: int, seen: Seen, may_N: NDArray[np.bool_] | None
    ) -> tuple[Floats, NDArray[np.int64]]:
        """[B, C] scores, as the GPU tells them, and items: the best `count` of each query; of what is hidden -inf."""
        queries = self._sent(queries_BD)
        hidden_N = self._hidden_N if may_N is None else ~self._sent(may_N)
        seen_queries = self._sent(np.repeat(np.arange(len(queries_BD)), np.diff(seen[0])))
        seen_items = self._sent(seen[1].astype(np.int64))
        best: list[tuple[torch.Tensor, torch.Tensor]] = []
        rows = max(count, AT_ONCE // len(queries_BD))
        for first in range(0, len(self._items_ND), rows):
            part = slice(first, first + rows)
            scores_BR = queries @ self._there_ND[part].T
            scores_BR.masked_fill_(hidden_N[part], -torch.inf)
            here = (seen_items >= first) & (seen_items < first + rows)
            scores_BR[seen_queries[here], seen_items[here] - first] = -torch.inf
            told, places = scores_BR.topk(min(count, scores_BR.shape[1]), dim=1)
            best.append((told, places + first))
        told_BC, items_BC = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
        if len(best) > 1:
            told_BC, places = told_BC.topk(count, dim=1)
            items_BC = items_BC.gather(1, places)
        return told_BC.cpu().numpy(), items_BC.cpu().numpy()

    def _unsure(self, queries_BD: Floats, told_BC: Floats, scores_BK: Floats) -> NDArray[np.intp]:
        """Queries in whose list something might belong that is no candidate: none is told more than the last candidate."""
        if told_BC.shape[1] == len(self._items_ND):
            return np.zeros(0, np.intp)
        off_B = off_by(queries_BD, self._products.longest)
        sure_B = (told_BC[:, -1] + off_B < scores_BK[:, -1]) | np.isneginf(told_BC[:, -1])
        lengths_B = np.linalg.norm(queries_BD.astype(np.float64), axis=1)
        return np.flatnonzero(~sure_B | ~(lengths_B * self._products.longest < LARGEST))

    def _on_processor(self, queries_BD: Floats, k: int, seen: Seen, may_N: NDArray[np.bool_] | None) -> tuple[Items, Floats]:
        never = self._never if may_N is None else np.flatnonzero(~may_N).astype(np.int32)
        return top_k(queries_BD, self._items_ND, k, seen=seen, never=never, products=self._products)

    def _sent(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(self._device)
