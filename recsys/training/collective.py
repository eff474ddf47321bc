"""What workers tell one another: a few sums and concatenations over torch.distributed, nothing when alone."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Workers of this run; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number; 0 when alone."""
    return dist.get_rank() if world_size() > 1 else 0


def any_rank(*flags: bool) -> list[bool]:
    """For each flag, whether it is up on some rank. All ranks must ask."""
    if world_size() == 1:
        return list(flags)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return [count > 0 for count in sum_over_ranks(torch.tensor([*map(float, flags)], device=device)).tolist()]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor of this shape, in place; all ranks get the same bits."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first(tensor: Tensor) -> Tensor:
    """Rank 0's tensor of this shape, in place."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def concatenate(tensor: Tensor) -> Tensor:
    """Every rank's tensor, in the order of ranks, along the first dimension, in which they may differ."""
    if world_size() == 1:
        return tensor
    lengths = _lengths(tensor)
    longest = max(lengths)
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:length] for part, length in zip(gathered, lengths, strict=True)])


def _lengths(tensor: Tensor) -> list[int]:
    lengths = torch.zeros(world_size(), dtype=torch.int64, device=tensor.device)
    lengths[dist.get_rank()] = len(tensor)
    dist.all_reduce(lengths)
    return [int(length) for length in lengths.tolist()]
