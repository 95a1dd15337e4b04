"""Memory of a training step: what is included, and that nothing is left behind."""

import pytest
import torch
from torch import nn

from mixerbench import create_model
from mixerbench.measure.memory import MIB, training_step_memory_mib

MICRO = {"image_size": 32, "patch_size": 4, "num_classes": 10}
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=no_gpu)]


def micro(dim=64, **options):
    size = {"dim": dim, "depth": 2, "num_heads": 4}
    return create_model("attention", size, **MICRO, **options)


def memory(model, batch_size=4, precision="fp32"):
    return training_step_memory_mib(model, 32, batch_size, 10, precision=precision)


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_twice_as_wide_needs_more(device):
    assert memory(micro(128).to(device)) > 1.5 * memory(micro(64).to(device))


def test_twice_the_images_need_more():
    assert memory(micro(), batch_size=8) > 1.5 * memory(micro(), batch_size=4)


@pytest.mark.parametrize("device", DEVICES)
def test_the_peak_holds_weights_and_gradients(device):
    model = micro().to(device)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert memory(model, batch_size=1) * MIB >= 2 * weights


def test_one_linear_layer_needs_what_its_tensors_take():
    batch, width = 256, 3 * 8 * 8
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, 10))
    measured = training_step_memory_mib(model, 8, batch, 10, precision="fp32") * MIB
    weights = 4 * (width * 10 + 10)
    images, logits = 4 * batch * width, 4 * batch * 10
    lower = 2 * weights + images + 2 * logits  # targets and the gradient of the logits
    assert lower <= measured <= lower + 8 * logits  # log-softmax and temporaries


def test_the_figure_does_not_depend_on_chance_or_on_what_ran_before():
    model = micro(drop_path=0.5, dropout=0.1)
    assert memory(model) == memory(model)


def test_checkpointing_lowers_the_peak():
    model = create_model("attention", {"dim": 64, "depth": 6, "num_heads": 4}, **MICRO)
    plain = memory(model, batch_size=8)
    model.set_grad_checkpointing()
    assert memory(model, batch_size=8) < plain


def test_bf16_activations_need_less():
    assert memory(micro(), 16, "bf16") < memory(micro(), 16)


def test_distillation_with_two_outputs_is_measured():
    model = micro(pool="token", distillation_token=True)
    model.set_distilled_training()
    assert memory(model) > 0


def test_nothing_is_left_behind(given_back):
    model = micro(stem="conv", drop_path=0.5, dropout=0.1).train()
    model.blocks[0].eval()
    with given_back(model):
        memory(model)


def test_nothing_is_left_behind_by_a_step_that_fails():
    model = micro(stem="conv").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        training_step_memory_mib(model, 32, 4, 11, precision="fp32")  # the model has 10 classes
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_it_measures_also_where_gradients_are_off_and_prints_nothing(capfd):
    with torch.no_grad():
        assert memory(micro()) > 0
    assert capfd.readouterr() == ("", "")
