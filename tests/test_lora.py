"""The adapters against PEFT in both directions, against the merged weights, and that nothing else moves."""
import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from amp_min import lora
from amp_min.support.script import UserError

torch.set_num_threads(1)
LAYERS, D, HIDDEN, KV = 2, 32, 48, 16
RANK, ALPHA = 4, 8                   # a scale of 2, exact: adapters are PEFT's to the bit


def base(dtype=torch.float32, hidden=HIDDEN):
    torch.manual_seed(0)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, image_size=8,
                              num_attention_heads=2, patch_size=4, projection_dim=16)
    text = LlamaConfig(vocab_size=50, hidden_size=D, intermediate_size=hidden, num_hidden_layers=LAYERS,
                       num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=49)
    return LlavaForConditionalGeneration(config).to(dtype).eval()


def adapted(dtype=torch.float32, rank=RANK, alpha=ALPHA):
    """A base with adapters that do something, as after training."""
    model = lora.add(base(dtype), rank, alpha)
    with torch.no_grad():
        for layer in lora.adapters(model).values():
            layer.B.normal_(std=0.1)
    return model


def logits(model):
    generator = torch.Generator().manual_seed(1)
    ids = torch.cat([torch.full((2, 4), 49), torch.randint(1, 49, (2, 6), generator=generator)], dim=1)
    dtype = next(p.dtype for p in model.parameters())
    return model(input_ids=ids, pixel_values=torch.randn(2, 3, 8, 8, generator=generator).to(dtype)).logits


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- the first step is the reference; switched off is the base ----

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_new_adapters_change_no_bit_of_the_output(dtype):
    model = base(dtype)
    before = logits(model)
    lora.add(model, RANK, ALPHA)
    after = logits(model)
    assert after.dtype == dtype and torch.equal(before, after)
    assert {p.dtype for p in lora.parameters(model)} == {torch.promote_types(dtype, torch.float32)}


def test_initial_values():
    model = lora.add(base(), rank=8)
    for layer in lora.adapters(model).values():
        bound = layer.base.in_features ** -0.5
        assert layer.A.abs().max() <= bound and layer.A.abs().max() > 0.9 * bound
        assert abs(layer.A.std().item() - bound / 3 ** 0.5) < 0.1 * bound
        assert not layer.B.any()
        assert layer.scale == 16 / 8


def test_disabled_is_the_base_bit_for_bit_also_after_errors():
    before, model = logits(base()), adapted()
    trained = logits(model)
    assert (trained - before).abs().max() > 0.1
    with lora.disabled(model) as reference:
        assert torch.equal(logits(reference), before)
        with lora.disabled(model):
            pass
        assert torch.equal(logits(model), before)                 # the inner block did not switch them on
    assert torch.equal(logits(model), trained)
    with pytest.raises(RuntimeError, match="stop"):
        with lora.disabled(model):
            raise RuntimeError("stop")
    assert torch.equal(logits(model), trained)


# ---- what is adapted and what is trained ----

