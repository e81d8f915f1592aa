import pytest
import torch
from compare import same

pytestmark = pytest.mark.ex08


@pytest.mark.points(2)
def test_expected_number(student):
    same(torch.tensor(list(student.scales([3, 1, 4, 1, 5], 2)), dtype=torch.float64),
         torch.tensor([4 / 14, 5 / 14, 5 / 14], dtype=torch.float64), "the card's scales")


@pytest.mark.points(2)
def test_scales_make_the_mean(student, rng):
    micro = rng.randint(2, 4)
    N = micro * rng.randint(2, 5) + 1                                # the last micro-batch has one row
    tokens = [rng.randint(1, 9) for _ in range(N)]
    parts = [list(range(i, min(i + micro, N))) for i in range(0, N, micro)]
    yours = list(student.scales(tokens, micro))
    same(len(yours), len(parts), f"number of micro-batches of {micro} in {N} rows")
    losses = [rng.random() for _ in range(N)]                        # of a token, by row
    means = [sum(losses[n] * tokens[n] for n in part) / sum(tokens[n] for n in part) for part in parts]
    same(sum(s * m for s, m in zip(yours, means)), sum(a * t for a, t in zip(losses, tokens)) / sum(tokens),
         "micro-batch means times your scales, against the window's mean")


@pytest.mark.points(3)
def test_micro_batches_change_nothing(student, rng, randn):
    """Compared with one pass over the window, for every size of micro-batch: the last one is often short."""
    N, D = 7, 3
    w, x, y = randn(D), randn(N, D), randn(N)
    tokens = torch.tensor([rng.randint(1, 9) for _ in range(N)])
    leaf = w.clone().requires_grad_()
    whole = (((x @ leaf - y) ** 2) * tokens).sum() / tokens.sum()
    expected, = torch.autograd.grad(whole, leaf)
    whole = whole.item()
    for micro in range(1, N + 2):
        loss, gradient = student.accumulate(w, x, y, tokens, micro)
        same(loss, whole, f"loss with micro-batches of {micro} of {N} rows")
        same(gradient, expected, f"gradient with micro-batches of {micro} of {N} rows")


@pytest.mark.points(2)
def test_leaves_no_trace(student, randn):
    w, x, y = randn(2), randn(3, 2), randn(3)
    before = w.clone()
    first = student.accumulate(w, x, y, torch.tensor([1, 2, 3]), 2)[1].clone()
    same(student.accumulate(w, x, y, torch.tensor([1, 2, 3]), 2)[1], first, "gradient when called a second time")
    same(w, before, "w afterwards")
    assert w.grad is None and not w.requires_grad, "w must not get a gradient"


@pytest.mark.points(1)
def test_bad_micro_batch_is_refused(student):
    with pytest.raises(ValueError):
        student.scales([1, 2], 0)
