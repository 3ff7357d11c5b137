/* A ConvNet's derivatives, image by image, so that what one pass leaves for the next stays in the
   processor's cache: the forward pass (`ahead`), the gradient (`back`) and the derivative of the
   gradient along a direction (`along`), each one call for n images.

   One block: z = W * x, 3 x 3 with zeros around it; x^ = (z - mean) / sqrt(var + EPS) over an
   image's pixels; y = gamma x^ + beta; p = mean of max(y, 0) over 2 x 2, odd edges dropped. A
   convolution's bias is left out: the norm behind it removes it, and its gradient is zero.

   Pixels lie channels last, [row][column][channel]. A plane that a convolution reads has a frame of
   zeros, one pixel wide. Channels are padded to k, a multiple of PAIR: their weights are zero, and
   so is all that comes of them. An ending "bar" is a cotangent, "dot" a derivative along the
   direction. REAL is float or double; sums go part by part, which keeps their rounding small. */

#include <math.h>
#include <string.h>

/* Bytes of a vector; pixels, and rows of a kernel, that a convolution holds in registers. */
#if defined(__AVX512F__)
enum { BYTES = 64, PIXELS = 8, ROWS = 12 };
#elif defined(__AVX__)
enum { BYTES = 32, PIXELS = 6, ROWS = 6 };
#else
enum { BYTES = 16, PIXELS = 8, ROWS = 12 };
#endif
#define VECTOR(bytes) __attribute__((vector_size(bytes), aligned(sizeof(REAL)), may_alias))
typedef REAL V VECTOR(BYTES);
typedef REAL Short VECTOR(16);
typedef __typeof__((V){0} <= (V){0}) Mask;
enum { LANES = BYTES / sizeof(REAL), PAIR = 2 * LANES, DEEPEST = 32, FEW = 4 };

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")
/* The passes take two vectors of channels at a time: EACH of them, AT a pointer, OF a pixel. */
#define EACH for (int j = 0; j < 2; j++)
#define AT(pointer) (((V *)(pointer))[j])
#define OF(plane, pixel) (((V *)((plane) + (pixel) * k))[j])
/* Where y > 0, the value; a y that is no number lets it through, so nothing hides. */
#define WHERE_POSITIVE(y, value) ((V)(~((y) <= (V){0}) & (Mask)(value)))

/* The sum over a vector's lanes. */
INLINE REAL over_lanes(V v) {
    const Short *parts = (const Short *)&v;
    Short sum = parts[0];
    REAL total = 0;
    for (int i = 1; i < BYTES / 16; i++) sum += parts[i];
    for (unsigned l = 0; l < 16 / sizeof(REAL); l++) total += sum[l];
    return total;
}

/* ---- Convolutions ---- */

/* Write zeros around a plane of h x w pixels. */
static void frame(long h, long w, long c, REAL *plane) {
    const long row = (w + 2) * c;
    memset(plane, 0, row * sizeof(REAL));
    memset(plane + (h + 1) * row, 0, row * sizeof(REAL));
    for (long y = 1; y <= h + 1; y++) memset(plane + y * row - c, 0, 2 * c * sizeof(REAL));
}

/* P pixels from `at` on (numbered through, row by row), PAIR output channels; a row of the kernel
   sees 3 c consecutive numbers. */
INLINE void convolve_pixels(const int P, long w, long c, long k, long at, const REAL *x,
                            const REAL *kernel, REAL *z, int add) {
    const REAL *from[PIXELS];
    long left = w - at % w; /* pixels until the row ends */
    x += (at + at / w * 2) * c;
    UNROLLED for (int p = 0; p < P; p++, x += c) {
        if (!left--) left = w - 1, x += 2 * c;
        from[p] = x;
    }
    for (long ky = 0, first = 0; ky < 3; ky++, first += (w + 2) * c) {
        V sum[PIXELS][2];
        UNROLLED for (int p = 0; p < P; p++) EACH sum[p][j] = (V){0};
        for (long q = first; q < first + 3 * c; q++, kernel += PAIR) {
            const V v[2] = {((const V *)kernel)[0], ((const V *)kernel)[1]};
            UNROLLED for (int p = 0; p < P; p++) EACH sum[p][j] += from[p][q] * v[j];
        }
        UNROLLED for (int p = 0; p < P; p++) EACH {
            if (ky || add) sum[p][j] += OF(z, at + p);
            OF(z, at + p) = sum[p][j];
        }
    }
}

