"""What only a GPU can show; run with `pytest -m gpu` on a machine that has one."""

import copy

import pytest
import timm
import torch

import timm_mix
from timm_mix.tasks import TASKS, task_settings

pytestmark = pytest.mark.gpu

K = 13


def _task(name, **kwargs):
    torch.manual_seed(0)
    example = TASKS[name].facts.example
    wrapped = {"backbone": "wrn16_2", **example.model_settings} if example.model else {}
    model = timm.create_model(example.model or "wrn16_2", num_classes=K, **wrapped)
    model = model.cuda().to(memory_format=torch.channels_last)
    stage = {"reduction": 4} if "reduction" in task_settings(name) else {}
    return timm_mix.create_task(name, model, None, num_classes=K, **stage, **kwargs)


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


def _split(dtype=torch.float32, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model("splitnet", backbone="wrn16_2", split=2, num_classes=K, **kwargs)
    return model.cuda().to(dtype=dtype, memory_format=torch.channels_last).eval()


def _close(actual, expected):
    scale = float(expected.detach().abs().max())
    rtol = 1e-5 if expected.dtype is torch.float32 else 2e-2
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_parallel_parts_give_the_sequential_logits(mode, graph, dtype):
    torch.backends.cudnn.allow_tf32 = False
    model = _split(dtype)
    parallel = copy.deepcopy(model).parallelize(graph=graph)
    with mode():
        for batch in (3, 5, 3):  # another shape, and the first one again
            x = torch.randn(batch, 3, 32, 32, device="cuda", dtype=dtype)
            _close(parallel(x, return_members=True), model(x, return_members=True))
        views = torch.randn(3, 2, 3, 32, 32, device="cuda", dtype=dtype)
        first = parallel(views)
        kept = first.clone()
        parallel(-views)
        torch.testing.assert_close(first, kept, rtol=0, atol=0)  # a replay leaves earlier outputs alone
        _close(first, model(views))


@torch.no_grad()
def test_a_graph_sees_new_weights():
    torch.backends.cudnn.allow_tf32 = False
    model = _split()
    parallel = copy.deepcopy(model).parallelize(graph=True)
    x = torch.randn(3, 3, 32, 32, device="cuda")
    _close(parallel(x), model(x))
    for change in (
        lambda m: m.load_state_dict({k: v * 1.25 if v.is_floating_point() else v for k, v in m.state_dict().items()}),
        lambda m: m.load_state_dict({k: v.clone() for k, v in _split(drop_rate=0.1).state_dict().items()}, assign=True),
        lambda m: (torch.manual_seed(3), m.reset_classifier(7)),
    ):
        change(model), change(parallel)
        model.cuda(), parallel.cuda()
        _close(parallel(x), model(x))


def test_a_graph_follows_autocast_and_gives_way_to_gradients():
    model = _split()
    parallel = copy.deepcopy(model).parallelize(graph=True)
    x = torch.randn(3, 3, 32, 32, device="cuda")
    for dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast("cuda", dtype):
            _close(parallel(x), model(x))
            assert parallel(x).dtype is dtype
    parallel(x).sum().backward()
    assert all(p.grad is not None for p in parallel.parameters())


@torch.no_grad()
def test_parts_on_the_first_and_last_gpu_give_the_sequential_logits():
    last = torch.cuda.device_count() - 1
    torch.backends.cudnn.allow_tf32 = False
    model = _split()
    parallel = copy.deepcopy(model).parallelize(["cuda:0", f"cuda:{last}"])
    assert [next(part.parameters()).device.index for part in parallel.subnets] == [0, last]
    x = torch.randn(3, 3, 32, 32, device="cuda")
    _close(parallel(x), model(x))
    _close(parallel.parallelize(enable=False)(x), model(x))
