"""Which rows a node keeps in mod_sofia's tables for registrations at other nodes' services. Pure.

A phone that registered at one master is registered on every node, each time exactly once:
* a node that owns the phone's service has the row of mod_sofia itself, nothing of ours;
* a node that owns other services has one row in a profile that serves there, which leads to the
  service's address (`registrations.via_owner`): a profile in standby refuses to place calls;
* a node that owns nothing has the row in the service's own profile, as it will need it when it
  takes over: then there is nothing left to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from haclusterd.core.records import Registration

from .registrations import Place, Refused, Row, row_here, row_via_owner

Contact = tuple[str, str, str]


class Placed(NamedTuple):
    """A row of ours and the profile whose table it is in."""

    profile: str
    row: Row


class Change(NamedTuple):
    """What to write into one profile's table."""

    gone: list[Row]
    added: list[Row]


class RegistrationPlan:
    """Knows the registrations of others and where their rows are. See the module.

    `addresses` maps every SIP profile that runs here to its address as `sip:HOST:PORT`; `owned` are
    the profiles of services that this node owns. After changing either call `everything`.
    """

    def __init__(self) -> None:
        self.switchname = ""
        self.addresses: dict[str, str] = {}
        self.owned: frozenset[str] = frozenset()
        self.lost: frozenset[str] = frozenset()  # profiles nobody has owned for longer than grace
        self.placed: dict[str, Placed] = {}
        self.refused = 0
        self._records: dict[str, Registration] = {}
        self._by_contact: dict[Contact, set[str]] = {}
        self._local: dict[str, set[Contact]] = {}  # by owned profile: phones registered here

    @property
    def records(self) -> Mapping[str, Registration]:
        """The registrations of others, by key."""
        return self._records

    def take(self, record: Registration) -> set[str]:
        """A registration of another node is new or has changed; the keys to look at."""
        touched = self.drop(record.uuid)
        self._records[record.uuid] = record
        self._by_contact.setdefault(_contact(record), set()).add(record.uuid)
        return touched | self._beside(_contact(record))

    def drop(self, key: str) -> set[str]:
        """A registration of another node is gone; the keys to look at."""
        record = self._records.pop(key, None)
        if record is None:
            return {key} if key in self.placed else set()
        beside = self._by_contact[_contact(record)]
        beside.discard(key)
        if not beside:
            del self._by_contact[_contact(record)]
        return {key} | beside

    def local(self, profile: str, records: Iterable[Registration]) -> set[str]:
        """All phones that are registered in an owned profile; the keys to look at."""
        before = self._local.get(profile, set())
        self._local[profile] = now = {_contact(record) for record in records}
        return {key for contact in before ^ now for key in self._beside(contact)}

    def forget_local(self, profile: str) -> None:
        """The profile's service has another owner."""
        self._local.pop(profile, None)

    def everything(self) -> set[str]:
        """All keys, to look at after something general changed."""
        return self._records.keys() | self.placed.keys()

    def changes(self, keys: Iterable[str], now_s: float) -> dict[str, Change]:
        """What to write, by profile, so that these registrations are where they belong.

        Counts on its being written: whoever fails to calls `verify` with what is there.
        """
        found: dict[str, Change] = {}
        for key in keys:
            old, new = self.placed.get(key), self._wanted(key, now_s)
            if old == new:
                continue
            if old is not None and old.profile in self.addresses:
                found.setdefault(old.profile, Change([], [])).gone.append(old.row)
            if new is None:
                self.placed.pop(key, None)
            else:
                found.setdefault(new.profile, Change([], [])).added.append(new.row)
                self.placed[key] = new
        return found

    def verify(
        self, profile: str, there: Iterable[Row], users: frozenset[tuple[str, str]] | None
    ) -> Change:
        """What is wrong in a profile's table. `there`: rows of ours in an owned profile, all rows
        in another; of some users only, or of all (None)."""
        wanted = {
            placed.row.key: placed.row
            for placed in self.placed.values()
            if placed.profile == profile
            and (users is None or (placed.row.sip_user, placed.row.sip_host) in users)
        }
        good: set[str] = set()
        wrong: dict[str, Row] = {}
        for row in there:
            if row.profile_name != profile:
                continue  # nobody looks for it under this profile, and it is none of ours
            if wanted.get(row.key) == row and row.key not in good:
                good.add(row.key)
            else:
                wrong[row.key] = row  # also a second one: all rows with this key go
        added = [row for key, row in wanted.items() if key not in good or key in wrong]
        return Change(list(wrong.values()), added)

    def hand_over(self, profile: str, now_s: float, extra: Iterable[Registration]) -> Change:
        """This node owns the profile's service now: the rows that have to be there, and which of
        ours must not be any more, because they ran out.

        They are mod_sofia's from now on, and the registrations are no longer those of others.
        `extra`: what was registered here before, in a FreeSWITCH that is gone.
        """
        place = Place(profile, self.switchname, _host(self.addresses.get(profile, "")))
        records = {r.uuid: r for r in extra}
        records |= {k: r for k, r in self._records.items() if r.profile == profile}
        found = Change([], [])
        for key, record in records.items():
            self.drop(key)
            placed = self.placed.get(key)
            if placed is not None and placed.profile == profile:
                del self.placed[key]
            if record.expires_s <= now_s:
                if placed is not None and placed.profile == profile:
                    found.gone.append(placed.row)
                continue
            try:
                found.added.append(row_here(record, place))
            except Refused:
                self.refused += 1
        return found

    # -- parts of it --

    def _beside(self, contact: Contact) -> set[str]:
        return set(self._by_contact.get(contact, ()))

    def _wanted(self, key: str, now_s: float) -> Placed | None:
        record = self._records.get(key)
        if record is None or record.expires_s <= now_s or not self.switchname:
            return None
        if record.profile in self.owned or record.profile not in self.addresses:
            return None
        owner = self.addresses[record.profile]
        try:
            if not self.owned:
                place = Place(record.profile, self.switchname, _host(owner))
                return Placed(record.profile, row_here(record, place))
            serving = self._serving(owner)
            if not serving or record.profile in self.lost or self._is_double(record):
                return None
            place = Place(serving, self.switchname, _host(self.addresses[serving]))
            return Placed(serving, row_via_owner(record, place, owner))
        except Refused:
            self.refused += 1
            return None

    def _serving(self, owner: str) -> str:
        """The profile that calls to `owner` go out from: one that serves, of the same family."""
        serving = [p for p in self.owned if p in self.addresses]
        same = [p for p in serving if ("[" in self.addresses[p]) == ("[" in owner)]
        return min(same, default="")

    def _is_double(self, record: Registration) -> bool:
        """The same phone is registered here as well, or elsewhere for longer: it rings once."""
        contact = _contact(record)
        if any(contact in phones for phones in self._local.values()):
            return True
        for key in self._by_contact[contact]:
            other = self._records[key]
            if other.profile in self.owned:
                continue
            if (other.expires_s, other.uuid) > (record.expires_s, record.uuid):
                return True
        return False


def _contact(record: Registration) -> Contact:
    return record.user, record.host, record.contact


def _host(address: str) -> str:
    """The host of `sip:HOST:PORT`, without brackets."""
    return address.removeprefix("sip:").rpartition(":")[0].strip("[]")
