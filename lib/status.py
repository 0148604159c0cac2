"""How far a profile is: its notebooks and their studies, with trials done, failed and left, and the time they take.

python -m lib.status PROFILE   (what `make status` calls)
"""

from pathlib import Path

import pyarrow.compute as pc

from lib.parameters import check_profile
from lib.provenance import PREFIX, command, root, runs_dir
from lib.store import Store

HEADER = f"{'notebook, study':<30} {'done':>8} {'failed':>8} {'left':>8} {'spent':>9} {'still about':>12}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would choose."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def study_state(store: Store) -> dict:
    """Trials of a study `done`, `failed` and `left`, of those asked for since the batch began.

    Without a batch these are the stored rows. `spent` is the computing time of the trials in seconds, `still` what is
    left at their mean cost and with as many processes as the notebook asked for: None before the first has finished.
    """
    asked = store.asked()
    known = Store(store.name, asked["version"], store.folder).known()
    if asked["keys"]:
        known = known.filter(pc.is_in(known["key"], pc.cast(asked["keys"], "string")))
    failed = pc.sum(pc.equal(known["status"], "failed")).as_py() or 0
    seconds = f"{PREFIX}seconds"
    spent = (pc.sum(known[seconds]).as_py() if seconds in known.column_names else None) or 0.0
    left = max(len(asked["keys"]) - len(known), 0)
    still = None if left else 0.0
    if left and len(known):
        still = left * spent / len(known) / min(left, asked["processes"])
    return {"done": len(known) - failed, "failed": failed, "left": left, "spent": spent, "still": still}


def notebook_state(folder: Path, name: str, studies: dict[str, dict]) -> str:
    """One of: not started, begun, failed (with its cell and why), published; `folder` is that of the profile's runs."""
    stages = root() / ".build" / folder.name
    for failed in sorted([*stages.glob(f"{name}/failed"), *stages.glob(f"{name}.*-of-*/failed")]):
        return failed.read_text().partition("\n")[0][:80]
    if any(state["left"] for state in studies.values()):
        return "begun"
    if (folder / f"{name}.ipynb").exists():
        return "published"
    return "begun" if studies else "not started"


def overview(profile: str) -> str:
    """What `make status` prints: notebooks of a profile and their studies."""
    folder = runs_dir() / profile
    lines, total = [], 0.0
    for name in check_profile(profile):
        names = {path.stem for path in folder.glob(f"{name}.*.parquet")}
        names |= {path.name for path in (folder / "trials").glob(f"{name}.*") if path.is_dir()}
        studies = {study: study_state(Store(study, 0, folder)) for study in sorted(names)}
        lines.append(f"{name:<30} {notebook_state(folder, name, studies)}")
        for study, state in studies.items():
            still = "?" if state["still"] is None else duration(state["still"]) if state["left"] else ""
            total += state["still"] or 0.0
            counts = " ".join(f"{state[key]:>8}" for key in ("done", "failed", "left"))
            lines.append(f"  {study.removeprefix(f'{name}.'):<28} {counts} {duration(state['spent']):>9} {still:>12}")
    ending = f"Studies that have begun need about {duration(total)} more." if total else ""
    return "\n".join([HEADER, *lines, *filter(None, [ending])])


