"""Does a model hallucinate?  POPE, CHAIR and MRHal on a benchmark folder.

    python -m amp_min.evaluate --model M/mdpo --data runs/demo/world/eval --out results.json

A benchmark folder holds any of
  captions.jsonl   prompt rows; CHAIR and coverage of the descriptions, once greedy and once sampled at temperature 1:
                   greedy shows the most likely answer, sampling shows what the model holds possible
  pope.jsonl       yes/no questions with "label" and "split" (random, popular, adversarial)
  mrhal.jsonl      dialogues of 2-5 rounds, answered round by round on the model's own answers
Rows of the picture world carry their "scene", and an exact oracle judges them.  For rows without one, CHAIR is left
out, and the answers to the dialogues are written as requests for an external judge (amp_min/evaluate/judge.py).

Every answer is written beside the results as soon as it is there, with what is counted in it, and the results are
computed from that file alone.  --resume goes on behind its last row.  <out>.answers.jsonl:
{"id": "eval-000000", "benchmark": "captions_greedy", "decoding": "greedy", "answers": ["The image shows …"], "mentioned": ["car", "tree"], "present": ["tree"]}
{"id": "eval-000000-random-car", "benchmark": "pope", "decoding": "greedy", "answers": ["Yes, …"], "label": "no", "split": "random"}
{"id": "eval-000000", "benchmark": "mrhal", "decoding": "greedy", "answers": ["Yes, …", "It is red."], "ratings": [2, 6], "aspects": ["existence", "attribute"]}

The released code decodes everything with 4 beams; here POPE and MRHal are greedy, as POPE itself does it.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from amp_min import metrics, mllm, records
from amp_min.decoding import converse
from amp_min.evaluate import judge
from amp_min.support import hub, script, storage
from amp_min.support.pictures import image_path, open_image
from amp_min.support.script import UserError
from amp_min.world import oracle


@dataclass
class Settings:
    model: str = field(metadata={"help": "folder or hub id"})
    data: str = field(metadata={"help": "benchmark folder"})
    out: str = field(metadata={"help": "results to write (JSON)"})
    image_root: str | None = field(default=None, metadata={"help": "folder of the pictures, when it is not --data"})
    max_new_tokens: int = field(default=128, metadata={"help": "longest answer", "min": 1})
    batch: int = field(default=256, metadata={"help": "questions answered together", "min": 1})
    limit: int = field(default=0, metadata={"help": "use only the first N rows of each file; 0 uses all", "min": 0})
    dtype: Literal["auto", "bf16", "fp32"] = field(default="auto", metadata={"help": "auto: bf16 on a GPU that has it"})
    resume: bool = field(default=False, metadata={"help": "continue an interrupted run"})
    seed: int = field(default=0, metadata={"help": "for the sampled descriptions"})


DECODING = {"greedy": dict(do_sample=False),                 # sampled: the model's own distribution, nothing cut off
            "sampled": dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)}
# What is asked, in order: (benchmark, file, decoding, longest answer or None for --max-new-tokens).
ASKED = [("captions_greedy", "captions", "greedy", None), ("captions_sampled", "captions", "sampled", None),
         ("pope", "pope", "greedy", 32), ("mrhal", "mrhal", "greedy", None)]


# ---- 1. questions -----------------------------------------------------------------------------------------------

def read_benchmarks(settings):
    """{"captions" | "pope" | "mrhal": (path, rows)} for the files that the folder holds."""
    found = {}
    for name in ("captions", "pope", "mrhal"):
        path = Path(settings.data) / f"{name}.jsonl"
        if path.is_file():
            see = lambda row: open_image(image_path(row, path, settings.image_root))
            found[name] = path, list(records.read(path, "prompt", check=see))[:settings.limit or None]
    if not found:
        raise UserError(f"{settings.data}: holds none of captions.jsonl, pope.jsonl, mrhal.jsonl")
    for row in found["pope"][1] if "pope" in found else []:
        if row.get("label") not in ("yes", "no") or not isinstance(row.get("split"), str):
            raise UserError(f"{found['pope'][0]}: row {row['id']!r}: a POPE row needs a label (yes or no) and a split "
                            "(random, popular or adversarial)")
    return found


# ---- 2. answers -------------------------------------------------------------------------------------------------

def write_answers(benchmarks, settings, out):
    """Ask everything that is not in `out` yet, a block of --batch rows at a time."""
    m = None
    for benchmark, name, decoding, longest in ASKED:
        path, rows = benchmarks.get(name, (None, []))
        rows = sorted(rows, key=lambda row: row["image"]) if name == "pope" else rows    # see reply
        for start in range(0, len(rows), settings.batch):
            block = rows[start:start + settings.batch]
            if all((benchmark, row["id"]) in out.done for row in block):
                continue
            m = m or load_model(settings)
            # Seeded anew and answered whole even when part of it is done: neither what is drawn nor a batch's rounding
            # then depends on an interruption.
            torch.manual_seed(settings.seed + start)
            how = DECODING[decoding] | {"max_new_tokens": longest or settings.max_new_tokens}
            said = reply(m, path, block, how, settings, f"{benchmark} {start + 1}-{start + len(block)} of {len(rows)}")
            for row, texts in zip(block, said):
                if (benchmark, row["id"]) not in out.done:
                    out.write({"id": row["id"], "benchmark": benchmark, "decoding": decoding, "answers": texts}
                              | counted(name, row, texts))


def load_model(settings):
    device = hub.choose_device()
    dtype, why = hub.choose_dtype(settings.dtype, device)
    print(f"{settings.model} on {device} in {dtype}: {why}")
    return mllm.load(settings.model, dtype, device)


def reply(m, path, rows, decoding, settings, desc):
    """The model's answers to all rounds of the rows: a list of answer lists.

    POPE's splits share their questions about what is there: each is asked once.
    """
    distinct = {(row["image"], *row["questions"]): row for row in rows}
    see = mllm.image_features(m, [image_path(row, path, settings.image_root) for row in distinct.values()])
    said, _ = converse(m, see, [row["questions"] for row in distinct.values()], decoding, settings.batch, desc)
    said = dict(zip(distinct, said))
    return [said[row["image"], *row["questions"]] for row in rows]


def counted(name, row, texts):
    """What the scores are made of, for one row: nothing where there is no scene to judge by."""
    if name == "pope":
        return {"label": row["label"], "split": row["split"]}
    scene = oracle.scene_of(row)
    if scene is None:
        return {}
    if name == "captions":
        return {"mentioned": sorted(oracle.mentioned(" ".join(texts))), "present": sorted(oracle.present(scene))}
    aspects = row.get("aspects")
    named = isinstance(aspects, list) and len(aspects) == len(texts) and all(isinstance(one, str) for one in aspects)
    return {"ratings": oracle.row_ratings(texts, row["answers"], scene), "aspects": aspects if named else None}


# ---- 3. scores --------------------------------------------------------------------------------------------------

def scores(said):
    """The metrics of answer rows, as written by write_answers; every subset of rows can be scored alike."""
    results = {}
    for name in ("greedy", "sampled"):
        if judged := [row for row in said if row["benchmark"] == f"captions_{name}" and "mentioned" in row]:
            chair = metrics.chair([row["mentioned"] for row in judged], [row["present"] for row in judged])
            results |= {f"{key}_{name}": value for key, value in chair.items()}
    if asked := [row for row in said if row["benchmark"] == "pope"]:
        pope = lambda rows: metrics.pope([row["answers"][0] for row in rows], [row["label"] for row in rows])
        for split in sorted({row["split"] for row in asked}):
            part = pope([row for row in asked if row["split"] == split])
            results |= {f"pope_{split}_f1": part["f1"], f"pope_{split}_accuracy": part["accuracy"]}
        whole = pope(asked)
        results |= {f"pope_{key}": whole[key] for key in ("accuracy", "f1", "yes_ratio")}
    if judged := [row for row in said if row["benchmark"] == "mrhal" and "ratings" in row]:
        results |= {f"mrhal_{key}": value for key, value in metrics.mrhal([row["ratings"] for row in judged]).items()}
        by_aspect = {}
        for row in judged:
            for aspect, rating in zip(row["aspects"] or [], row["ratings"]):
                by_aspect.setdefault(aspect, []).append(rating)
        results["mrhal_by_aspect"] = {aspect: sum(r) / len(r) for aspect, r in sorted(by_aspect.items())}
    return results


def ask_a_judge(rows, said, path):
    """Dialogues that the oracle cannot judge become requests to an external judge."""
    facts = {row["id"]: {"image_content": row["image_content"]} if "image_content" in row else {} for row in rows}
    rows = {row["id"]: (row["questions"], row["answers"]) for row in rows}
    unjudged = [{"id": one["id"], "round": t, "question": question, "reference": reference, "answer": text} | facts[one["id"]]
                for one in said if one["benchmark"] == "mrhal" and "ratings" not in one
                for t, (question, reference, text) in enumerate(zip(*rows[one["id"]], one["answers"]), start=1)]
    if unjudged:
        judge.write_requests(path, unjudged)
        print(f"{path}: {len(unjudged)} requests for a judge; python -m amp_min.evaluate.judge reads its replies")


def main(argv=None):
    settings, started = script.command_line(Settings, argv, __doc__), time.perf_counter()
    if Path(settings.out).is_dir():
        raise UserError(f"--out {settings.out}: is a folder; name a file to write")
    benchmarks, answers = read_benchmarks(settings), f"{settings.out}.answers.jsonl"
    inputs = [*(path for path, _ in benchmarks.values()), *storage.weights(settings.model)]
    key = lambda row: (row["benchmark"], row["id"])              # a scene is asked about more than once
    with storage.Writer(answers, vars(settings), inputs, settings.resume, key) as out:
        write_answers(benchmarks, settings, out)
    with open(answers, encoding="utf-8") as file:
        said = [json.loads(line) for line in file]
    if "mrhal" in benchmarks:
        ask_a_judge(benchmarks["mrhal"][1], said, f"{settings.out.removesuffix('.json')}.requests.jsonl")
    results = scores(said)
    kept = {key: value for key, value in vars(settings).items() if key != "resume"}
    storage.write_json(settings.out, {"metrics": results, "settings": kept, "versions": storage.versions(),
                                      "seconds": round(time.perf_counter() - started, 1)})
    for key, value in results.items():
        if not isinstance(value, dict):
            print(f"{key:32} {value:.3f}")


if __name__ == "__main__":
    script.run(main)
