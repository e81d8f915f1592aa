"""The rows that pass between stages: one object a line, read one by one and checked field by field.

Every stage reads one JSONL file and writes another (support/storage.py has the writer). Three kinds of row:

    prompt      {"id", "image", "questions": [...], "answers": [...]}         one entry per dialogue round
    candidate   {"id", "image", "questions", "responses": [{"source", "answers"}, ...]}  in initial order
    preference  the same, best first; a response may hold "accuracy" and "score", the row "initial_order"

A row holds K ranked responses and never pairs: pairs are made from indices at training time, so nothing is
stored twice. Keys that are not named here travel through untouched. The paper says nothing about files; all
of this is ours.
"""

import json
import math
import re
import reprlib
from collections import Counter

from amp_min.support.script import BadRow, UserError
from amp_min.support.storage import open_rows

FIELDS = {"prompt": ("id", "image", "questions", "answers"),
          "candidate": ("id", "image", "questions", "responses"),
          "preference": ("id", "image", "questions", "responses")}
IMAGE_TOKEN = "<image>"          # stands for the picture in a LLaVA prompt; a second one makes models raise
MAX_CHARACTERS = 1_000_000       # of one string; a longer one is a wrong file, not a caption
JSON_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false",
              int: "a number", float: "a number", type(None): "null"}
# Beginnings of a PNG, JPEG, GIF and WebP in base64; a long text without a dot; a text that no file system
# takes as a path.
BASE64 = re.compile(r"data:|iVBORw0KGgo|/9j/[\w+/]{40}|R0lGOD|UklGR|[\w+/=\s]{200,}\Z|[\s\S]{4096}")
MAX_LINE = 64 * 2**20            # bytes; keeps a file without line ends from filling the memory


# ---- read ----

def read(path, kind, skip_bad=False, on_bad=None, check=None):
    """Yield the rows of a JSONL file in order, each checked; one line is in memory at a time.

    kind: "prompt" | "candidate" | "preference". A bad row raises BadRow, or with `skip_bad` is left out and
    handed to `on_bad(bad_row)`. `check(row)` may raise UserError for a row that the caller cannot use (its
    picture is lost, say); such a row is bad too. A byte-order mark, CRLF line ends and blank lines are
    accepted. A file without a usable row raises.
    """
    first_line = {}              # hash of id -> line: 64 bits are enough to see a duplicate, and stay small
    number, kept = 1, 0
    for number, line in lines(path):
        try:
            row = parse(line)
            check_row(row, kind)
            if check is not None:
                check(row)
            # Last, so that a row dropped for another reason does not make a later, good one a duplicate.
            first = first_line.setdefault(hash(row["id"]), number)
            if first != number:
                raise BadRow(f"id stands on line {first} too; give every row an id of its own")
        except UserError as error:
            bad = BadRow(error.problem if isinstance(error, BadRow) else str(error), f"{path}:{number}")
            if not skip_bad:
                raise bad from None
            if on_bad is not None:
                on_bad(bad)
            continue
        kept += 1
        yield row
    if kept == 0:
        raise BadRow("file has no usable row; was the stage before it cut short?", f"{path}:{number}")


def lines(path):
    """Yield (number, bytes) of every line that is not blank, without its byte-order mark."""
    number = 0
    with open_rows(path) as file:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                problem = f"line is longer than {MAX_LINE} bytes; write one object a line"
                raise BadRow(problem, f"{path}:{number}")
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, line


