"""How a model answers: one question of many conversations at once, and whole conversations round by round."""

import torch
from tqdm import tqdm
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

from amp_min.mllm import embed
from amp_min.prompt import encode
from amp_min.support.script import UserError

# B conversations, T tokens of a prompt, P image tokens of a picture.


@torch.no_grad()
def answer(m, features, questions, answers, decoding):
    """Answer the open question of B conversations: list of B strings.

    features (B, P, D_vision); questions, answers: B lists, one answer fewer than questions. decoding: arguments
    of transformers' `generate`. Raises UserError for a conversation that the model cannot read whole.
    """
    prompts = [encode(m, q, a)[0] for q, a in zip(questions, answers, strict=True)]
    T, limit = max(map(len, prompts)), m.model.config.text_config.max_position_embeddings
    if T >= limit:
        begin = questions[[len(p) for p in prompts].index(T)][0][:60]
        raise UserError(f"{m.name}: reads {limit} tokens, the conversation {begin!r} has {T}; shorten it "
                        "(image tokens are never cut)")
    # Padded on the left: all prompts end in the same column, and all answers start in the next.
    pad = m.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (T - len(p)) + p for p in prompts], device=m.device)        # (B, T)
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts], device=m.device)
    # Special tokens cannot be said: an answer with an image token in it would stop the training on it.
    silent = [i for i in m.tokenizer.all_special_ids if i != m.tokenizer.eos_token_id]
    # The penalty is on the answer's own words. Handed to generate as a number, it would also count the
    # padding, and spare the first words of an answer, one for each padding token.
    penalty = [RepetitionPenaltyLogitsProcessor(float(decoding.get("repetition_penalty", 1.0)))]
    decoding = {key: value for key, value in decoding.items() if key != "repetition_penalty"}
    # Checkpoints bring decoding settings of their own: they must not mix with ours, "greedy" is greedy.
    own, m.model.generation_config = m.model.generation_config, GenerationConfig()
    try:
        new = m.model.generate(inputs_embeds=embed(m, ids, features.to(m.device)), attention_mask=mask,
                               suppress_tokens=silent, logits_processor=penalty, pad_token_id=pad,
                               eos_token_id=m.tokenizer.eos_token_id, **decoding)           # (B, new tokens)
    finally:
        m.model.generation_config = own
    return [text.strip() for text in m.tokenizer.batch_decode(new, skip_special_tokens=True)]


def converse(m, features_of, questions, decoding, batch, desc):
    """Hold N conversations round by round, each on the model's own earlier answers: N lists of answers.

    features_of: conversation numbers -> (B, P, D_vision), from `mllm.image_features`; questions: N lists; batch:
    conversations answered together; desc: what the progress bar is called.
    """
    said = [[] for _ in questions]
    with tqdm(total=sum(map(len, questions)), desc=desc, unit="answer", disable=None) as bar:
        for turn in range(max(map(len, questions))):
            waiting = [i for i, asked in enumerate(questions) if len(asked) > turn]
            # Equally long ones together: padding is computed, too.
            waiting.sort(key=lambda i: len(" ".join(questions[i][:turn + 1] + said[i])))
            for start in range(0, len(waiting), batch):
                some = waiting[start:start + batch]
                texts = answer(m, features_of(some), [questions[i][:turn + 1] for i in some],
                               [said[i] for i in some], decoding)
                for i, text in zip(some, texts):
                    said[i].append(text)
                bar.update(len(some))
    return said
