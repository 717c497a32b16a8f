"""SplitNet's parts at the same time: the same results, whatever runs them."""

import copy
import pickle
import threading

import pytest
import timm
import torch
from support.networks import fixed_images
from timm.models import GraphExtractNet
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.slow

K, S = 13, 2
TINY = {"backbone": "wrn16_2", "split": S}
FAMILIES = {
    "resnet50": ("splitnet_resnet50_s2", {}, 64),
    "resnet50, 4 parts": ("splitnet_resnet50_s4", {}, 32),
    "seresnet50": ("splitnet_seresnet50_s2", {}, 32),
    "resnext50": ("splitnet_resnext50_32x4d_s2", {}, 32),
    "wrn28_10": ("splitnet_wrn28_10_s8", {}, 16),
    "convnext": ("splitnet", {"backbone": "convnext_atto", "divide": False}, 32),
    "vit": ("splitnet", {"backbone": "vit_tiny_patch16_224", "divide": False, "depth": 2, "img_size": 32}, 32),
}


@pytest.fixture(autouse=True)
def _four_cores():
    """The suite's one thread per process leaves nothing to divide."""
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


def _create(name="splitnet", **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=K, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics of a trained network: no two channels alike
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def _pair(name="splitnet", **kwargs):
    """The same network twice: sequential and in parallel."""
    model = _create(name, **(kwargs or TINY))
    return model, copy.deepcopy(model).parallelize()


def _assert_equal(actual, expected):
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * scale)


def _meet(model):
    """Every part waits until all are running: one after the other, they would wait for ever."""
    barrier = threading.Barrier(len(model.subnets))

    def meet(*_):
        barrier.wait(timeout=20)

    for subnet in model.subnets:
        subnet.register_forward_pre_hook(meet)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_parallel_parts_give_the_sequential_logits(family):
    name, kwargs, size = FAMILIES[family]
    sequential, parallel = _pair(name, **kwargs) if kwargs else _pair(name, in_chans=3)
    x = fixed_images(3, 3, size, size)
    _assert_equal(parallel(x, return_members=True), sequential(x, return_members=True))
    _assert_equal(parallel(x), sequential(x))


def test_all_parts_run_at_the_same_time():
    with torch.inference_mode():
        assert _meet(_create(**TINY).parallelize())(fixed_images(1, 3, 16, 16)).shape == (1, K)


def test_the_cores_are_shared_out_and_the_caller_keeps_its_own():
    model = _create(**TINY).parallelize()
    seen = []
    for subnet in model.subnets:
        subnet.register_forward_hook(lambda *_: seen.append((threading.current_thread(), torch.get_num_threads())))
    model(fixed_images(1, 3, 16, 16))
    assert [cores for _, cores in seen] == [2, 2]
    assert threading.main_thread() not in {thread for thread, _ in seen}
    assert torch.get_num_threads() == 4
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4]


@pytest.mark.parametrize(
    ("parts", "cores", "of_each"), [(2, 1, 1), (2, 2, 1), (4, 2, 1), (3, 2, 2), (3, 3, 1), (2, 5, 5), (8, 6, 3)]
)
def test_no_core_waits_for_the_last_part(parts, cores, of_each):
    """Three parts on two cores, two and then one, would take longer than one by one on both."""
    torch.set_num_threads(cores)
    model = _create(backbone="wrn16_2", split=parts, divide=False).parallelize()
    seen = []
    for subnet in model.subnets:
        subnet.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    model(fixed_images(1, 3, 16, 16))
    assert seen == [of_each] * parts


def test_every_part_still_sees_its_own_view():
    sequential, parallel = _pair()
    views = fixed_images(5, S, 3, 16, 16)
    _assert_equal(parallel(views, return_members=True), sequential(views, return_members=True))
    assert not torch.allclose(parallel(views), parallel(views.flip(1)))


@pytest.mark.parametrize("ensemble", ["softmax", "max"])
def test_every_ensemble_is_the_same(ensemble):
    sequential, parallel = _pair(ensemble=ensemble, **TINY)
    x = fixed_images(3, 3, 16, 16)
    _assert_equal(parallel(x), sequential(x))


