import math

import pytest
import torch
from compare import gradient, same, same_picture

pytestmark = pytest.mark.ex03
ROLES = torch.tensor([[0, 0, 0, 1, 1, 1, -1],        # padded on the right
                      [-1, -1, 0, 1, 1, 0, 1],       # padded on the left, two answers
                      [0, 1, 0, 0, 0, 0, 1]])


def batch(rng, randn, V=6):
    ids = torch.tensor([[rng.randrange(V) for _ in row] for row in ROLES])
    return randn(*ROLES.shape, V), ids.where(ROLES == 1, -1)


@pytest.mark.points(3)
def test_mask_marks_the_predictors(student):
    expected = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 1, 0]]).bool()
    same_picture(student.predictors(ROLES), expected, "predictors of answer tokens", ["row 0", "row 1", "row 2"])


@pytest.mark.points(1)
def test_first_position_is_refused(student):
    with pytest.raises(ValueError):
        student.predictors(torch.tensor([[0, 1], [1, 0]]))


@pytest.mark.points(2)
def test_expected_number(student):
    roles = torch.tensor([[0, 0, 1, 1, 1, 1, 1, -1]])
    logits, ids = torch.zeros(1, 8, 8, dtype=torch.float64), torch.full((1, 8), 3)
    same(student.answer_logps(logits, ids, roles), torch.tensor([-5 * math.log(8)]), "alpha = 0", 1e-6)
    same(student.answer_logps(logits, ids, roles, alpha=1.0), torch.tensor([-math.log(8)]), "alpha = 1", 1e-6)


@pytest.mark.points(2)
def test_logits_belong_to_the_next_token(student, rng):
    ids = torch.tensor([rng.sample(range(9), 5)])
    logits = torch.full((1, 5, 9), -50.0, dtype=torch.float64)
    logits[0, range(4), ids[0, 1:]] = 50.0               # a model that is certain, and right
    yours = student.answer_logps(logits, ids, torch.tensor([[0, 0, 1, 1, 1]]))
    same(yours, torch.zeros(1), "log-prob of a certain answer")


@pytest.mark.points(2)
def test_length_exponent(student, rng, randn):
    logits, ids = batch(rng, randn)
    whole, counts = student.answer_logps(logits, ids, ROLES), torch.tensor([3.0, 3.0, 2.0])
    alpha = rng.choice([0.25, 0.5, 0.75])
    yours = student.answer_logps(logits, ids, ROLES, alpha)
    same(yours, whole / counts ** alpha, f"alpha = {alpha}, from your own sum")


@pytest.mark.points(2)
def test_padding_and_prompt_change_nothing(student, rng, randn):
    logits, ids = batch(rng, randn)
    before = student.answer_logps(logits, ids, ROLES)
    wide = torch.nn.functional.pad
    for left, right in ((0, 3), (2, 0), (2, 1)):
        noise = randn(3, ROLES.shape[1] + left + right, 6)
        keep = wide(torch.ones_like(ROLES), (left, right)).bool().unsqueeze(-1)
        after = student.answer_logps(wide(logits, (0, 0, left, right)).where(keep, noise),
                                     wide(ids, (left, right), value=rng.randrange(6)),
                                     wide(ROLES, (left, right), value=-1))
        same(after, before, f"{left} columns of padding on the left, {right} on the right")
    after = student.answer_logps(logits, ids.where(ROLES == 1, rng.randrange(6)), ROLES)
    same(after, before, "other ids in the prompt")


@pytest.mark.points(2)
def test_gradient(student, rng, randn):
    """d logp / d logits is one-hot minus softmax at the position that predicts, and 0 elsewhere."""
    logits, ids = batch(rng, randn)
    yours = gradient(lambda x: student.answer_logps(x, ids, ROLES).sum(), logits, "answer_logps")
    expected = torch.zeros_like(logits)
    for b, t in (ROLES == 1).nonzero().tolist():
        expected[b, t - 1] = -logits[b, t - 1].softmax(-1)
        expected[b, t - 1, ids[b, t]] += 1
    same(yours, expected, "gradient in the logits")
