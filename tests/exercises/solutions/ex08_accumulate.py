def scales(tokens, micro):
    if micro < 1:
        raise ValueError(f"micro = {micro}: a micro-batch has at least one row")
    return [sum(tokens[i:i + micro]) / sum(tokens) for i in range(0, len(tokens), micro)]


def accumulate(w, x, y, tokens, micro):
    w, whole = w.detach().clone().requires_grad_(), 0.0
    for n, scale in enumerate(scales(tokens.tolist(), micro)):
        part = slice(n * micro, (n + 1) * micro)
        rows = (x[part] @ w - y[part]) ** 2
        loss = (rows * tokens[part]).sum() / tokens[part].sum() * scale
        loss.backward()                                              # adds to w.grad, and frees this part's graph
        whole += loss.item()
    return whole, w.grad