def test_features_and_heads_are_the_same():
    sequential, parallel = _pair()
    x = fixed_images(3, 3, 16, 16)
    _assert_equal(parallel.forward_features(x), sequential.forward_features(x))
    _assert_equal(parallel.forward_head(parallel.forward_features(x)), sequential(x))
    final, levels = parallel.forward_intermediates(x)
    final_expected, levels_expected = sequential.forward_intermediates(x)
    for actual, expected in zip([final, *levels], [final_expected, *levels_expected], strict=True):
        _assert_equal(actual, expected)


def test_a_dict_of_features_is_the_same():
    sequential, parallel = _pair(backbone="vit_tiny_patch16_224", divide=False, depth=2, img_size=32)
    x = fixed_images(2, 3, 32, 32)
    actual, expected = (m.forward_intermediates(x, output_dict=True) for m in (parallel, sequential))
    assert list(actual) == list(expected)
    _assert_equal(actual["image_features"], expected["image_features"])
    for ours, theirs in zip(actual["image_intermediates"], expected["image_intermediates"], strict=True):
        _assert_equal(ours, theirs)


def test_devices_are_taken_in_turn(monkeypatch):
    model = _create(backbone="wrn16_2", split=4)
    x = fixed_images(3, 3, 16, 16)
    expected, places = model(x), []
    for subnet in model.subnets:
        monkeypatch.setattr(subnet, "to", lambda device: places.append(device))
    model.parallelize(["cpu:0", "cpu"])
    assert places == [torch.device("cpu:0"), torch.device("cpu")] * 2
    _assert_equal(model(x), expected)


def test_undo_gathers_the_parts_on_the_first_device():
    model = _create(**TINY).parallelize(["cpu", "meta"])
    assert [next(subnet.parameters()).device.type for subnet in model.subnets] == ["cpu", "meta"]
    model.parallelize(["meta", "meta"]).subnets[1].to_empty(device="cpu")
    model.parallelize(enable=False)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_autocast_reaches_the_threads(memory_format):
    sequential, parallel = (model.to(memory_format=memory_format) for model in _pair())
    x = fixed_images(3, 3, 16, 16).contiguous(memory_format=memory_format)
    dtypes = []
    parallel.subnets[1].conv1.register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(parallel(x), sequential(x), rtol=0, atol=0)
    parallel(x)
    assert dtypes == [torch.bfloat16, torch.float32]


def test_gradient_and_inference_modes_reach_the_threads():
    model = _create(**TINY).parallelize()
    x = fixed_images(2, 3, 16, 16)
    modes = []
    model.subnets[1].register_forward_hook(
        lambda *_: modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
    )
    outputs = [model(x)]
    with torch.no_grad():
        outputs.append(model(x))
    with torch.inference_mode():
        outputs.append(model(x))
    outputs.append(model(x))
    assert modes == [(True, False), (False, False), (False, True), (True, False)]
    assert [(out.requires_grad, out.is_inference()) for out in outputs] == modes


def test_gradients_flow_in_evaluation():
    sequential, parallel = _pair()
    x = fixed_images(3, 3, 16, 16)
    for model in (sequential, parallel):
        model(x).square().sum().backward()
    for actual, expected in zip(parallel.parameters(), sequential.parameters(), strict=True):
        _assert_equal(actual.grad, expected.grad)


