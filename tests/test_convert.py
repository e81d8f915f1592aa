"""Every format in and out: real shapes of records, what is dropped is said, what cannot be used is named."""
import datetime
import gzip
import json
import math
import random
import re

import pytest
import torch

from amp_min import mllm, records
from amp_min.convert import __main__ as convert
from amp_min.convert import incoming, outgoing
from amp_min.support.script import UserError
from amp_min.world import oracle


def write(path, items, as_list=False):
    text = json.dumps(items, indent=1) if as_list else "".join(json.dumps(item) + "\n" for item in items)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path):
    """run(from, to, file, files or items, flags...) converts and returns (records, meta)."""
    def convert_it(source, to, given, *flags, name="out.jsonl", as_list=True):
        if isinstance(given, list):
            given = write(tmp_path / "in.json", given, as_list)
        out = tmp_path / name
        files = given if isinstance(given, tuple) else (given,)
        convert.main(["--from", source, "--to", to, "--in", *map(str, files), "--out", str(out), *flags])
        items = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return items, json.loads((tmp_path / f"{name}.meta.json").read_text(encoding="utf-8"))
    return convert_it


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def row(K=3, rounds=2, **more):
    responses = [{"source": f"m{k}", "answers": [f"Level {k}, round {t}." for t in range(rounds)]}
                 for k in range(K)]
    questions = [f"Question {t}?" for t in range(rounds)]
    return {"id": "s1", "image": "p.png", "questions": questions, "responses": responses, **more}


# ---- in: formats ----

def test_llava_conversations(run):
    items = [{"id": "033471", "image": "coco/033471.jpg", "model": "gpt4-vision",
              "conversations": turns("<image>\nWhat color?", "Red.", "Is it moving?", "No.")},
             {"id": "033471", "image": "a.jpg", "conversations": turns("Is there\na bus?\n<image>", "Yes.")}]
    rows, meta = run("llava", "rows", items)
    assert rows == [
        {"id": "033471", "image": "coco/033471.jpg", "questions": ["What color?", "Is it moving?"],
         "answers": ["Red.", "No."], "model": "gpt4-vision"},
        {"id": "033471-2", "image": "a.jpg", "questions": ["Is there\na bus?"], "answers": ["Yes."]}]
    assert meta["lossy"] == {"<image> moved to the front of its question": 1,
                             "repeated ids made different by a number": 1}
    assert meta["records"] == {"read": 2, "written": 2, "dropped": {}}


@pytest.mark.parametrize("written", [
    "<im_start><image><im_end>", "<Image>", "<img>a/p.png</img>", "<ImageHere>", "<image_placeholder>",
    "[IMG]", "<|image_1|>", "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>", "Image-1: <image>"])
def test_other_spellings_of_the_placeholder_are_taken_out_whole(run, written):
    rows, meta = run("llava", "rows", [{"image": "p.png", "conversations": turns(written + "\nWhat?", "A")}])
    assert rows[0]["questions"] == ["What?"] and meta["lossy"] == {"other spellings of <image> taken out": 1}


def test_povid_is_a_ranking(run):
    item = {"id": "1", "image": "p.png", "conversations": turns("<image>\nWhat?", "A boat.")}
    rows, _ = run("llava", "rows", [item | {"rejected_conversations": turns("<image>\nWhat?", "A car.")}])
    assert [r["answers"] for r in rows[0]["responses"]] == [["A boat."], ["A car."]]


