"""Every task over every kind of network: it trains, resumes to the bit, agrees under bf16, runs on two processes."""

import io
import math
from pathlib import Path

import pytest
import torch
from support.processes import finish, start
from task_matrix import COLUMNS, RANKS, ROWS, STEPS, batch_of, make_task, optimizer_of, train
from torch.nn import functional as F

from timm_mix.tasks import MIX_BLOCKS, TASKS

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("task_matrix.py")
MATRIX = [pytest.param(row, column, id=f"{row} over {column}") for row in ROWS for column in COLUMNS]


def test_every_task_and_mix_block_has_a_row():
    assert {row.task for row in ROWS.values()} == set(TASKS)
    assert {row.settings.get("block", "automix") for row in ROWS.values() if row.task == "automix"} == set(MIX_BLOCKS)


def test_every_kind_of_network_has_a_column():
    assert [net.name for net in COLUMNS.values()] == [
        *("resnet18_cifar", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
    ]


@pytest.mark.parametrize(("row", "column"), MATRIX)
def test_the_network_learns_a_batch_and_every_parameter_takes_part(row, column):
    task, (x, y) = make_task(row, column), batch_of(column, 1)
    module, plan = task.get_trainable_module(), task.draw(x)  # one draw for all steps
    network = task.get_eval_model(module)  # without the momentum of AutoMix's copy
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    costs, learned = [_cost(network, x, y)], set()
    for _ in range(10):
        task(x, y, plan=plan)["loss"].backward()
        learned |= {name for name, p in module.named_parameters() if p.grad.abs().max() > 0}
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema()
    costs.append(_cost(network, x, y))
    assert costs[1] < 0.8 * costs[0]
    left_out = {name for name, _ in module.named_parameters()} - learned
    assert all(name.endswith(ROWS[row].still or ("no name",)) for name in left_out), left_out


@torch.no_grad()
def _cost(network, x, y):
    """Of the plain images."""
    return F.cross_entropy(network(x), y).item()


def _reloaded(content):
    """From a file that holds tensors and plain values only."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("row", "column"), MATRIX)
def test_a_resumed_task_goes_on_to_the_bit(row, column):
    batches = [batch_of(column, seed) for seed in range(4)]
    one = make_task(row, column)
    own = optimizer_of(one)
    train(one, own, batches[:2])
    saved = _reloaded({"task": one.get_checkpoint_state(), "optimizer": own.state_dict()})
    two = make_task(row, column, seed=9)
    two.load_checkpoint_state(saved["task"]["state_dict"], saved["task"]["task_state"])
    other = optimizer_of(two)
    other.load_state_dict(saved["optimizer"])
    for loss, again in zip(train(one, own, batches[2:]), train(two, other, batches[2:]), strict=True):
        assert torch.equal(loss, again)
    for kind in ("get_trainable_module", "get_eval_model"):
        left, right = (getattr(task, kind)().state_dict() for task in (one, two))
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert torch.equal(value, right[name]), name
    assert one.get_task_state()["rng"] == two.get_task_state()["rng"]


@pytest.mark.parametrize(("row", "column"), MATRIX)
def test_a_task_goes_on_to_the_bit_from_its_state_dict_alone(row, column):
    """As in Lightning, transformers' Trainer and Accelerate's save_state, which know nothing of timm's tasks."""
    batches = [batch_of(column, seed) for seed in range(4)]
    one = make_task(row, column)
    own = optimizer_of(one)
    train(one, own, batches[:2])
    saved = _reloaded({"task": one.state_dict(), "optimizer": own.state_dict()})
    places = [value.untyped_storage().data_ptr() for value in one.state_dict().values() if value.numel()]
    assert len(set(places)) == len(places)  # no tensor twice, as safetensors want it
    two = make_task(row, column, seed=9)
    other = optimizer_of(two)
    two.load_state_dict(saved["task"])
    other.load_state_dict(saved["optimizer"])
    for loss, again in zip(train(one, own, batches[2:]), train(two, other, batches[2:]), strict=True):
        assert torch.equal(loss, again)
    assert one.get_task_state()["rng"] == two.get_task_state()["rng"]
    assert one.step == two.step == 4


@pytest.mark.parametrize(("row", "column"), MATRIX)
def test_nothing_of_the_task_stays_on_the_users_model(row, column):
    task, batch = make_task(row, column), batch_of(column, 1)
    model, before = task.get_eval_model(), None
    for _ in range(2):
        task(*batch)["loss"].backward()
        own = {name for module in model.modules() for name in vars(module)}
        assert before in (None, own)
        before = own
    for module in model.modules():
        assert not [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks]
    file = io.BytesIO()
    torch.save(model.requires_grad_(False), file)  # pickled whole, as torch.save(model) does
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again.eval()(batch[0]), model.eval()(batch[0]))


@pytest.mark.parametrize(("row", "column"), MATRIX)
def test_bf16_autocast_gives_nearly_the_same_loss_and_gradients(row, column):
    losses, norms = [], []
    for enabled in (False, True):
        task = make_task(row, column)
        for seed in range(2):  # of RecursiveMix the second has a history
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                result = task(*batch_of(column, seed))
        result["loss"].backward()
        losses.append(result["loss"].item())
        gradients = [p.grad.float() for p in task.get_trainable_module().parameters()]
        norms.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert norms[1] == pytest.approx(norms[0], rel=0.2)


def test_on_two_processes_all_hold_the_same_weights_and_draw_their_own(tmp_path):
    """All cells in one test: pytest's workers would start the processes again for each of theirs."""
    finish(start(SCRIPT, tmp_path))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]
    assert list(ranks[0]) == list(ranks[1]) == [f"{row} over {column}" for row in ROWS for column in COLUMNS]
    for cell, one in ranks[0].items():
        two = ranks[1][cell]
        assert one["wrapped"], cell
        for kind in ("trained", "evaluated"):
            assert _equal(one[kind], two[kind]).all(), (cell, kind)
        assert not _equal(one["alone"], two["alone"]).all(), cell
        assert _equal(one["alone"], one["trained"]).float().mean() < 0.1, cell
        assert len(one["losses"]) == STEPS
        assert torch.isfinite(torch.stack(one["losses"] + two["losses"])).all(), cell
        assert one["rng"] != two["rng"], cell
        if cell.startswith("recursivemix"):
            assert not torch.equal(one["history"]["images"], two["history"]["images"]), cell


def _equal(one, two):
    """Which of two lists of tensors are the same."""
    return torch.tensor([torch.equal(left, right) for left, right in zip(one, two, strict=True)])
