"""The line that stands beside every figure."""

import os
import platform
import re

import pytest
import torch

from mixerbench.measure.hardware import hardware_name, system_metrics


def test_the_line_says_cores_threads_torch_and_precision():
    line = hardware_name("cpu", "bf16")
    assert re.fullmatch(r"\d+ x .+ · \d+ threads? · torch \d+\.\d+\.\d+\w* · bf16", line)
    assert f" · {torch.get_num_threads()} thread" in line


def test_the_line_gives_away_no_path_host_or_user():
    line = hardware_name("cpu", "fp32")
    for secret in (os.getcwd(), os.path.expanduser("~"), platform.node()):
        assert secret not in line
    assert not re.search(r"(^|\s)/\w", line)


def test_a_machine_without_cpuinfo_still_has_a_name(monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda self: False)
    assert f" x {platform.machine()} · " in hardware_name("cpu", "fp32")


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="fp8"):
        hardware_name("cpu", "fp8")


def test_system_metrics_are_plausible_numbers_with_units_in_their_names():
    metrics = system_metrics()
    assert metrics.keys() >= {"cpu_percent", "process_memory_mib", "memory_percent"}
    assert all(isinstance(value, float) and value >= 0 for value in metrics.values())
    assert 10 < metrics["process_memory_mib"] < 1e6
    assert metrics["memory_percent"] <= 100
