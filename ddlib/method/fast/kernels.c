/* One block of a ConvNet behind its convolution: y = gamma x^ + beta with x^ = (z - mean) rstd over an image's pixels,
   a = max(y, 0), p = mean of a over 2 x 2 (odd edges dropped); its backward; and the derivative of both along a direction.

   Pixels lie channels last: z[image][row][column][channel]. A call walks one image and one group of channels at a time, so that
   what it reads stays near. REAL is float or double; a channel count must be a multiple of LANES = 32 / sizeof(REAL). Two numbers
   for each channel lie one after the other: affine (gamma, beta), and for each image stats (mean, rstd), moved, sums.
   Bars are cotangents, dots derivatives along the direction. Sums over pixels go row by row, which keeps their rounding small. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef REAL V __attribute__((vector_size(32), aligned(sizeof(REAL)), may_alias));
typedef __typeof__((V){0} <= (V){0}) Mask;
enum { LANES = 32 / sizeof(REAL) };

#define INLINE static inline __attribute__((always_inline))
#define EACH for (int j = 0; j < J; j++)
#define AT(pointer) (((V *)(pointer))[j])
#define OF(pointer, pixel) (((V *)((pointer) + (pixel) * c))[j])
/* Where y > 0, the value; a y that is no number lets it through, so nothing hides. */
#define WHERE_POSITIVE(y, value) ((V)(~((y) <= (V){0}) & (Mask)(value)))

#define FOR_BLOCKS(call)                                     \
    for (long i = 0; i < n; i++) {                           \
        long k = 0;                                          \
        for (; k + 2 * LANES <= c; k += 2 * LANES) call(2);  \
        for (; k < c; k += LANES) call(1);                   \
    }

INLINE V inverse_root(V v) {
    for (int l = 0; l < LANES; l++) v[l] = 1 / sqrt(v[l]);
    return v;
}

/* z -> p, mean, rstd */
INLINE void forward_block(const int J, long h, long w, long c, const REAL *z, const REAL *gamma, const REAL *beta, REAL *p, REAL *mean, REAL *rstd) {
    const REAL share = (REAL)1 / (h * w);
    V m[2] = {0}, square[2] = {0}, s[2], t[2];
    for (long y = 0; y < h; y++) {
        V row[2] = {0};
        for (long x = 0; x < w; x++) EACH row[j] += OF(z, y * w + x);
        EACH m[j] += row[j];
    }
    EACH m[j] *= share;
    for (long y = 0; y < h; y++) {
        V row[2] = {0};
        for (long x = 0; x < w; x++) EACH {
            V centred = OF(z, y * w + x) - m[j];
            row[j] += centred * centred;
        }
        EACH square[j] += row[j];
    }
    EACH {
        V r = inverse_root(square[j] * share + (REAL)EPS);
        AT(mean) = m[j];
        AT(rstd) = r;
        s[j] = AT(gamma) * r;
        t[j] = AT(beta) - m[j] * s[j];
    }
    for (long y = 0; y < h / 2; y++)
        for (long x = 0; x < w / 2; x++) {
            const long first = 2 * y * w + 2 * x;
            EACH {
                V sum = {0};
                for (int corner = 0; corner < 4; corner++) {
                    V value = OF(z, first + (corner >> 1) * w + (corner & 1)) * s[j] + t[j];
                    sum += WHERE_POSITIVE(value, value);
                }
                OF(p, y * (w / 2) + x) = sum * (REAL)0.25;
            }
        }
}

void forward(long n, long h, long w, long c, const REAL *z, const REAL *affine, REAL *p, REAL *stats) {
#define CALL(J) forward_block(J, h, w, c, z + i * h * w * c + k, affine + k, affine + c + k, p + i * (h / 2) * (w / 2) * c + k, stats + i * c + k, stats + (n + i) * c + k)
    FOR_BLOCKS(CALL)
#undef CALL
}

