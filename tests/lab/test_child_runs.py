"""Runs in child processes: what counts as done, what a failure says, signals, and the lock. Children here are fakes."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from suite_files import a_suite, write_results

from timm_mix.lab.suites import child_runs
from timm_mix.lab.suites.child_runs import Failure, Progress, locked, measured, progress_of, run_all
from timm_mix.lab.suites.plan import Run
from timm_mix.train.errors import Stopped, UsageError
from timm_mix.train.settings.config import Config, load_recipe

# argv: this code, train, --config, recipe, --resume, auto; `answer.json` beside the recipe becomes the results
WELL = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[3]).parent
assert sys.argv[1:3] + sys.argv[4:] == ["train", "--config", "--resume", "auto"]
print("threads", os.environ["OMP_NUM_THREADS"], flush=True)
os.replace(folder / "answer.json", folder / "results.json")
"""
BADLY = "import sys; print('first'); print('error: no such thing', file=sys.stderr); sys.exit(3)"
SLOWLY = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[3]).parent
def stop(number, frame):
    with open(folder / "stopped", "a") as stream:
        stream.write(f"{number} ")
    time.sleep(0.3)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
(folder / "started").touch()
time.sleep(60)
"""


def fake(code):
    return [sys.executable, "-c", code]


@pytest.fixture
def runs(tmp_path):
    return a_suite(("plain", None), ("mixed", "plain"), seeds=(3, 5)).runs(tmp_path)


def answer(run, **figures):
    """What the fake will have done."""
    write_results(run, **figures)
    os.replace(run.folder / "results.json", run.folder / "answer.json")


def changed(run, **settings):
    return Run(run.method, {**run.settings, **settings})


def test_a_run_is_done_when_all_epochs_are_there(runs):
    assert progress_of(runs[0]) == Progress(0, None)
    write_results(runs[0], seconds=(1.0, 1.0), total=3)
    assert (progress_of(runs[0]).epochs, progress_of(runs[0]).done) == (2, False)
    write_results(runs[0], seconds=(1.0, 1.0, 1.0), total=3)
    assert (progress_of(runs[0]).epochs, progress_of(runs[0]).done) == (3, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 3}, "was made with epochs=2, the suite wants 3: remove that folder, or give another --output"),
        ({"mean": (0.5, 0.5, 0.5)}, r"was made with mean=None, the suite wants \[0.5, 0.5, 0.5\]"),
        ({"model_kwargs": {"alpha": 1.0}}, r"was made with model_kwargs=.*, the suite wants \{'alpha': 1.0\}"),
    ],
)
def test_a_changed_setting_is_named(settings, message, runs):
    write_results(runs[0])
    with pytest.raises(UsageError, match=message):
        progress_of(changed(runs[0], **settings))


def test_what_changes_no_figure_may_change(runs):
    write_results(runs[0])
    assert progress_of(changed(runs[0], log_interval=3, pin_mem=True)).done


def test_a_setting_that_is_younger_than_the_run_had_its_default(runs):
    write_results(runs[0])
    path = runs[0].folder / "results.json"
    content = json.loads(path.read_text())
    del content["config"]["clip_mode"]
    path.write_text(json.dumps(content))
    assert progress_of(runs[0]).done
    with pytest.raises(UsageError, match="clip_mode=norm, the suite wants agc"):
        progress_of(changed(runs[0], clip_mode="agc"))


def test_the_number_of_workers_is_free_but_for_a_stream(runs):
    write_results(runs[0])
    assert progress_of(changed(runs[0], workers=5)).done
    stream = changed(runs[0], dataset="wds/x")
    write_results(stream)
    with pytest.raises(UsageError, match="was made with workers=2, the suite wants 5: remove that folder"):
        progress_of(changed(stream, workers=5))


def test_a_checkpoint_without_results_has_the_settings_of_its_recipe(runs):
    run_all(runs[:1], command=fake(BADLY))
    assert progress_of(changed(runs[0], epochs=3)) == Progress(0, None)  # nothing there yet that could differ
    (runs[0].folder / "checkpoints").mkdir()
    assert progress_of(runs[0]) == Progress(0, None)
    with pytest.raises(UsageError, match="was made with epochs=2, the suite wants 3"):
        progress_of(changed(runs[0], epochs=3))


@pytest.mark.parametrize("text", ["{", "[]", '{"epochs": []}', "3"])
def test_a_foreign_results_file_is_refused(text, runs):
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "results.json").write_text(text)
    with pytest.raises(UsageError, match=r"is no results file of train\.py: remove it, or give another --output"):
        progress_of(runs[0])


def test_the_recipe_of_a_run_holds_its_settings(runs):
    run = changed(runs[0], mean=(0.5, 0.25, 0.1), lr=1e-5, aa=None, no_decay=("bias",), model_kwargs={"alpha": 2.0})
    run_all([run], command=fake(BADLY))
    assert Config.of(**load_recipe(run.folder / "recipe.yaml")) == run.config


def test_every_run_is_run_with_its_threads(runs):
    for run in runs:
        answer(run)
    ended = []
    assert run_all(runs, threads=3, finished=lambda run, outcome: ended.append(outcome.done), command=fake(WELL)) == []
    assert ended == [True] * 4
    assert {(run.folder / "train.log").read_text() for run in runs} == {"threads 3\n"}


@pytest.mark.parametrize("jobs", [1, 3])
def test_as_many_run_at_a_time_as_wanted(jobs, runs):
    at_work, most = set(), 0
    for run in runs:
        answer(run)

    def started(run):
        nonlocal most
        at_work.add(str(run))
        most = max(most, len(at_work))

    slow = fake("import time; time.sleep(0.3)\n" + WELL)
    run_all(runs, jobs=jobs, started=started, finished=lambda run, _: at_work.remove(str(run)), command=slow)
    assert (most, at_work) == (jobs, set())


def test_a_failed_run_keeps_no_other_from_running(runs):
    answer(runs[1])
    code = f"import sys\nif 'plain' in sys.argv[3]:\n    {BADLY}\n{WELL}"
    (failure,) = run_all(runs[:2], command=fake(code))
    assert failure.run == runs[0]
    assert failure.reason == f"exit status 3: error: no such thing; see {runs[0].folder / 'train.log'}"
    assert progress_of(runs[1]).done


def test_a_folder_that_is_removed_under_a_run_is_no_more_than_its_failure(runs):
    code = "import pathlib, shutil, sys; shutil.rmtree(pathlib.Path(sys.argv[3]).parent); sys.exit(3)"
    (failure,) = run_all(runs[:1], command=fake(code))
    assert failure.reason == f"exit status 3; see {runs[0].folder / 'train.log'}"


def test_a_folder_that_cannot_be_written_ends_the_suite_with_one_line(runs, tmp_path):
    (tmp_path / "plain").write_text("a file in the place of the method's folder")
    with pytest.raises(UsageError, match=r"cannot write to .*plain/seed3: "):
        run_all(runs[:1], command=fake(WELL))


def test_a_failure_says_what_ended_the_run(runs):
    (killed,) = run_all(runs[:1], command=fake("import os; os.kill(os.getpid(), 9)"))
    assert killed.reason == f"signal 9; see {runs[0].folder / 'train.log'}"
    answer(runs[1], seconds=(1.0,), total=2)
    (short,) = run_all(runs[1:2], command=fake(WELL))
    assert short.reason.startswith("ended after 1 epochs")
    answer(runs[2])
    other = json.loads((runs[2].folder / "answer.json").read_text())
    other["config"]["lr"] = 0.7
    (runs[2].folder / "answer.json").write_text(json.dumps(other))
    (strange,) = run_all(runs[2:3], command=fake(WELL))
    assert "was made with lr=0.7" in strange.reason


def test_the_log_keeps_earlier_attempts(runs):
    run_all(runs[:1], command=fake(BADLY))
    run_all(runs[:1], command=fake(BADLY))
    assert (runs[0].folder / "train.log").read_text().count("no such thing") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_nothing_more_is_started(number, runs):
    def send():
        while not all((run.folder / "started").exists() for run in runs[:2]):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before, outcomes = signal.getsignal(number), []
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Stopped, match=f"^stopped by {number.name}; the same command goes on") as caught:
        run_all(runs, jobs=2, finished=lambda *outcome: outcomes.append(outcome), command=fake(SLOWLY))
    sender.join()
    assert caught.value.status == 128 + number
    assert [(run.folder / "stopped").read_text() for run in runs[:2]] == [f"{number:d} "] * 2
    assert not any(run.folder.exists() for run in runs[2:])
    assert outcomes == []  # a run that was stopped has not failed
    assert signal.getsignal(number) is before


def test_one_process_at_a_time_works_in_a_folder(tmp_path):
    with locked(tmp_path / "new"), pytest.raises(UsageError, match=r"new is in use by another compare\.py"):
        locked(tmp_path / "new").__enter__()
    with locked(tmp_path / "new"):
        pass


def test_a_child_that_outlives_its_parent_keeps_the_folder(runs, tmp_path):
    with locked(tmp_path):
        child = child_runs._start(runs[0], fake(SLOWLY), threads=1)
    with pytest.raises(UsageError, match="or by a run that one left behind"):
        locked(tmp_path).__enter__()
    child.kill()
    child.wait()
    with locked(tmp_path):
        pass


def test_an_error_here_leaves_no_child_behind(runs):
    def fault(run):
        while not (run.folder / "started").exists():
            time.sleep(0.02)
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        run_all(runs, started=fault, command=fake(SLOWLY))
    assert (runs[0].folder / "stopped").read_text() == f"{signal.SIGTERM:d} "


def test_a_folder_that_cannot_be_made_is_said_so():
    with pytest.raises(UsageError, match=r"cannot write to /dev/null/x \(.*\): give another --output"):
        locked(Path("/dev/null/x")).__enter__()


def test_a_failure_is_told_as_it_happens(runs):
    told = []
    run_all(runs[:1], finished=lambda run, outcome: told.append(outcome), command=fake(BADLY))
    assert isinstance(told[0], Failure)


# validate's fake, --output is the folder of the test, and the trainer's
TESTS = """
import json, pathlib, sys
words = sys.argv[1:]
if words[0] == "validate":
    folder = pathlib.Path(words[words.index("--output") + 1])
    folder.mkdir()
    content = {"config": {"split": "held", "data_dir": None}, "words": words}
    (folder / "results.json").write_text(json.dumps(content))
    sys.exit()
