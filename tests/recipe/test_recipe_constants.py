"""Each constant of the published recipes, and what every other protocol changes of DeiT's.

The table is DeiT's: papers.md's list, which is the parser of facebookresearch/deit's main.py.
"""

import dataclasses

import pytest
import timm

from mixerbench.config.files import config_names
from mixerbench.config.schema import UNHASHED, Protocol, flatten
from mixerbench.data.source import open_images
from mixerbench.recipe.mixup import create_mixup
from mixerbench.recipe.optimization import peak_lr

DEIT = {
    "image_size": 224,
    "data.name": "imagenet",
    "data.source": "folder",
    "data.num_classes": 1000,
    "data.mean": [0.485, 0.456, 0.406],
    "data.std": [0.229, 0.224, 0.225],
    "data.exif_orientation": False,
    "data.train_images": None,
    "data.val_images": None,
    "data.digest": None,
    "data.pixels": "exact",
    "data.packed": None,
    "data.content": None,
    "recipe.position_std": 0.02,
    "recipe.epochs": 300,
    "recipe.batch.size": 1024,
    "recipe.batch.micro_batch_size": 128,
    "recipe.optimizer.name": "adamw",
    "recipe.optimizer.lr": 5e-4,
    "recipe.optimizer.lr_batch_size": 512,
    "recipe.optimizer.offset_lr_scale": 1.0,
    "recipe.optimizer.momentum": None,
    "recipe.optimizer.betas": [0.9, 0.999],
    "recipe.optimizer.eps": 1e-8,
    "recipe.optimizer.weight_decay": 0.05,
    "recipe.optimizer.clip_grad_norm": None,
    "recipe.schedule.interval": "epoch",
    "recipe.schedule.warmup_epochs": 5,
    "recipe.schedule.warmup_lr": 1e-6,
    "recipe.schedule.min_lr": 1e-5,
    "recipe.augmentation.crop": "resized",
    "recipe.augmentation.scale": [0.08, 1.0],
    "recipe.augmentation.ratio": [3 / 4, 4 / 3],
    "recipe.augmentation.hflip": 0.5,
    "recipe.augmentation.color_jitter": 0.3,
    "recipe.augmentation.auto_augment": "rand-m9-mstd0.5-inc1",
    "recipe.augmentation.interpolation": "bicubic",
    "recipe.augmentation.random_erasing": 0.25,
    "recipe.augmentation.random_erasing_mode": "pixel",
    "recipe.augmentation.random_erasing_count": 1,
    "recipe.augmentation.repeats": 3,
    "recipe.mixup.mixup": 0.8,
    "recipe.mixup.cutmix": 1.0,
    "recipe.mixup.prob": 1.0,
    "recipe.mixup.switch_prob": 0.5,
    "recipe.mixup.mode": "batch",
    "recipe.loss.name": "cross_entropy",
    "recipe.loss.label_smoothing": 0.1,
    "recipe.regularization.drop_path": 0.1,
    "recipe.regularization.drop_path_schedule": "linear",
    "recipe.regularization.dropout": 0.0,
    "recipe.regularization.layer_scale": None,
    "recipe.batch_norm_momentum": 0.1,
    "recipe.ema.decay": 0.99996,
    "recipe.distillation.kind": "none",
    "recipe.distillation.teacher": "regnety_160",
    "recipe.distillation.alpha": 0.5,
    "recipe.distillation.tau": 1.0,
    "recipe.distillation.teacher_digest": None,
    "evaluation.crop_ratio": 0.875,
    "evaluation.interpolation": "bicubic",
    "evaluation.image_size": None,
}

CIFAR = {"image_size": 32, "recipe.augmentation.crop": "padded", "evaluation.crop_ratio": 1.0}