def test_pairs_of_rlhf_v_and_rlaif_v(run):
    three = {"question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}
    more = {"ds_name": "x", "idx": 7, "image_path": "RLAIF/7.jpg"}
    responses = [{"source": "chosen", "answers": ["A cat."]}, {"source": "rejected", "answers": ["A dog."]}]
    expected = {"id": "7", "image": "RLAIF/7.jpg", "questions": ["What is it?"], "ds_name": "x", "idx": 7,
                "responses": responses}
    null = dict.fromkeys(("question", "chosen", "rejected", "text", "image"))    # a joined table has all
    for source, item in (("rlaif-v", null | three | more), ("rlhf-v", null | more | {"text": three}),
                         ("rlaif-v", three | more | {"image": {"bytes": None, "path": "RLAIF/7.jpg"}}),
                         ("rlhf-v", more | {"text": json.dumps(three), "image": None})):
        assert run(source, "rows", [item], as_list=False)[0] == [expected]
    prompts, meta = run("rlhf-v", "prompts", [more | {"text": three}])
    assert prompts[0]["answers"] == ["A cat."] and "responses" not in prompts[0]
    assert meta["lossy"] == {"responses after the best left out": 1}


def test_popes_files_become_one_benchmark(run, tmp_path):
    items = [{"question_id": n, "image": "a.jpg", "label": label, "text": "Is there a boat?"}
             for n, label in ((1, "yes"), (2, "no"))]
    names = ("coco_pope_random.json", "random_sample_of_coco_pope_adversarial.json")
    rows, _ = run("pope", "rows", tuple(write(tmp_path / name, items) for name in names))
    assert [r["id"] for r in rows] == ["random-1", "random-2", "adversarial-1", "adversarial-2"]
    assert rows[3] == {"id": "adversarial-2", "image": "a.jpg", "questions": ["Is there a boat?"],
                       "answers": ["no"], "label": "no", "split": "adversarial"}
    hub = [{"question_id": 1, "question": "A boat?", "answer": "no", "category": "popular", "image": "a"}]
    assert run("pope", "rows", write(tmp_path / "coco_pope_random.json", hub))[0][0]["split"] == "popular"
    for name, says in (("questions.json", "says no split"), ("random_popular.json", "popular and random")):
        with pytest.raises(UserError, match=f"{name}: its name .*{says}"):
            run("pope", "rows", write(tmp_path / name, items))


def test_mmhal_and_mrhal(run):
    more = {"question_type": "attribute", "image_content": ["Bottle"], "image_src": "https://a.org/1_o.jpg"}
    item = more | {"image_id": "ab12", "question": "Which?", "gt_answer": "Red."}
    rows, meta = run("mmhal", "rows", [item])
    assert rows[0].items() >= (more | {"id": "ab12", "image": "1_o.jpg", "questions": ["Which?"],
                                       "answers": ["Red."]}).items()
    assert "by a URL, here by its last part; download them below --image-root" in list(meta["lossy"])[0]
    base = {"id": 3, "image": "x.jpg", "label": "existence"}
    for item in (base | {"revised": turns("<image>\nA cat?", "Yes.", "How many?", "Two.")},
                 base | {"question": ["A cat?", "How many?"], "gt_answer": ["Yes.", "Two."]}):
        rows, _ = run("mrhal", "rows", [item])
        assert rows == [base | {"id": "3", "questions": ["A cat?", "How many?"], "answers": ["Yes.", "Two."]}]


def test_llava_benchs_three_files_meet_by_id_and_picture(run, tmp_path):
    questions = [{"question_id": n, "image": "a.jpg", "category": c, "text": f"Q{n}?"}
                 for n, c in enumerate(("conv", "detail"))]
    references = [{"question_id": n, "text": f"R{n}.", "answer_id": "x"} for n in (1, 0)]
    contexts = [{"image": "a.jpg", "captions": ["A cat.", "A mat."],
                 "instances": [{"category": "cat", "bbox": [0, 1]}]}]
    named = {"q": questions, "r": references, "c": contexts}
    files = {name: write(tmp_path / f"{name}.jsonl", items) for name, items in named.items()}
    rows, _ = run("llava-bench", "rows", (files["c"], files["r"], files["q"]))
    assert rows[1] == {"id": "1", "image": "a.jpg", "questions": ["Q1?"], "answers": ["R1."],
                       "reference": "R1.", "category": "detail", "context": "A cat.\nA mat.\n\ncat: [0, 1]"}
    with pytest.raises(UserError, match="q.jsonl:1: the captions of its image is missing"):
        run("llava-bench", "rows", (files["q"], files["r"]))


TEXT = {"image": "a", "conversations": turns("<image>\nA?", "B")}
GOOD = {"llava": TEXT, "amp": {"image": "a", "output_1": turns("A?", "B"), "output_2": turns("A?", "C")},
        "rlhf-v": {"image": "a", "text": {"question": "A?", "chosen": "B", "rejected": "C"}},
        "mmhal": {"image_src": "a", "question": "A?", "gt_answer": "B"},
        "rlaif-v": {"image": "a", "question": "A?", "chosen": "B", "rejected": "C"},
        "rows": {"id": "b", "image": "b", "questions": ["C?"], "answers": ["D"]}}


@pytest.mark.parametrize("source, item, message", [
    ("llava", TEXT | {"conversations": turns("A?", 3)}, r"conversations\[1\].value is a number, a string"),
    ("llava", TEXT | {"conversations": turns("A?")}, "conversations has 1 turns; every question"),
    ("llava", TEXT | {"conversations": turns("<image> <image>", "B")}, r"\[0\].value has <image> twice"),
    ("llava", TEXT | {"conversations": turns("A?", "B", "<Image>", "C")}, r"\[2\].value has <image> after"),
    ("llava", TEXT | {"conversations": turns("A?", "B")[:1] * 2}, r"\[1\].from is 'human'; human and gpt"),
    ("llava", TEXT | {"conversations": turns("A <video>?", "B")}, "a text has <video>, which models"),
    ("llava", TEXT | {"conversations": turns("A?", "B</s>")}, "a text has </s>"),
    ("llava", TEXT | {"conversations": turns("A?", "<|im_end|>")}, r"a text has <\|im_end\|>"),
    ("llava", TEXT | {"preference": 1}, "preference stands beside conversations"),
    ("llava", {"conversations": turns("A?", "B")}, "image is missing; the row has no picture .*--skip-bad"),
    ("llava", TEXT | {"image": None}, "image is missing"),
    ("llava", TEXT | {"image": ["a", "b"]}, "image is a list of 2; a row holds one picture"),
    ("llava", TEXT | {"image": "iVBORw0KGgo" * 2000}, "image is a base64 text of 22,000 characters, a path"),
    ("llava", TEXT | {"image": {"bytes": "abcd", "path": "a"}}, "image.bytes is a string; write it"),
    ("llava", TEXT | {"image": "https://a.org/" + "b" * 400}, "image is a URL, .*download it"),
    ("llava", TEXT | {"image": "/far/away.png"}, "image is '/far/away.png', outside of .*; give --imag"),
    ("amp", GOOD["amp"] | {"output_2": turns("C?", "B")}, "output_2 asks other questions"),
    ("amp", {"image": "a", "output_1": turns("A?", "B")}, "responses has 1; a ranking needs"),
    ("amp", {"image": "a", "output_1": None}, "output_1 is missing; is the file of another format"),
    ("rlhf-v", {"image": "a", "text": "{"}, "text is not JSON"),
    ("rlhf-v", {"image": "a", "text": {"question": "A?", "chosen": "B"}}, "text.rejected is missing"),
    ("mmhal", {"image_src": "a", "question": "B?", "gt_answer": ""}, r"answers\[0\] is empty"),
    ("rows", GOOD["rows"] | {"answers": []}, r"answers has 0 entries, questions has 1"),
    ("llava", [1], "line is a list, not an object"),
])
def test_a_bad_record_is_named_or_dropped(run, tmp_path, source, item, message):
    good = GOOD[source]
    path = write(tmp_path / "in.json", [good, item, good | {"id": "last"}])
    with pytest.raises(UserError, match=message) as caught:
        run(source, "rows", path)
    said = str(caught.value)
    assert said.startswith(f"{path}:2: ") and "\n" not in said and len(said) < 300 + len(str(tmp_path))
    assert not list(tmp_path.glob("out.jsonl*"))                         # nothing half-written, no meta
    rows, meta = run(source, "rows", path, "--skip-bad")
    assert len(rows) == 2 and sum(meta["records"]["dropped"].values()) == 1 and meta["records"]["read"] == 3


# ---- in: files and pictures ----

@pytest.mark.parametrize("content, says", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "Git LFS pointer, .*git lfs pull"),
    (gzip.compress(b"{}"), "compressed; unpack it"), (b"PK\x03\x04rest", "a zip archive"),
    (b"<!DOCTYPE html><html>", "an HTML page"), ('{"id": 1}'.encode("utf-16"), "UTF-16 text"),
    (b"id\tq: what\n1\ta\n", "a table with tabs or commas"), (b"id,image\n1,a\n", "a table with tabs"),
    (b"\x80\x04\x95junk", "a Python pickle"), (b"\x89PNG\r\n", "a picture"),
])
def test_files_that_are_something_else_are_called_by_their_name(run, tmp_path, content, says):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"data.json: is .*{says}"):
        run("llava", "rows", path, "--skip-bad")
    with pytest.raises(UserError, match=f"data.json: is .*{says}"):
        list(records.read(path, "prompt"))


