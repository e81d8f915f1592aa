"""Other people's data sets as our rows: one reader per format, each a function from one record to one row.

What a record must hold is the format's own field list, quoted in its reader.  Two things are the same everywhere:

- Our rows hold one picture, and the prompt template places it.  `<image>` is taken out, wherever it stood in the first
  question: LLaVA's own loader moves it to the front as well (preprocess_multimodal in llava/train/train.py).
- What is dropped or moved is counted in `notes`, a Counter that ends in the output's meta file.
"""

import json
import os
import re
from pathlib import Path

from amp_min.records import IMAGE_TOKEN, JSON_NAMES, MAX_LINE, parse
from amp_min.support.script import BadRow, UserError
from amp_min.support.storage import open_input

# ---- files: JSONL, a JSON list, or Parquet ----

def objects(path, pictures):
    """Yield (line or record number, record) for a whole file; a Parquet file's pictures are written to a folder.

    A record that cannot be read is a BadRow in the record's place.
    """
    if Path(path).suffix == ".parquet":
        yield from parquet(path, pictures)
        return
    with open_input(path) as file:
        if file.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
            yield from json_list(path, file.read())
            return
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if not line.strip():
                continue
            yield number, parsed(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def parsed(text):
    """A record, or the BadRow that says why it is none: not raised, so that --skip-bad can go on behind it."""
    try:
        return parse(text)
    except BadRow as bad:
        return bad


def json_list(path, content):
    """The objects of a JSON list one by one, each with the line it begins on: all at once would take far more memory."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRow(f"file is not UTF-8 at byte {error.start + 1}; save it as UTF-8", path) from None
    decoder = json.JSONDecoder()
    at, line, counted = text.index("[") + 1, 1, 0
    while True:
        at = re.compile(r"[\s,]*").match(text, at).end()
        line, counted = line + text.count("\n", counted, at), at
        if text[at:at + 1] == "]":
            return
        try:
            record, end = decoder.raw_decode(text, at)      # only to see where it ends: `parse` looks closer
        except ValueError as error:          # JSONDecodeError has .msg; a number of thousands of digits has none
            problem = f"list is not JSON ({getattr(error, 'msg', error)}); is the file cut short?"
            raise BadRow(problem, f"{path}:{line}") from None
        except RecursionError:
            raise BadRow("record is nested too deeply; flatten it", f"{path}:{line}") from None
        yield line, parsed(text[at:end].encode()) if isinstance(record, dict) else record
        at = end


def parquet(path, pictures):
    """RLHF-V and RLAIF-V come as Parquet with the pictures inside, {"bytes", "path"}: they are written to `pictures`."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import (
            ParquetFile,  # optional: only these two data sets need it
        )
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs one more package: pip install pyarrow") from None
    open_input(path).close()
    number = 0
    try:
        batches = ParquetFile(path).iter_batches(batch_size=64)
    except (OSError, ArrowException) as error:
        raise UserError(f"{path}: is no whole Parquet file ({str(error).splitlines()[0]}); download it again") from None
    for batch in batches:
        for record in batch.to_pylist():
            number += 1
            image = record.get("image")
            if isinstance(image, dict) and image.get("bytes"):
                suffix = Path(record.get("image_path") or image.get("path") or "").suffix or ".jpg"
                name = f"{Path(path).stem}-{number:06d}{suffix}"
                pictures.mkdir(parents=True, exist_ok=True)
                (pictures / name).write_bytes(image["bytes"])
                record["image"] = f"{pictures.name}/{name}"
            yield number, record


# ---- fields ----

