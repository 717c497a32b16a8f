"""Parts of fine-tuning: what follows from the model's source, the data's rules, the members' loss."""

import huggingface_hub
import pytest
import timm
import torch
from support.image_files import write_images, write_tar
from support.settings import clock_of
from timm.loss import LabelSmoothingCrossEntropy
from torch.nn import functional as F

import timm_mix.models  # noqa: F401
from timm_mix.hub import save_pretrained
from timm_mix.tasks import task_settings
from timm_mix.train.errors import UsageError
from timm_mix.train.finetune.plan import MembersTask, make_task, open_data, prepare_model, settle
from timm_mix.train.finetune.settings import SUITED, FinetuneConfig
from timm_mix.train.loop.build import Data, build_model

NET = {"backbone": "wrn16_2", "depth": 10, "widen_factor": 1}


def made(config, model):
    return make_task(config.task, model, 5, **clock_of(config, 3))


def opened(**settings):
    config = FinetuneConfig.of(**settings)
    return open_data(config.data, config.model, config.finetune, config.run.seed)


def mixmo(**more):
    torch.manual_seed(0)
    return timm.create_model("mixmo", **{**NET, "num_classes": 5, **more})


def test_a_saved_models_arguments_are_settings_and_flags_override_them(tmp_path):
    save_pretrained(mixmo(members=3), tmp_path / "run" / "model")
    name = f"local-dir:{tmp_path / 'run' / 'model'}"
    config = settle(FinetuneConfig.of(model=name, data_dir="photos"))
    assert config.model.pretrained
    assert config.model.model_kwargs.items() >= {**NET, "members": 3, "ensemble": "logits"}.items()
    assert config.run.experiment == "run_on_photos"
    other = settle(FinetuneConfig.of(model=name, drop=0.1, model_kwargs={"ensemble": "softmax"}))
    model = build_model(other.model, 7)
    assert (model.ensemble, model.num_members, model.core.drop_rate, model.num_classes) == ("softmax", 3, 0.1, 7)


def test_an_initial_checkpoint_stands_for_the_weights(tmp_path):
    config = settle(FinetuneConfig.of(model="resnet18", initial_checkpoint="some.pt", data_dir="photos"))
    assert not config.model.pretrained
    assert settle(FinetuneConfig.of(model="resnet18", data_dir="photos")).model.pretrained
    assert not settle(FinetuneConfig.of(model="resnet18", data_dir="photos", pretrained=False)).model.pretrained


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="cannot create model 'hf-hub:nobody/nothing': ") as caught:
        settle(FinetuneConfig.of(model="hf-hub:nobody/nothing", data_dir="photos"))
    assert "\n" not in str(caught.value)


def test_another_run_on_the_same_images_gets_a_folder_of_its_own(tmp_path):
    settings = {"model": "test_resnet", "data_dir": "photos", "output": str(tmp_path)}
    names = []
    for _ in range(3):
        names.append(settle(FinetuneConfig.of(**settings)).run.experiment)
        (tmp_path / names[-1] / "checkpoints").mkdir(parents=True)
    assert names == ["test_resnet_on_photos", "test_resnet_on_photos_2", "test_resnet_on_photos_3"]
    assert settle(FinetuneConfig.of(**settings, resume="auto")).run.experiment == names[0]


