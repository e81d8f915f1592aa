"""What is said about a scene: descriptions, questions of MRHal's six aspects, and their answers, all true of
the scene."""

from amp_min.world.vocabulary import (
    AFFORDANCES,
    ASPECTS,
    DESCRIBE,
    KINDS,
    NUMBERS,
    PLACES,
)


def place(group):
    """Where a group is: the cell of a single object, the row of several."""
    row, column = group["cells"][0]
    return PLACES[row][column if len(group["cells"]) == 1 else 1]


def relation(a, b):
    """Where group a is as seen from group b, along the axis on which they are further apart."""
    centre = lambda g: [sum(cell[axis] for cell in g["cells"]) / len(g["cells"]) for axis in (0, 1)]
    (row_a, column_a), (row_b, column_b) = centre(a), centre(b)
    if abs(column_a - column_b) >= abs(row_a - row_b):
        return "to the left of" if column_a < column_b else "to the right of"
    return "above" if row_a < row_b else "below"


def noun(group):
    return group["kind"] + ("s" if len(group["cells"]) > 1 else "")


def verb(group):
    return "are" if len(group["cells"]) > 1 else "is"


def article(word):
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def phrase(group):
    """'a small red car' or 'two large green trees'."""
    n = len(group["cells"])
    return f"{'a' if n == 1 else NUMBERS[n]} {group['size']} {group['color']} {noun(group)}"


def phrase_at(group):
    """A group's whole content as text: two scenes are the same if their groups' texts are."""
    return f"{phrase(group)} in {group['cells']}"


def describe(scene, rng):
    """A description that mentions every group once with number, size, color and place, and maybe one
    relation.

    It goes through the picture as one reads, row by row: with a free order every next word would be a guess,
    and a tiny model that guesses learns to look far more slowly.
    """
    groups = sorted(scene["groups"], key=lambda g: g["cells"][0])
    first = f"The image shows {phrase(groups[0])} {place(groups[0])}"
    rest = groups[1:]
    if rest and rng.random() < 0.5:
        first += f" and {phrase(rest[0])} {place(rest[0])}"
        rest = rest[1:]
    sentences = [first + "."] + [f"There {verb(g)} {phrase(g)} {place(g)}." for g in rest]
    if len(groups) > 1 and rng.random() < 0.5:
        a, b = rng.sample(groups, 2)
        sentences.append(f"The {noun(a)} {verb(a)} {relation(a, b)} the {noun(b)}.")
    return " ".join(sentences)


def ask(aspect, scene, rng, yes_share=0.5):
    """One question of an aspect and its answer, true of `scene`: (question, answer)."""
    present = {g["kind"]: g for g in scene["groups"]}
    group = rng.choice(scene["groups"])
    if aspect == "description":
        return DESCRIBE, describe(scene, rng)
    if aspect == "existence":
        kind = group["kind"] if rng.random() < yes_share else rng.choice([k for k in KINDS if k not in present])
        some = present.get(kind)
        answer = f"Yes, there {verb(some)} {article(kind) if verb(some) == 'is' else noun(some)}." if some else f"No, there is no {kind}."
        return f"Is there {article(kind)} in the image?", answer
    if aspect == "attribute":
        return f"What color {verb(group)} the {noun(group)}?", f"The {noun(group)} {verb(group)} {group['color']}."
    if aspect == "counting":
        number = NUMBERS[len(group["cells"])]
        return f"How many {group['kind']}s are there in the image?", f"There {verb(group)} {number} {noun(group)} in the image."
    if aspect == "spatial":
        other = rng.choice([g for g in scene["groups"] if g is not group] or [None])
        if other is None:
            return f"Where {verb(group)} the {noun(group)}?", f"The {noun(group)} {verb(group)} {place(group)}."
        return (f"Where {verb(group)} the {noun(group)} relative to the {noun(other)}?",
                f"The {noun(group)} {verb(group)} {relation(group, other)} the {noun(other)}.")
    question, kinds = rng.choice(AFFORDANCES)                                              # reasoning
    found = [k for k in kinds if k in present]
    if found:
        return question, f"Yes, because there {verb(present[found[0]])} {phrase(present[found[0]])}."
    return question, f"No, because there is no {' or '.join(kinds)}."


def dialogue(scene, rng, aspects, yes_share=0.5):
    """One round per aspect, no question twice: (questions, answers, aspects)."""
    rounds = {}
    for aspect in aspects:
        while (asked := ask(aspect, scene, rng, yes_share))[0] in rounds:
            aspect = rng.choice(ASPECTS)
        rounds[asked[0]] = (asked[1], aspect)
    return list(rounds), [answer for answer, _ in rounds.values()], [aspect for _, aspect in rounds.values()]
