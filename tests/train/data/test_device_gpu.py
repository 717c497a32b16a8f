"""The device loader on a GPU; run with `pytest -m gpu` on a machine that has one."""

import pytest
import torch

from timm_mix.train.data.device_loader import DeviceLoader, load_images
from timm_mix.train.data.device_transforms import Augmentation
from timm_mix.train.data.loaders import open_dataset, start_epoch
from timm_mix.views import EpochBatchSampler

pytestmark = pytest.mark.gpu

MEAN, STD = (0.1, 0.3, 0.7), (0.2, 0.5, 1.1)


def loader(device, **how):
    memory = load_images(open_dataset("digits", None, "validation"), (32, 32), 3, device=device)
    return DeviceLoader(memory, EpochBatchSampler(len(memory), 64, drop_last=False), MEAN, STD, **how)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("views", [None, 2])
def test_batches_are_those_of_the_cpu(views, channels_last):
    settings = Augmentation(re_prob=0.5, re_mode="rand", re_count=2)
    how = {"settings": settings, "views": views, "channels_last": channels_last}
    both = [loader(device, **how) for device in ("cpu", "cuda")]
    for one in both:
        start_epoch(one, 1, 3)
    for (images, target), (others, labels) in zip(*both, strict=True):
        assert others.is_cuda
        assert labels.is_cuda
        torch.testing.assert_close(others.cpu(), images)
        assert torch.equal(labels.cpu(), target)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_a_batch_never_waits_for_the_device(mode):
    one = loader("cuda", settings=Augmentation(re_prob=0.5, re_mode=mode))
    start_epoch(one, 0, 3)
    list(one)  # the first batches may allocate
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(one)
    finally:
        torch.cuda.set_sync_debug_mode("default")
