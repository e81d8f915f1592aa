import pytest
from compare import same

pytestmark = pytest.mark.ex10
KEYS = ("score_cumulative", "score_mean", "hallucination_cumulative", "hallucination_mean")


def check(yours, expected, what):
    for key, value in zip(KEYS, expected):
        same(yours[key], float(value), f"{key} {what}")


@pytest.mark.points(2)
def test_expected_number(student):
    check(student.aggregate([[6, 6, 0], [1]]), (3.25, 2.5, 0.5, 2 / 3), "of the card's example")


@pytest.mark.points(3)
def test_gaps_are_left_out(student, rng):
    a, b = rng.randint(3, 6), rng.randint(3, 6)
    check(student.aggregate([[a, None, 0], [None, None], [None, b]]),
          ((a + b) / 3, (a / 2 + b) / 2, 1 / 3, 1 / 4), f"of [[{a}, None, 0], [None, None], [None, {b}]]")


@pytest.mark.points(2)
def test_every_round_is_judged_by_itself(student):
    check(student.aggregate([[6, 6, 2]]), (14 / 3, 14 / 3, 1 / 3, 1 / 3), "of [[6, 6, 2]]")
    check(student.aggregate([[3, 0]]), (1.5, 1.5, 0.5, 0.5), "of [[3, 0]]: is 3 a hallucination?")


@pytest.mark.points(2)
def test_rounds_keep_their_weight(student, rng):
    step = rng.choice([0.5, 1.0, 2.0])
    last = 1 + 2 * step
    check(student.aggregate([[6, None, 0], [4]], step),
          ((6 + 4) / (2 + last), (6 / (1 + last) + 4) / 2, last / (2 + last), last / (1 + last) / 2),
          f"of [[6, None, 0], [4]] at step {step}")


@pytest.mark.points(1)
def test_nothing_rated_is_refused(student):
    for dialogues in ([], [[None], []]):
        with pytest.raises(ValueError):
            student.aggregate(dialogues)
