"""Scores for answers: POPE, CHAIR, false claims, and the arithmetic of judged benchmarks. Counting only.

One rule for divisions by zero: where the *answers* make a denominator 0 (a model that never says yes has no
precision, a caption that mentions nothing no CHAIR_i) the share is 0.0. With nothing to score, ValueError:
a hallucination rate of 0.0 over no answers would look like a perfect model.

Departure from AMP's released code: its summary of MRHal-Bench calls a dialogue hallucinated when its mean
rating is below 3; here, as in Eq. 8, every round's rating is compared with 3 and the indicators are averaged.
"""

import re

HALLUCINATED_BELOW = 3  # of 0–6: ratings 3 to 6 say "no hallucination", 0 to 2 "with hallucination"

# What a figure is called on page and terminal, and which way is better. Shares lie in 0–1, scores in 0–6.
NAMES = {
    "false_claims_greedy": "false claims, greedy ↓", "false_claims_sampled": "false claims, sampled ↓",
    "chair_i_greedy": "CHAIR_i, greedy ↓", "chair_i_sampled": "CHAIR_i, sampled ↓",
    "chair_s_greedy": "CHAIR_s, greedy ↓", "chair_s_sampled": "CHAIR_s, sampled ↓",
    "coverage_greedy": "coverage, greedy ↑", "coverage_sampled": "coverage, sampled ↑",
    "pope_accuracy": "POPE accuracy ↑", "pope_random_f1": "POPE F1, random ↑",
    "pope_popular_f1": "POPE F1, popular ↑",
    "pope_adversarial_f1": "POPE F1, adversarial ↑", "pope_yes_ratio": "POPE yes-ratio",
    "pope_unclear": "POPE, neither yes nor no ↓",
    "mrhal_score_cumulative": "MRHal score 0-6, cumulative ↑", "mrhal_score_mean": "MRHal score, mean ↑",
    "mrhal_hallucination_cumulative": "MRHal hallucination, cumulative ↓",
    "mrhal_hallucination_mean": "MRHal hallucination, mean ↓",
}


def _share(part, whole):
    return part / whole if whole else 0.0


def _check(name, items, *others):
    """At least one item, and every other list as long."""
    if not items:
        raise ValueError(f"no {name} to score")
    for other in others:
        if len(other) != len(items):  # zip would silently drop the tail
            raise ValueError(f"{len(items)} {name} but {len(other)} entries beside them")


# ---- POPE: "Is there a cat in the image?" ----

