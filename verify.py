"""Stage 2: the auto-check re-ranks the generated answers of every row against the standard answer.

    python verify.py --candidates candidates.jsonl --encoder openai/clip-vit-large-patch14-336 --out preferences.jsonl

One input row (candidates.jsonl: the standard answer, then the models' answers in their initial order):

    {"id": "photo-17", "image": "images/photo-17.png", "questions": ["What is in the image?"], "responses": [
     {"source": "standard", "answers": ["A brown dog sleeps on a red sofa. Two cushions lie beside it."]},
     {"source": "large", "answers": ["A black cat sleeps on a sofa."]},
     {"source": "small", "answers": ["A brown dog lies on a red couch. There are two pillows."]}]}

One output row (preferences.jsonl: best first; "initial_order" tells where each response stood before; the numbers are
those of the sentence encoder all-MiniLM-L6-v2):

    {"id": "photo-17", "image": "images/photo-17.png", "questions": ["What is in the image?"], "responses": [
     {"source": "standard", "answers": ["A brown dog sleeps on a red sofa. Two cushions lie beside it."],
      "accuracy": null, "score": null, "evidence": null},
     {"source": "small", "answers": ["A brown dog lies on a red couch. There are two pillows."],
      "accuracy": 0.333333, "score": 0.781205, "evidence": [{"levels": [[0.6667, 0.8644], [0.0, 0.698]],
       "chunks": [["a brown dog", "a brown dog", 1.0], ["a red sofa", "a red couch", 0.9012],
                  ["two cushions", "two pillows", 0.6921]]}]},
     {"source": "large", "answers": ["A black cat sleeps on a sofa."],
      "accuracy": 0.166667, "score": 0.51137, "evidence": [{"levels": [[0.3333, 0.5923], [0.0, 0.4304]],
       "chunks": [["a brown dog", "a black cat", 0.3225], ["a red sofa", "a sofa", 0.8605],
                  ["two cushions", "a sofa", 0.594]]}]}],
     "initial_order": [0, 2, 1]}

"evidence" holds, for each dialogue round, [accuracy, score] of the local level (chunks) and of the global level
(sentences), and for each standard chunk the best match among the answer's chunks with its similarity.

Departures from the paper: none in the method; what it leaves open is decided in amp_min/chunks.py and
amp_min/autocheck.py, and said there. Extensions, off by default: --symmetric (a hallucinated chunk costs something),
--attributes (a match needs the same colours, numbers, sizes and places), and --method whole (whole answers in place of
chunks: closer to people on short captions in free English, see amp_min/autocheck.py).
"""
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Literal

from tqdm import tqdm

from amp_min import autocheck, chunks, records
from amp_min.support import storage
from amp_min.support.hub import choose_device
from amp_min.support.script import BadRow, UserError, arg, command_line, run

MOST_FEATURES = 50_000       # texts whose features are kept for later rows: 150 MB at 768 numbers each


@dataclass
class Settings:
    candidates: str = field(metadata={"help": "rows to rank, from generate.py"})
    encoder: str = field(metadata={"help": "CLIP or sentence encoder for chunks and sentences: a folder or a hub id"})
    out: str = field(metadata={"help": "ranked rows; settings and counts go to OUT.meta.json"})
    threshold: float = field(default=0.85, metadata={"help": "similarity above which a chunk counts as found; the "
                                                             "paper's value, for CLIP: other encoders differ"})
    method: Literal["chunks", "whole"] = field(default="chunks", metadata={
        "help": "chunks: Eq. 1-2, the paper's. whole: cosine of the whole answers, less for repeated words"})
    symmetric: bool = field(default=False, metadata={"help": "average recall with precision (not in the paper)"})
    attributes: bool = field(default=False, metadata={"help": "a match needs agreeing colours, numbers, sizes and "
                                                              "places (not in the paper)"})
    rows_at_once: int = field(default=256, metadata={"help": "rows parsed and encoded together; more is faster and "
                                                             "takes more memory, the result is the same", "min": 1})
    keep: int = arg(0, "keep this many different generated answers, evenly spaced over the ranking; 0 keeps all", min=0)
    standard: bool = arg(True, "keep the standard answer as the best level; --no-standard: it only serves the ranking")
    skip_bad: bool = field(default=False, metadata={"help": "drop and count rows that cannot be used"})
    resume: bool = field(default=False, metadata={"help": "go on with OUT.part of an interrupted run"})


def main(argv=None):
    settings = command_line(Settings, argv, __doc__)
    if not -1 <= settings.threshold < 1:
        raise UserError(f"--threshold {settings.threshold}: a cosine lies between -1 and 1; give -1 <= threshold < 1")
    if settings.method == "whole" and (settings.symmetric or settings.attributes):
        raise UserError("--method whole compares no chunks: leave out --symmetric and --attributes")
    if not settings.standard and settings.keep == 1:
        raise UserError("--keep 1 --no-standard leaves one answer and nothing to compare it with; keep 2 or more")
    if settings.rows_at_once < 1:
        raise UserError(f"--rows-at-once {settings.rows_at_once}: give 1 or more")
    print("settings:", asdict(settings))
    lines = count_lines(settings.candidates)
    nlp = chunks.load_parser() if settings.method == "chunks" else None
    encoder = autocheck.load_encoder(settings.encoder, choose_device())
    started, long_texts, features = time.perf_counter(), 0, {}
    inputs = [settings.candidates, *storage.weights(settings.encoder)]
    with storage.Writer(settings.out, asdict(settings), inputs, settings.resume) as out:
        # disable=None: the bar goes to a terminal only, never into a log file.
        with tqdm(total=lines, initial=len(out.done), unit="row", disable=None) as bar:
            rows = rows_to_rank(settings, out)
            while block := list(islice(rows, settings.rows_at_once)):
                parsed = parse_answers(nlp, block)
                long_texts += add_features(encoder, features, block, parsed, settings.method)
                for row in block:
                    row = ranked(row, parsed, features, settings)
                    if row := selected(row, settings.keep, settings.standard, out.dropped):
                        out.write(row)
                bar.update(len(block))
    report(settings.out, out.written, time.perf_counter() - started, long_texts)


