"""Release: what MLflow records of a run, and the registry of models."""
