"""Pretrained models of Hugging Face are trained, sent, saved and exported, with adapters and without."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import Dataset

from flare_dist import cli
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig
from flare_dist.data.source import Part, Source
from flare_dist.engines.config import EngineConfig
from flare_dist.fixed import base_digest, fixed_of
from flare_dist.models.config import ModelConfig
from flare_dist.models.registry import build
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.run.evaluation import evaluate_run
from flare_dist.run.formats import export_run, read_saved
from flare_dist.tasks.builtin import CLASSIFICATION, NEXT_TOKEN
from flare_dist.tasks.config import TaskConfig
from flare_dist.tasks.task import Task
from flare_dist.vocabulary import Vocabulary
from tests.helpers.engines import DEEPSPEED_SECONDS
from tests.helpers.hosts import zero
from tests.helpers.hugging_face import LORA, of_hub, seeded_tokens, tiny_bert, tiny_llama, write_texts
from tests.helpers.runs import assert_same_run, data_parallel, start, start_rank, tiny
from tests.ranks import run_ranks

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("default")  # of other people's code

BYTES = Vocabulary(257, 256)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


def configured(directory: Path, bert: Path, texts: Path, task: str = "classification", **options: Any) -> Config:
    return tiny(directory, rounds=4, **of_hub(bert, texts, task, **options))


def classifier(bert: Path, **options: Any) -> Any:
    return build(f"hf:{bert}", "keep", (8,), 2, 0, CLASSIFICATION, torch.int64, options, vocabulary=BYTES)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, bert: Path, texts: Path) -> Path:
    """The directory of a run that trained adapters."""
    directory = tmp_path_factory.mktemp("runs") / "straight"
    start(configured(directory, bert, texts, lora=LORA))
    return directory


def test_texts_are_given_with_their_mask_and_dicts_as_they_are(bert: Path) -> None:
    model = classifier(bert).eval()
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2, local_files_only=True)
    plain.load_state_dict(model.state_dict())
    tokens = seeded_tokens()
    tokens[1, 5:] = 256
    mask = (tokens != 256).long()
    with torch.no_grad():
        expected = plain.eval()(input_ids=tokens, attention_mask=mask).logits
        assert torch.equal(model(tokens).logits, expected)
        assert torch.equal(model({"input_ids": tokens, "attention_mask": mask}).logits, expected)
        assert not torch.equal(plain(input_ids=tokens).logits, expected)
        labelled = model(input_ids=tokens, attention_mask=mask, labels=torch.tensor([0, 1, 0, 1]))
    assert labelled.loss.item() > 0


def test_only_adapters_and_the_new_head_are_trained(bert: Path) -> None:
    model = classifier(bert, lora=LORA)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert any("lora_A" in name for name in trained)
    base = fixed_of(model).base
    assert all("lora_" not in name and "classifier" not in name for name in base)
    assert len(base) == len(transformers.BertModel.from_pretrained(bert).state_dict())


def test_the_factor_that_ffa_freezes_is_not_base(bert: Path) -> None:
    model = classifier(bert, lora=LORA | {"freeze_a": True})
    assert not any("lora_A" in name for name in fixed_of(model).base)  # drawn by the run, so that its file holds it
    assert any("lora_A" in name for name, value in model.named_parameters() if not value.requires_grad)


def test_neither_base_nor_tables_of_positions_travel(tmp_path: Path, texts: Path) -> None:
    llama = tiny_llama(tmp_path / "llama")
    lora = {"r": 1, "target_modules": ["q_proj"]}
    fed = set_up_federation(configured(tmp_path, llama, texts, "next_token", lora=lora), World())
    assert any("inv_freq" in name for name, _ in fed.model.module.named_buffers())
    assert fed.model.layout.total == fed.server.parameters.numel() == 2 * 16
    row = federated_round(1, fed)
    assert row["buffer_bytes"] == 0
    assert row["uplink_bytes"] < 3 * 100


def test_one_rank_and_two_give_the_same_bits(tmp_path: Path, adapted: Path, bert: Path, texts: Path) -> None:
    start(configured(tmp_path / "two", bert, texts, lora=LORA), 2)
    assert_same_run(adapted, tmp_path / "two", wire=False)


def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: Path, adapted: Path, bert: Path, texts: Path) -> None:
    config = configured(tmp_path / "killed", bert, texts, lora=LORA)
    start(config, kill_in_round=3)
    start(config)
    assert_same_run(adapted, tmp_path / "killed")


def on_a_host(world: World, directory: Path, bert: Path, texts: Path) -> None:
    """Train adapters on a host of two ranks, by both engines, killed and going on."""
    for engine in (zero(3, 2), EngineConfig(name="fsdp", shards=2)):
        config = configured(directory / engine.name, bert, texts, lora=LORA)
        config = dataclasses.replace(config, engine=engine, rounds=3, eval_every=3)
        start_rank(world, config, kill_in_round=3)
        start_rank(world, config)


def test_adapters_of_a_base_that_a_host_has_divided_go_on(
    tmp_path: Path, adapted: Path, bert: Path, texts: Path
) -> None:
    run_ranks(on_a_host, 2, tmp_path, bert, texts, shards=2, seconds=DEEPSPEED_SECONDS)
    expected = load_file(adapted / "model.safetensors")
    for name in ("deepspeed", "fsdp"):
        state = load_file(tmp_path / name / "model.safetensors")
        assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in expected.items()}
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            assert file.metadata()["base"] == base_digest(classifier(bert, lora=LORA))


def test_what_is_saved_is_small_and_has_the_digest_of_the_base(adapted: Path, bert: Path) -> None:
    model = classifier(bert, lora=LORA)
    state = load_file(adapted / "model.safetensors")
    assert not state.keys() & fixed_of(model).base
    assert all("lora_" in name or "classifier" in name for name in state)
    with safe_open(adapted / "model.safetensors", "pt") as file:
        assert file.metadata()["base"] == base_digest(model)
    for path in adapted.glob("checkpoints/*/*.pt"):
        saved = torch.load(path, weights_only=True)
        assert saved["server"]["base"] == base_digest(model)
        assert max(value.numel() for value in tensors_in(saved)) <= sum(value.numel() for value in state.values())


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def test_another_base_is_refused_by_name(tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_bert(tmp_path / "bert")
    config = configured(tmp_path / "run", folder, texts, lora=LORA)
    start(config, kill_in_round=3)
    tiny_bert(folder, seed=1)
    with pytest.raises(ValueError, match=r"^checkpoint.resume: the run in .*/run was trained on a base of SHA-256 "):
        start(config)
    assert (
        cli.main(["export", str(tmp_path / "run"), "--which", "best", "--to", str(tmp_path / "x.pt"), "--format", "pt"])
        == 2
    )
    error = capsys.readouterr().err
    assert "export: " in error
    assert "put back the files that model.name named then" in error
    with pytest.raises(ValueError, match=r"^evaluate: .* was trained on a base"):
        evaluate_run(tmp_path / "run", "best", None)


def test_peft_loads_what_is_exported(tmp_path: Path, adapted: Path, bert: Path) -> None:
    to, _ = export_run(adapted, "final", "hf", tmp_path / "hf")
    assert {path.name for path in to.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not any(".default" in name for name in load_file(to / "adapter_model.safetensors"))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2, local_files_only=True)
    loaded = peft.PeftModel.from_pretrained(base, str(to)).eval()
    ours = read_saved(adapted, adapted / "model.safetensors").model
    tokens = seeded_tokens()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, ours(tokens).logits)
    assert evaluate_run(adapted, "final", None)["accuracy"] == pytest.approx(
        json.loads((adapted / "metrics.jsonl").read_text().splitlines()[-1])["test_accuracy"]
    )


def test_exports_for_plain_pytorch_hold_the_base_too(tmp_path: Path, adapted: Path, bert: Path) -> None:
    to, _ = export_run(adapted, "final", "pt", tmp_path / "whole.pt")
    told = classifier(bert, lora=LORA).load_state_dict(torch.load(to, weights_only=True))
    assert str(told) == "<All keys matched successfully>"


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """A Dataset of dicts, as tokenizers of Hugging Face make them."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.full((6,), index % 2 + 5)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.tensor(index % 2)}


