import pytest
import torch
from compare import same

pytestmark = pytest.mark.ex11
BLOCK = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]       # Llama 7B: q k v o, gate and up, down


def layer(randn, ranks=(2, 5)):
    """x (2,3,in), W (out,in) and adapters with in = 4, out = 6."""
    return randn(2, 3, 4), randn(6, 4), [(randn(r, 4), randn(6, r)) for r in ranks]


@pytest.mark.points(1)
def test_expected_number(student):
    same(student.trained(BLOCK, 32, 64), 159_907_840, "numbers trained in LLaVA-1.5-7B at rank 64")


@pytest.mark.points(2)
def test_scale(student, rng):
    """One adapter of ones with rank r on a weight of zeros: every output is gate * alpha * sqrt(r) * sum(x)."""
    r, alpha, gate = rng.choice([2, 3, 8]), rng.uniform(1, 20), rng.uniform(-1, 1)
    ones = lambda *shape: torch.ones(*shape, dtype=torch.float64)
    yours = student.forward(ones(1, 4), 0 * ones(6, 4), [(ones(r, 4), ones(6, r))], alpha, [gate])
    same(yours, gate * alpha * r ** 0.5 * 4 * ones(1, 6), f"ones, rank {r}, alpha {alpha:.2f}, gate {gate:.2f}")


@pytest.mark.points(3)
def test_merging_changes_nothing(student, rng, randn):
    x, W, adapters = layer(randn)
    before, alpha, gates = W.clone(), rng.uniform(1, 20), [rng.uniform(-1, 1), rng.uniform(-1, 1)]
    merged = student.merge(W, adapters, alpha, gates)
    same(x @ merged.T, student.forward(x, W, adapters, alpha, gates), "merged against forward")
    same(W, before, "W after merging")


@pytest.mark.points(2)
def test_parts_add_up(student, randn):
    x, W, adapters = layer(randn, ranks=(1, 3, 4))
    base = x @ W.T
    same(student.forward(x, W, [], 16.0, []), base, "output without adapters")
    same(student.forward(x, W, adapters, 16.0, [0.0, 0.0, 0.0]), base, "output with all gates at 0")
    alone = [student.forward(x, W, [adapter], 16.0, [0.5]) - base for adapter in adapters]
    same(student.forward(x, W, adapters, 16.0, [0.5] * 3), base + sum(alone), "three adapters against each alone")


@pytest.mark.points(3)
def test_gradient_reaches_adapters_only(student, randn):
    x, W, ((A, B),) = layer(randn, ranks=(4,))
    A, B, W = A.requires_grad_(), B.requires_grad_(), W.requires_grad_()
    student.forward(x, W, [(A, B)], 6.0, [1.0]).sum().backward()
    assert W.grad is None or not W.grad.any(), "W is frozen, but gets a gradient"
    total = x.sum(dim=(0, 1))                                            # with a sum as loss, all follows from x's sum
    same(A.grad, 3.0 * torch.outer(B.detach().sum(0), total), "gradient of A")
    same(B.grad, 3.0 * (A.detach() @ total).expand(6, 4), "gradient of B")


@pytest.mark.points(2)
def test_bf16_is_rounded_once(student, randn):
    W = randn(6, 4).bfloat16()
    # Each correction is smaller than half a bf16 step of most weights; forty of them are not.
    adapters = [(1e-3 * randn(1, 4).float(), 0.3 * randn(6, 1).float()) for _ in range(40)]
    yours = student.merge(W, adapters, 8.0, [1.0] * 40)
    same(str(yours.dtype), "torch.bfloat16", "dtype of the merged weight")
    exact = W.double() + 8 * sum(B.double() @ A.double() for A, B in adapters)
    off = ((yours.double() - exact).abs() / exact.abs()).max().item()
    assert off <= 2 ** -8, f"the largest relative error is {off:.5f}; rounding once costs at most {2 ** -8:.5f}"
