"""The flight recorder: what went into the core, kept in memory, saved, replayed and explained."""
