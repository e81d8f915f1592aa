"""The paper's claims put to the test on the picture world: its tables, with several seeds, intervals and verdicts.

    python -m amp_min.experiments table3 --seeds 5          (or controls, penalty, table4, table5, table6, figure4, all)

Starts from a finished `python -m amp_min.demo`: its pictures, models and ranked answers are used as they are; new are
IG's models and answers, other rankings, and one training and evaluation a row and seed.  A seed decides the order of the
batches, the noisy annotator's errors and what evaluation samples; prompts and scenes are the same for all rows.

Every training's result is a file of its own, so an interrupted command goes on where it stopped, and a row that stands
in two tables is trained once.  They lie in RUN/experiments-<hash of models, rankings and benchmark>: after a new demo run
nothing old is found again.  Results: OUT/<study>.json and OUT/<study>.md.  amp_min/studies.py says what is compared,
amp_min/intervals.py what the intervals cover.

Departure: the paper judges by MMHal-Bench's score and hallucination rate; here CHAIR_i, POPE and MRHal with an exact
oracle decide, so figures are not comparable with the paper's, only which row is better.
"""

import contextlib
import hashlib
import json
import math
import shutil
import time
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from amp_min import annotators, demo, intervals, oracle, records, script
from amp_min.checks import UserError
from amp_min.studies import CONTRADICTIONS, DECIDING, STUDIES, TRAININGS

# IG's fine-tuning: clean rows, four passes over the largest of three subsets; more and a tiny model learns them by heart.
INCREMENTS = {"demo": "--increments 3 --steps 150 --batch 16", "tiny": "--increments 3 --steps 3 --batch 4"}


@dataclass
class Settings:
    study: Literal[*STUDIES, "all"] = field(metadata={"help": "which table", "positional": True})
    seeds: int = field(default=5, metadata={"help": "trainings of each row"})
    run: str = field(default="runs/demo", metadata={"help": "folder of a finished demo run"})
    out: str = field(default="results", metadata={"help": "folder for the results"})
    preset: Literal["demo", "tiny"] = field(default="demo", metadata={"help": "the one the demo was run with: its settings for training and evaluation"})
    workers: int = field(default=2, metadata={"help": "trainings side by side, one core each"})
    split: Literal["eval", "tune"] = field(default="eval", metadata={"help": "scenes to evaluate on; choose settings on tune"})


# ---- 1. what everything is built on -----------------------------------------------------------------------------

def begin(settings):
    """The folder for this demo run's experiments."""
    run = Path(settings.run)
    made = [run / "candidates.jsonl", run / "preferences.jsonl", *sorted((run / "world" / settings.split).glob("*.jsonl")),
            *(weights for name in ("clip", *demo.FAMILY) for weights in sorted((run / "models" / name).glob("*.safetensors")))]
    if not all(path.is_file() for path in made) or len(made) < 5 + len(demo.FAMILY):
        raise UserError(f"{run}: is no finished demo run; run first: python -m amp_min.demo --out {run} --preset {settings.preset}")
    content = "".join(map(records.sha256_file, made))
    folder = run / f"experiments-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    folder.mkdir(exist_ok=True)
    return folder


# ---- 2. rankings ------------------------------------------------------------------------------------------------

def ranked(name, seed, settings, folder):
    """The file of ranked answers that goes by a name in studies.py."""
    if name in ("auto-check", "initial"):
        return Path(settings.run) / {"auto-check": "preferences.jsonl", "initial": "candidates.jsonl"}[name]
    return folder / (f"{name}-{seed}.jsonl" if name.startswith("noisy") else f"{name}.jsonl")


