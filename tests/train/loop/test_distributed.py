"""Two processes on the CPU (gloo): their gradients are those of one process, and the script writes one set of files.

Run as a script this file is one of the two processes: python tests/test_distributed.py OUT
"""

import json
import math
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from support.noisy_images import write_noise
from support.processes import finish, free_ports, place, start
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import timm_mix
from timm_mix.train.data.sources import open_dataset
from timm_mix.train.data.transforms import create_transform
from timm_mix.train.loop.trainer import Trainer
from timm_mix.train.settings.config import Config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "train_scripts" / "recipes" / "digits" / "mixmo_wrn16_2_m2.yaml"
RANKS, BATCH, SIZE, K = 2, 5, 16, 7
UPDATE = f"update_{34 // (2 * 4):09d}.pt"
VALIDATION = 13  # odd: the two processes evaluate 7 and 6
TASKS = {"mixmo": "mixmo_wrn16_2_m2", "cotraining": "splitnet"}
LR = 1e3  # an update is then large against the rounding of the weights


def _model(name):
    torch.manual_seed(0)
    kwargs = {"backbone": "wrn16_2", "split": 2} if name == "cotraining" else {}
    return timm.create_model(TASKS[name], num_classes=K, **kwargs)


def _task(name, model, rank=None):
    settings = {"prob": 0.5} if name == "mixmo" else {"weight": 0.5}
    return timm_mix.create_task(name, model, num_classes=K, seed=3, rank=rank, verbose=False, **settings)


def _global_batch(name, seed):
    """Images (one view per part for co-training) and labels of all ranks: [RANKS * BATCH, ...]."""
    generator = torch.Generator().manual_seed(seed)
    views = (2,) if name == "cotraining" else ()
    x = torch.randn(RANKS * BATCH, *views, 3, SIZE, SIZE, generator=generator)
    return x, torch.randint(K, (RANKS * BATCH,), generator=generator)


def _share(batch, rank):
    return tuple(part[rank * BATCH : (rank + 1) * BATCH] for part in batch)


def _gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def _work(out):
    """What one of the two processes does."""
    accelerator = Accelerator(cpu=True)
    rank, found = accelerator.process_index, {}
    for name in TASKS:
        model = _model(name)
        task = _task(name, model)
        task.trainable_module = accelerator.prepare(model)
        result = task(*_share(_global_batch(name, 1), rank))
        accelerator.backward(result["loss"])
        found[name] = {
            "gradients": _gradients(model),
            "wrapped": isinstance(task.trainable_module, DistributedDataParallel),
            "loss": float(result["loss"].detach()),
            "updated": _update(name, accelerator),
        }
    found["automix"] = _prepared_automix(rank)
    found["automix"]["gradients"] = _automix_gradients(rank, prepared=True)
    torch.save(found, out / f"rank{rank}.pt")
    accelerator.end_training()


def _prepared_automix(rank):
    """The momentum copy of a process that, as in timm's script, seeded its weights and draws with its rank."""
    torch.manual_seed(rank)
    model = timm.create_model("wrn16_2", num_classes=K)
    model.to(memory_format=torch.channels_last)
    settings = {"reduction": 2, "one_hot_prob": 0.5, "switch_off": 0.5, "seed": 40 + rank}
    task = timm_mix.create_task("automix", model, num_classes=K, verbose=False, **settings).prepare_distributed()
    images = torch.zeros(BATCH, 3, SIZE, SIZE)
    skipped = []
    for task.step in range(20):
        skipped.append([task.draw(images).switched_off, not task.passes(task.step)[1]])
    online = task.get_trainable_module().module.two
    same = all(torch.equal(a, b) for a, b in zip(online.parameters(), task.follower.parameters(), strict=True))
    return {"weights": task.get_eval_model().state_dict(), "same": same, "skipped": skipped}


