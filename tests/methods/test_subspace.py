"""The memory of input spaces: moments, the two energies, growth, the switch to the complement, designs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.subspace import (
    ROW_NORM,
    DualGpm,
    Moment,
    append_basis,
    captured,
    complement,
    design,
    energy_matrix,
    new_directions,
    principal,
    remember,
)

WIDTH = 24
seeds = st.integers(0, 2**32 - 1)
energies = st.sampled_from(["sigma2", "sigma4"])
fractions = st.floats(0.05, 0.999)
few = settings(max_examples=40, deadline=None)


def diagonal(*values: float, width: int = 12, first: int = 0) -> Tensor:
    """A moment (width, width) with these eigenvalues along the axes from `first` on, nothing elsewhere."""
    c = torch.zeros(width, width, dtype=torch.float64)
    for i, value in enumerate(values, start=first):
        c[i, i] = value
    return c


def axes(*which: int, width: int = 12) -> Tensor:
    """The unit vectors (width, k) along these axes."""
    return torch.eye(width, dtype=torch.float64)[:, list(which)]


def inputs_of(rng: torch.Generator, width: int = WIDTH, rows: int = 200) -> Tensor:
    """Inputs (rows, width), float64, not centred, of a random space with a decaying spectrum."""
    space = torch.linalg.qr(torch.randn(width, width, generator=rng, dtype=torch.float64)).Q
    decay = 0.8 + 0.15 * torch.rand(1, generator=rng, dtype=torch.float64)
    scales = decay ** torch.arange(width, dtype=torch.float64)
    return (torch.randn(rows, width, generator=rng, dtype=torch.float64) + 0.3) * scales @ space.T


def moment_of(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


def some_basis(rng: torch.Generator, columns: int, width: int = WIDTH) -> Tensor:
    return torch.linalg.qr(torch.randn(width, columns, generator=rng, dtype=torch.float64)).Q


def projector(basis: Tensor) -> Tensor:
    return basis @ basis.T


def protected(memory: DualGpm) -> Tensor:
    """The projector (D, D) on the space that is protected, whichever basis is kept."""
    onto = projector(memory.basis)
    return torch.eye(len(onto), dtype=onto.dtype) - onto if memory.retained else onto


def assert_close(got: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def assert_orthonormal(basis: Tensor, atol: float = 1e-10) -> None:
    assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=basis.dtype), atol)


# ---- moments ---------------------------------------------------------------------------------


def test_streamed_batches_give_the_moment_of_all_tokens_about_zero():
    """Every token counts once, however the batches are cut, and the mean is not taken off."""
    tokens = torch.randn(57, 5, 8, generator=torch.Generator().manual_seed(0)) + 3
    moment = Moment.zeros(8)
    for batch in tokens.split([1, 40, 16]):
        moment = moment.plus(batch)
    rows = tokens.double().flatten(0, 1)
    assert moment.rows == 57 * 5
    direct = sum(torch.outer(u, u) for u in rows) / len(rows)
    torch.testing.assert_close(moment.mean, direct, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(24, 8), (2, 12, 8), (2, 3, 4, 8)])
def test_leading_dimensions_are_all_rows(shape):
    tokens = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    moment, flat = Moment.zeros(8).plus(tokens.view(shape)), Moment.zeros(8).plus(tokens)
    assert moment.rows == 24
    assert torch.equal(moment.total, flat.total)


def test_sums_over_batches_are_in_double_precision():
    """A thousand small inputs after a large one: in single precision they would be lost."""
    moment = Moment.zeros(1).plus(torch.full((1, 1), 1e4))
    for _ in range(1000):
        moment = moment.plus(torch.ones(1, 1))
    assert moment.total.item() == 1e8 + 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_changes_no_moment(dtype):
    tokens = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Moment.zeros(8).plus(tokens)
    assert torch.equal(inside.total, Moment.zeros(8).plus(tokens.float()).total)
    torch.testing.assert_close(inside.mean, moment_of(tokens.double()), rtol=1e-4, atol=1e-6)


def test_no_inputs_have_a_moment_of_zero():
    assert torch.equal(Moment.zeros(3).mean, torch.zeros(3, 3, dtype=torch.float64))


def test_a_moment_keeps_no_gradient():
    assert not Moment.zeros(3).plus(torch.ones(2, 3, requires_grad=True)).total.requires_grad


# ---- energies --------------------------------------------------------------------------------

#: In sums 0.516, 0.774, 0.903, 0.968, 1 of the whole; their squares 0.751, 0.938, 0.985, 0.997, 1.
SPECTRUM = (16.0, 8.0, 4.0, 2.0, 1.0)
RANKS = [
    ("sigma2", 0.45, 1),
    ("sigma2", 0.7, 2),
    ("sigma2", 0.93, 4),
    ("sigma2", 0.98, 5),
    ("sigma4", 0.7, 1),
    ("sigma4", 0.9, 2),
    ("sigma4", 0.95, 3),
    ("sigma4", 0.99, 4),
]


@pytest.mark.parametrize(("energy", "threshold", "rank"), RANKS)
def test_the_rank_that_an_energy_needs(energy, threshold, rank):
    m = energy_matrix(diagonal(*SPECTRUM), energy)
    grown = new_directions(torch.zeros(12, 0), m, threshold)
    assert_close(projector(grown), projector(axes(*range(rank))))


@pytest.mark.parametrize(("energy", "threshold", "rank"), RANKS)
def test_the_first_experience_keeps_one_direction_fewer_and_at_least_one(energy, threshold, rank):
    m = energy_matrix(diagonal(*SPECTRUM), energy)
    memory = remember(DualGpm.empty(12), m, threshold)
    assert not memory.retained
    assert_close(projector(memory.basis), projector(axes(*range(max(rank - 1, 1)))))


def test_later_experiences_reach_the_threshold_of_all_their_energy():
    """Of C's energy, not of what is left beside the basis: with e0 held, 0.9 needs e1 and e2."""
    m = energy_matrix(diagonal(*SPECTRUM), "sigma2")
    memory = remember(DualGpm(axes(0)), m, 0.9)
    assert_close(projector(memory.basis), projector(axes(0, 1, 2)))
    assert memory.held(m) == pytest.approx(28 / 31)


