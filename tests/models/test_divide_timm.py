"""Division beyond the paper: sizes, what is kept, parts that work, what is refused."""

import math

import pytest
import timm
import torch
from support.networks import count_parameters

import timm_mix

pytestmark = pytest.mark.slow

SPLITS = (2, 4, 8)
ARCHS = [
    *("convnext_atto", "convnext_tiny", "convnextv2_nano"),
    *("regnetx_002", "regnety_016", "regnetz_040", "regnetv_040"),
    *("mobilenetv3_small_100", "mobilenetv3_large_100"),
    *("efficientnet_b0", "tf_efficientnet_b1", "efficientnetv2_rw_t"),
    *("densenet121",),
    *("resnetv2_18", "resnetv2_50", "resnetv2_50d", "resnetv2_50x3_bit"),
    *("vgg11", "vgg16_bn"),
    *("vit_tiny_patch16_224", "vit_base_patch16_224", "deit_small_patch16_224", "deit3_small_patch16_224"),
    *("swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224"),
]
# one small network per family, with what makes it smaller still
SMALL = {
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "regnetx_002": {},
    "mobilenetv3_small_100": {},
    "efficientnet_b0": {},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "resnetv2_18": {},
    "vit_tiny_patch16_224": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "depths": (1, 1, 1, 1)},
}


def _part(arch, split, **kwargs):
    return timm.create_model(**{"model_name": arch, **timm_mix.divide(arch, split), **kwargs})


@pytest.mark.parametrize("arch", ARCHS)
def test_all_parts_hold_about_as_many_parameters_as_the_whole(arch):
    whole = count_parameters(timm.create_model(arch, device="meta"))
    for split in SPLITS:
        assert 0.9 <= split * count_parameters(_part(arch, split, device="meta")) / whole <= 1.1


@pytest.mark.parametrize(
    ("arch", "split", "expected"),
    [
        ("convnext_tiny.fb_in1k", 4, {"dims": (48, 96, 192, 384)}),
        ("convnext_tiny_hnf", 4, {"dims": (48, 96, 192, 384)}),
        ("convnext_large_mlp", 4, {"dims": (96, 192, 384, 768), "head_hidden_size": 768}),
        ("densenet121", 2, {"growth_rate": 23}),
        ("resnetv2_50", 4, {"channels": (128, 256, 512, 1024)}),
        ("resnetv2_50d", 4, {"channels": (128, 256, 512, 1024), "stem_chs": 32}),
        ("resnetv2_50x3_bit", 4, {"channels": (128.0, 256.0, 512.0, 1024.0)}),  # times 3 in timm
        ("vgg11", 4, {"model_name": "narrow_vgg", "backbone": "vgg11", "width": 0.5}),
        ("vit_base_patch16_224", 4, {"embed_dim": 384, "num_heads": 6, "mlp_ratio": 4.0}),
        ("vit_base_patch16_224", 2, {"embed_dim": 512, "num_heads": 8, "mlp_ratio": 4.25}),
        # hidden widths 4344 and 2152: multiples of 8 and not of 16, over embeddings that give the ratio four decimals
        ("vit_giant_patch14_224", 2, {"embed_dim": 968, "num_heads": 11, "mlp_ratio": 4.4877}),
        ("vit_so400m_patch14_siglip_224", 4, {"embed_dim": 576, "num_heads": 8, "mlp_ratio": 3.7362}),
        ("swin_tiny_patch4_window7_224", 2, {"embed_dim": 64, "num_heads": (2, 4, 8, 16), "mlp_ratio": 4.25}),
        ("swin_tiny_patch4_window7_224", 1, {}),
    ],
)
def test_widths_are_divided_by_the_square_root_of_the_number_of_parts(arch, split, expected):
    assert timm_mix.divide(arch, split) == expected


@pytest.mark.parametrize("arch", ["regnetx_002", "regnety_016", "regnetz_040"])
def test_a_regnet_keeps_the_depth_of_every_stage_and_whole_groups(arch):
    whole = timm.create_model(arch, device="meta")
    for split in SPLITS:
        part = _part(arch, split, device="meta")
        for name in ("s1", "s2", "s3", "s4"):
            stage, divided = getattr(whole, name), getattr(part, name)
            assert len(list(stage.children())) == len(list(divided.children()))
            convs = [block.conv2.conv for block in (stage.b1, divided.b1)]
            assert convs[1].in_channels % convs[1].groups == 0
            assert convs[1].in_channels / convs[0].in_channels == pytest.approx(split**-0.5, rel=0.35)  # of 8


