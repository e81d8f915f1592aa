"""Call the functions of a file that nobody has read: in a process of its own, with a time and a memory limit.

    with isolated.opened(Path("ex06_smoothed_dpo.py"), seconds=20, megabytes=2000) as student:
        loss = student.smoothed_dpo(policy, ...)        # runs there; arguments and result travel as JSON
        loss.sum().backward()                           # and so do gradients

Whoever calls this judges; whoever is called only answers. An exit, an endless loop, a printed table of points or a
changed pytest happens in the other process, and the judge sees no more of it than a missing or a wrong answer.
JSON and not pickle, because an unpickled answer could run code here. All numbers arrive bit by bit as they were sent.

A limit against mistakes and easy tricks, no sandbox: the other process may read files and use the network as the user
who started it, unless `command` starts it elsewhere, as `docker run -i … python isolated.py FILE SECONDS MEGABYTES` does.
This file imports nothing of the project. Linux and macOS; the memory limit needs Linux.
"""
import importlib.util
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path

import torch

PLAIN = (ArithmeticError, AttributeError, IndexError, KeyError, NameError, NotImplementedError, RuntimeError, TypeError,
         ValueError, ZeroDivisionError)
LONGEST = 20_000_000     # bytes of one answer: more than any exercise needs, less than hurts


def load(path):
    """Run a Python file, return its module. Its folder comes last in the search path: it can hide no library."""
    sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


# ---- what travels ----

def pack(value, tensors=None):
    """Tensors, lists, tuples, dicts, sets, numbers, fractions, strings, None -> what json writes; else TypeError.

    tensors: a list that collects the tensors on the way, in order.
    """
    if isinstance(value, torch.Tensor):
        if tensors is not None:
            tensors.append(value)
        return {"tensor": value.detach().tolist(), "dtype": str(value.dtype).removeprefix("torch."),
                "shape": list(value.shape), "grad": value.requires_grad}
    for kind in (list, tuple, set):                                    # torch.Size is a tuple, too
        if isinstance(value, kind):
            return {kind.__name__: [pack(entry, tensors) for entry in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, tensors), pack(entry, tensors)] for key, entry in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Fraction):
        return {"fraction": [value.numerator, value.denominator]}      # as text, "1e999999999" would take for ever
    raise TypeError(f"a {type(value).__name__} was returned or passed on; exercises use tensors, numbers and lists")


