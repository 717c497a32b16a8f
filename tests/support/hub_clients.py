"""Clients of the loopback Hub in processes of their own: huggingface_hub reads its address when it is imported.

`run_client` starts one python process. `Client` starts one, imports what cases need once (torch and timm take seconds),
and runs every case in a fork of it, so that a case starts fresh, may be killed, and costs milliseconds. Waits of half a
second and more are written down instead of waited for.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# no question to the Hub about coding agents, which would be one more request in a new home
NO_AGENTS = json.dumps({"standardEnvVars": [], "harnesses": {}})


def client_environment(hub, *, token, xet, home, env=None):
    """The environment of a client: this Hub, this token, this home, and nothing of the machine's own settings."""
    home = Path(home)
    home.mkdir(parents=True, exist_ok=True)
    (home / ".agent_harnesses.json").write_text(NO_AGENTS)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING")) and not name.lower().endswith("_proxy")
    }
    paths = map(str, (ROOT, ROOT / "train_scripts", ROOT / "tests"))
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    settings |= {"HF_TOKEN": token} if token else {}
    settings |= {} if xet else {"HF_HUB_DISABLE_XET": "1"}
    return {**kept, **settings, **(env or {})}


def run_client(code_or_argv, hub, *, token="token-alice", xet=False, home, env=None, timeout=60):
    """Run python code, or a script with its arguments (a list), to its end in a new process.

    Returns subprocess.CompletedProcess; its `sleeps` lists the waits that were skipped, in seconds.
    """
    with tempfile.NamedTemporaryFile("r") as sleeps:
        command = ["-c", code_or_argv] if isinstance(code_or_argv, str) else [str(part) for part in code_or_argv]
        environment = client_environment(hub, token=token, xet=xet, home=home, env=env)
        process = subprocess.run(
            [sys.executable, __file__, "once", *command],
            env={**environment, "HUB_CLIENT_SLEEPS": sleeps.name},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        process.sleeps = [float(line) for line in sleeps.read().split()]
    return process


@dataclass(frozen=True)
class Reply:
    """How a case ended.

    value: its variable `result`, through JSON.  error: 'Type: message' of the exception that ended it, or None.
    status: what it gave to sys.exit, 0 without; None where it was killed.  sleeps: the waits skipped, seconds.
    """

    value: Any = None
    error: str | None = None
    traceback: str = ""
    status: int | str | None = None
    sleeps: list[float] = field(default_factory=list)
    stdout: str = ""
    stderr: str = ""

    @property
    def killed(self) -> bool:
        return self.status is None

    def ok(self) -> "Reply":
        """Itself, where the case ended well."""
        assert self.status == 0, f"{self.error}\n{self.traceback}\n{self.stderr[-3000:]}"
        return self


class Client:
    """A warm client process.

    Args:
        imports: python code that is run once, before the cases.
    """

    def __init__(self, hub, *, token="token-alice", xet=False, home, env=None, imports="import huggingface_hub"):
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0
        self._case: int | None = None  # process id
        environment = client_environment(hub, token=token, xet=xet, home=home, env=env)
        self._log = Path(self._folder.name, "server.log").open("w+")  # noqa: SIM115  (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "serve", imports],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.stdin.close()
        self._process.wait(timeout=20)
        self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()

    def kill(self) -> None:
        """End the case that is running, with SIGKILL. A loopback hub's on_kill."""
        if self._case is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._case, signal.SIGKILL)

    def run(self, code, *, env=None, timeout=60, argv=(), **variables) -> Reply:
        """Run code in a fork. variables (JSON) are its globals; env is added to its environment."""
        self._count += 1
        folder = Path(self._folder.name, str(self._count))
        folder.mkdir()
        case = {"code": code, "argv": list(map(str, argv)), "env": env or {}, "variables": variables}
        self._process.stdin.write(json.dumps({**case, "folder": str(folder)}) + "\n")
        self._process.stdin.flush()
        self._case = int(self._line())
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        try:
            self._line()
        finally:
            self._case = None
            timer.cancel()
        reply = folder / "reply.json"
        output = {name: (folder / name).read_text(errors="replace") for name in ("stdout", "stderr")}
        return Reply(**(json.loads(reply.read_text()) if reply.exists() else {}), **output)

    def script(self, path, *args, env=None, timeout=60) -> Reply:
        """Run a script of the repository as `python path args` would."""
        code = "import runpy; runpy.run_path(script, run_name='__main__')"
        return self.run(code, env=env, timeout=timeout, argv=(path, *args), script=str(path))

    def _line(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the client process has ended:\n{self._log.read()[-3000:]}")
        return line


# -- in the child


def _skip_sleeps():
    """Write down waits instead of waiting, in this process and in its forks."""
    import time

    really = time.sleep
    sleeps: list[float] = []

    def sleep(seconds):
        if seconds < 0.5:
            really(seconds)
            return
        sleeps.append(seconds)
        really(0.001)
        if "HUB_CLIENT_SLEEPS" in os.environ:
            with open(os.environ["HUB_CLIENT_SLEEPS"], "a") as file:
                print(seconds, file=file)

    time.sleep = sleep
    return sleeps


def _once(command):
    _skip_sleeps()
    if command[0] == "-c":
        exec(compile(command[1], "<client>", "exec"), {"__name__": "__main__"})
        return
    import runpy

    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


def _serve(imports):
    sleeps = _skip_sleeps()
    channel, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)
    exec(imports, {})
    for line in sys.stdin:
        case = json.loads(line)
        child = os.fork()
        if child == 0:
            _case(case, sleeps)
        print(child, file=channel, flush=True)
        os.waitpid(child, 0)
        print("done", file=channel, flush=True)
    os._exit(0)  # torch takes a second to say goodbye


def _case(case, sleeps):
    """Run one case and leave the process; the reply is there only when it came to its end."""
    import traceback

    folder = Path(case["folder"])
    os.environ |= case["env"]
    sys.argv = case["argv"] or sys.argv
    reply = {"status": 0}
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    names = {"__name__": "__case__", **case["variables"]}
    try:
        exec(compile(case["code"], "<case>", "exec"), names)
        reply["value"] = names.get("result")
    except SystemExit as end:
        reply["status"] = 0 if end.code is None else end.code
    except BaseException as error:
        lines = traceback.format_exc()
        reply |= {"status": 1, "error": f"{type(error).__name__}: {error}", "traceback": lines}
    sys.stdout.flush()
    sys.stderr.flush()
    scratch = folder / "reply.tmp"
    scratch.write_text(json.dumps({**reply, "sleeps": sleeps}, default=str))
    scratch.rename(folder / "reply.json")
    os._exit(0)


if __name__ == "__main__":
    _once(sys.argv[2:]) if sys.argv[1] == "once" else _serve(sys.argv[2])