/* p- -> z-, and the sums over pixels of y- and of y- x^ */
INLINE void backward_block(const int J, long h, long w, long c, const REAL *z, const REAL *gamma, const REAL *beta, const REAL *mean, const REAL *rstd,
                           const REAL *pbar, REAL *zbar, REAL *sum_yx, REAL *sum_y) {
    const REAL share = (REAL)1 / (h * w);
    V s[2], t[2], m[2], m1[2] = {0}, m2[2] = {0}, at[2], slope[2];
    EACH {
        m[j] = AT(mean);
        s[j] = AT(gamma) * AT(rstd);
        t[j] = AT(beta) - m[j] * s[j];
    }
    for (long y = 0; y < h / 2; y++) {
        V row1[2] = {0}, row2[2] = {0};
        for (long x = 0; x < w / 2; x++) {
            const long first = 2 * y * w + 2 * x;
            EACH {
                V bar = OF(pbar, y * (w / 2) + x);
                for (int corner = 0; corner < 4; corner++) {
                    V here = OF(z, first + (corner >> 1) * w + (corner & 1));
                    V ybar = WHERE_POSITIVE(here * s[j] + t[j], bar);
                    row1[j] += ybar;
                    row2[j] += ybar * (here - m[j]);
                }
            }
        }
        EACH m1[j] += row1[j], m2[j] += row2[j];
    }
    EACH {
        m1[j] *= (REAL)0.25;
        m2[j] *= (REAL)0.25 * AT(rstd);
        AT(sum_y) = m1[j];
        AT(sum_yx) = m2[j];
        slope[j] = -s[j] * AT(rstd) * m2[j] * share;
        at[j] = -s[j] * m1[j] * share - slope[j] * m[j];
    }
    for (long y = 0; y < h; y++)
        for (long x = 0; x < w; x++) {
            const int inside = y / 2 < h / 2 && x / 2 < w / 2;
            EACH {
                V here = OF(z, y * w + x), bar = slope[j] * here + at[j];
                if (inside) bar += s[j] * (REAL)0.25 * WHERE_POSITIVE(here * s[j] + t[j], OF(pbar, (y / 2) * (w / 2) + x / 2));
                OF(zbar, y * w + x) = bar;
            }
        }
}

void backward(long n, long h, long w, long c, const REAL *z, const REAL *affine, const REAL *stats, const REAL *pbar, REAL *zbar, REAL *sums) {
#define CALL(J)                                                                                                                    \
    backward_block(J, h, w, c, z + i * h * w * c + k, affine + k, affine + c + k, stats + i * c + k, stats + (n + i) * c + k,    \
                   pbar + i * (h / 2) * (w / 2) * c + k, zbar + i * h * w * c + k, sums + i * c + k, sums + (n + i) * c + k)
    FOR_BLOCKS(CALL)
#undef CALL
}

/* z. (and what is still to be added to it, or null) -> p., and the means over pixels of z. and of x^ z. */
INLINE void forward_along_block(const int J, long h, long w, long c, const REAL *z, const REAL *gamma, const REAL *beta, const REAL *mean, const REAL *rstd,
                                REAL *zdot, const REAL *more, const REAL *gdot, const REAL *bdot, REAL *pdot, REAL *mdot, REAL *cdot) {
    const REAL share = (REAL)1 / (h * w);
    V s[2], t[2], m[2], md[2] = {0}, cd[2] = {0}, slope[2], at[2];
    EACH {
        m[j] = AT(mean);
        s[j] = AT(gamma) * AT(rstd);
        t[j] = AT(beta) - m[j] * s[j];
    }
    for (long y = 0; y < h; y++) {
        V row1[2] = {0}, row2[2] = {0};
        for (long x = 0; x < w; x++) EACH {
            V dot = OF(zdot, y * w + x);
            if (more) OF(zdot, y * w + x) = dot = dot + OF(more, y * w + x);
            row1[j] += dot;
            row2[j] += dot * (OF(z, y * w + x) - m[j]);
        }
        EACH md[j] += row1[j], cd[j] += row2[j];
    }
    EACH {
        md[j] *= share;
        cd[j] *= share * AT(rstd);
        AT(mdot) = md[j];
        AT(cdot) = cd[j];
        slope[j] = -s[j] * AT(rstd) * cd[j];
        at[j] = -s[j] * md[j];
        if (gdot) slope[j] += AT(gdot) * AT(rstd), at[j] += AT(bdot);
        at[j] -= slope[j] * m[j];
    }
    for (long y = 0; y < h / 2; y++)
        for (long x = 0; x < w / 2; x++) {
            const long first = 2 * y * w + 2 * x;
            EACH {
                V sum = {0};
                for (int corner = 0; corner < 4; corner++) {
                    const long pixel = first + (corner >> 1) * w + (corner & 1);
                    V here = OF(z, pixel);
                    sum += WHERE_POSITIVE(here * s[j] + t[j], s[j] * OF(zdot, pixel) + slope[j] * here + at[j]);
                }
                OF(pdot, y * (w / 2) + x) = sum * (REAL)0.25;
            }
        }
}

