"""The Mix Blocks of AutoMix and SAMix."""

import math

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


def _linear(layer, vector):
    """A 1x1 convolution at one place."""
    weight, bias = layer.weight.detach()[:, :, 0, 0].tolist(), [0.0] * layer.out_channels
    bias = bias if layer.bias is None else layer.bias.tolist()
    return [sum(w * v for w, v in zip(row, vector, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def _attended(query, key, value):
    """sigmoid of the values that every place of the sample draws from its partner; query, key [places][C / 2]."""
    masks = []
    for q in query:
        scores = [sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q)) for k in key]
        weights = [math.exp(score) for score in scores]
        drawn = sum(w * v for w, v in zip(weights, value, strict=True)) / sum(weights)
        masks.append(1 / (1 + math.exp(-drawn)))
    return masks


def _stirred(block):
    """Weights that count, in float64."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return block.double().eval()


def _places(features, b):
    return features[b].flatten(1).T.tolist()


def test_the_block_of_automix_equals_a_loop_over_places():
    block, f = _stirred(MixBlock(C)), _features().double()
    masks = block(f, PARTNERS, 0.3, (H, W))
    for b, partner in enumerate(PARTNERS.tolist()):
        own, other = ([[*v, lam] for v in _places(f, i)] for i, lam in ((b, 0.3), (partner, 0.7)))
        query, key = ([_linear(block.query, v) for v in places] for places in (own, other))
        expected = _attended(query, key, [_linear(block.value, v)[0] for v in other])
        assert masks[b, 1].flatten().tolist() == pytest.approx(expected, rel=1e-9)
        assert masks[b, 0].flatten().tolist() == pytest.approx([1 - m for m in expected], rel=1e-9)


def test_the_block_of_samix_equals_a_loop_over_places():
    block, f, lam = _stirred(SAMixBlock(C, k=0.25)), _features().double(), 0.3
    embedded = (4 / 3 * lam**3 - 2 * lam**2 + 1.25 * lam) / (1.25 - 2 / 3)
    first, norm, _, last, _ = block.value
    masks = block(f, PARTNERS, lam, (H, W))
    for b, partner in enumerate(PARTNERS.tolist()):
        own = [[(1 + embedded) * v for v in place] for place in _places(f, b)]
        other = [[(1 + 1 - embedded) * v for v in place] for place in _places(f, partner)]
        both = [[*u, *v] for u, v in zip(own, other, strict=True)]
        query, key = ([_linear(layer, v) for v in both] for layer in (block.query, block.key))
        value = []
        for place in other:
            hidden = [
                g * h / math.sqrt(1 + norm.eps) + s  # running mean 0 and variance 1
                for h, g, s in zip(_linear(first, place), norm.weight.tolist(), norm.bias.tolist(), strict=True)
            ]
            value += _linear(last, [h if h > 0 else math.exp(h) - 1 for h in hidden])
        assert masks[b, 1].flatten().tolist() == pytest.approx(_attended(query, key, value), rel=1e-9)


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
