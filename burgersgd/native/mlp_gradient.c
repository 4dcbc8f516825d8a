/* Mini-batch loss and gradient of a small network, for R independent runs one after the other.
 *
 * The network is (2.2)-(2.4): z_l = sigma(W_l z_{l-1} + b_l), the last layer affine. One run's parameters are one
 * vector W_1 (row-major [out, in]), b_1, W_2, b_2, ...; its gradient has the same layout. In front of it may stand the two
 * convolutional layers of LeNet-5 (convolutions.c): their parameters come first, their features are the inputs.
 *
 * Eager PyTorch spends most of such a step on dispatch. Here a run is: gather the rows of the batch, three kinds of
 * matrix product per layer (Z = A W^T + b, dW = dZ^T A, dA = dZ W), and a few passes over the activations.
 * - Every product has the form C[i, :] = c0 + sum_k A(i, k) B[k, :]: broadcast one number of A, multiply it with a few
 *   vectors of B, keep a tile of C in registers. Activations and their gradients are batch-major with rows padded to whole
 *   vectors; W is copied (transposed for the forward product) one panel of columns at a time, which stays in cache.
 * - An element of C is always summed over k = 0, 1, 2, ...: the result does not depend on the tile it fell into, nor on
 *   the number of runs or threads (threads share out whole runs).
 * - No -ffast-math: NaN and infinity travel to the loss and the norm, on which divergence detection relies.
 * Padding lanes hold numbers nobody reads (they may become NaN); partial stores keep them out of the gradient.
 *
 * This file includes itself, for float or, with DOUBLE defined, for double. Vectors are GCC vector extensions of the machine's width. */
#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { MAX_LAYERS = 16 };
enum activation { IDENTITY, RELU, TANH };
enum loss { CROSS_ENTROPY, SQUARED_ERROR, LOGISTIC };
enum status { OK, INDEX_OUT_OF_RANGE, BATCH_OUT_OF_RANGE };

typedef struct { /* mirrored by native_gradient._Plan */
    int64_t layers, widths[MAX_LAYERS + 1];
    int64_t activation, loss;
    int64_t examples, runs, max_batch, threads;
    const void *inputs, *targets;
    void *workspace;              /* threads * workspace_size bytes, aligned to 64 */
    int64_t workspace_size;       /* bytes for one thread, from mlp_gradient_workspace_* */
    int64_t team;                 /* threads that share the work of one run; more than one only where threads is 1 */
    int64_t channels, height, width, padding; /* of images that go through the convolutions first; no channels: none do */
} Plan;

typedef struct { /* sizes of the convolutional layers: padded image, pooled first layer, pooled second layer */
    int64_t channels, height, width, h1, w1, h2, w2;
} Images;

static inline Images images_of(const Plan *plan) {
    Images s = {plan->channels, plan->height + 2 * plan->padding, plan->width + 2 * plan->padding, 0, 0, 0, 0};
    s.h1 = (s.height - 4) / 2, s.w1 = (s.width - 4) / 2;
    s.h2 = (s.h1 - 4) / 2, s.w2 = (s.w1 - 4) / 2;
    return s;
}

typedef struct { /* several steps of all runs; mirrored by engines/native._Steps. Arrays are [runs, ...] or [steps, ...] */
    const Plan *gradient;
    void (*update)(const void *plan, const void *coefficients, uint64_t number, int64_t run, const void *grad, double norm);
    const void *update_plan;
    const void *at;               /* [runs, d]: the vector of the state where gradients are taken */
    void *grad;                   /* threads * d numbers */
    int64_t d;
    double clip_norm;             /* longest gradient, infinity: any */
    int64_t first, steps;         /* gradient evaluations [first, first + steps) */
    const int64_t *sizes;         /* [steps]: examples in the batch */
    const int64_t *indices;       /* [steps, runs, batch] with these strides */
    int64_t indices_step, indices_run;
    const void *coefficients;     /* [steps, fields, runs] */
    int64_t coefficients_step;
    uint8_t *alive;               /* and the other records of training/fleet.py, [runs] each */
    int64_t *diverged_at;
    void *last_loss, *loss_sum, *grad_norm;
    const void *loss_limit;
} Steps;

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define PANEL 4 /* vectors in a panel of columns */
#define TILE_ROWS(vectors) ((vectors) == 4 ? 6 : (vectors) == 3 ? 8 : 12) /* at most 24 of the 32 registers add up */
#else
#ifdef __AVX2__
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define PANEL 2
#define TILE_ROWS(vectors) ((vectors) == 2 ? 6 : 12) /* 12 of the 16 registers */
#endif
/* for (int64_t i = 0; i < count; i++) body, shared out among the team: what it computes must not depend on that. */
#ifdef _OPENMP
#define TEAM_FOR(count, ...)                                                                  \
    if (team > 1) {                                                                           \
        _Pragma("omp parallel for num_threads(team) schedule(static)")                        \
        for (int64_t i = 0; i < (count); i++) __VA_ARGS__                                     \
    } else                                                                                    \
        for (int64_t i = 0; i < (count); i++) __VA_ARGS__
