"""The exercises prove themselves: stubs get nothing, solutions everything, wrong solutions lose what they should.

Also the grading command, on made-up submissions that are good, broken, endless or dishonest.
"""
import csv
import json
import re
import shlex
import subprocess
import sys
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


def wrong_solutions():
    """{name: (source, tests it must lose)} from wrong.txt."""
    found = {}
    for block in (grade.EXERCISES / "wrong.txt").read_text(encoding="utf-8").split("\n\n")[1:]:
        name, loses = block.split(":")[0], re.search("^loses (.+)$", block, re.M)[1].split()
        source = next(SOLUTIONS.glob(f"{number(name)}_*.py")).read_text(encoding="utf-8")
        for signs, lines in groupby(re.findall("^([-+]) (.+)$", block, re.M), key=lambda line: line[0]):
            text = "\n".join(words for _, words in lines)
            if signs == "-":
                right = text
                assert right in source, f"wrong.txt: {name}: its solution has no {right!r}"
            else:
                source = source.replace(right, text, 1)
        found[name] = (source, {f"{number(name)} test_{test}" for test in loses})
    return found


WRONG = wrong_solutions()


def rounds():
    """Their names as a few lists with one for each exercise at most: a run of pytest takes them together."""
    of = [[name for name in WRONG if number(name) == exercise] for exercise in dict.fromkeys(map(number, WRONG))]
    return [[names[n] for names in of if n < len(names)] for n in range(max(map(len, of)))]


@pytest.mark.parametrize("names", rounds(), ids=lambda names: f"{names[0]}-and-{len(names) - 1}-more")
def test_wrong_solutions_lose_their_tests(names, tmp_path):
    for name in names:
        (tmp_path / f"{name}.py").write_text(WRONG[name][0], encoding="utf-8")
    points = grade.run_tests(tmp_path, exercises=[number(name) for name in names])
    failed = {entry["name"] for entry in points if entry["status"] == "failed"}
    assert failed == set().union(*(WRONG[name][1] for name in names))


def test_each_exercise_has_a_wrong_solution():
    assert {number(name) for name in NAMES} == {number(fault) for fault in WRONG}
    wanted = {"mask_off_by_one", "missing_shift", "mean_instead_of_sum", "padding_counted", "pair_reversed",
              "adjacent_pairs_only", "penalty_on_every_pair", "gradient_through_the_reference"}
    assert wanted <= {fault.split("_", 1)[1] for fault in WRONG}


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


def test_seed_changes_the_inputs_and_nothing_else(tmp_path):
    wrong = tmp_path / "ex01_macro_average.py"
    wrong.write_text(WRONG[wrong.stem][0], encoding="utf-8")
    first, again, other = (grade.run_tests(wrong, seed, [grade.EXERCISES / "test_ex01.py"]) for seed in ("1", "1", "2"))
    assert first == again
    assert [entry["score"] for entry in first] == [entry["score"] for entry in other]
    assert [entry["output"] for entry in first] != [entry["output"] for entry in other]


def test_a_students_own_run(tmp_path, capsys):
    """The README's results.json stays, an endless loop ends, no student is an error, nothing warns without pytest-xdist."""
    (tmp_path / "my").mkdir()
    (tmp_path / "results.json").write_text("of the README", encoding="utf-8")
    (tmp_path / "my/ex10b_mine.py").write_text(ENDLESS, encoding="utf-8")
    command = [sys.executable, "-c", "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))", "-c", ROOT / "pyproject.toml",
               "--rootdir", ROOT, "-p", "no:xdist", "-p", "no:cacheprovider", grade.EXERCISES / "test_ex10b.py",
               "--student", "my", "--time-limit", "2", "--format", "classroom50"]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False)
    points = json.loads((tmp_path / "my/points.json").read_text(encoding="utf-8"))
    assert points["schema"] == "classroom50/result/v1" and (points["score"], points["max-score"]) == (6, 12)
    assert {type(value) for key, value in points.items() if key not in ("score", "max-score", "tests")} == {str}
    assert [test["passed"] for test in points["tests"]] == [False, False, True, True]
    assert set(points["tests"][0]) == {"test-name", "passed", "score", "max-score"}
    assert "no answer within 2 s" in done.stdout and "warning" not in done.stdout.lower()
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == "of the README"
    assert pytest.main([f"--confcutdir={grade.EXERCISES}", str(grade.EXERCISES)]) == pytest.ExitCode.USAGE_ERROR
    assert "needs --student PATH" in capsys.readouterr().err


def test_page_for_teachers():
    """Its sums are those of the cards, in the first line and in every row of the syllabuses; its commands parse."""
    points = {number(name): int(n) for name, n in re.findall(r"^\| `(ex\w+)` \| \d+ \| (\d+) \|", TEACHERS, re.M)}
    assert f"{sum(points.values())} points" in TEACHERS.splitlines()[2] and len(points) == len(NAMES)
    rows = re.findall(r"^\| \d \| [^|]+ \| (ex[^|]+) \| +(\d+) \|$", TEACHERS, re.M)
    assert len(rows) == 4 + 4 + 8
    for exercises, total in rows:
        assert sum(points[name] for name in re.findall(r"ex\d\d\w?", exercises)) == int(total), exercises
    commands = re.findall(r"^python -m tutorial.grading (.+)$", TEACHERS.replace("\\\n", " "), re.M)
    assert len(commands) == 3
    for command in commands:
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


