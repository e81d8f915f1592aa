"""Data in and out: other people's data sets as our rows, and our preference rows for the tools of a cluster.

    python -m amp_min.convert --from llava --to rows --in llava.json --image-root data --out prompts.jsonl
    python -m amp_min.convert --from rlaif-v --to prompts --in RLAIF-V-Dataset_000.parquet --out prompts.jsonl
    python -m amp_min.convert --from pope --to rows --in coco_pope_*.json --out bench/pope.jsonl
    python -m amp_min.convert --from rows --to trl --in prefs.jsonl --image-root data --out trl/train.jsonl

in     llava (LLaVA-Instruct, ShareGPT4V, POVID), amp (the released code's list), rlhf-v, rlaif-v, rows (ours)
       and the benchmarks pope, mmhal, mrhal, llava-bench (three files in one command); JSON lists, JSONL, or
       Parquet (needs pyarrow), whose pictures are written to <out>.images
out    rows: prompts or preferences, as the input has one answer or several; prompts: the best answer,
       for generate.py; trl, llama-factory, ms-swift: pairs, see --pairs
incoming.py and outgoing.py quote every format with its source. What a step drops or moves is printed and
stands in <out>.meta.json under "lossy". Nothing is written unless all of it is.

On a cluster
------------
train.py uses one device. For more, convert the preferences and let a tool that knows clusters train on them.
These have DPO on pairs: all pairs of a row give Eq. 5's sum, in batches of their own, but Eq. 6's penalty is
missing (LLaMA-Factory's pref_ftx and ms-swift's rpo_alpha come near, but hold up every pair's better answer).

TRL 1.16 and Accelerate (dpo.yaml names the file, because a folder would be read with its meta file):

    echo "datasets: [{path: json, data_files: {train: trl/train.jsonl}, split: train}]" > dpo.yaml
    accelerate launch --num_processes 8 -m trl.scripts.dpo --config dpo.yaml --output_dir out \\
        --model_name_or_path llava-hf/llava-1.5-7b-hf --max_length 2048 --per_device_train_batch_size 1 \\
        --gradient_accumulation_steps 16 --learning_rate 5.0e-5 --num_train_epochs 4 --use_peft \\
        --lora_r 64 --lora_alpha 16 --lora_target_modules \\
        '.*language_model.*\\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)'

max_length must hold 576 image tokens, prompt and answer: TRL cuts the end of what is longer and says nothing.
LLaVA-1.5's chat template writes neither <s> nor </s>, and TRL adds none for pictures: give it a copy of the
model with a template that does, if answers are to learn where to end. amp_min.evaluate --model out reads
`out`.

LLaMA-Factory 0.9.5 (its dataset_info.json is written beside the output):

    python -m amp_min.convert --from rows --to llama-factory --in p.jsonl --image-root data --out lf/amp.jsonl
    llamafactory-cli train --stage dpo --do_train true --model_name_or_path llava-hf/llava-1.5-7b-hf \\
        --template llava --dataset_dir lf --dataset amp --cutoff_len 2048 \\
        --finetuning_type lora --lora_rank 64 --lora_alpha 16 --lora_target all --pref_beta 0.1 \\
        --learning_rate 5.0e-5 --num_train_epochs 4 --lr_scheduler_type cosine --warmup_ratio 0.03 \\
        --per_device_train_batch_size 1 --gradient_accumulation_steps 16 --bf16 true --output_dir out

ms-swift 4.6.0:

    python -m amp_min.convert --from rows --to ms-swift --in prefs.jsonl --image-root data --out swift.jsonl
    NPROC_PER_NODE=8 swift rlhf --rlhf_type dpo --model llava-hf/llava-1.5-7b-hf --use_hf true \\
        --tuner_type lora --dataset swift.jsonl

tests/loaders.py loads an exported set with each of the three and checks the options above; TRL trained two
steps. No cluster was at hand.
"""

import json
import os
import reprlib
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from amp_min.convert import incoming, outgoing
from amp_min.records import JSON_NAMES, check_row
from amp_min.support import script, storage
from amp_min.support.folders import replace_folder
from amp_min.support.pictures import image_path
from amp_min.support.script import BadRow, UserError, arg, needed


@dataclass
class Settings:
    from_: Literal["llava", "amp", "rlhf-v", "rlaif-v", "pope", "mmhal", "mrhal", "llava-bench",
                   "rows"] = needed("format of the input")
    to: Literal["rows", "prompts", "trl", "llama-factory", "ms-swift"] = needed("format of the output")
    in_: list[str] = needed("files to read, in this order")
    out: str = needed("file to write")
    image_root: str | None = arg(None, "folder of the pictures, when it is not the input's")
    pairs: Literal["all", "adjacent", "best"] = arg(
        "all", "pairs of the K levels: all as in Eq. 7, neighbors, or the best against each")
    skip_bad: bool = arg(False, "drop and count bad records instead of stopping")


