"""generate.py: the rows of its own header, perturbed levels, and what a user can get wrong.

test_pipeline.py starts it as a reader does; here it runs in this process, through its main().
"""
import json
import shutil

import pytest
from test_pipeline import lines, meta

import generate
from amp_min import records
from amp_min.support import script
from amp_min.support.script import UserError


def run(*flags):
    generate.main([str(flag) for flag in flags])


def header_rows():
    return [json.loads(part) for part in generate.__doc__.split("\n\n") if part.lstrip().startswith("{")]


def test_the_rows_of_the_header(family, tiny_world, tmp_path):
    """Its input row, answered by two models of these names, becomes its output row but for what they say."""
    given, promised = header_rows()
    picture = next((tiny_world / "eval" / "images").iterdir())
    (tmp_path / given["image"]).write_bytes(picture.read_bytes())
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps(given) + "\n", encoding="utf-8")
    for name in "llava-34b", "llava-13b":
        shutil.copytree(family / "llava-2b", tmp_path / name)
    run("--models", tmp_path / "llava-34b", tmp_path / "llava-13b", "--prompts", prompts,
        "--out", tmp_path / "out.jsonl", "--max-new-tokens", 4)
    (made,) = records.read(tmp_path / "out.jsonl", "candidate")
    for response in made["responses"][1:] + promised["responses"][1:]:
        response["answers"] = len(response["answers"])
    assert made == promised


# ---- perturb ----

def perturbed(tiny_world, out, *flags):
    prompts = tiny_world / "preference" / "prompts.jsonl"
    run("--strategy", "perturb", "--prompts", prompts, "--out", out, *flags)
    return list(records.read(out, "candidate"))


def test_perturb_changes_a_share_of_the_words(tiny_world, tmp_path):
    shares = ["--shares", "0.1", "0.5", "1"]
    rows = perturbed(tiny_world, tmp_path / "one.jsonl", *shares)
    assert rows == perturbed(tiny_world, tmp_path / "two.jsonl", *shares)                     # the same seed
    changed = {}
    for row in rows:
        standard, *others = row["responses"]
        for response in others:
            for text, worse in zip(standard["answers"], response["answers"], strict=True):
                pairs = list(zip(text.split(), worse.split(), strict=True))                   # a word for a word
                changed.setdefault(response["source"], []).append(sum(a != b for a, b in pairs) / len(pairs))
    assert list(changed) == ["perturb-10", "perturb-50", "perturb-100"]
    mean = [sum(shares) / len(shares) for shares in changed.values()]
    assert 0 < mean[0] < mean[1] < mean[2] < 1                          # verbs and articles are never changed
    assert perturbed(tiny_world, tmp_path / "three.jsonl", *shares, "--seed", 1) != rows


# ---- what a user can get wrong ----

@pytest.mark.parametrize("flags, message", [
    (["--models"], "--models"),
    (["--strategy", "perturb", "--models", "m"], "--strategy perturb takes no --models"),
    ([], "meg and ig need at least one"),
    (["--models", "a/m", "b/m"], "two of m, m have the same name"),
    (["--models", "a/standard"], "standard is no name for a model here"),
    (["--models", "m", "--out", "."], "--out .: is a folder, or the prompts themselves"),
    (["--models", "m", "--out", "./p.jsonl"], "--out ./p.jsonl: is a folder, or the prompts themselves"),
    (["--models", "m", "--only", "n"], "--only n: choose join or one of m"),
])
def test_flags(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.run(lambda: run("--prompts", "p.jsonl", "--out", tmp_path / "o.jsonl", *flags))
    assert stopped.value.code == 2 and message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_answers_to_other_questions_are_not_joined(tiny_world, family, tmp_path):
    """--only makes the answers in runs of their own; between them prompts or settings may have changed."""
    rows = lines(tiny_world / "preference" / "prompts.jsonl")[:2]
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    write = lambda: prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--models", family / "llava-7b", family / "llava-2b", "--prompts", prompts, "--out", out, "--beams", 1,
             "--max-new-tokens", 3, "--image-root", tiny_world / "preference"]
    answered = lambda *more: run(*flags, *more)
    write()
    answered("--only", "llava-7b")
    answered("--only", "llava-2b", "--batch", 1)                         # a batch size may differ
    answered("--only", "join")

    def other_limit():
        answered("--only", "llava-7b", "--max-new-tokens", 4)

    def other_question():
        rows[0]["questions"][0] = "What else?"
        write()
        answered("--only", "llava-7b")

    for change, name in (other_limit, "llava-7b"), (other_question, "llava-2b"):
        change()
        says = f"{name}.jsonl: was made from other prompts or with other settings; run --only {name} again"
        with pytest.raises(UserError, match=says):
            answered("--only", "join")


def test_skip_bad_drops_and_counts(family, tiny_world, tmp_path):
    rows = lines(tiny_world / "preference" / "prompts.jsonl")[:3]
    texts = [json.dumps(row) for row in rows]
    texts.insert(1, json.dumps(rows[0] | {"id": "no picture", "image": "images/none.png"}))
    texts.insert(2, "{")
    path, out = tmp_path / "in.jsonl", tmp_path / "candidates.jsonl"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    run("--models", family / "llava-2b", "--prompts", path, "--image-root", tiny_world / "preference",
        "--out", out, "--max-new-tokens", 2, "--beams", 1, "--skip-bad")
    assert [row["id"] for row in lines(out)] == [row["id"] for row in rows]
    counts = meta(out)["rows"]
    assert (counts["read"], counts["kept"], sum(counts["dropped"].values())) == (5, 3, 2)
