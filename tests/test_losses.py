"""The losses against closed forms, finite differences and plain loops; in float64 unless a test says otherwise."""
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amp_min import losses

LN2 = math.log(2)
F64 = torch.float64


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def close(a, b, tol=1e-12):
    a, b = torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64)
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def gradient(loss, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


def finite_difference(loss, x, h=1e-5):
    """Central differences, one coordinate at a time."""
    grad = torch.zeros_like(x)
    for n in range(x.numel()):
        up, down = x.clone(), x.clone()
        up.view(-1)[n] += h
        down.view(-1)[n] -= h
        grad.view(-1)[n] = (loss(up) - loss(down)) / (2 * h)
    return grad


# ---- sequence log-probs ----

def test_sequence_logps_on_an_example_by_hand():
    """log pi(y|x) is the sum over the scored tokens, each predicted by the position before it."""
    # Three tokens of a vocabulary of 2. Rows 0 and 1 predict tokens 1 and 2; row 2 predicts nothing that exists.
    p = torch.tensor([[[0.1, 0.9], [0.4, 0.6], [0.25, 0.75]]], dtype=F64)
    labels = torch.tensor([[0, 1, 0]])
    close(losses.sequence_logps(p.log(), labels), [math.log(0.9) + math.log(0.4)])
    # What the usual faults would give: no shift, and a shift the wrong way.
    assert not math.isclose(math.log(0.9 * 0.4), math.log(0.1 * 0.6 * 0.25))
    assert not math.isclose(math.log(0.9 * 0.4), math.log(0.4 * 0.75))


def test_only_scored_labels_count_and_they_are_summed():
    logits, labels = randn(2, 5, 7), torch.tensor([[-100, -100, 3, 1, -100], [-100, 6, 2, 0, 5]])
    want = torch.zeros(2, dtype=F64)
    for b, t in itertools.product(range(2), range(1, 5)):
        if labels[b, t] != -100:
            want[b] += logits[b, t - 1].log_softmax(-1)[labels[b, t]]
    close(losses.sequence_logps(logits, labels), want)


def test_the_first_label_and_the_last_logits_are_never_used():
    logits, labels = randn(1, 4, 5), torch.tensor([[-100, 1, 2, 3]])
    other_logits, other_labels = logits.clone(), labels.clone()
    other_logits[:, -1] = 1e4
    other_labels[:, 0] = 4
    close(losses.sequence_logps(other_logits, other_labels), losses.sequence_logps(logits, labels))


@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(0, 4))
@settings(deadline=None, max_examples=30)
def test_padding_on_either_side_changes_nothing(seed, left, right):
    logits, labels = randn(2, 4, 5, seed=seed), torch.tensor([[-100, 1, 4, 0], [-100, -100, 2, 2]])
    padding = lambda n, s: randn(2, n, 5, seed=seed + s, scale=50.0)
    wide = torch.cat([padding(left, 1), logits, padding(right, 2)], dim=1)
    wide_labels = torch.nn.functional.pad(labels, (left, right), value=-100)
    close(losses.sequence_logps(wide, wide_labels), losses.sequence_logps(logits, labels))


def test_nothing_scored_is_zero():
    close(losses.sequence_logps(randn(2, 3, 4), torch.full((2, 3), -100)), [0.0, 0.0])


def test_weights_multiply_their_own_token():
    logits, labels = randn(1, 4, 5), torch.tensor([[-100, 1, 2, 3]])
    rounds = torch.tensor([[7, 0, 0, 1]])  # the prompt's round does not matter: it is not scored
    each = [logits[0, t - 1].log_softmax(-1)[labels[0, t]] for t in (1, 2, 3)]
    weights = losses.round_weights(rounds.double(), step=0.05)
    close(losses.sequence_logps(logits, labels, weights), (each[0] + each[1] + 1.05 * each[2]).unsqueeze(0))
    close(losses.sequence_logps(logits, labels, torch.ones(1, 4)), losses.sequence_logps(logits, labels))


def test_dtypes_half_precision_is_summed_in_float32_and_float64_is_kept():
    labels = torch.randint(0, 50, (2, 300), generator=torch.Generator().manual_seed(0))
    logits = randn(2, 300, 50).bfloat16()
    got, exact = losses.sequence_logps(logits, labels), losses.sequence_logps(logits.double(), labels)
    assert got.dtype == torch.float32 and exact.dtype == F64
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)