def need(record, field, kinds=str, place=""):
    """A field of the record, of the kind that it must have; BadRow names it otherwise."""
    if not isinstance(record, dict):
        raise BadRow(f"{place.rstrip('.') or 'record'} is {JSON_NAMES[type(record)]}, not an object")
    if field not in record:
        raise BadRow(f"{place}{field} is missing; is the file of another format? See --from")
    value = record[field]
    if not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join(JSON_NAMES[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise BadRow(f"{place}{field} is {JSON_NAMES.get(type(value), type(value).__name__)}, {names} belongs there")
    return value


def rest(record, *used):
    """What no reader used travels with the row, except names that our rows use otherwise."""
    used += ("id", "image", "questions", "answers", "responses")
    return {key: value for key, value in record.items() if key not in used}


def without_image(text, notes):
    """A first question without its <image>."""
    if IMAGE_TOKEN not in text:
        return text
    if not text.lstrip().startswith(IMAGE_TOKEN):
        notes["<image> moved to the front of its question"] += 1
    return text.replace(IMAGE_TOKEN, "", 1).strip()


def turns(messages, field, notes):
    """[{"from": "human" | "gpt", "value"}, …] -> (questions, answers), one entry per round."""
    texts = []
    if messages and isinstance(messages[0], dict) and messages[0].get("from") in ("gpt", "assistant"):
        notes["a first turn by the model dropped (LLaVA's loader drops it, too)"] += 1
        messages, field = messages[1:], f"{field}[1:]"
    for i, turn in enumerate(messages):
        place = f"{field}[{i}]."
        speaker, text = need(turn, "from", place=place), need(turn, "value", place=place)
        if speaker not in (("gpt", "assistant") if i % 2 else ("human", "user")):
            raise BadRow(f"{place}from is {speaker!r}; human and gpt take turns, human first")
        if i == 0 and IMAGE_TOKEN not in text:
            notes["no <image> in the first question, where the picture is now"] += 1
        texts.append(without_image(text, notes) if i == 0 else text)
        if IMAGE_TOKEN in texts[-1]:
            where = "twice" if i == 0 else "after the first question"
            raise BadRow(f"{place}value has {IMAGE_TOKEN} {where}; a row holds one picture")
    if not texts or len(texts) % 2:
        raise BadRow(f"{field} has {len(texts)} turns; every question needs its answer")
    return texts[::2], texts[1::2]


# ---- one reader per format: record -> row (its id and image are finished by convert.py) ----

def llava(record, notes, source):
    """LLaVA-Instruct, ShareGPT4V: id, image, and the turns in conversations:
    [{"from": "human", "value": "<image>\\nWhat …"}, {"from": "gpt", "value": "…"}, …]"""
    questions, answers = turns(need(record, "conversations", list), "conversations", notes)
    return {"image": need(record, "image"), "questions": questions, "answers": answers} | rest(record, "conversations")


def amp(record, notes, source):
    """The released AMP code (data_utils_dpo.py): image, output_1 … output_K, best first, each a dialogue as in LLaVA."""
    responses, questions = [], None
    while (field := f"output_{len(responses) + 1}") in record:
        asked, answers = turns(need(record, field, list), field, notes)
        if asked != (questions := questions or asked):
            raise BadRow(f"{field} asks other questions than output_1; the outputs of a record answer the same dialogue")
        responses.append({"source": field, "answers": answers})
    if not responses:
        need(record, "output_1")
    outputs = [response["source"] for response in responses]
    return {"image": need(record, "image"), "questions": questions, "responses": responses} | rest(record, *outputs)


def pair(record, notes, source):
    """openbmb/RLAIF-V-Dataset: ds_name, image, question, chosen, rejected, origin_dataset, origin_split, idx, image_path.
    openbmb/RLHF-V-Dataset: the same, but question, chosen and rejected are an object (or its JSON) under "text"."""
    inner = record.get("text", record)
    if isinstance(inner, str):
        try:
            inner = json.loads(inner)
        except ValueError:
            raise BadRow("text is not JSON; RLHF-V has question, chosen and rejected in it") from None
    place = "text." if "text" in record else ""
    texts = [need(inner, field, place=place) for field in ("question", "chosen", "rejected")]
    image = record.get("image")
    if isinstance(image, dict):                          # as the datasets library writes it to JSON
        image = image.get("path")
    image = image or need(record, "image_path")
    return {"image": need({"image": image}, "image"), "questions": [without_image(texts[0], notes)],
            "responses": [{"source": "chosen", "answers": [texts[1]]}, {"source": "rejected", "answers": [texts[2]]}],
            **rest(record, "text", "question", "chosen", "rejected", "image_path")}


def pope(record, notes, source):
    """POPE's output/coco/coco_pope_{random,popular,adversarial}.json, one object a line: question_id, image, text, label."""
    label = need(record, "label")
    if label not in ("yes", "no"):
        raise BadRow(f"label is {label!r}; yes or no belongs there")
    split = re.search("random|popular|adversarial", Path(source).name)
    if split is None:
        raise UserError(f"{source}: its name says no split; POPE's files have random, popular or adversarial in theirs")
    question = without_image(need(record, "text"), notes)
    return {"image": need(record, "image"), "questions": [question], "answers": [label], "label": label,
            "split": split.group()} | rest(record, "text", "label", "question_id", "split")


def mmhal(record, notes, source):
    """Shengcao1006/MMHal-Bench, response_template.json: question_type, question_topic, image_id, image_src (a URL; the
    pictures of images/ have its last part as their name), image_content, question, gt_answer, model_answer."""
    image = need(record, "image_path" if "image_path" in record else "image_src").rsplit("/", 1)[-1]
    question, answer = without_image(need(record, "question"), notes), need(record, "gt_answer")
    return {"image": image, "questions": [question], "answers": [answer]} | rest(record, "question", "gt_answer", "image_path")


def mrhal(record, notes, source):
    """mengxizhang/MRHal-Bench as the released code reads it (eval/gen/eval_mrhal.py): id, image, image_content, label, and
    the dialogue as LLaVA turns in "revised"; or as that script writes it: question[], gt_answer[], model_answer[]."""
    if "revised" in record:
        questions, answers = turns(need(record, "revised", list), "revised", notes)
    else:
        questions, answers = need(record, "question", list), need(record, "gt_answer", list)
        if questions and isinstance(questions[0], str):
            questions = [without_image(questions[0], notes), *questions[1:]]
    row = {"image": need(record, "image"), "questions": questions, "answers": answers}
    return row | rest(record, "revised", "question", "gt_answer")


def ours(record, notes, source):
    """Rows of this project, prompts or preferences."""
    return {key: value for key, value in record.items() if key != "id"}


READERS = {"llava": llava, "amp": amp, "rlhf-v": pair, "rlaif-v": pair, "pope": pope, "mmhal": mmhal, "mrhal": mrhal,
           "rows": ours}
OWN_ID = {"rlhf-v": "idx", "rlaif-v": "idx", "pope": "question_id", "mmhal": "image_id"}        # else "id"


def relative(image, root):
    """An absolute path of a picture below `root` as a path from there; others stay as they are."""
    if not os.path.isabs(image):
        return image
    short = os.path.relpath(os.path.realpath(image), os.path.realpath(root))
    if short.startswith(".."):
        raise BadRow(f"image is {image!r}, outside of {root}; give --image-root, a folder that all pictures lie below")
    return short
