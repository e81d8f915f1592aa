"""Eq. 1 and Eq. 2 against a loop, the ranking, attributes, and encoders made here."""
import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from amp_min import autocheck
from amp_min.support.script import UserError

D = 4


# ---- Eq. 1-2 ----

def naive(standard, generated, threshold):
    best = []
    for a in standard.tolist():
        best.append(max(sum(x * y for x, y in zip(a, b)) / (math.hypot(*a) * math.hypot(*b))
                        for b in generated.tolist()))
    return sum(s > threshold for s in best) / len(best), sum(best) / len(best)


def matrices(rows):
    return st.tuples(rows, st.integers(0, 2**31)).map(lambda drawn: torch.randn(
        drawn[0], D, dtype=torch.float64, generator=torch.Generator().manual_seed(drawn[1])))


@settings(max_examples=60, deadline=None)
@given(matrices(st.integers(1, 6)), matrices(st.integers(1, 6)), st.floats(-1, 0.99))
def test_similarity_equals_a_loop(standard, generated, threshold):
    accuracy, score = autocheck.similarity(standard, generated, threshold)
    expected = naive(standard, generated, threshold)
    assert type(accuracy) is float and type(score) is float
    assert (accuracy, score) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(matrices(st.integers(1, 5)), matrices(st.integers(1, 5)), st.floats(0.01, 100), st.randoms())
def test_length_order_and_repetition_of_features_do_not_matter(standard, generated, scale, random):
    before = autocheck.similarity(standard, generated, 0.5)
    order = random.sample(range(len(generated)), len(generated))
    after = autocheck.similarity(standard * scale, torch.cat([generated[order], generated]) / scale, 0.5)
    assert after == pytest.approx(before, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(matrices(st.integers(1, 5)), matrices(st.integers(1, 5)), matrices(st.integers(1, 5)))
def test_more_generated_chunks_never_lower_the_result(standard, generated, more):
    """The known weakness of Eq. 1-2: it is recall."""
    fewer = autocheck.similarity(standard, generated, 0.3)
    all_of_them = autocheck.similarity(standard, torch.cat([generated, more]), 0.3)
    assert all_of_them[0] >= fewer[0] and all_of_them[1] >= fewer[1] - 1e-12


def test_threshold_is_strict():
    standard, generated = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])               # cosine 3/5
    assert autocheck.similarity(standard, generated, 0.6)[0] == 0.0
    assert autocheck.similarity(standard, generated, 0.6 - 1e-9) == pytest.approx((1.0, 0.6), abs=1e-12)


def test_nothing_to_compare():
    some, none = torch.ones(2, D), torch.zeros(0, D)
    assert autocheck.similarity(some, none) == autocheck.similarity(none, some) == (0.0, 0.0)
    assert autocheck.similarity(torch.zeros(1, D), some) == (0.0, 0.0)                # no direction, no match


def test_pairs_that_may_not_match_count_as_zero():
    eye = torch.eye(2, D)
    assert autocheck.similarity(eye, eye, 0.85, torch.tensor([[True, False], [True, False]])) == (0.5, 0.5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.1, 0.2])), max_size=8))
def test_rank_is_by_accuracy_then_score_then_place(scores):
    order = autocheck.rank(scores)
    assert sorted(order) == list(range(len(scores)))
    for i, j in zip(order, order[1:]):
        assert scores[i] > scores[j] or scores[i] == scores[j] and i < j


# ---- attributes ----

@pytest.mark.parametrize("a, b, agrees", [
    ("a red car", "a blue car", False), ("a red car", "a crimson car", True), ("a red car", "a car", True),
    ("a red and white boat", "a white boat", True), ("two dogs", "three dogs", False),
    ("a dog", "two dogs", False), ("one dog", "a dog", True), ("no dog", "a dog", False),
    ("a man who isn't tall", "a man who is tall", False),
    ("a big red car", "a small red car", False), ("a cup under the table", "a cup above the table", False),
    ("the left door", "the right door", False), ("a dog", "a cat", True), ("tables", "covered", True),
    ("4 cups", "6 cups", False), ("4 cups", "four cups", True), ("11 cups", "twelve cups", False),
    ("a dozen cups", "12 cups", True), ("137 cups", "138 cups", False), ("zero cups", "0 cups", True),
])
def test_attributes(a, b, agrees):
    assert autocheck.agreement([a], [b]).tolist() == [[agrees]]
    assert autocheck.agreement([b], [a]).tolist() == [[agrees]]


# ---- encoders ----

def make_tokenizer(end_id=3):
    """A byte-level tokenizer whose end token has the id `end_id`."""
    specials = ["<pad>", "<start>", "<unk>"]
    specials.insert(end_id, "<end>")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.train_from_iterator(["a red dog on the street, two blue cats"] * 3, trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    ends = [("<start>", core.token_to_id("<start>")), ("<end>", end_id)]
    core.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<start>",
                                   eos_token="<end>")


def make_clip(folder, end_id=3, vocab_size=None):
    tokenizer = make_tokenizer(end_id)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                 projection_dim=24)
    torch.manual_seed(0)
    vision = sizes | dict(image_size=32, patch_size=16)
    text = sizes | dict(vocab_size=vocab_size or len(tokenizer), max_position_embeddings=32, bos_token_id=1,
                        eos_token_id=end_id)
    CLIPModel(CLIPConfig(projection_dim=24, vision_config=vision, text_config=text)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_bert(folder):
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=32)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {"clip": make_clip(root / "clip"), "bert": make_bert(root / "bert")}


TEXTS = ["a dog", "a red dog on the street", "", "two blue cats é 🐕", "a dog", "x"]


