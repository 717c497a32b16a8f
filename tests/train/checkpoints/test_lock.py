"""One run at a time in a folder."""

import os
import signal
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader

from timm_mix.train.checkpoints.lock import FolderLock
from timm_mix.train.errors import UsageError

HOLD = """
import sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from timm_mix.train.checkpoints.lock import FolderLock
FolderLock(Path(sys.argv[1])).take()
batches = iter(DataLoader(range(10**6), num_workers=1, persistent_workers=True))
next(batches)
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process, with a worker, that has the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_folder_is_free_as_soon_as_its_run_is_killed(other, tmp_path):
    with pytest.raises(UsageError, match=f"another run is training in {tmp_path}; wait for it, or give another"):
        FolderLock(tmp_path).take()
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    lock = FolderLock(tmp_path)
    lock.take()  # at once, though the worker may live a little longer
    lock.release()


def test_workers_do_not_hold_the_lock(tmp_path):
    lock = FolderLock(tmp_path)
    lock.take()
    batches = iter(DataLoader(range(8), num_workers=1, persistent_workers=True))
    next(batches)
    lock.release()
    FolderLock(tmp_path).take()
    del batches


def test_taking_twice_and_releasing_twice_is_nothing(tmp_path):
    lock = FolderLock(tmp_path / "new")
    lock.take()
    lock.take()
    lock.release()
    lock.release()
    assert not (tmp_path / "new").exists()  # it held nothing


def test_a_folder_with_something_in_it_stays(tmp_path):
    lock = FolderLock(tmp_path / "new")
    lock.take()
    (tmp_path / "new" / "results.json").write_text("{}")
    lock.release()
    assert (tmp_path / "new" / "results.json").is_file()