"""
SAVES = """
(folder / "model").mkdir()
(folder / "model" / "config.json").write_text('{"architecture": "mixmo_wrn16_2_m2"}')
"""


def test_a_run_is_tested_once_it_is_trained(runs):
    run = replace(runs[0], test="held")
    answer(run)
    assert measured(run) is None
    ended = []
    assert run_all([run], finished=lambda *both: ended.append(both), command=fake(TESTS + WELL + SAVES)) == []
    assert [run for run, _ in ended] == [run]
    words = measured(run)["words"]
    assert words[:5] == ["validate", "--model", f"local-dir:{run.folder / 'model'}", "--split", "held"]
    assert {"--save-predictions", "--fold"} < set(words)
    (run.folder / "test" / "results.json").unlink()
    code = "import sys; assert sys.argv[1] == 'validate'; sys.exit(3)"  # what is trained is not trained again
    (failure,) = run_all([run], command=fake(code))
    assert failure.reason.startswith("exit status 3: threads 1; see")


def test_a_test_that_writes_nothing_is_a_failure(runs):
    run = replace(runs[0], test="held")
    write_results(run)
    (run.folder / "model").mkdir()
    (run.folder / "model" / "config.json").write_text('{"architecture": "wrn16_2"}')
    (failure,) = run_all([run], command=fake("pass"))
    assert failure.reason.startswith("validate has written no results; see")


def test_a_run_waits_for_the_model_that_it_needs(runs):
    needs = replace(runs[0], after=runs[1].folder)
    for run in runs:
        answer(run)
    begun, ended = [], []
    run_all(
        [needs, *runs[1:]],
        jobs=2,
        started=lambda run: begun.append(run.folder),
        finished=lambda run, _: ended.append(run.folder) or begun.append("end of " + run.folder.parent.name),
        command=fake(WELL),
    )
    assert begun.index(needs.folder) > begun.index(f"end of {runs[1].folder.parent.name}")
    assert sorted(ended) == sorted(run.folder for run in runs)
