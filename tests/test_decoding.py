"""Answers: the model's likeliest words, whoever shares the batch, and whatever a checkpoint brings along."""
import copy
import json
import re
import shutil

import pytest
import torch
from test_mllm import ANSWERS, QUESTIONS, P
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from amp_min import decoding, mllm
from amp_min.decoding import GumbelNoise, answer, converse
from amp_min.evaluate import __main__ as evaluate
from amp_min.support import memory, pictures
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
    (said,), (cut,) = answer(m, features[:1], [QUESTIONS[:2]], [ANSWERS[:1]], how)
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
    checked = scored[:-1] if cut else scored             # encode adds the end that a cut answer has not
    assert cut == (len(scored) > 20)
    assert [likeliest[t - 1] for t in checked] == [ids[t] for t in checked]


@pytest.mark.parametrize("how", [dict(num_beams=1), dict(repetition_penalty=3.0), dict(num_beams=3),
                                 dict(num_beams=3, repetition_penalty=1.1)])
def test_padding_changes_no_answer(small_model, features, how):
    how = dict(do_sample=False, max_new_tokens=16) | how
    together, _ = answer(small_model, features, *MIXED, how)
    alone = [answer(small_model, features[i:i + 1], [q], [a], how)[0][0]
             for i, (q, a) in enumerate(zip(*MIXED))]
    assert together == alone and any(together)
    assert len({len(mllm.encode(small_model, q, a)[0]) for q, a in zip(*MIXED)}) > 2


def test_converse_goes_on_from_its_own_answers(small_model, features):
    questions, how = [QUESTIONS[:2], QUESTIONS[:1], QUESTIONS[:3]], dict(do_sample=False, max_new_tokens=12)
    said, cut = converse(small_model, lambda rows: features[rows], questions, how, batch=2, desc="test")
    assert list(map(len, said)) == list(map(len, cut)) == [2, 1, 3]
    for i, (asked, texts) in enumerate(zip(questions, said)):
        for turn in range(len(asked)):
            again = answer(small_model, features[i:i + 1], [asked[:turn + 1]], [texts[:turn]], how)
            assert again == ([texts[turn]], [cut[i][turn]])


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
        for said in answer(loud, features, *MIXED, how | dict(max_new_tokens=10))[0]:
            # batch_decode leaves special tokens out, so an answer of special tokens alone would be empty.
            assert len(mllm.tokens(loud, said)) > 5 and "<" not in said


def test_gumbel_noise_draws_from_the_distribution_at_each_temperature():
    p = torch.tensor([0.5, 0.3, 0.2, 0.0])
    for temperature in 0.5, 1.0, 2.0:
        noise = GumbelNoise(temperature, list(range(8000)), "cpu")
        drawn = noise(None, p.log().expand(8000, 4)).argmax(1).bincount(minlength=4) / 8000
        expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
        torch.testing.assert_close(drawn, expected, atol=0.02, rtol=0)   # 3.6 standard errors
        assert drawn[3] == 0                                             # suppressed tokens stay suppressed


def test_a_sampled_answer_depends_on_its_seed_alone(small_model, features):
    """Not on the batch, nor on what was drawn before; other seeds say other things."""
    how = dict(do_sample=False, max_new_tokens=12, temperature=1.0)
    questions, seeds = [QUESTIONS[:2]] * 4, ["a", "b", "a", "c"]
    see = lambda rows: features[[0] * len(rows)]
    (one, two, again, three), _ = converse(small_model, see, questions, how, 4, "x", seeds)
    assert one == again and len({tuple(one), tuple(two), tuple(three)}) == 3
    torch.rand(3)                                                        # the global stream plays no part
    assert converse(small_model, see, questions[:2], how, 1, "x", ["c", "b"])[0] == [three, two]


def test_an_answer_without_an_end_is_cut(small_model, features):
    ends = dict(do_sample=False, max_new_tokens=100)
    texts, cut = answer(small_model, features, *MIXED, ends)
    lengths = [len(small_model.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts]
    assert not any(cut) and min(lengths) < max(lengths)
    shorter, cut = answer(small_model, features, *MIXED, dict(ends, max_new_tokens=max(lengths) - 1))
    assert cut == [length == max(lengths) for length in lengths]
    assert all(text == whole for text, whole, ended in zip(shorter, texts, cut) if not ended)


def test_the_batch_is_what_fits(monkeypatch, capsys):
    """LLaVA-1.5-7B, 4 beams, 512 new tokens: 0.5 MB of keys and values a token, so 64 would need 150 GB."""
    text = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                       num_attention_heads=32, max_position_embeddings=4096)
    config = LlavaConfig(text_config=text)
    with torch.device("meta"):
        m = mllm.Mllm("7b", LlavaForConditionalGeneration(config).bfloat16(), None, 0, 576)
    found = {}
    for size in 24, 80, 640, None:
        monkeypatch.setattr(memory, "capacity", lambda device, size=size: size and size * memory.GB)
        found[size] = memory.answering_batch(m, 0, 4, 512)
    assert found == {24: 2, 80: 16, 640: 64, None: 64}
    assert memory.answering_batch(m, 48, 4, 512) == 48                  # an explicit number stays
    said = re.search(r"weights (.*) GB, (.*) GB for each .* 4 x 1138 tokens; 48", capsys.readouterr().out)
    assert float(said[1]) == pytest.approx(13.1, abs=0.2)
    assert 64 * float(said[2]) == pytest.approx(64 * 4 * 1138 * 0.5 / 1024, rel=0.25)


def test_out_of_memory_halves_the_batch_and_goes_on(small_model, features, monkeypatch, capsys):
    whole, how = decoding.answer, dict(do_sample=False, max_new_tokens=6)
    questions, see = [QUESTIONS[:2]] * 4, lambda rows: features[rows]
    expected = converse(small_model, see, questions, how, 1, "x")

    def cramped(m, some, *rest):
        if len(some) > limit:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return whole(m, some, *rest)

    monkeypatch.setattr(decoding, "answer", cramped)
    limit = 1
    assert converse(small_model, see, questions, how, 4, "x") == expected
    assert "x: out of memory with 4 conversations together; on with 2" in capsys.readouterr().out
    limit = 0
    with pytest.raises(RuntimeError, match="allocate"):                 # not even one
        converse(small_model, see, questions, how, 4, "x")


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
    assert m.model.generation_config.num_beams == 3                    # what is saved is untouched


def test_a_conversation_that_does_not_fit_is_refused_by_name(small_model):
    limit = small_model.model.config.text_config.max_position_embeddings
    questions = [QUESTIONS[:1], ["Is there a dog? " * limit]]
    with pytest.raises(UserError, match=f"reads {limit} tokens, the conversation 'Is there a dog.*never cut"):
        answer(small_model, torch.zeros(2, P, 96), questions, [[], []], dict(max_new_tokens=5))
