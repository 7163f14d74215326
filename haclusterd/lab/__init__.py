"""Clusters in network namespaces, the FreeSWITCH emulator, traffic, faults and the report."""
