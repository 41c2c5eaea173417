"""Two nodes train what one does: an agent of torchrun in each of two network namespaces, joined by a veth pair."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.forked import NAMESPACE, Forked
from tests.helpers.launching import ENVIRONMENT, RUNNING, finished, torchrun

pytestmark = pytest.mark.usefixtures("nothing_left_running")

ROUNDS = ("--rounds", "5")
NODES = ("10.231.7.1", "10.231.7.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Make two network namespaces with a link between them, and remove them afterwards; gives their names."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    names = [f"flare{os.getpid()}-{node}" for node in (0, 1)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth0", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"cannot make network namespaces here: {error.stderr.strip()}")
        for name, address in zip(names, NODES):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "veth0")
            for device in ("lo", "veth0"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def agent(name: str, node: int, directory: Path) -> Forked:
    """Start torchrun on one of two nodes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--nproc_per_node", "1", "--node_rank", str(node), "--master_addr", NODES[0], "--master_port", "29500"]
    command += ["-m", "flare_dist", "train", "--config", "configs/quickstart.yaml", "--output_dir", str(directory)]
    environment = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "veth0", NAMESPACE: name}
    process = Forked([*command, *ROUNDS], environment, subprocess.PIPE, subprocess.PIPE)
    RUNNING.append(process)
    return process


def test_two_nodes_train_what_one_node_does(namespaces: list[str], tmp_path: Path) -> None:
    agents = [agent(name, node, tmp_path / "two") for node, name in enumerate(namespaces)]
    one = torchrun(tmp_path / "one", *ROUNDS, config="configs/quickstart.yaml")
    for process in (*agents, one):
        finished(process)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("two", "one")]
    assert models[0] == models[1]
