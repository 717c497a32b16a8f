"""compare.py from the suite file to the tables, with real runs in child processes on tiny images."""

import json
import os
import signal
import subprocess
import traceback
from types import SimpleNamespace

import pytest
from script_runs import SIZE, figures

from timm_mix.commands import compare
from timm_mix.commands.train import main as train
from timm_mix.lab.suites import child_runs
from timm_mix.train.errors import UsageError, run_script

pytestmark = pytest.mark.slow

TABLES = {"table.md", "table.csv", "costs.md", "costs.csv", "table.png"}


@pytest.fixture
def suite(images, tmp_path):
    """A suite of a plain and a mixed tiny network; its path."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
        baseline: plain
        data: {{images: 36, classes: 3}}
        settings: {{
          model: wrn16_2, model_kwargs: {{depth: 10, widen_factor: 1}}, data_dir: {images}, aug: small,
          img_size: {SIZE}, batch_size: 8, epochs: 2, workers: 0, cpu: true,
        }}
        methods:
          - name: plain
          - {{name: mixed, settings: {{cutmix: 1.0}}}}
        """
    )
    return path


@pytest.fixture
def run(suite, tmp_path):
    """Run compare.py on the suite; get the folder."""

    def start(*flags, output="out"):
        compare.main(["--suite", str(suite), "--output", str(tmp_path / output), *flags])
        return tmp_path / output

    return start


class Forked:
    """A child of compare.py as a fork of this process, where torch is imported already: does what a Popen does here.

    before_poll: called with the child whenever compare.py looks whether it has ended.
    """

    before_poll = staticmethod(lambda child: None)

    def __init__(self, command, *, stdout, **settings):
        self.args, self.pid, self.returncode = command, os.fork(), None
        if self.pid == 0:
            os.setsid()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            status = 1
            try:
                run_script(lambda: train(command[len(child_runs.TIMM_MIX) + 1 :]))
                status = 0
            except SystemExit as end:
                status = end.code
            except BaseException:
                os.write(2, traceback.format_exc().encode())  # sys.stderr is pytest's
            finally:
                os._exit(status)

    def poll(self):
        if self.returncode is None:
            self.before_poll(self)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode


def start_runs_with(monkeypatch, popen):
    """In compare.py alone: what runs in the children may start processes as ever."""
    monkeypatch.setattr(child_runs, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen}))


def row(folder, method):
    (line,) = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith(f"| {method} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_suite_is_run_once_and_its_table_comes_out_the_same(run, capsys, monkeypatch):
    folder = run("--jobs", "2")
    assert {path.name for path in folder.iterdir()} >= TABLES
    assert "mixed seed 0: top-1" in capsys.readouterr().out
    results = json.loads((folder / "mixed" / "seed0" / "results.json").read_text())
    assert (results["hardware"]["threads"], len(results["epochs"]), results["config"]["cutmix"]) == (1, 2, 1.0)
    assert row(folder, "mixed")[:3] == ["mixed", "1", f"{results['last']['ensemble']['top1']:.2f}"]
    table = (folder / "table.md").read_bytes()

    start_runs_with(monkeypatch, None)  # nothing is left to run
    run()
    assert (folder / "table.md").read_bytes() == table
    run("--dry-run")
    plan = capsys.readouterr().out
    assert "mixed seed 0: done, 8 iterations (4 per epoch), 1.00 x the time of plain wrn16_2, " in plan
    with pytest.raises(UsageError, match="was made with epochs=2, the suite wants 3"):
        run("--set", "epochs=3")
    assert (folder / "table.md").read_bytes() == table


def test_a_suite_of_fine_tuning_tests_teaches_and_averages(images, tmp_path, capsys):
    path = tmp_path / "tuned.yaml"
    path.write_text(
        f"""
        command: finetune
        test: val
        baseline: plain
        settings: {{
          model: wrn16_2, model_kwargs: {{depth: 10, widen_factor: 1}}, data_dir: {images}, img_size: {SIZE},
          batch_size: 8, epochs: 2, workers: 0, cpu: true, pretrained: false,
        }}
        methods:
          - name: taught
            teacher: plain
            settings: {{model: splitnet, model_kwargs: {{backbone: wrn16_2, split: 2}}, task: cotraining}}
          - name: plain
          - {{name: again, seed_offset: 50}}
          - {{name: mixed, settings: {{model: mixmo, model_kwargs: {{backbone: wrn16_2}}, task: mixmo}}}}
          - {{name: both, average: [plain, again]}}
        """
    )
    flags = ["--suite", str(path), "--output", str(tmp_path / "out"), "--seeds", "4"]
    compare.main([*flags, "--jobs", "2"])
    table = (tmp_path / "out" / "test.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")][2:] == [
        *("| taught", "| plain", "| again", "| mixed", "| mixed, folded", "| both")
    ]
    content = json.loads((tmp_path / "out" / "taught" / "seed4" / "results.json").read_text())
    assert content["config"]["teacher"] == f"local-dir:{tmp_path / 'out' / 'plain' / 'seed4' / 'model'}"
    again = json.loads((tmp_path / "out" / "again" / "seed4" / "results.json").read_text())
    assert (again["config"]["seed"], again["config"]["opt"]) == (54, "adamw")
    (tmp_path / "out" / "test.md").unlink()
    compare.main([*flags, "--no-runs"])
    assert (tmp_path / "out" / "test.md").read_text() == table
    with pytest.raises(UsageError, match="was made with epochs=2, the suite wants 3"):
        compare.main([*flags, "--set", "epochs=3"])


