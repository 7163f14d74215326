"""The real-time process: heartbeats, the fence, service addresses, announcements, the loop.

Each adapter is one small module over one kernel interface and knows nothing of the cluster;
`executor` turns the core's actions into calls on them and `loop` turns what they see into the
core's inputs.
"""
