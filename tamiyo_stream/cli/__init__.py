"""The command line. It loads nothing that a command does not need."""
