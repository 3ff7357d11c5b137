"""Dataset distillation by trajectory matching, and the executable paper of AST (arXiv 2310.10541).

Six functions in `ddlib.api` lead from real images to distilled ones. Each uses what the one before
returned:

    real = load_data("digits")          training, validation and test images as networks see them
    experts = train_experts(real)       networks trained on the real images, kept after every epoch
    start = pick_images(real, experts)  real images to start from, IPC per class
    made = distil(experts, start)       the distilled images
    rows = evaluate(made)               a DataFrame, one row per fresh network
    save(made, file), load(file)        an exact file with everything needed to use the set

Imports go in one direction: paper, runs, method, data, then files, settings and progress.
To read the method in one sitting, open the modules of `ddlib.method` in this order:

    networks    the architectures
    functional  a network as a function of one parameter vector
    train       the training loop
    experts     trajectories of networks trained on real images
    smoothness  how evenly a trajectory moves
    select      real images to start from
    student     the inner loop, its gradient and the matching loss
    distill     the outer loop
    evaluate    fresh networks trained on the distilled images

A few words that a newcomer needs (docs/glossary.md has all of them):

    IPC            synthetic images per class
    theta          all parameters of a network as one vector
    expert         a network trained on the real images; its trajectory is one theta per epoch
    student        a network trained on the synthetic images, from a snapshot of an expert
    inner loop     the student's N steps with learning rate a
    outer loop     steps on the synthetic images and on a that reduce the matching loss
    matching loss  the squared distance of the student's end from the expert's snapshot, over that
                   of the student's start
    recipe         how experts are trained
    coreset        real images used as they are
    cell           one data set at one IPC
    profile        a YAML file with the cells, methods and studies of a paper
    study          the results behind a table or a figure
    store          the folder of results, one file per result, named by a hash of its settings
    row            the result of one network, one expert epoch or one outer iteration
"""

import os

os.environ.setdefault(
    "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16"
)  # its AMX kernels of bfloat16 give a gradient penalty's gradient off by a third
