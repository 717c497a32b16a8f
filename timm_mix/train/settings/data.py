"""Settings of the images: where they come from, and how they are put into batches."""

from dataclasses import dataclass

from timm_mix.train.settings.fields import AT_LEAST_1, PROCESSES, check_fields, setting

__all__ = ["DataSettings"]


@dataclass(frozen=True)
class DataSettings:
    """data

    >>> DataSettings(dataset="digits", batch_size=0)
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: batch_size must be >= 1, got 0
    """

    dataset: str = setting("", "digits, or timm's: '' (folder or tar), torch/..., hfds/..., wds/...")
    data_dir: str | None = setting(None, "root of the data set: train/ and val/ with a folder per class, or what it is")
    train_split: str = setting("train", "split that is learnt")
    val_split: str = setting("validation", "split that every epoch is measured on")
    dataset_download: bool = setting(False, "let torch/... and hfds/... fetch what is not there")
    class_map: str | None = setting(None, "file that numbers the classes: timm's class_to_idx, a name per line")
    labels_csv: str | None = setting(
        None, "table of the labels of the images in data_dir: file, then label, labels or a column per class; split"
    )
    workers: int = setting(2, "processes that read and augment, of each process; 0: the process itself", PROCESSES)
    pin_mem: bool = setting(False, "page-locked batches: faster copies to a GPU, for some host memory")
    device_loader: bool = setting(
        False, "keep images of 32-64 px in memory, augment on the device (aug small, none); workers decode"
    )
    batch_size: int = setting(64, "per process", AT_LEAST_1)
    validation_batch_size: int | None = setting(
        None, "of the evaluation, which needs less memory; default: batch_size", AT_LEAST_1
    )
    balanced_sampling: bool = setting(False, "train on every class equally often: draws with replacement")
    batch_repeats: int = setting(1, "copies of an image per batch, each augmented on its own (MixMo's b)", AT_LEAST_1)

    def __post_init__(self) -> None:
        check_fields(self)
