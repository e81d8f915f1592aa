"""The bench at tiny sizes: variants take the same step, and counts are right. No timing is asserted."""
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from amp_min import lora, losses
from amp_min.bench import __main__ as bench
from amp_min.bench import gpu, measure, variants
from amp_min.bench.variants import PAD, STEPS, Shape, sizes
from amp_min.support.script import UserError

TINY = Shape(16, 8, sizes(16, 32, 2, 2), sizes(32, 48, 3, 4, vocab_size=60), 4, 5, 2, B=2)
K, P = 3, 4


@pytest.fixture
def lab():
    """In float64, with a policy that has moved away from its reference, so that no loss is the start's."""
    policy, reference = (variants.build(TINY, 0, torch.float64) for _ in range(2))
    lab = variants.lab(policy, reference, TINY, K, seed=0, N=2)
    lab.pixels = lab.pixels.double()
    variants.once(lab)
    with torch.no_grad():
        for p in lab.trained:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.05)
    return lab


def loss_and_gradient(lab, name):
    loss = STEPS[name](lab, lab.batches[1])
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in lab.trained])
    lab.optimizer.zero_grad()
    return loss, gradient


def test_all_variants_take_the_same_step(lab):
    want, gradient = loss_and_gradient(lab, "levels")
    assert abs(want - math.log(2)) > 0.01 and gradient.abs().max() > 0.1
    for name in STEPS:
        loss, other = loss_and_gradient(lab, name)
        assert loss == pytest.approx(want, rel=1e-6, abs=1e-6), name
        torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_with_adapters_the_reference_is_the_policy_without_them():
    m = variants.build(TINY, 0)
    lora.add(m.model, 2)
    lab = variants.once(variants.lab(m, None, TINY, K, 0, 2))
    variants.step(lab, "ours", 0)
    moved = variants.shared(m, lab, lab.batches[0])
    again = variants.of_reference(variants.shared, lab, lab.batches[0])
    torch.testing.assert_close(again, lab.ref[lab.batches[0]])
    assert (moved - again).abs().max() > 1e-5


def test_a_step_moves_what_trains_and_not_the_tower(lab):
    before = {name: p.clone() for name, p in lab.policy.model.named_parameters()}
    variants.step(lab, "ours", 0)
    still = {name for name, p in lab.policy.model.named_parameters() if torch.equal(p, before[name])}
    assert still == {name for name in before if "vision_tower" in name}


def test_sets_have_the_lengths_that_were_asked_for():
    sets, pixels = variants.make_sets(TINY, K, seed=1, N=4)
    assert len(sets) == 4 and pixels.shape == (4, 3, 16, 16)
    for tokens in sets:
        prefix, *answers = tokens.ids
        assert len(prefix) == P + TINY.prompt and prefix.count(variants.IMAGE) == P and len(answers) == K
        assert all(abs(len(answer) - TINY.answer) <= TINY.jitter for answer in answers)
    assert variants.make_sets(TINY, K, 1, 4)[0] == sets != variants.make_sets(TINY, K, 2, 4)[0]


def test_tokens_are_those_that_the_decoder_reads(lab):
    """Counted at the embedding, padding left out, against the closed forms (K-1)(Kp+n), Kp+n and p+n."""
    read = []
    hook = lab.policy.model.get_input_embeddings().register_forward_hook(
        lambda _, args, out: read.append(int((args[0] != PAD).sum())))
    want = variants.token_counts(K, lab.sets)
    p, n = P + TINY.prompt, sum(len(a) for tokens in lab.sets for a in tokens.ids[1:]) / len(lab.sets)
    assert want == pytest.approx({"pairs": 2 * (3 * p + n), "levels": 3 * p + n, "ours": p + n})
    for side in bench.SIDES:
        read.clear()
        for rows in lab.batches:
            STEPS[side](lab, rows)
        assert sum(read) / len(lab.sets) == pytest.approx(want[side])
    hook.remove()


