"""Accuracies against a direct computation, and what is written of each image."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mixerbench.commands._checkpoint import (
    evaluate_place,
    find_file,
    load_weights,
    overrides_of,
    read_weights,
)
from mixerbench.config.compose import compose
from mixerbench.config.schema import Settings
from mixerbench.data.loader import UNREADABLE
from mixerbench.errors import Refusal
from mixerbench.objectives import CLASSIFICATION, EvaluationError
from mixerbench.tracking.keys import Prediction
from mixerbench.training import checkpoint

pytestmark = pytest.mark.slow  # evaluations of whole splits

CPU = torch.device("cpu")
evaluate = CLASSIFICATION.evaluate


class _Table(nn.Module):
    """Image i has the logits of row i."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.dropout = nn.Dropout(0.9)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.logits[images.long().flatten()])


def _loader(targets: Tensor, batch_size: int, unreadable: Sequence[int] = ()) -> DataLoader[Any]:
    count = len(targets)
    rows = torch.arange(count, dtype=torch.float32)[:, None]
    checksums = 1000 + torch.arange(count)
    checksums[list(unreadable)] = UNREADABLE
    return DataLoader(
        TensorDataset(rows, targets, torch.arange(count), checksums), batch_size=batch_size
    )


@pytest.mark.parametrize("classes", [3, 5, 12])
@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_accuracies_and_loss_are_those_computed_one_by_one(classes: int, batch_size: int) -> None:
    draws = torch.Generator().manual_seed(classes)
    logits = torch.randn(23, classes, generator=draws) * 3
    targets = torch.randint(classes, (23,), generator=draws)
    result = evaluate(_Table(logits), _loader(targets, batch_size), CPU, "fp32")

    losses, first, best = [], [], []
    for row, target in zip(logits.double().tolist(), targets.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        probability = math.exp(row[target]) / total
        losses.append(-math.log(probability))
        ranked = sorted(range(classes), key=lambda c, row=row: -row[c])
        first.append(ranked[0] == target)
        best.append(target in ranked[:5])
        index = len(losses) - 1
        assert result.predicted[index] == ranked[0]
        assert result.confidence[index].item() == pytest.approx(math.exp(row[ranked[0]]) / total)
        assert result.target_probability[index].item() == pytest.approx(probability)
    assert result.top1 == pytest.approx(100 * sum(first) / 23)
    assert result.top5 == pytest.approx(100 * sum(best) / 23)
    assert result.loss == pytest.approx(sum(losses) / 23, rel=1e-6)
    assert result.in_top5.tolist() == best
    assert result.targets.tolist() == targets.tolist()
    assert result.indices.tolist() == list(range(23))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_and_gets_no_gradient(training: bool) -> None:
    model = _Table(nn.Parameter(torch.randn(4, 3))).train(training)
    result = evaluate(model, _loader(torch.zeros(4, dtype=torch.long), 2), CPU, "fp32")
    assert model.training == training
    assert not result.confidence.requires_grad
    # Dropout of 0.9 would have left most logits at zero.
    assert torch.equal(result.predicted, model.logits.argmax(dim=1))


class Named:
    def name(self, index: int) -> str:
        return f"val/{index}.png"


def test_an_image_that_could_not_be_read_counts_nowhere(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(23, 7, generator=draws) * 3
    targets = torch.randint(7, (23,), generator=draws)
    unreadable = [0, 11, 12, 22]
    logits[unreadable] = math.nan  # whatever the model says of the stand-in
    kept = [index for index in range(23) if index not in unreadable]
    result = evaluate(_Table(logits), _loader(targets, 5, unreadable), CPU, "fp32")
    others = evaluate(_Table(logits[kept]), _loader(targets[kept], 5), CPU, "fp32")
    assert (result.top1, result.top5, result.loss) == (others.top1, others.top5, others.loss)
    assert result.indices.tolist() == kept
    assert result.unreadable.tolist() == unreadable
    assert result.counted == "19 images without 4 that could not be read"
    assert result.pixels(Named()) is None  # type: ignore[arg-type]
    result.write_predictions(tmp_path / "p.parquet", Named())  # type: ignore[arg-type]
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    assert table[Prediction.IMAGE] == [f"val/{index}.png" for index in kept]
    assert table[Prediction.CHECKSUM] == [1000 + index for index in kept]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_answers_that_are_no_numbers_have_no_accuracy(value: float) -> None:
    logits = torch.zeros(9, 3)
    logits[4, 1] = logits[7, 0] = value
    with pytest.raises(EvaluationError, match="2 of 9 validation images") as refusal:
        evaluate(_Table(logits), _loader(torch.zeros(9, dtype=torch.long), 4), CPU, "fp32")
    assert len(str(refusal.value).splitlines()) == 1


def test_without_a_readable_image_there_is_no_accuracy() -> None:
    loader = _loader(torch.zeros(3, dtype=torch.long), 2, range(3))
    with pytest.raises(EvaluationError, match="none of 3 validation images"):
        evaluate(_Table(torch.zeros(3, 2)), loader, CPU, "fp32")


def test_the_digest_of_the_pixels_is_that_of_all_names_and_checksums() -> None:
    def digest(count: int, prefix: str = "val/") -> str | None:
        class Images:
            def name(self, index: int) -> str:
                return f"{prefix}{index}.png"

        result = evaluate(
            _Table(torch.zeros(count, 3)),
            _loader(torch.zeros(count, dtype=torch.long), 4),
            CPU,
            "fp32",
        )
        assert result.checksums.tolist() == [1000 + index for index in range(count)]
        return result.pixels(Images())  # type: ignore[arg-type]

    rows = "".join(f"val/{index}.png\0{1000 + index}\n" for index in range(9))
    assert digest(9) == hashlib.sha256(rows.encode()).hexdigest()[:16]
    assert digest(9) != digest(8)
    assert digest(9) != digest(9, "")


def test_predictions_are_a_row_per_image(tmp_path: Path) -> None:
    logits = torch.tensor([[9.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 9.0], [5.0, 4, 3, 2, 1, 0]])
    targets = torch.tensor([0, 1, 5])
    result = evaluate(_Table(logits), _loader(targets, 2), CPU, "fp32")
    result.write_predictions(tmp_path / "p.parquet", Named())  # type: ignore[arg-type]
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    assert list(table) == [
        Prediction.IMAGE, Prediction.TARGET, Prediction.TOP1, Prediction.CONFIDENCE,
        Prediction.TARGET_PROBABILITY, Prediction.IN_TOP5, Prediction.CHECKSUM,
    ]  # fmt: skip
    assert table[Prediction.IMAGE] == ["val/0.png", "val/1.png", "val/2.png"]
    assert table[Prediction.TARGET] == [0, 1, 5]
    assert table[Prediction.TOP1] == [0, 5, 0]
    assert table[Prediction.IN_TOP5] == [True, True, False]
    expected = logits.softmax(dim=1)
    assert table[Prediction.CONFIDENCE] == pytest.approx(expected.max(dim=1).values.tolist())
    assert table[Prediction.TARGET_PROBABILITY] == pytest.approx(
        [expected[row, target].item() for row, target in enumerate(targets.tolist())]
    )


# --- of weights in a file ---------------------------------------------------------------------


def test_a_run_folder_is_evaluated_as_it_was_trained(plain: Any, tmp_path: Path) -> None:
    result = plain.finished.result
    place = str(plain.folder)
    rows = tmp_path / "rows.parquet"
    text = evaluate_place(place, [], ema=False, predictions=str(rows))
    assert f"top-1 {result.final.top1:.2f} %" in text
    assert f"loss {result.final.loss:.4f}" in text
    assert "24 images" in text
    logged = pq.read_table(plain.folder / "predictions.parquet")
    assert pq.read_table(rows).equals(logged)
    average = evaluate_place(place, [], ema=True, predictions=None)
    assert f"loss {result.final_ema.loss:.4f}" in average
    assert "EMA" in average


def test_an_unfinished_run_is_evaluated_at_its_newest_checkpoint(
    stopped: Callable[..., Path],
) -> None:
    folder = stopped("train/loss", 10)
    newest = checkpoint.load(folder / "checkpoints" / "step-000000008.safetensors")[0]
    place = find_file(str(folder), ema=False)
    assert checkpoint.header(place)["settings"]["label"].startswith("attention_micro")
    weights = read_weights(place, ema=False)
    for name, tensor in checkpoint.under_prefix("model", newest).items():
        assert torch.equal(weights[name], tensor)
    averages = read_weights(find_file(str(folder), ema=True), ema=True)
    for name, tensor in checkpoint.under_prefix("ema", newest).items():
        assert torch.equal(averages[name], tensor)


def test_settings_of_the_command_line_win_over_the_saved_ones(plain: Any) -> None:
    place = str(plain.folder)
    text = evaluate_place(place, ["data.val_images=10"], ema=False, predictions=None)
    assert "10 images" in text


OVERRIDES = [
    [],
    ["mixer=local_attention", "mixer.window=3", "mixer.border=masked"],
    ["mixer=patch_ff", "mixer.hidden_dim=9", "stem=conv", "size=tiny", "size.depth=2"],
    ["mixer=lit", "mixer.plan=[{name:local_attention,window:3},none]", "backbone.mlp_ratio=2.5"],
    ["backbone.pool=token", "backbone.distillation_token=true", "evaluation.image_size=48"],
    ["protocol=imagenet_deit3", r"data.root='/data/it\'s here, 50 %'"],
    ["protocol=digits", "data=synthetic", "data.val_images=7", "recipe=deit3"],
]
GAPS = [
    ["protocol=imagenet_deit3", "recipe.regularization.layer_scale=null"],
    ["recipe.augmentation.color_jitter=null"],
    ["protocol=imagenet_deit", "data.root='/data/größe'"],
]


def _saved_and_said_again(overrides: list[str]) -> tuple[Settings, Settings]:
    import dataclasses

    saved = compose(overrides)
    again = compose(overrides_of(dataclasses.asdict(saved), []))
    for settings in (saved, again):
        settings.protocol.data.name = settings.protocol.recipe.name = ""  # words only
        settings.overrides = []
    return saved, again


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_saved_settings_said_again_are_the_same(overrides: list[str]) -> None:
    saved, again = _saved_and_said_again(overrides)
    assert again == saved


@pytest.mark.parametrize("overrides", GAPS)
def test_saved_settings_said_again_are_the_same_in_the_end(overrides: list[str]) -> None:
    saved, again = _saved_and_said_again(overrides)
    assert again == saved


def test_a_part_named_anew_takes_nothing_of_the_saved_one() -> None:
    import dataclasses

    saved = dataclasses.asdict(compose(["mixer=local_attention", "mixer.window=3"]))
    overrides = overrides_of(saved, ["mixer=attention"])
    assert not [override for override in overrides if override.startswith("mixer")]
    assert compose([*overrides, "mixer=attention"]).model["mixer"]["name"] == "attention"


def test_weights_of_another_model_are_refused_with_what_differs() -> None:
    own = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    tensors = own.state_dict()
    load_weights(own, tensors, "mine")

    def refusal(changed: dict[str, Tensor]) -> str:
        with pytest.raises(ValueError, match="another model than mine") as error:
            load_weights(own, changed, "mine")
        assert len(str(error.value).splitlines()) == 1
        return str(error.value)

    fewer = {name: t for name, t in tensors.items() if name != "1.bias"}
    assert "1 missing (1.bias" in refusal(fewer)
    assert "1 left over (2.bias" in refusal(tensors | {"2.bias": torch.zeros(1)})
    wrong = refusal(fewer | {"0.weight": torch.zeros(5, 3)})
    assert "0.weight (5, 3) for (4, 3)" in wrong
    assert "1 missing" in wrong


INT = torch.int64
NO_WEIGHTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "one NaN": (lambda t: t.index_fill(0, torch.tensor([2]), math.nan), "infinite or no numbers"),
    "all NaN": (lambda t: torch.full_like(t, math.nan), "infinite or no numbers"),
    "infinity": (lambda t: torch.full_like(t, -math.inf), "infinite or no numbers"),
    "integers": (lambda t: (100 * t).to(INT), "holds int64 and the model has float32"),
    "bytes": (lambda t: (100 * t).to(torch.uint8), "holds uint8 and the model has float32"),
}


@pytest.mark.parametrize("entry", ["blocks.0.mixer.qkv.weight", "head.bias"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_a_file_of_no_weights_has_no_accuracy(
    kind: str, entry: str, plain: Any, tmp_path: Path
) -> None:
    change, message = NO_WEIGHTS[kind]
    given = [s for s in plain.settings.overrides if not s.startswith("tracking")]
    path = tmp_path / "changed.safetensors"
    save_file(plain.weights | {entry: change(plain.weights[entry])}, path)
    with pytest.raises(Refusal, match=message) as refusal:
        evaluate_place(str(path), given, ema=False, predictions=None)
    assert f"the entry {entry} holds" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_weights(
    kind: torch.dtype, plain: Any, tmp_path: Path
) -> None:
    given = [s for s in plain.settings.overrides if not s.startswith("tracking")]
    path = tmp_path / "half.safetensors"
    save_file({name: t.to(kind) for name, t in plain.weights.items()}, path)
    assert "24 images" in evaluate_place(str(path), given, ema=False, predictions=None)


def test_weights_that_give_no_numbers_have_no_accuracy(plain: Any, tmp_path: Path) -> None:
    given = [s for s in plain.settings.overrides if not s.startswith("tracking")]
    path = tmp_path / "huge.safetensors"
    save_file({name: torch.full_like(t, 1e38) for name, t in plain.weights.items()}, path)
    with pytest.raises(Refusal, match="24 of 24 validation images are infinite or no numbers"):
        evaluate_place(str(path), given, ema=False, predictions=None)


def test_the_place_must_hold_weights(tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(Refusal, match="run's folder") as refusal:
            find_file(str(place), ema=False)
        assert str(place) in str(refusal.value)


def test_plain_weights_are_evaluated_under_the_settings_that_are_given(
    plain: Any, tmp_path: Path
) -> None:
    save_file(plain.weights, tmp_path / "plain.safetensors")
    given = [s for s in plain.settings.overrides if not s.startswith("tracking")]
    text = evaluate_place(str(tmp_path / "plain.safetensors"), given, False, None)
    assert f"top-1 {plain.finished.result.final.top1:.2f} %" in text
