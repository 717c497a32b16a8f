"""Settings: which source wins, what becomes of every type, and one line for every mistake."""

import math
import re
from pathlib import Path

import pytest
import timm
from support.recipe_files import ALL, DATA, OF_PAPERS, OF_SAMPLE_MIXING, header, named
from support.settings import cost_of

import timm_mix
from timm_mix.train.cost import steps_per_epoch
from timm_mix.train.errors import UsageError
from timm_mix.train.settings.config import Config, load_recipe, parse_config

OF_MIXMO = [path for path in OF_PAPERS if not path.stem.startswith("splitnet_") and path not in OF_SAMPLE_MIXING]
ROWS = [
    *("vanilla", "mixup", "cutmix", "cut_mixmo_m4_b4"),
    *(f"{row}_m2_b{b}" for row in ("mimo", "linear_mixmo", "cut_mixmo") for b in (1, 2, 4)),
    *(f"{row}_mixmo_cutmix_m2_b{b}" for row in ("linear", "cut") for b in (1, 2, 4)),
]


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe, get its path."""

    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refused(argv, line):
    with pytest.raises(UsageError, match=line) as caught:
        parse_config(argv)
    assert "\n" not in str(caught.value)


def test_a_flag_wins_over_the_recipe_and_the_recipe_over_the_default(recipe):
    config = parse_config(["--config", recipe("epochs: 7\nlr: 0.3\n"), "--epochs", "3"])
    assert (config.optimise.epochs, config.optimise.lr, config.optimise.momentum) == (3, 0.3, 0.9)


def test_the_place_of_the_config_flag_does_not_matter(recipe):
    path = recipe("epochs: 7\n")
    assert parse_config(["--epochs", "3", "--config", path]) == parse_config(["--config", path, "--epochs", "3"])


def test_without_arguments_all_is_default():
    assert parse_config([]) == Config.of()


def test_the_seed_and_the_folder_come_from_the_settings(tmp_path):
    assert parse_config(["--output", str(tmp_path)]).folder == tmp_path / "mixmo_wrn16_2_m2"
    assert parse_config(["--output", str(tmp_path), "--experiment", "mine"]).folder == tmp_path / "mine"
    assert parse_config(["--model", "hf-hub:a/b"]).folder == Path("output/hf-hub_a_b")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("amp: true", "amp", True),
        ("amp: off", "amp", False),
        ("lr: 1e-4", "lr", 1e-4),  # text to yaml 1.1
        ("lr: 1.0e-4", "lr", 1e-4),
        ("lr: 1", "lr", 1.0),
        ("clip_grad: 5e-1", "clip_grad", 0.5),
        ("clip_grad: null", "clip_grad", None),
        ("clip_grad:", "clip_grad", None),
        ("data_dir: ~", "data_dir", None),
        ("mean: [0.1, 2, 1e-1]", "mean", (0.1, 2.0, 0.1)),
        ("mean: null", "mean", None),
        ("no_decay: [norm, bias]", "no_decay", ("norm", "bias")),
        ("no_decay: []", "no_decay", ()),
        ("decay_milestones: [3, 5]", "decay_milestones", (3, 5)),
        ("epochs: 11", "epochs", 11),
        ("num_classes: 13", "num_classes", 13),
        ("data_dir: some/where", "data_dir", "some/where"),
        ("model_kwargs: {block: cut, r: .inf, alpha: 1e-1, mimo: false}", "model_kwargs", "mapping"),
        ("model_kwargs: {}", "model_kwargs", {}),
    ],
)
def test_a_recipe_value_becomes_its_type(recipe, text, name, value):
    if value == "mapping":
        value = {"block": "cut", "r": math.inf, "alpha": 0.1, "mimo": False}
    got = parse_config(["--config", recipe(text)]).flat()[name]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--amp"], "amp", True),
        (["--no-amp"], "amp", False),
        (["--lr", "1e-4"], "lr", 1e-4),
        (["--lr", "1"], "lr", 1.0),
        (["--decay-epochs", "2"], "decay_epochs", 2.0),
        (["--clip-grad", "5e-1"], "clip_grad", 0.5),
        (["--mean", "0.1", "2", "1e-1"], "mean", (0.1, 2.0, 0.1)),
        (["--decay-milestones", "3", "5"], "decay_milestones", (3, 5)),
        (["--num-classes", "13"], "num_classes", 13),
        (["--data-dir", "1e-4"], "data_dir", "1e-4"),
        (["--no-decay", "norm", "bias"], "no_decay", ("norm", "bias")),
        (["--model-kwargs", "alpha=1e-1", "r=inf", "members=3", "mimo=true", "block=cut"], "model_kwargs", "mapping"),
        (["--model-kwargs", "name=a=b"], "model_kwargs", {"name": "a=b"}),
    ],
)
def test_a_flag_value_becomes_its_type(argv, name, value):
    if value == "mapping":
        value = {"alpha": 0.1, "r": math.inf, "members": 3, "mimo": True, "block": "cut"}
    got = parse_config(argv).flat()[name]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("name", ["mix", "model_kwargs"])
def test_pairs_merge_over_those_of_the_recipe(recipe, name):
    flag = f"--{name.replace('_', '-')}"
    text = f"task: mixmo\n{name}: {{block: cut, alpha: 2.0}}"
    config = parse_config(["--config", recipe(text), flag, "alpha=1", "prob=4"])
    assert config.flat()[name] == {"block": "cut", "alpha": 1, "prob": 4}


def test_a_list_flag_replaces_that_of_the_recipe(recipe):
    assert parse_config(["--config", recipe("mean: [1, 2, 3]"), "--mean", "5"]).model.mean == (5.0,)


def test_a_no_flag_takes_back_what_the_recipe_switches_on(recipe):
    assert parse_config(["--config", recipe("amp: true\nmodel_ema: true"), "--no-amp"]) == Config.of(model_ema=True)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epoch: 3", "recipe .*recipe.yaml has an unknown key 'epoch'; did you mean 'epochs'"),
        ("batch-size: 3", "unknown key 'batch-size'; did you mean 'batch_size'"),
        ("zzzzzz: 3", "unknown key 'zzzzzz'; see train --help"),
        ("3: 3", "unknown key 3; see train --help"),
        ("epochs: 3.5", "epochs must be a value of type int, got 3.5"),
        ("epochs: '3'", "epochs must be a value of type int, got '3'"),
        ("epochs: true", "epochs must be a value of type int, got True"),
        ("epochs: null", "epochs must be a value of type int, got None"),
        ("lr: fast", "lr must be a value of type float, got 'fast'"),
        ("lr: true", "lr must be a value of type float, got True"),
        ("lr: [1.0]", r"lr must be a value of type float, got \[1.0\]"),
        ("amp: 1", "amp must be a value of type bool, got 1"),
        ("model: 3", "model must be a value of type str, got 3"),
        ("mean: 0.5", "mean must be a list, got 0.5"),
        ("mean: [a, 0.5]", "mean must be a value of type float, got 'a'"),
        ("decay_milestones: [1.5]", "decay_milestones must be a value of type int, got 1.5"),
        ("mix: cut", "mix must be a mapping, got 'cut'"),
        ("mix:", "mix must be a mapping, got None"),
        ("- epochs", "recipe.yaml must be a mapping of settings, got list"),
        ("", "recipe.yaml must be a mapping of settings, got NoneType"),
        ("epochs: [1\nlr: {", "recipe.yaml is not valid yaml: "),
        ("epochs: 3\nlr: 0.1\nepochs: 5", "recipe.yaml is not valid yaml: epochs stands twice in .* line 3"),
        ("mix: {alpha: 1, block: cut, alpha: 2}", "recipe.yaml is not valid yaml: alpha stands twice in .* line 1"),
        ("\tepochs: 1", "recipe.yaml is not valid yaml: "),
        (
            "task: mixmoo",
            "task must be one of classification, mixmo, cotraining, recursivemix, automix, manifoldmixup, got 'mixmoo'",
        ),
        ("epochs: 0", "epochs must be >= 1, got 0"),
    ],
)
def test_a_mistake_in_the_recipe_is_one_line(recipe, text, line):
    refused(["--config", recipe(text)], line)


def test_a_recipe_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00epochs")
    refused(["--config", str(tmp_path / "recipe.yaml")], "recipe.yaml is not valid yaml: ")


def test_a_missing_recipe_is_one_line(tmp_path):
    refused(["--config", str(tmp_path / "no.yaml")], "cannot read recipe .*no.yaml: No such file or directory")
    refused(["--config", str(tmp_path)], "cannot read recipe .*: Is a directory")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--epoch", "3"], "unrecognized arguments: --epoch 3; see .* --help"),
        (["epochs=3"], "unrecognized arguments: epochs=3; see .* --help"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'; see .* --help"),
        (["--epochs", "3.0"], "argument --epochs: invalid int value: '3.0'"),
        (["--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
        (["--mean", "a"], "argument --mean: invalid float value: 'a'"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--amp", "true"], "unrecognized arguments: true"),
        (["--mix", "cut"], "--mix takes key=value pairs, got 'cut'"),
        (["--mix", "=cut"], "--mix takes key=value pairs, got '=cut'"),
        (["--model-kwargs", "members"], "--model-kwargs takes key=value pairs, got 'members'"),
        (["--model-kwargs", "members={"], r"--model-kwargs.*'members=\{'"),
        (
            ["--task", "mixup"],
            "task must be one of classification, mixmo, cotraining, recursivemix, automix, manifoldmixup, got 'mixup'",
        ),
        (["--aug", "big"], "aug must be one of small, imagenet, none, got 'big'"),
        (["--amp-dtype", "fp16"], "amp_dtype must be one of bfloat16, float16, got 'fp16'"),
        (["--clip-mode", "max"], "clip_mode must be one of norm, value, agc, got 'max'"),
        (["--export", "first"], "export must be one of last, best, got 'first'"),
        (["--mixer", "mixmix"], "mixer must be one of mixup, cutmix, resizemix, switch, got 'mixmix'"),
        (["--mixer", "mixup", "--task", "mixmo"], "mixer is for task classification, got task mixmo; drop one"),
        (["--mixer", "cutmix", "--mixup", "1"], "mixer cutmix takes the place of mixup and cutmix; drop one"),
        (["--block-lr", "1"], "block_lr are for task automix, got task classification; drop them"),
        (["--task", "automix", "--block-lr", "-1"], r"block_lr must be >= 0 and finite in float32, got -1"),
        (["--task", "automix", "--block-lr", "nan"], r"block_lr must be >= 0 and finite in float32, got nan"),
        (["--task", "automix", "--block-momentum", "1"], r"block_momentum must lie in \[0, 1\), got 1"),
        (
            ["--task", "automix", "--block-min-lr", "0", "--sched", "plateau"],
            "block_min_lr needs a schedule that is known beforehand, got sched plateau; take cosine",
        ),
        (["--mixup-mode", "half"], "mixup_mode must be one of batch, pair, elem, got 'half'"),
        (["--mixup", "-1"], "mixup must be >= 0 and finite in float32, got -1"),
        (["--cutmix", "nan"], "cutmix must be >= 0 and finite in float32, got nan"),
        (["--l2-penalty", "-1"], "l2_penalty must be >= 0 and finite in float32, got -1"),
        (["--l2-penalty", "inf"], "l2_penalty must be >= 0 and finite in float32, got inf"),
        (
            ["--sched-after-warmup", "--epochs", "5", "--warmup-epochs", "5"],
            "warmup_epochs must be less than epochs, else lr is never used, got 5 of 5; give --warmup-epochs 2",
        ),
        (["--epochs", "1", "--warmup-epochs", "1"], "else lr is never used, got 1 of 1; give --warmup-epochs 0"),
        (["--mixup-prob", "1.1"], r"mixup_prob must lie in \[0, 1\], got 1.1"),
        (["--mixup-switch-prob", "-1"], r"mixup_switch_prob must lie in \[0, 1\], got -1"),
        (
            ["--mixup", "1", "--batch-size", "9"],
            "mixup and cutmix need an even batch_size, got 9; take one more or less",
        ),
        (["--cutmix", "1", "--task", "mixmo"], "are for task classification, got task mixmo; drop them"),
        (["--mixup", "1", "--task", "cotraining"], "are for task classification, got task cotraining; drop them"),
        (["--epochs", "0"], "epochs must be >= 1, got 0"),
        (["--epochs", "-1"], "epochs must be >= 1, got -1"),
        (["--batch-size", "0"], "batch_size must be >= 1, got 0"),
        (["--batch-repeats", "0"], "batch_repeats must be >= 1, got 0"),
        (["--grad-accum-steps", "0"], "grad_accum_steps must be >= 1, got 0"),
    ],
)
def test_a_mistake_in_a_flag_is_one_line(argv, line):
    refused(argv, line)


def test_help_prints_every_setting(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_config(["--help"])
    text = capsys.readouterr().out
    for setting in Config.settings().values():
        assert setting.flag in text


def test_help_names_every_part_without_its_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_config(["--help"])
    lines = capsys.readouterr().out.splitlines()
    titles = [line[:-1] for line in lines if line[:1].strip() and line.endswith(":")]
    assert titles == ["options", "data", "model", "task and mixing", "augmentation", "optimisation", "run"]
    assert not any(">>>" in line for line in lines)


def test_an_odd_batch_is_accepted_without_mixup():
    assert parse_config(["--batch-size", "9", "--mixup-prob", "0.5"]).data.batch_size == 9


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_there_is_a_recipe_for_every_row_of_the_cifar_tables(dataset):
    assert {path.stem for path in OF_MIXMO if path.parent.name == dataset} == set(ROWS)


def test_there_is_a_recipe_for_every_width_on_tiny_imagenet():
    rows = {f"{row}_w{width}" for row in ("vanilla", "linear_mixmo", "cut_mixmo") for width in (1, 2, 3)}
    stems = {path.stem.removesuffix("_m2_b4") for path in OF_MIXMO if path.parent.name == "tiny_imagenet"}
    assert stems == rows


def test_no_two_recipes_share_a_folder():
    folders = [parse_config(["--config", str(path)]).folder for path in ALL]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", OF_MIXMO, ids=named)
def test_a_header_states_command_published_figure_and_source(path):
    stated = header(path)
    assert stated["command"] == (
        f"python train_scripts/train.py --config train_scripts/recipes/{path.parent.name}/{path.name}"
    )
    figure = r"\d\d\.\d\d(-\d\d\.\d\d)? %(, NLL_c 0\.\d{3})? \((released checkpoints?|paper's table)\)"
    assert re.fullmatch(rf"none known|{figure}(, {figure})?", stated["published"])
    assert "arXiv:2103.06132" in stated["title"]


costs = {}  # of the networks: counting takes a second


@pytest.mark.parametrize("path", OF_MIXMO, ids=named)
def test_a_header_states_the_cost_that_train_prints(path):
    config = parse_config(["--config", str(path)])
    images, num_classes = DATA[path.parent.name]
    key = (
        path.parent.name,
        config.model.name,
        config.data.batch_size,
        config.data.batch_repeats,
        config.optimise.epochs,
    )
    if key not in costs:
        steps = steps_per_epoch(config.data, images)
        costs[key] = cost_of(config, num_classes=num_classes, steps_per_epoch=steps)
    assert header(path)["cost"] == str(costs[key])


@pytest.mark.parametrize("path", [path for path in OF_MIXMO if "cifar" in path.parent.name], ids=named)
def test_the_cifar_recipes_train_as_published(path):
    config = parse_config(["--config", str(path)])
    assert (
        config.optimise.epochs,
        config.data.batch_size,
        config.optimise.weight_decay,
        config.optimise.l2_penalty,
    ) == (300, 64, 0.0, 3e-4)
    assert (config.optimise.decay_milestones, config.optimise.decay_rate, config.optimise.sched_on_updates) == (
        (100, 200, 225),
        0.1,
        True,
    )
    assert (
        config.optimise.lr == {1: 0.05, 2: 0.025, 4: 0.0125}[config.data.batch_repeats]
    )  # 2: interpolated, the header says so
    assert config.model.name == (
        f"mixmo_wrn28_10_m{config.model.name[-1]}" if config.task.name == "mixmo" else "wrn28_10"
    )
    assert (
        f"M = {config.model.name[-1]}, b = {config.data.batch_repeats}:" in header(path)["title"]
        or config.task.name != "mixmo"
    )


@pytest.mark.parametrize("path", ALL, ids=named)
def test_the_task_takes_the_settings_of_the_recipe(path):
    config = parse_config(["--config", str(path)])
    if config.task.name == "classification":
        assert not config.task.mix
        return
    names = {"mixmo": "mixmo_wrn16_2_m2", "cotraining": "splitnet_wrn28_10_s2"}
    name = names.get(config.task.name, "resnet18" if config.task.mix.get("reduction") == 16 else "resnet18_cifar")
    model = timm.create_model(name, num_classes=3, device="meta")
    clock = {"steps_per_epoch": 5, "total_steps": 5 * config.optimise.epochs}
    timm_mix.create_task(config.task.name, model, None, num_classes=3, verbose=False, **clock, **config.task.mix)


@pytest.mark.parametrize("path", ALL, ids=named)
def test_every_recipe_parses_and_names_a_model_that_timm_knows(path):
    config = parse_config(["--config", str(path)])
    assert timm.is_model(config.model.name)
    assert set(load_recipe(path)) <= set(config.settings())
    assert config.run.experiment, "two recipes of one model would share a folder"
