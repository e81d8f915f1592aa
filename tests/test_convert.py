"""Every format in and out: real shapes of records, round trips, what is dropped is said, and what cannot be used is named."""
import json
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amp_min import mllm, records
from amp_min.convert import __main__ as convert
from amp_min.convert import incoming, outgoing
from amp_min.support.script import UserError


def write(path, items, as_list=False):
    text = json.dumps(items, indent=1) if as_list else "".join(json.dumps(item) + "\n" for item in items)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path):
    """run(from, to, file or items, flags...) converts and returns (records, meta)."""
    def convert_it(source, to, given, *flags, name="out.jsonl", as_list=True):
        if isinstance(given, list):
            given = write(tmp_path / "in.json", given, as_list)
        out = tmp_path / name
        convert.main(["--from", source, "--to", to, "--in", *map(str, given if isinstance(given, tuple) else [given]), "--out", str(out), *flags])
        text = out.read_text(encoding="utf-8")
        items = json.loads(text) if to == "amp" else [json.loads(line) for line in text.splitlines()]
        return items, json.loads((tmp_path / f"{name}.meta.json").read_text(encoding="utf-8"))
    return convert_it


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def row(K=3, rounds=2, **more):
    return {"id": "s1", "image": "p.png", "questions": [f"Question {t}?" for t in range(rounds)],
            "responses": [{"source": f"m{k}", "answers": [f"Level {k}, round {t}." for t in range(rounds)]} for k in range(K)], **more}


# ---- in ----

def test_llava_conversations(run):
    """The first record of LLaVA-Instruct's kind, <image> at either end, one in the middle of a dialogue's first question."""
    items = [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "model": "gpt4-vision",
              "conversations": turns("<image>\nWhat are the colors of the bus?", "White and red.", "Is it moving?", "No.")},
             {"id": "000000033471", "image": "a.jpg", "conversations": turns("Is there\na bus?\n<image>", "Yes.")}]
    rows, meta = run("llava", "rows", items)
    assert rows[0] == {"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "questions": ["What are the colors of the bus?", "Is it moving?"],
                       "answers": ["White and red.", "No."], "model": "gpt4-vision"}
    assert rows[1] == {"id": "000000033471-2", "image": "a.jpg", "questions": ["Is there\na bus?"], "answers": ["Yes."]}
    assert meta["lossy"] == {"<image> moved to the front of its question": 1, "repeated ids made different by a number": 1}
    assert meta["records"] == {"read": 2, "written": 2, "dropped": {}}


