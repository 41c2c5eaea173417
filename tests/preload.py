"""What the forkserver imports once, so that a rank starts in a tenth of a second."""

import torch._dynamo  # noqa: F401  (DistributedDataParallel imports it when it is first made: seconds)

import flare_dist.run.trainer  # noqa: F401
