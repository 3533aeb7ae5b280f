"""The page in a browser: of real transfers, and of made-up ones that say all that it can.

With FLATSHIP_SCREENSHOTS set the pictures of deploy/screenshots are made anew.
"""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from browser import CHROMIUM, DESKTOP, PHONE, chromium, looking, photograph
from disks import MIB, make_data_disk
from page_scene import GIB, Scene, disk, job, receiver, sender, served
from playwright.sync_api import Browser
from processes import Pair, Running, wait_until
from sending_daemon import sending_daemon

from flatship_sender.queue.model import JobSpec
from flatship_service.page.view import Problem, Tone

SCREENSHOTS: Final = Path(__file__).parents[2] / "deploy" / "screenshots"
AUDIT: Final = Path(__file__).with_name("page_audit.js")
HOSTILE: Final = (
    "<img src=x onerror=alert(1)>",
    "\"><script>document.title='owned'</script>",
    "'; --\u05d0\u05d1\u05d2 \u0627\u0644\u0639 &amp; {{7*7}}",
    "x" * 300,
)

# Each test sends data of its own (``seed``): what the receiver knows already is not sent.
pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason="needs chromium: scripts/debian-packages browser"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A busy receiver's page."""
    busy = Scene(receiver())
    busy.past()
    with served(busy):
        yield busy


@pytest.fixture
def queue() -> Iterator[Scene]:
    """The page of a sender's daemon."""
    busy = Scene(sender())
    busy.past()
    with served(busy):
        yield busy


def page_of(running: Running) -> str:
    """Where a sender that was started with ``--http`` serves its page."""
    wait_until(lambda: "metrics on " in running.stderr, "the sender serves its page")
    found = re.search(r"metrics on (\S+)metrics", running.stderr)
    assert found, running.stderr
    return found[1]


def test_a_transfer_is_seen_to_its_end_at_both_ends(
    browser: Browser, pair: Pair, tmp_path: Path
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 24 * MIB)
    with source.open("r+b") as file:
        file.truncate(48 * MIB)
    theirs = pair.receiver.metrics_url.removesuffix("metrics")
    options = ("--limit", "5MB", "--http", "127.0.0.1:0")
    running = pair.start_send(source, vm="web01", options=options)
    with looking(browser, theirs) as there:
        with looking(browser, page_of(running)) as here:
            here.wait("document.querySelector('.disk .d') !== null")
            assert here.text(".disk h3") == "web01/web01"
            assert here.text("#tiles").count("5.0") == 1
            there.wait("document.querySelector('.disk .p, .disk .d') !== null")
            assert "kvm1" in there.text(".route")
            assert there.text("#stores h3") == "ds"
            filled = here.run("document.querySelector('.map').getAttribute('aria-label')")
            here.wait(f"document.querySelector('.map').getAttribute('aria-label') !== '{filled}'")
            here.complaints.clear()
            run = running.wait()
            here.wait("!document.getElementById('broken').hidden")
            assert "No connection" in here.text("#broken")
            here.complaints.clear()  # that it is gone is told on the console, too
        run.expect(0)
        there.wait("document.querySelector('.disk').dataset.tone === 'good'")
        label = there.run("document.querySelector('.map').getAttribute('aria-label')")
        assert re.fullmatch(r"Map of web01/web01: 50 % hole, 50 % proven", label), label
        assert "complete" in there.text(".disk .state")
        assert there.text("[data-f=done]") == "100 %"


def test_a_transfer_that_stalls_says_so_and_that_it_gets_on_again(
    browser: Browser, pair: Pair, tmp_path: Path
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 64 * MIB, seed=2)
    options = ("--limit", "3MB", "--http", "127.0.0.1:0")
    running = pair.start_send(source, vm="db02", options=options)
    with looking(browser, page_of(running)) as here:
        here.wait("document.querySelector('.disk .d') !== null")
        pair.receiver.process.signal(signal.SIGSTOP)
        try:
            here.wait("document.querySelector('.disk').dataset.tone === 'warn'", timeout=20)
            assert "no progress for" in here.text(".disk .note")
            assert "goes on by itself" in here.text(".disk .advice")
            assert "not getting on" in here.text("#state")
        finally:
            pair.receiver.process.signal(signal.SIGCONT)
        here.wait("document.querySelector('.disk').dataset.tone === 'busy'")
    running.kill()


