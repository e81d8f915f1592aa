"""`make demo`'s command as a process, with models that know nothing: every stage, the results file, the page."""

import json
import subprocess
import sys
from pathlib import Path

from amp_min import demo, report

ROOT = Path(__file__).parent.parent


def test_demo_runs_every_stage_and_does_none_twice(tiny_run):
    folder, printed = tiny_run
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert list(found["models"]) == sorted(demo.MODELS)
    for metrics in found["models"].values():
        assert {key for section in report.METRICS.values() for key, _, _ in section} <= metrics.keys()
    assert {"agreement_initial", "agreement_autocheck", "inconsistency_rate"} <= found["autocheck"].keys()
    assert found["seconds"].keys() == {"world", "clip", "llava", "generate", "join", "verify", "train", "evaluate", "report", "total"}
    assert demo.table(found).splitlines()[2] in printed
    assert "data:image/png;base64," in (folder / "report.html").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "amp_min.demo", "--preset", "tiny", "--out", str(folder)]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "$ python" not in again.stdout
