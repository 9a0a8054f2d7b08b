from __future__ import annotations

import numpy as np
import pytest

from bench.benchmarks import digits_domains, overlap
from bench.benchmarks.base import Dataset, ImageSet, NoOptions
from bench.benchmarks.digits import Digits
from bench.benchmarks.digits_domains import DOMAINS, DigitsDomains, checkered, inverted, rotated, thick
from bench.benchmarks.splits import strata_of
from methods.errors import UsageError
from tests.bench.benchmarks.conftest import domain_split


@pytest.fixture(scope="module")
def drawn() -> Dataset:
    return DigitsDomains(NoOptions()).open([])


def digits_of(images: ImageSet) -> list[str]:
    return [name.partition("/")[2] for name in images.ids]


def one_pixel() -> np.ndarray:
    """One digit of 3x3 pixels with a stroke of 200 in the corner at the upper left."""
    digit = np.zeros((1, 3, 3, 1), np.uint8)
    digit[0, 0, 0] = 200
    return digit


def test_no_digit_is_on_both_sides_of_any_domain(drawn: Dataset) -> None:
    assert not set(digits_of(drawn.train)) & set(digits_of(drawn.test))


def test_no_digit_is_on_both_sides_on_validation(drawn: Dataset) -> None:
    scale = DigitsDomains.scales["full"]
    split = domain_split(drawn, scale=scale, eval_on="validation")
    kept, held = (digits_of(drawn.train.take(rows)) for rows in (split.train_rows, split.test_rows))
    assert not set(kept) & set(held)
    assert len(kept) + len(held) == 1438


def test_a_training_digit_is_in_one_domain_and_a_test_digit_in_all(drawn: Dataset) -> None:
    assert len(set(digits_of(drawn.train))) == len(drawn.train) == 1438
    assert len(set(digits_of(drawn.test))) * 5 == len(drawn.test) == 1795
    assert max(np.bincount(drawn.train.domains)) - min(np.bincount(drawn.train.domains)) <= 2
    assert set(np.unique(strata_of(drawn.train), return_counts=True)[1]) == {27, 28, 29, 30}


def test_a_digit_has_its_label_in_every_domain(drawn: Dataset) -> None:
    digits = Digits(NoOptions()).open([])
    label_of = {
        name: label
        for images in (digits.train, digits.test)
        for name, label in zip(images.ids, images.labels.tolist(), strict=True)
    }
    for images in (drawn.train, drawn.test):
        assert images.labels.tolist() == [label_of[digit] for digit in digits_of(images)]


def test_domains_differ_in_the_drawing_only(drawn: Dataset) -> None:
    digits = Digits(NoOptions()).open([]).test.decode(8)
    for number, draw in enumerate(DOMAINS.values()):
        assert np.array_equal(drawn.test.decode(8)[drawn.test.domains == number], draw(digits))


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (thick, [[200, 200, 0], [200, 200, 0], [0, 0, 0]]),
        (inverted, [[55, 255, 255], [255, 255, 255], [255, 255, 255]]),
        (rotated, [[0, 0, 0], [0, 0, 0], [200, 0, 0]]),
        (checkered, [[200, 128, 0], [128, 0, 128], [0, 128, 0]]),
    ],
)
def test_drawings_of_one_pixel(draw: object, expected: list[list[int]]) -> None:
    assert draw(one_pixel())[0, ..., 0].tolist() == expected  # type: ignore[operator]


def test_no_two_images_are_equal(drawn: Dataset) -> None:
    split = domain_split(drawn, scale=DigitsDomains.scales["full"], eval_on="test")
    assert overlap.warnings(drawn, split) == ()


def test_other_drawings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits_domains, "SQUARES", 127)
    with pytest.raises(UsageError, match="the drawn digits have sha256"):
        DigitsDomains(NoOptions()).open([])
