import pytest
import torch
from compare import same, same_picture

pytestmark = pytest.mark.ex09
SEGMENT, PARENT = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, -1]), [-1, 0, 0]      # packing.py's example


def tree(rng):
    """A random tree: (segment, parent, {segment: indices of its tokens from the root on})."""
    S = rng.randint(5, 8)
    parent = [-1] + [rng.randrange(-1, s) for s in range(1, S)]
    parent[1:4] = [0, 1, 1]                                          # at least three generations, and two brothers
    lengths = [rng.randint(1, 3) for _ in range(S)]
    segment = [s for s, n in enumerate(lengths) for _ in range(n)] + [-1] * rng.randint(1, 2)
    branch = {-1: []}
    for s in range(S):
        branch[s] = branch[parent[s]] + [t for t, name in enumerate(segment) if name == s]
    del branch[-1]
    return torch.tensor(segment), parent, branch


@pytest.mark.points(2)
def test_expected_number(student):
    yours = student.visible(SEGMENT[:9], PARENT)
    same(int(torch.as_tensor(yours).sum()), 39, "visible pairs of 4 + 2 + 3 tokens")


@pytest.mark.points(3)
def test_picture(student):
    rows = ["#.........", "##........", "###.......", "####......", "#####.....", "######....",
            "####..#...", "####..##..", "####..###.", ".........#"]
    expected = torch.tensor([[sign == "#" for sign in row] for row in rows])
    names = [f"{t} ({s})" for t, s in enumerate(SEGMENT.tolist())]
    same_picture(student.visible(SEGMENT, PARENT), expected, "who sees whom; token (segment)", names)


@pytest.mark.points(3)
def test_each_branch_is_an_ordinary_sequence(student, rng):
    """Seen from its last segment, a branch is plain causal attention, and nothing outside the branch is visible."""
    segment, parent, branch = tree(rng)
    yours = torch.as_tensor(student.visible(segment, parent))
    for s, own in branch.items():
        causal = torch.ones(len(own), len(own)).tril().bool()
        same_picture(yours[own][:, own], causal, f"inside the branch of segment {s}, parent = {parent}", map(str, own))
        outside = [t for t in range(len(segment)) if t not in own]
        nothing = torch.zeros(1, len(outside)).bool()
        same_picture(yours[own[-1:]][:, outside], nothing, f"token {own[-1]} looking at {outside}", ["outside"])


@pytest.mark.points(3)
def test_positions(student, rng):
    for segment, parent, branch in ((SEGMENT, PARENT, {1: [0, 1, 2, 3, 4, 5], 2: [0, 1, 2, 3, 6, 7, 8]}), tree(rng)):
        yours = torch.as_tensor(student.positions(segment, parent))
        for s, own in branch.items():
            same(yours[own].tolist(), list(range(len(own))), f"positions in segment {s}'s branch, parent = {parent}")
        same(yours[segment < 0].tolist(), [0] * int((segment < 0).sum()), "positions of padding")


@pytest.mark.points(4)
def test_predictors(student, rng):
    for segment, parent, branch in ((SEGMENT, PARENT, {1: [0, 1, 2, 3, 4, 5], 2: [0, 1, 2, 3, 6, 7, 8]}), tree(rng)):
        yours = torch.as_tensor(student.predictors(segment, parent))
        for s, own in branch.items():
            same(yours[own].tolist(), [-1] + own[:-1], f"who predicts the tokens {own} of the branch of segment {s}")
        same(yours[segment < 0].tolist(), [-1] * int((segment < 0).sum()), "who predicts padding")
