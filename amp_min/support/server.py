"""A model that another program serves, behind the protocol that they share: POST URL/chat/completions.

Spoken by vLLM, SGLang and `transformers serve`; URL ends in /v1. So a 34B model, or a judge, runs on the
engine that somebody already has. A key, where one is needed, comes from the environment's OPENAI_API_KEY.
"""

import base64
import io
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from amp_min.support.pictures import open_image
from amp_min.support.script import UserError

try:
    import httpx
except ImportError:              # optional: nothing else needs it
    httpx = None

# What is asked and may not happen there. vLLM's repetition penalty counts the words of the prompt, too, and
# the protocol has no way to forbid special tokens.
MAY_IGNORE = ["repetition_penalty", "seed", "no special tokens"]
WAITS = (1, 2, 4, 8, 16)         # seconds before each new try: a server that is starting or full recovers


def connect(url):
    """A client for `complete` and `ask`; it may be shared by threads."""
    if httpx is None:
        raise UserError("--server needs the package httpx: pip install 'amp-min[serving]'")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--server {url}: give the address up to /v1, such as http://localhost:8000/v1")
    return httpx.Client(base_url=url.rstrip("/") + "/", timeout=600,
                        headers={"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"})


def complete(client, model, messages, **settings):
    """One answer: (text, whether it was cut off at max_tokens). settings: more keys of the request's body.

    Tried again while the server cannot be reached or says that it is busy; then, and for any other refusal,
    UserError.
    """
    for wait in (*WAITS, None):
        busy = True
        try:
            reply = client.post("chat/completions", json={"model": model, "messages": messages, **settings})
            if reply.status_code == 200:
                choice = reply.json()["choices"][0]
                return choice["message"]["content"].strip(), choice.get("finish_reason") == "length"
            busy = reply.status_code in (408, 429) or reply.status_code >= 500
            problem = f"refused with status {reply.status_code}: {' '.join(reply.text.split())[:160]}"
        except httpx.TransportError as error:
            problem = f"cannot be reached: {' '.join(str(error).split())[:160] or type(error).__name__}"
        except (ValueError, LookupError, TypeError, AttributeError):
            busy = False
            problem = "replied with something else than a chat completion; does the URL end in /v1?"
        if not busy or wait is None:
            raise UserError(f"{client.base_url}: {problem}")
        time.sleep(wait)


def ask(client, model, messages, **settings):
    """The text of one answer, see `complete`."""
    return complete(client, model, messages, **settings)[0]


def converse(client, model, pictures, questions, decoding, at_once, seeds=None):
    """What decoding.converse gives, from a server: (N lists of answers, N lists of bools).

    pictures: N paths; questions: N lists; decoding, seeds: as there; at_once: how many are under way.
    """
    # What is off is not sent: some servers refuse a request with a key that they do not know.
    body = {"temperature": decoding.get("temperature", 0), "max_tokens": decoding["max_new_tokens"]}
    if decoding["repetition_penalty"] != 1:
        body["repetition_penalty"] = decoding["repetition_penalty"]

    def talk(i):
        # Sent as we would see it, upright and in RGB, without loss: the server gets the same pixels.
        png = io.BytesIO()
        open_image(pictures[i]).save(png, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
        picture, messages, answers = [{"type": "image_url", "image_url": {"url": url}}], [], []
        for turn, question in enumerate(questions[i]):
            content = picture * (turn == 0) + [{"type": "text", "text": question}]
            messages.append({"role": "user", "content": content})
            drawn = {"seed": random.Random(f"{seeds[i]} {turn}").getrandbits(31)} if seeds else {}
            answers.append(complete(client, model, messages, **body, **drawn))
            messages.append({"role": "assistant", "content": answers[-1][0]})
        return answers

    # map keeps the order, and cancels what has not begun when one conversation fails.
    with ThreadPoolExecutor(at_once) as pool:
        talks = pool.map(talk, range(len(questions)))
        found = list(tqdm(talks, total=len(questions), desc=model, unit="conversation", disable=None))
    return [[text for text, _ in one] for one in found], [[cut for _, cut in one] for one in found]
