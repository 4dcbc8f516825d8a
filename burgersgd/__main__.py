"""Runs the command line as `python -m burgersgd`."""

from burgersgd.cli import run

if __name__ == "__main__":
    run()
