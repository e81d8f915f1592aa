"""train.py in process: the same bytes again, gradients that do not depend on how a step is cut, and what is refused."""
import inspect
import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from amp_min import lora, mllm, preferences, prompt, records, reference
from amp_min.support import checkpoint
from amp_min.support.script import UserError

K, ROWS = 3, 10


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def rows(tiny_world):
    """Preference rows of one, two and three rounds: the standard answers, and each with one and two claims too many."""
    def worse(answers, k):
        return [answer + " There is a red kite at the top." * k for answer in answers]
    return [{"id": row["id"], "image": row["image"], "questions": row["questions"],
             "responses": [{"source": f"level-{k}", "answers": worse(row["answers"], k), "accuracy": 1 - k / 4} for k in range(K)]}
            for row in records.read(tiny_world / "preference" / "prompts.jsonl", "prompt")]


@pytest.fixture
def run(family, tiny_world, rows, tmp_path):
    """run(name, flags...) trains into tmp_path/name; returns the folder and its log lines."""
    write(tmp_path / "preferences.jsonl", rows)

    def train_it(name, *flags):
        out = tmp_path / name
        train.main(["--model", str(family / "llava-2b"), "--preferences", str(tmp_path / "preferences.jsonl"), "--out", str(out),
                    "--image-root", str(tiny_world / "preference"), "--batch", "4", "--epochs", "2", "--lr", "1e-3", *flags])
        return out, [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return train_it


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def largest_difference(one, other):
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# ---- the run ----

def test_same_seed_same_bytes_and_another_seed_others(run):
    (one, log), (two, again), (other, _) = run("one"), run("two"), run("other", "--seed", "1")
    assert weights(one) == weights(two) != weights(other)
    timeless = lambda lines: [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]
    assert timeless(log) == timeless(again)


def test_first_step_is_the_reference(run):
    _, log = run("out")
    steps = 2 * math.ceil(ROWS / 4)
    assert [line["step"] for line in log] == list(range(1, steps + 1))
    assert [line["epoch"] for line in log] == [round(step / 3, 4) for step in range(1, steps + 1)]
    assert all(len(line["logp"]) == len(line["ratio"]) == K for line in log)
    assert log[0]["ratio"] == pytest.approx([0] * K, abs=1e-4) and log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    # A level says its better neighbour's words and more, so it is less likely; training moves the best level up.
    assert log[0]["logp"] == sorted(log[0]["logp"], reverse=True) and log[-1]["ratio"][0] > 1
    assert log[-1]["loss"] < log[0]["loss"] and log[-1]["lr"] < 1e-3


def test_only_the_language_model_moves(run, family):
    base = load_file(family / "llava-2b" / "model.safetensors")
    for name, flags, projector_moves in ("out", [], False), ("projector", ["--train-projector"], True):
        out, _ = run(name, "--epochs", "1", *flags)
        trained = load_file(out / "model.safetensors")
        moved = {key for key in base if not torch.equal(base[key], trained[key])}
        assert not any("vision_tower" in key for key in moved) and any("language_model" in key for key in moved)
        assert any("multi_modal_projector" in key for key in moved) == projector_moves
        assert mllm.load(out).image_tokens == 9                  # an ordinary folder, processor included
        assert sorted(path.name for path in out.iterdir() if path.is_dir()) == []        # no checkpoint is left


@pytest.mark.parametrize("loss", ["mdpo", "kwise", "pro", "sft"])
def test_a_step_may_be_cut_into_any_micro_batches(run, loss):
    """10 rows in steps of 4 end with a step of 2; micro-batches of 3 cut 4 into 3 + 1. Every step must be the same."""
    flags = ["--loss", loss, "--lr", "1e-4"]
    (whole, log), *others = (run(f"{loss}-{n}", *flags, "--micro-batch", str(n)) for n in (4, 1, 3))
    for cut, cut_log in others:
        assert [line["loss"] for line in cut_log] == pytest.approx([line["loss"] for line in log], rel=1e-4, abs=1e-5)
        assert [line["grad_norm"] for line in cut_log] == pytest.approx([line["grad_norm"] for line in log], rel=1e-3)
        assert largest_difference(whole, cut) < 1e-5
    if loss == "kwise":
        assert log[0]["loss"] == pytest.approx(math.log(math.factorial(K)), abs=1e-4)
    if loss == "sft":
        assert len(log[0]["logp"]) == 1 and "accuracy" not in log[0]


def test_gradient_checkpointing_changes_nothing(run):
    (plain, _), (saving, _) = run("plain"), run("saving", "--gradient-checkpointing")
    assert largest_difference(plain, saving) < 1e-5


def test_gradient_checkpointing_warns_of_nothing(run, recwarn):
    run("out", "--gradient-checkpointing", "--epochs", "0.1")
    assert not [str(w.message) for w in recwarn if "gradient_checkpointing" in str(w.message) or "reentrant" in str(w.message)]


def test_the_memory_estimate_comes_before_the_weights(run, family, capsys, monkeypatch):
    monkeypatch.setattr(train.mllm, "load", lambda *args: pytest.fail("weights were read"))
    with pytest.raises(pytest.fail.Exception):
        run("out")
    assert re.search(r"memory: weights \d+\.\d MB, .* fits in \d+ GB: yes", capsys.readouterr().out)


def test_bf16_is_close_to_fp32(run):
    for name, flags in ("full", []), ("lora", ["--lora-rank", "4"]):
        for loss in "sft", "mdpo":
            logs = [run(f"{name}-{loss}-{dtype}", "--loss", loss, "--penalty", "0", "--epochs", "1",
                        "--lr", "1e-4", "--dtype", dtype, *flags)[1]
                    for dtype in ("fp32", "bf16")]
            for exact, rounded in zip(*logs, strict=True):
                assert rounded["logp"] == pytest.approx(exact["logp"], rel=0.02), (name, loss)
            # mdpo's loss is a difference of two such log-probs: only the first, ln 2, is free of their rounding.
            for exact, rounded in list(zip(*logs))[:None if loss == "sft" else 1]:
                assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.02), (name, loss)


