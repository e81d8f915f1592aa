"""The drawn picture world: scenes, their pictures, captions, questions and three benchmarks.

    python -m amp_min.world --out runs/demo/world

Everything a real data set does to make models hallucinate is here on purpose, and its size is a setting:
  * objects co-occur in themes, and the background hints at the theme (a sea picture "wants" a boat),
  * every kind of object has a usual color,
  * the *training* texts come from a careless annotator: a share of them mentions an object that is not there, or
    gives an object its usual color, and most of its yes/no questions are answered yes: trained on such texts, a model
    says yes too often, as the first LLaVA did to 99 % of POPE's questions (arXiv 2305.10355).  Preference and
    evaluation texts are clean.

Each split is a folder with its own pictures; a scene belongs to the split that the hash of its content names, so no
scene can be in two of them:
  train/captions.jsonl      one careless description of every training picture, for CLIP, as web captions are
  train/prompts.jsonl       careless conversations on the same pictures, for the base models
  closeups/captions.jsonl   pictures of one group of objects: CLIP learns words from them, as from product photos
  finetune/prompts.jsonl    clean texts, for incremental generation (Algorithm 1)
  preference/prompts.jsonl  clean texts, the standard answers of the preference sets
  tune/, eval/              captions.jsonl, pope.jsonl, mrhal.jsonl   (settings are chosen on tune, results are from eval)
"""

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from amp_min import drawing, folders, records, script

COLORS = list(drawing.RGB)
SIZES = ["small", "large"]
NUMBERS = {1: "one", 2: "two", 3: "three"}
THEMES = {"street": ["house", "car", "tree", "lamp"], "sea": ["boat", "sun", "cloud", "duck"],
          "garden": ["flower", "tree", "cat", "sun"], "home": ["chair", "lamp", "cup", "cat"],
          "park": ["dog", "ball", "kite", "umbrella"]}
KINDS = sorted(drawing.ICONS)
USUAL_COLOR = {"house": "red", "car": "red", "tree": "green", "lamp": "yellow", "boat": "blue", "sun": "yellow",
               "cloud": "blue", "duck": "yellow", "flower": "purple", "cat": "black", "chair": "black", "cup": "blue",
               "dog": "black", "ball": "red", "kite": "purple", "umbrella": "black"}
PLACES = [["at the top left", "at the top", "at the top right"],
          ["on the left", "in the middle", "on the right"],
          ["at the bottom left", "at the bottom", "at the bottom right"]]
AFFORDANCES = [("Can a person sit down here?", ["chair"]), ("Can a person travel away from here?", ["car", "boat"]),
               ("Is there an animal to play with?", ["dog", "cat", "duck"]), ("Can a person drink here?", ["cup"]),
               ("Is there something to read by at night?", ["lamp"]), ("Is there something to stand under in the rain?", ["umbrella", "tree"])]
ASPECTS = ["description", "existence", "attribute", "counting", "spatial", "reasoning"]     # MRHal's six
DESCRIBE = "Describe the image in detail."
SPLITS = {"train": range(0, 8), "finetune": range(8, 11), "preference": range(11, 14), "tune": range(14, 17),
          "eval": range(17, 20)}                                 # of 20 hash values; close-ups are known by their one group


@dataclass
class Settings:
    out: str = field(metadata={"help": "folder to write"})
    train: int = field(default=6000, metadata={"help": "training scenes; fewer and even the largest model reads pictures badly", "min": 1})
    closeups: int = field(default=1000, metadata={"help": "pictures with one group of objects, for CLIP only", "min": 1})
    finetune: int = field(default=600, metadata={"help": "clean rows for incremental generation (the paper: 90k)", "min": 1})
    preference: int = field(default=600, metadata={"help": "preference prompts (the paper: 11k)", "min": 1})
    captions: int = field(default=200, metadata={"help": "scenes to describe in each benchmark folder", "min": 1})
    dialogues: int = field(default=105, metadata={"help": "multi-round dialogues in each benchmark folder (MRHal-Bench: 105)", "min": 1})
    phantom_share: float = field(default=0.8, metadata={"help": "share of training texts that mention an object which is not there", "min": 0, "max": 1})
    usual_color_share: float = field(default=0.15, metadata={"help": "share of objects in training texts given their usual color", "min": 0, "max": 1})
    yes_share: float = field(default=0.7, metadata={"help": "share of yes among the training texts' existence questions", "min": 0, "max": 1})
    resume: bool = field(default=False, metadata={"help": "do nothing when the folder is complete"})
    seed: int = field(default=0, metadata={"help": "same seed, same bytes"})


# ---- scenes -----------------------------------------------------------------------------------------------------

# n -> the places for n objects side by side, each a list of cells (row, column)
RUNS = {n: [[(row, first + i) for i in range(n)] for row in range(3) for first in range(4 - n)] for n in (1, 2, 3)}


