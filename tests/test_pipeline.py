"""The three scripts and evaluate as a reader runs them: one chain of real processes, then what can go wrong in each."""
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import generate
import train
import verify
from amp_min import records
from amp_min.evaluate import __main__ as evaluate
from amp_min.metrics import NAMES
from amp_min.support import script, storage

ROOT = Path(__file__).parent.parent
NEW_TOKENS, ROWS, LIMIT = 12, 10, 20
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def meta(path):
    return json.loads(Path(f"{path}.meta.json").read_text(encoding="utf-8"))


def start(*command):
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=ENVIRONMENT, text=True, encoding="utf-8",
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process):
    """What it printed. Nothing may stand on stderr: progress bars are for terminals, and warnings are faults."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err == "", err
    return out


def generate_flags(world, family, out):
    return ["--models", family / "llava-7b", family / "llava-2b", "--prompts", world / "preference" / "prompts.jsonl",
            "--out", out, "--beams", 2, "--max-new-tokens", NEW_TOKENS]


def train_flags(world, family, preferences, out):
    return ["--model", family / "llava-2b", "--preferences", preferences, "--image-root", world / "preference", "--out", out,
            "--levels", 3, "--batch", 2, "--epochs", 8, "--lr", 1e-3, "--save-every", 1]


@pytest.fixture(scope="module")
def chain(tiny_world, family, tmp_path_factory):
    """The folder that generate, verify, train and evaluate have written into, with what they printed.

    train is killed as soon as it has a checkpoint, and continued.
    """
    folder = tmp_path_factory.mktemp("chain")
    candidates, preferences, model, printed = folder / "candidates.jsonl", folder / "preferences.jsonl", folder / "mdpo", {}
    printed["generate"] = finished(start("generate.py", *generate_flags(tiny_world, family, candidates)))
    printed["verify"] = finished(start("verify.py", "--candidates", candidates, "--encoder", family / "clip", "--out", preferences))
    command = ["train.py", *train_flags(tiny_world, family, preferences, model)]
    victim, deadline = start(*command), time.monotonic() + 300
    while not list(folder.glob("mdpo.part/checkpoint-*")) and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    assert victim.communicate()[1] == "" and victim.returncode == -signal.SIGKILL and not model.exists()
    with contextlib.redirect_stdout(io.StringIO()) as printed["train"]:  # in this process: each one more costs seconds
        train.main([str(flag) for flag in [*command[1:], "--resume"]])
    printed["evaluate"] = finished(start("-m", "amp_min.evaluate", "--model", model, "--data", tiny_world / "eval", "--limit", LIMIT,
                                         "--max-new-tokens", NEW_TOKENS, "--out", folder / "results.json"))
    return folder, printed


def test_generate_writes_candidates(chain, tiny_world, family):
    folder, printed = chain
    prompts, rows = lines(tiny_world / "preference" / "prompts.jsonl"), lines(folder / "candidates.jsonl")
    assert rows == list(records.read(folder / "candidates.jsonl", "candidate")) and len(rows) == ROWS
    for prompt, row in zip(prompts, rows, strict=True):
        assert [response["source"] for response in row["responses"]] == ["standard", "llava-7b", "llava-2b"]
        assert row["responses"][0]["answers"] == prompt.pop("answers")
        assert {key: row[key] for key in prompt} == prompt and row.keys() - prompt.keys() == {"responses"}
    answers = [text for row in rows for response in row["responses"][1:] for text in response["answers"]]
    assert any(answers) and all(text == text.strip() for text in answers)
    assert meta(folder / "candidates.jsonl")["rows"] == {"read": ROWS, "kept": ROWS, "dropped": {}}
    assert meta(folder / "candidates.jsonl")["settings"]["beams"] == 2
    assert "K = 3 answers for every prompt, the initial ranking is standard > llava-7b > llava-2b" in printed["generate"]


def test_every_file_names_its_inputs_by_content(chain, tiny_world, family):
    folder, _ = chain
    prompts = tiny_world / "preference" / "prompts.jsonl"
    assert meta(folder / "candidates.jsonl")["inputs"][str(prompts)] == storage.sha256_file(prompts)
    assert meta(folder / "preferences.jsonl")["inputs"] == {
        str(path): storage.sha256_file(path) for path in (folder / "candidates.jsonl", family / "clip" / "model.safetensors")}
    run = json.loads((folder / "mdpo" / "train.json").read_text(encoding="utf-8"))
    assert run["run"]["preferences sha256"] == storage.sha256_file(folder / "preferences.jsonl")
    for found in (meta(folder / "candidates.jsonl"), meta(folder / "preferences.jsonl"), run):
        assert found["versions"].keys() == {"python", "torch", "transformers", "spacy"}
    assert not list(folder.rglob("*.part*")) and not list(folder.rglob("*.tmp"))


def test_generate_again_in_this_process_and_after_an_interruption_gives_the_same_bytes(chain, tiny_world, family, tmp_path):
    folder, _ = chain
    out = tmp_path / "candidates.jsonl"
    flags = [str(flag) for flag in generate_flags(tiny_world, family, out)]
    generate.main(flags)
    whole = (folder / "candidates.jsonl").read_bytes()
    assert out.read_bytes() == whole
    # Killed in the middle of the second model's fourth row.
    second = tmp_path / "candidates.jsonl.answers" / "llava-2b.jsonl"
    said = second.read_bytes()
    Path(f"{second}.part").write_bytes(b"".join(said.splitlines(keepends=True)[:3]) + b'{"id": "prefer')
    shutil.move(f"{second}.meta.json", f"{second}.part.meta.json")
    second.unlink(), out.unlink()
    generate.main([*flags, "--resume"])
    assert second.read_bytes() == said and out.read_bytes() == whole


def test_verify_ranks_them(chain):
    folder, printed = chain
    before, after = lines(folder / "candidates.jsonl"), lines(folder / "preferences.jsonl")
    assert after == list(records.read(folder / "preferences.jsonl", "preference"))
    for old, new in zip(before, after, strict=True):
        assert [r["answers"] for r in new["responses"]] == [old["responses"][i]["answers"] for i in new["initial_order"]]
        assert new["responses"][0]["source"] == "standard" and new["responses"][0]["accuracy"] is None
        keys = [(r["accuracy"], r["score"]) for r in new["responses"][1:]]
        assert keys == sorted(keys, reverse=True) and new["scene"] == old["scene"]
    counts = meta(folder / "preferences.jsonl")["auto_check"]
    assert counts["rows"] == ROWS and f"{counts['rows_reordered']} changed order" in printed["verify"]


def test_train_killed_and_continued_gives_the_bytes_of_an_unbroken_run(chain, tiny_world, family, tmp_path):
    folder, printed = chain
    train.main([str(flag) for flag in train_flags(tiny_world, family, folder / "preferences.jsonl", tmp_path / "mdpo")])
    assert (folder / "mdpo" / "model.safetensors").read_bytes() == (tmp_path / "mdpo" / "model.safetensors").read_bytes()
    log, unbroken = lines(folder / "mdpo" / "log.jsonl"), lines(tmp_path / "mdpo" / "log.jsonl")
    timeless = lambda found: [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in found]
    assert timeless(log) == timeless(unbroken)
    assert [line["step"] for line in log] == list(range(1, 41))          # 8 epochs of 10 rows, 2 a step
    assert list(log[0]) == ["step", "epoch", "loss", "accuracy", "margin", "logp", "ratio", "grad_norm", "lr", "tokens_per_second"]
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and all(len(line["logp"]) == 3 for line in log)
    assert log[-1]["ratio"][0] > 1 and 0 <= log[-1]["accuracy"] <= 1
    assert "reference log-probs: from" in printed["train"].getvalue()    # the killed run had computed them
    base, trained = (load_file(path / "model.safetensors") for path in (family / "llava-2b", folder / "mdpo"))
    assert base.keys() == trained.keys()


def test_evaluate_gives_every_metric(chain, tiny_world):
    folder, printed = chain
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert set(NAMES) <= results["metrics"].keys() and results.keys() == {"metrics", "settings", "versions", "seconds"}
    for name in NAMES:
        top = 6 if "score" in name else 1
        assert 0 <= results["metrics"][name] <= top and f"{results['metrics'][name]:.3f}" in printed["evaluate"]
    said = lines(folder / "results.json.answers.jsonl")
    kinds = [row["benchmark"] for row in said]
    assert {kind: kinds.count(kind) for kind in kinds} == {"captions_greedy": 6, "captions_sampled": 6, "pope": LIMIT, "mrhal": 12}
    questions = {row["id"]: row["questions"] for row in lines(tiny_world / "eval" / "mrhal.jsonl")}
    assert all(len(row["answers"]) == len(questions[row["id"]]) for row in said if row["benchmark"] == "mrhal")




# ---- what a user can get wrong: one line on stderr, status 2, nothing under the final name ----

def refused(main, flags, out, capsys, *says):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        script.run(lambda: main([str(flag) for flag in flags]))
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and err.endswith("\n"), err
    assert not Path(out).exists()
    for text in says:
        assert text in err, err


GOOD = {"id": "a", "image": "images/a.png", "questions": ["Is there a dog?"]}
RESPONSES = [{"source": "standard", "answers": ["No."]}, {"source": "x", "answers": ["Yes."]}, {"source": "y", "answers": ["A cat."]}]


def bad_lines(answers_of):
    """(a line of JSONL that is wrong, what the message says) for each fault; answers_of(texts): the row's other keys."""
    row = lambda **change: json.dumps(GOOD | answers_of(["No."]) | change)
    return [("{\"id\": \"a\", ", ":2: line is not JSON"), ("[]", ":2: line is a list"),
            (row(questions=[], **answers_of([])), ":2: questions is an empty list"),
            (row(**answers_of(["A <image> of a dog."])), "contains <image>"),
            (row(**answers_of(["No.", "Yes."])), "has 2 entries, questions has 1")]


