"""Asking a model: every sample knows what it was asked for, and what a model does not take is refused in words."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundles import make_bundle, tiny_manifest, tiny_spec

from pipeline.data.codec import make_codec
from pipeline.data.layout import Layout
from pipeline.data.manifest import Manifest
from pipeline.data.prompts import decode_prompt
from pipeline.errors import SpecError
from pipeline.generation.asking import Takes, Wish, ask, in_turn, part_of, with_wishes
from pipeline.generation.batch import generate
from pipeline.generation.sampling import Bundle, SamplingOptions, draw, load_bundle, save_bundle
from pipeline.models import build_model
from pipeline.release.card import model_card

WORDS = {"one": 3, "two": 1}


def conditional(folder: Path, *on: str, modality: str = "image") -> Path:
    """A bundle of an untrained model that may be asked for labels `one` and `two`, for prompts, or for both."""
    plain = tiny_spec(modality)
    data = plain.data.model_dump(mode="json") | ({"prompt": {"of": "label", "length": 12}} if "prompt" in on else {})
    spec = tiny_spec(modality, data=data, model={**plain.model.model_dump(mode="json"), "condition": {"on": on}})
    codec = make_codec(spec.data.codec)
    layout = replace(codec.layout(tuple(WORDS)), label_counts=tuple(WORDS.values()))
    if "prompt" in on:
        layout = replace(layout, prompts=tuple(WORDS), prompt_counts=tuple(WORDS.values()), prompt_length=12)
    manifest = {**tiny_manifest(plain), "layout": layout.as_dict()}
    manifest.pop("sha256")
    told = Manifest(**manifest).as_dict()
    return save_bundle(folder, spec, told, build_model(spec, layout).state_dict())


def asked_prompts(options: SamplingOptions) -> list[str | None]:
    assert options.asked_prompt is not None
    return [decode_prompt(np.array(row)) for row in options.asked_prompt]


def test_labels_are_given_in_turn_and_what_is_not_asked_for_is_drawn_as_the_corpus_has_it(tmp_path: Path) -> None:
    bundle = load_bundle(conditional(tmp_path, "label"))
    options, wishes = ask(bundle, 5, 0, labels=["two", "one"])
    assert [wish.label for wish in wishes] == ["two", "one", "two", "one", "two"]
    assert options.asked_label == (1, 0, 1, 0, 1)
    drawn = Counter(wish.label for wish in ask(bundle, 4000, 0)[1])
    assert drawn["one"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert ask(bundle, 50, 1)[1] == ask(bundle, 50, 1)[1] != ask(bundle, 50, 2)[1]


def test_a_prompt_reaches_a_model_that_is_conditioned_on_prompts_as_its_tokens(tmp_path: Path) -> None:
    bundle = load_bundle(conditional(tmp_path, "prompt"))
    options, wishes = ask(bundle, 3, 0, prompt="three")
    assert asked_prompts(options) == ["three"] * 3 and wishes == [Wish(prompt="three")] * 3
    assert options.asked_label is None and options.prompt == ()
    assert set(asked_prompts(ask(bundle, 40, 0)[0])) == {"one", "two"}
    with pytest.raises(SpecError, match="17 bytes of UTF-8, the model reads 10"):
        ask(bundle, 1, 0, prompt="much too long, é")


def test_what_is_asked_for_stays_with_its_sample_over_the_batches_of_a_call(tmp_path: Path, monkeypatch: Any) -> None:
    bundle = load_bundle(conditional(tmp_path, "label"))
    seen: list[Any] = []
    sample = bundle.model.sample

    def spy(count: int, generator: Any, options: SamplingOptions) -> Any:
        seen.append((count, options.asked_label))
        return sample(count, generator, options)

    monkeypatch.setattr(bundle.model, "sample", spy)
    draw(bundle, 5, 0, ask(bundle, 5, 0, labels=["one", "two"])[0], batch_size=2)
    assert seen == [(2, (0, 1)), (2, (0, 1)), (1, (0,))]
    one_for_all = SamplingOptions(asked_label=1)
    assert part_of(one_for_all, 2, 3) is one_for_all


@pytest.mark.parametrize(
    ("on", "modality", "asked", "message"),
    [
        ((), "image", {"labels": ["one"]}, "takes no label; it takes nothing: it was trained without conditions"),
        ((), "image", {"prompt": "x"}, "a vae of pictures, takes no prompt"),
        (("label",), "image", {"prompt": "x"}, "takes no prompt; it takes --label, one of one, two"),
        (("label",), "image", {"labels": ["7"]}, "--label '7': the model knows one, two"),
        (
            ("prompt",),
            "image",
            {"labels": ["one"]},
            "takes no label; it takes --prompt, a text of up to 10 bytes",
        ),
        ((), "text", {"labels": ["one"]}, "takes no label; it takes --prompt, a text that it continues"),
    ],
)
def test_what_a_model_does_not_take_is_refused_with_what_it_does(
    tmp_path: Path, on: tuple[str, ...], modality: str, asked: dict[str, Any], message: str
) -> None:
    folder = conditional(tmp_path, *on) if modality == "image" else make_bundle(tmp_path, modality)
    with pytest.raises(SpecError, match=message):
        ask(load_bundle(folder), 1, 0, **asked)


def test_a_text_model_without_conditions_continues_the_prompt(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path, "text"))
    options, wishes = ask(bundle, 2, 0, prompt="To be")
    assert len(options.prompt) == 5 and wishes == [Wish(prompt="To be")] * 2


def test_the_provenance_says_of_each_file_what_it_was_asked_for(tmp_path: Path) -> None:
    folder = str(conditional(tmp_path / "bundle", "label"))
    record = generate(folder, 3, 0, tmp_path / "out", labels=["two", "one"])
    assert [one["label"] for one in record["asked"].values()] == ["two", "one", "two"]
    assert record["asked"].keys() == record["files"].keys() - {"overview.png"}
    assert json.loads((tmp_path / "out" / "provenance.json").read_bytes())["options"]["labels"] == ["two", "one"]
    drawn = generate(folder, 3, 0, tmp_path / "drawn")
    assert all(one["label"] in WORDS for one in drawn["asked"].values())
    assert generate(str(make_bundle(tmp_path / "plain", "image")), 1, 0, tmp_path / "p")["asked"] == {}


def test_labels_and_prompts_take_turns_and_meet_in_every_pair() -> None:
    spec = tiny_spec("image")
    on = {"on": ["label", "prompt"]}
    data = {**spec.data.model_dump(mode="json"), "source": {"kind": "files", "path": "x", "label_from": "folder"}}
    data["source"]["prompt_pattern"] = "(.)"
    data["prompt"] = {"of": "source"}
    spec = tiny_spec("image", data=data, model={**spec.model.model_dump(mode="json"), "condition": on})
    layout = Layout("image", "signal", (1, 2, 2), "uint8", "bernoulli", labels=("a", "b"), prompts=("x", "y"))
    wishes = in_turn(spec, layout, 4)
    assert {(wish.label, wish.prompt) for wish in wishes} == {("a", "x"), ("b", "y"), ("a", "y"), ("b", "x")}
    assert wishes[0].in_words() == "a, “x”"


def test_nothing_is_asked_of_a_model_without_conditions() -> None:
    spec = tiny_spec("image")
    layout = make_codec(spec.data.codec).layout(("one", "two"))
    assert not Takes.of(spec, layout)
    assert with_wishes(layout, in_turn(spec, layout, 2), SamplingOptions()) == SamplingOptions()


def test_the_card_says_what_may_be_asked(tmp_path: Path) -> None:
    bundle: Bundle = load_bundle(conditional(tmp_path, "label"))
    card = model_card(bundle.spec, bundle.manifest, {})
    assert "- --label, one of one, two" in card and '"label": ["one"]' in card
    plain = load_bundle(make_bundle(tmp_path / "plain", "image"))
    assert "Nothing in particular" in model_card(plain.spec, plain.manifest, {})


def test_a_registered_model_is_asked_row_by_row(tmp_path: Path) -> None:
    import pandas as pd

    from pipeline.release.model_file import AtelierModel

    model = AtelierModel()
    model.bundle = load_bundle(conditional(tmp_path, "label"))
    rows = pd.DataFrame({"count": [2, 1, 2], "seed": [7, 7, 7], "label": ["one", None, "two"]})
    told = model.predict(None, rows)["sample"].tolist()  # type: ignore[arg-type]
    asked = [draw(model.bundle, 2, 7, ask(model.bundle, 2, 7, [label])[0]) for label in ("one", "two")]
    codec = model.bundle.codec
    assert [told[:2], told[3:]] == [[codec.to_bytes(raw) for raw in raws] for raws in asked]
    with pytest.raises(SpecError, match="the model knows one, two"):
        model.predict(None, pd.DataFrame({"count": [1], "label": [3.0]}))  # type: ignore[arg-type]