def parse(line):
    """One line of bytes -> dict. Refuses what Python's json lets pass but other readers would not."""
    field = "line"
    try:
        row = json.loads(line.decode("utf-8").rstrip(), object_pairs_hook=object_without_duplicates)
        for field, value in row.items() if isinstance(row, dict) else ():
            json.dumps([field, value], ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"line is not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from None
    except UnicodeEncodeError:
        raise BadRow(f"{reprlib.repr(field)} holds half a surrogate pair; write the whole one") from None
    except json.JSONDecodeError as error:
        mend = "write one whole object a line"
        if line.lstrip()[:1] == b"[":
            mend = "python -m amp_min.convert --from rows --to rows makes lines of a JSON list"
        raise BadRow(f"line is not JSON ({error.msg} at column {error.colno}); {mend}") from None
    except ValueError:           # NaN and 1e999 at dumps; integers of thousands of digits already at loads
        raise BadRow(f"{reprlib.repr(field)} holds NaN, Infinity or a number too large; mend it") from None
    except RecursionError:
        raise BadRow(f"{reprlib.repr(field)} is nested too deeply; flatten it") from None
    if not isinstance(row, dict):
        raise BadRow(f"line is {JSON_NAMES[type(row)]}, not an object; write one object a line, without [ ]")
    return row


def object_without_duplicates(pairs):
    """Build one JSON object; json alone would silently keep the last of two equal keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise BadRow(f"line has a key twice in one object; keep one of the two {reprlib.repr(twice)}")
    return found


# ---- check ----

def check_row(row, kind):
    """Raise BadRow (without file and line) for the first thing in a row that a later stage could not use."""
    for field in FIELDS[kind]:
        if row.get(field) is None:
            raise BadRow(f"{field} is missing; a {kind} row needs {', '.join(FIELDS[kind])}")
    check_text(row["id"], "id")
    check_picture(row["image"])
    check_texts(row["questions"], "questions")
    rounds = len(row["questions"])
    if kind == "prompt":
        check_texts(row["answers"], "answers", rounds)
        return
    responses = row["responses"]
    if not isinstance(responses, list) or len(responses) < 2:
        is_list = isinstance(responses, list)
        found = f"has {len(responses)}" if is_list else f"is {JSON_NAMES[type(responses)]}"
        raise BadRow(f"responses {found}; a ranking needs a list of 2 or more")
    for k, response in enumerate(responses):
        check_response(response, f"responses[{k}]", rounds, kind)
    if kind == "preference" and "initial_order" in row:
        order = row["initial_order"]
        # type() and not isinstance(): true and 1.0 equal 1 in Python, but index nothing in other languages.
        integers = isinstance(order, list) and all(type(i) is int for i in order)
        if not integers or sorted(order) != list(range(len(responses))):
            raise BadRow(f"initial_order is not a permutation of 0 to {len(responses) - 1}; name each once")


def check_picture(image):
    """The path of one picture file: no list, no address on the web, and not the picture itself in letters."""
    if not isinstance(image, str):
        raise BadRow(f"image is {JSON_NAMES[type(image)]}; the path of one picture belongs there")
    if BASE64.match(image):
        raise BadRow(f"image is a base64 text of {len(image):,} characters, a path belongs there; "
                     "write it to a file")
    if re.match(r"\w+://", image):
        raise BadRow(f"image is a URL, {reprlib.repr(image)}, a path belongs there; download it to a file")
    check_text(image, "image")


def check_response(response, field, rounds, kind):
    """One of the K responses: who gave it, one answer per round, and what the auto-check measured."""
    if not isinstance(response, dict):
        raise BadRow(f"{field} is {JSON_NAMES[type(response)]}, not an object with source and answers")
    for name in ("source", "answers"):
        if name not in response:
            raise BadRow(f"{field}.{name} is missing; a response needs source and answers")
    check_text(response["source"], f"{field}.source")
    # A model may say nothing, and its end-of-sequence token is still scored. An empty standard answer is a
    # mistake.
    is_standard = response["source"] == "standard"
    check_texts(response["answers"], f"{field}.answers", rounds, may_be_empty=not is_standard)
    for name in ("accuracy", "score"):
        value = response.get(name)
        fine = value is None and is_standard or is_finite(value)
        if kind == "preference" and name in response and not fine:
            raise BadRow(f"{field}.{name} is {JSON_NAMES[type(value)]} where a finite number belongs; "
                         "only the standard answer has null, and a row without the key is fine")


def is_finite(value):
    """A JSON number that fits a double; true and false do not count as 1 and 0."""
    return type(value) is float and math.isfinite(value) or type(value) is int and abs(value) < 2**1023


def check_texts(texts, field, rounds=None, may_be_empty=False):
    """A list of texts, one per dialogue round, that can go into a prompt."""
    if not isinstance(texts, list):
        raise BadRow(f"{field} is {JSON_NAMES[type(texts)]}, not a list; write one string per dialogue round")
    if not texts and rounds is None:
        raise BadRow(f"{field} is an empty list; a row needs one round or more")
    if rounds is not None and len(texts) != rounds:
        entries = "entry" if len(texts) == 1 else "entries"
        raise BadRow(f"{field} has {len(texts)} {entries}, questions has {rounds}")
    for i, text in enumerate(texts):
        check_text(text, f"{field}[{i}]", may_be_empty)
        if IMAGE_TOKEN in text:
            raise BadRow(f"{field}[{i}] contains {IMAGE_TOKEN}; remove it, the template places the picture")


def check_text(text, field, may_be_empty=False):
    """A string that is neither blank (unless that is allowed) nor absurdly long."""
    if not isinstance(text, str):
        raise BadRow(f"{field} is {JSON_NAMES[type(text)]}, not a string; put it in quotes")
    if not text.strip() and not may_be_empty:
        raise BadRow(f"{field} is empty; fill it in or remove the row")
    if len(text) > MAX_CHARACTERS:
        raise BadRow(f"{field} has {len(text)} characters, the limit is {MAX_CHARACTERS}; shorten it")
