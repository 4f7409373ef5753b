"""Running out of memory: knowing it when it happens, and finding how many examples at once would fit.

Plain PyTorch, in every training worker. What fits is found by trying: forward and backward passes of the phases, halved
until they fit, without a step. On a CPU the system promises more memory than there is and ends whoever takes it: while
sizes are tried, the process may have no more than is free.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import OutOfMemoryError
from pipeline.training.accumulation import Run, cut

T = TypeVar("T")
SIGNS = (
    "DefaultCPUAllocator",
    "out of memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "could not create a primitive",
    "could not execute a primitive",
    "can't start new thread",
)
"""What the messages of a RuntimeError say where memory was wanting; two of them are oneDNN's, which says no more."""
LASTING = "could not create a primitive"
"""Where memory was wanting for the code that oneDNN writes, it cannot write any in that thread afterwards, however much
memory there is then: its assembler keeps an error of a thread for good (seen with torch 2.13)."""
LEFT_FREE = 0.1
"""Of what is free on a CPU's machine, what is not given to a try."""
CGROUP = Path("/sys/fs/cgroup")
LIMITS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Where a container says what it may take, what it has taken and of what that is made up: control groups v2, and v1."""
VMSTAT = Path("/proc/vmstat")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's `mallopt`: what is free at the end of the heap before it is given back, and from what size on a block is
one of its own, given back when it is freed."""
LARGE, LARGEST = 2**17, 2**25
"""Bytes of such a block: as glibc begins, and where it ends up in a process that frees large ones."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the want of memory of a GPU, or of the process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def in_use(device: torch.device) -> str:
    """How much memory is taken, of how much."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{_gib(total - free)} of the GPU's {_gib(total)} in use"
    addresses, resident = _taken()
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        return f"{_gib(addresses)} of the process's limit of {_gib(limit)} in use"
    return f"{_gib(resident)} in use by this process, {_gib(_available())} free"


def in_short(error: BaseException) -> str:
    """The beginning of what an allocator said."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]


def release(device: torch.device) -> None:
    """Give back what nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


