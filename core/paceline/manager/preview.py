"""What installing a release would do on this machine, said before anything happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from paceline import paths
from paceline.manager.diskspace import Space, space_for
from paceline.manager.plan import InstallPlan, make_plan

if TYPE_CHECKING:
    from paceline.store import Store
    from paceline.types import Release


@dataclass(frozen=True)
class Preview:
    """A plan, and the disks it needs room on."""

    plan: InstallPlan
    disk: tuple[Space, ...]
    """Empty where no size is known at all."""


def preview(release: Release, store: Store) -> Preview:
    """What `install` would do, and what it needs of which disk."""
    return Preview(plan_here(release, store), space_for(release, store, paths.cache()))


def plan_here(release: Release, store: Store) -> InstallPlan:
    """The plan of an installation into this store, with the time that building takes on this machine."""
    return make_plan(
        release,
        store.home,
        [r.id for r in store.runtimes()],
        store.selection(),
        build_s=store.build_time(release.name),
        cores=psutil.cpu_count(),
    )
