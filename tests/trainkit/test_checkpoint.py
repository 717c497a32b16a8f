"""Checkpoints: whole or not there, refused in one line when torn, and everything the next epoch needs."""

import os
import stat

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from timm.scheduler import CosineLRScheduler
from timm.task import ClassificationTask
from torch import nn

from trainkit.checkpoint import VERSION, find_checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
from trainkit.errors import UsageError
from trainkit.files import write_json, write_whole


@pytest.fixture(autouse=True)
def _no_accelerate_state():
    """accelerate keeps one state per process: leave none to the next test."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class ClockTask(ClassificationTask):
    """A task with a state of its own."""

    clock = 0

    def get_task_state(self, module=None, ema=False):
        return {} if ema else {"clock": self.clock}

    def load_task_state(self, state, strict=True, module=None, ema=False):
        if state and not ema:
            self.clock = state["clock"]


def parts(seed, width=3, ema=False):
    """What a run hands to save_checkpoint."""
    torch.manual_seed(seed)
    task = ClockTask(nn.Linear(2, width), verbose=False)
    if ema:
        task.setup_ema(decay=0.5)
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.1 * (seed + 1), momentum=0.9)
    task(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64))["loss"].backward()
    optimizer.step()
    schedule = CosineLRScheduler(optimizer, t_initial=7 + seed)
    return {"task": task, "optimizer": optimizer, "schedule": schedule, "scaler": None}


def save(path, epoch=4, main=True, **settings):
    saved = parts(**settings)
    saved["task"].clock = 11
    save_checkpoint(path, **saved, epoch=epoch, history=[{"epoch": epoch}], config={"lr": 0.1}, main=main)
    return saved


class TestWriteWhole:
    def test_the_file_has_what_was_written_and_may_be_read_by_all(self, tmp_path):
        path = tmp_path / "new" / "folder" / "file"
        write_whole(path, lambda stream: stream.write(b"seven"))
        assert path.read_bytes() == b"seven"
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    @pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt("stopped")])
    def test_the_old_file_stays_when_the_writer_raises_midway(self, tmp_path, error):
        path = tmp_path / "file"
        path.write_bytes(b"old")

        def write(stream):
            stream.write(b"half of the n")
            stream.flush()
            raise error

        with pytest.raises(type(error), match=str(error)):
            write_whole(path, write)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file"]

    def test_nothing_appears_when_the_first_write_raises(self, tmp_path):
        with pytest.raises(ZeroDivisionError, match="division"):
            write_whole(tmp_path / "file", lambda stream: 1 / 0)
        assert os.listdir(tmp_path) == []

    def test_json_that_cannot_be_written_leaves_the_old_file(self, tmp_path):
        write_json(tmp_path / "a.json", {"old": 1})
        with pytest.raises(TypeError, match="not JSON serializable"):
            write_json(tmp_path / "a.json", {"new": object()})
        assert (tmp_path / "a.json").read_text() == '{\n  "old": 1\n}\n'


class TestFindCheckpoint:
    def test_auto_is_the_last_checkpoint_of_the_folder(self, tmp_path):
        path = tmp_path / "checkpoints" / "last.pt"
        write_whole(path, lambda stream: stream.write(b"x"))
        assert find_checkpoint("auto", tmp_path) == path

    def test_auto_is_none_where_there_is_none(self, tmp_path):
        assert find_checkpoint("auto", tmp_path) is None

    def test_a_path_is_itself(self, tmp_path):
        (tmp_path / "some.pt").write_bytes(b"x")
        assert find_checkpoint(str(tmp_path / "some.pt"), tmp_path / "elsewhere") == tmp_path / "some.pt"

    @pytest.mark.parametrize("name", ["no.pt", "."])
    def test_a_path_without_a_file_is_refused(self, tmp_path, name):
        with pytest.raises(UsageError, match=r"--resume wants a checkpoint file or auto, .* is no file"):
            find_checkpoint(str(tmp_path / name), tmp_path)


class TestReadCheckpoint:
    def refused(self, path, line):
        with pytest.raises(UsageError, match=line) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
    def test_a_truncated_file_is_refused(self, tmp_path, share):
        save(tmp_path / "last.pt", seed=0)
        whole = (tmp_path / "last.pt").read_bytes()
        (tmp_path / "torn.pt").write_bytes(whole[: int(share * len(whole))])
        self.refused(tmp_path / "torn.pt", r"cannot read checkpoint .*torn.pt \(.+\); it is torn or not ours")

    @pytest.mark.parametrize("content", [b"", b"epochs: 3\n", b"\x00" * 99, b"PK\x03\x04"])
    def test_a_file_of_another_kind_is_refused(self, tmp_path, content):
        (tmp_path / "file").write_bytes(content)
        self.refused(tmp_path / "file", "cannot read checkpoint .*; it is torn or not ours, give another")

    @pytest.mark.parametrize("content", [{"epoch": 3, "state_dict": {}}, {}, {1: 2}, [1, 2], torch.zeros(3), 5])
    def test_a_foreign_torch_file_is_refused(self, tmp_path, content):
        torch.save(content, tmp_path / "foreign.pt")
        self.refused(tmp_path / "foreign.pt", r"is no checkpoint of this trainer \(no .*version.*\); give another")

    def test_a_file_with_code_in_it_is_refused(self, tmp_path):
        torch.save({"model": nn.Linear(2, 3)}, tmp_path / "code.pt")
        self.refused(tmp_path / "code.pt", "cannot read checkpoint .*; it is torn or not ours")

    @pytest.mark.parametrize("version", [0, VERSION + 1])
    def test_another_version_is_refused(self, tmp_path, version):
        save(tmp_path / "last.pt", seed=0)
        content = {**read_checkpoint(tmp_path / "last.pt"), "version": version}
        torch.save(content, tmp_path / "other.pt")
        self.refused(tmp_path / "other.pt", f"has version {version}, wanted {VERSION}; start anew")


class TestSaveAndLoad:
    @pytest.mark.parametrize("ema", [False, True])
    def test_what_is_saved_is_put_back(self, tmp_path, ema):
        saved = save(tmp_path / "last.pt", seed=0, ema=ema)
        fresh = parts(seed=1, ema=ema)
        first, history = load_checkpoint(read_checkpoint(tmp_path / "last.pt"), **fresh, rank=0)
        assert (first, history) == (5, [{"epoch": 4}])
        assert fresh["task"].clock == 11
        for name, tensor in saved["task"].state_dict().items():  # the averaged model, too
            assert torch.equal(fresh["task"].state_dict()[name], tensor), name
        assert fresh["schedule"].state_dict() == saved["schedule"].state_dict()
        one, two = (each["optimizer"].state_dict() for each in (saved, fresh))
        assert one["param_groups"] == two["param_groups"]
        for index in one["state"]:
            assert torch.equal(one["state"][index]["momentum_buffer"], two["state"][index]["momentum_buffer"])

    def test_only_the_main_process_writes(self, tmp_path):
        save(tmp_path / "last.pt", seed=0, main=False)
        assert os.listdir(tmp_path) == []

    def test_every_rank_gets_its_own_task_state(self, tmp_path):
        save(tmp_path / "last.pt", seed=0)
        content = {**read_checkpoint(tmp_path / "last.pt"), "task_states": [{"clock": 3}, {"clock": 5}]}
        clocks = []
        for rank in range(3):
            fresh = parts(seed=1)
            load_checkpoint(content, **fresh, rank=rank)
            clocks.append(fresh["task"].clock)
        assert clocks == [3, 5, 3]  # a rank that is new starts from rank 0's, see MemberTask.load_task_state

    def test_what_all_ranks_share_is_stored_once_and_reaches_every_rank(self, tmp_path):
        stored, saved = [], parts(seed=0)
        saved["task"].shared_state = ("clock",)
        for main in (True, False):
            keep = {"epoch": 4, "history": [], "config": {}, "main": main}
            save_checkpoint(tmp_path / "last.pt", **saved, **keep, whole=lambda c: stored.extend(c["task_states"]) or c)
        assert stored == [{"clock": 0}, {}]
        content = {**read_checkpoint(tmp_path / "last.pt"), "task_states": [{"clock": 7}, {}]}
        fresh = parts(seed=1)
        load_checkpoint(content, **fresh, rank=1)
        assert fresh["task"].clock == 7

    def test_numbers_of_numpy_generators_survive(self, tmp_path):
        state = np.random.default_rng(3).bit_generator.state
        write_whole(tmp_path / "state.pt", lambda stream: torch.save(state, stream))
        assert torch.load(tmp_path / "state.pt", weights_only=True) == state

    def test_a_checkpoint_of_another_model_is_refused(self, tmp_path):
        save(tmp_path / "last.pt", seed=0)
        line = "cannot resume: the checkpoint does not fit this recipe: .*size mismatch"
        with pytest.raises(UsageError, match=line) as caught:
            load_checkpoint(read_checkpoint(tmp_path / "last.pt"), **parts(seed=1, width=5), rank=0)
        assert "\n" not in str(caught.value)

    def test_averaged_weights_start_from_the_models_where_the_checkpoint_has_none(self, tmp_path):
        saved = save(tmp_path / "last.pt", seed=0)
        fresh = parts(seed=1, ema=True)
        load_checkpoint(read_checkpoint(tmp_path / "last.pt"), **fresh, rank=0)
        averaged = fresh["task"].get_trainable_module(ema=True).module
        assert torch.equal(averaged.weight, saved["task"].get_trainable_module().weight)
