"""`cluster.yaml` is one that `ray up` would take: by Ray's checks, the project's versions, and on a simulated AWS."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

PINNED = dict(line.split("==") for line in Path("constraints.txt").read_text().split() if "==" in line)


def read_cluster() -> dict[str, Any]:
    cluster: dict[str, Any] = yaml.safe_load(Path("cluster.yaml").read_text())
    return cluster


def commands(value: Any) -> list[str]:
    """Every command of a configuration, wherever it stands."""
    if isinstance(value, dict):
        lists = [part for key, part in value.items() if key.endswith("_commands")]
        deeper = [commands(part) for key, part in value.items() if not key.endswith("_commands")]
        return [command for part in [*lists, *deeper] for command in part]
    return []


def test_cluster_yaml_is_taken_by_the_checks_of_ray_up() -> None:
    cluster = prepare_config(read_cluster())
    validate_config(cluster)
    assert cluster["head_node_type"] in cluster["available_node_types"]


@pytest.mark.parametrize(("key", "value"), [("cluster_nam", "atelier"), ("max_workers", 0), ("head_node_type", "hed")])
def test_a_mistake_in_cluster_yaml_would_be_seen(key: str, value: Any) -> None:
    with pytest.raises(Exception, match=r"cluster_nam|max_workers|head_node_type"):
        validate_config(prepare_config(read_cluster() | {key: value}))


def test_a_cpu_head_cpu_workers_and_gpu_spot_workers_from_zero() -> None:
    types = read_cluster()["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["cpu_worker"]["min_workers"] >= 1 and "GPU" not in types["cpu_worker"]["resources"]
    gpu = types["gpu_spot_worker"]
    assert gpu["min_workers"] == 0 and gpu["max_workers"] > 0 and gpu["resources"]["GPU"] == 1
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_every_node_has_the_projects_versions() -> None:
    cluster = read_cluster()
    python = Path("pyproject.toml").read_text().split('requires-python = ">=')[1].split('"')[0]
    images = [cluster["docker"]["head_image"], cluster["docker"]["worker_image"]]
    images += [kind["docker"]["worker_image"] for kind in cluster["available_node_types"].values() if "docker" in kind]
    assert len(images) == 3
    for image in images:
        assert image.startswith(f"rayproject/ray:{PINNED['ray']}-py{python.replace('.', '')}-"), image
    for kind in ("head", "cpu_worker", "gpu_spot_worker"):
        own = cluster["available_node_types"][kind].get("worker_setup_commands")
        setup = own if own is not None else cluster["setup_commands"]
        assert any(f"torch=={PINNED['torch']}" in command for command in setup), kind
        assert any("--constraint ~/atelier/constraints.txt --editable ~/atelier" in command for command in setup), kind
    for command in commands(cluster):
        for package, version in re.findall(r"([a-z0-9]+)==([0-9.]+)", command):
            assert PINNED[package] == version, command


def test_no_secret_is_in_cluster_yaml_and_the_token_is_a_file_of_the_user() -> None:
    text = Path("cluster.yaml").read_text()
    assert not re.search(r"AKIA|aws_secret|AWS_SECRET|password|RAY_AUTH_TOKEN=", text, re.IGNORECASE)
    cluster = read_cluster()
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]


def test_nodes_share_a_bucket_and_an_mlflow_server() -> None:
    text, cluster = Path("cluster.yaml").read_text(), read_cluster()
    assert "storage=s3://" in text
    assert any(option.startswith("--env MLFLOW_TRACKING_URI=http://") for option in cluster["docker"]["run_options"])
    for kind in cluster["available_node_types"].values():
        assert kind["node_config"]["IamInstanceProfile"] == {"Name": "atelier-ray"}


def test_rays_own_set_up_starts_every_kind_of_node_on_a_simulated_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto = pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    from ray.autoscaler._private.aws import config as aws_config
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps the key pair that it makes in ~/.ssh
    (tmp_path / ".ssh").mkdir()
    cluster = prepare_config(read_cluster())
    region = cluster["provider"]["region"]
    with moto.mock_aws():
        iam = boto3.client("iam", region_name=region)
        iam.create_role(RoleName="atelier-ray", AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName="atelier-ray")
        iam.add_role_to_instance_profile(InstanceProfileName="atelier-ray", RoleName="atelier-ray")
        ready = aws_config.bootstrap_aws(copy.deepcopy(cluster))
        provider = AWSNodeProvider(ready["provider"], "atelier")
        for name, kind in ready["available_node_types"].items():
            tags = {"ray-node-type": "worker", "ray-user-node-type": name}
            provider.create_node(copy.deepcopy(kind["node_config"]), tags, 1)
        reservations = boto3.client("ec2", region_name=region).describe_instances()["Reservations"]
    started = {i["InstanceType"]: i.get("InstanceLifecycle") for r in reservations for i in r["Instances"]}
    assert started == {"m6i.xlarge": None, "m6i.2xlarge": None, "g5.xlarge": "spot"}
    assert {"ImageId", "KeyName", "SubnetIds", "SecurityGroupIds"} <= ready["available_node_types"]["head"][
        "node_config"
    ].keys()
