"""What the ImageNet networks of SplitNet's published code have in common, beyond timm's ResNet (arXiv:2011.14660)."""

from typing import Any, Dict

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.resnet import ResNet
from torch import nn

__all__ = ["imagenet_cfg", "init_classifier", "use_ceil_pool"]


def imagenet_cfg(**kwargs: Any) -> Dict[str, Any]:
    """The cfg of a network with a deep stem, as the published runs test it: 224 px out of int(1.15 * 224).

    >>> cfg = imagenet_cfg(num_classes=13)
    >>> cfg["num_classes"], cfg["input_size"], cfg["first_conv"]
    (13, (3, 224, 224), 'conv1.0')
    """
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.87,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1.0",
        "classifier": "fc",
        **kwargs,
    }


def init_classifier(model: ResNet) -> None:
    """Published initialisation of the classifier, N(0, 1e-3) and bias 0; that of the rest is timm's own.

    >>> model = timm.create_model("test_resnet")
    >>> init_classifier(model)
    >>> bool(model.fc.weight.std() < 2e-3), int(model.fc.bias.count_nonzero())
    (True, 0)
    """
    if isinstance(model.fc, nn.Linear):
        nn.init.normal_(model.fc.weight, std=1e-3)
        nn.init.zeros_(model.fc.bias)


def use_ceil_pool(model: ResNet) -> None:
    """Pool behind the stem without padding, rounding up (SENet's way); whatever is no max pool stays.

    >>> model = timm.create_model("test_resnet")
    >>> use_ceil_pool(model)
    >>> model.maxpool(torch.zeros(1, 1, 7, 7)).shape  # timm's own gives 4 x 4
    torch.Size([1, 1, 3, 3])
    """
    if isinstance(model.maxpool, nn.MaxPool2d):
        model.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
