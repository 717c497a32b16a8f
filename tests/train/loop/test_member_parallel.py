"""Member-parallel training (gloo, on the CPU): a part per process learns what it learns in one process."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from member_parallel_runs import BATCH, RUNS, STEPS, WORLDS, K, S, batches_of, config_of, difference
from support.processes import finish, start
from support.settings import task_of

from timm_mix.metrics import evaluate_members
from timm_mix.train.loop.build import build_model, build_optimizer

pytestmark = pytest.mark.slow


def _one_process(name, replicas):
    """The same steps with the whole model in one process; of several replicas the losses are averaged."""
    config = config_of(name)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, K)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    tasks = [task_of(config, model, K, STEPS, rank=replica) for replica in range(replicas)]
    task = tasks[0]
    optimizer = build_optimizer(config.optimise, model)
    if config.optimise.model_ema:
        task.setup_ema(decay=config.optimise.model_ema_decay)
    losses = []
    for step, (images, target) in enumerate(zip(*batches_of(replicas), strict=True)):
        loss = torch.stack([task(x, y)["loss"] for task, x, y in zip(tasks, images, target, strict=True)]).mean()
        (loss / config.optimise.grad_accum_steps).backward()
        losses.append(float(loss.detach()))
        if (step + 1) % config.optimise.grad_accum_steps:
            continue
        for parameter in model.parameters():
            parameter.grad += 2 * config.optimise.l2_penalty * parameter.detach()
        if config.optimise.clip_grad:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimise.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=(step + 1) // config.optimise.grad_accum_steps)
    ema = task.get_checkpoint_state(ema=True).get("state_dict_ema")
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    return {"start": start, "parameters": parameters, "ema": ema, "losses": losses, "optimizer": optimizer.state_dict()}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder with what all processes left."""
    out = tmp_path_factory.mktemp("ranks")
    finish(start(Path(__file__).with_name("member_parallel_runs.py"), "steps", out))
    return out


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request, out):
    """What the processes of one or two replicas found."""
    world = WORLDS[request.param]
    return [torch.load(out / f"world{world}rank{rank}.pt", weights_only=True) for rank in range(world)]


def test_a_process_holds_its_part_alone(ranks):
    names = {name for name, _ in build_model(config_of("plain").model, K).named_parameters()}
    for rank, found in enumerate(ranks):
        own = {name for name in names if name.startswith(f"subnets.{rank % S}.")}
        assert own == set(found["plain"]["parameters"])
        assert found["plain"]["momenta"] == len(own) == len(names) // S


def test_consecutive_processes_hold_a_replica_and_see_the_same_images(ranks):
    for rank, found in enumerate(ranks):
        assert found["plain"]["place"] == (rank % S, rank // S, len(ranks) // S)


def test_every_part_draws_its_own_view_unless_one_is_asked_for_all(ranks):
    assert [found["plain"]["seeds"] for found in ranks] == [(rank, rank // S) for rank in range(len(ranks))]


def test_a_part_starts_with_the_weights_that_it_has_in_one_process(ranks):
    wanted = _one_process("plain", 1)["start"]
    for found in ranks:
        assert difference(found["plain"]["start"], wanted) == 0


@pytest.mark.parametrize("name", RUNS)
def test_parameters_after_three_steps_are_those_of_one_process(name, ranks):
    replicas = len(ranks) // S
    wanted = _one_process(name, replicas)
    for found in ranks:
        assert found[name]["wrapped"] == (replicas > 1)
        assert difference(found[name]["parameters"], wanted["parameters"]) < 1e-6
        if wanted["ema"]:
            averaged = {key: found[name]["ema"][key] for key in found[name]["parameters"]}
            assert difference(averaged, wanted["ema"]) < 1e-6
    moved = {key: wanted["start"][key] for key in wanted["parameters"]}
    assert difference(moved, wanted["parameters"]) > 1e-3  # the steps count


def test_the_parts_of_a_replica_report_the_loss_of_the_whole(ranks):
    replicas = len(ranks) // S
    wanted = _one_process("plain", replicas)["losses"]
    for replica in range(replicas):
        assert ranks[S * replica]["plain"]["loss"] == ranks[S * replica + 1]["plain"]["loss"]
    mean = np.mean([found["plain"]["loss"] for found in ranks], axis=0)
    assert mean.tolist() == pytest.approx(wanted, rel=1e-6)


def test_the_checkpoint_is_that_of_one_process(ranks):
    replicas = len(ranks) // S
    wanted, found = _one_process("plain", replicas), ranks[0]["plain"]["checkpoint"]
    model = build_model(config_of("plain").model, K)
    assert list(found["state_dict"]) == list(model.state_dict())
    model.load_state_dict(found["state_dict"])
    assert found["task_states"] == [{"rank": replica} for replica in range(replicas)]
    groups = [group["params"] for group in found["optimizer"]["param_groups"]]
    assert groups == [group["params"] for group in wanted["optimizer"]["param_groups"]]
    one, two = (
        {index: state["momentum_buffer"] for index, state in optimizer["state"].items()}
        for optimizer in (found["optimizer"], wanted["optimizer"])
    )
    assert list(one) == list(two)
    assert difference(one, two) < 1e-6


def test_every_process_scores_all_members_and_the_ensemble(ranks):
    replicas = len(ranks) // S
    model = build_model(config_of("plain").model, K)
    model.load_state_dict(ranks[0]["plain"]["checkpoint"]["state_dict"])
    for found in ranks[:S]:
        model.load_state_dict(found["plain"]["batchnorm"], strict=False)  # averaged over the replicas
    images, target = batches_of(replicas)
    batches = zip(images.flatten(0, 1), target.flatten(0, 1), strict=True)
    for name, scores in evaluate_members(model, batches).compute().items():
        for found in ranks:
            assert found["plain"]["scores"][name] == (pytest.approx(scores.nll, rel=1e-5), scores.count)
            assert found["plain"]["scores"] == ranks[0]["plain"]["scores"]  # to the bit: all decide alike on the best


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("processes", "cannot train member-parallel: with a part per process, 3 parts need a multiple of 3 processes"),
        ("another part", r"must hold part \d alone \(only_part=\d\), got \d"),
        ("another S", "member_group must have a process for each of 3 parts, got 2"),
    ],
)
def test_processes_that_do_not_fit_are_told_what_was_wanted(case, line, ranks):
    for found in ranks:
        assert re.search(line, found["told"][case]), found["told"][case]


def test_logits_are_gathered_in_float32_and_gradients_flow_to_ones_own(ranks):
    for rank, found in enumerate(ranks):
        gathered = found["gathered"]
        first = rank // S * S
        assert gathered["members"].dtype == torch.float32
        assert gathered["members"].shape == (BATCH, S, K)
        for part in range(S):
            assert torch.equal(gathered["members"][:, part : part + 1], ranks[first + part]["gathered"]["own"].float())
        assert torch.equal(gathered["gradient"], torch.full((BATCH, 1, K), 2.0 + rank % S, dtype=torch.bfloat16))
