import math

import pytest
import torch
from compare import difference_quotient, gradient, same

pytestmark = pytest.mark.ex06


@pytest.mark.points(2)
def test_expected_number(student, rng, randn):
    chosen, rejected = randn(4), randn(4)
    for epsilon in (0.0, 0.1, rng.random()):
        yours = student.smoothed_dpo(chosen, rejected, chosen, rejected, 0.1, epsilon)
        same(yours, torch.full((4,), math.log(2), dtype=torch.float64), f"loss at the start, epsilon = {epsilon:.2f}")


@pytest.mark.points(2)
def test_better_chosen_answer_lowers_the_loss(student, randn):
    pc, pr, rc, rr = randn(4, 5)
    before, after = (student.smoothed_dpo(pc + d, pr, rc, rr, 0.1, 0.05) for d in (0.0, 1.0))
    assert (after < before).all(), f"the chosen answers' log-probs rise by 1, the losses go from {before} to {after}"


@pytest.mark.points(2)
def test_exchange_identity(student, rng, randn):
    """Exchanging chosen and rejected is the same as exchanging epsilon and 1 - epsilon."""
    pc, pr, rc, rr = 5 * randn(4, 5)
    epsilon = rng.uniform(0.05, 0.45)
    same(student.smoothed_dpo(pc, pr, rc, rr, 0.3, epsilon), student.smoothed_dpo(pr, pc, rr, rc, 0.3, 1 - epsilon),
         "loss before and after the exchange")


@pytest.mark.points(3)
def test_gradient(student, rng, randn):
    """The slope of the loss in h is epsilon - sigma(-h); compared with that and with difference quotients."""
    pc, pr, rc, rr = 3 * randn(4, 5)
    beta, epsilon = rng.uniform(0.05, 0.5), rng.uniform(0.05, 0.45)
    loss = lambda x: student.smoothed_dpo(x[0], x[1], rc, rr, beta, epsilon).sum()
    x = torch.stack([pc, pr])
    yours = gradient(loss, x, "smoothed_dpo")
    slope = beta * (epsilon - torch.sigmoid(-beta * ((pc - rc) - (pr - rr))))
    same(yours, torch.stack([slope, -slope]), "gradient in the policy's log-probs")
    same(yours, difference_quotient(loss, x), "gradient against difference quotients of your loss", 1e-6)


@pytest.mark.points(2)
def test_no_gradient_in_the_reference(student, randn):
    pc, pr = randn(2, 3)
    rc, rr = randn(3).requires_grad_(), randn(3).requires_grad_()
    policy = pc.clone().requires_grad_()
    student.smoothed_dpo(policy, pr, rc, rr).sum().backward()
    for name, ref in (("ref_chosen", rc), ("ref_rejected", rr)):
        assert ref.grad is None or not ref.grad.any(), f"{name} gets the gradient {ref.grad}: the yardstick would move"


@pytest.mark.points(1)
def test_large_margins_stay_finite(student):
    far = torch.tensor([1e4, -1e4], dtype=torch.float64)
    yours = student.smoothed_dpo(far, -far, 0 * far, 0 * far, 0.1, 0.1)
    same(yours, torch.tensor([200.0, 1800.0], dtype=torch.float64), "loss at margins of 20,000 and -20,000")


@pytest.mark.points(2)
def test_resting_margin(student, rng):
    same(float(student.resting_margin(0.1, 0.1)), math.log(9) / 0.1, "the card's margin")
    beta, epsilon = rng.uniform(0.05, 0.5), rng.uniform(0.05, 0.95)
    zero = torch.zeros(1, dtype=torch.float64)
    slope = gradient(lambda x: student.smoothed_dpo(x, zero, zero, zero, beta, epsilon).sum(),
                     zero + float(student.resting_margin(beta, epsilon)), "smoothed_dpo")
    same(slope, zero, f"slope of your loss at your margin, beta = {beta:.3f}, epsilon = {epsilon:.3f}")
