"""The agent: asyncio child of heart that does everything slow beside the decisions.

ESL to the local FreeSWITCH, replication, recovery, API, metrics. It never decides who owns a
service; heart tells it what was decided (DESIGN section 3).

    daemon      puts the parts together and takes what heart says
    heart_link  the socketpair to heart
    freeswitch  life of the local FreeSWITCH: connect, probe, start again
    services    what this node does for each service: own, recover, end
    standing    may this node take a service over now, and if not why
    operators   switchover, maintenance, upgrade
    history, reports, files        what happened, what became of calls, files that stay whole
    status      the cluster as the API shows it
    schema      the values of the API, which the command line reads too
    api, http, metrics, page       how others look at it
"""
