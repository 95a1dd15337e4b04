"""What a figure was measured on, and what the machine is doing."""

import os
import platform
from pathlib import Path

import torch

from mixerbench.devices import check_precision

_MIB = 2**20


def hardware_name(device: torch.device | str, precision: str) -> str:
    """One line for beside every figure: ``1 x NVIDIA H200 · torch 2.15.0 · bf16``.

    Raises:
        ValueError: an unknown precision.
    """
    check_precision(precision)
    device = torch.device(device)
    if device.type == "cuda":
        parts = [f"1 x {torch.cuda.get_device_name(device)}"]
    elif device.type == "cpu":
        threads = torch.get_num_threads()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        parts = [f"{cores} x {_cpu_model()}", f"{threads} thread{'s' if threads > 1 else ''}"]
    else:
        parts = [f"1 x {device.type}"]
    version = torch.__version__.split("+")[0]  # without the build's own suffix
    return " · ".join([*parts, f"torch {version}", precision])


def system_metrics() -> dict[str, float]:
    """Load and memory now; costs well under a millisecond.

    ``cpu_percent`` is the machine's since the previous call, and 0 at the first.
    """
    import psutil

    metrics = {
        "cpu_percent": psutil.cpu_percent(interval=None),
        "process_memory_mib": psutil.Process().memory_info().rss / _MIB,
        "memory_percent": psutil.virtual_memory().percent,
    }
    if torch.cuda.is_initialized():  # asking must not create a context
        metrics["gpu_memory_allocated_mib"] = torch.cuda.memory_allocated() / _MIB
    return metrics


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
