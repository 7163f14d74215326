"""What the agent itself raises, beside heart's alarms: parts that do not run, and why."""

from __future__ import annotations

from collections.abc import Mapping

from haclusterd.agent.comparison import SENTENCE_CHARS_MAX, SENTENCES_MAX
from haclusterd.agent.freeswitch import FreeswitchLife
from haclusterd.agent.peers import Word
from haclusterd.agent.schema import Alarm
from haclusterd.agent.switch import Switch

_NAMES = {
    "replication": "not_replicating",
    "freeswitch": "freeswitch",
    "api": "api",
    "http": "http",
    "state": "state_file",
}

_HANGS = (
    "FreeSWITCH hangs: it answers no status probe. It is ended when another node can have its "
    "calls; until then it may come to itself: see its log, or restart it"
)


def _down(life: FreeswitchLife, switch: Switch | None) -> str:
    """No process: is it to be started, or is it the pid file that is wrong? ESL may know more."""
    text = f"FreeSWITCH does not run on this node (no process of it in {life.pid_file}): "
    if life.starter.attempts and not life.starter.problem:
        text += f"start_command was run (attempt {life.starter.attempts}), it has to come up"
    else:
        text += "start it, or correct pid_file in [freeswitch]"
    return f"{text}; ESL: {switch.problem}" if switch is not None and switch.problem else text


def differing(words: Mapping[str, Word]) -> list[Alarm]:
    """What each node says of how its FreeSWITCH differs from those of the owners."""
    found = []
    for node, word in sorted(words.items()):
        lacking = list(word.differences.lacking.items())[:SENTENCES_MAX]
        found += [
            Alarm("lacking", f"{node} is no candidate for {name}: {reason[:SENTENCE_CHARS_MAX]}")
            for name, reason in lacking
        ]
        found += [
            Alarm("drift", f"on {node}, {text[:SENTENCE_CHARS_MAX]}")
            for text in word.differences.drift[:SENTENCES_MAX]
        ]
    return found


def alarms(
    problems: Mapping[str, str], life: FreeswitchLife | None, switch: Switch | None
) -> list[Alarm]:
    """One alarm for each thing that a person has to look at."""
    found = [Alarm(_NAMES.get(part, part), text) for part, text in problems.items()]
    if life is None:
        return found
    if life.starter.problem:
        found.append(Alarm("freeswitch_start", life.starter.problem))
    if life.process is None and (switch is None or not switch.up):
        found.append(Alarm("freeswitch_down", _down(life, switch)))
    elif switch is not None and switch.health.state == "hung" and "freeswitch" not in problems:
        found.append(Alarm("freeswitch", _HANGS))
    elif switch is not None and switch.problem and "freeswitch" not in problems:
        found.append(Alarm("freeswitch", switch.problem))
    if switch is not None and switch.unprotected:
        found.append(Alarm("unprotected_calls", switch.unprotected))
    for service, reason in life.profiles.items():
        if reason:
            found.append(Alarm("profiles", f"{service}: {reason}"))
    return found
