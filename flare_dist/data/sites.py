"""Listing of trees of images by site, root/<site>/train/<class>/* and root/<site>/test/<class>/*.

The classes are those of all sites together; a site need not have each. A site whose test/ is empty is not tested on,
one whose train/ is empty is tested on only.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from flare_dist.data import folders
from flare_dist.data.folders import Listing, Tested, Tree
from flare_dist.data.names import alike_pairs, some
from flare_dist.data.scan import ClassFolder, scan
from flare_dist.errors import printable, refusal

log = logging.getLogger(__name__)

LAYOUT = "<site>/train/<class>/*.jpg and <site>/test/<class>/*.jpg (or <site>/val/<class>/*.jpg)"
_WHOSE = "the sites' train/"

Classes = dict[str, ClassFolder]  # the files of each class in train/ or test/ of a site


def list_sites(root: Path) -> Tree:
    """List the tree of sites at `root`, which are sorted by name; ValueError names the folder that is wrong."""
    sites = _sites(root)
    scanned = {site: _scan_train(root / site) for site in sites}
    train = {site: found for site, (found, _) in scanned.items()}
    classes = _classes(root, train)
    tested = {site: _find_test(root / site, classes) for site in sites}
    test = {site: found.classes for site, found in tested.items()}
    _check_parts(root, {"train": train, "test": test})
    _warn(root, tested, classes)
    beside = [others for _, others in scanned.values()] + [found.others for found in tested.values()]
    own = [folder for part in (train, test) for found in part.values() for folder in found.values()]
    folders.log_left_out(root, own, sum(beside, Counter[str]()))
    train_listing, train_sites = _listed(train, classes)
    test_listing, test_sites = _listed(test, classes)
    return Tree(classes, train_listing, test_listing, train_sites, test_sites)


def _sites(root: Path) -> list[str]:
    """List the sites; ValueError if there are none, or `root` is one tree without sites."""
    folders.check_is_folder(root, LAYOUT)
    names = folders.visible_folders(root)
    if not names:
        raise refusal("data.root", root, f"has no folders of sites; it should hold {LAYOUT}")
    if "train" in names and not (root / "train" / "train").is_dir():
        problem = "holds train/ itself, hence one tree without sites; data.layout=classes is for these"
        raise refusal("data.root", root, f"{problem}, or it should hold {LAYOUT}")
    if os.path.lexists(root / "groups.csv"):
        problem = "the groups are the sites already; remove it, or use data.layout=classes"
        raise refusal("data.root", root / "groups.csv", problem)
    return names


def _scan_train(site: Path) -> tuple[Classes, Counter[str]]:
    folders.check_layout(site)
    found, others = scan(site / "train")
    left_out = folders.sum_left_out(found.values())
    if left_out and not _images(found):
        raise refusal("data.root", site / "train", folders.no_images(left_out))
    return found, others


def _classes(root: Path, train: dict[str, Classes]) -> list[str]:
    """List the classes of all sites; ValueError if one has no images, or two differ in case alone."""
    first_site = {name: site for site in reversed(train) for name in train[site]}
    classes = sorted(first_site)
    for name in classes:
        held = [found[name] for found in train.values() if name in found]
        if not any(folder.images for folder in held):
            problem = f"{folders.no_images(folders.sum_left_out(held))}; add some or remove the folder"
            raise refusal("data.root", root / first_site[name] / "train" / name, problem)
    for name, other in alike_pairs(classes):
        if not any(name in found and other in found for found in train.values()):
            there = f"{printable(other)} of {printable(first_site[other])}"
            problem = f"is {there} but for case or composed letters; rename one of them"
            raise refusal("data.root", root / first_site[name] / "train" / name, problem)
    return classes


def _find_test(site: Path, classes: list[str]) -> Tested:
    test = site / "test"
    if test.is_dir() and not (site / "val").is_dir():
        found, others = scan(test)
        if not any(found.values()):
            return Tested(test, {}, others, "")
    return folders.find_test(site, classes, _WHOSE)


def _images(found: Classes) -> int:
    return sum(len(folder.images) for folder in found.values())


def _check_parts(root: Path, parts: Mapping[str, Mapping[str, Classes]]) -> None:
    """Raise ValueError if no site has images in a part, and log those that have none."""
    for name, part in parts.items():
        without = [site for site, found in part.items() if not _images(found)]
        if len(without) == len(part):
            raise refusal("data.root", root, f"no site has images in {name}/; it should hold {LAYOUT}")
        if without:
            sites = f"{len(without)} of {len(part)} sites ({some(without)})"
            log.info("data.root: %s: there are no images in %s/ of %s", printable(root), name, sites)


def _warn(root: Path, tested: Mapping[str, Tested], classes: list[str]) -> None:
    """Warn of val/ in place of test/, and of classes of which no site has a test image."""
    replaced = {site: found.passed_over for site, found in tested.items() if found.passed_over}
    if replaced:
        log.warning(
            "data.root: %s: val/ is the test set of %d of %d sites (%s), for %s",
            printable(root),
            len(replaced),
            len(tested),
            some(replaced),
            next(iter(replaced.values())),
        )
    names = {name for found in tested.values() for name, folder in found.classes.items() if folder.images}
    folders.warn_of_untested(root, names, classes)


def _listed(part: Mapping[str, Classes], classes: list[str]) -> tuple[Listing, list[str]]:
    """List the images of a part, site by site and class by class, and the site of each."""
    listings = {site: folders.labelled(found, classes) for site, found in part.items()}
    sites = [site for site, listing in listings.items() for _ in listing]
    return [image for listing in listings.values() for image in listing], sites