#define TEAM_MEMBER (team > 1 ? omp_get_thread_num() : 0)
#else
#define TEAM_FOR(count, ...) for (int64_t i = 0; i < (count); i++) __VA_ARGS__
#define TEAM_MEMBER 0
#endif
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define CONCAT(a, b) a##b
#define WITH_SUFFIX(name, suffix) CONCAT(name, suffix)
#define F(name) WITH_SUFFIX(name, SUFFIX)

#ifdef DOUBLE /* compiled one at a time: a second each */
#define REAL double
#define INTEGER int64_t
#define SUFFIX _f64
#else
#define REAL float
#define INTEGER int32_t
#define SUFFIX _f32
#endif
#include "mlp_gradient.c"

#else /* the template, once per REAL */

#define LANES ((int64_t)(VECTOR_BYTES / sizeof(REAL)))
typedef REAL F(Vector) __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL F(Unaligned) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER F(Mask) __attribute__((vector_size(VECTOR_BYTES)));
#define Vector F(Vector)
#define Mask F(Mask)
#define LOAD(p) ((Vector)*(const F(Unaligned) *)(p))
#define STORE(p, v) (*(F(Unaligned) *)(p) = (F(Unaligned))(v))
#define SELECT(mask, yes, no) F(select)(mask, yes, no)

INLINE Vector F(select)(Mask mask, Vector yes, Vector no) { return (Vector)((mask & (Mask)yes) | (~mask & (Mask)no)); }

INLINE int64_t F(vectors)(int64_t n) { return (n + LANES - 1) / LANES; }

/* Row stride of a [batch, n] array: whole vectors, and no multiple of 1 KiB, whose rows would share cache sets. */
INLINE int64_t F(stride)(int64_t n) {
    int64_t stride = F(vectors)(n) * LANES;
    return stride * sizeof(REAL) % 1024 ? stride : stride + LANES;
}

INLINE Mask F(lane_numbers)(void) {
    Mask lane;
    UNROLL for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane;
}

/* Lane i is lane which[i] of a followed by b. */
INLINE Vector F(shuffle)(Vector a, Vector b, Mask which) {
#ifdef __clang__
    Vector v;
    UNROLL for (int i = 0; i < LANES; i++) v[i] = which[i] < LANES ? a[which[i] % LANES] : b[which[i] % LANES];
    return v;
#else
    return __builtin_shuffle(a, b, which);
#endif
}

INLINE Vector F(load_some)(const REAL *p, int64_t n) {
    if (n >= LANES) return LOAD(p);
    Vector v = {0};
    if (n > 0) memcpy(&v, p, n * sizeof(REAL));
    return v;
}

static __attribute__((noinline)) void F(store_some)(REAL *p, Vector v, int64_t n) { memcpy(p, &v, n * sizeof(REAL)); }

INLINE void F(copy_row)(REAL *restrict to, const REAL *restrict from, int64_t n) {
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) STORE(to + j, LOAD(from + j));
    if (j < n) STORE(to + j, F(load_some)(from + j, n - j));
}

/* ---------------------------------------------------------------------------------------------- elementary functions */

/* ((c[0] x + c[1]) x + c[2]) x + ... */
#define POLYNOMIAL(x, ...) F(polynomial)(x, (const REAL[]){__VA_ARGS__}, sizeof((const REAL[]){__VA_ARGS__}) / sizeof(REAL))
INLINE Vector F(polynomial)(Vector x, const REAL *c, const int terms) {
    Vector y = c[0] - (Vector){0};
    UNROLL for (int i = 1; i < terms; i++) y = y * x + c[i];
    return y;
}

/* exp(x) = 2^n exp(r), |r| <= log(2) / 2, to about an ulp. Saturates where exp(x) would stop being a normal number:
 * the arguments here are <= 0 (softmax) or small (tanh). A NaN passes every comparison. */
