"""The metrics on numbers worked out by hand, against slow plain versions, and their invariants."""
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp_min import metrics

yes_no = st.sampled_from(["yes", "no"])


def close(got, want):
    assert got.keys() == want.keys()
    for name in want:
        assert math.isclose(got[name], want[name], rel_tol=1e-12, abs_tol=1e-12), (name, got[name], want[name])


# ---- POPE ----

@pytest.mark.parametrize("text, read_as", [
    ("Yes", "yes"), ("No", "no"), ("no", "no"),
    ("No, there is none.", "no"),                  # "No," is read as "No": commas are removed
    ("There is not a cat in the image.", "no"),
    ("Yes. There is no dog, though.", "yes"),      # first sentence only
    ("Yes, although no dog is there.", "no"),      # a comma does not end the sentence
    ("No,there is none", "yes"),                   # the comma vanishes and glues "Nothere" together
    ("Not sure.", "yes"),                          # "Not" is not in the official list, only "not"
    ("Nobody", "yes"), ("I know.", "yes"), ("NO", "yes"), ("No!", "yes"), ("No\nYes", "yes"), ("", "yes"),
    (".No", "yes"),                                # the text before the first "." is empty
])
def test_official_reading_of_an_answer(text, read_as):
    assert metrics.pope_answer(text) == read_as


def test_answers_that_are_neither_yes_nor_no():
    assert metrics.pope_unclear(["", "I cannot see it.", "Nobody. No.", "A yesterday"]) == 1.0
    assert metrics.pope_unclear(["No!", "YES", "Well, no", "yes."]) == 0.0
    assert metrics.pope_unclear(["Yes", "Not sure.", "Maybe", "no"]) == 0.5
    mute = metrics.pope([""] * 4, ["yes", "no"] * 2)                 # the official figures do not show it
    assert mute["yes_ratio"] == 1.0 and mute["f1"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no answers"):
        metrics.pope_unclear([])


def test_pope_by_hand():
    answers = ["Yes", "Yes", "No", "No", "Yes, it is."]
    labels = ["yes", "no", "no", "yes", "yes"]
    # 2 true positives, 1 false positive, 1 true negative, 1 false negative
    close(metrics.pope(answers, labels),
          {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 3 / 5})


def test_precision_and_recall_are_not_exchanged():
    close(metrics.pope(["Yes", "Yes", "Yes", "No"], ["yes", "no", "no", "no"]),
          {"accuracy": 0.5, "precision": 1 / 3, "recall": 1.0, "f1": 0.5, "yes_ratio": 0.75})


@pytest.mark.parametrize("answers, labels, accuracy", [
    (["no", "no"], ["yes", "no"], 0.5),     # never says yes: no precision
    (["yes", "no"], ["no", "no"], 0.5),     # nothing is there: no recall
    (["yes", "no"], ["no", "yes"], 0.0),    # both are 0: no f1
])
def test_undefined_shares_are_zero(answers, labels, accuracy):
    got = metrics.pope(answers, labels)
    assert (got["accuracy"], got["precision"], got["recall"], got["f1"]) == (accuracy, 0.0, 0.0, 0.0)


@given(st.lists(st.tuples(yes_no, yes_no), min_size=1, max_size=40))
@settings(deadline=None, max_examples=100)
def test_pope_against_a_confusion_matrix(rows):
    count = {cell: rows.count(cell) for cell in [("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")]}
    tp, fp, fn = count["yes", "yes"], count["yes", "no"], count["no", "yes"]
    close(metrics.pope([said for said, _ in rows], [true for _, true in rows]), {
        "accuracy": (tp + count["no", "no"]) / len(rows),
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn) if tp + fn else 0.0,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp else 0.0,
        "yes_ratio": (tp + fp) / len(rows),
    })


def test_pope_refuses_what_it_cannot_score():
    with pytest.raises(ValueError, match=r"labels\[1\] is 'Yes'"):
        metrics.pope(["yes", "yes"], ["yes", "Yes"])
    with pytest.raises(ValueError, match="2 answers but 1"):
        metrics.pope(["yes", "yes"], ["yes"])
    with pytest.raises(ValueError, match="no answers"):
        metrics.pope([], [])