def _automix_gradients(rank, prepared=False):
    """Of two accumulated batches of one rank; in a prepared task they are the mean over the ranks."""
    torch.manual_seed(0)
    model = timm.create_model("wrn16_2", num_classes=K)
    task = timm_mix.create_task("automix", model, num_classes=K, reduction=2, seed=3, rank=rank, verbose=False)
    if prepared:
        task.prepare_distributed()
    with task.get_trainable_module().no_sync() if prepared else nullcontext():
        task(*_share(_global_batch("automix", 1), rank))["loss"].backward()
    task(*_share(_global_batch("automix", 2), rank))["loss"].backward()
    return _gradients(task.get_trainable_module().module if prepared else task.get_trainable_module())


def _update(name, accelerator):
    """The weights after one update of the trainer over two accumulated batches."""
    model = _model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    group = [_share(_global_batch(name, seed), accelerator.process_index) for seed in (1, 2)]
    config = Config.of(grad_accum_steps=2, cpu=True)
    trainer = Trainer(config, accelerator, _task(name, model), optimizer, None, 1, group, [], {})
    trainer._update(group, 0)
    return {key: parameter.detach() for key, parameter in model.named_parameters()}


def _one_process(name, seeds):
    """Both ranks' work in one process, their losses averaged: the gradients, and those of rank 0 alone."""
    model = _model(name)
    tasks = [_task(name, model, rank=rank) for rank in range(RANKS)]
    losses = [task(*_share(_global_batch(name, seed), task.rank))["loss"] for seed in seeds for task in tasks]
    losses[0].backward(retain_graph=True)
    alone = _gradients(model)
    model.zero_grad()
    torch.stack(losses).mean().backward()
    return _gradients(model), alone, [float(loss.detach()) for loss in losses]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes found."""
    out = tmp_path_factory.mktemp("ranks")
    [port] = free_ports(1)
    finish(*[start(__file__, out, **place(rank, RANKS, port)) for rank in range(RANKS)])
    return [torch.load(out / f"rank{rank}.pt") for rank in range(RANKS)]


def difference(one, two):
    """The largest difference, relative to the scale of `two`."""
    scale = max(value.abs().max() for value in two.values())
    return float(max((one[name] - two[name]).abs().max() for name in two) / scale)


@pytest.mark.parametrize("name", TASKS)
def test_gradients_of_two_processes_are_those_of_one(name, ranks):
    wanted, alone, losses = _one_process(name, seeds=(1,))
    assert [found[name]["wrapped"] for found in ranks] == [True, True]
    assert [found[name]["loss"] for found in ranks] == pytest.approx(losses, rel=1e-6)
    for found in ranks:
        assert difference(found[name]["gradients"], wanted) < 1e-6
    assert difference(alone, wanted) > 1e-2  # the second process counts


@pytest.mark.parametrize("name", TASKS)
def test_an_update_over_two_processes_and_two_batches_takes_the_mean_of_four_gradients(name, ranks):
    wanted, _, _ = _one_process(name, seeds=(1, 2))
    start = dict(_model(name).named_parameters())
    for found in ranks:
        moved = {key: (start[key].detach() - value) / LR for key, value in found[name]["updated"].items()}
        assert difference(moved, wanted) < 1e-6


def test_the_momentum_copies_of_all_processes_start_from_rank_0_and_skip_the_same_passes(ranks):
    one, two = (found["automix"] for found in ranks)
    assert one["same"]
    assert two["same"]
    for name, value in one["weights"].items():
        assert torch.equal(value, two["weights"][name]), name
    assert one["skipped"] == two["skipped"]
    assert {True, False} == {switched_off for switched_off, _ in one["skipped"]}


def test_automix_gradients_of_two_processes_are_the_mean_over_their_shares(ranks):
    """Those that were taken before the mixed pass, too."""
    alone = [_automix_gradients(rank) for rank in range(RANKS)]
    wanted = {name: (one + alone[1][name]) / 2 for name, one in alone[0].items()}
    for found in ranks:
        assert difference(found["automix"]["gradients"], wanted) < 1e-5
    assert difference(alone[0], wanted) > 1e-2


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """train/ with 34 and val/ with 13 noisy images of two classes; RANKS * batch divides neither."""
    return write_noise(tmp_path_factory.mktemp("images"), SIZE, {"train": (17, 17), "val": (6, 7)})


# writes down which process gives a file its final name
WATCH = """
import os, sys

