"""A conversation as the text and the tokens that a LLaVA was trained on, by its own chat template.

    USER: <image>\nIs there a dog? ASSISTANT: No.</s>USER: …        LLaVA-1.5; the scored part is " No.</s>"

encode(m, questions, answers) gives the tokens and says of each which round's answer it belongs to. Training
scores an answer behind exactly those tokens that the model continues when it is asked. The picture is P
tokens, never cut.
"""

from os.path import commonprefix

from amp_min.support.script import UserError

# LLaVA-1.5's conversation format, for checkpoints that bring no chat template of their own.
LLAVA_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% else %}ASSISTANT: {{ m['content'][0]['text'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}")


def conversation(m, questions, answers):
    """The conversation cut at its seams: [(head, said), …], one per round; the last `said` is missing when
    the last question is still open. head ends where the model starts to speak, said ends with the
    end-of-sequence token.

    The text between is the chat template's, with two faults of real checkpoints mended: LLaVA-1.5's template
    forgets the end-of-sequence token of its training, and llava-interleave's writes one line end more before
    an answer than it
    asks the model to continue behind. What is asked counts: an answer is scored as the model would give it.
    """
    for text in (*questions, *answers):
        if special := next((token for token in m.tokenizer.all_special_tokens if token in text), None):
            raise UserError(f"a text holds {special!r}, a special token of {m.name}, which is not read "
                            f"as text; take it out of {text[:60]!r}")
    eos, pieces, messages = m.tokenizer.eos_token, [], []
    for i, question in enumerate(questions[:len(answers) + 1]):
        picture = [{"type": "image"}] if i == 0 else []
        messages.append({"role": "user", "content": picture + [{"type": "text", "text": question}]})
        if i < len(answers):
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[i]}]})
    # All states of the conversation in two calls: asked for answer i, and behind it.
    template = m.processor.apply_chat_template
    render = lambda states, **how: template(states, tokenize=False, **how) if states else []
    asked_for = render([messages[:end] for end in range(1, len(messages) + 1, 2)], add_generation_prompt=True)
    behind, done = render([messages[:end] for end in range(2, len(messages) + 1, 2)]), ""
    for i, asked in enumerate(asked_for):
        head = asked[len(done):]
        if not asked.startswith(done):
            raise UserError(f"{m.name}: its chat template rewrites earlier rounds, so multi-round answers "
                            "cannot be scored")
        if i >= len(answers):
            return pieces + [(head, None)]
        done = behind[i]
        same = len(commonprefix([asked, done]))
        if asked[same:].strip():
            raise UserError(f"{m.name}: its chat template does not continue its own generation prompt")
        start = len(done) - len(done[same:].lstrip()) if asked[-1:].isspace() else same
        said = done[start:]
        # What the template adds after the end-of-sequence token belongs to the next head.
        cut = said.find(eos) + len(eos) if eos in said else len(said)
        pieces.append((head, said[:cut] if eos in said else said.rstrip() + eos))
        done = done[:start + cut]
    return pieces


def encode(m, questions, answers):
    """A conversation as tokens: (ids, rounds), two lists of length T.

    rounds[t] is the round (1, 2, …) that token t is an answer token of, 0 where it is prompt or picture.
    Answers are tokenized together with what stands before them, exactly as the model meets them when it
    generates.
    """
    cut = conversation(m, questions, answers)
    ids, text = tokens(m, "".join(head + (said or "") for head, said in cut)), ""
    rounds = [0] * len(ids)
    for number, (head, said) in enumerate(cut, start=1):
        text += head
        before = tokens(m, text)
        if ids[:len(before)] != before:
            raise UserError(f"{m.name}: the tokenizer joins prompt and answer at {text[-40:]!r}; "
                            "the answer cannot be scored")
        if said is not None:
            text += said
            end = ids.index(m.tokenizer.eos_token_id, len(before)) + 1  # the one that ends this answer
            rounds[len(before):end] = [number] * (end - len(before))
    at = ids.index(m.image_token_id)
    # <image> -> P image tokens
    wide = lambda values: values[:at] + [values[at]] * m.image_tokens + values[at + 1:]
    return wide(ids), wide(rounds)


def tokens(m, text):
    bos = m.tokenizer.bos_token
    return m.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
