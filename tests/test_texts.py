"""A run on texts: the task decides the examples, the model gets the vocabulary, and padding changes nothing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.config.load import load_config
from flare_dist.data.batches import BatchSource
from flare_dist.data.datasets import DataSplits, load
from flare_dist.hook.outer_settings import PRESETS
from flare_dist.layout import parameter_layout
from flare_dist.models.lstm import CharacterLSTM
from flare_dist.models.registry import build
from flare_dist.rounds.build_run import build_for, build_run, divide
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.federation import Federation
from flare_dist.run.evaluation import evaluate
from flare_dist.tasks.builtin import CLASSIFICATION
from flare_dist.tasks.config import TaskConfig
from flare_dist.vocabulary import Vocabulary
from tests.helpers.texts import WORDS, text_config, word_tokenizer, write_lines

ROOT = Path(__file__).parent.parent


class Encoder(nn.Module):
    """A user's transformer that looks at all places, and so needs the attention mask."""

    def __init__(self, vocabulary: Vocabulary, num_classes: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary.size, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = self.vocabulary.attention_mask(tokens)
        mask[:, 0] = True
        embedded = self.embedding(tokens)
        seen, _ = self.attention(embedded, embedded, embedded, key_padding_mask=~mask)
        return self.head(seen[:, 0])


def encoder(input_shape: tuple[int, ...], num_classes: int, vocabulary: Vocabulary | None = None) -> nn.Module:
    assert vocabulary is not None
    return Encoder(vocabulary, num_classes)


def small_lstm(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return CharacterLSTM(num_classes, embedding_size=8, hidden_size=32)


def labelled(root: Path) -> Path:
    """Texts of two sites; the class is whether alpha is in them, which differs from the site."""
    pairs = [(WORDS[i % 4], WORDS[(i + i // 4) % 4]) for i in range(60)]
    labels = ["has" if "alpha" in pair else "not" for pair in pairs]
    rows = [{"text": " ".join(pair), "label": label} for pair, label in zip(pairs, labels)]
    return write_lines(root / "x.jsonl", *(row | {"group": f"site{i % 3}"} for i, row in enumerate(rows)))


def trained(config: Config, data: DataSplits, rounds: int) -> Federation:
    torch.set_num_threads(1)
    fed = build_run(config, World(), data, divide(config, data), build_for(config, data))
    assert isinstance(fed, Federation)
    for round_ in range(1, rounds + 1):
        federated_round(round_, fed)
    fed.model.load(fed.view, fed.server.buffers)
    return fed


def of(data: DataSplits) -> BatchSource:
    return BatchSource(data.test, data.mean, data.std, "cpu")


def test_labels_make_it_a_classification_unless_another_task_is_named(tmp_path: Path) -> None:
    file = labelled(tmp_path)
    auto = load(text_config(file, sequence_length=4), 0)
    assert (auto.task_name, auto.class_names, auto.num_classes) == ("classification", ("has", "not"), 2)
    assert auto.train.group_names == ("site0", "site1", "site2")
    named = load(text_config(file, sequence_length=2), 0, TaskConfig("next_token"))
    assert (named.task_name, named.class_names, named.num_classes) == ("next_token", (), 257)
    assert named.input_shape == named.train.labels.shape[1:] == (2,)
    assert auto.vocabulary == named.vocabulary == Vocabulary(257, 256)


def test_folders_of_txt_are_classes_only_if_the_task_has_classes(tmp_path: Path) -> None:
    for label in ("ham", "spam"):
        for i in range(5):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / f"{i}.txt").write_text(f"{label} number {i}, and more")
    assert load(text_config(tmp_path, sequence_length=3), 0).train.group_names == ("ham", "spam")
    data = load(text_config(tmp_path, sequence_length=3), 0, TaskConfig("classification"))
    assert data.class_names == ("ham", "spam")
    assert data.train.groups is None
    assert data.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["fasttext", "tests.test_texts:encoder"])
def test_padding_does_not_change_what_a_model_says(name: str, tmp_path: Path) -> None:
    file, folder = labelled(tmp_path), str(word_tokenizer(tmp_path / "words"))
    scores = []
    for length in (4, 16):
        data = load(text_config(file, tokenizer=folder, sequence_length=length), 0)
        model = build(name, "keep", (length,), 2, 0, CLASSIFICATION, torch.int64, vocabulary=data.vocabulary).double()
        ((inputs, _),) = of(data).batches(None, 500, None)
        scores.append(model(inputs))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-9, atol=1e-9)
    assert scores[0].std(0).min() > 1e-3  # texts differ in what is said of them


@pytest.mark.parametrize("name", ["fasttext", "tests.test_texts:encoder"])
def test_texts_of_three_sites_are_classified(name: str, tmp_path: Path) -> None:
    config = Config()
    config = dataclasses.replace(
        config,
        rounds=12,
        data=text_config(
            labelled(tmp_path),
            tokenizer=str(word_tokenizer(tmp_path / "words")),
            sequence_length=6,
            partition="natural",
        ),
        model=dataclasses.replace(config.model, name=name),
        clients=dataclasses.replace(config.clients, num=3, batch_size=4, optimizer="adam", lr=0.05, local_epochs=2),
    )
    data = load(config.data, 0)
    fed = trained(config, data, 12)
    assert evaluate(fed.model.module, of(data), data.task)["accuracy"] > 0.9


def test_perplexity_is_of_the_tokens_that_are_there(tmp_path: Path) -> None:
    """Padded to 5 or to 9, the same texts have the same perplexity: exp of the mean over their own tokens."""
    texts = ["ab", "abcdef", "abc", "abcd"] * 5
    write_lines(tmp_path / "train.jsonl", *({"text": text} for text in texts))
    write_lines(tmp_path / "test.jsonl", *({"text": text} for text in texts[:4]))
    found = []
    for length in (5, 9):
        data = load(text_config(tmp_path, sequence_length=length, remainder="pad"), 0)
        model = build("lstm", "keep", (length,), 257, 0, data.task, torch.int64, vocabulary=data.vocabulary).double()
        found.append(evaluate(model, of(data), data.task))
    with torch.no_grad():
        losses = []
        for text in texts[:4]:
            codes = torch.tensor([list(text.encode())])
            losses.append(F.cross_entropy(model(codes[:, :-1]), codes[:, 1:], reduction="none").flatten())
    expected = math.exp(torch.cat(losses).mean())
    assert [one["perplexity"] for one in found] == pytest.approx([expected] * 2, rel=1e-9)
    assert found[0]["accuracy"] == pytest.approx(found[1]["accuracy"])


def test_a_tokenizer_without_a_pad_token_is_refused_before_texts_are_read(tmp_path: Path) -> None:
    file = labelled(tmp_path)
    with pytest.raises(
        ValueError, match=r"^data\.tokenizer: task\.name=classification needs a pad token, got characters,"
    ):
        load(text_config(file, tokenizer="characters"), 0)
    with pytest.raises(
        ValueError, match=r"^data\.tokenizer: data\.remainder=pad needs a pad token, got characters, which"
    ):
        load(text_config(file, tokenizer="characters", remainder="pad"), 0, TaskConfig("next_token"))
    folder = str(word_tokenizer(tmp_path / "words", pad=None))
    with pytest.raises(
        ValueError, match=r"^data\.tokenizer: .* needs a pad token, .*; name one in its tokenizer_config"
    ):
        load(text_config(file, tokenizer=folder), 0)
    assert load(text_config(file, tokenizer=folder, sequence_length=1), 0, TaskConfig("next_token")).num_classes == 8


def test_a_model_of_the_next_token_does_not_take_classes_of_texts(tmp_path: Path) -> None:
    data = load(text_config(labelled(tmp_path), sequence_length=4), 0)
    for name in ("gru", "lstm"):
        with pytest.raises(
            ValueError, match=rf"^model\.name: cannot build {name} .*it predicts the next of 257 tokens"
        ):
            build(name, "keep", (4,), 2, 0, data.task, torch.int64, vocabulary=data.vocabulary)
    with pytest.raises(ValueError, match=r"^model\.name: cannot build fasttext .* it classifies text"):
        build("fasttext", "keep", (1, 28, 28), 10, 0, CLASSIFICATION)


def roles(root: Path) -> Path:
    said = "to be, or not to be, that is the question: " * 5
    return write_lines(root / "roles.jsonl", *({"group": f"hamlet/{i}", "text": said} for i in range(3)))


def test_the_configuration_of_fedavg_learns_roles(tmp_path: Path) -> None:
    """The shipped one, on three roles and with fewer and larger steps."""
    config = load_config(ROOT / "configs" / "shakespeare_fedavg.yaml")
    config = dataclasses.replace(
        config,
        rounds=2,
        data=dataclasses.replace(config.data, root=str(roles(tmp_path)), sequence_length=20),
        clients=dataclasses.replace(config.clients, num=3, per_round=None, batch_size=2),
    )
    data = load(config.data, config.seed)
    assert data.train.group_names == ("hamlet/0", "hamlet/1", "hamlet/2")
    before = evaluate(build_for(config, data), of(data), data.task)
    after = evaluate(trained(config, data, 2).model.module, of(data), data.task)
    assert before["perplexity"] == pytest.approx(257, rel=0.2)
    assert after["perplexity"] < 0.5 * before["perplexity"]


MULOCO = pytest.param(
    "muloco", marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch.optim.Muon")
)


@pytest.mark.parametrize("name", ["diloco", "sparseloco", MULOCO])
def test_the_configurations_of_outer_steps_are_their_presets_and_learn_roles(name: str, tmp_path: Path) -> None:
    """As they are shipped, but for a small model, and fewer and larger steps on three roles."""
    settings = PRESETS[name]
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    clients = config.clients
    assert clients.local_steps == settings["every"]
    assert clients.keep_optimizer
    outer = {"lr": 1.0, "momentum": None, "nesterov": False} | settings["outer_options"]
    assert {key: getattr(config.server, key) for key in outer} == outer
    own = {key: value for key, value in settings.items() if hasattr(config.compression, key)}
    assert config.compression.is_dense if own == {"density": 1.0} else own.items() <= vars(config.compression).items()
    muon = dataclasses.replace(clients.muon, adamw_lr=0.02)
    few = dataclasses.replace(clients, num=3, local_steps=8, batch_size=2, lr=0.02, muon=muon)
    text = dataclasses.replace(config.data, root=str(roles(tmp_path)), sequence_length=20)
    small = dataclasses.replace(config.model, name="tests.test_texts:small_lstm")
    config = dataclasses.replace(config, rounds=3, clients=few, data=text, model=small)
    data = load(config.data, config.seed)
    before = evaluate(build_for(config, data), of(data), data.task)
    after = evaluate(trained(config, data, 3).model.module, of(data), data.task)
    assert after["perplexity"] < 0.8 * before["perplexity"]


def test_the_configuration_of_flare_is_that_of_its_paper_on_roles(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "shakespeare_flare.yaml")
    paper = load_config(ROOT / "configs" / "flare" / "gru.yaml")
    assert dataclasses.replace(config, data=paper.data, output_dir=paper.output_dir) == paper
    data = load(dataclasses.replace(config.data, root=str(roles(tmp_path)), sequence_length=20), config.seed)
    assert parameter_layout(build_for(config, data)).total == 4_048_470
