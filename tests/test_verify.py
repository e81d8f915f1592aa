"""verify.py: the rows of its own header, ranking, resuming, and what a user can get wrong.

All in one process, through its main(); test_pipeline.py starts it as a reader does.
"""
import itertools
import json
from pathlib import Path

import pytest
import torch
from test_autocheck import make_clip, make_roberta

import verify
from amp_min import autocheck, chunks, records
from amp_min.support.script import UserError

NLP = chunks.load_parser()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clip"))


def arguments(folder, encoder, rows, *flags, out="out.jsonl"):
    """Write `rows` (dicts, or lines as they are); the script's flags to rank them, and the output path."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "in.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    paths = ["--candidates", folder / "in.jsonl", "--encoder", encoder, "--out", folder / out]
    return [*map(str, paths), *flags], folder / out


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def row(name, standard, *answers, **extra):
    """A candidate row; each answer is one string or a list of one string per round."""
    as_list = lambda answer: [answer] if isinstance(answer, str) else answer
    responses = [{"source": "standard", "answers": as_list(standard)}]
    responses += [{"source": f"model-{i}", "answers": as_list(answer)} for i, answer in enumerate(answers)]
    questions = ["Describe it."] * len(as_list(standard))
    return {"id": name, "image": "a.png", "questions": questions, "responses": responses} | extra


RED = "A red dog sits on a sofa."
ROWS = [row("r0", RED, "Two cats sleep here.", RED, note={"kept": [1]}),
        row("r1", *[["A big tree.", "There are two cars."]] * 2, ["A tree.", ""]),
        row("r2", "A boat on the water.", "A boat.", "A boat.", "A boat on the water."),
        row("r3", "Yes.", "No.", "Yes.")]


def shape(value):
    """What a row is made of, without its numbers and texts."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shape(part) for part in value]
    return type(value).__name__


def test_the_rows_of_the_header(tmp_path, encoder):
    header = verify.__doc__
    given, promised = (json.loads(part) for part in header.split("\n\n") if part.lstrip().startswith("{"))
    flags, out = arguments(tmp_path, encoder, [given])
    verify.main(flags)
    (made,) = read(out)
    assert list(made) == list(promised)
    by_source = lambda found: sorted(found["responses"], key=lambda response: response["source"])
    assert [shape(r) for r in by_source(made)] == [shape(r) for r in by_source(promised)]
    for a, b in zip(by_source(made), by_source(promised)):       # the same chunks were looked for
        if a["evidence"]:
            assert [m[0] for m in a["evidence"][0]["chunks"]] == [m[0] for m in b["evidence"][0]["chunks"]]


def test_spaced_takes_both_ends_and_equal_steps_between():
    assert [autocheck.spaced(6, K) for K in (1, 2, 3, 4, 6)] == [[0], [0, 5], [0, 2, 5], [0, 1, 3, 5], [0, 1, 2, 3, 4, 5]]
    for n in range(2, 30):
        for K in range(2, n + 1):
            steps = [b - a for a, b in itertools.pairwise(autocheck.spaced(n, K))]
            assert sum(steps) == n - 1 and max(steps) - min(steps) <= 1 and min(steps) >= 1


def test_kept_levels_are_different_answers_of_the_ranking(tmp_path, encoder):
    said = ["A red car.", "A red car and a tree.", "A tree.", "A red car.", "A sofa.", "A blue cat on a sofa."]
    row = {"id": "r", "image": "i.png", "questions": ["?"], "responses": [
        {"source": f"s{n}" if n else "standard", "answers": [text]}
        for n, text in enumerate(["A red car beside a tree.", *said])]}
    few = row | {"id": "few", "responses": row["responses"][:3]}
    made = {}
    for name, flags in {"all": (), "three": ("--keep", "3"), "own": ("--keep", "3", "--no-standard")}.items():
        arguments_, out = arguments(tmp_path, encoder, [row, few], *flags, out=f"{name}.jsonl")
        verify.main(arguments_)
        made[name] = list(records.read(out, "preference"))
        dropped = json.loads(Path(f"{out}.meta.json").read_text(encoding="utf-8"))["rows"]["dropped"]
        assert dropped == ({} if name == "all" else {"fewer than 3 different generated answers": 1})
    ranking = list(dict.fromkeys(one["answers"][0] for one in made["all"][0]["responses"][1:]))       # five texts
    texts = lambda name: [one["answers"][0] for one in made[name][0]["responses"]]
    assert texts("own") == [ranking[i] for i in (0, 2, 4)] and texts("three") == [texts("all")[0], *texts("own")]
    for name in "three", "own":
        (one,) = made[name]
        before = [texts(name)[one["initial_order"].index(k)] for k in range(len(texts(name)))]
        assert before == sorted(before, key=[r["answers"][0] for r in row["responses"]].index)
    assert all(one["accuracy"] is not None for one in made["own"][0]["responses"])


