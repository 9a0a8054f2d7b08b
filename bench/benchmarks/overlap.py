"""Equal images where there should be none: on both sides of a split, or in several classes.

Images are equal if their files are, byte by byte; a copy that was saved again is not found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from bench.benchmarks.base import Dataset, ImageSet
from bench.benchmarks.splits import Split

#: Digest of an image -> the names of the images that have it.
Names = Mapping[str, Sequence[str]]


def warnings(dataset: Dataset, split: Split) -> tuple[str, ...]:
    """A sentence on test images that are trained on, and one on equal images of different classes."""
    train = dataset.train.take(split.train_rows)
    test = (dataset.test if split.test_source == "test" else dataset.train).take(split.test_rows)
    found = (_on_both_sides(train, test), _in_several_classes(dataset.classes, train, test))
    return tuple(sentence for sentence in found if sentence is not None)


def _on_both_sides(train: ImageSet, test: ImageSet) -> str | None:
    name_of = dict(zip(train.pixels.digests(), train.ids, strict=True))
    tests = zip(test.pixels.digests(), test.ids, strict=True)
    copies = [(name, name_of[digest]) for digest, name in tests if digest in name_of]
    if not copies:
        return None
    return (
        f"{len(copies)} of {len(test)} test images are trained on, too: their files are equal to those of "
        f"training images, such as '{copies[0][0]}' and '{copies[0][1]}'; accuracies are too high"
    )


def _in_several_classes(classes: Sequence[str], *several: ImageSet) -> str | None:
    labels: dict[str, set[int]] = defaultdict(set)
    copies: Counter[str] = Counter()
    for images in several:
        for digest, label in zip(images.pixels.digests(), images.labels.tolist(), strict=True):
            labels[digest].add(label)
            copies[digest] += 1
    mixed = [digest for digest in copies if len(labels[digest]) > 1]
    if not mixed:
        return None
    names = " and ".join(classes[label] for label in sorted(labels[mixed[0]])[:2])
    return (
        f"{sum(copies[digest] for digest in mixed)} of {copies.total()} images have a copy in another class: "
        f"their files are equal and their labels are not, such as {names}; remove the wrong ones"
    )
