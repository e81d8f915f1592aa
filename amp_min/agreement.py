"""How far the auto-check orders answers as people do: pairwise agreement, with intervals.

    python -m amp_min.agreement --preferences paper.jsonl whole.jsonl --out agreement.json

Every input is a file of verify.py whose rows were given, on each response, the share of people who called it right:

    {"id": "photo-17", ..., "responses": [{"source": "standard", ...}, {"source": "small", ..., "human_accuracy": 0.8},
     {"source": "large", ..., "human_accuracy": 0.2}], "initial_order": [0, 2, 1]}

Agreement is the share of the pairs of generated answers of one picture, among those that people rate differently, that
stand in the people's order: over all such pairs, and over the clear ones, whose ratings lie at least 0.4 apart.
Intervals (95 %) come from drawing pictures, not pairs, with replacement: pairs of one picture stand or fall together.

With several files (one method each, the same pictures) it also tells what choosing among them is worth elsewhere: the
best file on a random half of the pictures is scored on the other half, and both are averaged over many splits.
"""
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from amp_min import records
from amp_min.support import script, storage
from amp_min.support.script import UserError

CLEAR = 0.4              # two of five people: less is within what one person's mood decides
DRAWS = 2000             # of pictures for an interval, and of splits: the third digit is stable

# P pictures. Counts are (P, 2): of each picture the pairs in the people's order, and all of its pairs.


@dataclass
class Settings:
    preferences: list[str] = field(metadata={"help": "ranked rows with people's ratings, one file a method"})
    out: str = field(metadata={"help": "the figures as JSON"})
    seed: int = field(default=0, metadata={"help": "of the draws"})


def count_pairs(rows, apart=0.0):
    """(P, 2) pairs of generated answers in the people's order, and pairs in all, whose ratings differ by >= `apart`."""
    counts = np.zeros((len(rows), 2))
    for p, row in enumerate(rows):
        people = [response["human_accuracy"] for response in row["responses"][1:]]       # in the auto-check's order
        for better, worse in combinations(people, 2):
            if better != worse and abs(better - worse) > apart - 1e-9:                   # 0.6 - 0.2 is not quite 0.4
                counts[p] += better > worse, 1
    return counts


def share(counts):
    """(..., P, 2) -> (...): pairs in the people's order / pairs."""
    right, pairs = np.moveaxis(counts.sum(axis=-2), -1, 0)
    return right / np.maximum(pairs, 1)


def interval(counts, generator):
    """The 95 % interval of share(counts) over pictures drawn with replacement: [low, high]."""
    drawn = generator.integers(len(counts), size=(DRAWS, len(counts)))                   # (DRAWS, P)
    return np.quantile(share(counts[drawn]), [0.025, 0.975]).tolist()


def choose_on_half(every, clear, generator):
    """Choose the file that agrees best on a random half, score it on the other: mean shares, and how often each won.

    every, clear: (files, P, 2) counts over all pairs and over the clear ones.
    """
    P, results, chosen = every.shape[1], [], np.zeros(len(every), dtype=int)
    for _ in range(DRAWS):
        order = generator.permutation(P)
        seen, unseen = order[:P // 2], order[P // 2:]
        best = share(every[:, seen]).argmax()
        chosen[best] += 1
        results.append((share(every[best, unseen]), share(clear[best, unseen])))
    return np.mean(results, axis=0).tolist(), (chosen / DRAWS).tolist()


def read_rows(path):
    rows = sorted(records.read(path, "preference"), key=lambda row: row["id"])
    for row in rows:
        for k, response in enumerate(row["responses"][1:], 1):
            if not isinstance(response.get("human_accuracy"), (int, float)):
                raise UserError(f"{path}: row {row['id']!r}: responses[{k}] lacks \"human_accuracy\", a number: the "
                                "share of people who called the answer right")
    return rows


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    files = [read_rows(path) for path in settings.preferences]
    ids = [row["id"] for row in files[0]]
    for path, rows in zip(settings.preferences, files):
        if [row["id"] for row in rows] != ids:
            raise UserError(f"{path}: other rows than in {settings.preferences[0]}; rank the same candidates")
    every, clear = (np.stack([count_pairs(rows, apart) for rows in files]) for apart in (0.0, CLEAR))
    if len(ids) < 2 or not clear[0].any():
        raise UserError(f"{settings.preferences[0]}: no two answers of a picture are rated {CLEAR} apart")
    found = {"pictures": len(ids), "pairs": int(every[0, :, 1].sum()), "clear_pairs": int(clear[0, :, 1].sum()),
             "methods": {}}
    print(f"{len(ids)} pictures, {found['pairs']} pairs rated differently, {found['clear_pairs']} of them clearly")
    for path, a, b in zip(settings.preferences, every, clear):
        generator = np.random.default_rng(settings.seed)            # the same draws of pictures for every file
        found["methods"][path] = {"all": share(a), "all_interval": interval(a, generator),
                                  "clear": share(b), "clear_interval": interval(b, generator)}
        print(f"{share(a):.3f} all, {share(b):.3f} clear   {path}")
    if len(files) > 1:
        (a, b), chosen = choose_on_half(every, clear, np.random.default_rng(settings.seed))
        found["chosen_on_half"] = {"all": a, "clear": b, "chosen": dict(zip(settings.preferences, chosen))}
        print(f"{a:.3f} all, {b:.3f} clear   on the other half, when chosen on one")
    storage.write_json(settings.out, found | {"seed": settings.seed, "versions": storage.versions()})


if __name__ == "__main__":
    script.run(main)