def read_rows(settings, notes, dropped, roots):
    """Yield (row, file, folder of its picture) for every record. Bad ones raise, or --skip-bad counts them.
    Pictures that come as bytes are written to <out>.images.part, which main renames at the end."""
    read, out, used, repeats = incoming.READERS[settings.from_], Path(settings.out), set(), Counter()
    records = ((source, *found) for source in settings.in_ for found in incoming.objects(source))
    if settings.from_ == "llava-bench":
        records = incoming.llava_bench(settings.in_)
    for source, number, record in records:
        try:
            if isinstance(record, BadRow):
                raise record
            if not isinstance(record, dict):
                raise BadRow(f"record is {JSON_NAMES[type(record)]}, not an object")
            record = {key: value for key, value in record.items() if value is not None}
            row = read(record, notes, source)
            content, image = incoming.picture(record, notes)
            own = record.get(incoming.OWN_ID.get(settings.from_, "id"))
            has_id = isinstance(own, (str, int)) and str(own).strip()
            own = str(own) if has_id else f"{Path(source).stem}-{number}"
            own = name = f"{row['split']}-{own}" if settings.from_ == "pope" else own
            while name in used:                      # LLaVA's mix holds a picture's dialogues under one id
                repeats[own] += 1
                name = f"{own}-{repeats[own] + 1}"
            root = out.parent if content else settings.image_root or Path(source).parent
            if content:
                image = f"{out.name}.images/{len(used) + 1:06d}{Path(image).suffix or '.jpg'}"
            row = {"id": name, "image": incoming.relative(image, root)} | row
            check_row(row, "preference" if "responses" in row else "prompt")
            incoming.check_tokens(row)
        except BadRow as error:
            bad = BadRow(error.problem, f"{source}:{number}")
            if not settings.skip_bad:
                raise bad from None
            dropped[bad.reason] += 1
            continue
        used.add(name)
        notes["repeated ids made different by a number"] += name != own
        roots.add(os.path.abspath(root))
        if settings.to in ("rows", "prompts") and len(roots) > 1:    # there pictures are paths below one root
            raise UserError(f"--in: the pictures lie below {' and '.join(sorted(roots))}; say with "
                            "--image-root below which, or convert one by one")
        if content:
            path = Path(f"{out}.images.part") / Path(image).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield row, source, root


def write_rows(row, source, root, settings, notes):
    """Yield the records that one row becomes; its picture lies below the folder `root`."""
    if settings.to == "prompts" and "responses" in row:
        notes["responses after the best left out"] += len(row["responses"]) - 1
        row = {key: value for key, value in row.items() if key not in ("responses", "initial_order")} | {
            "answers": row["responses"][0]["answers"]}
    if settings.to in ("rows", "prompts"):
        yield row
        return
    if "responses" not in row:
        raise UserError(f"{source}: row {reprlib.repr(row['id'])} has one answer and {settings.to} needs "
                        "ranked ones; run generate.py and verify.py on it first (--to rows)")
    path = str(image_path(row, source, root))            # an unpacked one gets this name at the end
    unpacked = path.startswith(os.path.realpath(f"{settings.out}.images") + os.sep)
    notes["rows whose picture is not there (yet)"] += not unpacked and not os.path.isfile(path)
    taken = {"id", "image", "questions", "responses", "answers"}
    for key in sorted(set(row).union(*row["responses"]) - taken):
        notes[f"rows whose {key} is left out"] += 1
    notes["rows of more than two levels cut into pairs"] += len(row["responses"]) > 2
    for name, dialogue, better, worse in outgoing.pairs(row, settings.pairs, notes):
        yield {"id": name, "images": [path]} | outgoing.WRITERS[settings.to](dialogue, better, worse)


def write_file(path, found):
    """Write records as JSONL, all or nothing. Returns how many."""
    path, part, n = Path(path), Path(f"{path}.part"), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as file:
            for record in found:
                n += 1
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        if n == 0:
            raise UserError(f"{path}: not written, no record was left")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return n


def register(out):
    """Enter the file in the dataset_info.json of its folder, where LLaMA-Factory looks for it."""
    path = Path(out).parent / "dataset_info.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known[Path(out).stem] = {"file_name": Path(out).name} | outgoing.DATASET_INFO
    except (ValueError, TypeError):
        raise UserError(f"{path}: is no JSON object; mend or remove it") from None
    storage.write_json(path, known)


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    if Path(settings.out).resolve() in {Path(source).resolve() for source in settings.in_}:
        raise UserError(f"{settings.out}: is both input and output; give the output another name")
    notes, dropped, roots, read, pictures = Counter(), Counter(), set(), 0, f"{settings.out}.images"

    def found():
        nonlocal read
        for row in read_rows(settings, notes, dropped, roots):
            read += 1
            yield from write_rows(*row, settings, notes)
        if os.path.exists(f"{pictures}.part"):
            replace_folder(f"{pictures}.part", pictures)

    try:
        written = write_file(settings.out, found())
    finally:
        shutil.rmtree(f"{pictures}.part", ignore_errors=True)
    if settings.to == "llama-factory":
        register(settings.out)
    storage.write_json(f"{settings.out}.meta.json", {
        "settings": vars(settings),
        "inputs": {source: storage.sha256_file(source) for source in settings.in_},
        "records": {"read": read + dropped.total(), "dropped": dict(dropped), "written": written},
        "lossy": dict(+notes)})
    for reason, n in (dropped + notes).most_common():      # + leaves out what was counted 0 times
        print(f"{n} x {reason}")
    print(f"{settings.out}: {settings.to}, {written} records from {read} of {settings.from_}")
    root = roots.pop()
    if settings.to in ("rows", "prompts") and root != os.path.abspath(Path(settings.out).parent):
        print(f"the pictures lie below {root}: give that to the next stage as --image-root")


if __name__ == "__main__":
    script.run(main)
