"""Flower as people use it: in a browser, with a password, looking for the deployment they have just asked for.

With OPS_SCREENSHOTS naming a folder, what is seen is kept there: `docs/images` comes from here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By

from tests.e2e.flower import Flower
from tests.e2e.platform import Platform
from tests.e2e.process import until

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver"),
]


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    # Root has no sandbox; a small /dev/shm ends a page.
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1200,620",
    ):
        options.add_argument(argument)
    made = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        yield made
    finally:
        made.quit()


def text_of(browser: webdriver.Chrome) -> str:
    try:
        return str(browser.find_element(By.TAG_NAME, "body").text)
    except StaleElementReferenceException:  # the page is being changed
        return ""


def keep(browser: webdriver.Chrome, name: str) -> None:
    folder = os.environ.get("OPS_SCREENSHOTS")
    if folder:
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_a_deployments_task_is_found_by_its_jobs_id_also_after_the_broker_came_back(
    breakable: Platform, browser: Any
) -> None:
    worker = breakable.worker()
    flower = Flower(breakable)
    until(lambda: b"w1@" in flower.ask("/api/workers?refresh=1")[2], "it knows the worker")
    address = f"127.0.0.1:{flower.port}"
    browser.get(f"http://{address}/")
    assert "w1@" not in text_of(browser), "without the password nothing is shown"
    browser.get(f"http://ann:pass-word@{address}/")
    until(lambda: "w1@" in text_of(browser), "the worker is shown")
    first = breakable.deploy("--seconds", "0.1")
    assert breakable.wait_ended(first) == "success"
    until(lambda: flower.knows(first.job, "SUCCESS"), "it has heard")
    breakable.stack.valkey.kill()
    until(lambda: "Trying to re-establish" in worker.text, "the worker has noticed")
    breakable.stack.start()
    second = breakable.deploy("--seconds", "0.1", infra="another")
    assert breakable.wait_ended(second) == "success"
    until(lambda: flower.knows(second.job, "SUCCESS"), "it hears again")
    browser.get(f"http://{address}/")
    until(lambda: "w1@" in text_of(browser), "the worker is shown")
    keep(browser, "flower-workers")
    browser.get(f"http://{address}/tasks")
    search = until(lambda: browser.find_elements(By.CSS_SELECTOR, "input[type=search]"), "the search")[0]
    search.send_keys(second.job)
    until(lambda: second.job in text_of(browser) and first.job not in text_of(browser), "one task is found")
    assert "tasks.deployments.run" in text_of(browser)
    assert str(breakable.effects.file) not in browser.page_source, "a message holds a job's id, and no command"
    keep(browser, "flower-tasks")
    browser.get(f"http://{address}/task/{second.job}")
    until(lambda: "SUCCESS" in text_of(browser), "its page")
    assert "deployments" in text_of(browser)
    keep(browser, "flower-task")