/* z = kernel * x, or z += it; x framed, of c channels; kernel [k / PAIR][3][3][c][PAIR]. */
static void convolve(long h, long w, long c, long k, const REAL *x, const REAL *kernel, REAL *z,
                     int add) {
    for (long o = 0; o < k; o += PAIR, kernel += 9 * c * PAIR) {
        long at = 0;
        for (; at + PIXELS <= h * w; at += PIXELS)
            convolve_pixels(PIXELS, w, c, k, at, x, kernel, z + o, add);
        for (; at + 4 <= h * w; at += 4) convolve_pixels(4, w, c, k, at, x, kernel, z + o, add);
        for (; at < h * w; at++) convolve_pixels(1, w, c, k, at, x, kernel, z + o, add);
    }
}
INLINE void weigh_rows(const int R, long h, long w, long c, long k, const REAL *x,
                       const REAL *zbar, REAL *kernel_bar) {
    V sum[ROWS][2];
    UNROLLED for (int r = 0; r < R; r++) EACH sum[r][j] = (V){0};
    for (long y = 0; y < h; y++, x += (w + 2) * c, zbar += (w + 2) * k) {
        const REAL *from = x, *bar = zbar;
        for (long at = 0; at < w; at++, from += c, bar += k) {
            const V b[2] = {((const V *)bar)[0], ((const V *)bar)[1]};
            UNROLLED for (int r = 0; r < R; r++) EACH sum[r][j] += from[r] * b[j];
        }
    }
    UNROLLED for (int r = 0; r < R; r++) EACH OF(kernel_bar, r) += sum[r][j];
}

/* kernel_bar [3][3][c][k] += sum over pixels of x zbar, a few rows at a time; both are framed. */
static void weigh(long h, long w, long c, long k, const REAL *x, const REAL *zbar,
                  REAL *kernel_bar) {
    const long most = w < 64 ? 64 / w : 1;
    zbar += (w + 3) * k; /* its first pixel */
    for (long y = 0; y < h; y += most)
        for (long o = 0; o < k; o += PAIR)
            for (long ky = 0; ky < 3; ky++) {
                const long rows = y + most < h ? most : h - y;
                const REAL *from = x + (y + ky) * (w + 2) * c, *bar = zbar + y * (w + 2) * k + o;
                REAL *to = kernel_bar + ky * 3 * c * k + o;
                long q = 0;
#define WEIGH(R)                                                                                  \
    for (; q + R <= 3 * c; q += R) weigh_rows(R, rows, w, c, k, from + q, bar, to + q * k);
                WEIGH(ROWS) WEIGH(6) WEIGH(3)
            }
}

/* The cotangent of the images, which have few channels: P pixels of a row and C channels. */
INLINE void image_pixels(const int P, const int C, long w, long c, long k, const REAL *zbar,
                         const REAL *kernel, V sum[4][FEW]) {
    for (long t = 0; t < 9; t++)
        for (long o = 0; o < k; o += LANES)
            UNROLLED for (int p = 0; p < P; p++) {
                const V bar = *(V *)(zbar + (p + (2 - t / 3) * (w + 2) + 2 - t % 3) * k + o);
                UNROLLED for (int d = 0; d < C; d++)
                    sum[p][d] += bar * *(V *)(kernel + (t * c + d) * k + o);
            }
}
/* xbar [c][row][column] = what zbar and kernel [3][3][c][k] give, and a second pair if any. */
INLINE void image_block(const int P, const int C, long h, long w, long c, long k, long y, long x,
                        const REAL *zbar, const REAL *kernel, const REAL *zbar2,
                        const REAL *kernel2, REAL *xbar) {
    const long from = (y * (w + 2) + x) * k;
    V sum[4][FEW] = {0};
    image_pixels(P, C, w, c, k, zbar + from, kernel, sum);
    if (zbar2) image_pixels(P, C, w, c, k, zbar2 + from, kernel2, sum);
    for (int p = 0; p < P; p++)
        for (int d = 0; d < C; d++) xbar[(d * h + y) * w + x + p] = over_lanes(sum[p][d]);
}
static void image_bar(long h, long w, long c, long k, const REAL *zbar, const REAL *kernel,
                      const REAL *zbar2, const REAL *kernel2, REAL *xbar) {
    for (long d = 0; d < c; d += FEW)
        for (long y = 0; y < h; y++)
            for (long x = 0; x < w; x += x + 4 <= w ? 4 : 1) {
                const long C = c - d < FEW ? c - d : FEW;
                switch (x + 4 <= w ? C : -C) {
#define CASE(P, C, label)                                                                         \
    case label:                                                                                   \
        image_block(P, C, h, w, c, k, y, x, zbar, kernel + d * k, zbar2,                          \
                    zbar2 ? kernel2 + d * k : 0, xbar + d * h * w);                               \
        break;
                    CASE(4, 1, 1) CASE(4, 2, 2) CASE(4, 3, 3) CASE(4, 4, 4)
                    CASE(1, 1, -1) CASE(1, 2, -2) CASE(1, 3, -3) CASE(1, 4, -4)
                }
            }
}

