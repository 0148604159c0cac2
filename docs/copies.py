"""Copies of the notebooks for the site: figures as the published SVGs, code folded, rules and claims linked."""

import base64
import hashlib
import html
import re
from functools import cache
from pathlib import Path

import nbformat
import pages

from lib.parameters import notebook_names
from lib.provenance import root

RULE = re.compile(rf"({'|'.join(map(re.escape, sorted(pages.CLAIMS, key=len, reverse=True)))})\. .* Rule: ")
SAVED = re.compile(r"run\.(?:save|animate)\([^\"]*\"(\w+)\"")


def published(name: str) -> tuple[Path, str]:
    """The notebook that a page shows, and its profile: the published copy, or else the committed one (smoke)."""
    for profile in pages.PROFILES:
        if (path := root() / "runs" / profile / f"{name}.ipynb").exists():
            return path, profile
    return root() / "notebooks" / f"{name}.ipynb", "smoke"


@cache
def drawn() -> dict[str, tuple[str, str]]:
    """Profile and name of each published picture, by the hash of its bytes."""
    files = [path for profile in pages.PROFILES for path in (root() / "figures" / profile).glob("*.*")]
    pictures = [path for path in files if path.suffix in (".png", ".gif")]
    return {hashlib.sha256(path.read_bytes()).hexdigest(): (path.parent.name, path.stem) for path in pictures}


def facts(name: str, path: Path, profile: str) -> str:
    """A line of HTML: the scale of the outputs, downloads, and where to run the notebook."""
    links = [f'<a href="{path.relative_to(root()).as_posix()}" download>notebook</a>']
    links += [f'<a href="claims.html#{name}">claims</a>'] * any(entry["notebook"] == name for entry in pages.ENTRIES)
    for file in sorted((root() / "runs" / profile).glob(f"{name}.*")) if profile != "smoke" else ():
        if file.suffix in (".json", ".parquet", ".yaml"):
            label = {".json": "claims (JSON)", ".yaml": "parameters"}.get(file.suffix, file.stem.partition(".")[2])
            links.append(f'<a href="{file.relative_to(root()).as_posix()}" download>{label}</a>')
    where = f"https://colab.research.google.com/github/{pages.repository()}/blob/main/notebooks/{name}.ipynb"
    run = f'<a class="button" href="{where}">Open in Colab</a>' if pages.repository() else ""
    how = '<a href="cloud.html">How to run it in the cloud</a>'
    return f'<p class="facts"><strong>Scale: {profile}.</strong> {" · ".join(links)} · {how} {run}</p>'


def outputs(cell: nbformat.NotebookNode, name: str, extra: Path, found: list[dict], section: str) -> list:
    """The outputs of a cell as the site shows them; the figures among them are added to `found`."""
    shown = []
    for output in cell.outputs:
        if output.output_type == "stream":
            shown += rules(output)
            continue
        if output.output_type not in ("display_data", "execute_result"):
            continue
        kind = next((kind for kind in output.data if kind.startswith("image/") and kind != "image/svg+xml"), "")
        if kind:
            data, looks = base64.b64decode(output.data[kind]), output.metadata.get(kind, {})
            profile, slug = drawn().get(hashlib.sha256(data).hexdigest(), ("smoke", f"{name}-{cell.execution_count}"))
            picture = "" if profile != "smoke" else f"figures/smoke/{slug}.{kind.partition('/')[2]}"
            if picture:
                (extra / picture).parent.mkdir(parents=True, exist_ok=True)
                (extra / picture).write_bytes(data)
            alt = looks.get("alt") or slug
            text = pages.figure(profile, slug, alt, looks.get("width", 0), picture)
            still = "gif" if kind == "image/gif" else "svg"
            place = {"notebook": name, "section": section, "cell": cell.execution_count, "page": name}
            where = {"profile": profile, "slug": slug, "shown": picture or f"figures/{profile}/{slug}.{still}"}
            found.append(place | where | {"alt": alt})
            output.data = {"text/html": text}
        elif "text/html" in output.data:
            ids = re.compile(rf"(<t[hd][^>]*>)({'|'.join(map(re.escape, pages.CLAIMS))})(</t[hd]>)")
            text = ids.sub(lambda one: one[1] + pages.link(one[2]) + one[3], output.data["text/html"])
            text = text.replace("<details open>", "<details>")  # of rules, which every claim's own entry repeats
            output.data = {"text/html": f'<div class="wide">{text}</div>'}
        output.metadata = {}
        shown.append(output)
    return shown


def rules(output: nbformat.NotebookNode) -> list:
    """What a cell printed, with the rules of claims as paragraphs that link to them."""
    lines, texts = output.text.splitlines(keepends=True), []
    while lines and (found := RULE.match(lines[0])):
        said = html.escape(lines.pop(0).strip().removeprefix(found[1]))
        texts.append(f'<p class="rule">{pages.link(found[1])}{said}</p>')
    shown = [nbformat.v4.new_output("display_data", {"text/html": "".join(texts)})] if texts else []
    output.text = "".join(lines)
    return shown + ([output] if output.text.strip() else [])


def copy(name: str, source: Path, extra: Path) -> list[dict]:
    """Write the copy of a notebook to `source`, and its files to `extra`; returns the figures in it."""
    path, profile = published(name)
    notebook, cells, found, section = nbformat.read(path, as_version=4), [], [], ""
    injected = any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = ([section] + re.findall(r"^#+ (.*)", cell.source, re.M))[-1]
            cell.source = pages.relinked(cell.source, path)
        elif cell.cell_type == "code":
            if injected and "parameters" in cell.metadata.get("tags", []):
                continue
            saved = SAVED.findall(cell.source)
            cell.outputs = outputs(cell, name, extra, found, section)
            for slug in set(saved) - {one["slug"] for one in found}:
                if (root() / "figures" / profile / f"{slug}.svg").exists():
                    shown = f"figures/{profile}/{slug}.svg"
                    place = {"notebook": name, "section": section, "cell": cell.execution_count, "page": ""}
                    found.append(place | {"profile": profile, "slug": slug, "shown": shown, "alt": slug})
            cell.metadata["tags"] = ["hide-input"]
        cells.append(cell)
    title, _, rest = cells[0].source.partition("\n")
    cells[0].source = f"{title}\n\n{facts(name, path, profile)}\n\n{rest.lstrip()}"
    notebook.cells, notebook.metadata = cells, {"kernelspec": notebook.metadata["kernelspec"]}
    nbformat.write(notebook, source / f"{name}.ipynb")
    if profile == "smoke":
        target = extra / path.relative_to(root())
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return found


def write(source: Path, extra: Path) -> list[dict]:
    """Write the copies of all notebooks; returns their figures, each with its notebook, cell and section."""
    return [one for name in notebook_names() for one in copy(name, source, extra)]
