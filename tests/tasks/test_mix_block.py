"""The Mix Blocks of AutoMix and SAMix."""

import pytest
import torch

from timm_mix.functional.automix import attention_masks
from timm_mix.tasks._mix_block import MixBlock, SAMixBlock

B, C, H, W = 5, 6, 2, 3
SIZE = (8, 12)
PARTNERS = torch.tensor([3, 0, 4, 1, 2])


def _features():
    return torch.randn(B, C, H, W, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("block", "parameters"),
    [
        (lambda: MixBlock(256, lam_channel=False), 33_153),  # CIFAR, ResNet-18
        (lambda: MixBlock(256), 33_282),  # ImageNet, ResNet-18
        (lambda: MixBlock(1024), 526_338),  # ImageNet, ResNet-50
        (lambda: SAMixBlock(256), 164_480),
        (lambda: SAMixBlock(1024), 2_624_000),
    ],
    ids=["automix-cifar-r18", "automix-imagenet-r18", "automix-r50", "samix-r18", "samix-r50"],
)
def test_parameters_are_those_of_the_published_code(block, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in block().parameters()) == parameters


def test_automix_feeds_lam_to_the_sample_and_the_rest_to_its_partner():
    torch.manual_seed(0)
    block, f = MixBlock(C), _features()
    lam = torch.full((B, 1, H, W), 0.3)
    own, partner = torch.cat([f, lam], 1), torch.cat([f[PARTNERS], 1 - lam], 1)
    expected = attention_masks(block.query(own), block.query(partner), block.value(partner), SIZE)
    assert torch.equal(block(f, PARTNERS, 0.3, SIZE), expected)


def test_without_the_channel_lam_changes_nothing():
    block, f = MixBlock(C, lam_channel=False), _features()
    assert torch.equal(block(f, PARTNERS, 0.1, SIZE), block(f, PARTNERS, 0.9, SIZE))


def test_samix_scales_the_features_by_lam():
    torch.manual_seed(0)
    block, f = SAMixBlock(C, k=-1).eval(), _features()
    own, partner = f * 1.3, f[PARTNERS] * 1.7
    both = torch.cat([own, partner], 1)
    expected = attention_masks(block.query(both), block.key(both), block.value(partner), SIZE, "bilinear")
    torch.testing.assert_close(block(f, PARTNERS, 0.3, SIZE), expected)


@pytest.mark.parametrize("block", [MixBlock, SAMixBlock])
def test_an_untrained_block_shares_every_place_evenly(block):
    """Weights of N(0, .01) leave the sigmoid near 1 / 2."""
    torch.manual_seed(0)
    masks = block(C).eval()(_features(), PARTNERS, 0.3, SIZE)
    assert masks.shape == (B, 2, 1, *SIZE)
    assert (masks - 0.5).abs().max() < 0.05


def test_an_impossible_k_is_refused_at_once():
    with pytest.raises(ValueError, match="k must not be -1/3"):
        SAMixBlock(C, k=-1 / 3)
