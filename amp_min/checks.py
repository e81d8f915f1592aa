"""What a row must hold to be usable, and the one-line errors that say what it lacks.

A check stops at the first thing that a later stage could not use, and names the field. It knows nothing of files:
records.read adds the file and the line.
"""

import math
import re

FIELDS = {"prompt": ("id", "image", "questions", "answers"),
          "candidate": ("id", "image", "questions", "responses"),
          "preference": ("id", "image", "questions", "responses")}
IMAGE_TOKEN = "<image>"          # stands for the picture in a LLaVA prompt; a second one makes the model raise
MAX_CHARACTERS = 1_000_000       # of one string; a longer one is a wrong file, not a caption
JSON_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false",
              int: "a number", float: "a number", type(None): "null"}


class UserError(Exception):
    """Something the user can mend. The message is one line that says what is wrong, where, and how to mend it."""


class BadRow(UserError):
    """A row that cannot be used: "preferences.jsonl:17: responses[2].answers has 1 entry, questions has 3".

    `reason` is the message without its place, its numbers and its mend: rows dropped for one cause count as one.
    """

    def __init__(self, problem, place=""):
        super().__init__(f"{place}: {problem}" if place else problem)
        self.problem = problem
        self.reason = re.sub(r"\d+", "N", problem.split(";")[0])


def check_row(row, kind):
    """Raise BadRow (without file and line) for the first thing in a parsed row that a later stage could not use."""
    for field in FIELDS[kind]:
        if field not in row:
            raise BadRow(f"{field} is missing; a {kind} row needs {', '.join(FIELDS[kind])}")
    check_text(row["id"], "id")
    check_text(row["image"], "image")
    check_texts(row["questions"], "questions")
    rounds = len(row["questions"])
    if kind == "prompt":
        check_texts(row["answers"], "answers", rounds)
        return
    responses = row["responses"]
    if not isinstance(responses, list) or len(responses) < 2:
        found = f"has {len(responses)}" if isinstance(responses, list) else f"is {JSON_NAMES[type(responses)]}"
        raise BadRow(f"responses {found}; a ranking needs a list of 2 or more")
    for k, response in enumerate(responses):
        check_response(response, f"responses[{k}]", rounds, kind)
    if kind == "preference" and "initial_order" in row:
        order = row["initial_order"]
        # type() and not isinstance(): true and 1.0 equal 1 in Python, but index nothing in the next reader's language.
        integers = isinstance(order, list) and all(type(i) is int for i in order)
        if not integers or sorted(order) != list(range(len(responses))):
            raise BadRow(f"initial_order is not a permutation of 0 to {len(responses) - 1}; name each response once")


def check_response(response, field, rounds, kind):
    """One of the K responses: who gave it, one answer per round, and what the auto-check measured."""
    if not isinstance(response, dict):
        raise BadRow(f"{field} is {JSON_NAMES[type(response)]}, not an object; write source and answers in it")
    for name in ("source", "answers"):
        if name not in response:
            raise BadRow(f"{field}.{name} is missing; a response needs source and answers")
    check_text(response["source"], f"{field}.source")
    # A model may say nothing, and its end-of-sequence token is still scored. An empty standard answer is a mistake.
    is_standard = response["source"] == "standard"
    check_texts(response["answers"], f"{field}.answers", rounds, may_be_empty=not is_standard)
    for name in ("accuracy", "score"):
        value = response.get(name)
        if kind == "preference" and name in response and not (value is None and is_standard or is_finite(value)):
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
        raise BadRow(f"{field} has {len(texts)} {'entry' if len(texts) == 1 else 'entries'}, questions has {rounds}")
    for i, text in enumerate(texts):
        check_text(text, f"{field}[{i}]", may_be_empty)
        if IMAGE_TOKEN in text:
            raise BadRow(f"{field}[{i}] contains {IMAGE_TOKEN}; remove it, the prompt template places the picture")


def check_text(text, field, may_be_empty=False):
    """A string that is neither blank (unless that is allowed) nor absurdly long."""
    if not isinstance(text, str):
        raise BadRow(f"{field} is {JSON_NAMES[type(text)]}, not a string; put it in quotes")
    if not text.strip() and not may_be_empty:
        raise BadRow(f"{field} is empty; fill it in or remove the row")
    if len(text) > MAX_CHARACTERS:
        raise BadRow(f"{field} has {len(text)} characters, the limit is {MAX_CHARACTERS}; shorten it")
