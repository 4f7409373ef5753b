"""What tests share: tiny specs for every cell of family × modality, small prepared sets in memory, one Ray."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# For the S3 server that a test starts on loopback; Ray's workers inherit them.
os.environ.setdefault("AWS_ACCESS_KEY_ID", "testing")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "testing")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

import numpy as np
import pytest
import torch
from hypothesis import settings

from pipeline.data.codec import make_codec
from pipeline.data.layout import Layout
from pipeline.data.prepared import Prepared, SplitArrays
from pipeline.data.prompts import encode_prompts
from pipeline.spec import RunSpec, make_spec

if TYPE_CHECKING:
    from tests.integration.ray_nodes import RayNodes

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
"""Real corpora beside the checkout of a developer; tests that use them skip where they are absent."""

# No test asserts a wall-clock time, and a deadline of 200 ms an example is one. The gate looks at the same examples
# every time, so that a change fails for what it does; `--hypothesis-profile thorough` searches twenty times as many
# at random, and what it finds is mended before it can fail anybody's gate.
settings.register_profile("quick", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("quick")

# The networks of tests are tiny: threads would only wait for each other.
torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than there are processors: some tests wait for a clock or for processes."""
    return len(os.sched_getaffinity(0)) + 1


MODALITIES = ("text", "image", "audio")
FAMILIES = ("rnn", "vae", "gan")
CELLS = [(family, modality) for family in FAMILIES for modality in MODALITIES]

TOKEN_CODECS: dict[str, dict[str, Any]] = {
    "text": {"kind": "characters", "packing": "documents", "length": 16},
    "image": {"kind": "raster", "size": [6, 6], "levels": 4},
    "audio": {"kind": "mu_law", "num_samples": 64, "levels": 16},
}
SIGNAL_CODECS: dict[str, dict[str, Any]] = {
    "image": {"kind": "image", "size": [12, 12]},
    "audio": {"kind": "waveform", "num_samples": 256},
}
RECURRENT = {"kind": "recurrent", "cell": "gru", "hidden_size": 16, "embedding_size": 8}
CONV = {"kind": "conv", "channels": [4, 8], "kernel": 3, "stride": 2}


def cell_spec(family: str, modality: str, storage: str = "unused", **training: Any) -> RunSpec:
    """A tiny spec of one cell: the token view for the RNN and for text, signals otherwise."""
    tokens = family == "rnn" or modality == "text"
    codec = TOKEN_CODECS[modality] if tokens else SIGNAL_CODECS[modality]
    backbone = RECURRENT if family == "rnn" or (family == "vae" and tokens) else CONV
    options: dict[str, Any] = {"kind": family}
    if family != "rnn":
        options["latent_size"] = 4
    if family == "gan":
        options["critic_steps"] = 2
    if family == "vae" and modality == "audio":
        options["likelihood"] = "gaussian"
    settings = {"steps": 6, "batch_size": 8, "lr": 1e-3, "report_every": 2, "checkpoint_every": 3, "validate_every": 3}
    settings |= {"threads_per_worker": 1}
    return make_spec(
        {
            "name": f"tiny-{modality}-{family}",
            "storage": storage,
            "data": {"source": {"kind": "builtin", "name": "digits"}, "codec": codec},
            "model": {"family": options, "backbone": backbone},
            "training": settings | training,
            "evaluation": {"nll_samples": 3, "batch_size": 8, "samples": 8},
        }
    )


def raw_examples(modality: str, count: int, seed: int = 0) -> list[Any]:
    """Raw records of a modality: words, random pictures `[H, W, 1]`, or random sound."""
    generator = np.random.default_rng(seed)
    if modality == "text":
        return ["".join(generator.choice(list("abcde "), size=generator.integers(3, 12))) for _ in range(count)]
    if modality == "image":
        return [generator.integers(0, 256, (12, 12, 1), dtype=np.uint8) for _ in range(count)]
    return [generator.uniform(-0.8, 0.8, 256).astype(np.float32) for _ in range(count)]


class PreparedInMemory:
    """What a session reads of a prepared set, without files."""

    def __init__(self, spec: RunSpec, raws: dict[str, list[Any]]) -> None:
        self.key = "in-memory"
        self.codec = make_codec(spec.data.codec)
        if self.codec.needs_fit:
            self.codec.fit(raws["train"])
        self.layout: Layout = self.codec.layout()
        self.raws = raws
        self.manifest = SimpleNamespace(
            splits={name: {"rows": len(part), "shards": [{"rows": len(part)}]} for name, part in raws.items()}
        )

    def load_split(self, name: str, verify: bool = True, max_rows: int | None = None) -> SplitArrays:
        encoded = [self.codec.encode(raw) for raw in self.raws[name]]
        empty = torch.zeros(0, dtype=torch.int64)
        if self.layout.continuous:
            stream = torch.from_numpy(np.concatenate(encoded).astype(np.int64))
            windows = len(stream) // self.layout.length * self.layout.length
            x, tail = stream[:windows].view(-1, self.layout.length), stream[windows:]
        else:
            x, tail = torch.from_numpy(np.stack(encoded)), empty
        label = torch.full((len(x),), -1, dtype=torch.int64)
        return SplitArrays(x=x, label=label, ids=[str(row) for row in range(len(x))], tail=tail)

    def names(self, name: str, rows: Sequence[int]) -> list[str]:
        return [f"{name}/{row}.raw (id {row:016x})" for row in rows]


