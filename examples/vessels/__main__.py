"""python -m examples.vessels train | evaluate | predict | export: the experiment's program."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
