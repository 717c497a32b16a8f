"""SplitNet's official checkpoints: names, places of every tensor, logits, the released zip."""

import re
import tempfile
import zipfile
from functools import partial

import official_splitnet_nets as official
import pytest
import timm
import torch
from official_layers import meta
from official_loading import assert_refused
from official_splitnet_nets import ARCHS, checkpoint, part_shapes, random_state
from official_splitnet_pairs import PAIRS
from torch import nn

import timm_mix
from timm_mix.convert.splitnet import NETWORKS

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.slow]

# published name -> ours, where they differ
OURS = {
    **{f"resnet{depth}": f"resnet{depth}e" for depth in (50, 101, 152, 200)},
    **{f"wide_resnet{width}": f"wide_resnet{width}e" for width in ("50_2", "50_3", "101_2")},
    "resnext50_32x4d": "resnext50e_32x4d",
    "resnext101_32x4d": "resnext101e_32x4d",
    "resnext101_64x4d": "resnext101e_64x4d",
    "senet154": "senet154e",
    "se_resnet50_B": "se_resnet50_b",
    "se_resnext101_64x4d_B": "se_resnext101_64x4d_b",
    **{f"resnest{depth}": f"resnest{depth}e" for depth in (101, 200, 269)},
    **{f"efficientnetb{n}@lightnet": f"efficientnetb{n}_lightnet" for n in range(8)},
    **{f"efficientnetb{n}@cifar": f"efficientnetb{n}_cifar" for n in range(8)},
}


def _plain(arch):
    return OURS.get(arch, arch)


def _places(model, source):
    """What load_official gives the model, without loading it."""
    seen = []
    model.load_state_dict = lambda renamed, strict: seen.append((renamed, strict))
    timm_mix.load_official(model, source)
    [(renamed, strict)] = seen
    assert strict
    return renamed


def _shapes(state):
    return {key: value.shape for key, value in state.items()}


@pytest.mark.parametrize("arch", ARCHS)
def test_every_published_key_has_its_place_and_shape(arch):
    """One part, as a plain network: the others differ from it in their prefix only."""
    part = timm_mix.divide(_plain(arch), ARCHS[arch]["S"])
    kwargs = {"model_name": _plain(arch), "num_classes": ARCHS[arch]["num_classes"], "device": "meta", **part}
    model = timm.create_model(**kwargs)
    source = checkpoint(meta(part_shapes(arch)))
    renamed = _places(model, source)
    assert _shapes(renamed) == _shapes(model.state_dict())
    for theirs, ours in PAIRS.get(arch, ()):
        assert renamed[ours] is source["state_dict"][f"models.0.{theirs}"], f"{theirs} is not in {ours}"


@pytest.mark.parametrize("arch", ["resnet50", "efficientnetb0", "efficientnetb0@cifar", "wide_resnet28_10"])
def test_all_parts_have_their_places_in_the_registered_model(arch):
    name = timm_mix.official_model("splitnet", arch, 2)
    assert name == f"splitnet_{_plain(arch)}_s2"
    model = timm.create_model(name, num_classes=ARCHS[arch]["num_classes"], device="meta")
    renamed = _places(model, checkpoint(meta(part_shapes(arch)), meta(part_shapes(arch)), prefix="module."))
    assert _shapes(renamed) == _shapes(model.state_dict())


@pytest.mark.parametrize("arch", ARCHS)
def test_a_baseline_is_the_plain_model(arch):
    name = timm_mix.official_model("splitnet", arch)
    assert name == _plain(arch)
    assert timm.is_model(name)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_published_number_of_parts_is_a_call(arch):
    for members in NETWORKS[arch][1]:
        name, settings = timm_mix.official_network("splitnet", arch, members)
        model = timm.create_model(name, num_classes=3, device="meta", **settings)
        assert getattr(model, "num_members", 1) == members


def test_published_networks_are_those_that_are_known():
    with pytest.raises(ValueError, match="source 'splitnet' must be one of") as error:
        timm_mix.official_model("splitnet", "nothing", 2)
    listed = str(error.value).partition("must be one of ")[2].partition(", got")[0]
    assert set(listed.split(", ")) == set(ARCHS)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("splitnet", "resnet50e", 2), "must be one of resnet50, resnet101, .*got 'resnet50e' with members=2"),
        (("splitnet", "resnet50", 3), "members of resnet50 must be 1 or 2 or 4 or 8, got 3"),
        (("splitnet", "resnest101", 2), "members of resnest101 must be 1, got 2"),
        (("splitnet", "se_resnet110", 8), "members of se_resnet110 must be 1 or 2 or 4, got 8"),
        (("splitnet", "resnet50", True), "members of resnet50 must be 1 or 2 or 4 or 8, got True"),
        (
            ("splitnet", "resnet110", 16),
            r"splitnet_resnet110_s16 is not a registered name; .*create_model\('splitnet', backbone='resnet110', "
            r"split=16, num_classes=\.\.\.\)",
        ),
    ],
)
def test_unknown_networks_are_refused_with_the_known_ones(args, message):
    with pytest.raises(ValueError, match=message):
        timm_mix.official_model(*args)


