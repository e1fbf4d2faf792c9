"""The status page says what is so, to everybody, and nothing that is not for everybody."""

from __future__ import annotations

import asyncio
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from db.connection import get_db_session
from db.services import status_pages
from db.services.status_pages import Check, Standing, StatusPage
from tests.conftest import Database
from tests.worker.cli.conftest import Ops, ops
from tests.worker.serve.checks import MIXED, SECRET, Past, many, write
from tests.worker.serve.conftest import Server, serving
from worker.serve import page
from worker.serve.doors import Remembered, Threads

__all__ = ["ops"]


def gather() -> StatusPage:
    with get_db_session(read_only=True) as session:
        return status_pages.gather(session)


def checks() -> dict[str, Check]:
    return {check.name: check for check in gather().checks}


def overall(*pasts: Past) -> str:
    found = re.search(r"<strong>(.*?)</strong></div>", page.render(gather(), "Status"))
    assert found
    return found[1]


class Elements(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_without_checks_it_says_so(database: Database) -> None:
    html = page.render(gather(), "Status")
    assert "Nothing is being watched" in html
    assert "Nothing is shown here yet." in html


def test_one_check_that_has_just_begun_is_no_hundred_percent_of_ninety_days(database: Database) -> None:
    write(database, [Past("Website", since=0.01)])
    (check,) = gather().checks
    assert [day.share for day in check.days[:-2]] == [None] * 88
    assert check.uptime == 1.0
    html = page.render(gather(), "Status")
    assert "All systems are up" in html
    assert "nothing known of 8" in html
    assert "100 % up" in html


def test_uptime_is_the_time_that_counts(database: Database) -> None:
    """Down counts, degraded is up, and what was paused or not known counts for nothing."""
    write(database, [
        Past("down", since=10, lost=[("down", 5, 24)]),
        Past("degraded", since=10, lost=[("degraded", 5, 24)]),
        Past("unknown", since=10, lost=[("unknown", 5, 24), ("down", 3, 24)]),
        Past("long ago", since=400, lost=[("down", 300, 24 * 10)]),
        Past("since then", "down", since=400),
    ])  # fmt: skip
    found = {name: check.uptime for name, check in checks().items()}
    assert found["down"] == pytest.approx(0.9, abs=1e-4)
    assert found["degraded"] == 1.0
    assert found["unknown"] == pytest.approx(8 / 9, abs=1e-4)
    assert found["long ago"] == 1.0
    assert found["since then"] == 0.0
    for check in checks().values():
        for day in check.days[:-1]:
            assert 0 <= day.up + day.degraded + day.down <= 86_400.01


def test_what_is_worked_on_is_said_to_be_and_counts_for_nothing(database: Database, sql) -> None:
    """Two windows that overlap count once; what was down before and after them counts; the title is not public."""
    write(database, [Past("Website", since=10, lost=[("down", 5, 24)]), Past("Mail", "down", since=10), Past("API")])
    for check, begin, end in (("Website", -120, -108), ("Website", -110, -102), ("Mail", -1, 2), ("Mail", 24, 26)):
        sql(
            """INSERT INTO maintenance_windows (title, matchers, starts_at, ends_at) VALUES ('at secret-host.internal',
            jsonb_build_object('check', %s::text),
            now() + make_interval(hours => %s), now() + make_interval(hours => %s))""",
            check, begin, end,
        )  # fmt: skip
    found = checks()
    # Ten days less 18 hours of work; down for 24 hours of which 18 do not count.
    assert found["Website"].uptime == pytest.approx(1 - 6 / (240 - 18), abs=1e-4)
    assert found["Mail"].standing is Standing.MAINTENANCE
    html = page.render(gather(), "Status")
    assert "All others are up, 1 in maintenance" in html
    assert html.count("Under way:") == 1
    assert html.count("Planned:") == 1
    assert SECRET not in html


@pytest.mark.parametrize(
    ("pasts", "said"),
    [
        ([Past("a"), Past("b")], "All systems are up"),
        ([Past("a"), Past("b", "degraded")], "1 of 2 degraded"),
        ([Past("a", "down"), Past("b", "degraded"), Past("c", "paused")], "1 of 2 down, 1 degraded"),
        ([Past("a"), Past("b", late=True)], "1 of 2 not known"),
        ([Past("a", late=True), Past("b", late=True)], "The state is not known"),
        ([Past("a", "paused")], "Everything is paused"),
        ([Past("a", "down", public=False)], "Nothing is being watched"),
    ],
)
def test_the_whole_is_as_bad_as_its_worst(database: Database, pasts: list[Past], said: str) -> None:
    write(database, pasts)
    assert overall() == said


def test_where_our_own_checks_do_not_run_nothing_is_said_to_be_up(database: Database) -> None:
    write(database, [Past("late", late=True), Past("blind", blinds=3), Past("fine", blinds=2)])
    found = checks()
    assert (found["late"].standing, found["blind"].standing) == (Standing.UNKNOWN, Standing.UNKNOWN)
    assert found["fine"].standing is Standing.UP


def test_it_shows_public_checks_only_and_neither_hosts_nor_addresses_nor_errors(server: Server, database) -> None:
    write(database, MIXED)
    html = server.ask("/").text
    for name in ("Website", "Checkout", "Nightly backup", "Customers", "Back office"):
        assert name in html
    for private in (SECRET, "Internal ledger", "Hidden", "refused", "http:", "https:", "ann"):
        assert private not in html, private


def test_it_is_one_file_without_scripts_and_asks_nobody_for_anything(database: Database) -> None:
    write(database, [Past('<script>alert("x")</script>', group='"><img src=x onerror=alert(1)>')])
    html = page.render(gather(), "</title><script>1</script>")
    found = Elements(html).found
    tags = {tag for tag, _ in found}
    assert not tags & {"script", "img", "link", "iframe", "object", "form", "base"}
    for _tag, attributes in found:
        assert not {"src", "href", "style", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in page.CSS
    assert "@import" not in page.CSS


def test_its_policy_admits_its_style_and_nothing_else(server: Server) -> None:
    answer = server.ask("/")
    policy = answer.headers["content-security-policy"]
    assert policy == f"{page.POLICY}; frame-ancestors 'none'"
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    packed = server.ask("/", Accept_Encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.body) < len(answer.body) / 2


def test_two_thousand_checks_are_a_page_that_opens_on_a_phone(database: Database) -> None:
    write(database, many(2000))
    found = gather()
    assert len(found.checks) == 2000
    assert sum(check.standing is Standing.DOWN for check in found.checks) == 3
    html = page.render(found, "Status")
    assert "3 of 2000 down" in html
    assert html.index("service 0007") < html.index("service 0015"), "trouble comes first"
    assert html.index("service 0708") < html.index("service 0004")
    assert html.count("<details") == 8
    assert html.count('<details class="group" open>') == 3, "only groups with trouble are open"
    import gzip

    assert len(gzip.compress(html.encode())) < 250_000


def test_an_incident_says_how_long_it_lasted_or_lasts(database: Database) -> None:
    write(
        database, [Past("A", lost=[("down", 2, 1.5)]), Past("B", "down", since=0.5), Past("C", lost=[("down", 80, 1)])]
    )
    html = page.render(gather(), "Status")
    assert re.search(r"<strong>A</strong>.*?down for 1 h 30 min", html)
    assert re.search(r"<strong>B</strong>.*?down since then, for 12 h so far", html)
    assert "<strong>C</strong>" not in html, "long ago"


def test_ninety_nine_point_nine_is_never_rounded_up() -> None:
    from worker.serve.plots import percent

    assert [percent(share) for share in (1.0, 0.999999, 0.9995, 0.0)] == ["100 %", "99.99 %", "99.95 %", "0.00 %"]


def test_without_a_database_it_says_that_nothing_is_known(database: Database) -> None:
    with serving(DATABASE_URL="postgresql://role:secret-word@127.0.0.1:1/secret-name") as server:
        answer = server.ask("/")
    assert answer.status == 503
    assert "The state is not known at the moment" in answer.text
    assert "secret" not in answer.text


def test_a_crowd_costs_one_reading() -> None:
    made: list[int] = []

    async def crowd() -> list[int]:
        threads = Threads(2, 2)
        remembered = Remembered(threads, lambda: made.append(1) or len(made), seconds=60)
        answers = await asyncio.gather(*(remembered.get() for _ in range(500)))
        threads.close()
        return answers

    assert set(asyncio.run(crowd())) == {1}
    assert len(made) == 1


def test_what_failed_is_not_remembered() -> None:
    answers: list[Any] = [ZeroDivisionError(), 5]

    def make() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask() -> int:
        threads = Threads(1, 1)
        remembered = Remembered(threads, make, seconds=60)
        with pytest.raises(ZeroDivisionError):
            await remembered.get()
        found = await remembered.get()
        threads.close()
        return found

    assert asyncio.run(ask()) == 5


def test_the_command_writes_one_file_and_says_where(database: Database, ops: Ops, tmp_path) -> None:
    write(database, MIXED)
    done = ops("status-page", "--out", str(tmp_path / "site"), "--json")
    assert done.code == 0
    assert done.json == {"path": str(tmp_path / "site" / "index.html"), "checks": 6}
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["index.html"]
    assert "Website" in (tmp_path / "site" / "index.html").read_text()
    assert "--public" not in ops("status-page", "--out", str(tmp_path / "site")).stdout
    (tmp_path / "taken").write_text("")
    refused = ops("status-page", "--out", str(tmp_path / "taken"))
    assert refused.code == 3
    assert "taken" in refused.error


def test_colours_can_be_told_from_what_is_behind_them() -> None:
    """WCAG AA: 4.5 for text, 3 for what is drawn; on light and on dark."""
    for block in re.findall(r":root\{(.*?)\}", page.CSS):
        colours = dict(re.findall(r"--(\w+):(#[0-9a-f]+)", block))
        for name in ("text", "soft", "up", "degraded", "down"):
            for behind in ("card", "bg"):
                assert contrast(colours[name], colours[behind]) >= 4.5, (name, behind, block)
        assert contrast(colours["plot"], colours["card"]) >= 3


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
