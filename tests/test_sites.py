"""Trees of images by site: the sites are the groups by name, and what is wrong is named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import DataSplits, load
from tests.helpers.images import write_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write three sites, of which rome lacks a class: 3, 2 and 1 training images of a class, one test image."""
    for number, site in enumerate(("oslo", "rome", "bern")):
        for part, count in (("train", 3 - number), ("test", 1)):
            for place, name in enumerate(("ant", "bee")):
                if (site, name) != ("rome", "bee"):
                    (tmp_path / site / part / name).mkdir(parents=True)
                    for i in range(count):
                        grey = Image.new("L", (3, 2), 100 + 10 * number + 5 * place)
                        grey.save(tmp_path / site / part / name / f"{i}.png")
    return tmp_path


def read(root: Path) -> DataSplits:
    return load(DataConfig(name="image_folder", root=str(root), layout="sites"), seed=0)


def refused(root: Path, place: str, problem: str) -> None:
    path = re.escape(str(root / place if place else root))
    with pytest.raises(ValueError, match=rf"^data\.root: {path}: {problem}"):
        read(root)


def test_sites_are_the_groups_sorted_by_name(root: Path) -> None:
    data = read(root)
    assert data.class_names == ("ant", "bee")
    assert data.train.group_names == data.test.group_names == ("bern", "oslo", "rome")
    assert data.train.groups is not None
    assert data.train.groups.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 2, 2]
    assert data.train.labels.tolist() == [0, 1, 0, 0, 0, 1, 1, 1, 0, 0]
    assert data.train.inputs[:, 0, 0, 0].tolist() == [120, 125, *[100] * 3, *[105] * 3, 110, 110]
    assert data.test.groups is not None
    assert data.test.groups.tolist() == [0, 0, 1, 1, 2]
    assert data.test.labels.tolist() == [0, 1, 0, 1, 0]


def test_a_site_may_have_no_images_in_one_part(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A part is missing on purpose only if its folder is there and empty, but for hidden files."""
    for name in ("ant", "bee"):
        (root / "bern/test" / name / "0.png").unlink()
    shutil.rmtree(root / "rome/train/ant")
    (root / "rome/train/.DS_Store").write_bytes(b"x")
    with caplog.at_level("INFO", logger="flare_dist"):
        data = read(root)
    assert data.train.group_names == ("bern", "oslo")
    assert data.test.group_names == ("oslo", "rome")
    assert caplog.messages == [
        f"data.root: {root}: there are no images in train/ of 1 of 3 sites (rome)",
        f"data.root: {root}: there are no images in test/ of 1 of 3 sites (bern)",
    ]
    shutil.rmtree(root / "oslo/test")
    refused(root, "oslo", r"has no test/ or val/ \(it holds train\)")


def test_a_part_without_images_at_any_site_is_refused(root: Path) -> None:
    for path in root.glob("*/test/*/*.png"):
        path.unlink()
    refused(root, "", "no site has images in test/; it should hold <site>/train/")


def test_val_stands_in_at_single_sites(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for site in ("bern", "rome"):
        (root / site / "test").rename(root / site / "val")
    assert read(root).test.labels.tolist() == [0, 1, 0, 1, 0]
    assert caplog.messages == [
        f"data.root: {root}: val/ is the test set of 2 of 3 sites (bern, rome), for test/ is missing"
    ]


def test_classes_of_which_no_site_has_a_test_image_are_worth_one_warning(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for site in ("bern", "oslo"):
        shutil.rmtree(root / site / "test/bee")
    read(root)
    assert caplog.messages == [f"data.root: {root}: has no images of 1 of the 2 classes of train/ (bee)"]


def test_a_class_that_no_site_trains_on_is_refused(root: Path) -> None:
    shutil.copytree(root / "rome/test/ant", root / "rome/test/cow")
    refused(
        root, "rome/test/cow", "is no class of the sites' train/, which has 2 classes: ant, bee; rename or remove it"
    )


def test_classes_that_differ_between_sites_in_case_alone_are_refused(root: Path) -> None:
    (root / "rome/train/ant").rename(root / "rome/train/Ant")
    refused(root, "rome/train/Ant", "is ant of bern but for case or composed letters; rename one of them")


def test_classes_of_one_site_may_differ_in_case(root: Path) -> None:
    shutil.copytree(root / "oslo/train/ant", root / "oslo/train/ANT")
    assert read(root).class_names == ("ANT", "ant", "bee")


def test_a_class_without_images_at_any_site_is_refused(root: Path) -> None:
    (root / "rome/train/cow").mkdir()
    (root / "oslo/train/cow").mkdir()
    (root / "oslo/train/cow/0.gif").write_bytes(b"GIF")
    refused(
        root, "oslo/train/cow", r"has no images, but 1 \.gif \(their names end in .*; add some or remove the folder"
    )


def test_a_site_whose_files_are_no_images_is_refused(root: Path) -> None:
    (root / "rome/train/ant/0.png").rename(root / "rome/train/ant/0.gif")
    (root / "rome/train/ant/1.png").rename(root / "rome/train/ant/1.gif")
    refused(root, "rome/train", r"has no images, but 2 \.gif")


def test_files_that_are_left_out_are_counted_over_all_sites(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in ("bern/train/ant/a.gif", "oslo/test/bee/b.gif", "rome/train/notes.txt"):
        (root / place).write_bytes(b"x")
    with caplog.at_level("INFO", logger="flare_dist"):
        read(root)
    assert caplog.messages == [f"data.root: {root}: left out 2 .gif, 1 .txt"]


def test_the_wrong_layout_names_the_other(root: Path, tmp_path: Path) -> None:
    other = DataConfig(name="image_folder", root=str(root))
    with pytest.raises(ValueError, match=r"has no train/ \(but bern/ has one; data\.layout=sites is for trees "):
        load(other, seed=0)
    write_tree(tmp_path / "one")
    refused(tmp_path / "one", "", "holds train/ itself, .*; data.layout=classes is for these, or it should hold <site>")


def test_a_root_without_sites_is_explained(root: Path) -> None:
    refused(root / "nowhere", "", r"there is no such folder \(it should hold <site>/train/")
    (root / "empty").mkdir()
    refused(root / "empty", "", "has no folders of sites; it should hold <site>/train/")


def test_a_folder_that_is_no_site_is_named(root: Path) -> None:
    (root / "notes").mkdir()
    refused(root, "notes", r"has no train/ \(it holds nothing\)")
    (root / "notes").rename(root / ".notes")
    assert len(read(root).train) == 10


def test_a_table_of_groups_beside_sites_is_refused(root: Path) -> None:
    (root / "groups.csv").write_text("bern/train/ant/0.png,north\n")
    refused(root, "groups.csv", "the groups are the sites already; remove it, or use data.layout=classes")


def test_a_site_with_a_name_of_any_bytes_can_be_printed(root: Path) -> None:
    (root / "rome").rename(Path(str(root)) / "m\udcfcnchen")
    assert read(root).train.group_names == ("bern", "m\\xfcnchen", "oslo")
