"""Reads the API's string scalars: durations to seconds, quantities to bytes, token counts and ratios to numbers."""

import re
from decimal import Decimal
from functools import lru_cache

_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"^([0-9]+(?:\.[0-9]+)?)(Ki|Mi|Gi|Ti|Pi|Ei|m|k|M|G|T|P|E)?$")
_FACTORS = {
    None: Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}


def seconds(duration: str) -> float:
    """Seconds in a Go-style duration such as ``1h30m``; raises ValueError for anything else."""
    parts = _DURATION_PART.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"{duration!r} is not a duration such as 500ms, 30s, 5m or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


# Every reconcile reads those of all nodes and pods, which are few different texts.
@lru_cache(maxsize=4096)
def quantity(text: str | int) -> int:
    """Whole units (bytes, devices, tokens) in a Kubernetes quantity, rounded down; raises ValueError."""
    match = _QUANTITY.match(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 4, 512Gi or 20k")
    return int(Decimal(match.group(1)) * _FACTORS[match.group(2)])


def format_duration(value: float) -> str:
    """A short Go-style duration: 0.0012 -> ``1.2ms``, 0.8 -> ``800ms``, 8.25 -> ``8.2s``, 480 -> ``8m``."""
    if value < 0.01:
        # Fast decoders give a token every few milliseconds: a whole one would hide most of what changes.
        return f"{value * 1000:.2f}".rstrip("0").rstrip(".") + "ms"
    if value < 1:
        return f"{round(value * 1000)}ms"
    if value < 60:
        return f"{value:.1f}".rstrip("0").rstrip(".") + "s"
    whole = round(value)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (secs, "s")) if n)


def format_bytes(value: float) -> str:
    """A short binary quantity: 1.5 * 2**40 -> ``1.5Ti``."""
    for suffix, factor in (("Pi", 2**50), ("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if value >= factor:
            return f"{value / factor:.1f}".rstrip("0").rstrip(".") + suffix
    return str(int(value))


def format_ratio(value: float) -> str:
    """A ratio as the API writes it: three decimals."""
    return f"{value:.3f}"


def format_share(value: float | None) -> str | None:
    """A measured ratio as the API writes it, kept within 0 and 1; None stays None."""
    return None if value is None else format_ratio(min(1.0, max(0.0, value)))
