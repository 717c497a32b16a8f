"""What tests of several processes share: ports, what a launcher tells a process, processes that end in any case."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_ports(count):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]


def place(rank, world, port):
    """What a launcher tells a process."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **{name: str(value) for name, value in numbers.items()}}


def start(*command, **environment):
    """A python process in the repository, with one core."""
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "train_scripts", ROOT / "tests")))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **paths, **environment}
    return subprocess.Popen([sys.executable, *map(str, command)], env=environment, cwd=ROOT, **pipes)


def finish(*workers):
    """Wait for processes that must succeed."""
    try:
        for worker in workers:
            printed = worker.communicate(timeout=150)[0]
            assert worker.returncode == 0, printed
    finally:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)  # a process that waits for another one outlives its parent
            worker.communicate()


def fork(work, world, *args):
    """work(rank, world, *args) on `world` forks of this process, which so imports torch and timm but once."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=work, args=(rank, world, *args)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        sys.exit(1)
