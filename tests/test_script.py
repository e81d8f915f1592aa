"""Scripts: settings from the command line, and errors that end as one line."""
import os
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import SafetensorError

from amp_min.support import script
from amp_min.support.script import UserError

ROOT = Path(__file__).parent.parent


@dataclass
class Settings:
    model: str = script.needed("100 % a folder")
    models: list[str] = script.arg(["a", "b"], "several")
    beta: float = script.arg(0.1, "strength")
    micro_batch: int = script.arg(4, "")
    shuffle: bool = script.arg(True, "")
    show: bool = script.arg(False, "print")
    strategy: typing.Literal["meg", "ig"] = "meg"
    image_root: Path | None = None


def test_command_line_fills_the_dataclass():
    assert script.command_line(Settings, ["--model", "m"]) == Settings("m")
    argv = "--model m --models x y --beta 2 --micro-batch 1 --no-shuffle --show --strategy ig --image-root /d"
    assert script.command_line(Settings, argv.split()) == Settings("m", ["x", "y"], 2.0, 1, False, True, "ig",
                                                                   Path("/d"))


@pytest.mark.parametrize("argv", ["", "--model m --beta x", "--model m --shuffle False", "--model m --bet 1",
                                  "--model m --strategy z"])
def test_a_wrong_command_line_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.command_line(Settings, argv.split())
    assert stopped.value.code == 2 and "error: " in capsys.readouterr().err


def test_help_names_every_flag_and_each_default_once(capsys):
    with pytest.raises(SystemExit):
        script.command_line(Settings, ["--help"], "What it does.")
    text = capsys.readouterr().out
    assert text.count("(default: 0.1)") == text.count("(default: False)") == text.count("(default: a b)") == 1
    for part in ("What it does.", "100 % a folder", "--micro-batch", "--no-shuffle", "{meg,ig}"):
        assert part in text


@pytest.mark.parametrize("flag, value, wanted", [
    ("batch-size", "0", "at least 1"), ("lr", "nan", "more than 0 and at most 1e\\+38"),
                                                 ("lr", "1e39", "at most 1e\\+38"),
    ("epochs", "0", "more than 0"), ("levels", "-1", "at least 0"), ("warmup-ratio", "2", "at most 1")])
def test_numbers_out_of_bounds_are_refused(flag, value, wanted):
    import train
    with pytest.raises(UserError, match=f"^--{flag} .*: give a number, .*{wanted}$"):
        train.main(["--model", "m", "--preferences", "p", "--out", "o", f"--{flag}", value])


def ended(main, capsys):
    """Exit status and stderr of run(main)."""
    with pytest.raises(SystemExit) as stopped:
        script.run(main)
    return stopped.value.code, capsys.readouterr().err


def raiser(error):
    def main():
        raise error
    return main


def test_run_ends_what_a_user_can_cause_as_one_line(tmp_path, capsys):
    import torch
    noted = KeyboardInterrupt()
    noted.add_note("3 rows are saved")
    disk = "the disk is full, or a file larger than allowed; free some space and start again\n"
    # As safetensors says it; test_kill.py has the real thing.
    rust = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    for main, status, line in [
            (raiser(UserError("a.jsonl:3: id is empty;\nfill it in")), 2,
             "a.jsonl:3: id is empty; fill it in\n"),
            (raiser(noted), 130, "interrupted; 3 rows are saved\n"),
            (raiser(KeyboardInterrupt()), 130,
             "interrupted; nothing was saved, start the same command again\n"),
            (lambda: open(tmp_path / "no"), 2, f"{tmp_path}/no: No such file or directory; check the path\n"),
            (lambda: Path("/dev/full").write_text("x"), 2, disk), (raiser(rust), 2, disk)]:
        assert ended(main, capsys) == (status, line)
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore.")
    for main in (raiser(full), lambda: torch.empty(2**55), lambda: bytearray(2**62)):
        status, line = ended(main, capsys)
        assert status == 2 and line.startswith("out of memory; ") and line.count("\n") == 1
        assert all(flag in line for flag in ("--micro-batch", "--gradient-checkpointing", "--lora-rank"))


def test_run_leaves_success_and_bugs_alone():
    script.run(lambda: None)
    for bug in (RuntimeError("shape mismatch"), ZeroDivisionError(), OSError("no number"), SystemExit(3)):
        with pytest.raises(type(bug)) as error:
            script.run(raiser(bug))
        assert error.value is bug


@pytest.mark.parametrize("lines", [1, 10_000])       # one line waits in a buffer until the end, many do not
def test_a_closed_pipe_ends_silently(lines):
    code = ("from amp_min.support import script\n"
            f"script.run(lambda: input() and [print('x' * 100) for _ in range({lines})])")
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                 env=os.environ | {"PYTHONUNBUFFERED": ""})
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as child:
        child.stdout.close()
        child.stdin.write(b"go\n")
        child.stdin.flush()
        assert child.stderr.read() == b"" and child.wait() == 141


def test_start_up_does_not_import_torch():
    code = ("import sys, amp_min.records, amp_min.support.pictures, amp_min.support.script\n"
            "assert not {'torch', 'transformers', 'spacy'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
