"""Our preference rows as other tools read them: one writer per format, each a function from a pair to a record.

TRL, LLaMA-Factory and ms-swift learn from pairs: a row of K levels becomes K(K-1)/2 of them (or fewer, see --pairs).
They score one answer after a common dialogue, but each of our responses went on from its *own* earlier answers.  So a
dialogue becomes a pair per round, and a later round stands after the better response's earlier answers.  The released
AMP code takes whole rows.  What does not survive is counted in `notes`.

The pictures are absolute paths: each of the tools looks for relative ones somewhere else.
"""

from amp_min.losses import pair_indices


def pairs(row, which, notes):
    """A row as (id, dialogue, better, worse); dialogue: [question, answer, …, question]."""
    levels, questions = [response["answers"] for response in row["responses"]], row["questions"]
    for i, j in pair_indices(len(levels), which):
        for t in range(len(questions)):
            better, worse = levels[i], levels[j]
            if better[t] == worse[t]:
                notes["pairs with two equal answers left out"] += 1
                continue
            if better[:t] != worse[:t]:
                notes["pairs of a later round, the worse answer now after the better response's earlier answers"] += 1
            dialogue = [text for turn in zip(questions[:t], better[:t]) for text in turn] + [questions[t]]
            yield f"{row['id']}#{i}-{j}" + (f"@{t}" if len(questions) > 1 else ""), dialogue, better[t], worse[t]


def messages(texts, who, what, roles):
    """[question, answer, …] as messages: [{who: roles[0], what: question}, {who: roles[1], what: answer}, …]"""
    return [{who: roles[i % 2], what: text} for i, text in enumerate(texts)]


def trl(name, image, dialogue, better, worse):
    """TRL's "conversational preference" with pictures (docs/source/dataset_formats.md and the vision collator in
    trl/trainer/dpo_trainer.py, 1.16): images, prompt, chosen, rejected.  Contents are plain strings: the collator itself
    puts the picture before the first user message."""
    talk = lambda texts, roles=("user", "assistant"): messages(texts, "role", "content", roles)
    return {"id": name, "images": [image], "prompt": talk(dialogue), "chosen": talk([better], ["assistant"]),
            "rejected": talk([worse], ["assistant"])}


def llama_factory(name, image, dialogue, better, worse):
    """LLaMA-Factory's sharegpt preference format (data/README.md; SharegptDatasetConverter in
    src/llamafactory/data/converter.py): conversations that end with a question, chosen, rejected, images.  `<image>` and a
    line end before the question, as LLaVA-1.5 was trained."""
    talk = lambda texts, roles=("human", "gpt"): messages(texts, "from", "value", roles)
    return {"id": name, "images": [image], "conversations": talk(["<image>\n" + dialogue[0], *dialogue[1:]]),
            "chosen": talk([better], ["gpt"])[0], "rejected": talk([worse], ["gpt"])[0]}


def ms_swift(name, image, dialogue, better, worse):
    """ms-swift's RLHF format (docs/source_en/Customization/Custom-dataset.md): messages that end with the chosen answer,
    rejected_response, images.  `<image>` alone: its LLaVA template adds the line end.  It scores the last round
    (loss_scale last_round, the default of `swift rlhf`)."""
    talk = messages(["<image>" + dialogue[0], *dialogue[1:], better], "role", "content", ("user", "assistant"))
    return {"id": name, "messages": talk, "rejected_response": worse, "images": [image]}


def amp(row, image):
    """The released AMP code's record: image, output_1 … output_K, best first, each a whole dialogue in LLaVA's turns."""
    record = {"id": row["id"], "image": image}
    for k, response in enumerate(row["responses"], start=1):
        texts = [text for turn in zip(row["questions"], response["answers"]) for text in turn]
        record[f"output_{k}"] = messages(["<image>\n" + texts[0], *texts[1:]], "from", "value", ("human", "gpt"))
    return record


WRITERS = {"trl": trl, "llama-factory": llama_factory, "ms-swift": ms_swift}        # of pairs; amp takes whole rows

# What LLaMA-Factory must be told of the file, in the dataset_info.json beside it.
DATASET_INFO = {"formatting": "sharegpt", "ranking": True,
                "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}}
