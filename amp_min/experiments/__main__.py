"""The paper's claims put to the test on the picture world: its tables, with several seeds, intervals and verdicts.

    python -m amp_min.experiments table3 --seeds 5      (or controls, penalty, table4, table5, table6, figure4, all)

Starts from a finished `python -m amp_min.demo`: its pictures, models and ranked answers are used as they are.  New are
IG's models and answers, other rankings, and one training with its evaluation for each row and seed.  A seed decides the
order of the batches, the annotator's errors and what evaluation samples; prompts and scenes are the same for all rows.

Each training's result is a file of its own, so an interrupted command goes on where it stopped, and a row that stands
in two tables is trained once.  They lie in RUN/experiments-<hash of models, rankings and benchmark>, so that a new demo
run finds nothing old.  Results: OUT/<study>.json and OUT/<study>.md.  amp_min/experiments/studies.py says what is compared,
amp_min/experiments/intervals.py what the intervals cover.

Departure: the paper judges by MMHal-Bench, with GPT-4; here CHAIR_i, POPE and MRHal decide, with an exact oracle.  Its
figures stand beside ours for the order of the rows, not for their size.
"""

import hashlib
import json
import multiprocessing
import shlex
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from amp_min import demo, records
from amp_min.experiments import annotators, intervals, tables, trainings
from amp_min.experiments.studies import CONTRADICTIONS, DECIDING, STUDIES, TRAININGS
from amp_min.support import script, storage
from amp_min.support.script import UserError
from amp_min.world import oracle

# IG: four passes over the largest of three clean subsets; with many more a tiny model learns the rows by heart.
INCREMENTS = {"demo": "--increments 3 --steps 150 --batch 16", "tiny": "--increments 3 --steps 3 --batch 4"}


@dataclass
class Settings:
    study: Literal[*STUDIES, "all"] = field(metadata={"help": "which table", "positional": True})
    seeds: int = field(default=5, metadata={"help": "trainings of each row"})
    run: str = field(default="runs/demo", metadata={"help": "folder of a finished demo run"})
    out: str = field(default="results", metadata={"help": "folder for the results"})
    preset: Literal["demo", "tiny"] = field(default="demo", metadata={"help": "the demo run's: settings of the stages"})
    workers: int = field(default=2, metadata={"help": "trainings side by side, one core each"})
    split: Literal["eval", "tune"] = field(default="eval", metadata={"help": "evaluation scenes; tune to choose by"})


# ---- 1. what everything is built on -----------------------------------------------------------------------------