def prepare(names, settings, folder, run):
    """Make the rankings that are not there yet.  `run` (demo.Run) does commands once."""
    W, M, options = f"{settings.run}/world", f"{settings.run}/models", demo.PRESETS[settings.preset]
    prompts = f"--prompts {W}/preference/prompts.jsonl"
    verify = f"verify.py --encoder {M}/clip --candidates"
    checks = {"symmetric": "--symmetric", "symmetric-attributes": "--symmetric --attributes"}
    run("symmetric", *(f"{verify} {settings.run}/candidates.jsonl --out {folder}/{name}.jsonl {checks[name]}" for name in checks if name in names))
    if "perturb" in names:
        run("perturb", f"generate.py --strategy perturb {prompts} --out {folder}/perturb.jsonl")
    if names & {"ig", "ig-initial"}:
        run("increments", f"amp_min.pretrain --part increments --world {W} --out {folder} --base {M}/{demo.POLICY} {INCREMENTS[settings.preset]}")
        run("ig-initial", f"generate.py --strategy ig --models {folder}/ig-3 {folder}/ig-2 {folder}/ig-1 {M}/{demo.POLICY} {prompts} "
                          f"--out {folder}/ig-initial.jsonl {options['generate']}")
        run("ig", f"{verify} {folder}/ig-initial.jsonl --out {folder}/ig.jsonl")
    error = annotators.comparison_error(CONTRADICTIONS)
    reordered = {"oracle": (1, 0)} | {name: (int(name.removeprefix("noisy-")) / 100, error) for name in names if name.startswith("noisy")}
    for name in names & set(reordered):
        for seed in range(settings.seeds):
            path = ranked(name, seed, settings, folder)
            if not path.exists():
                annotators.write(path, ranked("auto-check", 0, settings, folder), *reordered[name], seed)


# ---- 3. trainings -----------------------------------------------------------------------------------------------

def commands(name, seed, settings, folder):
    """A row's training and evaluation, as they would be typed; the base has no training."""
    training, options, M = TRAININGS[name], demo.PRESETS[settings.preset], f"{settings.run}/models"
    model, train = f"{M}/{demo.POLICY}", []
    if training.rankings:
        train = [f"train.py --model {model} --preferences {ranked(training.rankings, seed, settings, folder)} "
                 f"--image-root {settings.run}/world/preference --out {folder}/{name}-{seed} --seed {seed} {options['train']} "
                 f"{options[training.rate]} {training.options}"]
        model = f"{folder}/{name}-{seed}"
    return [*train, f"amp_min.evaluate --model {model} --data {settings.run}/world/{settings.split} --out {folder}/{name}-{seed}.evaluate.json "
                    f"--seed {seed} {options['evaluate']}"]


def finished(name, seed, settings, folder):
    """The result of a training that was done before with the same commands, or None."""
    path = folder / f"{name}-{seed}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found if found and found["commands"] == commands(name, seed, settings, folder) else None


