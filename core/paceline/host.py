"""The host put together: plugins, library, pair index and store, as every command that needs them all opens them."""

from __future__ import annotations

from dataclasses import dataclass

from paceline import paths
from paceline.library import Library, open_library
from paceline.library.pairs import PairIndex, open_pairs
from paceline.loading import LoadConfig
from paceline.manager import plugin_generations
from paceline.manager.features import way_to
from paceline.plugins import Plugins
from paceline.serving.pool import Serving
from paceline.store import Store


@dataclass(frozen=True)
class Host:
    plugins: Plugins
    library: Library
    pairs: PairIndex
    store: Store

    def serving(
        self,
        *,
        max_loaded: int = 3,
        ttl_s: float | None = 3600.0,
        defaults: LoadConfig | None = None,
        check_memory: bool = True,
        patience_s: float = 600.0,
    ) -> Serving:
        """A new, empty set of loaded models over this host's library and runtimes."""
        return Serving(
            plugins=self.plugins,
            pairs=self.pairs,
            store=self.store,
            max_loaded=max_loaded,
            ttl_s=ttl_s,
            defaults=defaults,
            check_memory=check_memory,
            way_to=lambda feature, runtime: way_to(feature, runtime, self.store, self.plugins),
            patience_s=patience_s,
        )


def open_host() -> Host:
    """Open everything as the environment says. Probes no hardware and starts no process."""
    loaded = plugin_generations.loaded()
    library = open_library(loaded)
    return Host(loaded, library, open_pairs(library, loaded), Store(paths.home()))
