"""How fast the training loop is on a GPU, and how fast it could be: a line of JSON for each model and setting.

    python -m tests.benchmarks.gpu [--device cuda] [--seconds 5] [--only bfloat16 …] [vae gan rnn]
    python -m tests.benchmarks.gpu --device cpu --smoke

It needs no Ray and no MLflow: the stepper is called in a plain loop over a set in memory
(made up; its values cost the same). For each of the families, at the batch that fills the card (doubled until the rate
gains less than a twentieth, or memory is out), in float32, with TF32, in bfloat16, and compiled:

- `examples_per_second`, over at least `--seconds`, with one wait for the device before and one after;
- `mfu`: the step's floating-point operations a second, over what a large square product reaches here (`ceiling`);
- `outside_kernels`: the share of the time in which the device computes nothing, from a profile of ten steps; at most,
  since the profiler's start is in it, up to 80 ms;
- `roofline_share`: the least time that the step's operations could take, over the time that it took. Each operation
  takes at least its floating-point operations over `ceiling`, and at least the bytes that it reads and writes over
  `bandwidth` (both measured here, in the setting's precision); an operation's least time is the longer of the two, and
  the step's is their sum. It is the bound of the operations as they are written one by one: fused ones may beat it.
- `over_cudnn` (rnn): the step's time over that of the recurrent layers alone, forwards and backwards over the same
  sequence.

The aims: vae and gan `roofline_share` >= 0.4, rnn `over_cudnn` <= 1.15. On an H100 80GB HBM3 (torch 2.11; ceiling 683
TFLOP/s in bfloat16, 360 in TF32, 52 in float32; bandwidth 2,985 GB/s), in bfloat16 and compiled in bfloat16:

    vae  batch 2,048   48,116 and 64,244 examples/s   mfu 0.44 and 0.59   roofline_share 0.64 and 0.86
    gan  batch 2,048   25,740 and 28,721              0.44 and 0.49       0.64 and 0.72
    rnn  batch 1,024   14,022 and 13,702 (graphs)     0.54 and 0.53       0.59 and 0.57, over_cudnn 1.061 and 1.080
                       float32 1,782, TF32 6,961      0.90 and 0.51       0.90 and 0.53, over_cudnn 1.073 and 1.054

Which bound binds: a step of the vae is 6.28 GFLOP an example, 9.1 us at the ceiling; its roofline is 13.3 us, so that
two thirds of it are products and one third the bytes of what stands between them (activations, casts, biases), which
compiling fuses. With the transposed convolutions that cuDNN has, the shares were 0.2 (vae) and 0.27 (gan).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from pipeline.data.layout import Layout
from pipeline.data.prepared import Prepared, SplitArrays
from pipeline.errors import OutOfMemoryError
from pipeline.spec import CharactersCodecSpec, ImageCodecSpec, RecurrentBackboneSpec, RunSpec, make_spec
from pipeline.training.session import Session
from pipeline.training.tensor_cores import tensor_cores

SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32", "tf32": False},
    "tf32": {"precision": "float32", "tf32": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
    "bfloat16, CUDA graphs": {"precision": "bfloat16", "compile": "cuda_graphs"},
}
VOCABULARY = 96


def spec_of(family: str, batch_size: int, smoke: bool, **training: Any) -> RunSpec:
    """A model of the size that one GPU trains: of pictures of 64 x 64, or of continuous text."""
    side, width = (16, 8) if smoke else (64, 128)
    codec: dict[str, Any] = {"kind": "image", "size": [side, side], "channels": 3}
    backbone: dict[str, Any] = {"kind": "conv", "channels": [width, 2 * width, 4 * width], "kernel": 5, "stride": 2}
    options: dict[str, Any] = {"kind": family}
    if family == "rnn":
        codec = {"kind": "characters", "packing": "windows", "length": 16 if smoke else 256}
        size = 16 if smoke else 1024
        backbone = {"kind": "recurrent", "cell": "lstm", "hidden_size": size, "embedding_size": size, "layers": 2}
    elif family == "vae":
        options |= {"latent_size": 32}
    else:
        options |= {"latent_size": 32, "loss": "hinge", "gradient_penalty": 0, "spectral_norm": True, "critic_steps": 1}
    settings = {"batch_size": batch_size, "optimizer": "adam", "lr": 1e-4, "num_workers": 0, "steps": 10**9}
    return make_spec(
        {
            "name": f"gpu-{family}",
            "data": {"source": {"kind": "builtin", "name": "digits"}, "codec": codec},
            "model": {"family": options, "backbone": backbone},
            "training": settings | training,
        }
    )


class MadeUp:
    """What a session reads of a prepared set: as many examples of the codec's form as are asked for."""

    def __init__(self, spec: RunSpec, rows: int) -> None:
        codec = spec.data.codec
        if isinstance(codec, CharactersCodecSpec):
            shape, vocabulary = (codec.length,), VOCABULARY
            self.layout = Layout("text", "tokens", shape, "uint8", "categorical", vocabulary, continuous=True)
        else:
            assert isinstance(codec, ImageCodecSpec)
            self.layout = Layout("image", "signal", (codec.channels, *codec.size), "uint8", "bernoulli", scale=1 / 255)
        self.rows = rows
        self.manifest = SimpleNamespace(splits={"train": {"rows": rows, "shards": [{"rows": rows}]}})

    def load_split(self, name: str, verify: bool = True, max_rows: int | None = None) -> SplitArrays:
        generator, most = torch.Generator().manual_seed(0), VOCABULARY if self.layout.vocabulary else 256
        x = torch.randint(most, (self.rows, *self.layout.shape), dtype=torch.uint8, generator=generator)
        nothing = torch.zeros(0, dtype=torch.uint8)
        return SplitArrays(x=x, label=torch.full((self.rows,), -1), ids=[], tail=nothing)


