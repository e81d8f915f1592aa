"""The bench at tiny sizes: all ways take the same step, and what is counted is counted right. No timing is asserted."""
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from amp_min import lora, losses, mllm, packing
from amp_min.bench import __main__ as bench
from amp_min.bench import stopwatch, variants
from amp_min.bench.variants import PAD, Shape, sizes
from amp_min.support.script import UserError

TINY = Shape(16, 8, sizes(16, 32, 2, 2), sizes(32, 48, 3, 4, vocab_size=60), prompt=4, answer=5, jitter=2, batch=2, batches=2)
QUICK = SimpleNamespace(samples=2, sample_seconds=0.0, max_foreign=1.0, clock="wall", levels=[3], seed=0, peer_json="", threads=1)
K = 3


@pytest.fixture
def lab():
    """In float64, with a policy that has moved away from its reference: the losses are not those of the start."""
    lab = variants.open_lab(TINY, K, seed=0)
    lab.policy.model.double(), lab.reference.model.double()
    lab = variants.once(lab._replace(pixels=lab.pixels.double()))
    with torch.no_grad():
        for p in lab.trained:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.05)
    return lab


def loss_and_gradient(lab, name):
    loss = variants.STEPS[name](lab, lab.batches[1])
    gradient = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in lab.trained])
    lab.optimizer.zero_grad()
    return loss, gradient


def test_all_ways_take_the_same_step(lab, monkeypatch):
    monkeypatch.setattr(packing.attention, "DENSE_BELOW", 0)
    want, gradient = loss_and_gradient(lab, "levels")
    assert abs(want - (math.log(2))) > 0.01 and gradient.abs().max() > 0.1
    for name in variants.STEPS:
        loss, other = loss_and_gradient(lab, name)
        assert loss == pytest.approx(want, rel=1e-6, abs=1e-6), name
        torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_a_step_moves_what_trains_and_not_the_tower(lab):
    before = {name: p.clone() for name, p in lab.policy.model.named_parameters()}
    variants.step(lab, "ours", 0)
    still = {name for name, p in lab.policy.model.named_parameters() if torch.equal(p, before[name])}
    assert still == {name for name in before if "vision_tower" in name}


def test_sets_have_the_lengths_that_were_asked_for():
    sets, pixels = variants.make_sets(TINY, K, seed=1)
    assert len(sets) == TINY.batch * TINY.batches and pixels.shape == (len(sets), 3, 16, 16)
    for tokens in sets:
        prefix, *answers = tokens.ids
        assert len(prefix) == 4 + TINY.prompt and prefix.count(variants.IMAGE) == 4 and len(answers) == K
        assert all(abs(len(answer) - TINY.answer) <= TINY.jitter for answer in answers)
    assert variants.make_sets(TINY, K, seed=1)[0] == sets != variants.make_sets(TINY, K, seed=2)[0]


def test_tokens_are_those_that_the_decoder_reads(lab):
    """Counted at the embedding, padding left out, against the closed forms (K-1)(Kp+n), Kp+n and p+n."""
    read = []
    hook = lab.policy.model.get_input_embeddings().register_forward_hook(lambda _, args, out: read.append(int((args[0] != PAD).sum())))
    want = variants.token_counts(K, lab.sets)
    p, n = 4 + TINY.prompt, sum(len(answer) for tokens in lab.sets for answer in tokens.ids[1:]) / len(lab.sets)
    assert want == pytest.approx({"pairs": 2 * (3 * p + n), "levels": 3 * p + n, "ours": p + n})
    for side in bench.SIDES:
        read.clear()
        for chosen in lab.batches:
            variants.STEPS[side](lab, chosen)
        assert sum(read) / len(lab.sets) == pytest.approx(want[side])
    hook.remove()


