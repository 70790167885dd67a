"""python -m examples.vessels train | evaluate | predict | export | report | compare: the experiment's program."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