def prepared_in_memory(spec: RunSpec, train: int = 40, validation: int = 8) -> Prepared:
    """A set of random records, as the `Prepared` whose place it takes in a session."""
    modality = make_codec(spec.data.codec).modality
    raws = {"train": raw_examples(modality, train), "validation": raw_examples(modality, validation, seed=1)}
    return cast(Prepared, PreparedInMemory(spec, raws))


class Described(PreparedInMemory):
    """A set in memory whose examples have labels and prompts."""

    def __init__(self, spec: RunSpec) -> None:
        modality = make_codec(spec.data.codec).modality
        super().__init__(spec, {"train": raw_examples(modality, 40), "validation": raw_examples(modality, 8, seed=1)})
        self.layout = replace(
            self.layout,
            labels=("one", "two"),
            label_counts=(30, 10),
            prompts=("a bell", "rain"),
            prompt_counts=(20, 20),
            prompt_length=8,
        )

    def load_split(self, name: str, verify: bool = True, max_rows: int | None = None) -> SplitArrays:
        arrays = super().load_split(name, verify, max_rows)
        row = torch.arange(len(arrays))
        prompts = torch.from_numpy(encode_prompts(self.layout.prompts, 8).astype("int16"))
        return replace(arrays, label=row % 2, prompt=prompts[row % 2])


def described_in_memory(spec: RunSpec) -> Prepared:
    """A set of random records with labels and prompts, as the `Prepared` whose place it takes in a session."""
    return cast(Prepared, Described(spec))


def lane_spec(**training: Any) -> RunSpec:
    """A tiny language model over continuous text, whose state is carried."""
    spec = cell_spec("rnn", "text", **training).as_dict()
    spec["data"]["codec"] = {"kind": "characters", "packing": "windows", "length": 8}
    return make_spec(spec)


def window_spec(**training: Any) -> RunSpec:
    """A tiny model of sounds that are read in windows and frames, with a mask over all steps of an example."""
    spec = cell_spec("rnn", "audio", **training).as_dict()
    spec["data"]["codec"] |= {"num_samples": 300}
    spec["model"]["family"] |= {"window": 90, "frame": 4, "history": 6, "readout": [12, 12]}
    spec["model"]["backbone"] |= {"dropout": 0.2, "variational": True}
    return make_spec(spec)


GAN_OPTIONS: dict[str, dict[str, Any]] = {
    "text": {"loss": "hinge", "gumbel": {}, "spectral_norm": True, "critic_backbone": CONV},
    "image": {"loss": "non_saturating", "real_gradient_penalty": 1.0, "augment": ["colour", "translation", "cutout"]},
    "audio": {"loss": "wasserstein", "phase_shuffle": 2, "augment": ["shift", "gain", "time_mask"]},
}


def gan_with_options(modality: str, **training: Any) -> RunSpec:
    """A tiny GAN of everything that can be told of one, conditioned on labels."""
    spec = cell_spec("gan", modality, **training).as_dict()
    spec["model"]["family"] |= GAN_OPTIONS[modality]
    if modality == "text":
        spec["model"] |= {"backbone": RECURRENT}
    spec["model"]["condition"] = {"on": ["label"], "size": 4, "dropout": 0.1}
    return make_spec(spec)


@pytest.fixture(scope="session")
def mlflow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store in SQLite as MLflow makes it, without an experiment of ours: made once, by whichever process of
    the tests needs it first, since its migrations take seconds, and only to be copied."""
    from pipeline.release.tracking import connect

    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = folder / "mlflow.db"
    with (folder / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            connect(f"sqlite:///{folder}/unfinished.db", create=True)
            (folder / "unfinished.db").rename(path)
    return path


@pytest.fixture
def storage_with_mlflow(mlflow_file: Path, tmp_path: Path) -> Path:
    """A storage of the test's own with such a store in it."""
    storage = tmp_path / "storage"
    storage.mkdir()
    shutil.copyfile(mlflow_file, storage / "mlflow.db")
    return storage


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests that need one, ended by its own handle."""
    from pipeline.ray_session import ray_session

    with ray_session():
        yield


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A cluster of nodes that are processes: a head and two workers, for a module's tests."""
    from tests.integration.ray_nodes import RayNodes

    with RayNodes() as nodes:
        yield nodes
