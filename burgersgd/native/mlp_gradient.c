/* Mini-batch loss and gradient of a small network, for R independent runs one after the other.
 *
 * The network is (2.2)-(2.4): z_l = sigma(W_l z_{l-1} + b_l), the last layer affine. One run's parameters are one
 * vector W_1 (row-major [out, in]), b_1, W_2, b_2, ...; its gradient has the same layout. In front of it may stand the two
 * convolutional layers of LeNet-5 (convolutions.c): their parameters come first, their features are the inputs.
 *
 * Eager PyTorch spends most of such a step on dispatch. Here a run is: gather the rows of the batch, three kinds of
 * matrix product per layer (Z^T = W A^T + b, dW = dZ^T A, dA = dZ W), and a few passes over the activations.
 * - Every product has the form C[i, :] = c0 + sum_k A(i, k) B[k, :]: broadcast one number of A, multiply it with a few
 *   vectors of B, keep a tile of C in registers. B is a panel of columns that stays in cache. Forwards it holds activations,
 *   with a vector of examples for each feature, so that W is read as it lies in memory, once; the activations, much smaller
 *   than W in large networks, are transposed for the backward pass. There they and their gradients are batch-major, with
 *   rows padded to whole vectors, and a panel of a large W is copied.
 * - An element of C is always summed over k = 0, 1, 2, ...: the result does not depend on the tile it fell into, nor on
 *   the number of runs or threads (which share out whole runs, or the columns, outputs and examples of one).
 * - No -ffast-math: NaN and infinity travel to the loss and the norm, on which divergence detection relies.
 * Padding lanes hold numbers nobody reads (they may become NaN); partial stores keep them out of the gradient.
 *
 * Compiled for float or, with DOUBLE defined, for double: a second each. This file holds what Python calls; network.c
 * is one run, made of products.c, losses.c and convolutions.c, and vectors.c is the arithmetic of them all. */

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

#include "vectors.c"
#include "products.c"
#include "losses.c"
#include "convolutions.c"
#include "network.c"

/* Sizes that Python's mirrors of the two structures must have. */
int64_t F(mlp_plan_size)(void) { return sizeof(Plan); }
int64_t F(mlp_steps_size)(void) { return sizeof(Steps); }

int64_t F(mlp_gradient_workspace)(const Plan *plan) { return F(places)(plan).size * (int64_t)sizeof(REAL); }

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

/* sums[0]: sum of the losses of at most max_batch examples; sums[1]: number of those whose class differs from labels, 0
 * where labels is NULL. */
static void F(evaluate_part)(const Plan *plan, REAL *workspace, const REAL *params, const int64_t *rows,
                             const int64_t *labels, int64_t first, double *sums) {
    int64_t n = plan->widths[plan->layers], stride = F(stride)(n);
    int64_t batch = plan->examples - first < plan->max_batch ? plan->examples - first : plan->max_batch;
    REAL *outputs = F(forward)(plan, workspace, params, rows + first, batch, 0);
    sums[1] = 0;
    for (int64_t i = 0; labels && i < batch; i++) {
        const REAL *z = outputs + i * stride;
        int64_t class = plan->loss == LOGISTIC ? z[0] > 0 : 0;
        for (int64_t j = 1; j < n; j++) /* the first of the largest; NaN counts as the largest, as in torch.argmax */
            if (z[j] > z[class] || (isnan(z[j]) && !isnan(z[class]))) class = j;
        sums[1] += class != labels[first + i];
    }
    sums[0] = F(mean_loss)(plan, rows + first, batch, outputs) * (double)batch;
}

/* The same for all examples of every run; rows are 0, 1, ..., examples - 1. sums: memory for 2 numbers for every part of
 * every run. The parts are distributed over the threads, and their sums are added in order. */
void F(mlp_evaluate)(const Plan *plan, const REAL *params, int64_t params_row, const int64_t *rows, const int64_t *labels,
                     double *sums, double *loss, double *wrong) {
    const int64_t parts = (plan->examples + plan->max_batch - 1) / plan->max_batch, team = plan->threads;
    TEAM_FOR(plan->runs * parts, {
        REAL *workspace = (REAL *)((char *)plan->workspace + TEAM_MEMBER * plan->workspace_size);
        F(evaluate_part)(plan, workspace, params + i / parts * params_row, rows, labels, i % parts * plan->max_batch,
                         sums + 2 * i);
    })
    for (int64_t r = 0; r < plan->runs; r++) {
        loss[r] = wrong[r] = 0;
        for (int64_t i = r * parts; i < (r + 1) * parts; i++) loss[r] += sums[2 * i], wrong[r] += sums[2 * i + 1];
    }
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
