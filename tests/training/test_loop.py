"""What happens in a run: every setting changes what it says, and hardware settings nothing."""

import gc
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from tiny_runs import DATA, RECIPE, RUN
from torch.utils._python_dispatch import TorchDispatchMode

from mixerbench.config.compose import compose
from mixerbench.config.schema import Settings
from mixerbench.data.corrupt import CorruptImages
from mixerbench.errors import TrainingStopped
from mixerbench.models.build import build_model
from mixerbench.objectives.classification.loss import DistillationLoss
from mixerbench.tracking.journal import FILE_NAME, read
from mixerbench.training import checkpoint, trainer
from mixerbench.training.checkpoint import CHECKPOINTS
from mixerbench.training.run import run_training

PLAIN = ["recipe.mixup.mixup=0", "recipe.mixup.cutmix=0", "recipe.regularization.drop_path=0",
         "recipe.augmentation.repeats=1", "recipe.augmentation.scale=[1,1]",
         "recipe.augmentation.ratio=[1,1]", "recipe.augmentation.color_jitter=null",
         "recipe.augmentation.random_erasing=0"]  # fmt: skip
"""Nothing is drawn but the weights and the order of the images."""

Trained = Callable[..., Any]


def _same_weights(one: Any, other: Any) -> bool:
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


# --- what must not matter ---------------------------------------------------------------------


def test_a_batch_is_the_same_in_any_number_of_micro_batches(trained: Trained) -> None:
    curves = [
        trained(*PLAIN, "recipe.batch.size=32", f"recipe.batch.micro_batch_size={micro}").losses()
        for micro in (32, 16, 4)
    ]
    assert len(curves[0]) == 6
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-5)


def test_micro_batches_matter_where_they_are_part_of_the_recipe(trained: Trained) -> None:
    one, two = (
        trained("recipe.batch.size=32", f"recipe.batch.micro_batch_size={micro}").losses()
        for micro in (32, 16)
    )
    assert one != pytest.approx(two, abs=1e-5)  # mixup and drop path draw for each of them


@pytest.mark.parametrize(
    "override", ["run.workers=2", "run.log_every_steps=3", "run.evaluation_batch_size=5",
                 "run.checkpoint_every_epochs=2", "run.evaluate_every_epochs=3",
                 "run.grad_checkpointing=true", "run.measure=true run.measure_seconds=0.01"],
)  # fmt: skip
def test_a_run_setting_changes_no_weight(override: str, plain: Any, trained: Trained) -> None:
    assert _same_weights(plain, trained(*override.split()))


