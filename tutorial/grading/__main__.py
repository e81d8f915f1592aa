"""Grade a folder of submissions: every exercise test on every student's files, one table for all.

    python -m tutorial.grading submissions --seed SECRET --out grades.csv

submissions/ holds one folder for each student with the files exNN_name.py directly inside; a file that is missing
costs its own points. Written are grades.csv, one line a student, and grades/STUDENT/results.json in Gradescope's
format. The same seed and files give the same bytes.

Every test runs the student's code in a fresh process with a limit on time and memory, see tutorial/grading/isolated.py; what is
judged here are the values that come back. So sys.exit, a printed table, a patched pytest or a results.json of the
student's own change nothing. All submissions are read before the first line of a student's code runs, and all results
are written after the last. What this does not defend against is in tutorial/teachers.md.
"""
import contextlib
import csv
import io
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from amp_min.support import script, storage
from amp_min.support.script import UserError
from tutorial.grading import isolated

ROOT = Path(__file__).resolve().parents[2]
EXERCISES = ROOT / "tests/exercises"


@dataclass
class Settings:
    submissions: Path = field(metadata={"positional": True, "help": "folder with one folder for each student"})
    seed: str = field(metadata={"help": "any text, known to you alone: mixed into all random inputs of the tests"})
    out: Path = field(metadata={"help": "the table (CSV); the results.json files go to a folder of the same name"})
    exercises: list[str] = field(default_factory=list, metadata={"help": "grade only these, such as ex03 ex03b"})
    private_tests: Path | None = field(default=None, metadata={"help": "folder with more test_*.py, shown to nobody"})
    timeout: float = field(default=20, metadata={"help": "seconds for each test; they need well under one", "above": 0})
    memory_mb: float = field(default=2000, metadata={"help": "megabytes for each test, above what torch itself takes", "above": 0})


# ---- 1. what was handed in ----

def read_submissions(folder):
    """{student: {file name: bytes}} in order of names. Only .py files directly in a student's folder are read."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it holds one folder for each student")
    found = {}
    for student in sorted(folder.iterdir()):
        if student.is_dir() and not student.name.startswith((".", "__")):        # .git, __MACOSX
            # A link could point at another student's file, so it counts as missing.
            files = [path for path in sorted(student.glob("*.py")) if path.is_file() and not path.is_symlink()]
            found[student.name] = {path.name: path.read_bytes() for path in files}
    if not found:
        raise UserError(f"{folder}: holds no folders; give each student a folder with exNN_name.py files")
    return found


# ---- 2. one student ----

def run_tests(student, seed="0", tests=(EXERCISES,), exercises=(), isolate=None):
    """Run exercise tests on a file or folder; returns the entries of results.json, one for each test.

    tests: files or folders of tests. exercises: their markers, none for all. isolate: (seconds, megabytes) for each
    test in a process of its own; None runs the student's code in this very process. UserError if the tests cannot run.
    """
    points = []
    harness = isolated.load(EXERCISES / "conftest.py")          # as a plugin it serves private tests as well
    keep = SimpleNamespace(pytest_unconfigure=lambda config: points.extend(config.points))
    argv = ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "--noconftest", "--tb=no", "-p", "no:cacheprovider",
            "-p", "no:unraisableexception",                     # it collects garbage for longer than the tests take
            "--student", student, "--seed", seed, "--results", os.devnull, *tests]
    if exercises:
        argv += ["-m", " or ".join(exercises)]
    if isolate:
        argv += ["--isolate", *isolate]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        status = pytest.main([str(word) for word in argv], plugins=[harness, keep])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise UserError(f"the tests could not be run (pytest status {int(status)}): {text.getvalue().strip()[-1000:]}")
    return points


def check_processes(settings):
    """Call a function that cannot fail. If it does, nobody's points should pay for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / "ready.py"
        path.write_text("def ready():\n    pass\n", encoding="utf-8")
        try:
            with isolated.opened(path, 120, settings.memory_mb) as functions:        # includes the import of torch
                functions.ready()
        except (AssertionError, ValueError) as error:
            raise UserError(f"no submission can be run here: {error}; try a larger --memory-mb") from error


def grade(files, settings):
    """The points of one student, whose files are a dict of names and bytes."""
    with tempfile.TemporaryDirectory(prefix="grade-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        tests = [EXERCISES] + ([settings.private_tests] if settings.private_tests else [])
        return run_tests(Path(folder), settings.seed, tests, settings.exercises, (settings.timeout, settings.memory_mb))


# ---- 3. the table ----

def table(points, files):
    """{student: points}, {student: files} -> rows of grades.csv, heading first."""
    totals = isolated.load(EXERCISES / "conftest.py").totals
    names = list(totals(next(iter(points.values()))))
    rows = [["student", "score", "max_score", *names, "missing"]]
    for student, entries in points.items():
        by_exercise = totals(entries)
        score, most = (sum(column) for column in zip(*by_exercise.values()))
        missing = [name for name in names if not any(file.startswith(f"{name}_") for file in files[student])]
        rows.append([student, score, most, *(own for own, _ in by_exercise.values()), " ".join(missing)])
    return rows


def write(points, files, out):
    for student, entries in points.items():
        storage.write_json(out.with_suffix("") / student / "results.json",
                           {"score": sum(entry["score"] for entry in entries), "tests": entries})
    temporary = Path(f"{out}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table(points, files))
    os.replace(temporary, out)


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    if settings.out.suffix != ".csv":
        raise UserError(f"--out {settings.out}: must end in .csv; the other results go to a folder without")
    known = {path.stem.split("_")[1] for path in EXERCISES.glob("test_ex*.py")}
    if unknown := [name for name in settings.exercises if name not in known]:
        raise UserError(f"--exercises {unknown[0]}: there is none; choose from {' '.join(sorted(known))}")
    if settings.private_tests and not list(settings.private_tests.glob("test_*.py")):
        raise UserError(f"--private-tests {settings.private_tests}: holds no test_*.py")
    files = read_submissions(settings.submissions)
    if settings.out.resolve().is_relative_to(settings.submissions.resolve()):
        raise UserError(f"--out {settings.out}: lies among the submissions, and would be graded next time; put it elsewhere")
    settings.out.parent.mkdir(parents=True, exist_ok=True)      # fails now, not after minutes of work
    check_processes(settings)
    points = {}
    for student in tqdm(files, desc="grading", unit="student", disable=None):
        points[student] = grade(files[student], settings)
    write(points, files, settings.out)
    for row in table(points, files)[1:]:
        print(f"{row[0]:<24} {row[1]:>4} of {row[2]}" + (f"   missing: {row[-1]}" if row[-1] else ""))
    print(f"{settings.out}: {len(points)} students; {settings.out.with_suffix('')}/STUDENT/results.json")


if __name__ == "__main__":
    script.run(main)
