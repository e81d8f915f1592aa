"""Stage 2, the auto-check: put the generated answers of every row in order, best first, and ask no person.

generate.py's order is a guess, the large model before the small one. It is wrong wherever the small one saw
better, and training would learn the mistake. But one answer of each row is known to be true, the standard.
So we list what it claims, look for each claim in every generated answer, and rank an answer by how many it
makes. The parser that finds the claims knows English only.

    python verify.py --candidates c.jsonl --encoder openai/clip-vit-large-patch14-336 --out preferences.jsonl

One input row (the standard answer, then the models' answers in their initial order):

    {"id": "photo-17", "image": "images/photo-17.png", "questions": ["What is in the image?"], "responses": [
     {"source": "standard", "answers": ["A brown dog sleeps on a red sofa. Two cushions lie beside it."]},
     {"source": "large", "answers": ["A black cat sleeps on a sofa."]},
     {"source": "small", "answers": ["A brown dog lies on a red couch. There are two pillows."]}]}

One output row (best first; the numbers are those of the sentence encoder all-MiniLM-L6-v2):

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

"initial_order" tells where each response stood before. "evidence" holds, for each round, [accuracy, score]
of the local level (chunks) and of the global one (sentences), and each standard chunk's best match.

Departures from the paper: none in the method. What it leaves open is decided here, where it comes up, and for
chunks in amp_min/chunks.py. Two extensions, off by default: --symmetric and --attributes.
"""
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from amp_min import autocheck, chunks, records
from amp_min.support import storage
from amp_min.support.hub import choose_device
from amp_min.support.script import BadRow, UserError, arg, command_line, needed, run

# M chunks (or sentences) of the standard answer, N of a generated one; D features; K responses of a row.
MOST_FEATURES = 50_000       # texts whose features are kept for later rows: 150 MB at 768 numbers each


@dataclass
class Settings:
    candidates: str = needed("rows to rank, from generate.py")
    encoder: str = needed("text encoder for chunks and sentences: a CLIP (the paper's) or a sentence encoder")
    out: str = needed("ranked rows; settings and counts go to OUT.meta.json")
    # The paper's value, for CLIP. Other encoders spread their cosines otherwise: look at the evidence first.
    threshold: float = arg(0.85, "similarity above which a chunk counts as found", min=-1, max=1)
    # Eq. 1-2 ask only how much of the truth was said (recall): to invent a dog costs nothing.
    symmetric: bool = arg(False, "average recall with precision (not in the paper)")
    # To a text encoder "a red car" and "a blue car" are nearly the same.
    attributes: bool = arg(False, "a match needs equal colors, numbers, sizes and places (not in the paper)")
    rows_at_once: int = arg(256, "rows parsed and encoded together: faster, more memory, same result", min=1)
    # For levels made of a model's own answers (generate.py --strategy self): K of N, and who is the best of
    # them.
    keep: int = arg(0, "keep this many different generated answers, evenly spaced in rank; 0: all", min=0)
    standard: bool = arg(True, "keep the standard answer as best level; --no-standard: only rank by it")
    skip_bad: bool = arg(False, "drop and count rows that cannot be used, instead of stopping")
    resume: bool = arg(False, "go on with OUT.part of an interrupted run")


def main(argv=None):
    if any(str(word).startswith("--method") for word in (sys.argv[1:] if argv is None else argv)):
        raise UserError("--method: there is one method now, Eq. 1-2 on chunks; leave the flag out")
    settings = command_line(Settings, argv, __doc__)
    if not settings.standard and settings.keep == 1:
        raise UserError("--keep 1 --no-standard leaves one answer and none to compare it with; keep 2 or more")
    print("settings:", asdict(settings))
    with storage.open_input(settings.candidates) as file:
        lines = sum(1 for _ in file)
    # The two experts of the paper: a parser for English, and CLIP's text encoder for chunks and sentences
    # alike.
    nlp, encoder = chunks.load_parser(), autocheck.load_encoder(settings.encoder, choose_device())
    started, features, counts = time.perf_counter(), {}, Counter()
    inputs = [settings.candidates, *storage.weights(settings.encoder)]
    with (storage.Writer(settings.out, asdict(settings), inputs, settings.resume) as out,
          tqdm(total=lines, initial=len(out.done), unit="row", disable=None) as bar):    # on a terminal only
        rows = rows_to_rank(settings, out, encoder)
        # One block of rows is in memory at a time, so a file may be long. Each row passes steps 1 to 5.
        while block := list(islice(rows, settings.rows_at_once)):
            found = find_chunks(nlp, block)                                 # answer -> its chunks
            add_features(encoder, features, block, found, counts)           # text -> its feature (D,)
            for row in block:
                row = rank_responses(row, found, features, settings)
                if row := selected(row, settings.keep, settings.standard, out.dropped):
                    out.write(row)
            bar.update(len(block))
    report(settings.out, counts, out.written, time.perf_counter() - started)


