"""Equal images where there should be none: on both sides of a split, or in several classes.

Images are equal if their files are, byte by byte; a copy that was saved again is not found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from bench.benchmarks.base import Dataset, ImageSet
from bench.benchmarks.splits import Split

#: The images of a side: the name, the class number and the hash of each.
Rows = list[tuple[str, int, str]]


def warnings(dataset: Dataset, split: Split) -> tuple[str, ...]:
    """A sentence on test images that are trained on, and one on equal images of different classes."""
    train = _rows(dataset.train.take(split.train_rows))
    test = _rows((dataset.test if split.test_source == "test" else dataset.train).take(split.test_rows))
    found = (_on_both_sides(train, test), _in_several_classes(dataset.classes, [*train, *test]))
    return tuple(sentence for sentence in found if sentence is not None)


def _rows(images: ImageSet) -> Rows:
    return list(zip(images.ids, images.labels.tolist(), images.pixels.digests(), strict=True))


def _on_both_sides(train: Rows, test: Rows) -> str | None:
    name_of = {digest: name for name, _, digest in train}
    copies = [(name, name_of[digest]) for name, _, digest in test if digest in name_of]
    if not copies:
        return None
    return (
        f"{len(copies)} of {len(test)} test images are trained on, too: their files are equal to those of "
        f"training images, such as '{copies[0][0]}' and '{copies[0][1]}'; accuracies may be too high by "
        f"{100 * len(copies) / len(test):.1f} points"
    )


def _in_several_classes(classes: Sequence[str], rows: Rows) -> str | None:
    labels: dict[str, set[int]] = defaultdict(set)
    for _, label, digest in rows:
        labels[digest].add(label)
    mixed = [digest for _, _, digest in rows if len(labels[digest]) > 1]
    if not mixed:
        return None
    names = " and ".join(classes[label] for label in sorted(labels[mixed[0]])[:2])
    return (
        f"{len(mixed)} of {len(rows)} images have a copy in another class: their files are equal and their "
        f"labels are not, such as {names}; not both can be right"
    )
