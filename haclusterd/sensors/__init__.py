"""Probes of what a node depends on: disk, load, NICs, next hops, SIP, scripts. They decide nothing.

Every probe answers within its time or is counted as failed, and none blocks its caller: what may
hang in the kernel runs in a process of its own.
"""
