"""The page in a real browser: an image dropped on it is shown, classified and timed, with a picture of the windows.

Needs Chromium and its driver (Debian: ``apt install chromium chromium-driver``). Without them the tests are skipped and
say so; with ``NA_DEPLOY_BROWSER=ON``, as in continuous integration, that is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import Running, need, photo
from segmenters import LABELS, colour_picture
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

DROP = """
const done = arguments[arguments.length - 1];
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const carried = new DataTransfer();
carried.items.add(new File([bytes], arguments[1], { type: arguments[2] }));
document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true }));
done();
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium, driver = need("chromium", "chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1100,1500")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield made
    made.quit()


def wait(browser: Any, condition: Any) -> Any:
    return WebDriverWait(browser, 30).until(condition)


def shown(browser: Any, name: str) -> Any:
    """Wait until an element is visible."""
    return wait(browser, lambda b: (found := b.find_element(By.ID, name)).is_displayed() and found)


def test_an_image_is_chosen_classified_and_timed(server: Running, browser: Any, tmp_path: Path):
    browser.get(f"http://{server.address}/")
    wait(browser, lambda b: b.find_element(By.ID, "about").text.startswith("version 1 · CPU, attention in "))
    assert Select(browser.find_element(By.ID, "model")).first_selected_option.text == "small"
    file = tmp_path / "photo.png"
    file.write_bytes(photo(kind="PNG"))
    browser.find_element(By.ID, "file").send_keys(str(file))
    answer = shown(browser, "answer").text
    _, expected = server.call("/v2/models/small/classify?top=5", file.read_bytes())
    rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#classes tr")]
    assert rows == [f"{found['label']} {100 * found['probability']:.1f} %" for found in expected["classes"]]
    for name in ("round trip", "decode and prepare", "queue", "model"):
        assert name in answer
    assert browser.execute_script("return document.getElementById('preview').naturalWidth") == 100
    assert shown(browser, "windows")
    wait(browser, lambda b: b.execute_script("return document.getElementById('windows').naturalWidth") > 800)
    problems = [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
    assert not problems
    target = Path(os.environ.get("NA_DEPLOY_SCREENSHOT", tmp_path / "page.png"))
    browser.save_screenshot(str(target))
    colours = Image.open(target).convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 500  # the photo and the picture are there


def test_an_image_dropped_on_the_page_is_classified(server: Running, browser: Any):
    import base64

    browser.get(f"http://{server.address}/")
    wait(browser, lambda b: b.find_element(By.ID, "about").text)
    browser.execute_async_script(DROP, base64.b64encode(photo(seed=5)).decode(), "photo.jpg", "image/jpeg")
    assert "kind <" in shown(browser, "answer").text  # names are text, never markup
    browser.execute_async_script(DROP, base64.b64encode(b"nothing").decode(), "photo.jpg", "image/jpeg")
    assert shown(browser, "problem").text.endswith("give a JPEG or PNG file")
    assert not browser.find_element(By.ID, "answer").is_displayed()


def test_segments_are_drawn_over_the_image(segmenters: Running, browser: Any, tmp_path: Path):
    browser.get_log("browser")  # of the tests before
    browser.get(f"http://{segmenters.address}/")
    wait(browser, lambda b: b.find_element(By.ID, "about").text)
    assert Select(browser.find_element(By.ID, "model")).first_selected_option.text == "panoptic"
    file = tmp_path / "picture.png"
    colour_picture(640, 480).save(file)
    browser.find_element(By.ID, "file").send_keys(str(file))
    answer = shown(browser, "answer").text
    assert all(label in answer for label in LABELS.values())
    assert "segments" in answer
    swatches = browser.find_elements(By.CSS_SELECTOR, "#classes .swatch div")
    assert len({swatch.value_of_css_property("background-color") for swatch in swatches}) == 4
    drawn = browser.find_element(By.ID, "preview").get_attribute("src")
    wait(browser, lambda b: b.execute_script("return document.getElementById('preview').naturalWidth") == 640)
    target = Path(os.environ.get("NA_DEPLOY_SEGMENTS_SCREENSHOT", tmp_path / "page.png"))
    browser.save_screenshot(str(target))
    shown(browser, "views").click()
    plain = wait(browser, lambda b: (now := b.find_element(By.ID, "preview").get_attribute("src")) != drawn and now)
    Select(browser.find_element(By.ID, "model")).select_by_visible_text("semantic")
    wait(browser, lambda b: "score" in (b.find_element(By.CSS_SELECTOR, "#classes tr").get_attribute("title") or ""))
    assert plain != drawn
    Select(browser.find_element(By.ID, "model")).select_by_visible_text("things")
    wait(
        browser,
        lambda b: "of the image" in (b.find_element(By.CSS_SELECTOR, "#classes tr").get_attribute("title") or ""),
    )
    rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#classes tr")]
    _, content = segmenters.call("/v2/models/things/segment", file.read_bytes())
    assert rows == [f"{found['category']} {100 * found['score']:.1f} %" for found in content["segments"]]
    browser.save_screenshot(str(Path(os.environ.get("NA_DEPLOY_OBJECTS_SCREENSHOT", tmp_path / "objects.png"))))
    # The browser logs the picture of windows, which models without neighborhood attention do not have.
    expected = ("favicon", "windows.png")
    assert not [entry for entry in browser.get_log("browser") if not any(name in entry["message"] for name in expected)]


def test_a_model_without_images_says_so(server: Running, browser: Any):
    browser.get(f"http://{server.address}/")
    wait(browser, lambda b: b.find_element(By.ID, "about").text)
    Select(browser.find_element(By.ID, "model")).select_by_visible_text("scaling")
    assert "takes tensors, not images" in shown(browser, "problem").text
    assert "no neighborhood attention layer" in shown(browser, "no-windows").text
