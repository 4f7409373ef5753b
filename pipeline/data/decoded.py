"""What a codec makes of a record's payload: raw content and what the file itself said, within a stated size.

Shared by the codecs of all modalities, in Ray Data's workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import CodecError

MAX_BYTES = 256 * 2**20
"""What a record may decode to where no `data.max_record_megabytes` is at hand."""


@dataclass(frozen=True)
class Decoded:
    """A record's content and the facts of its file.

    `raw`: a string, a picture uint8 `[H, W, C]`, or mono sound float32 `[T]`. `facts` of a picture: `width` and
    `height` of the file when upright, `mode`, `format`; of a sound: `rate_hz`, `channels`, `seconds` of the whole file,
    `format`; of a text: none.
    """

    raw: Any
    facts: dict[str, Any] = field(default_factory=dict)


def check_size(num_bytes: int, max_bytes: int, what: str) -> None:
    """Raises: CodecError when `what` decodes to more than `max_bytes`."""
    if num_bytes > max_bytes:
        raise CodecError(
            f"{what} decodes to {num_bytes / 2**20:,.1f} MiB, more than the {max_bytes / 2**20:,.1f} MiB that a record "
            "may; raise data.max_record_megabytes if it is wanted"
        )
