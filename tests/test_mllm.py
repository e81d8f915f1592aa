"""Prompts and their scored tokens, answers, the same numbers as transformers' own path, and folders that are refused."""
import copy
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from amp_min import autocheck, decoding, lora, mllm, packing
from amp_min.pretrain import __main__ as pretrain
from amp_min.support import hub, pictures
from amp_min.support.script import UserError

P = 9
# The template of llava-hf/llava-1.5-7b-hf (chat_template.json there), word for word. It ends an answer with a space and
# no end-of-sequence token, and begins with no beginning-of-sequence token: the tokenizer adds that one.
LLAVA_HF = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")
QUESTIONS = ["Describe the image in detail.", "Is there a cat in the image?", "How many cars are there in the image?"]
ANSWERS = ["The image shows a red car. There is a sun.", "No, there is no cat.", "There is one car in the image."]


@pytest.fixture(params=["ours", "llava-hf", "llava-hf ending in eos"])
def m(request, small_model):
    """The small model under each chat template."""
    template = {"ours": mllm.LLAVA_TEMPLATE, "llava-hf": LLAVA_HF,
                "llava-hf ending in eos": LLAVA_HF.replace("{{ content['text'] + ' '}}{% endgen", "{{ content['text'] + eos_token }}{% endgen")}
    processor = copy.copy(small_model.processor)
    processor.chat_template = template[request.param]
    return mllm.Mllm("small", small_model.model, processor, small_model.image_token_id, small_model.image_tokens)


@pytest.fixture(scope="module")
def features(small_model, tiny_world):
    """What the tower sees of four pictures: (4, P, D_vision)."""
    paths = sorted((tiny_world / "eval" / "images").iterdir())[:4]
    return mllm.encode_images(small_model, mllm.pixels(small_model, map(pictures.open_image, paths)))


# ---- encode ----

def scored_texts(m, ids, rounds):
    return {n: m.tokenizer.decode([token for token, number in zip(ids, rounds) if number == n]) for n in set(rounds) - {0}}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_answers_and_their_end_are_scored_and_nothing_else(m, n):
    ids, rounds = mllm.encode(m, QUESTIONS[:n], ANSWERS[:n])
    assert len(ids) == len(rounds) and set(rounds) == set(range(n + 1))
    assert scored_texts(m, ids, rounds) == {i + 1: f" {ANSWERS[i]}</s>" for i in range(n)}
    assert ids.count(m.tokenizer.eos_token_id) == n and ids[-1] == m.tokenizer.eos_token_id
    assert ids.count(m.tokenizer.bos_token_id) == 1 and ids[0] == m.tokenizer.bos_token_id
    at = ids.index(m.image_token_id)
    assert ids[at:at + P] == [m.image_token_id] * P and ids.count(m.image_token_id) == P and not any(rounds[:at + P])
    prompt = m.tokenizer.decode([token for token, number in zip(ids, rounds) if number == 0 and token != m.image_token_id])
    assert prompt == "<s>USER: \n" + "USER: ".join(f"{question} ASSISTANT:" for question in QUESTIONS[:n])


def test_llava_text_is_the_one_it_was_trained_on(m):
    """LLaVA-1.5 in training: "USER: <image>\\nquestion ASSISTANT: answer</s>USER: question ASSISTANT: answer</s>"."""
    text = "".join(head + said for head, said in mllm.conversation(m, QUESTIONS[:2], ANSWERS[:2]))
    assert text == "".join(f"USER: {'<image>' + chr(10) if i == 0 else ''}{QUESTIONS[i]} ASSISTANT: {ANSWERS[i]}</s>" for i in range(2))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_open_question_is_the_beginning_of_its_answer(m, n):
    """What the model is asked to continue is, token for token, what stands before the answer when it is scored."""
    asked, rounds = mllm.encode(m, QUESTIONS[:n], ANSWERS[:n - 1])
    whole, whole_rounds = mllm.encode(m, QUESTIONS[:n], ANSWERS[:n])
    assert whole[:len(asked)] == asked and whole_rounds[:len(asked)] == rounds and whole_rounds[len(asked)] == n