def pope_answer(text):
    """"yes" or "no", exactly as POPE's own evaluate.py reads an answer (github.com/AoiDragon/POPE).

    The text before the first ".", commas removed, split at single spaces: "no" if one of these words is No,
    not or no; all else is "yes". So "Not sure.", "Nobody", "NO", "No!" and the empty answer count as yes.
    Kept as it is, because published numbers contain it; watch yes_ratio for a model that profits from it.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if "No" in words or "not" in words or "no" in words else "yes"


def pope_unclear(answers):
    """Share of answers in whose first sentence neither yes nor no stands as a word.

    POPE's own reading counts nearly all of them as yes: a mute model has a yes_ratio of 1.0; this shows it.
    """
    _check("answers", answers)
    return sum(not re.search(r"\b(yes|no)\b", text.split(".")[0], re.I) for text in answers) / len(answers)


def pope(answers, labels):
    """POPE: answers (texts) against labels ("yes" | "no"), with "yes" the positive class.

    Returns accuracy, precision, recall, f1 and yes_ratio (share of answers read as yes; on POPE's balanced
    splits the truth is 0.5), each in 0–1. ValueError for empty or unequal lists or a label that is neither.
    """
    _check("answers", answers, labels)
    for n, label in enumerate(labels):
        if label not in ("yes", "no"):
            raise ValueError(f'labels[{n}] is {label!r}: expected "yes" or "no"')
    said = [pope_answer(text) for text in answers]
    tp = sum(s == "yes" and t == "yes" for s, t in zip(said, labels))
    right = sum(s == t for s, t in zip(said, labels))
    precision = _share(tp, said.count("yes"))
    recall = _share(tp, labels.count("yes"))
    return {
        "accuracy": right / len(labels),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": said.count("yes") / len(said),
    }


# ---- CHAIR: objects that a caption makes up ----

def chair(mentioned, present):
    """CHAIR (Rohrbach et al. 2018): per caption, the set of objects it mentions and the set its image shows.

    chair_i   hallucinated / mentioned objects, both summed over all captions (micro: long ones weigh more)
    chair_s   captions with at least one hallucinated object / captions, also those that mention nothing
    coverage  present objects that were mentioned / present objects, micro too. Report it beside the others:
              a model that says nothing has a perfect CHAIR.
    Sets: an object counts once a caption, where the original script counts repeated mentions.
    """
    _check("captions", mentioned, present)
    pairs = [(set(said), set(shown)) for said, shown in zip(mentioned, present)]
    return {
        "chair_i": _share(sum(len(said - shown) for said, shown in pairs),
                          sum(len(said) for said, _ in pairs)),
        "chair_s": sum(bool(said - shown) for said, shown in pairs) / len(pairs),
        "coverage": _share(sum(len(said & shown) for said, shown in pairs),
                           sum(len(shown) for _, shown in pairs)),
    }


# ---- All claims that can be checked, not objects only ----

def false_claims(counts):
    """(share of false claims, {about: [false, decided]} summed) over {about: [false, decided]} a description.

    Micro, like chair_i: summed first, so a long description weighs more. It is the red on the report's page,
    of which CHAIR counts the objects alone. A model that claims nothing has 0.0: read it beside coverage.
    """
    _check("descriptions", counts)
    total = {about: [sum(count[about][i] for count in counts) for i in (0, 1)] for about in counts[0]}
    false, decided = (sum(two[i] for two in total.values()) for i in (0, 1))
    return _share(false, decided), total


# ---- Ratings from 0 to 6: MMHal-Bench and MRHal-Bench ----

def _check_ratings(ratings):
    for rating in ratings:
        if rating is None or not 0 <= rating <= 6:
            raise ValueError(f"rating {rating!r} is not a number from 0 to 6; leave unrated answers out")


def mmhal(ratings, types=None):
    """MMHal-Bench: mean score (0–6) and hallucination rate (share of ratings below 3), also per type.

    ratings: one a question; types: a name a question. Returns score, hallucination, n, and with types
    per_type: {type: {score, hallucination, n}} in order of first appearance.
    """
    _check("ratings", ratings, *([] if types is None else [types]))
    _check_ratings(ratings)
    result = {
        "score": sum(ratings) / len(ratings),
        "hallucination": sum(r < HALLUCINATED_BELOW for r in ratings) / len(ratings),
        "n": len(ratings),
    }
    if types is not None:
        result["per_type"] = {
            name: mmhal([r for r, t in zip(ratings, types) if t == name]) for name in dict.fromkeys(types)
        }
    return result


def llava_bench(scores, categories=None):
    """LLaVA-Bench: the judge's scores (1–10) of the model's answers in per cent of the reference answers'.

    scores: (reference's, model's) a question; categories: a name each. Returns relative, 100 · mean(model)
    / mean(reference), the two means, n, and with categories per_category in order of first appearance.
    """
    _check("scores", scores, *([] if categories is None else [categories]))
    for pair in scores:
        if len(pair) != 2 or not all(1 <= score <= 10 for score in pair):
            raise ValueError(f"scores {pair!r} are not two numbers from 1 to 10; leave unrated answers out")
    reference, model = (sum(pair[i] for pair in scores) / len(scores) for i in (0, 1))
    result = {"relative": 100 * model / reference, "reference": reference, "model": model, "n": len(scores)}
    if categories is not None:
        result["per_category"] = {name: llava_bench([s for s, c in zip(scores, categories) if c == name])
                                  for name in dict.fromkeys(categories)}
    return result


def cumulative_and_mean(dialogues):
    """Eq. 8 over per-round values r_ij of N dialogues, which may differ in length: (cumulative, mean).

    cumulative: every round weighs the same; mean: every dialogue does. They part where length and quality
    go together. ValueError for no dialogues, or one without rounds, which has no mean.
    """
    _check("dialogues", dialogues)
    for n, rounds in enumerate(dialogues):
        if not rounds:
            raise ValueError(f"dialogues[{n}] has no rounds")
    cumulative = sum(map(sum, dialogues)) / sum(map(len, dialogues))                        # Eq. 8, left
    mean = sum(sum(rounds) / len(rounds) for rounds in dialogues) / len(dialogues)          # Eq. 8, right
    return cumulative, mean


def mrhal(dialogues):
    """MRHal-Bench: Eq. 8 of the ratings (0–6) and of the hallucination indicators (below 3), round by round.

    dialogues: a list of ratings each. Returns score_cumulative, score_mean, hallucination_cumulative,
    hallucination_mean.
    """
    for rounds in dialogues:
        _check_ratings(rounds)
    score = cumulative_and_mean(dialogues)
    hallucination = cumulative_and_mean([[r < HALLUCINATED_BELOW for r in rounds] for rounds in dialogues])
    return {
        "score_cumulative": score[0],
        "score_mean": score[1],
        "hallucination_cumulative": hallucination[0],
        "hallucination_mean": hallucination[1],
    }
