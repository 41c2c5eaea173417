"""Warn of combinations that mean something unexpected, and of keys that change nothing."""

from __future__ import annotations

from flare_dist.algorithms.methods import CAUTIONS as METHODS_CAUTION
from flare_dist.conditions import (
    exchanges_sparsely,
    grows_masks,
    has_client_memory,
    has_clients,
    has_late_arrivals,
    has_local_rounds,
    has_masks_that_differ,
    keeps_optimizer,
    moves_masks,
    preconditions,
    reads_images,
    scores_on_data,
)
from flare_dist.exclusion import Exclusion, Need

DRAWN = ("dirichlet", "dirichlet_unbalanced", "quantity")  # partitions with a concentration


# fmt: off
CAUTIONS = (
    Exclusion(("sparse_training.update_mode", "sparse_training.hetero"), "budgets with the mean over all clients",
              lambda c: bool(c.sparse_training.hetero) and c.sparse_training.update_mode == "mean",
              "the weights that clients with a smaller budget lack count as zeros", "masked_mean leaves them out"),
    Exclusion(("clients.momentum", "compression.error_feedback"), "dgc with local momentum",
              lambda c: c.clients.momentum > 0 and c.mode != "centralised" and exchanges_sparsely(c)
              and "velocity" in c.compression.feedback.state_names,
              "dgc has its own momentum", "set clients.momentum=0", ("mode", "gradients")),
    Exclusion(("server.betas", "server.optimizer", "compression.density"), "beta1 of the server behind error feedback",
              lambda c: has_late_arrivals(c) and bool(c.server.settings.betas) and c.server.settings.betas[0] > 0,
              "what waits in the residual acts as momentum already, and 0.9 cost FedAdam 1.0 points at density 0.01",
              "use 0 for the first (configs/methods/fedadam_ec.yaml)", ("mode",)),
    Exclusion(("mode", "clients.objective", "clients.step_ahead"), "an objective or step_ahead without clients",
              lambda c: c.mode != "federated" and (c.clients.objective != "none" or c.clients.step_ahead > 0),
              "clients.objective and step_ahead have no effect here, where the loss alone is minimised",
              "use mode=federated, or leave them out"),
    Exclusion(("clients.keep_optimizer", "clients.per_round"), "kept optimizers of clients that miss rounds",
              lambda c: keeps_optimizer(c) and c.clients.per_round is not None
              and c.clients.per_round != c.clients.num,
              "a client that was absent goes on with a momentum from then",
              "let all clients take part (per_round=null), or set false", ("mode",)),
    Exclusion(("clients.keep_optimizer", "clients.objective", "clients.flare.steps"),
              "kept optimizers with FLARE's first steps",
              lambda c: keeps_optimizer(c) and c.clients.objective == "flare" and bool(c.clients.flare.steps),
              "the optimizer starts afresh when the pull ends, so that only the steps behind it are kept",
              "let it go on with steps=null", ("mode",)),
    Exclusion(("clients.flare.steps", "local_steps"), "FLARE for more steps than a round has",
              lambda c: c.mode == "federated" and c.clients.objective == "flare" and c.clients.flare.steps is not None
              and c.clients.flare.steps > c.local_steps,
              "more than the local steps of a round", "all are regularised", ("mode",)),
    Exclusion(("data.partition", "data.layout"), "a partition that mixes sites",
              lambda c: has_clients(c) and reads_images(c) and c.data.layout == "sites"
              and c.data.partition != "natural",
              "this partition deals the images of all sites out anew, so that no client is a site",
              "use natural, with clients.num=auto", ("mode",)),
    *METHODS_CAUTION,
)
NEEDS = (  # of several that a key lacks, the first is named
    Need("clients.flare.*", lambda c: c.clients.objective == "flare", "clients.objective=flare"),
    Need("clients.muon.*", lambda c: c.clients.optimizer == "muon", "clients.optimizer=muon"),
    Need("clients.feddyn.*", lambda c: c.clients.objective == "feddyn", "clients.objective=feddyn"),
    Need("clients.feddc.*", lambda c: c.clients.objective == "feddc", "clients.objective=feddc"),
    Need("clients.fedprox.*", lambda c: c.clients.objective == "fedprox", "clients.objective=fedprox"),
    Need("clients.state_dir", has_client_memory,
         "clients with memory: error feedback, feddyn, scaffold, feddc or keep_optimizer"),
    Need("compression.threshold", lambda c: c.compression.sparsifier == "threshold", "sparsifier=threshold"),
    Need("compression.downlink_density", lambda c: c.compression.downlink == "topk", "downlink=topk"),
    Need("data.image_*", reads_images, "data.name=image_folder"),
    Need("data.layout", reads_images, "data.name=image_folder"),
    Need("data.alpha", lambda c: c.data.partition in DRAWN, f"data.partition={'|'.join(DRAWN)}"),
    Need("sparse_training.*", lambda c: c.sparse_training.is_sparse, "a sparse_training.method"),
    Need("sparse_training.init_*", lambda c: c.sparse_training.traits.has_stage_one,
         "sparse_training.method=spdst|jmwst"),
    Need("sparse_training.prune_rate", moves_masks, "a sparse_training.method that moves masks"),
    Need("sparse_training.growth", grows_masks, "sparse_training.method=nst|spdst|jmwst|feddst"),
    Need("sparse_training.r_int", lambda c: c.sparse_training.traits.server_moves,
         "sparse_training.method=jmwst|feddst|prunefl"),
    Need("sparse_training.r_end", lambda c: c.sparse_training.traits.fades, "sparse_training.method=feddst|prunefl"),
    Need("sparse_training.subsample", lambda c: c.sparse_training.method == "jmwst", "sparse_training.method=jmwst"),
    Need("sparse_training.update_mode", has_masks_that_differ, "masks that differ between clients"),
    Need("sparse_training.counts", lambda c: not c.sparse_training.traits.is_scored, "masks that are drawn"),
    Need("pruning.*", lambda c: c.sparse_training.traits.is_scored, "sparse_training.method=pruned|prunefl"),
    Need("pruning.data", scores_on_data, "a pruning.criterion that looks at data"),
    Need("pruning.frac", scores_on_data, "a pruning.criterion that looks at data"),
    Need("pruning.batches", scores_on_data, "a pruning.criterion that looks at data"),
    Need("pruning.threshold", lambda c: c.pruning.criterion == "threshold", "pruning.criterion=threshold"),
    Need("compression.*", exchanges_sparsely, "gradients.hook=sparse"),
    Need("compression.*", lambda c: c.mode != "centralised", "mode=federated|gradient"),
    Need("gradients.*", lambda c: c.mode == "gradient", "mode=gradient"),
    Need("gradients.powersgd_*", lambda c: c.gradients.hook == "powersgd", "gradients.hook=powersgd"),
    Need("gradients.betas", preconditions, "gradients.preconditioner=adam"),
    Need("gradients.eps", preconditions, "gradients.preconditioner=adam"),
    Need("gradients.update_clip", preconditions, "gradients.preconditioner=adam"),
    Need("server.*", has_clients, "mode=federated"),
    Need("clients.keep_optimizer", has_clients, "mode=federated"),
    Need("clients.num", has_clients, "mode=federated"),
    Need("clients.per_round", has_clients, "mode=federated"),
    Need("clients.local_*", has_local_rounds, "mode=federated|centralised"),
    Need("clients.weighting", has_clients, "mode=federated"),
    Need("data.partition", has_clients, "mode=federated"),
    Need("data.partition_options*", has_clients, "mode=federated"),
)
