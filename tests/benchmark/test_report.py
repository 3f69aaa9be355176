"""The report: any number of cells, one file, and what a browser makes of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from benchmark.suite import cell, load, results
from click.testing import CliRunner

report, records = load("report"), load("harness.records")
markdown = load("report.markdown")
app = load("app").app

WHO = ("kldiv", "torch eager", "torch.compile", "optax, jax.jit", "NumPy, written out")
WHO += ("scipy rel_entr", "scipy entropy", "SimSIMD", "Liger", "memory")
BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = next(filter(None, BROWSERS), None)


def many(count):
    """Results of that many cells: some unstable, some wrong, some that failed."""
    random = np.random.default_rng(0)
    cells = []
    for k in range(count):
        group, who = divmod(k, len(WHO))
        noise = 0.3 if k % 7 == 3 else 0.01
        samples = 10.0 ** random.uniform(-5, 0) * np.exp(random.normal(0.0, noise, 15))
        found = cell(samples, who=WHO[who], group=group)
        found["error"] = 10.0 ** random.uniform(-9, -6)
        if k % 11 == 5:
            found |= {"status": "wrong", "reason": "the value is wrong by 1.0e-02", "error": 0.01}
        if k % 13 == 7:
            nothing = dict.fromkeys(("median_s", "q25_s", "q75_s", "iqr_s", "bytes_per_s", "error"))
            nothing["of_bandwidth"] = None
            found |= {"status": "failed", "reason": "ValueError: <no>", "samples_s": [], **nothing}
        cells.append(found)
    own = {each["key"].partition(" | ")[0]: each for each in cells if each["who"] == "kldiv"}
    for each in cells:
        mine = own[each["key"].partition(" | ")[0]]
        if each["who"] != "kldiv" and each["median_s"] and mine["median_s"]:
            ratio = each["median_s"] / mine["median_s"]
            mine["ratios"][each["who"]] = {"ratio": ratio, "low": ratio * 0.9, "high": ratio * 1.1}
    return records.check(
        results(*cells, missing={"Liger": {"reason": "no <GPU>", "install": None}})
    )


class Page(HTMLParser):
    """What a page holds, and whether its tags are closed in order."""

    VOID = frozenset({"meta", "input", "path", "rect", "circle", "link", "br"})
    OPTIONAL = frozenset({"td", "tr", "tbody", "option", "li", "p"})

    def __init__(self, text):
        super().__init__()
        self.open, self.count, self.links = [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value for name, value in attrs if name in {"href", "src", "action"}]
        if tag not in self.VOID | self.OPTIONAL:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID | self.OPTIONAL:
            assert self.open.pop() == tag


@pytest.mark.parametrize("count", [0, 1, 500])
def test_any_number_of_cells(count):
    found = many(count)
    text = report.page(found)
    page = Page(text)
    assert page.open == []
    assert len(text.encode()) <= 600_000
    rows = text.partition('<table id="cells">')[2].partition("</table>")[0].count("<tr ")
    assert rows == count
    groups = len({each["key"].partition(" | ")[0] for each in found["cells"]})
    assert page.count.get("figcaption", 0) == groups
    assert "no &lt;GPU&gt;" in text


def test_nothing_is_fetched():
    text = report.page(many(30))
    assert Page(text).links == []
    assert re.findall(r"(?:https?:)?//\w|@import|url\(", text) == []


def test_what_is_not_ranked_is_pale_and_named():
    text = report.page(many(100))
    assert text.count('class="note">unstable<') > 0
    assert text.count('class="note">wrong<') > 0
    bars = re.findall(r'<rect class="([^"]+)"[^>]*/>.*?</g>', text)
    pale = sum("pale" in each for each in bars)
    notes = len(re.findall(r'class="note"', text))
    assert pale == notes


def test_the_ratio_to_each_peer_is_drawn_with_its_interval():
    found = many(10)
    own = found["cells"][0]
    text = report.page(found)
    for who, each in own["ratios"].items():
        name = "memory: move the bytes" if who == "memory" else who
        drawn = re.search(rf"<title>{re.escape(name)}: ([^<]+)<", text)
        assert f"{each['low']:.3g}–{each['high']:.3g}×" in drawn[1]


def test_markdown_ranks_only_what_can_be():
    lines = markdown.tables(many(100)).splitlines()
    assert any(line.startswith("| **kldiv numpy pure**") for line in lines)
    for line in lines:
        if "unstable" in line or line.endswith(" wrong |"):
            assert line.split("|")[3].strip() == "–"


def test_the_command_writes_the_page(tmp_path):
    path, page = tmp_path / "a.json", tmp_path / "a.html"
    records.write(path, many(20))
    done = CliRunner().invoke(app, ["report", str(path), "--html", str(page), "--markdown"])
    assert done.exit_code == 0, done.output
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "times kldiv's best" in done.output
    assert CliRunner().invoke(app, ["report", str(path)]).exit_code == 0


# --- a browser ------------------------------------------------------------------------------------


def browse(tmp_path, *arguments):
    """Run headless Chromium, which fetches nothing and keeps nothing."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    flags += " --disable-background-networking --disable-component-update --hide-scrollbars"
    return subprocess.run(
        [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", *arguments],
        capture_output=True,
        check=True,
        timeout=120,
    ).stdout


def pixels(path):
    """Return a picture's pixels as rows of RGB."""
    image = pytest.importorskip("matplotlib.image")
    return np.round(255 * image.imread(path)[..., :3]).astype(int)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")


@pytest.mark.slow
@needs_chromium
def test_a_browser_shows_it_light_and_dark(tmp_path):
    page = tmp_path / "a.html"
    page.write_text(report.page(many(40)), encoding="utf-8")
    shots = {}
    for scheme, code in (("light", 1), ("dark", 0)):
        shot = tmp_path / f"{scheme}.png"
        browse(
            tmp_path,
            "--window-size=900,1200",
            f"--blink-settings=preferredColorScheme={code}",
            f"--screenshot={shot}",
            page.as_uri(),
        )
        shots[scheme] = pixels(shot)
    assert shots["light"][0, 0].tolist() == [255, 255, 255]
    assert shots["dark"][0, 0].max() < 40
    for scheme, torch in (("light", [217, 84, 30]), ("dark", [255, 138, 87])):
        assert (shots[scheme] == torch).all(axis=-1).sum() > 1000, f"no bars in {scheme}"


@needs_chromium
def test_a_browser_sorts_and_filters(tmp_path):
    script = """
<script>
const rows = () => [...document.querySelectorAll("#cells tbody tr")];
const medians = () => rows().map((row) => Number(row.cells[6].dataset.n || "NaN"));
const head = document.querySelector("#cells thead").rows[0].cells[6];
head.click();
const up = medians().filter((value) => value === value);
head.click();
const down = medians().filter((value) => value === value);
document.getElementById("search").value = "torch.compile";
document.getElementById("search").dispatchEvent(new Event("input"));
const shown = rows().filter((row) => !row.hidden).length;
const select = document.querySelector("[data-facet=s]");
select.value = "9×10";
select.dispatchEvent(new Event("change"));
const figures = [...document.querySelectorAll("figure[data-f]")];
const panels = figures.filter((each) => !each.hidden).length;
document.title = JSON.stringify({
  up: up.every((value, k) => !k || up[k - 1] <= value),
  down: down.every((value, k) => !k || down[k - 1] >= value),
  last: Number.isNaN(medians().at(-1)), shown, panels,
});
</script>"""
    page = tmp_path / "a.html"
    page.write_text(report.page(many(40)).replace("</body>", f"{script}</body>"), encoding="utf-8")
    html = browse(tmp_path, "--dump-dom", page.as_uri()).decode()
    title = html.partition("<title>")[2].partition("</title>")[0]
    assert title == '{"up":true,"down":true,"last":true,"shown":4,"panels":1}'
