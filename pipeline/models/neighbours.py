"""What a position of a picture or a sound sees directly of the tokens before it, as numbers.

Plain PyTorch. Pixels in raster order see those to the left and above, samples those before; never one that comes
later. The recurrent family puts them beside its own inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.spec import RnnSpec


def neighbour_places(layout: Layout, family: RnnSpec) -> Tensor:
    """The positions that each of the T positions sees, int64 `[T, N]`; T stands for one that is not there.

    Of a picture, in this order: the channels before in the pixel itself, then `history` pixels to the left, then
    `columns_above` pixels of each of `rows_above` rows, all with every channel. Of a sound, the `history` samples
    before.
    """
    if not layout.raster:
        places = torch.arange(layout.length).unsqueeze(1) - torch.arange(1, family.history + 1)
        return places.masked_fill(places < 0, layout.length)
    height, width, channels = layout.raster
    rows = [list(_before(row, column, channel, layout, family))
            for row in range(height) for column in range(width) for channel in range(channels)]  # fmt: skip
    return torch.tensor(rows, dtype=torch.int64).view(layout.length, -1)


def _before(row: int, column: int, channel: int, layout: Layout, family: RnnSpec) -> Iterator[int]:
    _, width, channels = layout.raster
    start = (row * width + column) * channels
    for other in range(channels - 1):
        yield start + other if other < channel else layout.length
    side = family.columns_above // 2
    pixels = [(0, -step) for step in range(1, family.history + 1)]
    pixels += [(-up, along) for up in range(1, family.rows_above + 1) for along in range(-side, side + 1)]
    for down, along in pixels:
        there = row + down >= 0 and 0 <= column + along < width
        for other in range(channels):
            yield start + (down * width + along) * channels + other if there else layout.length


class Neighbours(nn.Module):
    """Gathers, for positions of examples `[B, T]` of tokens, the values in [-1, 1] of those they see; 0 where there is
    none, and for symbols that are no level (the end of a sound)."""

    places: Tensor

    def __init__(self, layout: Layout, family: RnnSpec, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("places", neighbour_places(layout, family), persistent=False)
        self.count = self.places.shape[1]

    def values(self, x: Tensor) -> Tensor:
        """Tokens `[B, T]` as floats `[B, T + 1]`, the last being the one that is not there."""
        scaled = x * (2 / (self.levels - 1)) - 1
        return F.pad(torch.where(x < self.levels, scaled, 0.0), (0, 1))

    def seen(self, values: Tensor, positions: Tensor) -> Tensor:
        """What positions `[B or 1, W]` see of `values` `[B, T + 1]`, `[B, W, N]`."""
        return _taken(values, self.places[positions])

    def frames(self, values: Tensor, starts: Tensor, size: int) -> Tensor:
        """The `size` values before each of `starts` `[B or 1, W]`, oldest first, `[B, W, size]`; 0 before the first."""
        places = starts.unsqueeze(2) + torch.arange(-size, 0, device=starts.device)
        return _taken(values, torch.where(places < 0, values.shape[1] - 1, places))


def _taken(values: Tensor, places: Tensor) -> Tensor:
    """`values` `[B, T + 1]` at `places` `[B, W, N]`, or at the same `[1, W, N]` of all."""
    if len(places) == 1:
        return values.index_select(1, places.flatten()).view(len(values), *places.shape[1:])
    return values.gather(1, places.flatten(1)).view(places.shape)


class Position(nn.Module):
    """A learned vector for the row of a pixel and one for its column and channel, added: `[B, W]` to `[B, W, size]`."""

    def __init__(self, layout: Layout, size: int) -> None:
        super().__init__()
        height, width, channels = layout.raster
        self.line = width * channels
        self.rows, self.columns = nn.Embedding(height, size), nn.Embedding(self.line, size)
        for table in (self.rows, self.columns):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        summed: Tensor = self.rows(positions // self.line) + self.columns(positions % self.line)
        return summed


class Entry(nn.Module):
    """What enters the recurrence, `[B, W, size]`.

    Of a text the embedded token before; else that, what is seen directly and the position in a picture, added and
    through SiLU. In frames, the frame before instead of a token.
    """

    def __init__(self, layout: Layout, family: RnnSpec, size: int, num_seen: int) -> None:
        super().__init__()
        values = num_seen if family.frame == 1 else family.frame
        self.seen = nn.Linear(values, size) if values else None
        self.position = Position(layout, size) if layout.raster else None

    def forward(self, embedded: Tensor | None, seen: Tensor | None, positions: Tensor) -> Tensor:
        parts = [] if embedded is None else [embedded]
        if self.seen is not None:
            parts.append(self.seen(seen))
        if self.position is not None:
            parts.append(self.position(positions))
        if len(parts) == 1 and embedded is not None:
            return embedded
        return F.silu(sum(parts[1:], parts[0]))


class Readout(nn.Module):
    """Hidden layers between the recurrence and the softmax, which also see the token before, the neighbours and the
    position: `[B, W / frame, H]` to `[B, W, readout[-1]]`. Layers of equal width add their input (He et al. 2016).

    Each token of a frame gets a vector of its own of the frame's state, a quarter as wide as the first hidden layer:
    from a state of 512 for 28 pixels that is most of the multiplications, and at full width it took half of a step.
    """

    def __init__(self, layout: Layout, family: RnnSpec, hidden_size: int, symbols: int, num_seen: int) -> None:
        super().__init__()
        first = family.readout[0]
        self.risen_size = -(-first // 4)
        self.up = nn.Linear(hidden_size, family.frame * self.risen_size)
        self.seen = nn.Linear(self.risen_size + num_seen, first)
        # Of two symbols the token before says no more than its value, and that is seen where frames are whole rows.
        rows = bool(layout.raster) and family.frame % (layout.raster[1] * layout.raster[2]) == 0
        told = symbols == 2 and family.history > 0 and rows
        self.before = None if told else nn.Embedding(symbols + 1, first)
        if self.before is not None:
            nn.init.normal_(self.before.weight, std=0.02)
        self.position = Position(layout, first) if layout.raster else None
        widths = zip(family.readout[:-1], family.readout[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in widths)

    def rise(self, hidden: Tensor) -> Tensor:
        """The state of each frame `[B, W / frame, H]` as a vector for each of its tokens `[B, W, readout[0] / 4]`."""
        risen: Tensor = self.up(hidden)
        return risen.reshape(len(hidden), -1, self.risen_size)

    def forward(self, risen: Tensor, inputs: Tensor, seen: Tensor | None, positions: Tensor) -> Tensor:
        sources = risen if seen is None else torch.cat([risen, seen.to(risen.dtype)], dim=2)
        summed = self.seen(sources)
        # In the type of what the layer gave: under autocast half as many bytes go through the additions that follow.
        if self.before is not None:
            summed = summed + self.before(inputs).to(summed.dtype)
        if self.position is not None:
            summed = summed + self.position(positions).to(summed.dtype)
        hidden = F.silu(summed)
        for layer in self.layers:
            after = F.silu(layer(hidden))
            hidden = hidden + after if after.shape == hidden.shape else after
        return hidden
