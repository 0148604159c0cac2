"""Build the site: python docs/build.py [folder], by default into docs/_build/html."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import copies  # noqa: E402
import pages  # noqa: E402
from sphinx.cmd.build import main as sphinx  # noqa: E402

from lib.provenance import command  # noqa: E402


def build(arguments: list[str]) -> None:
    """Write the pages, then let Sphinx make HTML of them; any warning is an error."""
    target = Path(arguments[0] if arguments else HERE / "_build" / "html").resolve()
    work = target.parent / "source"
    for folder in (work, target):
        shutil.rmtree(folder, ignore_errors=True)
    source, extra = work / "pages", work / "extra"
    source.mkdir(parents=True)
    extra.mkdir()
    pages.write(source, extra, copies.write(source, extra))
    options = ["-b", "html", "-q", "-W", "--keep-going", "-d", work / "doctrees", "-c", HERE]
    options += ["-D", f"html_extra_path={extra}"]
    if sphinx([str(option) for option in [*options, source, target]]):
        sys.exit("The site has warnings, listed above: correct the pages that they name.")
    print(f"The site is in {target}: open {target / 'index.html'}.")


if __name__ == "__main__":
    command(build)