@pytest.mark.parametrize("members", [2, 3])
def test_the_loss_is_the_mean_of_the_members_losses_on_one_image(members):
    model = mixmo(members=members).train()
    for norm in model.modules():  # the same statistics in both passes
        norm.momentum = 0.0
    images, target = torch.randn(4, 3, 16, 16), torch.tensor([0, 4, 2, 2])
    task = MembersTask(model, LabelSmoothingCrossEntropy(0.1), num_classes=5)
    result = task(images, target)
    logits = model(images[:, None].expand(-1, members, -1, -1, -1), return_members=True)
    losses = [F.cross_entropy(logits[:, i], target, label_smoothing=0.1) for i in range(members)]
    torch.testing.assert_close(result["loss"], sum(losses) / members)
    torch.testing.assert_close(result["output"], logits.mean(1))
    result["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_members_learn_soft_labels_too():
    task = made(FinetuneConfig.of(model="mixmo", mixup=1.0), mixmo())
    assert isinstance(task, MembersTask)
    target = torch.rand(2, 5).softmax(1)
    result = task(torch.randn(2, 3, 16, 16), target)
    assert result["loss"].isfinite()


def test_models_without_members_and_named_tasks_keep_timms_and_their_own():
    plain = timm.create_model("wrn16_2", depth=10, widen_factor=1, num_classes=5)
    assert type(made(FinetuneConfig.of(model="wrn16_2"), plain)).__name__ == "ClassificationTask"
    assert type(made(FinetuneConfig.of(model="mixmo", task="mixmo"), mixmo())).__name__ == "MixMoTask"


def test_new_heads_keep_the_rest_of_the_model():
    model = mixmo()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = FinetuneConfig.of(model="mixmo", img_size=16, initial_checkpoint="given")
    prepare_model(config.finetune, config.model, model, Data(None, None, None, 3))
    assert model.training
    assert [head.out_features for head in model.heads] == [3, 3]
    for name, value in model.state_dict().items():
        assert name.startswith("heads.") or torch.equal(value, before[name]), name


def test_a_model_without_weights_keeps_the_heads_that_it_was_born_with():
    model = mixmo()
    heads = model.heads
    config = FinetuneConfig.of(model="mixmo", img_size=16, pretrained=False)
    prepare_model(config.finetune, config.model, model, Data(None, None, None, 5))
    assert model.heads is heads


DATA_MISTAKES = {
    "no folder": ({}, "--data-dir is missing: a folder with train/ and val/, or with one folder of images per class"),
    "too few to hold back": ({"data_dir": "{root}/single", "val_fraction": 0.1}, "no validation images: add some, or"),
    "one class in a tar": ({"data_dir": "{root}/one.tar"}, "must be different images, both have .*one.tar"),
    "one class of another data set": (
        {"dataset": "folder", "data_dir": "{root}/one", "class_map": "{root}/map.txt"},
        "the data must have at least two classes, got 1",
    ),
    "a fraction of a tar": ({"data_dir": "{root}/one.tar", "val_fraction": 0.1}, "val_fraction is for a folder of"),
}


@pytest.mark.parametrize("name", DATA_MISTAKES)
def test_a_mistake_in_the_data_is_one_line(name, tmp_path):
    settings, line = DATA_MISTAKES[name]
    write_images(tmp_path / "single", {"ant": 1, "bee": 1})
    for split in ("train", "val"):
        write_images(tmp_path / "one" / split, {"ant": 2})
    write_tar(tmp_path / "one.tar", {"ant": 2})
    (tmp_path / "map.txt").write_text("ant\n")
    filled = {key: value.format(root=tmp_path) if isinstance(value, str) else value for key, value in settings.items()}
    with pytest.raises(UsageError, match=line):
        opened(model="mixmo", **filled)


def test_unchecked_images_are_not_read(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, {"ant": 1, "bee": 1})
    (tmp_path / "train" / "ant" / "0.png").write_bytes(b"")
    assert len(opened(model="mixmo", data_dir=str(tmp_path), check_images=False).train) == 2
    with pytest.raises(UsageError, match=r"ant/0.png is no image that can be read .*: replace or remove it"):
        opened(model="mixmo", data_dir=str(tmp_path))


@pytest.mark.parametrize("task", SUITED)
def test_a_task_starts_with_what_suits_good_weights_and_a_flag_overrides_it(task):
    start = {"model": "resnet18", "task": task, "data_dir": "photos"}
    assert settle(FinetuneConfig.of(**start)).task.mix == SUITED[task]
    assert settle(FinetuneConfig.of(**start, pretrained=False)).task.mix == {}  # from scratch: the task's own
    assert settle(FinetuneConfig.of(**start, initial_checkpoint="some.pt")).task.mix == SUITED[task]
    name, value = next(iter(SUITED[task].items()))
    own = settle(FinetuneConfig.of(**start, mix={name: value / 2, "alpha": 1.5})).task.mix
    assert own == {**SUITED[task], name: value / 2, "alpha": 1.5}
    assert set(SUITED[task]) <= set(task_settings(task))