class Machine:
    """The device, and what it reaches in each precision."""

    def __init__(self, device: str, seconds: float, smoke: bool) -> None:
        self.device, self.seconds, self.smoke = torch.device(device), seconds, smoke
        elements = 2**20 if smoke else 2**28
        self.bandwidth = self._bandwidth(elements)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, work: Callable[[], Any]) -> float:
        """How often a second."""
        for _ in range(3):
            work()
        self.wait()
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < self.seconds:
            # The device lags behind: it is waited for now and then, so that the clock is not outrun.
            for _ in range(1 if self.smoke else 10):
                work()
                count += 1
            self.wait()
        return count / elapsed

    def _bandwidth(self, elements: int) -> float:
        """Bytes a second that a copy reads and writes."""
        x = torch.ones(elements, device=self.device)
        y = torch.empty_like(x)
        return 2 * x.nbytes * self.rate(lambda: y.copy_(x))

    def ceiling(self, training: Any) -> float:
        """Floating-point operations a second of a large square product, in the precision of a setting."""
        size = 256 if self.smoke else 8192
        dtype = torch.bfloat16 if training.precision == "bfloat16" else torch.float32
        a = torch.randn(size, size, device=self.device).to(dtype)
        with tensor_cores(training, self.device):
            return 2 * size**3 * self.rate(lambda: a @ a)


class Roofline(TorchDispatchMode):
    """Counts the floating-point operations of what runs under it, and the least seconds that each operation takes."""

    def __init__(self, ceiling: float, bandwidth: float) -> None:
        super().__init__()
        self.ceiling, self.bandwidth = ceiling, bandwidth
        self.operations = 0.0
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        operations = float(_operations(func, args, kwargs or {}, out))
        moved = sum(value.nbytes for value in tree_iter((args, kwargs, out)) if isinstance(value, Tensor))
        self.operations += operations
        self.seconds += max(operations / self.ceiling, moved / self.bandwidth)
        return out


def _operations(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    packet, name = func._overloadpacket, str(func)
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=out))
    if "cudnn_rnn" in name or "rnn_layer" in name:
        # Two for each weight of a matrix at each token, and twice that backwards; biases are nothing beside it. The
        # flat copy of the weights that cuDNN takes has one dimension.
        tensors = [value for value in tree_iter(args) if isinstance(value, Tensor)]
        sequence = tensors[0]
        tokens = sequence.numel() // sequence.shape[-1]
        weights = sum(value.numel() for value in tensors[1:] if value.dim() == 2)
        return 2.0 * tokens * weights * (2 if "backward" in name else 1)
    return 0.0


class Training:
    """A session whose steps are called one by one."""

    def __init__(self, spec: RunSpec, machine: Machine) -> None:
        rows = max(2 * spec.training.batch_size, 512)
        self.session = Session(spec, cast(Prepared, MadeUp(spec, rows)), machine.device)
        self.number = 0

    def step(self) -> None:
        self.session.stepper.step(self.number, self.session.batches, 0.1)
        self.number += 1


