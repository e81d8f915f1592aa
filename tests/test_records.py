"""Rows, pictures and scripts: what is accepted is exact, what is refused is one line, what is killed can go on."""

import copy
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError

from amp_min import records
from amp_min.records import FIELDS, read
from amp_min.support import pictures, script, storage
from amp_min.support.script import BadRow, UserError
from amp_min.support.storage import Writer

ROOT = Path(__file__).resolve().parents[1]
PROPERTY = dict(deadline=None, derandomize=True, database=None)

PROMPT = {"id": "scene-000017", "image": "images/scene-000017.png", "questions": ["Describe the image.", "Is it red?"],
          "answers": ["A red car – „rot“ \U0001f697\u2028.", "Yes."]}
CANDIDATE = {"id": "scene-000017", "image": "images/scene-000017.png", "questions": ["Describe the image.", "Red?"],
             "responses": [{"source": "standard", "answers": ["A red car.", "Yes."]},
                           {"source": "large", "answers": ["A car.", ""]}, {"source": "small", "answers": ["A", "B"]}]}
PREFERENCE = copy.deepcopy(CANDIDATE) | {"initial_order": [0, 2, 1], "scene": {"any": [1, None, 2.5]}}
for response, value in zip(PREFERENCE["responses"], (None, 0.5, 0)):
    response["accuracy"] = response["score"] = value
ROWS = {"prompt": PROMPT, "candidate": CANDIDATE, "preference": PREFERENCE}


def write_lines(path, *rows):
    """Rows (or ready-made bytes) as a JSONL file."""
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def refusal(path, kind):
    """The message, without file and line, with which `path` is refused."""
    with pytest.raises(BadRow) as error:
        list(read(path, kind))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}:1: ")


# ---- read and check ----

@pytest.mark.parametrize("kind", ROWS)
def test_a_good_row_is_read_as_json_reads_it(tmp_path, kind):
    assert list(read(write_lines(tmp_path / "rows.jsonl", ROWS[kind]), kind)) == [ROWS[kind]]


def test_byte_order_mark_crlf_blank_lines_and_a_missing_last_line_end_are_accepted(tmp_path):
    second = PROMPT | {"id": "b"}
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PROMPT).encode() + b"\r\n\r\n  \n" + json.dumps(second).encode())
    assert list(read(path, "prompt")) == [PROMPT, second]
    write_lines(path, PROMPT, b"\xef\xbb\xbf" + json.dumps(second).encode())
    with pytest.raises(BadRow, match=":2: line is not JSON .*BOM"):     # two files glued together
        list(read(path, "prompt"))


LINES = [
    (b'{"id": "a', "line is not JSON"), (b"\xff{}", "line is not UTF-8 at byte 1"), (b"[]", "line is a list"),
    (b'{"id": "a", "id": "b"}', "line has a key twice"),
    (b'{"id": "a", "x": {"y": 1, "y": 1}}', "line has a key twice"),
    (b'{"id": "\\ud83d"}', "'id' holds half a surrogate pair"), (b'{"id": {"\\udc00": 1}}', "'id' holds half"),
    (b'{"x": [NaN]}', "'x' holds NaN"), (b'{"x": -Infinity}', "'x' holds NaN"), (b'{"x": 1e999}', "'x' holds NaN"),
    (b'{"x": ' + b"9" * 5000 + b"}", "'line' holds NaN, Infinity or a number too large"),
    (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "'line' is nested too deeply"),
    (b'{"id": "a\tb"}', "line is not JSON"), (b"null", "line is null"), (b"{} {}", "line is not JSON"),
]


@pytest.mark.parametrize("line, problem", LINES, ids=[problem for _, problem in LINES])
def test_lines_that_are_no_strict_json_are_refused(tmp_path, line, problem):
    message = refusal(write_lines(tmp_path / "rows.jsonl", line), "prompt")
    assert message.startswith(problem) and "; " in message