def test_adapters_are_all_that_moves_and_all_that_is_saved(run, family, tiny_world):
    out, log = run("out", "--lora-rank", "4", "--lr", "1e-2")
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and log[-1]["ratio"][0] > 0.1
    assert (out / "adapter_model.safetensors").is_file() and (out / "adapter_config.json").is_file()
    assert not (out / "model.safetensors").exists()
    settings = train.Settings(model=str(family / "llava-2b"), preferences=str(out.parent / "preferences.jsonl"), out=str(out.parent / "by-hand"),
                              image_root=str(tiny_world / "preference"), lora_rank=4, lr=1e-2, batch_size=4, epochs=1)
    m, trained, autocast = train.load_policy(settings)
    assert all(name.endswith((".A", ".B")) for name in trained)
    before = {name: p.clone() for name, p in m.model.named_parameters()}
    data = preferences.read(m, settings)
    data.features = mllm.image_features(m, data.images)
    data.reference = reference.logps(m, data, autocast, "by hand", settings)
    (out.parent / "by-hand").mkdir()
    train.train(m, trained, autocast, data, "all", settings, out.parent / "by-hand")
    moved = {name for name, p in m.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(trained)
    adapted = lora.load(mllm.load(family / "llava-2b").model, out)
    assert len(lora.adapters(adapted)) == len(trained) / 2
    merged = dict(mllm.load(out).model.named_parameters())                      # what evaluate.py makes of the folder
    assert all(torch.equal(p, merged[name]) for name, p in lora.merge(adapted).named_parameters())


# ---- checkpoints ----

class Stop(Exception):
    pass


def interrupted(run, monkeypatch, at, *flags):
    """Start a run and let it break off after step `at`, as by Ctrl-C (test_pipeline.py kills one with SIGKILL)."""
    write_line = train.log_line

    def log_line(step, *rest):
        if step == at + 1:
            raise Stop
        return write_line(step, *rest)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(train, "log_line", log_line)
        run("part", *flags)


@pytest.mark.parametrize("flags", [[], ["--lora-rank", "2", "--weight-decay", "0.1"]])
def test_a_resumed_run_gives_the_same_bytes(run, monkeypatch, tmp_path, flags):
    name = "adapter_model.safetensors" if flags else "model.safetensors"
    whole, log = run("whole", *flags)
    interrupted(run, monkeypatch, 4, "--save-every", "1", *flags)
    left = sorted(path.name for path in (tmp_path / "part.part").glob("checkpoint-*"))
    assert left == ["checkpoint-00000003", "checkpoint-00000004"] and not (tmp_path / "part").exists()
    # A kill while a checkpoint is written leaves this; it must not be taken for one.
    shutil.copytree(tmp_path / "part.part" / left[1], tmp_path / "part.part" / "saving")
    resumed, log_after = run("part", "--resume", *flags)
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    assert [line["loss"] for line in log_after] == [line["loss"] for line in log]
    assert not (tmp_path / "part.part").exists()


def test_resume_is_refused_for_another_run_and_idle_for_a_finished_one(run, family, monkeypatch, tmp_path, rows, capsys):
    interrupted(run, monkeypatch, 2, "--save-every", "1")
    with pytest.raises(UserError, match="was begun with beta = 0.1, now it is 0.5"):
        run("part", "--resume", "--beta", "0.5")
    finished, _ = run("part", "--resume")
    before = weights(finished)
    capsys.readouterr()
    run("part", "--resume")
    assert "finished before" in capsys.readouterr().out and weights(finished) == before
    rows[0]["responses"][2]["answers"][0] += " Yes."
    write(tmp_path / "preferences.jsonl", rows)
    rows[0]["responses"][2]["answers"][0] = rows[0]["responses"][2]["answers"][0].removesuffix(" Yes.")
    train_again = [*["--model", str(family / "llava-2b"), "--out", str(finished), "--preferences", str(tmp_path / "preferences.jsonl")], "--resume"]
    with pytest.raises(UserError, match="was begun with"):
        train.main(train_again)
    assert weights(finished) == before


def test_killed_at_the_last_moment_no_step_is_done_again(run, monkeypatch, tmp_path, capsys):
    """Between its last step and its new name, and between its new name and the end of its checkpoints."""
    whole, _ = run("whole")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(train.checkpoint.folders, "replace_folder", lambda *_: (_ for _ in ()).throw(Stop))
        run("part", "--save-every", "2")
    assert len(list((tmp_path / "part.part").glob("checkpoint-*"))) == 2
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(train.checkpoint, "clear", lambda _: (_ for _ in ()).throw(Stop))
        run("part", "--resume")
    assert weights(tmp_path / "part") == weights(whole)
    capsys.readouterr()
    resumed, _ = run("part", "--resume")
    assert "finished before" in capsys.readouterr().out and not list(resumed.glob("checkpoint-*")) and weights(resumed) == weights(whole)


def test_a_checkpoint_that_cannot_be_read_is_named(run, monkeypatch, tmp_path):
    interrupted(run, monkeypatch, 3, "--save-every", "1")
    first, last = sorted((tmp_path / "part.part").glob("checkpoint-*"))
    (last / "optimizer.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=f"{last}: cannot be read .*; delete it, and --resume continues from the one before"):
        run("part", "--resume")
    shutil.rmtree(last)
    assert weights(run("part", "--resume")[0]) == weights(run("whole")[0])


def test_a_checkpoint_holds_all_that_a_step_depends_on(run, monkeypatch, tmp_path):
    interrupted(run, monkeypatch, 2, "--save-every", "1")
    left = sorted((tmp_path / "part.part").glob("checkpoint-*"))[-1]
    trained, state = load_file(left / "weights.safetensors"), load_file(left / "optimizer.safetensors")
    assert state.keys() == {f"{name}/{key}" for name in trained for key in ("exp_avg", "exp_avg_sq", "step")} | {"random/cpu"}
    assert all(int(state[f"{name}/step"]) == int(left.name.split("-")[1]) == 2 for name in trained)
    assert torch.equal(state["random/cpu"], torch.get_rng_state())


def test_a_folder_of_somebody_else_is_refused(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="out: is there already, and train.py did not write it"):
        run("out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


# ---- the reference ----

def cached(tmp_path):
    return sorted(tmp_path.glob("preferences.jsonl.reference-*.safetensors"))


def test_reference_is_computed_once_per_data_set(run, tmp_path, rows, capsys):
    one, _ = run("one")
    (first,), printed = cached(tmp_path), capsys.readouterr().out
    assert "reference log-probs: from" not in printed and load_file(first)["logps"].shape == (ROWS, K)
    two, _ = run("two", "--micro-batch", "3")                    # another cut, same log-probs
    assert f"reference log-probs: from {first}" in capsys.readouterr().out and cached(tmp_path) == [first]
    write(tmp_path / "preferences.jsonl", rows[:-1])
    run("three")
    assert "reference log-probs: from" not in capsys.readouterr().out and len(cached(tmp_path)) == 2


def test_a_damaged_cache_is_computed_again(run, tmp_path, capsys):
    one, _ = run("one", "--epochs", "0.1")
    (cache,) = cached(tmp_path)
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-8])
    two, _ = run("two", "--epochs", "0.1")
    assert "cannot be read" in capsys.readouterr().out and cache.read_bytes() == whole and weights(one) == weights(two)


def test_a_reference_of_something_else_stops_the_run(run, tmp_path, rows):
    run("one", "--epochs", "0.1")
    (cache,) = cached(tmp_path)
    wrong = load_file(cache)["logps"]
    wrong[1, 2] -= 0.5
    save_file({"logps": wrong}, cache)
    with pytest.raises(UserError, match=f"reference log-probs of row '{rows[1]['id']}' are not the model's"):
        run("two")
    assert not (tmp_path / "two").exists()


def test_a_policy_that_is_not_the_reference_at_the_start_is_refused(run, monkeypatch, rows):
    """Here the adapters do not begin at zero: the policy has moved before its first step."""
    add = lora.add

    def moved(model, *sizes):
        add(model, *sizes)
        for name, p in model.named_parameters():
            if name.endswith(".B"):
                torch.nn.init.constant_(p, 0.01)
    monkeypatch.setattr(lora, "add", moved)
    with pytest.raises(UserError, match="reference log-probs of row 'preference-.*', 'preference-.* are not the model's"):
        run("out", "--lora-rank", "2")


# ---- data and refusals ----

def test_a_cut_answer_is_scored_without_its_end(run, family, tiny_world, tmp_path, rows):
    """generate.py marks what it had to cut. Scored with an end token, the model would learn to stop there."""
    rows = json.loads(json.dumps(rows))
    rows[2]["responses"][1]["cut"] = [True] + [False] * (len(rows[2]["questions"]) - 1)
    write(tmp_path / "preferences.jsonl", rows)
    settings = train.Settings(model=str(family / "llava-2b"), preferences=str(tmp_path / "preferences.jsonl"), out="out",
                              image_root=str(tiny_world / "preference"))
    m = mllm.load(settings.model)
    sets = preferences.read(m, settings).sets
    for k, answers in enumerate(response["answers"] for response in rows[2]["responses"]):
        ids, rounds = prompt.encode(m, rows[2]["questions"], answers)
        whole = [weight for part in (0, k + 1) for weight in sets[2].weights[part]]
        end = max(t for t, number in enumerate(rounds) if number == 1)
        assert ids[end] == m.tokenizer.eos_token_id and whole[end] == (k != 1)
        assert whole[:end] + whole[end + 1:] == [float(number > 0) for number in rounds[:end] + rounds[end + 1:]]


def test_fused_optimizer_finds_its_step_count_beside_the_weights(tmp_path):
    """On a GPU the fused AdamW refuses a count that lies on the CPU. The meta device stands for the GPU here."""
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([p], fused=True)
    optimizer.state[p] = {key: torch.ones(()) for key in ("step", "exp_avg", "exp_avg_sq")}
    (tmp_path / "folder").mkdir()
    checkpoint.save(tmp_path / "folder", 3, {"p": p}, optimizer)
    with torch.device("meta"):
        away = torch.nn.Parameter(torch.zeros(2))
    for fused, place in (True, "meta"), (False, "cpu"):
        other = torch.optim.AdamW([away], fused=False)
        other.param_groups[0]["fused"] = fused
        assert checkpoint.restore(tmp_path / "folder", {"p": away}, other) == 3
        assert {key: state.device.type for key, state in other.state[away].items()} == {
            "step": place, "exp_avg": "meta", "exp_avg_sq": "meta"}


@pytest.mark.parametrize("name", ["chat_template.jinja", "processor_config.json", "tokenizer.json"])
def test_another_template_tokenizer_or_processor_is_another_run(run, family, tmp_path, monkeypatch, name):
    """They decide the tokens and the pixels, so a run must not go on with them."""
    shutil.copytree(family / "llava-2b", tmp_path / "base")
    interrupted(run, monkeypatch, 2, "--save-every", "1", "--model", str(tmp_path / "base"))
    with open(tmp_path / "base" / name, "a", encoding="utf-8") as file:
        file.write(" ")
    with pytest.raises(UserError, match="was begun with model fingerprint"):
        run("part", "--resume", "--model", str(tmp_path / "base"))


def test_equal_answers_are_reported_and_a_row_without_a_scored_token_is_refused(run, tmp_path, rows, monkeypatch, capsys):
    rows = json.loads(json.dumps(rows))
    rows[2]["responses"][2] = rows[2]["responses"][1]
    write(tmp_path / "preferences.jsonl", rows)
    run("out", "--epochs", "0.1")
    assert f"1 of {ROWS} rows hold equal answers" in capsys.readouterr().out
    encode = prompt.encode
    unscored = lambda m, questions, answers: (lambda ids, rounds: (ids, [0] * len(ids) if "kite" in answers[0] else rounds))(
        *encode(m, questions, answers))
    monkeypatch.setattr(prompt, "encode", unscored)
    with pytest.raises(UserError, match="jsonl:1: answer 1 of the set has no scored token"):
        run("other")


def test_show_prints_what_is_scored(run, rows, capsys):
    run("out", "--show", "2", "--epochs", "0.1")
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("prefix", "answer"))]
    assert len(shown) == 2 * (1 + K)
    for at, row in (0, rows[0]), (4, rows[1]):
        texts = [line.split("'", 1)[1].removesuffix("'") for line in shown[at:at + 4]]
        for k in range(K):
            whole = (texts[0] + texts[k + 1]).replace("][", "")
            scored = [part.split("]")[0] for part in whole.split("[")[1:]]
            assert scored == [f" {answer}</s>" for answer in row["responses"][k]["answers"]]
        assert texts[0].count("<image>") == 1