def test_a_killed_run_fails_the_suite_and_goes_on_the_next_time(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    results = folder / "plain" / "seed4" / "results.json"
    start_runs_with(monkeypatch, Forked)
    monkeypatch.setattr(child_runs, "POLL_SECONDS", 0.01)

    def kill_after_an_epoch(child):
        if results.exists():
            os.kill(child.pid, signal.SIGKILL)

    flags = ["--seeds", "4", "--set", "epochs=6", "mixup=1.0"]
    with monkeypatch.context() as patch:
        patch.setattr(Forked, "before_poll", staticmethod(kill_after_an_epoch))
        with pytest.raises(SystemExit, match=r"^1$") as caught:
            run(*flags)
    assert caught.value.code == 1
    assert 0 < len(json.loads(results.read_text())["epochs"]) < 6
    table = (folder / "table.md").read_text()
    assert "- plain seed 4: signal 9" in table
    assert row(folder, "plain")[1:3] == ["0", ""]
    run(*flags, "--dry-run")
    assert "plain seed 4: goes on after epoch" in capsys.readouterr().out

    run(*flags)
    resumed = json.loads(results.read_text())
    whole = train(["--config", str(results.parent / "recipe.yaml"), "--output", str(tmp_path), "--experiment", "whole"])
    assert [figures(epoch) for epoch in resumed["epochs"]] == [figures(epoch) for epoch in whole["epochs"]]
    assert row(folder, "plain")[1] == "1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--jobs", "0"], "--jobs must be >= 1, got 0"),
        (["--threads", "0"], "--threads must be >= 1, got 0"),
        (["--seeds", "1", "1"], r"seeds must be a list of different integers >= 0, got \[1, 1\]"),
        (["--set", "epoch=1"], "--set has an unknown key 'epoch'; did you mean 'epochs'"),
        (["--set", "epochs"], "--set takes key=value pairs, got 'epochs'"),
        (["--set", "output=x"], "--set: output differs from run to run and is set by compare.py"),
        (["--output", "/dev/null/x"], "cannot write to /dev/null/x"),
    ],
)
def test_a_mistake_is_one_line(flags, message, run):
    with pytest.raises(UsageError, match=message) as caught:
        run(*flags)
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_with_status_2_and_no_table(suite, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        "sys.argv", ["compare.py", "--suite", str(suite), "--output", str(tmp_path / "o"), "--jobs", "0"]
    )
    with pytest.raises(SystemExit, match=r"^2$") as caught:
        run_script(compare.main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: --jobs must be >= 1, got 0\n"
    assert not (tmp_path / "o").exists()


def test_a_missing_library_is_said_before_anything_runs(run, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs matplotlib, which is not installed: pip install 'timm_mix\[plots\]'"):
        run()
    assert not (tmp_path / "out").exists()


def test_the_table_names_the_command_that_makes_it_again():
    flags = ["--suite", "tiny", "--seeds", "3", "5", "--set", "mix={alpha: 1}", "--jobs", "2", "--output", "there"]
    command = compare._command(compare._parser().parse_args(flags))
    assert command == "python train_scripts/compare.py --suite tiny --seeds 3 5 --set 'mix={alpha: 1}'"
