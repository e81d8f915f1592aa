"""The house: what lies flat is the method, arrows point one way, and lines can be read on one screen."""
import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "amp_min").rglob("*.py"))
SCRIPTS = [ROOT / name for name in ("train.py", "generate.py", "verify.py")]
METHOD = {path.stem for path in (ROOT / "amp_min").glob("*.py")} - {"__init__", "demo"}
FOLDERS = {path.parent.name for path in (ROOT / "amp_min").glob("*/__init__.py")} - {"support"}


def imported(path):
    """The modules of this project that a file imports, as names below amp_min: "losses", "world.oracle"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("amp_min.") for name in found if name.startswith(("amp_min.", "tests", "tutorial", "train", "generate", "verify"))}


def test_the_method_lies_flat():
    assert len(METHOD | {"demo"}) <= 13


def test_nothing_in_the_method_points_to_a_folder():
    method = [path for path in PACKAGE if path.parent.name in ("amp_min", "support") and path.stem != "demo"]
    for path in method + SCRIPTS:
        assert not {name for name in imported(path) if name.split(".")[0] in FOLDERS}, path


def test_the_package_knows_neither_scripts_nor_tests():
    for path in PACKAGE:
        assert not {name for name in imported(path) if name.split(".")[0] in ("tests", "tutorial", "train", "generate", "verify")}, path


def test_drawing_trains_nothing():
    for path in (ROOT / "amp_min/report").glob("*.py"):
        assert not {name for name in imported(path) if name.startswith(("pretrain", "experiments"))}, path
        assert "torch.optim" not in path.read_text(encoding="utf-8")


def test_lines_fit_a_screen():
    """110 columns, but for one line in fifty: an error message, a table row."""
    lines = [line for path in PACKAGE + SCRIPTS for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(len(line) > 110 for line in lines) <= 0.02 * len(lines)


def test_the_linter_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "-q", "amp_min", "tests", "tutorial", *map(str, SCRIPTS)],
                          cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
