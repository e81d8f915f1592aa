"""What the exercise tests share: whose file is tested, the seed, points, and the table at the end.

    pytest tests/exercises -m ex06 --student my/ex06_smoothed_dpo.py       one exercise
    pytest tests/exercises --student my/                                   all of a folder

`pytest tests` passes this folder by: there is nobody's work to test, and these tests never fall back on a solution.
tests/test_exercises.py runs them on the stubs, the solutions and the wrong solutions.

A test gets the student's module as `student`, random inputs from `randn` and `rng`, has an exercise marker (ex06) and
a points marker, and compares with `compare.same`. tutorial.grading loads this very file as a plugin.
"""
import datetime
import hashlib
import json
import os
import random
import re
import shlex
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tutorial.grading import isolated

HERE = Path(__file__).parent.resolve()
NAME = re.compile(r"(ex\d\d[a-z]?)_")                                   # what a student's file must begin with
torch.set_num_threads(1)


# ---- the command line ----

def pytest_addoption(parser):
    group = parser.getgroup("exercises")
    group.addoption("--student", type=Path, help="the file, or the folder of exNN_*.py files, to test")
    group.addoption("--seed", default="0", help="mixed into every random input: another seed, other inputs")
    group.addoption("--results", type=Path, help="the points; without it points.json beside the student's files")
    group.addoption("--format", choices=FORMATS, default="gradescope", help="of the points")
    group.addoption("--time-limit", type=float, default=20, help="seconds for each test; they need well under one")
    group.addoption("--isolate", nargs=2, type=float, metavar=("SECONDS", "MEGABYTES"),
                    help="run the student's code in a process of its own with these limits for each test")
    group.addoption("--inside", type=shlex.split, metavar="COMMAND",
                    help="start that process by a command, such as docker run; {file}, {folder}, {seconds}, {megabytes}")


def pytest_configure(config):
    config.points = []
    if not asked_for(config):
        return
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"                                # the message says it; your own code you know
    student = config.getoption("student")
    if student is None:
        raise pytest.UsageError("tests/exercises needs --student PATH: the file or the folder to test")
    if not student.exists():
        raise pytest.UsageError(f"--student {student}: no such file or folder")
    if student.is_file() and not NAME.match(student.name):
        raise pytest.UsageError(f"--student {student}: the name must begin with the exercise, such as ex06_")


def asked_for(config):
    """Does the command name this folder or something in it? `pytest tests` does not."""
    paths = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]
    return any(HERE in (path, *path.parents) for path in paths)


def pytest_ignore_collect(config):
    return None if asked_for(config) else True


def pytest_collection_modifyitems(config, items):
    """With a file as --student, only its own exercise is tested."""
    if asked_for(config) and config.getoption("student").is_file():
        own = config.getoption("student").name.split("_")[0]
        config.hook.pytest_deselected(items=[item for item in items if exercise(item) != own])
        items[:] = [item for item in items if exercise(item) == own]


# ---- what a test gets ----

def exercise(item):
    """"ex06", from the marker."""
    return next(mark.name for mark in item.iter_markers() if re.fullmatch(r"ex\d\d[a-z]?", mark.name))


@pytest.fixture
def student(request):
    """The student's module, loaded anew for every test."""
    path, name = request.config.getoption("student").resolve(), exercise(request.node)
    if path.is_dir():
        found = sorted(path.glob(f"{name}_*.py"))
        if len(found) != 1:
            pytest.fail(f"{len(found) or 'no'} file{'s' * (len(found) > 1)} {name}_*.py", pytrace=False)
        path = found[0]
    if request.config.getoption("isolate"):
        with isolated.opened(path, *request.config.getoption("isolate"), request.config.getoption("inside")) as functions:
            yield functions
    else:
        with alarm(request.config.getoption("time_limit")):
            yield isolated.load(path)