def test_an_experience_that_is_held_already_adds_nothing():
    memory = DualGpm(axes(0, 1, 2))
    after = remember(memory, energy_matrix(diagonal(*SPECTRUM), "sigma2"), 0.9)
    assert torch.equal(after.basis, memory.basis)


def test_energies_along_no_axis_are_told_apart_by_their_matrices():
    """C C and not the squares of C's entries."""
    rng = torch.Generator().manual_seed(0)
    turn = some_basis(rng, 5, 5)
    c = turn @ diagonal(*SPECTRUM, width=5) @ turn.T
    for energy, power in (("sigma2", 1), ("sigma4", 2)):
        values, directions = principal(torch.eye(5, dtype=torch.float64), energy_matrix(c, energy))
        assert_close(values, torch.tensor(SPECTRUM, dtype=torch.float64) ** power)
        assert_close((directions[:, 0] @ turn[:, 0]).abs(), torch.tensor(1.0, dtype=torch.float64))


def test_the_share_a_basis_holds():
    c = diagonal(*SPECTRUM)
    assert captured(axes(1, 2), energy_matrix(c, "sigma2")) == pytest.approx(12 / 31)
    assert captured(axes(1, 2), energy_matrix(c, "sigma4")) == pytest.approx(80 / 341)
    assert captured(axes(7), energy_matrix(c, "sigma2")) == 0
    assert captured(axes(7), torch.zeros(12, 12, dtype=torch.float64)) == 1


@pytest.mark.parametrize(
    ("bounds", "columns"),
    [
        ({}, 4),
        ({"strict": True}, 3),
        ({"at_least": 2}, 4),
        ({"at_least": 6}, 6),
        ({"at_most": 2}, 2),
        ({"at_most": 9}, 4),
        ({"at_most": 0}, 0),
        ({"at_least": 6, "at_most": 5}, 5),
        ({"at_least": 99}, 12),
    ],
)
def test_bounds_on_what_is_added(bounds, columns):
    m = energy_matrix(diagonal(*SPECTRUM), "sigma2")
    grown = new_directions(torch.zeros(12, 0), m, 0.93, **bounds)
    assert grown.shape == (12, columns)
    strong = min(columns, len(SPECTRUM))
    assert_close(grown[:, :strong].abs(), axes(*range(strong)))