CHANGES = [
    ("prompt", ["id"], "", "id is empty"), ("prompt", ["id"], 7, "id is a number"),
    ("prompt", ["image"], ["a.png"], "image is a list; the path of one picture"),
    ("prompt", ["image"], "iVBORw0KGgo" * 2000, "image is a base64 text of 22,000 characters, a path belongs there"),
    ("prompt", ["image"], "http://a.org/b.png", "image is a URL, 'http://a.org/b.png'"),
    ("prompt", ["questions"], None, "questions is missing"),
    ("prompt", ["questions"], [], "questions is an empty list"),
    ("prompt", ["questions"], "Why?", "questions is a string"),
    ("prompt", ["questions", 1], None, "questions[1] is null"),
    ("prompt", ["answers"], ["x"], "answers has 1 entry, questions has 2"),
    ("prompt", ["answers", 0], " \n", "answers[0] is empty"),
    ("prompt", ["answers", 1], "an <image> here", "answers[1] contains <image>"),
    ("prompt", ["questions", 0], "<image>\nWhat?", "questions[0] contains <image>"),
    ("prompt", ["answers", 0], "x" * 1_000_001, "answers[0] has 1000001 characters"),
    ("candidate", ["responses"], {}, "responses is an object"),
    ("candidate", ["responses"], [CANDIDATE["responses"][0]], "responses has 1; a ranking needs"),
    ("candidate", ["responses", 1], "text", "responses[1] is a string"),
    ("candidate", ["responses", 2], {"source": "s"}, "responses[2].answers is missing"),
    ("candidate", ["responses", 1, "source"], [], "responses[1].source is a list"),
    ("candidate", ["responses", 0, "answers", 1], "", "responses[0].answers[1] is empty"),
    ("candidate", ["responses", 1, "answers", 1], "<image>", "responses[1].answers[1] contains <image>"),
    ("preference", ["responses", 1, "score"], None, "responses[1].score is null where a finite number belongs"),
    ("preference", ["responses", 1, "accuracy"], True, "responses[1].accuracy is true or false"),
    ("preference", ["responses", 1, "accuracy"], 10**400, "responses[1].accuracy is a number where a finite"),
    ("preference", ["initial_order"], [0, 1], "initial_order is not a permutation of 0 to 2"),
    ("preference", ["initial_order"], [False, True, 2], "initial_order is not"),
    ("preference", ["initial_order"], [[0], "1", 2], "initial_order is not"),
    ("preference", ["initial_order"], None, "initial_order is not"),
]


def put(row, place, value):
    """A copy of `row` with `value` at the place, a list of keys and indices."""
    row = copy.deepcopy(row)
    inner = row
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return row


@pytest.mark.parametrize("kind, place, value, problem", CHANGES, ids=[f"{c[0]}-{c[3]}" for c in CHANGES])
def test_one_wrong_field_is_refused_by_its_name(tmp_path, kind, place, value, problem):
    assert refusal(write_lines(tmp_path / "rows.jsonl", put(ROWS[kind], place, value)), kind).startswith(problem)


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in ROWS for name in FIELDS[kind]])
def test_a_missing_field_is_refused_by_its_name(tmp_path, kind, name):
    row = {key: value for key, value in ROWS[kind].items() if key != name}
    assert refusal(write_lines(tmp_path / "rows.jsonl", row), kind).startswith(f"{name} is missing; a {kind} row needs")


def test_a_row_converted_by_hand_needs_no_scores(tmp_path):
    assert list(read(write_lines(tmp_path / "rows.jsonl", CANDIDATE), "preference")) == [CANDIDATE]
    other = put(CANDIDATE, ["responses", 1, "score"], "a key of someone else's")       # checked in preferences only
    assert list(read(write_lines(tmp_path / "rows.jsonl", other), "candidate")) == [other]