@pytest.mark.parametrize(
    "arch", ["vit_base_patch16_224", "deit_small_patch16_224", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"]
)
@pytest.mark.parametrize("split", [2, 8])
def test_heads_keep_their_size(arch, split):
    def head_dim(model):
        blocks = model.blocks if hasattr(model, "blocks") else model.layers[1].blocks
        attention = blocks[0].attn
        return attention.qkv.in_features / attention.num_heads

    assert head_dim(_part(arch, split, device="meta")) == head_dim(timm.create_model(arch, device="meta"))


def test_heads_shrink_where_a_whole_number_of_them_does_not_fit():
    part = _part("vit_tiny_patch16_224", 4, device="meta")
    assert (part.embed_dim, part.blocks[0].attn.num_heads, part.blocks[0].attn.head_dim) == (96, 2, 48)


@pytest.mark.parametrize(("arch", "kwargs"), SMALL.items(), ids=SMALL)
def test_a_splitnet_of_every_family_works(arch, kwargs):
    torch.manual_seed(0)
    model = timm.create_model("splitnet", backbone=arch, split=2, num_classes=7, **kwargs).eval()
    x = torch.randn(2, 3, 64, 64)
    members = torch.stack([part(x) for part in model.subnets], 1)
    torch.testing.assert_close(model(x, return_members=True), members)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), members.mean(1))
    assert not torch.equal(members[:, 0], members[:, 1])
    widths = [info["num_chs"] for info in model.feature_info]
    assert widths == [2 * info["num_chs"] for info in model.subnets[0].feature_info]
    features = timm.create_model("splitnet", backbone=arch, split=2, features_only=True, **kwargs).eval()
    shapes = [level.shape for level in features(x)]
    assert [shape[1] for shape in shapes] == features.feature_info.channels()
    assert [64 // shape[2] for shape in shapes] == features.feature_info.reduction()
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_splitnet_of_vgg_has_parts_of_its_own_width():
    model = timm.create_model("splitnet", backbone="vgg11_bn", split=8, num_classes=7, device="meta").eval()
    x = torch.zeros(2, 3, 64, 64, device="meta")
    assert model(x).shape == (2, 7)
    assert model.forward_features(x).shape == (2, 8 * 180, 2, 2)  # 512 / sqrt(8), to a multiple of 4


@pytest.mark.parametrize("arch", ["mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_a_splitnet_of_divided_parts_reloads_from_its_config(arch, tmp_path):
    model = timm.create_model("splitnet", backbone=arch, split=2, num_classes=7, **SMALL[arch]).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_a_division_belongs_to_its_caller():
    first = timm_mix.divide("densenet121", 2)
    first["growth_rate"] = 0
    assert timm_mix.divide("densenet121", 2) == {"growth_rate": 23}


def test_every_width_is_a_share_of_the_wholes():
    for arch in ("convnext_tiny", "resnetv2_50", "efficientnet_b0"):
        whole = timm.create_model(arch, device="meta")
        part = _part(arch, 2, device="meta")
        for info, divided in zip(whole.feature_info, part.feature_info, strict=True):
            if not (arch == "resnetv2_50" and info["reduction"] == 2):  # a 7x7 stem keeps its width
                assert divided["num_chs"] / info["num_chs"] == pytest.approx(1 / math.sqrt(2), rel=0.1)


@pytest.mark.parametrize(
    ("arch", "split", "message"),
    [
        ("mixer_b16_224", 2, "no division rule for 'mixer_b16_224': known are .*convnext.*swin.*; divide=False"),
        ("vit_nobody_patch1", 2, "VisionTransformer, but timm does not know it; divide=False"),
        ("regnetz_b16", 2, "divides timm's RegNet, but this is a ByobNet; divide=False"),
        ("efficientnet_b0_gn", 2, r"the width of its bn1.weight \(GroupNormAct\) cannot be changed; divide=False"),
        ("efficientnet_b0_g16_evos", 2, "groups of 16 channels, which do not divide 24; divide=False"),
        ("vit_small_patch16_18x2_224", 2, r"\(ParallelThingsBlock\) are not one attention and one MLP; divide=False"),
        ("regnety_040_sgn", 2, "timm cannot build it with .*group_size.*; divide=False"),
        ("regnetz_005", 8, r"S = 8 parts of 0.9 to 1.1 of its parameters in all \(nearest: 1.38\); take another S"),
        ("vit_tiny_patch16_224", 500, r"vit_tiny_patch16_224 does not divide into S = 500 parts .* \(nearest: none\)"),
    ],
)
def test_what_cannot_be_divided_is_refused(arch, split, message):
    with pytest.raises(ValueError, match=message):
        timm_mix.divide(arch, split)
