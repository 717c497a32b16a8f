"""What only a GPU can show; run with `pytest -m gpu` on a machine that has one."""

import pytest
import timm
import torch

import timm_mix
from timm_mix.tasks import TASKS

pytestmark = pytest.mark.gpu

K = 13
MODELS = {"mixmo": ("mixmo_wrn16_2_m2", {}), "cotraining": ("splitnet", {"backbone": "wrn16_2", "split": 2})}


def _task(name, **kwargs):
    torch.manual_seed(0)
    model, settings = MODELS[name]
    model = timm.create_model(model, num_classes=K, **settings).cuda().to(memory_format=torch.channels_last)
    return timm_mix.create_task(name, model, None, num_classes=K, **kwargs)


def _batch():
    images = torch.randn(8, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    return images, torch.randint(K, (8,), device="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TASKS)
def test_a_training_step_is_finite_in_every_precision(name, dtype):
    task = _task(name)
    with torch.autocast("cuda", dtype, enabled=dtype is not torch.float32):
        loss = task(*_batch())["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in task.get_trainable_module().parameters())


@pytest.mark.parametrize("name", TASKS)
def test_a_training_step_never_waits_for_the_device(name):
    task, batch = _task(name, **({"mixup": 0.2} if name == "cotraining" else {})), _batch()
    task(*batch)["loss"].backward()  # the first step may allocate and choose kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        task(*batch)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", TASKS)
def test_a_compiled_step_agrees_with_eager(name):
    batch = _batch()
    eager, compiled = _task(name, seed=3), _task(name, seed=3)
    compiled.compile(fullgraph=True)
    torch.testing.assert_close(compiled(*batch)["loss"], eager(*batch)["loss"], rtol=1e-3, atol=1e-3)


def test_folded_network_agrees_on_the_gpu():
    model = _task("mixmo").get_eval_model().eval().double()
    x = torch.randn(2, 3, 32, 32, device="cuda", dtype=torch.float64)
    torch.testing.assert_close(model.fold()(x), model(x), rtol=1e-10, atol=1e-10)