def begin(settings):
    """The folder for the experiments on this demo run, as it is now."""
    run = Path(settings.run)
    benchmark = [run / "world" / settings.split / f"{name}.jsonl" for name in ("captions", "pope", "mrhal")]
    models = [run / "models" / name / "model.safetensors" for name in ("clip", *demo.FAMILY)]
    content = hashlib.sha256()
    for path in [run / "candidates.jsonl", run / "preferences.jsonl", *benchmark, *models]:
        if not path.is_file():
            raise UserError(f"{path}: is missing; finish the demo run first: python -m amp_min.demo --out {run} "
                            f"--preset {settings.preset}")
        content.update(storage.sha256_file(path).encode())
    folder = run / f"experiments-{content.hexdigest()[:8]}"
    for part in ("rankings", "trainings"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return folder


# ---- 2. rankings ------------------------------------------------------------------------------------------------

def ranked(name, seed, settings, folder):
    """The file of ranked answers behind a name in studies.py."""
    if name in ("auto-check", "initial"):
        return Path(settings.run) / {"auto-check": "preferences.jsonl", "initial": "candidates.jsonl"}[name]
    return folder / "rankings" / (f"{name}-{seed}.jsonl" if name.startswith("noisy") else f"{name}.jsonl")


def prepare(names, settings, folder, run):
    """Make the rankings that are not there yet; `run` (demo.Run) does each command once."""
    here, there = shlex.quote(settings.run), shlex.quote(str(folder))                       # a path may hold spaces
    models, made, options = f"{here}/models", f"{there}/rankings", demo.PRESETS[settings.preset]
    prompts = f"--prompts {here}/world/preference/prompts.jsonl"
    verify, candidates = f"verify.py --encoder {models}/clip --candidates", f"{here}/candidates.jsonl"
    if "symmetric" in names:
        run("symmetric",
            f"{verify} {candidates} --out {made}/symmetric.jsonl --symmetric",
            f"{verify} {candidates} --out {made}/symmetric-attributes.jsonl --symmetric --attributes")
    if "perturb" in names:
        run("perturb", f"generate.py --strategy perturb {prompts} --out {made}/perturb.jsonl")
    if "ig" in names:
        base, experts = f"{models}/{demo.POLICY}", f"{there}/increments"
        run("increments", f"amp_min.pretrain --part increments --world {here}/world --base {base} "
                          f"--out {experts} {INCREMENTS[settings.preset]}")
        generation = (f"generate.py --strategy ig --models {experts}/ig-3 {experts}/ig-2 {experts}/ig-1 {base} {prompts} "
                      f"--out {made}/ig-initial.jsonl --resume {options['generate']}")
        run("ig-answers", *(f"{generation} --only {name}" for name in ("ig-3", "ig-2", "ig-1", demo.POLICY)))
        run("ig-initial", generation)
        run("ig", f"{verify} {made}/ig-initial.jsonl --out {made}/ig.jsonl")
    error = annotators.comparison_error(CONTRADICTIONS)
    for name in names:
        if name == "oracle":
            rewrite(ranked(name, 0, settings, folder), settings, 1, 0, 0)
        if name.startswith("noisy-"):
            share = int(name.removeprefix("noisy-")) / 100
            for seed in range(settings.seeds):
                rewrite(ranked(name, seed, settings, folder), settings, share, error, seed)


def rewrite(path, settings, share, error, seed):
    if not path.exists():
        annotators.write(path, f"{settings.run}/preferences.jsonl", share, error, seed)


# ---- 3. trainings -----------------------------------------------------------------------------------------------

def commands(name, seed, settings, folder):
    """A row's training and evaluation, as one would type them; the base is only evaluated."""
    training, options = TRAININGS[name], demo.PRESETS[settings.preset]
    here, out = shlex.quote(settings.run), shlex.quote(f"{folder}/trainings/{name}-{seed}")
    model, typed = f"{here}/models/{demo.POLICY}", []
    if training.rankings:
        typed.append(f"train.py --model {model} --preferences {shlex.quote(str(ranked(training.rankings, seed, settings, folder)))} "
                     f"--image-root {here}/world/preference --out {out} --seed {seed} {options['train']} "
                     f"{options[training.rate]} {training.options}")
        model = out
    typed.append(f"amp_min.evaluate --model {model} --data {here}/world/{settings.split} "
                 f"--out {out}.evaluate.json --seed {seed} {options['evaluate']}")
    return typed


def finished(name, seed, settings, folder):
    """The result of the same commands, when they were run before; or None."""
    path = folder / "trainings" / f"{name}-{seed}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found if found and found["commands"] == commands(name, seed, settings, folder) else None


def results_of(study, settings, folder, pool):
    """{row: [the result of each seed]}, after training what is missing."""
    every = [(name, seed) for seed in range(settings.seeds) for name in study.rows]
    todo = [(name, seed) for name, seed in every if finished(name, seed, settings, folder) is None]
    print(f"{study.title}: {len(every)} trainings and evaluations, {len(every) - len(todo)} done before", flush=True)
    jobs = [pool.submit(trainings.do, commands(name, seed, settings, folder), folder / "trainings" / f"{name}-{seed}.json",
                        f"{settings.run}/world/{settings.split}") for name, seed in todo]
    try:
        name = study.title.partition(":")[0]
        for job in tqdm(as_completed(jobs), desc=name, total=len(jobs), unit="training", disable=None):
            job.result()
    except BaseException as error:                       # Ctrl-C is no Exception
        for worker in multiprocessing.active_children():
            worker.kill()                                # or the pool would work through the whole queue first
        error.add_note(f"finished trainings are kept in {folder}; the same command goes on where it stopped")
        raise
    return {name: [finished(name, seed, settings, folder) for seed in range(settings.seeds)] for name in study.rows}


# ---- 4. claims --------------------------------------------------------------------------------------------------

def claims_of(study, results):
    """Each pair of rows, on each deciding metric."""
    def sums(name, metric):
        return intervals.stack([result["sums"][metric] for result in results[name]])                # (seeds, scenes, 2)

    found = []
    for better, worse in study.claims:
        (a, figures_a), (b, figures_b) = study.rows[better], study.rows[worse]
        paper = f"{figures_a} against {figures_b}" if figures_a and figures_b else study.says
        for metric, sign in DECIDING.items():
            text = f"{a} beats {b}: {demo.SHOWN[metric]}"
            found.append(intervals.claim(text, paper, sums(better, metric), sums(worse, metric), sign))
    return found


def penalty_claims(results):
    """The log-probs themselves: how far each level has moved by the last epoch.  Only seeds can be resampled here."""
    moved = {name: np.array([[[ratio, 1] for ratio in result["levels"][-1]["ratio"]] for result in results[name]])
             for name in results}                                                                   # (seeds, K, 2)
    says, claims, start = "the loss falls while the log-probs of both answers fall", [], np.array([0, 1])
    for name, rate in (("penalty-off", "same learning rate"), ("penalty-off-slow", "DPO's learning rate")):
        off = moved[name]
        claims += [intervals.claim(f"no penalty, {rate}: the log-prob of level {k} falls", says, off[:, k:k + 1],
                                   np.zeros_like(off[:, :1]) + start, sign=-1) for k in range(off.shape[1])]
        claims.append(intervals.claim(f"with the penalty the log-prob of level 0 ends higher than without, {rate}",
                                      "what the penalty is for", moved["mdpo"][:, :1], off[:, :1]))
    return claims


def orders_of(files):
    """How rankings, {name: file}, agree with the oracle: (rows of a table, claims)."""
    table, wrong = [], {}
    for name, path in files.items():
        rows = list(records.read(path, "preference"))
        table.append({"ranking": name} | oracle.order_quality(rows))
        each = [oracle.order_quality([row])["inconsistency"] for row in rows]
        wrong[name] = np.array([[[share, 1] for share in each]])                                   # (1, rows, 2)
    auto, bound = wrong["auto-check"], np.zeros_like(wrong["auto-check"]) + [0.0225, 1]
    people = "2.25 % against 14.40 % (people) and 11.95 % (GPT-4V) contradictory triples"
    claims = [("auto-check at most 2.25 %", "2.25 %", auto, bound),
              ("auto-check fewer than initial order", "no figure", auto, wrong["initial"]),
              ("auto-check fewer than annotator", people, auto, wrong["noisy-100"]),
              ("symmetric check fewer than auto-check", "no figure", wrong["symmetric"], auto)]
    return table, [intervals.claim(f"adjacent pairs inconsistent: {text}", paper, a, b, sign=-1)
                   for text, paper, a, b in claims]


# ---- 5. results -------------------------------------------------------------------------------------------------

def found_in(key, results, settings, folder):
    """A study as it is written to OUT/<study>.json."""
    study, rows = STUDIES[key], {}
    for name, (label, figures) in study.rows.items():
        # evaluate's metrics, and what only the sums have: lengths and repetitions.
        metrics = [{metric: intervals.metric(scenes) for metric, scenes in result["sums"].items()} | result["metrics"]
                   for result in results[name]]
        rows[name] = {"name": label, "paper": figures, "seeds": metrics, "commands": results[name][0]["commands"],
                      "levels": [result["levels"] for result in results[name]],
                      "seconds": [result["seconds"] for result in results[name]]}
    claims, orders = claims_of(study, results), []
    if key == "penalty":
        claims += penalty_claims(results)
    if study.orders:
        orders, more = orders_of({name: ranked(name, 0, settings, folder) for name in study.orders})
        claims += more
    return {"study": key, "title": study.title, "figures": study.figures, "order": list(rows), "rows": rows,
            "orders": orders, "claims": claims, "seeds": list(range(settings.seeds)), "split": settings.split,
            "machine": demo.machine(), "versions": storage.versions()}


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    for name in ("seeds", "workers"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} {getattr(settings, name)}: give 1 or more")
    folder, out = begin(settings), Path(settings.out)
    with demo.workers(settings.workers) as pool:
        for key in STUDIES if settings.study == "all" else [settings.study]:
            study = STUDIES[key]
            needed = {TRAININGS[name].rankings for name in study.rows} - {None} | set(study.orders)
            prepare(needed, settings, folder, demo.Run(folder, pool))
            found = found_in(key, results_of(study, settings, folder, pool), settings, folder)
            storage.write_json(out / f"{key}.json", found)
            (out / f"{key}.md").write_text(tables.markdown(found), encoding="utf-8")
            print(tables.markdown(found), flush=True)


if __name__ == "__main__":
    script.run(main)
