import pytest
from compare import same

pytestmark = pytest.mark.ex01
NAMES = {"car": "car", "automobile": "car", "dog": "dog", "puppy": "dog", "cat": "cat", "tree": "tree"}


@pytest.mark.points(2)
def test_expected_number(student):
    yours = student.chair([["a", "car", "dog", "automobile"], ["cat"]], [["car"], ["cat", "tree"]], NAMES)
    same(set(yours), {"chair_i", "chair_s", "coverage"}, "the keys")
    for key, expected in (("chair_i", 1 / 4), ("chair_s", 1 / 2), ("coverage", 2 / 3)):
        same(yours[key], expected, key)


@pytest.mark.points(2)
def test_every_mention_counts(student, rng):
    right = rng.randint(1, 9)
    wrong = right + rng.randint(1, 9)                                # unequal, or counting each once would do
    caption = ["car"] * right + ["puppy"] * wrong + ["the"] * 5
    rng.shuffle(caption)
    yours = student.chair([caption], [["car"]], NAMES)
    same(yours["chair_i"], wrong / (right + wrong), f"chair_i of {right} mentions of a car and {wrong} of a dog")
    same(yours["coverage"], 1.0, "coverage, where an object counts once")


@pytest.mark.points(2)
def test_long_captions_weigh_more(student, rng):
    n = rng.randint(4, 40)
    yours = student.chair([["dog"] * n, ["cat"]], [["dog"], ["dog", "tree", "car"]], NAMES)
    same(yours["chair_i"], 1 / (n + 1), f"chair_i of {n} right mentions in one caption and 1 wrong one in another")
    same(yours["chair_s"], 1 / 2, "chair_s")
    same(yours["coverage"], 1 / 4, "coverage of 4 objects, 1 mentioned")


@pytest.mark.points(1)
def test_nothing_mentioned(student):
    yours = student.chair([["hello"], []], [["car"], []], NAMES)
    for key in ("chair_i", "chair_s", "coverage"):
        same(yours[key], 0.0, f"{key} when nothing is mentioned")


@pytest.mark.points(1)
def test_bad_input_is_refused(student):
    for captions, scenes in (([], []), ([["car"]], [["car"], ["dog"]])):
        with pytest.raises(ValueError):
            student.chair(captions, scenes, NAMES)