def test_the_room_that_is_left_comes_before_every_bound():
    m = energy_matrix(diagonal(*SPECTRUM), "sigma2")
    assert new_directions(axes(*range(10)), m, 0.9, at_least=5, at_most=7).shape == (12, 2)
    assert new_directions(axes(*range(12)), m, 0.9, at_least=5).shape == (12, 0)


# ---- bases -----------------------------------------------------------------------------------


@few
@given(seeds, st.integers(0, WIDTH), fractions, energies)
def test_growth_is_new_orthonormal_minimal_and_enough(seed, columns, threshold, energy):
    rng = torch.Generator().manual_seed(seed)
    basis, m = some_basis(rng, columns), energy_matrix(moment_of(inputs_of(rng)), energy)
    more = new_directions(basis, m, threshold)
    assert_orthonormal(more)
    assert_close(basis.T @ more, torch.zeros(columns, more.shape[1], dtype=torch.float64))
    assert captured(append_basis(basis, more), m) >= threshold - 1e-12
    if more.shape[1]:
        assert captured(append_basis(basis, more[:, :-1]), m) < threshold


@few
@given(seeds, st.integers(0, WIDTH), st.sampled_from([torch.float32, torch.float64]), st.floats(0, 0.1))
def test_joining_keeps_the_old_columns_and_makes_the_new_ones_orthonormal(seed, columns, dtype, noise):
    """Also where the new columns are off, and where the old ones come back from single precision."""
    rng = torch.Generator().manual_seed(seed)
    full = some_basis(rng, WIDTH)
    old, new = full[:, :columns].to(dtype), full[:, columns : columns + 5]
    off = new + noise * torch.randn(new.shape, generator=rng, dtype=torch.float64)
    both = append_basis(old, off)
    assert both.shape == (WIDTH, old.shape[1] + new.shape[1])
    assert torch.equal(both[:, :columns], old.double())
    assert_orthonormal(both[:, columns:])
    assert_close(old.double().T @ both[:, columns:], torch.zeros(columns, new.shape[1], dtype=torch.float64))
    if dtype == torch.float64:
        assert_orthonormal(both)


@pytest.mark.parametrize("columns", [0, 1, 5, 12])
def test_a_complement_is_the_orthonormal_rest(columns):
    basis = some_basis(torch.Generator().manual_seed(0), columns, 12)
    rest = complement(basis)
    assert rest.shape == (12, 12 - columns)
    assert_orthonormal(rest)
    assert_close(projector(basis) + projector(rest), torch.eye(12, dtype=torch.float64))


# ---- DualGPM ---------------------------------------------------------------------------------


# The published code decomposes what is left of a matrix A (D, n) and counts in loops. A is C for the energy
# "sigma4", and the inputs themselves, one a column, for "sigma2".


def official(memory: DualGpm, a: Tensor, threshold: float) -> DualGpm:
    if memory.retained:
        return DualGpm(official_rest(memory.basis, a, threshold), retained=True)
    f = memory.basis
    f = official_growth(f, a, threshold) if f.shape[1] else official_start(a, threshold)
    if f.shape[1] > len(f) / 2:
        return DualGpm(torch.linalg.svd(f)[0][:, f.shape[1] :], retained=True)
    return DualGpm(f)


def official_start(a: Tensor, threshold: float) -> Tensor:
    u, s, _ = torch.linalg.svd(a, full_matrices=False)
    r = int(((s**2 / (s**2).sum()).cumsum(0) < threshold).sum())
    assert r < len(a) / 2, "the published code mislabels the space here; take another example"
    return u[:, : max(r, 1)]


def official_growth(f: Tensor, a: Tensor, threshold: float) -> Tensor:
    total = (torch.linalg.svdvals(a) ** 2).sum()
    u, s, _ = torch.linalg.svd(a - f @ f.T @ a, full_matrices=False)
    reached, r = float((total - (s**2).sum()) / total), 0
    for share in (s**2 / total).tolist():
        if reached >= threshold:
            break
        reached, r = reached + share, r + 1
    return torch.cat([f, u[:, :r]], 1)[:, : len(f)]


