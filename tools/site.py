"""Look at the built site in a browser, at the widths of a desk and of a phone, light and dark.

    python -m tools.site build/site --axe axe.min.js --shots shots

Ends with exit code 1 if a page scrolls sideways, writes an error to the console, loads something
from a network, or breaks a rule of accessibility of level serious (by axe-core, from npm), or if
the search finds nothing.  Needs Playwright and an installed Chromium.
"""

from __future__ import annotations

import shutil
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = (
    "index",
    "start",
    "auto_tutorial/plot_distil_a_model",
    "howto/index",
    "howto/add-divergence",
    "reference/index",
    "reference/losses",
    "reference/generated/kldiv.kl_div_with_logits",
    "reference/generated/kldiv.kl_divergence",
    "reference/command",
    "accuracy",
    "distributions",
    "cpu-kernels",
    "auto_gallery/index",
    "auto_gallery/plot_07_drift",
    "search",
)
WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")
SEVERE = {"serious", "critical"}


def look(page: Any, address: str, axe: Path | None) -> Iterator[str]:
    """Yield the faults of one page."""
    page.goto(address)
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    if wide > 0:
        yield f"{wide} px too wide"
    if axe is None:
        return
    page.add_script_tag(path=axe)
    for found in page.evaluate("axe.run({preload: false})")["violations"]:
        if found["impact"] in SEVERE:
            places = [node["target"] for node in found["nodes"]]
            yield f"{found['id']} at {places[:3]} of {len(places)}"


def _of_network(address: str) -> list[str]:
    """Return a fault where an address is not on this disk."""
    return [] if address.startswith(("file:", "data:", "blob:")) else [f"loads {address}"]


@click.command()
@click.argument("site", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--axe", type=click.Path(exists=True, path_type=Path), help="axe.min.js of axe-core")
@click.option(
    "--page", "names", multiple=True, default=PAGES, help="a page; else some of each kind"
)
@click.option("--shots", type=click.Path(path_type=Path), help="a folder for pictures of the pages")
def main(site: Path, axe: Path | None, names: tuple[str, ...], shots: Path | None) -> None:
    """Report the faults that a browser finds in the built SITE."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - --help needs no browser

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise click.ClickException("no Chromium is installed")
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme, width in product(SCHEMES, WIDTHS):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            heard: list[str] = []
            page.on("console", lambda said, to=heard: said.type == "error" and to.append(said.text))
            page.on("pageerror", lambda error, to=heard: to.append(str(error)))
            page.on("request", lambda made, to=heard: to.extend(_of_network(made.url)))
            for name in names:
                address = (site / f"{name}.html").resolve().as_uri()
                found = [*look(page, address, axe), *heard]
                faults += [f"{name}, {width} px, {scheme}: {fault}" for fault in found]
                heard.clear()
                if shots is not None:
                    shots.mkdir(parents=True, exist_ok=True)
                    picture = f"{name.replace('/', '-')}-{width}-{scheme}.png"
                    page.screenshot(path=shots / picture, full_page=True)
            page.goto((site / "search.html").resolve().as_uri() + "?q=jensen")
            page.wait_for_selector("#search-results li", timeout=20_000)
            page.close()
        browser.close()
    for fault in faults:
        click.echo(fault)
    click.echo(f"{len(names)} pages at {WIDTHS} px, light and dark: {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
