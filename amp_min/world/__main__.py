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

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations

from tqdm import tqdm

from amp_min.support import folders, script, storage
from amp_min.world import drawing
from amp_min.world.scenes import careless_view, scenes
from amp_min.world.texts import article, dialogue
from amp_min.world.vocabulary import ASPECTS, KINDS


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
    """POPE's balanced questions on one scene: (split, kind, label); at most 3 present kinds, and as many absent ones.

    random: any absent kind; popular: the absent kinds most frequent in training scenes (`seen`);
    adversarial: the absent kinds that most often stand beside what is here (`together`), beside all of it.
    """
    present = [g["kind"] for g in scene["groups"]]
    absent = [k for k in KINDS if k not in present]
    ranked = {"random": rng.sample(absent, len(absent)),
              "popular": sorted(absent, key=lambda k: -seen[k]),
              "adversarial": sorted(absent, key=lambda k: -sum(together[frozenset((k, p))] for p in present))}
    for split, kinds in ranked.items():
        for kind in present[:3]:
            yield split, kind, "yes"
        for kind in kinds[:len(present[:3])]:
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
    with storage.Writer(path, vars(settings), []) as out:
        for row in rows:
            out.write(row)


def text_row(head, texts, suffix=""):
    questions, answers, aspects = texts
    return {**head, "id": head["id"] + suffix, "questions": questions, "answers": answers, "aspects": aspects}


def write_world(settings, out):
    for split, n, makers in [("train", settings.train, {"captions": train_captions, "prompts": train_rows}),
                            ("closeups", settings.closeups, {"captions": closeup_captions}),
                            ("finetune", settings.finetune, {"prompts": finetune_rows}),
                            ("preference", settings.preference, {"prompts": preference_rows})]:
        scene_list = scenes(split, n, settings.seed)
        heads = write_split(out / split, scene_list)
        if split == "train":
            trained_on = scene_list
        for name, make in makers.items():
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