/* ---- Norm, ReLU and mean over 2 x 2. Two numbers for each channel lie [2][k]: affine (gamma,
   beta), stats (mean, 1 / sqrt(var + EPS)), sums (of ybar x^, of ybar) and moved, which are the
   means of x^ zdot and of zdot. A plane p or zbar may be framed: `row` numbers are one row. ---- */

#define FOR_PAIRS for (long o = 0; o < k; o += PAIR, z += PAIR, affine += PAIR, stats += PAIR)
#define CORNER(y, x, i) ((2 * (y) + ((i) >> 1)) * w + 2 * (x) + ((i)&1))

/* y = s z + t in the channels at hand */
typedef struct { V mean[2], rstd[2], s[2], t[2]; } Norm;
INLINE Norm norm(long k, const REAL *affine, const REAL *stats) {
    Norm n;
    EACH {
        n.mean[j] = AT(stats);
        n.rstd[j] = AT(stats + k);
        n.s[j] = AT(affine) * n.rstd[j];
        n.t[j] = AT(affine + k) - n.mean[j] * n.s[j];
    }
    return n;
}

/* z -> p, stats */
static void forward(long h, long w, long k, const REAL *z, const REAL *affine, REAL *stats,
                    REAL *p, long row) {
    const REAL share = (REAL)1 / (h * w);
    FOR_PAIRS {
        V mean[2] = {0}, square[2] = {0};
        for (long y = 0; y < h; y++) {
            V part[2] = {0};
            for (long x = 0; x < w; x++) EACH part[j] += OF(z, y * w + x);
            EACH mean[j] += part[j];
        }
        EACH mean[j] *= share;
        for (long y = 0; y < h; y++) {
            V part[2] = {0};
            for (long x = 0; x < w; x++) EACH {
                const V centred = OF(z, y * w + x) - mean[j];
                part[j] += centred * centred;
            }
            EACH square[j] += part[j];
        }
        EACH {
            V r = square[j] * share + (REAL)EPS;
            for (int l = 0; l < LANES; l++) r[l] = 1 / sqrt(r[l]);
            AT(stats) = mean[j];
            AT(stats + k) = r;
        }
        const Norm n = norm(k, affine, stats);
        for (long y = 0; y < h / 2; y++)
            for (long x = 0; x < w / 2; x++) EACH {
                V sum = {0};
                for (int i = 0; i < 4; i++) {
                    const V value = OF(z, CORNER(y, x, i)) * n.s[j] + n.t[j];
                    sum += WHERE_POSITIVE(value, value);
                }
                AT(p + y * row + x * k + o) = sum * (REAL)0.25;
            }
    }
}

/* pbar -> zbar, sums: with ybar = pbar / 4 where y > 0,
   zbar = gamma rstd (ybar - mean of ybar - x^ mean of ybar x^) */
static void backward(long h, long w, long k, const REAL *z, const REAL *affine, const REAL *stats,
                     const REAL *pbar, REAL *zbar, long row, REAL *sums) {
    const REAL share = (REAL)1 / (h * w), quarter = (REAL)0.25;
    FOR_PAIRS {
        const Norm n = norm(k, affine, stats);
        V m1[2] = {0}, m2[2] = {0}, slope[2], at[2], s4[2];
        for (long y = 0; y < h / 2; y++) {
            V part1[2] = {0}, part2[2] = {0};
            for (long x = 0; x < w / 2; x++) EACH {
                const V bar = OF(pbar + o, y * (w / 2) + x);
                for (int i = 0; i < 4; i++) {
                    const V here = OF(z, CORNER(y, x, i));
                    const V ybar = WHERE_POSITIVE(here * n.s[j] + n.t[j], bar);
                    part1[j] += ybar;
                    part2[j] += ybar * (here - n.mean[j]);
                }
            }
            EACH m1[j] += part1[j], m2[j] += part2[j];
        }
        EACH {
            AT(sums + o) = m2[j] *= quarter * n.rstd[j];
            AT(sums + k + o) = m1[j] *= quarter;
            slope[j] = -n.s[j] * n.rstd[j] * m2[j] * share;
            at[j] = -n.s[j] * m1[j] * share - slope[j] * n.mean[j];
            s4[j] = n.s[j] * quarter;
        }
        for (long y = 0; y < h; y++)
            for (long x = 0; x < w; x++) {
                const int pooled = y / 2 < h / 2 && x / 2 < w / 2;
                EACH {
                    const V here = OF(z, y * w + x);
                    V bar = slope[j] * here + at[j];
                    if (pooled)
                        bar += s4[j] * WHERE_POSITIVE(here * n.s[j] + n.t[j],
                                                      OF(pbar + o, (y / 2) * (w / 2) + x / 2));
                    AT(zbar + y * row + x * k + o) = bar;
                }
            }
    }
}