# arch -> what it computes, the side of the images: small ones, because the layers are the same
FORWARD = {
    "resnet110": (official.resnet, 16),
    "se_resnet110": (official.resnet, 16),
    "wide_resnet16_8": (official.resnet, 16),
    "resnet50": (official.resnet, 64),
    "se_resnet50": (official.resnet, 64),
    "resnexst50_4x16d": (official.resnet, 64),
    "shake_resnet26_2x96d": (official.shake_shake, 16),
    "pyramidnet164": (partial(official.pyramidnet, last_drop=0.5 / 2**0.5), 16),  # ShakeDrop's .5 / sqrt(S)
    "densenet190": (official.densenet, 16),
    "efficientnetb0": (partial(official.efficientnet_b0, strides=(2, 1, 2, 2, 2, 1, 2, 1)), 64),
    "efficientnetb0@cifar": (partial(official.efficientnet_b0, strides=(1, 1, 2, 1, 2, 1, 1, 1)), 16),
}


def _zeros(name, **kwargs):
    """A model without the time for its own init."""
    model = timm.create_model(name, device="meta", **kwargs).to_empty(device="cpu").double().eval()
    for tensor in model.state_dict().values():
        tensor.zero_()
    return model


@pytest.mark.parametrize("arch", FORWARD)
def test_logits_of_a_converted_network_are_those_of_the_published_one(arch):
    forward, side = FORWARD[arch]
    parts = [random_state(part_shapes(arch), seed) for seed in (0, 1)]
    model = _zeros(timm_mix.official_model("splitnet", arch, 2), num_classes=ARCHS[arch]["num_classes"])
    assert timm_mix.load_official(model, checkpoint(*parts)) is model
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        logits = model(x, return_members=True)
        for i, part in enumerate(parts):
            expected = forward(part, x)
            assert expected.std() > 0.1
            assert (logits[:, i] - expected).abs().max() <= 1e-9 * expected.abs().max()
    for theirs, ours in PAIRS[arch]:  # by value, in the second part
        assert torch.equal(model.state_dict()[f"subnets.1.{ours}"], parts[1][theirs])


