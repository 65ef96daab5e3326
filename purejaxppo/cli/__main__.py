"""The command line as `python -m purejaxppo.cli`."""

from purejaxppo.cli.main import main

if __name__ == "__main__":
    main()
