"""The inputs of cells on this machine: folders, data, splits, decoded images, weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from bench.benchmarks import BENCHMARKS, overlap
from bench.benchmarks.base import Benchmark, Dataset, data_roots
from bench.benchmarks.loading import Arrays, load_arrays, stored_shapes
from bench.benchmarks.splits import ORDERS, STREAMS, Split, make_split
from bench.cell import backbone
from bench.cell.backbone import Backbone
from bench.options import read_options
from bench.spec import Cell, Choice, Component, OptionsKey, Settings
from bench.storage import is_writable_folder, nearest_existing
from methods.hyper import fields_of, make_hyper

#: Folder of a data root.
FEATURES = "features"


@dataclass(frozen=True)
class Paths:
    """The folders of this machine; not part of a cell's identity.

    Attributes:
        roots: the data roots, in the order in which they are searched.
        weights: file of the backbone's weights, "random", or None to search the data roots.
        results: the folder of the records.
        features: where the frozen backbone's features are kept; None: they are not.
    """

    roots: tuple[Path, ...]
    weights: str | None
    results: Path
    features: Path | None = None


def paths_from(settings: Settings) -> Paths:
    """The folders that a command works with."""
    roots = data_roots(settings.data_root)
    features = writable(roots) / FEATURES if settings.feature_cache else None
    return Paths(roots, settings.weights, settings.results, features)


def writable(roots: Sequence[Path]) -> Path:
    """The first root that this user can write to or create; the last one if there is none."""
    usable = (root for root in roots if is_writable_folder(nearest_existing(root)))
    return next(usable, roots[-1])


class Inputs:
    """Opens data and weights below `paths`, each of them once.

    Not thread-safe, and never sent to another process: each process makes one for its own `paths`.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        # These caches belong to the object, not to the class.
        self._benchmark = cache(_open_benchmark)
        self._dataset = cache(self._open_dataset)
        self._backbone = cache(self._find_backbone)
        self._notes = cache(self._read_notes)
        self._images = lru_cache(maxsize=1)(self._decode)

    def benchmark(self, cell: Cell) -> Benchmark[Any]:
        """The cell's benchmark with its options set; its data are not searched for."""
        return self.benchmark_of(cell.benchmark)

    def benchmark_of(self, choice: Choice | Component) -> Benchmark[Any]:
        """The benchmark as the command or a cell names it.

        Raises:
            UsageError: for an unknown name, an unknown option or an illegal value.
        """
        return self._benchmark(choice.name, choice.frozen_options)

    def dataset(self, cell: Cell) -> Dataset:
        """The labelled images of the cell's benchmark, not decoded.

        Raises:
            MissingError: if they are not on this machine.
        """
        return self._dataset(cell.benchmark.name, cell.benchmark.frozen_options)

    def data_sha256(self, cell: Cell) -> str:
        """Hash of the images that the cell's benchmark has; on validation, of the training images only."""
        dataset = self.dataset(cell)
        return dataset.sha256 if cell.eval_on == "test" else dataset.train_sha256

    def notes(self, cell: Cell) -> tuple[str, ...]:
        """Sentences on the cell's images: files that are left out, and equal images."""
        protocol = cell.protocol.model_copy(update={"class_order": "identity"})
        unordered = {
            "seed": 0,
            "class_order": None,
            "domains": None,
            "task_sizes": None,
            "protocol": protocol,
        }
        return self._notes(cell.without_method().model_copy(update=unordered))

    def split(self, cell: Cell) -> Split:
        """Which images the cell trains on and is tested on, by its order of classes or domains if that is
        known already.
        """
        dataset = self.dataset(cell)
        stream = STREAMS[cell.scenario](dataset, self._order(cell), cell.tasks)
        scale = self.benchmark(cell).scales[cell.scale]
        return make_split(dataset, stream, scale=scale, eval_on=cell.eval_on)

    def what_comes(self, cell: Cell) -> tuple[str, ...]:
        """The names of what the experiences of the cell's stream divide: classes, or domains."""
        dataset = self.dataset(cell)
        return dataset.domains if cell.scenario == "domain-incremental" else dataset.classes

    def _order(self, cell: Cell) -> tuple[int, ...]:
        """The order of what comes, by its numbers in the data set."""
        names = self.what_comes(cell)
        if cell.scenario == "domain-incremental" and cell.domains is not None:
            return tuple(map(list(map(as_text, names)).index, cell.domains))
        if cell.scenario == "class-incremental" and cell.class_order is not None:
            return cell.class_order
        return ORDERS[cell.protocol.class_order](len(names), cell.seed)

    def class_names(self, cell: Cell) -> list[str]:
        """The names of the classes that the cell learns, in its class order."""
        names, order = self.dataset(cell).classes, cell.class_order or self.split(cell).class_order
        return [as_text(names[number]) for number in order]

    def test_crop(self, cell: Cell) -> float:
        """Share of a stored square's side that a test image keeps."""
        return cell.protocol.test_crop or self.benchmark(cell).eval_crop

    def images(self, cell: Cell) -> Arrays:
        """The cell's images, decoded. The last result is cached, because consecutive cells share images.

        Raises:
            UsageError: naming every image that cannot be decoded.
        """
        return self._images(cell.without_method())

    def backbone(self, cell: Cell) -> Backbone:
        """The cell's backbone, with the path and the hash of its weights.

        Raises:
            MissingError: if the weights are not on this machine.
        """
        return self._backbone(cell.protocol.backbone)

    def build_backbone(self, cell: Cell) -> Any:
        """The timm ViT of the cell's protocol, without a classifier: what is trained, and the plain ViT."""
        return backbone.build(self.backbone(cell), cell.protocol.image_size, cell.protocol.gelu)

    def _open_dataset(self, name: str, options: OptionsKey) -> Dataset:
        return self._benchmark(name, options).open(self.paths.roots)

    def _read_notes(self, cell: Cell) -> tuple[str, ...]:
        dataset = self.dataset(cell)
        return (*dataset.notes, *overlap.warnings(dataset, self.split(cell)))

    def _find_backbone(self, tag: str) -> Backbone:
        return backbone.resolve(tag, self.paths.weights, self.paths.roots)

    def _decode(self, cell: Cell) -> Arrays:
        size, shapes = cell.protocol.image_size, stored_shapes(cell.protocol)
        return load_arrays(self.dataset(cell), self.split(cell), size, self.test_crop(cell), *shapes)


def _open_benchmark(name: str, options: OptionsKey) -> Benchmark[Any]:
    benchmark_class = BENCHMARKS[name].load()
    values = read_options(dict(options), fields_of(benchmark_class.Options))
    benchmark: Benchmark[Any] = benchmark_class(make_hyper(name, benchmark_class.Options, values))
    return benchmark


def as_text(name: object) -> str:
    """A name as text that can be stored: bytes of a file name that are no UTF-8 are written as escapes."""
    return str(name).encode(errors="backslashreplace").decode()
