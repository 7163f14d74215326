"""A process that behaves like FreeSWITCH where haclusterd touches it.

Start it with `python -m haclusterd.lab.emulator --config FILE`. Its model is the set of captures
and measurements of a real FreeSWITCH (FREESWITCH.md); the contract test replays them and runs
unchanged against a real one. Not for telephony: one tone or echo per call, no bridging.

    config, switch, profile   the process, its channels, its SIP profiles
    esl_*, apis*              the event socket, subscriptions, commands
    events, call_events       encoding and delivery; the events of a call in order
    sip_*, dialog             messages, transactions, requests in a dialog
    inbound, call_variables   a call that comes in, what is kept about it
    recovery, metadata        a call taken up again, the document it comes from
    coredb, media             table recovery and its delays; RTP
"""
