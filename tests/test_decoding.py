"""Answers: the model's likeliest words, whoever shares the batch, and whatever a checkpoint brings along."""
import copy
import json
import shutil

import pytest
import torch
from test_mllm import ANSWERS, QUESTIONS, P

from amp_min import mllm
from amp_min.decoding import answer, converse
from amp_min.evaluate import __main__ as evaluate
from amp_min.support import pictures
from amp_min.support.script import UserError

MIXED = ([QUESTIONS[1:2], QUESTIONS[:3], ["Is there a dog in the image?"], QUESTIONS[:2]],
         [[], ANSWERS[:2], [], ANSWERS[:1]])


@pytest.fixture(scope="module")
def features(small_model, tiny_world):
    """What the tower sees of four pictures: (4, P, D_vision)."""
    paths = sorted((tiny_world / "eval" / "images").iterdir())[:4]
    return mllm.encode_images(small_model, mllm.pixels(small_model, map(pictures.open_image, paths)))


def test_greedy_answers_are_the_likeliest_words_of_encode(small_model, features):
    """Scored with encode, every word of a greedy answer is the one that the model found most likely there."""
    m = small_model
    how = dict(do_sample=False, max_new_tokens=20)
    said = answer(m, features[:1], [QUESTIONS[:2]], [ANSWERS[:1]], how)[0]
    ids, rounds = mllm.encode(m, QUESTIONS[:2], [ANSWERS[0], said])
    silent = [i for i in m.tokenizer.all_special_ids if i != m.tokenizer.eos_token_id]
    with torch.no_grad():
        embedded = mllm.embed(m, torch.tensor([ids]), features[:1])
        hidden = m.model.model.language_model(inputs_embeds=embedded).last_hidden_state
        logits = m.model.lm_head(hidden)[0]                                                   # (T, V)
    logits[:, silent] = float("-inf")
    likeliest = logits.argmax(-1).tolist()
    scored = [t for t in range(len(ids)) if rounds[t] == 2]
    assert len(scored) > 3
    # The last token, eos, is what `encode` adds when the answer ran into its limit: 20 new tokens.
    checked = scored if len(scored) <= 20 else scored[:-1]
    assert [likeliest[t - 1] for t in checked] == [ids[t] for t in checked]


@pytest.mark.parametrize("how", [dict(num_beams=1), dict(repetition_penalty=3.0), dict(num_beams=3),
                                 dict(num_beams=3, repetition_penalty=1.1)])
def test_padding_changes_no_answer(small_model, features, how):
    how = dict(do_sample=False, max_new_tokens=16) | how
    together = answer(small_model, features, *MIXED, how)
    alone = [answer(small_model, features[i:i + 1], [q], [a], how)[0] for i, (q, a) in enumerate(zip(*MIXED))]
    assert together == alone and any(together)
    assert len({len(mllm.encode(small_model, q, a)[0]) for q, a in zip(*MIXED)}) > 2


def test_converse_goes_on_from_its_own_answers(small_model, features):
    questions, how = [QUESTIONS[:2], QUESTIONS[:1], QUESTIONS[:3]], dict(do_sample=False, max_new_tokens=12)
    said = converse(small_model, lambda rows: features[rows], questions, how, batch=2, desc="test")
    assert [len(texts) for texts in said] == [2, 1, 3]
    for i, (asked, texts) in enumerate(zip(questions, said)):
        for turn in range(len(asked)):
            again = answer(small_model, features[i:i + 1], [asked[:turn + 1]], [texts[:turn]], how)
            assert again == [texts[turn]]


def test_special_tokens_are_never_said(small_model, features):
    """Even by a model whose head likes nothing better; and its answers can be scored."""
    eager, tokenizer = copy.deepcopy(small_model.model), small_model.tokenizer
    head = torch.nn.Linear(eager.lm_head.in_features, eager.lm_head.out_features)
    with torch.no_grad():
        head.weight.copy_(small_model.model.lm_head.weight)
        head.bias.zero_()
        head.bias[[i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]] = 100.0
        head.bias[tokenizer.eos_token_id] = -100.0
    eager.lm_head = head
    loud = mllm.Mllm("loud", eager, small_model.processor, small_model.image_token_id, P)
    sampled = dict(do_sample=True, top_k=0, temperature=3.0)
    for seed, how in enumerate([dict(do_sample=False), dict(do_sample=False, num_beams=2), sampled, sampled]):
        torch.manual_seed(seed)
        for said in answer(loud, features, *MIXED, how | dict(max_new_tokens=10)):
            # batch_decode leaves special tokens out, so an answer of special tokens alone would be empty.
            assert len(mllm.tokens(loud, said)) > 5 and "<" not in said


def test_decoding_is_what_we_say_not_what_a_checkpoint_brings(tiny_world, family, tmp_path):
    shutil.copytree(family / "llava-7b", tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    own = {"num_beams": 3, "no_repeat_ngram_size": 1, "min_p": 0.9}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | own), encoding="utf-8")
    pictures_of = sorted((tiny_world / "eval" / "images").iterdir())[:2]
    found = []
    for folder in (family / "llava-7b", tmp_path / "model"):
        m = mllm.load(folder)
        see = mllm.image_features(m, pictures_of)
        for how in evaluate.DECODING.values():
            torch.manual_seed(0)
            found.append(converse(m, see, [QUESTIONS[:1]] * 2, how | {"max_new_tokens": 8}, 2, "x"))
    assert found[:2] == found[2:]
    assert m.model.generation_config.num_beams == 3                     # save_pretrained keeps the checkpoint's own


def test_a_conversation_that_does_not_fit_is_refused_by_name(small_model):
    limit = small_model.model.config.text_config.max_position_embeddings
    questions = [QUESTIONS[:1], ["Is there a dog? " * limit]]
    with pytest.raises(UserError, match=rf"reads {limit} tokens, the conversation 'Is there a dog.*never cut"):
        answer(small_model, torch.zeros(2, P, 96), questions, [[], []], dict(max_new_tokens=5))
