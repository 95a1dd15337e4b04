"""A typo must not wait for torch: what is loaded, and how long it takes, in real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FAST = [
    ("--help", 0),
    ("train --help", 0),
    ("list", 0),
    ("list mixers", 0),
    ("trian", 2),
    ("train mixer=pach_ff", 2),
    ("train recipe.epocs=3", 2),
    ("train run.seed=abc", 2),
    ("train mixer=attention,patch_ff", 2),
    ("train -m mixer=attention,pach_ff", 2),
    ("train protocol=imagenet_deit", 2),
    ("train protocol=imagenet_deit data.root=/nowhere", 2),
    ("train plugins=[missing.py]", 2),
    ("train mixer=local_attention backbone.pool=token", 2),
    ("train run.device=gpu", 2),
    ("train match=22M", 2),
    ("train -m mixer=attention,pach_ff match=params:1M", 2),
    ("train protocol=imagenet_deit match=params:22M", 2),
    ("train --cfg mixer=patch_ff size=base", 0),
    ("suite run suite=sed", 2),
    ("suite run suite=seeds mixer=pach_ff", 2),
    ("profile mixer=pach_ff", 2),
    ("measure run.seed=1", 2),
    ("measure run.device=gpu", 2),
    ("leaderboard --format xml", 2),
    ("sync /nowhere", 2),
    ("eval", 2),
]
HEAVY = ("torch", "torchvision", "timm", "mlflow", "fvcore", "pandas", "sklearn")

# One process for all, the cheapest first: what one loads, the next cannot blame on itself.
SCRIPT = """
import contextlib, io, json, sys, time
from mixerbench import cli
report = []
for line in json.loads(sys.argv[1]):
    sys.argv = ["mixerbench", *line.split()]
    out, err = io.StringIO(), io.StringIO()
    begin = time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    heavy = sorted({name.partition(".")[0] for name in sys.modules} & HEAVY)
    report.append([line, code, time.perf_counter() - begin, heavy, err.getvalue()])
print(json.dumps(report))
""".replace("HEAVY", repr(set(HEAVY)))


def _python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # Where the package is not installed, the checkout is its place.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_lists_and_refusals_load_nothing_heavy(tmp_path: Path) -> None:
    done = _python("-c", SCRIPT, json.dumps([line for line, _ in FAST]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = dict(FAST)
    for line, code, seconds, heavy, err in json.loads(done.stdout):
        assert heavy == [], f"mixerbench {line} loads {heavy}"
        assert code == expected[line], f"mixerbench {line}: {err}"
        assert seconds < 5, f"mixerbench {line} takes {seconds:.1f} s"
        assert len(err.splitlines()) == (code != 0), f"mixerbench {line}: {err}"
    assert list(tmp_path.iterdir()) == []


def test_the_process_itself_gives_one_line_and_code_2(tmp_path: Path) -> None:
    done = _python("-m", "mixerbench.cli", "train", "mixer=pach_ff", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mixerbench: unknown mixer 'pach_ff'. Did you mean 'patch_ff'?")
    assert len(done.stderr.splitlines()) == 1


def test_debugging_shows_the_traceback(tmp_path: Path) -> None:
    arguments = ("-m", "mixerbench.cli", "train", "mixer=pach_ff")
    done = _python(*arguments, cwd=tmp_path, MIXERBENCH_DEBUG="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "_compose_one" in done.stderr


@pytest.mark.parametrize("lines", [1])
def test_a_reader_that_leaves_is_no_error(lines: int, tmp_path: Path) -> None:
    command = f"{sys.executable} -m mixerbench.cli train --cfg | head -n {lines}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.count("\n") == lines
    assert done.stderr == ""