def test_lists_name_the_line_that_a_record_begins_on(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('\ufeff[\n {"a": 1,\n  "b": 2},\n\n {"a": NaN}, 7 ]', encoding="utf-8")
    found, more = list(incoming.objects(path)), "more text after the end of the list"
    assert found[0] == (2, {"a": 1, "b": 2}) and found[2] == (5, 7)
    assert found[1][0] == 5 and "NaN" in found[1][1].problem
    for text, line, says in (('[{"a": 1},\n {"a": ', 2, "list is not JSON .*cut short"),
                             ('[{"a": 1},\n{"a": 2}\n]\n[{"a": 3}]', 3, more),
                             ('[{"a": 1}]\n{"a": 3}', 1, more)):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=f"{path}:{line}: {says}"):
            list(incoming.objects(path))


def test_parquet(run, tmp_path):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    inside = GOOD["rlaif-v"] | {"image": {"bytes": b"\x89PNG", "path": None}, "image_path": "1.png", "idx": 1,
                                "text": None, "day": datetime.date(2026, 1, 2), "score": 0.5}
    path = tmp_path / "part.json"                        # known by its content, not by its name
    parquet.write_table(arrow.Table.from_pylist([inside, inside | {"score": math.nan}, inside]), path)
    with pytest.raises(UserError, match=f"{path}:2: 'score' holds NaN"):
        run("rlaif-v", "rows", path)
    assert not list(tmp_path.glob("out*"))                               # no picture stays behind
    rows, _ = run("rlaif-v", "rows", path, "--skip-bad")
    assert len({r["image"] for r in rows}) == 2 and len(list((tmp_path / "out.jsonl.images").iterdir())) == 2
    assert (tmp_path / rows[0]["image"]).read_bytes() == b"\x89PNG" and rows[0]["day"] == "2026-01-02"
    (tmp_path / "pics").mkdir()
    outside = inside | {"image": {"bytes": None, "path": "p.png"}}
    parquet.write_table(arrow.Table.from_pylist([outside]), path)
    found, _ = run("rlaif-v", "trl", path, "--image-root", str(tmp_path / "pics"))
    assert found[0]["images"] == [str(tmp_path / "pics" / "p.png")]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        run("rlaif-v", "rows", path)