def test_ranking_order_and_counts(tmp_path, encoder, capsys):
    flags, out = arguments(tmp_path, encoder, ROWS)
    verify.main(flags)
    made = read(out)
    assert [r["id"] for r in made] == ["r0", "r1", "r2", "r3"] and made[0]["note"] == {"kept": [1]}
    assert [r["initial_order"] for r in made] == [[0, 2, 1], [0, 1, 2], [0, 3, 1, 2], [0, 2, 1]]
    for before, after in zip(ROWS, made):
        assert [r["answers"] for r in after["responses"]] == [
            before["responses"][i]["answers"] for i in after["initial_order"]]
        best, *generated = after["responses"]
        assert best["source"] == "standard" and best["accuracy"] is None and best["score"] is None
        keys = [(r["accuracy"], r["score"]) for r in generated]
        assert keys == sorted(keys, reverse=True) and keys[0] == (1.0, 1.0)
    meta = json.loads(Path(f"{out}.meta.json").read_text(encoding="utf-8"))
    assert meta["auto_check"] == {"rows": 4, "rows_reordered": 3, "rows_with_equal_answers": 4,
                                  "texts_longer_than_encoder_window": 0, "texts_with_unknown_tokens": 0}
    printed = capsys.readouterr().out
    assert "4 rows in" in printed and "3 changed order" in printed


def test_block_size_changes_nothing_and_long_texts_are_counted(tmp_path, encoder, capsys):
    rows = ROWS + [row("long", f"A red dog which {'is very very tall and ' * 9} old runs.", "A dog runs.")]
    outputs = []
    for size in "2", "256":
        flags, out = arguments(tmp_path, encoder, rows, "--rows-at-once", size, out=f"out{size}.jsonl")
        verify.main(flags)
        assert "longer than the encoder's window" in capsys.readouterr().out
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1]


def test_resume_gives_the_same_file(tmp_path, encoder, capsys):
    flags, out = arguments(tmp_path, encoder, ROWS)
    verify.main(flags)
    whole = out.read_bytes()
    first = whole.splitlines(keepends=True)
    Path(f"{out}.part").write_bytes(first[0] + first[1][:50])    # killed in the middle of the second row
    meta = json.loads(Path(f"{out}.meta.json").read_text(encoding="utf-8"))
    Path(f"{out}.part.meta.json").write_text(json.dumps(meta), encoding="utf-8")
    out.unlink()
    capsys.readouterr()
    verify.main([*flags, "--resume"])
    printed = capsys.readouterr().out
    assert out.read_bytes() == whole and "3 rows in" in printed and "of all 4 rows" in printed


# ---- one answer against the standard one ----

def compare(standard, generated, features, **options):
    found = {answer: parsed for answer, parsed in zip(standard + generated,
                                                      chunks.noun_chunks_of(NLP, standard + generated))}
    settings = verify.Settings("in.jsonl", "encoder", "out.jsonl", **options)
    return verify.compare(standard, generated, found, features, settings)


def one_hot(*texts):
    return dict(zip(texts, torch.eye(len(texts))))


def test_local_and_global_level_are_averaged():
    features = one_hot("a dog", "a red sofa", "a dog lies on a red sofa.", "a dog stands there.")
    accuracy, score, evidence = compare(["A dog lies on a red sofa."], ["A dog  stands there."], features)
    assert (accuracy, score) == (0.25, 0.25)                 # local 1/2: the dog, not the sofa; global 0 of 1
    assert evidence == [{"levels": [[0.5, 0.5], [0.0, 0.0]],
                         "chunks": [["a dog", "a dog", 1.0], ["a red sofa", "a dog", 0.0]]}]


def test_rounds_are_compared_apart():
    features = one_hot("a dog.", "a dog", "a cat.", "a cat")
    assert compare(["A dog.", "A cat."], ["A dog.", "A cat."], features)[:2] == (1.0, 1.0)
    assert compare(["A dog.", "A cat."], ["A cat.", "A dog."], features)[:2] == (0.0, 0.0)
    assert compare(["A dog.", "A cat."], ["A dog.", "A dog."], features)[:2] == (0.5, 0.5)


def test_answers_without_nouns():
    features = one_hot("yes.", "no.", "a dog", "there is a dog.")
    assert compare(["Yes."], ["yes."], features)[:2] == (1.0, 1.0)           # compared as whole answers
    assert compare(["Yes."], ["No."], features)[:2] == (0.0, 0.0)
    accuracy, score, evidence = compare(["There is a dog."], ["No."], features)
    assert (accuracy, score) == (0.0, 0.0) and evidence[0]["chunks"] == [["a dog", None, 0.0]]
    assert compare(["There is a dog."], [""], features, symmetric=True)[:2] == (0.0, 0.0)