/* zdot, affine_dot (or none) -> pdot, moved: x^dot = rstd (zdot - mean of zdot - x^ mean of
   x^ zdot) */
static void forward_along(long h, long w, long k, const REAL *z, const REAL *affine,
                          const REAL *stats, const REAL *zdot, const REAL *affine_dot, REAL *moved,
                          REAL *pdot, long row) {
    const REAL share = (REAL)1 / (h * w);
    FOR_PAIRS {
        const Norm n = norm(k, affine, stats);
        V m1[2] = {0}, m2[2] = {0}, slope[2], at[2];
        for (long y = 0; y < h; y++) {
            V part1[2] = {0}, part2[2] = {0};
            for (long x = 0; x < w; x++) EACH {
                const V dot = OF(zdot + o, y * w + x);
                part1[j] += dot;
                part2[j] += dot * (OF(z, y * w + x) - n.mean[j]);
            }
            EACH m1[j] += part1[j], m2[j] += part2[j];
        }
        EACH {
            AT(moved + o) = m2[j] *= share * n.rstd[j];
            AT(moved + k + o) = m1[j] *= share;
            slope[j] = -n.s[j] * n.rstd[j] * m2[j];
            at[j] = -n.s[j] * m1[j];
            if (affine_dot) {
                slope[j] += AT(affine_dot + o) * n.rstd[j];
                at[j] += AT(affine_dot + k + o);
            }
            at[j] -= slope[j] * n.mean[j];
        }
        for (long y = 0; y < h / 2; y++)
            for (long x = 0; x < w / 2; x++) EACH {
                V sum = {0};
                for (int i = 0; i < 4; i++) {
                    const long pixel = CORNER(y, x, i);
                    const V here = OF(z, pixel);
                    sum += WHERE_POSITIVE(here * n.s[j] + n.t[j],
                                          n.s[j] * OF(zdot + o, pixel) + slope[j] * here + at[j]);
                }
                AT(pdot + y * row + x * k + o) = sum * (REAL)0.25;
            }
    }
}

/* pbar, pbardot -> zbardot and sums_dot: the derivative of `backward`, written out as
   zbardot = a4 pbar + s4 pbardot (where y > 0) + by_z z + by_zdot zdot + at */
static void backward_along(long h, long w, long k, const REAL *z, const REAL *affine,
                           const REAL *stats, const REAL *pbar, const REAL *sums, const REAL *zdot,
                           const REAL *affine_dot, const REAL *moved, const REAL *pbardot,
                           REAL *zbardot, long row, REAL *sums_dot) {
    const REAL share = (REAL)1 / (h * w), quarter = (REAL)0.25;
    FOR_PAIRS {
        const Norm n = norm(k, affine, stats);
        V shift[2], turn[2], d1[2] = {0}, d2[2] = {0}, a4[2], s4[2], by_z[2], by_zdot[2], at[2];
        EACH { /* x^dot = rstd zdot + turn (z - mean) + shift */
            shift[j] = -n.rstd[j] * AT(moved + k + o);
            turn[j] = -n.rstd[j] * n.rstd[j] * AT(moved + o);
        }
        for (long y = 0; y < h / 2; y++) {
            V part1[2] = {0}, part2[2] = {0};
            for (long x = 0; x < w / 2; x++) EACH {
                const V bar = OF(pbar + o, y * (w / 2) + x), dot = OF(pbardot + o, y * (w / 2) + x);
                for (int i = 0; i < 4; i++) {
                    const long pixel = CORNER(y, x, i);
                    const V here = OF(z, pixel), centred = here - n.mean[j];
                    const V value = here * n.s[j] + n.t[j];
                    const V xdot = n.rstd[j] * OF(zdot + o, pixel) + turn[j] * centred + shift[j];
                    part1[j] += WHERE_POSITIVE(value, dot);
                    part2[j] += WHERE_POSITIVE(value, dot * n.rstd[j] * centred + bar * xdot);
                }
            }
            EACH d1[j] += part1[j], d2[j] += part2[j];
        }
        EACH {
            AT(sums_dot + o) = d2[j] *= quarter;
            AT(sums_dot + k + o) = d1[j] *= quarter;
            const V m2 = AT(sums + o) * share, m1 = AT(sums + k + o) * share, r = n.rstd[j];
            V sdot = n.s[j] * turn[j] / r;
            if (affine_dot) sdot += AT(affine_dot + o) * r;
            by_zdot[j] = -n.s[j] * m2 * r;
            by_z[j] = -(sdot * m2 + n.s[j] * d2[j] * share) * r - n.s[j] * m2 * turn[j];
            at[j] = -sdot * m1 - n.s[j] * (d1[j] * share + m2 * shift[j]) - by_z[j] * n.mean[j];
            a4[j] = sdot * quarter;
            s4[j] = n.s[j] * quarter;
        }
        for (long y = 0; y < h; y++)
            for (long x = 0; x < w; x++) {
                const int pooled = y / 2 < h / 2 && x / 2 < w / 2;
                const long pixel = y * w + x, from = (y / 2) * (w / 2) + x / 2;
                EACH {
                    const V here = OF(z, pixel);
                    V out = by_z[j] * here + by_zdot[j] * OF(zdot + o, pixel) + at[j];
                    if (pooled)
                        out += WHERE_POSITIVE(here * n.s[j] + n.t[j],
                                              a4[j] * OF(pbar + o, from) +
                                                  s4[j] * OF(pbardot + o, from));
                    AT(zbardot + y * row + x * k + o) = out;
                }
            }
    }
}

