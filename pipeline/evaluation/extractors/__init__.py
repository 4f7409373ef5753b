"""Extractors: networks whose features say how examples differ; `pipeline.evaluation.features` finds them."""