# ---- CHAIR ----

def test_chair_by_hand():
    mentioned = [{"cat", "dog", "sun"}, {"car"}, set()]
    present = [{"cat", "sun", "tree"}, {"car", "house"}, {"boat"}]
    # 1 of 4 mentioned objects is made up, in 1 of 3 captions; 3 of 6 present ones are mentioned
    close(metrics.chair(mentioned, present), {"chair_i": 1 / 4, "chair_s": 1 / 3, "coverage": 3 / 6})


def test_chair_sums_over_captions_before_it_divides():
    got = metrics.chair([{"a"}, {"b", "c", "d"}], [{"x"}, {"b", "c", "d", "e"}])
    close(got, {"chair_i": 1 / 4, "chair_s": 1 / 2, "coverage": 3 / 5})  # a mean of shares would give 1/2 and 3/8


def test_silence_has_no_hallucination_and_no_coverage():
    close(metrics.chair([set(), set()], [{"cat"}, set()]), {"chair_i": 0.0, "chair_s": 0.0, "coverage": 0.0})
    close(metrics.chair([{"cat"}], [set()]), {"chair_i": 1.0, "chair_s": 1.0, "coverage": 0.0})


objects = st.sets(st.sampled_from("abcdefg"), max_size=6)


@given(st.lists(st.tuples(objects, objects), min_size=1, max_size=12))
@settings(deadline=None, max_examples=100)
def test_chair_against_a_loop_over_objects(rows):
    mentions = hallucinations = bad = there = found = 0
    for said, shown in rows:
        wrong = 0
        for thing in said:
            mentions += 1
            if thing not in shown:
                wrong += 1
        hallucinations += wrong
        if wrong > 0:
            bad += 1
        for thing in shown:
            there += 1
            if thing in said:
                found += 1
    close(metrics.chair([said for said, _ in rows], [shown for _, shown in rows]), {
        "chair_i": hallucinations / mentions if mentions else 0.0,
        "chair_s": bad / len(rows),
        "coverage": found / there if there else 0.0,
    })


def test_chair_refuses_unequal_and_empty_lists():
    with pytest.raises(ValueError, match="1 captions but 2"):
        metrics.chair([set()], [set(), set()])
    with pytest.raises(ValueError, match="no captions"):
        metrics.chair([], [])


# ---- false claims ----

def test_false_claims_are_summed_over_descriptions_before_they_are_divided():
    share, total = metrics.false_claims([{"objects": [1, 1], "sizes": [0, 0]}, {"objects": [0, 5], "sizes": [1, 2]}])
    assert total == {"objects": [1, 6], "sizes": [1, 2]} and math.isclose(share, 2 / 8)      # a mean of shares: (1 + 1/7) / 2
    assert metrics.false_claims([{"objects": [0, 0]}])[0] == 0.0     # nothing said, nothing false: see coverage
    with pytest.raises(ValueError, match="no descriptions"):
        metrics.false_claims([])


def test_every_figure_has_one_name():
    assert len(set(metrics.NAMES.values())) == len(metrics.NAMES)


# ---- ratings ----

def test_mmhal_by_hand():
    got = metrics.mmhal([6, 3, 2, 0], ["count", "color", "count", "color"])
    per_type = got.pop("per_type")
    close(got, {"score": 11 / 4, "hallucination": 0.5, "n": 4})
    assert list(per_type) == ["count", "color"]
    close(per_type["count"], {"score": 4.0, "hallucination": 0.5, "n": 2})
    close(per_type["color"], {"score": 1.5, "hallucination": 0.5, "n": 2})
    assert "per_type" not in metrics.mmhal([6])


@pytest.mark.parametrize("rating, hallucinated", [(0, 1.0), (2, 1.0), (3, 0.0), (6, 0.0)])
def test_three_is_the_lowest_rating_without_hallucination(rating, hallucinated):
    assert metrics.mmhal([rating])["hallucination"] == hallucinated
    assert metrics.mrhal([[rating]])["hallucination_mean"] == hallucinated


