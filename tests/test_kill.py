"""Every stage is killed in the middle and continued: nothing is lost or double, the files are a clean run's.

    python -m pytest -q tests/test_kill.py -m kill       20 random moments in forks, one per stage of the
                                                         commands as they are typed; writes results/kill.json

The default suite kills three times. A fork runs a stage's main() in a process of its own, imports done.
"""
import gc
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tqdm.auto

from amp_min import records
from amp_min.support import script, storage

ROOT = Path(__file__).parent.parent


# ---- a stage as a process of its own ----

def commands(world, family, work):
    """stage -> (module, flags) that writes into work/<stage>; sizes make every stage write many times."""
    base, large, rows = family / "llava-2b", family / "llava-7b", work / "inputs/candidates.jsonl"
    few = "--train 20 --closeups 8 --finetune 8 --preference 8 --captions 4 --dialogues 8".split()
    tiny = "--family llava-2b llava-7b --clip-steps 2 --steps 3 --careless-steps 1 --batch 4".split()
    brief = "--max-new-tokens 6 --beams 1 --block 2".split()
    steps = "--batch 2 --epochs 3 --lr 1e-3 --save-every 1".split()
    short = "--limit 8 --batch 4 --max-new-tokens 4".split()
    return {
        "world": ("amp_min.world", ["--out", work / "world/w", *few]),
        "pretrain": ("amp_min.pretrain", ["--out", work / "pretrain", "--world", world, *tiny]),
        "generate": ("generate", ["--prompts", world / "preference/prompts.jsonl", "--models", large, base,
                                  "--out", work / "generate/candidates.jsonl", *brief]),
        "verify": ("verify", ["--candidates", rows, "--encoder", family / "clip", "--rows-at-once", 1,
                              "--out", work / "verify/preferences.jsonl"]),
        "train": ("train", ["--model", base, "--preferences", work / "train/rows.jsonl",
                            "--image-root", world / "preference", "--out", work / "train/mdpo", *steps]),
        "evaluate": ("amp_min.evaluate", ["--model", base, "--data", world / "eval",
                                          "--out", work / "evaluate/results.json", *short]),
    }


def lay_out(work, stage, rows):
    """An empty folder for the stage, with what it reads; the same path each time: files name their inputs."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "inputs").mkdir(parents=True)
    (work / stage).mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (work / "inputs/candidates.jsonl").write_text(text, encoding="utf-8")
    if stage == "train":
        (work / "train/rows.jsonl").write_text(text, encoding="utf-8")


def start_command(module, flags, log):
    """The command that a user types."""
    name = ["-m", module] if "." in module else [f"{module}.py"]
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.Popen([sys.executable, *name, *map(str, flags)], cwd=ROOT, stdout=file, stderr=file,
                                env=os.environ | {"OMP_NUM_THREADS": "1"}).pid


def start_fork(module, flags, log, largest_file=None):
    """The same main() in a fork."""
    main = script.module_of(module).main
    if pid := os.fork():
        return pid
    status = 1
    try:
        for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
            bar.set_lock(threading.RLock())    # its own is shared: one fork killed with it stops the next
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        sys.stderr = open(log, "w", encoding="utf-8")
        # Ctrl-C may be ignored (pytest can be in the background), hidden by pytest's hook for exceptions that
        # have no one to go to, or swallowed by Hypothesis's callback when it comes in a garbage collection.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = sys.__unraisablehook__
        gc.callbacks.clear()
        if largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        script.run(lambda: main([str(flag) for flag in flags]))
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    finally:
        sys.stderr.close()
        os._exit(status)


def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for(found, pid, limit=600):
    """Until found() is true; the exit status if the process ends before that."""
    deadline = time.monotonic() + limit
    while not found():
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return None


def begun(work, stage):
    """Whether the stage has written anything: from here on there is something to lose."""
    return any(path.name != "rows.jsonl" for path in (work / stage).iterdir())


# ---- what must be equal ----

def contents(folder):
    """relative path -> content, without the figures that are times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name.endswith(".json") and b'"seconds"' in content:
                content = {key: value for key, value in json.loads(content).items() if key != "seconds"}
            if path.name == "log.jsonl":
                content = [json.loads(line) | {"tokens_per_second": None} for line in content.splitlines()]
            found[path.relative_to(folder).as_posix()] = content
    return found


def keys_of(folder):
    """Every row of every JSONL file, by what identifies it."""
    return [(path.name, row.get("benchmark"), row.get("id", row.get("step")))
            for path in sorted(folder.rglob("*.jsonl"))
            for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())]


def trial(stage, plan, work, rows, clean, span, rng, start):
    """Kill the stage once, between its first file and its end; continue it; what went wrong, in numbers."""
    for _ in range(20):
        lay_out(work, stage, rows)
        moment = rng.uniform(0, span)
        pid = start(*plan, work / "log")
        if wait_for(lambda: begun(work, stage), pid) is None:
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
            if end(pid) == -signal.SIGKILL:
                break
        span *= 0.8                                      # it was faster than the clean run, and had ended
    else:
        raise AssertionError(f"{stage} ended before every kill")
    left = sum(path.read_bytes().count(b"\n") for path in (work / stage).rglob("*")
               if path.is_file() and ".jsonl" in path.name and not path.name.endswith(".json"))
    module, flags = plan
    status = end(start(module, [*flags, "--resume"], work / "log"))
    assert status == 0, (work / "log").read_text(encoding="utf-8")
    keys, found = keys_of(work / stage), contents(work / stage)
    names = sorted(clean[1].keys() | found.keys())
    return {"stage": stage, "seconds_after_first_file": round(moment, 3), "lines_found": left,
            "rows_lost": len(set(clean[0]) - set(keys)), "rows_twice": len(keys) - len(set(keys)),
            "files_differ": [name for name in names if clean[1].get(name) != found.get(name)]}


