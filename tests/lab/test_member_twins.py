"""What the benchmark of member-parallel training measures and predicts."""

import pytest

from timm_mix.lab.bench.member_twins import MemberProcesses, StepModel


def test_a_step_with_a_device_per_part_takes_the_slowest_part_and_one_all_gather():
    row = StepModel("x", part_seconds=(3.0, 4.0), gather_seconds=1.0, sequential_seconds=8.0, measured_seconds=5.5)
    assert row.predicted_seconds == 5.0
    assert str(row).split()[0] == "0.625"  # over all parts on one device


@pytest.mark.slow
def test_parts_in_processes_take_steps_on_command_and_end():
    model = {"model_name": "splitnet", "backbone": "wrn16_2", "depth": 10, "split": 2}
    with MemberProcesses(model, 2, (2, 3, 8, 8)) as processes:
        for what in ("step", "alone", "gather"):
            assert len(processes.run(what)) == 2
        assert min(processes.run("alone", parts=[1], times=2)) > 0
    assert not any(process.is_alive() for process in processes._processes)
