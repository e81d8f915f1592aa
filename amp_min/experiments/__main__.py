"""The paper's claims, and some that it does not make, put to the test on the picture world.

    python -m amp_min.experiments table3            (or table5, own, controls, penalty, table4, …, all)

Starts from a finished `python -m amp_min.demo`: its pictures, models and ranked answers are used as they are. New are a
larger benchmark, bases that were made careless for shorter or longer, other rankings, and for each variant and seed
one training with its evaluation. A seed decides the order of the batches, the annotator's errors and what is sampled;
prompts and scenes are the same for all. Seed 0 is the demo's, by which its settings were chosen, so here seeds start at 1.

More scenes come before more seeds: answering another scene costs a twentieth of a second, another seed a training.

Each training's result is a file of its own, so an interrupted command goes on where it stopped, and a variant that
stands in two studies is trained once. They lie in RUN/experiments-<hash of models, answers and settings>, so that a
new demo run finds nothing old. Results: OUT/<study>.json, OUT/<study>.md, and OUT/README.md about all of them.
studies.py says what is compared, intervals.py what the intervals cover, rankings.py who ranks besides the auto-check.

Departure: the paper judges by MMHal-Bench, with GPT-4; here false claims, CHAIR_i, POPE and MRHal decide, with an exact
oracle. Its figures stand beside ours for the order of the rows, not for their size.
"""

import hashlib
import json
import multiprocessing
import os
import shlex
import shutil
from concurrent.futures import as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from amp_min import demo, records
from amp_min.experiments import intervals, measures, rankings, tables
from amp_min.experiments.studies import METRICS, STUDIES, VARIANTS
from amp_min.support import script, storage
from amp_min.support.script import UserError, arg

# What the experiments set besides the demo's own settings.
# benchmark  scenes to describe (POPE asks about the same) and dialogues; train: shorter than the demo's, the paper's four
# self, own  how the base is sampled, and how it learns from its own answers (chosen on tune; see tried.md)
# increments IG: four passes over the largest of three clean subsets; with many more a tiny model learns them by heart
PRESETS = {
    "demo": {"benchmark": "--captions 500 --dialogues 250", "train": "--epochs 4", "self": "--samples 6 --temperature 1",
             "own": "--lr 5e-4 --penalty 0.02", "increments": "--increments 3 --steps 150 --batch 16"},
    "tiny": {"benchmark": "", "train": "", "self": "--samples 6 --temperature 1", "own": "--lr 5e-4 --penalty 0.02",
             "increments": "--increments 3 --steps 3 --batch 4"}}
CHECKS = {"recall": "", "symmetric": "--symmetric", "attributes": "--symmetric --attributes"}       # verify.py's flags


@dataclass
class Settings:
    study: Literal[*STUDIES, "all"] = arg("all", "which study", positional=True)
    seeds: int = arg(5, "trainings of each variant", min=1)
    run: str = arg("runs/demo", "folder of a finished demo run")
    out: str = arg("results", "folder for the results")
    preset: Literal["demo", "tiny"] = arg("demo", "the demo run's: settings of the stages")
    workers: int = arg(2, "trainings side by side, one core each", min=1)
    split: Literal["eval", "tune"] = arg("eval", "evaluation scenes; tune to choose by")


# ---- 1. what everything is built on ----------------------------------------------------------------------------------