INLINE Vector F(vector_exp)(Vector x) {
    const int is_float = sizeof(REAL) == 4, fraction_bits = is_float ? 23 : 52, exponent_bias = is_float ? 127 : 1023;
    const REAL lowest = is_float ? (REAL)-87.3 : (REAL)-708.3;
    const REAL rounding = is_float ? (REAL)0x1.8p23 : (REAL)0x1.8p52; /* adding it rounds to an integer */
    x = SELECT(x < lowest, lowest - (Vector){0}, x);
    Vector shifted = x * (REAL)1.44269504088896340736 + rounding, n = shifted - rounding, y;
    Vector r = x - n * (REAL)0.693145751953125; /* log(2) in two parts; n times the first is exact */
    r = r - n * (REAL)1.42860682030941723212e-6;
    if (is_float) /* Cephes' expf */
        y = POLYNOMIAL(r, 1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                       5.0000001201e-1f);
    else /* Taylor: the next term is below 1e-17 */
        y = POLYNOMIAL(r, 1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040,
                       1. / 720, 1. / 120, 1. / 24, 1. / 6, 1. / 2);
    y = y * (r * r) + r + (REAL)1;
    Mask power = ((Mask)shifted - (Mask)(rounding - (Vector){0}) + exponent_bias) << fraction_bits;
    return y * (Vector)power;
}

INLINE Vector F(vector_tanh)(Vector x) {
    const REAL one_from = sizeof(REAL) == 4 ? (REAL)9.02 : (REAL)19.07; /* tanh rounds to 1 there */
    Vector size = SELECT(x < 0, -x, x), s = x * x, near;
    size = SELECT(size > one_from, one_from - (Vector){0}, size);
    Vector far = (REAL)1 - (REAL)2 / (F(vector_exp)(size + size) + (REAL)1);
    far = SELECT(x < 0, -far, far);
    if (sizeof(REAL) == 4) /* Cephes' tanhf and tanh near 0 */
        near = POLYNOMIAL(s, -5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                          -3.33332819422e-1f);
    else
        near = POLYNOMIAL(s, -9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3) /
               POLYNOMIAL(s, 1, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3);
    near = near * s * x + x;
    return SELECT(size < (REAL)0.625, near, far);
}

/* Sum or maximum over the lanes, in every lane. */
#define ACROSS_LANES(v, combine)                                                        \
    UNROLL for (int step = 1; step < LANES; step *= 2) {                                \
        Vector other = F(shuffle)(v, v, F(lane_numbers)() ^ (INTEGER)step);         \
        v = combine;                                                                    \
    }

/* ---------------------------------------------------------------------------------------------------- matrix products */

/* C[i, :] = bias + sum_k A(i, k) B[k, :] for `rows` rows and `vectors` vectors of columns (both constants after
 * inlining); A(i, k) = a[i * a_row + k * a_k]. Of the last vector only `last` lanes are stored. */
INLINE void F(tile)(const int rows, const int vectors, int64_t depth, const REAL *restrict a, int64_t a_row, int64_t a_k,
                    const REAL *restrict b, int64_t b_k, const REAL *restrict bias, REAL *restrict c, int64_t c_row,
                    int64_t last) {
    Vector sum[12][PANEL];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = bias ? LOAD(bias + j * LANES) : (Vector){0};
    for (int64_t k = 0; k < depth; k++, a += a_k, b += b_k) {
        Vector row[PANEL];
        UNROLL for (int j = 0; j < vectors; j++) row[j] = LOAD(b + j * LANES);
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < vectors; j++) sum[i][j] += a[i * a_row] * row[j];
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) {
            Vector v = sum[i][j];
            if (j < vectors - 1 || last == LANES) STORE(c + i * c_row + j * LANES, v);
            else F(store_some)(c + i * c_row + j * LANES, v, last);
        }
}

/* All rows of one panel of columns. */
#define ROWS_OF_PANEL(vectors)                                                                                        \
    static __attribute__((noinline)) void F(CONCAT(panel_, vectors))(                                                 \
        int64_t rows, int64_t depth, const REAL *a, int64_t a_row, int64_t a_k, const REAL *b, int64_t b_k,           \
        const REAL *bias, REAL *c, int64_t c_row, int64_t last) {                                                     \
        int64_t i = 0;                                                                                                \
        for (; i + TILE_ROWS(vectors) <= rows; i += TILE_ROWS(vectors))                                               \
            F(tile)(TILE_ROWS(vectors), vectors, depth, a + i * a_row, a_row, a_k, b, b_k, bias, c + i * c_row, c_row,\
                    last);                                                                                            \
        for (; i + 4 <= rows; i += 4)                                                                                 \
            F(tile)(4, vectors, depth, a + i * a_row, a_row, a_k, b, b_k, bias, c + i * c_row, c_row, last);          \
        for (; i + 2 <= rows; i += 2)                                                                                 \
            F(tile)(2, vectors, depth, a + i * a_row, a_row, a_k, b, b_k, bias, c + i * c_row, c_row, last);          \
        if (i < rows)                                                                                                 \
            F(tile)(1, vectors, depth, a + i * a_row, a_row, a_k, b, b_k, bias, c + i * c_row, c_row, last);          \
    }
