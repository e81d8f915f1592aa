"""Grade a folder of submissions: every exercise test on every student's files, one table for all.

    python -m tutorial.grading submissions --seed SECRET --out grades.csv

submissions/ holds one folder for each student with the files exNN_name.py directly inside; a file that is missing
costs its own points. Written are grades.csv, one line a student with notes on what a person should look at, and
grades/STUDENT/results.json in Gradescope's format or Classroom 50's. The same seed and files give the same bytes.

Every test runs the student's code in a fresh process with a limit on time and memory, see tutorial/grading/isolated.py; what is
judged here are the values that come back. So sys.exit, a printed table, a patched pytest or a results.json of the
student's own change nothing. All submissions are read before the first line of a student's code runs, and all results
are written after the last. What this does not defend against is in tutorial/teachers.md.
"""
import contextlib
import csv
import io
import os
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from tqdm import tqdm

from amp_min.support import script, storage
from amp_min.support.script import UserError, arg, needed
from tutorial.grading import isolated

ROOT = Path(__file__).resolve().parents[2]
EXERCISES = ROOT / "tests/exercises"
HARNESS = isolated.load(EXERCISES / "conftest.py")              # as a plugin it serves private tests as well


@dataclass
class Settings:
    submissions: Path = needed("folder with one folder for each student", positional=True)
    seed: str = needed("any text, known to you alone: mixed into all random inputs of the tests")
    out: Path = needed("the table (CSV); the results.json files go to a folder of the same name")
    exercises: list[str] = arg([], "grade only these, such as ex03 ex03b")
    private_tests: Path | None = arg(None, "folder with more test_*.py, shown to nobody")
    format: Literal["gradescope", "classroom50"] = arg("gradescope", "of each student's results.json")
    timeout: float = arg(20.0, "seconds for each test; they need well under one", above=0)
    memory_mb: float = arg(2000.0, "megabytes for each test, above what torch itself takes", above=0)
    inside: str = arg("", "start each student's process by this command, such as docker run (tutorial/teachers.md)")


# ---- 1. what was handed in ----

def read_submissions(folder):
    """{student: ({file name: bytes}, [files that are not graded])} in order of names.

    Only .py files directly in a student's folder are read. What else looks like an exercise, misspelt, without its
    number or in a folder inside, is named, so that a slip is seen and not paid for in silence.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it holds one folder for each student")
    found = {}
    for student in sorted(folder.iterdir()):
        if student.is_dir() and not student.name.startswith((".", "__")):        # .git, __MACOSX
            # A link could point at another student's file, so it counts as missing.
            files = [path for path in sorted(student.glob("*.py")) if path.is_file() and not path.is_symlink()]
            graded = {path for path in files if HARNESS.NAME.match(path.name)}
            others = [path.relative_to(student).as_posix() for path in sorted(student.rglob("*"))
                      if path.suffix in (".py", ".ipynb") and path not in graded]
            others = [name for name in others if not name.startswith((".", "__"))]
            found[student.name] = ({path.name: path.read_bytes() for path in files}, others)
    if not found:
        raise UserError(f"{folder}: holds no folders; give each student a folder with exNN_name.py files")
    return found


# ---- 2. one student ----

def run_tests(student, seed="0", tests=(EXERCISES,), exercises=(), isolate=None, inside=""):
    """Run exercise tests on a file or folder; returns the entries of results.json, one for each test.

    tests: files or folders of tests. exercises: their markers, none for all. isolate: (seconds, megabytes) for each
    test in a process of its own, started by the command `inside` if there is one; None runs the student's code in this
    very process. UserError if the tests cannot run.
    """
    points = []
    keep = SimpleNamespace(pytest_unconfigure=lambda config: points.extend(config.points))
    argv = ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "--noconftest", "--tb=no", "-p", "no:cacheprovider",
            "-p", "no:unraisableexception",                     # it collects garbage for longer than the tests take
            "--student", student, "--seed", seed, "--results", os.devnull, *tests]
    if exercises:
        argv += ["-m", " or ".join(exercises)]
    if isolate:
        argv += ["--isolate", *isolate] + ["--inside", inside] * bool(inside)
    with contextlib.redirect_stdout(io.StringIO()) as text:
        status = pytest.main([str(word) for word in argv], plugins=[HARNESS, keep])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise UserError(f"the tests could not be run (pytest status {int(status)}): {text.getvalue().strip()[-1000:]}")
    return points


def check_processes(settings):
    """Call a function that cannot fail. If it does, nobody's points should pay for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / "ready.py"
        path.write_text("def ready():\n    pass\n", encoding="utf-8")
        try:
            # 120 s include the import of torch and the start of a container
            with isolated.opened(path, 120, settings.memory_mb, shlex.split(settings.inside)) as functions:
                functions.ready()
        except (AssertionError, ValueError) as error:
            raise UserError(f"no submission can be run here: {error}; try a larger --memory-mb") from error


