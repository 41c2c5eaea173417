"""Tell whether network namespaces can be made here, and which there are."""

from __future__ import annotations

import os
import shutil
import subprocess


def namespaces() -> str:
    """List the network namespaces of this machine."""
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def why_no_namespaces() -> str:
    """Give the reason why network namespaces cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root"
    if not shutil.which("ip") or not shutil.which("tc"):
        return "needs iproute2"
    made = subprocess.run(["ip", "netns", "add", "flare-link-probe"], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", "flare-link-probe"], check=True)
    return ""