/* ---- The network ---- */

/* What a network and its images are: k is the width, padded; d the numbers of a class in the head. */
typedef struct { long n, c, h, w, width, depth, classes, k, d; } Shape;
/* One block's image and weights. `kernel` is read by convolve (and, of a gradient, written by
   weigh), `turned` by the pass backward: by image_bar in the first block, else by convolve. */
typedef struct { long h, w, c; REAL *kernel, *turned, *affine; } Block;
typedef struct { Block block[DEEPEST]; REAL *head, *shift; } Weights;
/* What one image leaves in a block. In a derivative's trace stand xdot, zdot, moved for stats,
   pbardot, zbardot and sums_dot. p: of the last block. */
typedef struct { REAL *x, *z, *stats, *pbar, *zbar, *sums; } Trace;
typedef struct { Trace block[DEEPEST]; REAL *p, *prob, *bar; } Tape;

static Shape shaped(const long *s) {
    Shape o = {s[0], s[1], s[2], s[3], s[4], s[5], s[6], (s[4] + PAIR - 1) / PAIR * PAIR, 0};
    o.d = (o.h >> o.depth) * (o.w >> o.depth) * o.k;
    return o;
}

/* The next numbers of a room, from a multiple of 16 on. */
static REAL *take(REAL **room, long numbers) {
    REAL *start = *room;
    *room += (numbers + 15) / 16 * 16;
    return start;
}
static Weights weights(const Shape *s, REAL **room) {
    Weights o;
    for (long i = 0, h = s->h, w = s->w, c = s->c; i < s->depth; i++, h /= 2, w /= 2, c = s->k) {
        o.block[i] = (Block){h, w, c, take(room, 9 * c * s->k), 0, 0};
        o.block[i].turned = take(room, 9 * c * s->k);
        o.block[i].affine = take(room, 2 * s->k);
    }
    o.head = take(room, s->classes * s->d);
    o.shift = take(room, s->classes);
    return o;
}
static Weights zeros(const Shape *s, REAL **room) {
    REAL *start = *room;
    const Weights o = weights(s, room);
    memset(start, 0, (*room - start) * sizeof(REAL));
    return o;
}
static Tape tape(const Shape *s, REAL **room) {
    Tape o;
    for (long i = 0, h = s->h, w = s->w, c = s->c; i < s->depth; i++, h /= 2, w /= 2, c = s->k) {
        Trace *t = &o.block[i];
        t->x = take(room, (h + 2) * (w + 2) * c);
        t->z = take(room, h * w * s->k);
        t->stats = take(room, 2 * s->k);
        t->pbar = take(room, (h / 2) * (w / 2) * s->k);
        t->zbar = take(room, (h + 2) * (w + 2) * s->k);
        t->sums = take(room, 2 * s->k);
    }
    o.p = take(room, s->d);
    o.prob = take(room, s->classes);
    o.bar = take(room, s->classes);
    return o;
}
/* Where a block's p begins, and the numbers in a row of it: inside the frame of the next x. */
static REAL *pooled(const Shape *s, const Weights *l, const Tape *t, long i, long *row) {
    const long w = l->block[i].w / 2;
    *row = (i + 1 < s->depth ? w + 2 : w) * s->k;
    return i + 1 < s->depth ? t->block[i + 1].x + *row + s->k : t->p;
}

