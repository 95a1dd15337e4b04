"""Models measured side by side: in turn, alike, and left as they were."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from mixerbench import create_model
from mixerbench.measure import interleaved
from mixerbench.measure.flops import count_macs
from mixerbench.measure.interleaved import ROUNDS, Counted, count, measure_interleaved
from mixerbench.measure.model_costs import count_parameters
from mixerbench.measure.speed import Spread

MICRO = {"size": "micro", "image_size": 32, "patch_size": 4, "num_classes": 10}
OPTIONS = {"num_classes": 10, "batch_size": 2, "precision": "fp32", "device": "cpu"}


class Small(nn.Module):
    """Tells ``before`` the shape of what it is given in evaluation mode."""

    def __init__(self, before=lambda shape: None):
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, 10)
        self.before = before

    def forward(self, images):
        if not self.training:
            self.before(tuple(images.shape))
        return self.head(images.flatten(1))


def _counted(**models):
    return {name: Counted(model, 1, 1.0) for name, model in models.items()}


def test_every_model_has_its_own_figures_of_all_rounds():
    models = {name: count(create_model(name, **MICRO), 32) for name in ("none", "attention")}
    found = measure_interleaved(models, 32, seconds=0.1, **OPTIONS)
    assert list(found) == ["none", "attention"]
    for name, measures in found.items():
        model = models[name].model
        assert measures.parameters == count_parameters(model)
        assert measures.gmacs == count_macs(model, 32).total / 1e9
        assert measures.batch_size == 2
        assert measures.hardware.endswith("fp32")
        assert measures.memory_mib > 0
        for spread in (measures.images_per_second, measures.latency_ms):
            assert 0 < spread.lower_quartile <= spread.median <= spread.upper_quartile
            assert spread.repeats == ROUNDS
    assert found["none"].memory_mib < found["attention"].memory_mib


def test_a_round_is_one_slice_of_each_in_an_order_of_its_own():
    slices: list[str] = []

    def note(name):
        def before(shape):
            if not slices or slices[-1] != name:
                slices.append(name)

        return before

    names = [f"model{i}" for i in range(5)]
    done = []
    measure_interleaved(
        _counted(**{name: Small(before=note(name)) for name in names}), 8, seconds=0.0,
        progress=lambda name, share: done.append((name, share)), **OPTIONS,
    )  # fmt: skip
    turns = [name for name, _ in done][len(names) :]  # after each model's memory
    rounds = [tuple(turns[i : i + 5]) for i in range(0, len(turns), 5)]
    assert len(rounds) == ROUNDS
    assert all(sorted(one) == names for one in rounds)
    assert len(set(rounds)) > ROUNDS / 2  # of 120 orders
    # A model that ends a round may begin the next.
    assert slices == [name for i, name in enumerate(turns) if not i or turns[i - 1] != name]
    shares = [share for _, share in done]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1


def test_the_order_follows_the_seed():
    def turns(seed):
        found = []
        models = _counted(a=Small(), b=Small(), c=Small())
        measure_interleaved(
            models,
            8,
            seconds=0.0,
            seed=seed,
            progress=lambda name, _: found.append(name),
            **OPTIONS,
        )
        return found

    assert turns(1) == turns(1) != turns(2)


def test_each_slice_has_batches_and_single_images():
    shapes = []
    models = _counted(a=Small(before=shapes.append))
    measure_interleaved(models, 8, seconds=0.0, **OPTIONS)
    # Each an untimed and a timed pass, of both.
    assert shapes == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8)] * ROUNDS


def test_a_machine_that_slows_down_for_a_while_hits_all_models_alike(monkeypatch):
    slices = 0

    def machine(*args, **kwargs):
        """A tenth as fast for a third of the time: all of it would be the first model's."""
        nonlocal slices
        slices += 1
        return Spread.of([10.0 if slices <= ROUNDS else 100.0])

    monkeypatch.setattr(interleaved, "throughput", machine)
    models = _counted(first=Small(), second=Small(), third=Small())
    found = measure_interleaved(models, 8, seconds=0.0, **OPTIONS)
    assert {measures.images_per_second.median for measures in found.values()} == {100.0}
    assert {measures.images_per_second.lower_quartile for measures in found.values()} == {10.0}


def test_energy_is_that_of_all_slices_of_a_model(monkeypatch):
    class Clock:
        """A joule for each image that any model is given."""

        def __init__(self):
            self.images = 0

        def joules(self):
            return float(self.images)

    clock = Clock()

    def use(factor):
        def before(shape):
            clock.images += factor * shape[0]

        return before

    monkeypatch.setattr(interleaved, "energy_counter", lambda device: clock)
    models = _counted(thrifty=Small(before=use(1)), hungry=Small(before=use(5)))
    found = measure_interleaved(models, 8, seconds=0.02, **OPTIONS)
    assert found["thrifty"].joules_per_image == pytest.approx(1.0)
    assert found["hungry"].joules_per_image == pytest.approx(5.0)


def test_the_models_and_the_random_numbers_are_left_as_they_were():
    model = create_model("attention", drop_path=0.5, **MICRO).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    measure_interleaved({"a": count(model, 32)}, 32, seconds=0.0, **OPTIONS)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_models_wait_for_their_slice_on_the_cpu():
    models = {name: count(create_model(name, **MICRO), 32) for name in ("none", "attention")}
    found = measure_interleaved(models, 32, seconds=0.1, **OPTIONS | {"device": "cuda"})
    assert all(measures.images_per_second.median > 0 for measures in found.values())
    for one in models.values():
        assert {parameter.device.type for parameter in one.model.parameters()} == {"cpu"}


def test_it_runs_where_mlflow_and_hydra_are_not_installed():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['mlflow', 'hydra', 'omegaconf', 'pynvml', 'psutil']))\n"
        "import mixerbench.measure.interleaved, mixerbench.measure.energy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
