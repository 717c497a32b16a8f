"""What logits say: one distribution over all classes, or, under a sigmoid, one of yes and no for each class."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["log_probabilities", "wide"]


def log_probabilities(logits: Tensor, *, sigmoid: bool = False) -> Tensor:
    """Logarithmic probabilities, in float32 at least: of one question with K answers, or of K questions with two.

    Shapes: logits [..., K].   returns [..., 1, K], with `sigmoid` [..., K, 2] (yes, no).

    >>> log_probabilities(torch.zeros(3, 2)).exp()[0], log_probabilities(torch.zeros(3, 2), sigmoid=True).exp()[0]
    (tensor([[0.5000, 0.5000]]), tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]]))
    """
    z = wide(logits)
    if sigmoid:
        return torch.stack([F.logsigmoid(z), F.logsigmoid(-z)], dim=-1)
    return F.log_softmax(z, dim=-1).unsqueeze(-2)


def wide(logits: Tensor) -> Tensor:
    """In float32 at least, as losses are computed.

    >>> wide(torch.zeros(2, dtype=torch.bfloat16)).dtype, wide(torch.zeros(2, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return logits.float() if logits.element_size() < 4 else logits
