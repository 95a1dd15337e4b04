"""Losses and distillation against their formulas, written as loops in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixerbench.models import create_model
from mixerbench.objectives.classification.loss import DistillationLoss, create_loss
from mixerbench.recipe.mixup import create_mixup


def approx(value: float) -> object:
    return pytest.approx(value, rel=0, abs=1e-12)  # float64: the same few sums, reordered


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def cross_entropy(logits: Tensor, targets: Tensor) -> float:
    """The mean over images of -Σ t log p."""
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        total -= sum(t * math.log(p) for t, p in zip(target, softmax(row), strict=True))
    return total / len(logits)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> float:
    """The mean over images and classes of -log σ(x) where t is 1, of -log σ(-x) where it is 0."""
    terms = [
        math.log(1.0 + math.exp(-x if target == 1.0 else x))
        for row, wanted in zip(logits.tolist(), targets.tolist(), strict=True)
        for x, target in zip(row, wanted, strict=True)
    ]
    return sum(terms) / len(terms)


def hard(student: Tensor, teacher: Tensor, tau: float) -> float:
    """Cross-entropy with the class that the teacher chooses; no temperature (DeiT, equation 3)."""
    chosen = [row.index(max(row)) for row in teacher.tolist()]
    return cross_entropy(student, torch.eye(student.shape[1], dtype=torch.float64)[chosen])


def soft(student: Tensor, teacher: Tensor, tau: float) -> float:
    """τ² KL(teacher, student), per logit as losses.py divides (DeiT, equation 2)."""
    total = 0.0
    for one, other in zip((student / tau).tolist(), (teacher / tau).tolist(), strict=True):
        for p, q in zip(softmax(one), softmax(other), strict=True):
            total += q * (math.log(q) - math.log(p))
    return tau * tau * total / student.numel()


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(6, 5, dtype=torch.float64)


@pytest.fixture
def mixed_targets(protocol) -> Tensor:
    """What DeiT's mixup makes of six labels of five classes, label smoothing included."""
    mixup = create_mixup(protocol().recipe, 5)
    return mixup(torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0]))[1].double()


def test_deits_loss_is_cross_entropy_with_soft_targets(logits, mixed_targets, protocol):
    loss = create_loss(protocol().recipe)(logits, mixed_targets)
    assert loss.item() == approx(cross_entropy(logits, mixed_targets))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_mixup_the_loss_smooths_the_labels_itself(smoothing, logits, protocol):
    recipe = protocol(
        recipe__mixup__mixup=0.0,
        recipe__mixup__cutmix=0.0,
        recipe__loss__label_smoothing=smoothing,
    ).recipe
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    targets = (1 - smoothing) * torch.eye(5, dtype=torch.float64)[labels] + smoothing / 5
    assert create_loss(recipe)(logits, labels).item() == approx(cross_entropy(logits, targets))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_either_of_mixup_and_cutmix_gives_soft_targets(mixup, cutmix, logits, protocol):
    recipe = protocol(recipe__mixup__mixup=mixup, recipe__mixup__cutmix=cutmix).recipe
    targets = torch.rand(6, 5, dtype=torch.float64)
    assert create_loss(recipe)(logits, targets).item() == approx(cross_entropy(logits, targets))


def test_deit3s_binary_loss_calls_every_class_in_the_mixture_a_target(logits, protocol):
    targets = torch.zeros(6, 5, dtype=torch.float64)
    targets[range(6), [0, 1, 2, 3, 4, 0]] = 0.999
    targets[range(6), [1, 2, 3, 4, 0, 1]] = 0.001  # however little of it is in the image
    loss = create_loss(protocol("imagenet_deit3").recipe)(logits, targets)
    assert loss.item() == approx(binary_cross_entropy(logits, (targets > 0).double()))
    assert loss.item() != approx(binary_cross_entropy(logits, targets.round()))


def test_deit3s_mixtures_have_one_or_two_classes(protocol):
    mixup = create_mixup(protocol("imagenet_deit3").recipe, 50)
    for seed in range(50):
        np.random.seed(seed)
        _, targets = mixup(torch.rand(4, 3, 8, 8), torch.tensor([7, 8, 9, 7]))
        assert ((targets > 0).sum(dim=1) == torch.tensor([1, 2, 2, 1])).all() or (
            (targets > 0).sum(dim=1) == 1
        ).all()  # an empty box


