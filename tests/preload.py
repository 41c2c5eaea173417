"""What the forkserver imports once, so that a rank starts in a tenth of a second."""

import flare_dist.run.trainer  # noqa: F401