/* Numbers of the images' tapes, and of the room that a call needs. */
long tape_numbers(const long *shape) {
    const Shape s = shaped(shape);
    REAL start[1], *room = start;
    tape(&s, &room);
    return s.n * (room - start);
}
long room_numbers(const long *shape) {
    const Shape s = shaped(shape);
    REAL start[1], *room = start;
    for (int i = 0; i < 3; i++) weights(&s, &room); /* theta, a direction, a gradient */
    for (int i = 0; i < 2; i++) tape(&s, &room);    /* an image's, and its derivative's */
    return room - start;
}

#define GROUPS(first, all)                                                                        \
    for (long first = 0, many; many = all - first < PAIR ? all - first : PAIR, first < all;       \
         first += PAIR)
/* theta, or a direction, as PyTorch has it -> weights */
static Weights packed(const Shape *s, const REAL *theta, REAL **room) {
    const long k = s->k, width = s->width, pixels = s->d / k;
    Weights o = zeros(s, room);
    for (long i = 0; i < s->depth; i++) {
        Block *l = &o.block[i];
        const long c = i ? width : s->c; /* theta [width][c][3][3] */
        GROUPS(out, width) for (long e = 0; e < 9 * c; e++) {
            REAL *to = l->kernel + ((out / PAIR * 9 + e % 9) * l->c + e / 9) * PAIR;
            for (long j = 0; j < many; j++) to[j] = theta[(out + j) * 9 * c + e];
        }
        for (long out = 0; i && out < width; out++)
            GROUPS(q, c) for (long t = 0; t < 9; t++) {
                REAL *to = l->turned + ((q / PAIR * 9 + 8 - t) * k + out) * PAIR;
                for (long j = 0; j < many; j++) to[j] = theta[(out * c + q + j) * 9 + t];
            }
        for (long e = 0; !i && e < 9 * c; e++)
            for (long out = 0; out < width; out++)
                l->turned[(e % 9 * c + e / 9) * k + out] = theta[out * 9 * c + e];
        theta += 9 * c * width;
        theta += width; /* the bias */
        for (long j = 0; j < 2; j++, theta += width)
            memcpy(l->affine + j * k, theta, width * sizeof(REAL));
    }
    for (long j = 0; j < s->classes; j++)
        for (long out = 0; out < width; out++)
            for (long p = 0; p < pixels; p++) o.head[j * s->d + p * k + out] = *theta++;
    memcpy(o.shift, theta, s->classes * sizeof(REAL));
    return o;
}
/* The way back, of a gradient. */
static void unpacked(const Shape *s, const Weights *g, REAL *theta) {
    const long k = s->k, width = s->width, pixels = s->d / k;
    for (long i = 0; i < s->depth; i++) {
        const Block *l = &g->block[i];
        const long c = i ? width : s->c;
        GROUPS(out, width) for (long e = 0; e < 9 * c; e++) {
            const REAL *from = l->kernel + (e % 9 * l->c + e / 9) * k + out;
            for (long j = 0; j < many; j++) theta[(out + j) * 9 * c + e] = from[j];
        }
        theta += 9 * c * width;
        memset(theta, 0, width * sizeof(REAL));
        theta += width;
        for (long j = 0; j < 2; j++, theta += width)
            memcpy(theta, l->affine + j * k, width * sizeof(REAL));
    }
    for (long j = 0; j < s->classes; j++)
        for (long out = 0; out < width; out++)
            for (long p = 0; p < pixels; p++) *theta++ = g->head[j * s->d + p * k + out];
    memcpy(theta, g->shift, s->classes * sizeof(REAL));
}
/* An image [c][row][column] -> a framed plane */
static void load(const Shape *s, const REAL *image, REAL *plane) {
    frame(s->h, s->w, s->c, plane);
    for (long q = 0; q < s->c; q++)
        for (long y = 0; y < s->h; y++)
            for (long x = 0; x < s->w; x++)
                plane[((y + 1) * (s->w + 2) + x + 1) * s->c + q] = *image++;
}

INLINE REAL product(long d, const REAL *a, const REAL *b) {
    V sum[2] = {0};
    for (long i = 0; i < d; i += PAIR) EACH sum[j] += AT(a + i) * AT(b + i);
    return over_lanes(sum[0] + sum[1]);
}
INLINE void add(long d, REAL factor, const REAL *a, REAL *sum) {
    for (long i = 0; i < d; i += PAIR) EACH AT(sum + i) += factor * AT(a + i);
}

/* Forward, image -> prob: the logits until `cross_entropy` */
static void image_ahead(const Shape *s, const Weights *l, const REAL *image, Tape *t) {
    load(s, image, t->block[0].x);
    for (long i = 0, row; i < s->depth; i++) {
        const Block *b = &l->block[i];
        Trace *at = &t->block[i];
        REAL *p = pooled(s, l, t, i, &row);
        if (i + 1 < s->depth) frame(b->h / 2, b->w / 2, s->k, t->block[i + 1].x);
        convolve(b->h, b->w, b->c, s->k, at->x, b->kernel, at->z, 0);
        forward(b->h, b->w, s->k, at->z, b->affine, at->stats, p, row);
    }
    for (long j = 0; j < s->classes; j++)
        t->prob[j] = l->shift[j] + product(s->d, l->head + j * s->d, t->p);
}

