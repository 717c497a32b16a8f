"""Checkpoints: everything that the next update needs, and refused in one line when torn or damaged."""

import errno
import io
import zipfile

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler, PlateauLRScheduler
from timm.task import ClassificationTask
from torch import nn

from timm_mix.train.checkpoints.content import VERSION, collect, put_back, read_checkpoint, write_checkpoint
from timm_mix.train.errors import UsageError
from timm_mix.train.files import write_whole


class ClockTask(ClassificationTask):
    """A task with a state of its own."""

    clock = 0

    def get_task_state(self, module=None, ema=False):
        return {} if ema else {"clock": self.clock}

    def load_task_state(self, state, strict=True, module=None, ema=False):
        if state and not ema:
            self.clock = state["clock"]


def parts(seed, width=3, ema=False, schedule=CosineLRScheduler, **settings):
    """What a run hands to `collect`."""
    torch.manual_seed(seed)
    task = ClockTask(nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width)), verbose=False)
    if ema:
        task.setup_ema(decay=0.5)
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.1 * (seed + 1), momentum=0.9)
    task(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64))["loss"].backward()
    optimizer.step()
    task.update_ema()
    settings = {"t_initial": 7 + seed} if schedule is CosineLRScheduler else settings
    return {"task": task, "optimizer": optimizer, "schedule": schedule(optimizer, **settings), "scaler": None}


def content_of(saved):
    sums = {"loss": torch.tensor(2.5)}
    more = {"version": VERSION, "progress": {"epoch": 4}, "config": {"lr": 0.1}, "facts": {}}
    return {**more, **collect(**saved, sums=sums)}


def save(path, **settings):
    saved = parts(**settings)
    saved["task"].clock = 11
    write_whole(path, lambda stream: write_checkpoint(content_of(saved), stream))
    return saved


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

    def test_a_flipped_bit_is_refused(self, tmp_path):
        save(tmp_path / "last.pt", seed=0)
        whole = (tmp_path / "last.pt").read_bytes()
        for place in np.random.default_rng(0).integers(8 * len(whole), size=200).tolist():
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << place % 8
            (tmp_path / "damaged.pt").write_bytes(damaged)
            self.refused(tmp_path / "damaged.pt", "damaged.pt")

    def test_a_flipped_bit_of_a_weight_is_told(self, tmp_path):
        weight = save(tmp_path / "last.pt", seed=0)["task"].get_trainable_module()[0].weight.detach()
        whole = bytearray((tmp_path / "last.pt").read_bytes())
        whole[whole.index(weight.numpy().tobytes()) + 3] ^= 1
        (tmp_path / "damaged.pt").write_bytes(whole)
        self.refused(tmp_path / "damaged.pt", r"cannot read checkpoint .*damaged.pt \(its digest is another one\)")

    def test_torch_loads_the_file_as_it_is(self, tmp_path):
        save(tmp_path / "last.pt", seed=0)
        assert_same(torch.load(tmp_path / "last.pt", weights_only=True), read_checkpoint(tmp_path / "last.pt"))
        assert zipfile.ZipFile(tmp_path / "last.pt").testzip() is None

    @pytest.mark.parametrize("content", [b"", b"epochs: 3\n", b"\x00" * 99, b"PK\x03\x04"])
    def test_a_file_of_another_kind_is_refused(self, tmp_path, content):
        (tmp_path / "file").write_bytes(content)
        self.refused(tmp_path / "file", "cannot read checkpoint .*; it is torn or not ours, give another")

    @pytest.mark.parametrize("content", [{"progress": 3, "state_dict": {}}, {}, {1: 2}, [1, 2], torch.zeros(3), 5])
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


class TestWriteCheckpoint:
    @pytest.mark.parametrize("room", [0, 1000, 2000, 4000])
    def test_a_full_disk_is_an_oserror_wherever_it_is_noticed(self, room):
        class Disk(io.BytesIO):
            def write(self, data):
                if self.tell() + len(data) > room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(data)

        with pytest.raises(OSError, match="No space left on device"):
            write_checkpoint(content_of(parts(seed=0)), Disk())

    def test_what_cannot_be_saved_is_no_full_disk(self):
        with pytest.raises(Exception, match=r"pickle|local"):
            write_checkpoint({"code": lambda: 0}, io.BytesIO())


