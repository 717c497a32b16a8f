"""The classifiers of a network with members: several, where timm's code and its users' expect one."""

from typing import Any, Iterable

from torch import nn

__all__ = ["Heads", "MemberHeads"]

# what timm's networks, torchvision's and most scripts call a classifier
_NAMES = {"fc", "head", "classifier", "head_dist", "last_linear"}


class Heads(nn.ModuleList):
    """One classifier per member, and the sizes that scripts ask of a classifier.

    in_features, out_features: those of every head; 0 where there is none.

    >>> heads = Heads(nn.Linear(7, 5) for _ in range(2))
    >>> len(heads), heads.in_features, heads.out_features
    (2, 7, 5)
    """

    def __init__(self, heads: Iterable[nn.Module] = ()):
        super().__init__(heads)
        first: Any = self[0] if len(self) else None
        while isinstance(first, nn.ModuleList):  # a distilled ViT has two
            first = first[0]
        self.in_features: int = getattr(first, "in_features", getattr(first, "in_channels", 0))
        self.out_features: int = getattr(first, "out_features", getattr(first, "out_channels", 0))


class MemberHeads(nn.Module):
    """A network whose classifiers are its members': another one that is set beside them is an error, not silence.

    >>> class Two(MemberHeads):
    ...     heads = ()
    >>> Two().fc = nn.Linear(7, 5)
    Traceback (most recent call last):
    AttributeError: Two has no classifier fc, but one for each member: call reset_classifier(num_classes), or ...
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _NAMES and isinstance(value, nn.Module) and name not in self._modules:
            raise AttributeError(
                f"{type(self).__name__} has no classifier {name}, but one for each member: call "
                "reset_classifier(num_classes), or change what get_classifier() returns"
            )
        super().__setattr__(name, value)