def count_lines(path):
    with storage.open_input(path) as file:
        return sum(1 for _ in file)


def rows_to_rank(settings, out):
    """The usable rows of the input that are not in the output yet."""
    def drop(bad):
        out.dropped[bad.reason] += 1

    def standard_first(row):
        first, *others = [response["source"] for response in row["responses"]]
        if first != "standard" or "standard" in others:
            raise BadRow('responses[0], and no other, must have source "standard"; put the ground-truth answer there')

    rows = records.read(settings.candidates, "candidate", settings.skip_bad, drop, standard_first)
    return (row for row in rows if row["id"] not in out.done)


def parse_answers(nlp, block):
    """answer -> its chunks (none without a parser), for every answer of a block; models often give the same answer."""
    answers = [answer for row in block for response in row["responses"] for answer in response["answers"]]
    answers = list(dict.fromkeys(answers))
    return dict(zip(answers, chunks.noun_chunks_of(nlp, answers))) if nlp else dict.fromkeys(answers, [])


def rounds(response, parsed):
    return [(answer, parsed[answer]) for answer in response["answers"]]


def add_features(encoder, features, block, parsed, method):
    """Encode each text that the block's comparisons need and `features` lacks, once; returns how many were too long."""
    if len(features) > MOST_FEATURES:
        features.clear()
    texts = {}                                           # a dict, not a set: the same order in every run
    for row in block:
        standard = rounds(row["responses"][0], parsed)
        for response in row["responses"][1:]:
            for pair in zip(standard, rounds(response, parsed)):
                for level in autocheck.levels(*pair, method):
                    texts.update(dict.fromkeys(level[0] + level[1]))
    new = [text for text in texts if text not in features]
    encoded, too_long = autocheck.encode(encoder, new)
    features.update(zip(new, encoded))
    return too_long


def ranked(row, parsed, features, settings):
    """The preference row: the same responses best first, the standard answer before all, each with its evidence."""
    standard = rounds(row["responses"][0], parsed)
    responses = [row["responses"][0] | {"accuracy": None, "score": None, "evidence": None}]
    for response in row["responses"][1:]:
        accuracy, score, evidence = autocheck.check(standard, rounds(response, parsed), features, settings.threshold,
                                                    settings.symmetric, settings.attributes, settings.method)
        responses.append(response | {"accuracy": accuracy, "score": score, "evidence": evidence})
    order = [0] + [1 + i for i in autocheck.rank([(r["accuracy"], r["score"]) for r in responses[1:]])]
    return row | {"responses": [responses[i] for i in order], "initial_order": order}


def selected(row, keep, standard, dropped):
    """The levels of a ranked row that are asked for; None, counted in `dropped`, for a row that has too few.

    Equal answers are one level: only the best placed of them is kept.
    """
    best, *generated = range(len(row["responses"]))
    if keep:
        first = {tuple(row["responses"][k]["answers"]): k for k in reversed(generated)}
        generated = sorted(first.values())
        if len(generated) < keep:
            dropped[f"fewer than {keep} different generated answers"] += 1
            return None
        generated = [generated[i] for i in autocheck.spaced(len(generated), keep)]
    kept = [best] * standard + generated
    order = [row["initial_order"][k] for k in kept]
    return row | {"responses": [row["responses"][k] for k in kept],
                  "initial_order": [sorted(order).index(place) for place in order]}   # places among those kept


def report(path, written, seconds, long_texts):
    """Count over the whole output, rows of an earlier, interrupted run included; add the counts to the meta file."""
    counts = Counter(rows=0, rows_reordered=0, rows_with_equal_answers=0, texts_longer_than_encoder_window=long_texts)
    for row in records.read(path, "preference"):
        answers = [tuple(response["answers"]) for response in row["responses"]]
        counts["rows"] += 1
        counts["rows_reordered"] += row["initial_order"] != sorted(row["initial_order"])
        counts["rows_with_equal_answers"] += len(set(answers)) < len(answers)
    with open(f"{path}.meta.json", encoding="utf-8") as file:
        meta = json.load(file)
    storage.write_json(f"{path}.meta.json", meta | {"auto_check": dict(counts)})
    print(f"{written} rows in {seconds:.1f} s ({written / seconds:.1f} rows/s) -> {path}; of all {counts['rows']} rows "
          f"{counts['rows_reordered']} changed order, {counts['rows_with_equal_answers']} hold equal answers")
    if long_texts:
        print(f"{long_texts} texts were longer than the encoder's window and were encoded in parts")


if __name__ == "__main__":
    run(main)