ROWS_OF_PANEL(1)
ROWS_OF_PANEL(2)
#if PANEL == 4
ROWS_OF_PANEL(3)
ROWS_OF_PANEL(4)
#endif

INLINE void F(panel)(int64_t columns, int whole, int64_t rows, int64_t depth, const REAL *a, int64_t a_row, int64_t a_k,
                     const REAL *b, int64_t b_k, const REAL *bias, REAL *c, int64_t c_row) {
    int64_t vectors = F(vectors)(columns);
    int64_t last = whole ? LANES : columns - (vectors - 1) * LANES;
    switch (vectors) {
    case 1: F(panel_1)(rows, depth, a, a_row, a_k, b, b_k, bias, c, c_row, last); break;
    case 2: F(panel_2)(rows, depth, a, a_row, a_k, b, b_k, bias, c, c_row, last); break;
#if PANEL == 4
    case 3: F(panel_3)(rows, depth, a, a_row, a_k, b, b_k, bias, c, c_row, last); break;
    case 4: F(panel_4)(rows, depth, a, a_row, a_k, b, b_k, bias, c, c_row, last); break;
#endif
    }
}

INLINE int64_t F(panels)(int64_t n) { return (n + PANEL * LANES - 1) / (PANEL * LANES); }

INLINE int64_t F(panel_columns)(int64_t first, int64_t n) {
    return n - first < PANEL * LANES ? n - first : PANEL * LANES;
}

/* to[k, :] = rows first .. first + count - 1 of w [out, in] at column k: a panel of W^T, zeros in the padding. */
static void F(transpose_panel)(const REAL *w, int64_t in, int64_t first, int64_t count, REAL *to) {
    int64_t vectors = F(vectors)(count), width = vectors * LANES;
    Mask lane = F(lane_numbers)();
    for (int64_t k = 0; k < in; k += LANES)
        for (int64_t v = 0; v < vectors; v++) {
            int64_t rows = count - v * LANES;
            const REAL *from = w + (first + v * LANES) * in + k;
            Vector block[LANES];
            if (rows >= LANES && k + LANES <= in) {
                UNROLL for (int i = 0; i < LANES; i++) block[i] = LOAD(from + i * in);
            } else {
                UNROLL for (int i = 0; i < LANES; i++)
                    block[i] = i < rows ? F(load_some)(from + i * in, in - k) : (Vector){0};
            }
            /* Swap the off-diagonal quarters of ever larger blocks: after the step s, bit s of row and lane are swapped. */
            UNROLL for (int s = 1; s < LANES; s *= 2) {
                Mask odd = (lane & (INTEGER)s) != 0, low = lane + (odd & (INTEGER)(LANES - s));
                Mask high = low + (INTEGER)s;
                UNROLL for (int i = 0; i < LANES; i++)
                    if (!(i & s)) {
                        Vector upper = block[i], lower = block[i + s];
                        block[i] = F(shuffle)(upper, lower, low);
                        block[i + s] = F(shuffle)(upper, lower, high);
                    }
            }
            REAL *target = to + k * width + v * LANES;
            if (k + LANES <= in) {
                UNROLL for (int i = 0; i < LANES; i++) STORE(target + i * width, block[i]);
            } else {
                UNROLL for (int i = 0; i < LANES; i++)
                    if (k + i < in) STORE(target + i * width, block[i]);
            }
        }
}

/* ------------------------------------------------------------------------------------------------------------- passes */

static void F(activate)(enum activation activation, int64_t batch, int64_t stride, REAL *z) {
    int64_t n = batch * stride;
    if (activation == RELU)
        for (int64_t j = 0; j < n; j += LANES) {
            Vector v = LOAD(z + j);
            STORE(z + j, SELECT(v < 0, (Vector){0}, v)); /* keeps NaN */
        }
    if (activation == TANH)
        for (int64_t j = 0; j < n; j += LANES) STORE(z + j, F(vector_tanh)(LOAD(z + j)));
}