# ---- 1. Read -----------------------------------------------------------------------------------------------
# Everything is measured against responses[0]. A model's answer in that place would be taken for the truth and
# nothing later could tell, so a row without a standard answer there is bad, and is named with its line.
# So is one with the encoder's end token in it: behind it the encoder is blind, and anything could be claimed.

def rows_to_rank(settings, out, encoder):
    """The usable rows of the input that are not in the output yet."""
    def drop(bad):
        out.dropped[bad.reason] += 1
    def can_be_ranked(row):
        first, *others = [response["source"] for response in row["responses"]]
        if first != "standard" or "standard" in others:
            raise BadRow('responses[0], and no other, must have source "standard"; put the true answer there')
        for k, response in enumerate(row["responses"]):
            if token := autocheck.special_token_in(encoder, " ".join(response["answers"])):
                raise BadRow(f"responses[{k}].answers hold {token!r}, no text to the encoder; take it out")

    rows = records.read(settings.candidates, "candidate", settings.skip_bad, drop, can_be_ranked)
    return (row for row in rows if row["id"] not in out.done)


# ---- 2. Find the claims ------------------------------------------------------------------------------------
# A long answer is right here and wrong there. A noun chunk, "a brown dog", is small enough to be one or the
# other. In the row above the standard answer has three: "A brown dog", "a red sofa" and "Two cushions".

def find_chunks(nlp, block):
    """answer -> its chunks, for every answer of a block. Models repeat one another: each text once."""
    answers = list(dict.fromkeys(answer for row in block for response in row["responses"]
                                 for answer in response["answers"]))
    return dict(zip(answers, chunks.noun_chunks_of(nlp, answers)))


def levels(standard, generated, found):
    """What is compared in one round: a list of (standard texts, generated texts), the local level first."""
    sides = found[standard], found[generated]
    # "Yes." names nothing to look for, and the paper is silent about it: here the whole answers are compared.
    # A generated answer without chunks, beside a standard one with some, gets 0, and so does a blank one.
    if not sides[0]:
        return [tuple([autocheck.plain(text)] if text.strip() else [] for text in (standard, generated))]
    # Local: every chunk by itself. It is exact about things, but blind to who does what to whom.
    local = [[autocheck.plain(chunk.text) for chunk in side] for side in sides]
    # Global: the sentences that the chunks stand in, each of them once. They keep the chunks together.
    sentences = [list(dict.fromkeys(chunk.sentence for chunk in side)) for side in sides]
    return [tuple(local), tuple([autocheck.plain(text) for text in side] for side in sentences)]


# ---- 3. Encode ---------------------------------------------------------------------------------------------
# "A red couch" should match "a red sofa", though the words differ. An encoder maps a text to a vector so that
# similar meanings point in similar directions; what is compared from here on are vectors, not letters.

def add_features(encoder, features, block, found, counts):
    """Encode each text that the block needs and `features` lacks; count those that are hard to read."""
    if len(features) > MOST_FEATURES:
        features.clear()
    texts = {}                                           # a dict, not a set: the same order in every run
    for row in block:
        standard, *others = [response["answers"] for response in row["responses"]]
        for pair in (pair for answers in others for pair in zip(standard, answers)):
            for ours, theirs in levels(*pair, found):
                texts.update(dict.fromkeys(ours + theirs))
    new = [text for text in texts if text not in features]
    encoded, too_long = autocheck.encode(encoder, new)                      # (len(new), D), each of length 1
    features.update(zip(new, encoded))
    unknown = sum(share > 0 for share in autocheck.unknown_shares(encoder, new))
    counts.update(texts_longer_than_encoder_window=too_long, texts_with_unknown_tokens=unknown)     # adds up


# ---- 4. Compare --------------------------------------------------------------------------------------------
# How much of the standard answer does this answer say? autocheck.compare tells for one level of one round:
#   Eq. 1   S[m, n] = cos(f_Sm, f_Gn)   (M, N), and s[m] = max over n of S[m, n], the best match of claim m
#   Eq. 2   p[m] = 1 if s[m] > threshold else 0   (M,), so claim m was found or not
# accuracy = mean of p is the share of claims that were found; score = mean of s tells how near they came.
# In the row above "a red couch" counts as "a red sofa" (0.90), "two pillows" not as "two cushions" (0.69).

