"""Energy: the counters of a machine in a made folder, and the arithmetic with a made counter."""

import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from mixerbench.measure import energy, model_costs
from mixerbench.measure.energy import EnergyMeter, NvmlCounter, RaplCounter, energy_counter
from mixerbench.measure.model_costs import measure_model
from mixerbench.measure.speed import throughput

CPU = {"precision": "fp32", "device": "cpu"}


class Powercap:
    """A folder as Linux has it below /sys/class/powercap; the test advances its counters."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, zone, name, microjoules, wraps_at=1_000_000):
        place = self.folder / zone
        place.mkdir()
        (place / "name").write_text(f"{name}\n")
        (place / "max_energy_range_uj").write_text(f"{wraps_at}\n")
        self.set(zone, microjoules)

    def set(self, zone, microjoules):
        # Renamed into its place, as the kernel's files never read half.
        new = self.folder / "new"
        new.write_text(f"{microjoules}\n")
        new.rename(self.folder / zone / "energy_uj")


@pytest.fixture
def powercap(tmp_path):
    return Powercap(tmp_path)


class Steady:
    """Counts ``step`` joules more at each look."""

    def __init__(self, step):
        self.step, self.now, self.looks = step, 100.0, 0

    def joules(self):
        self.looks += 1
        self.now += self.step
        return self.now


# --- RAPL -------------------------------------------------------------------------------------


def test_microjoules_of_all_packages_are_added(powercap):
    powercap.add("intel-rapl:0", "package-0", 500)
    powercap.add("intel-rapl:1", "package-1", 0)
    counter = RaplCounter(powercap.folder)
    begin = counter.joules()
    powercap.set("intel-rapl:0", 300_500)
    powercap.set("intel-rapl:1", 40_000)
    assert counter.joules() - begin == pytest.approx(0.34)


def test_parts_of_a_package_and_the_platform_are_not_added_to_it(powercap):
    powercap.add("intel-rapl", "control", 0)
    powercap.add("intel-rapl:0", "package-0", 0)
    others = {"intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys",
              "intel-rapl-mmio:0": "package-0"}  # fmt: skip
    for zone, name in others.items():
        powercap.add(zone, name, 0)
    counter = RaplCounter(powercap.folder)
    for zone in others:
        powercap.set(zone, 900_000)
    powercap.set("intel-rapl:0", 100_000)
    assert counter.joules() == pytest.approx(0.1)


def test_a_counter_that_comes_around_goes_on(powercap):
    powercap.add("intel-rapl:0", "package-0", 990_000, wraps_at=1_000_000)
    counter = RaplCounter(powercap.folder)
    found = []
    for now in (995_000, 5_000, 5_000, 999_999, 0):
        powercap.set("intel-rapl:0", now)
        found.append(counter.joules())
    assert found == pytest.approx([0.005, 0.015, 0.015, 1.009999, 1.01])


def test_a_counter_that_advances_meanwhile_is_read(powercap):
    powercap.add("intel-rapl:0", "package-0", 0, wraps_at=50_000)
    meter = EnergyMeter(RaplCounter(powercap.folder))
    ends = threading.Event()

    def advance():
        used = 0
        while not ends.is_set():
            used += 1_000  # comes around every 50
            powercap.set("intel-rapl:0", used % 50_000)
            ends.wait(0.001)

    thread = threading.Thread(target=advance)
    thread.start()
    try:
        throughput(nn.Flatten(), 8, 4, seconds=0.03, energy=meter, **CPU)
    finally:
        ends.set()
        thread.join()
    assert 0 < meter.joules_per_image < 1


@pytest.mark.parametrize("what", ["no folder", "an empty one", "one that cannot be read"])
def test_what_cannot_be_read_gives_no_counter(what, powercap, monkeypatch):
    folder = powercap.folder / "missing" if what == "no folder" else powercap.folder
    if what == "one that cannot be read":
        powercap.add("intel-rapl:0", "package-0", 0)
        (folder / "intel-rapl:0" / "energy_uj").unlink()
        (folder / "intel-rapl:0" / "energy_uj").mkdir()  # an OSError for root, too
    monkeypatch.setattr(energy, "POWERCAP", folder)
    assert energy_counter("cpu") is None


def test_a_cpu_with_a_counter_has_it(powercap, monkeypatch):
    powercap.add("intel-rapl:0", "package-0", 7)
    monkeypatch.setattr(energy, "POWERCAP", powercap.folder)
    assert isinstance(energy_counter("cpu"), RaplCounter)


def test_a_device_of_another_kind_has_no_counter():
    assert energy_counter("meta") is None


# --- NVML: its calls as they are documented, no driver ----------------------------------------


@pytest.fixture
def nvml(monkeypatch):
    """A stand-in for nvidia-ml-py that knows one GPU."""
    module = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.asked = []

    def handle(uuid):
        module.asked.append(uuid)
        return f"handle of {uuid}"

    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = handle
    module.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 2_500
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = types.SimpleNamespace(uuid="5a1b-77")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return module


def test_a_gpu_is_found_by_its_uuid_and_counts_millijoules(nvml):
    counter = energy_counter("cuda:1")
    assert isinstance(counter, NvmlCounter)
    assert nvml.asked == ["GPU-5a1b-77"]
    assert counter.joules() == 2.5


def test_a_driver_that_refuses_gives_no_counter(nvml):
    def refuse(handle):
        raise nvml.NVMLError("Not Supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = refuse
    assert energy_counter("cuda") is None


def test_a_missing_package_gives_no_counter(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_counter("cuda") is None


# --- joules per image -------------------------------------------------------------------------


def test_stretches_are_added_and_what_lies_between_them_is_not():
    counter = Steady(3.0)
    meter = EnergyMeter(counter)
    for images in (2, 4):
        meter.start()
        meter.stop(images)
        counter.now += 1000  # somebody else's work
    assert meter.joules_per_image == pytest.approx((3.0 + 3.0) / (2 + 4))


@pytest.mark.parametrize("counter", [None, Steady(0.0)], ids=["no counter", "one that stands"])
def test_without_a_counter_that_advances_there_is_no_figure(counter):
    meter = EnergyMeter(counter)
    assert meter.joules_per_image is None
    meter.start()
    meter.stop(5)
    assert meter.joules_per_image is None


class Calls(nn.Module):
    def __init__(self):
        super().__init__()
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return images


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_throughput_meters_its_timed_passes_only(seconds):
    model, counter = Calls(), Steady(1.0)
    seen_at = []
    joules = counter.joules
    counter.joules = lambda: seen_at.append(model.images) or joules()
    meter = EnergyMeter(counter)
    throughput(model, 8, 4, seconds=seconds, energy=meter, **CPU)
    *_, begin, end = seen_at
    assert begin >= 4  # the first pass is not timed
    assert end == model.images
    assert meter.joules_per_image == pytest.approx(1.0 / (end - begin))


@pytest.mark.parametrize(("step", "known"), [(0.5, True), (0.0, False)])
def test_a_measurement_has_energy_where_the_hardware_counts_it(step, known, monkeypatch):
    monkeypatch.setattr(model_costs, "energy_counter", lambda device: Steady(step))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    measures = measure_model(model, 8, num_classes=4, batch_size=2, seconds=0.01, **CPU)
    assert (measures.joules_per_image is not None) == known


@pytest.mark.parametrize(("step", "known"), [(0.5, True), (0.0, False)])
def test_profile_prints_energy_where_it_is_known(step, known, monkeypatch, command):
    monkeypatch.setattr(model_costs, "energy_counter", lambda device: Steady(step))
    line = "profile mixer=none run.device=cpu run.measure_seconds=0.05 run.measure_batch_size=2"
    assert (" mJ for one image forward" in command(*line.split()).out) == known
