"""The paper's claims, and some that it does not make, put to the test on the picture world.

    python -m amp_min.experiments table3            (or table5, own, controls, penalty, table4, …, all)

Starts from a finished `python -m amp_min.demo`: its pictures, models and ranked answers are used as they are.
New are a larger benchmark, bases made careless for shorter or longer, other rankings, and for each variant
and seed one training with its evaluation. A seed decides the order of the batches, the annotator's errors and
what is sampled; prompts and scenes are the same for all. The demo's settings were chosen with seed 0, so here
seeds start at 1.

More scenes come before more seeds: another scene costs a fiftieth of a second, another seed a training.

Each training's result is a file of its own, so an interrupted command goes on where it stopped. They lie in
RUN/experiments-<hash of models, answers and settings>: a new demo run finds nothing old. Results:
OUT/<study>.json, OUT/<study>.md, and OUT/README.md about all. studies.py says what is compared, intervals.py
how.

Departure: the paper judges by MMHal-Bench, with GPT-4; here an exact oracle counts false claims, CHAIR_i,
POPE and MRHal. The paper's figures stand beside ours for the order of the rows, not for their size.
"""

import hashlib
import json
import multiprocessing
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
from amp_min.experiments.studies import MARGIN, METRICS, STUDIES, VARIANTS
from amp_min.support import script, storage
from amp_min.support.script import UserError, arg

# What the experiments set besides the demo's own settings. train: the paper's four epochs. own: the rate for
# levels of the model's own answers. increments: few steps, or a tiny model learns the clean subsets by heart.
PRESETS = {
    "demo": {"benchmark": "--captions 400 --dialogues 200", "train": "--epochs 4",
             "own": "--lr 5e-4 --penalty 0.02", "self": "--samples 6 --temperature 1",
             "increments": "--increments 3 --steps 150 --batch 16"},
    "tiny": {"benchmark": "", "train": "", "own": "--lr 5e-4 --penalty 0.02",
             "self": "--samples 6 --temperature 1", "increments": "--increments 3 --steps 3 --batch 4"}}
# verify.py's flags
CHECKS = {"recall": "", "symmetric": "--symmetric", "attributes": "--symmetric --attributes"}


@dataclass
class Settings:
    study: Literal[*STUDIES, "all"] = arg("all", "which study", positional=True)
    seeds: int = arg(5, "trainings of each variant", min=1)
    run: str = arg("runs/demo", "folder of a finished demo run")
    out: str = arg("results", "folder for the results")
    preset: Literal["demo", "tiny"] = arg("demo", "the demo run's: settings of the stages")
    workers: int = arg(2, "trainings side by side, one core each", min=1)
    split: Literal["eval", "tune"] = arg("eval", "evaluation scenes; tune to choose by")


# ---- 1. what everything is built on ------------------------------------------------------------------------