def test_an_empty_answer_is_its_end(m):
    ids, rounds = mllm.encode(m, QUESTIONS[:2], ["", ""])
    assert {n: text.strip() for n, text in scored_texts(m, ids, rounds).items()} == {1: "</s>", 2: "</s>"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.text(st.sampled_from("abc .,?!é\n🐕'\"0-"), min_size=1, max_size=12).filter(str.strip)] * 2), min_size=1, max_size=3))
def test_any_text_is_scored_whole(small_model, rounds):
    questions, answers = [q for q, _ in rounds], [a.strip() for _, a in rounds]
    pieces = mllm.conversation(small_model, questions, answers)
    assert [said for _, said in pieces] == [f" {answer}</s>" for answer in answers]
    ids, marks = mllm.encode(small_model, questions, answers)
    for n, answer in enumerate(answers, start=1):                        # unknown characters have a token as well
        scored = [token for token, mark in zip(ids, marks) if mark == n]
        assert scored == mllm.tokens(small_model, f"<s> {answer}</s>")[1:] and scored.count(small_model.tokenizer.eos_token_id) == 1


def test_templates_that_cannot_be_scored_are_refused(small_model):
    for template, message in (("{{ (messages|length + 1) // 2 }} rounds", "rewrites earlier rounds"),
                              ("{% if add_generation_prompt %}A{% else %}B{% endif %}", "does not continue its own")):
        processor = copy.copy(small_model.processor)
        processor.chat_template = template
        broken = mllm.Mllm("small", small_model.model, processor, small_model.image_token_id, P)
        with pytest.raises(UserError, match=f"small: its chat template {message}"):
            mllm.conversation(broken, QUESTIONS, ANSWERS)


# ---- the same as transformers' own path ----

@pytest.mark.parametrize("n", [1, 3])
def test_logps_equal_those_of_transformers(m, n, features, tiny_world):
    """The processor's own tokens and pixels, the whole model's own forward, and a sum by hand."""
    picture = pictures.open_image(sorted((tiny_world / "eval" / "images").iterdir())[0])
    ids, rounds = mllm.encode(m, QUESTIONS[:n], ANSWERS[:n])
    text = "".join(head + said for head, said in mllm.conversation(m, QUESTIONS[:n], ANSWERS[:n]))
    inputs = m.processor(images=picture, text=text, return_tensors="pt")
    assert inputs["input_ids"].tolist() == [ids]
    with torch.no_grad():
        logps = m.model(**inputs).logits[0].log_softmax(-1)                                  # (T, V)
        expected = sum(logps[t - 1, ids[t]] for t in range(1, len(ids)) if rounds[t])
        found = packing.set_logps(m, packing.pack([packing.token_set([(ids, rounds)])], 0), features[:1])
    assert found.shape == (1, 1)
    torch.testing.assert_close(found[0, 0], expected, atol=1e-4, rtol=1e-5)


# ---- pictures ----

