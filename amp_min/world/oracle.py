"""The exact judge of the picture world: reads every claim out of an answer and checks it against the scene.

It stands where the paper has GPT-4: it scores answers, and it is never used to rank training data (except in
one experiment, as a labelled upper bound). It reads text with regular expressions over a closed vocabulary,
so it shares no code, and no mistake, with the auto-check, which reads text with a parser and an encoder.

Three conventions, all as a reader would take the words. A relation is true when it holds on its own axis: a
tree that is further left and further down is both "to the left of" and "below". "A car" says that there is
one at least, not how many, so it is true of three cars; only "one", "two", … count. And "a car on the left"
is true of them when one of the three is there, while "cars on the left" speaks of all of them.
"""

import re
from itertools import combinations, pairwise
from typing import NamedTuple

from amp_min.world.texts import place
from amp_min.world.vocabulary import COLORS, KINDS, NUMBERS, PLACES, SIZES

COUNT = {word: n for n, word in NUMBERS.items()} | {"four": 4, "five": 5}
_KIND = "|".join(KINDS)
_NOUN = (rf"(?:(?P<number>no|the|an?|{'|'.join(COUNT)}) )?"
         rf"(?P<adjectives>(?:(?:{'|'.join(SIZES + COLORS)}) )*)(?P<kind>{_KIND})s?\b")
_PLACE = "|".join(sorted((p for row in PLACES for p in row), key=len, reverse=True))        # longest first
NOUN = re.compile(rf"\b{_NOUN}", re.I)
OR_NOUN = re.compile(rf" or (?P<kind>{_KIND})s?\b", re.I)
AT = re.compile(rf" (?:is |are )?(?P<place>{_PLACE})\b", re.I)
LOOKS = re.compile(rf" (?:is|are) (?P<value>{'|'.join(SIZES + COLORS)})\b", re.I)
# relation -> (axis, sign): the sign of its difference between the two centres, rows counted downward
AXIS = {"to the left of": (1, -1), "to the right of": (1, 1), "above": (0, -1), "below": (0, 1)}
RELATED = re.compile(rf" (?:is |are )?(?P<relation>{'|'.join(AXIS)}) the (?P<other>{_KIND})s?\b", re.I)
# What a claim is about, by its field, as the figures are broken down; every other field is a relation.
ABOUT = {"exists": "objects", "absent": "objects", "number": "numbers", "size": "sizes", "color": "colors",
         "place": "places", "place of one": "places"}


class Claim(NamedTuple):
    """One checkable statement: text[start:end] says that `kind` has `field` = `value`."""
    kind: str
    field: str          # exists, absent, number, size, color, place, place of one, or a relation's name
    value: object       # True, a number, a word, or the other kind
    start: int
    end: int


def claims(text):
    """Every claim that an answer makes, in reading order."""
    found = []
    for match in NOUN.finditer(text):
        kind, number = match["kind"].lower(), (match["number"] or "").lower()
        start, end = match.span()
        if number == "no":
            found.append(Claim(kind, "absent", True, start, end))
            while other := OR_NOUN.match(text, end):                                        # "no car or boat"
                end = other.end()
                found.append(Claim(other["kind"].lower(), "absent", True, *other.span()))
            continue
        if OR_NOUN.match(text, start - 4):                                       # taken care of above
            continue
        found.append(Claim(kind, "exists", True, start, end))
        if number in COUNT:
            found.append(Claim(kind, "number", COUNT[number], start, end))
        for adjective in re.compile(r"\w+").finditer(text, *match.span("adjectives")):
            word = adjective[0].lower()
            found.append(Claim(kind, "size" if word in SIZES else "color", word, *adjective.span()))
        if at := AT.match(text, end):
            whose = "place of one" if number in ("a", "an", "one") else "place"
            found.append(Claim(kind, whose, at["place"].lower(), *at.span("place")))
        if looks := LOOKS.match(text, end):
            word = looks["value"].lower()
            found.append(Claim(kind, "size" if word in SIZES else "color", word, *looks.span("value")))
        if beside := RELATED.match(text, end):
            relation, other = beside["relation"].lower(), beside["other"].lower()
            found.append(Claim(kind, relation, other, *beside.span("relation")))
    return found


def is_true(claim, scene):
    """Whether the scene bears the claim out; None when it is about the looks of something that is not there
    (that is one hallucination, counted once, by the claim that it exists)."""
    groups = {g["kind"]: g for g in scene["groups"]}
    group = groups.get(claim.kind)
    if claim.field in ("exists", "absent"):
        return (group is not None) == (claim.field == "exists")
    if group is None:
        return None
    if claim.field == "number":
        return len(group["cells"]) == claim.value
    if claim.field in ("size", "color"):
        return group[claim.field] == claim.value
    if claim.field == "place":
        return claim.value == place(group)
    if claim.field == "place of one":
        return claim.value in {place(group), *(PLACES[row][column] for row, column in group["cells"])}
    other = groups.get(claim.value)
    return None if other is None or other is group else related(group, claim.field, other)


