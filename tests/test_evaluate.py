"""amp_min.evaluate on benchmark folders: what an answer row holds, what is scored, what a judge is asked, what is refused."""
import json
from pathlib import Path

import pytest

from amp_min import mllm
from amp_min.evaluate import __main__ as evaluate
from amp_min.judge import __main__ as judge
from amp_min.metrics import NAMES
from amp_min.support import script, storage
from amp_min.world import oracle


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def measure(model, data, out, *flags):
    evaluate.main(["--model", str(model), "--data", str(data), "--out", str(out), "--max-new-tokens", "4", *map(str, flags)])
    return json.loads(Path(out).read_text(encoding="utf-8"))["metrics"]


@pytest.fixture(scope="module")
def whole(tiny_world, family, tmp_path_factory):
    """Results of an unbroken run."""
    out = tmp_path_factory.mktemp("whole") / "whole.json"
    measure(family / "llava-2b", tiny_world / "eval", out, *SMALL)
    return out


SMALL = ["--limit", 5, "--batch", 3, "--max-new-tokens", 24]


def test_an_interrupted_run_goes_on_behind_its_last_row(whole, tiny_world, family, tmp_path, monkeypatch):
    """Broken off inside a block of sampled descriptions, and again in the dialogues: the files of an unbroken run."""
    broken = tmp_path / "broken.json"
    again = lambda: measure(family / "llava-2b", tiny_world / "eval", broken, *SMALL, "--resume")
    write = storage.Writer.write
    for last in 7, 17:
        def stop(out, row, last=last):
            if len(out.done) + out.written == last:
                raise KeyboardInterrupt
            write(out, row)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(storage.Writer, "write", stop)
            again()
        assert not broken.exists() and len(Path(f"{broken}.answers.jsonl.part").read_bytes().splitlines()) == last
    found = again()
    assert Path(f"{broken}.answers.jsonl").read_bytes() == Path(f"{whole}.answers.jsonl").read_bytes()
    assert found == json.loads(whole.read_text(encoding="utf-8"))["metrics"]
    assert found.keys() >= set(NAMES) - {"pope_popular_f1", "pope_adversarial_f1"}       # --limit ends before them
    monkeypatch.setattr(mllm, "load", None)                              # finished: nothing is loaded, the scores are read
    assert again() == found


def test_answer_rows_hold_what_a_score_needs(whole, tiny_world):
    said = lines(f"{whole}.answers.jsonl")
    assert evaluate.scores(said) == json.loads(whole.read_text(encoding="utf-8"))["metrics"]
    rows = {(name, row["id"]): row for name in ("captions", "pope", "mrhal") for row in lines(tiny_world / "eval" / f"{name}.jsonl")}
    for one in said:
        row = rows[one["benchmark"].split("_")[0], one["id"]]
        assert one["decoding"] == ("sampled" if one["benchmark"] == "captions_sampled" else "greedy")
        if one["benchmark"] == "pope":
            assert (one["label"], one["split"]) == (row["label"], row["split"])
        elif one["benchmark"] == "mrhal":
            assert one["aspects"] == row["aspects"] and one["ratings"] == oracle.row_ratings(one["answers"], row["answers"], row["scene"])
        else:
            text, scene = one["answers"][0], row["scene"]
            assert set(one["mentioned"]) == oracle.mentioned(text) and set(one["present"]) == oracle.present(scene)
            assert one["claims"] == oracle.tally(text, scene)


def test_false_claims_by_hand():
    """Figures from answer rows alone: every claim of every description, in all and by what it is about."""
    said = [{"benchmark": f"captions_{how}", "mentioned": ["car"], "present": ["car"],
             "claims": {"objects": [0, 1], "colors": wrong}} for how, wrong in (("greedy", [0, 1]), ("greedy", [1, 1]), ("sampled", [1, 3]))]
    found = evaluate.scores(said)
    assert found["claims_by_kind_greedy"] == {"objects": [0, 2], "colors": [1, 2]} and found["false_claims_greedy"] == 1 / 4
    assert found["claims_by_kind_sampled"] == {"objects": [0, 1], "colors": [1, 3]} and found["false_claims_sampled"] == 1 / 4


def test_answers_that_are_none_are_counted_beside_pope_s_own_figures():
    said = [{"benchmark": "pope", "answers": [text], "label": label, "split": "random"}
            for text, label in (("", "yes"), ("Hm.", "no"), ("Yes.", "yes"), ("No.", "no"))]
    found = evaluate.scores(said)
    assert (found["pope_unclear"], found["pope_yes_ratio"], found["pope_accuracy"]) == (0.5, 0.75, 0.75)


def test_descriptions_without_a_scene_are_answered_and_said_to_be_unmeasured(tiny_world, family, tmp_path, capsys):
    rows = lines(tiny_world / "eval" / "captions.jsonl")[:2]
    for row in rows:
        del row["scene"]
    write(tmp_path / "captions.jsonl", rows)
    out = tmp_path / "results.json"
    assert measure(family / "llava-2b", tmp_path, out, "--image-root", tiny_world / "eval") == {}
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"{tmp_path / 'captions.jsonl'}: 2 rows without a scene, CHAIR is left out; their answers are in {out}.answers.jsonl",
        f"{out}: nothing was measured, it holds no figure"]
    assert len(lines(f"{out}.answers.jsonl")) == 4


