"""The exercises prove themselves: stubs get nothing, solutions everything, wrong solutions lose what they should.

Also the grading command, on made-up submissions that are good, broken, endless or dishonest.
"""
import csv
import json
import re
import shlex
import shutil
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import pytest
import torch

from amp_min.support import script
from amp_min.support.script import UserError
from tutorial.grading import __main__ as grade
from tutorial.grading import isolated

ROOT = Path(__file__).parent.parent
STUBS = ROOT / "tutorial/exercises"
SOLUTIONS = grade.EXERCISES / "solutions"
NAMES = sorted(path.stem for path in STUBS.glob("ex*.py"))
TEACHERS = (ROOT / "tutorial/teachers.md").read_text(encoding="utf-8")


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
    assert lines["Check"] == f"pytest tests/exercises -m {number(name)} --student my"
    assert all(f"\n{n}. " in card for n in (1, 2, 3)), "three hints"
    row = f"| `{name}` | {int(name[2:4])} | {lines['Points']} | {lines['Time'].split()[0]} |"
    assert row in TEACHERS
    assert f'"{number(name)}: chapter {int(name[2:4])}, ' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_seed_changes_the_inputs_and_nothing_else():
    wrong = grade.EXERCISES / "wrong/ex01_macro_average.py"
    first, again, other = (grade.run_tests(wrong, seed, [grade.EXERCISES / "test_ex01.py"]) for seed in ("1", "1", "2"))
    assert first == again
    assert [entry["score"] for entry in first] == [entry["score"] for entry in other]
    assert [entry["output"] for entry in first] != [entry["output"] for entry in other]


def test_no_student_is_an_error(capsys):
    status = pytest.main([f"--confcutdir={grade.EXERCISES}", str(grade.EXERCISES), "-m", "ex05"])
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "needs --student PATH" in capsys.readouterr().err


def test_page_for_teachers():
    """Its sums are those of the cards, in the first line and in every row of the syllabuses; its commands parse."""
    points = {number(name): int(n) for name, n in re.findall(r"^\| `(ex\w+)` \| \d+ \| (\d+) \|", TEACHERS, re.M)}
    assert f"{sum(points.values())} points" in TEACHERS.splitlines()[2] and len(points) == len(NAMES)
    rows = re.findall(r"^\| \d \| [^|]+ \| (ex[^|]+) \| +(\d+) \|$", TEACHERS, re.M)
    assert len(rows) == 4 + 4 + 8
    for exercises, total in rows:
        assert sum(points[name] for name in re.findall(r"ex\d\d\w?", exercises)) == int(total), exercises
    for command in re.findall(r"^python -m tutorial.grading (.+)$", TEACHERS, re.M):
        script.command_line(grade.Settings, shlex.split(command))


EVERYTHING = """
import torch
from fractions import Fraction

class Mine(ValueError):
    pass

def same(*args, **kwargs):
    return args, kwargs

def shape(x):
    return x.shape

def refuse():
    raise Mine("no")

def cube(x, y):
    return (x ** 3).sum() + 0 * y.detach().sum()
"""


def test_what_travels_between_the_processes(tmp_path):
    """Values, errors and gradients are those of a plain call: both ways of running a student's file give one result."""
    (tmp_path / "ex00.py").write_text(EVERYTHING, encoding="utf-8")
    with isolated.opened(tmp_path / "ex00.py", 60, 1000) as there:
        sent = ([1, 2.5, float("inf"), None, True, "é"], {"a": {1, 2}, 3: (4,)}, Fraction(1, 3))
        assert there.same(*sent, key="word") == (sent, {"key": "word"})
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool):
            x = torch.randn(3, 0 if dtype == torch.int64 else 2).to(dtype)
            (y,), _ = there.same(x)
            assert y.dtype == dtype and y.shape == x.shape and torch.equal(x, y)
        assert there.shape(torch.zeros(2, 3)) == (2, 3)
        with pytest.raises(ValueError, match=r"no \(ex00.py, line 15\)"):
            there.refuse()
        x, y = torch.randn(3, dtype=torch.float64, requires_grad=True), torch.ones(1, requires_grad=True)
        (2 * there.cube(x, y)).backward()
        assert torch.equal(x.grad, 6 * x.detach() ** 2) and (y.grad is None or not y.grad.any())


# ---- the grading command ----

RIGHT = (SOLUTIONS / "ex10b_find_the_fault.py").read_text(encoding="utf-8")

