"""Does a model hallucinate? POPE, CHAIR, MRHal-Bench, MMHal-Bench and LLaVA-Bench on a benchmark folder.

    python -m amp_min.evaluate --model M/mdpo --data runs/demo/world/eval --out results.json

A benchmark folder holds any of
  captions.jsonl     prompt rows; false claims, CHAIR and coverage of the descriptions, once greedy and once
                     sampled at temperature 1: the likeliest answer, and what the model holds possible
  pope.jsonl         yes/no questions with "label" and "split" (random, popular, adversarial); an answer that says
                     neither counts as yes, as POPE has it, and pope_unclear is the share of these
  mrhal.jsonl        dialogues of 2-5 rounds, answered round by round on the model's own answers
  mmhal.jsonl        open questions with "question_type"
  llava-bench.jsonl  open questions with "category" and "context", the picture in words
Rows of the picture world carry their "scene", and an exact oracle judges them. Answers that it cannot judge
are written as requests for an external judge, <out>.requests.jsonl (amp_min.judge); CHAIR is left out.

Every answer is written beside the results as soon as it is there, with what is counted in it, and the results
are computed from that file alone. --resume goes on behind its last row. <out>.answers.jsonl:
{"id": "eval-000000", "benchmark": "captions_greedy", "decoding": "greedy", "answers": ["The image shows …"],
 "mentioned": ["car", "tree"], "present": ["tree"], "claims": {"objects": [1, 2], …: [false, decided]}}
{"id": "eval-000000-random-car", "benchmark": "pope", "decoding": "greedy", "answers": ["Yes, …"],
 "label": "no", "split": "random"}
{"id": "eval-000000", "benchmark": "mrhal", "decoding": "greedy", "answers": ["Yes, …", "It is red."],
 "ratings": [2, 6], "aspects": ["existence", "attribute"]}

The released code decodes everything with 4 beams; here all but the sampled descriptions is greedy, as POPE
itself does it.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from amp_min import metrics, mllm, records
from amp_min.decoding import converse
from amp_min.judge import __main__ as judge
from amp_min.support import hub, script, storage
from amp_min.support.pictures import image_path, open_image
from amp_min.support.script import BadRow, UserError, arg, needed
from amp_min.world import oracle


@dataclass
class Settings:
    model: str = needed("folder or hub id")
    data: str = needed("benchmark folder")
    out: str = needed("results to write (JSON)")
    image_root: str | None = arg(None, "folder of the pictures, when it is not --data")
    max_new_tokens: int = arg(128, "longest answer; LLaVA-Bench's own script allows 1024", min=1)
    batch: int = arg(256, "questions answered together", min=1)
    limit: int = arg(0, "use only the first N rows of each file; 0 uses all", min=0)
    dtype: Literal["auto", "bf16", "fp32"] = arg("auto", "auto: bf16 on a GPU that has it")
    resume: bool = arg(False, "continue an interrupted run")
    seed: int = arg(0, "for the sampled descriptions")


DECODING = {"greedy": dict(do_sample=False),
            "sampled": dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)}    # the model's own shares
# What is asked, in order: (benchmark, file, decoding, longest answer or None for --max-new-tokens).
ASKED = [("captions_greedy", "captions", "greedy", None), ("captions_sampled", "captions", "sampled", None),
         ("pope", "pope", "greedy", 32),
         *((name, name, "greedy", None) for name in ("mrhal", "mmhal", "llava-bench"))]
# What a row needs beside a prompt row's keys, as texts.
NEEDED = {"captions": (), "pope": ("label", "split"), "mrhal": (), "mmhal": ("question_type",),
          "llava-bench": ("category", "context")}


# ---- 1. questions ----

def read_benchmarks(settings):
    """{benchmark: (path, rows)} for the files that the folder holds."""
    found = {}
    for name, keys in NEEDED.items():
        path = Path(settings.data) / f"{name}.jsonl"
        if path.is_file():
            check = lambda row, path=path, keys=keys: check_row(row, path, keys, settings.image_root)
            found[name] = path, list(records.read(path, "prompt", check=check))[:settings.limit or None]
    if not found:
        raise UserError(f"{settings.data}: holds none of {', '.join(f'{name}.jsonl' for name in NEEDED)}")
    return found


def check_row(row, path, keys, root):
    """BadRow for a row that cannot be asked or scored: a key that is missing, a picture that is not there."""
    if lacking := [key for key in keys if not isinstance(row.get(key), str)]:
        raise BadRow(f"row {row['id']!r} has no text {lacking[0]}; it needs {', '.join(keys)} here")
    if "label" in keys and row["label"] not in ("yes", "no"):
        raise BadRow(f"row {row['id']!r} has label {row['label']!r}; write yes or no, and a split beside it")
    picture, source = image_path(row, path, root), row.get("image_src")
    if not picture.is_file() and isinstance(source, str):
        raise BadRow(f"picture is missing; fetch it: wget -nc -P {picture.parent} {source}")
    open_image(picture)


# ---- 2. answers ----

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
            # Seeded anew and answered whole even when part of it is done: neither what is drawn nor a batch's
            # then depends on an interruption.
            torch.manual_seed(settings.seed + start)
            how = DECODING[decoding] | {"max_new_tokens": longest or settings.max_new_tokens}
            desc = f"{benchmark} {start + 1}-{start + len(block)} of {len(rows)}"
            said = reply(m, path, block, how, settings, desc)
            for row, texts in zip(block, said):
                if (benchmark, row["id"]) not in out.done:
                    head = {"id": row["id"], "benchmark": benchmark, "decoding": decoding, "answers": texts}
                    out.write(head | counted(name, row, texts))


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
    asked = [row["questions"] for row in distinct.values()]
    said, _ = converse(m, see, asked, decoding, settings.batch, desc)
    said = dict(zip(distinct, said))
    return [said[row["image"], *row["questions"]] for row in rows]


def counted(name, row, texts):
    """What the scores are made of, for one row: nothing where there is no scene to judge by."""
    if name in ("mmhal", "llava-bench"):
        return {}
    if name == "pope":
        return {"label": row["label"], "split": row["split"]}
    scene = oracle.scene_of(row)
    if scene is None:
        return {}
    if name == "captions":
        text = " ".join(texts)
        return {"mentioned": sorted(oracle.mentioned(text)), "present": sorted(oracle.present(scene)),
                "claims": oracle.tally(text, scene)}
    aspects = row.get("aspects")
    named = isinstance(aspects, list) and [type(one) for one in aspects] == [str] * len(texts)
    ratings = oracle.row_ratings(texts, row["answers"], scene)
    return {"ratings": ratings, "aspects": aspects if named else None}


# ---- 3. scores ----

def scores(said):
    """The metrics of answer rows, as written by write_answers; every subset of rows can be scored alike."""
    results = {}
    for name in ("greedy", "sampled"):
        if judged := [row for row in said if row["benchmark"] == f"captions_{name}" and "mentioned" in row]:
            chair = metrics.chair([row["mentioned"] for row in judged], [row["present"] for row in judged])
            share, by_kind = metrics.false_claims([row["claims"] for row in judged])
            results |= {f"{key}_{name}": value for key, value in chair.items()}
            results |= {f"false_claims_{name}": share, f"claims_by_kind_{name}": by_kind}
    if asked := [row for row in said if row["benchmark"] == "pope"]:
        pope = lambda rows: metrics.pope([row["answers"][0] for row in rows], [row["label"] for row in rows])
        for split in sorted({row["split"] for row in asked}):
            part = pope([row for row in asked if row["split"] == split])
            results |= {f"pope_{split}_f1": part["f1"], f"pope_{split}_accuracy": part["accuracy"]}
        whole = pope(asked)
        results |= {f"pope_{key}": whole[key] for key in ("accuracy", "f1", "yes_ratio")}
        results["pope_unclear"] = metrics.pope_unclear([row["answers"][0] for row in asked])
    if judged := [row for row in said if row["benchmark"] == "mrhal" and "ratings" in row]:
        mrhal = metrics.mrhal([row["ratings"] for row in judged])
        results |= {f"mrhal_{key}": value for key, value in mrhal.items()}
        by_aspect = {}
        for row in judged:
            for aspect, rating in zip(row["aspects"] or [], row["ratings"]):
                by_aspect.setdefault(aspect, []).append(rating)
        results["mrhal_by_aspect"] = {aspect: sum(r) / len(r) for aspect, r in sorted(by_aspect.items())}
    return results


def ask_a_judge(benchmarks, said, path):
    """What the oracle cannot judge becomes requests to an external judge; returns how many."""
    requests = []
    for one in said:
        name = one["benchmark"]
        if name not in ("mrhal", "mmhal", "llava-bench") or "ratings" in one:
            continue
        row = next(row for row in benchmarks[name][1] if row["id"] == one["id"])
        # Ids of two benchmarks may be equal, so the requests' ids begin with the benchmark's name.
        facts = {"benchmark": name, "id": f"{name}/{row['id']}",
                 "kind": row.get("question_type", row.get("category")),
                 "image_content": row.get("context", row.get("image_content"))}
        rounds = zip(row["questions"], row["answers"], one["answers"], strict=True)
        for t, (question, known, text) in enumerate(rounds, 1):
            requests.append(facts | {"round": t, "question": question, "reference": known, "answer": text})
    if requests:
        judge.write_requests(path, requests)
        print(f"{path}: {len(requests)} requests for a judge; amp_min.judge reads its replies")
    return len(requests)


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
    asked = ask_a_judge(benchmarks, said, f"{settings.out.removesuffix('.json')}.requests.jsonl")
    if "captions" in benchmarks:
        path, rows = benchmarks["captions"]
        if blind := sum(oracle.scene_of(row) is None for row in rows):
            print(f"{path}: {blind} rows without a scene, CHAIR is left out; their answers are in {answers}")
    results = scores(said)
    kept = {key: value for key, value in vars(settings).items() if key != "resume"}
    storage.write_json(settings.out, {"metrics": results, "settings": kept, "versions": storage.versions(),
                                      "seconds": round(time.perf_counter() - started, 1)})
    for key, value in results.items():
        if not isinstance(value, dict):
            print(f"{key:32} {value:.3f}")
    if not results:
        print(f"{settings.out}: nothing was measured{' yet' if asked else ''}, it holds no figure")


if __name__ == "__main__":
    script.run(main)