def test_files_and_pictures_are_not_mixed_up(run, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "l.json", [TEXT | {"images": ["x.png"], "image": None}])
    two = (tmp_path / "a" / "l.json", tmp_path / "b" / "l.json")
    with pytest.raises(UserError, match="--in: the pictures lie below .*/a and .*/b; say with --image-root"):
        run("llava", "rows", two)
    assert [r["image"] for r in run("llava", "rows", two, "--image-root", str(tmp_path))[0]] == ["x.png"] * 2
    with pytest.raises(UserError, match="out.jsonl: is both input and output"):
        run("rows", "rows", (tmp_path / "out.jsonl",))


def test_repeated_ids_never_clash_and_dropped_rows_take_none(run):
    given = (("x", 3), ("x", "1"), ("x", "2"), ("x-2", "3"), ("x", "4"), (None, "5"), (7, "6"))
    items = [{"id": name, "image": "a", "conversations": turns("A?", answer)} for name, answer in given]
    rows, meta = run("llava", "rows", items, "--skip-bad", as_list=False)
    assert [r["id"] for r in rows] == ["x", "x-2", "x-2-2", "x-3", "in-6", "7"]
    assert [r["answers"] for r in rows] == [[str(n)] for n in range(1, 7)]
    assert meta["lossy"]["repeated ids made different by a number"] == 3


