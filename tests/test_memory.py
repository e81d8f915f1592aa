"""The estimate against real models: parameters exactly, what torch keeps for the backward pass to a few per cent."""
from dataclasses import replace

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import train
from amp_min import lora, mllm
from amp_min.support import memory

GB = 2**30
LLAVA_7B = LlavaConfig(
    text_config=LlamaConfig(vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5).to_dict(), image_token_index=32000,
    vision_config=CLIPVisionConfig(hidden_size=1024, image_size=336, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24,
                                   patch_size=14, projection_dim=768).to_dict())


def small(layers=5, heads=4, kv=4):
    return LlavaConfig(
        text_config=LlamaConfig(vocab_size=100, hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=heads,
                                num_key_value_heads=kv).to_dict(), image_token_index=99,
        vision_config=CLIPVisionConfig(hidden_size=32, image_size=28, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, patch_size=14).to_dict())


def settings(**kwargs):
    return train.Settings(model="m", preferences="p", out="o", **kwargs)


def estimate(config, width, **kwargs):
    model = memory.skeleton(config)
    train.choose_trained(model, settings(**kwargs))
    return memory.estimate(model, settings(**kwargs), width, memory.image_tokens_of(config))


@pytest.fixture(scope="module")
def llava_7b():
    """Skeletons of LLaVA-1.5-7B: for full training and with adapters of rank 64."""
    models = []
    for rank in 0, 64:
        models.append(memory.skeleton(LLAVA_7B))
        train.choose_trained(models[-1], settings(lora_rank=rank))
    return models


def test_llava_7b_has_the_known_size(llava_7b):
    """7.06 B parameters, of which rank 64 adapts 160 M; 576 image tokens."""
    plain, adapted = llava_7b
    assert plain.num_parameters() == 7_063_427_072 and memory.image_tokens_of(LLAVA_7B) == 576
    parts = memory.estimate(adapted, settings(lora_rank=64, micro_batch=1), 2, 576)
    assert parts["weights"] == 7_063_427_072 * 2 and parts["adapters"] == 159_907_840 * 4
    assert parts["gradients"] == parts["adapters"] and parts["optimizer"] == 2 * parts["adapters"]
    full = memory.estimate(plain, settings(micro_batch=1), 2, 576)
    assert "adapters" not in full and full["weights"] == 7_063_427_072 * 4 and full["gradients"] == (6_607_605_760 + 32064 * 4096) * 4


def test_counts_are_those_of_a_loaded_model(family):
    config = mllm.read_config(family / "llava-2b")
    for kwargs in ({}, {"train_projector": True}, {"lora_rank": 4}):
        m, trained, _ = train.load_policy(replace(settings(**kwargs), model=str(family / "llava-2b")))
        parts, n = estimate(config, 4, **kwargs), sum(p.numel() for p in trained.values())
        assert parts["weights"] + parts.get("adapters", 0) == 4 * m.model.num_parameters()
        assert parts["gradients"] == 4 * n and parts["optimizer"] == 8 * n


def kept(config, dtype, rank, T=96, checkpointing=False):
    """Bytes that torch keeps between the forward and the backward pass of the language model, its parameters left out."""
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).to(dtype if rank else torch.float32)
    train.choose_trained(model, settings(lora_rank=rank))
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    parameters, storages, hold = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        hold.append(tensor)                                      # so that no address is used twice
        return tensor
    x = torch.randn(1, T, 64, dtype=dtype if rank else torch.float32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=not rank and dtype == torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.model.language_model(inputs_embeds=x, attention_mask=torch.zeros(1, 1, T, T, dtype=x.dtype), position_ids=torch.arange(T)[None], use_cache=False)
    return sum(storages.values())


@pytest.mark.parametrize("kv", [4, 2])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_layers_keep(dtype, rank, kv):
    config = small(kv=kv)
    found, expected = kept(config, dtype, rank), memory.kept(config.text_config, dtype.itemsize, rank, 1, 96, False)
    if not rank and dtype == torch.bfloat16:                     # autocast's copies of the weights, which `estimate` counts apart
        expected += 5 * 2 * (2 * 64 * 64 + 2 * 64 * 16 * kv + 3 * 64 * 160)
    assert found == pytest.approx(expected, rel=0.04)            # the rest: the last norm, positions, attention's log-sums


def test_checkpointing_keeps_the_layers_inputs_alone():
    """Between the passes nothing but each layer's input is kept; the one layer that is made again comes on top."""
    config = small(layers=12)
    found = kept(config, torch.bfloat16, 4, checkpointing=True)
    expected = memory.kept(config.text_config, 2, 4, 1, 96, True) - 96 * memory.kept_per_token(config.text_config, 2, 4)
    assert found == pytest.approx(expected, rel=0.05) and found < 0.1 * kept(config, torch.bfloat16, 4)


def test_the_line_says_what_fits_and_what_would(llava_7b):
    plain, model = llava_7b
    run = settings(lora_rank=64, micro_batch=1)
    line = memory.report(model, run, 2, 576, 80 * GB)
    assert line.startswith("memory: weights 13.2 GB, adapters 0.6, gradients 0.6, optimizer 1.2, activations ") and line.endswith("fits in 80 GB: yes")
    assert "for 1 set of 576 + 50 + 4 x 100 tokens" in line
    saving = memory.report(model, replace(run, gradient_checkpointing=True), 2, 576, 24 * GB)
    assert saving in " ".join(memory.__doc__.split())            # the docstring shows this very line
    assert "fits in 20 GB: no; with --gradient-checkpointing " in memory.report(model, run, 2, 576, 20 * GB)
    assert "no; with --gradient-checkpointing --micro-batch 1 " in memory.report(model, replace(run, micro_batch=16), 2, 576, 24 * GB)
    assert "no; take a smaller --lora-rank or a smaller model" in memory.report(model, run, 2, 576, 12 * GB)
    assert "no; take --lora-rank 64 or a smaller model" in memory.report(plain, settings(), 2, 576, 80 * GB)


def test_adapters_on_a_skeleton_are_the_models(family):
    config = mllm.read_config(family / "llava-2b")
    assert sum(p.numel() for p in lora.parameters(lora.add(memory.skeleton(config), 8))) == sum(
        p.numel() for p in lora.parameters(lora.add(mllm.load(family / "llava-2b").model, 8)))