def outside_kernels(training: Training, machine: Machine) -> float | None:
    """The share of ten steps in which the device computes nothing; None on a CPU, which has no kernels of its own."""
    if machine.device.type != "cuda":
        return None
    machine.wait()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        start = time.perf_counter()
        for _ in range(10):
            training.step()
        machine.wait()
        wall = time.perf_counter() - start
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in seen.events()
        if event.device_type == DeviceType.CUDA
        and not event.is_user_annotation  # which is what `record_function` marks
    )
    computing, until = 0.0, 0.0
    for begin, end in spans:
        computing += max(0.0, end - max(begin, until))
        until = max(until, end)
    return 1 - computing / 1e6 / wall


def recurrence_alone(spec: RunSpec, machine: Machine) -> float:
    """Seconds of the recurrent layers, forwards and backwards, over the sequence of a step."""
    backbone, codec = spec.model.backbone, spec.data.codec
    assert isinstance(backbone, RecurrentBackboneSpec) and isinstance(codec, CharactersCodecSpec)
    size, half = backbone.hidden_size, spec.training.precision == "bfloat16"
    lstm = nn.LSTM(size, size, backbone.layers, batch_first=True).to(machine.device)
    x = torch.randn(spec.training.batch_size, codec.length, size, device=machine.device)
    x.requires_grad_()

    def work() -> None:
        with torch.autocast(machine.device.type, torch.bfloat16, enabled=half):
            hidden, _ = lstm(x)
        hidden.sum().backward()
        lstm.zero_grad(set_to_none=True)
        x.grad = None

    with tensor_cores(spec.training, machine.device):
        return 1 / machine.rate(work)


def batches_that_fill(family: str, machine: Machine) -> int:
    """Doubled from 64 until the rate of examples gains less than a twentieth, or memory is out; in bfloat16."""
    size, best, fills = 8 if machine.smoke else 64, 0.0, 0
    while True:
        try:
            rate = size * machine.rate(
                Training(spec_of(family, size, machine.smoke, precision="bfloat16"), machine).step
            )
        except OutOfMemoryError:
            return fills
        if machine.smoke:
            return size
        if rate > 1.05 * best:
            best, fills = rate, size
        elif size > 2 * fills:  # not one size that happens to be slow
            return fills
        size *= 2


def measure(family: str, machine: Machine, chosen: list[str], told: int | None) -> Iterator[dict[str, Any]]:
    size = told or batches_that_fill(family, machine)
    for name in chosen:
        settings = SETTINGS[name]
        if machine.device.type != "cuda" and (name == "tf32" or settings.get("compile") == "cuda_graphs"):
            continue
        spec = spec_of(family, size, machine.smoke, **settings)
        ceiling = machine.ceiling(spec.training)
        with tensor_cores(spec.training, machine.device):
            # Of the operations as they are written: compiled code has none to count.
            as_written = spec_of(family, size, machine.smoke, **settings | {"compile": False})
            counted, roofline = Training(as_written, machine), Roofline(ceiling, machine.bandwidth)
            counted.step()
            with roofline:
                counted.step()
            del counted
            training = Training(spec, machine)
            rate = machine.rate(training.step)
            outside = outside_kernels(training, machine)
        line: dict[str, Any] = {
            "family": family,
            "setting": name,
            "batch_size": size,
            "examples_per_second": round(rate * size * training.session.stepper.batches_per_step, 1),
            "gflop_per_step": round(roofline.operations / 1e9, 3),
            "mfu": round(roofline.operations * rate / ceiling, 3),
            "outside_kernels": None if outside is None else round(outside, 3),
            "roofline_share": round(roofline.seconds * rate, 3),
            "ceiling_tflops": round(ceiling / 1e12, 3),
            "bandwidth_gb_per_second": round(machine.bandwidth / 1e9, 1),
        }
        if family == "rnn":
            line["over_cudnn"] = round(1 / rate / recurrence_alone(spec, machine), 3)
        failures = [module.failure for module in training.session.stepper.compiled.values() if module.failure]
        yield line | ({"not_compiled": failures} if failures else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("family", nargs="*", default=["vae", "gan", "rnn"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="some of the settings")
    parser.add_argument("--batch-size", type=int, help="instead of the one that fills the card")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args()
    machine = Machine(options.device, options.seconds or (0.1 if options.smoke else 5.0), options.smoke)
    name = torch.cuda.get_device_name() if machine.device.type == "cuda" else "CPU"
    print(json.dumps({"device": name, "torch": torch.__version__}), flush=True)
    for family in options.family:
        for line in measure(family, machine, options.only, options.batch_size):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
