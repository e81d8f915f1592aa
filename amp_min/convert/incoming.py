"""Other people's data sets as our rows: one reader per format, each a function from one record to the texts
of a row.

What a record must hold is the format's own field list, quoted in its reader. Three things are the same
everywhere:

- A null is a field that is not there: tables have every column in every record.
- Our rows hold one picture, and the prompt template places it. Its placeholder is taken out, wherever it
stood in the
  first question: LLaVA's own loader moves it to the front as well (preprocess_multimodal in
  llava/train/train.py).
- What is dropped or moved is counted in `notes`, a Counter that ends in the output's meta file.
"""

import json
import os
import re
import reprlib
from pathlib import Path

from amp_min.records import JSON_NAMES, check_picture, lines, parse
from amp_min.support.script import BadRow, UserError
from amp_min.support.storage import open_input, open_rows

# ---- files: JSONL, a JSON list, or Parquet ----

def objects(path):
    """Yield (line or record number, record) for a whole file; for one that cannot be read, a BadRow."""
    with open_input(path) as file:
        if file.peek(4)[:4] == b"PAR1":
            yield from parquet(path)
            return
    with open_rows(path) as file:
        if file.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
            yield from json_list(path, file.read())
            return
    for number, line in lines(path):
        yield number, parsed(line)


def parsed(text):
    """A record, or the BadRow that says why it is none: not raised, so that --skip-bad can go on."""
    try:
        return parse(text)
    except BadRow as bad:
        return bad


def json_list(path, content):
    """The objects of a JSON list one by one, with the line each begins on: all at once fill the memory."""
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
            break
        try:
            record, end = decoder.raw_decode(text, at)      # only to see where it ends: `parse` looks closer
        except ValueError as error:          # JSONDecodeError has .msg, a far too long number none
            problem = f"list is not JSON ({getattr(error, 'msg', error)}); is the file cut short?"
            raise BadRow(problem, f"{path}:{line}") from None
        except RecursionError:
            raise BadRow("record is nested too deeply; flatten it", f"{path}:{line}") from None
        yield line, parsed(text[at:end].encode()) if isinstance(record, dict) else record
        at = end
    if text[at + 1:].strip():
        raise BadRow("more text after the end of the list; are two files joined? Give them apart: "
                     "--in a.json b.json", f"{path}:{line}")