def do(todo, path, data):
    """In a worker: a row's commands, then its result file: {"commands", "metrics", "sums", "levels", "seconds"}."""
    started = time.perf_counter()
    with open(f"{path}.log", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        for command in todo:
            module, *argv = command.split()
            demo.run_stage(module.removesuffix(".py"), argv, threads=1)
    model = path.with_suffix("")
    evaluated = json.loads(Path(f"{model}.evaluate.json").read_text(encoding="utf-8"))
    records.write_json(path, {
        "commands": todo, "metrics": evaluated["metrics"], "seconds": round(time.perf_counter() - started, 1),
        "sums": intervals.scene_sums(f"{model}.evaluate.json.answers.jsonl", data),
        "levels": levels_by_epoch(model / "log.jsonl") if model.is_dir() else []})
    shutil.rmtree(model, ignore_errors=True)         # its answers and its log's means are kept; the weights of 100 trainings are not


def levels_by_epoch(log):
    """train.py's log -> a list over epochs of {"logp": (K,), "ratio": (K,)}, means over the epoch's steps, best level first."""
    epochs = {}
    for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        epochs.setdefault(math.ceil(line["epoch"]), []).append(line)
    return [{key: np.mean([line[key] for line in lines], axis=0).tolist() for key in ("logp", "ratio")} for lines in epochs.values()]


def run_all(study, settings, folder, pool):
    """Every row with every seed -> {row: [result of each seed]}."""
    every = [(name, seed) for seed in range(settings.seeds) for name in study.rows]
    todo = [(name, seed) for name, seed in every if finished(name, seed, settings, folder) is None]
    print(f"{study.title}: {len(every)} trainings with their evaluation, {len(every) - len(todo)} done before", flush=True)
    jobs = [pool.submit(do, commands(name, seed, settings, folder), folder / f"{name}-{seed}.json",
                        f"{settings.run}/world/{settings.split}") for name, seed in todo]
    try:
        for job in tqdm(as_completed(jobs), desc=study.title.split(":")[0], total=len(jobs), unit="training", disable=None):
            job.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return {name: [finished(name, seed, settings, folder) for seed in range(settings.seeds)] for name in study.rows}


# ---- 4. claims --------------------------------------------------------------------------------------------------

def claims_of(study, results):
    """Each pair of rows on each deciding metric."""
    sums = lambda name, metric: intervals.stack([result["sums"][metric] for result in results[name]])
    found = []
    for better, worse in study.claims:
        (a, figure_a), (b, figure_b) = study.rows[better], study.rows[worse]
        paper = f"{figure_a} against {figure_b}" if figure_a and figure_b else study.says
        for metric, sign in DECIDING.items():
            found.append(intervals.claim(f"{a} beats {b}: {demo.SHOWN[metric]}", paper, sums(better, metric), sums(worse, metric), sign))
    return found


def penalty_claims(results):
    """What happens to the log-probs themselves, last epoch against the start: only the seeds can be resampled here."""
    moved = {name: np.array([[[level, 1] for level in result["levels"][-1]["ratio"]] for result in results[name]]) for name in results}
    zero, K = np.zeros((len(results["mdpo"]), 1, 2)), moved["mdpo"].shape[1]
    says = "the loss falls while the log-probs of both answers fall"
    found = [intervals.claim(f"without the penalty the log-prob of level {k} falls", says, moved["penalty-off"][:, k:k + 1], zero, -1)
             for k in range(K)]
    return found + [intervals.claim("with the penalty that of level 0 is higher than without", "the penalty is there for this",
                                    moved["mdpo"][:, :1], moved["penalty-off"][:, :1])]


def orders_of(files):
    """How rankings, {name: file}, agree with the oracle: (rows of a table, claims)."""
    table, wrong = [], {}
    for name, path in files.items():
        rows = list(records.read(path, "preference"))
        table.append({"ranking": name} | oracle.order_quality(rows))
        wrong[name] = np.array([[[oracle.order_quality([row])["inconsistency"], 1] for row in rows]])      # (1, rows, 2)
    bound = np.zeros_like(wrong["auto-check"]) + [0.0225, 1]
    return table, [
        intervals.claim("the auto-check's rankings have at most 2.25 % inconsistent adjacent pairs", "2.25 %", wrong["auto-check"], bound, -1),
        intervals.claim("fewer than the initial order", "no figure", wrong["auto-check"], wrong["initial"], -1),
        intervals.claim("fewer than the annotator's", "2.25 % against 14.40 % (people), 11.95 % (GPT-4V) contradictory triples",
                        wrong["auto-check"], wrong["noisy-100"], -1),
        intervals.claim("the symmetric check's are fewer than the auto-check's", "no figure", wrong["symmetric"], wrong["auto-check"], -1)]


# ---- 5. results -------------------------------------------------------------------------------------------------

def found_in(key, results, settings, folder):
    """The study as it is written to OUT/<study>.json."""
    study, rows = STUDIES[key], {}
    for name, (label, figures) in study.rows.items():
        every = [result["metrics"] | {metric: float(intervals.per_seed(intervals.stack([scenes]))[0])
                                      for metric, scenes in result["sums"].items() if metric not in result["metrics"]}
                 for result in results[name]]
        rows[name] = {"name": label, "paper": figures, "command": results[name][0]["commands"][0], "seeds": every,
                      "levels": [result["levels"] for result in results[name]], "seconds": [result["seconds"] for result in results[name]]}
    orders, more = orders_of({name: ranked(name, 0, settings, folder) for name in study.orders}) if study.orders else ([], [])
    claims = claims_of(study, results) + more + (penalty_claims(results) if key == "penalty" else [])
    return {"study": key, "title": study.title, "figures": study.figures, "rows": rows, "orders": orders, "claims": claims, "order": list(rows),
            "seeds": list(range(settings.seeds)), "split": settings.split, "machine": demo.machine(), "versions": records.versions()}


COLUMNS = {"chair_i_sampled": "CHAIR_i, sampled ↓", "coverage_sampled": "coverage, sampled ↑", "chair_i_greedy": "CHAIR_i, greedy ↓",
           "pope_accuracy": "POPE accuracy ↑", "pope_yes_ratio": "POPE yes-ratio", "mrhal_score_cumulative": "MRHal score ↑",
           "mrhal_hallucination_cumulative": "MRHal hallucination ↓", "words_sampled": "words a description",
           "repeated_greedy": "repeated 4-word runs, greedy ↓"}


def markdown(found):
    """The study for people: a table, the claims, and what else was measured."""
    def row(*cells):
        return "| " + " | ".join(map(str, cells)) + " |"

    def mean(values):
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"

    lines = [f"## {found['title']}", "", f"Mean ± standard deviation over {len(found['seeds'])} seeds, {found['split']} scenes. "
             f"The paper's figures are other measures ({found['figures']}): compare the order, not the size.", "",
             row("", "paper", *COLUMNS.values()), row("---", "---", *["---:"] * len(COLUMNS))]
    lines += [row(found["rows"][name]["name"], found["rows"][name]["paper"] or "—",
                  *(mean([seed[column] for seed in found["rows"][name]["seeds"]]) for column in COLUMNS)) for name in found["order"]]
    if found["study"] == "penalty":
        lines += ["", "Log-prob of each level in the last epoch, less the reference's (best level first):", "", row("", "levels 0, 1, …"), row("---", "---")]
        lines += [row(found["rows"][name]["name"], ", ".join(f"{value:+.1f}" for value in np.mean(
            [levels[-1]["ratio"] for levels in found["rows"][name]["levels"]], axis=0))) for name in found["order"]]
    if found["orders"]:
        lines += ["", "Rankings against the oracle (the paper, by hand: 2.25 % inconsistent; contradictory triples 14.40 % people, 11.95 % GPT-4V):",
                  "", row("ranking", "inconsistent adjacent pairs ↓", "agreement ↑", "told apart"), row("---", "---:", "---:", "---:")]
        lines += [row(one["ranking"], f"{one['inconsistency']:.2%}", f"{one['agreement']:.3f}", f"{one['told_apart']:.3f}") for one in found["orders"]]
    lines += ["", "Advantage: the difference in the claim's direction, so above zero speaks for the claim.", "",
              row("claim", "paper", "advantage", "95 % interval", "verdict"), row("---", "---", "---:", "---:", "---")]
    lines += [row(one["claim"], one["paper"], f"{one['ours']:+.4f}", "—" if one["interval"] is None else
                  "{:+.4f} … {:+.4f}".format(*one["interval"]), f"**{one['verdict']}**") for one in found["claims"]]
    return "\n".join(lines) + "\n"


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    for name in ("seeds", "workers"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} {getattr(settings, name)}: give 1 or more")
    folder = begin(settings)
    with demo.workers(settings.workers) as pool:
        for key in STUDIES if settings.study == "all" else [settings.study]:
            study = STUDIES[key]
            needed = {TRAININGS[name].rankings for name in study.rows} - {None} | set(study.orders)
            prepare(needed, settings, folder, demo.Run(folder, pool))
            found = found_in(key, run_all(study, settings, folder, pool), settings, folder)
            text = markdown(found)
            records.write_json(Path(settings.out) / f"{key}.json", found)
            (Path(settings.out) / f"{key}.md").write_text(text, encoding="utf-8")
            print(text, flush=True)


if __name__ == "__main__":
    script.run(main)
