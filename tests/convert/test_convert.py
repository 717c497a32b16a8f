"""Official checkpoints: names, round trips on synthetic files, roles of every tensor, logits."""

import argparse

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import timm_mix


# The published MixMo networks' state_dicts as rules: key -> shape, in their order (github.com/valeoai/mixmo-pytorch).
def _bn(name, chs):
    yield from ((f"{name}.{part}", [chs]) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", []


def _ends(stem, features, members, classes, single):
    if single:
        first = [("conv1.weight", [stem, 3, 3, 3])]
        return first, [("fc.weight", [classes, features]), ("fc.bias", [classes])]
    first = [(f"list_conv1.{i}.weight", [stem, 3, 3, 3]) for i in range(members)]
    heads = [
        (f"list_fc.{i}.{part}", [classes, features][: 2 if part == "weight" else 1])
        for i in range(members)
        for part in ("weight", "bias")
    ]
    return first, heads


def official_wrn(depth, k, members=1, classes=100):
    first, heads = _ends(16, 64 * k, members, classes, single=members == 1)
    yield from first
    chs = 16
    for stage, width in enumerate((16 * k, 32 * k, 64 * k), start=1):
        for j in range((depth - 4) // 6):
            block = f"layer{stage}.{j}"
            yield from _bn(f"{block}.bn1", chs)
            yield f"{block}.conv1.weight", [width, chs, 3, 3]
            yield from _bn(f"{block}.bn2", width)
            yield f"{block}.conv2.weight", [width, width, 3, 3]
            if j == 0:
                yield f"{block}.shortcut.0.weight", [width, chs, 1, 1]
            chs = width
    yield from _bn("bn1", chs)
    yield from heads


def official_preact(w, members=1, classes=200):
    first, heads = _ends(64, 512 * w, members, classes, single=members == 1)
    yield from first
    chs = 64
    for stage in (1, 2, 3, 4):
        width = 32 * w * 2**stage
        for j in (0, 1):
            block = f"layer{stage}.{j}"
            yield f"{block}.conv1.weight", [width, chs, 3, 3]
            yield from _bn(f"{block}.bn1", chs)
            yield f"{block}.conv2.weight", [width, width, 3, 3]
            yield from _bn(f"{block}.bn2", width)
            if j == 0 and (stage > 1 or chs != width):
                yield f"{block}.shortcut.0.weight", [width, chs, 1, 1]
            chs = width
    yield from heads


PUBLISHED = {
    ("wideresnet_28_10", 1): (official_wrn(28, 10), 36_536_884),
    **{
        ("wideresnetmixmo_28_10", m): (official_wrn(28, 10, m), count)
        for m, count in ((2, 36_601_416), (3, 36_665_948), (4, 36_730_480))
    },
    **{
        (f"preactresnet_18_{w}", 1): (official_preact(w), count)
        for w, count in ((1, 11_268_616), (2, 44_784_648), (3, 100_537_864))
    },
    **{
        (f"preactresnetmixmo_18_{w}", 2): (official_preact(w, 2), count)
        for w, count in ((1, 11_372_944), (2, 44_991_376), (3, 100_846_992))
    },
}
PUBLISHED = {key: (dict(rule), count) for key, (rule, count) in PUBLISHED.items()}


def _random(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif len(shape) == 1:
            state[key] = 0.5 + torch.rand(shape, generator=generator)
        else:
            state[key] = torch.randn(shape, generator=generator) / (sum(shape[1:]) ** 0.5)
    return state


def _small(members=2):
    """A network of the same code that is quick to build, with its official state."""
    name = "wrn16_2" if members == 1 else f"mixmo_wrn16_2_m{members}"
    return timm.create_model(name, num_classes=11), _random(dict(official_wrn(16, 2, members, 11)))


def _wrapped(state, prefix=""):
    return {
        "classifier_state_dict": {f"{prefix}{key}": value for key, value in state.items()},
        "classifier_optimizer_state_dict": {"state": {0: {"momentum": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 300,
        "best_scores": {"accuracy": 0.5},
    }


@pytest.mark.parametrize(("arch", "members"), PUBLISHED)
def test_every_published_key_has_its_place_and_shape(arch, members):
    shapes, count = PUBLISHED[arch, members]
    name = timm_mix.official_model("mixmo", arch, members)
    classes = 100 if arch.startswith("wide") else 200
    model = timm.create_model(name, num_classes=classes, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count
    learned = (torch.Size(s) for k, s in shapes.items() if "running" not in k and "tracked" not in k)
    assert sum(shape.numel() for shape in learned) == count
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    seen = []
    model.load_state_dict = lambda renamed, strict: seen.append((renamed, strict))
    timm_mix.load_official(model, state)
    renamed, strict = seen[0]
    assert strict
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_names_of_the_published_networks():
    names = {key: timm_mix.official_model("mixmo", *key) for key in PUBLISHED}
    assert names == {
        ("wideresnet_28_10", 1): "wrn28_10",
        ("wideresnetmixmo_28_10", 2): "mixmo_wrn28_10_m2",
        ("wideresnetmixmo_28_10", 3): "mixmo_wrn28_10_m3",
        ("wideresnetmixmo_28_10", 4): "mixmo_wrn28_10_m4",
        ("preactresnet_18_1", 1): "preact_resnet18",
        ("preactresnet_18_2", 1): "preact_resnet18_w2",
        ("preactresnet_18_3", 1): "preact_resnet18_w3",
        ("preactresnetmixmo_18_1", 2): "mixmo_preact_resnet18_m2",
        ("preactresnetmixmo_18_2", 2): "mixmo_preact_resnet18_w2_m2",
        ("preactresnetmixmo_18_3", 2): "mixmo_preact_resnet18_w3_m2",
    }
    assert timm_mix.official_model("mixmo", "wideresnetmixmo_28_10_m3", 3) == "mixmo_wrn28_10_m3"
    assert timm_mix.official_model("mixmo", "wideresnet_28_10") == "wrn28_10"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("mixmoo", "wideresnet_28_10", 1),
            "source must be one of mixmo, openmixup, recursivemix, splitnet, got 'mixmoo'",
        ),
        (("mixmo", "wideresnet_28_2", 1), "must be one of wideresnet_28_10, wideresnetmixmo.*got 'wideresnet_28_2'"),
        (("mixmo", "wideresnetmixmo_28_10_m3", 2), "must be one of .*got 'wideresnetmixmo_28_10_m3' with members=2"),
        (("mixmo", "wideresnet_28_10", 2), "members of wideresnet_28_10 must be 1, got 2"),
        (("mixmo", "wideresnetmixmo_28_10", 1), "members of wideresnetmixmo_28_10 must be 2 or 3 or 4, got 1"),
        (("mixmo", "wideresnet_28_10", True), "members of wideresnet_28_10 must be 1, got True"),
        (("mixmo", None, 1), "must be one of .*got None"),
        (("mixmo", "wideresnetmixmo_28_10", [2]), r"must be 2 or 3 or 4, got \[2\]"),
    ],
)
def test_unknown_networks_are_refused_with_the_known_ones(args, message):
    with pytest.raises(ValueError, match=message):
        timm_mix.official_model(*args)


def _role(key):
    """Our name of an official key, written without the converter."""
    parts = key.split(".")
    if parts[0] in ("list_conv1", "list_fc"):
        return ".".join([{"list_conv1": "encoders", "list_fc": "heads"}[parts[0]], *parts[1:]])
    if "shortcut" in parts:
        parts = [*parts[:2], "shortcut", "weight"]
    return ".".join(parts)


@pytest.mark.parametrize("members", [1, 3])
def test_every_tensor_lands_in_the_parameter_of_its_role(members):
    model, state = _small(members)
    for constant, tensor in enumerate(state.values(), start=1):
        tensor.fill_(constant)
    timm_mix.load_official(model, state)
    loaded = model.state_dict()
    assert len(loaded) == len(state)
    for constant, key in enumerate(state, start=1):
        name = _role(key)
        name = name if members == 1 or name.startswith(("encoders.", "heads.")) else f"core.{name}"
        assert (loaded[name] == constant).all(), f"{key} is not in {name}"


def test_the_published_wrn28_10_with_two_members_loads_from_its_file(tmp_path):
    state = _random(PUBLISHED["wideresnetmixmo_28_10", 2][0])
    torch.save(_wrapped(state, "module."), tmp_path / "checkpoint_epoch_300.ckpt")
    name = timm_mix.official_model("mixmo", "wideresnetmixmo_28_10", 2)
    model = timm.create_model(name, num_classes=100, device="meta").to_empty(device="cpu")  # no time for its own init
    assert timm_mix.load_official(model, tmp_path / "checkpoint_epoch_300.ckpt") is model
    assert torch.equal(model.encoders[1].weight, state["list_conv1.1.weight"])
    assert torch.equal(model.heads[0].weight, state["list_fc.0.weight"])
    assert torch.equal(model.core.layer3[3].bn2.running_var, state["layer3.3.bn2.running_var"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("form", ["path", "string", "checkpoint", "state_dict"])
def test_all_forms_of_a_checkpoint_load_alike(form, prefix, tmp_path):
    model, state = _small()
    source = _wrapped(state, prefix)
    if form in ("path", "string"):
        torch.save(source, tmp_path / "a.ckpt")
        source = tmp_path / "a.ckpt" if form == "path" else str(tmp_path / "a.ckpt")
    elif form == "state_dict":
        source = source["classifier_state_dict"]
    timm_mix.load_official(nn.DataParallel(model), source)
    assert torch.equal(model.heads[1].weight, state["list_fc.1.weight"])
    assert torch.equal(model.core.bn1.running_mean, state["bn1.running_mean"])


def _bn_relu(state, name, x):
    args = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, *args))


def _official_wrn_logits(state, x, members):
    """The published network, written from its keys: encoders summed, member logits averaged."""
    stems = ["conv1"] if members == 1 else [f"list_conv1.{i}" for i in range(members)]
    heads = ["fc"] if members == 1 else [f"list_fc.{i}" for i in range(members)]
    x = sum(F.conv2d(x, state[f"{stem}.weight"], padding=1) for stem in stems)
    for stage in (1, 2, 3):
        for j in range(2):
            block = f"layer{stage}.{j}"
            stride = 2 if stage > 1 and j == 0 else 1
            out = F.conv2d(_bn_relu(state, f"{block}.bn1", x), state[f"{block}.conv1.weight"], padding=1)
            out = _bn_relu(state, f"{block}.bn2", out)
            out = F.pad(out, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
            out = F.conv2d(out, state[f"{block}.conv2.weight"], stride=stride)
            shortcut = state.get(f"{block}.shortcut.0.weight")
            x = out + (x if shortcut is None else F.conv2d(x, shortcut, stride=stride))
    x = _bn_relu(state, "bn1", x).mean((2, 3))
    return torch.stack([F.linear(x, state[f"{head}.weight"], state[f"{head}.bias"]) for head in heads], 1)


def _official_preact_logits(state, x, members):
    stems = ["conv1"] if members == 1 else [f"list_conv1.{i}" for i in range(members)]
    heads = ["fc"] if members == 1 else [f"list_fc.{i}" for i in range(members)]
    x = sum(F.conv2d(x, state[f"{stem}.weight"], stride=2, padding=1) for stem in stems)
    for stage in (1, 2, 3, 4):
        for j in range(2):
            block = f"layer{stage}.{j}"
            stride = 2 if stage > 1 and j == 0 else 1
            act = _bn_relu(state, f"{block}.bn1", x)
            out = F.conv2d(act, state[f"{block}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(_bn_relu(state, f"{block}.bn2", out), state[f"{block}.conv2.weight"], padding=1)
            shortcut = state.get(f"{block}.shortcut.0.weight")
            x = out + (x if shortcut is None else F.conv2d(act, shortcut, stride=stride))
    x = x.mean((2, 3))
    return torch.stack([F.linear(x, state[f"{head}.weight"], state[f"{head}.bias"]) for head in heads], 1)


@pytest.mark.parametrize("members", [1, 3])
def test_logits_of_a_converted_wide_resnet_are_those_of_the_published_one(members):
    model, state = _small(members)
    timm_mix.load_official(model, state).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = _official_wrn_logits(state, x, members)
    with torch.no_grad():
        _assert_close(model(x), expected.mean(1))
        if members > 1:
            _assert_close(model(x, return_members=True), expected)


@pytest.mark.parametrize("members", [1, 2])
def test_logits_of_a_converted_preact_resnet_are_those_of_the_published_one(members):
    state = _random(dict(official_preact(1, members, 7)))
    name = timm_mix.official_model("mixmo", "preactresnet_18_1" if members == 1 else "preactresnetmixmo_18_1", members)
    model = timm_mix.load_official(timm.create_model(name, num_classes=7), state).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _assert_close(model(x), _official_preact_logits(state, x, members).mean(1))


def _assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("list_fc.1.bias"), r"heads\.1\.bias missing"),
        (lambda s: s.update({"list_fc.2.bias": torch.ones(11)}), r"list_fc\.2\.bias unexpected"),
        (lambda s: s.update({"layer9.x": torch.ones(1)}), r"layer9\.x unexpected"),
        (lambda s: s.update({"list_fc.0.bias": torch.ones(3)}), r"list_fc\.0\.bias \(wanted \[11\], got \[3\]\)"),
        (lambda s: s.update({"module.bn1.bias": torch.ones(128)}), "twice, as 'bn1.bias' and as 'module.bn1.bias'"),
        (lambda s: s.update({"layer1.0.shortcut.weight": torch.ones(1)}), r"twice, as 'layer1.0.shortcut\.0\.weight'"),
    ],
)
def test_a_mismatch_names_its_keys_and_leaves_the_model_alone(spoil, message):
    model, state = _small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    spoil(state)
    with pytest.raises(ValueError, match=message):
        timm_mix.load_official(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("members", "given"), [(1, 2), (2, 1), (2, 3)])
def test_a_checkpoint_of_another_number_of_members_is_refused(members, given):
    message = r"another network: .*(missing|unexpected).*official_model\(\) names"
    with pytest.raises(ValueError, match=message) as error:
        timm_mix.load_official(_small(members)[0], _small(given)[1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/a.ckpt", "source must be an existing checkpoint file or a state_dict, got str '/nowhere/a.ckpt'"),
        (".", "source must be an existing checkpoint file"),
        (3, "source must be an existing checkpoint file or a state_dict, got int '3'"),
        ({}, "must hold one '<wrapper>_state_dict' of tensors or be one, got none in dict"),
        ({"epoch": 3}, r"got none in list .*'epoch'"),
        (
            {"a_state_dict": {"x": torch.ones(1)}, "b_state_dict": {"x": torch.ones(1)}},
            "got 'a_state_dict', 'b_state_dict'",
        ),
    ],
)
def test_what_is_not_a_checkpoint_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        timm_mix.load_official(nn.Linear(1, 1), source)


def test_a_file_with_foreign_objects_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"classifier_state_dict": {"x": torch.ones(1)}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(
        ValueError, match=r"must load with .*weights_only=True.* needs argparse\.Namespace or is damaged;"
    ) as error:
        timm_mix.load_official(nn.Linear(1, 1), path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.ckpt must ") as error:
        timm_mix.load_official(nn.Linear(1, 1), path)
    assert "\n" not in str(error.value)
