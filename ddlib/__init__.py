"""Dataset distillation by trajectory matching, and the executable paper of AST (arXiv 2310.10541).

Glossary: the one name of each idea.

IPC                  synthetic images per class
expert               a network trained on the real images; its trajectory theta*_0 ... theta*_E is a snapshot an epoch
student              a network trained on the synthetic images S for N steps, from a snapshot of an expert
inner loop           the student's N steps; inner learning rate a, momentum mu
outer loop           steps on S and on a, down the gradient of the matching loss
matching loss        |theta_N - theta*_{s+M}|^2 / |theta_0 - theta*_{s+M}|^2, s the start epoch, M the matched epochs
condensation         distillation that follows no expert: gradients (DC, DSA) or mean features (DM) of real and synthetic images meet on new networks
adjoint              that gradient at constant memory: exact, one step's graph at a time
tesla                that sweep without the terms through theta_k: not the gradient
fused                the derivatives of a ConvNet by hand, equal to the plain ones of automatic differentiation up to rounding
clipping loss        the ramp c_e on an expert's loss in its first epochs
sharpness            rho of an expert's sharpness-aware steps, down the gradient at theta + rho g / |g|; flat experts (FTD) are trained so
gradient penalty     lambda mean (|g| - target)^2, g = d sum_k f_k / dx, per pixel or per sample
representative       real images nearest to the k-means centres of a class, in an expert's logits
balanced loss        the inner loss times w(s), which depends on the start epoch only
average              of S over the outer iterations, exponentially forgetting (ema)
soft labels          logits (n, K) whose softmax an image is trained towards: learned, or an expert's
start window         the start epochs T- ... T - 1 drawn from, whose end T may grow over the iterations
DSA                  differentiable Siamese augmentation; also gradient matching with it
ZCA                  whitening of the pixels, fitted on the training images
coreset              real images taken as they are: random, herding, k-center, k-means
ceiling              the accuracy of training on all real images
checkpoint           the unfinished state of a long task, kept every 60 s: a kill costs what came after it
artefact             a file that says all that is needed to use it: tensors, record, settings, hash
set aside            a damaged file of the store, moved to its folder `damaged`, where nothing is overwritten; it is made again
"""
