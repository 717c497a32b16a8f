"""The optimizer's state of a run: that of the parts, and that of the whole."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch.utils.data import IterableDataset

from timm_mix.tasks.member_parallel import member_mesh
from timm_mix.train.errors import UsageError
from timm_mix.train.loop.member_parallel import MemberParallel, merge_optimizers, part_of_optimizer

S, K = 2, 7
KWARGS = {"backbone": "wrn16_2", "depth": 10, "split": S, "num_classes": K}


def _stepped(opt, **settings):
    """The model and its optimizer after a step; `settings` may ask for one part."""
    groups = {name: settings.pop(name) for name in ("weight_decay", "layer_decay") if name in settings}
    torch.manual_seed(0)
    model = timm.create_model("splitnet", **KWARGS, **settings)
    optimizer = create_optimizer_v2(model, opt, lr=0.1, **groups)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(index))
    optimizer.step()
    return optimizer


def _flat(state):
    return {(index, name): value for index, row in state["state"].items() for name, value in row.items()}


@pytest.mark.parametrize("groups", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "layer_decay": 0.5}])
@pytest.mark.parametrize("opt", ["momentum", "adamw"])
def test_the_states_of_the_parts_make_that_of_the_whole(opt, groups):
    whole = _stepped(opt, **groups).state_dict()
    parts = [part_of_optimizer(whole, part, S) for part in range(S)]
    for part, state in enumerate(parts):
        own = _stepped(opt, only_part=part, **groups)
        assert [group["params"] for group in state["param_groups"]] == [
            group["params"] for group in own.state_dict()["param_groups"]
        ]
        own.load_state_dict(state)
        for (key, value), wanted in zip(_flat(own.state_dict()).items(), _flat(state).values(), strict=True):
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(wanted)), key
    again = merge_optimizers(parts)
    assert again["param_groups"] == whole["param_groups"]
    one, two = _flat(again), _flat(whole)
    assert list(one) == list(two)
    assert all(one[key] is two[key] for key in one)


def test_a_state_of_another_model_is_an_error():
    with pytest.raises(ValueError, match="3 parameters of a group do not divide into 2 equal parts"):
        part_of_optimizer({"state": {}, "param_groups": [{"params": [0, 1, 2]}]}, 0, 2)


def test_one_process_holds_no_two_parts():
    with pytest.raises(ValueError, match="2 parts need a multiple of 2 processes, got 1: start 2"):
        member_mesh(2)


def test_a_stream_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield 0

    with pytest.raises(UsageError, match="member_parallel needs data that can be read by index, got a stream"):
        MemberParallel.check_data([0], Stream())
