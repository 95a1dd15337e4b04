"""Our local attention against the same operator written with unfold: time and memory.

Peer: the k x k neighbours of every token copied out by ``F.unfold``, for keys and for values,
the relative embedding added to the copied keys, one softmax over k * k. Same parameters; values
and gradients are shown to be equal first. Both alone, from q, k and v to their mixture, and as
whole mixers with their projections. On a GPU also ``flex_attention``, compiled, and NATTEN where
it is installed.

    python benchmarks/local_attention.py [--heads 6] [--rounds 9]
"""

import itertools
import math
from collections.abc import Callable
from importlib.util import find_spec

import torch
from harness import Benchmark, Pass, check_same, compare, interleave, peak_mib
from torch import Tensor
from torch.nn import functional as F

from mixers import TokenGrid, TokenMixer, create_mixer

DIM, WINDOW = 192, 7
BATCHES = {14: 8, 28: 2, 56: 1}  # by the grid's side
BARS = {("masked", 14): 20, ("masked", 28): 8, ("masked", 56): 12, ("zero", 14): 8}

Forward = Callable[[Tensor], Tensor]


def unfold(mixer: TokenMixer, grid: TokenGrid, layout: str = "kn") -> Forward:
    """The peer, with the parameters of ``mixer``.

    Args:
        layout: ``kn`` lays the k * k copies out one after the other, as ``F.unfold`` makes
            them; ``nk`` the tokens, as ``Tensor.unfold`` does. Products and sums instead of
            einsum were slower for both.
    """
    h, d, k, N = mixer.num_heads, mixer.head_dim, mixer.window, grid.tokens
    margin = ((k - 1) // 2, k // 2) * 2

    def windows(image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, k*k, N) or (B, C, N, k*k)."""
        image = F.pad(image, margin)
        if layout == "kn":
            return F.unfold(image, k).unflatten(1, (-1, k * k))
        return image.unfold(2, k, 1).unfold(3, k, 1).reshape(*image.shape[:2], N, k * k)

    outside = windows(mixer.rel_row.new_ones(1, 1, *grid[:2])) == 0

    def forward(x: Tensor) -> Tensor:
        q, keys, values = mixer.qkv(x).transpose(1, 2).unflatten(2, grid[:2]).chunk(3, dim=1)
        rows = mixer.rel_row[:, None].expand(-1, k, -1, -1)
        columns = mixer.rel_column.expand(k, -1, -1, -1)
        relative = torch.cat([rows, columns], dim=-1).flatten(0, 1).permute(1, 2, 0)  # (h, d, k*k)
        keys = windows(keys).unflatten(1, (h, d)) + relative.unsqueeze(2 + layout.index("n"))
        q = q.reshape(len(x), h, d, N)
        logits = torch.einsum(f"bhdn,bhd{layout}->bh{layout}", q, keys)
        if mixer.border == "masked":
            logits = logits.masked_fill(outside, -math.inf)
        weights = logits.softmax(dim=2 + layout.index("k"))
        values = windows(values).unflatten(1, (h, d))
        mixed = torch.einsum(f"bh{layout},bhd{layout}->bhdn", weights, values)
        return mixer.proj(mixed.flatten(1, 2).transpose(1, 2))

    return forward


def flex(mixer: TokenMixer, grid: TokenGrid, compiled: bool = True) -> Forward:
    """``flex_attention`` with the window as a block mask; masked border only."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    h, k, N = mixer.num_heads, mixer.window, grid.tokens
    device = mixer.rel_row.device
    row = torch.arange(N, device=device) // grid.width
    column = torch.arange(N, device=device) % grid.width
    up_left = (k - 1) // 2

    def in_window(b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        down, right = row[key] - row[query] + up_left, column[key] - column[query] + up_left
        return (down >= 0) & (down < k) & (right >= 0) & (right < k)

    mask = create_block_mask(in_window, None, None, N, N, device=device)
    attend = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention

    def forward(x: Tensor) -> Tensor:
        q, keys, values = mixer.qkv(x).unflatten(2, (3, h, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q_row, q_column = q.chunk(2, dim=-1)
        rows = torch.einsum("bhnd,ahd->bhna", q_row, mixer.rel_row)  # (B, h, N, k)
        columns = torch.einsum("bhnd,ahd->bhna", q_column, mixer.rel_column)

        def relative(score: Tensor, b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            # Pairs outside the window are masked, but their entry is read all the same.
            down = (row[key] - row[query] + up_left).clamp(0, k - 1)
            right = (column[key] - column[query] + up_left).clamp(0, k - 1)
            return score + rows[b, head, query, down] + columns[b, head, query, right]

        mixed = attend(q, keys, values, score_mod=relative, block_mask=mask, scale=1.0)
        return mixer.proj(mixed.transpose(1, 2).flatten(2))

    return forward


def natten(
    mixer: TokenMixer, grid: TokenGrid, attend: Callable[..., Tensor] | None = None
) -> Forward:
    """NATTEN's fused neighbourhood attention, which has no relative logits; masked border, odd k.

    Its windows of k rows and columns stay on the grid, hence hold those of the centred ones that
    do. Within one all rows differ modulo k: so the one-hot residues of a key's row and column
    are appended to it, and to a query its relative logit for each residue, or one that no softmax
    sees where the centred window ends.

    Args:
        attend: in place of ``natten.na2d``, as which it is called.
    """
    if attend is None:
        from natten import na2d as attend  # type: ignore[import-not-found,no-redef]
    h, k, device = mixer.num_heads, mixer.window, mixer.rel_row.device

    def by_residue(table: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """(length, k, h, d/2) by query and residue; which are outside; a key's residue."""
        query = torch.arange(length, device=device)[:, None]
        residue = torch.arange(k, device=device)
        first = (query - k // 2).clamp(0, length - k)
        offset = first + (residue - first) % k - query + k // 2
        outside = table.new_zeros(()).where((offset >= 0) & (offset < k), -1e4)
        return table[offset.clamp(0, k - 1)], outside, F.one_hot(query[:, 0] % k, k)

    def forward(x: Tensor) -> Tensor:
        qkv = mixer.qkv(x).unflatten(1, grid[:2]).unflatten(-1, (3, h, -1))
        q, keys, values = qkv.unbind(3)  # (B, H, W, h, d) each
        q_row, q_column = q.chunk(2, dim=-1)
        table, outside, row = by_residue(mixer.rel_row, grid.height)
        rows = torch.einsum("bijhd,irhd->bijhr", q_row, table) + outside[:, None, None]
        table, outside, column = by_residue(mixer.rel_column, grid.width)
        columns = torch.einsum("bijhd,jrhd->bijhr", q_column, table) + outside[:, None]
        place = torch.cat([row[:, None].expand(-1, grid.width, -1),
                           column.expand(grid.height, -1, -1)], dim=-1)  # fmt: skip
        place = place.to(keys.dtype)[:, :, None].expand(*keys.shape[:-1], -1)
        width = keys.shape[-1]
        wide = -(-(width + 2 * k) // 8) * 8  # tensor cores want a multiple of 8
        q = F.pad(torch.cat([q, rows, columns], dim=-1), (0, wide - width - 2 * k))
        keys = F.pad(torch.cat([keys, place], dim=-1), (0, wide - width - 2 * k))
        values = F.pad(values, (0, wide - width))
        mixed = attend(q, keys, values, kernel_size=k, scale=1.0)[..., :width]
        return mixer.proj(mixed.flatten(1, 2).flatten(2))

    return forward


def main() -> None:
    benchmark = Benchmark(__file__, __doc__, rounds=9)
    benchmark.parser.add_argument("--heads", type=int, default=6)
    options = benchmark.options()
    device = options.device
    dim, heads, batches = (32, 2, {4: 2}) if options.tiny else (DIM, options.heads, BATCHES)
    rows = []
    for border, whole in itertools.product(("masked", "zero"), (False, True)):
        for side, batch in batches.items():
            torch.manual_seed(0)
            grid = TokenGrid(side, side)
            mixer = create_mixer(
                "local_attention", dim, grid, heads, window=WINDOW, border=border, out_proj=whole
            ).to(device)
            if not whole:  # the input is q, k and v
                mixer.qkv = torch.nn.Identity()
            width = dim if whole else 3 * dim
            x = torch.randn(batch, grid.tokens, width, device=device, requires_grad=True)
            forwards = {
                "ours": lambda x, mixer=mixer, grid=grid: mixer(x, grid),
                "unfold": unfold(mixer, grid),
                "Tensor.unfold": unfold(mixer, grid, "nk"),
            }
            if device.type == "cuda" and border == "masked":
                forwards["flex_attention"] = flex(mixer, grid)
                if find_spec("natten") and side >= WINDOW:
                    forwards["NATTEN"] = natten(mixer, grid)
            passes = {
                name: Pass(forward, x, dict(mixer.named_parameters()), options.precision)
                for name, forward in forwards.items()
            }
            part = "mixer" if whole else "attention"
            case = f"{part}, {border}, {side} x {side}, batch {batch}"
            tolerance = 1e-5 if options.precision == "fp32" else 3e-2
            check_same(case, passes, "unfold", tolerance)
            memory = {name: peak_mib(one, device) for name, one in passes.items()}
            turns = interleave(passes, options.rounds, device)
            bar = {"ours": BARS[border, side]} if not whole and (border, side) in BARS else {}
            rows += compare(case, turns, "unfold", memory_mib=memory, bar=bar)
    benchmark.write(options, rows, heads=heads)


if __name__ == "__main__":
    main()
