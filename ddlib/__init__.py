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

docs/glossary.md explains the words that stand for something: IPC, theta, expert, recipe, cell ...
"""

import os

# oneDNN's AMX kernels of bfloat16 give a gradient penalty's gradient off by a third
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
