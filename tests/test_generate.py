"""generate.py: the rows of its own header, perturbed levels, and what a user can get wrong.

test_pipeline.py starts it as a reader does; here it runs in this process, through its main().
"""
import json
import re
import shutil

import pytest
from test_pipeline import lines, meta

import generate
from amp_min import chunks, records
from amp_min.support import script, storage
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
        response.pop("cut", None)
        response["answers"] = len(response["answers"])
    assert made == promised


def test_cut_answers_are_marked_and_counted(family, tiny_world, tmp_path, capsys):
    prompts = tiny_world / "preference" / "prompts.jsonl"
    flags = ["--models", family / "llava-2b", "--prompts", prompts, "--beams", 1]
    for limit in 3, 200:
        run(*flags, "--out", tmp_path / "out.jsonl", "--max-new-tokens", limit)
        said = capsys.readouterr().out
        responses = [response for row in lines(tmp_path / "out.jsonl") for response in row["responses"]]
        marked = [response for response in responses if "cut" in response]
        cut, counts = sum(sum(one["cut"]) for one in marked), meta(tmp_path / "out.jsonl")["generated"]
        assert counts["answers_cut"] == cut and all(len(one["cut"]) == len(one["answers"]) for one in marked)
        assert all(any(one["cut"]) and one["source"] != "standard" for one in marked)
        assert (cut > 0) == (f"{cut} of {counts['answers']} answers were cut at" in said) == (limit == 3)


# ---- self ----

def test_samples_are_the_same_after_an_interruption(family, tiny_world, tmp_path, monkeypatch, capsys):
    flags = ["--strategy", "self", "--models", family / "llava-2b", "--samples", 3, "--max-new-tokens", 6,
             "--prompts", tiny_world / "preference" / "prompts.jsonl"]
    run(*flags, "--out", tmp_path / "one.jsonl")
    whole = (tmp_path / "one.jsonl").read_bytes()
    rows = list(records.read(tmp_path / "one.jsonl", "candidate"))
    sources = ["standard", "llava-2b-s0", "llava-2b-s1", "llava-2b-s2"]
    assert all([one["source"] for one in row["responses"]] == sources for row in rows)
    equal = sum(len({tuple(one["answers"]) for one in row["responses"]}) < 4 for row in rows)
    assert meta(tmp_path / "one.jsonl")["generated"]["rows_with_equal_answers"] == equal < len(rows)
    assert (f"{equal} rows hold equal answers" in capsys.readouterr().out) == (equal > 0)

    write = storage.Writer.write
    def stop(out, row):
        if out.written == 4:
            raise KeyboardInterrupt
        write(out, row)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage.Writer, "write", stop)
        run(*flags, "--out", tmp_path / "two.jsonl")
    run(*flags, "--out", tmp_path / "two.jsonl", "--resume")
    assert (tmp_path / "two.jsonl").read_bytes() == whole
    run(*flags, "--out", tmp_path / "three.jsonl", "--seed", 1)
    assert (tmp_path / "three.jsonl").read_bytes() != whole


# ---- perturb ----

def perturbed(prompts, out, *flags):
    run("--strategy", "perturb", "--prompts", prompts, "--out", out, *flags)
    return list(records.read(out, "candidate"))


def test_levels_change_their_share_of_a_rows_words(tiny_world, tmp_path):
    """Of all its rounds, so that in dialogues of short answers, too, 10 % is 10 %."""
    prompts, shares = tiny_world / "preference" / "prompts.jsonl", ["--shares", 0.1, 0.5, 1]
    rows = perturbed(prompts, tmp_path / "one.jsonl", *shares)
    assert rows == perturbed(prompts, tmp_path / "two.jsonl", *shares)
    assert perturbed(prompts, tmp_path / "three.jsonl", *shares, "--seed", 1) != rows
    parse, kinds = chunks.load_parser(), {"NOUN", "PROPN", "ADJ", "ADP", "NUM"}
    found = {}
    for row in rows:
        texts = [" ".join(one["answers"]).split() for one in row["responses"]]
        assert len({len(text) for text in texts}) == 1                  # a word for a word
        able = sum(token.pos_ in kinds for text in row["responses"][0]["answers"] for token in parse(text))
        for one, text in zip(row["responses"][1:], texts[1:], strict=True):
            articles = sum({a, b} == {"a", "an"} for a, b in zip(texts[0], text))
            changed = sum(a != b for a, b in zip(texts[0], text)) - articles
            found.setdefault(one["source"], []).append((changed, able))
    assert list(found) == ["perturb-10", "perturb-50", "perturb-100"]
    for share, counts in zip((0.1, 0.5, 1), found.values()):
        long = [(changed, able) for changed, able in counts if able * share >= 1]
        assert sum(a for a, _ in long) / sum(b for _, b in long) == pytest.approx(share, abs=0.06)


def test_levels_differ_and_articles_agree(tiny_world, tmp_path):
    row = lines(tiny_world / "preference" / "prompts.jsonl")[0]
    texts = ["There is a cat.", "I see an owl and an elephant.", "There is a dog.", "There is a tree."]
    rows = [row | {"id": f"{i}", "questions": ["What?"], "answers": [text]}
            for i, text in enumerate(texts * 5)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    flags = "--image-root", tiny_world / "preference"
    made = perturbed(prompts, tmp_path / "o.jsonl", *flags)
    said = [[one["answers"][0] for one in row["responses"]] for row in made]
    assert all(len(set(levels)) == 4 for levels in said)             # one word to change, four to choose from
    articles = {pair for levels in said for text in levels for pair in re.findall(r"\b(an?) (\w)", text)}
    assert {("an", "e"), ("a", "c")} <= articles and all((a == "an") == (b in "aeiou") for a, b in articles)


# ---- what a user can get wrong ----

@pytest.mark.parametrize("flags, message", [
    (["--models"], "--models"),
    (["--strategy", "perturb", "--models", "m"], "--strategy perturb takes no --models, self takes one"),
    ([], "meg and ig need at least one"),
    (["--models", "a/m", "b/m"], "--models: m, m: two have the same name"),
    (["--models", "a/standard"], "one is called standard or join"),
    (["--strategy", "self", "--models", "m", "n"], "self takes one"),
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
    flags = ["--models", family / "llava-7b", family / "llava-2b", "--prompts", prompts, "--out", out,
             "--beams", 1, "--max-new-tokens", 3, "--image-root", tiny_world / "preference"]
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
    for name, question in ("end", "Describe it.</s>"), ("long", "cat " * 3000):
        texts.insert(2, json.dumps(rows[0] | {"id": name, "questions": [question], "answers": ["A cat."]}))
    path, out = tmp_path / "in.jsonl", tmp_path / "candidates.jsonl"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    flags = ["--models", family / "llava-2b", "--prompts", path, "--image-root", tiny_world / "preference",
             "--out", out, "--max-new-tokens", 2, "--beams", 1]
    run(*flags, "--skip-bad")
    assert [row["id"] for row in lines(out)] == [row["id"] for row in rows]
    counts = meta(out)["rows"]
    assert (counts["read"], counts["kept"], sum(counts["dropped"].values())) == (7, 3, 4)
    for text, says in (texts[3], "a text holds '</s>', a special token of"), (texts[2], "questions have 3"):
        path.write_text(text + "\n", encoding="utf-8")
        with pytest.raises(UserError, match=f"in.jsonl:1: {says}"):
            run(*flags)