SCRIPTS = {
    "generate": (generate.main, "--prompts", lambda texts: {"answers": texts}, ["--models", "{family}/llava-2b"]),
    "verify": (verify.main, "--candidates", lambda texts: {"responses": [RESPONSES[0], {"source": "x", "answers": texts}]},
               ["--encoder", "{family}/clip"]),
    "train": (train.main, "--preferences", lambda texts: {"responses": [RESPONSES[0], {"source": "x", "answers": texts}]},
              ["--model", "{family}/llava-2b"]),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_bad_input_files(name, family, tiny_world, tmp_path, capsys):
    main, flag, answers_of, others = SCRIPTS[name]
    (tmp_path / "images").mkdir()
    shutil.copy(next((tiny_world / "eval" / "images").iterdir()), tmp_path / "images" / "a.png")
    path, out = tmp_path / "in.jsonl", tmp_path / "out"
    flags = [flag, path, "--out", out, *(other.format(family=family) for other in others)]
    refused(main, flags, out, capsys, f"{path}: No such file or directory")
    good = json.dumps(GOOD | {"id": "first"} | answers_of(["No."]))
    for line, message in bad_lines(answers_of):
        path.write_text(f"{good}\n{line}\n", encoding="utf-8")
        refused(main, flags, out, capsys, str(path), message)
    path.write_text("", encoding="utf-8")
    refused(main, flags, out, capsys, f"{path}:1: file has no usable row")
    if name != "verify":                                                 # it looks at no picture
        path.write_text(json.dumps(GOOD | {"image": "images/b.png"} | answers_of(["No."])) + "\n", encoding="utf-8")
        refused(main, flags, out, capsys, "picture is missing; there is no file", "b.png")
        path.write_text(json.dumps(GOOD | {"image": "../b.png"} | answers_of(["No."])) + "\n", encoding="utf-8")
        refused(main, flags, out, capsys, "image leads out of its folder")


def test_model_folders_that_are_none(family, tiny_world, tmp_path, capsys):
    shutil.copytree(family / "llava-2b", tmp_path / "bare")
    (tmp_path / "bare" / "processor_config.json").unlink()
    prompts = tiny_world / "preference" / "prompts.jsonl"
    preferences = tmp_path / "preferences.jsonl"
    row = json.loads(prompts.read_text(encoding="utf-8").splitlines()[0])
    wrong = [{"source": "x", "answers": ["No."] * len(row["questions"])}] * 2
    preferences.write_text(json.dumps(row | {"responses": wrong}) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    for model, message in (tmp_path / "bare", "has no processor_config.json"), (tmp_path / "nothing", "no such model folder"):
        for main, flags in ((generate.main, ["--prompts", prompts, "--models"]), (train.main, ["--preferences", preferences, "--model"]),
                            (evaluate.main, ["--data", tiny_world / "eval", "--model"])):
            refused(main, [*flags, model, "--out", out], out, capsys, f"{model}: ", message)
    refused(train.main, ["--preferences", preferences, "--image-root", tiny_world / "preference", "--model", family / "llava-2b",
                         "--levels", 3, "--out", out], out, capsys, "preferences.jsonl:1: responses has 2 entries, --levels asks for 3")