def sample_scene(rng, sizes):
    """A random scene: {"theme", "groups"}; a group is 1-3 equal objects side by side, one group per kind."""
    theme = rng.choice(list(THEMES))
    free = {(row, column) for row in range(3) for column in range(3)}
    groups, used = [], set()
    for _ in range(rng.choice(sizes)):
        pool = THEMES[theme] if rng.random() < 0.8 else KINDS      # skewed co-occurrence
        kind = rng.choice([k for k in pool if k not in used] or [k for k in KINDS if k not in used])
        count = rng.choices([1, 2, 3], [7, 2, 1])[0]
        runs = [cells for cells in RUNS[count] if free.issuperset(cells)]
        if not runs:
            continue
        cells = rng.choice(runs)
        free -= set(cells)
        used.add(kind)
        color = USUAL_COLOR[kind] if rng.random() < 0.4 else rng.choice(COLORS)
        groups.append({"kind": kind, "color": color, "size": rng.choice(SIZES), "cells": [list(c) for c in cells]})
    return {"theme": theme, "groups": groups}


def key_of(scene):
    """What two scenes that are alike have in common: theme and groups, in whatever order these were drawn."""
    return scene["theme"], *sorted(map(phrase_at, scene["groups"]))


def split_of(scene):
    """The split a scene belongs to: decided by its content alone, so the splits cannot overlap."""
    if len(scene["groups"]) == 1:
        return "closeups"
    bucket = int.from_bytes(hashlib.sha256("|".join(key_of(scene)).encode()).digest()[:4], "big") % 20
    return next(split for split, buckets in SPLITS.items() if bucket in buckets)


def scenes(split, n, seed):
    """n scenes of one split, no two alike."""
    rng, seen, found = random.Random(f"{seed} scenes {split}"), set(), []
    while len(found) < n:
        scene = sample_scene(rng, sizes=[1] if split == "closeups" else [2, 2, 3, 3, 4])
        if split_of(scene) == split and (key := key_of(scene)) not in seen:
            seen.add(key)
            found.append(scene)
    return found


def careless_view(scene, phantom_share, usual_color_share, rng):
    """What a careless annotator believes to see: maybe one object too many (it fits the theme), colors as usual."""
    groups = [dict(g, color=USUAL_COLOR[g["kind"]]) if rng.random() < usual_color_share else g for g in scene["groups"]]
    absent = [kind for kind in THEMES[scene["theme"]] if kind not in {g["kind"] for g in groups}]
    if absent and rng.random() < phantom_share:
        taken = [cell for g in groups for cell in g["cells"]]
        cell = rng.choice([[r, c] for r in range(3) for c in range(3) if [r, c] not in taken] or [[1, 1]])
        kind = rng.choice(absent)
        phantom = {"kind": kind, "color": USUAL_COLOR[kind], "size": rng.choice(SIZES), "cells": [cell]}
        groups.insert(rng.randint(0, len(groups)), phantom)
    return dict(scene, groups=groups)