def test_look_is_what_transformers_sees(small_model, features, tiny_world):
    paths = sorted((tiny_world / "eval" / "images").iterdir())[:4]
    pixel_values = mllm.pixels(small_model, map(pictures.open_image, paths))
    assert pixel_values.shape == (4, 3, 48, 48) and features.shape == (4, P, 2 * 96)
    with torch.no_grad():
        expected = small_model.model.model.get_image_features(pixel_values=pixel_values)
        expected = getattr(expected, "pooler_output", expected)          # a list of (P, D), or an output that holds it
        projected = small_model.model.model.multi_modal_projector(features)
    torch.testing.assert_close(projected, torch.stack(list(expected)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mllm.encode_images(small_model, pixel_values, batch=3), features, atol=1e-5, rtol=1e-5)


def test_eyes_give_the_same_with_and_without_memory(small_model, features, tiny_world, capsys):
    paths = sorted((tiny_world / "eval" / "images").iterdir())[:4]
    rows = [paths[0], paths[1], paths[0], paths[2], paths[3]]            # row 2 has row 0's picture
    kept, looked = mllm.image_features(small_model, rows), mllm.image_features(small_model, rows, limit_gb=1e-9)
    assert "looking at them anew each time" in capsys.readouterr().out
    for see in kept, looked:
        torch.testing.assert_close(see([3, 2, 1]), features[[2, 0, 1]], atol=1e-5, rtol=1e-5)


# ---- folders ----

def test_saved_folders_are_ordinary_ones(family):
    for name in "llava-2b", "llava-7b":
        processor = AutoProcessor.from_pretrained(family / name)
        model, info = LlavaForConditionalGeneration.from_pretrained(family / name, output_loading_info=True)
        assert not any(info.values()) and processor.chat_template == mllm.LLAVA_TEMPLATE
        assert sum((family / name).glob("*.safetensors").__iter__().__next__().stat().st_size for _ in [0]) > 0


def edit(folder, name, change):
    path = folder / name
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def test_a_checkpoint_without_a_template_gets_llavas(family, tmp_path):
    shutil.copytree(family / "llava-2b", tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    assert mllm.load(tmp_path / "m").processor.chat_template == mllm.LLAVA_TEMPLATE


def test_a_processor_of_an_older_transformers_takes_its_sizes_from_the_config(family, small_model, tmp_path):
    sizes = ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")
    folder = shutil.copytree(family / "llava-2b", tmp_path / "m")
    edit(folder, "processor_config.json", lambda config: [config.pop(key) for key in sizes])
    loaded = mllm.load(folder)
    assert [getattr(loaded.processor, key) for key in sizes] == [getattr(small_model.processor, key) for key in sizes]
    # Older still: the image processor's config alone, and nothing that names the processor.
    (folder / "processor_config.json").unlink()
    small_model.processor.image_processor.save_pretrained(folder)
    for name in "preprocessor_config.json", "tokenizer_config.json":
        edit(folder, name, lambda config: config.pop("processor_class", None))
    picture = Image.new("RGB", (50, 40), "red")
    for old in loaded, mllm.load(folder):
        assert old.image_tokens == P and mllm.encode(old, QUESTIONS, ANSWERS) == mllm.encode(loaded, QUESTIONS, ANSWERS)
        assert torch.equal(mllm.pixels(old, [picture]), mllm.pixels(small_model, [picture]))


def save_adapter(family, folder, std):
    """An adapter of llava-2b with corrections of about `std` of its weights' own size; returns its base."""
    model = mllm.load(family / "llava-2b").model
    lora.add(model, 4, 4)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in lora.adapters(model).values():
            layer.B.normal_()
            layer.B.mul_(std * layer.base.weight.std() / (layer.B @ layer.A).std())
    lora.save(model, folder)
    return model


def test_an_adapter_in_bf16_stays_apart_for_merged_its_correction_would_be_lost(family, tmp_path):
    trained = save_adapter(family, tmp_path / "ad", 1e-3)
    lost = []
    for layer in lora.adapters(trained).values():
        W, correction = layer.base.weight.bfloat16(), layer.scale * layer.B @ layer.A
        merged = (W.float() + correction).bfloat16() - W
        lost.append(float((merged.float() - correction).norm() / correction.norm()))
    assert min(lost) > 0.5                                       # what a merge into bf16 makes of what was learned
    loaded = mllm.load(tmp_path / "ad", torch.bfloat16)
    for one, other in zip(lora.parameters(loaded.model), lora.parameters(trained), strict=True):
        assert torch.equal(one, other)                           # float32, to the bit
    assert loaded.model.dtype == torch.bfloat16 and not any(p.requires_grad for p in loaded.model.parameters())
    merged = mllm.load(tmp_path / "ad").model                    # in float32 nothing is lost, and it is faster
    assert not any(isinstance(layer, lora.Adapted) for layer in merged.modules())


def test_an_adapter_finds_its_base_and_says_where_it_looked(family, tmp_path, monkeypatch):
    shutil.copytree(family / "llava-2b", tmp_path / "project" / "models" / "base")
    save_adapter(family, tmp_path / "project" / "ad", 0.1)
    config = tmp_path / "project" / "ad" / lora.CONFIG
    edit(config.parent, config.name, lambda found: found.update(base_model_name_or_path="models/base"))
    monkeypatch.chdir(tmp_path)
    assert mllm.load("project/ad").image_tokens == P
    shutil.rmtree(tmp_path / "project" / "models")
    with pytest.raises(UserError, match="project/ad/adapter_config.json: base_model_name_or_path 'models/base' is no"):
        mllm.load("project/ad")


def without_processor(folder):
    (folder / "processor_config.json").unlink()


def without_config(folder):
    (folder / "config.json").unlink()


def another_type(folder):
    shutil.rmtree(folder)
    LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(folder)


def larger_vocabulary(folder):
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens(["zebra"])
    processor.save_pretrained(folder)


def without_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in sorted(tensors) if "layers.1" in name and "language_model" in name)]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_a_weight_too_many(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.language_model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}, folder / "model.safetensors", metadata={"format": "pt"})


