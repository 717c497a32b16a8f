"""The parts of a divided network at the same time: threads on the CPU, streams or one captured graph on a GPU.

The paper (arXiv:2011.14660) runs the parts on one device one after the other. They share nothing but the image:

- CPU: a thread per part, each with its share of the cores; the operators release Python's lock.
- GPU: a stream per part; graph=True captures the launches of all parts once per kind of input and replays them.
- several devices: a part computes where its parameters lie, the results are gathered on the first part's device.

Both cores of a two-core machine free, float32, batch 1, `train_scripts/benchmark.py --cases concurrent --device cpu`:
threads take .39 to .76 of the sequential time for splitnet_resnet50_s2 and .88 to .90 for splitnet_wrn28_10_s2; of the
undivided network's .90 to 1.04 and .90 to .99, which uses both cores, too (the lower figures with weights in
channels_last). What lost: grouped convolutions (1.0 to 1.7 of the undivided) and vmap over stacked weights (1.1 to
2.1); both need a copy of the weights. Batch norm folded into the convolutions would have to follow the weights: not
done. The GPU paths have tests (`pytest -m gpu`) but no figures yet.
"""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import nn

from timm_mix.models.parts.graph import GraphCache

__all__ = ["Concurrent", "concurrent_parts"]

Device = Union[str, int, torch.device]
Call = Callable[[], Any]

_POOLS: Dict[Tuple[int, int, int], ThreadPoolExecutor] = {}  # of (process, workers, cores): a fork has no threads
_POOLS_LOCK = threading.Lock()
_WORKER = threading.local()  # a worker must not wait for its own pool


class Concurrent:
    """Calls a method of every part, all at the same time; in training one after the other.

    Its threads, streams and graphs stay behind when it is copied or pickled.

    Args:
        graph: with all parts on one GPU and without gradients, replay captured launches.

    >>> parts = [nn.Linear(3, 5).eval(), nn.Linear(3, 5).eval()]
    >>> x = torch.zeros(7, 3)
    >>> [y.shape for y in Concurrent()(parts, "forward", [x, x])]
    [torch.Size([7, 5]), torch.Size([7, 5])]
    """

    def __init__(self, graph: bool = False):
        self.graph = graph
        self._graphs = GraphCache()

    def __reduce__(self) -> Tuple[Any, ...]:  # what copy, deepcopy and pickle go by
        return type(self), (self.graph,)

    def forget(self) -> None:
        """The parts have changed their layers."""
        self._graphs = GraphCache()

    def __call__(self, parts: Sequence[nn.Module], method: str, inputs: Sequence[Any], **kwargs: Any) -> List[Any]:
        """[part.method(x, **kwargs) for each part and its x], on the first part's device.

        What a part raises is raised here, once all parts have come to an end.
        """
        methods = [partial(getattr(part, method), **kwargs) for part in parts]
        if _is_traced(inputs):
            return [call(inputs[i]) for i, call in enumerate(methods)]
        devices = [_device_of(part) for part in parts]
        inputs = [x.to(device, non_blocking=True) for x, device in zip(inputs, devices, strict=True)]

        def run(inputs: Sequence[torch.Tensor]) -> List[Any]:
            return _at_once([partial(call, x) for call, x in zip(methods, inputs, strict=True)], devices)

        if any(part.training for part in parts):  # dropout's generator and the hooks of DDP want one order
            outputs = [call(x) for call, x in zip(methods, inputs, strict=True)]
        elif self.graph and devices[0].type == "cuda" and len(set(devices)) == 1 and not torch.is_grad_enabled():
            outputs = self._graphs.replay((method, repr(kwargs)), parts, inputs, run)
        else:
            outputs = run(inputs)
        return [_over_tensors(output, lambda t: t.to(devices[0], non_blocking=True)) for output in outputs]


def concurrent_parts(
    parts: Sequence[nn.Module], devices: Optional[Sequence[Device]], graph: bool, enable: bool
) -> Optional[Concurrent]:
    """What SplitNet.parallelize does: place the parts, and return what calls them (None: nothing at the same time).

    Raises:
        ValueError: no devices, a GPU that this machine does not have, settings together with enable=False, or a part
            without weights.

    >>> parts = [nn.Linear(3, 5), nn.Linear(3, 5)]
    >>> type(concurrent_parts(parts, devices=["cpu"], graph=False, enable=True)).__name__
    'Concurrent'
    >>> concurrent_parts(parts, devices=None, graph=False, enable=False) is None
    True
    """
    for i, part in enumerate(parts):
        if next(part.parameters(), None) is None:
            raise ValueError(f"parallelize needs all {len(parts)} parts in this process, but part {i} has no weights")
    if not enable:
        if devices is not None or graph:
            raise ValueError(
                "enable=False gathers the parts where the first one lies: it takes no devices and no graph"
            )
        _place(parts, [_device_of(parts[0])])
        return None
    if devices is not None:
        _place(parts, _known_devices(devices))
    return Concurrent(graph)


