"""Changing the set of nodes: `haclusterctl reload`, and what is kept of it on the disk.

A reload is judged here as far as the file and heart's view tell, written down, and only then told
to heart, which judges it once more and says it aloud. What is refused is refused with all reasons.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path

import msgspec

from haclusterd.agent.majorities import lost_by_change
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.schema import PARTLY
from haclusterd.config import (
    Config,
    ConfigError,
    cluster_spec,
    config_hash,
    load_cluster,
    revisions,
    seen_by,
)
from haclusterd.config.revisions import Content, Kept, RevisionsError, Start
from haclusterd.core.actions import Answered
from haclusterd.core.inputs import FromAgent, StageRequested
from haclusterd.core.reconfigure import deaf, objections
from haclusterd.core.view import RevisionView, View
from haclusterd.lasting import lasting

log = logging.getLogger(__name__)

_PART = "revision"
_HOST = "host"
_OUTLIVING = (
    "this node has just been restarted with shorter times and waits until what it agreed to by the "
    "longer ones has run out: try again in a few seconds"
)
LOOK_S = 5.0  # how often the files of this host are looked at
_OWED_MAX = 4  # a start, and what is in force
Change = Callable[[Content | None], Content | None]
Ask = Callable[[Callable[[int], FromAgent]], Awaitable[Answered]]


class Voters:
    """`view()` is heart's newest word, `ask` puts a request to heart and waits for its answer."""

    def __init__(
        self, begun: Start, view: Callable[[], View], ask: Ask, problems: dict[str, str]
    ) -> None:
        """`problems`: where a failure is told to people, by part."""
        self._begun, self._view, self._ask = begun, view, ask
        self._config = begun.config
        self._lock = asyncio.Lock()
        self._problems = problems
        self._stopping = asyncio.Event()
        self._owed: tuple[Change, ...] = ()  # could not be written yet
        self._outliving = False  # what the last run granted, by longer times
        self._asides: set[asyncio.Task[None]] = set()
        self._last: Content | None = None  # what was written or read last
        self._followed = ""  # what was said of it last
        self._seen: object = None  # the files as they were looked at last
        self.forbidden: Callable[[], str] = lambda: ""  # why the set must not change now

    def aside(self, work: Coroutine[None, None, None]) -> None:
        """Beside everything else, to its end."""
        task = lasting(work, "what is kept of the set of nodes")
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    async def stop(self) -> None:
        """What is being written is written."""
        self._stopping.set()
        await asyncio.gather(*self._asides, return_exceptions=True)

    async def started(self) -> None:
        """Write down what this process counts by, if it is not written yet.

        Where the last run held down for longer, the next start has to know of it until this one has
        outlived what was granted then.
        """
        held_s = self._begun.hold_down_us / 1e6
        if self._begun.hold_down_us > self._config.timing.hold_down_us:
            self._outliving = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * held_s):
                    await self._stopping.wait()
            self._outliving = False
        if self._config.text and not self._stopping.is_set():
            await self._update(
                lambda kept: revisions.after_start(kept, self._begun), until_done=True
            )

    async def watch(self) -> None:
        """Look at the files of this host for ever: what is wrong with them is an alarm for as
        long as it is, and not until the next restart."""
        while self._config.text:
            await self._look()
            await self._follow()
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        marks = await asyncio.to_thread(self._marks)
        if marks == self._seen and _PART not in self._problems:
            return
        # A file that is damaged, or gone, is written again as it was.
        await self._update(lambda kept: kept)
        said = await asyncio.to_thread(revisions.standing, self._config, self._last)
        if said != self._problems.get(_HOST, ""):
            log.warning("%s", said or f"{self._config.path} is in order again")
        self._problems.pop(_HOST, None)
        if said:
            self._problems[_HOST] = said
        self._seen = await asyncio.to_thread(self._marks)

    async def _follow(self) -> None:
        """The file that this start found is in force elsewhere by now, and heart keeps to another
        one, which it had agreed to before: what is in force ends that, and nobody else says so."""
        newer = self._begun.newer
        if newer is None:
            return
        in_force = (newer.revision, config_hash(newer))
        try:
            said = self._view().revision
        except OperatorError:
            return  # before heart's first word
        text = ""
        try:
            known, staged = (said.known, said.known_hash), (said.staged, said.staged_hash)
            if known == in_force != staged and said.staged:
                text = f"{self._config.path} is in force: {await self._stage(newer)}"
        except OperatorError as error:
            text = f"{self._config.path} is not taken up yet: {error}"
        if text and text != self._followed:
            log.warning("%s", text)
        self._followed = text

    def _marks(self) -> list[tuple[int, ...]]:
        """Changes when one of the files does."""
        found: list[tuple[int, ...]] = []
        for path in (self._config.path, self._folder / revisions.FILE_NAME):
            try:
                status = path.stat()
            except OSError as error:
                found.append((error.errno or 0,))
            else:
                found.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode))
        return found

    async def in_force(self, revision: int) -> None:
        """Heart knows it: of the set that it counts by, or of one without this node."""

        def change(kept: Content | None) -> Content | None:
            if kept is None:
                return None
            if kept.staged is not None and kept.staged.revision == revision:
                return Content(kept.staged, previous=kept.active)
            return msgspec.structs.replace(kept, proven=True)

        await self._update(change, until_done=True)

    async def _update(self, change: Change, *, until_done: bool = False) -> None:
        """Read, change and write, one at a time. A failure is told; a change that has to be made is
        made with the next one, a look at the files at the latest."""
        async with self._lock:
            changes = (*self._owed, change)
            try:
                await asyncio.to_thread(self._rewrite, changes)
                self._problems.pop(_PART, None)
                self._owed = ()
            except (OSError, RevisionsError) as error:
                if until_done:
                    self._owed = changes[-_OWED_MAX:]
                before = self._problems.get(_PART)
                self._problems[_PART] = (
                    f"{self._folder / revisions.FILE_NAME}: {error}: the set of nodes cannot be "
                    "kept; make the folder writable"
                )
                if self._problems[_PART] != before:
                    log.error("%s", self._problems[_PART])

    def _rewrite(self, changes: Sequence[Change]) -> None:
        try:
            found = revisions.read(self._folder)
        except RevisionsError:
            found = None  # it is replaced
        wanted = found or self._last
        for change in changes:
            wanted = change(wanted)
        if wanted is not None and wanted != found:
            revisions.write(self._folder, wanted)
        self._last = wanted

    @property
    def _folder(self) -> Path:
        return self._config.state_dir

    # -- reload --------------------------------------------------------------------------------

    async def reload(self, without_majority: bool = False) -> str:
        """Stage the file as it lies on this host now; a sentence. Raises OperatorError.

        `without_majority`: also where too few of the next set are heard to go on serving.
        """
        return await self._stage(await asyncio.to_thread(self._read), without_majority)

    async def _stage(self, wanted: Config, without_majority: bool = False) -> str:
        said = self._view().revision
        hashed = config_hash(wanted)
        if (wanted.revision, hashed) == (self._config.revision, config_hash(self._config)):
            if said.staged > wanted.revision:
                raise OperatorError(self._agreed_to(said, wanted.revision))
            return f"revision {wanted.revision} is in force here already"
        reasons = self._reasons(wanted, hashed, without_majority)
        if reasons:
            raise OperatorError("\n".join(reasons))
        written = (said.staged, said.staged_hash) != (wanted.revision, hashed)
        before = await self._write_staged(wanted) if written else None
        spec = seen_by(wanted, self._config.node.id)
        try:
            answer = await self._ask(lambda number: StageRequested(number, spec))
        except OperatorError as error:
            late = f"revision {wanted.revision} is on the disk here, and the next start stages it"
            raise OperatorError(f"{error}; {late}", PARTLY) from None
        if not answer.ok:
            if written:
                await self._take_back(wanted, before)
            raise OperatorError("\n".join(answer.text.split("; ")))
        return f"{answer.text}{self._still_lacking(wanted.revision, hashed)}"

    def _read(self) -> Config:
        try:
            return load_cluster(self._config.path)
        except ConfigError as error:
            raise OperatorError(str(error)) from None

    async def _write_staged(self, wanted: Config) -> Kept | None:
        """What was staged before it, if that was another one."""
        before: Kept | None = None
        staged = revisions.keep(wanted)

        def change(kept: Content | None) -> Content:
            nonlocal before
            base = revisions.after_start(kept, self._begun)
            if base.active.revision != self._config.revision:
                raise RevisionsError(f"revision {base.active.revision} has been taken up meanwhile")
            before = None if base.staged == staged else base.staged
            return msgspec.structs.replace(base, staged=staged)

        await self._update(change)
        if problem := self._problems.get(_PART):
            raise OperatorError(problem)
        return before

    async def _take_back(self, wanted: Config, before: Kept | None) -> None:
        """Heart refused it: the next start would take it for agreed to."""
        refused = revisions.keep(wanted)

        def change(kept: Content | None) -> Content | None:
            if kept is None or kept.staged != refused:
                return kept
            return msgspec.structs.replace(kept, staged=before)

        await self._update(change, until_done=True)

    def _reasons(self, wanted: Config, hashed: int, without_majority: bool) -> list[str]:
        """Why not: from the file, and from what the other nodes say."""
        view = self._view()
        said = view.revision
        if (said.known, said.known_hash) == (wanted.revision, hashed):
            return []  # it is in force: this node has to follow, whatever lies between
        if forbidden := self.forbidden():
            return [forbidden]
        if self._outliving:
            return [_OUTLIVING]
        if said.staged and wanted.revision == said.staged + 1:
            return [
                f"revision {said.staged} is staged here and not in force yet: try again when it is "
                "(`haclusterctl status`)"
            ]
        found = objections(cluster_spec(self._config), seen_by(wanted, self._config.node.id))
        found += revisions.differences(self._config, wanted)
        if not found and _names(wanted) == _names(self._config):
            found.append(
                "no node has changed, and a revision adds or removes one: set cluster.revision "
                f"back to {self._config.revision}"
            )
        if not view.quorate:
            found.append(
                f"{view.node} reaches no majority of the nodes: the others would not hear of it"
            )
        if said.plain or said.early:
            found.append(deaf(said.plain))
        again = (said.staged, said.staged_hash) == (wanted.revision, hashed)
        if not (found or again or without_majority):
            present, spec = cluster_spec(self._config), seen_by(wanted, self._config.node.id)
            found += lost_by_change(view, present, spec)
        kept = {node.id for node in wanted.nodes}
        found += [
            f"{s.owner}, which would go, serves {s.name}: `haclusterctl switchover {s.name}` first"
            for s in view.services
            if s.owner and s.owner not in kept
        ]
        return found + self._staged_otherwise(said, wanted.revision, hashed)

    def _agreed_to(self, said: RevisionView, revision: int) -> str:
        return (
            f"revision {revision} is in force here, but this node has agreed to revision "
            f"{said.staged}, and a word given is not taken back: it comes into force once a "
            "majority has reloaded it. Go on with that file (its text is `staged.toml` in "
            f"{self._folder / revisions.FILE_NAME}), or keep the others from reloading it"
        )

    def _staged_otherwise(self, said: RevisionView, revision: int, hashed: int) -> list[str]:
        found = [
            f"{o.node} has staged another file as revision {o.staged}: compare the files"
            for o in said.others
            if o.alive and o.staged == revision and o.staged_hash != hashed
        ]
        if said.staged and (said.staged, said.staged_hash) != (revision, hashed):
            found.append(
                f"this node has staged another file as revision {said.staged}: bring that one to "
                "the other nodes first, then change it by one more revision (its text is "
                f"`staged.toml` in {self._folder / revisions.FILE_NAME})"
            )
        return found

    def _still_lacking(self, revision: int, hashed: int) -> str:
        others = self._view().revision.others
        late = [
            o.node
            for o in others
            if o.active < revision and (o.staged, o.staged_hash) != (revision, hashed)
        ]
        if not late:
            return "; all nodes have it"
        return f"; still to be reloaded: {', '.join(late)}"


def _names(config: Config) -> set[str]:
    return {node.id for node in config.nodes}