# ---- out ----

def test_pair_formats_are_the_documented_ones(run, tmp_path):
    (tmp_path / "p.png").touch()
    base = {"id": "s1#0-1@1", "images": [str(tmp_path / "p.png")]}
    texts = ["Question 0?", "Level 0, round 0.", "Question 1?", "Level 0, round 1."]
    talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    bad = "Level 1, round 1."
    expected = {
        "trl": base | {"prompt": talk[:3], "chosen": talk[3:],
                       "rejected": [{"role": "assistant", "content": bad}]},
        "llama-factory": base | {"conversations": turns("<image>\n" + texts[0], *texts[1:3]),
                                 "chosen": {"from": "gpt", "value": texts[3]},
                                 "rejected": {"from": "gpt", "value": bad}},
        "ms-swift": base | {"messages": [{"role": "user", "content": "<image>" + texts[0]}, *talk[1:]],
                            "rejected_response": bad}}
    write(tmp_path / "dataset_info.json", {"mine": {"file_name": "mine.json"}}, as_list=True)
    for to, record in expected.items():
        found, meta = run("rows", to, [row(K=2)])
        assert found[1] == record and meta["lossy"]["rows whose source is left out"] == 1
    known = json.loads((tmp_path / "dataset_info.json").read_text(encoding="utf-8"))
    assert known["mine"] == {"file_name": "mine.json"} and known["out"]["file_name"] == "out.jsonl"


@pytest.mark.parametrize("which, count", [("all", 6), ("adjacent", 3), ("best", 3)])
def test_the_ranking_can_be_read_back_from_its_pairs(run, which, count):
    before = row(K=4, rounds=1, initial_order=[2, 0, 1, 3])
    found, meta = run("rows", "trl", [before], "--pairs", which)
    order = [response["answers"][0] for response in before["responses"]]
    pairs = [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in found]
    assert len(set(pairs)) == count and all(order.index(a) < order.index(b) for a, b in pairs)
    assert meta["lossy"]["rows whose picture is not there (yet)"] == 1


def test_pairs_that_teach_nothing_or_the_reverse_are_dropped_and_counted(run):
    """Standard, A, B. Round 0: B's evidence is better; 1: both alike; 2: B has S's words; 3: A is blank."""
    given = row(K=3, rounds=5)
    given["responses"][0]["source"] = "standard"
    for k, accuracies in enumerate(((.1, .5, .5, .9, .9), (.9, .5, .1, .1, .1)), start=1):
        given["responses"][k]["evidence"] = [{"levels": [[a, a], [a, a]]} for a in accuracies]
    given["responses"][2]["answers"][2] = given["responses"][0]["answers"][2]
    given["responses"][1]["answers"][3] = " "
    found, meta = run("rows", "trl", [given])
    with_standard = {f"s1#0-1@{t}" for t in range(5)} | {f"s1#0-2@{t}" for t in (0, 1, 3, 4)}
    assert {r["id"] for r in found} == with_standard | {"s1#1-2@4"}
    assert meta["lossy"].items() >= dict.fromkeys((
        "pairs of a round whose evidence says the reverse left out", "pairs whose evidence is equal left out",
        "pairs that would reject the best response's own words left out",
        "pairs of two equal answers left out", "pairs with a blank better answer left out"), 1).items()