def test_json_line_has_the_contracts_keys(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(variants.SHAPES, "toy", TINY)
    monkeypatch.setattr(bench, "peak_in_fresh_process", lambda *what: 64.0)
    argv = ["--preset", "toy", "--levels", "3", "--repeats", "2", "--out", str(tmp_path / "r" / "bench.json")]
    bench.main([*argv, "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert {"levels", "seconds_per_set", "tokens_per_set", "peak_mb", "max_logp_difference", "device",
            "versions", "seconds_live_reference"} <= row.keys()
    assert row["levels"] == 3 and row["max_logp_difference"] < 1e-9
    for key in ("seconds_per_set", "tokens_per_set", "peak_mb"):
        assert list(row[key]) == ["pairs", "levels", "ours"]
    step = row["measured"]["ours"]
    once = [row["measured"][name]["seconds"] for name in ("reference pass", "picture")]
    assert row["seconds_live_reference"] == pytest.approx(step["seconds"] + sum(once))
    assert row["seconds_per_set"]["ours"] == pytest.approx(step["seconds"] + sum(once) / 4)
    assert step["range"][0] <= step["seconds"] <= step["range"][1]
    assert json.loads((tmp_path / "r" / "bench.json").read_text())["rows"] == [row]
    assert "levels" in bench.table(row)


def test_the_command_as_a_process():
    """As people start it: the peak is taken in a process of its own, which must find its function again."""
    command = [sys.executable, "-m", "amp_min.bench", "--preset", "toy", "--levels", "2", "--repeats", "1", "--json"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(0 < peak < 500 for peak in json.loads(done.stdout.splitlines()[-1])["peak_mb"].values())


def test_the_first_call_is_not_counted_and_all_take_turns():
    order = []
    found = measure.alternate({name: lambda i, name=name: order.append((name, i)) for name in "ab"}, 2)
    assert order == [(name, i) for i in range(3) for name in "ab"]
    assert list(found) == ["a", "b"] and all(found[x]["range"][0] <= found[x]["seconds"] for x in found)


def test_flops_are_those_that_pytorch_counts():
    """Matrix products of a step with adapters. Attention is left out: PyTorch counts empty scores, too."""
    rank, depth, shape = 2, 12, TINY._replace(B=1, jitter=0, text=sizes(32, 48, 12, 4, vocab_size=60))
    m, (sets, pixels) = variants.build(shape, 0), variants.make_sets(shape, K, 0, 1)
    lora.add(m.model, rank)
    with FlopCounterMode(display=False) as counter:
        variants.use_attention(m, "prefix sharing")
        policy = variants.packed_logps(m, sets, variants.encode_images(m, pixels))
        losses.mdpo_loss(policy, policy.detach()).backward()
    p, *answers = map(len, sets[0].ids)
    recomputed = 2 * sum(answers) * 32 * 60                  # the head's logits once more, which do not count
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm] - recomputed
    scores = p * p / 2 + sum(n * (p + n / 2) for n in answers)
    matrices = gpu.flops(shape, sets[0], rank) - 12 * 32 * depth * scores
    assert counted < matrices < 1.06 * counted                    # the first of twelve layers is spared something


# ---- the GPU's command ----

def test_the_gpu_run_on_a_cpu(monkeypatch, tmp_path, capsys):
    """Every part that a GPU would run, with two layers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench.main(["--gpu", "--tiny", "--repeats", "1", "--out", str(tmp_path / "gpu.json")])
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert not [name for name, part in result.items() if isinstance(part, dict) and "failed" in part]
    assert result["prefix sharing, torch.bfloat16"]["log-probs"]["right"] is True
    assert result["K = 8, checkpointing"]["levels"].keys() == result["K = 4"]["whole mask"].keys()
    assert result["calls"]["aten::scaled_dot_product_attention"] == 2      # a layer: the prefix, all answers
    assert result["generation"]["tokens_per_second"] > 0


def test_a_part_that_fails_or_is_wrong_or_late_is_named_and_the_others_run(tmp_path):
    def late():
        while True:
            pass
    check = lambda *three: lambda: {"x": gpu.distances(*torch.tensor(three))}
    parts = {"fails": lambda: 1 / 0, "no number": lambda: {"x": math.nan}, "wrong": check(2.0, 1.1, 1.0),
             "right": check(1.2, 1.1, 1.0), "late": late}
    with pytest.raises(UserError, match="fails; no number; wrong; late") as caught:
        gpu.record(parts, str(tmp_path / "gpu.json"), 0.005, {"device": "none"})
    assert "\n" not in str(caught.value)
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["fails"]["failed"].startswith("ZeroDivisionError")
    assert "minutes are over" in result["late"]["failed"]
    assert result["right"]["x"]["right"] and not result["wrong"]["x"]["right"]


def test_the_real_shape_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        bench.main(["--gpu"])
    with pytest.raises(UserError, match="--levels 1: give a number, at least 2"):
        bench.main(["--levels", "1"])
