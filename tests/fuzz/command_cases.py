"""Cases of the command line: flags of every kind, sizes that no machine has, places that hold no images, recipes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import Case
from material import GOOD

from timm_mix.commands import convert, finetune, push, table, train, validate
from timm_mix.train.settings.config import Config

__all__ = ["command_cases"]

MAINS: dict[str, Callable] = {
    "train": train.main,
    "finetune": finetune.main,
    "validate": validate.main,
    "table": table.main,
    "convert": convert.main,
    "push": push.main,
}


def case(area: str, command: str, flags: Sequence[str], says: str | None, name: str = "") -> Case:
    """{m} stands for the folder of the material."""

    def attempt(material: Path) -> object:
        return MAINS[command]([*_base(command, material), *(flag.replace("{m}", str(material)) for flag in flags)])

    shown = name or " ".join(flag if len(flag) < 40 else f"{flag[:20]}... ({len(flag)})" for flag in flags)
    return Case(area, f"{command} {shown}", attempt, says)


def _base(command: str, material: Path) -> list[str]:
    data, output = ["--data-dir", str(material / "good")], ["--output", "out"]
    if command == "train":
        return [*GOOD, *data, *output]
    if command == "finetune":
        model = ["--model", f"local-dir:{material}/runs/plain/model"]
        return [*model, *data, *output, "--epochs", "1", "--batch-size", "4", "--workers", "0", "--cpu", *WARM]
    if command == "validate":
        return ["--model", f"{material}/runs/plain/model", *data, *output, "--workers", "0", "--cpu"]
    return []


WARM = ["--warmup-epochs", "0"]
HUGE = "9" * 6_000


def command_cases() -> Iterator[Case]:
    yield from _numbers()
    yield from _flags()
    yield from _sizes()
    yield from _places()
    yield from _recipes()
    yield from _tables()
    yield from _others()


def _numbers() -> Iterator[Case]:
    """Every flag that takes a number, with words, holes and numbers that are none, too large and below its range."""
    for setting in Config.settings().values():
        kind = getattr(setting.kind, "__args__", (setting.kind,))[0]
        if kind is int:
            for value in ("x", "1.5", "-7", HUGE):
                free = setting.name == "seed" and value == "-7"
                yield case("numbers", "train", [setting.flag, value], "seed" if free else "")
        elif kind is float:
            for value in ("x", "nan", "inf"):
                yield case("numbers", "train", [setting.flag, value], "")


def _flags() -> Iterator[Case]:
    for command, flags, says in (
        ("train", ["--mix", "prob=0.5"], "task classification has no settings"),
        ("train", ["--task", "mixmo", "--mix", "prob=0.5"], "members"),
        ("train", ["--task", "recursivemix", "--mix", "alhpa=1"], "alhpa"),
        ("train", ["--task", "recursivemix", "--mix", "alpha"], "key=value"),
        ("train", ["--task", "recursivemix", "--mix", "alpha=[1"], "no yaml value"),
        ("train", ["--task", "recursivemix", "--mix", "alpha=nan"], "alpha"),
        ("train", ["--mixer", "cutmix", "--mix", "alpha=-1"], "alpha"),
        ("train", ["--mixer", "nothing"], "mixer must be one of"),
        ("train", ["--mixer", "cutmix", "--task", "recursivemix"], "drop one of the two"),
        ("train", ["--mixer", "cutmix", "--mixup", "1"], "drop one or the other"),
        ("train", ["--task", "unknown"], "task must be one of"),
        ("train", ["--model-kwargs", "depth=11"], "depth"),
        ("train", ["--model-kwargs", "depth=-4"], "depth"),
        ("train", ["--model-kwargs", "depth=ten"], "cannot create model"),
        ("train", ["--model-kwargs", "device=meta"], "device"),
        ("train", ["--model-kwargs", "num_classes=5"], "the 3 classes of the data, got 5"),
        ("train", ["--model", ""], "model"),
        ("train", ["--model", "resnet18.no_such_tag", "--pretrained"], "no_such_tag"),
        ("train", ["--model", "hf-hub:"], "hf-hub"),
        ("train", ["--model", "local-dir:{m}/nothing"], "nothing"),
        ("train", ["--model", "../../etc/passwd"], "etc/passwd"),
        ("train", ["--imports", "os"], "--imports"),
        ("train", ["--import", "no_such_module"], "cannot import 'no_such_module'"),
        ("train", ["--aug", "strong"], "aug must be one of"),
        ("train", ["--aa", "rand-m9"], "rand-m9"),
        ("train", ["--aug", "imagenet", "--aa", "nonsense"], ""),
        ("train", ["--aug", "imagenet", "--color-jitter", "-1"], "color_jitter"),
        ("train", ["--interpolation", "cubist"], "interpolation"),
        ("train", ["--crop-pct", "0"], "crop_pct"),
        ("train", ["--mean", "0.5", "0.5"], "mean must be"),
        ("train", ["--std", "0"], "std"),
        ("train", ["--opt", "sdg"], "sdg"),
        ("train", ["--opt-betas", "2", "3", "--opt", "adamw"], "beta"),
        ("train", ["--sched", "cosin"], "cosin"),
        ("train", ["--warmup-epochs", "1"], "warmup_epochs must be less than epochs"),
        ("train", ["--class-weights", "1,2"], "--class-weights wants 3 numbers"),
        ("train", ["--class-weights", "{m}/a_file"], "class-weights"),
        ("train", ["--class-weights", "1,-2,3"], "class-weights"),
        ("train", ["--bce-sum"], "--bce-loss"),
        ("train", ["--batch-repeats", "3"], "multiple of repeats"),
        ("train", ["--output", "/proc/nothing"], "/proc/nothing"),
        ("train", ["--output", "{m}/a_file"], "a_file"),
        ("train", ["--experiment", "a\0b"], ""),
        ("train", ["--experiment", "x" * 5_000], ""),
        ("train", ["--resume", "{m}/nothing.pt"], "nothing.pt"),
        ("train", ["--resume", "{m}/good"], "good"),
        ("train", ["--resume", "auto"], None),
        ("train", ["--initial-checkpoint", "{m}/a_file"], "checkpoint"),
        ("train", ["--dataset", "torch/cifar1000"], "cifar1000"),
        ("train", ["--dataset", "hfds/none"], "datasets"),
        ("train", ["--dataset", "digits", "--labels-csv", "x.csv"], "drop one of the two"),
        ("train", ["--amp", "--amp-dtype", "float16"], "float16"),
        ("train", ["--tracker", "printer"], "tracker must be one of"),
        ("train", ["--freeze", "1"], "--freeze"),
        ("finetune", ["--freeze", "99"], "freeze"),
        ("finetune", ["--freeze", "-1"], "freeze"),
        ("finetune", ["--val-fraction", "0.5"], "drop it"),
        ("finetune", ["--recalibrate", "0"], "recalibrate"),
        ("finetune", ["--teacher", "resnet18"], "teacher"),
        ("finetune", ["--keep-head", "--data-dir", "{m}/good", "--num-classes", "5"], "classes"),
        ("finetune", ["--layer-decay", "2"], "layer_decay"),
        ("finetune", ["--linear-probe", "--drop", "0.1"], "linear_probe"),
        ("finetune", ["--model", "resnet18x"], "resnet18x"),
        ("finetune", ["--model", "{m}/runs/plain/model"], "did you mean local-dir:"),
        ("finetune", ["--model", "local-dir:{m}/runs/plain"], "did you mean local-dir:"),
        ("finetune", ["--model", "{m}/a_file"], "is a file"),
        ("finetune", ["--in-chans", "5"], ""),
        ("validate", ["--eps", "300"], "eps must lie in"),
        ("validate", ["--corruptions", "rain"], "rain"),
        ("validate", ["--corruptions-dir", "{m}/nothing"], "nothing"),
        ("validate", ["--fold"], "fold"),
        ("validate", ["--split", "holdout"], "holdout"),
        ("validate", ["--val-seed", "3"], "val_seed goes with val_fraction"),
        ("validate", ["--model", "{m}/runs/plain"], "give"),
        ("validate", ["--model", "resnet18"], "needs weights"),
        ("validate", ["--model", "{m}/good"], ""),
        ("validate", ["--num-classes", "9"], "classes"),
        ("validate", ["--output", "{m}/a_file"], "a_file"),
        ("validate", ["--checkpoint", "{m}/runs/mixmo/checkpoints/last.pt", "--model", "wrn16_2"], "does not fit"),
    ):
        yield case("flags", command, flags, says)


def _sizes() -> Iterator[Case]:
    """More than any machine has: an estimate says so, before anything is tried."""
    for flags in (
        ["--img-size", "1000000"],
        ["--img-size", "60000"],
        ["--batch-size", "100000000"],
        ["--validation-batch-size", "1000000000"],
        ["--aug", "small", "--padding", "1000000"],
        ["--workers", "100000"],
        ["--model-kwargs", "widen_factor=100000"],
        ["--model-kwargs", "depth=1000000006"],
        ["--model-kwargs", "depth=400006"],
        ["--num-classes", "2000000000"],
        ["--model", "mixmo", "--task", "mixmo", "--model-kwargs", "members=1000000", "backbone=wrn16_2"],
        ["--model", "mixmo", "--task", "mixmo", "--model-kwargs", "members=100000000000", "backbone=wrn16_2"],
        ["--model", "splitnet", "--task", "cotraining", "--model-kwargs", "split=1000000", "backbone=wrn16_2"],
        ["--grad-accum-steps", "1000000000", "--batch-size", "18"],
        ["--batch-repeats", "1000000"],
    ):
        fine = flags[0] in ("--grad-accum-steps", "--validation-batch-size")  # no batch has more images than there are
        yield case("sizes", "train", flags, None if fine else "")
    yield case("sizes", "finetune", ["--img-size", "1000000"], "")
    yield case("sizes", "validate", ["--img-size", "1000000"], "")
    yield case("sizes", "validate", ["--workers", "100000"], "")
    yield case("sizes", "finetune", ["--recalibrate", "1000000000"], None)  # no more images than there are


def _places() -> Iterator[Case]:
    wrong = {
        "{m}/nothing": "",
        "{m}/nowhere": "nowhere",
        "{m}/a_file": "a_file",
        "/dev/null": "/dev/null",
        "/dev/zero": "/dev/zero",
        "{m}/fifo": "pipe.png",
        "{m}/socket": "ear.png",
        "{m}/fifo/train/ant/pipe.png": "pipe.png",
        "{m}/loop": "again",
        "{m}/one_class": "classes",
        "{m}/hole": "'bee'",
        "{m}/other_classes": "cat",
        "{m}/torn": "9.png",
        "{m}/text": "9.png",
        "{m}/empty": "9.png",
        "{m}/nul": "9.png",
        "{m}/bomb": "9.png",
        "{m}/zero_size": "9.png",
        "{m}/deep": "9.png",
        "{m}/crc": "9.png",
        "{m}/link": "9.png",
        "a\0b": "",
    }
    for place, says in wrong.items():
        for command in ("train", "finetune"):
            yield case("places", command, ["--data-dir", place], says)
    yield case("places", "train", ["--data-dir", ""], "data folder")
    yield case("places", "finetune", ["--data-dir", ""], "--data-dir")
    for place in ("{m}/nothing", "{m}/nowhere", "{m}/a_file", "/dev/null", "{m}/fifo/train/ant/pipe.png", "a\0b"):
        yield case("places", "validate", ["--data-dir", place], "")
    yield case("places", "finetune", ["--data-dir", "{m}/flat", "--val-fraction", "0.3"], None)
    yield case("places", "finetune", ["--data-dir", "{m}/flat"], "--val-fraction")
    yield case("places", "finetune", ["--data-dir", "{m}/strange names"], None)
    yield case("places", "train", ["--data-dir", "{m}/strange names"], None)


def _recipes() -> Iterator[Case]:
    names = (
        *("list", "word", "torn", "tab", "unknown", "twice", "python", "latin", "nul", "deep", "deep_map", "digits"),
        *("float_digits", "bomb", "wrong_type", "number_key", "merge", "loop", "mapping_of_flag", "folder", "nowhere"),
    )
    for name in names:
        for command in ("train", "finetune"):
            says = "mix" if name == "loop" else name
            yield case("recipes", command, ["--config", f"{{m}}/recipes/{name}.yaml"], says)
    for name in ("empty", "none"):
        yield case("recipes", "train", ["--config", f"{{m}}/recipes/{name}.yaml"], "")
    yield case("recipes", "train", ["--config", "/dev/zero"], "/dev/zero")
    yield case("recipes", "train", ["--config", "{m}/fifo/train/ant/pipe.png"], "pipe.png")


def _tables() -> Iterator[Case]:
    for name in ("empty", "semicolons", "missing_file", "short_row", "quote", "bytes", "long", "nul", "not_a_switch",
                 "folder", "nowhere"):  # fmt: skip
        for command in ("train", "finetune", "validate"):
            yield case("tables", command, ["--labels-csv", f"{{m}}/tables/{name}.csv"], f"{name}.csv")
    yield case("tables", "train", ["--labels-csv", "{m}/tables/good.csv"], None)
    yield case("tables", "train", ["--labels-csv", "/dev/zero"], "/dev/zero")
    yield case("tables", "validate", ["--labels-csv", "{m}/tables/good.csv"], "classes")


def _others() -> Iterator[Case]:
    for command, flags, says in (
        ("table", [], "ARCH"),
        ("table", ["resnet99"], "resnet99"),
        ("table", ["resnet18", "--split", "0"], "0"),
        ("table", ["resnet18", "--split", "1000000"], ""),
        ("table", ["resnet18", "--csv", "/proc/x/y.csv"], "/proc/x/y.csv"),
        ("convert", [], ""),
        ("convert", ["{m}/a_file", "--output", "x"], ""),
        ("push", [], ""),
        ("push", ["{m}/nothing", "me/it"], ""),
        ("push", ["{m}/runs/plain/model", "no slash but spaces"], ""),
        ("push", ["{m}/runs/plain/model", "me/it", "--license", "my-own"], ""),
    ):
        yield case("other commands", command, flags, says)