def related(a, relation, b):
    """Whether group a's centre lies as the relation says, seen from group b's."""
    axis, sign = AXIS[relation]
    centre = lambda group: sum(cell[axis] for cell in group["cells"]) / len(group["cells"])
    return sign * (centre(a) - centre(b)) > 0


def tally(text, scene):
    """How many of a text's claims are false, by what they are about: {"objects": [false, decided], …}.

    Every statement counts, a repeated one again: it is what a reader meets. The undecided do not count.
    """
    counts = {about: [0, 0] for about in [*dict.fromkeys(ABOUT.values()), "relations"]}
    for claim in claims(text):
        if (true := is_true(claim, scene)) is not None:
            count = counts[ABOUT.get(claim.field, "relations")]
            count[0] += not true
            count[1] += 1
    return counts


def scene_of(row):
    """A row's scene, or None when it has none: a row from elsewhere may use that key for something else."""
    scene = row.get("scene")
    groups = scene.get("groups") if isinstance(scene, dict) else None
    return scene if isinstance(groups, list) and all(map(is_group, groups)) else None


def is_group(group):
    """Whether a JSON value is what world.py writes for a group of equal objects."""
    cells = group.get("cells") if isinstance(group, dict) else None
    in_grid = lambda cell: isinstance(cell, list) and len(cell) == 2 and all(x in (0, 1, 2) for x in cell)
    return (isinstance(cells, list) and cells != [] and all(map(in_grid, cells))
            and group.get("kind") in KINDS and group.get("size") in SIZES and group.get("color") in COLORS)


def mentioned(text):
    """The kinds of object that an answer says are there: what CHAIR counts."""
    return {claim.kind for claim in claims(text) if claim.field == "exists"}


def present(scene):
    return {group["kind"] for group in scene["groups"]}


def false_spans(text, scene):
    """Character ranges (start, end) of the false claims, for marking them on a page."""
    return sorted({(c.start, c.end) for c in claims(text) if is_true(c, scene) is False})


def rating(answer, standard, scene):
    """MMHal-Bench's scale, 0-6, decided exactly.

    Without a hallucination 3, 4, 5 or 6, with one 0, 1 or 2; within each the answer climbs with how much of
    what the standard answer says it says too: nothing, less than half, at least half, all. A wrong yes or
    no is a hallucination.
    """
    made = claims(answer)
    wanted = {claim[:3] for claim in claims(standard)}
    share = len(wanted & {claim[:3] for claim in made if is_true(claim, scene)}) / max(1, len(wanted))
    level = 3 if share == 1 else 2 if share >= 0.5 else 1 if share > 0 else 0
    opening = lambda text: re.match(r"\s*(yes|no)\b", text.lower())
    flipped = opening(standard) and opening(answer) and opening(standard)[1] != opening(answer)[1]
    if flipped or any(is_true(claim, scene) is False for claim in made):
        return min(level, 2)
    return 3 + level


def row_ratings(answers, row_standard, scene):
    """One rating per dialogue round."""
    return [rating(answer, standard, scene) for answer, standard in zip(answers, row_standard, strict=True)]


def order_quality(rows):
    """How well the order of the responses agrees with the oracle's ratings (mean over rounds).

    Rows hold "responses" with the standard answer first, and their "scene". Returns
    agreement      over pairs of *generated* answers that the oracle tells apart: share that it orders alike
    inconsistency  over adjacent pairs, best to worst and the standard answer included: share that it orders
                   the other way (the paper's 2.25 %)
    told_apart     share of the pairs of generated answers that the oracle tells apart
    """
    right = apart = pairs = wrong = adjacent = 0
    for row in rows:
        standard = row["responses"][0]["answers"]
        rated = [row_ratings(r["answers"], standard, row["scene"]) for r in row["responses"]]
        value = [sum(rounds) / len(standard) for rounds in rated]
        for i, j in combinations(range(1, len(value)), 2):
            pairs += 1
            apart += value[i] != value[j]
            right += value[i] > value[j]
        wrong += sum(a < b for a, b in pairwise(value))
        adjacent += len(value) - 1
    return {"agreement": right / max(1, apart), "inconsistency": wrong / max(1, adjacent),
            "told_apart": apart / max(1, pairs)}
