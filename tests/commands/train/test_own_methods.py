"""Methods of the user's own, from a module beside the photographs, train by their names."""

import sys

import pytest
from script_runs import TASKS

from timm_mix.mixers import MIXERS
from timm_mix.tasks import TASKS as TASK_REGISTRY
from timm_mix.train.errors import UsageError
from timm_mix.train.settings.config import parse_config

MODULE = '''
import timm_mix
from timm_mix.mixers import Mixup
from timm_mix.tasks import ManifoldMixupTask


@timm_mix.register_task("my-task")
class Mine(ManifoldMixupTask):
    """Manifold Mixup under another name."""


@timm_mix.register_mixer("my-mixer")
class MyMixer(Mixup):
    """Mixup under another name."""
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module in the working directory; forgotten with its methods afterwards."""
    (tmp_path / "my_methods.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with TASK_REGISTRY.scoped(), MIXERS.scoped():
        yield "my_methods"
    sys.modules.pop("my_methods", None)


@pytest.mark.parametrize("flags", [["--task", "my-task"], ["--mixer", "my-mixer"]], ids=["task", "mixer"])
def test_a_method_of_an_imported_module_trains_by_name(flags, module, run):
    results = run(*TASKS["classification"], "--import", module, *flags)
    assert results["config"]["imports"] == (module,)
    assert results["config"][flags[0].removeprefix("--")] == flags[1]
    assert results["epochs"][0]["train"]["loss"] > 0


def test_without_the_import_the_name_is_unknown(module):
    with pytest.raises(UsageError, match=r"task must be one of classification, mixmo, .*, got 'my-task'"):
        parse_config(["--task", "my-task"])


def test_a_recipe_may_import(module, tmp_path):
    (tmp_path / "mine.yaml").write_text("imports: [my_methods]\ntask: my-task\n")
    assert parse_config(["--config", "mine.yaml"]).task.name == "my-task"


@pytest.mark.parametrize(
    ("text", "reason"), [(None, "No module named 'broken_methods'"), ("1 / 0", "division by zero")]
)
def test_a_module_that_cannot_be_imported_is_one_line(text, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if text is not None:
        (tmp_path / "broken_methods.py").write_text(text)
    with pytest.raises(UsageError, match=rf"cannot import 'broken_methods' \({reason}\); give the name of a module"):
        parse_config(["--import", "broken_methods"])
