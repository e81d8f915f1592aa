"""From logits to the number that training makes smaller: log-probs, DPO, DPO-P, MDPO, and two other rank
losses.

An answer y to an image and a question x has log pi(y|x), the sum of the log-probabilities of its tokens.
Every loss here sees a model only through these sums (PRO: means), under the policy that is trained and the
reference, its start.

    policy (B,K), ref (B,K)   log-probs of K ranked answers, best first: column 0 is the standard answer y_0
    policy - ref              the log-ratio log pi_theta(y_k|x) / pi_ref(y_k|x); 0 for every answer at first

Pairs are indices into the K columns: an answer's log-prob is computed once, however many pairs it takes part
in.

Departures from the paper (AMP, arXiv 2405.11165): Eq. 5 is printed with a double minus; the sum of the pair
losses is meant and computed. Eq. 7 sums over pairs; reduction="mean", the default, divides by their number
like the released code, so that losses and gradient norms can be compared across K. Weights per round are in
the released code; off here.
"""
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# B preference sets, K levels, P pairs, T tokens of a sequence, N scored tokens of a batch, D hidden size, V
# vocabulary
NOT_SCORED = -100  # the label of prompt, image and padding positions, as everywhere in PyTorch


# ---- 1. How likely is an answer? ----

def _logp_of(logits, targets):
    """Log-probability of one target token per row of logits: (...,V), (...) -> (...)."""
    # bfloat16 keeps about 3 digits, and a sum over hundreds of tokens needs more: float32 at least, float64
    # stays.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def sequence_logps(logits, labels, weights=None):
    """Summed log-probability of the scored tokens of each sequence.

    logits (B,T,V); labels (B,T), -100 where a token is not scored; weights (B,T) multiply each token's
    log-prob. Returns (B,) in natural log: a sum, not a mean, because log pi(y|x) in Eq. 4 is that of the
    whole answer. Raises ValueError when the shapes do not belong together.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}: give (B,T,V), (B,T)")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights {tuple(weights.shape)}, labels {tuple(labels.shape)}: must both be (B,T)")
    logits, targets = logits[:, :-1], labels[:, 1:]              # the shift: position t predicts token t+1
    scored = targets != NOT_SCORED                               # (B,T-1)
    logps = _logp_of(logits, targets.where(scored, 0))  # gather needs a valid index: token 0 stands in
    if weights is not None:
        logps = logps * weights[:, 1:].to(logps.dtype)  # a weight belongs to its token, so it shifts along
    return logps.where(scored, 0.0).sum(dim=-1)                  # (B,)


def round_weights(round_index, step=0.05):
    """Token weights 1 + step * t in dialogue round t = 0, 1, …: later rounds count more. (B,T) -> (B,T).

    In the released code, not in the paper. round_index may hold anything where the label is -100.
    """
    return 1.0 + step * round_index


def _chunk_logps(hidden, weight, bias, targets):
    return _logp_of(F.linear(hidden, weight, bias), targets)     # (chunk,D) -> logits (chunk,V) -> (chunk,)


LOGITS = 2**22  # numbers of a chunk: 16 MB in float32, 130 tokens of Llama's vocabulary


def token_logps(hidden, weight, targets, bias=None, chunk=None):
    """The same log-probs from hidden states, for scored tokens only, without ever holding N x V logits.

    hidden (N,D): the state at the position *before* each target; weight (V,D), bias (V,): the language
    model's head; targets (N,); chunk: tokens whose logits exist at once, by default as many as LOGITS allows.
    Returns (N,), to be summed per answer by the caller. With V = 32,000 a token's float32 logits take 128 kB
    and its hidden state 16 kB. So each chunk's logits are thrown away once its log-probs are known, and
    computed again in the backward pass: one more head product, far less memory.
    """
    chunk = chunk or max(1, LOGITS // len(weight))
    return torch.cat([checkpoint(_chunk_logps, states, weight, bias, own, use_reentrant=False)
                      for states, own in zip(hidden.split(chunk), targets.split(chunk))])


# ---- 2. One pair: DPO and DPO-P ----

def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1):
    """Direct preference optimization, Eq. 4. Log-probs of any one shape, usually (B,); returns that shape.

    -log sigmoid(margin) is the cross-entropy of a classifier that says "chosen" with probability
    sigmoid(margin). At the start policy = ref, so every margin is 0 and every loss is ln 2 = 0.693: a first
    step that logs anything else has a fault. The gradient on policy_chosen is -beta * sigmoid(-margin), so
    -beta/2 at the start; on policy_rejected the opposite. Only the difference counts: both log-probs may fall
    while the loss falls. Hence the penalty below.
    """
    # The reference is a fixed yardstick: with a gradient the loss could be lowered by making the yardstick
    # worse.
    # log-ratios first: differences of close numbers lose nothing
    chosen = policy_chosen - ref_chosen.detach()
    rejected = policy_rejected - ref_rejected.detach()
    # Eq. 4; logsigmoid stays finite where log(sigmoid()) is -inf
    return -F.logsigmoid(beta * (chosen - rejected))


def dpop_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1, penalty=1.0):
    """DPO-P, Eq. 6: DPO minus penalty times the chosen log-ratio. Shapes as in dpo_loss; penalty a number or
    a tensor.

    The penalty is not scaled by beta. Its gradient on policy_chosen is -penalty against DPO's -beta/2, a
    ratio of 2 * penalty / beta: 20 at beta = 0.1. So a DPO-P step is, at first, mostly supervised learning on
    the chosen answer.
    """
    pair = dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)
    return pair - penalty * (policy_chosen - ref_chosen.detach())  # Eq. 6


# ---- 3. K levels: MDPO ----

def pair_indices(K, pairs="all"):
    """The pairs (i, j), answer i better than answer j, that a loss compares, as a list of tuples.

    "all": K(K-1)/2 pairs (Eq. 5); "adjacent": (0,1), (1,2), …; "best": (0,1), (0,2), …; or a list of pairs.
    Raises ValueError for fewer than two levels, an unknown name, an empty list, a pair that is repeated, out
    of range, or not better-before-worse.
    """
    if K < 2:
        raise ValueError(f"a preference needs at least 2 levels, got K = {K}")
    named = {
        "all": [(i, j) for i in range(K) for j in range(i + 1, K)],
        "adjacent": [(i, i + 1) for i in range(K - 1)],
        "best": [(0, j) for j in range(1, K)],
    }
    if isinstance(pairs, str):
        if pairs not in named:
            raise ValueError(f'pairs must be "all", "adjacent", "best" or a list of (i, j), got "{pairs}"')
        return named[pairs]
    chosen = [tuple(pair) for pair in pairs]
    if not chosen:
        raise ValueError("pairs is empty: nothing would be compared")
    for n, pair in enumerate(chosen):
        if pair not in named["all"]:
            raise ValueError(f"pairs[{n}] is {pair}: of K = {K} levels, (i, j) needs 0 <= i < j <= {K - 1}")
        if pair in chosen[:n]:
            raise ValueError(f"pairs[{n}] is {pair} for the second time: each pair counts once")
    return chosen


def _check_levels(policy, other):
    # broadcasting would hide a mix-up
    if policy.dim() != 2 or policy.shape != other.shape or policy.shape[1] < 2:
        shapes = f"{tuple(policy.shape)} and {tuple(other.shape)}"
        raise ValueError(f"got shapes {shapes}: both must be (B,K) with K >= 2")


def mdpo_loss(policy, ref, beta=0.1, penalty=1.0, pairs="all", reduction="mean", penalty_on="best"):
    """Multi-level DPO, Eq. 7: DPO-P for the pairs that hold the best answer, plain DPO for the others.

    policy (B,K), ref (B,K), best first. penalty 0 gives Eq. 5; penalty_on "best" is the paper's, "all"
    penalizes the winner of every pair. reduction over pairs: "sum" (Eq. 7) or "mean" (released code; it
    divides penalties too). Returns a scalar, the mean over B. K = 2 with penalty 0 is DPO, with penalty 1
    DPO-P. ValueError for bad arguments.

    What the start teaches (sum, no penalty): each pair pulls its winner up and its loser down by beta/2.
    Answer k wins K-1-k pairs and loses k, so its net pull is beta/2 * (K-1-2k). For K = 3 the middle answer's
    gradient vanishes: it is told to move only once the margins to its two neighbours differ.
    """
    _check_levels(policy, ref)
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
    if penalty_on not in ("best", "all"):
        raise ValueError(f'penalty_on must be "best" or "all", got {penalty_on!r}')
    # winners (P,), losers (P,)
    i, j = torch.tensor(pair_indices(policy.shape[1], pairs), device=policy.device).T
    penalized = (i == 0) if penalty_on == "best" else torch.ones_like(i)  # (P,) Eq. 7: pairs (0, j) only
    coefficient = penalty * penalized.to(policy.dtype)
    loss = dpop_loss(policy[:, i], policy[:, j], ref[:, i], ref[:, j], beta, coefficient)  # (B,P)
    loss = loss.sum(dim=1) if reduction == "sum" else loss.mean(dim=1)                  # (B,) sum: Eq. 7
    return loss.mean()


# ---- 4. Other losses over a ranking (Table 6) ----

def kwise_loss(policy, ref, beta=0.1):
    """K-wise maximum likelihood (Zhu, Jordan, Jiao 2023): Plackett–Luce on s_k = beta * (policy_k - ref_k).

    policy (B,K), ref (B,K) -> scalar, the mean over B. One set's exp(-loss) is the probability of drawing its
    answers in this very order, when each draw takes answer k from those left with probability proportional to
    exp(s_k). At the start all K! orders are equally likely: the loss is ln K!. K = 2 is DPO.
    """
    _check_levels(policy, ref)
    s = beta * (policy - ref.detach())                                        # (B,K)
    # the last draw has no choice
    draws = [torch.logsumexp(s[:, k:], dim=1) - s[:, k] for k in range(s.shape[1] - 1)]
    return torch.stack(draws).sum(dim=0).mean()


def pro_loss(policy_mean_token_logps, rewards, best_sum_logps, sft_weight=0.05):
    """Preference ranking optimization (PRO, Song et al. 2024): a softmax of each answer against all worse
    ones.

    policy_mean_token_logps p (B,K): the mean over tokens, no reference; rewards r (B,K): data, such as the
    auto-check's score; best_sum_logps (B,): summed log-prob of y_0. Returns a scalar, the mean over B. w_ki =
    r_k - r_i says how much better k is than i, and sharpens the contrast: equal rewards give w = 0, a
    constant logit. The order is the rewards' own: where a lower level has the higher reward, w < 0 and the
    pull is reversed. The last term is supervised learning on y_0, with (K-1)^2 to keep pace with the number
    of contrasts.
    """
    p, r = policy_mean_token_logps, rewards.detach()
    _check_levels(p, r)
    K = p.shape[1]
    rank = 0.0
    for k in range(K - 1):
        w = r[:, k:k + 1] - r[:, k + 1:]                                # (B,K-1-k)  w_ki for i > k
        w = torch.cat([w.amax(dim=1, keepdim=True), w], dim=1)  # (B,K-k)    w_kk = max_i w_ki, in front
        logits = p[:, k:] * w
        rank = rank + torch.logsumexp(logits, dim=1) - logits[:, 0]     # (B,)       L_k
    return (rank - sft_weight * (K - 1) ** 2 * best_sum_logps).mean()
