"""Feature maps of any timm model, and one vector per image from a region of them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.models import get_model_input_config
from timm.utils import unwrap_model
from torch import Tensor, nn
from torchvision.ops import roi_align

__all__ = ["check_feature_map", "feature_map", "image_shape", "is_nhwc", "region_logits", "region_vector"]


def feature_map(model: nn.Module, features: Tensor, size: Sequence[int]) -> Tensor:
    """What forward_features returned, as a map: convolutional ones as they are, tokens on their grid.

    Shapes: features [B, C, h, w], [B, h, w, C] or [B, prefix + h w, C]; size (H, W) of the images.
        returns [B, C, h, w].
    Raises:
        ValueError: features of another form, tokens that fill no grid of the image's proportions, or not all of one.

    >>> import timm
    >>> model = timm.create_model("test_vit", img_size=32)
    >>> tokens = model.forward_features(torch.rand(4, 3, 32, 32))  # a class token, and one for each of 2 x 2 patches
    >>> tokens.shape, feature_map(model, tokens, (32, 32)).shape
    (torch.Size([4, 5, 64]), torch.Size([4, 64, 2, 2]))
    """
    plain: Any = unwrap_model(model)
    if not isinstance(features, Tensor):
        raise ValueError(
            f"{type(plain).__name__} has {type(features).__name__} features; wanted a map or tokens: take another model"
        )
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if is_nhwc(model) else features
    if features.ndim != 3:
        raise ValueError(f"{type(plain).__name__} has features {list(features.shape)}; wanted a map or tokens")
    tokens = features[:, getattr(plain, "num_prefix_tokens", 0) :]
    rows = round((tokens.shape[1] * size[0] / size[1]) ** 0.5)
    if rows < 1 or tokens.shape[1] % rows or not _covers(plain, rows, tokens.shape[1] // rows, size):
        raise ValueError(
            f"the {tokens.shape[1]} tokens of {type(plain).__name__} fill no grid over {tuple(size)} px: take another "
            f"model, or no patch_drop_rate"
        )
    return tokens.mT.unflatten(2, (rows, tokens.shape[1] // rows))


def _covers(plain: Any, rows: int, columns: int, size: Sequence[int]) -> bool:
    """Whether a grid has a token for every place, or for every square of places.

    The class token alone (timm's PiT) and the tokens that a patch_drop_rate leaves do not.
    """
    levels = getattr(plain, "feature_info", None)
    if not levels:
        return True
    reduction = levels[-1]["reduction"]
    for places in ([s // reduction for s in size], [math.ceil(s / reduction) for s in size]):
        squares = places[0] * columns == places[1] * rows and places[0] % rows == 0
        if squares and (rows * columns > 1 or max(places) == 1):
            return True
    return False


@torch.no_grad()
def check_feature_map(model: nn.Module) -> None:
    """Try one image of the size that the model names, so that features without places are an error at once.

    Raises:
        ValueError: as feature_map does. A model that takes another size is known in its first step only.

    >>> import timm
    >>> check_feature_map(timm.create_model("test_resnet"))  # its features have places
    """
    plain: Any = unwrap_model(model)
    parameter, modes = next(plain.parameters()), {module: module.training for module in plain.modules()}
    if not (getattr(plain, "pretrained_cfg", None) or {}).get("input_size"):
        return
    shape = image_shape(plain)
    image = torch.zeros((1, *shape), device=parameter.device, dtype=parameter.dtype)
    plain.eval()  # BatchNorm's statistics and every generator stay as they are
    try:
        features = plain.forward_features(image)
    except (RuntimeError, AssertionError, ValueError):
        return
    finally:
        for module, training in modes.items():
            module.training = training
    feature_map(plain, features, shape[1:])


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """[C, H, W] of the images that a model is built for, or names where it takes others as well.

    >>> import timm
    >>> image_shape(timm.create_model("test_vit", img_size=(32, 64), in_chans=1))  # its cfg says 3 x 160 x 160
    (1, 32, 64)
    """
    channels, height, width = get_model_input_config(unwrap_model(model))["input_size"]
    return int(channels), int(height), int(width)


def is_nhwc(model: nn.Module) -> bool:
    """Whether timm says that the model's features have their channels last.

    >>> import timm
    >>> is_nhwc(timm.create_model("test_resnet"))
    False
    """
    return getattr(unwrap_model(model), "output_fmt", "NCHW") == "NHWC"


def region_vector(features: Tensor, box: Tensor, size: Sequence[int]) -> Tensor:
    """Average features under a box, by RoIAlign with one bin, in float32 (He et al., ICCV 2017, arXiv:1703.06870).

    Shapes: features [B, C, h, w].   box [4]: top, bottom, left, right in pixels of the images.   size: (H, W) of the
        images.   returns [B, C].

    >>> features = torch.tensor([1.0, 1.0, 2.0, 2.0]).expand(4, 8, 4, 4)  # 1 on the left, 2 on the right
    >>> box = torch.tensor([0, 32, 16, 32])  # the right half of an image of 32 x 32
    >>> vector = region_vector(features, box, (32, 32))
    >>> vector.shape, bool((vector > 1.5).all())
    (torch.Size([4, 8]), True)
    """
    height, width = features.shape[2:]
    scale = box.new_tensor([width / size[1], height / size[0], width / size[1], height / size[0]], dtype=torch.float32)
    corners = box[[2, 0, 3, 1]].float() * scale
    rows = torch.arange(len(features), device=features.device, dtype=torch.float32)
    rois = torch.cat([rows[:, None], corners.expand(len(features), 4)], dim=1)
    with torch.autocast(features.device.type, enabled=False):
        wide = features.float() if features.element_size() < 4 else features
        pooled = roi_align(wide, rois.to(wide.dtype), output_size=1, aligned=True)
    return pooled.flatten(1)


def region_logits(model: nn.Module, vector: Tensor, tokens: bool) -> Tensor:
    """The model's own head on one vector per image: a map of one place, or tokens that are all alike.

    Shapes: vector [B, C].   returns [B, K].

    >>> import timm
    >>> model = timm.create_model("test_resnet", num_classes=5)
    >>> region_logits(model, torch.rand(4, model.num_features), tokens=False).shape
    torch.Size([4, 5])
    """
    plain: Any = unwrap_model(model)
    if tokens:
        return plain.forward_head(vector[:, None].expand(-1, 1 + getattr(plain, "num_prefix_tokens", 0), -1))
    return plain.forward_head(vector[:, None, None] if is_nhwc(model) else vector[:, :, None, None])