def test_training_is_sequential_and_exact():
    sequential, parallel = _pair(drop_rate=0.3, **TINY)
    x = fixed_images(4, 3, 16, 16)
    seen = []
    for subnet in parallel.subnets:
        subnet.register_forward_hook(lambda *_: seen.append(threading.current_thread()))
    for model in (sequential, parallel):
        torch.manual_seed(3)  # dropout
        model.train()(x).square().sum().backward()
    assert seen == [threading.main_thread()] * S
    for actual, expected in zip(parallel.parameters(), sequential.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=0, atol=0)
    for actual, expected in zip(parallel.buffers(), sequential.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_an_error_in_a_thread_surfaces_as_itself():
    class BrokenError(Exception):
        pass

    def fail(*_):
        raise BrokenError("part 1")

    model = _create(**TINY).parallelize()
    hook = model.subnets[1].register_forward_hook(fail)
    x = fixed_images(1, 3, 16, 16)
    with pytest.raises(BrokenError, match="part 1"):
        model(x)
    hook.remove()
    assert model(x).shape == (1, K)


def test_new_weights_are_seen_at_once():
    sequential, parallel = _pair()
    x = fixed_images(3, 3, 16, 16)
    before = parallel(x)
    other = {key: value * 1.5 if value.is_floating_point() else value for key, value in sequential.state_dict().items()}
    for model in (sequential, parallel):
        model.load_state_dict(other)
    _assert_equal(parallel(x), sequential(x))
    assert not torch.allclose(parallel(x), before)
    for model in (sequential, parallel):
        torch.manual_seed(5)
        model.reset_classifier(7)
    _assert_equal(parallel(x), sequential(x))


def test_a_part_that_lies_in_another_process_is_refused():
    model = _create(**TINY)
    model.subnets[1] = torch.nn.Identity()
    with pytest.raises(ValueError, match="needs all 2 parts in this process, but part 1 has no weights"):
        model.parallelize()


def test_undo_makes_it_sequential_again():
    model = _create(**TINY).parallelize().parallelize(enable=False)
    seen = []
    for subnet in model.subnets:
        subnet.register_forward_hook(lambda *_: seen.append(threading.current_thread()))
    model(fixed_images(1, 3, 16, 16))
    assert seen == [threading.main_thread()] * S


def test_the_state_dict_is_what_it_was():
    sequential, parallel = _pair()
    parallel(fixed_images(1, 3, 16, 16))
    assert list(parallel.state_dict()) == list(sequential.state_dict())
    sequential.load_state_dict(parallel.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_parallel_too(copied):
    model = _create(**TINY).parallelize()
    x = fixed_images(1, 3, 16, 16)
    expected = model(x)  # with threads that are running
    other = copied(model)
    _assert_equal(other(x), expected)
    assert _meet(other)(x).shape == (1, K)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # deprecated, but timm's suite asks for it
def test_a_traced_or_scripted_parallel_model_is_sequential():
    sequential, parallel = _pair()
    x = fixed_images(3, 3, 16, 16)
    expected = sequential(x)
    outputs = GraphExtractNet(parallel, [f"subnets.{i}.fc" for i in range(S)])(x)  # torch.fx
    _assert_equal(torch.stack(outputs, 1), sequential(x, return_members=True))
    for recorded in (torch.jit.script(parallel), torch.jit.trace(parallel, x, check_trace=False)):
        _assert_equal(recorded(x), expected)
    with torch.inference_mode():
        _assert_equal(torch.compile(parallel, fullgraph=True, backend="eager")(x), expected)


def test_modes_that_watch_one_thread_see_all_parts():
    sequential, parallel = _pair()
    counts = []
    for model in (sequential, parallel):
        with FlopCounterMode(display=False) as counter:
            model(fixed_images(1, 3, 16, 16))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@torch.no_grad()
def test_function_transforms_reach_all_parts():
    sequential, parallel = _pair()
    x = fixed_images(2, 3, 3, 16, 16)
    _assert_equal(torch.vmap(parallel)(x), torch.stack([sequential(part) for part in x]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"devices": []}, r"devices must be a list of one or more devices .*, got \[\]"),
        ({"devices": "cpu"}, "devices must be a list of one or more devices .*, got 'cpu'"),
        ({"devices": ["cpu", "cuda:99"]}, r"devices must exist, got cuda:99 on a machine with \d+ GPUs"),
        ({"devices": ["gpu"]}, "devices must be names such as 'cpu' or 'cuda:0', got 'gpu'"),
        ({"devices": ["cpu", None]}, "devices must be names such as 'cpu' or 'cuda:0', got None"),
        ({"devices": ["cpu"], "enable": False}, "enable=False gathers the parts .* takes no devices and no graph"),
        ({"graph": True, "enable": False}, "enable=False gathers the parts .* takes no devices and no graph"),
    ],
)
def test_wrong_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        _create(**TINY).parallelize(**kwargs)
