"""The Manifold Mixup task."""

import numpy as np
import pytest
import torch
from small_nets import NETS, K, batch, small_net
from torch import nn
from torch.nn import functional as F

import timm_mix
from timm_mix.functional.plan import MixPlan

MIX = MixPlan(np.array([3, 0, 4, 1, 2]), np.full(5, 0.3))


def _task(kind="resnet", model=None, **settings):
    return timm_mix.create_task("manifoldmixup", model or small_net(kind), None, num_classes=K, **settings)


def _labels(y):
    return 0.3 * F.one_hot(y, K) + 0.7 * F.one_hot(y[torch.from_numpy(MIX.partner)], K)


def test_mixing_at_a_stage_equals_the_network_cut_in_two():
    model = small_net("resnet").eval()
    (x, y), task = batch(), _task(model=model)
    with torch.no_grad():
        z = model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(x)))))
        z = model.layer2(z)
        z = 0.3 * z + 0.7 * z[torch.from_numpy(MIX.partner)]
        expected = model.forward_head(model.layer4(model.layer3(z)))
        result = task(x, y, (3, MIX))  # the levels are act1, layer1, layer2, ...
    torch.testing.assert_close(result["output"], expected)
    torch.testing.assert_close(result["loss"], -(_labels(y) * expected.log_softmax(1)).sum(1).mean())


def test_stage_0_mixes_the_images():
    model = small_net("resnet").eval()
    (x, y), task = batch(), _task(model=model)
    with torch.no_grad():
        expected = model(0.3 * x + 0.7 * x[torch.from_numpy(MIX.partner)])
        torch.testing.assert_close(task(x, y, (0, MIX))["output"], expected)


@pytest.mark.parametrize("stage", range(5))
def test_lam_one_is_the_plain_network(stage):
    model = small_net("resnet").eval()
    (x, y), task = batch(), _task(model=model)
    with torch.no_grad():
        result = task(x, y, (stage, MixPlan(MIX.partner, np.ones(5))))
        torch.testing.assert_close(result["output"], model(x))
        torch.testing.assert_close(result["loss"], F.cross_entropy(model(x), y))


def test_gradient_checkpointing_is_refused():
    for kind in ("resnet", "convnext", "vit", "swin"):
        model = small_net(kind)
        model.set_grad_checkpointing(True)
        with pytest.raises(ValueError, match="which gradient checkpointing runs twice: drop it"):
            _task(model=model)


def test_gradient_checkpointing_that_is_switched_on_later_is_refused_too():
    task = _task()
    task.trainable_module.set_grad_checkpointing(True)
    with pytest.raises(ValueError, match="which gradient checkpointing runs twice: drop it"):
        task(*batch())


def test_a_stage_that_does_not_run_is_named():
    model = small_net("resnet")
    model.feature_info[1]["module"] = "layer1.0.downsample_that_is_not_called"
    model.layer1[0].downsample_that_is_not_called = nn.Identity()
    task = _task(model=model)
    with pytest.raises(ValueError, match="stage 2 of the network did not run as a module; leave it out of stages"):
        task(*batch(), (2, MIX))


def test_nothing_is_mixed_outside_a_step():
    model = small_net("resnet").eval()
    (x, y), task = batch(), _task(model=model)
    with torch.no_grad():
        before = model(x)
        task(x, y, (2, MIX))
        assert torch.equal(task.get_eval_model()(x), before)


def test_a_failing_step_leaves_nothing_behind():
    model = small_net("resnet").eval()
    (x, y), task = batch(), _task(model=model)
    handle = model.layer4.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        task(x, y, (2, MIX))
    handle.remove()
    fresh = small_net("resnet").eval()
    with torch.no_grad():
        assert torch.equal(model(x), fresh(x))


@pytest.mark.parametrize("kind", NETS)
def test_every_stage_trains_and_bf16_agrees(kind):
    task = _task(kind)
    for stage in task.stages:
        losses = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = task(*batch(), (stage, MIX))["loss"]
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.slow
def test_one_graph_per_stage_is_compiled():
    plain, compiled = _task(), _task()
    compiled.compile(backend="eager", fullgraph=True)
    for stage in (0, 1, 3):
        torch.testing.assert_close(compiled(*batch(), (stage, MIX))["loss"], plain(*batch(), (stage, MIX))["loss"])
    torch.compiler.reset()


def test_stages_are_drawn_alike():
    task = _task(stages=(0, 2, 3))
    drawn = [task.draw(batch()[0])[0] for _ in range(1500)]
    for stage in (0, 2, 3):
        assert drawn.count(stage) / 1500 == pytest.approx(1 / 3, abs=3 * (2 / 9 / 1500) ** 0.5)


def test_wrong_settings_and_models_are_refused():
    with pytest.raises(ValueError, match=r"stages must be some of 0 .. 5, got \(7,\)"):
        _task(stages=(7,))
    with pytest.raises(ValueError, match="alpha must be > 0 and finite, got 0"):
        _task(alpha=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, K))
    model.num_classes = K
    with pytest.raises(ValueError, match="ManifoldMixupTask needs a timm model whose stages are modules"):
        _task(model=model)
