"""Few-shot folders: which images go where, and mistakes that write nothing."""

import pytest

from timm_mix.lab.subset import main
from timm_mix.train.errors import UsageError


def folder(root, **splits):
    for split, count in splits.items():
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                (root / split / name / f"{split}{number}.png").write_bytes(b"x")
    return root


def names(root, split):
    return {path.relative_to(root / split).as_posix() for path in (root / split).rglob("*.png")}


def test_of_three_splits_only_the_training_images_are_drawn(tmp_path):
    source, dest = folder(tmp_path / "source", train=5, val=2, test=3), tmp_path / "few"
    main([str(source), str(dest), "--per-class", "2"])
    assert names(dest, "train") < names(source, "train")
    assert len(names(dest, "train")) == 4
    assert [names(dest, split) == names(source, split) for split in ("val", "test")] == [True, True]


def test_of_two_splits_the_validation_images_are_drawn_beside_the_training_images(tmp_path):
    source, dest = folder(tmp_path / "source", train=5, val=2), tmp_path / "few"
    main([str(source), str(dest), "--per-class", "2", "--validation-per-class", "3"])
    assert not names(dest, "train") & names(dest, "val")
    assert names(dest, "train") | names(dest, "val") == names(source, "train")
    assert names(dest, "test") == names(source, "val")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--per-class", "6"], "train/cat has 5 images, 6 are wanted: take fewer"),
        (["--per-class", "0"], "must be >= 1"),
    ],
)
def test_a_mistake_writes_nothing(flags, message, tmp_path):
    source, dest = folder(tmp_path / "source", train=5, val=2, test=3), tmp_path / "few"
    with pytest.raises(UsageError, match=message):
        main([str(source), str(dest), *flags])
    assert not dest.exists()
    dest.mkdir()
    with pytest.raises(UsageError, match="exists: remove it"):
        main([str(source), str(dest), "--per-class", "2"])
