"""Peak memory while files of 1,000 to 100,000 rows go through the stages that stream.

    python -m pytest -q tests/test_load.py -m load           writes results/load.json; not part of the default suite

Rows are made up of 60 distinct answers, so that parser, encoder and tokenizer are not what takes the time; memory is what
is measured. 100,000 rows share 1,000 small pictures.
"""
import json
import os
import platform
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from amp_min.support import storage

ROOT = Path(__file__).parent.parent
SIZES = (1_000, 10_000, 100_000)

# Each runs in a process of its own: argv is rows, output, model folder.
CODE = {
    "reader and writer": """
from amp_min import records
with storage.Writer(out, {}, [rows]) as file:
    for row in records.read(rows, "candidate"):
        file.write(row)
""",
    "verify": """
import verify
verify.main(["--candidates", rows, "--encoder", f"{models}/clip", "--out", out])
""",
    "training reader": """
import torch, train
from amp_min import mllm, packing, preferences, prompt
torch.set_num_threads(1)
encode, known = prompt.encode, {}        # tokenizing is not what is measured: each distinct text once
prompt.encode = lambda m, *texts: known.get(repr(texts)) or known.setdefault(repr(texts), encode(m, *texts))
settings = train.Settings(model=f"{models}/llava-2b", preferences=rows, out=out)
m = mllm.load(settings.model)
sets = preferences.read(m, settings).sets
lengths = [packing.length(tokens) for tokens in sets]
for chosen in packing.batches(lengths, 16, seed="0 0")[:200]:
    packing.pack([sets[i] for i in chosen], 0)
""",
}
MEASURE = """
import sys, time
from amp_min.bench import measure
rows, out, models = sys.argv[1:]
{code}
print(measure.resident("VmHWM"), time.process_time())         # not ru_maxrss, which begins with the parent's
"""


def write_rows(path, n):
    rng = random.Random(0)
    answers = [f"There is a {size} {color} {kind} {place}." for size in ("small", "large") for color in ("red", "blue", "green")
               for kind in ("car", "dog", "tree", "cup", "boat") for place in ("on the left", "at the top")]
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n):
            responses = [{"source": source, "answers": [" ".join(rng.sample(answers, 1))]} for source in ("standard", "large", "small")]
            file.write(json.dumps({"id": f"row-{i:06d}", "image": f"images/{i % 1000:06d}.png",
                                   "questions": ["Describe the image in detail."], "responses": responses}) + "\n")


@pytest.mark.load
def test_memory_stays_flat(family, tmp_path):
    found = {}
    (tmp_path / "images").mkdir()
    for i in range(1000):
        Image.new("RGB", (8, 8), (i % 256, 0, 0)).save(tmp_path / f"images/{i:06d}.png")
    for name, code in CODE.items():
        found[name] = []
        for n in SIZES:
            path, out = tmp_path / f"{n}.jsonl", tmp_path / "out.jsonl"
            if not path.exists():
                write_rows(path, n)
            done = subprocess.run([sys.executable, "-c", MEASURE.format(code=code), str(path), str(out), str(family)], cwd=ROOT,
                                  capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
            assert done.returncode == 0, done.stderr
            peak, seconds = map(float, done.stdout.split()[-2:])
            found[name].append({"rows": n, "peak_mb": round(peak, 1), "seconds": round(seconds, 1)})
            print(name, found[name][-1], flush=True)
    storage.write_json(ROOT / "results/load.json", {
        "peaks": found, "note": "peak resident memory of the whole process, imports and model included; "
                                 "rows of 60 distinct answers; seconds are CPU seconds",
        "versions": storage.versions(), "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread"})
    for name, peaks in found.items():            # the stages keep an id and a place of each row, training all of its tokens
        growth = 2**20 * (peaks[-1]["peak_mb"] - peaks[0]["peak_mb"]) / (SIZES[-1] - SIZES[0])
        assert growth < (5_000 if name == "training reader" else 800), f"{name}: {growth:.0f} bytes a row"