def parquet(path):
    """The records of a Parquet file; RLHF-V, RLAIF-V and lmms-lab/POPE have the pictures' bytes in theirs."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs one more package: pip install pyarrow") from None

    def as_text(value):
        if isinstance(value, bytes):
            raise BadRow(f"record holds {len(value)} bytes outside of its picture; leave that column out")
        return str(value)                                # dates, times, decimals

    number = 0
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=64):
            for record in batch.to_pylist():
                number += 1
                pictures = {key: record.pop(key) for key in ("image", "images") if key in record}
                try:
                    yield number, parse(json.dumps(record, default=as_text).encode()) | pictures
                except BadRow as bad:
                    yield number, bad
    except (OSError, ArrowException, ValueError, OverflowError) as error:
        problem = str(error).splitlines()[0][:150]
        raise UserError(f"{path}: cannot be read as Parquet ({problem}); is it a whole file?") from None


def llava_bench(sources):
    """Yield (file, line, question) of LLaVA-Bench's three files, in any order; the question gets the
    reference of its question_id as "answer" and what is said of its image as "context"."""
    questions, answers, contexts = [], {}, {}
    for source in sources:
        for number, record in objects(source):
            if not isinstance(record, dict) or "image" in record and "text" in record:
                questions.append((source, number, record))
            elif "image" in record:
                contexts[str(record["image"])] = record
            else:
                answers[str(record.get("question_id"))] = record.get("text")
    for source, number, record in questions:
        if isinstance(record, dict):
            record["answer"] = answers.get(str(record.get("question_id")))
            record["context"] = contexts.get(str(record["image"]))
        yield source, number, record


# ---- fields ----

def need(record, field, kinds=str, place=""):
    """A field of the record, of the kind that it must have; BadRow names it otherwise."""
    if not isinstance(record, dict):
        raise BadRow(f"{place.rstrip('.') or 'record'} is {JSON_NAMES[type(record)]}, not an object")
    value = record.get(field)
    if value is None:
        raise BadRow(f"{place}{field} is missing; is the file of another format? See --from")
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise BadRow(f"{place}{field} is {JSON_NAMES[type(value)]}, {JSON_NAMES[kinds]} belongs there")
    return value


def rest(record, *used):
    """What no reader used travels with the row, except names that our rows use otherwise."""
    used += ("id", "image", "images", "image_path", "questions", "answers", "responses")
    return {key: value for key, value in record.items() if key not in used}


def picture(record, notes):
    """The record's one picture, however it is written: (bytes, a name to take the suffix from) or (None,
    path).

    It stands under image, images or image_path, alone or in a list, as a path, bytes, or {"bytes", "path"}
    (the datasets library). MMHal-Bench has a web address in image_src, whose last part is the picture's name.
    """
    content, path = None, record.get("image") or record.get("images")
    if isinstance(path, list):
        if len(path) != 1:
            raise BadRow(f"image is a list of {len(path)}; a row holds one picture")
        path = path[0]
    if isinstance(path, dict):
        content, path = path.get("bytes"), path.get("path")
    elif isinstance(path, bytes):
        content, path = path, None
    path = path or record.get("image_path")
    if isinstance(content, bytes):
        return content, path or ""
    if content is not None:
        raise BadRow(f"image.bytes is {JSON_NAMES[type(content)]}; write it to a file and give its path")
    if path is None and isinstance(address := record.get("image_src"), str):
        notes["pictures named by a URL, here by its last part; download them below --image-root"] += 1
        path = address.rsplit("/", 1)[-1]
    if path is None:
        raise BadRow("image is missing; the row has no picture (text only, as part of LLaVA's mix is), every "
                     "row needs one, --skip-bad leaves such rows out")
    check_picture(path)
    return None, path


# How LLaVA and others write the place of the picture, and what no text may hold: the place of another picture
# or film, and tokens by which some model, or LLaMA-Factory and ms-swift, would read more than words.
PICTURE = re.compile(r"(?:(?:picture|image)[ -]?\d+: ?)?(?:<im_start>|<\|vision_start\|>)?\s*(?:"
                     r"<image(?:_?(?:\d+|here|placeholder|soft_token))?>(?:(?:\./)?</image>)?|"
                     r"<img>[^<]*</img>|<start_of_image>|\[img\]|(?:<\|image(?:_pad|_\d+)?\|>)+)"
                     r"\s*(?:<im_end>|<\|vision_end\|>)?", re.I)
TOKENS = re.compile(r"</?(?:image\w*|video|audio|img|im_\w+|start_of_image|bbox|ref-object|s)>|<\|\w+\|>",
                    re.I)


def without_image(text, notes):
    """A first question without its placeholder."""
    found = PICTURE.search(text) if isinstance(text, str) else None
    if found is None:
        return text
    notes["<image> moved to the front of its question"] += text[:found.start()].strip() != ""
    notes["other spellings of <image> taken out"] += found.group().strip() != "<image>"
    return (text[:found.start()] + text[found.end():]).strip()


def check_tokens(row):
    """Refuse a row (checked by records) with a text that holds more than words."""
    answers = [row["answers"]] if "answers" in row else [response["answers"] for response in row["responses"]]
    for text in row["questions"] + sum(answers, []):
        if found := TOKENS.search(text):
            raise BadRow(f"a text has {found.group()[:40]}, which models or training tools read as a token; "
                         "take it out, or leave such rows out with --skip-bad")


def turns(record, field, notes):
    """[{"from": "human" | "gpt", "value"}, …] -> (questions, answers), one entry per round."""
    messages, texts = need(record, field, list), []
    if messages and isinstance(messages[0], dict) and messages[0].get("from") in ("gpt", "assistant"):
        notes["a first turn by the model dropped (LLaVA's loader drops it, too)"] += 1
        messages, field = messages[1:], f"{field}[1:]"
    for i, turn in enumerate(messages):
        place = f"{field}[{i}]."
        speaker, text = need(turn, "from", place=place), need(turn, "value", place=place)
        if speaker not in (("gpt", "assistant") if i % 2 else ("human", "user")):
            raise BadRow(f"{place}from is {reprlib.repr(speaker)}; human and gpt take turns, human first")
        if i == 0:
            notes["no <image> in the first question, where the picture is now"] += not PICTURE.search(text)
            text = without_image(text, notes)
        if PICTURE.search(text):
            where = "twice" if i == 0 else "after the first question"
            raise BadRow(f"{place}value has <image> {where}; a row holds one picture")
        texts.append(text)
    if not texts or len(texts) % 2:
        raise BadRow(f"{field} has {len(texts)} turns; every question needs its answer")
    return texts[::2], texts[1::2]


def ranked(record, fields, notes):
    """Several dialogues of a record, best first, as questions and responses."""
    dialogues = [turns(record, field, notes) for field in fields]
    for field, (questions, _) in zip(fields, dialogues, strict=True):
        if questions != dialogues[0][0]:
            raise BadRow(f"{field} asks other questions than {fields[0]}; both answer the same dialogue")
    responses = [{"source": field, "answers": answers}
                 for field, (_, answers) in zip(fields, dialogues, strict=True)]
    return {"questions": dialogues[0][0], "responses": responses}


# ---- one reader per format: record -> row (convert's read_rows adds id and image) ----

def llava(record, notes, source):
    """LLaVA-Instruct, ShareGPT4V: id, image, and the turns in conversations:
    [{"from": "human", "value": "<image>\\nWhat …"}, {"from": "gpt", "value": "…"}, …]
    POVID has the same and the worse dialogue in rejected_conversations."""
    if more := {"preference", "chosen", "rejected", "output_1"} & record.keys():
        raise BadRow(f"{min(more)} stands beside conversations, a ranking that --from llava would lose; "
                     "write the better dialogue as output_1, the worse as output_2 (--from amp)")
    if "rejected_conversations" in record:
        fields = ("conversations", "rejected_conversations")
        return ranked(record, fields, notes) | rest(record, *fields)
    questions, answers = turns(record, "conversations", notes)
    return {"questions": questions, "answers": answers} | rest(record, "conversations")


def amp(record, notes, source):
    """The released AMP code (data_utils_dpo.py): image, output_1 … output_K, best first, as in LLaVA."""
    if "preference" in record:
        raise BadRow("preference (as in LLaVA-RLHF) is not read; put the better output first instead")
    fields = ["output_1"]
    while (field := f"output_{len(fields) + 1}") in record:
        fields.append(field)
    return ranked(record, fields, notes) | rest(record, *fields)


def pair(record, notes, source):
    """openbmb/RLAIF-V-Dataset: ds_name, image, question, chosen, rejected, origin_dataset, origin_split, idx,
    image_path. openbmb/RLHF-V-Dataset: the same, but question, chosen and rejected are an object (or its
    JSON) under "text"."""
    inner = record.get("text", record)
    if isinstance(inner, str):
        try:
            inner = json.loads(inner)
        except ValueError:
            raise BadRow("text is not JSON; RLHF-V has question, chosen and rejected in it") from None
    place = "text." if "text" in record else ""
    question = without_image(need(inner, "question", place=place), notes)
    responses = [{"source": field, "answers": [need(inner, field, place=place)]}
                 for field in ("chosen", "rejected")]
    row = {"questions": [question], "responses": responses}
    return row | rest(record, "text", "question", "chosen", "rejected")


SPLITS = ("random", "popular", "adversarial")


def pope(record, notes, source):
    """POPE's output/coco/coco_pope_{random,popular,adversarial}.json: question_id, image, text,
    label. lmms-lab/POPE on the hub (Parquet) has question, answer and, for the split, category."""
    question = need(record, "question" if "question" in record else "text")
    label = need(record, "answer" if "question" in record else "label").strip().lower()
    if label not in ("yes", "no"):
        raise BadRow(f"label is {reprlib.repr(label)}; yes or no belongs there")
    name, either = Path(source).name, "|".join(SPLITS)
    named = set(re.findall(f"pope_({either})", name) or re.findall(either, name))
    split = record.get("category", record.get("split"))
    if split not in SPLITS and len(named) != 1:
        found = f"holds {len(named)} splits, {' and '.join(sorted(named))}" if named else "says no split"
        raise UserError(f"{source}: its name {found}; name it with the right one of {', '.join(SPLITS)}")
    return {"questions": [without_image(question, notes)], "answers": [label], "label": label,
            "split": split if split in SPLITS else named.pop(),
            **rest(record, "text", "question", "answer", "label", "question_id", "split", "category")}


def mmhal(record, notes, source):
    """Shengcao1006/MMHal-Bench, response_template.json: question_type, question_topic, image_id, image_src,
    image_content, question, gt_answer, model_answer."""
    question, answer = without_image(need(record, "question"), notes), need(record, "gt_answer")
    return {"questions": [question], "answers": [answer]} | rest(record, "question", "gt_answer")


def mrhal(record, notes, source):
    """mengxizhang/MRHal-Bench as eval/gen/eval_mrhal.py of the released code reads it: id, image,
    image_content, label, LLaVA turns in "revised"; or as that writes it: question[], gt_answer[], model_answer[]."""
    if "revised" in record:
        questions, answers = turns(record, "revised", notes)
    else:
        questions, answers = need(record, "question", list), need(record, "gt_answer", list)
        questions = [without_image(questions[0], notes), *questions[1:]] if questions else []
    return {"questions": questions, "answers": answers} | rest(record, "revised", "question", "gt_answer")


def llava_bench_row(record, notes, source):
    """LLaVA-Bench (haotian-liu/LLaVA): question_id, image, text, category (conv, detail, complex); the
    reference answers' text; the pictures' captions and instances (category, bbox), or in the wild caption.
    The judge reads them as text."""
    context, answer = record.get("context"), record.get("answer")
    if context is None or answer is None:
        missing = "reference answer of its question_id" if answer is None else "captions of its image"
        raise BadRow(f"the {missing} is missing; give --in questions, contexts and reference answers")
    captions = need(context, "captions", list) if "captions" in context else [need(context, "caption")]
    boxes = [f"{need(box, 'category')}: {need(box, 'bbox', list)}" for box in context.get("instances") or ()]
    parts = ["\n".join(map(str, captions)), "\n".join(boxes)]
    question = without_image(need(record, "text"), notes)
    return {"questions": [question], "answers": [answer], "reference": answer,
            "category": need(record, "category"), "context": "\n\n".join(filter(None, parts))}


def ours(record, notes, source):
    """Rows of this project, prompts or preferences."""
    return {key: value for key, value in record.items() if key not in ("id", "image")}


READERS = {"llava": llava, "amp": amp, "rlhf-v": pair, "rlaif-v": pair, "pope": pope, "mmhal": mmhal,
           "mrhal": mrhal, "llava-bench": llava_bench_row, "rows": ours}
OWN_ID = {"rlhf-v": "idx", "rlaif-v": "idx", "pope": "question_id", "mmhal": "image_id",
          "llava-bench": "question_id"}                  # of the others: id


def relative(image, root):
    """An absolute path of a picture below `root` as a path from there; others stay as they are."""
    if not os.path.isabs(image):
        return image
    short = os.path.relpath(os.path.realpath(image), os.path.realpath(root))
    if short.startswith(".."):
        raise BadRow(f"image is {reprlib.repr(image)}, outside of {root}; give --image-root, a folder that "
                     "all pictures lie below")
    return short
