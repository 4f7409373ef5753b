"""The pages in a real browser: headless Chromium opens them from disk, with and without what they may hold.

Skipped where Playwright (the extra `dev`) or Chromium (`apt-get install chromium`) is absent.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from report_pages import everything, page, run_of, score_of

from pipeline.report.comparison import build_comparison

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]

PAGES = ("text", "image", "audio", "bare", "comparison")
WIDTHS = {"phone": 360, "desk": 1280}
LEAST_CONTRAST = 4.5
"""Of text that is not large (WCAG 2.2, success criterion 1.4.3)."""

CONTRAST = """() => {
  // Any colour the style sheet can compute, as 8-bit values, by painting it over black and over white.
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
  canvas.width = canvas.height = 1;
  const rgba = colour => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].map((value, i) => i < 3 ? value : value / 255);
  };
  const over = (top, bottom) => [0, 1, 2].map(i => top[i] * top[3] + bottom[i] * (1 - top[3]));
  const background = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const luminance = colour => {
    const [r, g, b] = colour.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("main *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility({ visibilityProperty: true }) || element.closest("noscript")) continue;
    const inChart = element.closest("svg") !== null, style = getComputedStyle(element), below = background(element);
    const [a, b] = [luminance(over(rgba(inChart ? style.fill : style.color), below)), luminance(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const text = element.textContent.trim().slice(0, 40);
    found.push([ratio, element.tagName + "." + element.getAttribute("class") + ": " + text]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of all pages."""
    folder = tmp_path_factory.mktemp("pages")
    for modality in ("text", "image", "audio"):
        page(modality, folder / f"{modality}.html", **everything(modality))
    page("image", folder / "bare.html", history=[], scores={}, samples=[], seconds={}, versions={})
    long = "a-run-with-a-very-long-name-that-has-no-place-to-break-1a2b3c4d-1"
    runs = [
        run_of(long, score_of(3.0, (-0.2, 0.2))),
        run_of("two", score_of(4.0, (-0.2, 0.2), examples=200), seed=1),
        run_of("three", modality="audio"),
        run_of("four", modality="text"),
    ]
    build_comparison(folder / "comparison.html", runs, datetime(2026, 1, 2, tzinfo=UTC))
    return {name: folder / f"{name}.html" for name in PAGES}


class Opened:
    """A page from disk in a window, with what the browser complained of and what it asked for."""

    def __init__(self, browser, path: Path, width: int, theme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_from_disk_fits_its_width_and_reads_well(browser, pages, name, width, theme):
    with Opened(browser, pages[name], WIDTHS[width], theme) as opened:
        assert opened.complaints == []
        fetched = [url for url in opened.requests if not url.startswith("data:")]
        assert fetched == [pages[name].as_uri()]
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]
        opened.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]
        contrasts = opened.page.evaluate(CONTRAST)
        assert len(contrasts) > 20
        assert [text for ratio, text in contrasts if ratio < LEAST_CONTRAST] == []


def test_both_themes_have_their_own_paper(browser, pages):
    papers = set()
    for theme in ("light", "dark"):
        with Opened(browser, pages["image"], 360, theme) as opened:
            papers.add(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


@pytest.mark.parametrize("name", ["text", "image", "audio"])
def test_a_slider_moves_the_frames_by_keyboard(browser, pages, name):
    with Opened(browser, pages[name], 360) as opened:
        walk = opened.page.locator("[data-walk]").first
        slider = walk.locator("input")
        assert walk.locator(".frame.on").get_attribute("data-place") == "+3.0"
        slider.focus()
        for place in ("0", "\N{MINUS SIGN}3.0"):
            slider.press("ArrowLeft")
            assert walk.locator(".frame.on").count() == 1
            assert walk.locator(".frame.on").get_attribute("data-place") == place
            assert walk.locator("output").inner_text() == place
            assert slider.get_attribute("aria-valuetext") == place
        assert opened.complaints == []


def test_sounds_can_be_decoded_and_have_names(browser, pages):
    with Opened(browser, pages["audio"], 1280) as opened:
        found = opened.page.evaluate(
            """async () => {
              const context = new OfflineAudioContext(1, 1, 8000), sounds = [...document.querySelectorAll("audio")];
              const bytes = uri => Uint8Array.from(atob(uri.split(",")[1]), letter => letter.charCodeAt(0)).buffer;
              return Promise.all(sounds.map(async sound => {
                const decoded = await context.decodeAudioData(bytes(sound.src));
                return [decoded.length, sound.getAttribute("aria-label"), sound.error];
              }));
            }"""
        )
        assert len(found) > 2
        assert all(length == 256 and label and error is None for length, label, error in found)


def test_curves_and_surprise_are_read_with_the_arrow_keys(browser, pages):
    with Opened(browser, pages["text"], 1280) as opened:
        chart = opened.page.locator("#curves [data-chart]").first
        chart.locator("svg").focus()
        chart.locator("svg").press("ArrowLeft")
        assert chart.locator(".axis").inner_text() == "step 2"
        assert chart.locator("output").first.inner_text() == "3"
        tokens = opened.page.locator(".tokens")
        tokens.focus()
        for nats in ("3.50", "0.10", "9.00"):
            tokens.press("ArrowRight")
            assert opened.page.locator("[data-surprise] output").inner_text() == f"{nats} nats"


def test_a_label_of_the_map_stands_out_while_its_key_is_pressed(browser, pages):
    with Opened(browser, pages["image"], 360) as opened:
        key = opened.page.locator(".keys button").first
        key.focus()
        key.press("Enter")
        assert key.get_attribute("aria-pressed") == "true"
        assert opened.page.locator(".map g.picked").count() == 1
        key.press("Enter")
        assert opened.page.locator(".map.picked").count() == 0


@pytest.mark.parametrize("name", PAGES)
def test_whatever_is_shown_or_used_has_a_name(browser, pages, name):
    with Opened(browser, pages[name], 1280) as opened:
        nameless = opened.page.evaluate(
            """() => [...document.querySelectorAll("img, input, audio, button, [role=img], [role=group], [tabindex]")]
              .filter(one => !(one.getAttribute("alt") || one.getAttribute("aria-label") || one.textContent.trim()))
              .map(one => one.outerHTML.slice(0, 80))"""
        )
        assert nameless == []
        levels = opened.page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(one => +one.tagName[1])")
        assert levels[0] == 1
        assert all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:], strict=False))


def test_without_scripts_every_frame_is_shown(browser, pages):
    context = browser.new_context(viewport={"width": 360, "height": 800}, java_script_enabled=False)
    opened = context.new_page()
    opened.goto(pages["image"].as_uri())
    assert all(frame.is_visible() for frame in opened.locator(".frame").all())
    context.close()
