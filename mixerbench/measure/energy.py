"""How much energy a device uses, where the hardware counts it."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch

POWERCAP: Final = Path("/sys/class/powercap")
"""Where Linux shows the energy counters of CPUs."""


class EnergyCounter(Protocol):
    """Counts what a device uses, whoever uses it."""

    def joules(self) -> float:
        """Joules since some moment in the past: only differences mean something."""
        ...


class EnergyMeter:
    """Adds up energy and images over stretches of work.

    Args:
        counter: the device's; None where it has none, and then there is no figure.
    """

    def __init__(self, counter: EnergyCounter | None) -> None:
        self._counter = counter
        self._begin = 0.0
        self._joules = 0.0
        self._images = 0

    def start(self) -> None:
        """A stretch begins, with the device idle."""
        if self._counter is not None:
            self._begin = self._counter.joules()

    def stop(self, images: int) -> None:
        """The stretch that began last has ended with so many images, the device idle again."""
        if self._counter is not None:
            self._joules += self._counter.joules() - self._begin
            self._images += images

    @property
    def joules_per_image(self) -> float | None:
        """Over all stretches; None without a counter, or if it never advanced."""
        return self._joules / self._images if self._joules > 0 else None


UNMETERED: Final = EnergyMeter(None)


def energy_counter(device: torch.device | str) -> EnergyCounter | None:
    """The counter of ``device``; None if it has none that this user may read."""
    device = torch.device(device)
    with suppress(OSError, LookupError):
        if device.type == "cuda":
            return NvmlCounter(device)
        if device.type == "cpu":
            return RaplCounter(POWERCAP)
    return None


@dataclass
class _Zone:
    file: Path
    wraps_at: int  # microjoules
    last: int


class RaplCounter:
    """The packages of a machine's CPUs, by Linux' RAPL (Intel, and AMD under the same names).

    A package is its cores and caches, without the memory. Reads must not be further apart than
    the counter takes to come around, several minutes at full load.

    Raises:
        OSError: it is readable by root only, as Linux has it by default.
        LookupError: there is none.
    """

    def __init__(self, folder: Path) -> None:
        # Not intel-rapl:0:1, a part of package 0; nor psys, the platform with all packages in it.
        self._zones = [
            _Zone(
                file=zone / "energy_uj",
                wraps_at=int((zone / "max_energy_range_uj").read_text()),
                last=int((zone / "energy_uj").read_text()),
            )
            for zone in sorted(folder.glob("intel-rapl:*"))
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")
        ]
        if not self._zones:
            raise LookupError(f"no CPU package counts its energy below {folder}")
        self._microjoules = 0

    def joules(self) -> float:
        for zone in self._zones:
            now = int(zone.file.read_text())
            self._microjoules += (now - zone.last) % zone.wraps_at
            zone.last = now
        return self._microjoules / 1e6


class NvmlCounter:
    """A whole NVIDIA GPU, by its driver. It has never run on one.

    Raises:
        LookupError: nvidia-ml-py is not installed, or the driver does not count.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            import pynvml  # type: ignore[import-not-found,import-untyped]
        except ImportError as error:
            raise LookupError("nvidia-ml-py is not installed") from error
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            # By UUID: CUDA_VISIBLE_DEVICES gives torch other numbers than the driver has.
            uuid = torch.cuda.get_device_properties(device).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self.joules()
        except pynvml.NVMLError as error:
            raise LookupError(f"NVML does not count the energy of {device}") from error

    def joules(self) -> float:
        millijoules: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return millijoules / 1e3