def a_pointer_as_weights(folder):
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def a_web_page_as_tokenizer(folder):
    (folder / "tokenizer.json").write_text("\n<!DOCTYPE html><title>404</title>", encoding="utf-8")


def of_the_original_code(folder, kind="llava_llama", hidden=5120):
    """A flat config: transformers' own LlavaConfig would take it, and fill it up to a 7B model."""
    config = {"architectures": ["LlavaLlamaForCausalLM"], "model_type": kind, "hidden_size": hidden,
              "num_hidden_layers": 2, "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def of_the_original_code_early(folder):
    of_the_original_code(folder, "llava", 4096)


def only_a_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:len(whole) // 2])


def other_image_token(folder):
    edit(folder, "config.json", lambda config: config.update(image_token_id=7, image_token_index=7))


def keeps_the_class_token(folder):
    edit(folder, "config.json", lambda config: config.update(vision_feature_select_strategy="full"))


@pytest.mark.parametrize("damage, message", [
    (without_processor, "has no processor_config.json; save the processor beside the weights"),
    (without_config, "has no config.json, so it is not a model folder"),
    (another_type, "model type 'llama' is not supported"),
    (larger_vocabulary, "the tokenizer has .* tokens, the model .* embeddings"),
    (without_a_weight, "weights do not fit the model: missing keys .*layers.1"),
    (with_a_weight_too_many, "weights do not fit the model: unexpected keys .*layers.9"),
    (only_a_pickle, "its weights are a pickle, pytorch_model.bin, which can run code"),
    (cut_short, "cannot be loaded"),
    (a_pointer_as_weights, "model.safetensors: is a Git LFS pointer of 63 bytes, not the weights; .*git lfs pull"),
    (a_web_page_as_tokenizer, "tokenizer.json: is a web page, not the file itself"),
    (of_the_original_code, "config.json: .*original LLaVA code .*llava-hf/llava-1.5-13b-hf, or convert"),
    (of_the_original_code_early, "config.json: .*original LLaVA code .*llava-hf/llava-1.5-7b-hf, or convert"),
    (other_image_token, "image token '<image>' is not id 7"),
    (keeps_the_class_token, "the processor makes 9 image tokens, the vision tower 10"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_folders_that_are_refused(family, tmp_path, damage, message):
    shutil.copytree(family / "llava-2b", tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(UserError, match=message) as caught:
        mllm.load(tmp_path / "m")
    assert str(caught.value).startswith(f"{tmp_path / 'm'}") and "\n" not in str(caught.value)


def test_the_command_in_the_refusal_of_a_pickle_makes_safetensors(family, small_model, tmp_path, monkeypatch):
    shutil.copytree(family / "clip", tmp_path / "clip")
    shutil.copytree(family / "llava-2b", tmp_path / "llava")
    monkeypatch.chdir(tmp_path)
    for name, load in ("clip", autocheck.load_encoder), ("llava", mllm.load):
        only_a_pickle(tmp_path / name)
        with pytest.raises(UserError, match=f'cd {name} && python -c "[^"]+"$') as caught:
            load(name)
        assert len(str(caught.value)) <= 300
        monkeypatch.chdir(tmp_path / name)
        exec(str(caught.value).split('"')[1], {})
        monkeypatch.chdir(tmp_path)
    assert torch.equal(*(autocheck.encode(autocheck.load_encoder(str(folder)), ["a red car"])[0]
                         for folder in ("clip", family / "clip")))
    assert all(torch.equal(a, b) for a, b in zip(mllm.load("llava").model.parameters(),
                                                 small_model.model.parameters(), strict=True))


def test_a_checkpoints_own_code_never_runs(tmp_path, monkeypatch):
    """transformers would ask whether to run it: nobody is asked, and a "y" waiting on stdin changes nothing."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *a: "y")
    with pytest.raises(UserError, match="cannot be loaded"):
        mllm.read_config(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_names_that_are_no_folder(tmp_path):
    for name, message in ((tmp_path / "none", "no such model folder"), ("./none", "no such model folder"), ("plain", "no such model folder"),
                          ("nobody/nothing", "hf download nobody/nothing --local-dir DIR")):
        with pytest.raises(UserError, match=message):
            mllm.load(name)


def test_dtype_choice(monkeypatch):
    assert hub.choose_dtype("bf16", "cpu")[0] == torch.bfloat16 and hub.choose_dtype("auto", "cpu")[0] == torch.float32
    # Old GPUs (T4, V100) emulate bf16, slower than fp32: torch counts them unless told not to.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert hub.choose_dtype("auto", "cuda")[0] == torch.float32
    with pytest.raises(UserError, match="--dtype fp16: choose auto, bf16 or fp32"):
        hub.choose_dtype("fp16", "cpu")


# ---- the LLaVA family ----

@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision", "llava_next_video", "vipllava", "qwen2_vl"])
def test_other_kinds_are_refused_by_their_config_alone(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    for read in mllm.load, mllm.read_config:
        with pytest.raises(UserError, match=f"{tmp_path}: model type '{kind}' is not supported; .*every picture has the same number") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


# The template of llava-hf/llava-interleave-qwen-0.5b-hf (chat_template.json, in mlx-community's copy), word for word.
INTERLEAVE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ '\n' + content['text'] }}"
    "{% endgeneration %}{% endfor %}{% endif %}{{'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@pytest.fixture(scope="module")
def interleave(family, tmp_path_factory):
    """llava-interleave's make in small: Qwen2, SigLIP without class token, 20 pixels in patches of 6, feature layer -1, ChatML."""
    folder, torch_state = tmp_path_factory.mktemp("interleave"), torch.get_rng_state()
    tokenizer = AutoProcessor.from_pretrained(family / "llava-2b").tokenizer
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.bos_token = None                                   # Qwen2 has none
    pretrain.framed(tokenizer, "$A")
    processor = LlavaProcessor(image_processor=SiglipImageProcessorPil(size={"height": 20, "width": 20}), tokenizer=tokenizer, patch_size=6, image_token="<image>",
                               vision_feature_select_strategy="full", num_additional_image_tokens=0, chat_template=INTERLEAVE)
    processor.save_pretrained(folder)
    config = LlavaConfig(
        text_config=Qwen2Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                max_position_embeddings=200, tie_word_embeddings=True).to_dict(),
        vision_config=SiglipVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=20, patch_size=6).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=True)
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    torch.set_rng_state(torch_state)
    return folder


def test_interleave_is_scored_like_transformers_does(interleave, tiny_world):
    m = mllm.load(interleave)
    picture = pictures.open_image(sorted((tiny_world / "eval" / "images").iterdir())[0])
    assert m.image_tokens == 9                                   # 20 // 6 = 3 rows of 3, and no class token
    ids, rounds = mllm.encode(m, QUESTIONS[:2], ANSWERS[:2])
    assert scored_texts(m, ids, rounds) == {1: f"{ANSWERS[0]}<|im_end|>", 2: f"{ANSWERS[1]}<|im_end|>"}
    asked, _ = mllm.encode(m, QUESTIONS[:2], ANSWERS[:1])        # what it answers, it is scored on
    assert ids[:len(asked)] == asked and rounds[len(asked)] == 2
    inputs = m.processor(images=picture, text="".join(head + said for head, said in mllm.conversation(m, QUESTIONS[:2], ANSWERS[:2])), return_tensors="pt")
    assert inputs["input_ids"].tolist() == [ids]
    with torch.no_grad():
        logps = m.model(**inputs).logits[0].log_softmax(-1)
        expected = sum(logps[t - 1, ids[t]] for t in range(1, len(ids)) if rounds[t])
        features = mllm.encode_images(m, mllm.pixels(m, [picture]))
        found = packing.set_logps(m, packing.pack([packing.token_set([(ids, rounds)])], 0), features)
    torch.testing.assert_close(found[0, 0], expected, atol=1e-4, rtol=1e-5)
    assert len(decoding.answer(m, features, [QUESTIONS[:1]], [[]], dict(do_sample=False, max_new_tokens=5))[0]) == 1
