"""Which scenes there are, and which split each belongs to."""

import hashlib
import random

from amp_min.world.texts import phrase_at
from amp_min.world.vocabulary import COLORS, KINDS, SIZES, THEMES, USUAL_COLOR

SPLITS = {"train": range(0, 8), "finetune": range(8, 11), "preference": range(11, 14), "tune": range(14, 17),
          "eval": range(17, 20)}  # of 20 hash values; close-ups are known by their one group


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
    """What a careless annotator believes to see: colors as usual, and up to two objects too many that fit the
    theme. phantom_share: the chance of each of the two."""
    groups = [dict(g, color=USUAL_COLOR[g["kind"]]) if rng.random() < usual_color_share else g for g in scene["groups"]]
    for _ in range(2):
        absent = [kind for kind in THEMES[scene["theme"]] if kind not in {g["kind"] for g in groups}]
        if not absent or rng.random() >= phantom_share:
            continue
        taken = [cell for g in groups for cell in g["cells"]]
        cell = rng.choice([[r, c] for r in range(3) for c in range(3) if [r, c] not in taken] or [[1, 1]])
        kind = rng.choice(absent)
        phantom = {"kind": kind, "color": USUAL_COLOR[kind], "size": rng.choice(SIZES), "cells": [cell]}
        groups.insert(rng.randint(0, len(groups)), phantom)
    return dict(scene, groups=groups)