def test_a_transfer_that_fails_says_why_and_what_to_do(
    browser: Browser, pair: Pair, tmp_path: Path
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 24 * MIB, seed=3)
    theirs = pair.receiver.metrics_url.removesuffix("metrics")
    running = pair.start_send(source, vm="mail (old)", options=("--limit", "3MB"))
    with looking(browser, theirs) as there:
        there.wait("document.querySelector('.disk h3')?.textContent === 'mail (old)/mail (old)'")
        there.wait("document.querySelector('.disk').querySelector('.p, .d') !== null")
        running.kill()
        there.wait("document.querySelector('.disk').dataset.tone === 'warn'")
        assert "interrupted" in there.text(".disk .state")
        assert "the same command goes on with it" in there.text(".disk .advice")
        assert there.text("#problems strong") == "mail (old)/mail (old)"
        assert "mail (old)" in there.text("#announce")


def test_every_state_is_shown_with_its_word_its_shape_and_its_advice(
    browser: Browser, scene: Scene
) -> None:
    with looking(browser, scene.address) as look:
        states = look.page.locator(".disk .state").all_inner_texts()
        assert states == ["receiving", "receiving", "proving 64 %", "complete", "failed"]
        assert look.page.locator(".note:visible").count() == 3  # with the datastore's
        assert "may be too small" in look.text("#stores li:nth-child(2)")
        assert look.page.locator("#legend li").count() == 8
        label = look.run("document.querySelectorAll('.map')[3].getAttribute('aria-label')")
        assert label == "Map of build/build: 59 % hole, 10 % zeros, 32 % proven"
        assert look.page.title() == "74 % · receiving 3 disks – Flatship receiver"


def test_hostile_names_are_text(browser: Browser) -> None:
    view = sender(
        host=HOSTILE[0],
        state=HOSTILE[1],
        disks=[
            disk(number, vm=name, disk=name, peer=name, place=name, state=name, note=name)
            for number, name in enumerate(HOSTILE)
        ],
        problems=[Problem(at=0.0, subject=name, message=name, advice=name) for name in HOSTILE],
        queue=[job(number, vm=name, note=name) for number, name in enumerate(HOSTILE)],
    )
    with served(Scene(view)) as scene, looking(browser, scene.address, size=PHONE) as look:
        look.moments(2)
        names = "[...document.querySelectorAll('.disk [data-f=vm]')].map((e) => e.textContent)"
        assert look.run(names) == list(HOSTILE)
        assert look.run("document.querySelectorAll('img, main script').length") == 0
        assert look.page.title() != "owned"
        assert look.run("document.documentElement.scrollWidth") <= PHONE[0]


def test_a_phone_has_nothing_beyond_its_edge(browser: Browser, scene: Scene, queue: Scene) -> None:
    for shown in (scene, queue):
        with looking(browser, shown.address, size=PHONE) as look:
            assert look.run("document.documentElement.scrollWidth") <= PHONE[0]


def test_everything_is_reached_and_read_by_the_keyboard(browser: Browser, queue: Scene) -> None:
    with looking(browser, queue.address) as look:
        keyboard, active = look.page.keyboard, "document.activeElement.id"
        keyboard.press("Tab")
        assert look.run("document.activeElement.className") == "skip"
        assert look.run("document.activeElement.getBoundingClientRect().top") >= 0
        keyboard.press("Enter")
        assert look.run(active) == "disks"
        keyboard.press("Shift+Tab")  # back over the table's summary to the chart
        keyboard.press("Enter")
        assert look.run("document.getElementById('chart-details').open") is True
        assert look.page.locator("#chart-rows tr").count() >= 12
        keyboard.press("Shift+Tab")
        assert look.run(active) == "chart"
        keyboard.press("Home")
        first = look.text("#readout")
        keyboard.press("ArrowRight")
        assert look.text("#readout") != first
        assert "limit 8.5" in look.text("#readout")
        assert look.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        keyboard.press("Escape")
        assert look.run("document.getElementById('readout').hidden") is True


def test_moments_leave_focus_and_selection_where_they_are(browser: Browser, scene: Scene) -> None:
    with looking(browser, scene.address) as look:
        look.page.locator("#chart-details summary").focus()
        marked = look.run(
            "window.marked = document.querySelectorAll('.disk h3')[2],"
            " getSelection().selectAllChildren(window.marked), getSelection().toString()"
        )
        scene.shown = receiver(disks=[disk(9, vm="new"), *scene.shown.disks[1:]])
        look.wait("document.querySelector('.disk bdi').textContent === 'new'")
        assert look.run("document.activeElement.tagName") == "SUMMARY"
        assert look.run("getSelection().toString()") == marked
        assert look.run("document.contains(window.marked)") is True


