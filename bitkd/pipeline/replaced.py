"""Which finished results of a run folder another run under its name would replace."""

from dataclasses import dataclass
from typing import Any

from bitkd.config.comparable import result_settings, with_newer
from bitkd.pipeline.plan import Plan

SHOWN = 6
"""Changed settings that the note lists."""


@dataclass(frozen=True)
class Replaced:
    """Finished stages of a run that a plan makes anew, with other settings or inputs."""

    stages: list[str]
    changed: dict[str, tuple[Any, Any]]
    """Dotted name -> value that the run was last started with, and the planned one; None if it has none. Empty if they
    are the same: the run was started with them already, or the version of bitkd has changed."""

    def note(self, name: str) -> str:
        """A few sentences for people.  name: of the run."""
        shown = [f"{key} {_text(old)} -> {_text(new)}" for key, (old, new) in list(self.changed.items())[:SHOWN]]
        more = [f"{len(self.changed) - SHOWN} more"] if len(self.changed) > SHOWN else []
        changes = f" Changed: {', '.join([*shown, *more])}." if shown else ""
        return (
            f"this replaces finished results of the run {name}: {', '.join(self.stages)}.{changes} Another run.name= keeps "
            "both. Replaced artifacts stay in the store until `bitkd store gc`"
        )


def replaced_by(plan: Plan) -> Replaced | None:
    """The finished results of the run folder that `plan` replaces; None if it keeps all of them."""
    manifest = plan.folder.manifest
    if manifest is None:
        return None
    planned = {stage.name: stage.key for stage in plan.stages}
    stages = [name for name, key in manifest.artifacts.items() if planned.get(name) != key]
    if not stages:
        return None
    before = {"seed": manifest.seed, "pipeline": manifest.pipeline, **with_newer(manifest.settings)}
    now = {"seed": plan.config.seed, "pipeline": plan.config.pipeline.name, **result_settings(plan.config)}
    now |= plan.content_read()
    changed = {
        name: (before.get(name), now.get(name)) for name in {**before, **now} if before.get(name) != now.get(name)
    }
    return Replaced(stages, changed)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
