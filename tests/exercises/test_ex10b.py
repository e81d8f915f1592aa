"""The right answers are worked out here, on the student's input, and compared with what scorers.py says."""
import re

import pytest
import scorers

pytestmark = pytest.mark.ex10b


def shown(faulty, right, given):
    assert faulty != right, f"your input {given!r} does not show the fault: the scorer gets it right"


@pytest.mark.points(3)
def test_says_no(student):
    word = student.breaks_says_no()
    assert isinstance(word, str) and re.fullmatch(r"[A-Za-z]+", word), f"one word was asked for, yours is {word!r}"
    shown(scorers.says_no(word), word.lower() in ("no", "not"), word)


@pytest.mark.points(3)
def test_pair_accuracy(student):
    rewards = list(student.breaks_pair_accuracy())
    assert len(rewards) == 3 and all(type(r) in (int, float) for r in rewards), f"not three numbers: {rewards!r}"
    a, b, c = rewards
    shown(scorers.pair_accuracy(rewards), ((a > b) + (a > c) + (b > c)) / 3, rewards)


@pytest.mark.points(3)
def test_hallucination(student):
    dialogues = [list(rounds) for rounds in student.breaks_hallucination()]
    ratings = [rating for rounds in dialogues for rating in rounds]
    assert len(ratings) == 2 and all(type(r) in (int, float) and 0 <= r <= 6 for r in ratings) and all(dialogues), \
        f"two ratings from 0 to 6 and no empty dialogue were asked for: {dialogues!r}"
    right = sum(sum(r < 3 for r in rounds) / len(rounds) for rounds in dialogues) / len(dialogues)
    shown(scorers.hallucination(dialogues), right, dialogues)


@pytest.mark.points(3)
def test_read_ratings(student):
    replies = list(student.breaks_read_ratings())
    assert len(replies) == 2 and all(isinstance(reply, str) for reply in replies), f"not two replies: {replies!r}"
    found = [re.search(r"Rating:\s*([0-6])", reply) for reply in replies]
    shown(scorers.read_ratings(replies), [int(rating[1]) if rating else None for rating in found], replies)