def test_levels_takes_the_best(run, capsys):
    _, log = run("out", "--levels", "2", "--epochs", "1")
    assert len(log[0]["logp"]) == 2


def test_a_loss_that_is_not_finite_stops_the_run(run, tmp_path):
    with pytest.raises(UserError, match=r"step 2: loss .*nan.*, first at rows preference-") as caught:
        run("out", "--lr", "1e30", "--save-every", "1", "--warmup", "0")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    (left,) = (tmp_path / "out.part").glob("checkpoint-*")
    assert caught.value.__notes__ == [f"step 1 is saved in {left}"]


@pytest.mark.parametrize("flags, message", [
    (["--levels", "4"], "jsonl:1: responses has 3 entries, --levels asks for 4"),
    (["--pairs", "2-0"], r"--pairs 2-0: pairs\[0\] is \(2, 0\)"),
    (["--pairs", "nonsense"], "--pairs nonsense"),
    (["--train-projector", "--lora-rank", "2"], "--train-projector goes with full training"),
    (["--preferences", "no/such.jsonl"], "no/such.jsonl: No such file"),
    (["--model", "no/such/folder"], "no/such/folder: no such model folder"),
    (["--model", "nobody/nothing"], "nobody/nothing: cannot be had from the hub .*hf download nobody/nothing"),
])
def test_refusals(run, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as caught:
        run("out", *flags)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("out*"))