def test_llava_bench_by_hand():
    got = metrics.llava_bench([(8, 4), (10, 5.5), (2, 5.5)], ["conv", "detail", "conv"])
    per_category = got.pop("per_category")
    close(got, {"relative": 75.0, "reference": 20 / 3, "model": 5.0, "n": 3})        # the mean of ratios would be 125.8
    assert list(per_category) == ["conv", "detail"]
    close(per_category["conv"], {"relative": 95.0, "reference": 5.0, "model": 4.75, "n": 2})
    close(per_category["detail"], {"relative": 55.0, "reference": 10.0, "model": 5.5, "n": 1})
    for bad in (8, 0), (11, 5), (5,), (-1, -1):
        with pytest.raises(ValueError, match="1 to 10"):
            metrics.llava_bench([bad])
    with pytest.raises(ValueError, match="no scores"):
        metrics.llava_bench([])


def test_cumulative_and_mean_by_hand():
    # Eq. 8: (6 + 0 + 0 + 3) / 4 rounds, and the mean of 6 and 1.
    cumulative, mean = metrics.cumulative_and_mean([[6], [0, 0, 3]])
    assert math.isclose(cumulative, 9 / 4) and math.isclose(mean, 3.5)


def test_mrhal_thresholds_rounds_not_the_dialogues_mean():
    # The first dialogue's mean is 3, so thresholding means would find no hallucination in it.
    close(metrics.mrhal([[6, 0], [2, 2, 6, 6]]), {
        "score_cumulative": 22 / 6, "score_mean": 3.5, "hallucination_cumulative": 3 / 6, "hallucination_mean": 0.5,
    })
    assert math.isclose(metrics.mrhal([[6, 0], [6]])["hallucination_mean"], 0.25)


ratings = st.lists(st.integers(0, 6), min_size=1, max_size=6)


@given(st.lists(ratings, min_size=1, max_size=10))
@settings(deadline=None, max_examples=100)
def test_mrhal_against_a_loop(dialogues):
    flat = [r for rounds in dialogues for r in rounds]
    low = [[1.0 if r in (0, 1, 2) else 0.0 for r in rounds] for rounds in dialogues]
    average = lambda values: math.fsum(values) / len(values)
    close(metrics.mrhal(dialogues), {
        "score_cumulative": average(flat),
        "score_mean": average([average(rounds) for rounds in dialogues]),
        "hallucination_cumulative": average([x for rounds in low for x in rounds]),
        "hallucination_mean": average([average(rounds) for rounds in low]),
    })


@given(st.integers(1, 5), st.data())
@settings(deadline=None, max_examples=50)
def test_dialogues_of_equal_length_have_equal_cumulative_and_mean(length, data):
    dialogues = data.draw(st.lists(st.lists(st.integers(0, 6), min_size=length, max_size=length), min_size=1))
    cumulative, mean = metrics.cumulative_and_mean(dialogues)
    assert math.isclose(cumulative, mean, rel_tol=1e-12, abs_tol=1e-12)


@pytest.mark.parametrize("bad", [None, -1, 7, float("nan")])
def test_unrated_answers_are_refused_not_counted(bad):
    with pytest.raises(ValueError, match="rating"):
        metrics.mmhal([6, bad])
    with pytest.raises(ValueError, match="rating"):
        metrics.mrhal([[6], [bad]])


def test_nothing_to_score_is_an_error():
    for call in (lambda: metrics.mmhal([]), lambda: metrics.mrhal([]), lambda: metrics.cumulative_and_mean([])):
        with pytest.raises(ValueError, match="no (ratings|dialogues) to score"):
            call()
    with pytest.raises(ValueError, match=r"dialogues\[1\] has no rounds"):
        metrics.mrhal([[6], []])
    with pytest.raises(ValueError, match="2 ratings but 1"):
        metrics.mmhal([6, 6], ["count"])