def test_pairs_of_rlhf_v_and_rlaif_v(run):
    three = {"question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}
    more = {"ds_name": "x", "origin_dataset": "y", "idx": 7, "image_path": "RLAIF/7.jpg"}
    expected = {"id": "7", "image": "RLAIF/7.jpg", "questions": ["What is it?"], "ds_name": "x", "origin_dataset": "y", "idx": 7,
                "responses": [{"source": "chosen", "answers": ["A cat."]}, {"source": "rejected", "answers": ["A dog."]}]}
    for source, item in (("rlaif-v", three | more), ("rlaif-v", three | more | {"image": {"bytes": None, "path": "RLAIF/7.jpg"}}),
                         ("rlhf-v", more | {"text": three}), ("rlhf-v", more | {"text": json.dumps(three), "image": None})):
        rows, _ = run(source, "rows", [item], as_list=False)
        assert rows == [expected]
    prompts, meta = run("rlhf-v", "prompts", [more | {"text": three}])
    assert prompts[0]["answers"] == ["A cat."] and "responses" not in prompts[0] and meta["lossy"] == {"responses after the best left out": 1}


def test_popes_three_files_become_one_benchmark(run, tmp_path):
    files = tuple(write(tmp_path / f"coco_pope_{split}.json", [{"question_id": n, "image": "COCO_val2014_000000310196.jpg", "label": label,
                  "text": "Is there a snowboard in the image?"} for n, label in ((1, "yes"), (2, "no"))]) for split in ("random", "adversarial"))
    rows, _ = run("pope", "rows", files)
    assert [r["id"] for r in rows] == ["random-1", "random-2", "adversarial-1", "adversarial-2"]
    assert rows[3] == {"id": "adversarial-2", "image": "COCO_val2014_000000310196.jpg", "questions": ["Is there a snowboard in the image?"],
                       "answers": ["no"], "label": "no", "split": "adversarial"}
    other = write(tmp_path / "questions.json", [{"question_id": 1, "image": "a", "text": "b?", "label": "no"}])
    with pytest.raises(UserError, match="questions.json: its name says no split"):
        run("pope", "rows", other)


def test_mmhal_and_mrhal(run):
    rows, _ = run("mmhal", "rows", [{"question_type": "attribute", "question_topic": "food", "image_id": "ab12", "image_content": ["Bottle"],
                  "image_src": "https://c2.staticflickr.com/5/4/16685252757_e1c32c0e1f_o.jpg", "question": "Which colour?", "gt_answer": "Red.", "model_answer": ""}])
    assert rows[0]["id"] == "ab12" and rows[0]["image"] == "16685252757_e1c32c0e1f_o.jpg"
    assert rows[0]["questions"] == ["Which colour?"] and rows[0]["answers"] == ["Red."] and rows[0]["image_content"] == ["Bottle"]
    base = {"id": 3, "image": "x.jpg", "image_content": ["cat"], "label": "existence"}
    for item in (base | {"revised": turns("<image>\nA cat?", "Yes.", "How many?", "Two.")},
                 base | {"question": ["A cat?", "How many?"], "gt_answer": ["Yes.", "Two."], "model_answer": ["No.", "One."]}):
        rows, _ = run("mrhal", "rows", [item])
        assert rows[0].items() >= {"id": "3", "questions": ["A cat?", "How many?"], "answers": ["Yes.", "Two."], "label": "existence"}.items()


@pytest.mark.parametrize("source, item, message", [
    ("llava", {"image": "a", "conversations": turns("<image>\nA?", 3)}, r"conversations\[1\].value is a number, a string belongs there"),
    ("llava", {"image": "a", "conversations": turns("<image>\nA?")}, "conversations has 1 turns; every question needs its answer"),
    ("llava", {"image": "a", "conversations": turns("<image> <image>", "B")}, r"conversations\[0\].value has <image> twice; a row holds one"),
    ("llava", {"image": "a", "conversations": turns("A?", "B", "<image>", "C")}, r"conversations\[2\].value has <image> after the first"),
    ("llava", {"image": "a", "conversations": turns("A?", "B")[:1] * 2}, r"conversations\[1\].from is 'human'; human and gpt take turns"),
    ("llava", {"conversations": turns("A?", "B")}, "image is missing"),
    ("llava", {"image": ["a", "b"], "conversations": turns("A?", "B")}, "image is a list, a string belongs there"),
    ("llava", {"image": "/far/away.png", "conversations": turns("A?", "B")}, "image is '/far/away.png', outside of .*; give --image-root"),
    ("amp", {"image": "a", "output_1": turns("A?", "B"), "output_2": turns("C?", "B")}, "output_2 asks other questions than output_1"),
    ("amp", {"image": "a", "output_1": turns("A?", "B")}, "responses has 1; a ranking needs"),
    ("amp", {"image": "a", "conversations": []}, "output_1 is missing; is the file of another format"),
    ("rlhf-v", {"image": "a", "text": "{"}, "text is not JSON"),
    ("rlhf-v", {"image": "a", "text": {"question": "A?", "chosen": "B"}}, "text.rejected is missing"),
    ("rlaif-v", {"question": "A?", "chosen": "B", "rejected": "C"}, "image_path is missing"),
    ("mmhal", {"image_src": "a", "question": "B?", "gt_answer": ""}, r"answers\[0\] is empty"),
    ("rows", {"id": "a", "image": "b", "questions": ["C?"], "answers": []}, r"answers has 0 entries, questions has 1"),
    ("llava", [1], "line is a list, not an object"),
])
def test_a_bad_record_is_named_or_dropped(run, tmp_path, source, item, message):
    good = {"llava": {"image": "a", "conversations": turns("<image>\nA?", "B")}, "amp": {"image": "a", "output_1": turns("A?", "B"), "output_2": turns("A?", "C")},
            "rlhf-v": {"image": "a", "text": {"question": "A?", "chosen": "B", "rejected": "C"}}, "mmhal": {"image_src": "a", "question": "A?", "gt_answer": "B"},
            "rlaif-v": {"image": "a", "question": "A?", "chosen": "B", "rejected": "C"}, "rows": {"id": "b", "image": "b", "questions": ["C?"], "answers": ["D"]}}[source]
    path = write(tmp_path / "in.json", [good, item, good | {"id": "last"}])
    with pytest.raises(UserError, match=message) as caught:
        run(source, "rows", path)
    assert str(caught.value).startswith(f"{path}:2: ") and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out.jsonl*"))                         # nothing half-written, no meta
    rows, meta = run(source, "rows", path, "--skip-bad")
    assert len(rows) == 2 and sum(meta["records"]["dropped"].values()) == 1 and meta["records"]["read"] == 3


def test_files_and_pictures_are_not_mixed_up(run, tmp_path):
    item = {"image": "x.png", "conversations": turns("A?", "B")}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "l.json", [item])
    two = (tmp_path / "a" / "l.json", tmp_path / "b" / "l.json")
    with pytest.raises(UserError, match="--in: the pictures lie below .*/a and .*/b; say with --image-root"):
        run("llava", "rows", two)
    assert len(run("llava", "rows", two, "--image-root", str(tmp_path))[0]) == 2
    with pytest.raises(UserError, match="out.jsonl: is both input and output"):
        run("rows", "rows", (tmp_path / "out.jsonl",))
    with pytest.raises(UserError, match="--in: two Parquet files are called t"):
        run("rlaif-v", "rows", (tmp_path / "a" / "t.parquet", tmp_path / "b" / "t.parquet"))


