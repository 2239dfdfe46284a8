"""The page in a real browser: upload a picture, read the label, see the maps; nothing is asked of any other machine."""

import json
import shutil

import pytest

from .conftest import picture

webdriver = pytest.importorskip("selenium.webdriver")
By = pytest.importorskip("selenium.webdriver.common.by").By
Wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromium-driver")
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,1200", "--no-first-run")
SILENT = ("--disable-background-networking", "--disable-component-update", "--disable-sync")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in (*SWITCHES, *SILENT):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_a_picture_is_uploaded_and_explained(server, browser, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(3))
    browser.get(server.address)
    upload = Wait(browser, 60).until(lambda page: page.find_element(By.CSS_SELECTOR, "input[type=file]"))
    upload.send_keys(str(tmp_path / "a.png"))
    Wait(browser, 60).until(lambda page: len(page.find_elements(By.CSS_SELECTOR, ".grid-wrap img")) >= 3)
    text = browser.find_element(By.TAG_NAME, "body").text
    shown = [line for line in text.splitlines() if line in ("ant", "bee", "cat")]
    assert shown
    assert f"evidence for {shown[0]}" in text
    assert "is no reason for a label" in text
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = {one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"}
    assert any(address.startswith(server.address) for address in addresses)
    elsewhere = [one for one in addresses if not one.startswith((server.address, "data:", "blob:", "chrome"))]
    assert not elsewhere


def test_every_control_has_a_name_for_a_screen_reader(server, browser):
    browser.get(server.address)
    Wait(browser, 60).until(lambda page: page.find_element(By.CSS_SELECTOR, "input[type=file]"))
    nameless = [
        control.get_attribute("outerHTML")[:120]
        for control in browser.find_elements(By.CSS_SELECTOR, "input:not([type=file]), button, textarea")
        if control.is_displayed() and not control.accessible_name
    ]
    assert not nameless
