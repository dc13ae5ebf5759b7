"""The models a server holds: loading, replacing and unloading them while others answer.

A version is loaded and warmed up before it takes the place of an older one; one that does not load changes nothing.
Belongs to one event loop; loading itself happens in a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from na_deploy.errors import NaDeployError
from na_deploy.serving.errors import InvalidRequestError, NotFoundError, UnavailableError, public_text
from na_deploy.serving.metrics import Metrics
from na_deploy.serving.model_loader import open_model
from na_deploy.serving.options import ServeOptions
from na_deploy.serving.served_model import ServedModel
from na_deploy.serving.sources import Fingerprint, Source, Sources, find_sources

log = logging.getLogger("na_deploy.serving")


@dataclass(frozen=True)
class IndexEntry:
    """A version of a model as the repository's index shows it."""

    name: str
    version: str
    state: str
    reason: str


class Repository:
    """Models by name and version.

    Args:
        paths: files, bundles and folders.
        options: of serving the models.
        metrics: told of models.
    """

    def __init__(self, paths: Sequence[Path], options: ServeOptions, metrics: Metrics) -> None:
        self._paths = list(paths)
        self._options = options
        self._metrics = metrics
        self._models: dict[str, dict[int, ServedModel]] = {}
        self._states: dict[tuple[str, int], tuple[str, str]] = {}
        self._refused: dict[tuple[str, int], tuple[Fingerprint, str]] = {}
        self._unloaded: set[str] = set()
        self._lock = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def names(self) -> list[str]:
        """Names of the models that are served."""
        return list(self._models)

    def versions(self, name: str) -> list[ServedModel]:
        """Return the versions of a model that are served, oldest first.

        Raises:
            NotFoundError: there is no such model.
        """
        return [served for _, served in sorted(self._of(name).items())]

    def get(self, name: str, version: str = "") -> ServedModel:
        """Return a version of a model, by default the newest.

        Raises:
            NotFoundError: there is no such model or version.
            UnavailableError: it exists and is not served now.
            InvalidRequestError: ``version`` is no number.
        """
        versions = self._of(name)
        if not version:
            return versions[max(versions)]
        if not (version.isascii() and version.isdecimal()) or len(version) > 18:
            raise InvalidRequestError(f"the version {version[:40]!r} is not a number")
        if int(version) not in versions:
            served = ", ".join(str(number) for number in sorted(versions))
            raise NotFoundError(f"there is no version {int(version)} of the model {name}; served: {served}")
        return versions[int(version)]

    def index(self) -> list[IndexEntry]:
        """Return every version known, served or not."""
        return [IndexEntry(name, str(version), *state) for (name, version), state in sorted(self._states.items())]

    async def refresh(self, only: str | None = None, retry: bool = False) -> None:
        """Look at the files again: load what is new or has changed, unload what is gone.

        Args:
            only: the one model to look at; loads it even if a client had unloaded it.
            retry: also try again what did not load before and has not changed since.

        Raises:
            UsageError: a path given to the server does not exist any more.
            NotFoundError: there are no files of the model ``only``.
        """
        async with self._lock:
            loop = asyncio.get_running_loop()
            sources = await loop.run_in_executor(self._loader, find_sources, self._paths, self._options.labels)
            if only is not None:
                if only not in sources:
                    raise NotFoundError(f"there is no model {only[:80]!r} in the repository")
                self._unloaded.discard(only)
            if retry:
                self._refused = {key: why for key, why in self._refused.items() if only not in (None, key[0])}
            for name in [only] if only is not None else sorted(sources):
                if name not in self._unloaded:
                    await self._refresh_model(name, sources[name])
            self._forget_missing(sources)

    async def load(self, name: str) -> None:
        """Load or reload a model.

        Raises:
            NotFoundError: there is no such model.
            InvalidRequestError: no version of it loads.
        """
        await self.refresh(name, retry=True)
        reasons = [f"version {number}: {why}" for (known, number), (_, why) in self._refused.items() if known == name]
        if reasons or name not in self._models:
            raise InvalidRequestError(f"the model {name} did not load ({'; '.join(reasons) or 'it has no version'})")

    async def unload(self, name: str) -> None:
        """Stop serving a model; what it is computing ends first.

        Raises:
            NotFoundError: it is not served.
        """
        async with self._lock:
            self._of(name)
            self._unloaded.add(name)
            for version in list(self._models[name]):
                self._retire(name, version, "unloaded")

    async def close(self, grace: float) -> None:
        """Finish everything and release all models."""
        for name in list(self._models):
            for version in list(self._models[name]):
                self._retire(name, version, "the server is stopping", grace)
        if self._retiring:
            await asyncio.wait(self._retiring)
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _of(self, name: str) -> dict[int, ServedModel]:
        versions = self._models.get(name)
        if versions:
            return versions
        if any(known == name for known, _ in self._states):
            raise UnavailableError(f"the model {name} is not loaded now")
        served = ", ".join(self._models) or "none"
        raise NotFoundError(f"there is no model {name[:80]!r}; served: {served}")

    async def _refresh_model(self, name: str, versions: dict[int, Source]) -> None:
        """Serve the newest versions that load, as many as the options say; then retire all others."""
        kept: set[int] = set()
        for version in sorted(versions, reverse=True):
            if len(kept) == self._options.versions:
                break
            if await self._bring_up(versions[version]):
                kept.add(version)
        for version in list(self._models.get(name, {})):
            if version not in kept:
                self._retire(name, version, "" if version in versions else "removed")

    async def _bring_up(self, source: Source) -> bool:
        """Serve a version if it loads; whether it is served afterwards, in this or its earlier state."""
        key = (source.name, source.version)
        current = self._models.get(source.name, {}).get(source.version)
        if current is not None and current.source.fingerprint == source.fingerprint:
            return True
        if key in self._refused and self._refused[key][0] == source.fingerprint:
            return current is not None
        if current is None:
            self._states[key] = ("LOADING", "")
        loop = asyncio.get_running_loop()
        try:
            opened = await loop.run_in_executor(self._loader, open_model, source, self._options)
        except Exception as error:
            self._refused[key] = (source.fingerprint, public_text(error))
            self._metrics.loads.labels("refused").inc()
            kept = "; the one loaded before stays" if current is not None else ""
            log.error("%s/%d is not served: %s%s", *key, error, kept)
            if not isinstance(error, NaDeployError):
                log.debug("why", exc_info=error)
            if current is None:
                self._states[key] = ("UNAVAILABLE", public_text(error))
            return current is not None
        self._refused.pop(key, None)
        if current is not None:
            self._retire(*key, "replaced")
        served = ServedModel(source, opened, self._options, self._metrics)
        self._models.setdefault(source.name, {})[source.version] = served
        self._states[key] = ("READY", "")
        self._metrics.loads.labels("loaded").inc()
        session = opened.session
        log.info(
            "%s/%d is ready after %.2f s: %s on %s, attention in %s, %s",
            *key,
            opened.seconds,
            session.backend,
            session.device,
            session.attention,
            f"batches up to {opened.max_batch}" if opened.max_batch else "one request at a time",
        )
        return True

    def _retire(self, name: str, version: int, reason: str, grace: float = 60.0) -> None:
        served = self._models[name].pop(version)
        if not self._models[name]:
            del self._models[name]
        self._states[(name, version)] = ("UNAVAILABLE", reason)
        served.metrics.remove()
        task = asyncio.get_running_loop().create_task(served.close(grace))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        log.info("%s/%d is retired%s", name, version, f": {reason}" if reason else "")

    def _forget_missing(self, sources: Sources) -> None:
        for name in list(self._models):
            for version in list(self._models[name]):
                if version not in sources.get(name, {}):
                    self._retire(name, version, "removed")
        for name, version in list(self._states):
            if version not in sources.get(name, {}):
                del self._states[(name, version)]