def grade(files, settings):
    """The points of one student, whose files are a dict of names and bytes."""
    with tempfile.TemporaryDirectory(prefix="grade-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        tests = [EXERCISES] + ([settings.private_tests] if settings.private_tests else [])
        return run_tests(Path(folder).resolve(), settings.seed, tests, settings.exercises,
                         (settings.timeout, settings.memory_mb), settings.inside)


# ---- 3. the table ----

def notes(entries, files, others):
    """What a person should look at: files that nobody graded, exercises handed in twice, loops and crashes."""
    found = [f"not graded: {', '.join(others)}"] * bool(others)
    numbers = [HARNESS.NAME.match(name)[1] for name in sorted(files) if HARNESS.NAME.match(name)]
    found += [f"twice: {number}" for number in dict.fromkeys(numbers) if numbers.count(number) > 1]
    for word, sign in ("endless", "an endless loop?"), ("crash", "the process ended"), ("exit", "SystemExit"):
        tags = dict.fromkeys(entry["tags"][0] for entry in entries if sign in entry["output"])
        found += [f"{word}: {' '.join(tags)}"] * bool(tags)
    return "; ".join(found)


def table(points, submissions):
    """{student: points}, {student: (files, others)} -> rows of grades.csv, heading first."""
    names = list(HARNESS.totals(next(iter(points.values()))))
    rows = [["student", "score", "max_score", *names, "missing", "notes"]]
    for student, entries in points.items():
        by_exercise, (files, others) = HARNESS.totals(entries), submissions[student]
        score, most = (sum(column) for column in zip(*by_exercise.values()))
        missing = [name for name in names if not any(file.startswith(f"{name}_") for file in files)]
        rows.append([student, score, most, *(own for own, _ in by_exercise.values()), " ".join(missing),
                     notes(entries, files, others)])
    return rows


def write(points, rows, settings):
    for student, entries in points.items():
        storage.write_json(settings.out.with_suffix("") / student / "results.json", HARNESS.FORMATS[settings.format](entries))
    temporary = Path(f"{settings.out}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    os.replace(temporary, settings.out)


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    if settings.out.suffix != ".csv":
        raise UserError(f"--out {settings.out}: must end in .csv; the other results go to a folder without")
    known = {path.stem.split("_")[1] for path in EXERCISES.glob("test_ex*.py")}
    if unknown := [name for name in settings.exercises if name not in known]:
        raise UserError(f"--exercises {unknown[0]}: there is none; choose from {' '.join(sorted(known))}")
    if settings.private_tests and not list(settings.private_tests.glob("test_*.py")):
        raise UserError(f"--private-tests {settings.private_tests}: holds no test_*.py")
    submissions = read_submissions(settings.submissions)
    if settings.out.resolve().is_relative_to(settings.submissions.resolve()):
        raise UserError(f"--out {settings.out}: lies among the submissions, and would be graded next time; put it elsewhere")
    settings.out.parent.mkdir(parents=True, exist_ok=True)      # fails now, not after minutes of work
    check_processes(settings)
    points = {}
    for student in tqdm(submissions, desc="grading", unit="student", disable=None):
        points[student] = grade(submissions[student][0], settings)
    rows = table(points, submissions)
    write(points, rows, settings)
    for student, score, most, *_, missing, note in rows[1:]:
        print(f"{student:<24} {score:>4} of {most}" + f"   missing: {missing}" * bool(missing) + f"   {note}" * bool(note))
    print(f"{settings.out}: {len(points)} students; {settings.out.with_suffix('')}/STUDENT/results.json")


if __name__ == "__main__":
    script.run(main)
