"""The command line: arguments, their parsing, what each command does, and what it prints."""
