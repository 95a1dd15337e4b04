"""``mixerbench profile`` as it is typed: tables that add up, one JSON object, plugins."""

import json
import re
from pathlib import Path

import pytest

from mixerbench.measure.breakdown import OPERATORS, OTHERS

QUICK = "run.measure_seconds=0.05 run.measure_batch_size=2"
ROW = re.compile(
    r"(?P<part>.+?)  +(?P<kind>\w*) +(?P<parameters>[\d,]+) +(?P<gmacs>\d+\.\d{4}) +"
    r"(?P<ms>[\d,]+\.\d\d) +(?P<share>[\d.]+)% +(?P<mib>[\d,]+\.\d\d) +(?P<peak>-|[\d.]+%)"
)
PLUGIN = """
import time
import torch
from mixers import TokenMixer, register_mixer

@register_mixer("dozing")
class Dozing(TokenMixer):
    any_grid = True
    mixes_prefix = False
    mixes_tokens = False
    paper = "none"

    def forward(self, x, grid):
        if torch.is_grad_enabled():
            time.sleep(0.2)
        return x
"""


def _tables(out):
    """The lines of the parts, and of what is inside the blocks."""
    above, below = out.split("\ninside ")
    found = []
    for text in (above, below.split("\noperator")[0]):
        matches = map(ROW.fullmatch, text.splitlines())
        found.append({match["part"]: match for match in matches if match})
    return found


def _number(text):
    return float(text.replace(",", ""))


def test_the_parts_add_up_to_the_total(command):
    outcome = command("profile", "mixer=patch_ff", "size.depth=2", *QUICK.split())
    assert (outcome.code, outcome.err) == (0, "")
    parts, inside = _tables(outcome.out)
    total = parts.pop("total")
    assert {"stem", "blocks.0", "blocks.1", "head", "(own)"} <= parts.keys()
    assert {"mixer", "channel mixer", "norms", "(own)"} <= inside.keys()
    rounding = {"parameters": 0, "gmacs": 0.001, "ms": 0.1, "share": 0.6, "mib": 0.1}
    for column, slack in rounding.items():
        whole, blocks = (
            sum(_number(row[column]) for name, row in parts.items() if name.startswith(start))
            for start in ("", "blocks.")
        )
        assert abs(whole - _number(total[column])) <= slack, column
        assert abs(sum(_number(row[column]) for row in inside.values()) - blocks) <= slack, column
    assert total["peak"] in outcome.out.partition("MFU")[2]


def test_lines_are_aligned_and_fit_100_columns(command):
    outcome = command("profile", "mixer=local_attention", "backbone=pyramid", *QUICK.split())
    lines = outcome.out.split("\n\n", 1)[1].partition("images/s")[0].splitlines()[:-1]
    assert max(map(len, lines)) <= 100
    assert not any(line.endswith(" ") for line in lines)
    parts, inside = _tables(outcome.out)
    assert {"stages.0.blocks.0", "stages.1.merging", "stages.2.blocks.1"} <= parts.keys()
    ends = {row.end("parameters") for row in (*parts.values(), *inside.values())}
    assert len(ends) == 1


def test_the_json_object_holds_every_row(command):
    line = f"profile mixer=attention backbone.pool=token {QUICK} --json"
    outcome = command(*line.split())
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    step = found["training_step"]
    assert step["mfu"] > 0 and step["peak_gflops"] > 0 and step["step_ms"]["median"] > 0
    for column in ("parameters", "gmacs"):
        assert abs(sum(row[column] for row in step["parts"]) - found[column]) < 1e-9
    for rows in ("parts", "operators"):
        assert abs(sum(row["time_share"] for row in step[rows]) - 1) < 1e-9
    assert step["operators"][OPERATORS]["name"] == OTHERS
    assert {row["name"] for row in step["inside_blocks"]} >= {"mixer", "channel mixer", "norms"}
    assert min(row["activations_mib"] for row in step["parts"]) >= 0


def test_a_slow_plugin_stands_out(command, tmp_path: Path):
    (tmp_path / "dozing.py").write_text(PLUGIN)
    plugin = f"plugins=[{tmp_path / 'dozing.py'}]"
    outcome = command("profile", "mixer=dozing", plugin, "size.depth=1", *QUICK.split())
    assert (outcome.code, outcome.err) == (0, "")
    _, inside = _tables(outcome.out)
    assert inside["mixer"]["kind"] == "Dozing"
    assert _number(inside["mixer"]["share"]) > 60


HALF = """
from mixers import TokenMixer, register_mixer


@register_mixer("half")
class Half(TokenMixer):
    any_grid = True
    mixes_prefix = False
    paper = "none"

    def forward(self, x, grid):
        return x[:, ::2]
"""


@pytest.mark.parametrize("match", [[], ["match=flops:1G"]])
def test_a_mixer_of_another_shape_is_one_line(
    command, forget_plugins, tmp_path: Path, match: list[str]
):
    forget_plugins()
    (tmp_path / "half.py").write_text(HALF)
    plugin = f"plugins=[{tmp_path / 'half.py'}]"
    outcome = command("profile", "mixer=half", plugin, *match, *QUICK.split())
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert "mixer 'half'" in line and "fails the check 'output shape'" in line