def _whole(shapes, part_width, width):
    """Shapes of the undivided network of a family whose widths are all multiples of one."""
    return {
        key: [n * width // part_width if n % part_width == 0 else n for n in shape] for key, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("arch", "widths", "count"),
    [("resnet110", (12, 16), None), ("resnet50", (44, 64), 25_680_808), ("se_resnet110", (12, 16), 1_693_684)],
)
def test_a_baseline_checkpoint_loads_into_the_plain_model_and_into_one_part(arch, widths, count):
    """Parameters as published for S = 1 (table of arXiv:2011.14660's code)."""
    shapes = _whole(part_shapes(arch), *widths)
    source = checkpoint(meta(shapes))
    classes = ARCHS[arch]["num_classes"]
    plain = timm.create_model(timm_mix.official_model("splitnet", arch, 1), num_classes=classes, device="meta")
    if count is not None:
        assert sum(p.numel() for p in plain.parameters()) == count
    renamed = _places(plain, source)
    assert _shapes(renamed) == _shapes(plain.state_dict())
    one = timm.create_model("splitnet", backbone=_plain(arch), split=1, num_classes=classes, device="meta")
    assert _places(one, source).keys() == {f"subnets.0.{key}" for key in renamed}


SMALL = {"backbone": "resnet110", "num_classes": 100, "layers": (1, 1, 1)}


def _small_shapes():
    """One block per stage."""
    return {key: shape for key, shape in part_shapes("resnet110").items() if not re.match(r"layer[1-3]\.[1-9]", key)}


def _small():
    """A model that is quick to build, and its parts' state."""
    return _zeros("splitnet", split=2, **SMALL), [random_state(_small_shapes(), seed) for seed in (0, 1)]


def _assert_loaded(model, parts):
    for i, part in enumerate(parts):
        assert torch.equal(model.subnets[i].conv1.weight, part["layer0.0.weight"])
        assert torch.equal(model.subnets[i].bn1.num_batches_tracked, part["layer0.1.num_batches_tracked"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("form", ["path", "zip", "zip in a folder", "checkpoint", "state_dict"])
def test_all_forms_of_a_checkpoint_load_alike(form, prefix, tmp_path, monkeypatch):
    model, parts = _small()
    source = checkpoint(*parts, prefix=prefix)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    if form == "state_dict":
        source = source["state_dict"]
    elif form != "checkpoint":
        torch.save(source, tmp_path / "model_best.pth.tar")
        source = tmp_path / "model_best.pth.tar"
    if form.startswith("zip"):
        folder = "resnet110_split2/" if "folder" in form else ""
        with zipfile.ZipFile(tmp_path / "released.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(source, f"{folder}model_best.pth.tar")
            archive.writestr(f"__MACOSX/{folder}._model_best.pth.tar", b"a Mac's own file")
            archive.writestr(f"{folder}log.txt", "epoch 300")
        source = tmp_path / "released.zip"
    timm_mix.load_official(nn.DataParallel(model), source)
    _assert_loaded(model, parts)
    assert not list(scratch.iterdir())


def test_a_file_of_torch_save_is_no_released_zip_whatever_its_name(tmp_path):
    model, parts = _small()
    torch.save(checkpoint(*parts), tmp_path / "a.zip")
    assert zipfile.is_zipfile(tmp_path / "a.zip")
    timm_mix.load_official(model, tmp_path / "a.zip")
    _assert_loaded(model, parts)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"a\.zip must hold one model_best\.pth\.tar, got an empty zip"),
        ({"x/log.txt": b"", "x/last.pth.tar": b""}, r"must hold one model_best\.pth\.tar, got x/log\.txt, x/last\.pth"),
        (
            {"x/model_best.pth.tar": b"", "y/model_best.pth.tar": b""},
            r"got 2 of them, x/model_best\.pth\.tar, y/model_best\.pth\.tar; unpack it",
        ),
        ({"model_best.pth.tar": b"no checkpoint"}, r"a\.zip must "),
    ],
)
def test_a_zip_without_one_checkpoint_is_refused_in_one_line(files, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=message) as error:
        timm_mix.load_official(nn.Linear(1, 1), tmp_path / "a.zip")
    assert "\n" not in str(error.value)


DEAD = ("bn.bias", "bn.num_batches_tracked", "bn.running_mean", "bn.running_var", "bn.weight", "conv1.weight")
DEAD += ("conv2.weight",)


def test_only_shortcuts_that_shake_shake_never_runs_are_left_out_and_the_log_says_so(caplog):
    """Blocks 1 to 3 of each stage keep their width; the published constructor gives them a shortcut all the same."""
    shapes = part_shapes("shake_resnet26_2x96d")
    model = timm.create_model("splitnet_shake_resnet26_2x96d_s2", num_classes=100, device="meta")
    source = checkpoint(meta(shapes), meta(shapes))["state_dict"]
    renamed = _places(model, source)
    assert _shapes(renamed) == _shapes(model.state_dict())
    used = {id(tensor) for tensor in renamed.values()}
    assert {key for key, tensor in source.items() if id(tensor) not in used} == {
        f"models.{i}.stage_{stage}.{block}.shortcut.{name}"
        for i in (0, 1)
        for stage in (1, 2, 3)
        for block in (1, 2, 3)
        for name in DEAD
    }
    [line] = caplog.messages
    assert "left out, because the published network never uses them: models.0.stage_1.1.shortcut." in line
    assert "and 123 more" in line


def test_nothing_is_left_out_of_other_networks(caplog):
    model, parts = _small()
    parts[1]["stage_1.1.shortcut.bn.bias"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"models\.1\.stage_1\.1\.shortcut\.bn\.bias unexpected"):
        timm_mix.load_official(model, checkpoint(*parts))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("models.1.fc.bias"), r"subnets\.1\.fc\.bias missing"),
        (lambda s: s.pop("models.0.layer1.0.downsample.1.running_mean"), r"layer1\.0\.downsample\.2\.running_mean mis"),
        (lambda s: s.update({"models.2.fc.bias": torch.ones(100)}), r"models\.2\.fc\.bias unexpected"),
        (lambda s: s.update({"fc.bias": torch.ones(100)}), r"fc\.bias unexpected"),
        (lambda s: s.update({"models.0._blocks.99._bn0.bias": torch.ones(1)}), r"_blocks\.99\._bn0\.bias unexpected"),
        (lambda s: s.update({"models.0.fc.bias": torch.ones(3)}), r"fc\.bias \(wanted \[100\], got \[3\]\)"),
        (lambda s: s.update({"module.models.1.fc.bias": torch.ones(100)}), "twice, as 'models.1.fc.bias' and as 'mod"),
    ],
)
def test_a_mismatch_names_its_keys_and_leaves_the_model_alone(spoil, message):
    model, parts = _small()
    state = checkpoint(*parts)["state_dict"]
    spoil(state)
    assert_refused(model, state, message)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "resnet110",
            {"channels": (12, 24, 48), "stem_width": 12},
            r"models\.1\.layer0\.0\.weight.* unexpected; create",
        ),
        ("splitnet", {"split": 4, **SMALL}, r"subnets\.2\.conv1\.weight.* missing; .* official_model\(\) names"),
        ("splitnet", {**SMALL, "backbone": "se_resnet110"}, r"layer1\.0\.se\.fc1\.weight.* missing"),
        ("splitnet", {**SMALL, "num_classes": 10}, r"fc\.weight \(wanted \[10, 192\], got \[100, 192\]\)"),
        ("mixmo_wrn16_2_m2", {}, r"models\.0\.layer0\.0\.weight.* unexpected"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(name, kwargs, message):
    parts = [meta(_small_shapes()) for _ in range(2)]
    model = timm.create_model(name, device="meta", **kwargs)
    with pytest.raises(ValueError, match=f"another network: .*{message}"):
        timm_mix.load_official(model, checkpoint(*parts))