def _known_devices(devices: Sequence[Device]) -> List[torch.device]:
    if isinstance(devices, (str, int, torch.device)) or len(devices) == 0:
        raise ValueError(f"devices must be a list of one or more devices (None: where the parts lie), got {devices!r}")
    known = [_known_device(device) for device in devices]
    for device in known:
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"devices must exist, got {device} on a machine with {torch.cuda.device_count()} GPUs")
    return known


def _known_device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"devices must be names such as 'cpu' or 'cuda:0', got {device!r}") from None


def _place(parts: Sequence[nn.Module], devices: Sequence[torch.device]) -> None:
    for i, part in enumerate(parts):
        part.to(devices[i % len(devices)])


def _is_traced(inputs: Sequence[Any]) -> bool:
    """Whether someone records the operations: compile, export, fx, a mode or transform; they all watch one thread."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or any(type(x) is not torch.Tensor and type(x) is not nn.Parameter for x in inputs)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _device_of(part: nn.Module) -> torch.device:
    return next(part.parameters()).device


def _over_tensors(output: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """`change` every tensor of an output: a tensor, or lists, tuples and dicts of them."""
    if isinstance(output, dict):
        return {key: _over_tensors(item, change) for key, item in output.items()}
    if isinstance(output, (list, tuple)):
        return type(output)(_over_tensors(item, change) for item in output)
    return change(output)


def _at_once(calls: List[Call], devices: List[torch.device]) -> List[Any]:
    """GPUs first, since launching does not wait for them; then the CPU."""
    outputs: Dict[int, Any] = {}
    on_gpu = [i for i, device in enumerate(devices) if device.type == "cuda"]
    others = [i for i, device in enumerate(devices) if device.type != "cuda"]
    for i, output in zip(on_gpu, _on_streams([(calls[i], devices[i]) for i in on_gpu]), strict=True):
        outputs[i] = output
    for i, output in zip(others, _on_threads([calls[i] for i in others]), strict=True):
        outputs[i] = output
    return [outputs[i] for i in range(len(calls))]


def _on_streams(calls: List[Tuple[Call, torch.device]]) -> List[Any]:
    """Every call on a stream of its own; the current stream of its device goes on when it is done."""
    outputs, streams = [], [torch.cuda.Stream(device) for _, device in calls]
    for (call, device), stream in zip(calls, streams, strict=True):
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            outputs.append(call())
    for output, (_, device), stream in zip(outputs, calls, streams, strict=True):
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        if not torch.cuda.is_current_stream_capturing():  # a graph keeps its memory anyway
            _over_tensors(output, lambda t, current=current: t.record_stream(current))
    return outputs


def _on_threads(calls: List[Call]) -> List[Any]:
    """Every call on a thread with its share of the caller's cores, under the caller's modes."""
    cores = torch.get_num_threads()
    workers = _workers(len(calls), cores)
    if workers < 2 or getattr(_WORKER, "inside", False):
        return [call() for call in calls]
    pool, mode = _pool(workers, cores // workers), _mode()
    futures = [pool.submit(_under, mode, call) for call in calls]
    wait(futures)
    return [future.result() for future in futures]


def _workers(parts: int, cores: int) -> int:
    """How many parts to run at once, so that no core is left waiting: three parts on two cores go one by one."""
    return min(range(1, min(parts, cores) + 1), key=lambda n: (math.ceil(parts / n) / (cores // n), -n))


def _pool(workers: int, cores: int) -> ThreadPoolExecutor:
    """Threads that compute with `cores` cores each; made once per process and setting."""
    key = (os.getpid(), workers, cores)
    with _POOLS_LOCK:
        if key not in _POOLS:
            before, started = torch.get_num_threads(), threading.Barrier(workers + 1)
            pool = ThreadPoolExecutor(workers, "timm_mix-part", initializer=_start, initargs=(cores, started))
            for _ in range(workers):
                pool.submit(int)  # a pool starts a thread when there is work
            started.wait()
            torch.set_num_threads(before)  # the workers' number is also the default of threads yet to come: put it back
            _POOLS[key] = pool
        return _POOLS[key]


def _start(cores: int, started: threading.Barrier) -> None:
    torch.get_num_threads()  # a thread takes the process' number when it first asks: ask, then overrule
    torch.set_num_threads(cores)
    _WORKER.inside = True
    started.wait()


def _mode() -> Callable[[], ExitStack]:
    """The caller's gradient, inference and autocast modes, which belong to a thread, for another thread to enter."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    cached = torch.is_autocast_cache_enabled()

    def enter() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(inference))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(torch.autocast("cpu", dtype, enabled=enabled, cache_enabled=cached))
        return stack

    return enter


def _under(mode: Callable[[], ExitStack], call: Call) -> Any:
    with mode():
        return call()
