"""Everything about a model in one call, and part by part."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from mixerbench import create_model
from mixerbench.measure.flops import count_macs
from mixerbench.measure.model_costs import OWN, count_parameters, measure_model, module_rows

MICRO = {"size": "micro", "image_size": 32, "patch_size": 4, "num_classes": 10}
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=no_gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_one_call_measures_everything_and_leaves_the_model_as_it_was(device):
    model = create_model("lit", stem="conv", **MICRO).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    measures = measure_model(
        model, 32, num_classes=10, batch_size=2, seconds=0.1, precision="fp32", device=device
    )
    assert measures.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert measures.gmacs == count_macs(model, 32).total / 1e9
    assert measures.batch_size == 2
    assert min(measures.images_per_second.median, measures.latency_ms.median) > 0
    assert measures.memory_mib > 0
    assert measures.hardware.endswith("fp32")
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_that_are_frozen_or_shared_are_not_counted_again():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[1].weight
    model[0].requires_grad_(False)
    assert count_parameters(model) == 4 * 4 + 4 + 4


@pytest.mark.parametrize("mixer", ["attention", "lit"])
def test_the_rows_add_up_to_the_model(mixer):
    model = create_model(mixer, **MICRO)
    rows = {row.name: row for row in module_rows(model, count_macs(model, 32))}
    assert list(rows) == ["stem", "pos_embed", *(f"blocks.{i}" for i in range(4)), "norm", "head"]
    assert sum(row.parameters for row in rows.values()) == count_parameters(model)
    assert sum(row.gmacs for row in rows.values()) == pytest.approx(
        count_macs(model, 32).total / 1e9
    )
    assert rows["pos_embed"].parameters == model.pos_embed.table.numel()
    assert rows["head"].gmacs == 64 * 10 / 1e9


def test_what_belongs_to_no_part_has_a_row_of_its_own():
    model = create_model("attention", pool="token", **MICRO)
    rows = {row.name: row for row in module_rows(model, count_macs(model, 32))}
    assert rows[OWN].parameters == model.cls_token.numel()


def test_the_package_imports_without_fvcore_timm_and_psutil():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['fvcore', 'timm', 'psutil']))\n"
        "import mixerbench.measure.model_costs, mixerbench.measure.hardware\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_alone_does_not_load_torch():
    code = "import sys, mixerbench.measure; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