# Two functions that never end well. The two others are right, and must get their points.
ENDLESS = RIGHT + """
def breaks_says_no():
    while True:
        pass

def breaks_pair_accuracy():
    return [1] * 10 ** 9
"""

# What a cheat may try: replace what judges, answer with something that is equal to everything, skip, print a table,
# write the results, change what others handed in. Two functions are right.
CHEAT = RIGHT + """
import json, pathlib, sys
import pytest, torch
pytest.fail = pytest.raises = lambda *args, **kwargs: None
torch.isclose = lambda *args, **kwargs: torch.tensor(True)
sys.modules["compare"] = sys.modules["scorers"] = None
print("ex10b 12 of 12")
pathlib.Path("results.json").write_text(json.dumps({"score": 12}))
for path in pathlib.Path(SUBMISSIONS).glob("zoe/*.py"):
    path.write_text("")

class Always(str):
    def __ne__(self, other):
        return True

def breaks_says_no():
    return Always("no")

def breaks_pair_accuracy():
    pytest.skip("this counts as passed")
"""

PRIVATE = """
import pytest

@pytest.mark.ex10b
@pytest.mark.points(5)
def test_private_secret(student, rng):
    assert student.breaks_hallucination() == [[6, 2]], "a secret that must not leak"
"""


def test_grading_command(tmp_path):
    handed_in = {"ann": RIGHT, "bob": ENDLESS, "cheat": CHEAT.replace("SUBMISSIONS", repr(str(tmp_path / "all"))),
                 "crash": "import sys\nsys.exit(0)\n", "missing": None,
                 "zoe": RIGHT.replace("[[6, 2]]", "[[2, 6]]").replace('"snow"', 'f"{1 / 0}"')}
    for student, text in handed_in.items():
        (tmp_path / "all" / student).mkdir(parents=True)
        if text is not None:
            (tmp_path / "all" / student / "ex10b_mine.py").write_text(text, encoding="utf-8")
    (tmp_path / "private").mkdir()
    (tmp_path / "private/test_private.py").write_text(PRIVATE, encoding="utf-8")
    grade.main([str(tmp_path / "all"), "--seed", "s", "--out", str(tmp_path / "out/grades.csv"), "--exercises", "ex10b",
                "--private-tests", str(tmp_path / "private"), "--timeout", "2", "--memory-mb", "1000"])
    rows = list(csv.reader((tmp_path / "out/grades.csv").read_text(encoding="utf-8").splitlines()))
    assert rows == [["student", "score", "max_score", "ex10b", "missing"],
                    ["ann", "17", "17", "17", ""], ["bob", "11", "17", "11", ""], ["cheat", "11", "17", "11", ""],
                    ["crash", "0", "17", "0", ""], ["missing", "0", "17", "0", "ex10b"], ["zoe", "9", "17", "9", ""]]
    found = {student: json.loads((tmp_path / "out/grades" / student / "results.json").read_text(encoding="utf-8"))
             for student in handed_in}
    assert found["ann"]["score"] == 17 and {entry["status"] for entry in found["ann"]["tests"]} == {"passed"}
    says = {student: [entry["output"] for entry in result["tests"]] for student, result in found.items()}
    assert says["bob"][0] == "no answer within 2 s: an endless loop?" and "MemoryError" in says["bob"][1]
    assert says["cheat"][0].startswith("your input 'no' does not show the fault")
    assert says["cheat"][1].startswith("Skipped: this counts as passed")
    assert says["crash"][0] == "SystemExit: 0 (ex10b_mine.py, line 2)"
    assert says["missing"][0] == "no file ex10b_*.py"
    assert says["zoe"][0].startswith("ZeroDivisionError: division by zero (ex10b_mine.py, line ")
    hidden = found["zoe"]["tests"][-1]
    assert hidden == {"name": "ex10b test_private_secret", "score": 0, "max_score": 5, "status": "failed",
                      "output": "hidden test", "tags": ["ex10b"], "visibility": "hidden"}


def test_grading_command_refuses(tmp_path):
    for argv, problem in (([tmp_path / "none", "--out", tmp_path / "g.csv"], "no such folder"),
                          ([tmp_path, "--out", tmp_path / "g.csv"], "holds no folders"),
                          ([tmp_path, "--out", "g.txt"], "must end in .csv")):
        with pytest.raises(UserError, match=problem):
            grade.main([*map(str, argv), "--seed", "s"])