def official_rest(f: Tensor, a: Tensor, threshold: float) -> Tensor:
    total = (torch.linalg.svdvals(a) ** 2).sum()
    u, s, _ = torch.linalg.svd(f @ f.T @ a, full_matrices=False)
    rest, r = float((s**2).sum() / total), 0
    for share in (s**2 / total).tolist():
        if rest < 1 - threshold:
            break
        rest, r = rest - share, r + 1
    left = f - u[:, :r] @ u[:, :r].T @ f
    return torch.linalg.svd(left, full_matrices=False)[0][:, : f.shape[1] - r]


Pairs = list[tuple[DualGpm, DualGpm]]


def follow(experiences: Sequence[Tensor], energy: str, thresholds: Sequence[float]) -> Pairs:
    """This project's memory and the published code's, after each experience."""
    mine = theirs = DualGpm.empty(WIDTH)
    both = []
    for inputs, threshold in zip(experiences, thresholds, strict=True):
        c = moment_of(inputs)
        mine = remember(mine, energy_matrix(c, energy), threshold)
        theirs = official(theirs, c if energy == "sigma4" else inputs.T, threshold)
        both.append((mine, theirs))
    return both


@few
@given(seeds, energies)
def test_the_memory_is_that_of_the_published_code(seed, energy):
    rng = torch.Generator().manual_seed(seed)
    short = 0.5 if energy == "sigma2" else 0.3
    thresholds = [1 - short * 0.65**t for t in range(8)]
    pairs = follow([inputs_of(rng) for _ in thresholds], energy, thresholds)
    for mine, theirs in pairs:
        assert mine.retained == theirs.retained
        assert mine.basis.shape == theirs.basis.shape
        assert_close(projector(mine.basis), projector(theirs.basis), 1e-7)
    assert [mine.retained for mine, _ in pairs][:: len(pairs) - 1] == [False, True], "both modes are followed"


def test_the_complement_is_kept_as_soon_as_more_than_half_is_used():
    """Orthogonal experiences of 12 dimensions: 2, 6 (half, not more), 7 (the switch), 9 are used."""
    memory, seen = DualGpm.empty(12), []
    for values, first in (((4, 2, 1), 0), ((4, 3, 2, 1), 3), ((1,), 7), ((2, 1), 8)):
        memory = remember(memory, diagonal(*values, first=first), 0.999)
        seen.append((memory.used, memory.retained, memory.basis.shape[1]))
    assert seen == [(2, False, 2), (6, False, 6), (7, True, 5), (9, True, 3)]
    assert_close(protected(memory), projector(axes(0, 1, 3, 4, 5, 6, 7, 8, 9)))


def test_a_first_experience_of_more_than_half_the_width_is_kept_by_its_complement():
    """The published code stores the used space as if it were the complement, and stops with an assertion."""
    memory = remember(DualGpm.empty(12), diagonal(9, 8, 7, 6, 5, 4, 3, 2, 1, first=0), 0.999)
    assert (memory.used, memory.retained, memory.basis.shape[1]) == (8, True, 4)
    assert_close(protected(memory), projector(axes(*range(8))))


def test_the_switch_changes_no_projector():
    rng = torch.Generator().manual_seed(0)
    memory = DualGpm(some_basis(rng, 10))
    m = energy_matrix(moment_of(inputs_of(rng)), "sigma4")
    grown = append_basis(memory.basis, new_directions(memory.basis, m, 0.999))
    after = remember(memory, m, 0.999)
    assert after.retained
    assert after.used == grown.shape[1] > WIDTH / 2
    assert_close(torch.eye(WIDTH, dtype=torch.float64) - projector(grown), projector(after.basis))


@few
@given(seeds, st.integers(0, WIDTH))
def test_both_ways_to_keep_a_space_say_the_same_of_it(seed, columns):
    rng = torch.Generator().manual_seed(seed)
    basis, m = some_basis(rng, columns), moment_of(inputs_of(rng))
    removed, retained = DualGpm(basis), DualGpm(complement(basis), retained=True)
    assert removed.used == retained.used == columns
    assert removed.held(m) == pytest.approx(retained.held(m), abs=1e-12)
    assert removed.held(m) == pytest.approx(captured(basis, m), abs=1e-12)
    assert_close(projector(removed.allowed), projector(retained.allowed))
    assert_close(projector(removed.allowed), torch.eye(WIDTH, dtype=torch.float64) - projector(basis))


