"""The spec: every mistake at once, with path, value, what is allowed and the nearest right key."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.reading import apply_overrides, flatten
from pipeline.spec import RunSpec, json_schema, load_spec, make_spec

CONFS = sorted(Path("conf").glob("*.yaml")) + sorted(Path("conf/benchmarks").rglob("*.yaml"))


@pytest.mark.parametrize("conf", CONFS, ids=str)
def test_every_conf_is_valid_and_survives_a_round_trip(conf: Path) -> None:
    spec = load_spec(conf)
    assert make_spec(spec.as_dict()) == spec


def test_all_mistakes_are_reported_at_once_with_their_paths() -> None:
    with pytest.raises(SpecError) as raised:
        load_spec(
            "conf/image_vae.yaml",
            [
                "training.learning_rate=1",
                "training.batch_size=-3",
                "model.family.latent_sise=3",
                "data.codec.kind=imgae",
            ],
        )
    text = str(raised.value)
    assert "conf/image_vae.yaml: 4 mistakes" in text
    assert "training.learning_rate: unknown key" in text
    assert "training.batch_size: -3: input should be greater than or equal to 1" in text
    assert "model.family.latent_sise: unknown key; did you mean 'latent_size'?" in text
    assert "data.codec.kind: 'imgae' is none of" in text
    assert "did you mean 'image'?" in text


def test_missing_key_and_missing_kind_are_named() -> None:
    with pytest.raises(SpecError) as raised:
        make_spec({"name": "x", "data": {"source": {"path": "a"}, "codec": {"kind": "bytes"}}})
    text = str(raised.value)
    assert "model: this key is needed" in text
    assert "data.source.kind: this key is needed and is not there; allowed: builtin, files" in text


def test_missing_file_proposes_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"did you mean conf/image_vae\.yaml\?"):
        load_spec("conf/image_vea.yaml")


def test_broken_yaml_is_a_spec_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: [unclosed")
    with pytest.raises(SpecError, match="not valid YAML"):
        load_spec(path)


@pytest.mark.parametrize(
    ("text", "expected"), [("training.lr=3e-4", 3e-4), ("training.lr=0.1", 0.1), ("training.steps=7", 7)]
)
def test_override_is_read_as_a_number(text: str, expected: float) -> None:
    assert flatten(load_spec("conf/image_vae.yaml", [text]).as_dict())[text.split("=")[0]] == expected


def test_override_of_a_kind_starts_that_part_anew_in_any_order() -> None:
    tree = apply_overrides(
        {"data": {"source": {"kind": "builtin", "name": "digits"}}}, ["data.source.path=/x", "data.source.kind=files"]
    )
    assert tree["data"]["source"] == {"kind": "files", "path": "/x"}


def test_override_without_a_value_is_refused() -> None:
    with pytest.raises(SpecError, match=r"write key\.path=value"):
        load_spec("conf/image_vae.yaml", ["training.lr"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.family.kind=rnn"], "makes signals, and model.family.kind 'rnn' models tokens"),
        (["data.codec.size=[3,3]", "model.backbone.kind=conv"], "too small for a conv backbone of 3 levels"),
        (["data.split.kind=given"], "names no test records"),
        (["data.split.kind=position"], "is for text"),
        (["training.num_workers=3"], "batch_size 128 is the global batch and must be a multiple of num_workers 3"),
        (
            ["training.num_workers=[1,4]"],
            r"every number of workers in num_workers [1, 4], so of 12; 120 is the nearest",
        ),
        (["training.num_workers=[2,7]"], "so of 420; 420 is the smallest, or narrow the range"),
        (["training.num_workers=[4,2]"], "num_workers [4, 2]: the first is the least; write [2, 4]"),
        (["data.split.test=0.99"], "leave nothing to train on"),
        (["model.backbone.kind=recurrent"], "a vae over data.codec.kind 'image' needs 'mlp', 'conv' or 'resnet'"),
        (["model.condition.on=[prompt]"], "data.prompt does not say what the prompts are"),
        (["data.prompt.of=source"], "data.source.kind 'builtin' as written gives none: set data.source.prompt_pattern"),
        (["model.condition.on=[label]", "data.source={kind: npz, path: x, train_labels: null}"], "set label_from"),
        (
            ["data.prompt.of=label", "data.source={kind: files, path: x}"],
            "data.prompt.of 'label', and data.source.kind",
        ),
        (["model.condition.on=[label,prompt]", "data.prompt.of=label"], "makes them say the same"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_the_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(SpecError) as raised:
        load_spec("conf/image_vae.yaml", overrides)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("conf", "overrides", "message"),
    [
        ("image_gan", ["model.family.augment=[shift]"], "'image' knows colour, translation, cutout; leave it out"),
        ("audio_gan", ["model.family.augment=[colour]"], "'waveform' knows shift, gain, time_mask; leave it out"),
        ("image_gan", ["model.family.phase_shuffle=2"], "only for data.codec.kind 'waveform' under a conv or resnet"),
        ("image_gan", ["model.family.gumbel={}"], "data.codec.kind 'image' has no tokens to draw"),
        ("image_gan", ["model.backbone.kind=recurrent"], "a gan over data.codec.kind 'image' needs 'conv', 'resnet'"),
        ("text_gan", ["model.family.critic_backbone=null"], "needs a critic of another kind, such as {kind: resnet"),
    ],
)
def test_options_of_a_gan_that_its_examples_do_not_have_are_refused(
    conf: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(SpecError) as raised:
        load_spec(f"conf/{conf}.yaml", overrides)
    assert message in str(raised.value)


def test_windows_of_text_are_asked_for_nothing() -> None:
    source = "data.source={kind: files, path: x, label_from: folder}"
    with pytest.raises(SpecError, match="have no label and no prompt of their own; take 'documents'"):
        load_spec("conf/text_rnn.yaml", [source, "model.condition.on=[label]"])
    with pytest.raises(SpecError, match=r"data\.prompt: windows of continuous text"):
        load_spec("conf/text_rnn.yaml", [source, "data.prompt.of=label"])


def test_only_true_and_false_are_truths(tmp_path: Path) -> None:
    text = Path("conf/image_vae.yaml").read_text()
    path = tmp_path / "conf.yaml"
    path.write_text(text.replace("\ntraining:", "\n  condition: {on: [label]}\n\ntraining:\n  use_gpu: false"))
    spec = load_spec(path, ["data.duplicates.near=off", "registry.name=no"])
    assert spec.model.condition.on == ("label",) and spec.training.use_gpu is False
    assert spec.data.duplicates.near == "off" and spec.registry.name == "no"


def test_spec_is_frozen() -> None:
    spec = load_spec("conf/image_vae.yaml")
    with pytest.raises(ValueError, match="frozen"):
        spec.training.lr = 1.0  # type: ignore[misc]


def test_exported_schema_is_current() -> None:
    import json

    assert json.loads(Path("conf/schema.json").read_text()) == json_schema()
    assert set(json_schema()["properties"]) == set(RunSpec.model_fields)
