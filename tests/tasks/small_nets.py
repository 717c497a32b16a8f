"""One small network of each kind that the tasks for any timm model must train."""

import timm
import torch

K = 13
NETS = {
    "resnet": ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    "vit": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 64,
            "window_size": 2,
            "embed_dim": 12,
            "depths": (1, 1, 1, 1),
            "num_heads": (1, 2, 2, 4),
            "drop_path_rate": 0.0,
        },
    ),
}


def small_net(kind, seed=0, **kwargs):
    torch.manual_seed(seed)
    name, settings = NETS[kind]
    return timm.create_model(name, num_classes=K, **{**settings, **kwargs})


def batch(size=5, seed=1, pixels=(64, 64)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, *pixels, generator=generator), torch.randint(K, (size,), generator=generator)
