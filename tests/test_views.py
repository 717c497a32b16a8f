"""Several views of an image: the transform, its batches, and training loops of one's own."""

import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support.examples import assert_examples
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import timm_mix
from timm_mix.views import EpochBatchSampler, Views, collate_views

C, H, W, V = 3, 7, 11, 5


class Steps:
    """Gives the image plus 0, 1, 2, ..., so that every call is known from its view."""

    def __init__(self):
        self.calls = -1

    def __call__(self, image):
        self.calls += 1
        return image + self.calls


class DigitImages(Dataset):
    """scikit-learn's digits as a user would wrap them: PIL images, a transform, integer labels."""

    def __init__(self, transform, count=40):
        digits = load_digits()
        self.pixels, self.labels = (digits.images[:count] * 15).astype(np.uint8), digits.target[:count]
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = Image.fromarray(self.pixels[index]).convert("RGB").resize((32, 32))
        return self.transform(image), int(self.labels[index])


def augment():
    steps = [v2.RandomCrop(32, padding=4), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
    return v2.Compose(steps)


def test_every_view_is_a_call_of_its_own():
    image = torch.rand(C, H, W)
    views = Views(Steps(), V)(image)
    assert torch.equal(views, torch.stack([image + step for step in range(V)]))


def test_views_draw_as_often_as_calling_the_transform():
    transform, image = v2.RandomCrop(5, padding=2), torch.rand(C, H, W)
    torch.manual_seed(7)
    views = Views(transform, 3)(image)
    torch.manual_seed(7)
    assert torch.equal(views, torch.stack([transform(image), transform(image), transform(image)]))


def test_arrays_stack_as_tensors_do():
    image = np.random.default_rng(0).integers(0, 256, (C, H, W)).astype(np.uint8)
    views = Views(np.array, V)(image)
    assert (views.shape, views.dtype) == ((V, C, H, W), torch.uint8)
    assert np.array_equal(views[-1].numpy(), image)


def test_without_stacking_views_are_the_transforms_own_results_in_a_tuple():
    """timm's fast_collate knows views by their tuple."""
    views = Views(np.copy, 2, stack=False)(np.ones((C, H, W)))
    assert type(views) is tuple
    assert [type(view) for view in views] == [np.ndarray, np.ndarray]


def test_views_travel_to_the_workers_of_a_loader():
    again = pickle.loads(pickle.dumps(Views(v2.RandomCrop(5), 2, stack=False)))
    assert (again.count, again.stack) == (2, False)
    assert repr(again).startswith("Views(2 x RandomCrop(")


@pytest.mark.parametrize("count", [0, -1])
def test_an_image_needs_a_view(count):
    with pytest.raises(ValueError, match=f"count must be at least 1, got {count}: raise it"):
        Views(augment(), count)


def test_views_that_differ_in_shape_are_refused_in_one_line():
    sizes = iter([(C, 5, 7), (C, 7, 5)])
    with pytest.raises(ValueError, match=r"of one shape, got \[3, 5, 7\], \[3, 7, 5\]: .*crop to one size") as caught:
        Views(lambda _: torch.zeros(next(sizes)), 2)(None)
    assert "\n" not in str(caught.value)


def test_images_that_are_no_tensors_yet_are_refused():
    with pytest.raises(ValueError, match=r"must be tensors or arrays of one shape, got Image: .*end with a tensor"):
        Views(lambda image: image, 2)(Image.new("RGB", (W, H)))


@pytest.mark.parametrize("form", [tuple, list, torch.stack])
def test_batches_hold_the_views_beside_the_samples(form):
    images = torch.rand(2, V, C, H, W)
    views, target = collate_views([(form(list(own)), label) for own, label in zip(images, (13, 2), strict=True)])
    assert torch.equal(views, images)
    assert (target.tolist(), target.dtype) == ([13, 2], torch.int64)


def test_soft_labels_stay_soft():
    labels = torch.rand(2, 13)
    _, target = collate_views([(torch.rand(V, C, H, W), label) for label in labels])
    assert torch.equal(target, labels)


def test_images_without_views_are_refused():
    with pytest.raises(ValueError, match=r"must be views \[V, C, H, W\] and a label, got \[3, 7, 11\]: wrap"):
        collate_views([(torch.rand(C, H, W), 1)] * 2)


def test_samples_with_unequally_many_views_are_refused():
    with pytest.raises(ValueError, match=r"of one shape, got \[2, 3, 7, 11\], \[3, 3, 7, 11\]"):
        collate_views([(torch.rand(2, C, H, W), 1), (torch.rand(3, C, H, W), 1)])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_of_ones_own_cotrains_on_views_and_copies(workers):
    torch.manual_seed(0)
    model = timm.create_model("splitnet_wrn16_2_s2", num_classes=10)
    dataset = DigitImages(Views(augment(), model.num_members))
    sampler = EpochBatchSampler(len(dataset), batch_size=16, repeats=2, seed=3)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_views, num_workers=workers)
    task = timm_mix.create_task("cotraining", model, torch.nn.CrossEntropyLoss(), num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses, seen = [], []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for views, target in loader:
            assert views.shape == (16, 2, 3, 32, 32)
            assert not torch.equal(views[:, 0], views[:, 1])  # the parts see crops of their own
            assert torch.equal(target[:8], target[8:])
            assert not torch.equal(views[:8], views[8:])  # and so does every copy
            result = task(views, target)
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
            losses.append(float(result["ce"].detach()))
            seen.append(target[:8].tolist())
    assert len(losses) == 2 * 5
    assert sum(losses[-3:]) < sum(losses[:3])
    assert seen[:5] != seen[5:]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_examples_of_the_docstrings_run():
    tried = assert_examples(timm_mix.views)
    assert tried >= 15  # statements, over three docstrings
