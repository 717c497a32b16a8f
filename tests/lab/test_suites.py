"""Suites: what a file declares, what wins over what, and one line for every mistake."""

import re
from pathlib import Path

import pytest
from support.recipe_files import ALL, DATA
from support.settings import cost_of, task_of

from timm_mix.lab.suites.plan import SUITES, find_suite, load_suite
from timm_mix.train.cost import steps_per_epoch
from timm_mix.train.errors import UsageError
from timm_mix.train.loop.build import build_model

pytestmark = pytest.mark.slow

TASK_OF = {
    **dict.fromkeys(["mimo_m2_b2", "linear_mixmo_m2_b2", "cut_mixmo_m2_b2", "cut_mixmo_cutmix_m2_b2"], "MixMoTask"),
    **dict.fromkeys(["splitnet_s2", "splitnet_s4", "deep_ensemble_2"], "CoTrainingTask"),
    **{"cut_mixmo_m2": "MixMoTask", "recursivemix": "RecursiveMixTask", "automix": "AutoMixTask"},
}
PLAIN = "methods: [{name: plain}]\n"
TUNED = "command: finetune\ntest: test\nsettings: {model: wrn16_2}\n"
AVERAGES = "test: test\nmethods:\n  - {name: plain}\n"


@pytest.fixture
def suite_file(tmp_path):
    """Write a suite and the recipes `a.yaml` and `b.yaml` beside it, get the suite's path."""
    (tmp_path / "a.yaml").write_text("model: wrn16_2\nepochs: 3\nlr: 0.3\nseed: 7\nmodel_kwargs: {depth: 10}\n")
    (tmp_path / "b.yaml").write_text("model: wrn16_4\nepochs: 4\n")

    def write(text):
        path = tmp_path / "suite" / "mine.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def one(path, **kwargs):
    (method,) = load_suite(path, **kwargs).methods
    return method


def test_the_method_wins_over_the_suite_and_the_suite_over_the_recipe(suite_file):
    text = "settings: {epochs: 5, lr: 0.5}\nmethods: [{recipe: ../a.yaml, settings: {lr: 0.7}}]\n"
    method = one(suite_file(text))
    assert (method.name, method.settings["model"], method.settings["epochs"]) == ("a", "wrn16_2", 5)
    assert method.settings["lr"] == 0.7
    assert one(suite_file(text), settings={"lr": 0.9}).settings["lr"] == 0.9


def test_mappings_are_merged_key_by_key(suite_file):
    text = "settings: {model_kwargs: {widen_factor: 1}}\n"
    text += "methods: [{recipe: ../a.yaml, settings: {model_kwargs: {widen_factor: 3, drop_rate: 0.1}}}]\n"
    assert one(suite_file(text)).settings["model_kwargs"] == {"depth": 10, "widen_factor": 3, "drop_rate": 0.1}


def test_an_empty_mapping_drops_what_the_recipe_has(suite_file):
    text = "methods: [{recipe: ../a.yaml, settings: {model: resnet18, model_kwargs: {}}}]\n"
    assert one(suite_file(text)).settings["model_kwargs"] == {}


def test_a_pattern_gives_a_method_per_recipe(suite_file):
    suite = load_suite(suite_file("baseline: b\nmethods: [{recipe: '../[ab].yaml'}]\n"))
    assert [(method.name, method.baseline) for method in suite.methods] == [("a", "b"), ("b", None)]


def test_a_method_may_have_its_own_baseline_or_none(suite_file):
    text = "baseline: x\nmethods: [{name: x}, {name: y}, {name: z, baseline: y}, {name: w, baseline: null}]\n"
    suite = load_suite(suite_file(text))
    assert [method.baseline for method in suite.methods] == [None, "x", "y", None]


def test_runs_are_all_seeds_of_all_methods_each_in_its_folder(suite_file, tmp_path):
    suite = load_suite(suite_file("seeds: [3, 5]\nmethods: [{recipe: ../a.yaml}, {name: plain}]\n"))
    runs = suite.runs(tmp_path / "out")
    assert [str(run) for run in runs] == ["a seed 3", "plain seed 3", "a seed 5", "plain seed 5"]
    assert [run.config.run.seed for run in runs] == [3, 3, 5, 5]  # whatever the recipe's seed is
    assert [run.folder.relative_to(tmp_path / "out") for run in runs] == [
        Path(name) for name in ("a/seed3", "plain/seed3", "a/seed5", "plain/seed5")
    ]