def compare(standard, generated, found, features, settings):
    """One response against the standard one, each with one answer per round: (accuracy, score, evidence)."""
    rounds, evidence, options = [], [], (settings.threshold, settings.symmetric, settings.attributes)
    # Round t is compared with round t alone: a dog in the first round is no evidence for a dog in the third.
    for pair in zip(standard, generated, strict=True):
        compared = [autocheck.compare(*texts, features, *options) for texts in levels(*pair, found)]
        by_level = [result for result, _ in compared]       # Eq. 1-2: (accuracy, score) of each level
        rounds.append(mean(by_level))                       # the paper's mean of the two
        # For whoever asks why this answer won: which claim was matched with what, and how well.
        evidence.append({"levels": [[round(x, 4) for x in result] for result in by_level],
                         "chunks": compared[0][1]})
    accuracy, score = mean(rounds)                          # of a dialogue: over its rounds
    # Six digits: what lies behind them is the rounding of a matrix product, which must not decide an order.
    return round(accuracy, 6), round(score, 6), evidence


def mean(pairs):
    return tuple(sum(values) / len(pairs) for values in zip(*pairs))


# ---- 5. Rank -----------------------------------------------------------------------------------------------
# Accuracy counts claims, so it ranks. It takes few values, so ties are common: there score decides, a near
# miss before a far one. Where both are equal we know nothing better than the initial order, and keep it. The
# standard answer stays first, whatever the others say: training is to prefer the truth.

def rank_responses(row, found, features, settings):
    """The preference row: the same K responses, the standard answer first, then the others best to worst."""
    standard, *generated = row["responses"]
    measured = [standard | {"accuracy": None, "score": None, "evidence": None}]
    for response in generated:
        result = compare(standard["answers"], response["answers"], found, features, settings)
        measured.append(response | dict(zip(("accuracy", "score", "evidence"), result)))
    best_first = autocheck.rank([(r["accuracy"], r["score"]) for r in measured[1:]])
    order = [0] + [1 + i for i in best_first]               # (K,) positions in the initial order
    return row | {"responses": [measured[i] for i in order], "initial_order": order}


# Levels must differ to be levels. A model's own samples are often the same text twice, so equal answers count
# once, and K of the others are taken evenly over the ranking: neighbors in rank are too alike to teach much.

def selected(row, keep, standard, dropped):
    """The levels of a ranked row that are asked for; None, counted in `dropped`, for a row that has too few.

    Equal answers are one level: only the best placed of them is kept.
    """
    best, *generated = range(len(row["responses"]))
    if keep:  # the best-placed copy of each answer, in rank order
        first = {tuple(row["responses"][k]["answers"]): k for k in reversed(generated)}
        generated = sorted(first.values())
        if len(generated) < keep:
            dropped[f"fewer than {keep} different generated answers"] += 1
            return None
        generated = [generated[i] for i in autocheck.spaced(len(generated), keep)]
    kept = [best] * standard + generated
    order = [row["initial_order"][k] for k in kept]
    return row | {"responses": [row["responses"][k] for k in kept],
                  "initial_order": [sorted(order).index(place) for place in order]}  # places among those kept


# ---- 6. Report ---------------------------------------------------------------------------------------------
# Read these counts before you train. When no row changed order, the check did nothing: look at the evidence
# of a few rows. In a row with equal answers one pair has nothing to teach, so many of them waste a training.
# Many unknown tokens mean that the encoder was trained on another language, or without digits: take another.

def report(path, counts, written, seconds):
    """Count over the whole output, rows of an interrupted run included; add the counts to the meta file."""
    for row in records.read(path, "preference"):
        order, answers = row["initial_order"], [tuple(response["answers"]) for response in row["responses"]]
        counts.update(rows=1, rows_reordered=order != sorted(order),
                      rows_with_equal_answers=len(set(answers)) < len(answers))
    meta = json.loads(Path(f"{path}.meta.json").read_text(encoding="utf-8"))
    storage.write_json(f"{path}.meta.json", meta | {"auto_check": counts})
    print(f"{written} rows in {seconds:.1f} s ({written / seconds:.1f} rows/s) -> {path}; of all "
          f"{counts['rows']} rows {counts['rows_reordered']} changed order, "
          f"{counts['rows_with_equal_answers']} hold equal answers")
    if n := counts["texts_longer_than_encoder_window"]:
        print(f"{n} texts were longer than the encoder's window and were encoded in parts")
    if n := counts["texts_with_unknown_tokens"]:
        print(f"{n} texts hold tokens that the encoder does not know; what is half unknown matches nothing")


if __name__ == "__main__":
    run(main)