void forward_along(long n, long h, long w, long c, const REAL *z, const REAL *affine, const REAL *stats, REAL *zdot, const REAL *more, const REAL *adot,
                   REAL *pdot, REAL *moved) {
#define CALL(J)                                                                                                                             \
    forward_along_block(J, h, w, c, z + i * h * w * c + k, affine + k, affine + c + k, stats + i * c + k, stats + (n + i) * c + k,        \
                        zdot + i * h * w * c + k, more ? more + i * h * w * c + k : 0, adot ? adot + k : 0, adot ? adot + c + k : 0,      \
                        pdot + i * (h / 2) * (w / 2) * c + k, moved + i * c + k, moved + (n + i) * c + k)
    FOR_BLOCKS(CALL)
#undef CALL
}

/* p-, p-. (and what is still to be added to it, or null) -> z-., and the derivatives of the sums that `backward` left */
INLINE void backward_along_block(const int J, long h, long w, long c, const REAL *z, const REAL *gamma, const REAL *beta, const REAL *mean, const REAL *rstd,
                                 const REAL *pbar, const REAL *sum_yx, const REAL *sum_y, const REAL *zdot, const REAL *gdot, const REAL *mdot,
                                 const REAL *cdot, const REAL *pbardot, const REAL *more, REAL *zbardot, REAL *sum_yxdot, REAL *sum_ydot) {
    const REAL share = (REAL)1 / (h * w), quarter = (REAL)0.25;
    V s[2], t[2], m[2], r[2], shift[2], turn[2], d1[2] = {0}, d2[2] = {0}, sdot[2], by_z[2], by_zdot[2], at[2];
    EACH { /* x^. = rstd z. + turn (z - mean) + shift */
        m[j] = AT(mean);
        r[j] = AT(rstd);
        s[j] = AT(gamma) * r[j];
        t[j] = AT(beta) - m[j] * s[j];
        shift[j] = -r[j] * AT(mdot);
        turn[j] = -r[j] * r[j] * AT(cdot);
    }
    for (long y = 0; y < h / 2; y++) {
        V row1[2] = {0}, row2[2] = {0};
        for (long x = 0; x < w / 2; x++) {
            const long first = 2 * y * w + 2 * x, pooled = y * (w / 2) + x;
            EACH {
                V bar = OF(pbar, pooled), dot = OF(pbardot, pooled);
                if (more) dot += OF(more, pooled);
                for (int corner = 0; corner < 4; corner++) {
                    const long pixel = first + (corner >> 1) * w + (corner & 1);
                    V here = OF(z, pixel), centred = here - m[j], value = here * s[j] + t[j];
                    V xdot = r[j] * OF(zdot, pixel) + turn[j] * centred + shift[j];
                    row1[j] += WHERE_POSITIVE(value, dot);
                    row2[j] += WHERE_POSITIVE(value, dot * r[j] * centred + bar * xdot);
                }
            }
        }
        EACH d1[j] += row1[j], d2[j] += row2[j];
    }
    EACH {
        d1[j] *= quarter;
        d2[j] *= quarter;
        AT(sum_ydot) = d1[j];
        AT(sum_yxdot) = d2[j];
        V m1 = AT(sum_y) * share, m2 = AT(sum_yx) * share;
        sdot[j] = s[j] * turn[j] / r[j];
        if (gdot) sdot[j] += AT(gdot) * r[j];
        by_zdot[j] = -s[j] * m2 * r[j];
        by_z[j] = -(sdot[j] * m2 + s[j] * d2[j] * share) * r[j] - s[j] * m2 * turn[j];
        at[j] = -sdot[j] * m1 - s[j] * d1[j] * share - s[j] * m2 * shift[j] - by_z[j] * m[j];
        sdot[j] *= quarter;
    }
    for (long y = 0; y < h; y++)
        for (long x = 0; x < w; x++) {
            const int inside = y / 2 < h / 2 && x / 2 < w / 2;
            const long pixel = y * w + x, pooled = (y / 2) * (w / 2) + x / 2;
            EACH {
                V here = OF(z, pixel), out = by_z[j] * here + by_zdot[j] * OF(zdot, pixel) + at[j];
                if (inside) {
                    V dot = OF(pbardot, pooled);
                    if (more) dot += OF(more, pooled);
                    out += WHERE_POSITIVE(here * s[j] + t[j], sdot[j] * OF(pbar, pooled) + s[j] * quarter * dot);
                }
                OF(zbardot, pixel) = out;
            }
        }
}

