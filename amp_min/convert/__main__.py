"""Data in and out: other people's data sets as our rows, and our preference rows for the tools that train on clusters.

    python -m amp_min.convert --from llava  --to rows --in sharegpt4v.json --image-root data --out prompts.jsonl
    python -m amp_min.convert --from rlaif-v --to prompts --in RLAIF-V-Dataset_000.parquet --out prompts.jsonl
    python -m amp_min.convert --from pope   --to rows --in coco_pope_*.json --out bench/pope.jsonl
    python -m amp_min.convert --from rows   --to trl  --in preferences.jsonl --image-root data --out trl/train.jsonl

in     llava (LLaVA-Instruct, ShareGPT4V), amp (the released code's list), rlhf-v, rlaif-v, pope, mmhal, mrhal, and rows
       (ours); JSON lists, JSONL, and for RLHF-V and RLAIF-V Parquet (needs pyarrow)
out    rows: prompts or preferences, as the input has one answer or several; prompts: the best answer alone, for
       generate.py; trl, llama-factory, ms-swift: pairs, see --pairs; amp
incoming.py and outgoing.py quote every format with its source.  What a step drops or moves is printed and stands
in <out>.meta.json under "lossy".  Nothing is written unless all of it is.

On a cluster
------------
train.py uses one device.  For more, convert the preferences and let a tool that knows clusters train on them.  These
have DPO on pairs: all pairs of a row give Eq. 5's sum, in batches of their own, but Eq. 6's penalty is missing
(LLaMA-Factory's pref_ftx and ms-swift's rpo_alpha come near it, but hold up every pair's better answer).  The TRL
command was run on one CPU with a tiny model (TRL 1.16); the other two are from their documentation and were not run.

TRL and Accelerate (the dpo.yaml names the file, because a folder would be read with its meta file):

    pip install trl peft torchvision
    cat > dpo.yaml <<END
    model_name_or_path: llava-hf/llava-1.5-7b-hf
    datasets: [{path: json, data_files: {train: trl/train.jsonl}, split: train}]
    output_dir: out
    max_length: 2048
    per_device_train_batch_size: 1
    gradient_accumulation_steps: 16
    learning_rate: 5.0e-5
    num_train_epochs: 4
    use_peft: true
    lora_r: 64
    lora_alpha: 16
    lora_target_modules: '.*language_model.*\\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)'
    END
    accelerate launch --num_processes 8 -m trl.scripts.dpo --config dpo.yaml

max_length must hold the 576 image tokens, the prompt and the answer: TRL cuts what is longer at its end, the answer,
and says nothing.  LLaVA-1.5's own chat template writes neither <s> nor </s>, and TRL adds none for pictures: give it a
copy of the model with a template that does, if answers are to learn where to end.  `out` is an adapter folder in PEFT's
format, and `python -m amp_min.evaluate --model out` reads it.

LLaMA-Factory (its dataset_info.json is written beside the output):

    python -m amp_min.convert --from rows --to llama-factory --in preferences.jsonl --image-root data --out lf/amp.jsonl
    llamafactory-cli train --stage dpo --do_train true --model_name_or_path llava-hf/llava-1.5-7b-hf --template llava \\
        --dataset_dir lf --dataset amp --cutoff_len 2048 \\
        --finetuning_type lora --lora_rank 64 --lora_alpha 16 --lora_target all \\
        --pref_beta 0.1 --learning_rate 5.0e-5 --num_train_epochs 4 --lr_scheduler_type cosine --warmup_ratio 0.03 \\
        --per_device_train_batch_size 1 --gradient_accumulation_steps 16 --bf16 true --output_dir out

ms-swift:

    python -m amp_min.convert --from rows --to ms-swift --in preferences.jsonl --image-root data --out swift.jsonl
    NPROC_PER_NODE=8 swift rlhf --rlhf_type dpo --model llava-hf/llava-1.5-7b-hf --use_hf true --train_type lora \\
        --dataset swift.jsonl
"""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from amp_min.convert import incoming, outgoing
from amp_min.records import JSON_NAMES, check_row
from amp_min.support import script, storage
from amp_min.support.pictures import image_path
from amp_min.support.script import BadRow, UserError


@dataclass
class Settings:
    from_: Literal["llava", "amp", "rlhf-v", "rlaif-v", "pope", "mmhal", "mrhal", "rows"] = field(
        metadata={"help": "format of the input"})
    to: Literal["rows", "prompts", "trl", "llama-factory", "ms-swift", "amp"] = field(
        metadata={"help": "format of the output"})
    in_: list[str] = field(metadata={"help": "files to read, in this order"})
    out: str = field(metadata={"help": "file to write"})
    image_root: str | None = field(default=None, metadata={"help": "folder of the pictures, when it is not the input's"})
    pairs: Literal["all", "adjacent", "best"] = field(
        default="all", metadata={"help": "pairs of the K levels: all as in Eq. 7, neighbours, or the best against each"})
    skip_bad: bool = field(default=False, metadata={"help": "drop and count bad records instead of stopping"})


def root_of(source, settings):
    """Where the pictures of an input file lie; those of a Parquet file are unpacked beside the output."""
    return Path(settings.out).parent if Path(source).suffix == ".parquet" else settings.image_root or Path(source).parent


