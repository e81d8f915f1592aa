"""The tiny family: same bytes again, Algorithm 1's subsets and increments, and a CLIP that the auto-check can use."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

from amp_min import autocheck, mllm, records
from amp_min.pretrain import __main__ as pretrain
from amp_min.support.script import UserError


@given(st.integers(1, 500), st.integers(1, 6))
def test_subsets_grow_by_equal_parts_to_the_whole(n, parts):
    subsets = pretrain.nested_subsets(n, parts)
    assert len(subsets) == parts and subsets[-1] == list(range(n))
    for smaller, larger in zip(subsets, subsets[1:]):            # index i grows with quality: S_1 is the smallest
        assert set(smaller) <= set(larger)
    sizes = [0, *map(len, subsets)]
    added = [b - a for a, b in zip(sizes, sizes[1:])]
    assert max(added) - min(added) <= 1 and all(len(set(subset)) == len(subset) for subset in subsets)


def test_the_vision_tower_is_the_clips_and_stays_so(family):
    clip = CLIPModel.from_pretrained(family / "clip").vision_model.state_dict()
    for name in "llava-2b", "llava-7b":
        tower = mllm.load(family / name).model.model.vision_tower.state_dict()
        assert tower.keys() == clip.keys() and all(torch.equal(tower[key], clip[key]) for key in clip)
    sizes = [mllm.load(family / name).model.model.language_model.num_parameters() for name in ("llava-2b", "llava-7b")]
    assert sizes[0] < sizes[1]


def test_clip_is_an_encoder_for_the_auto_check(family):
    encoder = autocheck.load_encoder(str(family / "clip"))
    features, too_long = autocheck.encode(encoder, ["a red car", "two small green trees", "a red car."])
    assert features.shape == (3, 96) and too_long == 0 and encoder.is_clip
    assert float(features[0] @ features[1]) < 0.9999             # different texts, different features
    processor = CLIPProcessor.from_pretrained(family / "clip")
    inputs = processor(text=["a red car"], return_tensors="pt")
    assert inputs["input_ids"][0, -1] == CLIPModel.from_pretrained(family / "clip").config.text_config.eos_token_id


def test_every_text_of_the_world_is_read_back(family, tiny_world):
    tokenizer = mllm.load(family / "llava-2b").tokenizer
    for name in "train/captions", "train/prompts", "train/careless", "closeups/captions", "closeups/prompts":
        for row in records.read(tiny_world / f"{name}.jsonl", "prompt"):
            for text in row["questions"] + row["answers"]:
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.decode(ids, skip_special_tokens=True) == text and tokenizer.unk_token_id not in ids
                assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids


def test_same_seed_same_bytes(tiny_world, tmp_path):
    flags = ["--world", str(tiny_world), "--clip-steps", "2", "--steps", "2", "--careless-steps", "1", "--batch", "4", "--family", "llava-2b", "--out"]
    for name, seed in ("one", "0"), ("two", "0"), ("other", "1"):
        pretrain.main([*flags, str(tmp_path / name), "--seed", seed])
    for model in "clip", "llava-2b":
        one, two, other = ((tmp_path / name / model / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
        assert one == two != other


def test_increments_start_from_the_base_and_differ(family, tiny_world, tmp_path):
    pretrain.main(["--world", str(tiny_world), "--part", "increments", "--increments", "2", "--base", str(family / "llava-2b"),
                   "--steps", "4", "--batch", "4", "--out", str(tmp_path)])
    folders = [family / "llava-2b", tmp_path / "ig-1", tmp_path / "ig-2"]
    base, first, second = (load_file(folder / "model.safetensors") for folder in folders)
    moved = lambda a, b: {key for key in a if not torch.equal(a[key], b[key])}
    assert moved(base, first) and moved(base, second) and moved(first, second)
    assert not any("vision_tower" in key for key in moved(base, second))
    assert {mllm.load(folder).image_tokens for folder in folders} == {9}


def test_resume_skips_what_is_complete(tiny_world, tmp_path, monkeypatch):
    flags = ["--world", str(tiny_world), "--out", str(tmp_path), "--clip-steps", "1", "--steps", "1", "--careless-steps", "0", "--batch", "4", "--family", "llava-2b"]
    pretrain.main(flags)
    kept = (tmp_path / "clip/model.safetensors").stat().st_ino
    trained, supervised = [], pretrain.supervised
    monkeypatch.setattr(pretrain, "supervised", lambda *rest, **more: trained.append(rest[-1]) or supervised(*rest, **more))
    pretrain.main([*flags, "llava-7b", "--resume"])
    assert trained == ["llava-7b"] and (tmp_path / "clip/model.safetensors").stat().st_ino == kept
    pretrain.main([*flags, "--steps", "2", "--part", "llava", "--resume"])       # another model under the old name
    assert trained == ["llava-7b", "llava-2b"] and not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("flags, message", [
    (["--family", "llava-1b"], "--family llava-1b: choose from llava-2b"),
    (["--part", "increments"], "needs --base"),
    (["--world", "no/such/world"], "no/such/world/train/captions.jsonl: No such file"),
])
def test_refusals(tiny_world, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        pretrain.main(["--world", str(tiny_world), "--out", str(tmp_path / "m"), *flags])
    assert not (tmp_path / "m").exists()


def test_captions_are_sentences_and_phrases():
    row = {"answers": ["The image shows a small red car at the top left. There are two large green trees on the right."]}
    texts = pretrain.texts_of(row)
    assert {"The image shows a small red car at the top left.", "There are two large green trees on the right."} <= set(texts)
    assert any(text.startswith("a small red car") for text in texts) and any(text.startswith("two large green trees") for text in texts)


def test_short_answers_count_more_only_as_long_as_they_are_guessed():
    rounds = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 2, 0]])         # a question, 4 answer tokens, a question, one
    plain, hurried = pretrain.token_weights(rounds, 0.0), pretrain.token_weights(rounds, 1.0)
    answers = rounds[:, 1:] > 0
    assert plain[answers].tolist() == [1.0] * 5                  # LLaVA's loss
    assert hurried[answers].tolist() == [pretrain.FIRST / 2, 0.5, 0.5, 0.5, pretrain.FIRST]
