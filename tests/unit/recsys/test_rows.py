"""Row-wise updates: only touched rows move, repetitions are summed in a fixed order, Adam is Adam."""

import pytest
import torch
from torch import nn

from recsys.training import rows


def table_with_gradient(touched: list[int], values: torch.Tensor, size: int = 6) -> nn.Parameter:
    table = nn.Parameter(torch.arange(size * values.shape[1], dtype=torch.float32).view(size, -1))
    torch.nn.functional.embedding(torch.tensor(touched), table, sparse=True).backward(values)
    return table


def test_duplicates_are_summed_once_each():
    distinct, sums = rows.sum_duplicates(torch.tensor([4, 1, 4, 0, 1, 4]), torch.arange(12.0).view(6, 2))
    assert distinct.tolist() == [0, 1, 4]
    assert sums.tolist() == [[6, 7], [10, 12], [14, 17]]


def test_duplicates_of_nothing_are_nothing():
    distinct, sums = rows.sum_duplicates(torch.zeros(0).long(), torch.zeros(0, 3))
    assert distinct.tolist() == []
    assert sums.shape == (0, 3)


def test_summing_duplicates_gives_the_same_bits_every_time():
    generator = torch.Generator().manual_seed(0)
    touched, values = torch.randint(9, (5000,), generator=generator), torch.randn(5000, 8, generator=generator)
    _, first = rows.sum_duplicates(touched, values)
    assert all(torch.equal(first, rows.sum_duplicates(touched, values)[1]) for _ in range(5))


@pytest.mark.parametrize("name", rows.ROW_OPTIMIZERS)
def test_only_touched_rows_move(name):
    table = table_with_gradient([1, 4, 1], torch.ones(3, 2))
    before = table.detach().clone()
    optimizer = rows.ROW_OPTIMIZERS[name]([table], 0.1)
    rows.exchange({"item": table})
    optimizer.step()
    moved = (table.detach() != before).any(1)
    assert moved.tolist() == [False, True, False, False, True, False]
    assert (table.detach() <= before).all()


@pytest.mark.parametrize(("name", "peer"), [("adam", torch.optim.SparseAdam), ("adagrad", torch.optim.Adagrad)])
def test_updates_are_those_of_torchs_optimizer(name, peer):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(6, 3)), nn.Parameter(torch.ones(6, 3))
    optimizer, other = rows.ROW_OPTIMIZERS[name]([ours], 0.05), peer([theirs], lr=0.05)
    for _ in range(20):
        touched, values = torch.randint(6, (4,), generator=generator), torch.randn(4, 3, generator=generator)
        for table in (ours, theirs):
            table.grad = None
            torch.nn.functional.embedding(touched, table, sparse=True).backward(values)
        rows.exchange({"item": ours})
        # SparseAdam knows lazy moments; dense Adagrad leaves rows without gradient alone anyway.
        theirs.grad = theirs.grad.coalesce() if peer is torch.optim.SparseAdam else theirs.grad.to_dense()
        optimizer.step()
        other.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", rows.ROW_OPTIMIZERS)
def test_state_goes_on_where_it_was_saved(name):
    def three_steps(first: rows.RowOptimizer, table: nn.Parameter, then: rows.RowOptimizer | None = None):
        for step in range(3):
            optimizer = first
            if step == 2 and then is not None:
                then.load_state_dict(first.state_dict())
                optimizer = then
            table.grad = None
            torch.nn.functional.embedding(torch.tensor([step, 2]), table, sparse=True).backward(torch.ones(2, 3) * (step + 1))
            rows.exchange({"item": table})
            optimizer.step()
        return table.detach().clone()

    made = rows.ROW_OPTIMIZERS[name]
    straight, resumed = nn.Parameter(torch.ones(6, 3)), nn.Parameter(torch.ones(6, 3))
    expected = three_steps(made([straight], 0.1), straight)
    assert torch.equal(three_steps(made([resumed], 0.1), resumed, then=made([resumed], 0.7)), expected)
