"""What every script shares: settings from the command line, and errors that end as one line.

A script's settings are one dataclass, so that names, defaults and reasons stand once, in one place:

    @dataclass
    class Settings:
        preferences: str = field(metadata={"help": "rows to learn from"})                  # required: --preferences
        beta: float = field(default=0.1, metadata={"help": "strength of the KL term"})     # --beta 0.1
        shuffle: bool = field(default=True, metadata={"help": "new order each epoch"})     # --shuffle / --no-shuffle
"""

import argparse
import dataclasses
import errno
import os
import sys
import types
import typing

from amp_min.checks import UserError


def command_line(settings_cls, argv=None, description=""):
    """Read the command line (or the list `argv`) into an instance of the dataclass `settings_cls`.

    Every field is a flag, unless its metadata says positional; a field without default is required. Types: str, int,
    float, Path, bool (--x / --no-x), list[...] (one or more values), Literal[...] (a choice), and any of them `| None`.
    A wrong flag or value prints the usage and exits with status 2.
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
        words, how = ["--" + field.name.replace("_", "-")], {"required": required, "dest": field.name}
        if field.metadata.get("positional"):
            words, how = [field.name], {}
        parser.add_argument(*words, help=text.replace("%", "%%"), **how, **how_to_parse(kinds[field.name]))
        if not required:         # here, not above: argparse would add the default to the help of bool flags once more
            parser.set_defaults(**{field.name: default})
    return settings_cls(**vars(parser.parse_args(argv)))


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
    """Call a script's main(); end what a user can cause with one line on stderr and a status, without a traceback.

    UserError, a full disk, a file that cannot be opened, memory: 2. Ctrl-C: 130. Output cut off by `| head`: 141,
    silently. Anything else is a bug of ours and keeps its traceback. Notes on the exception (Python's add_note) are
    part of the line: whoever saved something says there what it was and how to continue.
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
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            stop(2, "the disk is full; free some space and start again", error)
        if error.filename is None:
            raise
        stop(2, f"{error.filename}: {error.strerror}; check the path", error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        stop(2, "out of memory; in training take a smaller --micro-batch, --gradient-checkpointing or a smaller "
                "--lora-rank, elsewhere a smaller batch or model", error)


def is_out_of_memory(error):
    """True for lack of memory on the CPU or an accelerator; torch is told by names, to keep its import out of here."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or "DefaultCPUAllocator: " in str(error)


def stop(status, message, error, otherwise=None):
    """Print the message and the notes on `error` (or, without notes, `otherwise`) as one line, and exit."""
    notes = getattr(error, "__notes__", []) or ([otherwise] if otherwise else [])
    print(" ".join("; ".join([message, *notes]).splitlines()), file=sys.stderr)
    sys.exit(status)
