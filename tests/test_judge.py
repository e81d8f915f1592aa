"""Requests to a judge and its replies: what is written, what parses, and that nothing is filled in silently."""
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp_min import metrics
from amp_min.judge import __main__ as judge
from amp_min.support.script import UserError


def item(name="d7", turn=1, **more):
    return {"id": name, "round": turn, "question": f"Q{turn}?", "reference": f"R{turn}.", "answer": f"A{turn}.", **more}


def replies(path, *rows):
    """Rows as JSON lines; bytes stand for a whole line as it is."""
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def reply(text, name="d7", turn=1):
    return {"id": name, "round": turn, "reply": text}


# ---- requests ----

def test_requests_file(tmp_path):
    path = tmp_path / "requests.jsonl"
    items = [item(turn=1), item(turn=2, answer="Ein Löwe — 狮子"), item("d8")]
    written = judge.write_requests(path, items)
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert read == written and len(read) == 3
    for row, given_item in zip(read, items, strict=True):
        assert list(row) == ["id", "round", "question", "reference", "answer", "prompt"]
        assert {field: row[field] for field in judge.FIELDS} == given_item
        for field in ("question", "reference", "answer"):
            assert f"<<<{given_item[field]}>>>" in row["prompt"]
    assert [path.name for path in tmp_path.iterdir()] == ["requests.jsonl"]


def test_prompt_holds_the_scale_the_format_and_what_is_known(tmp_path):
    prompt = judge.write_requests(tmp_path / "r", [item(image_content=["cat", "sofa"])])[0]["prompt"]
    for n in range(7):
        assert f"\n{n}  " in prompt
    assert "\nRating: N\n" in prompt and "cat, sofa" in prompt
    assert "The image shows" not in judge.write_requests(tmp_path / "r", [item()])[0]["prompt"]


def test_a_later_round_sees_the_earlier_ones_of_its_own_dialogue(tmp_path):
    first, other, third = [row["prompt"] for row in judge.write_requests(
        tmp_path / "r", [item(turn=1), item("d8", 2, question="Else?"), item(turn=3)])]
    assert "<<<Q1?>>>" in third and "<<<A1.>>>" in third and "Else?" not in third
    assert "Q3?" not in first and "Q1?" not in other


def test_llava_bench_is_judged_beside_its_reference(tmp_path):
    asked, = judge.write_requests(tmp_path / "r", [item(benchmark="llava-bench", kind="conv", image_content="a cat: [0, 0, 1, 1]")])
    assert asked["benchmark"] == "llava-bench" and asked["kind"] == "conv" and "Rating:" not in asked["prompt"]
    for words in "<<<a cat: [0, 0, 1, 1]>>>", "<<<Q1?>>>", "Assistant 1: <<<R1.>>>", "Assistant 2: <<<A1.>>>", "1 to 10":
        assert words in asked["prompt"]


def test_braces_in_an_answer_are_harmless(tmp_path):
    assert "{answer}{0}" in judge.write_requests(tmp_path / "r", [item(answer="{answer}{0}")])[0]["prompt"]


def test_bad_requests_are_named_and_leave_no_file(tmp_path):
    lacking = item(turn=2)
    del lacking["reference"]
    with pytest.raises(UserError, match='request 2 lacks "reference"'):
        judge.write_requests(tmp_path / "r", [item(), lacking])
    with pytest.raises(UserError, match="request 3 repeats id 'd7', round 1"):
        judge.write_requests(tmp_path / "r", [item(), item("d8"), item()])
    assert not list(tmp_path.iterdir())


# ---- one reply ----

@pytest.mark.parametrize("text, rating", [
    ("Rating: 4", 4), ("rating: 0", 0), ("Fine.\nRating:6\n", 6), ("**Rating:** 5", 5), ("**Rating: 3**", 3),
    ("Rating: 2, very informative, with hallucination", 2), ("Rating: 4. Objects are missing.\n2 of them", 4), ("Rating:\n1", 1),
    ("Rating: 3/6", 3), ("**Rating:** 3 of 6.", 3), ("Rating: 0 out of 6", 0), ("In 2 words. Rating: 5", 5),
])
def test_ratings_that_parse(text, rating):
    assert judge.parse_rating(text) == (rating, None)


