"""The jobs: what `atelier` and `python -m jobs` run. Each parses, loads the spec and calls the pipeline."""
