"""The status page as a browser shows it: light and dark, on a phone, without scripts, asking nobody for anything.

With SCREENSHOTS=DIR it keeps what it has seen there; those of docs/images are made so.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Database
from tests.worker.serve.checks import MIXED, many, write
from tests.worker.serve.conftest import Server

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """Chromium at one page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def ask(self, command: str, **given: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, given)

    def look(self, url: str, *, width: int, scheme: str = "light", height: int = 800) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                 mobile=width < 600)  # fmt: skip
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.driver.get(url)

    @property
    def size(self) -> tuple[float, float]:
        """Of all that is on the page, in CSS pixels."""
        found = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return found["width"], found["height"]

    def keep(self, name: str) -> bytes:
        width, height = self.size
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 1600), "scale": 1}
        data = base64.b64decode(
            self.ask("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
        )
        if folder := os.environ.get("SCREENSHOTS"):
            (Path(folder) / f"{name}.png").write_bytes(data)
        return data

    @property
    def complaints(self) -> list[str]:
        """What the browser has said of the page: anything refused by its policy, above all."""
        return [entry["message"] for entry in self.driver.get_log("browser") if "favicon" not in entry["message"]]

    @property
    def requests(self) -> int:
        """How many times the page asked for something."""
        return sum('"Network.requestWillBeSent"' in entry["message"] for entry in self.driver.get_log("performance"))


@contextmanager
def browsing(*, scripts: bool = True) -> Iterator[Browser]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    profile = tempfile.mkdtemp(prefix="ops-chromium-")
    options = Options()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if not scripts:
        prefs = {"profile.managed_default_content_settings.javascript": 2}
        options.add_experimental_option("prefs", prefs)
    driver = webdriver.Chrome(options, Service(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as made:
        yield made


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1000])
def test_it_fits_and_is_allowed_what_it_needs(server: Server, database: Database, browser, scheme: str, width: int):
    write(database, MIXED)
    browser.look(f"{server.url}/", width=width, scheme=scheme)
    assert browser.size[0] == width, "nothing to scroll sideways"
    assert browser.complaints == []
    background = browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(246, 247, 249)", "dark": "rgb(17, 21, 27)"}[scheme]
    names = [each.text for each in browser.driver.find_elements("css selector", ".check h4")]
    assert {"Website", "Checkout", "Nightly backup"} <= set(names)
    browser.keep(f"status-page-{scheme}{'-phone' if width < 600 else ''}")


def test_it_tells_all_to_who_does_not_see_it(server: Server, database: Database, browser: Browser) -> None:
    write(database, MIXED)
    browser.look(f"{server.url}/", width=1000)
    tree = browser.ask("Accessibility.getFullAXTree")["nodes"]
    said = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if "role" in node]
    roles = {role for role, _ in said}
    assert {"banner", "main", "contentinfo", "status", "heading", "list", "listitem"} <= roles
    assert ("region", "Services") in said
    assert ("region", "Incidents") in said
    pictures = [name for role, name in said if role in ("image", "img")]
    assert sum(name.startswith("The last 90 days") for name in pictures) == 6
    assert all(pictures)
    levels = [node["properties"] for node in tree if node.get("role", {}).get("value") == "heading"]
    assert levels


def test_it_asks_for_nothing_but_itself(server: Server, database: Database, browser: Browser) -> None:
    write(database, MIXED)
    browser.driver.get("about:blank")
    browser.driver.get_log("performance")
    browser.look(f"{server.url}/", width=1000)
    assert browser.requests == 1


def test_it_works_without_scripts_and_as_a_file(server: Server, database: Database, tmp_path: Path) -> None:
    write(database, many(2000))
    page = tmp_path / "index.html"
    page.write_bytes(server.ask("/").body)
    with browsing(scripts=False) as browser:
        for url in (f"{server.url}/", page.as_uri()):
            browser.look(url, width=375)
            assert browser.size[0] == 375
            groups = browser.driver.find_elements("css selector", "details.group")
            assert len(groups) == 8
            closed = next(each for each in groups if each.get_attribute("open") is None)
            assert not closed.find_element("css selector", ".check").is_displayed()
            closed.find_element("css selector", "summary").click()
            assert closed.find_element("css selector", ".check").is_displayed()
        assert browser.complaints == []
        browser.keep("status-page-2000")


def test_without_checks_it_is_a_page(server: Server, browser: Browser) -> None:
    browser.look(f"{server.url}/", width=375)
    assert "Nothing is being watched" in browser.driver.find_element("css selector", ".overall").text
    browser.keep("status-page-empty")
