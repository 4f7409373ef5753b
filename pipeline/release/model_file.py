"""The registered model as MLflow loads it: this file itself ("models from code") beside a bundle.  [mlflow]

MLflow copies the file into the model and runs it in whatever process loads the model: a notebook, a batch job, a
server. No object is pickled; the weights come from the bundle's safetensors after their checksum was compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from pipeline.generation.asking import ask
from pipeline.generation.sampling import Bundle, draw, load_bundle
from pipeline.models.base import SamplingOptions

MEDIA_TYPES = {".txt": "text/plain", ".png": "image/png", ".wav": "audio/wav"}


class AtelierModel(PythonModel):
    """Rows of wishes in, one row a sample out."""

    bundle: Bundle

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle. Raises: RegistryError when its files were changed or do not fit this version."""
        self.bundle = load_bundle(Path(context.artifacts["bundle"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Draw `count` samples for each row of `model_input`, with its `seed` (0 unless given) and, for tokens, its
        `temperature`, `top_k`, `top_p` and `length`; where the model takes them, its `label` and `prompt`.

        Columns of the result: `sample` (a text, or the bytes of a PNG or WAV file), `media_type` and `seed`. The
        same row gives the same samples. Raises: SpecError on a wish that cannot be met.
        """
        codec, samples, seeds = self.bundle.codec, [], []
        for row in model_input.to_dict(orient="records"):
            wish = {key: value for key, value in row.items() if not pd.isna(value)}
            options = SamplingOptions(
                temperature=float(wish.get("temperature", 1.0)),
                top_k=int(wish["top_k"]) if "top_k" in wish else None,
                top_p=float(wish["top_p"]) if "top_p" in wish else None,
                length=int(wish["length"]) if "length" in wish else None,
            )
            seed, count = int(wish.get("seed", 0)), int(wish["count"])
            labels = [_label(wish["label"])] if "label" in wish else []
            options, _ = ask(self.bundle, count, seed, labels, str(wish.get("prompt", "")) or None, options)
            raws = draw(self.bundle, count, seed, options)
            samples += [raw if isinstance(raw, str) else codec.to_bytes(raw) for raw in raws]
            seeds += [seed] * len(raws)
        return pd.DataFrame(
            {
                "sample": pd.Series(samples, dtype=object),
                "media_type": pd.Series([MEDIA_TYPES[codec.extension]] * len(samples), dtype=object),
                "seed": pd.Series(seeds, dtype="int64"),
            }
        )


def _label(value: Any) -> str:
    """A label as the corpus writes it; pandas makes numbers with gaps between them into floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


mlflow.models.set_model(AtelierModel())
