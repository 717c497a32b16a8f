"""drop_in over a script that is written as timm's own train script is: every task and mixer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import timm.models
import timm.scheduler
import timm.task
import torch
from drop_in_runs import BATCH, NAMES, RUNS, SCRIPT, STEPS, TRAIN, Run
from PIL import Image
from support.equality import assert_equal_tensors
from support.processes import free_ports
from timm.utils import unwrap_model

from timm_mix.drop_in import Order, Seat, main, parse, run
from timm_mix.mixers import MIXERS
from timm_mix.tasks import TASKS, CoTrainingTask
from timm_mix.tasks.mixer import MixerTask

# timm hands PIL an open file and leaves closing it to the garbage collector.
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"), pytest.mark.slow]

ROOT = Path(__file__).parents[2]
BEFORE = [getattr(module, name) for module, name in NAMES]


def launch(name, images, out, *more):
    """A run in this process; the task it trained."""
    return run(*parse(RUNS[name].arguments(images, out, *more))).task


def create(name, **kwargs):
    model, settings = RUNS[name].model
    return timm.create_model(model, num_classes=10, **settings, **kwargs)


def test_every_task_and_mixer_has_a_run():
    assert set(RUNS) == {*TASKS, *MIXERS}


@pytest.mark.parametrize("name", RUNS)
def test_one_epoch_trains_and_the_checkpoint_loads_in_timm(name, images, tmp_path):
    task = launch(name, images, tmp_path)
    assert type(task) is TASKS.get(name, MixerTask)
    assert (task.step, task.steps_per_epoch, task.total_steps) == (STEPS, STEPS, STEPS)
    loaded = create(name, checkpoint_path=str(tmp_path / "last.pth.tar"))
    if "--model-ema" in RUNS[name].flags:  # what timm loads where a checkpoint has both
        assert_equal_tensors(loaded.state_dict(), unwrap_model(task.get_eval_model(ema=True)).state_dict())
    trained = unwrap_model(task.get_eval_model()).state_dict()
    assert_equal_tensors(torch.load(tmp_path / "last.pth.tar", weights_only=False)["state_dict"], trained)
    loaded.load_state_dict(trained)
    torch.manual_seed(42)  # the script's
    fresh = dict(create(name).named_parameters())
    assert all(not torch.equal(parameter, fresh[key]) for key, parameter in loaded.named_parameters())
    assert [getattr(module, key) for module, key in NAMES] == BEFORE


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_goes_on_drawing_where_it_stopped(name, images, tmp_path):
    whole = launch(name, images, tmp_path / "whole", "--epochs", "2")
    first = tmp_path / "whole" / "checkpoint-0.pth.tar"
    rest = launch(name, images, tmp_path / "rest", "--epochs", "2", "--resume", str(first))
    assert (rest.step, rest.total_steps) == (2 * STEPS, 2 * STEPS)
    assert rest.get_task_state()["rng"] == whole.get_task_state()["rng"]
    assert torch.load(tmp_path / "rest" / "last.pth.tar", weights_only=False)["epoch"] == 1
    before = torch.load(first, weights_only=False)["state_dict"]
    trained = dict(unwrap_model(rest.get_eval_model()).named_parameters())
    assert all(not torch.equal(parameter, before[key]) for key, parameter in trained.items())


THREE_LINES = {
    "import torch\n": "import torch\nimport timm_mix\n",
    "task = ClassificationTask(model=model, criterion=train_loss_fn, device=device, verbose=args.rank == 0)": (
        "task = timm_mix.create_task('mixmo', model, train_loss_fn, num_classes=args.num_classes, seed=args.seed, "
        "steps_per_epoch=len(loader_train), block='cut', prob=0.5)"
    ),
    "    saver = None\n": "    task.set_clock(total_steps=num_epochs * len(loader_train))\n    saver = None\n",
}


def test_the_run_is_that_of_a_script_edited_by_hand(images, tmp_path):
    launch("mixmo", images, tmp_path / "one")
    text = SCRIPT.read_text()
    for old, new in THREE_LINES.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "edited.py").write_text(text)
    arguments = RUNS["mixmo"].arguments(images, tmp_path / "two")
    run(Order(), tmp_path / "edited.py", arguments[arguments.index(str(SCRIPT)) + 1 :])
    one, two = (torch.load(tmp_path / n / "last.pth.tar", weights_only=False) for n in ("one", "two"))
    assert_equal_tensors(one["state_dict"], two["state_dict"])
    assert one["task_state"] == two["task_state"]


def test_without_a_task_or_mixer_the_script_is_its_own(images, tmp_path):
    wanted = Run("", model=RUNS["mixmo"].model)
    assert run(*parse(wanted.arguments(images, tmp_path))).task is None
    assert set(torch.load(tmp_path / "last.pth.tar", weights_only=False)["state_dict"]) == set(
        create("mixmo").state_dict()
    )


def test_draws_follow_the_seed_of_the_script(images, tmp_path):
    tasks = [launch("switch", images, tmp_path / str(seed), "--seed", str(seed)) for seed in (1, 2)]
    assert [task.seed for task in tasks] == [1, 2]
    assert tasks[0].get_task_state()["rng"] != tasks[1].get_task_state()["rng"]


def test_off_epoch_ends_the_mixing(images, tmp_path):
    task = launch("resizemix", images, tmp_path, "--epochs", "2")
    assert task.epoch == 2
    assert task.mixer.mixup_enabled is False


@pytest.mark.parametrize("name", ["mixmo", "recursivemix", "automix", "manifoldmixup", "cutmix"])
def test_the_scripts_own_mixup_off_epoch_ends_the_mixing(name, images, tmp_path):
    task = launch(name, images, tmp_path, "--epochs", "2", "--mixup-off-epoch", "1")
    assert (task.off_epoch, task.epoch, task.mixes) == (1, 2, False)
    assert launch(name, images, tmp_path, "--mixup-off-epoch", "0").off_epoch is None  # timm's 0 is never


class Gradients(torch.utils.data.Dataset):
    """Image i is brighter than image i - 1, and darker on the left than on the right."""

    transform = None

    def __len__(self):
        return 12

    def __getitem__(self, index):
        row = 20 * index + np.linspace(0, 15, 16).astype(np.uint8)
        pixels = np.broadcast_to(row[None, :, None], (16, 16, 3)).astype(np.uint8)
        return self.transform(Image.fromarray(pixels)), index


@pytest.mark.parametrize("prefetcher", [True, False])
@pytest.mark.parametrize("views", [1, 3])
def test_every_part_sees_a_view_of_its_own_of_the_same_image(views, prefetcher, monkeypatch):
    seen = []
    monkeypatch.setattr(CoTrainingTask, "forward", lambda task, input, target: seen.append((input, target)))
    order = Order("cotraining", settings={} if views == 3 else {"views": 1})
    with Seat(order).taken():
        model = timm.models.create_model("splitnet", backbone="wrn16_2", depth=10, split=3, num_classes=10)
        shape = {"input_size": (3, 16, 16), "batch_size": 4, "device": torch.device("cpu")}
        flip_only = {
            "scale": (1.0, 1.0),
            "ratio": (1.0, 1.0),
            "color_jitter": None,
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
        }
        loader = timm.data.create_loader(
            Gradients(), is_training=True, use_prefetcher=prefetcher, num_workers=0, **shape, **flip_only
        )
        task = timm.task.ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
        for input, target in loader:
            assert len(input) == len(target) == views * 4
            task(input, target)
    images = torch.cat([batch for batch, _ in seen])
    target = torch.cat([labels for _, labels in seen])
    assert images.shape == ((12, 3, 3, 16, 16) if views == 3 else (12, 3, 16, 16))
    assert sorted(target.tolist()) == list(range(12))
    means = images.mean((-3, -2, -1)) * 255
    wanted = 20 * target + np.linspace(0, 15, 16).astype(np.uint8).mean()
    assert torch.allclose(means, wanted[:, None].expand_as(means) if views == 3 else wanted, atol=1e-2)
    if views == 3:
        assert any(not torch.equal(image[0], image[1]) for image in images)


def test_a_task_that_the_script_defines_itself_is_left_alone():
    with Seat(Order("mixmo")).taken() as seat:

        class Own(timm.task.ClassificationTask):
            pass

        assert type(Own(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), verbose=False)) is Own
        assert seat.task is None


def test_a_loader_without_a_length_leaves_the_schedules_at_their_start():
    class Stream(torch.utils.data.IterableDataset):
        transform = None

        def __iter__(self):
            yield self.transform(Image.new("RGB", (16, 16))), 0

    with Seat(Order(mixer="mixup")).taken() as seat:
        timm.data.create_loader(
            Stream(), (3, 16, 16), 1, is_training=True, use_prefetcher=False, num_workers=0, device=torch.device("cpu")
        )
        task = timm.task.ClassificationTask(create("mixup"), torch.nn.CrossEntropyLoss(), verbose=False)
        optimizer = torch.optim.SGD(task.parameters(), 0.1)
        _, epochs = timm.scheduler.create_scheduler_v2(optimizer, num_epochs=7)
    assert epochs == seat.epochs == 7
    assert (task.steps_per_epoch, task.total_steps) == (None, None)


def test_help_is_ours_before_the_script_and_the_scripts_after_it(capsys):
    for argv, text in (["--help"], "--mix KEY=VALUE"), (["--task", "mixmo", str(SCRIPT), "--help"], "--kd-model-name"):
        with pytest.raises(SystemExit, match=r"^0$") as error:
            main(argv)
        assert error.value.code == 0
        assert text in capsys.readouterr().out


def test_numbers_of_yaml_and_python_are_numbers():
    order, script, rest = parse(["--task", "mixmo", "--mix", "r=inf", "alpha=1e0", "--mix", "mimo=true", "t.py", "a=b"])
    assert order.settings == {"r": float("inf"), "alpha": 1.0, "mimo": True}
    assert (script, rest) == ("t.py", ["a=b"])


def command(*argv, **kwargs):
    """A finished process: its exit status, what it printed, and its errors."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'train_scripts'}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, *map(str, argv)], env=environment, **pipes, **kwargs) as process:
        try:
            printed, errors = process.communicate(timeout=150)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # a process that waits for another one outlives its launcher
            raise
    return process.returncode, printed, errors


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def test_the_script_runs_as_if_called_itself_and_its_errors_stay_its_own(tmp_path):
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "train.py").write_text(
        "import json, sys\nimport beside\nprint(json.dumps([__name__, sys.argv, sys.path[0], __file__]))\n1 / 0\n"
    )
    arguments = ["-m", "timm_mix.drop_in", "--task", "mixmo", "train.py", "--lr", "1"]
    status, printed, errors = command(*arguments, cwd=tmp_path)
    assert json.loads(printed) == ["__main__", ["train.py", "--lr", "1"], str(tmp_path.resolve()), "train.py"]
    assert status == 1
    assert "Traceback" in errors
    assert errors.strip().endswith("ZeroDivisionError: division by zero")


