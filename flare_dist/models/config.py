"""Settings of the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from flare_dist.errors import check_choice
from flare_dist.models.hugging_face import located
from flare_dist.models.registry import find_builder
from flare_dist.named import Options

NORMS = ("keep", "group")


@dataclass(frozen=True)
class ModelConfig:
    """Choose the model that is trained.

    Args:
        name: 2nn, cnn, lenet, mnist_net, resnet8, resnet18, resnet34, vgg11, vgg16, vgg19, flare_fc, flare_cnn,
            gru or lstm (the next token of a text), fasttext (the class of a text), a classifier of torchvision as
            torchvision:NAME (e.g. torchvision:resnet50), or your own as package.module:callable, which is called with
            (input_shape, num_classes, **options), and with vocabulary= if it has a parameter of that name; or a
            pretrained model of Hugging Face as hf:DIR, a folder of save_pretrained, or hf:NAME, one of the hub.
        options: keyword arguments of your own model, or of torchvision's. Of hf: lora, arguments of peft.LoraConfig and
            freeze_a (true: FFA-LoRA, which trains B only); dtype fp32 or bf16; auto_class, a class of transformers.
        norm: keep (the model's own layers; the running statistics of BatchNorm travel with every update; batch means
            the same) or group (GroupNorm, whose statistics stay in the example, in place of every BatchNorm2d).
    """

    name: str = "2nn"
    options: Options = field(default_factory=dict, hash=False)
    norm: str = "keep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", located(self.name))
        find_builder(self.name, self.options)
        if self.norm == "batch":  # an older name
            object.__setattr__(self, "norm", "keep")
        check_choice("model.norm", self.norm, NORMS)
