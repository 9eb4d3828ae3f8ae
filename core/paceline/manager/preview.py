"""What installing a release would do on this machine, said before anything happens."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import psutil

from paceline import paths
from paceline.manager.diskspace import Space, space_for
from paceline.manager.plan import InstallPlan, make_plan
from paceline.packages.download import Patience
from paceline.packages.indexes import Indexes
from paceline.packages.sizes import asked
from paceline.store import health

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paceline.store import Store
    from paceline.types import Release


@dataclass(frozen=True)
class Preview:
    """A plan, and the disks it needs room on."""

    plan: InstallPlan
    disk: tuple[Space, ...]
    """Empty where no size is known at all."""


def preview(release: Release, store: Store) -> Preview:
    """What `install` would do, and what it needs of which disk.

    Of packages whose lock says no size, their index is asked, in a hurry.
    """
    cache, told = paths.cache(), {}
    if not health.sizes(store.folder / release.id).ok:
        with closing(Indexes(cache, patience=_HURRY)) as indexes:
            told = asked(release.recipe, indexes)
    return Preview(plan_here(release, store, told), space_for(release, store, cache, told))


def plan_here(release: Release, store: Store, told: Mapping[str, int] = MappingProxyType({})) -> InstallPlan:
    """The plan of an installation into this store, with the time that building takes on this machine.

    `told`: by name, what indexes say of packages whose lock says no size.
    """
    return make_plan(
        release,
        store.home,
        [r.id for r in store.runtimes()],
        store.selection(),
        broken=not health.sizes(store.folder / release.id).ok,
        build_s=store.build_time(release.name),
        cores=psutil.cpu_count(),
        told=told,
    )


_HURRY = Patience(stall_s=5, answer_s=10, attempts=1)