def test_a_blank_answer_gets_zero_also_where_whole_answers_are_compared():
    features = {"yes.": torch.tensor([1.0, 0.0]), "": torch.tensor([0.7, 0.7])}      # encoders read "", too
    for blank in "", " \n":
        assert compare(["Yes."], [blank], features) == (0.0, 0.0, [{"levels": [[0.0, 0.0]],
                                                                    "chunks": [["yes.", None, 0.0]]}])


def test_symmetric_makes_a_hallucinated_chunk_cost_something():
    short, longer = "A dog sits.", "A dog sits. A cat sits."
    features = one_hot("a dog", "a cat", "a dog sits.", "a cat sits.")
    for symmetric, expected in (False, 1.0), (True, 0.75):        # precision 1/2 on both levels, recall 1
        assert compare([short], [longer], features, symmetric=symmetric)[:2] == (expected, expected)
    assert compare([short], [short], features, symmetric=True)[:2] == (1.0, 1.0)


def test_attributes_stop_a_match():
    red, blue = "A red car is parked.", "A blue car is parked."
    features = dict.fromkeys(["a red car", "a blue car", red.lower(), blue.lower()], torch.ones(1))
    assert compare([red], [blue], features)[:2] == (1.0, 1.0)
    accuracy, score, evidence = compare([red], [blue], features, attributes=True)
    assert (accuracy, score) == (0.0, 0.0) and evidence[0]["chunks"] == [["a red car", "a blue car", 0.0]]


# ---- what a user can get wrong ----

def no_standard():
    bad = row("r9", "A dog.", "A cat.")
    bad["responses"].reverse()
    return bad


@pytest.mark.parametrize("rows, flags, message", [
    ([ROWS[0], no_standard()], [], "in.jsonl:2: responses[0], and no other, must have source \"standard\""),
    ([row("r9", "A dog.", ["A cat.", "A tree."])], [], "in.jsonl:1: responses[1].answers has 2 entries"),
    ([ROWS[0], row("r9", "A dog.", "A dog.<end> And a cat.")], [],
     "in.jsonl:2: responses[1].answers hold '<end>', no text to the encoder; take it out"),
    (["{"], [], "in.jsonl:1: line is not JSON"),
    ([], [], "in.jsonl"),
    (ROWS, ["--threshold", "1.5"], "--threshold 1.5: give a number, at least -1 and at most 1"),
    (ROWS, ["--threshold", "nan"], "--threshold nan"),
    (ROWS, ["--rows-at-once", "0"], "--rows-at-once 0"),
    (ROWS, ["--method", "whole"], "--method: there is one method now"),
    (ROWS, ["--encoder", "nothing/here/at-all"], "nothing/here/at-all: no such model folder"),
    (ROWS, ["--candidates", "missing.jsonl"], "missing.jsonl"),
])
def test_what_a_user_can_get_wrong(tmp_path, encoder, rows, flags, message):
    flags, out = arguments(tmp_path, encoder, rows, *flags)
    with pytest.raises(UserError) as caught:
        verify.main(flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists()


def test_a_hub_encoder_out_of_reach_is_one_line(tmp_path):
    flags, out = arguments(tmp_path, "nobody/nothing", ROWS)
    with pytest.raises(UserError, match="hf download nobody/nothing") as caught:
        verify.main(flags)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == [tmp_path / "in.jsonl"]


def test_unknown_tokens_are_counted_and_told(tmp_path, capsys):
    encoder = make_roberta(tmp_path / "encoder", ["a", "boat", "lies", "there", "."])
    flags, out = arguments(tmp_path, encoder, [row("r0", "Ein Boot.", "Zwei Boote.", "Ein Boot."),
                                               row("r1", "A boat lies there.", "A boat lies here.")])
    verify.main(flags)
    first, second = read(out)
    assert [r["score"] for r in first["responses"][1:]] == [0.0, 0.0]
    assert second["responses"][1]["score"] > 0.5
    printed, meta = capsys.readouterr().out, json.loads(Path(f"{out}.meta.json").read_text(encoding="utf-8"))
    n = meta["auto_check"]["texts_with_unknown_tokens"]
    assert n > 2 and f"{n} texts hold tokens that the encoder does not know" in printed.splitlines()[-1]


def test_skip_bad_drops_and_counts(tmp_path, encoder):
    flags, out = arguments(tmp_path, encoder, [ROWS[0], no_standard(), "{"], "--skip-bad")
    verify.main(flags)
    assert [r["id"] for r in read(out)] == ["r0"]
    rows = json.loads(Path(f"{out}.meta.json").read_text(encoding="utf-8"))["rows"]
    assert rows["read"] == 3 and rows["kept"] == 1 and sorted(rows["dropped"].values()) == [1, 1]
