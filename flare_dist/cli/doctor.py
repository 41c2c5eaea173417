"""Print the facts that a bug report needs, and check that ranks reach each other."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flare_dist.comm.launch import Launch
from flare_dist.comm.probe import try_all, try_two
from flare_dist.config.parser import Parser, user_path
from flare_dist.disk import existing, free_space
from flare_dist.engines.config import default_threads
from flare_dist.locks import has_flock
from flare_dist.records.rundir import check_writable

Check = tuple[str, Callable[[], str]]  # its name, and a function that returns its result or raises


def doctor_parser() -> Parser:
    parser = Parser(
        description="Print what a bug report needs, and check that two ranks exchange a message; under a launcher "
        "(torchrun -m flare_dist doctor) that its ranks do. The exit status is 1 if a check fails.",
    )
    parser.add_argument("--output_dir", type=str, default="runs", help="Directory in which runs are to be written.")
    parser.add_argument(
        "--timeout_seconds", type=float, default=60.0, help="Seconds after which a rank without an answer has failed."
    )
    return parser


def run_doctor(parser: Any, options: Any, launch: Launch, console: Console) -> None:
    """Print the report on rank 0; exits with status 1 if a check fails on this rank."""
    say: Callable[[str], None] = print if launch.rank == 0 else lambda line: None
    for name, value in [*_versions(), *_machine(launch), *_environment()]:
        say(f"{name:24} {value}")
    failed = []
    for name, check in _checks(user_path(options.output_dir), launch, options.timeout_seconds):
        try:
            say(f"{name:24} ok: {check()}")
        except FutureTimeoutError:
            failed.append(f"{name}: no answer within {options.timeout_seconds:g} s")
        except (RuntimeError, OSError, ValueError) as error:
            failed.append(f"{name}: {' '.join(str(error).split()) or repr(error)}")
    for line in failed:
        say(f"FAILED {line}")
    if failed:
        raise SystemExit(1)
    say("all checks passed")


def _versions() -> Iterator[tuple[str, str]]:
    """List the installed versions without importing the packages."""
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            if name not in OPTIONAL:
                yield name, "not installed"


def _machine(launch: Launch) -> Iterator[tuple[str, str]]:
    """List the properties of this machine, its processors and its devices."""
    yield "system", platform.platform()
    yield "host", socket.gethostname()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cpu", f"{_cpu_model()}, {os.cpu_count()} cores, {cores} for this process"
    threads = default_threads(launch.local_size or launch.size)
    yield "threads of a rank", f"{threads} (PyTorch's own choice: {torch.get_num_threads()})"
    yield "cpu capability", torch.backends.cpu.get_cpu_capability()
    devices = torch.cuda.device_count()
    for device in range(devices):
        properties = torch.cuda.get_device_properties(device)
        yield f"cuda:{device}", f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    yield "cuda of torch", str(torch.version.cuda)
    yield "nvidia driver", _driver()
    if devices:
        yield "nccl", ".".join(map(str, torch.cuda.nccl.version()))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not on Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _driver() -> str:
    """Ask NVIDIA's own tool for the version of the driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none"
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    return output.partition("\n")[0].strip() or "unknown"


def _environment() -> Iterator[tuple[str, str]]:
    """List the variables of launchers and backends: known names alone, since others may hold secrets."""
    for name in VARIABLES:
        if name in os.environ:
            yield name, os.environ[name]


def _checks(output_dir: Path, launch: Launch, seconds: float) -> Iterator[Check]:
    """List the checks: the disk, and an exchange on each kind of device that runs here would use."""
    yield "disk", lambda: _output_dir(output_dir)
    kinds = ["cpu"] + ["cuda"] * (torch.cuda.device_count() >= 2)
    if launch.size > 1:
        kinds = ["cuda" if torch.cuda.device_count() else "cpu"]
    for kind in kinds:
        yield f"exchange on {kind}", lambda kind=kind: _exchange(launch, kind, seconds)  # type: ignore[misc]


def _output_dir(directory: Path) -> str:
    """Check that runs can be written to a directory; returns how they are locked, and the free space."""
    check_writable("output_dir", directory)
    locks = "flock" if has_flock(existing(directory)) else "no flock, a killed run leaves a lock file behind"
    return f"{directory.absolute()} can be written, {locks}, {free_space(directory)}"


def _exchange(launch: Launch, kind: str, seconds: float) -> str:
    """Exchange a message between all ranks of the launch, or two processes without one; returns how, and whose."""
    if launch.size == 1:
        return f"{try_two(kind, seconds)} between two processes of this machine"
    return f"{try_all(launch, kind, seconds)} between the {launch.size} ranks of this launch"


OPTIONAL = (
    *("transformers", "peft", "lightning", "pytorch-lightning"),
    *("onnx", "onnxscript", "wandb", "mlflow", "mlflow-skinny"),
)
PACKAGES = (
    *("flare_dist", "torch", "torchvision", "numpy", "accelerate", "deepspeed", "jsonargparse", "tensorboard"),
    *("safetensors", "filelock", *OPTIONAL),
)
VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_NNODES", "SLURM_NTASKS"),
    *("SLURM_NODEID", "SLURM_PROCID", "SLURM_CPUS_PER_TASK", "SLURM_GPUS_PER_NODE", "CUDA_VISIBLE_DEVICES"),
    *("NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE"),
    *("NCCL_NET", "NCCL_ALGO", "NCCL_PROTO", "TORCH_NCCL_BLOCKING_WAIT", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
    *("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY"),
    *("ACCELERATE_USE_CPU", "ACCELERATE_CONFIG", "DS_ACCELERATOR"),
)