@few
@given(seeds, st.lists(st.floats(0.3, 0.99999), min_size=2, max_size=8), energies)
def test_what_is_protected_stays_protected_and_reaches_every_threshold(seed, thresholds, energy):
    rng, memory = torch.Generator().manual_seed(seed), DualGpm.empty(WIDTH)
    for t, threshold in enumerate(thresholds):
        m = energy_matrix(moment_of(inputs_of(rng)), energy)
        before, memory = memory, remember(memory, m, threshold)
        assert_orthonormal(memory.basis)
        assert memory.used >= before.used
        assert_close(protected(memory) @ protected(before), protected(before))
        assert t == 0 or memory.held(m) >= threshold - 1e-10


@few
@given(seeds, st.integers(1, WIDTH // 2), fractions, energies)
def test_a_retained_basis_loses_just_enough(seed, columns, threshold, energy):
    rng = torch.Generator().manual_seed(seed)
    basis, m = some_basis(rng, columns), energy_matrix(moment_of(inputs_of(rng)), energy)
    rest = remember(DualGpm(basis, retained=True), m, threshold).basis
    assert_orthonormal(rest)
    assert captured(rest, m) < 1 - threshold
    taken = columns - rest.shape[1]
    energies, _ = principal(basis, m)
    assert taken == 0 or energies[taken - 1 :].sum() >= (1 - threshold) * m.trace() - 1e-12


def test_a_memory_that_is_full_stays_full():
    full = DualGpm(torch.zeros(12, 0, dtype=torch.float64), retained=True)
    after = remember(full, diagonal(*SPECTRUM), 0.9)
    assert after.used == 12
    assert after.held(diagonal(*SPECTRUM)) == 1


# ---- designs ---------------------------------------------------------------------------------

memories = {
    "nothing": lambda rng: DualGpm.empty(WIDTH),
    "removed": lambda rng: DualGpm(some_basis(rng, 9)),
    "retained": lambda rng: DualGpm(some_basis(rng, 9), retained=True),
}


@pytest.mark.parametrize("kind", list(memories))
@pytest.mark.parametrize("seed", range(5))
def test_a_design_is_the_leading_part_of_the_inputs_outside_the_protected_space(kind, seed):
    """Against a decomposition of (I - P) C: D D^T = I / 3, D F = 0 (removed) or D (I - F F^T) = 0."""
    rng, rank = torch.Generator().manual_seed(seed), 5
    memory, c = memories[kind](rng), moment_of(inputs_of(rng))
    down = design(memory, c, rank)
    assert_close(down @ down.T, torch.eye(rank, dtype=torch.float64) / 3)
    if memory.retained:
        assert_close(down - down @ projector(memory.basis), torch.zeros_like(down))
    else:
        assert_close(down @ memory.basis, torch.zeros(rank, memory.used, dtype=torch.float64))
    left = torch.linalg.svd(c - protected(memory) @ c)[0][:, :rank]
    assert_close((down @ left).abs(), torch.eye(rank, dtype=torch.float64) * ROW_NORM, 1e-6)


def test_a_design_beyond_what_the_inputs_span_still_avoids_the_protected_space():
    rng = torch.Generator().manual_seed(0)
    memory, c = DualGpm(some_basis(rng, 9)), moment_of(inputs_of(rng, rows=3))
    down = design(memory, c, 6)
    assert_close(down @ memory.basis, torch.zeros(6, 9, dtype=torch.float64))
    assert_close(down @ down.T, torch.eye(6, dtype=torch.float64) / 3)


@pytest.mark.parametrize(
    ("memory", "left"),
    [
        (DualGpm(axes(*range(10))), 2),
        (DualGpm(axes(*range(12))), 0),
        (DualGpm(axes(10, 11), retained=True), 2),
        (DualGpm(axes(), retained=True), 0),
    ],
)
def test_rows_of_a_design_that_nothing_is_left_for_are_zero(memory, left):
    down = design(memory, torch.eye(12, dtype=torch.float64), 5)
    assert down.shape == (5, 12)
    assert_close(down[:left] @ down[:left].T, torch.eye(left, dtype=torch.float64) / 3)
    assert torch.equal(down[left:], torch.zeros(5 - left, 12, dtype=torch.float64))
    assert_close(down[:, :10], torch.zeros(5, 10, dtype=torch.float64))