def begin(settings):
    """The folder for the experiments on this demo run, as it is now."""
    run = Path(settings.run)
    models = [run / "models" / name / "model.safetensors" for name in ("clip", *demo.FAMILY)]
    content = hashlib.sha256(repr([PRESETS[settings.preset], demo.PRESETS[settings.preset]]).encode())
    for path in [run / "candidates.jsonl", run / "preferences.jsonl", *models]:
        if not path.is_file():
            raise UserError(f"{path}: is missing; finish the demo run first: python -m amp_min.demo "
                            f"--out {run} --preset {settings.preset}")
        content.update(storage.sha256_file(path).encode())
    folder = run / f"experiments-{content.hexdigest()[:8]}"
    for part in ("rankings", "trainings"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return folder


def quoted(settings, folder):
    """The demo run, the experiments' folder and its rankings, for command lines: a path may hold spaces."""
    return shlex.quote(settings.run), shlex.quote(str(folder)), shlex.quote(f"{folder}/rankings")


def flags(text):
    """"--lr 1e-3 --levels 4" -> {"lr": "1e-3", "levels": "4"}. Of two the later holds, as on a command
    line."""
    return dict((part.strip().split(maxsplit=1) + [""])[:2] for part in text.split("--") if part.strip())


def base_model(name, settings, folder):
    models = f"{settings.run}/models" if name == "careless" else f"{folder}/bases/{name}"
    return shlex.quote(f"{models}/{demo.POLICY}")


def base_command(name, settings, folder):
    """The demo's policy, made careless for none or half of the steps: the only place that knows how."""
    options, (run, _, _) = demo.PRESETS[settings.preset]["llava"], quoted(settings, folder)
    default = script.module_of("amp_min.pretrain").Settings.careless_steps
    steps = int(flags(options).get("careless-steps", default))
    steps = {"clean": 0, "half": steps // 2}[name]
    out = folder / "bases" / name
    if not (out / "clip").exists():                     # the vision tower is the demo's
        shutil.copytree(Path(settings.run) / "models/clip", out / "clip")
    return (f"amp_min.pretrain --part llava --family {demo.POLICY} --world {run}/world "
            f"--out {shlex.quote(str(out))} {options} --careless-steps {steps}")


def prepare(needed, settings, folder, run):
    """Benchmark, bases and rankings that commands make. needed: {(base, ranking)}; `run` (demo.Run) does each
    once."""
    here, there, ranks = quoted(settings, folder)
    demo_options, ours = demo.PRESETS[settings.preset], PRESETS[settings.preset]
    # A scene's split follows from its content: among more scenes of eval there is none that was trained on.
    run("benchmark", f"amp_min.world --out {there}/world {demo_options['world']} {ours['benchmark']}")
    if bases := sorted({base for base, _ in needed} - {"careless"}):
        run("bases", *(base_command(name, settings, folder) for name in bases))
    verify = f"verify.py --encoder {here}/models/clip --candidates"
    prompts, names = f"--prompts {here}/world/preference/prompts.jsonl", {name for _, name in needed}
    if "attributes" in names:
        run("attributes", f"{verify} {here}/candidates.jsonl --out {ranks}/careless-attributes.jsonl "
                          f"{CHECKS['attributes']}")
    if "perturb" in names:
        run("perturb", f"generate.py --strategy perturb {prompts} --out {ranks}/careless-perturb.jsonl")
    if "ig" in names:                                   # Algorithm 1: their answers are the levels
        base, experts = base_model("careless", settings, folder), f"{there}/increments"
        run("increments", f"amp_min.pretrain --part increments --world {here}/world --base {base} "
                          f"--out {experts} {ours['increments']}")
        answer = (f"generate.py --strategy ig --models {experts}/ig-3 {experts}/ig-2 {experts}/ig-1 {base} "
                  f"--resume {prompts} --out {ranks}/careless-ig-initial.jsonl {demo_options['generate']}")
        run("ig-answers", *(f"{answer} --only {name}" for name in ("ig-3", "ig-2", "ig-1", demo.POLICY)))
        run("ig-initial", answer)
        run("ig", f"{verify} {ranks}/careless-ig-initial.jsonl --out {ranks}/careless-ig.jsonl")
    for base in sorted({base for base, name in needed if (name or "").startswith("own-")}):
        model, answers = base_model(base, settings, folder), f"{ranks}/{base}-all"
        run(f"own-{base}", f"generate.py --strategy self --models {model} {prompts} --out {answers}.jsonl "
                           f"{ours['self']} {demo_options['generate']}")
        run(f"check-{base}", *(f"{verify} {answers}.jsonl --out {answers}-{name}.jsonl {how}"
                               for name, how in CHECKS.items()))


# ---- 2. rankings that no command makes ---------------------------------------------------------------------

def ranked(base, name, seed, folder):
    """The file behind a ranking's name in studies.py. What is drawn at random is drawn anew for each seed."""
    drawn = f"-{seed}" if "noisy" in name or "random" in name else ""
    error = f"-e{rankings.ERROR:.3f}" if "noisy" in name else ""                # another error, another file
    return folder / "rankings" / f"{base}-{name}{error}{drawn}.jsonl"


def write(base, name, seed, settings, folder):
    """A copy of the demo's, or answers that are there in another order."""
    path = ranked(base, name, seed, folder)
    demos = {"auto-check": "preferences.jsonl", "initial": "candidates.jsonl"}
    if path.exists():
        return
    if name in demos:                   # copied, since every base keeps its own reference log-probs beside it
        shutil.copyfile(Path(settings.run) / demos[name], path)
        return
    own, how = name.startswith("own-"), name.removeprefix("own-").removesuffix("-standard")
    source = Path(settings.run) / demos["auto-check"]
    if own:
        source = folder / "rankings" / f"{base}-all-{how if how in CHECKS else 'recall'}.jsonl"
    rows = records.read(source, "preference")
    rows = rows if how in CHECKS else rankings.changed(rows, how, seed)
    with storage.Writer(path, {"ranking": name, "seed": seed}, [source]) as out:
        for row in rows:
            if own:                     # as verify.py --keep does: four different ones, evenly spaced
                standard = name.endswith("-standard")
                row = script.module_of("verify.py").selected(row, 4 - standard, standard, out.dropped)
            if row:
                out.write(row)


# ---- 3. trainings ------------------------------------------------------------------------------------------

def options_of(name, preset):
    """train.py's options of a variant, each named once."""
    variant, ours = VARIANTS[name], PRESETS[preset]
    rate = ours["own"] if variant.rate == "own" else demo.PRESETS[preset][variant.rate]
    common = flags(f"{demo.PRESETS[preset]['train']} {ours['train']} {rate}")
    if variant.rate == "mdpo":
        common.setdefault("penalty", "1")                       # Eq. 6's, train.py's default
    options = common | flags(variant.options)
    # a multiple of the preset's, which is Eq. 6's 1 by default
    if options.get("penalty", "").startswith("*"):              # a multiple of the preset's
        options["penalty"] = f"{float(options['penalty'][1:]) * float(common['penalty']):g}"
    if (variant.ranking or "").startswith("few-"):              # as many steps on fewer rows
        options["epochs"] = f"{float(options.get('epochs', 4)) * 100 / int(variant.ranking[4:]):g}"
    return " ".join(f"--{key} {value}".strip() for key, value in sorted(options.items()))


def trained_as(name, preset):
    """Two variants may be one training, such as a penalty of 1 and the demo's: the first one's name."""
    def training(name):
        base, ranking = VARIANTS[name].base, VARIANTS[name].ranking
        return base, ranking, ranking and options_of(name, preset)

    return next(other for other in VARIANTS if training(other) == training(name))


def commands(name, seed, settings, folder):
    """A variant's training and evaluation, as one would type them; a base is only evaluated."""
    variant, (here, there, _) = VARIANTS[name], quoted(settings, folder)
    out = shlex.quote(f"{folder}/trainings/{trained_as(name, settings.preset)}-{seed}")
    model, typed = base_model(variant.base, settings, folder), []
    if variant.ranking:
        rows = shlex.quote(str(ranked(variant.base, variant.ranking, seed, folder)))
        typed.append(f"train.py --model {model} --preferences {rows} --image-root {here}/world/preference "
                     f"--out {out} --seed {seed} {options_of(name, settings.preset)}")
        model = out
    return [*typed, f"amp_min.evaluate --model {model} --data {there}/world/{settings.split} "
                    f"--out {out}.evaluate.json --seed {seed} {demo.PRESETS[settings.preset]['evaluate']}"]


def finished(name, seed, settings, folder):
    """The result of the same commands, when they were run before; or None."""
    path = folder / "trainings" / f"{trained_as(name, settings.preset)}-{seed}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found if found and found["commands"] == commands(name, seed, settings, folder) else None


def results_of(study, seeds, settings, folder, pool):
    """{variant: [the result of each seed]}, after training what is missing."""
    every = list(product(seeds, dict.fromkeys(trained_as(name, settings.preset) for name in study.variants)))
    todo = [(seed, name) for seed, name in every if finished(name, seed, settings, folder) is None]
    done = len(every) - len(todo)
    print(f"{study.title}: {len(every)} trainings and evaluations, {done} done before", flush=True)
    jobs = [pool.submit(measures.do, commands(name, seed, settings, folder),
                        folder / "trainings" / f"{name}-{seed}.json", f"{folder}/world/{settings.split}")
            for seed, name in todo]
    try:
        for job in tqdm(as_completed(jobs), desc=study.title, total=len(jobs), disable=None):
            job.result()
    except BaseException as error:                       # Ctrl-C is no Exception
        for worker in multiprocessing.active_children():
            worker.kill()  # or the pool would work through the whole queue first
        error.add_note(f"finished trainings are kept in {folder}; the same command goes on where it stopped")
        raise
    return {name: [finished(name, seed, settings, folder) for seed in seeds] for name in study.variants}


# ---- 4. claims and results ---------------------------------------------------------------------------------

def claims_of(study, results):
    """Each claim on its own metric, in the claim's direction."""
    verbs = {"better": "beats", "not worse": f"is not worse by {MARGIN} than",
             "as good as": f"is, within {MARGIN}, as good as"}
    for one in study.claims:
        key, label, sign = METRICS[one.metric]
        names, figures = zip(*(study.variants[name] for name in list(one.weights)[:2]), strict=True)
        both = len(figures) == 2 and all(figures)
        weighted = [(sign * weight, measures.stack([result["sums"][key] for result in results[name]]))
                    for name, weight in one.weights.items()]
        text, paper = f" {verbs[one.test]} ".join(names), " against ".join(figures) if both else "no figure"
        kind = one.kind or ("paper" if both else "ours")
        yield intervals.claim(one.text or f"{text}: {label}", paper, kind, weighted, one.test, MARGIN)


def found_in(key, results, seeds, settings, folder):
    """A study as it is written to OUT/<study>.json."""
    study, rows, orders, wrong = STUDIES[key], {}, [], {}
    for name, (label, figures) in study.variants.items():
        # evaluate's metrics, and what only the sums have: lengths, repetitions, false claims by kind,
        # log-ratios.
        each, (ranking, _, _, base) = results[name], VARIANTS[name]
        metrics = [{metric: measures.metric(scenes) for metric, scenes in result["sums"].items()}
                   | result["metrics"] for result in each]
        rows[name] = {"name": label, "paper": figures, "seeds": metrics, "commands": each[0]["commands"],
                      "seconds": [result["seconds"] for result in each], "prefers_worse":
                          ranking and measures.prefers_worse(ranked(base, ranking, seeds[0], folder))}
    for name in study.orders:                           # own answers: all six, before four were kept
        path = (folder / f"rankings/clean-all-{name.removeprefix('own-')}.jsonl" if name.startswith("own-")
                else ranked("careless", name, seeds[0], folder))
        figures, each = rankings.quality(path)
        orders.append({"ranking": name} | figures)
        wrong[name] = np.array([each], dtype=float)     # (1, rows, 2)
    claims = [*claims_of(study, results), *(rankings.inconsistency_claims(wrong) if key == "table5" else [])]
    return {"study": key, "title": study.title, "question": study.question, "figures": study.figures,
            "order": list(rows), "rows": rows, "orders": orders, "claims": intervals.holm(claims),
            "seeds": seeds, "split": settings.split, "machine": demo.machine(),
            "versions": storage.versions()}


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    folder, out, seeds = begin(settings), Path(settings.out), list(range(1, settings.seeds + 1))
    asked = {key: STUDIES[key] for key in (STUDIES if settings.study == "all" else [settings.study])}
    used = [VARIANTS[name] for study in asked.values() for name in study.variants]
    needed = {(variant.base, variant.ranking) for variant in used}
    needed |= {("careless", name) for study in asked.values() for name in study.orders if name[:4] != "own-"}
    with demo.workers(settings.workers) as pool:
        prepare(needed, settings, folder, demo.Run(folder, pool))
        for (base, name), seed in product(sorted(one for one in needed if one[1]), seeds):
            write(base, name, seed, settings, folder)
        for key, study in asked.items():
            found = found_in(key, results_of(study, seeds, settings, folder, pool), seeds, settings, folder)
            storage.write_json(out / f"{key}.json", found)
            (out / f"{key}.md").write_text(tables.markdown(found), encoding="utf-8")
            print(tables.markdown(found), flush=True)
            tables.write_page(out)  # after each study: cut off, the page holds what is finished


if __name__ == "__main__":
    script.run(main)
