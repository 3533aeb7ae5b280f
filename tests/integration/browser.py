"""Debian's Chromium, looking at a daemon's page; whatever it complains of fails the test."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM: Final = "/usr/bin/chromium"
DESKTOP: Final = (1100, 800)
PHONE: Final = (360, 740)
PATIENCE: Final = 10.0  # seconds

# Told by the browser where a script, a style or a request is not what the policy allows.
_WATCH_POLICY: Final = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


@dataclass
class Look:
    """One page that is open, and what the browser had to say of it."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        """What stands there, as people read it."""
        return self.page.locator(selector).first.inner_text()

    def wait(self, expression: str, timeout: float = PATIENCE) -> None:
        """Wait until an expression of JavaScript is true.

        Asked again and again from outside: the page's policy lets nothing be evaluated in it.
        """
        deadline = time.monotonic() + timeout
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {expression}"
            self.page.wait_for_timeout(50)

    def moments(self, count: int) -> None:
        """Wait until so many moments were shown."""
        self.wait(f"Number(document.body.dataset.moments || 0) >= {count}")

    def run(self, script: str) -> Any:
        """Evaluate JavaScript in the page, past its policy."""
        return self.page.evaluate(script)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a network but loopback."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def looking(
    browser: Browser,
    address: str,
    *,
    size: tuple[int, int] = DESKTOP,
    scheme: Any = "light",
    motion: Any = "reduce",
) -> Iterator[Look]:
    """Open the page; at the end nothing may have gone wrong in the browser."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        reduced_motion=motion,
        timezone_id="UTC",
        locale="en-GB",
    )
    context.set_default_timeout(PATIENCE * 1000)
    context.add_init_script(_WATCH_POLICY)
    page = context.new_page()
    look = Look(page, address)
    page.on("console", lambda said: look.complaints.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: look.complaints.append(f"error: {error}"))
    page.on("request", lambda request: look.requests.append(request.url))
    try:
        page.goto(address)
        look.moments(1)
        yield look
        assert look.run("window.violations") == []
        assert look.complaints == []
        ours = urlsplit(address).netloc
        assert {urlsplit(url).netloc for url in look.requests} == {ours}
    finally:
        context.close()


def photograph(look: Look, path: Path) -> None:
    """Keep a picture of the whole page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    look.page.mouse.move(0, 0)
    look.page.screenshot(path=path, full_page=True)