def test_duplicate_ids_name_both_lines(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", PROMPT, PROMPT | {"id": "b"}, PROMPT)
    with pytest.raises(BadRow) as error:
        list(read(path, "prompt"))
    assert str(error.value).startswith(f"{path}:3: id stands on line 1 too;")


def test_skipped_rows_are_reported_with_their_line_and_a_reason_that_can_be_counted(tmp_path):
    rows = [PROMPT | {"id": "a", "answers": ["x", ""]}, PROMPT | {"id": "a"},
            PROMPT | {"id": "b", "answers": ["", "x"]}, b"{", PROMPT | {"id": "no picture"}, PROMPT | {"id": "c"}]

    def check(row):
        if row["id"] == "no picture":
            raise UserError("picture is missing; there is no file x.png")

    path, bad = write_lines(tmp_path / "rows.jsonl", *rows), []
    assert [row["id"] for row in read(path, "prompt", True, bad.append, check)] == ["a", "c"]
    assert [str(b).split(": ")[0] for b in bad] == [f"{path}:{n}" for n in (1, 3, 4, 5)]
    assert [b.reason for b in bad][:2] == ["answers[N] is empty"] * 2 and bad[3].reason == "picture is missing"


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n", b"{}\n"])
def test_a_file_without_a_usable_row_is_refused_even_when_bad_rows_are_skipped(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadRow, match="file has no usable row"):
        list(read(path, "prompt", skip_bad=True))


def test_missing_files_folders_and_endless_lines_are_user_errors(tmp_path, monkeypatch):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(UserError, match="check the path"):
            list(read(path, "prompt"))
    monkeypatch.setattr(records, "MAX_LINE", 50)
    assert refusal(write_lines(tmp_path / "rows.jsonl", PROMPT), "prompt").startswith("line is longer than 50 bytes")


VALUES = st.sampled_from([None, True, False, 0, 1, 2, -3, 0.5, 1.0, 1e300, 10**400, "", " ", "\u3000", "standard", "ok",
                          "a <image>", "<image", "\0", [], {}, [[]], ["x"], ["x", "y"], ["x", ""], ["", 1], [0, 1, 2],
                          [2, 1, 0], [1.0, 0, 2], {"source": "s", "answers": ["x", ""]}, {"source": "standard"}])


def places(value, here=()):
    """All places in a row that can be changed, as tuples of keys and indices."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield here + (key,)
        yield from places(inner, here + (key,))


@st.composite
def changed_rows(draw):
    """A kind, and a good row of that kind after one or two changes: another value, a deletion, a repetition."""
    kind = draw(st.sampled_from(sorted(ROWS)))
    row = copy.deepcopy(ROWS[kind])
    for _ in range(draw(st.integers(1, 2))):
        found = list(places(row))
        *outer, last = found[draw(st.integers(0, len(found) - 1))]
        inner = row
        for step in outer:
            inner = inner[step]
        change = draw(st.integers(0, 3))
        if change == 0:
            del inner[last]
        elif change == 1 and isinstance(inner, list):
            inner.append(copy.deepcopy(inner[last]))
        else:
            inner[last] = copy.deepcopy(draw(VALUES))
    return kind, row


@pytest.fixture(scope="module")
def rows_path(tmp_path_factory):
    return tmp_path_factory.mktemp("rows") / "rows.jsonl"


@settings(max_examples=600, **PROPERTY)
@given(changed_rows())
def test_a_changed_row_is_accepted_whole_or_refused_with_its_place(rows_path, kind_and_row):
    kind, row = kind_and_row
    write_lines(rows_path, row)
    try:
        found = list(read(rows_path, kind))
    except BadRow as error:
        assert str(error).startswith(f"{rows_path}:1: ") and "\n" not in str(error) and len(str(error)) < 300
    else:
        assert found == [row]


@st.composite
def damaged_files(draw):
    """Two good lines of one kind with some bytes replaced, removed or put in."""
    kind = draw(st.sampled_from(sorted(ROWS)))
    escaped = draw(st.booleans())
    data = b"".join(json.dumps(ROWS[kind] | {"id": i}, ensure_ascii=escaped).encode() + b"\n" for i in "ab")
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.sampled_from([0, 0, 1, 2, 30, 10_000])))
        tricky = [b"\n", b"\\ud800", b'"', b"NaN", b"{", b"\xef\xbb\xbf", b"\r"]
        new = draw(st.binary(max_size=3) | st.sampled_from(tricky))
        data = data[:start] + new + data[stop:]
    return kind, data


@settings(max_examples=450, **PROPERTY)
@given(damaged_files())
def test_a_damaged_file_gives_rows_or_refusals_and_nothing_else(rows_path, kind_and_data):
    kind, data = kind_and_data
    rows_path.write_bytes(data)
    lines, bad, found = data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), [], []
    try:
        found.extend(read(rows_path, kind, skip_bad=True, on_bad=bad.append))
    except UserError as error:
        assert "file has no usable row" in str(error) or f"{rows_path}: is " in str(error)
    refused = {int(str(error).removeprefix(f"{rows_path}:").split(":")[0]) for error in bad}
    kept = [line for number, line in enumerate(lines, 1) if line.strip() and number not in refused]
    if found:
        assert found == [json.loads(line) for line in kept]
    assert len(refused) == len(bad)


# ---- write ----

def write_all(path, n, settings=None, inputs=(), resume=False, stop_at=None):
    """Write rows 0 … n-1 as a stage does; `stop_at` raises there, as Ctrl-C does."""
    with Writer(path, {"seed": 1, "resume": resume} | (settings or {}), list(inputs), resume) as out:
        for i in range(n):
            if i == stop_at:
                raise KeyboardInterrupt
            if f"row-{i}" not in out.done:
                out.write(PROMPT | {"id": f"row-{i}"})
    return out


def test_the_meta_file_holds_what_a_reader_needs(tmp_path):
    source, path = write_lines(tmp_path / "in.jsonl", PROMPT), tmp_path / "new" / "out.jsonl"
    with Writer(path, {"seed": 3, "resume": False, "where": Path("x")}, [source]) as out:
        out.write(PROMPT)
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


@pytest.mark.parametrize("rows, half", [(0, ""), (0, "{"), (5, ""), (5, '{"id": "row-5", "te'), (5, '{"id": "row-5"}'),
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
    source, path = write_lines(tmp_path / "in.jsonl", PROMPT), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_all(path, 3, {"beams": 4}, [source], stop_at=2)
    before = Path(f"{path}.part").read_bytes()
    with pytest.raises(UserError, match=r"begun with beams = 4, now it is 5; .*delete .*\.part, or drop --resume"):
        write_all(path, 3, {"beams": 5}, [source], resume=True)
    write_lines(source, PROMPT | {"id": "other"})
    with pytest.raises(UserError, match=f"begun with sha256 of {source} = "):
        write_all(path, 3, {"beams": 4}, [source], resume=True)
    Path(f"{path}.part.meta.json").unlink()
    with pytest.raises(UserError, match="with its settings, is lost"):
        write_all(path, 3, {"beams": 4}, [source], resume=True)
    assert Path(f"{path}.part").read_bytes() == before
    write_all(path, 1, {"beams": 5}, [source])      # without resume the old part is simply overwritten
    assert len(path.read_bytes().splitlines()) == 1


def test_writer_refuses_a_folder_its_own_input_a_missing_input_and_an_empty_result(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", PROMPT)
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


# ---- pictures ----

RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(image, name="p.png", **options):
    """The pixels of a picture's first row, saved and opened again."""
    memory = io.BytesIO()
    image.save(memory, name.split(".")[1], **options)
    path = Path(os.environ["PICTURES"]) / name
    path.write_bytes(memory.getvalue())
    opened = pictures.open_image(path)
    assert opened.mode == "RGB"
    return [opened.getpixel((x, 0)) for x in range(opened.width)]


def test_every_kind_of_picture_becomes_upright_8_bit_rgb(tmp_path, monkeypatch):
    monkeypatch.setenv("PICTURES", str(tmp_path))
    palette, clear, turned = Image.new("P", (2, 1)), Image.new("RGBA", (3, 1), (255, 0, 0, 0)), Image.new("RGB", (3, 2))
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    assert pixels(palette) == [(0, 0, 255), RED]
    assert pixels(palette, transparency=1) == [(0, 0, 255), WHITE]
    assert pixels(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "c.tiff") == [RED]
    assert np.abs(np.subtract(pixels(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "c.jpeg")[4], RED)).max() <= 3
    assert pixels(Image.new("L", (1, 1), 100)) == [(100,) * 3] and pixels(Image.new("1", (1, 1), 1)) == [WHITE]
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535, 128]], dtype=np.uint16))
    assert pixels(deep) == [(0,) * 3, (100,) * 3, WHITE, (0,) * 3]
    clear.putpixel((1, 0), (255, 0, 0, 255))
    clear.putpixel((2, 0), (0, 0, 0, 51))           # a fifth of black on white: 255 * 0.8 = 204
    assert pixels(clear) == [WHITE, RED, (204,) * 3] and pixels(Image.new("LA", (1, 1), (0, 0))) == [WHITE]
    assert pixels(Image.new("RGB", (1, 1), RED), transparency=RED) == [WHITE]
    exif = Image.Exif()
    exif[0x0112] = 6                                # the camera was turned: rotate by 90 degrees clockwise to view
    turned.putpixel((0, 0), RED)
    assert pixels(turned, exif=exif) == [(0,) * 3, RED]
    for kind in (np.int32, np.float32):
        with pytest.raises(UserError, match="32-bit values have no fixed white"):
            pixels(Image.fromarray(np.ones((2, 2), kind)), "i.tiff")


