"""Studies with a command of their own, each of one question."""
