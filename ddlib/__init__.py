"""Dataset distillation by trajectory matching, and the executable paper of AST (arXiv 2310.10541).

Six verbs, in `ddlib.verbs`, each building on what the one before left:

    real = load_data("digits")           Images: training, validation and test images as networks see them
    experts = train_experts(real)        a list of artefacts: what networks were after each epoch on the real images
    start = pick_images(real, experts)   an artefact: real images, IPC a class, to begin with
    made = distil(experts, start)        an artefact: images that teach what the whole training set would
    rows = evaluate(made)                a DataFrame, one row a fresh network
    save(made, file), load(file)         an artefact as a file of its own

Glossary: the one name of each idea.

The method
IPC                  synthetic images per class
theta                all parameters of a network as one vector, of P numbers
expert               a network trained on the real images; its trajectory theta*_0 ... theta*_E is a snapshot an epoch, E epochs
recipe               how experts are trained: optimiser, lr, what smooths them; `sgd` is MTT's, `ast` AST's
student              a network trained on the synthetic images S for N steps, from a snapshot of an expert
inner loop           the student's N steps; inner learning rate a, momentum mu
outer loop           steps on S and on a, down the gradient of the matching loss
matching loss        |theta_N - theta*_{s+M}|^2 / |theta_0 - theta*_{s+M}|^2, s the start epoch, M the matched epochs
start window         the start epochs T- ... T - 1 drawn from, whose end T may grow over the iterations
weight perturbation  noise on the snapshot, alpha of its size, that the student starts from
intermediate         matching at each of the M epochs on the way, not at its end alone
balanced loss        the inner loss times w(s), which depends on the start epoch only
soft labels          logits (n, K) whose softmax an image is trained towards: learned, or an expert's
average              of S over the outer iterations, exponentially forgetting (ema)
look                 a fresh network trained on S as it is by then and scored on the validation images, which choose what is kept
film                 the frames of a set as it is distilled, from the images that it began with
condensation         distillation that follows no expert: gradients (DC, DSA) or mean features (DM) of real and synthetic images meet on new networks
MTT, FTD, TESLA      trajectory matching as first published; along flat experts; by the sweep `tesla`
DATM, AST            with learned labels and a growing start window; along smooth experts, from representative images, balanced and perturbed
DSA                  differentiable Siamese augmentation; also gradient matching with it

Its gradient
adjoint              that of the matching loss at constant memory: exact, one step's graph at a time
unroll               the same through all N steps at once
tesla                that sweep without the terms through theta_k: not the gradient
fused                the derivatives of a ConvNet by hand, equal to the plain ones of automatic differentiation up to rounding

Experts
clipping loss        the ramp c_e on an expert's loss in its first epochs
gradient penalty     lambda mean (|g| - target)^2, g = d sum_k f_k / dx, per pixel or per sample
sharpness            rho of an expert's sharpness-aware steps, down the gradient at theta + rho g / |g|; flat experts (FTD) are trained so
smoothness           how evenly a trajectory moves: its steps, its turns, its length against the way from end to end
buffer               expert trajectories in a file of MTT's form

Images
logits               a network's outputs, K numbers an image, whose softmax is its probabilities of the classes
Images               a data set as networks see it; its `space` leads from pixels there and back
ZCA                  whitening of the pixels, fitted on the training images
representative       real images nearest to the k-means centres of a class, in an expert's logits
coreset              real images taken as they are: random, herding, k-center, k-means

Judging
evaluation           fresh networks trained on a set from scratch, scored on test images after the last epoch
protocol             which lr they train with: `lr_chosen` on the validation images among factors of a, or `lr_a`, a itself
row                  one network of an evaluation, one epoch of an expert, one outer iteration: all tables and figures are functions of rows
ceiling              the accuracy of training on all real images
film                 the images of one set after each outer iteration: its outer loop run again, with no looks between
following            a student never put back on the expert's path: its error accumulates
ablation             one thing changed at a time; its groups each name the base that they differ from
cross-architecture   sets made with one network, judged by others
robust scores        DD-Ranking's HLR, IOR, LRS and ARS: what is left of an accuracy where neither labels nor augmentation flatter it
claim                a sentence of the paper with an effect, a 95 % interval over seeds and a verdict

Reuse
continual learning   one network meets the classes a few at a time, in tasks, and may forget those before
memory               images of each class met so far, real or distilled, kept in place of all of its images
replay               training on the memory beside the images of the new classes
forgetting           how far the accuracy on a task has fallen from the best that it was
proxy                a small set on which architectures are compared in place of all images
pool                 the architectures to choose from

Work
settings             what a result depends on, validated before any work; a stage's contain those of the stages before it
refusal              bad input: what was found, what was expected, what to do
profile              all that a paper needs to know, as YAML; a cell is one data set at one IPC, its methods and what was tuned for each
study                the runs behind a table or a figure
store                a folder of artefacts, one file a task, named by the key of its settings
artefact             a file that says all that is needed to use it: tensors, record, settings, hash
checkpoint           the unfinished state of a long task, kept every 60 s: a kill costs what came after it
set aside            a damaged file of the store, moved to its folder `damaged`, where nothing is overwritten; it is made again
engine, shard        where tasks run: this process, several, Ray; one of several machines over one store
tracker              who is told how far experts and outer loops are, if TRACK names one
"""

import os

os.environ.setdefault(
    "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16"
)  # its AMX kernels of bfloat16 give a gradient penalty's gradient off by a third
