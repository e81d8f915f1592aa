"""Files: what is read is told from what only looks like it, what is written survives a kill.

`open_rows` refuses by its kind what bears the name of a data file and is something else; `Writer` lets a
stage be stopped at any moment and continued; meta files say what a run was made from.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import reprlib
import shutil
import time
from collections import Counter
from operator import itemgetter
from pathlib import Path

from amp_min.support.script import UserError


def open_input(path):
    """Open a file for reading bytes; UserError when that fails."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path") from None


# What people have under a name that promises something else: how it begins, what it is and what helps.
KINDS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the data; fetch it: git lfs pull (or hf download)"),
    (rb"\x1f\x8b|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd", "compressed; unpack it: gunzip, bunzip2, unxz or unzstd"),
    (rb"PK\x03\x04|7z\xbc\xaf\x27|Rar!", "a zip archive, or one of torch.save; unpack it and name the file"),
    (rb"PAR1", "a Parquet file; python -m amp_min.convert reads it"),
    (rb"ARROW1|\xff\xff\xff\xff", "an Arrow table; write it as JSON, as Dataset's to_json does"),
    (rb"\x80[\x02-\x05]", "a Python pickle, which can run code when read; save it as JSON or safetensors"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF|SQLite", "a picture, PDF or database; name the file with the data"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 text; save it as UTF-8"),
    (rb"\s*<[!?a-zA-Z]", "an HTML page, not the data; download the file itself (/resolve/ for /blob/)"),
    (rb"[^\s{\[\"][^\n{]*\t|[^\s{\[][^\n{\[:]*,[^\n{\[:]*(\n|\Z)",
     "a table with tabs or commas (TSV, CSV); write each row as a JSON object"),
)


