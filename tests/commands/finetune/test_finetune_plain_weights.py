"""finetune.py starts networks with members from plain weights: files of other classes, statistics, a teacher."""

import pytest
import timm
import torch
from finetune_runs import NAMES, loaded, run_finetune
from safetensors.torch import save_file

from timm_mix.models.splitnet import SplitNet
from timm_mix.train.data.digits import Digits
from timm_mix.train.errors import UsageError
from timm_mix.train.finetune import plan
from timm_mix.train.finetune.settings import FinetuneConfig
from timm_mix.train.settings.model import ModelSettings

pytestmark = pytest.mark.slow

NO_STEP = ["--lr", "0", "--warmup-epochs", "0", "--freeze", "backbone"]
SIZE = ["--img-size", "24"]
NETS = {
    "plain": ["--model", "wrn16_2", "--model-kwargs", "depth=10"],
    "mixmo": ["--model", "mixmo", "--model-kwargs", "backbone=wrn16_2", "depth=10", "members=2"],
    "splitnet": ["--model", "splitnet", "--model-kwargs", "backbone=wrn16_2", "depth=10", "split=2"],
}


@pytest.fixture(scope="module")
def plain():
    """A network of seven classes, with statistics of its own."""
    torch.manual_seed(3)
    model = timm.create_model("wrn16_2", depth=10, num_classes=7).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(16, 3, 24, 24) + 0.2)
    return model.eval()


@pytest.fixture
def start(plain, digits, tmp_path):
    """start(net, *flags): fine-tune it from the plain network's weights."""
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")

    def start(net, *flags):
        file = ["--initial-checkpoint", str(tmp_path / "plain.safetensors")]
        return run_finetune("unused", digits, tmp_path, *NETS[net], *file, *SIZE, "--experiment", "run", *flags)

    return start


def same_features(model, other):
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    return torch.allclose(model.forward_features(x), other.forward_features(x), atol=1e-4)


@pytest.mark.parametrize("net", ["plain", "mixmo"])
def test_weights_of_other_classes_give_their_body_under_fresh_heads(net, start, plain, tmp_path):
    start(net, *NO_STEP)
    model = loaded(tmp_path / "run" / "model")
    assert model.num_classes == 3
    assert model.pretrained_cfg["label_names"] == NAMES
    with torch.no_grad():
        assert same_features(model, plain)


def test_the_parts_of_a_splitnet_start_from_selected_channels(start, plain, tmp_path):
    start("splitnet", *NO_STEP)
    model, wanted = loaded(tmp_path / "run" / "model"), SplitNet.from_plain(plain, 2)
    for key, value in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[key], value) or ".fc." in key, key


@pytest.mark.parametrize("net", NETS)
def test_heads_that_are_not_there_cannot_be_kept(net, start, tmp_path):
    message = r"keep_head needs the 7 classes of .*plain.safetensors, got 3: drop it"
    if net == "splitnet":
        message = r"keep_head needs heads, parts that start from the plain wrn16_2 have none: drop it"
    with pytest.raises(UsageError, match=message):
        start(net, "--keep-head")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_one_line(start, tmp_path):
    with pytest.raises(
        UsageError, match=r"cannot load .*plain.safetensors into mixmo: .* not those of wrn16_4"
    ) as caught:
        start("mixmo", "--model-kwargs", "backbone=wrn16_4", "depth=10")
    assert "\n" not in str(caught.value)


def test_statistics_are_measured_on_the_new_images_before_training(start, plain, tmp_path):
    start("splitnet", *NO_STEP, "--recalibrate", "30")
    model, wanted = loaded(tmp_path / "run" / "model"), SplitNet.from_plain(plain, 2)
    changed = {key for key, value in wanted.state_dict().items() if not torch.equal(model.state_dict()[key], value)}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert {key.rpartition(".")[2] for key in changed if ".fc." not in key} == statistics
    assert model.subnets[0].bn1.num_batches_tracked == 1


@pytest.mark.parametrize("count", [25, 1000])
def test_any_number_of_images_measures_statistics(count, start):
    start("splitnet", *NO_STEP, "--recalibrate", str(count))  # 36 images are there


def test_no_batch_of_one_image_is_measured(digits, monkeypatch):
    monkeypatch.setattr(plan, "_BATCH", 8)
    model = timm.create_model("resnet18", num_classes=3)  # whose last maps are 1x1
    source, data = ModelSettings("resnet18", img_size=32), Digits("train")
    plan.recalibrate(model, source, data, count=17)
    assert model.bn1.num_batches_tracked == 3
    with pytest.raises(UsageError, match=r"cannot measure batch norms on 1 images .*--recalibrate.*more than 1"):
        plan.recalibrate(model, source, data, count=1)
    assert data.transform is None


def test_the_generic_names_start_from_the_weights_of_their_own_backbone():
    for name in ("mixmo", "splitnet"):
        assert plan.settle(FinetuneConfig.of(model=name, data_dir="pets")).model.pretrained


def test_a_file_of_the_same_classes_and_another_width_is_not_a_matter_of_heads(start, tmp_path):
    other = timm.create_model("wrn16_4", depth=10, num_classes=3)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"cannot load .* into wrn16_2: .*size mismatch"):
        start("plain", "--keep-head", "--initial-checkpoint", str(tmp_path / "other.safetensors"))


def test_a_grey_teacher_teaches_with_grey_images(finetune, sources, digits, tmp_path):
    finetune("plain", "--in-chans", "1", name="grey")
    teacher = f"local-dir:{tmp_path / 'grey' / 'model'}"
    flags = [*NETS["splitnet"], "--no-pretrained", *SIZE, "--task", "cotraining", "--teacher", teacher]
    results = run_finetune("unused", digits, tmp_path, *flags, "--experiment", "run", "--in-chans", "1")
    assert results["epochs"][0]["train"]["teacher"] > 0
    with pytest.raises(UsageError, match=rf"cannot show the teacher '{teacher}' images of 3 x 24 x 24"):
        run_finetune("unused", digits, tmp_path, *flags, "--experiment", "colour")


def test_a_fine_tuned_network_teaches_the_parts(start, sources):
    teacher = f"local-dir:{sources / 'plain'}"
    results = start("splitnet", "--task", "cotraining", "--teacher", teacher)
    assert results["epochs"][0]["train"]["teacher"] > 0
    assert results["config"]["teacher"] == teacher


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--teacher", "{plain}"], "teacher is for task cotraining, got task classification"),
        (["--task", "cotraining", "--teacher", "{other}"], "teacher must predict the 3 classes .* predicts 7"),
        (["--task", "cotraining", "--teacher", "no_such_net"], "cannot create the teacher 'no_such_net'"),
        (["--recalibrate", "0"], "recalibrate must be >= 1, got 0"),
    ],
)
def test_a_mistake_is_one_line(flags, message, start, sources):
    places = {"plain": f"local-dir:{sources / 'plain'}", "other": f"local-dir:{sources / 'other classes'}"}
    with pytest.raises(UsageError, match=message) as caught:
        start("splitnet", *(flag.format(**places) for flag in flags))
    assert "\n" not in str(caught.value)
