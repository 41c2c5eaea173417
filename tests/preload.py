"""What the forkserver imports once, so that a rank starts in a tenth of a second."""

import gc
import os

os.environ["DS_ACCELERATOR"] = "cpu"

import accelerate.commands.accelerate_cli  # noqa: F401
import deepspeed.launcher.launch
import deepspeed.launcher.runner
import deepspeed.module_inject.auto_ep_layer
import deepspeed.runtime.superoffload.superoffload_stage3  # (which every engine of stage 3 imports)
import deepspeed.runtime.zero.muon.muon_optimizer  # (DeepSpeed looks for it in every start)
import pytest  # noqa: F401  (every module of tests imports it, and a rank the module of its function)
import sklearn.datasets  # noqa: F401  (a second of importing, for the digits of many tests)
import tensorboard.plugins.hparams.metadata  # noqa: F401
import torch._dynamo  # (DistributedDataParallel and the optimizers import it when first made)
import torch.utils.serialization
import torch.utils.tensorboard  # noqa: F401

import flare_dist.engines.accelerate
import flare_dist.engines.data_parallel
import flare_dist.engines.deepspeed
import flare_dist.engines.deepspeed_hook
import flare_dist.engines.deepspeed_host
import flare_dist.run.trainer  # noqa: F401
import tests.helpers.hook
import tests.helpers.runs  # noqa: F401

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # of no use here, and a minute to compile
gc.freeze()  # a rank collects garbage when its process group ends, which else takes 0.4 s for what is imported here
