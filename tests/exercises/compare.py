"""Comparisons that show yours and expected side by side, and where they differ first."""
import torch


def same(yours, expected, what, tol=1e-9):
    """Raise AssertionError unless `yours` is `expected`: shape before value, tensors and numbers within tol.

    what: what is compared, in words. The message names the numbers and never how to get them.
    """
    __tracebackhide__ = True
    if isinstance(expected, (torch.Tensor, float)):
        yours = tensor(yours, what)
        expected = torch.as_tensor(expected)
        if yours.shape != expected.shape:
            raise AssertionError(f"{what}: your shape is {tuple(yours.shape)}, expected {tuple(expected.shape)}")
        if (expected.dtype == torch.bool) != (yours.dtype == torch.bool):
            raise AssertionError(f"{what}: your dtype is {yours.dtype}, expected {expected.dtype}")
        a, b = yours.double(), expected.double()
        wrong = ~torch.isclose(a, b, rtol=tol, atol=tol)               # NaN is close to nothing
        if wrong.any():
            count = f"{int(wrong.sum())} of {wrong.numel()} differ"
            raise AssertionError(f"{what}: {count}\n{table(yours, expected, wrong)}")
    elif yours != expected or type(yours) is bool and type(expected) is not bool:
        raise AssertionError(f"{what}\n  yours     {yours!r}\n  expected  {expected!r}")


def tensor(value, what):
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        raise AssertionError(f"{what}: yours is a {type(value).__name__}, not a tensor or a number") from None


def table(yours, expected, wrong, most=6):
    rows = ["  at            yours          expected"]
    for index in wrong.nonzero()[:most].tolist():
        place = tuple(index)
        rows.append(f"  {str(index):<12}  {float(yours[place]):<13.7g}  {float(expected[place]):.7g}")
    return "\n".join(rows + ["  …"] * (int(wrong.sum()) > most))


def same_picture(yours, expected, what, names):
    """Compare two boolean (rows, columns) masks; on failure draw yours: # right, . right, X too many, o missing."""
    __tracebackhide__ = True
    yours = tensor(yours, what)
    if yours.shape != expected.shape or yours.dtype != torch.bool:
        shapes = f"yours is {tuple(yours.shape)} {yours.dtype}, expected {tuple(expected.shape)} bool"
        raise AssertionError(f"{what}: {shapes}")
    if not torch.equal(yours, expected):
        signs = {(False, False): ".", (True, True): "#", (True, False): "X", (False, True): "o"}
        lines = [f"  {name:>8} " + " ".join(signs[pair] for pair in zip(a, b))
                 for name, a, b in zip(names, yours.tolist(), expected.tolist())]
        raise AssertionError("\n".join([f"{what}: # and . are right, X should be off, o should be on", *lines]))


def difference_quotient(f, x, h=1e-5):
    """The gradient of a scalar function at x by central differences, one coordinate at a time."""
    gradient = torch.zeros_like(x)
    for n in range(x.numel()):
        up, down = x.clone(), x.clone()
        up.view(-1)[n] += h
        down.view(-1)[n] -= h
        gradient.view(-1)[n] = (float(f(up)) - float(f(down))) / (2 * h)
    return gradient


def gradient(f, x, what):
    """The gradient of a scalar function at x by backward(); AssertionError when the graph is cut."""
    __tracebackhide__ = True
    x = x.clone().requires_grad_()
    value = f(x)
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        raise AssertionError(f"{what}: no gradient comes back: was the graph cut by .item(), detach or a new tensor?")
    value.backward()
    return torch.zeros_like(x) if x.grad is None else x.grad