void backward_along(long n, long h, long w, long c, const REAL *z, const REAL *affine, const REAL *stats, const REAL *pbar, const REAL *sums,
                    const REAL *zdot, const REAL *adot, const REAL *moved, const REAL *pbardot, const REAL *more, REAL *zbardot, REAL *sumsdot) {
#define CALL(J)                                                                                                                              \
    backward_along_block(J, h, w, c, z + i * h * w * c + k, affine + k, affine + c + k, stats + i * c + k, stats + (n + i) * c + k,        \
                         pbar + i * (h / 2) * (w / 2) * c + k, sums + i * c + k, sums + (n + i) * c + k, zdot + i * h * w * c + k,         \
                         adot ? adot + k : 0, moved + i * c + k, moved + (n + i) * c + k, pbardot + i * (h / 2) * (w / 2) * c + k,         \
                         more ? more + i * (h / 2) * (w / 2) * c + k : 0, zbardot + i * h * w * c + k, sumsdot + i * c + k,                \
                         sumsdot + (n + i) * c + k)
    FOR_BLOCKS(CALL)
#undef CALL
}

/* The first convolution, 3 x 3 with zeros around, of c (few) channels into k: libraries are made for many and are slow here.
   Weights are [row][column][c][k]; a padded image is (h + 2) x (w + 2) x c, so a row of a filter sees 3 c consecutive numbers. */

static void pad(long h, long w, long c, const REAL *x, REAL *padded) {
    memset(padded, 0, (h + 2) * (w + 2) * c * sizeof(REAL));
    for (long y = 0; y < h; y++) memcpy(padded + ((y + 1) * (w + 2) + 1) * c, x + y * w * c, w * c * sizeof(REAL));
}

enum { MANY = 4 };

/* P neighbours in a row, J vectors of output channels. */
INLINE void first_forward_block(const int P, const int J, long row, long c, long k, const REAL *x, const REAL *weight, REAL *z) {
    V sum[MANY][2] = {0};
    for (int ky = 0; ky < 3; ky++, x += row)
        for (long q = 0; q < 3 * c; q++, weight += k) {
            V v[2];
            EACH v[j] = AT(weight);
            for (int p = 0; p < P; p++) EACH sum[p][j] += x[p * c + q] * v[j];
        }
    for (int p = 0; p < P; p++) EACH AT(z + p * k) = sum[p][j];
}

/* x -> z */
void first_forward(long n, long h, long w, long c, long k, const REAL *x, const REAL *weight, REAL *z) {
    REAL *padded = malloc((h + 2) * (w + 2) * c * sizeof(REAL));
    const long row = (w + 2) * c;
    for (long i = 0; i < n; i++) {
        pad(h, w, c, x + i * h * w * c, padded);
        for (long y = 0; y < h; y++)
            for (long at = 0; at < w;) {
                const REAL *from = padded + y * row + at * c;
                REAL *to = z + ((i * h + y) * w + at) * k;
                const int many = at + MANY <= w;
                long o = 0;
                for (; o + 2 * LANES <= k; o += 2 * LANES)
                    if (many) first_forward_block(MANY, 2, row, c, k, from, weight + o, to + o);
                    else first_forward_block(1, 2, row, c, k, from, weight + o, to + o);
                for (; o < k; o += LANES)
                    if (many) first_forward_block(MANY, 1, row, c, k, from, weight + o, to + o);
                    else first_forward_block(1, 1, row, c, k, from, weight + o, to + o);
                at += many ? MANY : 1;
            }
    }
    free(padded);
}

