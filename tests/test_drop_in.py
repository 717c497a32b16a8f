"""drop_in over a script that is written as timm's own train script is: every task and mixer, and every mistake."""

import contextlib
import json
import logging
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
import timm.data
import timm.models
import timm.scheduler
import timm.task
import torch
from drop_in_runs import BATCH, PLAIN, RUNS, SCRIPT, STEPS, TRAIN, Run, write_digits
from PIL import Image
from timm.utils import unwrap_model

from timm_mix import _drop_in
from timm_mix.drop_in import main, parse, run
from timm_mix.mixers import MIXERS
from timm_mix.tasks import TASKS, CoTrainingTask
from timm_mix.tasks._mixer import MixerTask

# timm hands PIL an open file and leaves closing it to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

ROOT = Path(__file__).parents[1]
NAMES = [
    *((timm.task, "ClassificationTask"), (timm.task, "LogitDistillationTask"), (timm.data, "Mixup")),
    *((timm.data, "create_loader"), (timm.scheduler, "create_scheduler_v2"), (timm.models, "create_model")),
    *((timm.data, "FastCollateMixup"), (timm, "create_model")),
]
BEFORE = [getattr(module, name) for module, name in NAMES]


@pytest.fixture(autouse=True)
def _logging_as_before():
    """timm's script sets up the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    write_digits(root)
    return root


def launch(name, images, out, *more):
    """A run in this process; the task it trained."""
    return run(*parse(RUNS[name].arguments(images, out, *more))).task


def create(name, **kwargs):
    model, settings = RUNS[name].model
    return timm.create_model(model, num_classes=10, **settings, **kwargs)


def assert_equal_tensors(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


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


@pytest.mark.parametrize("name", ["cutmix", "recursivemix"])
def test_a_resumed_run_goes_on_drawing_where_it_stopped(name, images, tmp_path):
    whole = launch(name, images, tmp_path / "whole", "--epochs", "2")
    launch(name, images, tmp_path / "half")
    last = tmp_path / "half" / "last.pth.tar"
    rest = launch(name, images, tmp_path / "rest", "--epochs", "2", "--resume", str(last))
    assert (rest.step, rest.total_steps) == (2 * STEPS, 2 * STEPS)
    assert rest.get_task_state()["rng"] == whole.get_task_state()["rng"]


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
    run(_drop_in.Order(), tmp_path / "edited.py", arguments[arguments.index(str(SCRIPT)) + 1 :])
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
    order = _drop_in.Order("cotraining", settings={} if views == 3 else {"views": 1})
    with _drop_in.Seat(order).taken():
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
    with _drop_in.Seat(_drop_in.Order("mixmo")).taken() as seat:

        class Own(timm.task.ClassificationTask):
            pass

        assert type(Own(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), verbose=False)) is Own
        assert seat.task is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"collate_fn": list}, "the script has a collate_fn of its own"),
        ({"input_size_choices": [16, 24]}, "co-training's views need one image size"),
    ],
)
def test_a_loader_that_cannot_carry_views_is_refused(arguments, reason):
    with _drop_in.Seat(_drop_in.Order("cotraining")).taken():
        timm.create_model("splitnet", backbone="wrn16_2", depth=10, split=2, num_classes=10)
        with pytest.raises(_drop_in.DropInError, match=reason):
            timm.data.create_loader(Gradients(), (3, 16, 16), 4, is_training=True, **arguments)


def test_what_is_no_classification_of_plain_images_is_refused():
    with _drop_in.Seat(_drop_in.Order(mixer="mixup")).taken():
        with pytest.raises(_drop_in.DropInError, match="NaFlex loader gives no plain images, which mixer mixup needs"):
            timm.data.create_naflex_loader(Gradients())
        with pytest.raises(_drop_in.DropInError, match="timm's MultiLabelClassificationTask and mixer mixup want the"):
            timm.task.MultiLabelClassificationTask(torch.nn.Linear(2, 2))
        with pytest.raises(_drop_in.DropInError, match="mixer mixup needs a timm model with num_classes, got Linear"):
            timm.task.ClassificationTask(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), verbose=False)


def test_a_loader_without_a_length_leaves_the_schedules_at_their_start():
    class Stream(torch.utils.data.IterableDataset):
        transform = None

        def __iter__(self):
            yield self.transform(Image.new("RGB", (16, 16))), 0

    with _drop_in.Seat(_drop_in.Order(mixer="mixup")).taken() as seat:
        timm.data.create_loader(
            Stream(), (3, 16, 16), 1, is_training=True, use_prefetcher=False, num_workers=0, device=torch.device("cpu")
        )
        task = timm.task.ClassificationTask(create("mixup"), torch.nn.CrossEntropyLoss(), verbose=False)
        optimizer = torch.optim.SGD(task.parameters(), 0.1)
        _, epochs = timm.scheduler.create_scheduler_v2(optimizer, num_epochs=7)
    assert epochs == seat.epochs == 7
    assert (task.steps_per_epoch, task.total_steps) == (None, None)


def stopped(capsys, *argv):
    """The one line that main leaves when it ends with status 2."""
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in argv])
    assert error.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    line = lines[-1]
    assert line.startswith("error: ")
    assert not any("Traceback" in other for other in lines)
    return line


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "wanted the path of timm's train.py, got none"),
        (["--task", "mixmo"], "wanted the path of timm's train.py, got none"),
        (["--task", "mixup", SCRIPT], "invalid choice: 'mixup'"),
        (["--mixer", "mixmo", SCRIPT], "invalid choice: 'mixmo'"),
        (["--task", "mixmo", "--mixer", "mixup", SCRIPT], "give --task or --mixer, not both"),
        (["--tasks", "mixmo", SCRIPT], "unrecognized arguments: --tasks;"),
        (["--tasks=mixmo", SCRIPT], "unrecognized arguments: --tasks=mixmo"),
        (["--task", "mixmo", "nowhere/train.py"], "no script 'nowhere/train.py'"),
        (["--task", "mixmo", ROOT], "no script '.*': give the path"),
        (["--task", "mixmo", "--mix", "blok=cut", SCRIPT], "task mixmo has no setting 'blok'; it has alpha, block"),
        (["--task", "mixmo", "--mix", "num_classes=3", SCRIPT], "task mixmo has no setting 'num_classes'"),
        (["--task", "mixmo", "--mix", "views=2", SCRIPT], "task mixmo has no setting 'views'"),
        (["--mix", "alpha=1", SCRIPT], "a run without --task or --mixer has no setting 'alpha'; it has none"),
        (["--mixer", "cutmix", "--mix", "beta=1", SCRIPT], "mixer cutmix has no setting 'beta'; it has alpha"),
        (["--mixer", "cutmix", "--mix", "alpha=-1", SCRIPT], "alpha must be > 0 and finite, got -1"),
        (["--mixer", "cutmix", "--mix", "alpha=[", SCRIPT], "has no yaml value"),
        (["--task", "cotraining", "--mix", "views=0", SCRIPT], "views must be an integer >= 1, got 0"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argv, reason, capsys):
    line = stopped(capsys, *argv)
    assert re.search(reason, line), line


@pytest.mark.parametrize(
    ("name", "flags", "reason"),
    [
        ("mixmo", "--mixup 0.2", "do not go together with task mixmo"),
        ("cutmix", "--cutmix 1 --no-prefetcher", "do not go together with mixer cutmix"),
        ("cutmix", "--kd-model-name resnet18", "timm's LogitDistillationTask and mixer cutmix want the same seat"),
        ("mixup", "--aug-splits 2 --jsd-loss", "timm's JSD loss does not go together with mixer mixup"),
        ("cotraining", "--aug-splits 2", "drop --aug-splits"),
        ("cotraining", "--resplit", "drop --resplit"),
        ("automix", "--epochs 0 --sched none", "total_steps must be an integer >= 1"),
    ],
)
def test_flags_that_fight_with_ours_are_one_line(name, flags, reason, images, tmp_path, capsys):
    assert reason in stopped(capsys, *RUNS[name].arguments(images, tmp_path, *flags.split()))
    assert [getattr(module, key) for module, key in NAMES] == BEFORE


@pytest.mark.parametrize(
    ("ours", "model", "reason"),
    [
        ("--task mixmo", PLAIN, "MixMoTask needs a model with members"),
        ("--task mixmo --mix prob=2", RUNS["mixmo"].model, "prob must be in"),
        (
            "--task cotraining --mix views=3",
            RUNS["cotraining"].model,
            "views must be 1 or 2, one per part",
        ),
        ("--task automix --mix reduction=5", PLAIN, "reduction"),
    ],
)
def test_a_task_that_does_not_fit_the_model_is_one_line(ours, model, reason, images, tmp_path, capsys):
    assert reason in stopped(capsys, *Run(ours, model=model).arguments(images, tmp_path))


def test_a_criterion_for_indices_only_is_one_line(capsys, tmp_path):
    (tmp_path / "train.py").write_text(
        "import timm, torch\nfrom timm.task import ClassificationTask\nmodel = timm.create_model('test_vit')\n"
        "ClassificationTask(model, lambda z, y: torch.nn.functional.nll_loss(z, y))\n"
    )
    line = stopped(capsys, "--mixer", "mixup", tmp_path / "train.py")
    assert "mixed labels need a criterion that takes soft ones" in line


@pytest.mark.parametrize("text", ["pass\n", "import torch, timm.scheduler as s\ns.create_scheduler_v2(None)\n"])
def test_a_script_without_the_seat_is_one_line(text, capsys, tmp_path):
    (tmp_path / "train.py").write_text(text)
    line = stopped(capsys, "--mixer", "mixup", tmp_path / "train.py")
    assert "mixer mixup found no seat" in line


def test_a_timm_without_the_names_is_told_which_versions_work(capsys, monkeypatch):
    monkeypatch.delattr(timm.scheduler, "create_scheduler_v2")
    line = stopped(capsys, "--mixer", "mixup", SCRIPT)
    assert "has no timm.scheduler.create_scheduler_v2; known to work: timm 1.0.31" in line
    assert timm.task.ClassificationTask is BEFORE[0]


def test_several_processes_say_it_once(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        main(["--mixer", "mixup"])
    assert capsys.readouterr().err == ""


def test_help_is_ours_before_the_script_and_the_scripts_after_it(capsys):
    for argv, text in (["--help"], "--mix KEY=VALUE"), (["--task", "mixmo", str(SCRIPT), "--help"], "--kd-model-name"):
        with pytest.raises(SystemExit) as error:
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


def free_ports(count):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


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
    status, _, errors = command(*TORCHRUN, ROOT / "tests" / "drop_in_runs.py", images, tmp_path, *ports)
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