def test_seeds_given_by_hand_replace_those_of_the_file(suite_file):
    assert load_suite(suite_file("seeds: [3, 5]\n" + PLAIN), seeds=[11]).seeds == (11,)
    assert load_suite(suite_file(PLAIN)).seeds == (0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "must be a mapping, got list"),
        ("seed: [1]\n" + PLAIN, "unknown key 'seed'; did you mean 'seeds'?"),
        (
            "colour: 1\n" + PLAIN,
            "unknown key 'colour'; known are command, test, seeds, baseline, data, settings, methods",
        ),
        ("seeds: 3\n" + PLAIN, "seeds must be a list of different integers >= 0, got 3"),
        ("seeds: [1, 1]\n" + PLAIN, "seeds must be a list of different integers >= 0, got [1, 1]"),
        ("seeds: [-1]\n" + PLAIN, "seeds must be a list of different integers >= 0, got [-1]"),
        ("seeds: [true]\n" + PLAIN, "seeds must be a list of different integers >= 0, got [True]"),
        ("seeds: []\n" + PLAIN, "seeds must be a list of different integers >= 0, got []"),
        ("data: {images: many}\n" + PLAIN, "data: images must be an integer >= 1, got 'many'"),
        ("data: {image: 3}\n" + PLAIN, "data has an unknown key 'image'; did you mean 'images'?"),
        ("settings: {epoch: 3}\n" + PLAIN, "settings has an unknown key 'epoch'; did you mean 'epochs'?"),
        ("settings: {epochs: three}\n" + PLAIN, "settings: epochs must be a value of type int, got 'three'"),
        ("settings: {seed: 3}\n" + PLAIN, "settings: seed differs from run to run and is set by compare.py; drop it"),
        ("seeds: [1]\n", "methods must be a list of at least one method, got None"),
        ("methods: []\n", "methods must be a list of at least one method, got []"),
        ("methods: [plain]\n", "method 1 must be a mapping, got str"),
        ("methods: [{nam: x}]\n", "method 1 has an unknown key 'nam'; did you mean 'name'?"),
        ("methods: [{name: 3}]\n", "method 1: name must be text, got 3"),
        ("methods: [{name: a/b}]\n", "method 1: a name is made of letters, digits and . _ + -, got 'a/b'"),
        ("methods: [{settings: {lr: 1.0}}]\n", "method 1 has neither a recipe nor a name: give one"),
        ("methods: [{recipe: ../c*.yaml}]\n", "method 1: no recipe is called"),
        ("methods: [{recipe: ../c.yaml}]\n", "cannot read recipe"),
        ("methods: [{recipe: '../[ab].yaml', name: x}]\n", "has the name 'x' and 2 recipes: drop the name"),
        ("methods: [{name: x}, {name: x}]\n", "has 2 methods called 'x': give each a name of its own"),
        ("baseline: plan\n" + PLAIN, "the baseline 'plan' is none of its methods; did you mean 'plain'?"),
        ("methods: [{name: x, settings: {epochs: 0}}]\n", "method 1 (x): epochs must be >= 1, got 0"),
        ("command: evaluate\n" + PLAIN, "command must be one of train, finetune, got 'evaluate'"),
        ("test: [val]\n" + PLAIN, "test must be the name of a split, got ['val']"),
        ("settings: {teacher: x}\n" + PLAIN, "settings has an unknown key 'teacher'"),
        ("methods: [{name: x, seed_offset: -1}]\n", "method 1: seed_offset must be an integer >= 0, got -1"),
        ("methods: [{name: x, teacher: x}]\n", "method 1: teacher is for command finetune, got train: drop it"),
        (TUNED + "methods: [{name: x, teacher: x}]\n", "the teacher 'x' has a teacher itself: name another method"),
        (TUNED + "methods: [{name: x, teacher: y}]\n", "the teacher 'y' is none of its methods; name one of its"),
        (TUNED + "methods: [{name: x, settings: {model: wrn99}}]\n", "method 1 (x): no model is named 'wrn99'"),
        (
            AVERAGES + "  - {name: x, average: [plain]}\n",
            "average must be a list of two methods or more, got ['plain']",
        ),
        (
            AVERAGES + "  - {name: x, average: [plain, plan]}\n",
            "the averaged 'plan' is none of its methods; did you mean",
        ),
        (AVERAGES + "  - {name: x, average: [plain, x]}\n", "the averaged 'x' is none of its methods"),
        (
            AVERAGES + "  - {name: x, average: [plain, plain], settings: {lr: 1.0}}\n",
            "an average trains nothing, got set",
        ),
        (AVERAGES[5:].partition("\n")[2] + "  - {name: x, average: [plain, plain]}\n", "give the suite test: NAME"),
        (
            TUNED + "methods: [{name: x, teacher: y}, {name: y, average: [x, x]}]\n",
            "the teacher 'y' is an average, no model: name another method",
        ),
        (
            "methods: [{name: x, settings: {task: recursivemix, mix: {omga: 1}}}]\n",
            "method 1 (x): task recursivemix has no setting 'omga'; did you mean 'omega'?",
        ),
    ],
)
def test_a_mistake_is_one_line(text, message, suite_file):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        load_suite(suite_file(text))
    assert "\n" not in str(caught.value)