def check_files(settings):
    """Refuse what would mix up files or pictures."""
    if Path(settings.out).resolve() in {Path(source).resolve() for source in settings.in_}:
        raise UserError(f"{settings.out}: is both input and output; give the output another name")
    roots = {os.path.abspath(root_of(source, settings)) for source in settings.in_}
    if settings.to in ("rows", "prompts") and len(roots) > 1:                # there a picture is a path below one root
        raise UserError(f"--in: the pictures lie below {' and '.join(sorted(roots))}; say with --image-root below which, or convert one by one")
    unpacked = Counter(Path(source).stem for source in settings.in_ if Path(source).suffix == ".parquet")
    if twice := [stem for stem, n in unpacked.items() if n > 1]:
        raise UserError(f"--in: two Parquet files are called {twice[0]}, and so would be their pictures; rename one")


def read_rows(settings, notes, dropped):
    """Yield (row, file) for every record, checked; bad ones raise, or are counted with --skip-bad."""
    read, used, repeats = incoming.READERS[settings.from_], set(), Counter()
    for source in settings.in_:
        for number, record in incoming.objects(source, Path(f"{settings.out}.images")):
            try:
                if isinstance(record, BadRow):
                    raise record
                if not isinstance(record, dict):
                    raise BadRow(f"record is {JSON_NAMES[type(record)]}, not an object")
                row = read(record, notes, source)
                own = record.get(incoming.OWN_ID.get(settings.from_, "id"))
                name = str(own) if isinstance(own, (str, int)) and str(own).strip() else f"{Path(source).stem}-{number}"
                if settings.from_ == "pope":
                    name = f"{row['split']}-{name}"
                own = name
                while name in used:                      # LLaVA's mix holds a picture's dialogues under one id
                    repeats[own] += 1
                    name = f"{own}-{repeats[own] + 1}"
                row = {"id": name} | row
                check_row(row, "preference" if "responses" in row else "prompt")
                row["image"] = incoming.relative(row["image"], root_of(source, settings))
                used.add(name)
                notes["repeated ids made different by a number"] += name != own
            except BadRow as error:
                bad = BadRow(error.problem, f"{source}:{number}")
                if not settings.skip_bad:
                    raise bad from None
                dropped[bad.reason] += 1
                continue
            yield row, source


def write_rows(row, source, settings, notes):
    """Yield the records that one row becomes."""
    if settings.to == "prompts" and "responses" in row:
        notes["responses after the best left out"] += len(row["responses"]) - 1
        row = {**row, "answers": row["responses"][0]["answers"]}
        del row["responses"]
        row.pop("initial_order", None)
    if settings.to in ("rows", "prompts"):
        yield row
        return
    if "responses" not in row:
        raise UserError(f"{source}: row {row['id']!r} has one answer and {settings.to} needs ranked ones; run generate.py "
                        "and verify.py on it first (--to rows)")
    path = str(image_path(row, source, root_of(source, settings)))
    if not os.path.isfile(path):
        notes["rows whose picture is not there (yet)"] += 1
    for key in sorted(set(row).union(*row["responses"]) - {"id", "image", "questions", "responses", "answers"}):
        notes[f"rows whose {key} is left out"] += 1
    if settings.to == "amp":
        yield outgoing.amp(row, path)
        return
    notes["rows of more than two levels cut into pairs"] += len(row["responses"]) > 2
    for name, dialogue, better, worse in outgoing.pairs(row, settings.pairs, notes):
        yield outgoing.WRITERS[settings.to](name, path, dialogue, better, worse)


def write_file(path, found, as_list):
    """Write records as JSONL or as one JSON list, a record a line; all or nothing. Returns how many."""
    path, part, n = Path(path), Path(f"{path}.part"), 0
    lead = ("", "") if not as_list else ("[", ",")              # before the first record, before the others
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as file:
            for n, record in enumerate(found, start=1):
                file.write(lead[n > 1] + json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            file.write("]\n" if as_list else "")
        if n == 0:
            raise UserError(f"{path}: not written, no record was left")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return n


def register(out):
    """Enter the file in the dataset_info.json of its folder, where LLaMA-Factory looks for it; other entries stay."""
    path = Path(out).parent / "dataset_info.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known[Path(out).stem] = {"file_name": Path(out).name} | outgoing.DATASET_INFO
    except (ValueError, TypeError):
        raise UserError(f"{path}: is no JSON object; mend or remove it") from None
    storage.write_json(path, known)


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    check_files(settings)
    notes, dropped, read = Counter(), Counter(), Counter()

    def found():
        for row, source in read_rows(settings, notes, dropped):
            read[source] += 1
            yield from write_rows(row, source, settings, notes)

    written = write_file(settings.out, found(), as_list=settings.to == "amp")
    if settings.to == "llama-factory":
        register(settings.out)
    storage.write_json(f"{settings.out}.meta.json", {
        "settings": vars(settings), "inputs": {source: storage.sha256_file(source) for source in settings.in_},
        "records": {"read": read.total() + dropped.total(), "dropped": dict(dropped), "written": written},
        "lossy": dict(+notes)})
    for reason, n in (dropped + notes).most_common():      # + leaves out what was counted 0 times
        print(f"{n} x {reason}")
    print(f"{settings.out}: {settings.to}, {written} records from {read.total()} of {settings.from_}")
    root = os.path.abspath(root_of(settings.in_[0], settings))
    if settings.to in ("rows", "prompts") and root != os.path.abspath(Path(settings.out).parent):
        print(f"the pictures lie below {root}: give that to the next stage as --image-root")


if __name__ == "__main__":
    script.run(main)
