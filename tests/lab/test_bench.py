"""What benchmark.py measures: ratios of times taken in pairs, and bytes at the peak of a step."""

from argparse import Namespace

import pytest
import torch

from timm_mix.lab.bench import automix, measure, recursivemix
from timm_mix.lab.bench.measure import MemoryRatio, Ratio, compare, compare_memory, peak_bytes

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the runs advance."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    return now


def test_ratios_are_taken_pair_by_pair(clock):
    """A machine that slows down threefold midway changes the seconds, not the ratio."""
    speed = [1.0]

    def run(cost):
        def advance():
            clock[0] += cost * speed[0]
            speed[0] = 3.0 if clock[0] > 10 else 1.0

        return advance

    row = compare("x", run(2.0), run(1.0), 9, CPU)
    assert row.ratio == pytest.approx(2.0)
    assert row.seconds_a > 2.0


def test_steps_of_several_kinds_count_as_often_as_they_occur(clock):
    def run(cost):
        return lambda: clock.__setitem__(0, clock[0] + cost)

    row = compare("x", [(0.25, run(8.0)), (0.75, run(4.0))], run(2.0), 3, CPU)
    assert row.ratio == pytest.approx(2.5)


def _mib(count):
    return torch.empty(count * MIB, dtype=torch.uint8)


def test_the_peak_holds_what_lives_through_the_step_and_the_most_that_a_step_holds_at_once():
    def build():
        weights = _mib(3)
        del_me = _mib(50)
        del del_me

        def step():
            first = _mib(2)
            del first
            second, third = _mib(4), _mib(1)
            return weights, second, third

        return step

    assert peak_bytes(build, CPU) == 8 * MIB
    other = _mib(20)  # what is freed or lives outside counts for nothing
    row = compare_memory("x", build, lambda: lambda: _mib(4), CPU)
    assert (row.bytes_a, row.bytes_b, row.ratio) == (8 * MIB, 4 * MIB, 2.0)
    assert "(8.0 / 4.0 MiB)" in str(row)
    assert len(other) == 20 * MIB


def test_the_peak_of_several_runs_is_the_largest():
    assert peak_bytes(lambda: [(0.5, lambda: _mib(5)), (0.5, lambda: _mib(2))], CPU) == 5 * MIB


def _small(monkeypatch, module):
    """The smallest of the networks alone."""
    monkeypatch.setattr(module, "batch_sizes", lambda args: {"wrn16_2": 4})
    return Namespace(pairs=1, batch=4)


def test_recursivemix_is_compared_in_time_and_memory(monkeypatch):
    rows = list(recursivemix.bench_recursivemix(_small(monkeypatch, recursivemix), CPU))
    assert [type(row) for row in rows] == [Ratio, MemoryRatio]
    assert 1 < rows[1].ratio < 1.1  # a batch of history


def test_an_exact_step_of_automix_holds_one_graph_at_a_time_and_the_cheaper_one_less():
    def peak(settings):
        return peak_bytes(lambda: automix._steps("wrn16_2", settings, 16, CPU), CPU)

    plain = peak_bytes(lambda: measure.plain_step("wrn16_2", 16, CPU), CPU)
    assert 1 < peak(automix.CHEAPER) / plain < 1.4
    assert 1 < peak({}) / plain < 1.5  # 2.1 with both graphs of q


def test_the_cheaper_setting_is_counted_over_its_whole_period():
    shares = automix._steps("wrn16_2", automix.CHEAPER, 4, CPU)
    assert [share for share, _ in shares] == [1 / 4, 3 / 4]
    assert automix._counted("wrn16_2", automix.CHEAPER) < 1.5
    for _, run in shares:
        run()
