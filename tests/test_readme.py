"""The README says what is: its file map is the tree, its figures are those of results/, its commands parse."""

import json
import re
import shlex
from pathlib import Path
from statistics import mean

from amp_min import demo
from amp_min.experiments import studies, tables
from amp_min.support import script

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def between(start):
    return README.split(start)[1].split("<!-- end -->")[0]


def test_file_map_is_the_tree():
    named = set(re.findall(r"^\| `([^`]+)`", between("<!-- files -->"), re.M))
    there = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.py"), *ROOT.glob("amp_min/*.py")]}
    folders = {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in ROOT.glob("amp_min/*/__init__.py")}
    assert named == there - {"amp_min/__init__.py"} | folders


def test_figures_are_those_of_the_last_full_run():
    found = json.loads((ROOT / "results/demo.json").read_text(encoding="utf-8"))
    assert between("<!-- table: results/demo.json -->").strip() == demo.table(found).strip()


def test_claims_are_those_of_the_last_studies():
    found = [json.loads((ROOT / f"results/{name}.json").read_text(encoding="utf-8"))
             for name in studies.STUDIES if (ROOT / f"results/{name}.json").is_file()]
    assert found and between("<!-- table: results of experiments -->").strip() == tables.summary(found[0], found)
    for study in found:
        assert (ROOT / f"results/{study['study']}.md").read_text(encoding="utf-8") == tables.markdown(study)


def test_figures_in_the_prose_are_those_of_the_results():
    read = lambda path: json.loads((ROOT / path).read_text(encoding="utf-8"))
    demo_run, figures = read("results/demo.json"), read("tutorial/pictures/figures.json")
    base, mdpo = (demo_run["models"][name] for name in ("base", "mdpo"))
    seconds, order = demo_run["seconds"], demo_run["autocheck"]
    rows = {name: row for study in ("controls", "penalty", "table4") for name, row in read(f"results/{study}.json")["rows"].items()}
    over = lambda name, key: mean(seed[key] for seed in rows[name]["seeds"])                 # seeds
    fall = lambda name, k: -mean(seed[-1]["ratio"][k] for seed in rows[name]["levels"])      # nats, last epoch
    orders = {one["ranking"]: one for one in read("results/table5.json")["orders"]}
    chair, pope, rounds = "chair_i_sampled", "pope_accuracy", "mrhal_hallucination_cumulative"
    prose = " ".join(README.split())
    for phrase in (
        f"{seconds['total']:.0f} s after installation, of which {seconds['llava']:.0f} s train the four LLaVAs, {seconds['clip']:.0f} s CLIP, and "
        f"{sum(s for stage, s in seconds.items() if stage not in ('world', 'clip', 'llava', 'total')):.0f} s are the paper's part",
        f"(CHAIR_i {base[chair]:.3f} to {mdpo[chair]:.3f}; over five seeds {over('base', chair):.3f} to {over('mdpo', chair):.3f})",
        f"yes-ratio from {base['pope_yes_ratio']:.2f} to {mdpo['pope_yes_ratio']:.2f}",
        f"accuracy up by {100 * (mdpo[pope] - base[pope]):.1f} points",
        f"(over five seeds, accuracy by {100 * (over('mdpo', pope) - over('base', pope)):.1f} points)",
        f"hallucinate less, but little: {base[rounds]:.3f} to {mdpo[rounds]:.3f}, over five seeds to {over('mdpo', rounds):.3f}",
        f"({order['agreement_autocheck']:.2f} against {order['agreement_initial']:.2f} of the pairs)",
        f"That order owes its {order['agreement_initial']:.2f} to the two small models: between the two large ones it is a coin toss "
        f"({figures['win_order']['initial'][1][2]:.2f})",
        f"all four levels fall by {fall('penalty-off', 0):.0f} to {fall('penalty-off', 3):.0f} nats and the model breaks (sampled CHAIR_i "
        f"{over('penalty-off', chair):.2f})",
        f"level 0 falls too, by {fall('penalty-off-slow', 0):.1f}, and descriptions hardly improve ({over('penalty-off-slow', chair):.2f})",
        f"CHAIR_i is {over('a-c', chair):.2f} for A>C, the second answer against the fourth, and {over('b-c', chair):.2f} for B>C",
        f"its {100 * orders['auto-check']['inconsistency']:.1f} % of adjacent pairs the wrong way round",
    ):
        assert phrase in prose


def test_every_command_parses():
    commands = [line for line in README.splitlines() if line.startswith("python ")]
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(command)[1:]
        name, argv = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
        script.command_line(script.module_of(name).Settings, argv)       # exits when a flag is unknown