/* x, z- -> what is added to the weight's cotangent, nine numbers of a filter at a time: three triples of neighbours in memory. */
void first_weight(long n, long h, long w, long c, long k, const REAL *x, const REAL *zbar, REAL *wbar) {
    REAL *padded = malloc((h + 2) * (w + 2) * c * sizeof(REAL));
    const long row = (w + 2) * c;
    for (long i = 0; i < n; i++) {
        pad(h, w, c, x + i * h * w * c, padded);
        for (long nine = 0; nine < c; nine++) {
            const REAL *triple[3];
            for (long t = 0; t < 3; t++) triple[t] = padded + (3 * nine + t) / c * row + (3 * nine + t) % c * 3;
            for (long o = 0; o < k; o += LANES) {
                V sum[9] = {0};
                for (long y = 0; y < h; y++)
                    for (long at = 0; at < w; at++) {
                        const V bar = *(const V *)(zbar + ((i * h + y) * w + at) * k + o);
                        const long from = y * row + at * c;
                        for (int q = 0; q < 9; q++) sum[q] += triple[q / 3][from + q % 3] * bar;
                    }
                for (int q = 0; q < 9; q++) *(V *)(wbar + (9 * nine + q) * k + o) += sum[q];
            }
        }
    }
    free(padded);
}

/* P neighbours in a row, of C channels. */
INLINE void first_image_block(const int P, const int C, long k, const REAL *const *rows, long at, const REAL *weight, REAL *xbar) {
    V sum[4][4] = {0};
    for (int ky = 0; ky < 3; ky++)
        for (int kx = 0; kx < 3; kx++)
            for (long o = 0; o < k; o += LANES)
                for (int p = 0; p < P; p++) {
                    const V bar = *(const V *)(rows[2 - ky] + (at + p + 2 - kx) * k + o);
                    for (int d = 0; d < C; d++) sum[p][d] += bar * *(const V *)(weight + ((ky * 3 + kx) * C + d) * k + o);
                }
    for (int p = 0; p < P; p++)
        for (int d = 0; d < C; d++) {
            REAL total = 0;
            for (int l = 0; l < LANES; l++) total += sum[p][d][l];
            xbar[p * C + d] += total;
        }
}

/* z- -> what is added to the image's cotangent; c is at most 4. */
void first_image(long n, long h, long w, long c, long k, const REAL *zbar, const REAL *weight, REAL *xbar) {
    const long row = (w + 2) * k;
    REAL *ring = calloc(4 * row, sizeof(REAL)); /* three rows with zeros at their ends, and one of zeros */
    for (long i = 0; i < n; i++)
        for (long y = -1; y < h; y++) {
            if (y + 1 < h) memcpy(ring + (y + 1) % 3 * row + k, zbar + (i * h + y + 1) * w * k, w * k * sizeof(REAL));
            if (y < 0) continue;
            const REAL *rows[3];
            for (long r = 0; r < 3; r++) rows[r] = ring + (y + r < 1 || y + r > h ? 3 : (y + r - 1) % 3) * row;
            REAL *to = xbar + (i * h + y) * w * c;
            for (long at = 0; at < w;) {
                const int many = at + 4 <= w;
                switch (many ? c : -c) {
#define CASE(C)                                                                \
    case C: first_image_block(4, C, k, rows, at, weight, to + at * c); break; \
    case -C: first_image_block(1, C, k, rows, at, weight, to + at * c); break;
                    CASE(1) CASE(2) CASE(3) CASE(4)
#undef CASE
                }
                at += many ? 4 : 1;
            }
        }
    free(ring);
}
