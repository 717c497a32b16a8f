"""The RecursiveMix task over convolutional networks and transformers."""

import io

import pytest
import timm
import torch
from small_nets import NETS, K, batch, small_net
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy
from torch import nn
from torch.nn import functional as F

import timm_mix
from timm_mix.functional.recursivemix import RecursiveMixPlan
from timm_mix.tasks._region import check_feature_map, feature_map, region_vector

PLAN = RecursiveMixPlan((16, 48, 8, 56), 1 - 32 * 48 / 64**2)


def _task(kind="resnet", criterion=None, model=None, **settings):
    return timm_mix.create_task("recursivemix", model or small_net(kind), criterion, num_classes=K, **settings)


@pytest.mark.parametrize("kind", NETS)
def test_two_steps_equal_the_papers_lines_written_out(kind):
    model = small_net(kind).eval()
    task = _task(model=model, omega=0.3)
    head = task.get_trainable_module().region_head
    (x, y), (x2, y2) = batch(), batch(seed=2)
    with torch.no_grad():
        first, second = task(x, y, PLAN), task(x2, y2, PLAN)
        before = model(x)
        assert float(first["loss"]) == pytest.approx(float(F.cross_entropy(before, y)), rel=1e-5)
        mixed = x2.clone()
        mixed[:, :, 16:48, 8:56] = F.interpolate(x, size=(32, 48))
        labels = PLAN.lam * F.one_hot(y2, K) + (1 - PLAN.lam) * F.one_hot(y, K)
        ce = -(labels * model(mixed).log_softmax(1)).sum(1).mean()
        maps = feature_map(model, model.forward_features(mixed), (64, 64))
        region = head(region_vector(maps, torch.tensor(PLAN.box), (64, 64)))
        consistency = (1 - PLAN.lam) * -(before.softmax(1) * region.log_softmax(1)).sum(1).mean()
    assert float(second["ce"]) == pytest.approx(float(ce), rel=1e-5)
    assert float(second["consistency"]) == pytest.approx(float(consistency), rel=1e-4)
    assert float(second["loss"]) == pytest.approx(float(ce + 0.3 * consistency), rel=1e-5)


def test_the_shared_head_is_the_models_own():
    model = small_net("resnet").eval()
    task = _task(model=model, region_head="shared")
    whole = torch.tensor([0, 64, 0, 64])
    with torch.no_grad():
        logits, region = task.get_trainable_module()(batch()[0], whole)
    torch.testing.assert_close(region, logits, rtol=1e-4, atol=1e-5)  # the mean over all places is the global pooling


def test_the_region_is_the_mean_of_the_features_under_an_aligned_box():
    features = torch.randn(5, 7, 8, 8)
    box = torch.tensor([16, 48, 8, 56])  # rows 2 to 6, columns 1 to 7 at stride 8
    torch.testing.assert_close(region_vector(features, box, (64, 64)), features[:, :, 2:6, 1:7].mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "grid"), [("vit", (4, 4)), ("swin", (2, 2)), ("resnet", (2, 2)), ("convnext", (2, 2))]
)
def test_features_become_maps_with_places_where_they_belong(kind, grid):
    model = small_net(kind).eval()
    with torch.no_grad():
        features = model.forward_features(batch()[0])
    maps = feature_map(model, features, (64, 64))
    assert maps.shape == (5, model.num_features, *grid)
    flat = maps.flatten(2).mT
    if kind == "vit":
        assert torch.equal(flat, features[:, 1:])
    elif kind == "swin":
        assert torch.equal(flat, features.flatten(1, 2))


def test_history_is_emptied_at_the_start_of_every_epoch():
    task = _task(steps_per_epoch=3)
    consistencies = [float(task(*batch(seed=i), plan=PLAN)["consistency"]) for i in range(7)]
    assert [c > 0 for c in consistencies] == [False, True, True, False, True, True, False]


@pytest.mark.parametrize("last", [1, 3])
def test_the_short_last_batch_is_taken(last):
    task = _task("convnext")
    task(*batch(), plan=PLAN)
    result = task(*batch(last, seed=2), plan=PLAN)
    assert result["consistency"] > 0
    assert result["output"].shape == (last, K)


def test_the_history_is_the_mixed_batch_and_not_the_callers_tensor():
    task = _task()
    x, y = batch()
    task(x, y, PLAN)
    x.zero_()
    assert task.history["images"].abs().sum() > 0
    x2, y2 = batch(seed=2)
    task(x2, y2, PLAN)
    assert torch.equal(task.history["images"][:, :, :16], x2[:, :, :16])
    assert not torch.equal(task.history["images"], x2)
    torch.testing.assert_close(task.history["targets"].sum(1), torch.ones(5))


def test_the_history_is_not_the_callers_soft_labels():
    task = _task()
    x, y = batch()
    soft = F.one_hot(y, K).float()
    task(x, soft, PLAN)
    soft.zero_()
    torch.testing.assert_close(task.history["targets"], F.one_hot(y, K).float())


