"""The simulator: production `core` and `wire` over virtual clocks, links, kernels and faults."""