def test_sequence_logps_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 4\)"):
        losses.sequence_logps(randn(2, 3, 4), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="weights"):
        losses.sequence_logps(randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.long), torch.ones(3))


# ---- the chunked head ----

@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_token_logps_equal_the_plain_way_with_gradients(chunk, with_bias):
    N, D, V = 10, 6, 11
    inputs = [randn(N, D, seed=1), randn(V, D, seed=2)] + ([randn(V, seed=3)] if with_bias else [])
    targets, upstream = torch.arange(N), randn(N, seed=4)

    def run(function):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        return out.detach(), torch.autograd.grad(out @ upstream, leaves)

    def plain(hidden, weight, bias=None):
        return torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)[torch.arange(N), targets]

    got, got_grads = run(lambda h, w, b=None: losses.token_logps(h, w, targets, bias=b, chunk=chunk))
    want, want_grads = run(plain)
    close(got, want)
    for g, w in zip(got_grads, want_grads, strict=True):
        close(g, w)


def test_token_logps_sum_to_sequence_logps():
    B, T, D, V = 2, 5, 6, 9
    hidden, head = randn(B, T, D), randn(V, D, seed=1)
    labels = torch.tensor([[-100, -100, 3, 1, -100], [-100, 6, 2, 0, 5]])
    scored = labels[:, 1:] != -100
    logps = losses.token_logps(hidden[:, :-1][scored], head, labels[:, 1:][scored], chunk=2)
    sums = torch.zeros(B, dtype=F64).index_add(0, scored.nonzero()[:, 0], logps)
    close(sums, losses.sequence_logps(hidden @ head.T, labels))


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel] + [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)])
        return out


@pytest.mark.parametrize("by_default", [False, True])
def test_token_logps_never_hold_all_logits(monkeypatch, by_default):
    N, D, V, chunk = 64, 4, 50, 8
    monkeypatch.setattr(losses, "LOGITS", chunk * V + V - 1)       # room for 8 tokens, not for a ninth
    hidden, head = randn(N, D).requires_grad_(), randn(V, D, seed=1).requires_grad_()
    kept = []  # sizes of what autograd keeps for the backward pass
    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            loss = losses.token_logps(hidden, head, torch.zeros(N, dtype=torch.long), chunk=None if by_default else chunk).sum()
        loss.backward()
    assert largest.numel == chunk * V < N * V
    assert max(kept, default=0) < chunk * V  # without recomputation every chunk's logits would be kept: N x V again


def test_token_logps_bfloat16_without_tokens_and_without_gradient():
    head = randn(5, 4).bfloat16()
    got = losses.token_logps(randn(3, 4).bfloat16(), head, torch.tensor([0, 1, 2]), chunk=2)
    assert got.dtype == torch.float32 and got.shape == (3,)
    assert losses.token_logps(torch.zeros(0, 4), torch.zeros(5, 4), torch.zeros(0, dtype=torch.long)).shape == (0,)
    with torch.no_grad():
        assert not losses.token_logps(randn(3, 4), randn(5, 4), torch.tensor([0, 1, 2])).requires_grad


# ---- one pair ----

def test_dpo_by_hand():
    # Eq. 4 and Eq. 6 with log-ratios 3 and -1, beta 0.5: margin 2.
    one = lambda x: torch.tensor([x], dtype=F64)
    got = losses.dpo_loss(one(-7.0), one(-21.0), one(-10.0), one(-20.0), beta=0.5)
    close(got, [math.log1p(math.exp(-2.0))])
    close(losses.dpop_loss(one(-7.0), one(-21.0), one(-10.0), one(-20.0), 0.5, 2.0), [math.log1p(math.exp(-2.0)) - 6.0])


@given(st.integers(0, 10**6), st.floats(0.01, 5))
@settings(deadline=None, max_examples=50)
def test_dpo_swap_identity(seed, beta):
    # log sigmoid(m) - log sigmoid(-m) = m: exchanging winner and loser changes the loss by exactly the margin.
    w, l, rw, rl = randn(4, 3, seed=seed, scale=3.0)
    margin = beta * ((w - rw) - (l - rl))
    close(losses.dpo_loss(l, w, rl, rw, beta) - losses.dpo_loss(w, l, rw, rl, beta), margin, 1e-10)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_the_penalty_pulls_2_over_beta_times_as_hard_as_a_pair_at_the_start(beta):
    start = randn(3)
    pair = gradient(lambda x: losses.dpo_loss(x, start, start, start, beta).sum(), start)
    both = gradient(lambda x: losses.dpop_loss(x, start, start, start, beta).sum(), start)
    close(pair, [-beta / 2] * 3)
    close((both - pair) / pair, [2 / beta] * 3)


