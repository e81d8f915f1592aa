"""The drawn world: same bytes again, splits that share no scene, texts as careless as they are set to be, balanced questions."""
import hashlib
import json
import random
from collections import Counter
from math import sqrt
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from amp_min import records
from amp_min.world import __main__ as world
from amp_min.world import drawing, oracle, scenes, texts, vocabulary

SPLITS = ["train", "closeups", "finetune", "preference", "tune", "eval"]
SIZE = ["--train", "4", "--closeups", "2", "--finetune", "2", "--preference", "2", "--captions", "2", "--dialogues", "2"]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def rows_of(folder):
    """Every row of every split: {split: rows}."""
    return {split: [row for path in sorted((folder / split).glob("*.jsonl")) for row in lines(path)] for split in SPLITS}


def content(scene):
    return scene["theme"], tuple(sorted(map(texts.phrase_at, scene["groups"])))


# ---- the folder ----

def test_same_seed_same_bytes(tmp_path):
    def bytes_of(name, *flags):
        world.main(["--out", str(tmp_path / name), *SIZE, *flags])
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file() and not path.name.endswith(".meta.json"))
        return {str(path.relative_to(tmp_path / name)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    one, two, other = bytes_of("one"), bytes_of("two"), bytes_of("other", "--seed", "1")
    assert one == two and one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


def test_rows_pictures_and_meta_files(tiny_world):
    sizes = {"train": 3 * 24, "closeups": 2 * 12, "finetune": 8, "preference": 10}
    for split, rows in rows_of(tiny_world).items():
        assert len(rows) == sizes.get(split, len(rows))
        for row in rows:
            with Image.open(tiny_world / split / row["image"]) as picture:
                assert picture.format == "PNG" and picture.size == (96, 96) and picture.mode == "RGB"
                assert picture.tobytes() == drawing.draw(row["scene"]["theme"], row["scene"]["groups"]).tobytes()
            assert len(row["questions"]) == len(row["answers"]) == len(row["aspects"]) == len(set(row["questions"]))
        for path in (tiny_world / split).glob("*.jsonl"):
            assert len(list(records.read(path, "prompt"))) == len(lines(path))
            assert json.loads(Path(f"{path}.meta.json").read_text(encoding="utf-8"))["rows"]["kept"] == len(lines(path))


def test_every_kind_has_an_icon_of_its_own_in_every_color():
    assert len(vocabulary.KINDS) >= 12 and set(vocabulary.USUAL_COLOR) == set(vocabulary.KINDS)
    assert set(vocabulary.KINDS) == {kind for kinds in vocabulary.THEMES.values() for kind in kinds}
    drawn = {drawing.draw("sea", [{"kind": kind, "color": color, "size": size, "cells": [[1, 1]]}]).tobytes()
             for kind in vocabulary.KINDS for color in vocabulary.COLORS for size in vocabulary.SIZES}
    assert len(drawn) == len(vocabulary.KINDS) * len(vocabulary.COLORS) * len(vocabulary.SIZES)


# ---- splits ----

def test_splits_share_no_scene(tiny_world):
    owner = {}
    for split, rows in rows_of(tiny_world).items():
        for row in rows:
            assert scenes.split_of(row["scene"]) == split
            assert owner.setdefault(content(row["scene"]), split) == split
    assert sum(1 for split in owner.values() if split == "train") == 24          # and no two scenes of a split are alike


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([[1], [2], [3], [4]]))
def test_scenes_are_sound_and_their_split_is_their_contents(rng, sizes):
    scene = scenes.sample_scene(rng, sizes)
    cells = [tuple(cell) for group in scene["groups"] for cell in group["cells"]]
    assert len(set(cells)) == len(cells) and all(0 <= row < 3 and 0 <= column < 3 for row, column in cells)
    assert len({group["kind"] for group in scene["groups"]}) == len(scene["groups"]) >= 1
    for group in scene["groups"]:
        assert len({row for row, _ in group["cells"]}) == 1
        columns = [column for _, column in group["cells"]]
        assert columns == list(range(columns[0], columns[0] + len(columns)))
    shuffled = dict(scene, groups=rng.sample(scene["groups"], len(scene["groups"])))
    assert scenes.split_of(shuffled) == scenes.split_of(json.loads(json.dumps(scene)))


# ---- texts ----

@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(vocabulary.ASPECTS))
def test_clean_answers_are_rated_6_by_the_oracle(seed, aspect):
    rng = random.Random(seed)
    scene = scenes.sample_scene(rng, [1, 2, 3, 4])
    question, answer = texts.ask(aspect, scene, rng)
    assert oracle.rating(answer, answer, scene) == 6, (question, answer)
    assert oracle.false_spans(answer, scene) == [] and (aspect == "existence" and answer[:2] == "No" or oracle.claims(answer))


def test_only_the_careless_texts_are_careless(tiny_world):
    for path in sorted(tiny_world.glob("*/*.jsonl")):
        clean = [oracle.rating(answer, answer, row["scene"]) == 6 for row in lines(path) if "label" not in row for answer in row["answers"]]
        assert all(clean) == (path.name != "careless.jsonl"), path


