"""The exercises prove themselves: stubs get nothing, solutions everything, and each wrong solution loses what it should.

Also the grading command, on made-up submissions that are good, broken, endless or dishonest.
"""
import re
import shutil
from itertools import groupby
from pathlib import Path

import pytest

from amp_min import grade

ROOT = Path(__file__).parent.parent
STUBS = ROOT / "tutorial/exercises"
SOLUTIONS = grade.EXERCISES / "solutions"
NAMES = sorted(path.stem for path in STUBS.glob("ex*.py"))


def number(name):
    return name.split("_")[0]


# ---- the exercises ----

def test_stubs_score_nothing():
    points = grade.run_tests(STUBS)
    assert {entry["tags"][0] for entry in points} == {number(name) for name in NAMES} and len(NAMES) >= 12
    assert [entry for entry in points if entry["score"] or entry["status"] != "failed"] == []
    assert {entry["output"] for entry in points} <= {"not written yet"}


@pytest.mark.parametrize("seed", ["0", "a teacher's own"])
def test_solutions_get_full_marks(seed):
    points = grade.run_tests(SOLUTIONS, seed)
    assert [(entry["name"], entry["output"]) for entry in points if entry["status"] != "passed"] == []
    assert sum(entry["score"] for entry in points) == sum(entry["max_score"] for entry in points)


def rounds():
    """The wrong solutions as a few lists with one for each exercise at most: a run of pytest takes them together."""
    found = []
    for _, own in groupby(sorted(grade.EXERCISES.glob("wrong/*.py")), key=lambda path: number(path.stem)):
        for n, path in enumerate(own):
            found += [[]] * (n == len(found))
            found[n] = found[n] + [path]
    return found


@pytest.mark.parametrize("paths", rounds(), ids=lambda paths: f"{paths[0].stem}-and-{len(paths) - 1}-more")
def test_wrong_solutions_lose_their_tests(paths, tmp_path):
    """A file says in its first lines which tests it must lose: these and no others."""
    named = set()
    for path in paths:
        shutil.copy(path, tmp_path)
        loses = re.search(r"^Loses: (.+)$", path.read_text(encoding="utf-8"), re.M)[1].split()
        named |= {f"{number(path.stem)} {test}" for test in loses}
    points = grade.run_tests(tmp_path, exercises=[number(path.stem) for path in paths])
    assert {entry["name"] for entry in points if entry["status"] == "failed"} == named


def test_each_exercise_has_a_wrong_solution():
    faults = [path.stem for path in grade.EXERCISES.glob("wrong/*.py")]
    assert {number(name) for name in NAMES} == {number(fault) for fault in faults}
    wanted = {"mask_off_by_one", "missing_shift", "mean_instead_of_sum", "padding_counted", "pair_reversed",
              "adjacent_pairs_only", "penalty_on_every_pair", "gradient_through_the_reference"}
    assert wanted <= {fault.split("_", 1)[1] for fault in faults}


@pytest.mark.parametrize("name", NAMES)
def test_card(name):
    """The card names what it must, its points are those of the tests, and its command is the one that works."""
    card = (STUBS / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    lines = dict(re.findall(r"^([A-Z]\w+)  +(.+)$", card, re.M))
    assert {"Goal", "Deliverable", "Points", "Time", "Hardware", "Expected", "Check"} <= lines.keys()
    tests = (grade.EXERCISES / f"test_{number(name)}.py").read_text(encoding="utf-8")
    assert int(lines["Points"]) == sum(map(int, re.findall(r"mark\.points\((\d+)\)", tests)))
    assert lines["Check"] == f"pytest tests/exercises -m {number(name)} --student tutorial/exercises/{name}.py"
    assert all(f"\n{n}. " in card for n in (1, 2, 3)), "three hints"
    assert f'"{number(name)}: chapter {int(name[2:4])}, ' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