# ---- which pairs ----

def test_named_pairs():
    assert losses.pair_indices(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert losses.pair_indices(4, "adjacent") == [(0, 1), (1, 2), (2, 3)]
    assert losses.pair_indices(4, "best") == [(0, 1), (0, 2), (0, 3)]
    assert losses.pair_indices(4, [[2, 3], (0, 2)]) == [(2, 3), (0, 2)]
    for name in ("all", "adjacent", "best"):
        assert losses.pair_indices(2, name) == [(0, 1)]


@pytest.mark.parametrize("K, pairs, complaint", [
    (1, "all", "K = 1"),
    (3, "every", '"every"'),
    (3, [], "empty"),
    (3, [(0, 1), (2, 1)], r"pairs\[1\] is \(2, 1\)"),
    (3, [(1, 1)], r"\(1, 1\)"),
    (3, [(0, 3)], r"\(0, 3\)"),
    (3, [(-1, 2)], r"\(-1, 2\)"),
    (3, [(0, 1, 2)], r"\(0, 1, 2\)"),
    (3, [(0, 1), (0, 2), (0, 1)], r"pairs\[2\].*second time"),
])
def test_bad_pairs_are_named(K, pairs, complaint):
    with pytest.raises(ValueError, match=complaint):
        losses.pair_indices(K, pairs)


# ---- MDPO ----

def naive_mdpo(policy, ref, beta, penalty, pairs, reduction, penalty_on):
    """Eq. 7 (penalty 0: Eq. 5) with numbers and two loops."""
    total = 0.0
    for p, r in zip(policy.tolist(), ref.tolist()):
        K, terms = len(p), []
        for i in range(K - 1):
            for j in range(i + 1, K):
                wanted = {"all": True, "adjacent": j == i + 1, "best": i == 0}.get(pairs) if isinstance(pairs, str) \
                    else (i, j) in pairs
                if wanted:
                    margin = beta * (p[i] - r[i] - (p[j] - r[j]))
                    term = max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))
                    if i == 0 or penalty_on == "all":
                        term -= penalty * (p[i] - r[i])
                    terms.append(term)
        total += sum(terms) / (len(terms) if reduction == "mean" else 1)
    return total / len(policy)


@st.composite
def mdpo_cases(draw):
    K = draw(st.integers(2, 6))
    every = list(itertools.combinations(range(K), 2))
    chosen = st.lists(st.sampled_from(every), min_size=1, unique=True)
    return dict(
        policy=randn(draw(st.integers(1, 3)), K, seed=draw(st.integers(0, 10**6)), scale=10.0),
        beta=draw(st.floats(0.01, 2)),
        penalty=draw(st.sampled_from([0.0, 0.3, 1.0, 2.5])),
        pairs=draw(st.one_of(st.sampled_from(["all", "adjacent", "best"]), chosen)),
        reduction=draw(st.sampled_from(["mean", "sum"])),
        penalty_on=draw(st.sampled_from(["best", "all"])),
    )


@given(mdpo_cases())
@settings(deadline=None, max_examples=150)
def test_mdpo_equals_the_double_loop(case):
    policy = case.pop("policy")
    ref = policy + randn(*policy.shape, seed=1, scale=5.0)
    close(losses.mdpo_loss(policy, ref, **case), naive_mdpo(policy, ref, **case))


def test_mdpo_defaults_are_the_papers_with_the_mean_over_pairs():
    policy, ref = randn(2, 4), randn(2, 4, seed=1)
    close(losses.mdpo_loss(policy, ref), naive_mdpo(policy, ref, 0.1, 1.0, "all", "mean", "best"))