@pytest.mark.parametrize("text, problem", [
    ("", "occurs 0 times"), ("4", "occurs 0 times"), ("The rating is 4", "occurs 0 times"),
    ("Rating: 4\nRating: 5", "occurs 2 times"), ('It says "Rating: 6" itself.\nRating: 1', "occurs 2 times"),
    ("Rating: four", "no whole number"), ("Rating: N", "no whole number"), ("Rating: ", "no whole number"),
    ("Rating: 4.5", "no whole number"), ("Rating: 3/7", "no whole number"), ("Rating: 3-4", "no whole number"),
    *((f"Rating: {both}", "no whole number") for both in (
        "3 or 4", "4 to 5", "3~4", "4. 2 are missing", "3/60", "3 of 6 or 4 of 6", "3/6.5")),
    ("Rating: 3 – 4", "no whole number"), ("Rating: 4,5", "no whole number"),
    ("Rating: 7", "7 is outside"), ("Rating: -1", "-1 is outside"), ("Rating: 60", "60 is outside"),
    ("Rating: 12.5", "no whole number"),
    (4, "not a text"), (None, "not a text"),
])
def test_ratings_that_do_not_parse(text, problem):
    rating, why = judge.parse_rating(text)
    assert rating is None and problem in why


@pytest.mark.parametrize("text, scores", [
    ("8 7", (8, 7)), ("8 7\nBecause 3 is less.", (8, 7)), ("\n 8.5, 10 \n", (8.5, 10)), ("1\t1.", (1, 1)),
])
def test_pairs_of_scores_that_parse(text, scores):
    assert judge.parse_scores(text) == (scores, None)


@pytest.mark.parametrize("text, problem", [
    ("", "two numbers"), ("8", "two numbers"), ("8\n7", "two numbers"), ("8,7", "two numbers"), ("8 7 6", "two numbers"),
    ("Assistant 1: 8 Assistant 2: 7", "two numbers"), ("8/10 7/10", "two numbers"), ("Here: 8 7", "two numbers"),
    ("8-7", "two numbers"), ("-1 -1", "two numbers"), ("0 5", "outside 1 to 10"), ("5 11", "outside 1 to 10"), (None, "not a text"),
])
def test_pairs_of_scores_that_do_not_parse(text, problem):
    scores, why = judge.parse_scores(text)
    assert scores is None and problem in why


# ---- a file of replies ----

def test_nothing_takes_a_neighbours_rating(tmp_path):
    requests = [item("a"), item("b"), item("c"), item("d"), item("e")]
    path = replies(tmp_path / "replies.jsonl",
                   reply("Rating: 6", "a"), reply("no idea", "b"), reply("Rating: 9", "c"),
                   reply("Rating: 1", "d"), reply("Rating: 1", "d"))
    ratings, report = judge.read_replies(path, requests)
    assert ratings == {("a", 1): 6, ("b", 1): None, ("c", 1): None, ("d", 1): None, ("e", 1): None}
    assert [(entry["id"], entry["line"]) for entry in report] == [("b", 2), ("c", 3), ("d", 4), ("e", None)]
    problems = ["occurs 0 times", "9 is outside 0 to 6", "2 replies, on lines 4, 5", "no reply"]
    for entry, problem in zip(report, problems, strict=True):
        assert problem in entry["problem"]


def test_order_of_replies_does_not_matter_and_rounds_are_kept_apart(tmp_path):
    requests = [item(turn=1), item(turn=2), item("d8", 1)]
    path = replies(tmp_path / "r", reply("Rating: 3", "d8"), b"", reply("Rating: 2", turn=2), reply("Rating: 1"))
    ratings, report = judge.read_replies(path, requests)
    assert list(ratings.items()) == [(("d7", 1), 1), (("d7", 2), 2), (("d8", 1), 3)]
    assert report == []


