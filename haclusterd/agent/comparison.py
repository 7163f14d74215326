"""Does the local FreeSWITCH have what those of the services' owners have? (MS26, MS27)

Takes what each node says of itself; decides nothing but what standing and the alarms are told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from haclusterd.agent.history import History
from haclusterd.core.model import ServiceSpec
from haclusterd.freeswitch.capabilities import Capabilities, drift, lacking

SENTENCES_MAX = 8
SENTENCE_CHARS_MAX = 300


class Differences(msgspec.Struct, frozen=True):
    """`lacking`: by service, why this node is no candidate. `drift`: only worth an alarm."""

    lacking: dict[str, str] = {}
    drift: tuple[str, ...] = ()


class Comparison:
    """The newest word of each node, kept when it goes: its heirs must have what it had.

    History gets a sentence whenever this node becomes a candidate or ceases to be one.
    """

    def __init__(
        self,
        me: str,
        services: Sequence[ServiceSpec],
        history: History,
        changed: Callable[[], None],
    ) -> None:
        self._me = me
        self._services = services
        self._history = history
        self._changed = changed
        self._owners: dict[str, str] = {}  # the last one of each service
        self._theirs: dict[str, tuple[str, Capabilities]] = {}  # with its digest
        self._stale = True
        self._found = Differences()
        self.mine: Capabilities | None = None
        self.digest = ""  # of `mine`

    def read(self, mine: Capabilities) -> None:
        """What the local FreeSWITCH has now."""
        self.mine, self.digest = mine, mine.digest
        self._stale = True
        self._changed()

    def known(self, node: str) -> str:
        """Digest of what `node` said last, empty if nothing."""
        return self._theirs.get(node, ("", None))[0]

    def heard(self, node: str, word: Capabilities) -> None:
        """What another node's FreeSWITCH has now."""
        self._theirs[node] = (word.digest, word)
        self._stale = True
        self._changed()

    def differences(self, owners: Mapping[str, tuple[str, int]]) -> Differences:
        """As things are now; cheap while nothing changes."""
        for name, (owner, _) in owners.items():
            if owner and self._owners.get(name) != owner:
                self._owners[name] = owner
                self._stale = True
        if self._stale:
            self._stale = False
            before, self._found = self._found, self._compare()
            self._tell_changes(before.lacking, self._found.lacking)
        return self._found

    def _compare(self) -> Differences:
        missing, other = dict[str, str](), dict[str, None]()
        for service in self._services:
            owner = self._owners.get(service.name, self._me)
            _, theirs = self._theirs.get(owner, ("", None))
            if self.mine is None or theirs is None or owner == self._me:
                continue
            if reason := lacking(theirs, self.mine, service.profiles, owner):
                missing[service.name] = reason[:SENTENCE_CHARS_MAX]
            other.update(dict.fromkeys(drift(theirs, self.mine, service.profiles, owner)))
        shown = [text[:SENTENCE_CHARS_MAX] for text in other]
        return Differences(missing, tuple(shown[:SENTENCES_MAX]))

    def _tell_changes(self, before: Mapping[str, str], now: Mapping[str, str]) -> None:
        for name in sorted({*before, *now}):
            if name not in now:
                if self._owners.get(name) == self._me:
                    continue  # it has taken the service as it is
                text = f"{self._me} has all again that {name} needs"
            elif before.get(name) != now[name]:
                text = f"{self._me} is no candidate for {name}: {now[name]}"
            else:
                continue
            self._history.add("A16", text, None, name)