/* Logits -> probabilities and bar = scale (prob - target); the loss is returned. */
static double cross_entropy(const Shape *s, const REAL *target, double scale, Tape *t) {
    REAL most = -INFINITY;
    double sum = 0, value = 0;
    for (long j = 0; j < s->classes; j++) most = t->prob[j] > most ? t->prob[j] : most;
    for (long j = 0; j < s->classes; j++) sum += exp(t->prob[j] - most);
    for (long j = 0; j < s->classes; j++) {
        const double logit = t->prob[j] - most;
        if (target[j] != 0) value -= target[j] * (logit - log(sum));
        t->prob[j] = exp(logit) / sum;
        t->bar[j] = scale * (t->prob[j] - target[j]);
    }
    return scale * value;
}

/* bar -> the cotangents along the tape; those of the weights are added to g, if any. */
static void image_back(const Shape *s, const Weights *l, Tape *t, Weights *g) {
    const long k = s->k, d = s->d;
    REAL *pbar = t->block[s->depth - 1].pbar;
    memset(pbar, 0, d * sizeof(REAL));
    for (long j = 0; j < s->classes; j++) {
        add(d, t->bar[j], l->head + j * d, pbar);
        if (g) add(d, t->bar[j], t->p, g->head + j * d);
        if (g) g->shift[j] += t->bar[j];
    }
    for (long i = s->depth - 1; i >= 0; i--) {
        const Block *b = &l->block[i];
        Trace *at = &t->block[i];
        const long row = (b->w + 2) * k;
        frame(b->h, b->w, k, at->zbar);
        backward(b->h, b->w, k, at->z, b->affine, at->stats, at->pbar, at->zbar + row + k, row,
                 at->sums);
        if (g) {
            weigh(b->h, b->w, b->c, k, at->x, at->zbar, g->block[i].kernel);
            add(2 * k, 1, at->sums, g->block[i].affine);
        }
        if (i) convolve(b->h, b->w, k, k, at->zbar, b->turned, t->block[i - 1].pbar, 0);
    }
}

/* How the cotangents change where the weights move along v and the image along `image`; either may
   be missing. m is the derivative's trace, whose bar and prob are those of the logits. */
static void image_along(const Shape *s, const Weights *l, const Weights *v, const REAL *image,
                        double scale, const Tape *t, Tape *m, Weights *g) {
    const long k = s->k, d = s->d;
    double mean = 0;
    if (image) load(s, image, m->block[0].x);
    for (long i = 0, row; i < s->depth; i++) {
        const Block *b = &l->block[i];
        const Trace *at = &t->block[i];
        Trace *to = &m->block[i];
        REAL *pdot = pooled(s, l, m, i, &row);
        if (i + 1 < s->depth) frame(b->h / 2, b->w / 2, k, m->block[i + 1].x);
        if (v) convolve(b->h, b->w, b->c, k, at->x, v->block[i].kernel, to->z, 0);
        if (i || image) convolve(b->h, b->w, b->c, k, to->x, b->kernel, to->z, v != 0);
        forward_along(b->h, b->w, k, at->z, b->affine, at->stats, to->z,
                      v ? v->block[i].affine : 0, to->stats, pdot, row);
    }
    for (long j = 0; j < s->classes; j++) {
        m->prob[j] = product(d, l->head + j * d, m->p);
        if (v) m->prob[j] += v->shift[j] + product(d, v->head + j * d, t->p);
        mean += t->prob[j] * m->prob[j];
    }
    REAL *pbardot = m->block[s->depth - 1].pbar;
    memset(pbardot, 0, d * sizeof(REAL));
    for (long j = 0; j < s->classes; j++) {
        m->bar[j] = scale * t->prob[j] * (m->prob[j] - mean);
        m->prob[j] = scale * (mean - m->prob[j]); /* the derivative for the label */
        add(d, t->bar[j], m->p, g->head + j * d);
        add(d, m->bar[j], t->p, g->head + j * d);
        g->shift[j] += m->bar[j];
        if (v) add(d, t->bar[j], v->head + j * d, pbardot);
        add(d, m->bar[j], l->head + j * d, pbardot);
    }
    for (long i = s->depth - 1; i >= 0; i--) {
        const Block *b = &l->block[i];
        const Trace *at = &t->block[i];
        Trace *to = &m->block[i];
        const long row = (b->w + 2) * k;
        frame(b->h, b->w, k, to->zbar);
        backward_along(b->h, b->w, k, at->z, b->affine, at->stats, at->pbar, at->sums, to->z,
                       v ? v->block[i].affine : 0, to->stats, to->pbar, to->zbar + row + k, row,
                       to->sums);
        weigh(b->h, b->w, b->c, k, at->x, to->zbar, g->block[i].kernel);
        if (i || image) weigh(b->h, b->w, b->c, k, to->x, at->zbar, g->block[i].kernel);
        add(2 * k, 1, to->sums, g->block[i].affine);
        if (!i) break;
        convolve(b->h, b->w, k, k, to->zbar, b->turned, m->block[i - 1].pbar, 0);
        if (v) convolve(b->h, b->w, k, k, at->zbar, v->block[i].turned, m->block[i - 1].pbar, 1);
    }
}