class _Waits(TorchDispatchMode):
    """Counts where a GPU's host would wait: for a value, or for a shape that values decide."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("nonzero", "masked_select", "_unique2") or (
            name == "_local_scalar_dense" and args[0].is_floating_point()
        ):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(tmp_path: Path) -> Callable[..., int]:
    """How often a run of one epoch of so many steps would wait for a GPU."""

    def count(preset: str, steps: int, *overrides: str) -> int:
        settings = compose(
            [f"preset={preset}", "size=micro", *DATA, "protocol.image_size=32",
             f"data.train_images={16 * steps}", *RECIPE, "recipe.epochs=1",
             "recipe.schedule.warmup_epochs=0", "recipe.regularization.dropout=0.1",
             "recipe.optimizer.clip_grad_norm=1", *RUN, "run.log_every_steps=100",
             "run.workers=1", f"run.root={tmp_path / str(steps)}", *overrides]
        )  # fmt: skip
        with _Waits() as mode:
            run_training(settings)
        return mode.count

    return count


@pytest.mark.parametrize("preset", ["ff_tiny", "deit_tiny", "lit_s", "resnet26", "sasa_r26_full"])
def test_no_step_waits_for_the_device(preset: str, waits: Callable[..., int]) -> None:
    assert waits(preset, 1) == waits(preset, 3)  # at the epoch's log line, and to evaluate


def test_every_line_of_the_log_waits_for_the_device(waits: Callable[..., int]) -> None:
    assert waits("ff_tiny", 3, "run.log_every_steps=1") > waits("ff_tiny", 1)


def test_gradient_checkpointing_runs_blocks_again(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixerbench.models import backbone

    calls = []
    original = backbone.checkpoint
    monkeypatch.setattr(
        backbone, "checkpoint", lambda *a, **k: (calls.append(a), original(*a, **k))[1]
    )
    trained("recipe.epochs=1")
    assert calls == []
    trained("recipe.epochs=1", "run.grad_checkpointing=true")
    assert len(calls) == 8  # one block, four steps of two micro-batches


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_keeps_weights_in_full(precision: str, trained: Trained) -> None:
    full, half = trained(*PLAIN), trained(*PLAIN, f"run.precision={precision}")
    losses = half.losses()
    assert all(map(math.isfinite, losses))
    assert losses != full.losses()
    assert losses == pytest.approx(full.losses(), rel=0.05)
    assert {tensor.dtype for tensor in half.weights.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in half.weights.values())


@pytest.mark.everything  # compiling takes half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_has_the_same_losses(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No worker processes, and few kernels: the compiler is what takes the time.
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    monkeypatch.setattr("torch._dynamo.config.recompile_limit", 4)  # where it gives up compiling
    settings = [*PLAIN, "mixer=none", "recipe.epochs=2", "size.depth=6"]
    settings += ["recipe.regularization.drop_path=0.3"]
    plain = trained(*settings)
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = trained(*settings, "run.compile=true")
    assert compiled.losses() == pytest.approx(plain.losses(), abs=1e-4)
    # One block without stochastic depth, and the pieces around it of all others.
    assert 0 < counters["stats"]["unique_graphs"] <= 4
    assert compiled.weights.keys() == plain.weights.keys()  # no wrapper's prefix


# --- what must matter -------------------------------------------------------------------------


def test_the_same_settings_give_the_same_run(plain: Any, trained: Trained) -> None:
    again = trained()
    assert again.folder != plain.folder
    assert again.losses() == plain.losses()
    assert _same_weights(again, plain)


@pytest.mark.parametrize(
    "override", ["run.seed=1", "recipe.optimizer.lr=1e-2", "recipe.optimizer.weight_decay=0.5",
                 "recipe.optimizer.betas=[0.5,0.9]", "recipe.optimizer.eps=0.1",
                 "recipe.optimizer.lr_batch_size=8", "recipe.optimizer.clip_grad_norm=1e-3",
                 "recipe.schedule.warmup_epochs=2",
                 "recipe.schedule.warmup_lr=2e-3", "recipe.schedule.min_lr=1e-3",
                 "recipe.mixup.mixup=0", "recipe.mixup.cutmix=0",
                 "recipe.mixup.prob=0.5", "recipe.mixup.switch_prob=0",
                 "recipe.loss.name=binary_cross_entropy recipe.loss.label_smoothing=0",
                 "recipe.loss.label_smoothing=0",
                 "recipe.regularization.drop_path=0",
                 "recipe.regularization.drop_path_schedule=linear",
                 "recipe.regularization.dropout=0.5",
                 "recipe.regularization.layer_scale=0.1", "recipe.augmentation.repeats=1",
                 "recipe.augmentation.scale=[0.1,0.2]", "recipe.augmentation.hflip=1",
                 "recipe.augmentation.color_jitter=1", "recipe.augmentation.crop=padded",
                 "recipe.augmentation.auto_augment=rand-m9",
                 "recipe.augmentation.random_erasing=1", "data.std=[1,1,1]"],
)  # fmt: skip
def test_a_setting_changes_the_run(override: str, plain: Any, trained: Trained) -> None:
    assert not _same_weights(plain, trained(*override.split()))


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The norm of all gradients as each optimizer step sees them."""
    seen: list[float] = []
    create = trainer.create_optimizer

    def watched(recipe: Any, model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer = create(recipe, model)

        def look(*_: Any) -> None:
            gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            seen.append(torch.stack(gradients).norm().item())

        optimizer.register_step_pre_hook(look)
        return optimizer

    monkeypatch.setattr(trainer, "create_optimizer", watched)
    return seen


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_to_the_norm_that_is_set(
    precision: str, trained: Trained, norms: list[float]
) -> None:
    trained("recipe.optimizer.name=sgd", f"run.precision={precision}", "recipe.epochs=1",
            "recipe.optimizer.clip_grad_norm=0.01")  # fmt: skip
    assert norms == pytest.approx([0.01] * 4, rel=1e-2)


def test_gradients_are_left_alone_without_clipping(trained: Trained, norms: list[float]) -> None:
    trained("recipe.optimizer.name=sgd", "recipe.epochs=1")
    assert min(norms) > 0.05


def test_the_learning_rate_is_logged_as_the_optimizer_had_it(trained: Trained) -> None:
    settings = ["recipe.epochs=4", "recipe.schedule.warmup_epochs=2", "recipe.optimizer.lr=0.01",
                "recipe.schedule.warmup_lr=0.002", "recipe.schedule.min_lr=0.001"]  # fmt: skip
    rates = dict(trained(*settings).curve("train/lr"))
    # Of each epoch's last step; DeiT's lag: epochs 0 and 1 share the first value.
    cosine = 0.001 + 0.009 * (1 + math.cos(math.pi * 2 / 4)) / 2
    assert [rates[step] for step in (4, 8, 12, 16)] == pytest.approx([0.002, 0.002, 0.006, cosine])


# --- what is logged and kept ------------------------------------------------------------------


def test_the_cadence_is_the_one_that_is_set(trained: Trained) -> None:
    run = trained("recipe.epochs=5", "run.log_every_steps=3", "run.evaluate_every_epochs=2",
                  "run.checkpoint_every_epochs=3", "run.keep_checkpoints=9")  # fmt: skip
    logged = [3, 4, 6, 8, 9, 12, 15, 16, 18, 20]  # every third, and the last of each epoch
    assert [step for step, _ in run.curve("train/loss")] == logged
    assert [value for _, value in run.curve("train/epoch")] == [step / 4 for step in logged]
    assert [step for step, _ in run.curve("val/top1")] == [8, 16, 20]
    kept = sorted(path.name for path in (run.folder / CHECKPOINTS).iterdir())
    assert kept == ["step-000000012.safetensors", "step-000000020.safetensors"]


def test_a_logged_loss_is_the_mean_since_the_last_line(trained: Trained) -> None:
    every = trained("recipe.epochs=1").losses()
    (all_four,) = trained("recipe.epochs=1", "run.log_every_steps=4").losses()
    assert all_four == pytest.approx(sum(every) / 4, rel=1e-6)


@pytest.mark.parametrize("keep", [1, 2])
def test_old_checkpoints_go(keep: int, trained: Trained) -> None:
    run = trained(f"run.keep_checkpoints={keep}")
    kept = sorted(path.name for path in (run.folder / CHECKPOINTS).iterdir())
    every = [f"step-{step:09d}.safetensors" for step in (4, 8, 12)]
    assert kept == every[-keep:]


def test_final_numbers_are_those_of_the_last_validation(plain: Any) -> None:
    run, result = plain, plain.finished.result
    for final, of_validation, value in (
        ("final/top1", "val/top1", result.final.top1),
        ("final/top5", "val/top5", result.final.top5),
        ("final/loss", "val/loss", result.final.loss),
        ("final/ema_top1", "val_ema/top1", result.final_ema.top1),
        ("final/ema_top5", "val_ema/top5", result.final_ema.top5),
    ):
        assert run.curve(final) == [(12, value)] == run.curve(of_validation)[-1:]
    assert run.curve("best/top1") == [(12, max(value for _, value in run.curve("val/top1")))]
    assert run.curve("final/images_seen") == [(12, 12 * 16)]


def test_the_best_accuracy_outlives_a_resume(
    trained: Trained, stopped: Callable[..., Path]
) -> None:
    whole = trained("recipe.epochs=4")
    stopped("train/loss", 14, "recipe.epochs=4")
    resumed = trained("recipe.epochs=4", "run.resume=auto")
    assert resumed.curve("best/top1") == whole.curve("best/top1")


# --- the moving average -----------------------------------------------------------------------


def test_the_moving_average_is_evaluated_beside_the_weights(trained: Trained) -> None:
    run = trained("recipe.optimizer.lr=0.05", "recipe.schedule.warmup_epochs=1")
    assert run.curve("val_ema/loss") != run.curve("val/loss")
    from mixerbench.data.loader import eval_loader
    from mixerbench.data.source import open_images
    from mixerbench.objectives import CLASSIFICATION

    settings, device = run.settings, torch.device("cpu")
    loader = eval_loader(
        open_images(settings.protocol).val, settings.protocol, settings.run, device
    )
    model = build_model(settings, 4)
    for file, final in (
        ("model.safetensors", run.finished.result.final),
        ("ema.safetensors", run.finished.result.final_ema),
    ):
        model.load_state_dict(checkpoint.load(run.folder / file)[0])
        assert CLASSIFICATION.evaluate(model, loader, device, "fp32").loss == final.loss


def test_the_moving_average_has_the_decay_that_is_set(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    create = trainer.create_ema

    def watched(recipe: Any, model: torch.nn.Module) -> Any:
        ema = create(recipe, model)
        update = ema.update
        seen.append({name: t.clone() for name, t in model.state_dict().items()})

        def and_look(model: torch.nn.Module) -> None:
            update(model)
            seen.append({name: t.clone() for name, t in model.state_dict().items()})

        monkeypatch.setattr(ema, "update", and_look)
        return ema

    monkeypatch.setattr(trainer, "create_ema", watched)
    run = trained("recipe.ema.decay=0.75", "recipe.epochs=1")
    expected = seen[0]
    for weights in seen[1:]:
        expected = {name: 0.75 * expected[name] + 0.25 * weights[name] for name in expected}
    average = run.finished.result.ema.state_dict()
    assert average.keys() == expected.keys()
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)


# --- losses that are no numbers ---------------------------------------------------------------


def _stopped(settings: Settings) -> tuple[str, Path]:
    folders: list[Path] = []
    with pytest.raises(TrainingStopped) as stop:
        run_training(settings, on_folder=folders.append)
    message = str(stop.value)
    assert len(message.splitlines()) <= 2
    del stop
    gc.collect()  # the traceback holds the folder's lock
    last = [record for record, _ in read(folders[0] / FILE_NAME)][-1]
    assert (last["kind"], last["status"]) == ("end", "FAILED")
    return message, folders[0]


def _all_finite(folder: Path) -> bool:
    return all(
        tensor.isfinite().all()
        for path in (folder / CHECKPOINTS).glob("*.safetensors")
        for tensor in checkpoint.load(path)[0].values()
    )


@pytest.fixture
def break_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the loss of one micro-batch, counted from 0, come out as ``value``."""

    def arm(micro_batch: int, value: float) -> None:
        calls: list[None] = []
        forward = DistillationLoss.forward

        def broken(self: Any, *arguments: Any) -> torch.Tensor:
            calls.append(None)
            loss: torch.Tensor = forward(self, *arguments)
            return loss * value if len(calls) == micro_batch + 1 else loss

        monkeypatch.setattr(DistillationLoss, "forward", broken)

    return arm


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("log_every_steps", [1, 4])
def test_a_loss_that_is_no_number_stops_the_run_and_says_where(
    value: float,
    log_every_steps: int,
    tiny: Callable[..., Settings],
    break_loss: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[list[int]] = []
    add = CorruptImages.add

    def watched(self: Any, indices: torch.Tensor, sources: torch.Tensor) -> None:
        batches.append(indices.tolist())
        add(self, indices, sources)

    monkeypatch.setattr(CorruptImages, "add", watched)
    # Micro-batch 13 of two a step: the second of step 7, in the second epoch.
    break_loss(13, value)
    message, folder = _stopped(tiny(f"run.log_every_steps={log_every_steps}"))
    assert str(value) in message
    assert "step 7" in message
    assert all(f"random-{index}" in message for index in batches[13])
    written = json.loads((folder / "non_finite.json").read_text())
    assert (written["step"], written["epoch"], written["virtual_rank"]) == (7, 1, 1)
    assert list(written["images"]) == [str(index) for index in dict.fromkeys(batches[13])]
    assert str(folder / CHECKPOINTS / "step-000000004.safetensors") in message
    assert _all_finite(folder)


def test_the_folder_of_a_stopped_run_is_free_again(
    tiny: Callable[..., Settings], break_loss: Callable[..., None]
) -> None:
    break_loss(0, math.nan)
    folders: list[Path] = []
    with pytest.raises(TrainingStopped) as stop:  # as a notebook keeps the last traceback
        run_training(tiny(), on_folder=folders.append)
    with FileLock(folders[0] / ".lock", timeout=0):
        assert "step 1" in str(stop.value)


def test_before_the_first_checkpoint_there_is_none_to_name(
    tiny: Callable[..., Settings], break_loss: Callable[..., None]
) -> None:
    break_loss(0, math.nan)
    message, folder = _stopped(tiny())
    assert "step 1" in message
    assert "none yet" in message
    assert not (folder / CHECKPOINTS).exists()


def test_an_absurd_learning_rate_is_stopped(tiny: Callable[..., Settings]) -> None:
    message, _ = _stopped(tiny("recipe.optimizer.lr=1e30", "recipe.schedule.warmup_lr=1e30"))
    assert "protocol.recipe.optimizer.lr" in message


def test_the_run_goes_on_from_the_last_good_checkpoint(
    tiny: Callable[..., Settings], break_loss: Callable[..., None], trained: Trained
) -> None:
    break_loss(13, math.nan)
    _, folder = _stopped(tiny())
    resumed = trained("run.resume=auto")  # only once was it broken
    assert resumed.folder == folder
    assert all(map(math.isfinite, resumed.losses()))


@pytest.mark.parametrize("step", [4, 12])
def test_weights_that_are_no_numbers_are_never_saved(
    step: int, tiny: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = trainer.create_optimizer

    def poisoned(recipe: Any, model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer = create(recipe, model)
        steps: list[None] = []

        def poison(*_: Any) -> None:  # a gradient that is no number, after a loss that is one
            steps.append(None)
            if len(steps) == step:
                next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.nan)

        optimizer.register_step_pre_hook(poison)
        return optimizer

    monkeypatch.setattr(trainer, "create_optimizer", poisoned)
    _, folder = _stopped(tiny())
    assert _all_finite(folder)