def test_clip_features_are_the_projected_text_embeddings(folders):
    encoder = autocheck.load_encoder(folders["clip"])
    features, too_long = autocheck.encode(encoder, TEXTS[:2])
    assert features.shape == (2, 24) and too_long == 0
    model = CLIPTextModelWithProjection.from_pretrained(folders["clip"]).eval()
    for text, feature in zip(TEXTS, features):
        with torch.no_grad():
            expected = model(**encoder.tokenizer(text, return_tensors="pt")).text_embeds[0]
        torch.testing.assert_close(feature, expected / expected.norm(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_a_feature_does_not_depend_on_the_other_texts(folders, kind):
    encoder = autocheck.load_encoder(folders[kind])
    many = TEXTS + [text + " dog" * n for text in TEXTS for n in (1, 4, 11)]
    together, _ = autocheck.encode(encoder, many)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(many)), atol=1e-6, rtol=0)
    alone = torch.cat([autocheck.encode(encoder, [text])[0] for text in many])
    assert torch.equal(together, alone)                                    # to the last bit
    torch.testing.assert_close(autocheck.encode(encoder, many, B=1)[0], together, atol=1e-6, rtol=0)


def test_sentence_encoder_takes_the_mean_over_tokens(folders):
    encoder = autocheck.load_encoder(folders["bert"])
    ids = encoder.tokenizer("a red dog", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = encoder.model(ids).last_hidden_state[0].mean(0)
    features, _ = autocheck.encode(encoder, ["a red dog"])
    torch.testing.assert_close(features[0], expected / expected.norm(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_nothing_of_a_long_text_is_dropped(folders, kind):
    encoder = autocheck.load_encoder(folders[kind])
    text = "x" * 100
    n = len(encoder.tokenizer(text, add_special_tokens=False).input_ids)
    assert n > 2 * encoder.window
    features, too_long = autocheck.encode(encoder, [text, "a dog", text + " cats"])
    assert features.shape[0] == 3 and too_long == 2
    assert not torch.allclose(features[0], features[2], atol=1e-3)         # the end of the text is seen
    pieces = encoder.tokenizer(text, truncation=True, max_length=encoder.window,
                               return_overflowing_tokens=True).input_ids
    assert sum(len(piece) - 2 for piece in pieces) == n
    by_hand = sum(len(piece) * autocheck.features_of(encoder, torch.tensor([piece]))[0] for piece in pieces)
    torch.testing.assert_close(features[0], by_hand / by_hand.norm(), atol=1e-6, rtol=0)


def make_roberta(folder, words):
    """An encoder that knows these words alone. Of its 40 positions it uses 38: it starts behind pad, 1."""
    known = ["<s>", "<pad>", "</s>", "<unk>", *words]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>",
                                                        special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                            unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(known), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=16, max_position_embeddings=40, pad_token_id=1)
    RobertaModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    folder = make_roberta(tmp_path_factory.mktemp("roberta"), ["cups", "on", "a", "shelf"])
    return autocheck.load_encoder(folder)


def test_roberta_reads_two_tokens_less_than_it_has_positions(roberta):
    assert roberta.window == 38
    for n in 36, 37, 200:                                              # with both ends 38, 39 and 202 tokens
        features, too_long = autocheck.encode(roberta, ["shelf " * n])
        assert too_long == (n > 36) and features.norm() == pytest.approx(1, abs=1e-6)


def test_words_that_the_encoder_does_not_know_match_nothing(roberta):
    texts = ["cups on a shelf", "4 cups on a shelf", "7 cups", "8 cups", "sieben Tassen", "", "cups"]
    assert autocheck.unknown_shares(roberta, texts) == [0, 1 / 5, 1 / 2, 1 / 2, 1, 0, 0]
    features = dict(zip(texts, autocheck.encode(roberta, texts)[0]))
    assert [bool(features[text].any()) for text in texts] == [True, True, False, False, False, True, True]
    assert autocheck.compare(["7 cups"], ["8 cups"], features)[0] == (0.0, 0.0)
    assert autocheck.encode(roberta, [])[1] == 0 and autocheck.unknown_shares(roberta, []) == []


def test_special_tokens_inside_a_text(roberta):
    for text, found in ("a shelf</s> cups", "</s>"), ("A SHELF</S>", "</s>"), ("a <b>shelf</b>!", None):
        assert autocheck.special_token_in(roberta, text) == found
    roberta.tokenizer.pad_token = "!"                                      # as some CLIPs do
    assert autocheck.special_token_in(roberta, "a shelf!") is None
    roberta.tokenizer.pad_token = "<pad>"


def test_a_clip_that_pools_at_the_wrong_token_is_refused(tmp_path):
    # With eos_token_id 2 transformers' CLIP pools at the largest id; here that is a letter, no end token.
    with pytest.raises(UserError, match="ends a text with token 2"):
        autocheck.load_encoder(make_clip(tmp_path / "clip", end_id=2))


def test_encoders_that_do_not_fit_are_refused(tmp_path, folders):
    with pytest.raises(UserError, match="the tokenizer has .* tokens, the model 200 embeddings"):
        autocheck.load_encoder(make_clip(tmp_path / "small", vocab_size=200))
    shutil.copytree(folders["clip"], tmp_path / "no_weights")
    (tmp_path / "no_weights" / "model.safetensors").unlink()
    for folder, message in ("no_weights", "cannot be loaded"), ("nothing", "no such model folder"):
        with pytest.raises(UserError, match=message) as caught:
            autocheck.load_encoder(str(tmp_path / folder))
        assert "\n" not in str(caught.value)
