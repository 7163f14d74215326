"""Pure decisions: no clock, socket, randomness, logging or await anywhere below this package."""
