"""What every script shares: settings from the command line, and errors that end as one line.

A script's settings are one dataclass, so that names, defaults and reasons stand once, in one place:

    @dataclass
    class Settings:
        preferences: str = needed("rows to learn from")                     # required: --preferences FILE
        beta: float = arg(0.1, "strength of the KL term", above=0)          # --beta 0.1
        shuffle: bool = arg(True, "new order in each epoch")                # --shuffle / --no-shuffle
"""

import argparse
import dataclasses
import errno
import importlib
import importlib.util
import math
import os
import re
import sys
import types
import typing


class UserError(Exception):
    """Something the user can mend. The message is one line that says what is wrong, where, and how to mend
    it."""


class BadRow(UserError):
    """A row that cannot be used: "preferences.jsonl:17: responses[2].answers has 1 entry, questions has 3".

    `reason` is the message without its place, its numbers and its mend: rows dropped for one cause count as
    one.
    """

    def __init__(self, problem, place=""):
        super().__init__(f"{place}: {problem}" if place else problem)
        self.problem = problem
        self.reason = re.sub(r"\d+", "N", problem.split(";")[0])


def needed(help, **metadata):
    """A setting without a default: the command line must give it."""
    return dataclasses.field(metadata={"help": help} | metadata)


def arg(default, help, **bounds):
    """A setting with a default. bounds: min, max and above (more than) for numbers; was: an older name that
    still works."""
    metadata = {"help": help} | bounds
    if isinstance(default, list):                # a list of its own for every Settings
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def command_line(settings_cls, argv=None, description=""):
    """Read the command line (or the list `argv`) into an instance of the dataclass `settings_cls`.

    Every field is a flag, unless its metadata says positional; a field without default is required. Types:
    str, int, float, Path, bool (--x / --no-x), list[...] (one or more values), Literal[...] (a choice), and
    any of them `| None`. Metadata min, max and above (more than) bound a number. A wrong flag prints the
    usage, and both end with status 2.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = typing.get_type_hints(settings_cls)
    for field in dataclasses.fields(settings_cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = default is dataclasses.MISSING
        text = field.metadata.get("help", "")
        if not required and default not in (None, "", []):
            text += f" (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"
        words, how = [flag_of(field)], {"required": required, "dest": field.name}
        if old := field.metadata.get("was"):
            words.append(f"--{old}")
        if field.metadata.get("positional"):
            words, how = [field.name], {}
        parser.add_argument(*words, help=text.replace("%", "%%"), **how, **how_to_parse(kinds[field.name]))
        # here, not above: argparse would add the default to the help of bool flags once more
        if not required:
            parser.set_defaults(**{field.name: default})
    settings = settings_cls(**vars(parser.parse_args(argv)))
    for field in dataclasses.fields(settings_cls):
        value, bounds = getattr(settings, field.name), field.metadata
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and not isinstance(number, bool) and not (
                    math.isfinite(number) and bounds.get("min", number) <= number <= bounds.get("max", number)
                    and number > bounds.get("above", -math.inf)):
                words = {"min": "at least", "above": "more than", "max": "at most"}
                wanted = " and ".join(f"{words[key]} {bounds[key]}" for key in words if key in bounds)
                raise UserError(f"{flag_of(field)} {number}: give a number{', ' if wanted else ''}{wanted}")
    return settings


def flag_of(field):
    """The flag of a setting. from and in are words of Python's own: such a field is called from_ or in_."""
    return "--" + field.name.rstrip("_").replace("_", "-")


def module_of(command):
    """The module behind a command, "train.py", "amp_min.demo", or a folder such as "amp_min.evaluate"."""
    name = command.removesuffix(".py")
    is_folder = importlib.util.find_spec(name).submodule_search_locations is not None
    return importlib.import_module(f"{name}.__main__" if is_folder else name)


def how_to_parse(kind):
    """The arguments of argparse's add_argument that fit a type annotation."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return how_to_parse(next(option for option in inner if option is not type(None)))
    if origin is list:
        return {"type": inner[0], "nargs": "+"}
    if origin is typing.Literal:
        return {"type": type(inner[0]), "choices": inner}
    if kind is bool:             # type=bool would read "--shuffle False" as true: any non-empty string is
        return {"action": argparse.BooleanOptionalAction}
    return {"type": kind}


def run(main):
    """Call a script's main(); end what a user can cause with one line on stderr and a status, without a
    traceback.

    UserError, a full disk, a file that cannot be opened, memory: 2. Ctrl-C: 130. Output cut off by `| head`:
    141, silently. Anything else is a bug of ours and keeps its traceback. Notes on the exception (Python's
    add_note) are part of the line: whoever saved something says there what it was and how to continue.
    """
    try:
        main()
        sys.stdout.flush()       # a closed pipe shows here, and not while the interpreter shuts down
    except UserError as error:
        stop(2, str(error), error)
    except KeyboardInterrupt as error:
        stop(130, "interrupted", error, otherwise="nothing was saved, start the same command again")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)            # 128 + SIGPIPE, as shells report it
    except Exception as error:
        if is_disk_full(error):
            stop(2, "the disk is full, or a file larger than allowed; free some space and start again", error)
        if is_out_of_memory(error):
            stop(2, "out of memory; in training take a smaller --micro-batch, --gradient-checkpointing or a "
                    "smaller --lora-rank, elsewhere a smaller batch or model", error)
        if isinstance(error, OSError) and error.filename is not None:
            stop(2, f"{error.filename}: {error.strerror}; check the path", error)
        raise


def is_disk_full(error):
    """True when nothing more could be written; safetensors and tokenizers say so in an exception of their
    own."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    said = re.search(r"\(os error (\d+)\)", str(error))
    return said is not None and int(said[1]) in NO_SPACE


def is_out_of_memory(error):
    """True for lack of memory on the CPU or an accelerator; torch is told by names, to keep its import out of
    here."""
    if not isinstance(error, (RuntimeError, MemoryError)):
        return False
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or "DefaultCPUAllocator: " in str(error)


def stop(status, message, error, otherwise=None):
    """Print the message and the notes on `error` (or, without notes, `otherwise`) as one line, and exit."""
    notes = getattr(error, "__notes__", []) or ([otherwise] if otherwise else [])
    print(" ".join("; ".join([message, *notes]).splitlines()), file=sys.stderr)
    sys.exit(status)
