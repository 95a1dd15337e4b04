"""The chain from a PIL image to a tensor: DeiT's stages, RandAugment, 3-Augment, evaluation."""

import random
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybeToTensor, RandomResizedCropAndInterpolation
from torchvision import transforms

from mixerbench.recipe.augmentation import eval_transform, train_transform

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

OPERATIONS = [  # of RandAugment in timm 0.3.2 with inc1
    *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing"),
    *("SolarizeIncreasing", "SolarizeAdd", "ColorIncreasing", "ContrastIncreasing"),
    *("BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY"),
    *("TranslateXRel", "TranslateYRel"),
]

PLAIN = {  # nothing random is left but what a test sets
    "recipe__augmentation__scale": [1.0, 1.0],
    "recipe__augmentation__ratio": [1.0, 1.0],
    "recipe__augmentation__hflip": 0.0,
    "recipe__augmentation__color_jitter": None,
    "recipe__augmentation__auto_augment": None,
    "recipe__augmentation__random_erasing": 0.0,
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def normalised(image: Image.Image) -> torch.Tensor:
    pixels = (np.asarray(image) / 255.0 - MEAN) / STD
    return torch.from_numpy(pixels).permute(2, 0, 1)


def assert_same_pixels(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to float32: values up to 2.7, divided by 0.22 after one rounding."""
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


def step_of(chain: object, cls: type) -> object:
    (step,) = (step for step in chain.transforms if isinstance(step, cls))
    return step


# --- training -------------------------------------------------------------------------------


def test_chain_has_deits_stages_in_deits_order(protocol):
    assert [type(step) for step in train_transform(protocol()).transforms] == [
        RandomResizedCropAndInterpolation,
        transforms.RandomHorizontalFlip,
        RandAugment,
        MaybeToTensor,
        transforms.Normalize,
        RandomErasing,
    ]


def test_chain_gives_the_tensors_of_deits_call_of_timm(protocol, seed_all):
    ours = train_transform(protocol(image_size=48))
    deits = create_transform(  # datasets.py, build_transform
        input_size=48,
        is_training=True,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    image = noise(70, 60)
    for seed in range(40):
        seed_all(seed)
        expected = deits(image)
        seed_all(seed)
        assert torch.equal(ours(image), expected)


OTHER = {  # a value that is not DeiT's
    "crop": "padded",
    "scale": [0.5, 1.0],
    "ratio": [1.0, 1.0],
    "hflip": 0.25,
    "color_jitter": 0.1,
    "auto_augment": None,
    "interpolation": "bilinear",
    "random_erasing": 0.5,
    "random_erasing_mode": "const",
    "random_erasing_count": 2,
}


@pytest.mark.parametrize("field", OTHER)
def test_every_setting_changes_the_chain(field, protocol):
    base = {} if field != "color_jitter" else {"recipe__augmentation__auto_augment": None}
    changed = base | {f"recipe__augmentation__{field}": OTHER[field]}
    assert repr(train_transform(protocol(**changed))) != repr(train_transform(protocol(**base)))


def test_every_setting_is_tried_here_but_repeats_which_belongs_to_the_order(protocol):
    assert set(asdict(protocol().recipe.augmentation)) == {*OTHER, "repeats"}


@pytest.mark.parametrize("build", [train_transform, eval_transform])
def test_pixels_are_normalised_by_the_mean_and_deviation_of_the_data(build, protocol):
    fields = {"data__mean": [0.1, 0.2, 0.3], "data__std": [0.5, 0.25, 0.125]}
    white = Image.new("RGB", (48, 48), (255, 255, 255))
    pixel = build(protocol(image_size=48, **PLAIN | fields))(white)[:, 24, 24]
    assert pixel.tolist() == pytest.approx(
        [0.9 / 0.5, 0.8 / 0.25, 0.7 / 0.125], rel=1e-6
    )  # float32


def test_without_random_parts_training_is_a_bicubic_resize(protocol):
    image = noise(60, 60)
    actual = train_transform(protocol(image_size=48, **PLAIN))(image)
    assert_same_pixels(actual, normalised(image.resize((48, 48), Image.Resampling.BICUBIC)))


def test_flip_mirrors_left_and_right(protocol):
    image = noise(48, 48)
    fields = PLAIN | {"recipe__augmentation__hflip": 1.0}
    actual = train_transform(protocol(image_size=48, **fields))(image)
    assert_same_pixels(actual, normalised(ImageOps.mirror(image)))


def test_crops_have_the_area_and_the_shape_of_the_recipe(protocol):
    crop = train_transform(protocol()).transforms[0]
    image = noise(400, 300)
    boxes = [crop.get_params(image, crop.scale, crop.ratio) for _ in range(500)]
    areas = [height * width / (400 * 300) for _, _, height, width in boxes]
    ratios = [width / height for _, _, height, width in boxes]
    # Sides are whole pixels: 1 % of the smallest side of 74.
    assert 0.08 * 0.98 <= min(areas) < 0.12
    assert 0.85 < max(areas) <= 1.0
    assert 0.75 * 0.98 <= min(ratios) < 0.78
    assert 1.28 < max(ratios) <= 4 / 3 * 1.02


def test_random_erasing_meets_a_quarter_of_the_images_and_2_to_33_percent_of_each(protocol):
    fields = PLAIN | {"recipe__augmentation__random_erasing": 0.25}
    chain = train_transform(protocol(image_size=48, **fields))
    grey = Image.new("RGB", (48, 48), (7, 7, 7))
    clean = train_transform(protocol(image_size=48, **PLAIN))(grey)
    shares = [(chain(grey) != clean).any(dim=0).double().mean().item() for _ in range(600)]
    erased = [share for share in shares if share > 0]
    assert 0.18 < len(erased) / 600 < 0.32  # four sigma of 1.8 %
    assert 0.02 * 0.85 <= min(erased) < 0.05  # sides are whole pixels, the smallest is 4
    assert 0.25 < max(erased) <= 0.34


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_images_of_32_pixels_are_padded_by_4_and_cropped(name, protocol):
    settings = protocol(name, **PLAIN)
    chain = train_transform(settings)
    image = noise(32, 32)
    frame = np.zeros((40, 40, 3), dtype=np.uint8)
    frame[4:36, 4:36] = np.asarray(image)
    places = {
        normalised(Image.fromarray(frame[top : top + 32, left : left + 32])).float()
        .numpy().round(4).tobytes(): (top, left)
        for top in range(9)
        for left in range(9)
    }  # fmt: skip
    found = Counter(places[chain(image).numpy().round(4).tobytes()] for _ in range(1500))
    assert len(found) == 81  # each is missed with a probability of 1e-8


# --- RandAugment ----------------------------------------------------------------------------


def test_randaugment_draws_two_of_fifteen_operations_at_magnitude_nine(protocol):
    augment = step_of(train_transform(protocol()), RandAugment)
    assert augment.num_layers == 2
    assert augment.choice_weights is None  # with replacement, all alike
    assert [operation.name for operation in augment.ops] == OPERATIONS
    for operation in augment.ops:
        assert (operation.prob, operation.magnitude, operation.magnitude_std) == (0.5, 9, 0.5)
        assert operation.magnitude_max is None  # then it is 10


def posterize_of(chain: object) -> AugmentOp:
    (found,) = (op for op in step_of(chain, RandAugment).ops if op.name == "PosterizeIncreasing")
    return found


def test_posterize_at_zero_bits_is_black_as_in_older_pillow(protocol):
    posterize = posterize_of(train_transform(protocol()))
    posterize.prob, posterize.magnitude, posterize.magnitude_std = 1.0, 10, 0
    black = posterize(noise(9, 5))
    assert (black.mode, black.size, black.getextrema()) == ("RGB", (9, 5), ((0, 0),) * 3)


@pytest.mark.parametrize("bits", range(9))
def test_posterize_keeps_the_highest_bits(bits, protocol):
    posterize = posterize_of(train_transform(protocol()))
    image = noise(16, 16)
    actual = np.asarray(posterize.aug_fn(image, bits, **posterize.kwargs))
    step = 2 ** (8 - bits)
    assert (actual == np.asarray(image).astype(int) // step * step).all()


NOISE = [noise(12, 10, seed) for seed in range(100)]


def pillow_refuses_zero_bits() -> bool:
    try:
        ImageOps.posterize(Image.new("RGB", (1, 1)), 0)
    except ValueError:
        return True
    return False


@pytest.fixture(scope="module")
def seeds_of_zero_bits(protocol, seed_all) -> list[int]:
    """Those of 5,000 draws of RandAugment that ask posterize for 0 bits."""
    augment = step_of(train_transform(protocol()), RandAugment)
    posterize = next(op for op in augment.ops if op.name == "PosterizeIncreasing")
    asked: list[int] = []

    def spy(image: Image.Image, bits: int, **options: object) -> Image.Image:
        asked.append(bits)
        return ours(image, bits, **options)

    ours, posterize.aug_fn = posterize.aug_fn, spy
    found = []
    for seed in range(5000):
        seed_all(seed)
        asked.clear()
        assert augment(NOISE[seed % len(NOISE)]).size == (12, 10)
        if 0 in asked:
            found.append(seed)
    return found


@pytest.mark.slow
def test_5000_draws_of_randaugment_never_raise(seeds_of_zero_bits):
    # 2 draws x 1/15 x 1/2 x P(magnitude at its limit of 10 = two sigma) is 0.15 %.
    assert 1 <= len(seeds_of_zero_bits) <= 20


@pytest.mark.slow
@pytest.mark.skipif(not pillow_refuses_zero_bits(), reason="this Pillow posterizes to 0 bits")
def test_timms_own_randaugment_raises_on_these_draws(seeds_of_zero_bits, seed_all):
    timms = create_transform(
        is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic"
    )
    augment = step_of(timms, RandAugment)
    for seed in seeds_of_zero_bits:
        seed_all(seed)
        with pytest.raises(ValueError, match="bits"):
            augment(NOISE[seed % len(NOISE)])


@pytest.mark.parametrize(
    "policy",
    [
        "augmix-m10-mstd1",
        "original",
        "rand-m1-mstd0.5",  # without inc1, low magnitudes keep no bits
        "v0",
    ],
)
def test_no_policy_of_timm_raises_at_zero_bits(policy, protocol, seed_all):
    chain = train_transform(protocol(image_size=16, recipe__augmentation__auto_augment=policy))
    image = noise(16, 16)
    for seed in range(400):
        seed_all(seed)
        chain(image)


# --- DeiT III: 3-Augment --------------------------------------------------------------------


@pytest.fixture
def three_augment(protocol) -> AutoAugment:
    return step_of(train_transform(protocol("imagenet_deit3")), AutoAugment)


def test_3_augment_is_followed_by_colour_jitter_and_by_no_erasing(protocol):
    chain = train_transform(protocol("imagenet_deit3"))
    assert [type(step) for step in chain.transforms] == [
        RandomResizedCropAndInterpolation,
        transforms.RandomHorizontalFlip,
        AutoAugment,
        transforms.ColorJitter,
        MaybeToTensor,
        transforms.Normalize,
    ]
    jitter = step_of(chain, transforms.ColorJitter)
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.7, 1.3)
    assert jitter.hue is None


def test_3_augment_does_one_of_its_operations_to_every_image(three_augment):
    image = noise(12, 12)
    solarized = np.asarray(ImageOps.solarize(image, 128))
    grey = np.asarray(image.convert("L").convert("RGB"))
    counts: Counter[str] = Counter()
    for _ in range(900):
        result = np.asarray(three_augment(image))
        kind = "solarize" if (result == solarized).all() else "blur"
        counts["grey" if (result == grey).all() else kind] += 1
        assert (result != np.asarray(image)).any()
    assert set(counts) == {"solarize", "grey", "blur"}
    assert all(240 <= count <= 360 for count in counts.values())  # four sigma of 14


def test_3_augments_blur_has_a_radius_between_a_tenth_and_two(three_augment):
    ((blur,),) = [ops for ops in three_augment.policy if ops[0].name == "GaussianBlurRand"]
    image = noise(24, 24)
    for seed in range(20):
        random.seed(seed)
        radius = random.uniform(0.1, 2.0)
        random.seed(seed)
        expected = image.filter(ImageFilter.GaussianBlur(radius))
        assert (np.asarray(blur(image)) == np.asarray(expected)).all()


# --- evaluation -----------------------------------------------------------------------------


@pytest.mark.parametrize("width_height", [(320, 280), (280, 320), (100, 150)])
@pytest.mark.parametrize(("name", "side"), [("imagenet_deit", 256), ("imagenet_deit3", 224)])
def test_evaluation_resizes_the_shorter_side_and_crops_the_centre(
    name, side, width_height, protocol
):
    image = noise(*width_height)
    shorter = min(width_height)
    width, height = (int(side * length / shorter) for length in width_height)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    expected = normalised(resized.crop((left, top, left + 224, top + 224)))
    assert_same_pixels(eval_transform(protocol(name))(image), expected)


def test_evaluation_leaves_images_of_32_pixels_as_they_are(protocol):
    image = noise(32, 32)
    assert_same_pixels(eval_transform(protocol("cifar10"))(image), normalised(image))


def test_evaluation_has_a_resolution_of_its_own(protocol):
    chain = eval_transform(protocol(evaluation__image_size=112))
    assert step_of(chain, transforms.Resize).size == 128
    assert chain(noise(150, 140)).shape == (3, 112, 112)


def test_evaluation_draws_nothing(protocol, seed_all):
    chain, image = eval_transform(protocol()), noise(300, 260)
    first = chain(image)
    seed_all(1)
    assert torch.equal(chain(image), first)