def test_repeated_ids_never_clash_and_dropped_rows_take_none(run):
    items = [{"id": name, "image": "a", "conversations": turns("A?", answer)} for name, answer in
             (("x", 3), ("x", "1"), ("x", "2"), ("x-2", "3"), ("x", "4"), (None, "5"), (7, "6"))]
    rows, meta = run("llava", "rows", items, "--skip-bad", as_list=False)
    assert [r["id"] for r in rows] == ["x", "x-2", "x-2-2", "x-3", "in-6", "7"] and [r["answers"] for r in rows] == [[str(n)] for n in range(1, 7)]
    assert meta["lossy"]["repeated ids made different by a number"] == 3


@pytest.mark.parametrize("source", sorted(incoming.READERS))
def test_a_list_of_numbers_is_no_data_set(run, tmp_path, source):
    path = write(tmp_path / "coco_pope_random.json", [7], as_list=True)
    with pytest.raises(UserError, match=f"{path}:2: record is a number, not an object"):
        run(source, "rows", path)


def test_lists_name_the_line_that_a_record_begins_on(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('\ufeff[\n {"a": 1,\n  "b": 2},\n\n {"a": NaN}, 7 ]', encoding="utf-8")
    found = list(incoming.objects(path, tmp_path))
    assert found[0] == (2, {"a": 1, "b": 2}) and found[2] == (5, 7)
    assert found[1][0] == 5 and "NaN" in found[1][1].problem
    path.write_text('[{"a": 1},\n {"a": ', encoding="utf-8")
    with pytest.raises(UserError, match=f"{path}:2: list is not JSON .*cut short"):
        list(incoming.objects(path, tmp_path))


def test_parquet_with_pictures_inside(run, tmp_path):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    items = [{"image": {"bytes": bytes([n] * 9), "path": None}, "image_path": "x/1.png", "question": "A?", "chosen": "B", "rejected": "C", "idx": str(n)} for n in (1, 2)]
    parquet.write_table(arrow.Table.from_pylist(items), tmp_path / "part.parquet")
    rows, _ = run("rlaif-v", "rows", tmp_path / "part.parquet")
    assert [(tmp_path / r["image"]).read_bytes() for r in rows] == [bytes([1] * 9), bytes([2] * 9)] and rows[1]["image"].endswith(".png")


# ---- out, and there and back ----

texts = st.text(st.sampled_from("abc .?é\n🐕\"\\"), min_size=1, max_size=9).filter(str.strip)


@settings(max_examples=12, deadline=None)
@given(st.data(), st.integers(2, 4), st.integers(1, 3))
def test_round_trip_through_the_official_list(tmp_path_factory, data, K, rounds):
    """rows -> amp -> rows and amp -> rows -> amp: nothing but the sources' names is lost."""
    folder = tmp_path_factory.mktemp("trip")
    answers = [[data.draw(texts) for _ in range(rounds)] for _ in range(K)]
    # LLaVA's loader strips the first question, and so do we.
    questions = [data.draw(texts).strip(), *(data.draw(texts) for _ in range(rounds - 1))]
    before = {"id": "s", "image": "p.png", "questions": questions, "responses": [{"source": f"output_{k}", "answers": a} for k, a in enumerate(answers, start=1)]}
    write(folder / "rows.jsonl", [before])
    for source, to, a, b in (("rows", "amp", "rows.jsonl", "amp.json"), ("amp", "rows", "amp.json", "back.jsonl"), ("rows", "amp", "back.jsonl", "again.json")):
        convert.main(["--from", source, "--to", to, "--in", str(folder / a), "--out", str(folder / b), "--image-root", str(folder)])
    assert [json.loads(line) for line in (folder / "back.jsonl").read_text(encoding="utf-8").splitlines()] == [before]
    assert (folder / "amp.json").read_bytes() == (folder / "again.json").read_bytes()
    assert list(json.loads((folder / "amp.json").read_text(encoding="utf-8"))[0]) == ["id", "image", *(f"output_{k}" for k in range(1, K + 1))]


def test_pair_formats_are_the_documented_ones(run, tmp_path):
    (tmp_path / "p.png").touch()
    image = str(tmp_path / "p.png")
    records_, meta = run("rows", "trl", [row(K=2, rounds=1)])
    assert records_ == [{"id": "s1#0-1", "images": [image], "prompt": [{"role": "user", "content": "Question 0?"}],
                         "chosen": [{"role": "assistant", "content": "Level 0, round 0."}], "rejected": [{"role": "assistant", "content": "Level 1, round 0."}]}]
    assert meta["lossy"] == {"rows whose source is left out": 1}
    records_, _ = run("rows", "llama-factory", [row(K=2)])
    assert records_[1] == {"id": "s1#0-1@1", "images": [image], "conversations": turns("<image>\nQuestion 0?", "Level 0, round 0.", "Question 1?"),
                           "chosen": {"from": "gpt", "value": "Level 0, round 1."}, "rejected": {"from": "gpt", "value": "Level 1, round 1."}}
    write(tmp_path / "dataset_info.json", {"mine": {"file_name": "mine.json"}}, as_list=True)
    run("rows", "llama-factory", [row()], name="amp.jsonl")
    known = json.loads((tmp_path / "dataset_info.json").read_text(encoding="utf-8"))
    assert known["mine"] == {"file_name": "mine.json"} and known["amp"]["file_name"] == "amp.jsonl" and known["amp"]["ranking"] is True
    assert known["amp"]["columns"].keys() >= {"messages", "chosen", "rejected", "images"}
    records_, _ = run("rows", "ms-swift", [row(K=2)])
    assert records_[1] == {"id": "s1#0-1@1", "messages": [{"role": "user", "content": "<image>Question 0?"}, {"role": "assistant", "content": "Level 0, round 0."},
                           {"role": "user", "content": "Question 1?"}, {"role": "assistant", "content": "Level 0, round 1."}],
                           "rejected_response": "Level 1, round 1.", "images": [image]}


@pytest.mark.parametrize("which, count", [("all", 6), ("adjacent", 3), ("best", 3)])
@pytest.mark.parametrize("to", ["trl", "llama-factory", "ms-swift"])
def test_the_ranking_can_be_read_back_from_its_pairs(run, to, which, count):
    """Round trip of a one-round row of K = 4 distinct answers: the pairs hold the question, every answer and their order."""
    before = row(K=4, rounds=1, initial_order=[2, 0, 1, 3])
    found, meta = run("rows", to, [before], "--pairs", which)
    read = {"trl": lambda r: (r["prompt"][0]["content"], r["chosen"][0]["content"], r["rejected"][0]["content"]),
            "llama-factory": lambda r: (r["conversations"][0]["value"].removeprefix("<image>\n"), r["chosen"]["value"], r["rejected"]["value"]),
            "ms-swift": lambda r: (r["messages"][0]["content"].removeprefix("<image>"), r["messages"][1]["content"], r["rejected_response"])}[to]
    pairs = [read(record) for record in random.Random(0).sample(found, len(found))]
    assert len(pairs) == count and {question for question, _, _ in pairs} == set(before["questions"])
    order = [response["answers"][0] for response in before["responses"]]
    assert {text for _, *both in pairs for text in both} == set(order) and all(order.index(a) < order.index(b) for _, a, b in pairs)
    if which != "best":                                  # the best against each does not say how the others rank
        assert sorted(order, key=lambda text: sum(text == worse for _, _, worse in pairs) if which == "all" else order.index(text)) == order
    assert meta["lossy"] == {"rows of more than two levels cut into pairs": 1, "rows whose initial_order is left out": 1,
                             "rows whose source is left out": 1, "rows whose picture is not there (yet)": 1}


def test_dialogues_become_a_pair_per_round_and_equal_answers_none(run):
    given_ = row(K=2, rounds=3)
    given_["responses"][1]["answers"][0] = given_["responses"][0]["answers"][0]
    found, meta = run("rows", "trl", [given_])
    assert [(r["id"], len(r["prompt"])) for r in found] == [("s1#0-1@1", 3), ("s1#0-1@2", 5)]
    assert [m["content"] for m in found[1]["prompt"]] == ["Question 0?", "Level 0, round 0.", "Question 1?", "Level 0, round 1.", "Question 2?"]
    assert meta["lossy"]["pairs with two equal answers left out"] == 1        # round 1 follows equal answers: nothing moved there
    assert meta["lossy"]["pairs of a later round, the worse answer now after the better response's earlier answers"] == 1


def test_one_answer_is_no_ranking(run, tmp_path):
    with pytest.raises(UserError, match="has one answer and trl needs ranked ones; run generate.py and verify.py"):
        run("llava", "trl", [{"id": "a", "image": "b", "conversations": turns("A?", "B")}])
    assert not list(tmp_path.glob("out*"))


def test_converted_rows_are_read_by_the_stages(run, tmp_path):
    run("llava", "rows", [{"id": n, "image": "b", "conversations": turns("A?", "B")} for n in range(3)])
    assert len(list(records.read(tmp_path / "out.jsonl", "prompt"))) == 3
    run("rlaif-v", "rows", [{"image": "b", "question": "A?", "chosen": "B", "rejected": "C"}])
    (read,) = records.read(tmp_path / "out.jsonl", "preference")
    assert read["id"] == "in-2"                                           # file and line, where a record has no id


def test_readers_and_writers_are_the_choices():
    kinds = convert.Settings.__annotations__
    assert set(kinds["from_"].__args__) == set(incoming.READERS)
    assert set(kinds["to"].__args__) == set(outgoing.WRITERS) | {"rows", "prompts", "amp"}


# ---- TRL itself, where it is installed ----

def test_trl_trains_on_an_exported_set(run, family, tiny_world, tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    rows = [{"id": r["id"], "image": r["image"], "questions": r["questions"],
             "responses": [{"source": str(k), "answers": [a + " There is a red kite." * k for a in r["answers"]]} for k in range(3)]}
            for r in records.read(tiny_world / "preference" / "prompts.jsonl", "prompt")]
    found, _ = run("rows", "trl", rows, "--image-root", str(tiny_world / "preference"), "--pairs", "adjacent", as_list=False)
    data = datasets.load_dataset("json", data_files=str(tmp_path / "out.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    args = trl.DPOConfig(output_dir=str(tmp_path / "trl"), max_steps=2, per_device_train_batch_size=4, max_length=None, learning_rate=1e-3, use_cpu=True,
                         bf16=False, gradient_checkpointing=False, logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no")
    trainer = trl.DPOTrainer(model=str(family / "llava-2b"), args=args, train_dataset=data)
    # TRL's tokens of a pair are ours, but for the <s> that it leaves out.
    m = mllm.load(family / "llava-2b")
    batch = trainer.data_collator([dict(data[0])])
    talk = found[0]["prompt"] + found[0]["chosen"]
    ids, rounds = mllm.encode(m, [t["content"] for t in talk[::2]], [t["content"] for t in talk[1::2]])
    kept = batch["attention_mask"][0].bool()
    assert batch["input_ids"][0][kept].tolist() == ids[1:]
    last = max(rounds)
    assert batch["completion_mask"][0][kept].tolist() == [int(n == last) for n in rounds[1:]]
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 2 and losses[0] == pytest.approx(math.log(2), abs=1e-3) and losses[1] != losses[0]
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