def kill_all(kills, world, family, work, rows, start, seed=0):
    rng, trials, plans = random.Random(seed), [], commands(world, family, work)
    for stage, n in kills.items():
        lay_out(work, stage, rows)
        pid = start(*plans[stage], work / "log")
        wait_for(lambda: begun(work, stage), pid)
        started = time.perf_counter()
        assert end(pid) == 0, (work / "log").read_text(encoding="utf-8")
        span, clean = time.perf_counter() - started, (keys_of(work / stage), contents(work / stage))
        trials += [trial(stage, plans[stage], work, rows, clean, span, rng, start) for _ in range(n)]
    return trials


def wrong(trials):
    return [t for t in trials if t["rows_lost"] or t["rows_twice"] or t["files_differ"]]


@pytest.fixture(scope="module")
def rows(tiny_world):
    """Preference rows, which are candidate rows too: the standard answers, and one and two claims more."""
    return [{"id": row["id"], "image": row["image"], "questions": row["questions"],
             "responses": [{"source": source,
                            "answers": [a + " There is a red kite." * k for a in row["answers"]],
                            "accuracy": None if k == 0 else 1 - k / 4, "score": None if k == 0 else 0.5}
                           for k, source in enumerate(("standard", "large", "small"))]}
            for row in records.read(tiny_world / "preference/prompts.jsonl", "prompt")]


def test_killed_and_continued(tiny_world, family, rows, tmp_path):
    kills = {"generate": 1, "train": 1, "evaluate": 1}
    assert wrong(kill_all(kills, tiny_world, family, tmp_path / "work", rows, start_fork)) == []


@pytest.mark.kill
@pytest.mark.parametrize("start, each", [(start_fork, (2, 2, 4, 4, 4, 4)), (start_command, (1,) * 6)],
                         ids=["forks", "commands"])
def test_random_moments_of_every_stage(start, each, tiny_world, family, rows, tmp_path):
    kills = dict(zip(("world", "pretrain", "generate", "verify", "train", "evaluate"), each, strict=True))
    trials = kill_all(kills, tiny_world, family, tmp_path / "work", rows, start)
    path = ROOT / "results/kill.json"
    name = "commands" if start is start_command else "forks_of_an_imported_process"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    storage.write_json(path, found | {name: {
        "kills": len(trials), "trials": trials, "versions": storage.versions(),
        "rows_lost": sum(t["rows_lost"] for t in trials), "rows_twice": sum(t["rows_twice"] for t in trials),
        "files_that_differ": sum(len(t["files_differ"]) for t in trials),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores"}})
    assert wrong(trials) == [] and len(trials) == sum(kills.values())


# ---- Ctrl-C and a full disk: one line, and nothing is lost ----

@pytest.mark.parametrize("stage, sign, says", [
    ("train", "mdpo.part/checkpoint-*", "is saved in {out}/mdpo.part/checkpoint-"),
    ("evaluate", "results.json.answers.jsonl.part",
     "finished rows are in {out}/results.json.answers.jsonl.part"),
])
def test_ctrl_c_says_what_is_saved(stage, sign, says, tiny_world, family, rows, tmp_path):
    work = tmp_path / "work"
    lay_out(work, stage, rows)
    module, flags = commands(tiny_world, family, work)[stage]
    flags += ["--epochs", 200] if stage == "train" else ["--max-new-tokens", 64]     # long enough to be met
    pid = start_fork(module, flags, work / "log")
    at_work = lambda: any(path.is_dir() or path.stat().st_size for path in (work / stage).glob(sign))
    assert wait_for(at_work, pid) is None
    os.kill(pid, signal.SIGINT)
    assert end(pid) == 130
    line = (work / "log").read_text(encoding="utf-8")
    assert line.startswith("interrupted; ") and line.count("\n") == 1
    assert says.format(out=work / stage) in line
    assert line.endswith("; the same command with --resume continues there\n")


@pytest.mark.parametrize("stage, largest_file", [("generate", 900), ("train", 100_000), ("evaluate", 1_500),
                                                 ("pretrain", 100_000)])
def test_a_full_disk_leaves_what_was_there(stage, largest_file, tiny_world, family, rows, tmp_path):
    """A limit on the size of a file stops a write half-way, as a full disk does."""
    work, before = tmp_path / "work", {}
    lay_out(work, stage, rows)
    module, flags = commands(tiny_world, family, work)[stage]
    out = Path(flags[flags.index("--out") + 1])
    if stage == "train":
        before = {"train.json": b'{"run": {}}', "model.safetensors": b"the model of yesterday"}
        out.mkdir()
    elif stage == "generate":
        before = {"": b"rows of yesterday\n"}
    for name, content in before.items():
        (out / name if name else out).write_bytes(content)
    assert end(start_fork(module, flags, work / "log", largest_file)) == 2
    line = (work / "log").read_text(encoding="utf-8")
    assert line.startswith("the disk is full, or a file larger than allowed") and line.count("\n") == 1, line
    for name, content in before.items():
        assert (out / name if name else out).read_bytes() == content
