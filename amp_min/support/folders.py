"""Folders that are whole or not there: worlds and models are filled beside their place and then renamed.

A folder made so holds made.json, what it was made from; with it, --resume knows what need not be made again.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

from amp_min.support import storage
from amp_min.support.script import UserError


def folder_is_made(path, facts, resume):
    """True when `resume` finds a folder that whole_folder completed from the same facts (settings, inputs).

    Raises UserError for a folder that it did not make, because that would be replaced.
    """
    path, found = Path(path), None
    try:
        found = json.loads((path / "made.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path}: is there already, and not of our making; delete it, or write "
                            "to another place") from None
    return resume and found == json.loads(json.dumps(facts))


@contextlib.contextmanager
def whole_folder(path, facts):
    """Yield a folder to fill, "<path>.part"; it gets its name when that went well, so it is never a half."""
    path = Path(path)                    # without the slash of "DIR/"
    part = Path(f"{path}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    storage.write_json(part / "made.json", facts)
    replace_folder(part, path)


def replace_folder(new, path):
    """Rename the folder `new` to `path`; what stood there is deleted only when that is done."""
    path = Path(path)
    old = Path(f"{path}.part.old")
    shutil.rmtree(old, ignore_errors=True)
    if Path(path).exists():
        os.rename(path, old)
    os.rename(new, path)
    shutil.rmtree(old, ignore_errors=True)
