"""What the tests share: one tiny world, one tiny family of models, made once for the whole run.

One thread, so that sums are added in one order everywhere, and no hub: nothing here may depend on a network.
Fixtures import what they need themselves: transformers takes seconds, and tests/exercises does without.
"""
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))                            # the scripts of the root are modules of no package
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")       # before the first import of transformers

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_itemcollected(item):
    """With two processes (make test), a file's tests stay together, and so do those that share the tiny run."""
    if not item.config.pluginmanager.hasplugin("xdist"):        # nobody knows the mark then
        return
    together = "tiny_run" if "tiny_run" in getattr(item, "fixturenames", ()) else item.path.stem
    item.add_marker(pytest.mark.xdist_group(together))


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory):
    """A folder of amp_min.world with a few scenes of everything. Read only."""
    from amp_min.world import __main__ as world
    out = tmp_path_factory.mktemp("world")
    world.main(["--out", str(out), "--train", "24", "--closeups", "12", "--finetune", "8", "--preference", "10",
                "--captions", "6", "--dialogues", "12"])
    return out


@pytest.fixture(scope="session")
def family(tiny_world, tmp_path_factory):
    """A folder with clip/, llava-2b/ and llava-7b/, trained until they speak in sentences, if wrong ones. Read only."""
    from amp_min.pretrain import __main__ as pretrain
    out = tmp_path_factory.mktemp("family")
    pretrain.main(["--world", str(tiny_world), "--out", str(out), "--clip-steps", "2", "--steps", "25", "--careless-steps", "5", "--batch", "8",
                   "--family", "llava-2b", "llava-7b"])
    return out


@pytest.fixture(scope="session")
def small_model(family):
    from amp_min import mllm
    return mllm.load(family / "llava-2b")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """(folder of a finished `make demo` with models that know nothing, what it printed); by its command, as a process."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    command = [sys.executable, "-m", "amp_min.demo", "--preset", "tiny", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout
