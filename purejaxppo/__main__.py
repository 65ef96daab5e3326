"""The entry point of the command line, which hears signals before anything slow is imported."""

from purejaxppo.experiment.signals import end_process_on_signal


def main() -> None:
    """Runs the command of the process's arguments, and exits with its code."""
    end_process_on_signal()
    from purejaxppo.cli.main import main as run_command  # imported here, since it takes a second or more

    run_command()


if __name__ == "__main__":
    main()
