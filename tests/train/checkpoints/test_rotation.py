"""The folder of checkpoints: the newest whole one is found, the oldest go, a killed process leaves nothing behind."""

import errno
import os

import pytest
import torch

from timm_mix.train.checkpoints import folder as rotation
from timm_mix.train.checkpoints.content import VERSION, read_checkpoint
from timm_mix.train.checkpoints.folder import CheckpointFolder
from timm_mix.train.errors import UsageError


def content(update):
    names = ("config", "facts", "state_dict", "task_states", "own_states", "optimizer", "schedule", "scaler")
    return {"version": VERSION, "progress": {"update": update}, **dict.fromkeys(names), "w": torch.zeros(99)}


def name(update):
    return f"update_{update:09d}.pt"


@pytest.fixture
def files(tmp_path):
    return CheckpointFolder(tmp_path / "checkpoints", keep=2)


def present(files):
    return sorted(os.listdir(files.folder))


def update_of(path):
    return read_checkpoint(path)["progress"]["update"]


class TestWrite:
    def test_the_newest_stay_and_last_is_one_of_them(self, files):
        for update in (3, 5, 7, 11):
            files.write(content(update), update)
            assert update_of(files.last) == update
        assert present(files) == ["last.pt", name(7), name(11)]
        assert os.path.samefile(files.last, files.folder / name(11))  # no space for the second name

    def test_the_best_outlives_the_newest(self, files):
        files.write(content(3), 3, best=True)
        for update in (5, 7):
            files.write(content(update), update)
        assert update_of(files.best) == 3
        assert present(files) == ["best.pt", "last.pt", name(5), name(7)]

    def test_an_update_may_be_written_twice(self, files):
        for update in (3, 5, 5):
            files.write(content(update), update)
        assert present(files) == ["last.pt", name(3), name(5)]

    def test_files_of_another_run_stay_until_there_is_one_of_this(self, files):
        files.write(content(70), 70)
        other = CheckpointFolder(files.folder, keep=2)
        assert other.find(None) is None
        assert name(70) in present(files)
        other.write(content(3), 3)
        assert present(files) == ["last.pt", name(3)]

    def test_a_full_disk_leaves_the_older_ones(self, files, monkeypatch):
        for update in (3, 5):
            files.write(content(update), update)
        before = present(files)

        def full(_, stream):
            stream.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(rotation, "write_checkpoint", full)
            for best in (False, True):
                with pytest.raises(OSError, match="No space left on device"):
                    files.write(content(7), 7, best=best)
        assert present(files) == before
        assert update_of(files.find("auto")) == 5


class TestFind:
    def test_auto_is_the_newest(self, files):
        for update in (9, 10, 100):
            files.write(content(update), update)
        assert files.find("auto").name == name(100)

    def test_auto_is_none_where_there_is_none(self, files):
        assert files.find("auto") is None

    def test_auto_takes_last_where_it_is_alone(self, files):
        files.write(content(3), 3)
        (files.folder / name(3)).unlink()
        assert files.find("auto") == files.last

    def test_a_torn_newest_costs_one_warning_and_goes_with_the_next_write(self, files, capsys):
        for update in (3, 5):
            files.write(content(update), update)
        path = files.folder / name(5)
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(whole[:-99])
        fresh = CheckpointFolder(files.folder, keep=2)
        assert fresh.find("auto").name == name(3)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert printed.err.startswith(f"warning: cannot read checkpoint {path} (")
        assert printed.err.endswith(f"; going on from {name(3)}\n")
        fresh.write(content(4), 4)
        assert present(files) == ["last.pt", name(3), name(4)]

    def test_all_of_them_torn_is_an_error_not_a_new_start(self, files):
        for update in (3, 5):
            files.write(content(update), update)
            (files.folder / name(update)).write_bytes(b"torn")
        with pytest.raises(
            UsageError, match=rf"cannot read .*{name(5)}.*, nor any other in its folder; remove them"
        ) as e:
            CheckpointFolder(files.folder, keep=2).find("auto")
        assert "\n" not in str(e.value)

    def test_the_only_one_torn_is_a_new_start_with_a_warning(self, files, capsys):
        files.write(content(3), 3)
        (files.folder / name(3)).write_bytes(b"torn")
        assert CheckpointFolder(files.folder, keep=2).find("auto") is None
        printed = capsys.readouterr().err
        assert printed.startswith(f"warning: cannot read checkpoint {files.folder / name(3)} (")
        assert printed.endswith(", the only one; starting anew\n")

    def test_the_only_one_of_another_version_is_an_error(self, files):
        files.write({**content(3), "version": 1}, 3)
        with pytest.raises(UsageError, match="has version 1, wanted"):
            CheckpointFolder(files.folder, keep=2).find("auto")

    def test_scratch_files_of_a_killed_process_go(self, files):
        files.write(content(3), 3)
        for scratch in (f".{name(5)}.x7", ".best.pt.1234", ".last.pt.99", "notes.txt"):
            (files.folder / scratch).write_bytes(b"half")
        files.find(None)
        assert present(files) == ["last.pt", "notes.txt", name(3)]

    def test_a_path_is_itself_and_checked(self, files, tmp_path):
        files.write(content(3), 3)
        elsewhere = CheckpointFolder(tmp_path / "elsewhere", keep=2)
        assert elsewhere.find(str(files.last)) == files.last
        files.last.write_bytes(b"torn")
        with pytest.raises(UsageError, match=r"cannot read checkpoint .*last.pt"):
            elsewhere.find(str(files.last))

    @pytest.mark.parametrize("path", ["no.pt", "."])
    def test_a_path_without_a_file_is_refused(self, files, tmp_path, path):
        with pytest.raises(UsageError, match=r"--resume wants a checkpoint file or auto, .* is no file"):
            files.find(str(tmp_path / path))
