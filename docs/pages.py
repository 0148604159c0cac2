"""The pages of the site as Markdown, made from the repository: README, docs, claims, rows and figures.

Every page lies in one folder, so a link is the name of a file. No number is typed here: all come from published files.
"""

import html
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pandas as pd

from lib import summary
from lib.claims import FAILS, HOLDS, INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED, evidence, forks_text
from lib.parameters import notebook_names
from lib.provenance import PREFIX, CompanionError, root
from lib.summary import PUBLISHED, claims_of

PROFILES = [profile for profile in PUBLISHED if claims_of(root() / "runs" / profile)]
ENTRIES = [{"profile": profile} | entry for profile in PROFILES for entry in claims_of(root() / "runs" / profile)]
CLAIMS = {entry["id"]: entry["claim"] for entry in ENTRIES}
DOWNLOADS = ("svg", "png", "gif", "csv", "timing.csv", "ipynb", "parquet", "claims.json", "yaml")
FRONT = ("One figure", "What came out", "Two commands", "How to cite")  # sections of README on the front page
USE = ("How to use it", "The notebooks", "The map")  # and those on the page about use
SHORT = {
    SUPPORTED: "supported",
    NOT_SUPPORTED: "not supported",
    INCONCLUSIVE: "open",
    HOLDS: "mathematically true",
    FAILS: "mathematically false",
}
MENU = {
    "The notebooks": notebook_names(),
    "Results": ["claims", "gallery", "errata", "unknown"],
    "Reference": ["results", "rows", "dictionary", "glossary", "data"],
    "Use": ["use", "cloud", "extending", "clusters", "speed", "contributing"],
}


def anchor(claim: str) -> str:
    """The permanent name of a claim's section: "P3-1" for P3.1."""
    return claim.replace(".", "-")


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


@cache
def terms() -> dict[str, list[str]]:
    """Each entry of the glossary with the forms in which it occurs in a text."""
    found = {}
    for names in re.findall(r"^\* (\*\*.*?\*\*): ", (root() / "docs/glossary.md").read_text(encoding="utf-8"), re.M):
        names = [name.replace("\\", "") for name in re.findall(r"\*\*(.+?)\*\*", names)]
        forms = [form for name in names for form in _forms(name)]
        found[names[0]] = forms
    return found


def _forms(name: str) -> list[str]:
    """A term, its plural, and both at the start of a sentence."""
    both = (
        [name] if not name[-1].isalpha() else [name, name.removesuffix("y") + "ies" if name[-1] == "y" else name + "s"]
    )
    return both if name != name.lower() else both + [form[0].upper() + form[1:] for form in both]


def term_id(term: str) -> str:
    """The part of a term's anchor that Sphinx makes of its name."""
    return re.sub(r"[^\w]+", "-", term).strip("-")


@cache
def repository() -> str:
    """`owner/name` on GitHub, from the environment of its actions or from git's origin; "" if there is none."""
    if name := os.environ.get("GITHUB_REPOSITORY"):
        return name
    ask = ("git", "remote", "get-url", "origin")
    address = subprocess.run(ask, cwd=root(), capture_output=True, text=True).stdout.strip()
    found = re.search(r"github\.com[:/](\S+?/\S+?)(?:\.git)?/?$", address)
    return found[1] if found else ""


def page_of(path: str, anchor: str = "") -> str | None:
    """The name of the page that shows a file of the repository; None if no page does."""
    folder, _, file = path.rpartition("/")
    stem, _, kind = file.rpartition(".")
    if path == "README.md":
        return "use" if anchor in {slug(title) for title in USE} else "index"
    if kind == "ipynb":
        return stem if stem in notebook_names() else None
    if kind == "md" and folder in ("", "docs"):
        return stem.lower()
    return "claims" if file == "README.md" and folder.startswith("runs/") else None