/* dz = dz * sigma'(z), told from sigma(z). */
static void F(activate_backward)(enum activation activation, int64_t batch, int64_t stride, const REAL *z, REAL *dz) {
    int64_t n = batch * stride;
    if (activation == RELU)
        for (int64_t j = 0; j < n; j += LANES)
            STORE(dz + j, SELECT(LOAD(z + j) <= 0, (Vector){0}, LOAD(dz + j)));
    if (activation == TANH)
        for (int64_t j = 0; j < n; j += LANES) {
            Vector v = LOAD(z + j);
            STORE(dz + j, LOAD(dz + j) * ((REAL)1 - v * v));
        }
}

/* Mean loss of the batch; outputs z [batch, stride] become their gradient. */
static double F(cross_entropy)(int64_t batch, int64_t n, int64_t stride, const int64_t *targets, const int64_t *indices,
                               REAL *outputs) {
    const Vector lowest = -(REAL)INFINITY - (Vector){0};
    const Mask lane = F(lane_numbers)();
    int64_t vectors = F(vectors)(n);
    const Mask in_last = lane < (INTEGER)(n - (vectors - 1) * LANES);
    REAL scale = (REAL)1 / (REAL)batch;
    double total = 0;
    for (int64_t i = 0; i < batch; i++) {
        REAL *z = outputs + i * stride;
        int64_t target = targets[indices[i]];
        double target_output = z[target];
        Vector largest = lowest, sum = {0};
        for (int64_t j = 0; j < vectors; j++) {
            Vector v = LOAD(z + j * LANES);
            if (j == vectors - 1) v = SELECT(in_last, v, lowest);
            largest = SELECT(v > largest, v, largest); /* overlooks NaN: it comes back in the sum */
        }
        ACROSS_LANES(largest, SELECT(largest > other, largest, other))
        for (int64_t j = 0; j < vectors; j++) {
            Vector v = F(vector_exp)(LOAD(z + j * LANES) - largest);
            if (j == vectors - 1) v = SELECT(in_last, v, (Vector){0});
            sum += v;
            STORE(z + j * LANES, v);
        }
        ACROSS_LANES(sum, sum + other)
        Vector factor = scale / sum;
        for (int64_t j = 0; j < vectors; j++) STORE(z + j * LANES, LOAD(z + j * LANES) * factor);
        z[target] -= scale;
        total += (sizeof(REAL) == 4 ? (double)logf(sum[0]) : log(sum[0])) + ((double)largest[0] - target_output);
    }
    return total / (double)batch;
}

static double F(squared_error)(int64_t batch, int64_t n, int64_t stride, const REAL *targets, const int64_t *indices,
                               REAL *outputs) {
    REAL scale = (REAL)2 / (REAL)batch;
    double total = 0;
    for (int64_t i = 0; i < batch; i++) {
        REAL *z = outputs + i * stride;
        const REAL *target = targets + indices[i] * n;
        for (int64_t j = 0; j < n; j++) {
            REAL error = z[j] - target[j];
            total += (double)error * (double)error;
            z[j] = scale * error;
        }
    }
    return total / (double)batch;
}

static double F(logistic)(int64_t batch, int64_t stride, const REAL *targets, const int64_t *indices, REAL *outputs) {
    double total = 0;
    for (int64_t i = 0; i < batch; i++) {
        double target = targets[indices[i]];
        double u = -target * (double)outputs[i * stride];
        double e = exp(-fabs(u)); /* NaN if u is */
        total += (u > 0 ? u : 0) + log1p(e);
        outputs[i * stride] = (REAL)(-target * (u > 0 ? 1 : e) / (1 + e) / (double)batch);
    }
    return total / (double)batch;
}

static void F(sum_rows)(int64_t batch, int64_t n, int64_t stride, const REAL *dz, REAL *grad) {
    for (int64_t j = 0; j < n; j += LANES) {
        Vector even = {0}, odd = {0};
        int64_t i = 0;
        for (; i + 2 <= batch; i += 2) {
            even += LOAD(dz + i * stride + j);
            odd += LOAD(dz + (i + 1) * stride + j);
        }
        if (i < batch) even += LOAD(dz + i * stride + j);
        even += odd;
        memcpy(grad + j, &even, (n - j < LANES ? n - j : LANES) * sizeof(REAL));
    }
}

/* |v|^2: four vectors of partial sums over blocks of 4096 numbers, the blocks added in double. */
static double F(squared_norm)(int64_t n, const REAL *v) {
    double total = 0;
    for (int64_t block = 0; block < n; block += 4096) {
        int64_t end = n < block + 4096 ? n : block + 4096, j = block;
        Vector sum[4] = {{0}};
        for (; j + 4 * LANES <= end; j += 4 * LANES)
            UNROLL for (int k = 0; k < 4; k++) {
                Vector x = LOAD(v + j + k * LANES);
                sum[k] += x * x;
            }
        for (; j < end; j += LANES) {
            Vector x = F(load_some)(v + j, end - j);
            sum[0] += x * x;
        }
        Vector all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        ACROSS_LANES(all, all + other)
        total += (double)all[0];
    }
    return total;
}