@contextmanager
def alarm(seconds):
    """End an endless loop of the student's own run with a failed test. (Windows has no alarm: there it is Ctrl-C.)"""
    def ring(*_):
        pytest.fail(f"no answer within {seconds:g} s: an endless loop?", pytrace=False)

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def rng(request):
    """Python's random, from --seed and the test's name: the same inputs every time, others with another seed."""
    text = f"{request.config.getoption('seed')} {exercise(request.node)} {request.node.name}"
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


@pytest.fixture
def randn(rng):
    """randn(2, 3) -> normal random numbers in float64."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


# ---- points ----

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    failed_before = call.when == "setup" and not report.passed
    if call.when == "call" or failed_before:
        worth = item.get_closest_marker("points").args[0]
        hidden = HERE not in item.path.parents
        why = "" if report.passed else "hidden test" if hidden else message(call)
        item.config.points.append({
            "name": f"{exercise(item)} {item.name}",
            "score": worth if report.passed else 0, "max_score": worth,
            "status": "passed" if report.passed else "failed", "output": why,
            "tags": [exercise(item)], "visibility": "hidden" if hidden else "visible"})
    return report


def message(call):
    """What went wrong, without paths and traceback: the same text on every machine."""
    if isinstance(call.excinfo.value, NotImplementedError):
        return "not written yet"
    text = str(call.excinfo.value).encode("utf-8", "replace").decode()      # half a surrogate pair cannot be written
    plain = call.excinfo.errisinstance((AssertionError, pytest.fail.Exception))
    return text if plain else f"{call.excinfo.typename}: {text}"


def totals(points):
    """{"ex06": (score, max_score)}, in order."""
    found = {}
    for entry in points:
        score, most = found.get(entry["tags"][0], (0, 0))
        found[entry["tags"][0]] = (score + entry["score"], most + entry["max_score"])
    return found


def gradescope(points):
    """https://gradescope-autograders.readthedocs.io/en/latest/specs/#output-format"""
    return {"score": sum(entry["score"] for entry in points), "tests": points}


def classroom50(points):
    """github.com/foundation50/classroom50/wiki/Advanced-Autograding; its runner says by its environment who and when."""
    names = {"classroom": "CLASSROOM", "assignment": "ASSIGNMENT", "submission": "SUBMISSION_TAG",
             "commit": "COMMIT_URL", "release": "RELEASE_URL", "review": "REVIEW_URL"}
    said = {key: os.environ.get(name, "unknown") for key, name in names.items()}
    said["review"] = os.environ.get("REVIEW_URL") or said["commit"]                 # not every course has reviews
    tests = [{"test-name": entry["name"], "passed": entry["status"] == "passed", "score": entry["score"],
              "max-score": entry["max_score"]} for entry in points]
    return {"schema": "classroom50/result/v1", **said,
            "datetime": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "score": sum(test["score"] for test in tests), "max-score": sum(test["max-score"] for test in tests),
            "tests": tests}


FORMATS = {"gradescope": gradescope, "classroom50": classroom50}


def results_path(config):
    """A file of the student's own: results.json of the root is what amp_min.evaluate writes in the README."""
    student = config.getoption("student")
    return config.getoption("results") or (student if student.is_dir() else student.parent) / "points.json"


def pytest_terminal_summary(terminalreporter, config):
    if not config.points:
        return
    terminalreporter.section("points")
    for name, (score, most) in totals(config.points).items():
        terminalreporter.write_line(f"{name:<6} {score:>4} of {most:>3}  {'#' * score}{'.' * (most - score)}")
    most = sum(entry["max_score"] for entry in config.points)
    score = sum(entry["score"] for entry in config.points)
    terminalreporter.write_line(f"{'sum':<6} {score:>4} of {most:>3}  each test: {results_path(config)}")


def pytest_sessionfinish(session):
    if session.config.points:
        form = FORMATS[session.config.getoption("format")]
        text = json.dumps(form(session.config.points), indent=1) + "\n"
        results_path(session.config).write_text(text, encoding="utf-8")
