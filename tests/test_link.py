"""benchmarks/link.sh makes a link of the rate asked for, and leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.network import namespaces, why_no_namespaces

SCRIPT = Path(__file__).parent.parent / "benchmarks/link.sh"


TRANSFER = """
import socket, threading, time
listener = socket.create_server(("127.0.0.1", 0))
def send():
    with socket.create_connection(listener.getsockname()) as sender:
        sender.sendall(bytes(2_000_000))
threading.Thread(target=send).start()
receiver, _ = listener.accept()
start = time.perf_counter()
while receiver.recv(2**16):
    pass
print(time.perf_counter() - start)
"""


def test_the_link_has_the_rate_asked_for_and_nothing_is_left() -> None:
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)
    before = namespaces()
    command = ["bash", str(SCRIPT), "10mbit", sys.executable, "-c", TRANSFER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(8 * 2e6 / 1e7, rel=0.25)  # the bucket's 256 kB come at once
    assert namespaces() == before


def test_the_status_of_a_failing_command_is_kept_and_nothing_is_left() -> None:
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)
    before = namespaces()
    assert subprocess.run(["bash", str(SCRIPT), "10mbit", "false"], check=False).returncode == 1
    assert namespaces() == before


def test_missing_arguments_and_tools_are_named() -> None:
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "bash benchmarks/link.sh 100mbit .venv/bin/torchrun" in done.stderr
    bare = {"PATH": "/nonexistent"}
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, str(SCRIPT), "1mbit", "true"], capture_output=True, text=True, check=False, env=bare)
    assert done.returncode == 2
    assert "needs ip (Debian: apt-get install iproute2)" in done.stderr
