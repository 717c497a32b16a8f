"""A SplitNet of which this process holds one part and other processes the others (member-parallel training)."""

from typing import Any, Callable, Iterator, Optional

from torch import nn

__all__ = ["Elsewhere", "build_parts"]


class Elsewhere(nn.Module):
    """The place of a part that another process holds: no weights here, and a whole state dict passes it by.

    >>> Elsewhere().load_state_dict({}), list(Elsewhere().parameters())
    (<All keys matched successfully>, [])
    """

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Its keys of a whole model's state dict are wanted by another process: neither missing nor unexpected."""

    def forward(self, *args: Any) -> None:
        raise RuntimeError("this part lies on another process (only_part); ask the process that holds it")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Nothing to do."""

    def get_classifier(self) -> nn.Module:
        return self

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Nothing to do."""


def build_parts(build: Callable[[], nn.Module], split: int, only_part: Optional[int]) -> Iterator[nn.Module]:
    """All parts, or the one part with its weights as they are when all are built.

    Earlier parts are built and dropped at once, because the later ones' random weights depend on what they draw; so
    that never more than one part is in memory. Later parts are not built.

    Raises:
        ValueError: only_part is no number of a part.

    >>> [type(part).__name__ for part in build_parts(lambda: nn.Linear(3, 5), 3, only_part=1)]
    ['Elsewhere', 'Linear', 'Elsewhere']
    """
    if only_part is not None and not (type(only_part) is int and 0 <= only_part < split):
        raise ValueError(f"only_part must be an integer in 0..{split - 1} for {split} parts, got {only_part!r}")
    for i in range(split):
        if only_part is None or i == only_part:
            yield build()
            continue
        if i < only_part:
            build()
        yield Elsewhere()
