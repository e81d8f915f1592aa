import pytest
import torch
from compare import gradient, same

pytestmark = pytest.mark.ex03b
ROUNDS = torch.tensor([[0, 1, 1, 0, 2, 2, 2], [0, 0, 1, 0, 0, 0, 0], [1, 1, 0, 2, 0, 3, 3]])
COUNTS = torch.tensor([[2, 3, 0], [1, 0, 0], [2, 1, 2]])


@pytest.mark.points(1)
def test_expected_number(student):
    yours = student.round_logps(torch.tensor([[-9.0, -1.0, -3.0, -4.0]]), torch.tensor([[0, 1, 1, 2]]), 3)
    same(yours, torch.tensor([[-2.0, -4.0, 0.0]]), "the docstring's example", 1e-6)


@pytest.mark.points(2)
def test_means_of_random_rounds(student, randn):
    means = randn(3, 3)
    logps = means.gather(1, (ROUNDS - 1).clamp(min=0))               # each token has its round's mean …
    logps[0, 1], logps[0, 2] = logps[0, 1] + 0.5, logps[0, 2] - 0.5      # … or differs from it by as much up as down
    same(student.round_logps(logps, ROUNDS, 3), means.where(COUNTS > 0, 0.0), "means by round")


@pytest.mark.points(2)
def test_what_is_not_scored_does_not_matter(student, randn):
    logps = randn(3, 7)
    before = student.round_logps(logps, ROUNDS, 3)
    for bad in (-float("inf"), float("nan"), 1e300):
        same(student.round_logps(logps.where(ROUNDS > 0, bad), ROUNDS, 3), before, f"{bad} where nothing is scored")


@pytest.mark.points(2)
def test_gradient(student, randn):
    logps = randn(3, 7).where(ROUNDS > 0, -float("inf"))
    yours = gradient(lambda x: student.round_logps(x, ROUNDS, 3).sum(), logps, "round_logps")
    expected = torch.tensor([[0, 1 / 2, 1 / 2, 0, 1 / 3, 1 / 3, 1 / 3], [0, 0, 1, 0, 0, 0, 0],
                             [1 / 2, 1 / 2, 0, 1, 0, 1 / 2, 1 / 2]], dtype=torch.float64)
    same(yours, expected, "gradient in the token log-probs")