def relinked(text: str, source: Path) -> str:
    """The Markdown of a file of the repository, with its links and pictures pointing into the site."""

    def picture(found: re.Match) -> str:
        path = (source.parent / found[2]).resolve()
        return figure(path.parent.name, path.stem, " ".join(found[1].split()))

    def moved(found: re.Match) -> str:
        target, at = found[1], found[2] or ""
        if not target:
            return f"](#{slug(at.replace('-', ' '))})"
        path = Path(os.path.normpath(source.parent / target)).relative_to(root()).as_posix()
        if page := page_of(path, at):
            extension = "ipynb" if page in notebook_names() else "md"
            gone = page in ("claims", "index")  # made anew, under headings of its own
            return f"]({page}.{extension}{'#' + at if at and not gone else ''})"
        return f"](/files/{path})"

    text = re.sub(r"!\[([^\]]*)\]\(([^)\s]+)\)", picture, text)
    return re.sub(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", moved, text)


def figure(profile: str, slug: str, alt: str, width: int = 0, picture: str = "") -> str:
    """A figure on a white card, with its downloads, as HTML; the picture is an SVG, or a GIF that moves."""
    folder = f"figures/{profile}"
    files = {kind: f"{folder}/{slug}.{kind}" for kind in ("svg", "gif", "png", "csv", "timing.csv")}
    files = {kind: path for kind, path in files.items() if (root() / path).exists()}
    if picture:
        files = {"png": picture}
    names = {"csv": "numbers (CSV)", "timing.csv": "measured times (CSV)"}
    links = " · ".join(f'<a href="{path}" download>{names.get(kind, kind.upper())}</a>' for kind, path in files.items())
    shown = next(iter(files.values()))
    size = f' width="{width}"' if width else ""
    return (
        f'<figure class="card" id="fig-{slug}"><a href="{shown}"><img src="{shown}" alt="{html.escape(alt)}"{size} '
        f'loading="lazy"></a><figcaption>{links}</figcaption></figure>'
    )


def escaped(text: object) -> str:
    """A text whose characters mean nothing to Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", str(text))


def table(rows: list[dict]) -> str:
    """Rows of equal keys as an HTML table that scrolls sideways; the cells are HTML already."""
    head = "".join(f"<th>{name}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row.values()) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


@cache
def readme() -> dict[str, str]:
    """The sections of README, by heading; the text before the first one is under ""."""
    source = root() / "README.md"
    first, *rest = re.split(r"^## (?=.)", source.read_text(encoding="utf-8"), flags=re.M)
    sections = {"": first} | {part.partition("\n")[0]: part.partition("\n")[2] for part in rest}
    if missing := [title for title in FRONT + USE if title not in sections]:
        raise CompanionError(f"README.md has no section {missing[0]!r}: add it, or name another one in docs/pages.py.")
    return {title: relinked(text, source) for title, text in sections.items()}


def questions() -> dict[str, str]:
    """The question of each notebook, from the table in README."""
    rows = re.findall(r"^\| \[\d\d\]\(([^).]+)\.ipynb\) \| (.*?) \|", readme()["The notebooks"], re.M)
    plain = re.compile(r" \(\[.*?\]\(.*?\)\)|[*`$]")  # the card of a notebook is a link and holds no other
    return {name: plain.sub("", question) for name, question in rows}


def counts(notebook: str) -> str:
    """How many claims of a notebook have each verdict, as a line of HTML; "" without published claims."""
    primary = [e for e in ENTRIES if e["notebook"] == notebook and e["primary"] and e["profile"] == PROFILES[0]]
    verdicts = [entry["verdict"] for entry in primary]
    return " · ".join(f"{verdicts.count(verdict)} {name}" for verdict, name in SHORT.items() if verdict in verdicts)


def front(figures: list[dict]) -> str:
    """The front page: what the project asks, its best figures, what came out, how to run and cite it."""
    cards = ""
    for name in notebook_names():
        own = [one for one in figures if one["notebook"] == name and one["page"]]
        best = next((one for one in own if one["section"] == "The result in one picture"), own[0] if own else None)
        picture = f'<img src="{best["shown"]}" alt="{html.escape(best["alt"])}" loading="lazy">' if best else ""
        text = html.escape(questions().get(name, ""))
        cards += (
            f'<a class="tile" href="{name}.html"><span class="card">{picture}</span><strong>{name[:2]} · '
            f"{name[3:].replace('_', ' ')}</strong><span>{text}</span><small>{counts(name)}</small></a>"
        )
    parts = [readme()[""], f"## One figure\n{readme()['One figure']}", f"## What came out\n{readme()['What came out']}"]
    parts.append(f'## {_count()} questions, one notebook each\n\n<div class="tiles">{cards}</div>\n')
    parts += [f"## {title}\n{readme()[title]}" for title in ("Two commands", "How to cite")]
    listed = {name for names in MENU.values() for name in names}
    menu = MENU | {"Use": MENU["Use"] + [name for name in pages() if name not in listed]}
    for title, names in menu.items():
        known = "\n".join(name for name in names if name in pages())
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{known}\n```\n")
    return "\n".join(parts)


def _count() -> str:
    return "Zero One Two Three Four Five Six Seven Eight Nine Ten".split()[len(notebook_names())]


@cache
def pages() -> list[str]:
    """The names of all pages but the front page."""
    written = [path.stem for path in (root() / "docs").glob("*.md")]
    return [*notebook_names(), *written, "claims", "gallery", "rows", "use", "errata", "data", "contributing"]


def glossary() -> str:
    """The glossary, with a link to each term."""
    lines, text = [], (root() / "docs/glossary.md").read_text(encoding="utf-8")
    for block in re.split(r"\n(?=\* |\n|#)", relinked(text, root() / "docs/glossary.md")):
        if found := re.match(r"\* (\*\*.*?\*\*): (.*)", block, re.S):
            names = "\n".join(name.replace("\\", "") for name in re.findall(r"\*\*(.+?)\*\*", found[1]))
            meaning = " ".join(found[2].split())
            lines.append(f"```{{glossary}}\n{names}\n    {meaning}\n```\n")
        else:
            lines.append(block + "\n")
    return "\n".join(lines)


def claims(figures: list[dict]) -> str:
    """All claims, each with its rule, evidence, forks and verdict, under a permanent link."""
    parts = [
        "# All claims\n\nEach claim has a rule that was written before its run. [How to read the results](results.md) "
        "explains rules, verdicts and forks. Every claim has a permanent link: the ¶ beside its number.\n",
        'Downloads: <a href="claims.csv" download>claims.csv</a> · <a href="claims.json" download>claims.json</a>, '
        "with all entries of all published profiles.\n",
    ]
    published = {profile: summary.page(profile) for profile in PROFILES}
    for profile, page in published.items():
        parts.append(f"## How many are decided ({profile})\n\n{_section(page, 'How many claims are decided')}")
    for notebook in dict.fromkeys(entry["notebook"] for entry in ENTRIES):
        own = [entry for entry in ENTRIES if entry["notebook"] == notebook]
        primary = {entry["id"]: entry for entry in reversed(own) if entry["primary"]}
        parts.append(f"## {notebook}\n\n[{questions().get(notebook, notebook)}]({notebook}.ipynb)\n")
        ids = list(dict.fromkeys(entry["id"] for entry in own))
        rows = [_row(primary[claim], {"claim": link(claim), "it says": html.escape(CLAIMS[claim])}) for claim in ids]
        parts.append(table(rows) + "\n")
        parts += [_claim(claim, [entry for entry in own if entry["id"] == claim], figures) for claim in ids]
    for profile, page in published.items():
        for title in ("What would settle the open claims", "What it cost"):
            parts.append(f"## {title} ({profile})\n\n{_section(page, title)}")
    return "\n".join(parts)


def link(claim: str) -> str:
    """The number of a claim as a link to it, in HTML."""
    return f'<a href="claims.html#{anchor(claim)}">{claim}</a>'


def _row(entry: dict, first: dict) -> dict:
    unit = html.escape(entry["unit"] or "")
    cells = {"verdict": _badge(entry["verdict"]), "value": f"{html.escape(evidence(entry))} {unit}"}
    return first | cells | {"n": f"{entry['n']:,} {html.escape(entry['n_unit'] or '')}"}


def _badge(verdict: str) -> str:
    return f'<span class="verdict v-{verdict.split()[0]}">{verdict}</span>'


def _section(page: str, title: str) -> str:
    """The tables of a section of a profile's page, its notebooks without links."""
    return re.split(r"^#+ ", page.split(f"## {title}\n")[1], flags=re.M)[0].strip() + "\n"


def _claim(claim: str, entries: list[dict], figures: list[dict]) -> str:
    """One claim: what its rule says, and a paragraph of evidence for each profile."""
    rule = next(entry for entry in entries if entry["primary"])
    name, within = rule["notebook"], f" within {rule['tolerance']:.3g}" if rule["tolerance"] else ""
    condition = f"{rule['statistic']} {rule['relation']} {rule['threshold']:g}{within} {rule['unit']}".rstrip()
    fields = {"Rule": escaped(condition), "Without any effect": escaped(rule["null"])}
    if rule["open_if"]:
        fields["Stays open if"] = escaped(rule["open_if"])
    if rule["mathematical"]:
        fields["Kind"] = "mathematics settles it, so it holds or fails whatever the networks"
    shown = [one for one in figures if one["notebook"] == name and one["section"] == rule["section"] and one["page"]]
    links = ", ".join(f'<a href="{one["page"]}.html#fig-{one["slug"]}">{one["slug"]}</a>' for one in shown)
    text = f"### {claim}\n\n**{escaped(rule['claim'])}**\n\n{_fields(fields)}"
    for profile in dict.fromkeys(entry["profile"] for entry in entries):
        own = [entry for entry in entries if entry["profile"] == profile]
        entry = next(entry for entry in own if entry["primary"])
        fields = {"Verdict": f"{_badge(entry['verdict'])} on the profile {profile}"}
        fields["Statistic"] = escaped(f"{evidence(entry)} {entry['unit'] or ''}")
        fields["n"] = escaped(f"{entry['n']:,} {entry['n_unit'] or ''}")
        if entry["p"] is not None:
            fields["p"] = f"{entry['p']:.3g}, after Holm's correction {entry['p_holm']:.3g}"
        if forks := forks_text(entry, own):
            fields["Forks with this verdict"] = escaped(forks)
        if entry["why"]:
            fields["Remark"] = escaped(entry["why"])
        text += "\n" + _fields(fields) + _others(own)
    rows = (f"runs/{profile}/{name}.*.parquet" for profile in PROFILES)
    files = [path.relative_to(root()).as_posix() for pattern in rows for path in sorted(root().glob(pattern))]
    fields = {"Section": f"[{escaped(rule['section'])}]({name}.ipynb#{slug(rule['section'])})"}
    if links:
        fields["Figures"] = links
    fields["Rows"] = ", ".join(f'<a href="{path}" download>{Path(path).stem.partition(".")[2]}</a>' for path in files)
    return text + "\n" + _fields(fields)


def _fields(fields: dict[str, str]) -> str:
    return "".join(f":{name}: {text}\n" for name, text in fields.items())


def _others(entries: list[dict]) -> str:
    """The entries of a claim beside its primary one: forks, and single networks, data sets or regimes."""
    rest = [entry for entry in entries if not entry["primary"]]
    rows = []
    for entry in rest:
        about = [entry["fork"] and f"fork: {entry['fork']}", entry["network"], entry["dataset"], entry["regime"]]
        first = {"evidence on": html.escape(", ".join(filter(None, about)))}
        rows.append(_row(entry, first) | {"remark": html.escape(entry["why"] or "")})
    return f"\n<details><summary>Other entries: {len(rest)}</summary>{table(rows)}</details>\n" if rows else ""


def gallery(figures: list[dict]) -> str:
    """Every published figure with its downloads, the cell that draws it, and the commits of its rows."""
    parts = ["# Gallery\n\nEvery published figure, with the numbers behind it and the cell that draws it.\n"]
    for profile in PROFILES:
        for name in notebook_names():
            own = [one for one in figures if one["notebook"] == name and one["profile"] == profile]
            if not own:
                continue
            commits = ", ".join(commits_of(profile, name)) or "unknown"
            parts.append(f"## {name} ({profile})\n\n[Notebook]({name}.ipynb). Rows computed at {commits}.\n")
            items = ""
            for one in own:
                drawn = figure(profile, one["slug"], one["alt"])
                place = f"{name}.html#fig-{one['slug']}" if one["page"] else f"{name}.html"
                note = f'<a href="{place}">cell {one["cell"]}</a>, {html.escape(one["section"])}'
                items += f'<div class="tile">{drawn}<strong>{one["slug"]}</strong><span>{note}</span></div>'
            parts.append(f'<div class="tiles">{items}</div>\n')
    return "\n".join(parts)


def commits_of(profile: str, name: str) -> list[str]:
    """The commits that computed the rows of a notebook."""
    files = (root() / "runs" / profile).glob(f"{name}.*.parquet")
    return sorted(
        {commit for file in files for commit in pd.read_parquet(file, columns=[f"{PREFIX}commit"]).iloc[:, 0]}
    )


def rows() -> str:
    """Every published file of rows with its columns: type, and range or values."""
    parts = [
        "# Rows\n\nA row is the result of one trial. Each file below holds the rows of one study. Columns up to "
        "`status` describe the trial (its *spec*), those after `reason` are its results. [How to read the "
        "results](results.md) explains the columns that all files share.\n"
    ]
    if (root() / "docs/dictionary.md").exists():
        parts.append("[The data dictionary](dictionary.md) says what each column means.\n")
    for profile in PROFILES:
        for path in sorted((root() / "runs" / profile).glob("*.parquet")):
            frame, name = pd.read_parquet(path), path.stem
            file = path.relative_to(root()).as_posix()
            own = [column for column in frame if not column.startswith(PREFIX) and column not in ("key", "spec")]
            kinds = own.index("status")
            cells = [
                {"column": f"<code>{column}</code>", "part": "spec" if place < kinds else "result"}
                | {"type": str(frame[column].dtype), "values": html.escape(_values(frame[column]))}
                for place, column in enumerate(own)
                if column not in ("status", "reason")
            ]
            parts.append(
                f"## {name} ({profile})\n\n{len(frame):,} rows: "
                f'<a href="{file}" download>{path.name}</a>, notebook [{name.partition(".")[0]}]'
                f"({name.partition('.')[0]}.ipynb).\n\n<details><summary>{len(cells)} columns</summary>"
                f"{table(cells)}</details>\n"
            )
    return "\n".join(parts)


def _values(column: pd.Series) -> str:
    """The range of numbers, some values of texts, or the length of lists."""
    held = column.dropna()
    if held.empty:
        return "empty"
    if pd.api.types.is_bool_dtype(held):
        return "true or false"
    if pd.api.types.is_numeric_dtype(held):
        low, high = held.min(), held.max()
        return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    if hasattr(held.iloc[0], "__len__") and not isinstance(held.iloc[0], str):
        return f"lists, of {min(map(len, held)):,} to {max(map(len, held)):,}"
    names = sorted(set(held.astype(str)))
    return ", ".join(name[:40] for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def write(source: Path, extra: Path, figures: list[dict]) -> None:
    """Write all pages but the notebooks to `source`, and the files to download to `extra`."""
    texts = {"index": front(figures), "claims": claims(figures), "gallery": gallery(figures), "rows": rows()}
    use = [f"## {title}\n{readme()[title]}" for title in USE]
    texts["use"] = "# How to use it\n\n" + "\n".join(use).replace("## How to use it\n", "", 1)
    for path in [*(root() / "docs").glob("*.md"), *(root() / f"{n}.md" for n in ("ERRATA", "DATA", "CONTRIBUTING"))]:
        texts[path.stem.lower()] = relinked(path.read_text(encoding="utf-8"), path)
    texts["glossary"] = glossary()
    for name, text in texts.items():
        (source / f"{name}.md").write_text(text, encoding="utf-8")
        for file in re.findall(r"\]\(/files/([^)#]+)\)", text):
            (source / "files" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root() / file, source / "files" / file)
    for profile in PROFILES:
        for folder in (f"runs/{profile}", f"figures/{profile}"):
            (extra / folder).mkdir(parents=True)
            for path in (root() / folder).iterdir():
                if path.name.partition(".")[2].endswith(DOWNLOADS):
                    shutil.copy(path, extra / folder)
    (extra / "claims.json").write_text(json.dumps(ENTRIES, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    pd.DataFrame(ENTRIES).to_csv(extra / "claims.csv", index=False, lineterminator="\n")