def _watch(event, args):
    if event == "os.rename":
        with open(os.environ["RENAMES"], "a") as log:
            log.write(f"{os.environ['RANK']} {args[1]}\\n")

sys.addaudithook(_watch)
"""


@pytest.fixture(scope="module")
def launched(images, tmp_path_factory):
    """A run of the script on two processes."""
    out = tmp_path_factory.mktemp("launched")
    (out / "watch").mkdir()
    (out / "watch" / "sitecustomize.py").write_text(WATCH)
    # with the launcher's own --cpu accelerate would start a single process, unless there is mpirun
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(RANKS), "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", *free_ports(1)]
    recipe = ["--config", str(RECIPE), "--dataset", "", "--data-dir", str(images), "--img-size", str(SIZE)]
    small = ["--epochs", "1", "--warmup-epochs", "0", "--batch-size", "4", "--batch-repeats", "1", "--workers", "0"]
    flags = [*recipe, *small, "--model-ema", "--model-ema-decay", "0.5", "--cpu"]
    paths = os.pathsep.join(map(str, (out / "watch", ROOT, ROOT / "train_scripts")))
    where = ["--output", out, "--experiment", "run"]
    finish(start(*launcher, "train_scripts/train.py", *flags, *where, PYTHONPATH=paths, RENAMES=str(out / "renames")))
    return out


def test_the_script_trains_on_two_processes_and_counts_every_validation_image_once(launched):
    found = list(launched.rglob("results.json"))
    assert found == [launched / "run" / "results.json"]
    results = json.loads(found[0].read_text())
    assert results["hardware"]["processes"] == RANKS
    assert results["global_batch_size"] == RANKS * 4
    assert results["steps_per_epoch"] == 34 // (RANKS * 4)
    assert len(results["epochs"]) == 1
    for kind in ("eval", "eval_ema"):
        assert {scores["count"] for scores in results["epochs"][0][kind].values()} == {VALIDATION}


def test_only_the_main_process_writes(launched):
    renames = [line.split(" ", 1) for line in (launched / "renames").read_text().splitlines()]
    ours = [(rank, Path(path).name) for rank, path in renames if path.startswith(str(launched))]
    assert {name for _, name in ours} == {"last.pt", "best.pt", UPDATE, "results.json", "model"}
    assert {rank for rank, _ in ours} == {"0"}, ours
    assert {path.name for path in (launched / "run").iterdir()} == {"results.json", "checkpoints", "model"}


def test_the_checkpoint_holds_the_generators_of_both_processes(launched):
    states = torch.load(launched / "run" / "checkpoints" / "last.pt", weights_only=True)["task_states"]
    assert [state["rank"] for state in states] == [0, 1]
    assert states[0]["rng"] != states[1]["rng"]


@pytest.mark.parametrize(("kind", "key"), [("eval", "state_dict"), ("eval_ema", "state_dict_ema")])
def test_figures_of_two_processes_are_those_of_the_saved_weights(kind, key, launched, images):
    """Every process gathers its own BatchNorm statistics: they must be one before they are scored and saved."""
    results = json.loads((launched / "run" / "results.json").read_text())
    model = timm.create_model(f"local-dir:{launched / 'run' / 'model'}", pretrained=True).eval()
    saved = torch.load(launched / "run" / "checkpoints" / "last.pt", weights_only=True)
    if kind == "eval_ema":
        for name, tensor in saved[key].items():  # published
            assert torch.equal(model.state_dict()[name], tensor), name
    model.load_state_dict(saved[key])
    transform = create_transform("none", timm.data.resolve_data_config({}, model=model), training=False)
    nll = []
    with torch.no_grad():
        for image, label in open_dataset("", images, "val"):
            nll.append(-F.log_softmax(model(transform(image)[None])[0].double(), 0)[label].item())
    assert len(nll) == VALIDATION
    assert results["epochs"][0][kind]["ensemble"]["nll"] == pytest.approx(math.fsum(nll) / VALIDATION, rel=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _work(Path(sys.argv[1]))
