"""`make demo`'s command as a process, with models that know nothing: every stage, the results file, the page."""

import json
import subprocess
import sys
from pathlib import Path

from amp_min import demo, report

ROOT = Path(__file__).parent.parent


def test_demo_runs_every_stage_and_does_none_twice(tmp_path):
    command = [sys.executable, "-m", "amp_min.demo", "--preset", "tiny", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))
    assert list(found["models"]) == sorted(demo.MODELS)
    for metrics in found["models"].values():
        assert {key for section in report.METRICS.values() for key, _, _ in section} <= metrics.keys()
    assert {"agreement_initial", "agreement_autocheck", "inconsistency_rate"} <= found["autocheck"].keys()
    assert found["seconds"].keys() == {"world", "clip", "llava", "generate", "join", "verify", "train", "evaluate", "report", "total"}
    assert demo.table(found).splitlines()[2] in done.stdout
    assert "data:image/png;base64," in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "$ python" not in again.stdout