@pytest.mark.parametrize("line", [
    b"{", b"[]", b'"id"', b"3", b"null", b'{"id": "d7", "round": 1}', b'{"id": [], "round": 1, "reply": ""}',
    b'{"id": "d7", "round": 1, "reply": "\xff"}',
])
def test_an_unreadable_line_costs_that_line_only(tmp_path, line):
    path = replies(tmp_path / "r", line, reply("Rating: 5", turn=2))
    ratings, report = judge.read_replies(path, [item(), item(turn=2)])
    assert ratings == {("d7", 1): None, ("d7", 2): 5}
    assert [(entry["line"], entry["id"]) for entry in report] == [(1, None), (None, "d7")]


def test_a_round_that_became_a_text_is_the_same_round(tmp_path):
    path = replies(tmp_path / "r", reply("Rating: 4", turn="1"), reply("Rating: 5", turn="2"), reply("Rating: 6", turn="two"))
    ratings, report = judge.read_replies(path, [item(), item(turn=2)])
    assert ratings == {("d7", 1): 4, ("d7", 2): 5}
    assert [(entry["round"], entry["line"]) for entry in report] == [("two", 3)]


def test_a_reply_that_nobody_asked_for_is_reported(tmp_path):
    path = replies(tmp_path / "r", reply("Rating: 5"), reply("Rating: 6", "other"), reply("Rating: 6", turn=9))
    ratings, report = judge.read_replies(path, [item()])
    assert ratings == {("d7", 1): 5}
    assert [(entry["id"], entry["round"], entry["line"]) for entry in report] == [("other", 1, 2), ("d7", 9, 3)]


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="replies.jsonl: no such file") as error:
        judge.read_replies(tmp_path / "replies.jsonl", [item()])
    assert "\n" not in str(error.value)


# ---- results ----

def test_results_rest_on_rated_rounds_and_say_how_many(tmp_path):
    ratings = {("a", 1): 6, ("a", 2): None, ("b", 1): 0, ("b", 2): 3, ("c", 1): None}
    got = judge.results(ratings)
    assert {name: got.pop(name) for name in ("asked", "rated", "unrated", "dialogues", "dialogues_unrated")} == \
        {"asked": 5, "rated": 3, "unrated": 2, "dialogues": 3, "dialogues_unrated": 1}
    assert got == metrics.mrhal([[6], [0, 3]])
    assert got["score_cumulative"] == 3.0 and got["score_mean"] == (6 + 1.5) / 2


def test_results_of_nothing_rated_are_none_not_zero():
    got = judge.results({("a", 1): None})
    assert got["unrated"] == 1 and got["score_mean"] is None and got["hallucination_cumulative"] is None


def test_figures_of_each_benchmark_rest_on_its_own_replies(tmp_path):
    """Replies in another order, one that does not parse, and an id that two benchmarks share."""
    asked = judge.write_requests(tmp_path / "requests", [
        *(item(f"mmhal/{n}", benchmark="mmhal", kind=kind) for n, kind in enumerate(["count", "color", "count"])),
        *(item(f"llava-bench/{n}", benchmark="llava-bench", kind=kind) for n, kind in enumerate(["conv", "detail", "conv"])),
        item("mrhal/0", 1, benchmark="mrhal"), item("mrhal/0", 2, benchmark="mrhal")])
    assert judge.read_requests(tmp_path / "requests") == asked
    path = replies(tmp_path / "replies", reply("8 4", "llava-bench/2"), reply("Rating: 5", "mmhal/2"), reply("Rating: 1", "mmhal/0"),
                   reply("10 5", "llava-bench/0"), reply("Rating: 9", "mmhal/1"), reply("good", "llava-bench/1"),
                   reply("Rating: 2", "mrhal/0", 2), reply("Rating: 6", "mrhal/0"))
    ratings, report = judge.read_replies(path, asked)
    assert [(one["id"], one["line"]) for one in report] == [("mmhal/1", 5), ("llava-bench/1", 6)]
    assert judge.figures(asked, ratings) == {
        "mmhal": {"asked": 3, "rated": 2, "unrated": 1} | metrics.mmhal([1, 5], ["count", "count"]),
        "llava-bench": {"asked": 3, "rated": 2, "unrated": 1} | metrics.llava_bench([(10, 5), (8, 4)], ["conv", "conv"]),
        "mrhal": judge.results({("mrhal/0", 1): 6, ("mrhal/0", 2): 2})}
    nothing = judge.figures(asked, dict.fromkeys(ratings))
    assert nothing["mmhal"] == {"asked": 3, "rated": 0, "unrated": 3} and nothing["mrhal"]["score_mean"] is None


