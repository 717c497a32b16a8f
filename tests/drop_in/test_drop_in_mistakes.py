"""Mistakes with drop_in: one line, exit status 2, no traceback."""

import re
import sys
from pathlib import Path

import pytest
import timm
import timm.data
import timm.scheduler
import timm.task
import torch
from drop_in_runs import NAMES, PLAIN, RUNS, SCRIPT, Run

from timm_mix.drop_in import DropInError, Order, Seat, main, parse
from timm_mix.mixers import MIXERS

# timm hands PIL an open file and leaves closing it to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

ROOT = Path(__file__).parents[2]
BEFORE = [getattr(module, name) for module, name in NAMES]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"collate_fn": list}, "the script has a collate_fn of its own"),
        ({"input_size_choices": [16, 24]}, "the members' views need one image size"),
    ],
)
def test_a_loader_that_cannot_carry_views_is_refused(arguments, reason):
    with Seat(Order("cotraining")).taken():
        timm.create_model("splitnet", backbone="wrn16_2", depth=10, split=2, num_classes=10)
        with pytest.raises(DropInError, match=reason):
            timm.data.create_loader([], (3, 16, 16), 4, is_training=True, **arguments)


def test_what_is_no_classification_of_plain_images_is_refused():
    with Seat(Order(mixer="mixup")).taken():
        with pytest.raises(DropInError, match="NaFlex loader gives no plain images, which mixer mixup needs"):
            timm.data.create_naflex_loader([])
        with pytest.raises(DropInError, match="timm's MultiLabelClassificationTask and mixer mixup want the"):
            timm.task.MultiLabelClassificationTask(torch.nn.Linear(2, 2))
        with pytest.raises(DropInError, match="mixer mixup needs a timm model with num_classes, got Linear"):
            timm.task.ClassificationTask(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), verbose=False)


def stopped(capsys, *argv):
    """The one line that main leaves when it ends with status 2."""
    with pytest.raises(SystemExit, match=r"^2$") as error:
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
        ([], "wanted the path of a script such as timm's train.py, got none"),
        (["--task", "mixmo"], "wanted the path of a script such as timm's train.py, got none"),
        (["--task", "mixup", SCRIPT], "task must be one of mixmo, .*, got 'mixup'"),
        (["--task", "cotrainig", SCRIPT], "got 'cotrainig'; did you mean cotraining?"),
        (["--mixer", "mixmo", SCRIPT], "mixer must be one of mixup, .*, got 'mixmo'"),
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
        ("resizemix", "--mixup-off-epoch 2", "timm's --mixup-off-epoch and off_epoch of --mix say the same: drop one"),
        ("cotraining", "--mixup-off-epoch 2", "off_epoch=2 ends the mixup of the views, which is 0"),
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


def test_a_criterion_of_no_targets_is_one_line(capsys, tmp_path):
    (tmp_path / "train.py").write_text(
        "import timm, torch\nfrom timm.task import ClassificationTask\nmodel = timm.create_model('test_vit')\n"
        "ClassificationTask(model, lambda z, y: z.mean(y))\n"
    )
    line = stopped(capsys, "--mixer", "mixup", tmp_path / "train.py")
    assert "criterion <lambda> takes neither class indices [B] nor labels [B, K]" in line


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
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--mixer", "mixup"])
    assert capsys.readouterr().err == ""


def test_a_module_that_cannot_be_imported_is_one_line():
    with pytest.raises(DropInError, match=r"cannot import 'no_such_methods' \(No module named 'no_such_methods'\)"):
        parse(["--import", "no_such_methods", "--task", "mixmo", "train.py"])


def test_methods_of_an_imported_module_are_known_by_name(tmp_path, monkeypatch):
    (tmp_path / "own_mixers.py").write_text(
        "from timm_mix import mixers\nmixers.register_mixer('own', type('Own', (mixers.Mixup,), {}))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with MIXERS.scoped():
        order, script, rest = parse(["--import", "own_mixers", "--mixer", "own", "train.py", "--lr", "1"])
        assert (order.mixer, script, rest) == ("own", "train.py", ["--lr", "1"])
    sys.modules.pop("own_mixers")
