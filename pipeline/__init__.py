"""Atelier: generative models from a folder of text, pictures or sound, trained with Ray and kept in MLflow."""

__version__ = "0.1.0"
