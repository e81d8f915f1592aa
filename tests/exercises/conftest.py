"""What the exercise tests share: whose file is tested, the seed, points, the table at the end and results.json.

    pytest tests/exercises -m ex06 --student my/ex06_smoothed_dpo.py       one exercise
    pytest tests/exercises --student my/                                   all of a folder

`pytest tests` passes this folder by: there is nobody's work to test, and these tests never fall back on a solution.
tests/test_exercises.py runs them on the stubs, the solutions and the wrong solutions.

A test gets the student's module as `student`, random inputs from `randn` and `rng`, has an exercise marker (ex06) and
a points marker, and compares with `compare.same`. tutorial.grading loads this very file as a plugin.
"""
import hashlib
import json
import random
import re
from pathlib import Path

import pytest
import torch

from tutorial.grading import isolated

HERE = Path(__file__).parent.resolve()
torch.set_num_threads(1)


# ---- the command line ----

def pytest_addoption(parser):
    group = parser.getgroup("exercises")
    group.addoption("--student", type=Path, help="the file, or the folder of exNN_*.py files, to test")
    group.addoption("--seed", default="0", help="mixed into every random input: another seed, other inputs")
    group.addoption("--results", type=Path, default="results.json", help="the points, in Gradescope's format")
    group.addoption("--isolate", nargs=2, type=float, metavar=("SECONDS", "MEGABYTES"),
                    help="run the student's code in a process of its own with these limits for each test")


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
    if student.is_file() and not re.match(r"ex\d\d[a-z]?_", student.name):
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
        with isolated.opened(path, *request.config.getoption("isolate")) as functions:
            yield functions
    else:
        yield isolated.load(path)


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


def results(points):
    """Gradescope's format: https://gradescope-autograders.readthedocs.io/en/latest/specs/#output-format"""
    return {"score": sum(entry["score"] for entry in points), "tests": points}


def pytest_terminal_summary(terminalreporter, config):
    if not config.points:
        return
    terminalreporter.section("points")
    for name, (score, most) in totals(config.points).items():
        terminalreporter.write_line(f"{name:<6} {score:>4} of {most:>3}  {'#' * score}{'.' * (most - score)}")
    most = sum(entry["max_score"] for entry in config.points)
    score = results(config.points)["score"]
    terminalreporter.write_line(f"{'sum':<6} {score:>4} of {most:>3}  each test: {config.getoption('results')}")


def pytest_sessionfinish(session):
    if session.config.points:
        text = json.dumps(results(session.config.points), indent=1) + "\n"
        session.config.getoption("results").write_text(text, encoding="utf-8")