def test_which_layers_and_how_many_parameters():
    model = lora.add(base(), RANK)
    names = {f"model.language_model.layers.{i}.{part}" for i in range(LAYERS) for part in
             ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
              "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}
    assert lora.adapters(model).keys() == names
    shapes = [(D, D), (D, KV), (D, KV), (D, D), (D, HIDDEN), (D, HIDDEN), (HIDDEN, D)]       # (in, out)
    assert sum(p.numel() for p in lora.parameters(model)) == LAYERS * sum(RANK * (i + o) for i, o in shapes)
    assert not any(isinstance(layer, lora.Adapted) for layer in model.model.vision_tower.modules())


def test_the_docstring_counts_llava_7b_right():
    D, hidden = 4096, 11008
    number = 32 * 64 * (4 * (D + D) + 3 * (D + hidden))
    assert round(number / 1e6) == 160 and "160 million" in lora.__doc__
    with torch.device("meta"):
        layer = lora.Adapted(nn.Linear(D, hidden, bias=False), 64, 16)
    assert layer.A.numel() + layer.B.numel() == 64 * (D + hidden)


def test_gradient_reaches_the_adapters_only_and_is_the_closed_form():
    model = adapted()
    logits(model).square().sum().backward()
    reached = {id(p) for p in model.parameters() if p.grad is not None}
    assert reached == {id(p) for p in lora.parameters(model)}
    assert all(p.grad.abs().max() > 0 for p in lora.parameters(model))
    # One layer: y = W x + s B A x, L = sum(g y) gives dL/dB = s g (A x)^T and dL/dA = s B^T g x^T.
    torch.manual_seed(2)
    layer = lora.Adapted(nn.Linear(5, 3).double().requires_grad_(False), rank=2, alpha=7)
    layer.B.data.normal_()
    x, g = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    (layer(x) * g).sum().backward()
    torch.testing.assert_close(layer.B.grad, 3.5 * g.T @ (x @ layer.A.T), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.A.grad, 3.5 * (g @ layer.B).T @ x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_gradients_are_those_of_the_plain_formula(dtype):
    """The plain twin: y = W x + s B A x by autograd, with x copied to float32. No such copy is kept."""
    torch.manual_seed(3)
    layer = lora.Adapted(nn.Linear(24, 16).requires_grad_(False).to(dtype), rank=4, alpha=6)
    layer.B.data.normal_()
    x = torch.randn(2, 7, 24, dtype=dtype, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours = layer(x)
    assert not any(t.shape == x.shape and t.dtype != dtype for t in kept)
    plain = (layer.base(x) + layer.scale * (x.float() @ layer.A.T @ layer.B.T)).to(dtype)
    close = dict(rtol=1e-2, atol=1e-2) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, plain, **close)
    g = torch.randn_like(ours)
    for one, other in zip(torch.autograd.grad(ours, (x, layer.A, layer.B), g),
                          torch.autograd.grad(plain, (x, layer.A, layer.B), g), strict=True):
        torch.testing.assert_close(one, other, **close)


def test_training_moves_the_adapters_only():
    model = lora.add(base(), RANK, ALPHA)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(lora.parameters(model), lr=1e-2)
    for _ in range(2):          # two steps: A moves only once B is no longer zero
        optimizer.zero_grad()
        logits(model).logsumexp(-1).sum().backward()
        optimizer.step()
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert all(layer.B.any() for layer in lora.adapters(model).values())
    with lora.disabled(model):
        assert torch.equal(logits(model), logits(base()))


# ---- merge ----

def test_merged_weights_answer_like_the_adapters():
    model = adapted(torch.float64)
    before = logits(model)
    merged = lora.merge(model)
    assert merged is model
    torch.testing.assert_close(logits(merged), before, rtol=0, atol=1e-12 * before.abs().max().item())
    assert state(merged).keys() == state(base()).keys()   # an ordinary model again: the same names
    assert not any(isinstance(layer, lora.Adapted) for layer in merged.modules())
    assert len(lora.adapters(lora.add(merged, 2))) == 7 * LAYERS  # and new adapters can be put on it


def test_merging_into_bf16_rounds_once():
    model = adapted(torch.bfloat16)
    want = {name: (layer.base.weight.float() + layer.scale * (layer.B @ layer.A)).bfloat16()
            for name, layer in lora.adapters(model).items()}
    lora.merge(model)
    for name, W in want.items():
        assert torch.equal(model.get_submodule(name).weight, W)


# ---- files, with PEFT on the other side ----

def test_round_trip_is_the_same_to_the_byte(tmp_path):
    model = adapted()
    lora.save(model, tmp_path / "one")
    again = lora.load(base(), tmp_path / "one")
    assert torch.equal(logits(again), logits(model))
    assert all(torch.equal(a, b) for a, b in zip(lora.parameters(model), lora.parameters(again), strict=True))
    assert all(p.requires_grad for p in lora.parameters(again))
    lora.save(again, tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["adapter_base.json", "adapter_config.json", "adapter_model.safetensors"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_reads_our_file(tmp_path, dtype):
    model = adapted(dtype)
    lora.save(model, tmp_path)
    theirs = PeftModel.from_pretrained(base(dtype), tmp_path).eval()
    assert torch.equal(logits(theirs), logits(model))
    assert not any("lora" in name for name, _ in theirs.named_modules() if "vision_tower" in name)
    with theirs.disable_adapter(), lora.disabled(model):
        assert torch.equal(logits(theirs), logits(model))


@pytest.mark.parametrize("targets", [lora.TARGETS, ["up_proj", "layers.1.self_attn.o_proj", "q_proj"]])
def test_we_read_a_file_that_peft_trained(tmp_path, targets):
    """A list names layers by their ends, so "q_proj" also means the vision tower's: PEFT's rule, and ours."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
    theirs = get_peft_model(base(), config)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-1)
    for _ in range(3):
        optimizer.zero_grad()
        logits(theirs).logsumexp(-1).sum().backward()
        optimizer.step()
    theirs.save_pretrained(tmp_path)
    ours = lora.load(base(), tmp_path)
    assert (logits(theirs) - logits(base())).abs().max() > 0.1
    assert torch.equal(logits(ours), logits(theirs))
    assert torch.equal(logits(lora.merge(ours)), logits(theirs.merge_and_unload()))


def test_our_keys_and_config_are_the_ones_peft_writes(tmp_path):
    lora.save(lora.add(base(), RANK, ALPHA), tmp_path / "ours")
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=lora.TARGETS, task_type="CAUSAL_LM")
    get_peft_model(base(), config).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / side / lora.WEIGHTS) for side in ("ours", "theirs"))
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in theirs.items()}
    ours, theirs = (json.loads((tmp_path / side / lora.CONFIG).read_text(encoding="utf-8"))
                    for side in ("ours", "theirs"))
    assert ours.items() <= theirs.items()


# ---- refusals ----

def test_a_second_adapter_and_a_model_without_one_are_refused(tmp_path):
    lora.save(adapted(), tmp_path)
    for again in (lambda model: lora.add(model), lambda model: lora.load(model, tmp_path)):
        with pytest.raises(UserError, match="has adapters already"):
            again(adapted())
    for use in (lora.merge, lora.parameters, lambda m: lora.save(m, tmp_path),
                lambda m: lora.disabled(m).__enter__()):
        with pytest.raises(UserError, match="has no adapters"):
            use(base())


def test_bad_targets_and_ranks_are_refused_and_leave_the_model_alone():
    model = base()
    before = [(name, p.requires_grad) for name, p in model.named_parameters()]
    for arguments, message in [({"targets": r".*no_such_layer"}, "no layer of the model matches"),
                               ({"targets": ["embed_tokens"]}, "embed_tokens is a Embedding"),
                               ({"targets": ["self_attn"]}, "self_attn is a .*Attention"),
                               ({"rank": 0}, "rank 0")]:
        with pytest.raises(UserError, match=message):
            lora.add(model, **arguments)
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == before


KEY = "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_A.weight"


def drop(tensors):
    del tensors[KEY]


def extra(tensors):
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(RANK, D)


def reshape(tensors):
    tensors[KEY] = torch.zeros(RANK + 1, D)


@pytest.mark.parametrize("change, message", [
    (drop, f"1 missing keys, first {KEY}"),
    (extra, "1 unexpected keys, first base_model.model.lm_head"),
    (reshape, rf"{KEY} has shape \({RANK + 1}, {D}\); this model and rank {RANK} need \({RANK}, {D}\)")])
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    lora.save(adapted(), tmp_path)
    tensors = load_file(tmp_path / lora.WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / lora.WEIGHTS)
    model = base()
    before = state(model)
    with pytest.raises(UserError, match=f"adapter_model.safetensors: {message}"):
        lora.load(model, tmp_path)
    assert same(state(model), before) and all(p.requires_grad for p in model.parameters())   # untouched


OLD = {  # how PEFT's files spelled the layers under earlier versions of transformers
    "4.52": [(".vision_tower.", ".vision_tower.vision_model.")],
    "4.40": [(".model.model.language_model.", ".model.language_model.model."),
             (".model.model.vision_tower.", ".model.vision_tower.vision_model.")]}


@pytest.mark.parametrize("version", OLD)
@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], r"^(?!.*up_proj).*(q_proj|gate_proj).*"])
def test_key_names_of_earlier_versions_are_read(tmp_path, version, targets):
    model = lora.add(base(), RANK, ALPHA, targets)
    for layer in lora.adapters(model).values():
        layer.B.data.normal_()
    lora.save(model, tmp_path / "new")
    lora.save(model, tmp_path / "old")
    tensors = {}
    for key, tensor in load_file(tmp_path / "new" / lora.WEIGHTS).items():
        for ours, theirs in OLD[version]:
            key = key.replace(ours, theirs, 1)
        tensors[key] = tensor
    assert tensors.keys() - load_file(tmp_path / "new" / lora.WEIGHTS).keys()
    save_file(tensors, tmp_path / "old" / lora.WEIGHTS)
    read = lora.load(base(), tmp_path / "old")
    assert torch.equal(logits(read), logits(model))
    lora.save(read, tmp_path / "again")                                   # under the names of today
    assert torch.equal(logits(lora.load(base(), tmp_path / "again")), logits(model))


@pytest.mark.parametrize("exclude", [r".*(vision_tower|layers\.0\.).*", ["o_proj", "1.self_attn.q_proj"]])
def test_excluded_modules_are_pefts(tmp_path, exclude):
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "o_proj"],
                        exclude_modules=exclude)
    theirs = get_peft_model(base(), config)
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)
    ours = lora.load(base(), tmp_path)
    assert torch.equal(logits(ours), logits(theirs)) and not torch.equal(logits(ours), logits(base()))
    names = {name.removeprefix("base_model.model.") for name, layer in theirs.named_modules()
             if hasattr(layer, "lora_A")}
    assert names == lora.adapters(ours).keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_base_of_the_same_shape_is_refused(tmp_path, dtype):
    lora.save(adapted(dtype), tmp_path)
    for other in torch.float32, torch.bfloat16:                           # the number format is no other base
        lora.load(base(other), tmp_path)
    finetuned = base()
    with torch.no_grad():
        finetuned.model.multi_modal_projector.linear_1.weight += 0.01
    with pytest.raises(UserError, match="adapter_base.json: the adapter was trained on another base"):
        lora.load(finetuned, tmp_path)
    (tmp_path / lora.BASE).unlink()                                       # PEFT's folders have none
    lora.load(finetuned, tmp_path)


def test_a_relative_base_is_looked_for_beside_the_adapter_first(tmp_path, monkeypatch):
    model = adapted()
    model.config._name_or_path = "models/base"
    for project in "here", "there":
        (tmp_path / project / "models" / "base").mkdir(parents=True)
        lora.save(model, tmp_path / project / "runs" / "ad")
    monkeypatch.chdir(tmp_path / "here")
    assert lora.base_of("../there/runs/ad") == str(tmp_path / "there" / "models" / "base")
    (tmp_path / "there" / "models" / "base").rmdir()
    assert lora.base_of("../there/runs/ad") == "models/base"              # then the folder that we are in
    (tmp_path / "here" / "models" / "base").rmdir()
    assert lora.base_of("../there/runs/ad") == "models/base"              # a hub id, perhaps
    model.config._name_or_path = "ad"
    lora.save(model, tmp_path / "there" / "runs" / "ad")
    with pytest.raises(UserError, match="base_model_name_or_path 'ad' is the adapter itself"):
        lora.base_of(tmp_path / "there" / "runs" / "ad")


def test_an_adapter_of_another_base_is_refused(tmp_path):
    lora.save(adapted(), tmp_path)
    with pytest.raises(UserError, match=r"gate_proj.lora_B.weight has shape \(48, 4\); .* need \(64, 4\)"):
        lora.load(base(hidden=64), tmp_path)


@pytest.mark.parametrize("entry, message", [
    ({"use_dora": True}, "use_dora is True; only plain LoRA"), ({"use_rslora": True}, "use_rslora is True"),
    ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is"), ({"bias": "all"}, "bias is 'all'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"), ({"r": "4"}, "r is '4'"),
    ({"something_new": 1}, "something_new is 1"), ({"r": RANK + 1}, "rank 5 need"),
    ({"target_modules": None}, "target_modules is None"), ({"exclude_modules": 3}, "exclude_modules is 3"),
    ({"peft_type": "IA3"}, "is not the config of a LoRA adapter")])
def test_configs_of_other_adapters_are_refused(tmp_path, entry, message):
    lora.save(adapted(), tmp_path)
    config = json.loads((tmp_path / lora.CONFIG).read_text(encoding="utf-8"))
    (tmp_path / lora.CONFIG).write_text(json.dumps(config | entry), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        lora.load(base(), tmp_path)


def test_broken_and_missing_files_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="adapter_config.json: cannot be read"):
        lora.load(base(), tmp_path)
    lora.save(adapted(), tmp_path)
    whole = (tmp_path / lora.WEIGHTS).read_bytes()
    (tmp_path / lora.WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(UserError, match="adapter_model.safetensors: cannot be read as safetensors"):
        lora.load(base(), tmp_path)
    (tmp_path / lora.WEIGHTS).unlink()
    with pytest.raises(UserError, match="adapter_model.safetensors: cannot be read as safetensors"):
        lora.load(base(), tmp_path)
    (tmp_path / lora.CONFIG).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="adapter_config.json: cannot be read"):
        lora.load(base(), tmp_path)


def test_adapted_models_can_be_copied():
    model = adapted()
    copied = copy.deepcopy(model)
    lora.merge(copied)
    assert len(lora.adapters(model)) == 7 * LAYERS
