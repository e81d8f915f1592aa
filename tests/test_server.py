"""A served model: the same rows as without a server, from a tiny server of our own and from a real one.

The real one is `transformers serve`. It needs packages that nothing else here does; in a folder of their own:

    pip install --target DIR openai fastapi uvicorn python-multipart pydantic starlette rich
    SERVING=DIR python -m pytest -m serve tests/test_server.py
"""
import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from test_generate import header_rows, run
from test_pipeline import lines, meta

from amp_min.support import server
from amp_min.support.pictures import open_image
from amp_min.support.script import UserError


@pytest.fixture
def serve():
    """A function that starts a server; each request's body goes to `reply` -> (status, object or text)."""
    running = []

    def start(reply):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, said = reply(body) if self.path == "/v1/chat/completions" else (404, "no such page")
                content = (said if isinstance(said, str) else json.dumps(said)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}/v1"

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


def said(text, finish="stop"):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


@pytest.fixture
def header(tiny_world, tmp_path):
    """(flags to ask about the header's input row, its picture, the output row that the header promises)."""
    given, promised = header_rows()
    picture = next((tiny_world / "eval" / "images").iterdir())
    (tmp_path / given["image"]).write_bytes(picture.read_bytes())
    (tmp_path / "prompts.jsonl").write_text(json.dumps(given) + "\n", encoding="utf-8")
    flags = ["--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "out.jsonl", "--beams", 1]
    return flags, picture, promised


def test_a_server_gives_the_row_of_the_header(serve, header, tmp_path):
    """Its very bytes, two rounds a dialogue, each on the model's own earlier answers and on our pixels."""
    flags, picture, promised = header
    answers, seen = {one["source"]: one["answers"] for one in promised["responses"]}, []

    def reply(body):
        seen.append(body)
        messages = body["messages"]
        assert [one["content"] for one in messages[1::2]] == answers[body["model"]][:len(messages) // 2]
        texts = [part["text"] for one in messages[::2] for part in one["content"] if part["type"] == "text"]
        assert texts == promised["questions"][:len(texts)]
        return said(f" {answers[body['model']][len(messages) // 2]}")

    url = serve(reply)
    run(*flags, "--models", "llava-34b", "llava-13b", "--server", url)
    assert lines(tmp_path / "out.jsonl") == [promised]
    assert meta(tmp_path / "out.jsonl")["generated"]["server_may_ignore"] == server.MAY_IGNORE
    first = seen[0]
    assert (first["temperature"], first["max_tokens"], first["repetition_penalty"]) == (0, 512, 1.1)
    data = first["messages"][0]["content"][0]["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == open_image(picture).tobytes()


def test_answers_come_in_order_several_at_once_and_go_on_after_an_interruption(serve, tiny_world, tmp_path):
    prompts = tiny_world / "preference" / "prompts.jsonl"
    rows, together, most, asked, lock = lines(prompts), 0, 0, [], threading.Lock()

    def reply(body):
        nonlocal together, most
        with lock:
            together, most, number = together + 1, max(most, together + 1), len(asked)
            asked.append(body)
        time.sleep(0.02 if number % 3 else 0.1)                         # later ones end earlier
        with lock:
            together -= 1
        if number == broken_after:
            return 400, "out of order"
        asked_for = [part for one in body["messages"][::2] for part in one["content"]]
        text = " ".join(part["text"] for part in asked_for if "text" in part)
        return said(f"{body.get('seed')} {text}", "length" if len(body["messages"]) > 1 else "stop")

    flags = ["--strategy", "self", "--models", "m", "--samples", 2, "--prompts", prompts,
             "--server", serve(reply), "--batch", 4, "--block", 2]
    broken_after = None
    run(*flags, "--out", tmp_path / "whole.jsonl")
    made = lines(tmp_path / "whole.jsonl")
    assert [row["id"] for row in made] == [row["id"] for row in rows] and most == 4
    for row in made:
        _, one, other = row["responses"]
        assert one["answers"][0].endswith(row["questions"][0])
        assert one["answers"] != other["answers"]                       # seeds of their own
        assert one.get("cut", [False]) == [turn > 0 for turn in range(len(row["questions"]))]
    whole, broken_after = len(asked), len(asked) + len(asked) // 2
    with pytest.raises(UserError, match="refused with status 400: out of order"):
        run(*flags, "--out", tmp_path / "broken.jsonl")
    broken_after, before = None, len(asked)
    run(*flags, "--out", tmp_path / "broken.jsonl", "--resume")
    assert (tmp_path / "broken.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(asked) - before < whole                                  # what was there was not asked again


def test_retries_end_in_one_line(serve, monkeypatch):
    monkeypatch.setattr(server, "WAITS", (0.01, 0.01))
    busy, tries = [503, 429, 200], []

    def reply(body):
        tries.append(body)
        status = busy[min(len(tries), len(busy)) - 1]
        return (status, "busy\nnow") if status != 200 else said("Yes.")

    url = serve(reply)
    assert server.ask(server.connect(url), "m", [], temperature=0) == "Yes." and len(tries) == 3
    busy, tries = [503], []
    with pytest.raises(UserError, match=f"^{url}/: refused with status 503: busy now$"):
        server.ask(server.connect(url), "m", [])
    assert len(tries) == 3
    nobody = "http://127.0.0.1:9/v1"
    for wrong, says in (url.replace("/v1", ""), "refused with status 404"), (nobody, "cannot be reached"):
        with pytest.raises(UserError, match=says):
            server.ask(server.connect(wrong), "m", [])
    with pytest.raises(UserError, match="replied with something else than a chat completion"):
        server.ask(server.connect(serve(lambda body: (200, {"hello": 1}))), "m", [])
    with pytest.raises(UserError, match="give the address up to /v1"):
        server.connect("localhost:8000")


def test_what_a_server_cannot_do_is_refused(header, capsys):
    flags, _, _ = header
    with pytest.raises(UserError, match="the protocol has no beam search; add --beams 1"):
        run(*flags[:-1], 4, "--models", "m", "--server", "http://127.0.0.1:9/v1")


@pytest.mark.serve
def test_transformers_serve_gives_the_answers_that_we_give(family, tiny_world, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", "--port", port, "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": os.environ["SERVING"], "HF_HUB_OFFLINE": "1"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        prompts = tiny_world / "preference" / "prompts.jsonl"
        flags = ["--models", family / "llava-2b", "--prompts", prompts, "--beams", 1, "--max-new-tokens", 16,
                 "--repetition-penalty", 1, "--batch", 2]
        run(*flags, "--out", tmp_path / "served.jsonl", "--server", f"http://127.0.0.1:{port}/v1")
        run(*flags, "--out", tmp_path / "here.jsonl")
        assert lines(tmp_path / "served.jsonl") == lines(tmp_path / "here.jsonl")
    finally:
        process.terminate()
        process.wait()
