"""Durations, quantities and ratios: read exactly, written so that the schema and the reader take them back."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.api.types import Duration, Quantity, Ratio
from retinue.api.units import format_bytes, format_duration, format_ratio, quantity, seconds


def pattern(annotated: object) -> str:
    """The pattern that the schema puts on a scalar type."""
    return next(m.regex for m in annotated.__metadata__ if hasattr(m, "regex"))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("2m0.5s", 120.5), ("0s", 0)],
)
def test_durations_are_read_as_seconds(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "5", "5 m", "m", "-5s", "5d", "1h30", "s5"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", 4),
        ("512Gi", 512 * 2**30),
        ("2Ti", 2**41),
        ("20k", 20_000),
        ("1.5Ki", 1536),
        ("1500m", 1),
        ("3P", 3 * 10**15),
    ],
)
def test_quantities_are_read_as_whole_units(text: str, expected: int) -> None:
    assert quantity(text) == expected


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "-1", "1gi", "0x10"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        quantity(text)


def test_a_number_is_a_quantity_too() -> None:
    assert quantity(8) == 8


@pytest.mark.parametrize(
    ("value", "text"), [(0.8, "800ms"), (8.25, "8.2s"), (30, "30s"), (480, "8m"), (3661, "1h1m1s"), (0, "0ms")]
)
def test_durations_are_written_short(value: float, text: str) -> None:
    assert format_duration(value) == text


@given(st.floats(0, 10**7))
def test_a_written_duration_is_one_that_the_schema_accepts_and_reads_back_within_its_precision(value: float) -> None:
    text = format_duration(value)
    assert re.match(pattern(Duration), text)
    precision = next(error for limit, error in ((0.01, 6e-6), (1, 6e-4), (60, 0.06), (1e9, 0.51)) if value < limit)
    assert seconds(text) == pytest.approx(value, abs=precision)


@given(st.floats(0, 2.0**58))
def test_a_written_size_is_one_that_the_schema_accepts_and_reads_back_within_a_tenth_of_its_unit(value: float) -> None:
    text = format_bytes(value)
    assert re.match(pattern(Quantity), text)
    assert quantity(text) == pytest.approx(value, rel=0.06, abs=1)


@pytest.mark.parametrize(("value", "text"), [(1.5 * 2**40, "1.5Ti"), (2**30, "1Gi"), (1023, "1023"), (0, "0")])
def test_sizes_are_written_in_binary_units(value: float, text: str) -> None:
    assert format_bytes(value) == text


@given(st.floats(0, 1))
def test_a_written_ratio_is_one_that_the_schema_accepts(value: float) -> None:
    assert re.match(pattern(Ratio), format_ratio(value))