def own_loss() -> Task:
    """Make a task that lets the model compute the loss."""

    def loss(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        return model(**batch).loss * len(batch["labels"]), len(batch["labels"])

    def metrics(model: Any, batch: Any) -> dict[str, tuple[torch.Tensor, int]]:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return {"right": ((logits.argmax(1) == batch["labels"]).sum(), len(logits))}

    return Task(loss, metrics, best=("right", "max"))


@pytest.mark.parametrize("task", ["classification", "tests.test_hugging_face:own_loss"])
def test_datasets_of_dicts_train_with_built_in_tasks_and_the_model_s_own_loss(
    tmp_path: Path, bert: Path, task: str
) -> None:
    source = Source(Part(Tokens(), labels=[n % 2 for n in range(30)]), Part(Tokens()), classes=2)
    config = tiny(tmp_path, rounds=2, model=ModelConfig(f"hf:{bert}", {"lora": LORA}), task=TaskConfig(name=task))
    config = dataclasses.replace(config, data=DataConfig())
    start(config, data=source)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["test_accuracy" if task == "classification" else "test_right"] <= 1
    assert "model.safetensors" in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("lora", [None, LORA])
def test_weights_of_bfloat16_are_trained(tmp_path: Path, bert: Path, texts: Path, lora: Any) -> None:
    options = {"dtype": "bf16"} | ({"lora": lora} if lora else {})
    config = configured(tmp_path / "one", bert, texts, **options)
    start(config)
    start(dataclasses.replace(config, output_dir=str(tmp_path / "two")), 2)
    assert_same_run(tmp_path / "one", tmp_path / "two", wire=False)
    state = load_file(tmp_path / "one" / "model.safetensors")
    head = next(value for name, value in state.items() if name.endswith("classifier.weight") or "modules_to" in name)
    assert head.dtype == torch.bfloat16
    fed = set_up_federation(config, World())
    assert fed.server.parameters.dtype == torch.float32


def test_a_language_model_learns_from_its_own_dict(tmp_path: Path, texts: Path) -> None:
    llama = tiny_llama(tmp_path / "llama")
    model = build(f"hf:{llama}", "keep", (8,), 257, 0, NEXT_TOKEN, torch.int64, vocabulary=BYTES)
    tokens = seeded_tokens()
    loss, count = NEXT_TOKEN.loss(model.eval(), (tokens[:, :-1], tokens[:, 1:]))
    expected = model(input_ids=tokens, labels=tokens).loss
    assert count == 28
    assert loss.item() / 28 == pytest.approx(expected.item(), rel=1e-5)
    start(configured(tmp_path / "run", llama, texts, "next_token"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora": {"rank": 4}}, r"^model.options.lora.rank: LoraConfig takes no such option, got 4"),
        ({"lora": {"target_modules": ["nothing"]}}, r"^model.options.lora: PEFT refuses "),
        ({"dtype": "fp16"}, r"^model.options.dtype: "),
        ({"auto_class": "AutoModelForCausal"}, r"^model.options.auto_class: .*did you mean AutoModelForCausalLM"),
        ({"quantised": True}, r"^model.options.quantised: "),
    ],
)
def test_wrong_options_are_named(bert: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        classifier(bert, **options)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_and_too_many_tokens_are_named(tmp_path: Path, bert: Path) -> None:
    with pytest.raises(ValueError, match=r"^model.name: transformers cannot load .*; name a folder of"):
        classifier(tmp_path)
    with pytest.raises(ValueError, match=r"^data.tokenizer: has 300 tokens, and model.name knows 257"):
        build(f"hf:{bert}", "keep", (8,), 2, 0, CLASSIFICATION, torch.int64, vocabulary=Vocabulary(300, 0))


def test_a_folder_is_named_from_the_root(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bert.parent)
    assert ModelConfig(f"hf:{bert.name}").name == f"hf:{bert}"
    assert ModelConfig("hf:somebody/model").name == "hf:somebody/model"


@pytest.mark.parametrize("mode", ["gradient", "centralised"])
def test_other_modes_resume_with_the_same_bits(tmp_path: Path, bert: Path, texts: Path, mode: str) -> None:
    options: dict[str, Any] = {"lora": LORA} if mode == "gradient" else {"dtype": "bf16"}
    sections = of_hub(bert, texts, **options)
    config = dataclasses.replace(data_parallel(tmp_path / "straight", **sections), mode=mode)
    ranks = 2 if mode == "gradient" else 1  # its hook needs a process group
    start(config, ranks)
    other = dataclasses.replace(config, output_dir=str(tmp_path / "killed"))
    start(other, ranks, kill_in_round=5)
    start(other, ranks)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_weights_of_bfloat16_are_refused_in_mode_gradient(tmp_path: Path, bert: Path, texts: Path) -> None:
    config = data_parallel(tmp_path, **of_hub(bert, texts, dtype="bf16"))
    with pytest.raises(ValueError, match=r"^model.name: the hook exchanges gradients of float32"):
        start(config)
