"""Member-parallel training (gloo, on the CPU): a part per process learns what it learns in one process.

Run as a script this file forks the processes: python tests/test_member_parallel.py OUT IMAGES. So torch and timm are
imported once, which takes longer than all that they do.
"""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

import timm_mix
from timm_mix.metrics import evaluate_members
from timm_mix.tasks.member_parallel import gather_members
from train import main
from trainkit.build import build_model, build_optimizer, build_task
from trainkit.config import Config
from trainkit.engine import Trainer
from trainkit.member_parallel import MemberParallel

# timm hands PIL an open file and leaves closing it to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

ROOT = Path(__file__).parents[1]
S, BATCH, SIZE, K, STEPS = 2, 5, 8, 7, 3
WORLDS = {"two processes": 2, "four processes": 4}
BACKBONE = {"backbone": "wrn16_2", "depth": 10, "split": S}
CONFIG = {
    **{"model": "splitnet", "model_kwargs": BACKBONE, "task": "cotraining", "mix": {"weight": 0.5}, "cpu": True},
    **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "seed": 3, "epochs": 1},
}
# what may be set beside: name -> settings of a run
RUNS = {
    "plain": {},
    "clipped and averaged": {"clip_grad": 0.5, "l2_penalty": 1e-3, "model_ema": True, "model_ema_decay": 0.5},
    "accumulated": {"grad_accum_steps": 3},
    "mixed up": {"mix": {"weight": 0.5, "divergence": "kl", "mixup": 0.2}, "smoothing": 0.1},
}


def _config(name):
    return Config(**{**CONFIG, **RUNS[name]})


def _batches(replicas):
    """STEPS batches of a replica: images (a view per part) and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, replicas, BATCH, S, 3, SIZE, SIZE, generator=generator)
    return x, torch.randint(K, (STEPS, replicas, BATCH), generator=generator)


def _trained(name, accelerator):
    """What one process holds before and after STEPS steps of the trainer."""
    config = _config(name)
    parallel = MemberParallel(config, accelerator)
    torch.manual_seed(config.seed)
    model = build_model(config, K, **parallel.model_settings)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    images, target = (part[:, parallel.share] for part in _batches(parallel.shares))
    batches = list(zip(images[:, :, parallel.part], target, strict=True))
    task = build_task(config, model, K, STEPS, **parallel.task_settings)
    optimizer = build_optimizer(config, model)
    trainer = Trainer(config, accelerator, task, optimizer, None, 1, batches, [], {}, parallel=parallel)
    group = config.grad_accum_steps
    sums = [trainer._update(batches[i : i + group], i // group) for i in range(0, STEPS, group)]
    content = {"state_dict": model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    whole = parallel.whole({**content, "task_states": [{"rank": r // S} for r in range(accelerator.num_processes)]})
    alike = MemberParallel(Config(**CONFIG, views=1), accelerator)
    return {
        "place": (parallel.part, parallel.share, parallel.shares),
        "seeds": (parallel.seed_rank, alike.seed_rank),
        "start": start,
        "parameters": {key: value.detach() for key, value in model.named_parameters()},
        "ema": task.get_checkpoint_state(ema=True).get("state_dict_ema"),
        "momenta": len(optimizer.state),
        "wrapped": isinstance(task.trainable_module, DistributedDataParallel),
        "loss": [float(entry["loss"]) for entry in sums],
        "checkpoint": whole if accelerator.is_main_process else None,
        "scores": _scores(model, parallel, batches),
        "batchnorm": {key: value.clone() for key, value in model.named_buffers()},
    }


def _scores(model, parallel, batches):
    parallel.average_batchnorm(model)
    metrics = evaluate_members(parallel.evaluable(model), batches)
    metrics.reduce(parallel.sum_scores)
    return {name: (scores.nll, scores.count) for name, scores in metrics.compute().items()}


def _refusals(accelerator):
    """What processes that do not fit are told."""
    told = {}
    config = Config(**{**CONFIG, "model_kwargs": {**BACKBONE, "split": 3, "divide": False}})
    wrong_part = timm.create_model("splitnet", only_part=1 - accelerator.process_index % S, num_classes=K, **BACKBONE)
    group = MemberParallel(Config(**CONFIG), accelerator).member_group
    three = timm.create_model("splitnet", **{**BACKBONE, "split": 3, "divide": False}, num_classes=K)
    cases = {
        "processes": lambda: MemberParallel(config, accelerator),
        "another part": lambda: timm_mix.create_task("cotraining", wrong_part, num_classes=K, member_group=group),
        "another S": lambda: timm_mix.create_task("cotraining", three, num_classes=K, member_group=group),
    }
    for name, case in cases.items():
        try:
            case()
        except ValueError as error:
            told[name] = str(error)
    return told


def _gathered(accelerator):
    """Logits of this process's part, those of all, and the gradient of a sum in which part i counts 2 + i times."""
    group = MemberParallel(Config(**CONFIG), accelerator).member_group
    generator = torch.Generator().manual_seed(accelerator.process_index)
    own = torch.randn(BATCH, 1, K, generator=generator).bfloat16().requires_grad_()
    members = gather_members(own, group)
    (members * torch.arange(2.0, 2.0 + S)[:, None]).sum().backward()
    return {"own": own.detach(), "members": members.detach(), "gradient": own.grad}