def unpack(value, tensors=None):
    """The inverse of `pack`. What comes in is data, whatever the sender wanted: nothing here is called or imported."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        dtype = getattr(torch, value["dtype"])
        tensor = torch.tensor(value["tensor"], dtype=dtype).reshape(value["shape"])
        if tensors is not None:
            tensors.append(tensor.requires_grad_(value["grad"]))
        return tensor
    if "dict" in value:
        return {unpack(key, tensors): unpack(entry, tensors) for key, entry in value["dict"]}
    if "fraction" in value:
        return Fraction(*value["fraction"])
    (kind, entries), = value.items()
    return {"list": list, "tuple": tuple, "set": set}[kind](unpack(entry, tensors) for entry in entries)


# ---- the process that answers ----

def serve(hears, says, path, seconds, megabytes):
    """Answer calls until the connection closes. Everything from here on may be taken over by the file it runs."""
    with suppress(PermissionError):                                # it has one already
        os.setsid()                                                # a group of its own, so that it can be ended whole
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    for other in set(range(3, 1024)) - {hears.fileno(), says.fileno()}:        # multiprocessing's own pipes
        with suppress(OSError):
            os.close(other)
    os.chdir(path.parent)
    torch.set_num_threads(1)
    limit(seconds, megabytes)
    module, kept = None, []                                        # kept: (result, its inputs) of calls with gradients
    while True:
        try:
            request = json.loads(hears.recv_bytes())
        except EOFError:
            return
        try:
            module = module or load(path)
            reply = differentiate(request, kept) if "gradient" in request else call(request, module, kept)
            text = json.dumps(reply)
        except BaseException as error:                             # SystemExit too: it must not look like a crash
            kinds = [kind.__name__ for kind in type(error).__mro__]
            text = json.dumps({"error": kinds, "text": describe(error, path)})
        says.send_bytes(text.encode())


def limit(seconds, megabytes):
    import resource  # here: Windows has none, and students may

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
    cpu = int(seconds) + 2                                         # a second net, should the judge be killed
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    if sys.platform == "linux":
        # torch alone reserves gigabytes of addresses that it never fills: the limit counts from there.
        pages = int(open("/proc/self/statm", encoding="ascii").read().split()[0])
        most = pages * resource.getpagesize() + int(megabytes * 1_000_000)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def call(request, module, kept):
    inputs = []
    args, kwargs = unpack(request["args"], inputs), unpack(request["kwargs"], inputs)
    result = getattr(module, request["call"])(*args, **kwargs)
    reply = {"result": pack(result)}
    if isinstance(result, torch.Tensor) and result.requires_grad:
        kept.append((result, inputs))
        reply["number"] = len(kept) - 1
    return reply


def differentiate(request, kept):
    result, inputs = kept[request["gradient"]]
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(result, wanted, unpack(request["upstream"]), allow_unused=True, retain_graph=True))
    return {"result": pack([next(found) if x.requires_grad else None for x in inputs])}


def describe(error, path):
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{error} ({path.name}{f', line {lines[-1]}' if lines else ''})"[:2000]


# ---- the process that asks ----

class Student:
    """A file's functions, as if it had been imported; every call is a question to its process."""

    def __init__(self, connection, seconds, late):
        self._connection, self._seconds = connection, seconds      # seconds: for all calls of a test together
        self._late = late                                          # threading.Event: the line was cut, not closed

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self._call(name, args, kwargs)

    def _call(self, name, args, kwargs):
        tensors = []
        reply = self._ask({"call": name, "args": pack(args, tensors), "kwargs": pack(kwargs, tensors)})
        result = unpack(reply["result"])
        if isinstance(reply.get("number"), int) and torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return Elsewhere.apply(self, reply["number"], result, *tensors)
        return result

    def _ask(self, request):
        try:
            self._connection.send_bytes(json.dumps(request).encode())
            reply = json.loads(self._connection.recv_bytes(LONGEST))        # `opened` cuts the line when the time is over
        except (EOFError, OSError, ValueError, RecursionError):
            if self._late.is_set():
                raise AssertionError(f"no answer within {self._seconds:g} s: an endless loop?") from None
            raise AssertionError("the process ended before it answered: a crash, an exit or too much memory") from None
        if "error" in reply:
            # The same kind of error as there, so that a test may expect a ValueError; but only plain errors of Python:
            # pytest counts some exceptions, such as its own Skipped, as something other than a failure.
            plain = {kind.__name__: kind for kind in PLAIN}
            for kind in reply["error"]:
                if kind in plain:
                    raise plain[kind](str(reply["text"]))
            raise AssertionError(f"{reply['error'][0]}: {reply['text']}")
        return reply


class Elsewhere(torch.autograd.Function):
    """A function whose value and gradient are computed in the other process."""

    @staticmethod
    def forward(ctx, student, number, result, *tensors):
        ctx.student, ctx.number = student, number
        return result

    @staticmethod
    def backward(ctx, upstream):
        found = unpack(ctx.student._ask({"gradient": ctx.number, "upstream": pack(upstream)})["result"])
        return None, None, None, *found


@contextmanager
def opened(path, seconds, megabytes, command=None):
    """The functions of the file at `path` (absolute), in a process that ends with this block.

    command: words that start the process instead, with {file}, {folder}, {seconds} and {megabytes} filled in; it runs
    this file and is asked and answers by its standard input and output.
    """
    start = elsewhere if command else forked
    ours, process, stop = start(path, seconds, megabytes, command)
    line = socket.socket(fileno=os.dup(ours.fileno()))
    late = threading.Event()

    def cut():
        """End any waiting, also for the second half of an answer, whoever still holds the other end."""
        late.set()                                                 # first: whoever wakes up asks for it
        with suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.start()
    try:
        yield Student(ours, seconds, late)
    finally:
        timer.cancel()
        line.close()
        ours.close()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)                 # with whatever it has started
        stop()


def forked(path, seconds, megabytes, _):
    """(our end, process, how to end it): one process imports torch once, then forks for each student."""
    context = multiprocessing.get_context("forkserver")
    # pytest too: multiprocessing runs the imports of the main module again in every child.
    context.set_forkserver_preload(["torch", "pytest", "tutorial.grading.isolated"])
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, theirs, path, seconds, megabytes), daemon=True)
    process.start()
    theirs.close()

    def stop():
        process.kill()                                             # it may not have come as far as its own group
        process.join()

    return ours, process, stop


def elsewhere(path, seconds, megabytes, command):
    """The same by a command."""
    words = [word.format(file=path.name, folder=path.parent, seconds=seconds, megabytes=megabytes) for word in command]
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(words, stdin=theirs, stdout=theirs, start_new_session=True)
    return Connection(ours.detach()), process, process.wait


if __name__ == "__main__":
    file, seconds, megabytes = sys.argv[1:]
    serve(Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False), Path(file).resolve(),
          float(seconds), float(megabytes))
