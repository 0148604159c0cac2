"""Configuration of the site: no request leaves a page, formulas are MathML, terms and claims link to their pages."""

import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import glossary

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import pages  # noqa: E402

project = "The compression companion"
author = "The authors of the compression companion"
extensions = ["myst_nb"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
html_theme = "furo"
html_title = project
html_static_path = [str(HERE / "_static")]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_favicon = str(HERE / "_static" / "favicon.svg")
html_copy_source = html_show_sourcelink = html_show_copyright = False
html_show_search_summary = False  # summaries are fetched, and a browser refuses that for pages opened from a disk
html_use_index = False
html_math_renderer = "mathml"
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the default loads scripts from other hosts
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "Code"
myst_enable_extensions = ["dollarmath", "fieldlist", "attrs_inline"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
suppress_warnings = ["mystnb.unknown_mime_type"]
# Everyday words: a text means the term of the glossary for sure only where it stresses the word.
EVERYDAY = set("cut drop limit node partition plateau point profile rank tolerance".split())
SKIPPED = (nodes.literal, nodes.literal_block, nodes.reference, nodes.title, nodes.raw, nodes.math, nodes.term)


def math(display: str):
    """A visitor that writes a formula as MathML, which browsers lay out themselves."""

    def visit(self, node: nodes.Element) -> None:
        self.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit


def name_claims(app, doctree: nodes.document) -> None:
    """Give the section of each claim and notebook its permanent name, such as "P3-1", before Sphinx lists sections."""
    if app.env.docname == "claims":
        for section in doctree.findall(nodes.section):
            title = section[0].astext()
            if title in pages.CLAIMS or title in pages.notebook_names():
                section["ids"] = [pages.anchor(title)]


def link_terms(app, doctree: nodes.document) -> None:
    """Link each claim, and the first use of each term of the glossary on a page, to where it is explained."""
    terms, here, used = pages.terms(), app.env.docname, set()
    known = {form: term for term, forms in terms.items() for form in forms}
    words = "|".join(map(re.escape, sorted([*known, *pages.CLAIMS], key=len, reverse=True)))
    pattern = re.compile(rf"(?<![\w.*-])({words})(?![\w*-]|\.\w)")
    for text in list(doctree.findall(nodes.Text)):
        parents, parent = [], text.parent
        while parent is not None:
            parents.append(parent)
            parent = parent.parent
        if any(isinstance(one, SKIPPED) for one in parents):
            continue
        if here == "glossary" and any(isinstance(one, glossary) for one in parents):
            used = {known.get(one[0].astext()) for one in parents if isinstance(one, nodes.definition_list_item)}
        parts, end = [], 0
        for found in pattern.finditer(text):
            word = found[1]
            term = known.get(word)
            if word in pages.CLAIMS:
                target, title = f"claims.html#{pages.anchor(word)}", pages.CLAIMS[word]
            elif (
                term
                and term not in used
                and (term not in EVERYDAY or isinstance(text.parent, nodes.emphasis | nodes.strong))
            ):
                used.add(term)
                target, title = f"glossary.html#term-{pages.term_id(term)}", "glossary"
            else:
                continue
            link = nodes.reference("", word, refuri=target, internal=True, reftitle=title, classes=["term-link"])
            parts += [nodes.Text(text[end : found.start()]), link]
            end = found.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def setup(app) -> None:
    """Register the formulas and the links."""
    app.add_html_math_renderer("mathml", (math("inline"), None), (math("block"), None))
    app.connect("doctree-read", name_claims, priority=100)
    app.connect("doctree-read", link_terms, priority=200)
