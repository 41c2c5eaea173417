"""`python -m flare_dist`, and what torchrun starts."""

from flare_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
