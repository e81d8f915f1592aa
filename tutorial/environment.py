"""Is this machine ready? A table of what the project needs, what is there, and the mend for what is not.

    python -m tutorial.environment

Nothing is changed and nothing is loaded: package versions are read from their metadata, so this takes a second.
"""

import importlib.metadata
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from amp_min.support import script

SETUP = "make setup && source .venv/bin/activate"
DISK_GB, MEMORY_GB = 1, 4            # a finished demo takes 0.07 GB; two of its workers at a time hold 1 GB of memory each


@dataclass
class Settings:
    requirements: str = field(default="requirements.txt", metadata={"help": "packages to look for, one a line"})


def packages(path):
    """(name, found version or None, fits) for each line of a requirements file."""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if wanted := re.match(r"(?P<name>[\w.-]+)(?:==(?P<version>[\w.]+))?", line):
            try:
                version = importlib.metadata.version(wanted["name"])
            except importlib.metadata.PackageNotFoundError:
                version = None
            yield wanted["name"], version, version is not None and wanted["version"] in (None, version.split("+")[0])


def checks(settings):
    """(what, found, ok, mend) for everything that can be wrong."""
    python = sys.version.split()[0]
    yield "Python 3.11 or newer", python, sys.version_info >= (3, 11), "install Python 3.11, then " + SETUP
    inside = sys.prefix != sys.base_prefix
    yield "virtual environment", "yes" if inside else "no", inside, SETUP
    if not Path(settings.requirements).is_file():
        yield settings.requirements, "missing", False, "go to the folder that holds README.md"
        return
    for name, version, fits in packages(settings.requirements):
        yield name, version or "missing", fits, SETUP
    disk = shutil.disk_usage(".").free / 1e9
    yield f"{DISK_GB} GB of disk", f"{disk:.0f} GB free", disk >= DISK_GB, "free some space, or work on another disk"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        yield f"{MEMORY_GB} GB of memory", f"{memory:.0f} GB", memory >= MEMORY_GB, "close other programs, or take a smaller batch in the stages"
    yield "folder can be written", os.getcwd(), os.access(".", os.W_OK), "copy the project to a folder of your own"


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    failed = 0
    for what, found, ok, mend in checks(settings):
        print(f"{'OK  ' if ok else 'FAIL'}  {what:24} {found}" + ("" if ok else f"   -> {mend}"))
        failed += not ok
    print("ready" if not failed else f"{failed} to mend")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    script.run(main)
