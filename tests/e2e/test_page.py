"""The page, in a real Chromium, as a visitor meets it: by mouse, by keyboard, on a phone, with hostile titles."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import uvicorn

from recsys.bundle.read import open_bundle
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.requests import Event, Request
from serve.args import ServeArgs
from serve.http import create_app
from tests.asgi import Fixed
from tests.bundles import planted, write_planted

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install -e .[dev]")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="Chromium is not installed: apt-get install chromium chromium-driver"),
]

HOSTILE = ["<img src=x onerror=alert(1)>", "<script>alert(2)</script>", '"><svg onload=alert(3)>', "javascript:alert(4)//"]
TITLES = HOSTILE + [f"Film {number}" for number in range(len(HOSTILE), 58)] + ["Matrix, The (2018)", "Żółć 🎬"]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--window-size=1280,900"),
)


class Held:
    """An answer kept back: `arrived` once it was asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.arrived, self._loop, self._let_go = threading.Event(), loop, asyncio.Event()

    async def wait(self) -> None:
        self.arrived.set()
        await self._let_go.wait()

    def let_go(self) -> None:
        self._loop.call_soon_threadsafe(self._let_go.set)


class Site:
    """The service on a free port, with what it was asked, and titles searches that can be held back."""

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender
        self.asked: list[Any] = []
        self.held: dict[str, Held] = {}
        self._app = create_app(lambda: Fixed(recommender), ServeArgs(bundles="planted"))
        self._server = uvicorn.Server(uvicorn.Config(self, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if (hold := self.held.get(scope["query_string"].decode())) is not None:
            await hold.wait()

        async def receive_remembered() -> Any:
            message = await receive()
            if scope["path"] == "/v1/recommend" and message["type"] == "http.request":
                self.asked.append(orjson.loads(message["body"]))
            return message

        await self._app(scope, receive_remembered, send)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        self._started.set()
        await task

    def __enter__(self) -> "Site":
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)

    def hold(self, query: str) -> "Held":
        """Keep the answer to a query string back."""
        self.held[query] = Held(self._loop)
        return self.held[query]

    def titles(self, *history: tuple[str, float | None], k: int = 12) -> list[str]:
        """What the recommender gives for a history, as the page shows it."""
        events = tuple(Event(item, rating) for item, rating in history) or None
        answer = self.recommender.recommend([Request(history=events, k=k)])[0]
        return [shown(TITLES[int(item)]) for item in answer.items]  # type: ignore[union-attr]


def shown(title: str) -> str:
    return "The Matrix" if title.startswith("Matrix") else title


class Visitor:
    """A browser at the page, and how a person would say what he does and sees."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(address)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((found) => found.textContent)"
        return list(self.driver.execute_script(script, selector))

    def sees(self, selector: str, expected: list[str]) -> None:
        """Waits until the texts are these."""
        try:
            WebDriverWait(self.driver, 15).until(lambda _: self.texts(selector) == expected)
        except Exception:
            raise AssertionError(f"{selector}: {self.texts(selector)}, not {expected}") from None

    def search(self, text: str) -> None:
        """Types in one go, so that one search follows. (Letter by letter is what the keyboard's test does.)"""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.driver.execute_script(script, self.one("#query"), text)

    def click(self, element: Any) -> None:
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = write_planted(tmp_path_factory.mktemp("bundles"), world=planted(untrained=0), titles=TITLES)
    with Site(Recommender(open_bundle(folder))) as site:
        yield site


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def visitor(driver: Any, site: Site) -> Iterator[Visitor]:
    visitor = Visitor(driver)
    visitor.open(site.url)
    visitor.sees("#cards .title", site.titles())
    yield visitor
    # Nothing was refused by the content security policy, no script failed, no dialog is open.
    assert visitor.complaints() == []
    assert driver.title


def test_a_stranger_sees_what_is_popular_and_that_it_is(visitor: Visitor, site: Site) -> None:
    visitor.sees("#next-heading", ["Popular with everyone"])
    visitor.sees("#made span", ["popular", site.recommender.bundle.version])
    assert "no user and no history" in visitor.one("#next-status").text


def test_ticking_titles_changes_the_recommendations_at_once_and_unticking_brings_them_back(
    visitor: Visitor, site: Site
) -> None:
    visitor.search("film 5")
    WebDriverWait(visitor.driver, 15).until(lambda _: "Film 5" in visitor.texts("#found .title"))
    row = visitor.texts("#found .title").index("Film 5")
    visitor.click(visitor.all("#found input")[row])
    visitor.sees("#cards .title", site.titles(("i5", None)))
    visitor.sees("#next-heading", ["For you"])
    visitor.sees("#made .path", ["exact"])
    visitor.sees("#liked .title", ["Film 5"])
    visitor.click(visitor.all("#found input")[row])
    visitor.sees("#cards .title", site.titles())
    visitor.sees("#liked .title", [])


def test_a_recommended_title_can_be_picked_rated_and_removed(visitor: Visitor, site: Site) -> None:
    first = visitor.texts("#cards .title")[0]
    item = f"i{[shown(title) for title in TITLES].index(first)}"
    visitor.click(visitor.one("#cards .pick"))
    visitor.sees("#liked .title", [first])
    visitor.sees("#cards .title", site.titles((item, None)))
    visitor.click(visitor.all("#liked .stars label")[3])
    WebDriverWait(visitor.driver, 15).until(lambda _: site.asked[-1].get("history") == [{"item": item, "rating": 4}])
    visitor.click(visitor.one("#liked .icon"))
    visitor.sees("#cards .title", site.titles())


def test_a_known_user_is_shown_with_his_history_beside_his_recommendations(visitor: Visitor, site: Site) -> None:
    visitor.click(visitor.all(".switch span")[1])
    visitor.one("#user-id").send_keys("u2", Keys.ENTER)
    visitor.sees("#next-heading", ["For user u2"])
    history = site.recommender.user("u2").history
    visitor.sees("#history .title", [shown(event["title"]) for event in history])
    answer = site.recommender.recommend([Request(user="u2", k=12)])[0]
    visitor.sees("#cards .title", [shown(TITLES[int(item)]) for item in answer.items])  # type: ignore[union-attr]
    visitor.driver.refresh()  # the address names the user
    visitor.sees("#next-heading", ["For user u2"])


def test_an_unknown_user_is_told_so_and_gets_what_is_popular(visitor: Visitor, site: Site) -> None:
    visitor.open(f"{site.url}/#user=nobody")
    visitor.sees("#next-heading", ["Popular with everyone"])
    WebDriverWait(visitor.driver, 15).until(lambda _: "no user 'nobody'" in visitor.one("#user-status").text)
    assert [line for line in visitor.complaints() if "404" not in line] == []


def test_similar_titles_open_over_the_page_and_escape_closes_them(visitor: Visitor, site: Site) -> None:
    visitor.click(visitor.one("#cards .open"))
    first = site.recommender.recommend([Request(k=1)])[0].item_ids[0]  # type: ignore[union-attr]
    visitor.sees("#similar-cards .title", [shown(TITLES[int(i)]) for i in site.recommender.similar(first, 8).items])
    assert visitor.one("#similar").get_attribute("open")
    visitor.one("#similar").send_keys(Keys.ESCAPE)
    WebDriverWait(visitor.driver, 15).until(lambda _: not visitor.one("#similar").get_attribute("open"))


def test_hostile_titles_are_only_text(visitor: Visitor, site: Site) -> None:
    for title in HOSTILE:
        visitor.search(title)
        visitor.sees("#found .title", [title])
        visitor.click(visitor.one("#found input"))
        WebDriverWait(visitor.driver, 15).until(lambda _, title=title: title in visitor.texts("#liked .title"))
    visitor.click(visitor.one("#cards .open"))
    WebDriverWait(visitor.driver, 15).until(lambda _: len(visitor.all("#similar-cards li")) == 8)
    assert (
        visitor.driver.execute_script("return document.querySelectorAll('img[onerror], svg[onload], body script').length") == 0
    )
    assert set(HOSTILE) <= set(visitor.texts("#liked .title"))  # the fixture then sees to it that nothing was reported


def test_an_answer_that_comes_too_late_is_not_shown(visitor: Visitor, site: Site) -> None:
    late = site.hold("limit=8&query=film%201")
    visitor.search("film 1")
    assert late.arrived.wait(15)
    visitor.search("film 12")
    visitor.sees("#found .title", ["Film 12"])
    late.let_go()
    visitor.click(visitor.one("#found input"))
    visitor.sees("#cards .title", site.titles(("i12", None)))  # a round trip later
    visitor.sees("#found .title", ["Film 12"])


def test_everything_can_be_done_by_keyboard(visitor: Visitor, site: Site) -> None:
    visitor.one("#query").send_keys("film 7")
    visitor.sees("#found .title", ["Film 7"])
    active = lambda: visitor.driver.switch_to.active_element  # noqa: E731
    active().send_keys(Keys.TAB)
    assert active().get_attribute("type") == "checkbox"
    active().send_keys(Keys.SPACE)
    visitor.sees("#cards .title", site.titles(("i7", None)))
    while active().get_attribute("name") != "rating-i7":
        active().send_keys(Keys.TAB)
    active().send_keys(Keys.ARROW_RIGHT)
    WebDriverWait(visitor.driver, 15).until(lambda _: "rating" in site.asked[-1]["history"][0])
    active().send_keys(Keys.TAB)
    assert active().accessible_name == "Remove Film 7"
    active().send_keys(Keys.ENTER)
    visitor.sees("#cards .title", site.titles())
    assert active().get_attribute("id") == "query"  # the focus is not lost with what was removed


def test_every_control_has_a_name(visitor: Visitor, site: Site) -> None:
    visitor.search("film")
    WebDriverWait(visitor.driver, 15).until(lambda _: len(visitor.all("#found li")) == 8)
    visitor.click(visitor.one("#found input"))
    visitor.sees("#next-heading", ["For you"])
    visible = [control for control in visitor.all("button, input, a") if control.is_displayed()]
    assert (
        len(visible) > 20 and [control.get_attribute("outerHTML") for control in visible if not control.accessible_name] == []
    )
    assert {status.get_attribute("id") for status in visitor.all("[role=status]")} >= {"next-status", "found-status"}


def test_a_phone_needs_no_sideways_scrolling(visitor: Visitor, site: Site) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    visitor.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        visitor.search("film")
        WebDriverWait(visitor.driver, 15).until(lambda _: len(visitor.all("#found li")) == 8)
        visitor.click(visitor.one("#found input"))
        visitor.sees("#next-heading", ["For you"])
        assert visitor.driver.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_documentation_shows_every_route_and_loads_nothing_from_elsewhere(visitor: Visitor, site: Site) -> None:
    visitor.open(f"{site.url}/docs#problem-invalid")
    paths = {"/v1/recommend", "/v1/items", "/v1/items/{item_id}/similar", "/v1/users/{user_id}", "/v1/bundle", "/healthz"}
    WebDriverWait(visitor.driver, 15).until(lambda _: paths <= set(visitor.texts(".operation summary code")))
    assert "RecommendRequest" in visitor.texts("h3") and visitor.one("#problem-invalid").is_displayed()
    loaded = visitor.driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded and all(address.startswith(site.url) for address in loaded)