/* ---- What Python calls: x (n, c, h, w), theta and a direction v (P,), targets (n, classes). `kept`
   holds the tapes of all images; where there is none, the room does, of one at a time. ---- */

/* logits (n, classes) and features (n, width, h, w), where they are asked for */
void ahead(const long *shape, REAL *room, const REAL *x, const REAL *theta, REAL *logits,
           REAL *features) {
    const Shape s = shaped(shape);
    const Weights l = packed(&s, theta, &room);
    Tape t = tape(&s, &room);
    for (long i = 0; i < s.n; i++) {
        image_ahead(&s, &l, x + i * s.c * s.h * s.w, &t);
        if (logits) memcpy(logits + i * s.classes, t.prob, s.classes * sizeof(REAL));
        for (long out = 0; features && out < s.width; out++)
            for (long p = 0; p < s.d / s.k; p++) *features++ = t.p[p * s.k + out];
    }
}

/* The loss, scale sum_i CE_i, and its gradient for theta; with no targets the gradient of
   sum_i sum_k f_k for the images instead. */
void back(const long *shape, REAL *room, const REAL *x, const REAL *theta, const REAL *target,
          double scale, REAL *kept, REAL *value, REAL *theta_bar, REAL *xbar) {
    const Shape s = shaped(shape);
    const Weights l = packed(&s, theta, &room);
    Weights g = zeros(&s, &room);
    double total = 0;
    for (long i = 0; i < s.n; i++) {
        REAL *own = room;
        Tape t = tape(&s, kept ? &kept : &own);
        image_ahead(&s, &l, x + i * s.c * s.h * s.w, &t);
        if (target) total += cross_entropy(&s, target + i * s.classes, scale, &t);
        else for (long j = 0; j < s.classes; j++) t.prob[j] = 0, t.bar[j] = 1;
        image_back(&s, &l, &t, target ? &g : 0);
        if (!target)
            image_bar(s.h, s.w, s.c, s.k, t.block[0].zbar, l.block[0].turned, 0, 0,
                      xbar + i * s.c * s.h * s.w);
    }
    if (!target) return;
    *value = total;
    unpacked(&s, &g, theta_bar);
}

/* The derivatives of <v, gradient of the loss> for theta, the images and the targets; or, along
   u (n, c, h, w) in place of v, that of <u, gradient of sum_i sum_k f_k for the images> for theta
   alone. `kept`, which the latter needs, holds what `back` left there. */
void along(const long *shape, REAL *room, const REAL *x, const REAL *theta, const REAL *target,
           double scale, REAL *kept, const REAL *v, const REAL *u, REAL *theta_bar, REAL *xbar,
           REAL *target_bar) {
    const Shape s = shaped(shape);
    const long size = s.c * s.h * s.w;
    const Weights l = packed(&s, theta, &room), direction = packed(&s, v ? v : theta, &room);
    Weights g = zeros(&s, &room);
    Tape m = tape(&s, &room);
    for (long i = 0; i < s.n; i++) {
        REAL *own = room;
        Tape t = tape(&s, kept ? &kept : &own);
        if (!kept) {
            image_ahead(&s, &l, x + i * size, &t);
            cross_entropy(&s, target + i * s.classes, scale, &t);
            image_back(&s, &l, &t, 0);
        }
        image_along(&s, &l, v ? &direction : 0, u ? u + i * size : 0, scale, &t, &m, &g);
        if (!v) continue;
        image_bar(s.h, s.w, s.c, s.k, m.block[0].zbar, l.block[0].turned, t.block[0].zbar,
                  direction.block[0].turned, xbar + i * size);
        memcpy(target_bar + i * s.classes, m.prob, s.classes * sizeof(REAL));
    }
    unpacked(&s, &g, theta_bar);
}