def test_files_that_are_no_usable_picture(tmp_path, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for suffix in ("png", "jpg"):
        noise.save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"truncated.{suffix}").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (201, 2)).save(tmp_path / "thin.png")
    (tmp_path / "lfs.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "text.png").write_text("not a picture", encoding="utf-8")
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    for name, problem in [("truncated.png", "cannot be read"), ("truncated.jpg", "truncated"),
                          ("text.png", "none of the formats"), ("empty.png", "none of the formats"),
                          ("missing.png", "missing"), (".", "missing"), ("pipe.png", "missing"),
                          ("thin.png", "is 201 x 2 pixels, a ratio above 100 : 1; crop or replace"),
                          ("lfs.png", "picture is a Git LFS pointer, .*git lfs pull")]:
        with pytest.raises(UserError, match=problem) as error:
            pictures.open_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1599)
    with pytest.raises(UserError, match="picture has 40 x 40 pixels, 1 to 1599 are allowed"):
        pictures.open_image(tmp_path / "whole.png")


@pytest.mark.filterwarnings("ignore")               # Pillow warns about damaged tags before it raises
@settings(max_examples=100, **PROPERTY)
@given(kind=st.sampled_from(pictures.FORMATS),
       edits=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=2)), min_size=1, max_size=3))
def test_a_damaged_picture_opens_or_is_a_user_error(rows_path, kind, edits):
    memory = io.BytesIO()
    Image.linear_gradient("L").resize((19, 17)).convert("RGB").save(memory, kind)
    data = memory.getvalue()
    for place, new in edits:
        data = data[:place] + new + data[place + 1:] if new else data[: place + 1]
    path = rows_path.with_name("damaged")
    path.write_bytes(data)
    try:
        assert pictures.open_image(path).mode == "RGB"
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_image_paths_stay_below_their_root(tmp_path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (tmp_path / "data-other").mkdir()
    (root / "out").symlink_to(tmp_path / "data-other")
    (root / "loop").symlink_to(root / "loop")
    jsonl = root / "rows.jsonl"
    for image in ("images/a.png", "images/../b.png", "./c.png", "ü.png"):
        assert pictures.image_path(PROMPT | {"image": image}, jsonl) == Path(os.path.realpath(root / image))
    with_root = pictures.image_path(PROMPT | {"image": "a.png"}, jsonl, image_root=tmp_path)
    assert with_root == Path(os.path.realpath(tmp_path)) / "a.png"
    for image, problem in [("/etc/passwd", "absolute"), ("../x.png", "leads out"), ("out/x.png", "leads out"),
                           ("images/../../data-other/x", "leads out"), ("a\0b", "no valid file name")]:
        with pytest.raises(BadRow, match=f"rows.jsonl: row 'scene-000017': image .*{problem}") as error:
            pictures.image_path(PROMPT | {"image": image}, jsonl)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        pictures.open_image(pictures.image_path(PROMPT | {"image": "loop"}, jsonl))


# ---- scripts ----

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
    ("batch-size", "0", "at least 1"), ("lr", "nan", "more than 0 and at most 1e\\+38"), ("lr", "1e39", "at most 1e\\+38"),
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
    path = tmp_path / "out.jsonl"
    disk = "the disk is full, or a file larger than allowed; free some space and start again\n"
    # As safetensors says it; test_kill.py has the real thing.
    rust = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    for main, status, line in [
            (raiser(UserError("a.jsonl:3: id is empty;\nfill it in")), 2, "a.jsonl:3: id is empty; fill it in\n"),
            (lambda: write_all(path, 5, stop_at=3), 130, f"interrupted; 3 finished rows are in {path}.part; the same "
             "command with --resume continues there\n"),
            (raiser(KeyboardInterrupt()), 130, "interrupted; nothing was saved, start the same command again\n"),
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