def begin(settings):
    """The folder for the experiments on this demo run, as it is now."""
    run = Path(settings.run)
    models = [run / "models" / name / "model.safetensors" for name in ("clip", *demo.FAMILY)]
    content = hashlib.sha256(repr([PRESETS[settings.preset], demo.PRESETS[settings.preset]]).encode())
    for path in [run / "candidates.jsonl", run / "preferences.jsonl", *models]:
        if not path.is_file():
            raise UserError(f"{path}: is missing; finish the demo run first: python -m amp_min.demo --out {run} "
                            f"--preset {settings.preset}")
        content.update(storage.sha256_file(path).encode())
    folder = run / f"experiments-{content.hexdigest()[:8]}"
    for part in ("rankings", "trainings", "bases"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return folder


def flags(text):
    """"--lr 1e-3 --levels 4" -> {"lr": "1e-3", "levels": "4"}. Given twice, the later one holds, as on a command line."""
    return dict((part.strip().split(maxsplit=1) + [""])[:2] for part in text.split("--") if part.strip())


def base_path(name, settings, folder):
    return Path(settings.run) / "models" if name == "careless" else folder / "bases" / name


def base_command(name, settings, folder):
    """The demo's policy, made careless for no, half or twice as many steps.

    The only place that knows how pretrain does it.
    """
    options = demo.PRESETS[settings.preset]["llava"]
    steps = flags(options).get("careless-steps") or script.module_of("amp_min.pretrain").Settings.careless_steps
    steps = {"clean": 0, "half": int(steps) // 2, "double": 2 * int(steps)}[name]
    out = base_path(name, settings, folder)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "clip").exists():                     # the vision tower is the demo's
        os.symlink(Path(settings.run).resolve() / "models/clip", out / "clip")
    return (f"amp_min.pretrain --part llava --family {demo.POLICY} --world {shlex.quote(settings.run)}/world "
            f"--out {shlex.quote(str(out))} {options} --careless-steps {steps}")


def prepare_bases(names, settings, folder, run):
    if todo := sorted(names - {"careless"}):
        run(" ".join(["bases", *todo]), *(base_command(name, settings, folder) for name in todo))


def benchmark(settings, folder, run):
    """More scenes of the demo's tune and eval splits. A scene's split follows from its content: none was trained on."""
    options = demo.PRESETS[settings.preset]["world"], PRESETS[settings.preset]["benchmark"]
    run("benchmark", f"amp_min.world --out {shlex.quote(str(folder))}/world {' '.join(options)}")


# ---- 2. rankings -----------------------------------------------------------------------------------------------------

def ranked(base, name, seed, folder):
    """The file of ranked answers behind a name in studies.py. What is drawn at random is drawn anew for each seed."""
    if "noisy" in name:
        name += f"-e{rankings.comparison_error(rankings.CONTRADICTIONS):.3f}"
    drawn = f"-{seed}" if "noisy" in name or "random" in name else ""
    return folder / "rankings" / f"{base}-{name}{drawn}.jsonl"


def prepare(needed, settings, folder, run):
    """The rankings, {(base, name)}, that commands make; `run` (demo.Run) does each of them once."""
    here, there = shlex.quote(settings.run), shlex.quote(f"{folder}/rankings")              # a path may hold spaces
    verify = f"verify.py --encoder {here}/models/clip --candidates"
    if any(name == "attributes" for _, name in needed):
        run("attributes", f"{verify} {here}/candidates.jsonl --out {there}/careless-attributes.jsonl {CHECKS['attributes']}")
    if any(name == "perturb" for _, name in needed):
        run("perturb", f"generate.py --strategy perturb --prompts {here}/world/preference/prompts.jsonl "
                       f"--out {there}/careless-perturb.jsonl")
    if any(name.startswith("ig") for _, name in needed):
        prepare_increments(verify, settings, folder, run)
    for base in sorted({base for base, name in needed if name.startswith("own")}):
        prepare_own(base, verify, settings, folder, run)


def write(base, name, seed, settings, folder):
    """A ranking that no command makes: a copy, or the answers of one that is there in another order."""
    path = ranked(base, name, seed, folder)
    if path.exists():
        return
    if name in ("auto-check", "initial"):       # copied, since every base keeps its own reference log-probs beside it
        shutil.copyfile(Path(settings.run) / {"auto-check": "preferences.jsonl", "initial": "candidates.jsonl"}[name], path)
        return
    if not name.startswith("own-"):
        source = Path(settings.run) / "preferences.jsonl"
        rows = rankings.changed(records.read(source, "preference"), name, seed)
    else:
        how, _, standard = name.removeprefix("own-").partition("-")
        source = folder / "rankings" / f"{base}-all-{how if how in CHECKS else 'recall'}.jsonl"
        rows = records.read(source, "preference")
        rows = rows if how in CHECKS else rankings.changed(rows, how, seed)
        rows = (rankings.spaced(row, 4, standard == "standard") for row in rows)
    rankings.write(path, rows, {"ranking": name, "seed": seed}, source)


def prepare_own(base, verify, settings, folder, run):
    """Sampled answers of the base itself, ranked against the standard answer by each of the three checks."""
    there, model = shlex.quote(f"{folder}/rankings"), base_path(base, settings, folder) / demo.POLICY
    run(f"own-{base}", f"generate.py --strategy self --models {shlex.quote(str(model))} "
                       f"--prompts {shlex.quote(settings.run)}/world/preference/prompts.jsonl "
                       f"--out {there}/{base}-all.jsonl {PRESETS[settings.preset]['self']} "
                       f"{demo.PRESETS[settings.preset]['generate']}")
    run(f"check-{base}", *(f"{verify} {there}/{base}-all.jsonl --out {there}/{base}-all-{name}.jsonl {how}"
                           for name, how in CHECKS.items()))


def prepare_increments(verify, settings, folder, run):
    """Algorithm 1: the base fine-tuned on growing clean subsets; their answers are the levels."""
    here, there = shlex.quote(settings.run), shlex.quote(str(folder))
    base, experts = f"{here}/models/{demo.POLICY}", f"{there}/increments"
    run("increments", f"amp_min.pretrain --part increments --world {here}/world --base {base} --out {experts} "
                      f"{PRESETS[settings.preset]['increments']}")
    generation = (f"generate.py --strategy ig --models {experts}/ig-3 {experts}/ig-2 {experts}/ig-1 {base} --resume "
                  f"--prompts {here}/world/preference/prompts.jsonl --out {there}/rankings/careless-ig-initial.jsonl "
                  f"{demo.PRESETS[settings.preset]['generate']}")
    run("ig-answers", *(f"{generation} --only {name}" for name in ("ig-3", "ig-2", "ig-1", demo.POLICY)))
    run("ig-initial", generation)
    run("ig", f"{verify} {there}/rankings/careless-ig-initial.jsonl --out {there}/rankings/careless-ig.jsonl")


# ---- 3. trainings ----------------------------------------------------------------------------------------------------

def options_of(name, preset):
    """train.py's options of a variant, each named once."""
    variant, ours = VARIANTS[name], PRESETS[preset]
    rate = ours["own"] if variant.rate == "own" else demo.PRESETS[preset][variant.rate]
    common = flags(f"{demo.PRESETS[preset]['train']} {ours['train']} {rate}")
    options = common | flags(variant.options)
    if options.get("penalty", "").startswith("*"):              # a multiple of the preset's, which is 1 (Eq. 6) by default
        options["penalty"] = f"{float(options['penalty'][1:]) * float(common.get('penalty', 1)):g}"
    if (variant.rankings or "").startswith("few-"):             # as many steps on fewer rows
        options["epochs"] = f"{float(options.get('epochs', 4)) * 100 / int(variant.rankings[4:]):g}"
    return " ".join(f"--{key} {value}".strip() for key, value in sorted(options.items()))


def trained_as(name, preset):
    """Variants of different names may be one training, such as a penalty of 1 and the demo's: the first one's name."""
    same = lambda one: VARIANTS[one][::3] + (VARIANTS[one].rankings and options_of(one, preset),)   # rankings, base
    return next(other for other in VARIANTS if same(other) == same(name))


def commands(name, seed, settings, folder):
    """A variant's training and evaluation, as one would type them; a base is only evaluated."""
    variant, here = VARIANTS[name], shlex.quote(settings.run)
    out = shlex.quote(f"{folder}/trainings/{trained_as(name, settings.preset)}-{seed}")
    model, typed = shlex.quote(f"{base_path(variant.base, settings, folder)}/{demo.POLICY}"), []
    if variant.rankings:
        rows = shlex.quote(str(ranked(variant.base, variant.rankings, seed, folder)))
        typed.append(f"train.py --model {model} --preferences {rows} --image-root {here}/world/preference --out {out} "
                     f"--seed {seed} {options_of(name, settings.preset)}")
        model = out
    typed.append(f"amp_min.evaluate --model {model} --data {shlex.quote(str(folder))}/world/{settings.split} "
                 f"--out {out}.evaluate.json --seed {seed} {demo.PRESETS[settings.preset]['evaluate']}")
    return typed


def finished(name, seed, settings, folder):
    """The result of the same commands, when they were run before; or None."""
    path = folder / "trainings" / f"{trained_as(name, settings.preset)}-{seed}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found if found and found["commands"] == commands(name, seed, settings, folder) else None


def results_of(study, seeds, settings, folder, pool):
    """{variant: [the result of each seed]}, after training what is missing."""
    names = {trained_as(name, settings.preset): name for name in study.variants}
    every = [(name, seed) for seed in seeds for name in names]
    todo = [(name, seed) for name, seed in every if finished(name, seed, settings, folder) is None]
    print(f"{study.title}: {len(every)} trainings and evaluations, {len(every) - len(todo)} done before", flush=True)
    jobs = [pool.submit(measures.do, commands(name, seed, settings, folder),
                        folder / "trainings" / f"{name}-{seed}.json", f"{folder}/world/{settings.split}")
            for name, seed in todo]
    try:
        title = study.title.partition(":")[0]
        for job in tqdm(as_completed(jobs), desc=title, total=len(jobs), unit="training", disable=None):
            job.result()
    except BaseException as error:                       # Ctrl-C is no Exception
        for worker in multiprocessing.active_children():
            worker.kill()                                # or the pool would work through the whole queue first
        error.add_note(f"finished trainings are kept in {folder}; the same command goes on where it stopped")
        raise
    return {name: [finished(name, seed, settings, folder) for seed in seeds] for name in study.variants}


# ---- 4. claims -------------------------------------------------------------------------------------------------------

def claims_of(study, results):
    """Each claim on its own metric, in the claim's direction."""
    found = []
    for one in study.claims:
        label, sign = METRICS[one.metric]
        (a, figures_a), (b, figures_b) = (study.variants[name] for name in list(one.weights)[:2])
        verb = {"better": "beats", "not worse": f"is not worse by {one.margin} than",
                "as good as": f"is as good as (within {one.margin})"}[one.test]
        paper = f"{figures_a} against {figures_b}" if figures_a and figures_b else "no figure"
        sums = {name: measures.stack([result["sums"][one.metric] for result in results[name]]) for name in one.weights}
        found.append(intervals.claim(f"{one.text or f'{a} {verb} {b}'}: {label}", paper, one.kind,
                                     [(sign * weight, sums[name]) for name, weight in one.weights.items()],
                                     one.test, one.margin))
    return found


def penalty_claims(results):
    """The log-probs themselves: how far each level has moved by the last epoch. Only seeds vary here."""
    moved = {name: np.array([[[ratio, 1.0] for ratio in result["levels"][-1]["log_ratio"]] for result in results[name]])
             for name in results}                                                               # (seeds, K, 2)
    says, claims = "the loss falls while the log-probs of both answers fall", []
    for name, rate in (("penalty-0", "MDPO's learning rate"), ("slow-4", "DPO's learning rate")):
        off = moved[name]
        claims += [intervals.claim(f"no penalty, {rate}: the log-prob of level {k} falls", says, "paper",
                                   [(-1, off[:, k:k + 1])]) for k in (0, off.shape[1] - 1)]
        claims.append(intervals.claim(f"with the penalty the log-prob of level 0 ends higher than without, {rate}",
                                      "what the penalty is for", "paper", [(1, moved["mdpo"][:, :1]), (-1, off[:, :1])]))
    return claims


def orders_of(names, seed, folder):
    """How rankings agree with the oracle: (rows of a table, {ranking: inconsistency (1, rows, 2)})."""
    table, wrong = [], {}
    for name in names:
        own = name.removeprefix("clean-own-")
        path = folder / f"rankings/clean-all-{own}.jsonl" if own != name else ranked("careless", name, seed, folder)
        figures, each = rankings.quality(path)
        table.append({"ranking": name} | figures)
        wrong[name] = np.array([each], dtype=float)
    return table, wrong


# ---- 5. results ------------------------------------------------------------------------------------------------------

def found_in(key, results, seeds, settings, folder):
    """A study as it is written to OUT/<study>.json."""
    study, rows = STUDIES[key], {}
    for name, (label, figures) in study.variants.items():
        # evaluate's metrics, and what only the sums have: lengths, repetitions, false claims by kind.
        metrics = [{metric: measures.metric(scenes) for metric, scenes in result["sums"].items()} | result["metrics"]
                   for result in results[name]]
        variant = VARIANTS[name]
        rows[name] = {"name": label, "paper": figures, "seeds": metrics, "commands": results[name][0]["commands"],
                      "levels": [result["levels"] for result in results[name]],
                      "seconds": [result["seconds"] for result in results[name]],
                      "prefers_worse": variant.rankings and measures.prefers_worse(
                          ranked(variant.base, variant.rankings, seeds[0], folder))}
    claims, (orders, wrong) = claims_of(study, results), orders_of(study.orders, seeds[0], folder)
    if key == "penalty":
        claims += penalty_claims(results)
    if key == "table5":
        claims += rankings.inconsistency_claims(wrong)
    return {"study": key, "title": study.title, "question": study.question, "figures": study.figures,
            "order": list(rows), "rows": rows, "orders": orders, "claims": intervals.holm(claims), "seeds": seeds,
            "split": settings.split, "machine": demo.machine(), "versions": storage.versions()}


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    folder, out, seeds = begin(settings), Path(settings.out), list(range(1, settings.seeds + 1))
    with demo.workers(settings.workers) as pool:
        benchmark(settings, folder, demo.Run(folder, pool))
        for key in STUDIES if settings.study == "all" else [settings.study]:
            study = STUDIES[key]
            used = [VARIANTS[name] for name in study.variants]
            needed = {(one.base, one.rankings) for one in used if one.rankings}
            needed |= {("careless", name) for name in study.orders if not name.startswith("clean-own")}
            prepare_bases({one.base for one in used}, settings, folder, demo.Run(folder, pool))
            prepare(needed, settings, folder, demo.Run(folder, pool))
            for (base, name), seed in product(sorted(needed), seeds):
                write(base, name, seed, settings, folder)
            found = found_in(key, results_of(study, seeds, settings, folder, pool), seeds, settings, folder)
            storage.write_json(out / f"{key}.json", found)
            (out / f"{key}.md").write_text(tables.markdown(found), encoding="utf-8")
            print(tables.markdown(found), flush=True)
            tables.write_page(out)                       # after each study: cut off, the page holds what is finished
    print(f"{out}/README.md: the questions and what was found")


if __name__ == "__main__":
    script.run(main)