class MicroBatch:
    """How many examples go through the network at once: `size`, this rank's whole share of a batch or less of it."""

    def __init__(self, setting: int | str | None, share: int, rank: int, world_size: int, device: torch.device) -> None:
        self.share, self.rank, self.world_size, self.device = share, rank, world_size, device
        self.auto = setting == "auto"
        self.size = min(setting, share) if isinstance(setting, int) else share
        self.said: list[str] = []
        """What was said of it and not yet told."""

    def find(self, tries: Iterable[tuple[Run, nn.Module]], bytes_to_come: int) -> None:
        """Lower the size until the runs, taken behind each other, fit beside what the optimisers are yet to keep; the
        same on all ranks, which call it together. Raises: OutOfMemoryError where no size fits."""
        run, found, kept = None, self.size, []
        with within_what_is_free(self.device):
            try:
                kept.append(torch.empty(bytes_to_come, dtype=torch.uint8, device=self.device))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                found = 0
            for run, module in tries:
                found, gradients = largest_that_fits(run, module, found)
                kept += gradients
        taken = in_use(self.device)
        kept.clear()
        release(self.device)
        if self.world_size > 1:
            smallest = torch.tensor(found, device=self.device)
            dist.all_reduce(smallest, dist.ReduceOp.MIN)
            found = int(smallest)
        if found == 0:
            raise self._error(run, taken, 0)
        self.size = found

    def lower(self, run: Run, module: nn.Module | None, taken: str, lasting: bool = False) -> None:
        """A pass of `run` did not fit: go on with fewer examples at once, where the spec leaves the number open, no
        other rank waits, and the failure is not a `lasting` one. Raises: OutOfMemoryError, naming how many would have
        fitted; nothing is tried without a `module`, where no rank can compute alone."""
        if module is None:
            raise self._error(run, taken, None)
        found = 0
        if self.size > 1:
            release(self.device)
            for parameter in module.parameters():
                parameter.grad = None
            with within_what_is_free(self.device):
                found, _ = largest_that_fits(run, module, -(-self.size // 2))
            release(self.device)
        if not found or not self.auto or self.world_size > 1 or lasting:
            raise self._error(run, taken, found)
        self.said.append(
            f"{self.size:,} examples at once did not fit in phase '{run.phase}' at step {run.step} ({taken}); it goes "
            f"on with {found:,} at once, whose gradients add up to the same"
        )
        self.size = found

    def _error(self, run: Run | None, taken: str, found: int | None) -> OutOfMemoryError:
        where = "" if run is None else f" in phase '{run.phase}' at step {run.step}"
        of = f"{self.share:,} of a batch" + (f" on each of {self.world_size} workers" if self.world_size > 1 else "")
        what = f"out of memory{where} (rank {self.rank}): {self.size:,} examples at once, {of}, with {taken}"
        if found:
            return OutOfMemoryError(
                f"{what}; {found:,} at once fit: set training.micro_batch to {found}, or to auto, which adds up the "
                "same gradients; or lower training.batch_size"
            )
        if found is None:
            return OutOfMemoryError(f"{what}; set training.micro_batch to less, or train on more workers")
        return OutOfMemoryError(
            f"{what}; not even one example at once fits: take a smaller model or shorter examples, or a machine with "
            "more memory"
        )


def fits(run: Run, module: nn.Module, micro_batch: int) -> list[Tensor] | None:
    """The gradients of a forward and backward pass of `micro_batch` examples, if it fits, and another beside them."""
    try:
        return untainted(lambda: _gradients(run, module, micro_batch), run.device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def untainted(call: Callable[[], T], device: torch.device) -> T:
    """What `call` gives; on a CPU in a thread of its own, since a want of memory may be `LASTING` in one."""
    if device.type != "cpu":
        return call()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as thread:
        return thread.submit(call).result()


def _gradients(run: Run, module: nn.Module, micro_batch: int) -> list[Tensor] | None:
    parts = cut(run.batch_size, micro_batch, run.device)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients: list[Tensor] = []
    try:
        for rows in parts[:2]:
            loss = run.forward(module, rows if len(parts) > 1 else None).loss
            # Not `backward`, which would call the hooks by which ranks share gradients.
            found = torch.autograd.grad(loss, trained, allow_unused=True)
            gradients = gradients or [gradient for gradient in found if gradient is not None]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return gradients


def largest_that_fits(run: Run, module: nn.Module, micro_batch: int) -> tuple[int, list[Tensor]]:
    """The first of `micro_batch` and its halves that fits, with the gradients of its pass; 0 where none does."""
    while micro_batch > 0:
        gradients = fits(run, module, micro_batch)
        if gradients is not None:
            return micro_batch, gradients
        release(run.device)
        micro_batch = 0 if micro_batch == 1 else -(-micro_batch // 2)
    return 0, []


def bytes_to_come(optimizers: Iterable[torch.optim.Optimizer], undone: Sequence[torch.optim.Optimizer]) -> int:
    """What optimisers that took no step yet will keep beside their weights, and what is kept to undo their steps."""
    total = 0
    for optimizer in optimizers:
        settings, taken = optimizer.defaults, bool(optimizer.state)
        kept = 2 if "betas" in settings else int(settings.get("momentum", 0) > 0) + int("alpha" in settings)
        copies = (0 if taken else kept) + (1 + kept if optimizer in undone else 0)
        total += copies * sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
    return total


@contextlib.contextmanager
def within_what_is_free(device: torch.device) -> Iterator[None]:
    """On a CPU, an allocation beyond the memory that is free fails here as it does on a GPU."""
    if device.type == "cuda":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _taken()[0] + int((1 - LEFT_FREE) * _available())
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(soft, limit), hard))
    # What a try frees must be there for the next, and not stay in a heap that only small blocks are taken from.
    _give_back_blocks_of(LARGE)
    try:
        yield
    finally:
        _give_back_blocks_of(LARGEST)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def ended_for_memory(vmstat: Path = VMSTAT) -> int:
    """How many processes this machine's kernel has ended for want of memory, of the machine or of a container, since it
    started; 0 where it does not tell."""
    try:
        counts = dict(line.split() for line in vmstat.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


def _give_back_blocks_of(size: int) -> None:
    """Memory of the host in blocks from this size on goes back to the system when it is freed, where the C library is
    glibc."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, size)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * size)


def _taken() -> tuple[int, int]:
    """Bytes of this process's addresses, and of its memory."""
    addresses, resident = Path("/proc/self/statm").read_text().split()[:2]
    return int(addresses) * resource.getpagesize(), int(resident) * resource.getpagesize()


def _available(cgroup: Path = CGROUP) -> int:
    """Bytes of memory that are free on this machine, or in this container where it has less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    for most, taken, parts in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: there is no limit
            left = int((cgroup / most).read_text()) - int((cgroup / taken).read_text())
            free = min(free, max(0, left + _cached(cgroup / parts)))
    return free


def _cached(stat: Path) -> int:
    """Bytes of files that a control group counts as taken, and gives up when they are wanted. One that has read or
    written more than it may have is always full of them."""
    parts = dict(line.split() for line in stat.read_text().splitlines())
    return sum(int(parts.get(name, 0)) for name in ("inactive_file", "active_file"))


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
