"""Output files: killed, full or interrupted, they can go on; with other settings they will not."""
import hashlib
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amp_min.support import storage
from amp_min.support.script import UserError
from amp_min.support.storage import Writer

ROOT = Path(__file__).parent.parent
ROW = {"id": "scene-000017", "text": "A red car – „rot“ \U0001f697\u2028."}


def write_lines(path, *rows):
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return path


def write_all(path, n, settings=None, inputs=(), resume=False, stop_at=None):
    """Write rows 0 … n-1 as a stage does; `stop_at` raises there, as Ctrl-C does."""
    with Writer(path, {"seed": 1, "resume": resume} | (settings or {}), list(inputs), resume) as out:
        for i in range(n):
            if i == stop_at:
                raise KeyboardInterrupt
            if f"row-{i}" not in out.done:
                out.write(ROW | {"id": f"row-{i}"})
    return out


def test_the_meta_file_holds_what_a_reader_needs(tmp_path):
    source, path = write_lines(tmp_path / "in.jsonl", ROW), tmp_path / "new" / "out.jsonl"
    with Writer(path, {"seed": 3, "resume": False, "where": Path("x")}, [source]) as out:
        out.write(ROW)
        out.dropped["answers[N] is empty"] += 2
        assert not path.exists()
    assert sorted(p.name for p in path.parent.iterdir()) == ["out.jsonl", "out.jsonl.meta.json"]
    meta = json.loads(path.with_name("out.jsonl.meta.json").read_text(encoding="utf-8"))
    assert meta["settings"] == {"seed": 3, "where": "x"} and path.read_bytes() == source.read_bytes()
    assert meta["inputs"] == {str(source): hashlib.sha256(source.read_bytes()).hexdigest()}
    assert meta["rows"] == {"read": 3, "kept": 1, "dropped": {"answers[N] is empty": 2}}
    assert meta["seconds"] >= 0 and set(meta["versions"]) == {"python", "torch", "transformers", "spacy"}


@pytest.mark.parametrize("refused", [True, False])
def test_a_run_without_a_row_leaves_nothing(tmp_path, refused):
    with pytest.raises(UserError) as error, storage.Writer(tmp_path / "out.jsonl", {}, []) as out:
        if refused:
            raise UserError("the first row is bad")
        out.dropped["bad"] += 1
    assert list(tmp_path.iterdir()) == [] and not getattr(error.value, "__notes__", [])


def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path):
    write_all(tmp_path / "whole.jsonl", 9)
    path = tmp_path / "out.jsonl"
    path.write_text("an earlier result\n", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt) as error:
        write_all(path, 9, stop_at=4)
    note = f"4 finished rows are in {path}.part; the same command with --resume continues there"
    assert error.value.__notes__ == [note] and path.read_text(encoding="utf-8") == "an earlier result\n"
    out = write_all(path, 9, resume=True)
    assert out.done == {f"row-{i}" for i in range(4)} and out.written == 5
    again = write_all(path, 9, resume=True)         # a finished file: nothing left to do, nothing lost
    assert again.written == 0 and path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.part*"))


KILLED = """
import os, signal, sys
from amp_min.support.storage import Writer
with Writer(sys.argv[1], {"seed": 1}, []) as out:
    for i in range(int(sys.argv[2])):
        out.write({"id": f"row-{i}", "text": "é" * 5000})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("rows, half",
                         [(0, ""), (0, "{"), (5, ""), (5, '{"id": "row-5", "te'), (5, '{"id": "row-5"}'),
                                        (5, '{"id": "row-5"\n{"id": "row-6"}\n'), (5, "\0" * 300 + "\n")])
def test_after_sigkill_every_whole_row_is_kept(tmp_path, rows, half):
    """half: what a kill or a power cut left of the row at hand."""
    path, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    child = subprocess.run([sys.executable, "-c", KILLED, str(path), str(rows)], cwd=ROOT)
    assert child.returncode == -signal.SIGKILL and not path.exists()
    part.write_bytes(part.read_bytes() + half.encode())
    for out_path, done in ((path, rows), (tmp_path / "whole.jsonl", 0)):
        with Writer(out_path, {"seed": 1}, [], resume=True) as out:
            assert out.done == {f"row-{i}" for i in range(done)}
            for i in range(done, 8):
                out.write({"id": f"row-{i}", "text": "é" * 5000})
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


FULL = """
import resource, sys
from amp_min.support.storage import Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))     # as a full disk does, a write stops half-way
try:
    with Writer(sys.argv[1], {"seed": 1}, []) as out:
        for i in range(8):
            out.write({"id": f"row-{i}", "text": "x" * 5000})
except OSError as error:
    print(error.__notes__[0])
"""


def test_a_write_that_fails_half_way_says_what_is_kept_and_can_go_on(tmp_path):
    path = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", FULL, str(path)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert child.stdout.startswith("2 finished rows are in ")
    assert Path(f"{path}.part").stat().st_size == 12_000        # two rows and a part of the third
    with Writer(path, {"seed": 1}, [], resume=True) as out:
        assert out.done == {"row-0", "row-1"}


def test_resume_refuses_other_settings_other_inputs_and_a_lost_record(tmp_path):
    source, path = write_lines(tmp_path / "in.jsonl", ROW), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_all(path, 3, {"beams": 4}, [source], stop_at=2)
    before = Path(f"{path}.part").read_bytes()
    with pytest.raises(UserError,
                       match=r"begun with beams = 4, now it is 5; .*delete .*\.part, or drop --resume"):
        write_all(path, 3, {"beams": 5}, [source], resume=True)
    write_lines(source, ROW | {"id": "other"})
    with pytest.raises(UserError, match=f"begun with sha256 of {source} = "):
        write_all(path, 3, {"beams": 4}, [source], resume=True)
    Path(f"{path}.part.meta.json").unlink()
    with pytest.raises(UserError, match="with its settings, is lost"):
        write_all(path, 3, {"beams": 4}, [source], resume=True)
    assert Path(f"{path}.part").read_bytes() == before
    write_all(path, 1, {"beams": 5}, [source])      # without resume the old part is simply overwritten
    assert len(path.read_bytes().splitlines()) == 1


def test_writer_refuses_a_folder_its_own_input_a_missing_input_and_an_empty_result(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ROW)
    (tmp_path / "link.jsonl").symlink_to(source)
    before = source.read_bytes()
    for path, inputs, problem in [(tmp_path, [], "is a folder"), (source, [source], "both input and output"),
                                  (tmp_path / "link.jsonl", [source], "both"),
                                  (tmp_path / "o", [tmp_path / "no"], "No such file"),
                                  (tmp_path / "out.jsonl", [], "no row was left")]:
        with pytest.raises(UserError, match=problem):
            write_all(path, 0, inputs=inputs)
    assert source.read_bytes() == before


def test_write_json_is_sorted_strict_and_atomic(tmp_path):
    path = tmp_path / "a" / "results.json"
    storage.write_json(path, {"b": 1, "a": "é"})
    assert path.read_bytes() == '{\n  "a": "é",\n  "b": 1\n}\n'.encode()
    for place, content, error in ((path, {"a": math.nan}, ValueError), (path.parent, {}, IsADirectoryError)):
        with pytest.raises(error):
            storage.write_json(place, content)
    assert path.read_bytes().startswith(b'{\n  "a": "') and list(path.parent.iterdir()) == [path]
    assert list(tmp_path.iterdir()) == [path.parent]
