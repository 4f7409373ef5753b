"""Ranks on the CPUs of one machine average their gradients through memory that they share.

Plain PyTorch, in every training worker. Between processes of one machine gloo still sends through its network: an
average of 4.4 MB took 4.7 ms on two cores, and takes 1.2 ms this way. It is a reduce-scatter and an all-gather (Thakur
et al. 2005): every rank sums its stretch of all gradients, in the order of the ranks, so that all ranks get the same
bits every time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import socket
import struct
import weakref
import zlib
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.models.base import GenerativeModel
from pipeline.training.holding import Holding

TIMEOUT = 1800.0
"""Seconds that a rank waits for another one; torch's own for process groups."""
GONE = "another training worker has gone, or does not answer"
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
        # Memory that nobody has written to is not taken yet, and what is looked for then would fit beside it.
        self.memory[peers.rank].zero_()
        if peers.rank == 0:
            self.memory[world_size].zero_()
        self._layouts: dict[tuple[str, ...], _Layout] = {}

    def wrapped(self, module: nn.Module) -> nn.Module:
        return module

    @torch.no_grad()
    def settle_gradients(self, names: Iterable[str]) -> None:
        present = tuple(name for name in names if self.own[name].grad is not None)
        layout = self._layouts.get(present)
        if layout is None:
            parameters = {name: self.own[name] for name in present}
            layout = self._layouts[present] = _Layout(self.memory, parameters, self.peers.rank)
        if not present:  # all that the phase trains is frozen, on all ranks
            self.peers.meet(layout.number)
            return
        gradients = [gradient for name in present if (gradient := self.own[name].grad) is not None]
        torch._foreach_copy_(layout.own, gradients)
        self.peers.meet(layout.number)
        torch.add(layout.stretches[0], layout.stretches[1], out=layout.mean)
        for stretch in layout.stretches[2:]:
            layout.mean += stretch
        layout.mean /= self.world_size
        # Two meetings are enough: the next run's gradients go to other places than these are taken from, and its means
        # are written after its first meeting, to which all come with these taken.
        self.peers.meet(layout.number)
        torch._foreach_copy_(gradients, layout.means)


class _Layout:
    """Where the gradients of some parameters lie in the shared memory: `own` as this rank puts them there, `means` as
    all take them; `stretches`, a rank's each, is what this rank sums up, and `mean` where it puts what comes out. The
    `number` is that of the parameters' names."""

    def __init__(self, memory: Tensor, parameters: Mapping[str, nn.Parameter], rank: int) -> None:
        self.number = zlib.crc32("\n".join(parameters).encode())
        ranks = len(memory) - 1
        sizes = [parameter.numel() for parameter in parameters.values()]
        memory = memory[:, : sum(sizes)]
        own, mean = memory[rank], memory[ranks]
        self.own = [part.view(p.shape) for part, p in zip(own.split(sizes), parameters.values(), strict=True)]
        self.means = [part.view(p.shape) for part, p in zip(mean.split(sizes), parameters.values(), strict=True)]
        stretch = slice(rank * sum(sizes) // ranks, (rank + 1) * sum(sizes) // ranks)
        self.stretches, self.mean = list(memory[:ranks, stretch]), mean[stretch]


class Peers:
    """The ranks of a training that are processes of one machine and one user: each is connected to rank 0, and has the
    same `file` of memory open until it is mapped."""

    def __init__(self, rank: int, connections: list[socket.socket], file: int) -> None:
        self.rank, self.connections, self.file = rank, connections, file
        weakref.finalize(self, _close, connections)

    def meet(self, number: int = 0) -> None:
        """Wait until every rank is here, with the same `number` of 32 bits.

        Raises: ConnectionError when one has gone, or does not come; RuntimeError when one has another number.
        """
        here = number.to_bytes(4, "little")
        try:
            if self.rank > 0:
                self.connections[0].sendall(here)
            heard = [connection.recv(len(here)) for connection in self.connections]
            if not all(heard):
                raise ConnectionError("its end of the connection is closed")
            if self.rank == 0:
                for connection in self.connections:
                    connection.sendall(here)
        except OSError as error:
            _close(self.connections)  # the others hear of it at once, however long this process lives on
            raise ConnectionError(f"{GONE} (rank {self.rank}: {error})") from error
        if any(other != here for other in heard):
            _close(self.connections)
            raise RuntimeError(
                "training workers have gradients of different parameters, whose average would mix them up: a phase of "
                "a model must reach the same parameters on every worker"
            )

    def memory(self, size: int) -> mmap.mmap:
        """So many bytes that all ranks see, zeros at first; once."""
        if self.rank == 0:
            os.truncate(self.file, size)
        self.meet()
        try:
            return mmap.mmap(self.file, size)
        finally:
            os.close(self.file)


def find_peers() -> Peers | None:
    """The ranks connected, where all of them find rank 0 on their own machine; None on all of them where one does not.
    A collective of the process group, which must be of CPUs. Raises: ConnectionError when one has gone meanwhile."""
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
            _close(connections)
            if file >= 0:
                os.close(file)
            return None
        try:
            while listener is not None and len(connections) < world_size - 1:
                connection, _ = listener.accept()
                if _is_ours(connection):  # whoever is on the machine can see the name of the socket
                    connection.settimeout(TIMEOUT)
                    socket.send_fds(connection, [b"\0"], [file])
                    connections.append(connection)
                else:
                    connection.close()
            if rank > 0:
                _, (file,), _, _ = socket.recv_fds(connections[0], 1, 1)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"{GONE} (rank {rank}: {error})") from error
    return Peers(rank, connections, file)


def _offer(most: int, opened: contextlib.ExitStack) -> tuple[socket.socket | None, int]:
    """What rank 0 offers the others: a socket to connect to, at a name that nobody else has and that leaves no file
    behind (Linux's abstract names), and a file in memory, without a name. None and -1 on a system that has neither."""
    try:
        file = os.memfd_create("atelier-gradients")
    except (AttributeError, OSError):
        return None, -1
    listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    try:
        listener.bind(f"\0atelier-{secrets.token_hex(16)}")
        listener.listen(most)
    except OSError:
        return None, file
    listener.settimeout(TIMEOUT)
    return listener, file


def _connect(name: bytes) -> socket.socket:
    """Raises: OSError where nobody listens, or somebody else."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(name)
        if not _is_ours(connection):
            raise ConnectionRefusedError("another user listens there")
    except OSError:
        connection.close()
        raise
    connection.settimeout(TIMEOUT)
    return connection


def _is_ours(connection: socket.socket) -> bool:
    """Whether the process at the other end is of this one's user."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    _, user, _ = CREDENTIALS.unpack(credentials)
    return bool(user == os.getuid())


def _close(connections: Iterable[socket.socket]) -> None:
    for connection in connections:
        connection.close()