def test_training_texts_are_as_careless_as_they_are_set_to_be():
    n, chosen = 400, world.Settings(out="")
    descriptions = phantoms = wrong_colors = groups = yes = existence = 0
    for scene, (questions, answers, aspects) in world.careless_rows(4 * n, chosen):
        full = set(vocabulary.THEMES[scene["theme"]]) <= oracle.present(scene)        # nothing is left to invent
        if aspects[0] != "description" or full:
            continue
        descriptions, described = descriptions + 1, answers[0]
        phantoms += bool(oracle.mentioned(described) - oracle.present(scene))
        for claim in oracle.claims(described):
            if claim.field == "color" and claim.kind in oracle.present(scene):
                groups += 1
                wrong_colors += not oracle.is_true(claim, scene)
    for scene, (questions, answers, aspects) in world.careless_rows(n, chosen):
        for answer, aspect in zip(answers, aspects):
            existence += aspect == "existence"
            yes += aspect == "existence" and answer.startswith("Yes")
    def close(count, of, share):                                 # 4 standard deviations of a binomial
        return abs(count - of * share) < 4 * sqrt(of * share * (1 - share))
    assert close(phantoms, descriptions, 1 - (1 - chosen.phantom_share) ** 2)                # two chances
    assert groups > 2 * n and 0 < wrong_colors < groups * chosen.usual_color_share           # some had that color anyway
    # No question twice: a few repeated questions are replaced, which moves the share a little.
    assert abs(yes / existence - chosen.yes_share) < 0.1


def test_careless_view_changes_only_what_it_is_set_to():
    for seed in range(50):
        rng = random.Random(seed)
        scene = scenes.sample_scene(rng, [2, 3])
        assert scenes.careless_view(scene, 0.0, 0.0, rng) == scene
        view = scenes.careless_view(scene, 1.0, 0.0, rng)
        extra = [group for group in view["groups"] if group not in scene["groups"]]
        absent = set(vocabulary.THEMES[scene["theme"]]) - oracle.present(scene)
        assert len(extra) == min(2, len(absent)) and len(view["groups"]) == len(scene["groups"]) + len(extra)
        assert {group["kind"] for group in extra} <= absent and len({group["kind"] for group in extra}) == len(extra)
        assert all(g["color"] == vocabulary.USUAL_COLOR[g["kind"]] for g in scenes.careless_view(scene, 0.0, 1.0, rng)["groups"])


# ---- benchmarks ----

@pytest.mark.parametrize("split", ["tune", "eval"])
def test_pope_is_balanced_in_every_scene_and_split(tiny_world, split):
    rows = lines(tiny_world / split / "pope.jsonl")
    assert len({row["id"] for row in rows}) == len(rows)
    by_scene = {}
    for row in rows:
        kind = row["questions"][0].removeprefix("Is there ").removesuffix(" in the image?").split()[1]
        assert row["answers"] == [row["label"]] and (kind in oracle.present(row["scene"])) == (row["label"] == "yes")
        by_scene.setdefault(row["image"], {}).setdefault(row["split"], []).append((kind, row["label"]))
    assert len(by_scene) == 6
    for splits in by_scene.values():
        assert set(splits) == {"random", "popular", "adversarial"}
        for asked in splits.values():
            labels = Counter(label for _, label in asked)
            assert labels["yes"] == labels["no"] >= 1 and len(set(asked)) == len(asked)


def test_popular_and_adversarial_follow_the_counts():
    scene = {"theme": "sea", "groups": [{"kind": "boat", "color": "red", "size": "small", "cells": [[0, 0]]}]}
    seen = Counter(car=9, boat=20, sun=5)
    together = Counter({frozenset(("boat", "duck")): 7, frozenset(("car", "sun")): 9})
    asked = {split: kind for split, kind, label in world.pope_questions(scene, seen, together, random.Random(0)) if label == "no"}
    assert asked["popular"] == "car" and asked["adversarial"] == "duck" and asked["random"] != "boat"


def test_mrhal_has_2_to_5_rounds_and_six_aspects(tiny_world):
    rows = [row for split in ("tune", "eval") for row in lines(tiny_world / split / "mrhal.jsonl")]
    assert len(rows) == 24 and {2, 3} <= {len(row["questions"]) for row in rows} <= {2, 3, 4, 5}
    assert {aspect for row in rows for aspect in row["aspects"]} == set(vocabulary.ASPECTS) and len(vocabulary.ASPECTS) == 6


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.sampled_from(vocabulary.ASPECTS), min_size=1, max_size=5))
def test_a_dialogue_asks_no_question_twice(rng, aspects):
    questions, answers, found = texts.dialogue(scenes.sample_scene(rng, [2, 3]), rng, aspects)
    assert len(questions) == len(set(questions)) == len(answers) == len(found) == len(aspects)
