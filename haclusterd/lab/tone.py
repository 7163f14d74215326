"""The sound that laboratory callers stream: raw 8 kHz G.711 mu-law, made instead of shipped.

SIPp's `rtp_stream` opens it as `tone.pcmu` in its working directory (lab/scenarios/uac.xml).
"""

from __future__ import annotations

import math
from pathlib import Path

TONE_FILE = "tone.pcmu"
_RATE_HZ = 8000
_BIAS = 0x84
_CLIP = 32635


def write_tone(directory: Path, *, frequency_hz: int = 440) -> Path:
    """One second of a sine, whole periods so that a loop has no click; returns the file."""
    samples = (
        _mu_law(round(8000 * math.sin(2 * math.pi * frequency_hz * n / _RATE_HZ)))
        for n in range(_RATE_HZ)
    )
    path = directory / TONE_FILE
    path.write_bytes(bytes(samples))
    return path


def _mu_law(sample: int) -> int:
    """One 16-bit linear sample as ITU-T G.711 mu-law."""
    sign = 0x80 if sample < 0 else 0
    magnitude = min(abs(sample), _CLIP) + _BIAS
    exponent = magnitude.bit_length() - 8
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    return ~(sign | exponent << 4 | mantissa) & 0xFF