def test_dialogues_without_a_scene_become_requests(tmp_path, tiny_world, family, capsys):
    """Rows of a real benchmark have no scene: no CHAIR, no ratings, but requests for a judge."""
    rows = lines(tiny_world / "eval" / "mrhal.jsonl")
    for row, foreign in zip(rows, ["indoor", None, {"groups": 3}, {"groups": [{"kind": "car"}]}] * len(rows)):
        del row["aspects"]
        row["scene"] = foreign                                           # another data set's key of the same name
    write(tmp_path / "mrhal.jsonl", rows)
    assert measure(family / "llava-2b", tmp_path, tmp_path / "results.json", "--image-root", tiny_world / "eval") == {}
    rounds = sum(len(row["questions"]) for row in rows)
    asked, printed = lines(tmp_path / "results.requests.jsonl"), capsys.readouterr().out
    assert len(asked) == rounds and f"{rounds} requests for a judge" in printed and "nothing was measured yet" in printed
    assert [(one["id"], one["round"]) for one in asked[:2]] == [(f"mrhal/{rows[0]['id']}", 1), (f"mrhal/{rows[0]['id']}", 2)]


def test_mmhal_and_llava_bench_from_rows_to_figures(tmp_path, tiny_world, family, capsys):
    """Open questions of two benchmarks whose ids are equal, through the model, a judge's replies and back."""
    images = sorted(path.name for path in (tiny_world / "eval/images").iterdir())
    rows = lambda more: [{"id": str(n), "image": images[n], "questions": [f"What is at place {n}?"], "answers": [f"Thing {n}."]}
                         | more(n) for n in range(3)]
    write(tmp_path / "mmhal.jsonl", rows(lambda n: {"question_type": ["count", "color"][n % 2], "image_content": ["car"]}))
    write(tmp_path / "llava-bench.jsonl", rows(lambda n: {"category": ["conv", "detail"][n % 2], "context": f"scene {n}"}))
    out = tmp_path / "results.json"
    assert measure(family / "llava-2b", tmp_path, out, "--image-root", tiny_world / "eval/images") == {}
    asked = lines(tmp_path / "results.requests.jsonl")
    said = {(one["benchmark"], one["id"]): one["answers"][0] for one in lines(f"{out}.answers.jsonl")}
    assert [(one["benchmark"], one["id"], one["kind"]) for one in asked] == [
        ("mmhal", "mmhal/0", "count"), ("mmhal", "mmhal/1", "color"), ("mmhal", "mmhal/2", "count"),
        ("llava-bench", "llava-bench/0", "conv"), ("llava-bench", "llava-bench/1", "detail"), ("llava-bench", "llava-bench/2", "conv")]
    for one in asked:
        assert one["answer"] == said[one["benchmark"], one["id"].split("/")[1]] and f"<<<{one['reference']}>>>" in one["prompt"]
        assert f"<<<scene {one['id'][-1]}>>>" in one["prompt"] or "<<<car>>>" in one["prompt"]
    texts = ["Rating: 6", "Rating: 2", "Rating: 1", "8 4", "10 10", "8 6"]
    write(tmp_path / "replies", [{"id": one["id"], "round": 1, "reply": text} for one, text in zip(asked, texts)][::-1])
    capsys.readouterr()
    judge.main(["--requests", str(tmp_path / "results.requests.jsonl"), "--replies", str(tmp_path / "replies")])
    found = json.loads(capsys.readouterr().out)
    assert found["mmhal"]["score"] == 3 and found["mmhal"]["per_type"]["color"]["hallucination"] == 1
    assert found["llava-bench"]["per_category"]["conv"]["relative"] == 62.5 and found["llava-bench"]["n"] == 3


def refused(flags, out, capsys, *says):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        script.run(lambda: evaluate.main([str(flag) for flag in flags]))
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and len(err) < 300 + len(str(out)), err
    assert not Path(out).exists() and all(text in err for text in says), err


def test_folders_and_rows_are_refused(family, tiny_world, tmp_path, capsys):
    out = tmp_path / "results.json"
    flags = ["--model", family / "llava-2b", "--out", out, "--image-root", tiny_world / "eval", "--data", tmp_path]
    refused(flags, out, capsys, f"{tmp_path}: holds none of captions.jsonl, pope.jsonl, mrhal.jsonl, mmhal.jsonl")
    row = lines(tiny_world / "eval" / "pope.jsonl")[0]
    for change in {"label": "maybe"}, {"label": None}, {"split": None}:
        wrong = {key: value for key, value in (row | change).items() if value is not None}
        write(tmp_path / "pope.jsonl", [wrong])
        refused(flags, out, capsys, f"row '{row['id']}'", "label", "split")
    (tmp_path / "pope.jsonl").unlink()
    open_question = {"id": "a", "image": "none.jpg", "questions": ["What?"], "answers": ["It."], "question_type": "count"}
    for change, says in (({"question_type": 3}, "row 'a' has no text question_type"),
                         ({"image": "http://x/a.jpg"}, "image is a URL, 'http://x/a.jpg', a path belongs there; download it to a file"),
                         ({"image_src": "http://x/none.jpg"}, f"fetch it: wget -nc -P {tiny_world / 'eval'} http://x/none.jpg")):
        write(tmp_path / "mmhal.jsonl", [open_question | change])
        refused(flags, out, capsys, "mmhal.jsonl:1: ", says)
