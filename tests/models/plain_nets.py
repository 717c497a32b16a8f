"""Plain networks that members start from, of every family."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.networks import fixed_images

K = 7
ONE_BLOCK = {"layers": (1, 1, 1, 1)}
NARROW = {**ONE_BLOCK, "channels": (32, 64, 128, 256)}
SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "img_size": 64, "window_size": 2}
FAMILIES = {
    "resnet18": {},
    "resnet18d": {},
    "resnetv2_50": NARROW,
    "resnext50_32x4d": ONE_BLOCK,
    "wide_resnet50_2": NARROW,
    "seresnet18": {},
    "skresnet18": {},
    "resnet50_gn": ONE_BLOCK,
    "wrn16_2": {},
    "preact_resnet18": ONE_BLOCK,
    "efficientnet_b0": {},
    "tf_efficientnet_lite0": {},
    "tf_efficientnetv2_b0": {},
    "mobilenetv2_035": {},
    "mobilenetv3_small_050": {},
    "mnasnet_small": {},
    "mixnet_s": {},
    "rexnet_100": {},
    "ghostnet_050": {},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "dla34": {},
    "cspresnet50": {},
    "hrnet_w18_small": {},
    "ese_vovnet19b_dw": {},
    "hgnetv2_b0": {},
    "gernet_s": {},
    "regnetx_002": {},
    "regnety_002": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "inception_next_atto": {},
    "starnet_s050": {},
    "poolformer_s12": {},
    "edgenext_xx_small": {},
    "mobilevit_xxs": {},
    "pvt_v2_b0": {},
    "mixer_s32_224": {"img_size": 64},
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 64},
    "deit_tiny_patch16_224": {"depth": 2, "img_size": 64},
    "beit_base_patch16_224": {"depth": 1, "img_size": 64},
    "swin_tiny_patch4_window7_224": SWIN,
}
QUICK = {"resnet18d", "wrn16_2", "mobilenetv3_small_050", "densenet121", "convnext_atto", "vit_tiny_patch16_224"}
families = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)


def plain_net(name, num_classes=K, **kwargs):
    """With statistics of images and with heads that are not zero, as after training."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **FAMILIES.get(name, {}), **kwargs).train()
    with torch.no_grad():
        model(torch.cat([images(model)] * 4) + 0.1)
        for value in (*model.get_classifier().parameters(), *(p for p in model.parameters() if p.ndim < 2)):
            value.add_(0.1 * torch.randn(value.shape))
    return model.eval()


def images(model, size=64):
    return fixed_images(2, model.in_chans, *(min(size, side) for side in model.pretrained_cfg["input_size"][1:]))


def deviation(values, wanted):
    """The largest difference over the largest value."""
    return ((values - wanted).abs().max() / wanted.abs().max()).item()


def written(model, path):
    save_file(model.state_dict(), path)
    return str(path)
