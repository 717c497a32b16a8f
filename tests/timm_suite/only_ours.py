"""pytest plugin: timm's model tests, on the names that timm_mix registers and on nothing else.

timm's tests ask timm.list_models() for their parameters, some of them by timm's own module names. Here the answer is
always "ours", filtered as the test asks; tests that are not about our names are not collected. A skip fails the run,
unless a network is beyond the suite's own limits of size.
"""

import pytest
import timm

import timm_mix  # noqa: F401  (registers the models)

_list_models = timm.list_models
OURS = {name for name in _list_models() if timm.models.model_entrypoint(name).__module__.startswith("timm_mix.")}


def _list_ours(*args, module="", **kwargs):
    return [name for name in _list_models(*args, **kwargs) if name.split(".")[0] in OURS]


timm.list_models = _list_ours
timm.list_pretrained = lambda *args, **kwargs: []  # needs downloads
SIZE_LIMITS = ("Fixed input size model > limit.", "more than 100M params")  # timm's words
_skipped: list[str] = []
_too_large: list[str] = []
_ran: dict[str, int] = {}


def pytest_collection_modifyitems(config, items):
    ours = [item for item in items if _model_name(item) in OURS]
    config.hook.pytest_deselected(items=[item for item in items if _model_name(item) not in OURS])
    items[:] = ours


def _model_name(item):
    spec = getattr(item, "callspec", None)
    return str(spec.params.get("model_name")).split(".")[0] if spec else None


def pytest_runtest_logreport(report):
    if report.skipped:
        reason = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)
        kind = _too_large if any(limit in reason for limit in SIZE_LIMITS) else _skipped
        kind.append(f"{report.nodeid}: {reason}")
    elif report.when == "call":
        test = report.nodeid.split("::")[-1].split("[")[0]
        _ran[test] = _ran.get(test, 0) + 1


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{len(OURS)} names; runs per test:")
    for test, count in sorted(_ran.items()):
        terminalreporter.write_line(f"  {count:4d}  {test}")
    for line in _too_large:
        terminalreporter.write_line(f"  beyond timm's limits: {line}")
    for line in _skipped:
        terminalreporter.write_line(f"  SKIPPED {line}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    if not hasattr(session.config, "workerinput") and _skipped and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
