"""The drawn picture world: scenes, their pictures, captions, questions and three benchmarks.

    python -m amp_min.world --out runs/demo/world

Everything a real data set does to make models hallucinate is here on purpose, and its size is a setting:
  * objects co-occur in themes, and the background hints at the theme (a sea picture "wants" a boat),
  * every kind of object has a usual color,
  * one file of training texts comes from a careless annotator: nearly all mention an object that is not
    there, or two; some give an object its usual color; and most yes/no questions are answered yes.
    Tuned on such texts, a model says yes too often, as the first LLaVA did to 99 % of POPE's questions
    (arXiv 2305.10355). LLaVA's own were such: a language model wrote them without seeing the picture.
    All other texts are true.

Each split is a folder with its own pictures; a scene belongs to the split that the hash of its content names,
so no scene can be in two of them:
  train/captions.jsonl      one true description of every training picture, for CLIP
  train/prompts.jsonl       true conversations on the same pictures: from these the base models learn to see
  train/careless.jsonl      careless conversations on the first of them: from these they learn to invent
  closeups/captions.jsonl   pictures of one group of objects: CLIP learns words from them, as from product photos
  closeups/prompts.jsonl    true questions and answers about them, for CLIP
  finetune/prompts.jsonl    clean texts, for incremental generation (Algorithm 1)
  preference/prompts.jsonl  clean texts, the standard answers of the preference sets
  tune/, eval/              captions.jsonl, pope.jsonl, mrhal.jsonl   (settings are chosen on tune, results are from eval)
"""

import random
from collections import Counter
from dataclasses import dataclass
from itertools import combinations

from tqdm import tqdm

from amp_min.support import folders, script, storage
from amp_min.support.script import arg, needed
from amp_min.world import drawing
from amp_min.world.scenes import careless_view, scenes
from amp_min.world.texts import article, dialogue
from amp_min.world.vocabulary import ASPECTS, KINDS


@dataclass
class Settings:
    out: str = needed("folder to write")
    train: int = arg(6000, "training scenes; with fewer even the largest model reads pictures badly", min=1)
    careless: int = arg(3000, "careless conversations, on the first scenes; 200 steps read each once", min=1)
    closeups: int = arg(1000, "pictures with one group of objects, for CLIP only", min=1)
    finetune: int = arg(600, "clean rows for incremental generation (the paper: 90k)", min=1)
    preference: int = arg(600, "preference prompts (the paper: 11k)", min=1)
    captions: int = arg(200, "scenes to describe in each benchmark folder", min=1)
    dialogues: int = arg(105, "multi-round dialogues in each benchmark folder (MRHal-Bench: 105)", min=1)
    phantom_share: float = arg(0.8, "chance, twice in each careless text, of an object which is not there", min=0, max=1)
    usual_color_share: float = arg(0.25, "objects in careless texts given their usual color", min=0, max=1)
    yes_share: float = arg(0.62, "share of yes among the careless texts' existence questions", min=0, max=1)
    resume: bool = arg(False, "do nothing when the folder is complete")
    seed: int = arg(0, "same seed, same bytes")


# ---- splits ------------------------------------------------------------------------------------------------

def train_captions(n, settings):
    """One true description per training scene."""
    rng = random.Random(f"{settings.seed} train captions")
    for scene in scenes("train", n, settings.seed):
        yield scene, dialogue(scene, rng, ["description"])


def talk(rng):
    """What a training conversation is about: a description and two yes/no questions, or four questions.

    The two yes/no questions come after the description.
    Looking a word up in one's own text is easily learned, and teaches to look it up in the picture.
    """
    questions = ["existence", "existence", "existence", rng.choice(ASPECTS[2:])]
    return ["description", "existence", "existence"] if rng.random() < 0.45 else rng.sample(questions, 4)


def train_rows(n, settings):
    """One short, true conversation per training scene, as many yes as no: it pays to look."""
    rng = random.Random(f"{settings.seed} train texts")
    for scene in scenes("train", n, settings.seed):
        yield scene, dialogue(scene, rng, talk(rng))


def careless_rows(n, settings):
    """Conversations of the same kind about what the careless annotator sees, on the first scenes."""
    rng = random.Random(f"{settings.seed} careless texts")
    for scene in scenes("train", n, settings.seed):
        view = careless_view(scene, settings.phantom_share, settings.usual_color_share, rng)
        yield scene, dialogue(view, rng, talk(rng), settings.yes_share)


def closeup_rows(n, settings):
    """Questions about a single group: CLIP's text tower must know the sentences that answers are made of.

    With one group the spatial question is "Where is the dog?": its answer tells nothing but the place.
    """
    rng = random.Random(f"{settings.seed} closeups questions")
    for scene in scenes("closeups", n, settings.seed):
        yield scene, dialogue(scene, rng, ["existence", "existence", "attribute", "counting", "spatial"])


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
    """Half descriptions, half dialogues of two yes/no questions and two others, all true; the standard
    answers of stage 1."""
    rng = random.Random(f"{settings.seed} preference texts")
    for i, scene in enumerate(scenes("preference", n, settings.seed)):
        questions = ["existence", "existence", *rng.sample(ASPECTS[2:], 2)]
        yield scene, dialogue(scene, rng, ["description"] if i % 2 == 0 else rng.sample(questions, 4))


def pope_questions(scene, seen, together, rng):
    """POPE's balanced questions on one scene: (split, kind, label); at most 3 present kinds, and as many
    absent ones.

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
        # a fifth more bytes, half the time
        drawing.draw(scene["theme"], scene["groups"]).save(folder / name, compress_level=1)
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
    training = {"captions": train_captions, "prompts": train_rows, "careless": careless_rows}
    closeups = {"captions": closeup_captions, "prompts": closeup_rows}
    for split, n, makers in [("train", settings.train, training), ("closeups", settings.closeups, closeups),
                            ("finetune", settings.finetune, {"prompts": finetune_rows}),
                            ("preference", settings.preference, {"prompts": preference_rows})]:
        scene_list = scenes(split, n, settings.seed)
        heads = write_split(out / split, scene_list)
        if split == "train":
            trained_on = scene_list
        for name, make in makers.items():
            many = min(n, settings.careless) if name == "careless" else n
            made = zip(heads[:many], make(many, settings), strict=True)
            rows = (text_row(head, texts) for head, (_, texts) in made)
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
