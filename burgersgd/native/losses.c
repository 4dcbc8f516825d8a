/* Activations, losses and sums, with their gradients: part of mlp_gradient.c. */

static void F(activate)(enum activation activation, int64_t n, REAL *z) {
    if (activation == RELU)
        for (int64_t j = 0; j < n; j += LANES) {
            Vector v = LOAD(z + j);
            STORE(z + j, SELECT(v < 0, (Vector){0}, v)); /* keeps NaN */
        }
    if (activation == TANH)
        for (int64_t j = 0; j < n; j += LANES) STORE(z + j, F(vector_tanh)(LOAD(z + j)));
}

/* dz = dz * sigma'(z) in some columns; the derivative is computed from sigma(z). */
static void F(activate_backward)(enum activation activation, int64_t batch, int64_t columns, int64_t stride, const REAL *z,
                                 REAL *dz) {
    for (int64_t i = 0; i < batch; i++, z += stride, dz += stride) {
        if (activation == RELU)
            for (int64_t j = 0; j < columns; j += LANES)
                STORE(dz + j, SELECT(LOAD(z + j) <= 0, (Vector){0}, LOAD(dz + j)));
        if (activation == TANH)
            for (int64_t j = 0; j < columns; j += LANES) {
                Vector v = LOAD(z + j);
                STORE(dz + j, LOAD(dz + j) * ((REAL)1 - v * v));
            }
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

enum { NORM_BLOCK = 4096 };

/* |v|^2 of at most a block of numbers: four vectors of partial sums. */
static double F(squared_norm)(int64_t n, const REAL *v) {
    int64_t j = 0;
    Vector sum[4] = {{0}};
    for (; j + 4 * LANES <= n; j += 4 * LANES)
        UNROLL for (int k = 0; k < 4; k++) {
            Vector x = LOAD(v + j + k * LANES);
            sum[k] += x * x;
        }
    for (; j < n; j += LANES) {
        Vector x = F(load_some)(v + j, n - j);
        sum[0] += x * x;
    }
    Vector all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    ACROSS_LANES(all, all + other)
    return (double)all[0];
}