class TestCollectAndPutBack:
    @pytest.mark.parametrize("ema", [False, True])
    def test_what_is_saved_is_put_back(self, tmp_path, ema):
        saved = save(tmp_path / "last.pt", seed=0, ema=ema)
        fresh = parts(seed=1, ema=ema)
        sums = put_back(read_checkpoint(tmp_path / "last.pt"), **fresh)
        assert sums == {"loss": torch.tensor(2.5)}
        assert fresh["task"].clock == 11
        assert_same(fresh["task"].state_dict(), saved["task"].state_dict())  # the averaged model, too
        assert fresh["schedule"].state_dict() == saved["schedule"].state_dict()
        assert_same(*(each["optimizer"].state_dict() for each in (saved, fresh)))

    @pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
    def test_a_plateau_keeps_the_patience_that_it_has_spent(self):
        saved, fresh = (parts(seed=0, schedule=PlateauLRScheduler, patience_t=2) for _ in range(2))
        for epoch in range(4):
            saved["schedule"].step(epoch, 1.0)
        assert saved["schedule"].lr_scheduler.num_bad_epochs == 2
        put_back(content_of(saved), **fresh)
        assert fresh["schedule"].lr_scheduler.state_dict() == saved["schedule"].lr_scheduler.state_dict()

    def test_every_process_gets_its_own_state(self):
        content = content_of(parts(seed=0))
        own = content["own_states"][0]
        others = {"trained": {"1.running_mean": torch.full((3,), 7.0)}}
        content["task_states"] = [{"clock": 3}, {"clock": 5}]
        content["own_states"] = [own, {**own, "buffers": others, "sums": {"loss": torch.tensor(1.5)}}]
        fresh = [parts(seed=1) for _ in range(2)]
        sums = [put_back(content, **each, share=rank) for rank, each in enumerate(fresh)]
        assert [each["task"].clock for each in fresh] == [3, 5]
        assert sums == [{"loss": torch.tensor(2.5)}, {"loss": torch.tensor(1.5)}]
        means = [each["task"].get_trainable_module()[1].running_mean for each in fresh]
        assert torch.equal(means[0], own["buffers"]["trained"]["1.running_mean"])
        assert torch.equal(means[1], torch.full((3,), 7.0))

    def test_a_model_on_one_process_takes_the_buffers_of_all_its_parts(self):
        content = content_of(parts(seed=0))
        own = content["own_states"][0]
        for name in ("running_mean", "running_var"):
            values = own["buffers"]["trained"].pop(f"1.{name}")
            content["own_states"].append({**own, "buffers": {"trained": {f"1.{name}": values + 1}, "evaluated": {}}})
        content["own_states"] = content["own_states"][1:]  # two processes, one task state: two parts
        fresh = parts(seed=1)
        put_back(content, **fresh)
        norm = fresh["task"].get_trainable_module()[1]
        assert torch.equal(norm.running_mean, content["state_dict"]["1.running_mean"] + 1)
        assert torch.equal(norm.running_var, content["state_dict"]["1.running_var"] + 1)

    def test_what_all_ranks_share_is_stored_once_and_reaches_every_rank(self):
        saved = parts(seed=0)
        saved["task"].shared_state = ("clock",)
        of_ranks = [collect(**saved, sums={}, main=main) for main in (True, False)]
        assert [content["task_states"] for content in of_ranks] == [[{"clock": 0}], [{}]]
        content = {**of_ranks[0], "task_states": [{"clock": 7}, {}], "own_states": of_ranks[0]["own_states"] * 2}
        fresh = parts(seed=1)
        put_back(content, **fresh, share=1)
        assert fresh["task"].clock == 7

    def test_numbers_of_numpy_generators_survive(self, tmp_path):
        state = np.random.default_rng(3).bit_generator.state
        write_whole(tmp_path / "state.pt", lambda stream: torch.save(state, stream))
        assert torch.load(tmp_path / "state.pt", weights_only=True) == state

    def test_a_checkpoint_of_another_model_is_refused(self, tmp_path):
        save(tmp_path / "last.pt", seed=0)
        line = "cannot resume: the checkpoint does not fit this recipe: .*size mismatch"
        with pytest.raises(UsageError, match=line) as caught:
            put_back(read_checkpoint(tmp_path / "last.pt"), **parts(seed=1, width=5))
        assert "\n" not in str(caught.value)


def assert_same(one, two):
    """Nested dicts and lists with tensors in them."""
    if isinstance(one, dict):
        assert list(one) == list(two)
        for name in one:
            assert_same(one[name], two[name])
    elif isinstance(one, list):
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two