def measured(prompt, name, rng):
    """A dialogue of rounds that are right or wrong at random, as the evidence says, ranked as a whole."""
    def response(source):
        right = [rng.random() < .5 for _ in prompt["answers"]]
        said = "" if source == "C" else f" So says {source}."    # C, where right, has the standard's words
        answers = [a + said if ok else f"{a} There is a sun and no sun. So says {source}."
                   for a, ok in zip(prompt["answers"], right, strict=True)]
        evidence = [{"levels": [[int(ok), .5]] * 2} for ok in right]
        return sum(right), {"source": source, "answers": answers, "evidence": evidence}
    ranked = sorted(map(response, "ABC"), key=lambda pair: -pair[0])
    standard = {"source": "standard", "answers": prompt["answers"], "evidence": None}
    row = {key: prompt[key] for key in ("image", "questions", "scene")}
    return row | {"id": name, "responses": [standard, *(r for _, r in ranked)]}


def test_no_exported_pair_is_the_reverse_of_what_the_oracle_says(run, tiny_world):
    rng, prompts = random.Random(0), records.read(tiny_world / "preference" / "prompts.jsonl", "prompt")
    dialogues = [prompt for prompt in prompts if prompt["questions"][1:]]
    rows = {f"{p['id']}/{n}": measured(p, f"{p['id']}/{n}", rng) for p in dialogues for n in range(8)}
    found, meta = run("rows", "trl", list(rows.values()), as_list=False)
    lossy = meta["lossy"]
    assert lossy["pairs of a round whose evidence says the reverse left out"] > 9 and len(found) > 100
    assert lossy["pairs that would reject the best response's own words left out"] > 9
    for record in found:
        name, t = re.fullmatch(r"(.*)#.*@(\d+)", record["id"]).groups()
        standard = rows[name]["responses"][0]["answers"][int(t)]
        texts = [record[side][0]["content"] for side in ("chosen", "rejected")]
        better, worse = (oracle.rating(text, standard, rows[name]["scene"]) for text in texts)
        assert better >= worse and texts[1] != standard


def test_one_answer_is_no_ranking(run, tmp_path):
    with pytest.raises(UserError, match="has one answer and trl needs ranked ones; run generate.py"):
        run("llava", "trl", [TEXT])
    assert not list(tmp_path.glob("out*"))


def test_readers_and_writers_are_the_choices():
    kinds = convert.Settings.__annotations__
    assert set(kinds["from_"].__args__) == set(incoming.READERS)
    assert set(kinds["to"].__args__) == set(outgoing.WRITERS) | {"rows", "prompts"}


# ---- TRL itself, where it is installed (tests/loaders.py has the other two) ----

def test_trl_trains_on_an_exported_set(run, family, tiny_world, tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    rows = [{key: r[key] for key in ("id", "image", "questions")} | {"responses": [
                {"source": str(k), "answers": [a + " There is a red kite." * k for a in r["answers"]]}
                for k in range(3)]} for r in records.read(f"{tiny_world}/preference/prompts.jsonl", "prompt")]
    root = str(tiny_world / "preference")
    found, _ = run("rows", "trl", rows, "--image-root", root, "--pairs", "adjacent", as_list=False)
    data = datasets.load_dataset("json", data_files=str(tmp_path / "out.jsonl"), split="train",
                                 cache_dir=str(tmp_path / "cache"))
    args = trl.DPOConfig(output_dir=str(tmp_path / "trl"), max_steps=2, per_device_train_batch_size=4,
                         max_length=None, learning_rate=1e-3, use_cpu=True, bf16=False, logging_steps=1,
                         gradient_checkpointing=False, report_to="none", save_strategy="no")
    trainer = trl.DPOTrainer(model=str(family / "llava-2b"), args=args, train_dataset=data)
    # TRL's tokens of a pair are ours, but for the <s> that it leaves out.
    m = mllm.load(family / "llava-2b")
    batch = trainer.data_collator([dict(data[0])])
    talk = found[0]["prompt"] + found[0]["chosen"]
    ids, rounds = mllm.encode(m, [t["content"] for t in talk[::2]], [t["content"] for t in talk[1::2]])
    kept = batch["attention_mask"][0].bool()
    assert batch["input_ids"][0][kept].tolist() == ids[1:]
    assert batch["completion_mask"][0][kept].tolist() == [int(n == max(rounds)) for n in rounds[1:]]
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 2 and losses[0] == pytest.approx(math.log(2), abs=1e-3) and losses[1] != losses[0]
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