def test_an_answer_longer_than_the_model_reads_is_named(run, tmp_path, rows, capsys):
    rows = json.loads(json.dumps(rows))
    rows[3]["responses"][1]["answers"][0] = "There is a cat. " * 300
    write(tmp_path / "preferences.jsonl", rows)
    with pytest.raises(UserError, match=r":4: responses need .* tokens, .* reads 1024"):
        run("out")
    run("without", "--skip-bad", "--epochs", "1")
    assert "dropped 1 rows: responses need " in capsys.readouterr().out


def test_pro_needs_accuracies(run, rows, tmp_path):
    """Without them every reward is equal, and PRO is supervised training on the best answer."""
    bare = [row | {"responses": [{key: r[key] for key in ("source", "answers")} for r in row["responses"]]} for row in rows]
    write(tmp_path / "preferences.jsonl", bare)
    with pytest.raises(UserError, match="jsonl:1: responses lack an accuracy, which --loss pro"):
        run("pro", "--loss", "pro")


def test_adapters_do_not_go_on_adapters(run):
    """The second adapter folder would name the first one's base, and what the first had learned would be gone."""
    folder, _ = run("first", "--lora-rank", "2", "--epochs", "0.1")
    with pytest.raises(UserError, match="is an adapter itself, and new ones would forget it; merge it first"):
        run("second", "--lora-rank", "2", "--model", str(folder))


