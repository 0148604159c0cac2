"""The site: its links, claims, figures and formulas; each page in a browser, wide and narrow, light and dark."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from html.parser import HTMLParser
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest

from lib.claims import evidence
from lib.parameters import notebook_names
from lib.provenance import root
from lib.summary import PUBLISHED, claims_of
from tests import browser

NEEDED = [name for name in ("sphinx", "myst_nb", "furo", "latex2mathml") if find_spec(name) is None]
PROFILES = [profile for profile in PUBLISHED if claims_of(root() / "runs" / profile)]
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(bool(NEEDED), reason=f"not installed: {', '.join(NEEDED)} (make site installs them)"),
]
needs_browser = pytest.mark.skipif(not browser.PROGRAM, reason="needs Chromium")


class Page(HTMLParser):
    """What a page links to and loads, its anchors, its pictures without a text, and its text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.loaded, self.names, self.mute, self.text, self.hidden = [], [], set(), [], [], 0
        self.math = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.names |= {given["id"]} if given.get("id") else set()
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("img", "script", "source") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "shortcut icon", "preload"):
            self.loaded.append(given["href"])
        if tag == "img" and not (given.get("alt") or "").strip():
            self.mute.append(given.get("src"))
        self.hidden += tag in ("script", "style", "pre", "code")
        self.math += tag == "math"

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style", "pre", "code")

    def handle_data(self, data):
        if not self.hidden:
            self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a proxy that does not exist keeps the build from any network."""
    folder = tmp_path_factory.mktemp("site") / "html"
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "docs/build.py", folder]
    environment = os.environ | closed | {"PYTHONPATH": str(root())}
    done = subprocess.run(command, cwd=root(), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.name: Page(path.read_text(encoding="utf-8")) for path in sorted(site.glob("*.html"))}


@pytest.fixture(scope="module")
def server(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()


def test_every_notebook_has_a_page_and_every_page_is_in_the_menu(pages):
    assert [name for name in notebook_names() if f"{name}.html" not in pages] == []
    linked = set(pages["index.html"].links)
    assert [name for name in pages if name not in ("index.html", "search.html") and name not in linked] == []


def test_every_link_of_a_page_leads_somewhere(site, pages):
    broken = []
    for name, page in pages.items():
        for target in page.links + page.loaded:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https", "data", "mailto"):
                continue
            file = unquote(parts.path) or name
            if not (site / file).is_file() or file in pages and parts.fragment not in pages[file].names | {""}:
                broken.append(f"{name}: {target}")
    assert broken == []


def test_no_page_loads_anything_from_another_host(pages):
    foreign = {name: [one for one in page.loaded if urlsplit(one).netloc] for name, page in pages.items()}
    assert {name: loaded for name, loaded in foreign.items() if loaded} == {}


def test_every_picture_has_an_alternative_text(pages):
    assert {name: page.mute for name, page in pages.items() if page.mute} == {}


def test_every_claim_has_its_link_verdict_and_statistic(site, pages):
    text = (site / "claims.html").read_text(encoding="utf-8")
    for profile in PROFILES:
        for entry in (one for one in claims_of(root() / "runs" / profile) if one["primary"]):
            name = entry["id"].replace(".", "-")
            assert name in pages["claims.html"].names, entry["id"]
            own = text.partition(f'id="{name}"')[2].partition("<section")[0]
            assert f">{entry['verdict']}</span> on the profile {profile}" in own, entry["id"]
            assert evidence(entry) in own and f"{entry['n']:,}" in own, entry["id"]


def test_downloaded_claims_are_all_entries_of_all_published_profiles(site):
    expected = [{"profile": p} | entry for p in PROFILES for entry in claims_of(root() / "runs" / p)]
    assert json.loads((site / "claims.json").read_text(encoding="utf-8")) == expected
    assert len(pd.read_csv(site / "claims.csv")) == len(expected)


def test_the_gallery_shows_every_published_figure_with_its_numbers(site, pages):
    for profile in PROFILES:
        for path in (root() / "figures" / profile).glob("*.svg"):
            shown = path.relative_to(root()).as_posix()
            assert shown in pages["gallery.html"].loaded, shown
            for file in (shown, shown.replace(".svg", ".csv")):
                assert file in pages["gallery.html"].links and (site / file).is_file(), file


def test_formulas_are_mathml_and_none_is_left_in_the_text(pages):
    for name in notebook_names():
        assert pages[f"{name}.html"].math or "$" not in (root() / "notebooks" / f"{name}.ipynb").read_text()
    left = {name: [text for text in page.text if "$$" in text or "\\(" in text] for name, page in pages.items()}
    assert {name: texts for name, texts in left.items() if texts} == {}


@needs_browser
@pytest.mark.parametrize("width, dark", [(1400, False), (390, True)])
def test_pages_ask_for_nothing_foreign_and_fit_the_window(site, pages, server, width, dark):
    found = {}
    with browser.Browser() as tab:
        tab.look(width, dark)
        for own in (site.as_uri(), server):
            for name in pages:
                events = tab.open(f"{own}/{name}", settle=0.2)
                wrong = browser.errors(events)
                wrong += [one for one in browser.requests(events) if not one.startswith((own, "data:", "blob:"))]
                wide = tab.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                found[f"{own}/{name}"] = wrong + [f"{wide} pixels too wide"] * (wide > 0)
                colour = tab.value("getComputedStyle(document.body).backgroundColor")
                assert (sum(map(int, colour.strip("rgb()").split(",")[:3])) < 200) == dark, colour
    assert {page: wrong for page, wrong in found.items() if wrong} == {}


@needs_browser
def test_the_search_works_from_a_disk_and_finds_a_term_and_a_claim(site):
    with browser.Browser() as tab:
        tab.look(1400)
        for word, expected in (("mCB", "03_pruning_spaces.html"), ("Corollary", "01_latent_kl.html")):
            events = tab.open(f"{(site / 'search.html').as_uri()}?q={word}", settle=2)
            links = tab.value("[...document.querySelectorAll('#search-results a')].map(a => a.href).join(' ')")
            assert expected in links and not browser.errors(events), (word, links)


@needs_browser
def test_a_button_saves_a_table_as_csv(site):
    with browser.Browser() as tab:
        tab.open((site / "unknown.html").as_uri())
        caught = "URL.createObjectURL = file => { file.text().then(done); return '#'; };"
        pressed = "document.querySelector('button.csv').click();"
        saved = tab.value(f"new Promise(done => {{ {caught} {pressed} }})")
        assert saved.startswith('"paper","read","unknown"')