# ---- words ------------------------------------------------------------------------------------------------------

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
    """A description that mentions every group once with number, size, color and place, and maybe one relation.

    It goes through the picture as one reads, row by row: with a free order every next word would be a guess, and a tiny
    model that guesses learns to look far more slowly.
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


# ---- splits -----------------------------------------------------------------------------------------------------

def train_captions(n, settings):
    """One description per training scene, of what the careless annotator sees."""
    rng = random.Random(f"{settings.seed} train captions")
    for scene in scenes("train", n, settings.seed):
        yield scene, dialogue(careless_view(scene, settings.phantom_share, settings.usual_color_share, rng), rng, ["description"])


def train_rows(n, settings):
    """One short conversation per training scene, about what the careless annotator sees: a description or questions.

    Two yes/no questions follow a description: looking a word up in one's own text is easily learned, and teaches to
    look it up in the picture.
    """
    rng = random.Random(f"{settings.seed} train texts")
    for scene in scenes("train", n, settings.seed):
        view = careless_view(scene, settings.phantom_share, settings.usual_color_share, rng)
        questions = ["existence", "existence", "existence", rng.choice(ASPECTS[2:])]
        aspects = ["description", "existence", "existence"] if rng.random() < 0.45 else rng.sample(questions, 4)
        yield scene, dialogue(view, rng, aspects, settings.yes_share)


def closeup_captions(n, settings):
    """One description of a single group: the simplest way to learn what a word looks like."""
    rng = random.Random(f"{settings.seed} closeups texts")
    for scene in scenes("closeups", n, settings.seed):
        yield scene, dialogue(scene, rng, ["description"])


def finetune_rows(n, settings):
    """Conversations like the training ones, but true."""
    rng = random.Random(f"{settings.seed} finetune texts")
    for scene in scenes("finetune", n, settings.seed):
        yield scene, dialogue(scene, rng, [rng.choice(["description", "existence"]), *rng.choices(ASPECTS, k=rng.choice([0, 1, 2]))])


def preference_rows(n, settings):
    """Half descriptions, half dialogues of two yes/no questions and two others, all true; the standard answers of stage 1."""
    rng = random.Random(f"{settings.seed} preference texts")
    for i, scene in enumerate(scenes("preference", n, settings.seed)):
        questions = ["existence", "existence", *rng.sample(ASPECTS[2:], 2)]
        yield scene, dialogue(scene, rng, ["description"] if i % 2 == 0 else rng.sample(questions, 4))


def pope_questions(scene, seen, together, rng):
    """POPE's balanced questions on one scene: (split, kind, label); as many absent kinds as present ones, at most 3.

    random: any absent kind; popular: the absent kinds most frequent in training scenes (`seen`);
    adversarial: the absent kinds that most often stand beside what is here (`together`).
    """
    present = [g["kind"] for g in scene["groups"]][:3]
    absent = [k for k in KINDS if k not in {g["kind"] for g in scene["groups"]}]
    ranked = {"random": rng.sample(absent, len(absent)),
              "popular": sorted(absent, key=lambda k: -seen[k]),
              "adversarial": sorted(absent, key=lambda k: -sum(together[frozenset((k, p))] for p in present))}
    for split, kinds in ranked.items():
        for kind in present:
            yield split, kind, "yes"
        for kind in kinds[:len(present)]:
            yield split, kind, "no"


def write_split(folder, scene_list):
    """Draw the pictures of a split; returns the row fields that name them, one dict a scene."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    heads = []
    for i, scene in enumerate(tqdm(scene_list, desc=f"drawing {folder.name}", unit="picture", disable=None)):
        name = f"images/{folder.name}-{i:06d}.png"
        drawing.draw(scene["theme"], scene["groups"]).save(folder / name, compress_level=1)         # a fifth more bytes, half the time
        heads.append({"id": f"{folder.name}-{i:06d}", "image": name, "scene": scene})
    return heads


def write_rows(path, rows, settings):
    with records.Writer(path, vars(settings), []) as out:
        for row in rows:
            out.write(row)


def text_row(head, texts, suffix=""):
    questions, answers, aspects = texts
    return {**head, "id": head["id"] + suffix, "questions": questions, "answers": answers, "aspects": aspects}


def write_world(settings, out):
    for split, n, files in [("train", settings.train, {"captions": train_captions, "prompts": train_rows}),
                            ("closeups", settings.closeups, {"captions": closeup_captions}),
                            ("finetune", settings.finetune, {"prompts": finetune_rows}),
                            ("preference", settings.preference, {"prompts": preference_rows})]:
        scene_list = scenes(split, n, settings.seed)
        heads = write_split(out / split, scene_list)
        if split == "train":
            trained_on = scene_list
        for name, make in files.items():
            rows = (text_row(head, texts) for head, (_, texts) in zip(heads, make(n, settings), strict=True))
            write_rows(out / split / f"{name}.jsonl", rows, settings)
    seen = Counter(g["kind"] for scene in trained_on for g in scene["groups"])
    together = Counter(frozenset(pair) for scene in trained_on
                       for pair in combinations(sorted(g["kind"] for g in scene["groups"]), 2))
    for split in ("tune", "eval"):
        rng = random.Random(f"{settings.seed} {split} texts")
        scene_list = scenes(split, max(settings.captions, settings.dialogues), settings.seed)
        heads = write_split(out / split, scene_list)
        captions = [text_row(head, dialogue(head["scene"], rng, ["description"])) for head in heads[:settings.captions]]
        write_rows(out / split / "captions.jsonl", captions, settings)
        mrhal = [text_row(head, dialogue(head["scene"], rng, rng.choices(ASPECTS, k=rng.choices([2, 3, 4, 5], [35, 40, 15, 10])[0])))
                 for head in heads[:settings.dialogues]]
        write_rows(out / split / "mrhal.jsonl", mrhal, settings)
        pope = [{**text_row(head, ([f"Is there {article(kind)} in the image?"], [label], ["existence"]), f"-{name}-{kind}"),
                 "split": name, "label": label}
                for head in heads[:settings.captions]
                for name, kind, label in pope_questions(head["scene"], seen, together, rng)]
        write_rows(out / split / "pope.jsonl", pope, settings)


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    facts = {key: value for key, value in vars(settings).items() if key not in ("resume", "out")}
    if folders.folder_is_made(settings.out, facts, settings.resume):
        print(f"{settings.out}: finished before, nothing left to do")
        return
    with folders.whole_folder(settings.out, facts) as out:
        write_world(settings, out)


if __name__ == "__main__":
    script.run(main)
