"""Words of the command lines here: what would play nothing, or make no sense, is a usage error."""

from __future__ import annotations

import argparse
import math


def seeds(text: str) -> range:
    """`A:B`, from A up to but not B; or one seed."""
    first, colon, last = text.partition(":")
    try:
        begin = int(first)
        found = range(begin, int(last) if colon else begin + 1)
    except ValueError:
        found = range(0)
    if not found or found.start < 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no seed, and no A:B with at least one from A up to but not B"
        )
    return found


def count(text: str) -> int:
    """At least one."""
    try:
        found = int(text)
    except ValueError:
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return found


def seed(text: str) -> int:
    try:
        found = int(text)
    except ValueError:
        found = -1
    if found < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: a number from 0 on")
    return found


def span(text: str) -> float:
    """A time that passes."""
    found = _number(text)
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: a number above 0")
    return found


def jitter(text: str) -> float:
    found = _number(text)
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: a number from 0 on")
    return found


def share(text: str) -> float:
    found = _number(text)
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: a number from 0 to 1")
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
