"""Does a model hallucinate?  POPE, CHAIR and MRHal on a benchmark folder.

    python -m amp_min.evaluate --model M/mdpo --data runs/demo/world/eval --out results.json

A benchmark folder holds any of
  captions.jsonl   prompt rows; CHAIR and coverage of the descriptions, once greedy and once sampled at temperature 1:
                   greedy shows the most likely answer, sampling shows what the model holds possible
  pope.jsonl       yes/no questions with "label" and "split" (random, popular, adversarial)
  mrhal.jsonl      dialogues of 2-5 rounds, answered round by round on the model's own answers
Rows of the picture world carry their "scene", and an exact oracle judges them.  For rows without one, CHAIR is left
out, and the answers to the dialogues are written as requests for an external judge (amp_min/judge.py).

All answers are kept beside the results (<out>.answers.jsonl).  The paper decodes everything with 4 beams; here POPE and
MRHal are greedy, as POPE itself does it.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from amp_min import judge, metrics, mllm, oracle, records, script
from amp_min.checks import UserError
from amp_min.pictures import image_path


@dataclass
class Settings:
    model: str = field(metadata={"help": "folder or hub id"})
    data: str = field(metadata={"help": "benchmark folder"})
    out: str = field(metadata={"help": "results to write (JSON)"})
    image_root: str | None = field(default=None, metadata={"help": "folder of the pictures, when it is not --data"})
    max_new_tokens: int = field(default=128, metadata={"help": "longest answer"})
    batch: int = field(default=256, metadata={"help": "questions answered together"})
    limit: int = field(default=0, metadata={"help": "use only the first N rows of each file; 0 uses all"})
    dtype: Literal["auto", "bf16", "fp32"] = field(default="auto", metadata={"help": "auto: bf16 on a GPU that has it"})
    seed: int = field(default=0, metadata={"help": "for the sampled descriptions"})


GREEDY = dict(do_sample=False)
SAMPLED = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)         # the model's own distribution, nothing cut off


def read_rows(path, settings):
    rows = list(records.read(path, "prompt"))
    return rows[:settings.limit or None]


def reply(m, path, rows, decoding, settings, desc):
    """The model's answers to all rounds of all rows: a list of answer lists."""
    see = mllm.eyes(m, [image_path(row, path, settings.image_root) for row in rows])
    decoding = {"max_new_tokens": settings.max_new_tokens} | decoding
    return mllm.converse(m, see, [row["questions"] for row in rows], decoding, settings.batch, desc)


def captions(m, path, settings, keep):
    rows, results = read_rows(path, settings), {}
    for name, decoding in (("greedy", GREEDY), ("sampled", SAMPLED)):
        torch.manual_seed(settings.seed)
        said = reply(m, path, rows, decoding, settings, f"captions, {name}")
        keep += [{"benchmark": f"captions_{name}", "id": row["id"], "answers": texts} for row, texts in zip(rows, said)]
        judged = [(row, texts) for row, texts in zip(rows, said) if "scene" in row]
        if judged:
            chair = metrics.chair([oracle.mentioned(" ".join(texts)) for _, texts in judged],
                                  [oracle.present(row["scene"]) for row, _ in judged])
            results |= {f"{key}_{name}": value for key, value in chair.items()}
    return results


def pope(m, path, settings, keep):
    rows = read_rows(path, settings)
    for row in rows:
        if row.get("label") not in ("yes", "no") or not isinstance(row.get("split"), str):
            raise UserError(f"{path}: row {row['id']!r}: a POPE row needs a label (yes or no) and a split (random, popular or adversarial)")
    # The splits share their questions about what is there: ask each question once.
    distinct = {(row["image"], row["questions"][0]): row for row in rows}
    said = dict(zip(distinct, reply(m, path, list(distinct.values()), GREEDY | {"max_new_tokens": 32}, settings, "POPE")))
    answers = [said[row["image"], row["questions"][0]][0] for row in rows]
    keep += [{"benchmark": "pope", "id": row["id"], "answers": [text]} for row, text in zip(rows, answers)]
    results, everything = {}, metrics.pope(answers, [row["label"] for row in rows])
    for split in sorted({row["split"] for row in rows}):
        part = [(text, row["label"]) for text, row in zip(answers, rows) if row["split"] == split]
        scores = metrics.pope(*map(list, zip(*part)))
        results |= {f"pope_{split}_f1": scores["f1"], f"pope_{split}_accuracy": scores["accuracy"]}
    return results | {"pope_accuracy": everything["accuracy"], "pope_f1": everything["f1"], "pope_yes_ratio": everything["yes_ratio"]}


def mrhal(m, path, settings, keep):
    rows = read_rows(path, settings)
    said = reply(m, path, rows, GREEDY, settings, "MRHal")
    judged = [(row, texts) for row, texts in zip(rows, said) if "scene" in row]
    ratings = [oracle.row_ratings(texts, row["answers"], row["scene"]) for row, texts in judged]
    keep += [{"benchmark": "mrhal", "id": row["id"], "answers": texts} for row, texts in zip(rows, said)]
    unjudged = [{"id": row["id"], "round": t + 1, "question": q, "reference": a, "answer": text}
                for row, texts in zip(rows, said) if "scene" not in row
                for t, (q, a, text) in enumerate(zip(row["questions"], row["answers"], texts))]
    if unjudged:
        requests = Path(settings.out).with_suffix(".requests.jsonl")
        judge.write_requests(requests, unjudged)
        print(f"{requests}: {len(unjudged)} requests for a judge")
    if not ratings:
        return {}
    results = {f"mrhal_{key}": value for key, value in metrics.mrhal(ratings).items()}
    by_aspect = {}
    for (row, _), rated in zip(judged, ratings):
        for aspect, rating in zip(row["aspects"], rated):
            by_aspect.setdefault(aspect, []).append(rating)
    return results | {"mrhal_by_aspect": {aspect: sum(r) / len(r) for aspect, r in sorted(by_aspect.items())}}


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    started, device = time.perf_counter(), mllm.choose_device()
    files = {name: Path(settings.data) / f"{name}.jsonl" for name in ("captions", "pope", "mrhal")}
    if not any(path.is_file() for path in files.values()):
        raise UserError(f"{settings.data}: holds none of {', '.join(path.name for path in files.values())}")
    dtype, why = mllm.choose_dtype(settings.dtype, device)
    m = mllm.load(settings.model, dtype, device)
    keep, results = [], {}
    for name, run in (("captions", captions), ("pope", pope), ("mrhal", mrhal)):
        if files[name].is_file():
            results |= run(m, files[name], settings, keep)
    with records.Writer(f"{settings.out}.answers.jsonl", vars(settings), [p for p in files.values() if p.is_file()]) as out:
        for row in keep:
            out.write(row)
    records.write_json(settings.out, {"metrics": results, "settings": vars(settings), "versions": records.versions(),
                                      "seconds": round(time.perf_counter() - started, 1)})
    for key, value in results.items():
        if not isinstance(value, dict):
            print(f"{key:32} {value:.3f}")


if __name__ == "__main__":
    script.run(main)
