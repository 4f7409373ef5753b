"""The page of a run: complete, escaped, self-contained, the same for the same run."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from report_pages import GATE, SAMPLES, VERDICT, WARNINGS, everything, page

from pipeline.evaluation.definitions import DEFINITIONS
from pipeline.evaluation.metric import Score, Scores
from pipeline.report.page import MOST_BYTES
from pipeline.report.rendering import duration


class Outline(HTMLParser):
    """Checks that every element that opens closes, and keeps what would be fetched."""

    VOID = frozenset({"meta", "img", "line", "path", "rect", "circle", "link", "br", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "poster")]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_page_is_well_formed_and_fetches_nothing(modality):
    html = page(modality, **everything(modality))
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    assert all(value.startswith(("data:", "#")) for value in outline.fetched)
    assert "@import" not in html
    assert all(target.startswith(("'data:", "#")) for target in re.findall(r"url\(([^)]*)", html))
    assert "default-src 'none'" in html


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_the_data_card_shows_examples_of_the_corpus(modality):
    title = "Examples of the training split"
    assert title not in page(modality)
    html = page(modality, samples=[], examples=SAMPLES[modality])
    card = html[html.index('<section id="data">') :]
    assert title in card
    shown = {"text": "a time &lt;b&gt;", "image": "data:image/png;base64,", "audio": "data:audio/wav;base64,"}
    assert shown[modality] in card


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_a_sample_says_what_it_was_asked_for(modality):
    assert '<figure class="asked">' not in page(modality)
    html = page(modality, asked=["seven", "“<i>two</i>”"])
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    assert re.findall("<figcaption>([^<]*)</figcaption>", html) == ["seven", "“&lt;i&gt;two&lt;/i&gt;”"]


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_equal_runs_give_equal_pages(modality):
    assert page(modality, **everything(modality)) == page(modality, **everything(modality))


def test_what_a_training_began_with_is_told():
    assert 'id="inherited"' not in page("text")
    html = page("text", **everything("text"))
    section = html[html.index('<section id="inherited">') :].split("</section>")[0]
    for words in (
        "models:/old&lt;1&gt;/3",
        "4 of 6 tokens",
        "b.weight",
        "c.weight",
        "&lt;|user|&gt;",
        "3 there, 5 here",
    ):
        assert words in section, words
    assert "a.weight" not in section


def test_text_from_data_is_escaped():
    html = page("text")
    assert "a time &lt;b&gt;&amp;&lt;/b&gt;" in html
    assert "CC0 &lt;i&gt;" in html
    assert "<b>&</b>" not in html


def test_pictures_come_back_as_they_were():
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page("image"))
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]
    assert len(pictures) == 2
    assert (pictures[0] == SAMPLES["image"][0][:, :, 0]).all()


def test_sounds_play_at_their_rate():
    found = re.findall(r'src="data:audio/wav;base64,([^"]+)"', page("audio"))
    with wave.open(io.BytesIO(base64.b64decode(found[0]))) as file:
        assert (file.getframerate(), file.getnframes(), file.getsampwidth()) == (8000, 256, 2)


def test_each_score_says_value_unit_direction_interval_protocol_and_how_to_read_it():
    html = page()
    for part in ("3.250", "squared feature distance", "lower is better", "3.100 to 3.400", "test/frechet", "<b>c</b>"):
        assert part in html
    assert DEFINITIONS["frechet"].reading.split(".")[0] in html


def test_every_known_score_has_a_title_a_unit_and_a_reading():
    for definition in DEFINITIONS.values():
        assert definition.title
        assert definition.unit
        assert len(definition.reading) > 40


def test_data_card_tells_what_was_left_out_and_why():
    html = page()
    for part in (
        "12 read, 10 decoded",
        "1 empty text; empty text: y/2.txt: all white space",
        "3 email",
        "1 cp1252",
        "2 records in 1 clusters",
        "a.txt, b.txt",
        "validation has 0.0% of the records",
        "x/1.png",
        "truncated",
        "5% validation, 10% test",
        "seven",
    ):
        assert part in html


def test_a_run_that_has_nothing_yet_still_gives_apage():
    html = page(history=[], scores={}, samples=[], seconds={}, versions={})
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    assert 'id="scores"' not in html


def test_overview_stands_in_for_samples():
    html = page(samples=[], overview_png=b"png")
    assert f'src="data:image/png;base64,{base64.b64encode(b"png").decode()}"' in html


def test_page_is_written_whole(tmp_path):
    html = page(out=tmp_path / "deep" / "report.html")
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8") == html
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.44, "8.4 s"), (42, "42 s"), (180, "3 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text


def test_sections_without_input_are_absent():
    bare, full = page("image"), page("image", **everything("image"))
    for name in ("verdict", "health", "gate", "nearest", "temperature", "latent", "surprise"):
        assert f'id="{name}"' not in bare
        assert f'href="#{name}"' not in bare
        assert f'id="{name}"' in full
        assert f'href="#{name}"' in full


def test_the_verdict_answers_each_question_in_words():
    html = page(verdict=VERDICT)
    for part in ("Is it good?", "Is it varied?", "Is it new?", "3 of 64 samples are near copies.", ">Unclear<"):
        assert part in html
    assert "A finding &lt;b&gt;in words&lt;/b&gt;." in html


def test_health_says_what_was_seen_when_and_what_to_do():
    html = page(warnings=WARNINGS)
    for part in ("4 times from step 1,200 to step 3,000", "at step 13<", "&lt;here&gt;", "The decoder ignores z."):
        assert part in html
    assert html.count("Set kl_warmup.") == 1
    assert "No rule of health gave a warning." in page(warnings=[])


def test_the_gates_table_says_what_decided():
    html = page(gate=GATE)
    for part in ("Rejected", "It copies the training set.", "(0.5000 to 1.500)", "(0.2500 to 0.3750)", "Too many."):
        assert part in html
    assert re.findall(r'<span class="(\w*)">(met|broken|unknown)</span>', html) == [
        ("passed", "met"),
        ("failed", "broken"),
        ("", "unknown"),
    ]


def test_the_nearest_pair_comes_first_with_what_was_found_of_it():
    html = page(**{"nearest": everything("image")["nearest"]})
    assert html.index("distance <b>0.5000</b>") < html.index("distance <b>2.500</b>")
    assert html.count("<strong>copy</strong>") == 1
    assert html.count("held-out 1.250") == 1
    assert "1.25% of held-out examples are as near" in html
    assert "b&lt;1&gt;.png" in html


def test_surprise_has_one_scale_on_every_page():
    html = page("text", surprise=[("a", 0.0), ("b<", 3.0), ("c", 50.0), ("\n", 0.1), ("d", None)])
    assert '<span class="heat0" data-nats="0.00 nats">a</span>' in html
    assert '<span class="heat4" data-nats="3.00 nats">b&lt;</span>' in html
    assert '<span class="heat8" data-nats="50.00 nats">c</span>' in html
    assert "↵\n</span>" in html
    assert '<span class="heat0" data-nats="">d</span>' in html
    assert "5 pieces, 13.28 nats each on average" in html
    assert 'id="surprise"' not in page("text", surprise=[("d", None)])


def test_every_label_of_the_map_has_a_key_and_every_example_a_dot():
    html = page(latent=everything("image")["latent"])
    assert re.findall(r'data-key="(\w+)" aria-pressed', html) == ["hue0", "hue1", "hueless"]
    paths = re.findall(r'<g class="hue\w*" data-key="\w+"><path d="([^"]+)"', html)
    assert sorted(path.count("h0") for path in paths) == [1, 1, 2]


def test_a_large_picture_is_reduced():
    (found,) = re.findall(r'data:image/webp;base64,([^"]+)"', page(samples=[np.zeros((600, 900, 3), np.uint8)]))
    assert Image.open(io.BytesIO(base64.b64decode(found))).size == (384, 256)


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_a_page_is_bounded_whatever_it_is_given(modality):
    generator = np.random.default_rng(0)
    raw = {
        "image": generator.integers(0, 256, (128, 128, 3), dtype=np.uint8),
        "audio": generator.uniform(-1, 1, 200_000).astype(np.float32),
        "text": "<" * 100_000,
    }[modality]
    huge = everything(modality)
    view = huge["latent"]
    huge["latent"] = dataclasses.replace(
        view,
        from_prior=tuple(dataclasses.replace(walk, frames=[raw] * 3) for walk in view.from_prior * 20),
        interpolations=[dataclasses.replace(view.interpolations[0], frames=[raw] * 3, ends=(raw, raw))] * 20,
    )
    huge["nearest"] = [{"sample": raw, "training": raw, "distance": 1.0}] * 50
    huge["surprise"] = [("<" * 1000, 1.0)] * 20_000
    history = [{"step": s, **{f"train/{name}": 1.0 + s % 7 for name in range(60)}} for s in range(1000)]
    html = page(modality, samples=[raw] * 100, history=history, **huge)
    assert len(html.encode()) < MOST_BYTES
    assert "not shown here" in html


def test_a_caution_and_the_reason_of_a_refusal_are_shown():
    few = Score(0.5, "share", "higher", {"extractor": "c"}, (0.4, 0.6), "30 examples are few")
    html = page(scores=Scores({"test/precision": few}, {"test/kid": "19 examples <and> fewer than 20 say nothing"}))
    assert '<p class="reading caution">30 examples are few</p>' in html
    assert "<b>test/kid</b> 19 examples &lt;and&gt; fewer than 20 say nothing" in html
    assert "reading caution" not in page() and "Not given" not in page()