def test_json_line_has_the_contracts_keys(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(bench.SHAPES, "toy", TINY)
    monkeypatch.setattr(bench, "peak_in_fresh_process", lambda preset, K, side, settings: 64.0)
    argv = ["--preset", "toy", "--levels", "3", "--samples", "2", "--sample-seconds", "0", "--out", str(tmp_path / "r" / "bench.json")]
    bench.main([*argv, "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert {"levels", "seconds_per_set", "tokens_per_set", "peak_mb", "max_logp_difference", "device", "versions",
            "seconds_live_reference"} <= row.keys()
    assert row["levels"] == 3 and row["max_logp_difference"] < 1e-9
    for key in ("seconds_per_set", "tokens_per_set", "peak_mb"):
        assert list(row[key]) == ["pairs", "levels", "ours"]
    once = row["measured"]["reference pass"]["seconds"] + row["measured"]["look"]["seconds"]
    assert row["seconds_live_reference"] == pytest.approx(row["measured"]["ours"]["seconds"] + once)
    assert row["seconds_per_set"]["ours"] == pytest.approx(row["measured"]["ours"]["seconds"] + once / 4)
    written = json.loads((tmp_path / "r" / "bench.json").read_text())
    assert written["rows"] == [row] and written.get("llava-1.5-7b", "not measured") == "not measured"
    table = bench.table(row)
    assert "levels / ours" in table and "samples dropped" in table


def test_peak_memory_of_a_fresh_process():
    assert 0 < bench.peak_in_fresh_process("toy", 2, "ours", QUICK) < 500


def test_the_real_shape_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="llava-1.5-7b: needs a CUDA GPU") as caught:
        bench.main(["--preset", "llava-1.5-7b"])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--levels 1: a preference needs at least 2"):
        bench.main(["--levels", "1"])


def test_the_gpu_rows_code_on_a_tiny_model():
    rows = list(bench.gpu_rows(QUICK, "cpu", TINY._replace(batch=1, jitter=0), rank=2))
    assert [row["gradient_checkpointing"] for row in rows] == [True, False] and all(row["levels"] == 3 for row in rows)
    assert rows[0]["flops_per_step"] == rows[1]["flops_per_step"] > 0 and rows[0]["share_of_bf16_peak"] is None
    assert "checkpointing on" in bench.table(rows[0])


def test_flops_are_those_that_pytorch_counts(monkeypatch):
    """Matrix products of a whole step with adapters. Attention is left to the formula: PyTorch counts empty scores, too."""
    monkeypatch.setattr(packing.attention, "DENSE_BELOW", 0)
    shape, rank = TINY._replace(batch=1, batches=1), 2
    m, (sets, pixels) = packing.speed_up(variants.build(shape, 0)), variants.make_sets(shape, K, 0)
    lora.add(m.model, rank)
    features, batch = mllm.encode_images(m, pixels), packing.pack(sets, PAD)
    with FlopCounterMode(display=False) as counter:
        policy = packing.set_logps(m, batch, features)
        losses.mdpo_loss(policy, policy.detach()).backward()
    recomputed = 2 * len(batch.targets) * 32 * 60                 # the head's logits once more: work, but not counted as such
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm] - recomputed
    first, (p, *answers) = int(batch.predictor.min()), packing.attention.cut(batch.segment)[0]
    D, depth, scores = 32, 3, p * p / 2 + sum(n * (p + n / 2) for n in answers)
    assert bench.flops(shape, batch, first, rank) - 12 * D * (depth * scores - p * p / 2) == counted


def test_disturbed_samples_are_dropped_and_counted():
    samples = [{"seconds": s, "cpu_seconds": 9.0, "foreign": f} for s, f in ((1.0, 0.0), (13.0, 0.6), (2.0, 0.01), (3.0, 0.05))]
    settings = SimpleNamespace(max_foreign=0.05, clock="wall")
    got = stopwatch.summary(samples, settings)
    assert (got["seconds"], got["range"], got["dropped"], got["samples"], got["disturbed"]) == (2.0, [1.0, 3.0], 1, 4, False)
    alone = stopwatch.summary(samples[1:2], settings, sets=2)
    assert (alone["seconds"], alone["dropped"], alone["disturbed"]) == (6.5, 1, True)


def test_peer_lines(tmp_path):
    line = {"mode": "trl+compact_head", "k": 4, "seconds_per_set": 5.0, "step_seconds": [9.0, 4.0, 6.0], "timed_steps": 2, "clean_steps": 1,
            "peak_rss_mb": 900, "rss_before_training_mb": 400, "tokens_per_set": 8691, "threads": 2, "trl": "1.16.0"}
    path = tmp_path / "peer.jsonl"
    path.write_text(json.dumps(line) + "\n" + json.dumps({**line, "k": 2}) + "\n")
    settings = SimpleNamespace(peer_json=str(path))
    assert bench.peer("toy", 4, settings) == {}
    assert bench.peer("llava-1.5-proportions", 4, settings) == {"trl+compact_head": {
        "seconds": 5.0, "range": [4.0, 6.0], "peak_mb": 500, "tokens": 8691, "threads": 2, "dropped": 1, "trl": "1.16.0"}}
    path.write_text("{}\n")
    with pytest.raises(UserError, match="peer.jsonl:1: is no line of the TRL script"):
        bench.peer("llava-1.5-proportions", 4, settings)
