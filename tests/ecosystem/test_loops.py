"""docs/your_own_loop.md: what a framework saves and loads goes on to the bit."""

import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your_own_loop.md"


class Photographs(Dataset):
    """Twelve images of noise; in tuples, or under the names that transformers wants."""

    def __init__(self, named=False):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(12, 3, 32, 32, generator=generator)
        self.named = named

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"pixel_values": self.images[i], "labels": i % 5} if self.named else (self.images[i], i % 5)


@pytest.fixture
def loader():
    return DataLoader(Photographs(), batch_size=4)


def train_of(heading):
    """The function that the section's snippet defines; the network's weights are those of seed 0."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1]
    space = {}
    exec(compile(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], PAGE.name, "exec"), space)

    def train(*args, **kwargs):
        torch.manual_seed(0)
        return space["train"](*args, **kwargs)

    return train


def assert_same(one, two, steps):
    assert one.step == two.step == steps
    left, right = one.state_dict(), two.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def test_accelerate_goes_on_to_the_bit(loader, tmp_path):
    train = train_of("Accelerate")
    whole = list(train(loader, tmp_path / "whole", epochs=3))[-1]
    next(iter(train(loader, tmp_path / "cut", epochs=3)))  # one epoch, and no more
    resumed = list(islice(train(loader, tmp_path / "cut", epochs=3, resume=True), 5))
    assert len(resumed) == 2
    assert_same(whole, resumed[-1], steps=9)


@pytest.mark.ecosystem
@pytest.mark.filterwarnings("ignore")  # of the frameworks, which are not ours to mend
def test_lightning_goes_on_to_the_bit(loader, tmp_path):
    train = train_of("Lightning")
    whole = train(loader, tmp_path / "whole", epochs=3)
    train(loader, tmp_path / "cut", epochs=1)
    (saved,) = (tmp_path / "cut").rglob("*.ckpt")
    assert "task._extra_state" in torch.load(saved, weights_only=True)["state_dict"]
    assert_same(whole, train(loader, tmp_path / "cut", epochs=3, resume=saved), steps=9)


@pytest.mark.ecosystem
@pytest.mark.filterwarnings("ignore")
def test_transformers_trainer_goes_on_to_the_bit(tmp_path):
    train, data = train_of("transformers' Trainer"), Photographs(named=True)
    whole = train(data, tmp_path / "whole", epochs=3)
    again = train(data, tmp_path / "again", epochs=3, resume=tmp_path / "whole" / "checkpoint-3")
    assert_same(whole, again, steps=9)