def kind_of(head):
    """What a file is that begins with these bytes, with what helps; None for JSON and what nobody knows."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    return next((name for pattern, name in KINDS if re.match(pattern, head)), None)


def open_rows(path):
    """Open a file of JSON text for reading bytes; UserError says what it is instead."""
    file = open_input(path)
    if kind := kind_of(file.peek(512)):
        file.close()
        raise UserError(f"{path}: is {kind}")
    return file


class Writer:
    """Write rows so that a stage can be stopped at any moment and continued.

        with Writer("candidates.jsonl", settings, ["prompts.jsonl"], resume=True) as out:
            def count(bad):
                out.dropped[bad.reason] += 1
            for row in read("prompts.jsonl", "prompt", skip_bad=True, on_bad=count):
                if row["id"] not in out.done:
                    out.write(...)

    Rows go to "<path>.part"; the final name appears only when all is written, so it never holds half a file.
    An exception leaves the .part, if it has a row (and says so in a note on the exception); `resume` then
    keeps its whole rows and puts their ids (or what `key` makes of a row) in `done`. With other settings or
    other input contents than before, resume raises UserError instead: half a file from one run and half from
    another is worse than none. A finished file resumes with nothing left to do.

    settings: JSON-like dict; its key "resume" is left out. inputs: the files that the rows are made from.
    facts: what else the caller wants to have in the meta file, by key.
    dropped: Counter of reason -> rows, for the caller to fill; it goes to "<path>.meta.json" with settings,
    sha256 of the inputs, counts, versions and seconds. Equal runs give byte-identical JSONL; seconds stand
    only in the meta file.
    """

    def __init__(self, path, settings, inputs, resume=False, key=itemgetter("id")):
        self.path, self.part, self.key = Path(path), Path(f"{path}.part"), key
        self.resume, self.done, self.dropped, self.facts, self.written = resume, set(), Counter(), {}, 0
        settings = {name: value for name, value in settings.items() if name != "resume"}
        self.run = {"settings": json.loads(json.dumps(settings, default=str)),    # as they will be read back
                    "inputs": {str(source): sha256_file(source) for source in inputs}}
        if self.path.is_dir():
            raise UserError(f"{path}: is a folder; name a file to write")
        if self.path.exists() and any(self.path.samefile(source) for source in inputs):
            raise UserError(f"{path}: is both input and output; give the output another name")

    def __enter__(self):
        self.started = time.perf_counter()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun = self.part if self.part.exists() else self.path
        if self.resume and begun.exists():
            self.check_same_run(begun)
            if begun == self.path:       # finished before: continue a copy, and find nothing left to do
                write_json(f"{self.part}.meta.json", self.run)
                shutil.copyfile(self.path, self.part)
            self.keep_whole_rows()
        else:
            # The old rows go first: killed between these two lines, they must not lie beside new settings.
            self.part.unlink(missing_ok=True)
            write_json(f"{self.part}.meta.json", self.run)
        self.file = open(self.part, "ab")
        return self

    def check_same_run(self, begun):
        """Refuse to continue the file `begun` unless its settings and inputs are those of now."""
        def facts(run):
            return run["settings"] | {f"sha256 of {source}": value for source, value in run["inputs"].items()}

        mend = f"or delete {begun}, or drop --resume"
        try:
            with open(f"{begun}.meta.json", encoding="utf-8") as file:
                old, new = facts(json.load(file)), facts(self.run)
        except (OSError, ValueError, KeyError):
            problem = f"{begun}.meta.json, with its settings, is lost; restore it, {mend}"
            raise UserError(f"{begun}: {problem}") from None
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                change = f"{name} = {reprlib.repr(old.get(name))}, now it is {reprlib.repr(new.get(name))}"
                raise UserError(f"{begun}: was begun with {change}; go back to that, {mend}")

    def keep_whole_rows(self):
        """Collect the ids of the rows in the .part, cut after the last whole one: a kill can halve a line."""
        size = 0
        with open(self.part, "r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    self.done.add(self.key(json.loads(line)))
                except (ValueError, KeyError, TypeError):
                    break
                size += len(line)
            file.truncate(size)

    def write(self, row):
        """Append one row and hand it to the operating system: killed here, a run loses at most this row.

        Raises ValueError for NaN and Infinity, before anything is written.
        """
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        self.file.write(line.encode("utf-8"))
        self.file.flush()
        self.written += 1

    def __exit__(self, kind, error, traceback):
        kept = len(self.done) + self.written
        if error is not None:
            with contextlib.suppress(OSError):       # on a full disk this fails, too, and says less
                self.file.close()
            if kept:
                error.add_note(f"{kept} finished rows are in {self.part}; the same command with --resume "
                               "continues there")
            else:
                self.leave_nothing()                 # refused at its first row
            return
        os.fsync(self.file.fileno())
        self.file.close()
        dropped = dict(self.dropped)
        if kept == 0:
            self.leave_nothing()
            raise UserError(f"{self.path}: not written, no row was left; dropped: {dropped}")
        rows = {"read": kept + sum(dropped.values()), "kept": kept, "dropped": dropped}
        seconds = round(time.perf_counter() - self.started, 3)
        facts = {"rows": rows, "versions": versions(), "seconds": seconds}
        write_json(f"{self.path}.meta.json", self.run | self.facts | facts)
        os.replace(self.part, self.path)
        self.leave_nothing()

    def leave_nothing(self):
        """Remove the unfinished file and its settings."""
        self.part.unlink(missing_ok=True)
        Path(f"{self.part}.meta.json").unlink(missing_ok=True)


def write_json(path, obj):
    """Write `obj` as sorted, indented JSON in one step: a reader sees the old file or the new, never a half.

    Raises ValueError for NaN and Infinity, which are no JSON: give None for a figure that is not defined.
    """
    path, temporary = Path(path), Path(f"{path}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())      # before the rename, or a power cut could leave an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_file(path):
    """sha256 of a file's bytes, as 64 hex digits."""
    with open_input(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights(name):
    """The weight files of a local model folder, to be named among a Writer's inputs: a retrained model under
    an old name is another input. Empty for a hub id.
    """
    return sorted(Path(name).glob("*.safetensors"))


def versions():
    """What the result depends on, read from package metadata: importing torch for this would take seconds."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "spacy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
