"""`make demo`'s command as a process, with models that know nothing: every stage, the results file, the page."""

import json
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

from amp_min import demo
from amp_min.metrics import NAMES

ROOT = Path(__file__).parent.parent


def test_demo_runs_every_stage_and_does_none_twice(tiny_run):
    folder, printed = tiny_run
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert list(found["models"]) == sorted(demo.MODELS)
    for metrics in found["models"].values():
        assert set(NAMES) <= metrics.keys() and {"claims_by_kind_greedy", "claims_by_kind_sampled"} <= metrics.keys()
    assert {"agreement_initial", "agreement_autocheck", "inconsistency_rate"} <= found["autocheck"].keys()
    assert found["seconds"].keys() == {"world", "clip", "llava", "generate", "join", "verify", "train, evaluate", "report", "total"}
    assert demo.table(found).splitlines()[2] in printed
    assert "data:image/png;base64," in (folder / "report.html").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "amp_min.demo", "--preset", "tiny", "--out", str(folder)]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "$ python" not in again.stdout


def test_a_figure_that_some_model_lacks_is_no_row_of_the_table():
    models = {name: {"chair_i_greedy": 0.25, "coverage_greedy": 0.5} for name in demo.MODELS}
    del models["dpo"]["coverage_greedy"]
    autocheck = dict.fromkeys(("agreement_initial", "agreement_autocheck", "inconsistency_initial", "inconsistency_rate"), 0.5)
    table = demo.table({"models": models, "autocheck": autocheck})
    assert table.count("0.250") == 4 and "coverage" not in table


class Pool:
    """Stands for the workers: notes each command, and breaks off at the ones that it is told to."""

    def __init__(self, *breaking):
        self.asked, self.breaking = [], breaking

    def submit(self, _, chain, threads):
        self.asked.append(" && ".join(" ".join([module, *argv]) for module, argv in chain))
        job = Future()
        if self.asked[-1].startswith(self.breaking):
            job.set_exception(KeyboardInterrupt())
        else:
            job.set_result(None)
        return job


def test_what_was_begun_goes_on_and_what_was_built_on_a_change_is_made_anew(tmp_path):
    stages = {"llava": ["a --steps 1", "b --steps 1"], "generate": ["g"], "train, evaluate": ["t && e"], "report": ["amp_min.report"]}

    def run(stages, *breaking):
        pool = Pool(*breaking)
        again = demo.Run(tmp_path, pool)
        try:
            for stage, commands in stages.items():
                again(stage, *commands)
        except KeyboardInterrupt:
            pass
        return pool.asked
    assert run(stages, "b") == ["a --steps 1", "b --steps 1"]
    assert run(stages, "g") == ["b --steps 1 --resume", "g"]
    assert run(stages, "t") == ["g --resume", "t && e"]
    assert run(stages, "amp_min.report") == ["t --resume && e --resume", "amp_min.report"]
    assert run(stages) == ["amp_min.report"] and run(stages) == []
    assert run(stages | {"llava": ["a --steps 1", "b --steps 2"]}) == ["b --steps 2", "g", "t && e", "amp_min.report"]
