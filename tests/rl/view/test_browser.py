"""The pages in a real browser: what a script of a completion may do (nothing), keys, filters, claims, boxes, phones."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from rl.view.server import ViewServer
from rollouts.log import write_step
from tests.rl.view.conftest import HEIGHT, WIDTH, a_training_step

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=program, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, server: ViewServer) -> Iterator[Page]:
    """A page of the server. A script that fails in it, or that the policy had to stop, fails the test."""
    page = browser.new_page(base_url=server.url, viewport={"width": 1300, "height": 800})
    page.set_default_timeout(20_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
    assert not complaints, complaints


def opened(page: Page) -> str:
    """The trajectory that the address names."""
    return parse_qs(urlsplit(page.url).query).get("open", [""])[0]


def test_a_script_of_a_completion_does_nothing_and_could_not_if_it_got_through(
    browser: Browser, server: ViewServer
) -> None:
    page = browser.new_page(base_url=server.url)
    page.goto("/?open=first/eval/0/0")
    page.locator("summary").evaluate_all("all => all.forEach(each => each.parentElement.open = true)")
    assert page.get_by_text("<script>window.owned=1</script>").count() > 5
    # As if escaping had failed: neither the script nor the handler runs under the policy of the page.
    page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = 'window.owned = 1';
            document.body.append(script);
            document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.owned=1">');
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.owned") is None
    with pytest.raises(Exception, match="Failed to fetch"):
        page.evaluate("fetch('http://127.0.0.1:9/')")
    page.close()


def test_the_filter_acts_as_it_is_changed_and_stands_in_the_address(page: Page, server: ViewServer) -> None:
    page.goto("/")
    assert page.locator(".hit").count() == 13  # 5 + 3 + 1 + 1 of first, 3 of second
    page.get_by_label("Reward, min").fill("0.9")
    page.wait_for_url("**/?reward_min=0.9")
    assert page.locator(".hit").count() == 1
    assert page.get_by_label("Reward, min").evaluate("field => field === document.activeElement")
    page.get_by_label("Reward, min").fill("")
    page.get_by_label("Claims").select_option("refuted")
    page.wait_for_url("**/?claims=refuted")
    page.get_by_label("Text", exact=True).fill("other-1")
    page.wait_for_url("**/?text=other-1&claims=refuted")
    assert page.locator(".tally").inner_text().startswith("1 of 13 trajectories")
    page.reload()
    assert page.get_by_label("Claims").input_value() == "refuted"
    assert page.locator(".hit .case").all_inner_texts() == ["other-1"]
    page.get_by_role("link", name="Clear").click()
    page.wait_for_url(server.url)
    assert page.locator(".hit").count() == 13


def test_what_cannot_be_asked_is_told_beside_the_form(browser: Browser, server: ViewServer) -> None:
    page = browser.new_page(base_url=server.url)
    page.goto("/")
    page.get_by_label("Its score, min").fill("0.5")
    page.get_by_text("whose score? Choose a scorer").wait_for()
    page.get_by_label("Scorer").select_option("facts")
    page.wait_for_url("**/?scorer=facts&score_min=0.5")
    assert page.locator(".hit").count() == 5  # 0.5, 0.625, 0.75, 0.875 and 1
    page.close()


def test_keys_go_from_one_trajectory_to_the_next_and_back(page: Page) -> None:
    page.goto("/?run=first&kind=train&sort=log")
    for key, row in (("j", 0), ("j", 1), ("ArrowRight", 2), ("k", 1)):
        page.keyboard.press(key)
        page.wait_for_url(re.compile(rf"open=first%2Ftrain%2F1%2F{row}$"))
        page.wait_for_selector(f".id:text-is('case-1/{row}')")
        assert page.locator(".hit[aria-current]").count() == 1
    page.go_back()
    page.wait_for_selector(".id:text-is('case-1/2')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".nothing")
    assert opened(page) == ""
    page.keyboard.press("/")
    page.keyboard.type("jk")  # into the field: no key of the page
    page.wait_for_url("**/?text=jk&**")
    assert opened(page) == ""


def test_a_claim_shows_what_its_verdict_rests_on(page: Page) -> None:
    page.goto("/?open=first/train/1/0")
    claim = page.locator("mark.claim.supported")
    assert claim.evaluate("mark => mark.firstChild.data") == "radius 17.9 high"
    tip = claim.locator(".tip")
    assert not tip.is_visible()
    claim.hover()
    assert tip.is_visible() and "record.radius · as cited" in tip.inner_text()
    page.goto("/?open=first/train/1/3")
    page.locator("mark.claim.refuted").focus()
    assert page.locator("mark.claim.refuted .tip").is_visible()


def test_boxes_lie_where_they_belong_on_the_image(page: Page) -> None:
    page.goto("/?open=first/eval/4/0")
    image = page.locator(".picture img").bounding_box()
    answer = page.locator("rect.box-answer").bounding_box()
    assert image and answer and image["width"] > 100
    scale = image["width"] / WIDTH
    assert answer["x"] == pytest.approx(image["x"] + 32 * scale, abs=2)  # the right half: [32, 0, 64, 32]
    assert answer["width"] == pytest.approx(32 * scale, abs=4)  # with its stroke
    assert answer["height"] == pytest.approx(HEIGHT * scale, abs=4)
    assert page.locator(".picture img").evaluate("image => image.naturalWidth") == WIDTH
    assert page.locator("figure .key").inner_text().split("\n") == ["mass", "expected", "answer", "cited, refuted"]


def test_tokens_tell_engine_from_learner(page: Page) -> None:
    page.goto("/?open=first/train/1/0")
    page.get_by_text("Tokens", exact=False).first.click()
    tokens = page.locator(".tokens > span")
    assert tokens.count() == 2
    assert "engine -0.2500 nats · learner -0.7500 · difference -5.00e-01" in (
        tokens.nth(1).get_attribute("title") or ""
    )
    grounds = [tokens.nth(place).evaluate("token => getComputedStyle(token).backgroundColor") for place in (0, 1)]
    assert grounds[0] != grounds[1]


def test_on_a_phone_there_is_the_list_or_the_trajectory_and_nothing_beside_the_screen(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto("/")
    assert page.locator(".found").is_visible() and not page.locator(".standing-head").is_visible()
    page.locator(".hit").first.click()
    page.wait_for_selector(".standing-head")
    assert not page.locator(".found").is_visible()
    for path in (page.url, "/", "/?open=first/eval/0/0", "/curves"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    page.goto("/?open=first/train/1/0")
    page.get_by_role("link", name="list").click()
    page.wait_for_selector(".found", state="visible")


def test_dark_and_light_follow_the_system_and_the_choice(page: Page) -> None:
    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page.emulate_media(color_scheme="dark")
    page.goto("/")
    dark = ground()
    page.get_by_text("light", exact=True).click()
    light = ground()
    assert dark != light
    page.goto("/curves")
    assert ground() == light  # the choice is kept


def test_curves_are_chosen_and_read_under_the_pointer(page: Page) -> None:
    page.goto("/curves")
    assert page.locator("svg.chart").count() == 2
    page.get_by_role("checkbox", name="reward/mean").uncheck()
    page.wait_for_url("**/curves?run=first&run=second&metric=loss%2Fentropy")
    page.wait_for_function("document.querySelectorAll('svg.chart').length === 1")
    chart = page.locator("svg.chart")
    box = chart.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 40)
    readout = page.locator(".readout")
    assert readout.inner_text().split() == ["step", "3", "first", "0.500", "nats", "second", "0.500", "nats"]


def test_a_step_that_was_added_is_there_after_a_reload(browser: Browser, growing: ViewServer) -> None:
    page = browser.new_page(base_url=growing.url)
    page.goto("/?run=second")
    assert page.locator(".hit").count() == 3
    write_step(growing.index.runs["second"], a_training_step(2, 0.5, name="new"))
    page.reload()
    assert page.locator(".hit .case").first.inner_text() == "new-2"
    page.close()