def test_rows_of_mixed_length_are_never_cut_in_silence(run, rows, tmp_path, capsys):
    short = rows[1] | {"responses": rows[1]["responses"][:2]}
    for order, problem in (([rows[0], short], "jsonl:2: responses has 2 entries, the first row 3"),
                           ([short, rows[0]], "jsonl:2: responses has 3 entries, the first row 2; say with --levels")):
        write(tmp_path / "preferences.jsonl", order)
        with pytest.raises(UserError, match=problem):
            run("mixed")
    run("dropped", "--skip-bad", "--batch", "1", "--epochs", "1")
    assert "dropped 1 rows: " in capsys.readouterr().out


def test_a_special_token_in_an_answer_is_refused(run, rows, tmp_path):
    """The end-of-sequence token would end what is scored, and the rest of the answer would be gone."""
    bad = json.loads(json.dumps(rows[0]))
    bad["responses"][1]["answers"][0] = "No.</s> There is a cat."
    write(tmp_path / "preferences.jsonl", [bad])
    with pytest.raises(UserError, match="'</s>', a special token of"):
        run("special")


# ---- where it writes ----

def test_a_slash_behind_out_changes_nothing(run, tmp_path):
    one, _ = run("one", "--epochs", "0.1")
    run("two/", "--epochs", "0.1")
    assert weights(one) == weights(tmp_path / "two") and not list(tmp_path.rglob("*.part"))


