"""torchrun on two machines, which are network namespaces where this machine allows them.

Elsewhere they are two agents on the loopback interface.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_runs import DATA, MODEL, losses

TINY = [
    *DATA, *MODEL,
    "recipe.batch.size=16", "recipe.batch.micro_batch_size=4", "recipe.optimizer.lr=2e-4",
    "recipe.epochs=2", "run.precision=fp64", "run.device=cpu", "run.measure=false",
    "run.log_every_steps=1", "tracking.offline=true",
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ADDRESSES = ("10.77.0.1", "10.77.0.2")


@pytest.fixture
def hosts() -> Iterator[list[tuple[list[str], dict[str, str], str]]]:
    """For each machine what to write before a command, its environment, and its address."""
    names = [f"mixerbench{os.getpid()}{end}" for end in "ab"]
    links = [f"mb{os.getpid() % 10**6}{end}" for end in "ab"]

    def ip(*arguments: str) -> bool:
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0

    try:
        allowed = all(ip("netns", "add", name) for name in names)
    except FileNotFoundError:
        allowed = False
    if not allowed:
        local = ([], {"GLOO_SOCKET_IFNAME": "lo"}, "127.0.0.1")
        yield [local, local]
        return
    assert ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
    for name, link, address in zip(names, links, ADDRESSES, strict=True):
        assert ip("link", "set", link, "netns", name)
        assert ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
        assert ip("-n", name, "link", "set", link, "up") and ip(
            "-n", name, "link", "set", "lo", "up"
        )
    yield [
        (["ip", "netns", "exec", name], {"GLOO_SOCKET_IFNAME": link}, address)
        for name, link, address in zip(names, links, ADDRESSES, strict=True)
    ]
    for name in names:
        assert ip("netns", "delete", name)


def _folder(runs: Path) -> Path:
    (folder,) = runs.glob("*/*")
    return folder


@pytest.mark.everything  # network namespaces
def test_two_machines_have_the_numbers_of_one_process(
    hosts: list[tuple[list[str], dict[str, str], str]],
    train_alone: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """One process on each; test_slurm.py has two."""
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two",
               f"--rdzv-endpoint={hosts[0][2]}:29411"]  # fmt: skip
    agents = []
    for number, (prefix, environment, address) in enumerate(hosts):
        host = [f"--local-addr={address}", f"--rdzv-conf=is_host={int(number == 0)}"]
        train = ["-m", "mixerbench", "train", *TINY, f"run.root={tmp_path}/two"]
        agents.append(
            subprocess.Popen(
                [*prefix, *TORCHRUN, *meeting, *host, *train],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    alone = train_alone(*TINY)
    said = [agent.communicate(timeout=300) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert sum("top-1" in out for out, _ in said) == 1  # one process speaks for all
    two = _folder(tmp_path / "two")
    assert len(losses(two)) == 8
    assert losses(two) == pytest.approx(losses(alone), rel=1e-9)
    assert json.loads((two / "run.json").read_text())["launch"] == "two"