@pytest.mark.parametrize("K", [2, 3, 5])
def test_every_pair_costs_ln_2_at_the_start(K):
    start = randn(3, K, scale=100.0)
    close(losses.dpo_loss(start[:, 0], start[:, 1], start[:, 0], start[:, 1]), [LN2] * 3)
    for penalty in (0.0, 1.0):
        close(losses.mdpo_loss(start, start, penalty=penalty), LN2)
        close(losses.mdpo_loss(start, start, penalty=penalty, reduction="sum"), LN2 * K * (K - 1) / 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_two_levels_are_dpo_and_dpop(reduction):
    policy, ref = randn(4, 2, scale=5.0), randn(4, 2, seed=1, scale=5.0)
    columns = (policy[:, 0], policy[:, 1], ref[:, 0], ref[:, 1])
    close(losses.mdpo_loss(policy, ref, 0.3, penalty=0.0, reduction=reduction), losses.dpo_loss(*columns, 0.3).mean())
    close(losses.mdpo_loss(policy, ref, 0.3, reduction=reduction), losses.dpop_loss(*columns, 0.3).mean())


def test_the_middle_of_three_answers_has_no_gradient_at_the_start():
    start, beta = randn(1, 3), 0.1
    grad = gradient(lambda x: losses.mdpo_loss(x, start, beta, penalty=0.0, reduction="sum"), start)
    close(grad, [[-beta, 0.0, beta]])
    assert grad[0, 1] == 0.0


@pytest.mark.parametrize("K", [2, 3, 4, 5])
def test_first_gradients_of_all_levels(K):
    start, beta = randn(1, K), 0.1
    pull = torch.tensor([[-beta / 2 * (K - 1 - 2 * k) for k in range(K)]], dtype=F64)
    grad = lambda **kw: gradient(lambda x: losses.mdpo_loss(x, start, beta, reduction="sum", **kw), start)
    close(grad(penalty=0.0), pull)
    best, every = pull.clone(), pull.clone()
    best[0, 0] -= K - 1                                                    # y_0 wins K-1 penalized pairs, others none
    every -= torch.tensor([K - 1 - k for k in range(K)], dtype=F64)        # y_k wins K-1-k
    close(grad(), best)
    close(grad(penalty_on="all"), every)


@pytest.mark.parametrize("kwargs", [{}, {"penalty": 0.0, "beta": 0.5}, {"reduction": "sum", "pairs": "adjacent"},
                                    {"penalty_on": "all", "pairs": [(0, 2), (1, 3)]}])
def test_mdpo_gradient_against_finite_differences(kwargs):
    policy, ref = randn(2, 4, scale=3.0), randn(2, 4, seed=1, scale=3.0)
    loss = lambda x: losses.mdpo_loss(x, ref, **kwargs)
    close(gradient(loss, policy), finite_difference(loss, policy), 1e-8)


def test_gradient_of_sequence_logps_against_finite_differences():
    labels, logits = torch.tensor([[-100, 2, 0, -100]]), randn(1, 4, 3)
    weights = torch.tensor([[1.0, 0.5, 2.0, 1.0]], dtype=F64)
    loss = lambda x: losses.sequence_logps(x, labels, weights).sum()
    close(gradient(loss, logits), finite_difference(loss, logits), 1e-8)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_batch_mean_weighs_every_set_alike(reduction):
    policy, ref = randn(3, 4), randn(3, 4, seed=1)
    alone = [losses.mdpo_loss(policy[b:b + 1], ref[b:b + 1], reduction=reduction) for b in range(3)]
    close(losses.mdpo_loss(policy, ref, reduction=reduction), torch.stack(alone).mean())


def test_mdpo_refuses_what_it_does_not_know():
    x = randn(2, 3)
    for bad in ({"reduction": "none"}, {"penalty_on": "worst"}, {"pairs": "some"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            losses.mdpo_loss(x, x, **bad)
    for policy, ref in ((x, x[0]), (x, x[:1]), (x[:, 0], x[:, 0]), (x[:, :1], x[:, :1])):
        for loss in (losses.mdpo_loss, losses.kwise_loss):
            with pytest.raises(ValueError, match=r"\(B,K\)"):
                loss(policy, ref)


# ---- K-wise and PRO ----

@given(st.integers(2, 5), st.floats(0.05, 3), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_plackett_luce_probabilities_of_all_orders_sum_to_one(K, beta, seed):
    policy, ref = randn(1, K, seed=seed), randn(1, K, seed=seed + 1)
    orders = [list(order) for order in itertools.permutations(range(K))]
    close(sum(math.exp(-losses.kwise_loss(policy[:, o], ref[:, o], beta).item()) for o in orders), 1.0)


def test_kwise_draws_one_after_another():
    s = torch.tensor([[0.5, -1.0, 2.0]], dtype=F64)
    e = s[0].exp()
    probability = e[0] / (e[0] + e[1] + e[2]) * e[1] / (e[1] + e[2])
    close(losses.kwise_loss(s / 0.1, torch.zeros_like(s)), -probability.log())


def test_kwise_of_two_levels_is_dpo_and_the_start_is_ln_of_k_factorial():
    policy, ref = randn(3, 2, scale=5.0), randn(3, 2, seed=1, scale=5.0)
    pair = losses.dpo_loss(policy[:, 0], policy[:, 1], ref[:, 0], ref[:, 1], 0.3)
    close(losses.kwise_loss(policy, ref, 0.3), pair.mean())
    start = randn(2, 4, scale=100.0)
    close(losses.kwise_loss(start, start), math.log(24))


def naive_pro(p, r, best, sft_weight):
    """PRO with numbers and plain exponentials."""
    total, K = 0.0, len(p[0])
    for pb, rb, sum_logp in zip(p, r, best):
        for k in range(K - 1):
            w = {i: rb[k] - rb[i] for i in range(k + 1, K)}
            own = math.exp(pb[k] * max(w.values()))
            total -= math.log(own / (own + sum(math.exp(pb[i] * w[i]) for i in w)))
        total += sft_weight * (K - 1) ** 2 * -sum_logp
    return total / len(p)


@given(st.integers(2, 5), st.integers(1, 3), st.integers(0, 10**6), st.sampled_from([0.0, 0.05, 1.0]))
@settings(deadline=None, max_examples=50)
def test_pro_equals_the_loop(K, B, seed, sft_weight):
    p, best = -randn(B, K, seed=seed).abs(), -randn(B, seed=seed + 1, scale=30.0).abs()
    r = randn(B, K, seed=seed + 2).sort(dim=1, descending=True).values
    close(losses.pro_loss(p, r, best, sft_weight), naive_pro(p.tolist(), r.tolist(), best.tolist(), sft_weight))


def test_pro_defaults_and_equal_rewards():
    p, best = -randn(2, 4).abs(), -randn(2, seed=1).abs()
    close(losses.pro_loss(p, torch.ones(2, 4), best), math.log(24) + 0.05 * 9 * -best.mean())  # all logits 0: ln K!


@pytest.mark.parametrize("loss", ["kwise", "pro"])
def test_rank_loss_gradients_against_finite_differences(loss):
    policy, other, best = -randn(2, 4).abs(), randn(2, 4, seed=1).sort(dim=1, descending=True).values, -randn(2, seed=2)
    f = {"kwise": lambda x: losses.kwise_loss(x, other, 0.7), "pro": lambda x: losses.pro_loss(x, other, best)}[loss]
    close(gradient(f, policy), finite_difference(f, policy), 1e-8)
    if loss == "pro":
        f = lambda x: losses.pro_loss(policy, other, x)
        close(gradient(f, best), finite_difference(f, best), 1e-8)


# ---- all losses ----

LOSSES = {
    "dpo": lambda p, r: losses.dpo_loss(p[:, 0], p[:, 1], r[:, 0], r[:, 1]).mean(),
    "dpop": lambda p, r: losses.dpop_loss(p[:, 0], p[:, 1], r[:, 0], r[:, 1]).mean(),
    "mdpo": losses.mdpo_loss,
    "mdpo_all": lambda p, r: losses.mdpo_loss(p, r, penalty_on="all"),
    "kwise": losses.kwise_loss,
    "pro": lambda p, r: losses.pro_loss(p, r, p[:, 0]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_reaches_the_reference(name):
    policy, ref = randn(2, 3).requires_grad_(), randn(2, 3, seed=1).requires_grad_()
    LOSSES[name](policy, ref).backward()
    assert policy.grad.abs().sum() > 0
    assert ref.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_log_probs_stay_finite(name, dtype):
    for signs in itertools.product([-1e4, 0.0, 1e4], repeat=3):
        policy = torch.tensor([signs], dtype=dtype).requires_grad_()
        ref = -policy.detach()
        loss = LOSSES[name](policy, ref)
        assert loss.dtype == dtype and loss.shape == (1,)[:loss.dim()]
        loss.backward()
        assert torch.isfinite(loss).all() and torch.isfinite(policy.grad).all(), signs


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]]]).requires_grad_()
    logp = losses.sequence_logps(logits, torch.tensor([[-100, 1, 1]]))
    logp.sum().backward()
    close(logp.detach(), [-2e4])
    assert torch.isfinite(logits.grad).all()