#include "convolutions.c"

/* ------------------------------------------------------------------------------------------------------------ one run */

/* Places in a thread's workspace, in numbers: activations of every layer, two gradients, panels of weights, a bias. */
typedef struct {
    int64_t activation[MAX_LAYERS + 1], gradient[2], panel, panel_size, bias, size;
    F(ConvolutionPlaces) convolutions;
} F(Places);

static F(Places) F(places)(const Plan *plan) {
    F(Places) places;
    int64_t next = 0, widest = 0;
    for (int64_t l = 0; l <= plan->layers; l++) {
        places.activation[l] = next;
        next += plan->max_batch * F(stride)(plan->widths[l]);
        if (plan->widths[l] > widest) widest = plan->widths[l];
    }
    for (int i = 0; i < 2; i++) {
        places.gradient[i] = next;
        next += plan->max_batch * F(stride)(widest);
    }
    places.panel = next;
    places.panel_size = F(stride)(widest) * PANEL * LANES; /* of each member of the team */
    next += plan->team * places.panel_size;
    places.bias = next;
    next += F(stride)(widest);
    if (plan->channels) {
        next = (next + 15) / 16 * 16;
        places.convolutions = F(convolution_places)(plan, next);
        next = places.convolutions.size;
    }
    places.size = (next + 64) / 64 * 64;
    return places;
}

/* What Python's mirrors of the two structures must measure. */
int64_t F(mlp_plan_size)(void) { return sizeof(Plan); }
int64_t F(mlp_steps_size)(void) { return sizeof(Steps); }

int64_t F(mlp_gradient_workspace)(const Plan *plan) { return F(places)(plan).size * (int64_t)sizeof(REAL); }

/* Number of W_l's first parameter, for every layer l; the last entry is d. */
static void F(first_parameters)(const Plan *plan, int64_t *first) {
    first[0] = plan->channels ? 6 * (25 * plan->channels + 1) + 16 * (25 * 6 + 1) : 0;
    for (int64_t l = 0; l < plan->layers; l++) first[l + 1] = first[l] + (plan->widths[l] + 1) * plan->widths[l + 1];
}

/* The activations of all layers for the rows of a batch; return the outputs [batch, stride]. */
static REAL *F(forward)(const Plan *plan, REAL *workspace, const REAL *params, const int64_t *indices, int64_t batch) {
    const int64_t *widths = plan->widths, layers = plan->layers, team = plan->team;
    const F(Places) places = F(places)(plan);
    REAL *bias = workspace + places.bias, *inputs = workspace + places.activation[0];
    int64_t first[MAX_LAYERS + 1];
    F(first_parameters)(plan, first);
    if (plan->channels)
        F(features)(plan, workspace, &places.convolutions, params, indices, batch, inputs, F(stride)(widths[0]));
    for (int64_t i = 0; i < batch && !plan->channels; i++)
        F(copy_row)(inputs + i * F(stride)(widths[0]), (const REAL *)plan->inputs + indices[i] * widths[0], widths[0]);
    for (int64_t l = 0; l < layers; l++) { /* Z = A W^T + b */
        int64_t in = widths[l], out = widths[l + 1], stride = F(stride)(out);
        const REAL *w = params + first[l];
        REAL *z = workspace + places.activation[l + 1];
        F(copy_row)(bias, w + in * out, out);
        TEAM_FOR(F(panels)(out), {
            int64_t o = i * PANEL * LANES, columns = F(panel_columns)(o, out);
            REAL *panel = workspace + places.panel + TEAM_MEMBER * places.panel_size;
            F(transpose_panel)(w, in, o, columns, panel);
            F(panel)(columns, 1, batch, in, workspace + places.activation[l], F(stride)(in), 1, panel,
                     F(vectors)(columns) * LANES, bias + o, z + o, stride);
        })
        if (l < layers - 1) F(activate)(plan->activation, batch, stride, z);
    }
    return workspace + places.activation[layers];
}

