"""An order that another node carries out: what its failure says to whoever gave it.

An answer that did not come is not a refusal: the order may have been carried out. And what was done
in part is told as such, which an older agent reads as a refusal with the same words.
"""

from __future__ import annotations

from haclusterd.agent.schema import PARTLY, REFUSED

_IN_PART = "partly done: "
NOT_ASKED = "not connected"  # RequestFailed, before anything was sent


def refusal(text: str, code: str) -> str:
    """For the node that gave the order: the words of an error of this one."""
    return f"{_IN_PART}{text}" if code == PARTLY else text


def told(node: str, failure: str) -> tuple[str, str]:
    """The sentence and the code for an operator; `failure` as `RequestFailed` has it."""
    own = f"{node}: "
    if failure.startswith(own + _IN_PART):
        return failure.removeprefix(own + _IN_PART), PARTLY
    if failure.startswith(own):
        return f"{node} refused: {failure.removeprefix(own)}", REFUSED
    if failure.startswith(NOT_ASKED):
        return f"{node} could not be asked: {failure}", REFUSED
    return (
        f"{node} was asked, but {failure}: it may have been done; see `haclusterctl status`",
        REFUSED,
    )
