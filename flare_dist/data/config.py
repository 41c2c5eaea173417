"""Settings of the data: which data set, and how it is shared out among the clients."""

from __future__ import annotations

from dataclasses import dataclass, field

from flare_dist.data.augmentation import AUGMENTATIONS
from flare_dist.data.images import LAYOUTS
from flare_dist.data.lookup import find_partitioner, find_source
from flare_dist.data.normalization import NORMALIZATIONS
from flare_dist.data.pixels import ImageSpec, height_and_width
from flare_dist.data.reader import ON_ERROR
from flare_dist.data.synthetic import SyntheticConfig
from flare_dist.data.texts import REMAINDERS
from flare_dist.errors import check_choice, check_least, check_range, printable
from flare_dist.named import Options


@dataclass(frozen=True)
class DataConfig:
    """Choose a data set, and how it is shared out among the clients.

    Args:
        name: digits, mnist, fashion_mnist, emnist (balanced), emnist_byclass, cifar10, cifar100, image_folder,
            text (JSON lines or .txt), shakespeare (or any other texts of many speakers as LEAF or TensorFlow Federated
            write them), synthetic, or your own as package.module:callable, which is called with
            (config, seed, **options), config being this section, and returns a flare_dist.Source.
        options: Keyword arguments of your own data.
        root: Folder that holds the data. image_folder expects it as data.layout tells. shakespeare expects train/*.json
            and test/*.json. text takes a file or a folder of .jsonl, lines {"text": ..., "label": ..., "group": ...},
            or <name>/*.txt; it holds out the last fifth of each group for testing unless there are train and test.
        layout: How the files of image_folder lie in data.root: classes or sites. classes is one tree, train/<class>/*
            and test/<class>/* (val/ stands in if test/ is missing or has none of the classes); natural groups come from
            lines "train/<class>/<file>,<group>" in groups.csv, also of test/. sites is such a tree for each site,
            <site>/train/<class>/* and <site>/test/<class>/*; the sites are the groups.
        image_size: Height and width to which images are resized, [height, width] or one number for both; null = they
            stay as they are, and all must have one size. Resizing is antialiased and bilinear, as by torchvision's
            Resize and Pillow, without regard to the aspect ratio.
        image_channels: 3 for red, green and blue (grey three times), or 1 for grey (of colours their luma).
        image_range: The value that is white in grey images of more than 8 bits, e.g. 4095 for 12 bits in 16; null = the
            most that the file can hold, 65535. Needed for images of 32 bits or of floats. Larger values are refused.
        sequence_length: Tokens in an example of text.
        tokenizer: Of text: bytes, characters (the 86 of the papers on Shakespeare) or the folder of a Hugging Face
            tokenizer (needs transformers).
        remainder: What becomes of the end of a text that fills no example of next_token: drop, or pad (filled up with
            the pad token, whose labels do not count).
        partition: iid, consecutive, dirichlet, dirichlet_unbalanced, shards, quantity, natural, or your own as
            package.module:callable, which is called with (labels, groups, num_clients, rng, **options), arrays of
            NumPy, and returns the client of each example, -1 for none.
        partition_options: Keyword arguments of your own partition.
        alpha: Concentration of the Dirichlet partitions and of quantity; smaller = clients differ more.
        examples_per_client: Size of each client for consecutive; null = an equal share.
        shards_per_client: Runs of label-sorted data for each client of shards; smaller = fewer classes each.
        download: Whether missing files may be fetched.
        validation: Fraction of the training set held out for tuning, in [0, 1).
        normalize: standard (channel mean and deviation of the training set), unit (pixels in [0, 1]) or none (raw).
        augment: none, crop (4 pixels of padding), flip (left-right) or crop_flip.
        workers: Processes a rank that read a Dataset ahead of training; 0 = it is read between the steps. Whatever the
            number, batches are the same.
        on_error: What happens if an example of a Dataset cannot be read: stop, or skip it (skipped_examples in
            metrics.jsonl).
        synthetic: Sizes of the synthetic data set.
    """

    name: str = "digits"
    options: Options = field(default_factory=dict, hash=False)
    root: str = "data"
    layout: str = "classes"
    image_size: int | tuple[int, int] | None = None  # (height, width); None = as they are
    image_channels: int = 3
    image_range: float | None = None  # None = what the file can hold
    sequence_length: int = 100
    tokenizer: str = "bytes"
    remainder: str = "drop"
    partition: str = "iid"
    partition_options: Options = field(default_factory=dict, hash=False)
    alpha: float = 1.0  # smaller = clients differ more
    examples_per_client: int | None = None  # None = an equal share
    shards_per_client: int = 2  # smaller = fewer classes on a client
    download: bool = False
    validation: float = 0.0  # fraction held out
    normalize: str = "standard"
    augment: str = "none"
    workers: int = 0
    on_error: str = "stop"
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        find_source(self.name, self.options)
        if not self.root.isprintable():  # a run's config.yaml could not be read again
            raise ValueError(
                "data.root: the name has bytes that are not UTF-8 or control characters, "
                f"got {printable(self.root)}; give a link to it with another name"
            )
        check_choice("data.layout", self.layout, LAYOUTS)
        height_and_width(self.image_size)
        if self.image_channels not in (1, 3):
            raise ValueError(f"data.image_channels: must be 3 (colours) or 1 (grey), got {self.image_channels}")
        check_choice("data.remainder", self.remainder, REMAINDERS)
        find_partitioner(self.partition, self.partition_options)
        check_choice("data.normalize", self.normalize, NORMALIZATIONS)
        check_choice("data.augment", self.augment, AUGMENTATIONS)
        check_choice("data.on_error", self.on_error, ON_ERROR)
        check_least("data.workers", self.workers, 0)
        check_range("data.alpha", self.alpha, "(0, inf)")
        check_least("data.examples_per_client", self.examples_per_client, 1)
        check_range("data.image_range", self.image_range, "(0, inf)")
        check_least("data.sequence_length", self.sequence_length, 1)
        check_least("data.shards_per_client", self.shards_per_client, 1)
        check_range("data.validation", self.validation, "[0, 1)")

    @property
    def images(self) -> ImageSpec:
        """Return how images are to be read."""
        return ImageSpec(self.image_range, height_and_width(self.image_size), self.image_channels)
