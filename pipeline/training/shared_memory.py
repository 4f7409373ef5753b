"""Ranks on the CPUs of one machine average their gradients through memory that they share.

Plain PyTorch, in every training worker. Between processes of one machine gloo still sends through its network: 4.4 MB
of gradients take 4.7 ms on two cores that compute, and 1.2 ms this way (docs/speed.md). It is a reduce-scatter
and an all-gather (Thakur et al. 2005): every rank sums its stretch of all gradients, in the order of the
ranks, so that all ranks get the same bits every time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import socket
import struct
import weakref
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.models.base import GenerativeModel
from pipeline.training.holding import Holding

TIMEOUT = 1800.0
"""Seconds that a rank waits for another one; torch's own for process groups."""
GONE = "another training worker has gone, or does not answer, in the middle of a step"
CREDENTIALS = struct.Struct("3i")
"""The process, user and group at the other end of a socket, as Linux says them."""


class SharedHolding(Holding):
    """Every rank holds all of every parameter; gradients are averaged in memory of all ranks, when they are all there.

    The memory is that of the gradients once for every rank and once for their mean. It has no name: when the last rank
    ends, however it ends, it is gone.
    """

    def __init__(
        self, model: GenerativeModel, device: torch.device, world_size: int, channels_last: bool, peers: Peers
    ) -> None:
        super().__init__(model, device, world_size, channels_last)
        self.peers = peers
        parameters = list(self.own.values())
        with torch.no_grad():
            for parameter in parameters:
                dist.broadcast(value := parameter.contiguous(), src=0)
                parameter.copy_(value)
        count = sum(parameter.numel() for parameter in parameters)
        dtype = parameters[0].dtype
        memory = peers.memory((world_size + 1) * count * dtype.itemsize)
        self.memory = torch.frombuffer(memory, dtype=dtype).view(world_size + 1, count)
        self._layouts: dict[tuple[str, ...], _Layout] = {}

    def wrapped(self, module: nn.Module) -> nn.Module:
        return module

    @torch.no_grad()
    def settle_gradients(self, names: Iterable[str]) -> None:
        present = tuple(name for name in names if self.own[name].grad is not None)
        if not present:  # all that the phase trains is frozen, on all ranks alike
            return
        if present not in self._layouts:
            self._layouts[present] = _Layout(self.memory, [self.own[name] for name in present], self.peers.rank)
        layout = self._layouts[present]
        gradients = [gradient for name in present if (gradient := self.own[name].grad) is not None]
        torch._foreach_copy_(layout.own, gradients)
        self.peers.meet()
        torch.add(layout.stretches[0], layout.stretches[1], out=layout.mean)
        for stretch in layout.stretches[2:]:
            layout.mean += stretch
        layout.mean /= self.world_size
        self.peers.meet()
        # The next step's gradients go to other places than these are taken from: two meetings a step are enough.
        torch._foreach_copy_(gradients, layout.means)


class _Layout:
    """Where the gradients of some parameters lie in the shared memory: `own` as this rank puts them there, `means` as
    all take them; `stretches`, a rank's each, is what this rank sums up, and `mean` where it puts what comes out."""

    def __init__(self, memory: Tensor, parameters: Sequence[nn.Parameter], rank: int) -> None:
        ranks = len(memory) - 1
        sizes = [parameter.numel() for parameter in parameters]
        memory = memory[:, : sum(sizes)]
        own, mean = memory[rank], memory[ranks]
        self.own = [part.view(p.shape) for part, p in zip(own.split(sizes), parameters, strict=True)]
        self.means = [part.view(p.shape) for part, p in zip(mean.split(sizes), parameters, strict=True)]
        stretch = slice(rank * sum(sizes) // ranks, (rank + 1) * sum(sizes) // ranks)
        self.stretches, self.mean = list(memory[:ranks, stretch]), mean[stretch]


class Peers:
    """The ranks of a training that are processes of one machine and one user: each is connected to rank 0, and has the
    same `file` of memory open."""

    def __init__(self, rank: int, connections: list[socket.socket], file: int) -> None:
        self.rank, self.connections, self.file = rank, connections, file
        weakref.finalize(self, _close, connections, file)

    def meet(self) -> None:
        """Wait until every rank is here. Raises: ConnectionError when one has gone, or does not come."""
        try:
            if self.rank > 0:
                self.connections[0].sendall(b"\0")
            if not all(connection.recv(1) for connection in self.connections):
                raise ConnectionError("its end of the connection is closed")
            if self.rank == 0:
                for connection in self.connections:
                    connection.sendall(b"\0")
        except OSError as error:
            raise ConnectionError(f"{GONE} ({error})") from error

    def memory(self, size: int) -> mmap.mmap:
        """So many bytes that all ranks see, zeros at first."""
        if self.rank == 0:
            os.truncate(self.file, size)
        self.meet()
        return mmap.mmap(self.file, size)


def find_peers() -> Peers | None:
    """The ranks connected, where all of them find rank 0 on their own machine; None on all of them where one does not.
    A collective of the process group, which must be of CPUs."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    connections: list[socket.socket] = []
    with contextlib.ExitStack() as opened:
        listener, file = _offer(world_size, opened) if rank == 0 else (None, -1)
        names: list[object] = [None if listener is None else listener.getsockname()]
        dist.broadcast_object_list(names, src=0)
        if rank > 0 and isinstance(names[0], bytes):
            with contextlib.suppress(OSError):
                connections.append(_connect(names[0]))
        found = torch.tensor(int(listener is not None or bool(connections)))
        dist.all_reduce(found, dist.ReduceOp.MIN)
        if not found:
            _close(connections, file)
            return None
        while listener is not None and len(connections) < world_size - 1:
            connection, _ = listener.accept()
            # Whoever is on the machine can see the name of the socket.
            if _user_of(connection) != os.getuid():
                connection.close()
                continue
            connection.settimeout(TIMEOUT)
            socket.send_fds(connection, [b"\0"], [file])
            connections.append(connection)
    if rank > 0:
        said, files, _, _ = socket.recv_fds(connections[0], 1, 1)
        if not said:
            raise ConnectionError(GONE)
        file = files[0]
    return Peers(rank, connections, file)


def _offer(most: int, opened: contextlib.ExitStack) -> tuple[socket.socket | None, int]:
    """What rank 0 offers the others: a socket to connect to, at a name that nobody else has and that leaves no file
    behind (Linux's abstract names), and a file in memory, without a name. None and -1 on a system that has neither."""
    try:
        file = os.memfd_create("atelier-gradients")
    except (AttributeError, OSError):
        return None, -1
    listener = opened.enter_context(socket.socket(socket.AF_UNIX))
    try:
        listener.bind(f"\0atelier-{secrets.token_hex(16)}")
        listener.listen(most)
    except OSError:
        return None, file
    listener.settimeout(TIMEOUT)
    return listener, file


def _connect(name: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(name)
    except OSError:
        connection.close()
        raise
    connection.settimeout(TIMEOUT)
    return connection


def _user_of(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return int(CREDENTIALS.unpack(credentials)[1])


def _close(connections: Iterable[socket.socket], file: int) -> None:
    for connection in connections:
        connection.close()
    if file >= 0:
        os.close(file)
