"""Rows: what is accepted is exact, what is refused is one line that names file, line and field."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp_min import records
from amp_min.records import FIELDS, read
from amp_min.support.script import BadRow, UserError

PROPERTY = dict(deadline=None, derandomize=True, database=None)

PROMPT = {"id": "scene-000017", "image": "images/scene-000017.png",
          "questions": ["Describe the image.", "Is it red?"],
          "answers": ["A red car – „rot“ \U0001f697\u2028.", "Yes."]}
CANDIDATE = {"id": "scene-000017", "image": "images/scene-000017.png",
             "questions": ["Describe the image.", "Red?"],
             "responses": [{"source": "standard", "answers": ["A red car.", "Yes."]},
                           {"source": "large", "answers": ["A car.", ""]},
                           {"source": "small", "answers": ["A", "B"]}]}
PREFERENCE = copy.deepcopy(CANDIDATE) | {"initial_order": [0, 2, 1], "scene": {"any": [1, None, 2.5]}}
for response, value in zip(PREFERENCE["responses"], (None, 0.5, 0), strict=True):
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
    lines = [json.dumps(row).encode() for row in (PROMPT, second)]
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n\r\n  \n" + lines[1])
    assert list(read(path, "prompt")) == [PROMPT, second]
    write_lines(path, PROMPT, b"\xef\xbb\xbf" + json.dumps(second).encode())
    with pytest.raises(BadRow, match=":2: line is not JSON .*BOM"):     # two files glued together
        list(read(path, "prompt"))


LINES = [
    (b'{"id": "a', "line is not JSON"), (b"\xff{}", "line is not UTF-8 at byte 1"), (b"[]", "line is a list"),
    (b'{"id": "a", "id": "b"}', "line has a key twice"),
    (b'{"id": "a", "x": {"y": 1, "y": 1}}', "line has a key twice"),
    (b'{"id": "\\ud83d"}', "'id' holds half a surrogate pair"),
         (b'{"id": {"\\udc00": 1}}', "'id' holds half"),
    (b'{"x": [NaN]}', "'x' holds NaN"), (b'{"x": -Infinity}', "'x' holds NaN"),
         (b'{"x": 1e999}', "'x' holds NaN"),
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
    ("prompt", ["image"], "iVBORw0KGgo" * 2000,
     "image is a base64 text of 22,000 characters, a path belongs there"),
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
    ("preference", ["responses", 1, "score"], None,
     "responses[1].score is null where a finite number belongs"),
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
    assert refusal(write_lines(tmp_path / "rows.jsonl", put(ROWS[kind], place, value)),
                   kind).startswith(problem)


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in ROWS for name in FIELDS[kind]])
def test_a_missing_field_is_refused_by_its_name(tmp_path, kind, name):
    row = {key: value for key, value in ROWS[kind].items() if key != name}
    assert refusal(write_lines(tmp_path / "rows.jsonl", row),
                   kind).startswith(f"{name} is missing; a {kind} row needs")


def test_a_row_converted_by_hand_needs_no_scores(tmp_path):
    assert list(read(write_lines(tmp_path / "rows.jsonl", CANDIDATE), "preference")) == [CANDIDATE]
    other = put(CANDIDATE, ["responses", 1, "score"],
                "a key of someone else's")       # checked in preferences only
    assert list(read(write_lines(tmp_path / "rows.jsonl", other), "candidate")) == [other]


def test_duplicate_ids_name_both_lines(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", PROMPT, PROMPT | {"id": "b"}, PROMPT)
    with pytest.raises(BadRow) as error:
        list(read(path, "prompt"))
    assert str(error.value).startswith(f"{path}:3: id stands on line 1 too;")


def test_skipped_rows_are_reported_with_their_line_and_a_reason_that_can_be_counted(tmp_path):
    rows = [PROMPT | {"id": "a", "answers": ["x", ""]}, PROMPT | {"id": "a"},
            PROMPT | {"id": "b", "answers": ["", "x"]}, b"{", PROMPT | {"id": "no picture"},
            PROMPT | {"id": "c"}]

    def check(row):
        if row["id"] == "no picture":
            raise UserError("picture is missing; there is no file x.png")

    path, bad = write_lines(tmp_path / "rows.jsonl", *rows), []
    assert [row["id"] for row in read(path, "prompt", True, bad.append, check)] == ["a", "c"]
    assert [str(b).split(": ")[0] for b in bad] == [f"{path}:{n}" for n in (1, 3, 4, 5)]
    reasons = [b.reason for b in bad]
    assert reasons[:2] == ["answers[N] is empty"] * 2 and reasons[3] == "picture is missing"


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
    assert refusal(write_lines(tmp_path / "rows.jsonl", PROMPT),
                   "prompt").startswith("line is longer than 50 bytes")


VALUES = st.sampled_from([None, True, False, 0, 1, 2, -3, 0.5, 1.0, 1e300, 10**400, "", " ", "\u3000",
                          "standard", "ok",
                          "a <image>", "<image", "\0", [], {}, [[]], ["x"], ["x", "y"], ["x", ""], ["", 1],
                          [0, 1, 2],
                          [2, 1, 0], [1.0, 0, 2], {"source": "s", "answers": ["x", ""]},
                          {"source": "standard"}])


def places(value, here=()):
    """All places in a row that can be changed, as tuples of keys and indices."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield here + (key,)
        yield from places(inner, here + (key,))


@st.composite
def changed_rows(draw):
    """A kind, and a good row of that kind after one or two changes: a value, a deletion, a repetition."""
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
