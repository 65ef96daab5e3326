"""`python -m purejaxppo` is the command line."""

from purejaxppo.cli import main

main()