def test_only_what_changes_is_announced_and_numbers_are_not(browser: Browser, scene: Scene) -> None:
    with looking(browser, scene.address) as look:
        look.run(
            "window.said = [], new MutationObserver(() => window.said.push(1))"
            ".observe(document.getElementById('announce'), {childList: true, characterData: true,"
            " subtree: true})"
        )
        for number in range(3):
            scene.shown = receiver(rate=1e6 * number, at=float(number))
            look.wait(f"document.querySelector('footer time').textContent === '00:00:0{number}'")
        assert look.run("window.said.length") == 0
        ended = disk(1, state="complete", tone=Tone.GOOD, done=80 * GIB)
        scene.shown = receiver(disks=[ended, *scene.shown.disks[1:]])
        look.wait("document.getElementById('announce').textContent !== ''")
        assert look.text("#announce") == "web01/web01: complete"
        live = look.run(
            "[...document.querySelectorAll('[aria-live], [role=status]')].map(e => e.id)"
        )
        assert live == ["announce"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_names_and_roles_are_in_order(
    browser: Browser, scene: Scene, queue: Scene, scheme: str
) -> None:
    grounds = set()
    for shown in (scene, queue):
        with looking(browser, shown.address, scheme=scheme) as look:
            look.page.locator("#chart-details summary").click()
            assert look.run(AUDIT.read_text()) == []
            grounds.add(look.run("getComputedStyle(document.documentElement).backgroundColor"))
    assert grounds == {"rgb(247, 246, 243)" if scheme == "light" else "rgb(19, 21, 23)"}


def test_nothing_moves_for_those_who_do_not_want_it(browser: Browser, scene: Scene) -> None:
    moving = "getComputedStyle(document.querySelector('[data-tone=busy] > .dot')).animationName"
    for motion, name in (("reduce", "none"), ("no-preference", "breathe")):
        with looking(browser, scene.address, motion=motion) as look:
            assert look.run(moving) == name


def test_page_that_is_one_viewer_too_many_says_so(
    browser: Browser, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with looking(browser, scene.address) as look:
        monkeypatch.setattr("flatship_service.page.viewers.MAX_VIEWERS", 1)
        other = look.page.context.new_page()
        other.goto(scene.address)
        other.locator("#broken").wait_for()
        assert "no more viewers" in other.locator("#broken").inner_text()
        other.close()
        look.complaints.clear()


def test_a_daemon_shows_its_queue_and_the_disks_of_its_jobs(
    browser: Browser, pair: Pair, tmp_path: Path
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 24 * MIB, seed=4)
    with sending_daemon(pair.sender.state, tmp_path) as daemon:
        daemon.put(
            JobSpec(sources=[str(source)], receiver="esx", vm="queued", limit=4_000_000),
            JobSpec(sources=[str(tmp_path / "missing")], receiver="esx", vm="lost"),
            JobSpec(sources=[str(source)], receiver="esx", vm="later"),
        )
        daemon.start()
        with looking(browser, daemon.metrics_url.removesuffix("metrics")) as look:
            look.wait("document.querySelector('.disk .d') !== null", timeout=25)
            assert look.text(".disk h3") == "queued/queued"
            look.wait("document.querySelector('#problems strong') !== null")
            assert look.text("#problems strong") == "job 2, lost"
            jobs = look.page.locator("#queue th").all_inner_texts()
            assert jobs == ["queued", "later"]
            look.wait("document.querySelector('.disk').dataset.tone === 'good'", timeout=25)


@pytest.mark.skipif("FLATSHIP_SCREENSHOTS" not in os.environ, reason="makes pictures")
def test_screenshots_are_made_anew(browser: Browser, scene: Scene, queue: Scene) -> None:
    looks: list[tuple[str, Scene, Any, tuple[int, int]]] = [
        ("page-receiver-light.png", scene, "light", DESKTOP),
        ("page-sender-dark.png", queue, "dark", DESKTOP),
        ("page-sender-phone.png", queue, "light", (390, 800)),
    ]
    for name, shown, scheme, size in looks:
        with looking(browser, shown.address, scheme=scheme, size=size) as look:
            look.wait("document.querySelector('#chart-svg .rate') !== null")
            photograph(look, SCREENSHOTS / name)
