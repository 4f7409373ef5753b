"""`cluster.yaml` is one that `ray up` would take, by the schema that Ray ships."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import ray
import yaml


def test_cluster_yaml_fits_the_schema_that_ray_ships() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load(Path("cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