@pytest.mark.parametrize("command", [None, [sys.executable, isolated.__file__, "{folder}/{file}", "{seconds}", "{megabytes}"]],
                         ids=["forked", "by a command"])
def test_what_travels_between_the_processes(command, tmp_path):
    """Values, errors and gradients are those of a plain call: every way of running a student's file gives one result."""
    (tmp_path / "ex00.py").write_text(EVERYTHING, encoding="utf-8")
    with isolated.opened(tmp_path / "ex00.py", 60, 1000, command) as there:
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
    while True:
        pass
"""

# Half an answer, and no more: the grader must not wait for the rest. And more memory than there is.
HALF = RIGHT + """
def breaks_says_no():
    import os, time
    for end in range(3, 100):
        try:
            os.write(end, b"\\0\\0\\1\\0half an answer")
        except OSError:
            pass
    time.sleep(100)

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


def test_a_class_of_thirty(tmp_path):
    """One command; every slip costs its own points and is named."""
    crash = "import sys\nsys.exit(0)\n"
    cheat = CHEAT.replace("SUBMISSIONS", repr(str(tmp_path / "all")))
    zoe = RIGHT.replace("[[6, 2]]", "[[2, 6]]").replace('"snow"', 'f"{1 / 0}"')
    handed_in = {                                                # student: ({file: text}, score, missing, notes)
        "cheat": ({"ex10b_x.py": cheat}, 11, "", ""),
        "crash": ({"ex10b_x.py": crash}, 0, "", "exit: ex10b"),
        "endless": ({"ex10b_x.py": ENDLESS}, 11, "", "endless: ex10b"),
        "half": ({"ex10b_x.py": HALF}, 11, "", "endless: ex10b"),
        "misspelt": ({"exo10b_x.py": RIGHT}, 0, "ex10b", "not graded: exo10b_x.py"),
        "nested": ({"src/ex10b_x.py": RIGHT, "ex06_x.py": RIGHT}, 0, "ex10b", "not graded: src/ex10b_x.py"),
        "nothing": ({}, 0, "ex10b", ""),
        "twice": ({"ex10b_new.py": RIGHT, "ex10b_old.py": RIGHT}, 0, "", "twice: ex10b"),
        "unnumbered": ({"faults.py": RIGHT, "faults.ipynb": "{}"}, 0, "ex10b", "not graded: faults.ipynb, faults.py"),
        "zoe": ({"ex10b_x.py": zoe}, 9, "", "")}
    handed_in |= {f"ann{n:02}": ({"ex10b_x.py": RIGHT}, 17, "", "") for n in range(30 - len(handed_in))}
    for student, (files, *_) in handed_in.items():
        for name, text in {".git/config.py": "", **files}.items():
            path = tmp_path / "all" / student / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    (tmp_path / "private").mkdir()
    (tmp_path / "private/test_private.py").write_text(PRIVATE, encoding="utf-8")
    grade.main([str(tmp_path / "all"), "--seed", "s", "--out", str(tmp_path / "out/grades.csv"), "--exercises", "ex10b",
                "--private-tests", str(tmp_path / "private"), "--timeout", "2", "--memory-mb", "1000"])
    heading, *rows = csv.reader((tmp_path / "out/grades.csv").read_text(encoding="utf-8").splitlines())
    assert heading == ["student", "score", "max_score", "ex10b", "missing", "notes"] and len(rows) == 30
    for student, score, most, own, missing, notes in rows:
        assert (int(score), int(own), most, missing, notes) == (handed_in[student][1], *handed_in[student][1:2], "17", *handed_in[student][2:])
    found = {student: json.loads((tmp_path / "out/grades" / student / "results.json").read_text(encoding="utf-8"))
             for student in handed_in}
    assert found["ann00"]["score"] == 17 and {entry["status"] for entry in found["ann00"]["tests"]} == {"passed"}
    says = {student: [entry["output"] for entry in result["tests"]] for student, result in found.items()}
    assert says["endless"][0] == says["half"][0] == "no answer within 2 s: an endless loop?" and "MemoryError" in says["half"][1]
    assert says["cheat"][0].startswith("your input 'no' does not show the fault")
    assert says["cheat"][1].startswith("Skipped: this counts as passed")
    assert says["crash"][0] == "SystemExit: 0 (ex10b_x.py, line 2)"
    assert says["nothing"][0] == "no file ex10b_*.py" and says["twice"][0] == "2 files ex10b_*.py"
    assert says["zoe"][0].startswith("ZeroDivisionError: division by zero (ex10b_x.py, line ")
    hidden = found["zoe"]["tests"][-1]
    assert hidden == {"name": "ex10b test_private_secret", "score": 0, "max_score": 5, "status": "failed",
                      "output": "hidden test", "tags": ["ex10b"], "visibility": "hidden"}


def test_grading_command_refuses(tmp_path):
    for argv, problem in (([tmp_path / "none", "--out", tmp_path / "g.csv"], "no such folder"),
                          ([tmp_path, "--out", tmp_path / "g.csv"], "holds no folders"),
                          ([tmp_path, "--out", "g.txt"], "must end in .csv")):
        with pytest.raises(UserError, match=problem):
            grade.main([*map(str, argv), "--seed", "s"])
