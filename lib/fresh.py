"""A profile computed anew from an empty store beside the published one, which it replaces when all of it has succeeded.

`make figures PROFILE=... FRESH=1`. The new rows, weights and results gather in `runs/fresh/<profile>` and
`figures/fresh/<profile>`; nothing that was published or stored before is read or touched until the last notebook has
succeeded. A run that was interrupted goes on, but only with the code, the versions and the device it was begun with:
then no row of it is of another kind than the others.
"""

import json
import os
import shutil
from pathlib import Path

from lib import provenance
from lib.provenance import PREFIX, CompanionError, figures_dir, runs_dir, write_atomically

FRESH = "fresh"  # the folder of `runs` and of `figures` that holds what is not complete yet
SAME = ("code", "python", "torch")  # what all rows of a fresh run have in common


def begin(profile: str) -> dict[str, str]:
    """Begin a fresh run of a profile, or take up one that was interrupted.

    Returns: the environment in which its notebooks run.

    Raises: CompanionError if the interrupted one was begun with other code, versions or on another device.
    """
    runs, figures = runs_dir() / FRESH, figures_dir() / FRESH
    mark = runs / f"{profile}.json"
    if mark.exists():
        _check(profile, json.loads(mark.read_text()), runs)
        print(f"The fresh run of {profile} in {runs / profile} goes on.")
    else:
        shutil.rmtree(runs / profile, ignore_errors=True)
        write_atomically(mark, json.dumps(_context()).encode())
        print(f"A fresh run of {profile} begins in {runs / profile}; the published results stay until it is complete.")
    return {"RUNS_DIR": str(runs), "FIGURES_DIR": str(figures)}


def land(profile: str, notebooks: list[str]) -> None:
    """Put a complete fresh run in the place of the published results and of the store; called in its environment.

    Killed in between, it is completed by another `FRESH=1`, which finds every row: the old store goes first, so that no
    old row can meet a new one, and the fresh one last.

    Raises: CompanionError if a row was computed by other code than the run was begun with; nothing is touched then.
    """
    import pyarrow.parquet as pq  # here, for a batch that only begins does without it

    runs, figures = runs_dir(), figures_dir()
    mark = runs / f"{profile}.json"
    begun = json.loads(mark.read_text())
    _check(profile, begun, runs)
    for file in sorted((runs / profile).glob("*.parquet")):
        for name in SAME:
            if others := set(pq.read_table(file, columns=[f"{PREFIX}{name}"])[0].to_pylist()) - {begun[name]}:
                raise _mixed(profile, runs, f"{file.name} has rows of {name} {sorted(others)[0]}")
    target, store = runs.parent / profile, runs / profile / "trials"
    if store.exists():
        shutil.rmtree(target / "trials", ignore_errors=True)
    numbers = {name[:3] for name in notebooks}
    _replace(runs / profile, target, numbers)
    _replace(figures / profile, figures.parent / profile, numbers)
    if store.exists():
        store.replace(target / "trials")
    mark.unlink()
    for folder in (runs / profile, figures / profile):
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{os.path.relpath(target, provenance.root())} holds the fresh run.")


def _context() -> dict[str, str]:
    versions = provenance.versions()
    own = {"code": provenance.code_hash(), "python": versions["python"], "torch": versions["torch"]}
    return own | {"device": provenance.device_name(provenance.default_device())}


def _check(profile: str, begun: dict, runs: Path) -> None:
    if changed := [name for name, value in _context().items() if begun[name] != value]:
        raise _mixed(profile, runs, f"it was begun with another {' and another '.join(changed)} than there is here")


def _mixed(profile: str, runs: Path, why: str) -> CompanionError:
    return CompanionError(
        f"The fresh run of {profile} cannot go on, for unlike rows would mix ({why}): go back to what it was begun "
        f"with, or delete {runs / profile}.json to begin anew."
    )


def _replace(source: Path, target: Path, numbers: set[str]) -> None:
    """Give `target` the files of `source`, and take away those of the same notebooks that were not made again."""
    made = {path.name for path in source.iterdir() if path.is_file()}
    for name in sorted(made):
        write_atomically(target / name, (source / name).read_bytes())
    for path in target.iterdir():
        if path.name[:3] in numbers and path.name not in made and path.suffix != ".yaml":
            path.unlink()
