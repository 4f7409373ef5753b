"""Reading sound: a file's bytes, or an array, as mono samples at one rate.

soundfile (libsndfile) decodes WAV, FLAC, OGG Vorbis, Opus, MP3 and AIFF, soxr resamples; both are imported where a
sound is read, since training does without them. Runs in Ray Data's workers.
"""

from __future__ import annotations

import io

import numpy as np

from pipeline.data.decoded import Decoded, check_size
from pipeline.errors import CodecError

MARGIN_SAMPLES = 2000
"""What is read beyond the wanted beginning of a file, in samples of the lower of the two rates: soxr's filter reaches
a few hundred to either side."""
LENGTH_UNKNOWN = 2**62
"""libsndfile tells more frames than this where a header does not say how many there are."""


def read_sound(
    payload: bytes | np.ndarray,
    rate_hz: int | None,
    wanted_rate_hz: int,
    max_bytes: int,
    num_needed: int | None = None,
) -> Decoded:
    """A sound file's bytes, or floats (or integers of full scale) `[T]` or `[T, channels]` at `rate_hz`, as mono
    float32 `[any]` at `wanted_rate_hz`, and its facts.

    Where only the first `num_needed` samples are, no more of a file is read than they take; they are those of the
    whole file (the same bits between all nine pairs of rates tried, 1 to 192 kHz). Without `rate_hz` an array is taken
    to have the wanted rate.

    Raises: CodecError when the sound decodes to more than `max_bytes` (found out before it is decoded where the
    file says how long it is), is damaged or none, or holds values that are not finite.
    """
    if isinstance(payload, np.ndarray):
        samples, facts = _of_array(payload, rate_hz or wanted_rate_hz, max_bytes)
    else:
        samples, facts = _of_file(payload, wanted_rate_hz, max_bytes, num_needed)
    if not np.isfinite(samples).all():
        raise CodecError(f"{int((~np.isfinite(samples)).sum()):,} of {len(samples):,} samples are not finite")
    if facts["rate_hz"] != wanted_rate_hz and len(samples):
        import soxr

        samples = soxr.resample(samples, facts["rate_hz"], wanted_rate_hz)
    if num_needed is not None:
        samples = samples[:num_needed]
    return Decoded(np.ascontiguousarray(samples, np.float32), facts)


def _of_array(payload: np.ndarray, rate_hz: int, max_bytes: int) -> tuple[np.ndarray, dict[str, object]]:
    if payload.ndim not in (1, 2) or payload.dtype.kind not in "fiu":
        raise CodecError(f"an array of {payload.dtype} {list(payload.shape)} is no sound; it takes floats [T]")
    check_size(payload.size * 4, max_bytes, f"a sound of {len(payload):,} samples")
    samples = payload.astype(np.float32)
    if payload.dtype.kind == "u":
        samples = samples / 2.0 ** (8 * payload.dtype.itemsize - 1) - 1
    elif payload.dtype.kind == "i":
        samples = samples / 2.0 ** (8 * payload.dtype.itemsize - 1)
    channels = payload.shape[1] if payload.ndim == 2 else 1
    facts = {"rate_hz": rate_hz, "channels": channels, "seconds": len(payload) / rate_hz, "format": "array"}
    return (samples.mean(axis=1) if payload.ndim == 2 else samples), facts


def _of_file(
    payload: bytes, wanted_rate_hz: int, max_bytes: int, num_needed: int | None
) -> tuple[np.ndarray, dict[str, object]]:
    """The mono samples of a file at its own rate, as many as `num_needed` at the wanted rate take."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(payload)) as sound:
            rate_hz, channels, promised = sound.samplerate, sound.channels, sound.frames
            most = max_bytes // (4 * channels)
            if promised < LENGTH_UNKNOWN:
                check_size(promised * 4 * channels, max_bytes, f"a sound of {promised / rate_hz:,.1f} s")
            frames = min(promised, most + 1)
            if num_needed is not None:
                margin = MARGIN_SAMPLES * rate_hz / min(rate_hz, wanted_rate_hz)
                frames = min(frames, int(num_needed * rate_hz / wanted_rate_hz + margin) + 1)
            samples = sound.read(frames, dtype="float32", always_2d=True)
            format = sound.format
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, MemoryError) as error:
        reason = str(error).split(": ", 1)[-1]
        raise CodecError(f"not a readable sound ({len(payload):,} bytes): {reason}") from None
    _check_whole(payload)
    check_size(samples.nbytes, max_bytes, f"a sound of more than {most / rate_hz:,.1f} s")
    known = promised < LENGTH_UNKNOWN
    if known and len(samples) < frames and format != "MP3":  # an MP3's length is an estimate
        raise CodecError(f"the sound is cut short: {len(samples):,} of {promised:,} frames can be decoded")
    facts = {
        "rate_hz": rate_hz,
        "channels": channels,
        "seconds": (promised if known else len(samples)) / rate_hz,
        "format": format,
    }
    return samples.mean(axis=1) if channels > 1 else samples[:, 0], facts


def _check_whole(payload: bytes) -> None:
    """Raises: CodecError where a WAV's or AIFF's header promises more bytes than there are; libsndfile plays the rest.

    What was written to a pipe promises 2 GiB or more. Off by the header's own 8 bytes is a common mistake.
    """
    order = {b"RIFF": "little", b"FORM": "big"}.get(payload[:4])
    if order is not None:
        promised = int.from_bytes(payload[4:8], order)  # type: ignore[arg-type]
        if len(payload) < promised < 0x7FFF0000:
            raise CodecError(f"the sound is cut short: {len(payload):,} of {promised + 8:,} bytes")
