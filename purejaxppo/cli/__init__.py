"""The command line: arguments and their parsing, a handler for each command, and output."""