def test_a_served_judge_is_asked_for_what_is_not_there_yet(tmp_path):
    asked = judge.write_requests(tmp_path / "requests", [item(turn=turn) for turn in (1, 2, 3, 4)])
    path, heard = tmp_path / "replies", []

    def ask(messages):
        heard.append(messages[0]["content"])
        if heard[-1] == asked[2]["prompt"] and stubborn:
            raise UserError("http://judge: does not answer")
        return f"Ünsure.\nRating: {len(heard[-1]) % 7}"
    replies(path, reply("no rating", turn=2))
    path.write_bytes(path.read_bytes() + b'{"id": "d7", "rou')            # a line that a kill has cut
    stubborn = True
    with pytest.raises(UserError, match="does not answer"):
        judge.ask_server(ask, asked, path, workers=1)
    stubborn = False
    judge.ask_server(ask, asked, path)
    judge.ask_server(ask, asked, path)                                   # nothing is left to ask
    assert heard.count(asked[0]["prompt"]) == 1 and asked[1]["prompt"] not in heard      # the 4th may have been under way
    ratings, report = judge.read_replies(path, asked)
    assert [rating is None for rating in ratings.values()] == [False, True, False, False]
    assert [(one["id"], one["line"]) for one in report] == [(None, 2), ("d7", 1)]


keys, outcomes = st.tuples(st.sampled_from("abc"), st.integers(1, 3)), st.one_of(st.none(), st.integers(0, 6))


@given(st.dictionaries(keys, outcomes, min_size=1))
@settings(deadline=None, max_examples=50)
def test_there_and_back(tmp_path_factory, truth):
    folder = tmp_path_factory.mktemp("judge")
    requests = judge.write_requests(folder / "requests", [item(*key) for key in truth])
    rows = [reply(f"Because.\nRating: {rating}", *key) for key, rating in truth.items() if rating is not None]
    ratings, report = judge.read_replies(replies(folder / "replies", *reversed(rows)), requests)
    assert ratings == truth
    assert {(entry["id"], entry["round"]) for entry in report} == {key for key in truth if truth[key] is None}
    assert judge.results(ratings)["rated"] == len(rows)


def test_the_command_reads_what_came_back(tmp_path, capsys):
    judge.write_requests(tmp_path / "requests", [item(turn=1), item(turn=2)])
    path = replies(tmp_path / "replies", reply("Rating: 5", turn=1), reply("Rating: 5 or so, Rating: 4", turn=2))
    judge.main(["--requests", str(tmp_path / "requests"), "--replies", str(path), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    first, rest = printed.split("\n", 1)
    assert first == f"{path}:2: \"Rating:\" occurs 2 times, expected once (id 'd7', round 2)"
    assert json.loads(rest) == {"mrhal": judge.results({("d7", 1): 5, ("d7", 2): None})}
    assert json.loads((tmp_path / "out").read_text(encoding="utf-8")) == json.loads(rest)
    with pytest.raises(UserError, match="--server and --judge: give both"):
        judge.main(["--requests", str(tmp_path / "requests"), "--replies", str(path), "--server", "http://x"])
    (tmp_path / "requests").write_text("[3]\n", encoding="utf-8")
    with pytest.raises(UserError, match="is no file of requests"):
        judge.main(["--requests", str(tmp_path / "requests"), "--replies", str(path)])
