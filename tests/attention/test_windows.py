"""The neighborhood window against NATTEN's rule written out per query, and the errors of a bad request."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from na_deploy.attention import NeighborhoodSpec, attended_positions, axis_mask, window_bounds
from na_deploy.attention.windows import whole_axes
from na_deploy.errors import UsageError


def natten_rule(i: int, length: int, kernel: int, dilation: int, stride: int, causal: bool) -> list[int]:
    """The positions that position ``i`` attends to, from NATTEN's documentation, one query at a time."""
    group, p = i % dilation, i // dilation
    members = [x for x in range(length) if x % dilation == group]
    size = len(members)
    first_of_stride_group = p - p % stride
    if causal:
        leader = min(first_of_stride_group + stride - 1, size - 1)
        return members[max(leader - kernel + 1, 0) : p + 1]
    leader = min(first_of_stride_group + stride // 2, size - 1)
    # Centred on the leader (an even window has one more on the left), shifted to stay inside: it never shrinks.
    start = leader - kernel // 2
    start = max(0, min(start, size - kernel))
    return members[start : start + kernel]


def cases() -> list[tuple[int, int, int, int, bool]]:
    found = []
    for length, kernel, dilation in itertools.product(range(1, 15), range(1, 8), range(1, 5)):
        if kernel * dilation <= length:
            for stride in range(1, kernel + 1):
                found += [(length, kernel, dilation, stride, causal) for causal in (False, True)]
    return found


def test_every_window_follows_nattens_rule():
    assert len(cases()) > 900
    for length, *attributes in cases():
        mask = axis_mask(length, *attributes)
        for i in range(length):
            expected = natten_rule(i, length, *attributes)
            assert attended_positions(i, length, *attributes).tolist() == expected, (length, attributes, i)
            assert np.flatnonzero(mask[i]).tolist() == expected, (length, attributes, i)


def test_a_window_that_is_not_causal_always_holds_kernel_size_keys():
    for length, kernel, dilation, stride, causal in cases():
        start, end = window_bounds(length, kernel, dilation, stride, causal)
        if causal:
            assert (end - start <= kernel).all()
            assert (end - start >= 1).all()
        else:
            assert (end - start == kernel).all()


def test_one_number_stands_for_every_axis():
    spec = NeighborhoodSpec.create(3, 5, dilation=(1, 2, 3), stride=2, is_causal=(True, False, False))
    assert spec == NeighborhoodSpec((5, 5, 5), (1, 2, 3), (2, 2, 2), (True, False, False))
    assert spec.rank == 3
    assert NeighborhoodSpec.create(2, (3, 5), [2], [1], [True]) == NeighborhoodSpec.create(2, (3, 5), 2, 1, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((4, 3), "1 to 3 spatial axes, got 4"),
        ((2, (3, 3, 3)), r"kernel_size has 3 values \(3, 3, 3\) for 2 spatial axes"),
        ((2, 0), "kernel_size must be at least 1"),
        ((2, 3, 0), "dilation must be at least 1"),
        ((2, 3, 1, 4), "stride must lie between 1 and kernel_size=3, got 4 on axis 0"),
        ((1, 3, 1, 0), "stride must lie between 1 and kernel_size=3, got 0"),
    ],
)
def test_attributes_out_of_range_are_refused(arguments: tuple[object, ...], sentence: str):
    with pytest.raises(UsageError, match=sentence):
        NeighborhoodSpec.create(*arguments)  # type: ignore[arg-type]


def test_a_window_longer_than_its_axis_is_refused():
    spec = NeighborhoodSpec.create(2, 7, dilation=(1, 2))
    spec.check_lengths((7, 14))
    with pytest.raises(UsageError, match=r"7\*2 = 14 exceeds the length 13 of spatial axis 1"):
        spec.check_lengths((7, 13))
    with pytest.raises(UsageError, match="expected 2 spatial axes"):
        spec.check_lengths((14,))


def test_a_window_of_minus_one_is_the_whole_axis():
    assert whole_axes((-1, 5), (30, 48)) == (30, 5)
    assert whole_axes((-1, -1, 3), (30, 49, 9), (2, 4, 1)) == (15, 12, 3)
    assert whole_axes((-1, -1), (30, 48), 3) == (10, 16)
    with pytest.raises(UsageError, match="1 window sizes for 2 axes"):
        whole_axes((-1,), (30, 48))
