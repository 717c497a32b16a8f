"""The loss of a recipe: binary, weighted, and what a balanced run draws."""

import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from torch.nn import functional as F

from timm_mix.train.data.image_folder import ImageFiles
from timm_mix.train.data.loaders import create_train_loader, start_epoch
from timm_mix.train.errors import UsageError
from timm_mix.train.loop.build import build_mixup, build_task
from timm_mix.train.loop.criterion import build_criterion
from timm_mix.train.settings.task import TaskSettings

K = 3
UNEVEN = ImageFiles([f"{i}.png" for i in range(10)], np.array([0] * 6 + [1] * 3 + [2]), ["a", "b", "c"])


def test_binary_cross_entropy_is_timms():
    settings = {"bce_loss": True, "bce_sum": True, "bce_target_thresh": 0.3, "smoothing": 0.1}
    criterion = build_criterion(TaskSettings(**settings, class_weights="1,2,3"), K)
    z, y = torch.randn(5, K), torch.arange(5) % K
    weight = torch.tensor([1.0, 2.0, 3.0])
    theirs = BinaryCrossEntropy(0.1, target_threshold=0.3, weight=weight, sum_classes=True)
    torch.testing.assert_close(criterion(z, y), theirs(z, y))


def test_balanced_weights_are_the_inverse_of_the_counts():
    weight = build_criterion(TaskSettings(class_weights="balanced"), K, UNEVEN).weight
    torch.testing.assert_close(weight * torch.tensor([6.0, 3.0, 1.0]), weight[2].expand(3))
    assert weight.mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["1 2 5", "[1, 2, 5]", '{"class_weight": [1, 2, 5], "other": 1}'])
def test_weights_come_from_a_file(text, tmp_path):
    path = tmp_path / ("weights.json" if text[0] in "[{" else "weights.txt")
    path.write_text(text)
    assert build_criterion(TaskSettings(class_weights=str(path)), K).weight.tolist() == [1, 2, 5]


def test_what_timms_mixup_mixes_divides_by_the_weights():
    wanted = TaskSettings(mixup=1.0, class_weights="1,2,5")
    criterion, weight = build_criterion(wanted, K), torch.tensor([1.0, 2.0, 5.0])
    z, y = torch.randn(4, K), torch.tensor([0, 1, 2, 2])
    torch.testing.assert_close(criterion(z, y), F.cross_entropy(z, y, weight))
    torch.testing.assert_close(criterion(z, F.one_hot(y, K).float()), F.cross_entropy(z, y, weight))
    _, mixed = Mixup(mixup_alpha=1.0, label_smoothing=0.0, num_classes=K)(torch.zeros(4, 3, 8, 8), y)
    losses = -(mixed * weight * z.log_softmax(1)).sum(1)
    torch.testing.assert_close(criterion(z, mixed), losses.sum() / (mixed * weight).sum())


@pytest.mark.parametrize("name", ["classification", "recursivemix", "automix", "manifoldmixup"])
def test_every_task_takes_the_weights(name):
    wanted = TaskSettings(name=name, class_weights="1,2,5", mix={"reduction": 4} if name == "automix" else {})
    model = timm.create_model("test_resnet", num_classes=K)
    task = build_task(wanted, model, K, epochs=1, steps_per_epoch=2, seed=0)
    assert torch.equal(task.criterion.weight, torch.tensor([1.0, 2.0, 5.0]))
    assert task(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 2]))["loss"].isfinite()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": "1,2"}, "--class-weights wants 3 numbers >= 0, one per class, got 2"),
        ({"class_weights": "0,0,0"}, "one per class, got none above 0"),
        ({"class_weights": "1,-2,3"}, "read --class-weights 1,-2,3, balanced or a file with 3 numbers: .*non-negative"),
        ({"class_weights": "no/file"}, "read --class-weights no/file, balanced or a file with 3 numbers"),
        ({"class_weights": "balanced"}, "--class-weights balanced needs data that list their labels"),
    ],
)
def test_wrong_weights_are_one_line(settings, message):
    with pytest.raises(UsageError, match=message):
        build_criterion(TaskSettings(**settings), K)


def test_settings_of_the_binary_loss_want_it():
    with pytest.raises(UsageError, match="bce_sum and bce_target_thresh are for --bce-loss; give it, or drop them"):
        TaskSettings(bce_sum=True)


def test_a_balanced_epoch_draws_every_class_alike_and_goes_on_anywhere():
    samples = [(torch.zeros(1), label) for label in [0] * 600 + [1] * 300 + [2] * 100]
    weights = np.array([1 / 600] * 600 + [1 / 300] * 300 + [1 / 100] * 100)
    loader = create_train_loader(samples, batch_size=50, weights=weights, seed=3)
    start_epoch(loader, epoch=1, seed=3)
    whole = [target.tolist() for _, target in loader]
    counts = np.bincount(np.concatenate(whole))
    assert counts.sum() == 1000
    assert (abs(counts - 1000 / 3) < 60).all()  # four standard deviations
    start_epoch(loader, epoch=1, seed=3, first_batch=7)
    assert [target.tolist() for _, target in loader] == whole[7:]


SEVERAL = ImageFiles(["a.png", "b.png", "c.png", "d.png"], np.eye(3, dtype=np.float32)[[0, 0, 0, 1]], ["a", "b", "c"])


def test_several_labels_per_image_are_questions_of_their_own():
    z, y = torch.randn(4, K), torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
    loss = build_criterion(TaskSettings(), K, SEVERAL)(z, y)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(z, y))
    smoothed = build_criterion(TaskSettings(smoothing=0.2), K, SEVERAL)(z, y)
    torch.testing.assert_close(smoothed, F.binary_cross_entropy_with_logits(z, 0.8 * y + 0.1))


def test_balance_of_several_labels_weighs_what_is_there():
    criterion = build_criterion(TaskSettings(class_weights="balanced"), K, SEVERAL)
    assert criterion.pos_weight.tolist() == pytest.approx([1 / 3, 3, 3])  # a class without an image counts as one
    given = build_criterion(TaskSettings(class_weights="1,2,5"), K, SEVERAL)
    z, y = torch.randn(4, K), torch.tensor(SEVERAL.targets)
    torch.testing.assert_close(given(z, y), F.binary_cross_entropy_with_logits(z, y, torch.tensor([1.0, 2.0, 5.0])))


def test_timms_mixup_mixes_several_labels():
    mixup = build_mixup(TaskSettings(mixup=1.0, smoothing=0.2), K, multi_label=True)
    y = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    _, mixed = mixup(torch.zeros(2, 3, 8, 8), y)
    soft = 0.8 * y + 0.1
    torch.testing.assert_close(mixed + mixed.flip(0), soft + soft.flip(0))
    assert not torch.equal(mixed, soft)
