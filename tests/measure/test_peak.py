"""The measured peak: plausible, remembered, and without a trace."""

import subprocess
import sys
import time

import pytest
import torch

from mixerbench.measure import peak
from mixerbench.measure.peak import peak_flops, training_flops

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=no_gpu)]


@pytest.fixture
def fresh():
    """As in a new process: nothing is remembered; and the number of threads is put back."""
    threads = torch.get_num_threads()
    peak.forget()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("device", DEVICES)
def test_a_product_that_torch_runs_does_not_exceed_the_peak_by_much(device):
    matrix = torch.rand(512, 512, device=device)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        _ = (matrix @ matrix).sum().item()
        best = min(best, time.perf_counter() - begin)
    assert 2 * 512**3 / best < 5 * peak_flops(device, "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp64"])
def test_every_precision_has_a_peak(precision):
    assert 1e8 < peak_flops("cpu", precision) < 1e17


def test_it_is_measured_once_for_a_number_of_threads(fresh):
    torch.set_num_threads(1)
    one = peak_flops("cpu", "fp32")
    assert peak_flops(torch.device("cpu"), "fp32") == one  # to the last digit: the same one
    torch.set_num_threads(2)
    assert peak_flops("cpu", "fp32") != one
    torch.set_num_threads(1)
    assert peak_flops("cpu", "fp32") == one


@pytest.mark.parametrize("device", DEVICES)
def test_random_numbers_are_left_to_the_training(device, fresh):
    torch.rand(1, device=device)
    on_cpu = torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state() if device == "cuda" else on_cpu
    peak_flops(device, "fp32")
    assert torch.equal(torch.get_rng_state(), on_cpu)
    if device == "cuda":
        assert torch.equal(torch.cuda.get_rng_state(), on_gpu)


def test_it_is_quick_even_where_the_hardware_is_not(fresh):
    peak_flops("cpu", "fp32")  # starts threads
    begin = time.process_time()
    peak_flops("cpu", "fp16")  # many CPUs have no product for it
    assert time.process_time() - begin < 5


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="fp23"):
        peak_flops("cpu", "fp23")


def test_forward_and_backward_are_six_operations_for_a_multiply_add():
    assert training_flops(1e9) == 6e9


def test_it_imports_where_only_torch_is_installed():
    code = (
        "import sys\n"
        "missing = ['hydra', 'omegaconf', 'mlflow', 'fvcore', 'timm', 'psutil']\n"
        "sys.modules.update(dict.fromkeys(missing))\n"
        "import mixerbench.measure.peak\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
