"""The page of a run: complete, escaped, self-contained, the same for the same run."""

from __future__ import annotations

import base64
import io
import re
import wave
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.metric import DEFINITIONS, Score, Scores
from pipeline.report.page import build_report, duration
from pipeline.spec import make_spec

LAYOUTS = {
    "text": {"modality": "text", "view": "tokens", "shape": [8], "vocabulary": 65},
    "image": {"modality": "image", "view": "signal", "shape": [1, 4, 4]},
    "audio": {"modality": "audio", "view": "signal", "shape": [1, 256], "sample_rate_hz": 8000},
}
CODECS = {
    "text": ({"kind": "bytes"}, {"kind": "rnn"}, {"kind": "recurrent"}),
    "image": ({"kind": "image", "size": [4, 4]}, {"kind": "vae"}, {"kind": "mlp"}),
    "audio": ({"kind": "waveform", "num_samples": 256}, {"kind": "gan"}, {"kind": "mlp"}),
}
SAMPLES = {
    "text": ["once upon", "a time <b>&</b>"],
    "image": [np.arange(16, dtype=np.uint8).reshape(4, 4, 1), np.full((4, 4, 1), 200, np.uint8)],
    "audio": [np.linspace(-1, 1, 256, dtype=np.float32), np.zeros(256, np.float32)],
}


def _page(modality="image", out=None, **changes):
    codec, family, backbone = CODECS[modality]
    spec = make_spec(
        {
            "name": "a-run",
            "data": {"source": {"kind": "builtin", "name": "digits"}, "codec": codec},
            "model": {"family": family, "backbone": backbone},
        }
    )
    manifest = {
        "key": "3f2a",
        "corpus": {"fingerprint": "ab" * 32, "licence": "CC0 <i>", "source": {"kind": "builtin", "name": "digits"}},
        "split": {"kind": "hash", "validation": 0.05, "test": 0.1},
        "codec": {"spec": codec},
        "layout": LAYOUTS[modality],
        "splits": {"train": {"records": 9, "rows": 9, "characters": 0, "labels": {"seven": 4, "two": 5}}},
        "report": {
            "read": 12,
            "kept": 9,
            "stages": [{"stage": "read", "left": 12}, {"stage": "decoded", "left": 10}],
            "dropped": {"empty text": 1},
            "examples": {"empty text": [{"origin": "y/2.txt", "detail": "all white space"}]},
            "cleaned": {"unicode": 2},
            "personal_data": {"email": 3},
            "facts": {"encoding": {"utf-8": 11, "cp1252": 1}},
            "lengths": {"unit": "characters", "min": 1, "median": 2.5, "mean": 3.25, "p95": 5.0, "max": 7},
            "unknown_characters": 0,
            "duplicates": {
                "clusters": 1,
                "records_in_clusters": 2,
                "largest": 2,
                "near_pairs": 1,
                "examples": [{"size": 2, "origins": ["a.txt", "b.txt"]}],
            },
            "leakage": {"units": 0},
            "notes": ["validation has 0.0% of the records"],
            "quarantined": [{"origin": "x/1.png", "reason": "truncated"}],
            "quarantined_count": 2,
        },
    }
    values = {
        "spec": spec,
        "manifest": manifest,
        "history": [{"step": s, "train/loss": 5.0 - s} for s in range(4)],
        "scores": {"test/frechet": Score(3.25, "squared feature distance", "lower", {"extractor": "c"}, (3.1, 3.4))},
        "samples": SAMPLES[modality],
        "seconds": {"train": 61.0, "total": 70.0},
        "versions": {"torch": "2.13.0"},
        "created": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    }
    return build_report(out, **{**values, **changes})


class Outline(HTMLParser):
    """Checks that every element that opens closes, and keeps what would be fetched."""

    VOID = frozenset({"meta", "img", "line", "path", "rect", "circle", "link", "br"})

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
    html = _page(modality)
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    assert all(value.startswith(("data:", "#")) for value in outline.fetched)
    assert "@import" not in html
    assert all(target.startswith(("'data:", "#")) for target in re.findall(r"url\(([^)]*)", html))
    assert "default-src 'none'" in html


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_equal_runs_give_equal_pages(modality):
    assert _page(modality) == _page(modality)


def test_text_from_data_is_escaped():
    html = _page("text")
    assert "a time &lt;b&gt;&amp;&lt;/b&gt;" in html
    assert "CC0 &lt;i&gt;" in html
    assert "<b>&</b>" not in html


def test_pictures_come_back_as_they_were():
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', _page("image"))
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]
    assert len(pictures) == 2
    assert (pictures[0] == SAMPLES["image"][0][:, :, 0]).all()


def test_sounds_play_at_their_rate():
    found = re.findall(r'src="data:audio/wav;base64,([^"]+)"', _page("audio"))
    with wave.open(io.BytesIO(base64.b64decode(found[0]))) as file:
        assert (file.getframerate(), file.getnframes(), file.getsampwidth()) == (8000, 256, 2)


def test_each_score_says_value_unit_direction_interval_protocol_and_how_to_read_it():
    html = _page()
    for part in ("3.250", "squared feature distance", "lower is better", "3.100 to 3.400", "test/frechet", "<b>c</b>"):
        assert part in html
    assert DEFINITIONS["frechet"].reading.split(".")[0] in html


def test_every_known_score_has_a_title_a_unit_and_a_reading():
    for definition in DEFINITIONS.values():
        assert definition.title
        assert definition.unit
        assert len(definition.reading) > 40


def test_data_card_tells_what_was_left_out_and_why():
    html = _page()
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


def test_a_run_that_has_nothing_yet_still_gives_a_page():
    html = _page(history=[], scores={}, samples=[], seconds={}, versions={})
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    assert 'id="scores"' not in html


def test_overview_stands_in_for_samples():
    html = _page(samples=[], overview_png=b"png")
    assert f'src="data:image/png;base64,{base64.b64encode(b"png").decode()}"' in html


def test_page_is_written_whole(tmp_path):
    html = _page(out=tmp_path / "deep" / "report.html")
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8") == html
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.44, "8.4 s"), (42, "42 s"), (180, "3 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text


def test_a_caution_and_the_reason_of_a_refusal_are_shown():
    few = Score(0.5, "share", "higher", {"extractor": "c"}, (0.4, 0.6), "30 examples are few")
    html = _page(scores=Scores({"test/precision": few}, {"test/kid": "19 examples <and> fewer than 20 say nothing"}))
    assert '<p class="reading caution">30 examples are few</p>' in html
    assert "<b>test/kid</b> 19 examples &lt;and&gt; fewer than 20 say nothing" in html
    assert "reading caution" not in _page() and "Not given" not in _page()
