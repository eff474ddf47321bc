"""The best K of every row of scores, ties and all, without sorting the rows.

Shapes: B rows, P scores a row, K places, C columns of a chunk.
"""

import torch
from torch import Tensor

CHUNK = 64


def top_lists(scores_BP: Tensor, k: int) -> Tensor:
    """[B, K] columns of the K best by (-score, column); -1 where fewer than K scores are above -inf."""
    wanted = min(k + 1, scores_BP.shape[1])
    columns, values = _candidates(scores_BP, wanted)
    values, order = values.sort(dim=1, descending=True)
    columns = columns.gather(1, order)
    # A tie at or before the border: which of the equals is in, and in what place, goes by column.
    tied = ((values[:, 1:] == values[:, :-1]) & values[:, 1:].isfinite()).any(1)
    if tied.any():
        columns[tied], values[tied] = _sorted(scores_BP[tied], wanted)
    columns = torch.where(values.isneginf(), -1, columns)[:, :k]
    return torch.nn.functional.pad(columns, (0, k - columns.shape[1]), value=-1)


def _candidates(scores_BP: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Columns and scores of the best, in any order; exact unless scores are equal.

    The best are in the chunks with the highest maxima, so only as many chunks as places are looked into: two passes over
    the scores become one, and that one is a plain maximum.
    """
    rows, width = scores_BP.shape
    chunks = width // CHUNK
    if chunks < 2 * wanted:
        values, columns = scores_BP.topk(wanted, dim=1)
        return columns, values
    body = scores_BP[:, : chunks * CHUNK].view(rows, chunks, CHUNK)
    best = body.amax(2).topk(wanted, dim=1).indices
    values = body.gather(1, best[:, :, None].expand(-1, -1, CHUNK)).flatten(1)
    columns = (best[:, :, None] * CHUNK + torch.arange(CHUNK, device=best.device)).flatten(1)
    rest = torch.arange(chunks * CHUNK, width, device=best.device).expand(rows, -1)
    values, columns = torch.cat([values, scores_BP[:, chunks * CHUNK :]], 1), torch.cat([columns, rest], 1)
    values, places = values.topk(wanted, dim=1)
    return columns.gather(1, places), values


def _sorted(scores: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    values, columns = scores.sort(dim=1, descending=True, stable=True)
    return columns[:, :wanted], values[:, :wanted]