def _stop(*args):
    raise KeyboardInterrupt("stopped")


def _forget_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _interrupted_and_resumed(images, out, ports):
    """The script, stopped after its first epoch and started again; each run makes and ends a process group."""
    report = Trainer._report
    for keep, port in zip((_stop, report), ports, strict=True):
        _forget_accelerator()
        os.environ["MASTER_PORT"] = port
        Trainer._report = keep
        with contextlib.suppress(KeyboardInterrupt):
            main([*_flags(images, out), "--resume", "auto"])


def _place(rank, world, port):
    """What a launcher tells a process."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **{name: str(value) for name, value in place.items()}}


def _work(rank, world, ports, out, images):
    """What one process does."""
    os.environ.update(_place(rank, world, ports[0]))
    accelerator = Accelerator(cpu=True)
    found = {name: _trained(name, accelerator) for name in RUNS}
    found |= {"told": _refusals(accelerator), "gathered": _gathered(accelerator)}
    torch.save(found, out / f"world{world}rank{rank}.pt")
    accelerator.end_training()
    if world == S:
        _interrupted_and_resumed(images, out / "resumed", ports[1:])


def _fork(out, images):
    """All processes of one world after the other."""
    context = multiprocessing.get_context("fork")
    for world in WORLDS.values():
        ports = [_free_port() for _ in range(3)]
        ranks = [context.Process(target=_work, args=(rank, world, ports, out, images)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(1)


def _one_process(name, replicas):
    """The same steps with the whole model in one process; of several replicas the losses are averaged."""
    config = _config(name)
    torch.manual_seed(config.seed)
    model = build_model(config, K)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    tasks = [build_task(config, model, K, STEPS, rank=replica) for replica in range(replicas)]
    task = tasks[0]
    optimizer = build_optimizer(config, model)
    if config.model_ema:
        task.setup_ema(decay=config.model_ema_decay)
    losses = []
    for step, (images, target) in enumerate(zip(*_batches(replicas), strict=True)):
        loss = torch.stack([task(x, y)["loss"] for task, x, y in zip(tasks, images, target, strict=True)]).mean()
        (loss / config.grad_accum_steps).backward()
        losses.append(float(loss.detach()))
        if (step + 1) % config.grad_accum_steps:
            continue
        for parameter in model.parameters():
            parameter.grad += 2 * config.l2_penalty * parameter.detach()
        if config.clip_grad:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=(step + 1) // config.grad_accum_steps)
    ema = task.get_checkpoint_state(ema=True).get("state_dict_ema")
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    return {"start": start, "parameters": parameters, "ema": ema, "losses": losses, "optimizer": optimizer.state_dict()}


def _environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'train_scripts'}", **more}


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """train/ with 21 and val/ with 7 noisy images of two classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, counts in {"train": (11, 10), "val": (3, 4)}.items():
        for label, count in enumerate(counts):
            (root / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 230, (SIZE, SIZE, 3)) + 15 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"class{label}" / f"{number}.png")
    return root


def _finish(*workers):
    try:
        for worker in workers:
            printed = worker.communicate(timeout=150)[0]
            assert worker.returncode == 0, printed
    finally:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)  # a process that waits for another one outlives its parent
            worker.communicate()


def _start(*command, **environment):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, *command], env=_environment(**environment), cwd=ROOT, **pipes)


@pytest.fixture(scope="module")
def out(images, tmp_path_factory):
    """The folder with what all processes left."""
    out = tmp_path_factory.mktemp("ranks")
    _finish(_start(__file__, str(out), str(images)))
    return out


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request, out):
    """What the processes of one or two replicas found."""
    world = WORLDS[request.param]
    return [torch.load(out / f"world{world}rank{rank}.pt", weights_only=True) for rank in range(world)]


def difference(one, two):
    """The largest difference of what `one` holds, relative to the scale of `two`."""
    scale = max(value.abs().max() for value in two.values())
    return float(max((one[name] - two[name]).abs().max() for name in one) / scale)


