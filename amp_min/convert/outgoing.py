"""Our preference rows as other tools read them: one writer per format, from a pair to a record.

TRL, LLaMA-Factory and ms-swift learn from pairs: a row of K levels becomes K(K-1)/2 of them (or fewer, see
--pairs). They score one answer after a common dialogue, but each of our responses went on from its *own*
earlier answers. So a dialogue becomes a pair per round, and a later round stands after the better response's
earlier answers.

A ranking of whole dialogues says little about one of their rounds: where the better dialogue is wrong, its
pair would teach the reverse. In the demo (600 rows) that held for 443 of the 2,385 pairs of generated rounds
that the oracle tells apart (19 %), and some rejected the standard answer's own words. With `against` 12 % are
left; the auto-check's own error on a round is 13 %.

The pictures are absolute paths: each of the tools looks for relative ones somewhere else.
"""

from amp_min.losses import pair_indices


def against(row, i, j, t, notes):
    """Why response i's answer of round t must not be taught as better than response j's; None if it may."""
    best, better, worse = (row["responses"][k]["answers"][t].strip() for k in (0, i, j))
    if better == worse:
        return "pairs of two equal answers left out"
    if worse == best:
        return "pairs that would reject the best response's own words left out"
    if not better:
        return "pairs with a blank better answer left out"
    if row["responses"][i]["source"] == "standard":
        return None
    a, b = (round_evidence(row["responses"][k], t) for k in (i, j))
    if a is not None and a == b:
        return "pairs whose evidence is equal left out"
    if len(row["questions"]) == 1:                       # the row's order is this round's
        return None
    if a is None or b is None:
        notes["pairs of a round in their dialogues' order, for lack of verify.py's evidence"] += 1
    elif a < b:
        return "pairs of a round whose evidence says the reverse left out"
    return None


def round_evidence(response, t):
    """(accuracy, score) of round t, the mean of local and global level, as verify.py ranks; None without."""
    try:
        levels = response["evidence"][t]["levels"]
        return tuple(round(sum(values) / len(levels), 4) for values in zip(*levels, strict=True))
    except (KeyError, TypeError, IndexError, ValueError):
        return None


def pairs(row, which, notes):
    """A row as (id, dialogue, better, worse); dialogue: [question, answer, …, question]."""
    levels, questions = [response["answers"] for response in row["responses"]], row["questions"]
    for i, j in pair_indices(len(levels), which):
        for t in range(len(questions)):
            if reason := against(row, i, j, t, notes):
                notes[reason] += 1
                continue
            better, worse = levels[i], levels[j]
            if better[:t] != worse[:t]:
                notes["pairs of a later round, the worse answer now after the better dialogue"] += 1
            dialogue = [text for turn in zip(questions, better, strict=True) for text in turn][:2 * t + 1]
            name = f"{row['id']}#{i}-{j}" + (f"@{t}" if len(questions) > 1 else "")
            yield name, dialogue, better[t], worse[t]


OPENAI = ("role", "content", ("user", "assistant"))       # how a turn is written: who, what, the two roles
LLAVA = ("from", "value", ("human", "gpt"))


def messages(texts, style, first=0):
    """[question, answer, …] as turns; first=1: an answer comes first."""
    who, what, roles = style
    return [{who: roles[i % 2], what: text} for i, text in enumerate(texts, start=first)]


def trl(dialogue, better, worse):
    """TRL's "conversational preference" (docs/source/dataset_formats.md and the vision collator in
    trl/trainer/dpo_trainer.py, 1.16). The collator itself puts the picture before the first user message."""
    return {"prompt": messages(dialogue, OPENAI), "chosen": messages([better], OPENAI, 1),
            "rejected": messages([worse], OPENAI, 1)}


def llama_factory(dialogue, better, worse):
    """LLaMA-Factory's sharegpt preference format (data/README.md; SharegptDatasetConverter in
    src/llamafactory/data/converter.py, 0.9.5). `<image>` and a line end, as LLaVA-1.5 was trained."""
    return {"conversations": messages(["<image>\n" + dialogue[0], *dialogue[1:]], LLAVA),
            "chosen": messages([better], LLAVA, 1)[0], "rejected": messages([worse], LLAVA, 1)[0]}


def ms_swift(dialogue, better, worse):
    """ms-swift's RLHF format (docs/source_en/Customization/Custom-dataset.md, 4.6.0). `<image>` alone: its
    LLaVA template adds the line end. It scores the last round, the default of `swift rlhf`."""
    talk = messages(["<image>" + dialogue[0], *dialogue[1:], better], OPENAI)
    return {"messages": talk, "rejected_response": worse}


WRITERS = {"trl": trl, "llama-factory": llama_factory, "ms-swift": ms_swift}

# What LLaMA-Factory must be told of the file, in the dataset_info.json beside it.
DATASET_INFO = {"formatting": "sharegpt", "ranking": True,
                "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected",
                            "images": "images"}}
