"""The whole story on the picture world, stage by stage, by the same commands that the tutorial shows.

    python -m amp_min.demo                       (make demo)

world → a tiny CLIP and four tiny LLaVAs → K = 5 answers per prompt → auto-check → MDPO, and its controls →
evaluation
→ a table here and a page, runs/demo/report.html. Nothing in it is special: each printed command can be run alone.

Models this small gain little from a second thread, so independent commands run side by side, each on one. A command
that has finished before is not run again, an interrupted one goes on where it stopped; --fresh starts from
nothing.
"""

import json
import multiprocessing
import os
import platform
import shlex
import shutil
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from amp_min import records
from amp_min.metrics import NAMES
from amp_min.support import script, storage
from amp_min.support.script import UserError
from amp_min.world import oracle

FAMILY = ["llava-34b", "llava-13b", "llava-7b", "llava-2b"]         # best first
POLICY = "llava-13b"                            # what is trained; the paper trains its 7B and its 13B
MODELS = ("base", "sft", "dpo", "mdpo")

# What each preset changes of the stages' defaults. Beta and penalty are the paper's. Each control has its own
# best rate: the least false claims in sampled descriptions of the tune split, among 5e-4, 1e-3 and 2e-3 for
# mdpo and sft. Of dpo's, 5e-6, 1e-5 and 2e-5 are as good as each other (.281 to .284), so POPE decides; at 5e-5
# (.303) it names fewer objects than the base. Without the penalty DPO drives the log-probs of *both* answers
# down, the faster the higher its rate.
PRESETS = {
    "demo": {"world": "", "clip": "", "llava": "", "generate": "--max-new-tokens 80", "train": "--epochs 6",
             "sft": "--lr 2e-3", "dpo": "--lr 2e-5", "mdpo": "--lr 1e-3", "evaluate": ""},
    "tiny": {"world": "--train 48 --closeups 24 --finetune 8 --preference 16 --captions 8 --dialogues 6",
             "clip": "--clip-steps 4 --batch 8", "llava": "--steps 4 --careless-steps 2 --batch 8",
             "generate": "--max-new-tokens 12 --beams 2",
             "train": "--epochs 1",
             "sft": "--lr 1e-3", "dpo": "--lr 2e-5", "mdpo": "--lr 1e-3", "evaluate": "--max-new-tokens 12"},
}


@dataclass
class Settings:
    out: str = field(default="runs/demo", metadata={"help": "folder of the run"})
    preset: Literal["demo", "tiny"] = field(default="demo", metadata={"help": "tiny: every stage in seconds, with models that know nothing"})
    fresh: bool = field(default=False, metadata={"help": "delete the run and start from nothing"})
    seed: int = field(default=0, metadata={"help": "for every stage"})


def parsed(command):
    """A command, "train.py …" or "amp_min.world …", as (module, its arguments)."""
    module, *argv = shlex.split(command)
    return module.removesuffix(".py"), argv


def run_chain(chain, threads):
    """Commands (module, argv) one after the other, in a worker that has paid for its imports already."""
    import torch
    torch.set_num_threads(threads)
    for module, argv in chain:
        script.module_of(module).main(argv)