/* Mean loss of the batch; the outputs become their gradient. */
static double F(mean_loss)(const Plan *plan, const int64_t *indices, int64_t batch, REAL *outputs) {
    int64_t out = plan->widths[plan->layers], stride = F(stride)(out);
    return plan->loss == CROSS_ENTROPY   ? F(cross_entropy)(batch, out, stride, plan->targets, indices, outputs)
           : plan->loss == SQUARED_ERROR ? F(squared_error)(batch, out, stride, plan->targets, indices, outputs)
                                         : F(logistic)(batch, stride, plan->targets, indices, outputs);
}

static void F(run)(const Plan *plan, REAL *workspace, const REAL *params, const int64_t *indices, int64_t batch, REAL *grad,
                   REAL *loss, REAL *norm) {
    const int64_t *widths = plan->widths, layers = plan->layers, team = plan->team;
    const F(Places) places = F(places)(plan);
    REAL *dz = F(forward)(plan, workspace, params, indices, batch);
    int64_t first[MAX_LAYERS + 1];
    F(first_parameters)(plan, first);
    *loss = (REAL)F(mean_loss)(plan, indices, batch, dz);

    for (int64_t l = layers - 1; l >= 0; l--) {
        int64_t in = widths[l], in_stride = F(stride)(in), out = widths[l + 1], stride = F(stride)(out);
        const REAL *w = params + first[l], *a = workspace + places.activation[l];
        REAL *dw = grad + first[l];
        TEAM_FOR(F(panels)(in), { /* dW = dZ^T A */
            int64_t k = i * PANEL * LANES;
            F(panel)(F(panel_columns)(k, in), 0, out, batch, dz, 1, stride, a + k, in_stride, NULL, dw + k, in);
        })
        F(sum_rows)(batch, out, stride, dz, dw + in * out);
        if (l == 0 && !plan->channels) break;
        REAL *da = workspace + places.gradient[l % 2]; /* dA = dZ W */
        TEAM_FOR(F(panels)(in), {
            int64_t k = i * PANEL * LANES, columns = F(panel_columns)(k, in), width = F(vectors)(columns) * LANES;
            REAL *panel = workspace + places.panel + TEAM_MEMBER * places.panel_size;
            for (int64_t o = 0; o < out; o++) F(copy_row)(panel + o * width, w + o * in + k, columns);
            F(panel)(columns, 1, batch, out, dz, stride, 1, panel, width, NULL, da + k, in_stride);
        })
        if (l == 0)
            F(convolutions_backward)(plan, workspace, &places.convolutions, params, indices, batch, a, da, in_stride, grad);
        else
            F(activate_backward)(plan->activation, batch, in_stride, a, da);
        dz = da;
    }
    *norm = (REAL)sqrt(F(squared_norm)(first[layers], grad)); /* torch.sqrt may round otherwise, by the number of runs */
}

int64_t F(mlp_gradient)(const Plan *plan, const REAL *params, int64_t params_row, const int64_t *indices,
                        int64_t indices_row, int64_t batch, REAL *grad, int64_t grad_row, REAL *loss,
                        REAL *norm) {
    if (batch < 1 || batch > plan->max_batch) return BATCH_OUT_OF_RANGE;
    for (int64_t r = 0; r < plan->runs; r++)
        for (int64_t i = 0; i < batch; i++)
            if ((uint64_t)indices[r * indices_row + i] >= (uint64_t)plan->examples) return INDEX_OUT_OF_RANGE;
    char *workspace = plan->workspace;
#ifdef _OPENMP
    if (plan->threads > 1 && plan->runs > 1) {
#pragma omp parallel for num_threads(plan->threads) schedule(dynamic)
        for (int64_t r = 0; r < plan->runs; r++)
            F(run)(plan, (REAL *)(workspace + omp_get_thread_num() * plan->workspace_size), params + r * params_row,
                   indices + r * indices_row, batch, grad + r * grad_row, loss + r, norm + r);
        return OK;
    }
#endif
    for (int64_t r = 0; r < plan->runs; r++)
        F(run)(plan, (REAL *)workspace, params + r * params_row, indices + r * indices_row, batch, grad + r * grad_row,
               loss + r, norm + r);
    return OK;
}

/* Sum of the losses of all examples; wrong: how many are not put into the class that labels name, where there are labels. */
static void F(evaluate_run)(const Plan *plan, REAL *workspace, const REAL *params, const int64_t *rows, const int64_t *labels,
                            double *loss, double *wrong) {
    int64_t n = plan->widths[plan->layers], stride = F(stride)(n);
    *loss = *wrong = 0;
    for (int64_t first = 0; first < plan->examples; first += plan->max_batch) {
        int64_t batch = plan->examples - first < plan->max_batch ? plan->examples - first : plan->max_batch;
        REAL *outputs = F(forward)(plan, workspace, params, rows + first, batch);
        for (int64_t i = 0; labels && i < batch; i++) {
            const REAL *z = outputs + i * stride;
            int64_t class = plan->loss == LOGISTIC ? z[0] > 0 : 0;
            for (int64_t j = 1; j < n; j++) /* the first of the largest; NaN counts as the largest, as in torch.argmax */
                if (z[j] > z[class] || (isnan(z[j]) && !isnan(z[class]))) class = j;
            *wrong += class != labels[first + i];
        }
        *loss += F(mean_loss)(plan, rows + first, batch, outputs) * (double)batch;
    }
}

