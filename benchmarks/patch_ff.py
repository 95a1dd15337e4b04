"""Our feed-forward over tokens against the published formulation, in whole blocks.

Peer: "Do You Even Need Attention?" transposes the whole stream for its LayerNorm over tokens,
its two linear layers and its residual, and back again; our mixer transposes its branch alone.
Same weights; outputs and gradients are shown to be equal first.

    python benchmarks/patch_ff.py [--rounds 9] [--peer CHECKOUT]

``--peer`` is a checkout of github.com/lukemelas/do-you-even-need-attention: its ``linear_tiny``
then trains against ours, whole models with the same weights.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Benchmark, Pass, check_same, compare, interleave
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.config.schema import Regularization
from mixerbench.models import convert_official, create_model
from mixerbench.models.blocks import Block, BlockOptions, build_blocks, places_of
from mixers import TokenGrid
from mixers.core.plan import MixerChoice

WIDTHS = {"tiny": (192, 32), "base": (768, 8)}  # width, batch
GRID = TokenGrid(14, 14, prefix=1)
DEPTH = 2  # of the chain: what a block leaves behind in memory is what the next one reads
BAR = 0.97


def ours(block: Block, x: Tensor, grid: TokenGrid) -> Tensor:
    return block(x, grid)


def published(block: Block, x: Tensor, grid: TokenGrid) -> Tensor:
    """The report's block, with our weights."""
    mixer = block.mixer
    x = x + block.channel_mixer(block.norm2(x), grid)
    x = x.transpose(1, 2)
    x = x + mixer.fc2(F.gelu(mixer.fc1(mixer.norm(x))))
    return x.transpose(1, 2)


def padded(multiple: int, block: Block, x: Tensor, grid: TokenGrid) -> Tensor:
    """Ours with tokens and hidden width filled up with zeros, which changes no number.

    Tensor cores want sizes that 8 divides, better 64; 197 tokens are prime.
    """
    mixer = block.mixer
    x = x + block.channel_mixer(block.norm2(x), grid)
    tokens, hidden = -grid.tokens % multiple, -mixer.fc1.out_features % multiple
    weight1, bias1 = F.pad(mixer.fc1.weight, (0, tokens, 0, hidden)), mixer.fc1.bias
    weight2, bias2 = F.pad(mixer.fc2.weight, (0, hidden, 0, tokens)), mixer.fc2.bias
    mixed = F.pad(mixer.norm(x.transpose(1, 2)), (0, tokens))  # (B, C, N and more)
    mixed = F.gelu(F.linear(mixed, weight1, F.pad(bias1, (0, hidden))))
    mixed = F.linear(mixed, weight2, F.pad(bias2, (0, tokens)))
    return x + mixed[..., : grid.tokens].transpose(1, 2)


def chain(
    run: Callable[[Block, Tensor, TokenGrid], Tensor],
    blocks: Sequence[Block],
    grid: TokenGrid,
    x: Tensor,
) -> Tensor:
    for block in blocks:
        x = run(block, x, grid)
    return x


def peer_module(checkout: Path) -> Any:
    """The report's model file, run from where it is."""
    path = checkout / "vision_transformer_linear.py" if checkout.is_dir() else checkout
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        sys.exit(f"--peer {checkout}: there is no vision_transformer_linear.py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # timm's registry looks a model's module up
    spec.loader.exec_module(module)
    return module


def blocks_of(dim: int, grid: TokenGrid, device: torch.device) -> nn.ModuleList:
    options = BlockOptions("mlp", 4.0, 1e-6, True, Regularization(0.0, "linear", 0.0, None))
    choices = [MixerChoice("patch_ff", {"norm": "tokens"})] * DEPTH
    return build_blocks(choices, dim, grid, 1, [0.0] * DEPTH, *places_of([DEPTH]), options).to(
        device
    )


def main() -> None:
    benchmark = Benchmark(__file__, __doc__, rounds=9)
    benchmark.parser.add_argument("--peer", type=Path, help="a checkout of the report's code")
    options = benchmark.options()
    device = options.device
    tolerance = 1e-5 if options.precision == "fp32" else 3e-2
    runs = {"ours": ours, "published": published}
    if device.type == "cuda" or options.tiny:  # no use on a CPU, but they must be right
        runs |= {f"padded to {multiple}": partial(padded, multiple) for multiple in (8, 64)}
    rows = []
    grid = TokenGrid(3, 3, prefix=1) if options.tiny else GRID
    for name, (dim, batch) in {"micro": (32, 2)}.items() if options.tiny else WIDTHS.items():
        torch.manual_seed(0)
        blocks = blocks_of(dim, grid, device)
        x = torch.randn(batch, grid.tokens, dim, device=device, requires_grad=True)
        passes = {
            candidate: Pass(
                partial(chain, run, blocks, grid),
                x,
                dict(blocks.named_parameters()),
                options.precision,
            )
            for candidate, run in runs.items()
        }
        case = f"{DEPTH} blocks, {name}, batch {batch}"
        differences = check_same(case, passes, "published", tolerance)
        turns = interleave(passes, options.rounds, device)
        bar = {} if options.tiny else {"ours": BAR}
        rows += compare(case, turns, "published", difference=differences, bar=bar)
    if options.peer is not None:
        rows += whole_models(options, tolerance)
    benchmark.write(options, rows)


def whole_models(options: Any, tolerance: float) -> list[dict[str, Any]]:
    """The report's own model and ours of the same weights, eight images."""
    torch.manual_seed(0)
    peer = peer_module(options.peer).linear_tiny()
    model = create_model(preset="ff_tiny")
    model.load_state_dict(convert_official("ff_tiny", peer.state_dict()))
    models = {"ours": model, "lukemelas": peer}
    images = torch.randn(1 if options.tiny else 8, 3, 224, 224, device=options.device)
    passes = {
        name: Pass(
            one.to(options.device).train(), images, dict(one.named_parameters()), options.precision
        )
        for name, one in models.items()
    }
    case = f"linear_tiny, batch {len(images)}"
    # Their weights have other names; the gradients are compared above.
    differences = check_same(case, passes, "lukemelas", tolerance, gradients=False)
    turns = interleave(passes, options.rounds, options.device)
    return compare(case, turns, "lukemelas", difference=differences, bar={"ours": BAR})


if __name__ == "__main__":
    main()