def test_the_model_that_is_trained_is_not_replaced(run, family, tmp_path):
    shutil.copytree(family / "llava-2b", tmp_path / "mine")
    before = weights(tmp_path / "mine")
    with pytest.raises(UserError, match="--out .*mine: is the model that is trained"):
        run("mine", "--model", str(tmp_path / "mine"), "--lora-rank", "2")
    assert weights(tmp_path / "mine") == before


def test_a_reference_that_cannot_be_kept_is_no_obstacle(run, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")
    one, _ = run("one", "--epochs", "0.1")
    monkeypatch.setattr(reference, "save_file", full)
    two, _ = run("two", "--epochs", "0.1", "--beta", "0.1", "--round-step", "0.0")
    assert weights(one) == weights(two)
    shutil.rmtree(two)
    for cache in cached(two.parent):
        cache.unlink()
    run("two", "--epochs", "0.1")
    assert "reference log-probs: not kept" in capsys.readouterr().out and weights(one) == weights(two) and not cached(two.parent)


def test_supervised_training_takes_rows_of_any_number_of_levels(run, rows, tmp_path):
    all_alike, _ = run("alike", "--loss", "sft", "--epochs", "1")
    write(tmp_path / "preferences.jsonl", [row | {"responses": row["responses"][:2 + i % 2]} for i, row in enumerate(rows)])
    mixed, _ = run("mixed", "--loss", "sft", "--epochs", "1")
    assert weights(all_alike) == weights(mixed)


# ---- how much there is to read ----

def test_a_step_is_short_to_read(family, tiny_world, rows, tmp_path):
    """Follow one step and add up the functions that it runs, comments and all: at most 4 files and 750 lines."""
    write(tmp_path / "preferences.jsonl", rows)
    ran, root = {}, Path(train.__file__).parent

    def watch(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if path.parent in (root, root / "amp_min") and not frame.f_code.co_name.startswith("<"):
            ran[path.name, frame.f_code.co_name] = len(inspect.getsourcelines(frame.f_code)[0])
    settings = train.Settings(model=str(family / "llava-2b"), preferences=str(tmp_path / "preferences.jsonl"),
                              out=str(tmp_path / "out"), image_root=str(tiny_world / "preference"), levels=3, epochs=0.1)
    m, trained, autocast = train.load_policy(settings)
    data = preferences.read(m, settings)
    data.features = mllm.image_features(m, data.images)
    data.reference = torch.zeros(len(data.sets), 3)
    (tmp_path / "out").mkdir()
    sys.setprofile(watch)
    try:
        train.train(m, trained, autocast, data, "all", settings, tmp_path / "out")
    finally:
        sys.setprofile(None)
    files = {name for name, _ in ran}
    assert ("train.py", "train") in ran and ("losses.py", "dpo_loss") in ran and ("packing.py", "set_logps") in ran
    assert files <= {"train.py", "packing.py", "losses.py", "mllm.py"}, files
    print(sum(ran.values()))
    assert sum(ran.values()) <= 500, ran
    whole = {name: len((root / name if name == "train.py" else root / "amp_min" / name).read_text("utf-8").splitlines())
             for name in files}
    assert sum(whole.values()) <= 1020, whole
