/* The C kernels as a program, for processors that are emulated: reads a request from stdin, writes the numbers to stdout.
 *
 * The first number is the size of the Plan (gradient and evaluation) or of the request_t (random numbers) that follows;
 * what pointers point to comes behind it, in the order of the reads below. */
#include <stdio.h>
#include <stdlib.h>

#ifdef RANDOM_NUMBERS
#include "normals.c"
#else
#include "mlp_gradient.c"
#endif

static void *next(int64_t bytes) {
    void *memory = aligned_alloc(64, (size_t)(bytes + 64) / 64 * 64);
    if (memory == NULL || fread(memory, 1, (size_t)bytes, stdin) != (size_t)bytes) exit(2);
    return memory;
}

static int64_t number(void) { return *(int64_t *)next(8); }

static void answer(const void *memory, int64_t bytes) {
    if (fwrite(memory, 1, (size_t)bytes, stdout) != (size_t)bytes) exit(3);
}

int main(void) {
#ifdef RANDOM_NUMBERS
    if (number() != sizeof(request_t)) return 1;
    request_t *request = next(sizeof *request);
    const int64_t bytes = request->steps * request->runs * request->n * (request->kind == INTEGERS ? 8 : 4);
    request->seeds = next(8 * request->runs);
    request->out = malloc((size_t)bytes);
    fill(request);
    answer(request->out, bytes);
#else
    if (number() != sizeof(Plan)) return 1;
    Plan *plan = next(sizeof *plan);
    const int64_t batch = number(), inputs = number(), targets = number(), d = number();
    plan->inputs = next(inputs);
    plan->targets = next(targets);
    const REAL *params = next(d * plan->runs * sizeof(REAL));
    const int64_t *indices = next(8 * plan->runs * batch), *rows = next(8 * plan->examples);
    plan->workspace_size = F(mlp_gradient_workspace)(plan);
    plan->workspace = aligned_alloc(64, (size_t)(plan->threads * plan->workspace_size));
    memset(plan->workspace, 0, (size_t)(plan->threads * plan->workspace_size));
    REAL *grad = malloc(d * plan->runs * sizeof(REAL)), loss[8], norm[8];
    if (plan->runs > 8 || F(mlp_gradient)(plan, params, d, indices, batch, batch, grad, d, loss, norm) != OK) return 4;
    answer(grad, d * plan->runs * sizeof(REAL));
    answer(loss, plan->runs * sizeof(REAL));
    answer(norm, plan->runs * sizeof(REAL));
    double *sums = malloc(plan->runs * (plan->examples + 1) * 2 * sizeof(double)), total[8], wrong[8];
    F(mlp_evaluate)(plan, params, d, rows, plan->loss == CROSS_ENTROPY ? plan->targets : NULL, sums, total, wrong);
    answer(total, plan->runs * sizeof(double));
#endif
    return 0;
}