CHANGES = {
    # README_revenge.md's command for ViT-S: --batch 256 on 8 GPUs, --opt fusedlamb, --lr 4e-3,
    # --unscale-lr, --epochs 800, --reprob 0.0, --smoothing 0.0, --drop-path 0.05, --bce-loss,
    # --ThreeAugment, --eval-crop-ratio 1.0. models_v2.py: LayerScale 1e-4, constant drop path.
    "imagenet_deit3": {
        "recipe.epochs": 800,
        "recipe.batch.size": 2048,
        "recipe.batch.micro_batch_size": 256,
        "recipe.optimizer.name": "lamb",
        "recipe.optimizer.lr": 4e-3,
        "recipe.optimizer.lr_batch_size": None,
        "recipe.augmentation.auto_augment": "3a",
        "recipe.augmentation.random_erasing": 0.0,
        "recipe.loss.name": "binary_cross_entropy",
        "recipe.loss.label_smoothing": 0.0,
        "recipe.regularization.drop_path": 0.05,
        "recipe.regularization.drop_path_schedule": "constant",
        "recipe.regularization.layer_scale": 1e-4,
        "evaluation.crop_ratio": 1.0,
    },
    # config.py and configs/lit-small.yaml of ziplab/LIT, classification/code_for_lit_s_m_b. What
    # is not here, LIT has as DeiT does; its moving average is DeiT's, since it has none.
    "imagenet_lit": {
        "recipe.optimizer.offset_lr_scale": 0.01,
        "recipe.optimizer.clip_grad_norm": 5.0,
        "recipe.schedule.interval": "step",
        "recipe.schedule.warmup_epochs": 20,
        "recipe.augmentation.color_jitter": 0.4,
        "recipe.augmentation.repeats": 1,
        "recipe.regularization.drop_path": 0.2,
    },
    "imagenet_sasa": {
        # appendix A.2 of arXiv:1906.05909
        "recipe.epochs": 130,
        "recipe.batch.size": 4096,
        "recipe.batch.micro_batch_size": 4096 // 128,
        "recipe.optimizer.name": "sgd",
        "recipe.optimizer.lr": 1.6,
        "recipe.schedule.warmup_epochs": 10,
        "recipe.batch_norm_momentum": 1e-4,
        "recipe.ema.decay": 0.9999,
        # not in the paper: arXiv:1512.03385 and arXiv:1706.02677
        "recipe.optimizer.lr_batch_size": 4096,
        "recipe.optimizer.momentum": 0.9,
        "recipe.optimizer.betas": None,
        "recipe.optimizer.eps": None,
        "recipe.optimizer.weight_decay": 1e-4,
        "recipe.schedule.interval": "step",
        "recipe.schedule.warmup_lr": 0.0,
        "recipe.schedule.min_lr": 0.0,
        "recipe.augmentation.color_jitter": None,
        "recipe.augmentation.auto_augment": None,
        "recipe.augmentation.random_erasing": 0.0,
        "recipe.augmentation.repeats": 1,
        "recipe.mixup.mixup": 0.0,
        "recipe.mixup.cutmix": 0.0,
        "recipe.mixup.prob": 0.0,
        "recipe.mixup.switch_prob": 0.0,
        "recipe.loss.label_smoothing": 0.0,
        "recipe.regularization.drop_path": 0.0,
    },
    "cifar10": {
        "data.name": "cifar10",
        "data.source": "cifar10",
        "data.num_classes": 10,
        **CIFAR,
    },
    "cifar100": {
        "data.name": "cifar100",
        "data.source": "cifar100",
        "data.num_classes": 100,
        **CIFAR,
    },
    "folder": {
        "data.name": "folder",
        "data.num_classes": None,
        "data.exif_orientation": True,
    },
    "synthetic": {
        "data.name": "synthetic",
        "data.source": "synthetic",
        "data.train_images": 4096,
        "data.val_images": 1024,
        "recipe.epochs": 1,
    },
}

DIGITS_SCALE = {  # what 1,258 images of 8 x 8 pixels need otherwise than ImageNet
    "image_size",
    "data.name",
    "data.source",
    "data.num_classes",
    "data.mean",
    "data.std",
    "recipe.epochs",
    "recipe.position_std",
    "recipe.augmentation.color_jitter",
    "recipe.batch.size",
    "recipe.batch.micro_batch_size",
    "recipe.optimizer.lr",
    "recipe.optimizer.lr_batch_size",
    "recipe.schedule.warmup_epochs",
    "recipe.augmentation.scale",
    "recipe.augmentation.hflip",
    "recipe.augmentation.repeats",
    "recipe.augmentation.auto_augment",
    "recipe.mixup.prob",
    "recipe.ema.decay",
    "evaluation.crop_ratio",
}


def fields_of(protocol: Protocol) -> dict[str, object]:
    """All that the fingerprint covers, by dotted path."""
    fields = flatten(dataclasses.asdict(protocol))
    return {path: value for path, value in fields if path not in UNHASHED}