def test_an_unknown_setting_by_hand_is_named(suite_file):
    with pytest.raises(UsageError, match="--set has an unknown key 'epoch'; did you mean 'epochs'"):
        load_suite(suite_file(PLAIN), settings={"epoch": 3})


def test_a_suite_is_found_by_name_or_by_path(suite_file):
    assert find_suite("digits_smoke") == SUITES / "digits_smoke.yaml"
    assert find_suite("some/where/mine.yaml") == Path("some/where/mine.yaml")
    with pytest.raises(UsageError, match="no suite 'digit_smoke'; did you mean 'digits_smoke'"):
        find_suite("digit_smoke")
    with pytest.raises(UsageError, match="no suite 'x'; give a file, or one of cifar10, cifar100, "):
        find_suite("x")
    with pytest.raises(UsageError, match=r"cannot read suite .*: No such file"):
        load_suite(Path("nowhere/mine.yaml"))


def test_a_suite_of_fine_tuning_names_teachers_other_seeds_and_averages(suite_file, tmp_path):
    text = TUNED + "methods:\n  - {name: plain}\n  - {name: again, seed_offset: 100}\n"
    text += "  - {name: taught, teacher: plain}\n  - {name: both, average: [plain, again]}\n"
    suite = load_suite(suite_file(text), seeds=[3, 5])
    runs = {(run.method, run.seed): run for run in suite.runs(tmp_path)}
    assert set(runs) == {(name, seed) for name in ("plain", "again", "taught") for seed in (3, 5)}
    assert runs["again", 5].config.run.seed == 105
    assert runs["taught", 5].after == runs["plain", 5].folder == tmp_path / "plain" / "seed5"
    assert runs["taught", 5].config.finetune.teacher == f"local-dir:{tmp_path / 'plain' / 'seed5' / 'model'}"
    assert {(run.command, run.test, run.config.optimise.opt) for run in runs.values()} == {
        ("finetune", "test", "adamw")
    }
    assert runs["plain", 3].config.model.model_kwargs == {}


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.yaml")))
def test_every_committed_suite_loads(name):
    assert load_suite(find_suite(name)).methods


@pytest.mark.parametrize("name", sorted(DATA))
def test_the_published_suites_hold_every_recipe_of_their_data(name):
    suite = load_suite(find_suite(name))
    assert sorted(method.name for method in suite.methods) == [path.stem for path in ALL if path.parent.name == name]
    assert (suite.images, suite.classes) == DATA[name]
    for method in suite.methods:  # an undivided network is compared to nothing
        assert method.baseline is None or not method.name.endswith(("_s1", "_s1_e1800"))


@pytest.mark.parametrize("name", ["digits_smoke", "cifar100_h200"])
def test_the_models_and_tasks_of_our_own_suites_can_be_built(name):
    suite = load_suite(find_suite(name), seeds=[0], settings={"model_kwargs": {"depth": 10}})
    for run in suite.runs(Path("output")):
        model = build_model(run.config.model, suite.classes)
        task = task_of(run.config, model, suite.classes, steps_per_epoch=7)
        assert type(task).__name__ == TASK_OF.get(run.method, "ClassificationTask"), run


def test_the_header_of_the_h200_suite_states_its_cost():
    suite = load_suite(find_suite("cifar100_h200"))
    flops = 0.0
    for run in suite.runs(Path("output")):
        config = run.config
        steps = steps_per_epoch(config.data, suite.images)
        flops += cost_of(config, num_classes=suite.classes, steps_per_epoch=steps).flops
    text = find_suite("cifar100_h200").read_text(encoding="utf-8")
    assert f"# cost: {flops:.3g} FLOPs for one seed" in text
    assert "deep_ensemble_2" in {method.name for method in suite.methods}


@pytest.mark.parametrize("name", ["digits_smoke", "digits_longer", "finetune_search", "finetune_search_few_shot"])
def test_the_committed_table_has_a_row_for_every_method_and_all_seeds(name):
    suite = load_suite(SUITES / f"{name}.yaml")
    rows = re.findall(r"^\| ([\w-]+) \| (\d+) \|", (SUITES / f"{name}.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(method.name, str(len(suite.seeds))) for method in suite.methods]
