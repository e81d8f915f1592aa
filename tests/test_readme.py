"""The README says what is: its file map is the tree, its figures are those of results/, its commands parse."""

import json
import re
import shlex
from pathlib import Path

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
    shown = between("<!-- table: results of experiments -->").strip()
    assert found and shown == tables.summary(found).replace("](", "](results/")
    for study in found:
        assert (ROOT / f"results/{study['study']}.md").read_text(encoding="utf-8") == tables.markdown(study)


def test_every_command_parses():
    commands = [line for line in README.splitlines() if line.startswith("python ")]
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(command)[1:]
        name, argv = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
        script.command_line(script.module_of(name).Settings, argv)       # exits when a flag is unknown
