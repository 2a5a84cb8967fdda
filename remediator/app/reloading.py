"""Reloading: settings and rules are read again, all or nothing, when somebody asks or a file has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

from remediator.app.ground import Ground, actions_of
from remediator.errors import InvalidFiles, RemediatorError, TemporaryError
from remediator.events import Kind
from remediator.freezes.keeper import Freezer
from remediator.model import SYSTEM, Actor
from remediator.people.operations import idle
from remediator.rules.compile import RuleSet
from remediator.rules.loading import let_go, load_beside
from remediator.service import Reloaded
from remediator.settings import Settings, read_settings, reloadable_changes

WATCH_EVERY = timedelta(seconds=5)


class Reloading:
    """Replaces what is in force. `path` is the settings file that is read again, None where settings came from elsewhere."""

    def __init__(self, ground: Ground, freezer: Freezer, *, path: Path | None) -> None:
        """Take what a reload changes."""
        self._ground = ground
        self._current = ground.current
        self._freezer = freezer
        self._path = path
        self._one = asyncio.Lock()
        self._log = structlog.get_logger("remediator")

    async def reload(self, actor: Actor) -> Reloaded:
        """Read settings and rules again: a fault leaves everything as it was, and says so. Raises `StoreUnavailable`."""
        async with self._one:  # of two at once the later one must win
            return await self._reload(actor)

    async def _reload(self, actor: Actor) -> Reloaded:
        try:
            settings, rules, restart = await self._read()
            actions = await asyncio.to_thread(actions_of, rules)
            await self._ground.learn_secrets(settings)
            identity = self._ground.identity(settings)
        except RemediatorError as error:
            return await self._refuse(error, actor)
        retired = list(self._current.rules.rules)
        await self._freezer.use(settings.freezes)
        with suppress(TemporaryError):  # before they are in force: no run of a new rule may be another daemon's before it knows of them
            await self._ground.tell_rules(rules.hash, before=self._current.rules.hash)
        # Nothing is awaited between these: no run may come to a new address by the old rules, or in a dry run that is none yet.
        clients = self._ground.connections.reload(settings, identity=identity)
        self._current.replace(settings, rules)
        self._ground.metrics.expect(actions=actions)
        self.tell()
        await self._ground.connections.let_go(clients)
        await self._ground.note(Kind.RULES_RELOADED, {"restart": list(restart), **self._current.rules_facts()}, actor)
        await let_go(retired)
        problems = [*(f"{name} needs a restart to take effect" for name in restart), *await self._idle()]
        return Reloaded(ok=True, rules=len(rules.rules), problems=tuple(problems))

    async def _idle(self) -> Sequence[str]:
        """Say what holds nothing back by now, since no rule or remedy has its name: what was renamed acts."""
        scopes: list[str] = []
        with suppress(TemporaryError):
            scopes = idle(await self._ground.store.pauses(), self._current.rules.rules)
        for scope in scopes:
            self._log.warning("rules.stop_is_idle", scope=scope)
        return [f"{scope} holds nothing back: nothing has that name. Was it renamed? Then say it anew by the new name" for scope in scopes]

    async def _read(self) -> tuple[Settings, RuleSet, Sequence[str]]:
        """Read the files; also name the settings that only a restart changes. Raises `RemediatorError` for any fault."""
        if self._path is None:
            return self._current.settings, await load_beside(self._current.settings, self._ground.registry, self._current.rules), ()
        loaded = read_settings(self._path, self._ground.environ)
        loaded.check(self._ground.registry)
        settings, restart = reloadable_changes(self._current.settings, loaded.settings)
        rules = await load_beside(settings, self._ground.registry, self._current.rules)
        loaded.check_rules([rule.name for rule in rules.rules])
        return settings, rules, restart

    async def _refuse(self, error: RemediatorError, actor: Actor) -> Reloaded:
        problems = tuple(str(one) for one in error.problems) if isinstance(error, InvalidFiles) else (str(error),)
        kept = len(self._current.rules.rules)
        self._ground.metrics.reloaded(ok=False, rules=kept, at=datetime.now(UTC).timestamp())
        self._log.error("rules.refused", problems=problems[:20])
        await self._ground.note(Kind.RULES_REFUSED, {"problems": list(problems[:100])}, actor)
        return Reloaded(ok=False, rules=kept, problems=problems)

    def tell(self) -> None:
        """Show what is in force, and what it means for safety, where people look."""
        settings, rules = self._current.settings, self._current.rules
        self._ground.metrics.reloaded(ok=True, rules=len(rules.rules), at=datetime.now(UTC).timestamp())
        self._ground.metrics.dry_run.set(settings.dry_run)
        for warning in settings.warnings:
            self._log.warning("settings.doubtful", warning=warning)

    # --- files

    async def watch(self) -> None:
        """Reload for ever when a file of a pack, or the settings file, changed."""
        seen = await asyncio.to_thread(self._stamp)
        while True:
            await asyncio.sleep(WATCH_EVERY.total_seconds())
            stamp = await asyncio.to_thread(self._stamp)
            if stamp == seen:
                continue
            seen = stamp
            try:
                await self.reload(SYSTEM)
            except TemporaryError as error:
                self._log.warning("rules.reload_unnoted", error=str(error))

    def _stamp(self) -> Mapping[str, Any]:
        files = [] if self._path is None else [self._path]
        for pack in self._current.settings.packs.values():
            files += _files_of(pack.path)
        found = {}
        for path in files:
            try:
                status = path.stat()
            except OSError:
                continue
            found[str(path)] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found


def _files_of(pack: Path) -> list[Path]:
    """List the files that `read_pack` reads, none where the directory can't be read: a reload will say why."""
    try:
        return sorted(entry for entry in pack.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return []
