"""Processes that torchrun has started again, on the store of those that were killed."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch.distributed as dist

from timm_mix.train.loop.parallel import join_after_restart

pytestmark = pytest.mark.slow

# rank 0 comes late: whoever reads its address before finds the one of its predecessor, if it looks under that name
PROCESS = """
import os, time
import torch
import torch.distributed as dist
from timm_mix.train.loop.parallel import join_after_restart
if os.environ["RANK"] == "0" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "1":
    time.sleep(2)
join_after_restart(cpu=True)
if not dist.is_initialized():
    dist.init_process_group("gloo")
ones = torch.ones(1)
dist.all_reduce(ones)
assert ones.item() == 2
os._exit(0)  # as if killed
"""


def _start(port, restart):
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(restart)}
    shared["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", PROCESS]
    both = [subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}) for rank in (0, 1)]
    try:
        return [process.wait(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()


def test_a_restart_does_not_meet_the_addresses_of_the_killed():
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    assert _start(store.port, restart=0) == [0, 0]
    assert _start(store.port, restart=1) == [0, 0]


def test_a_first_start_is_left_to_accelerate(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    join_after_restart(cpu=True)
    assert not dist.is_initialized()