@pytest.mark.parametrize("path", DEIT)
def test_imagenet_deit_has_deits_constant(path, protocol):
    assert fields_of(protocol())[path] == DEIT[path]


def test_no_setting_of_the_protocol_is_missing_from_the_table(protocol):
    assert fields_of(protocol()).keys() == DEIT.keys()


def test_every_protocol_is_in_the_table_of_changes():
    assert set(config_names("protocol")) == {"imagenet_deit", "digits", *CHANGES}


@pytest.mark.parametrize("name", CHANGES)
def test_protocol_changes_what_the_table_says_and_nothing_else(name, protocol):
    fields = fields_of(protocol(name))
    assert {path: value for path, value in fields.items() if value != DEIT[path]} == CHANGES[name]


def test_digits_scales_deits_recipe_and_changes_nothing_else(protocol):
    fields = fields_of(protocol("digits"))
    assert {path for path, value in fields.items() if value != DEIT[path]} <= DIGITS_SCALE


def test_digits_average_spans_about_the_same_share_of_the_run_as_deits(protocol):
    def share(name: str, images: int) -> float:
        recipe = protocol(name).recipe
        steps = recipe.epochs * (images // recipe.batch.size)
        return 1 / (1 - recipe.ema.decay) / steps

    digits = len(open_images(protocol("digits")).train.targets)
    # A decay of two digits says no more: 0.965 to 0.975 are 29 to 40 steps.
    assert share("digits", digits) == pytest.approx(share("imagenet_deit", 1_281_167), rel=0.35)


@pytest.mark.parametrize(
    ("name", "patch_size"),
    [
        ("imagenet_deit", 16),
        ("imagenet_deit3", 16),
        ("imagenet_lit", 16),
        ("imagenet_sasa", 16),
        ("cifar10", 4),
    ],
)
def test_patch_size_fits_the_images_of_the_protocol(name, patch_size, protocol):
    assert protocol(name).patch_size == patch_size
    assert protocol(name).image_size % patch_size == 0


def test_teacher_is_a_model_of_the_installed_timm(protocol):
    assert timm.is_model(protocol().recipe.distillation.teacher)


@pytest.mark.parametrize(
    ("batch", "rate"), [(256, 2.5e-4), (512, 5e-4), (1024, 1e-3), (2048, 2e-3)]
)
def test_deits_learning_rate_grows_with_the_batch(batch, rate, protocol):
    recipe = protocol(recipe__batch__size=batch).recipe
    assert peak_lr(recipe) == pytest.approx(rate, rel=1e-12)  # one product and one quotient


@pytest.mark.parametrize("batch", [256, 2048])
def test_deit3s_learning_rate_does_not_depend_on_the_batch(batch, protocol):
    assert peak_lr(protocol("imagenet_deit3", recipe__batch__size=batch).recipe) == 4e-3


def test_lits_rates_are_those_of_its_config_scaled_to_the_batch(protocol):
    recipe = protocol("imagenet_lit").recipe
    scale = recipe.batch.size / 512  # main.py: BASE_LR, WARMUP_LR and MIN_LR are all for 512
    schedule = recipe.schedule
    rates = (peak_lr(recipe), schedule.warmup_lr, schedule.min_lr)
    assert rates == pytest.approx((scale * 5e-4, scale * 5e-7, scale * 5e-6), rel=1e-12)


@pytest.mark.parametrize(("batch", "rate"), [(256, 0.1), (4096, 1.6), (8192, 3.2)])
def test_sasas_learning_rate_grows_with_the_batch_as_resnets(batch, rate, protocol):
    recipe = protocol("imagenet_sasa", recipe__batch__size=batch).recipe
    assert peak_lr(recipe) == pytest.approx(rate, rel=1e-12)


def test_sasa_mixes_no_images(protocol):
    assert create_mixup(protocol("imagenet_sasa").recipe, 1000) is None


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("recipe.schedule.interval=minute", "choose one of epoch, step"),
        ("recipe.optimizer.offset_lr_scale=0", "above 0"),
        ("recipe.optimizer.momentum=1", "0 or more, below 1"),
        ("recipe.batch_norm_momentum=0", "above 0 and up to 1"),
        ("recipe.batch_norm_momentum=1.5", "above 0 and up to 1"),
    ],
)
def test_a_value_out_of_range_is_refused(setting, expected, refused):
    message = refused("train", "--cfg", setting)
    assert setting.split("=")[0] in message
    assert expected in message