/* Of every run; rows are 0, 1, ..., examples - 1. */
void F(mlp_evaluate)(const Plan *plan, const REAL *params, int64_t params_row, const int64_t *rows, const int64_t *labels,
                     double *loss, double *wrong) {
    char *workspace = plan->workspace;
#ifdef _OPENMP
    if (plan->threads > 1) {
#pragma omp parallel for num_threads(plan->threads) schedule(dynamic)
        for (int64_t r = 0; r < plan->runs; r++)
            F(evaluate_run)(plan, (REAL *)(workspace + omp_get_thread_num() * plan->workspace_size), params + r * params_row,
                            rows, labels, loss + r, wrong + r);
        return;
    }
#endif
    for (int64_t r = 0; r < plan->runs; r++)
        F(evaluate_run)(plan, (REAL *)workspace, params + r * params_row, rows, labels, loss + r, wrong + r);
}

/* All steps of one run, as Fleet._eager_step does them. */
static void F(run_steps)(const Steps *s, int64_t r, REAL *workspace, REAL *grad) {
    REAL *last_loss = (REAL *)s->last_loss + r, *loss_sum = (REAL *)s->loss_sum + r, *grad_norm = (REAL *)s->grad_norm + r;
    const REAL limit = ((const REAL *)s->loss_limit)[r];
    for (int64_t k = 0; k < s->steps; k++) {
        REAL loss, norm;
        if (s->alive[r]) {
            F(run)(s->gradient, workspace, (const REAL *)s->at + r * s->d,
                   s->indices + k * s->indices_step + r * s->indices_run, s->sizes[k], grad, &loss, &norm);
            if (loss <= limit && isfinite(norm)) {
                *last_loss = loss, *grad_norm = norm;
                REAL taken = norm; /* of the gradient that the update gets */
                if (isfinite(s->clip_norm)) { /* training/gradients.clipped */
                    if (taken > (REAL)s->clip_norm) taken = (REAL)s->clip_norm;
                    REAL factor = ((REAL)1 / norm) * (REAL)s->clip_norm;
                    if (factor < 1)
                        for (int64_t j = 0; j < s->d; j++) grad[j] *= factor;
                }
                s->update(s->update_plan, (const REAL *)s->coefficients + k * s->coefficients_step,
                          (uint64_t)(s->first + k + 1), r, grad, taken);
            } else {
                s->alive[r] = 0;
                s->diverged_at[r] = s->first + k;
            }
        }
        *loss_sum += *last_loss;
    }
}

/* A run goes through all steps before the next one: its vectors stay in cache. */
int64_t F(mlp_steps)(const Steps *s) {
    const Plan *plan = s->gradient;
    for (int64_t k = 0; k < s->steps; k++) {
        if (s->sizes[k] < 1 || s->sizes[k] > plan->max_batch) return BATCH_OUT_OF_RANGE;
        for (int64_t r = 0; r < plan->runs; r++)
            for (int64_t i = 0; i < s->sizes[k]; i++)
                if ((uint64_t)s->indices[k * s->indices_step + r * s->indices_run + i] >= (uint64_t)plan->examples)
                    return INDEX_OUT_OF_RANGE;
    }
#ifdef _OPENMP
    if (plan->threads > 1) {
#pragma omp parallel for num_threads(plan->threads) schedule(dynamic)
        for (int64_t r = 0; r < plan->runs; r++) {
            int thread = omp_get_thread_num();
            F(run_steps)(s, r, (REAL *)((char *)plan->workspace + thread * plan->workspace_size),
                         (REAL *)s->grad + thread * s->d);
        }
        return OK;
    }
#endif
    for (int64_t r = 0; r < plan->runs; r++) F(run_steps)(s, r, plan->workspace, s->grad);
    return OK;
}

#undef LANES
#undef Vector
#undef Mask
#undef LOAD
#undef STORE
#undef SELECT
#undef ROWS_OF_PANEL
#undef ACROSS_LANES
#undef POLYNOMIAL
#endif
