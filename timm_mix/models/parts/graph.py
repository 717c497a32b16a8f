"""CUDA graphs of a function of images: captured at the first input of a kind, replayed for the others."""

import threading
from dataclasses import dataclass
from typing import Any, Callable, Dict, Hashable, List, Sequence, Tuple

import torch
from torch import nn

__all__ = ["GraphCache"]

_MOST = 8  # graphs kept; each holds the memory of its activations
_WARM_UPS = 3  # runs before the capture: libraries choose kernels and allocate in the first ones

Run = Callable[[Sequence[torch.Tensor]], List[Any]]


@dataclass(frozen=True)
class _Captured:
    graph: Any
    inputs: List[torch.Tensor]
    outputs: List[Any]


class GraphCache:
    """Graphs by kind of input: shapes, strides, types and autocast.

    A graph reads the weights where they lay when it was captured: it sees their new values after an update in place,
    and is captured anew after a move or a replacement.

    >>> double = lambda inputs: [2 * inputs[0]]
    >>> x = torch.ones(3, device="cuda" if torch.cuda.is_available() else "cpu")
    >>> result = GraphCache().replay("double", [], [x], double) if x.is_cuda else double([x])  # graphs need a GPU
    >>> result[0].tolist()
    [2.0, 2.0, 2.0]
    """

    def __init__(self) -> None:
        self._captured: Dict[Hashable, _Captured] = {}
        self._slots: List[Tuple[Dict[str, Any], str]] = []
        self._addresses: List[int] = []
        self._lock = threading.Lock()

    def replay(self, name: Hashable, parts: Sequence[nn.Module], inputs: Sequence[torch.Tensor], run: Run) -> List[Any]:
        """run(inputs), from a graph; the outputs are copies that the next replay leaves alone."""
        device = inputs[0].device
        autocast = (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        distinct, places = _distinct(inputs)
        kinds = tuple((tuple(x.shape), x.stride(), x.dtype) for x in distinct)
        key = (name, device, autocast, kinds, tuple(places))
        with self._lock, torch.cuda.device(device):
            self._check_addresses(parts)
            captured = self._captured.pop(key, None)
            if captured is None:
                with torch.autocast("cuda", autocast[1], enabled=autocast[0], cache_enabled=False):
                    captured = _capture(distinct, places, run)
            self._captured[key] = captured  # the last used is the last
            while len(self._captured) > _MOST:
                del self._captured[next(iter(self._captured))]
            for static, x in zip(captured.inputs, distinct, strict=True):
                static.copy_(x)
            captured.graph.replay()
            return [_copied(output) for output in captured.outputs]

    def _check_addresses(self, parts: Sequence[nn.Module]) -> None:
        if self._slots and _addresses(self._slots) == self._addresses:
            return
        self._captured.clear()
        self._slots = [
            (slots, name)
            for part in parts
            for module in part.modules()
            for slots in (module._parameters, module._buffers)
            for name, tensor in slots.items()
            if tensor is not None
        ]
        self._addresses = _addresses(self._slots)


def _addresses(slots: Sequence[Tuple[Dict[str, Any], str]]) -> List[int]:
    tensors = [tensors.get(name) for tensors, name in slots]
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _distinct(inputs: Sequence[torch.Tensor]) -> Tuple[List[torch.Tensor], List[int]]:
    """Every tensor once, and the place of each input among them: often all parts see one image."""
    first: Dict[int, int] = {}
    distinct: List[torch.Tensor] = []
    for x in inputs:
        if id(x) not in first:
            first[id(x)] = len(distinct)
            distinct.append(x)
    return distinct, [first[id(x)] for x in inputs]


@torch.inference_mode(False)
@torch.no_grad()
def _capture(distinct: Sequence[torch.Tensor], places: Sequence[int], run: Run) -> _Captured:
    """No inference mode: its tensors could not be written to outside of it."""
    inputs = [x.clone() for x in distinct]
    spread = [inputs[place] for place in places]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run(spread)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(spread)
    return _Captured(graph, inputs, outputs)


def _copied(output: Any) -> Any:
    if isinstance(output, dict):
        return {key: _copied(item) for key, item in output.items()}
    if isinstance(output, (list, tuple)):
        return type(output)(_copied(item) for item in output)
    return output.clone()