def follow_parent():
    """A worker leaves Ctrl-C to its parent, and never outlives it: a restarted demo would meet it at the same
    files."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore between processes, left behind by a kill
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def workers(n):
    """n processes that keep their imports from one command to the next."""
    # a thread that spins while it waits starves its neighbour
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch survives no fork
    return ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"), initializer=follow_parent)


class Run:
    """Runs commands two at a time, remembers what is begun and finished, and adds up the seconds of each
    stage."""

    def __init__(self, folder, pool):
        self.folder, self.pool, self.path, self.changed = folder, pool, folder / "stages.json", False
        self.stages = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def __call__(self, stage, *commands):
        """commands: strings that do not depend on each other: "module arguments …", or several, "… && …"."""
        # What an earlier stage makes anew makes stale all that was built on it.
        before, started = {} if self.changed else self.stages.get(stage, {}), time.perf_counter()
        finished, begun = ([command for command in before.get(key, []) if command in commands] for key in ("commands", "begun"))
        todo = [command for command in commands if command not in finished]
        if not todo:
            return
        earlier = before.get("seconds", 0) if begun else 0
        self.note(stage, finished, todo, earlier)
        self.changed = self.changed or not set(todo) <= set(begun)
        jobs = [self.submit(command, command in begun, 1 if len(commands) > 1 else 2) for command in todo]
        try:
            for command, job in zip(todo, jobs):
                job.result()
                finished.append(command)
        finally:
            self.note(stage, finished, [command for command in todo if command not in finished], earlier + time.perf_counter() - started)

    def submit(self, commands, begun, threads):
        more = " --resume" if begun else ""
        chain = [command if command.startswith("amp_min.report") else command + more for command in commands.split(" && ")]
        for command in chain:  # the page is made in one go: nothing to resume
            print(f"$ python {command if command.split()[0].endswith('.py') else f'-m {command}'}", flush=True)
        return self.pool.submit(run_chain, [parsed(command) for command in chain], threads)

    def note(self, stage, finished, begun, seconds):
        self.stages[stage] = {"commands": finished, "begun": begun, "seconds": round(seconds, 1)}
        storage.write_json(self.path, self.stages)

    def seconds(self):
        each = {stage: done["seconds"] for stage, done in self.stages.items()}
        return each | {"total": round(sum(each.values()), 1)}


def stages(run, folder, preset, seed):
    """Every stage in order. W, M, E: the folders of world, models and evaluation."""
    folder = shlex.quote(str(folder))               # a path may hold spaces
    W, M, E, options = f"{folder}/world", f"{folder}/models", f"{folder}/evaluate", PRESETS[preset]
    run("world", f"amp_min.world --out {W} --seed {seed} {options['world']}")
    run("clip", f"amp_min.pretrain --part clip --world {W} --out {M} --seed {seed} {options['clip']}")
    run("llava", *(f"amp_min.pretrain --part llava --family {name} --world {W} --out {M} --seed {seed} {options['llava']}" for name in FAMILY))
    generation = (f"generate.py --strategy meg --models {' '.join(f'{M}/{name}' for name in FAMILY)} "
                  f"--prompts {W}/preference/prompts.jsonl --out {folder}/candidates.jsonl {options['generate']}")
    run("generate", *(f"{generation} --only {name}" for name in FAMILY))
    run("join", f"{generation} --only join")
    run("verify", f"verify.py --candidates {folder}/candidates.jsonl --encoder {M}/clip --out {folder}/preferences.jsonl")
    training = (f"train.py --model {M}/{POLICY} --preferences {folder}/preferences.jsonl --image-root {W}/preference "
                f"--seed {seed} {options['train']}")
    evaluation = {name: f"amp_min.evaluate --model {M}/{POLICY if name == 'base' else name} --data {W}/eval --out {E}/{name}.json "
                        f"--seed {seed} {options['evaluate']}" for name in MODELS}
    # MDPO and its evaluation take one core as long as all the rest takes the other.
    run("train, evaluate", f"{training} --out {M}/mdpo --levels 4 {options['mdpo']} && {evaluation['mdpo']}",
        f"{training} --out {M}/dpo --levels 2 --penalty 0 {options['dpo']} && {evaluation['dpo']}",
        f"{training} --out {M}/sft --loss sft {options['sft']} && {evaluation['sft']}", evaluation["base"])


def results(folder, run, seed):
    """results.json: the four models side by side, and whether the auto-check's order is better than the
    initial one."""
    metrics = {name: json.loads((folder / "evaluate" / f"{name}.json").read_text(encoding="utf-8"))["metrics"] for name in MODELS}
    initial = oracle.order_quality(records.read(folder / "candidates.jsonl", "candidate"))
    checked = oracle.order_quality(records.read(folder / "preferences.jsonl", "preference"))
    autocheck = {"agreement_initial": initial["agreement"], "agreement_autocheck": checked["agreement"],
                 "inconsistency_rate": checked["inconsistency"], "inconsistency_initial": initial["inconsistency"],
                 "told_apart": checked["told_apart"]}
    return {"models": metrics, "autocheck": autocheck, "seconds": run.seconds(), "seed": seed, "versions": storage.versions(),
            "machine": machine()}


def machine():
    return f"{platform.processor() or platform.machine()}, {multiprocessing.cpu_count()} cores"


# CHAIR_s says little that CHAIR_i does not, and unclear answers matter to models that are not ours.
SHOWN = {key: name for key, name in NAMES.items() if not key.startswith(("chair_s", "pope_unclear"))}


def table(found):
    """The before/after table as Markdown, which reads well on a terminal too."""
    columns = [found["models"][model] for model in MODELS]
    rows = {key: name for key, name in SHOWN.items() if all(key in metrics for metrics in columns)}
    lines = [f"| {'':34} |" + "".join(f" {model:>5} |" for model in MODELS), "| --- |" + " ---: |" * len(MODELS)]
    lines += [f"| {name:34} |" + "".join(f" {metrics[key]:5.3f} |" for metrics in columns) for key, name in rows.items()]
    order = found["autocheck"]
    lines += ["", f"order of the generated answers against the oracle: {order['agreement_initial']:.3f} initial, "
                  f"{order['agreement_autocheck']:.3f} after the auto-check; adjacent pairs the wrong way round: "
                  f"{order['inconsistency_initial']:.2%} and {order['inconsistency_rate']:.2%}"]
    return "\n".join(lines)


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    folder = Path(settings.out)
    if settings.fresh and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with workers(2) as pool:
        run = Run(folder, pool)
        try:
            stages(run, folder, settings.preset, settings.seed)
            storage.write_json(folder / "results.json", results(folder, run, settings.seed))
            run("report", f"amp_min.report --run {shlex.quote(str(folder))} --out {shlex.quote(str(folder))}/report.html")
        except KeyboardInterrupt as error:
            # every stage can be killed: it goes on behind its last row
            for worker in multiprocessing.active_children():
                worker.kill()
            error.add_note(f"what is done is kept in {folder}; the same command goes on where it stopped")
            raise
        except BrokenProcessPool:
            raise UserError(f"{folder}: a worker was killed, maybe for lack of memory; the same command goes on where it stopped") from None
    found = results(folder, run, settings.seed)
    storage.write_json(folder / "results.json", found)
    print(table(found))
    print(f"{found['seconds']['total']:.0f} s in all; the page: {folder}/report.html")


if __name__ == "__main__":
    script.run(main)