def test_every_run_and_its_resumption_on_two_processes(images, tmp_path):
    ports = free_ports(2 * len(RUNS))
    status, _, errors = command(*TORCHRUN, ROOT / "tests" / "drop_in" / "drop_in_runs.py", images, tmp_path, *ports)
    assert status == 0, errors
    steps = 2 * (TRAIN // (2 * BATCH))  # two epochs
    for name in RUNS:
        ranks = [torch.load(tmp_path / name / f"rank{rank}.pt") for rank in range(2)]
        for state in ranks:
            assert state["wrapper"] == "DistributedDataParallel"
            assert state["task"]["step"] == state["total"] == steps
        for kind in ("trained", "evaluated"):
            for one, two in zip(*(state[kind] for state in ranks), strict=True):
                assert torch.equal(one, two), (name, kind)
        if name != "cotraining":  # which draws nothing
            assert ranks[0]["task"]["rng"] != ranks[1]["task"]["rng"]
        create(name, checkpoint_path=str(tmp_path / name / "last.pth.tar"))


def test_torchrun_starts_drop_in_itself(images, tmp_path):
    status, _, errors = command(*TORCHRUN, "-m", "timm_mix.drop_in", *RUNS["mixmo"].arguments(images, tmp_path))
    assert status == 0, errors
    assert "task mixmo, epochs: 1, batches in each: 2" in errors
    create("mixmo", checkpoint_path=str(tmp_path / "last.pth.tar"))