def test_a_state_between_epochs_holds_no_history():
    task = _task(steps_per_epoch=2)
    held = []
    for i in range(4):
        task(*batch(seed=i))
        held.append(task.get_task_state()["history"] is not None)
    assert held == [True, False, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_region_head_has_the_models_type(dtype):
    given, moved = _task(model=small_net("resnet").to(dtype)), _task().to(dtype)
    for task in (given, moved):
        assert task.get_trainable_module().region_head.weight.dtype == dtype
        for seed in range(2):
            x, y = batch(seed=seed)
            assert torch.isfinite(task(x.to(dtype), y, PLAN)["loss"])


def test_a_loaded_state_continues_exactly_in_the_middle_of_an_epoch():
    one = _task(seed=5)
    for i in range(3):
        one(*batch(seed=i))
    file = io.BytesIO()
    torch.save(one.get_checkpoint_state(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert not any("region" in key for key in saved["state_dict"])
    two = _task(model=small_net("resnet", seed=9), seed=6)
    two.load_checkpoint_state(saved["state_dict"], saved["task_state"])
    for i in range(3):
        assert torch.equal(one(*batch(seed=i))["loss"], two(*batch(seed=i))["loss"])


def test_another_rank_starts_without_history():
    zero, one = _task(rank=0), _task(rank=1)
    zero(*batch())
    one.load_task_state(zero.get_task_state())
    assert one.history is None
    assert one.step == 1


def test_the_evaluated_model_is_the_plain_one():
    model = small_net("resnet")
    task = _task(model=model)
    assert task.get_eval_model() is model
    task.setup_ema()
    averaged = task.get_checkpoint_state(ema=True)["state_dict_ema"]
    assert set(averaged) == set(task.get_checkpoint_state()["state_dict"]) == set(model.state_dict())


@pytest.mark.parametrize(
    "criterion", [LabelSmoothingCrossEntropy(0.1), nn.CrossEntropyLoss(label_smoothing=0.1), BinaryCrossEntropy()]
)
def test_timms_losses_take_the_mixed_targets(criterion):
    task = _task(criterion=criterion)
    task(*batch(), plan=PLAN)
    assert torch.isfinite(task(*batch(seed=2), plan=PLAN)["loss"])


def test_label_smoothing_is_torchs_for_soft_labels():
    model, (x, y) = small_net("resnet").eval(), batch()
    with torch.no_grad():
        smoothed = _task(model=model, criterion=LabelSmoothingCrossEntropy(0.2))(x, y)["ce"]
        torch.testing.assert_close(smoothed, LabelSmoothingCrossEntropy(0.2)(model(x), y))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0}, r"alpha must be in \(0, 1\], got 0"),
        ({"omega": -1}, "omega must be >= 0 and finite, got -1"),
        ({"resize": "area"}, "resize must be one of nearest, bilinear, got 'area'"),
        ({"region_head": "none"}, "region_head must be one of separate, shared, got 'none'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        _task(**settings)


def test_a_model_without_features_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, K))
    model.num_classes = K
    with pytest.raises(ValueError, match="RecursiveMixTask needs a timm model with forward_features, got Sequential"):
        _task(model=model)


def test_tokens_that_fill_no_grid_are_named():
    model = small_net("vit")
    with pytest.raises(ValueError, match=r"the 15 tokens of VisionTransformer fill no grid over \(64, 64\) px"):
        feature_map(model, torch.zeros(2, 16, 24), (64, 64))
    with pytest.raises(ValueError, match="VisionTransformer has list features; wanted a map or tokens"):
        feature_map(model, [torch.zeros(2, 16, 24)], (64, 64))
    with pytest.raises(ValueError, match=r"has features .*; wanted a map or tokens"):
        feature_map(model, torch.zeros(2, 16), (64, 64))


@pytest.mark.parametrize(
    ("name", "settings", "tokens"),
    [
        ("pit_ti_224", {"base_dims": (8, 8, 8), "heads": (1, 1, 1)}, 1),
        ("pit_ti_distilled_224", {"base_dims": (8, 8, 8), "heads": (1, 1, 1)}, 2),
        ("volo_d1_224", {"device": "meta"}, 197),
    ],
)
def test_a_model_whose_class_token_cannot_be_told_from_places_is_refused_at_once(name, settings, tokens):
    model = timm.create_model(name, num_classes=K, **settings)
    with pytest.raises(
        ValueError, match=rf"the {tokens} tokens of \w+ fill no grid over \(224, 224\) px: take another"
    ):
        _task(model=model)


@pytest.mark.parametrize(("tokens", "rows"), [(16, 4), (4, 2)])
def test_all_tokens_or_squares_of_them_are_a_grid(tokens, rows):
    features = torch.arange(2.0 * (1 + tokens) * 24).view(2, 1 + tokens, 24)
    maps = feature_map(small_net("vit"), features, (64, 64))
    assert torch.equal(maps, features[:, 1:].mT.reshape(2, 24, rows, rows))


@pytest.mark.parametrize("tokens", [1, 12])
def test_some_of_the_tokens_are_no_grid(tokens):
    """4 x 4 places; 12 tokens are what patch_drop_rate=0.25 leaves, and would fill 3 x 4."""
    with pytest.raises(ValueError, match=f"the {tokens} tokens of VisionTransformer fill no grid"):
        feature_map(small_net("vit"), torch.zeros(2, 1 + tokens, 24), (64, 64))


def test_trying_a_model_leaves_it_as_it_was():
    model = small_net("resnet", drop_rate=0.5)
    model.layer2.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    check_feature_map(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("settings", [{"in_chans": 1}, {"device": "meta"}])
def test_a_model_of_other_channels_or_without_weights_is_tried_too(settings, monkeypatch):
    seen = []
    model = small_net("resnet", **settings)
    monkeypatch.setattr(type(model), "forward_features", lambda self, x: seen.append(x.shape) or x[..., 0, 0])
    with pytest.raises(ValueError, match=r"ResNet has features \[1, \d\]; wanted a map or tokens"):
        check_feature_map(model)
    assert seen == [(1, settings.get("in_chans", 3), 224, 224)]
