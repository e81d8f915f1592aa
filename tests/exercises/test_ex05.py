import pytest
import torch
from compare import same

pytestmark = pytest.mark.ex05
E = torch.eye(6, dtype=torch.float64)


@pytest.mark.points(1)
def test_expected_number(student):
    same(student.f1(E[[0, 1]], E[[0, 0, 2]]), 0.4, "f1 of the card's example")


@pytest.mark.points(2)
def test_one_chunk_serves_once(student, rng):
    copies = rng.randint(2, 5)
    same(len(student.matches(E[[0] * copies], E[[0]])), 1, f"matches of {copies} equal standard chunks with one")
    same(len(student.matches(E[[0]], E[[0] * copies])), 1, f"matches of one standard chunk with {copies} equal ones")


@pytest.mark.points(2)
def test_invented_chunks_cost(student, rng):
    invented = rng.randint(1, 3)
    yours = student.f1(E[:3], torch.cat([E[:3], E[3:3 + invented]]))
    same(yours, 6 / (6 + invented), f"f1 with {invented} invented chunks")
    same(student.f1(E[:3], E[3:5]), 0.0, "f1 without a match")


@pytest.mark.points(2)
def test_best_pair_is_taken_first(student):
    # Two directions in a plane at 10 and 24 degrees, and what was generated at 0 and 20: 20 goes to 24, so 10 gets 0.
    angles = lambda *degrees: torch.tensor(degrees, dtype=torch.float64).deg2rad()
    plane = lambda a: torch.stack([a.cos(), a.sin()], dim=1)
    yours = [tuple(pair) for pair in student.matches(plane(angles(10, 24)), plane(angles(0, 20)), 0.9)]
    same(yours, [(1, 1), (0, 0)], "pairs in the order taken")


@pytest.mark.points(1)
def test_threshold_is_strict(student):
    standard, generated = torch.ones(1, 4, dtype=torch.float64), E[:1, :4]        # their cosine is exactly 0.5
    same(student.matches(standard, generated, 0.5), [], "matches at a threshold that equals the cosine")
    same(len(student.matches(standard, generated, 0.4999)), 1, "matches at a threshold just below it")


@pytest.mark.points(2)
def test_length_and_exchange_change_nothing(student, rng, randn):
    standard, generated = randn(9, 3), randn(8, 3)
    pairs = {tuple(pair) for pair in student.matches(standard, generated, 0.3)}
    scaled = standard * torch.tensor([rng.uniform(0.1, 100) for _ in range(9)], dtype=torch.float64).unsqueeze(1)
    same({tuple(pair) for pair in student.matches(scaled, generated, 0.3)}, pairs, "pairs after scaling the features")
    same({(m, n) for n, m in student.matches(generated, standard, 0.3)}, pairs, "pairs after exchanging the sides")
    same(student.f1(standard[:0], generated[:0]), 0.0, "f1 of nothing and nothing")
    same(list(student.matches(standard, generated[:0])), [], "matches with nothing")
