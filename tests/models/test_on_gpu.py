"""The papers' models on a GPU: the CPU's logits, and a training step in half precision."""

import copy

import pytest
import torch

from mixerbench.models import create_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

every_family = pytest.mark.parametrize(
    "preset",
    ["ff_tiny", "attention_only_tiny", "deit_tiny", "lit_ti", "lit_s", "resnet26", "sasa_r26",
     "sasa_r26_full"],
)  # fmt: skip


@every_family
def test_a_gpu_gives_the_cpus_logits(preset):
    model = create_model(preset=preset, size="micro", image_size=64, num_classes=7).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = model.double()(images.double())
        actual = copy.deepcopy(model).cuda()(images.double().cuda())
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-8, atol=1e-9)


@every_family
def test_a_training_step_in_bfloat16_has_finite_gradients(preset):
    model = create_model(preset=preset, num_classes=7).cuda().train()
    images = torch.randn(32, 3, 224, 224, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model(images).float(), torch.arange(32).cuda() % 7)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