def test_binary_loss_without_mixup_takes_labels(logits, protocol):
    recipe = protocol("imagenet_deit3", recipe__mixup__mixup=0.0, recipe__mixup__cutmix=0.0).recipe
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    expected = binary_cross_entropy(logits, torch.eye(5, dtype=torch.float64)[labels])
    assert create_loss(recipe)(logits, labels).item() == approx(expected)


# --- distillation ---------------------------------------------------------------------------


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 4, 4, dtype=torch.float64)


@pytest.fixture
def teacher() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).double()
    with torch.no_grad():
        model[1].weight *= 10  # sure of itself, so that the temperature matters
    return model


@pytest.fixture
def distil(protocol, teacher):
    def build(kind: str, alpha: float = 0.5, tau: float = 1.0, teacher=teacher) -> DistillationLoss:
        settings = protocol(
            recipe__distillation__kind=kind,
            recipe__distillation__alpha=alpha,
            recipe__distillation__tau=tau,
        ).recipe
        return DistillationLoss(create_loss(settings), teacher, settings.distillation)

    return build


@pytest.mark.parametrize("tokens", [1, 2], ids=["one classifier", "distillation token"])
@pytest.mark.parametrize(
    ("kind", "alpha", "tau"),
    [("hard", 0.5, 1.0), ("hard", 0.3, 3.0), ("soft", 0.5, 1.0), ("soft", 0.1, 3.0)],
)
def test_distillation_is_deits_formula(
    kind, alpha, tau, tokens, distil, teacher, images, logits, mixed_targets
):
    distilled = torch.randn_like(logits) if tokens == 2 else logits
    answer = (logits, distilled) if tokens == 2 else logits
    distance = {"hard": hard, "soft": soft}[kind](distilled, teacher(images).detach(), tau)
    expected = (1 - alpha) * cross_entropy(logits, mixed_targets) + alpha * distance
    loss = distil(kind, alpha, tau)(images, answer, mixed_targets)
    assert loss.item() == approx(expected)


def test_hard_distillation_ignores_the_temperature(distil, images, logits, mixed_targets):
    losses = {distil("hard", tau=tau)(images, logits, mixed_targets).item() for tau in (1.0, 9.0)}
    assert len(losses) == 1


@pytest.mark.parametrize("pair", [False, True])
def test_without_a_teacher_it_is_the_base_loss(pair, distil, images, logits, mixed_targets):
    answer = (logits, torch.randn_like(logits)) if pair else logits
    loss = distil("none", teacher=None)(images, answer, mixed_targets)
    assert loss.item() == approx(cross_entropy(logits, mixed_targets))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_teacher_gets_no_gradient(kind, distil, teacher, images, logits, mixed_targets):
    logits.requires_grad_(True)
    images.requires_grad_(True)
    distil(kind)(images, logits, mixed_targets).backward()
    assert all(parameter.requires_grad for parameter in teacher.parameters())  # it could have
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert images.grad is None
    assert logits.grad.abs().sum() > 0


def test_teacher_sees_the_mixed_images(distil, images, logits, mixed_targets):
    loss = distil("soft")
    first = loss(images, logits, mixed_targets)
    assert loss(images.flip(0), logits, mixed_targets).item() != first.item()


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_labels_teach_the_class_token_and_the_teacher_the_distillation_token(
    kind, distil, mixed_targets
):
    model = create_model(
        "attention",
        "micro",
        image_size=32,
        num_classes=5,
        pool="token",
        distillation_token=True,
    )
    model.set_distilled_training()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    images = torch.randn(6, 3, 32, 32)

    def gradients(alpha: float) -> tuple[float, float]:
        model.zero_grad()
        loss = distil(kind, alpha, teacher=teacher)
        loss(images, model.train()(images), mixed_targets.float()).backward()
        return tuple(head.weight.grad.abs().sum().item() for head in (model.head, model.head_dist))

    assert [gradient > 0 for gradient in gradients(0.0)] == [True, False]
    assert [gradient > 0 for gradient in gradients(1.0)] == [False, True]
    assert [gradient > 0 for gradient in gradients(0.5)] == [True, True]


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_model_without_the_token_learns_from_both_with_one_classifier(kind, distil, mixed_targets):
    model = create_model("patch_ff", "micro", image_size=32, num_classes=5)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    images = torch.randn(6, 3, 32, 32)
    for alpha in (0.0, 1.0):
        model.zero_grad()
        loss = distil(kind, alpha, teacher=teacher)
        loss(images, model(images), mixed_targets.float()).backward()
        assert model.head.weight.grad.abs().sum() > 0
