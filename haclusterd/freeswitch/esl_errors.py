"""What can go wrong with an ESL connection, each said with its fix.

Only the error types and their sentences belong here. No sentence ever contains the password.
"""

from __future__ import annotations


class EslError(Exception):
    """Any failure of an ESL connection or command."""


class EslDown(EslError):
    """There is no authenticated connection (any more); the message says why."""


class EslTimeout(EslError):
    """FreeSWITCH did not answer in time."""


def connect_problem(host: str, port: int, error: OSError) -> str:
    """Why a TCP connection to the event socket failed, and what to do."""
    where = f"{host}:{port}"
    if isinstance(error, ConnectionRefusedError):
        return (
            f"nothing listens on {where}: start FreeSWITCH, load mod_event_socket, or correct"
            " esl_host / esl_port in [freeswitch]"
        )
    reason = error.strerror or str(error) or type(error).__name__
    return f"cannot reach {where} ({reason}): correct esl_host / esl_port in [freeswitch]"


def silent_problem(host: str, port: int, timeout_ms: int) -> str:
    """The TCP connection stands but no banner came: typical for a stopped or hung process."""
    return (
        f"{host}:{port} accepted the connection but sent no ESL greeting within {timeout_ms} ms:"
        " FreeSWITCH hangs, or another program owns the port (esl_port in [freeswitch])"
    )


def password_problem(host: str, port: int) -> str:
    return (
        f"FreeSWITCH at {host}:{port} refused the ESL password: put the password of its"
        " event_socket.conf.xml into the file named by esl_password_file in [freeswitch]"
    )


def acl_problem(host: str, port: int, text: str) -> str:
    said = text.strip().splitlines()[0][:120] if text.strip() else "no reason given"
    return (
        f"FreeSWITCH at {host}:{port} rejects our address ({said}): allow it in the list named by"
        " apply-inbound-acl in event_socket.conf.xml"
    )
