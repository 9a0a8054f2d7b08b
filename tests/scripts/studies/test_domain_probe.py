"""The study of single domains: each model has learnt one domain, and is tested on the images of each."""

from __future__ import annotations

import numpy as np
import pytest

from methods.errors import UsageError
from scripts.common import plan_cells
from scripts.studies import domain_probe as probe

SMALL = ["--methods", "ncm", "--scale", "smoke", "--seeds", "0"]


@pytest.fixture
def small(tmp_path):
    def plan(*options):
        (cell,), inputs = plan_cells([*SMALL, "--data-root", str(tmp_path), *options])
        return cell, inputs

    return plan


def test_a_model_has_learnt_its_domain_alone(small):
    """It classifies the images of that domain better than models of other domains do on average."""
    cell, inputs = small("--benchmarks", "digits-domains")
    rows = [list(map(float, row[2:])) for row in probe.study(cell, inputs)]
    matrix = np.array(rows)
    assert matrix.shape == (5, 5)
    assert (matrix.diagonal() > np.delete(matrix, range(0, 25, 6)).mean()).all()
    assert [row[:2] for row in probe.study(cell, inputs)][1] == ("ncm", "thick")


def test_other_streams_are_refused(small):
    cell, inputs = small("--benchmarks", "digits")
    with pytest.raises(UsageError, match="digits is not a stream of domains"):
        list(probe.study(cell, inputs))
