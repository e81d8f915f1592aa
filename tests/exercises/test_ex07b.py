from fractions import Fraction

import pytest
import torch
from compare import same

from amp_min import losses

pytestmark = pytest.mark.ex07b
TENTH = Fraction(1, 10)


def by_autograd(K, beta, penalty):
    """The gradient that training would compute in its first step."""
    policy = torch.zeros(K, dtype=torch.float64, requires_grad=True)
    ref = torch.zeros_like(policy).detach()
    total = 0.0
    for i in range(K):
        for j in range(i + 1, K):
            total = total + (j - i) * losses.dpo_loss(policy[i], policy[j], ref[i], ref[j], float(beta))
            total = total - (float(penalty) * (policy[0] - ref[0]) if i == 0 else 0.0)
    return torch.autograd.grad(total, policy)[0]


def random_settings(rng):
    return rng.randint(3, 8), Fraction(rng.randint(1, 9), 20), Fraction(rng.randint(1, 30), 10)


@pytest.mark.points(2)
def test_expected_number(student):
    same(student.penalty_ratio(2, TENTH, Fraction(1)), Fraction(20), "penalty_ratio(2, 1/10, 1)")
    same(student.penalty_ratio(4, TENTH, Fraction(1)), Fraction(10), "penalty_ratio(4, 1/10, 1)")


@pytest.mark.points(4)
def test_gradients_are_those_of_the_first_step(student, rng):
    for _ in range(3):
        K, beta, penalty = random_settings(rng)
        yours = student.first_gradients(K, beta, penalty)
        assert all(type(g) is Fraction for g in yours), f"fractions were asked for, yours are {yours}"
        same(torch.tensor([float(g) for g in yours], dtype=torch.float64), by_autograd(K, beta, penalty),
             f"gradients for K = {K}, beta = {beta}, penalty = {penalty}")


@pytest.mark.points(2)
def test_pairs_only_exchange(student, rng):
    """Without the penalty what one answer of a pair gains the other loses: the gradients add up to exactly 0."""
    K, beta, _ = random_settings(rng)
    same(sum(student.first_gradients(K, beta, Fraction(0))), Fraction(0), f"sum of the gradients, K = {K}")


@pytest.mark.points(2)
def test_ratio(student, rng):
    K, beta, penalty = random_settings(rng)
    pairs, both = by_autograd(K, beta, 0)[0], by_autograd(K, beta, penalty)[0]
    yours = float(student.penalty_ratio(K, beta, penalty))
    same(yours, float((both - pairs) / pairs), f"K = {K}, beta = {beta}, penalty = {penalty}")


@pytest.mark.points(2)
def test_unmoved(student):
    for K in range(2, 10):
        still = [k for k, g in enumerate(by_autograd(K, TENTH, 1)) if abs(g) < 1e-12]
        same(list(student.unmoved(K)), still, f"answers without a gradient, K = {K}")
