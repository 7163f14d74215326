"""Everything that knows FreeSWITCH: ESL, call capture, health and recovery.

Decisions about ownership do not belong here; this package observes one local FreeSWITCH and does
what it is told to it (DESIGN sections 3 and 5, FREESWITCH.md for the measured behaviour).
"""
