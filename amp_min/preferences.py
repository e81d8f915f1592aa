"""Preference rows as training needs them: K token sequences with a shared prefix, a picture, and the
reference's view.

    data = preferences.read(m, settings)       entry i of everything in it belongs to usable row i of the file

Reading is where a run should fail: a row whose picture is lost, whose answers are too long for the model or
that holds too few levels is named with its line before the first step, or dropped and counted with
--skip-bad.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch

from amp_min import packing, prompt, records
from amp_min.support.pictures import image_path, open_image
from amp_min.support.script import UserError

# Shapes: B preference sets of a micro-batch, K levels, P image tokens of a picture, D_vision the tower's
# width.


@dataclass
class PreferenceSets:
    """The preference sets of a run; entry i of everything belongs to usable row i."""
    sets: list[packing.TokenSet]        # what packing.pack takes
    ids: list[str]
    images: list[Path]
    rewards: torch.Tensor               # (rows,K) the auto-check's accuracies, for PRO
    features: Callable = None           # row numbers -> (B,P,D_vision), what the frozen vision tower sees
    reference: torch.Tensor = None      # (rows,K) log pi_ref of every answer


def tokens_of(m, row, levels, settings):
    """One row as a TokenSet of its K best answers. Raises UserError for what cannot be trained on."""
    n, K = len(row["responses"]), levels or len(row["responses"])
    if settings.loss == "sft":
        K = 1                                               # supervised training never sees the worse answers
    elif n < K or n > K and not settings.levels:
        asked = (f"--levels asks for {K}" if settings.levels else
                 f"the first row {K}; say with --levels how many of each row to learn from")
        raise UserError(f"responses has {n} entries, {asked}")
    if settings.loss == "pro" and any(response.get("accuracy") is None for response in row["responses"][1:]):
        raise UserError("responses lack an accuracy, which --loss pro weighs by; rank them with verify.py")
    encodings, limit = [], m.model.config.text_config.max_position_embeddings
    for response in row["responses"][:K]:
        ids, rounds = prompt.encode(m, row["questions"], response["answers"])               # (tokens,) each
        if len(ids) > limit:
            raise UserError(f"responses need {len(ids)} tokens, {m.name} reads {limit}; "
                            "shorten them (image tokens are never cut)")
        # An answer that generate.py had to cut did not end there: its end token must not be taught.
        for number in (i + 1 for i, was_cut in enumerate(response.get("cut", [])) if was_cut):
            rounds[len(rounds) - 1 - rounds[::-1].index(number)] = 0
        encodings.append((ids, rounds))
    try:
        return packing.token_set(encodings, settings.round_step)
    except ValueError as error:
        raise UserError(str(error)) from None


def read(m, settings):
    """The usable rows of --preferences. Bad ones stop the run with their line, or are dropped and counted."""
    data, rewards, dropped, equal = PreferenceSets([], [], [], None), [], Counter(), 0

    def usable(row):
        """Called by records.read for each row, so that it can name the line of a bad one."""
        open_image(image_path(row, settings.preferences, settings.image_root))
        first = len(data.sets[0].ids) - 1 if data.sets else 0  # a dropped row decides nothing
        row["tokens"] = tokens_of(m, row, settings.levels or first, settings)

    count = lambda bad: dropped.update([bad.reason])
    for row in records.read(settings.preferences, "preference", settings.skip_bad, count, check=usable):
        K = len(row["tokens"].ids) - 1
        responses = row["responses"][:K]
        equal += len({tuple(response["answers"]) for response in responses}) < K
        accuracies = [response.get("accuracy") for response in responses]
        # the standard's is null
        rewards.append([1.0 if accuracy is None else accuracy for accuracy in accuracies])
        data.sets.append(row["tokens"])
        data.ids.append(row["id"])
        data.images.append(image_path(row, settings.preferences, settings.image_root))
    data.rewards = torch.tensor(rewards)                                                    # (rows,K)
    for reason, n in dropped.items():
        print(f"dropped {n} rows: {reason}")
    if equal:
        print(f"{equal} of {len(data.sets)} rows hold equal answers: between these is nothing to prefer")
    return data


def show(m, tokens):
    """Print one set as the loss sees it: scored text in [brackets], the picture's P tokens as one <image>."""
    for k, (part, weights) in enumerate(zip(tokens.ids, tokens.weights)):
        text, inside = "", False
        for token, weight in zip(part, weights):
            if token == m.image_token_id and text.endswith("<image>"):
                continue
            text += ("[" if weight and not inside else "]" if inside and not weight else "")
            text += m.tokenizer.decode([token])
            inside = bool(weight)
        print(("prefix   " if k == 0 else f"answer {k - 1} ") + repr(text + "]" * inside))
