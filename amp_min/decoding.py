"""How a model answers: one question of many conversations at once, and whole conversations round by round.

B conversations, T tokens of a prompt, P image tokens of a picture, V words of the vocabulary.
"""

import functools
import random
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    RepetitionPenaltyLogitsProcessor,
)

from amp_min import lora, mllm
from amp_min.prompt import encode
from amp_min.support import hub, memory
from amp_min.support.script import BadRow, UserError, is_out_of_memory


def ready(name, dtype, batch, beams, new_tokens, most=64):
    """A model on the best device there is, and how many conversations it answers together: (Mllm, int).

    dtype: "auto" | "bf16" | "fp32"; batch: 0 for what memory allows, at most `most`. Prints what and why.
    """
    device = hub.choose_device()
    dtype, why = hub.choose_dtype(dtype, device)
    m = mllm.load(name, dtype, device)
    print(f"{name}: {m.model.num_parameters() / 1e6:.2f} M parameters on {device} in {dtype}: {why}")
    return m, memory.answering_batch(m, batch, beams, new_tokens, most)


# ---- one answer --------------------------------------------------------------------------------------------

@torch.no_grad()
def answer(m, features, questions, answers, decoding, seeds=None):
    """Answer the open question of B conversations: (B texts, B bools that tell whether the text was cut off).

    features (B, P, D_vision); questions, answers: B lists, one answer fewer than questions. decoding:
    arguments of transformers' `generate`. seeds: B numbers; given, answers are drawn at
    decoding["temperature"]. Raises UserError for a conversation that the model cannot read whole.
    """
    prompts = [encode(m, q, a)[0] for q, a in zip(questions, answers, strict=True)]
    T, limit = max(map(len, prompts)), m.model.config.text_config.max_position_embeddings
    if T >= limit:
        begin = questions[[len(p) for p in prompts].index(T)][0][:60]
        raise UserError(f"{m.name}: reads {limit} tokens, the conversation {begin!r} has {T}; shorten it "
                        "(image tokens are never cut)")
    # Padded on the left: all prompts end in the same column, and all answers start in the next.
    pad, end = m.tokenizer.pad_token_id, m.tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (T - len(p)) + p for p in prompts], device=m.device)            # (B, T)
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts], device=m.device)  # (B, T)
    # Special tokens cannot be said: an answer with an image token in it would stop the training on it.
    silent = [i for i in m.tokenizer.all_special_ids if i != end]
    # The penalty is on the answer's own words. Handed to generate as a number, it would also count the
    # padding, and spare the first words of an answer, one for each padding token.
    decoding = dict(decoding)
    steps = [RepetitionPenaltyLogitsProcessor(float(decoding.pop("repetition_penalty", 1.0)))]
    if seeds is not None:
        steps.append(GumbelNoise(decoding.pop("temperature"), seeds, m.device))
    # Checkpoints bring decoding settings of their own: they must not mix with ours, "greedy" is greedy.
    own, m.model.generation_config = m.model.generation_config, GenerationConfig()
    try:
        new = m.model.generate(inputs_embeds=mllm.embed(m, ids, features.to(m.device)), attention_mask=mask,
                               suppress_tokens=silent, logits_processor=steps, pad_token_id=pad,
                               eos_token_id=end, **decoding)                             # (B, new tokens)
    finally:
        m.model.generation_config = own
    texts = [text.strip() for text in m.tokenizer.batch_decode(new, skip_special_tokens=True)]
    return texts, [end not in row for row in new.tolist()]


class GumbelNoise:
    """Sampling as an argmax: the likeliest word after adding Gumbel noise to log p is a fair draw from p.

    Each conversation draws its noise from a stream of its own, so an answer depends on its seed alone, not on
    who shares the batch or was answered before. Source: the Gumbel-max trick, Maddison et al. (1411.0030).
    """

    def __init__(self, temperature, seeds, device):
        self.temperature = temperature
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, ids, scores):
        """What transformers calls before each word: scores (B, V) -> (B, V)."""
        noise = [torch.empty_like(scores[0]).exponential_(generator=stream) for stream in self.streams]
        return scores / self.temperature - torch.stack(noise).log()   # -log of an exponential is Gumbel noise


# ---- whole conversations -----------------------------------------------------------------------------------

def converse(m, features_of, questions, decoding, batch, desc, seeds=None):
    """Hold N conversations round by round, each on the model's own earlier answers.

    Gives (N lists of answers, N lists of bools); a bool tells whether the answer was cut off at its longest.
    features_of: conversation numbers -> (B, P, D_vision), from `mllm.image_features`; questions: N lists;
    batch: conversations answered together, halved while they do not fit into memory; seeds: N texts.
    """
    said, cut = [[] for _ in questions], [[] for _ in questions]
    with tqdm(total=sum(map(len, questions)), desc=desc, unit="answer", disable=None) as bar:
        for turn in range(max(map(len, questions))):
            waiting = [i for i, asked in enumerate(questions) if len(asked) > turn]
            # Equally long ones together: padding is computed, too.
            waiting.sort(key=lambda i: len(" ".join(questions[i][:turn + 1] + said[i])))
            while waiting:
                some = waiting[:batch]
                drawn = seeds and [random.Random(f"{seeds[i]} {turn}").getrandbits(31) for i in some]
                try:
                    texts, unfinished = answer(m, features_of(some), [questions[i][:turn + 1] for i in some],
                                               [said[i] for i in some], decoding, drawn)
                except (RuntimeError, MemoryError) as error:
                    if len(some) == 1 or not is_out_of_memory(error):
                        raise
                    batch = len(some) // 2
                    print(f"{desc}: out of memory with {len(some)} conversations together; on with {batch}")
                    continue
                for i, text, end_is_missing in zip(some, texts, unfinished, strict=True):
                    said[i].append(text)
                    cut[i].append(end_is_missing)
                bar.update(len(some))
                waiting = waiting[len(some):]
    return said, cut


# ---- rows that a model cannot read -------------------------------------------------------------------------

@functools.cache         # asked once for every file that is read
def check_readable(*names):
    """A check of prompt rows for `records.read`, made from the tokenizers of models (folders or hub ids).

    It raises BadRow for questions that hold a special token or are longer than what a model reads: one row of
    a thousand is bad, and not the run that meets it after an hour.
    """
    readers = []
    for name in names:
        folder = lora.base_of(name) if (Path(name) / lora.CONFIG).is_file() else name
        config = mllm.read_config(name)
        readers.append((name, hub.pretrained(AutoTokenizer.from_pretrained, str(folder)),
                        config.text_config.max_position_embeddings - mllm.image_tokens_of(config)))

    def check(row):
        text = "\n".join(row["questions"])
        for name, tokenizer, room in readers:
            if special := next((token for token in tokenizer.all_special_tokens if token in text), None):
                raise BadRow(f"a text holds {special!r}, a special token of {name}, which is not read as "
                             "text; take it out")
            if (length := len(tokenizer(text)["input_ids"])) >= room:
                raise BadRow(f"questions have {length} tokens and {name} reads {room} beside the picture; "
                             "shorten them")
    return check
