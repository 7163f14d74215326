"""Replication of call state between agents: transport, logs, standby store (DESIGN 4 and 7)."""