def test_a_process_holds_its_part_alone(ranks):
    names = {name for name, _ in build_model(_config("plain"), K).named_parameters()}
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
    model = build_model(_config("plain"), K)
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
    model = build_model(_config("plain"), K)
    model.load_state_dict(ranks[0]["plain"]["checkpoint"]["state_dict"])
    for found in ranks[:S]:
        model.load_state_dict(found["plain"]["batchnorm"], strict=False)  # averaged over the replicas
    images, target = _batches(replicas)
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


def _flags(images, out):
    """Of the script: every source of chance, averaged weights, bfloat16."""
    data = ["--data-dir", str(images), "--img-size", str(SIZE), "--aug", "small", "--workers", "0", "--cpu"]
    model = ["--model", "splitnet", "--model-kwargs", "backbone=wrn16_2", "depth=10"]
    chance = ["--drop", "0.2", "--reprob", "0.5"]
    run = ["--task", "cotraining", "--member-parallel", "--batch-size", str(BATCH), "--epochs", "2", "--amp"]
    ema = ["--model-ema", "--model-ema-decay", "0.5"]
    return [*data, *model, *chance, *run, *ema, "--output", str(out), "--experiment", "run"]


@pytest.fixture(scope="module")
def launched(images, tmp_path_factory):
    """The folder of a run of the script on two processes, started as torchrun starts them."""
    out = tmp_path_factory.mktemp("launched")
    port = _free_port()
    _finish(*[_start("train_scripts/train.py", *_flags(images, out), **_place(rank, S, port)) for rank in range(S)])
    return out / "run"


def _checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)


def test_the_script_leaves_the_files_of_an_ordinary_run(launched):
    assert {path.name for path in launched.iterdir()} == {"results.json", "checkpoints", "model"}
    updates = {f"update_{21 // BATCH * epoch:09d}.pt" for epoch in (1, 2)}
    assert {path.name for path in (launched / "checkpoints").iterdir()} == {"last.pt", "best.pt", *updates}
    results = json.loads((launched / "results.json").read_text())
    assert results["hardware"]["processes"] == S
    assert (results["global_batch_size"], results["steps_per_epoch"]) == (BATCH, 21 // BATCH)
    model = timm.create_model(f"local-dir:{launched / 'model'}", pretrained=True)
    assert results["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    for kind in ("eval", "eval_ema"):
        scores = results["last"] if kind == "eval_ema" else results["epochs"][-1][kind]
        assert scores.keys() >= {"member_0", "member_1", "ensemble"}
        assert scores["ensemble"]["count"] == 7


def test_the_saved_model_and_checkpoint_load_as_an_ordinary_splitnet(launched):
    content = _checkpoint(launched)
    published = timm.create_model(f"local-dir:{launched / 'model'}", pretrained=True)
    assert (type(published).__name__, published.only_part, published.num_members) == ("SplitNet", None, S)
    assert list(published.state_dict()) == list(content["state_dict"]) == list(content["state_dict_ema"])
    assert difference(published.state_dict(), content["state_dict_ema"]) == 0
    assert published(torch.randn(3, 3, SIZE, SIZE), return_members=True).shape == (3, S, 2)


def test_one_process_with_the_whole_model_resumes_the_run(launched, images, tmp_path):
    path = launched / "checkpoints" / "last.pt"
    flags = [flag for flag in _flags(images, tmp_path) if flag != "--member-parallel"]
    try:
        results = main([*flags, "--resume", str(path)])
    finally:
        _forget_accelerator()
    assert results["epochs"] == json.loads((launched / "results.json").read_text())["epochs"]
    again = _checkpoint(tmp_path / "run")
    assert again["optimizer"]["param_groups"] == _checkpoint(launched)["optimizer"]["param_groups"]
    assert difference(again["state_dict"], _checkpoint(launched)["state_dict"]) == 0


def test_a_resumed_run_ends_like_an_uninterrupted_one(launched, out):
    whole, resumed = _checkpoint(launched), _checkpoint(out / "resumed" / "run")
    assert [row["epoch"] for row in resumed["progress"]["history"]] == [0, 1]
    for name in ("state_dict", "state_dict_ema"):
        assert list(whole[name]) == list(resumed[name])
        assert difference(whole[name], resumed[name]) == 0, name
    for row, other in zip(whole["progress"]["history"], resumed["progress"]["history"], strict=True):
        assert {**row, "train_seconds": 0} == {**other, "train_seconds": 0}
    assert whole["task_states"] == resumed["task_states"]
    momenta = [content["optimizer"]["state"] for content in (whole, resumed)]
    assert momenta[0].keys() == momenta[1].keys()
    for index, state in momenta[0].items():
        assert torch.equal(state["momentum_buffer"], momenta[1][index]["momentum_buffer"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    _fork(Path(sys.argv[1]), Path(sys.argv[2]))
