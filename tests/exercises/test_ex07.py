import math

import pytest
import torch
from compare import difference_quotient, gradient, same

from amp_min import losses

pytestmark = pytest.mark.ex07


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.points(2)
def test_expected_number(student, randn):
    x = randn(1, 4)
    same(student.tied_mdpo(x, x, torch.tensor([[0, 1, 1, 2]])), scalar(5 * math.log(2)), "the card's example")


@pytest.mark.points(3)
def test_without_ties_it_is_eq_7(student, rng, randn):
    K = rng.randint(3, 5)
    policy, ref, beta, penalty = 4 * randn(3, K), 4 * randn(3, K), rng.uniform(0.05, 0.5), rng.uniform(0, 2)
    same(student.tied_mdpo(policy, ref, torch.arange(K).expand(3, K), beta, penalty),
         losses.mdpo_loss(policy, ref, beta, penalty, reduction="sum"), f"K = {K} without ties, against mdpo_loss")


@pytest.mark.points(2)
def test_tied_answers_are_not_compared(student, randn):
    policy, ref, levels = randn(1, 4), randn(1, 4), torch.tensor([[0, 1, 1, 1]])
    same(student.tied_mdpo(policy, ref, levels, 0.2, 0.0),
         losses.mdpo_loss(policy, ref, 0.2, 0.0, pairs="best", reduction="sum"), "one best answer and three tied ones")


@pytest.mark.points(2)
def test_order_of_the_columns_does_not_matter(student, rng, randn):
    policy, ref, levels = randn(2, 5), randn(2, 5), torch.tensor([[0, 1, 1, 2, 3], [1, 1, 2, 4, 4]])
    for order in ([4, 3, 2, 1, 0], rng.sample(range(5), 5)):
        yours = student.tied_mdpo(policy[:, order], ref[:, order], levels[:, order])
        same(yours, student.tied_mdpo(policy, ref, levels), f"the same set with its columns in the order {order}")


@pytest.mark.points(2)
def test_penalty_is_for_the_best_level(student, rng, randn):
    """What the penalty adds to the gradient: the number of pairs that each best answer wins, and nothing elsewhere."""
    policy, ref, penalty = randn(1, 5), randn(1, 5), rng.uniform(0.5, 2)
    levels = torch.tensor([[2, 2, 3, 4, 4]])
    slope = lambda c: gradient(lambda x: student.tied_mdpo(x, ref, levels, 0.1, c), policy, "tied_mdpo")
    same(slope(penalty) - slope(0.0), -penalty * torch.tensor([[3.0, 3, 0, 0, 0]], dtype=torch.float64),
         "gradient with the penalty minus gradient without")


@pytest.mark.points(2)
def test_all_tied_adds_nothing(student, randn):
    policy, ref = randn(2, 3), randn(2, 3)
    tied, ranked = torch.tensor([[1, 1, 1]]), torch.tensor([[0, 1, 2]])
    same(student.tied_mdpo(policy[:1], ref[:1], tied), scalar(0.0), "loss of a set with all answers tied")
    same(student.tied_mdpo(policy, ref, torch.cat([tied, ranked])), student.tied_mdpo(policy[1:], ref[1:], ranked) / 2,
         "mean of such a set and another one")


@pytest.mark.points(2)
def test_gradient(student, rng, randn):
    policy, ref = randn(2, 4), randn(2, 4)
    levels = torch.tensor([[rng.randrange(3) for _ in range(4)] for _ in range(2)])
    loss = lambda x: student.tied_mdpo(x, ref, levels, 0.3, 0.7)
    if (levels == levels[:, :1]).all():
        levels[0, 0] += 1
    yours = gradient(loss, policy, "tied_mdpo")
    same(yours, difference_quotient(loss, policy), "gradient against difference quotients", 1e-6)


@pytest.mark.points(1)
def test_no_gradient_in_the_reference(student, randn):
    policy, ref = randn(1, 3).requires_grad_(), randn(1, 3).requires_grad_()
    student.tied_mdpo(policy, ref, torch.tensor([[0, 1, 2]])).backward()
    assert ref.grad is None or not ref.grad.any(), f"the reference gets the gradient {ref.grad}"
