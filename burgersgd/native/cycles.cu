/* One run per block of threads: whole cycles of a rule in one launch. The vector at which gradients are taken, the
 * gradient and the activations are in shared memory; the other vectors of the state too (ALL_SHARED), or they stay in
 * global memory, from which a multiprocessor's second-level cache serves them, so that two runs share a multiprocessor
 * and hide one another's waits.
 *
 * The same source is CUDA (NVRTC) and, with a single thread, C++ for the CPU, so that its arithmetic is tested without
 * a GPU. training/engines/persistent.py writes before it device.cu, and before that N_LAYERS, WIDTHS, CHUNK (examples
 * that are in shared memory at once), MOST_STEPS, N_THREADS, N_BLOCKS (of a multiprocessor), N_FIELDS, FIELD_AT (the
 * vector at which gradients are taken), ALL_SHARED, N_COEFFICIENTS, NOISE, NOISY, ACTIVATION, LOSS, and the rule's
 * lines: RULE_COEFFICIENTS, RULE_STEP, STEP_STORES(k) and CYCLE_STORES(k) (whether they change vector k),
 * RULE_END_CYCLE, and RULE_NORMED, what is meant by the norm where that is not the gradient. A run's numbers are the
 * same bits alone and beside others. Every sum over k = 0, 1, 2, ... is taken in that order with fused multiply-adds. */
enum activation { IDENTITY, RELU, TANH }; /* as in mlp_gradient.c */
enum loss { CROSS_ENTROPY, SQUARED_ERROR, LOGISTIC };

#define LARGEST 3.402823466e38f
typedef float real;
DEVICE real lerp(real a, real b, real w) { return w < 0.5f ? a + w * (b - a) : b - (b - a) * (1 - w); }

/* ------------------------------------------------------------------ layout: rows of W padded, the bias in the padding */
#define UP4(n) (((n) + 3) / 4 * 4)
#define ROW(in) (UP4(in) + 4) /* = 4 mod 8 words for in = 0 mod 8: float4 columns fall into different banks */
constexpr int L = N_LAYERS;
constexpr int widths[L + 1] = WIDTHS;
constexpr int size_of(int l) { return UP4(widths[l + 1]) * ROW(widths[l]); }
constexpr int start_of(int l) { return l == 0 ? 0 : start_of(l - 1) + size_of(l - 1); }
constexpr int flat_of(int l) { return l == 0 ? 0 : flat_of(l - 1) + (widths[l - 1] + 1) * widths[l]; }
constexpr int PADDED = start_of(L), D = flat_of(L);
constexpr int act_of(int l) { return l == 0 ? 0 : act_of(l - 1) + CHUNK * ROW(widths[l - 1]); }
constexpr int ACTS = act_of(L + 1);
constexpr int widest(int l) { return l == L ? 0 : (widths[l] > widest(l + 1) ? widths[l] : widest(l + 1)); }
constexpr int DZ = CHUNK * ROW(widest(1));
/* The gradients by the layers' inputs lie in a buffer of their own and, every second one, in the activations behind it,
 * which nobody needs any more; in a second buffer where there is no room for them. */
constexpr bool behind(int l) { return (L - 1 - l) % 2 == 1; }
constexpr bool roomy(int l) { return l < 1 || ((!behind(l) || ACTS - act_of(l + 1) >= CHUNK * ROW(widths[l])) && roomy(l - 1)); }
constexpr bool ROOMY = roomy(L - 1);
constexpr int IN0 = widths[0], ROW0 = ROW(widths[0]);
constexpr int N_SHARED = ALL_SHARED ? N_FIELDS : 1;
constexpr int SHARED_FLOATS = (N_SHARED + 1) * PADDED + ACTS + (ROOMY ? 1 : 2) * DZ + 32 + 2 * CHUNK;
/* Whether vector k is in shared memory. */
#define IS_SHARED(k) (ALL_SHARED || (k) == FIELD_AT)

/* Where number j of the vector W_1, b_1, W_2, ... lies in shared memory. */
template <int l> DEVICE int place_in(int j) {
    constexpr int in = widths[l], out = widths[l + 1];
    const int k = j - flat_of(l);
    if (k < in * out) return start_of(l) + k / in * ROW(in) + k % in;
    return start_of(l) + (k - in * out) * ROW(in) + UP4(in);
}
template <int l> DEVICE int place_from(int j) {
    if constexpr (l + 1 < L) { if (j >= flat_of(l + 1)) return place_from<l + 1>(j); }
    return place_in<l>(j);
}
DEVICE int place(int j) { return place_from<0>(j); }

/* The places of numbers j and j + 1; that of the number after the last one is NOTHING. */
constexpr int NOTHING = UP4(widths[0]) + 1; /* in the padding of the first row, where nothing is read */
template <int l> DEVICE void two_places_from(int j, int *at, int *next) {
    if constexpr (l + 1 < L) {
        if (j >= flat_of(l + 1)) return two_places_from<l + 1>(j, at, next);
    }
    constexpr int in = widths[l], out = widths[l + 1];
    const int k = j - flat_of(l);
    if (k < in * out) {
        const int row = k / in, column = k % in;
        *at = start_of(l) + row * ROW(in) + column;
        *next = column + 1 < in ? *at + 1 : row + 1 < out ? *at + ROW(in) - column : start_of(l) + UP4(in);
    } else {
        const int row = k - in * out;
        *at = start_of(l) + row * ROW(in) + UP4(in);
        *next = row + 1 < out ? *at + ROW(in) : l + 1 < L ? start_of(l + 1) : NOTHING;
    }
}

typedef struct {
    float *fields[N_FIELDS];   /* the state [runs, d]: read at the start, written at the end */
    const float *inputs;       /* [examples, WIDTHS[0]] */
    const void *targets;       /* classes int64 [examples], or numbers [examples, outputs], or +-1 [examples] */
    const int64_t *indices;    /* [steps, runs, batch] */
    const float *coefficients; /* [steps, N_COEFFICIENTS, runs] */
    const uint64_t *seeds;     /* [runs] */
    uint8_t *alive;            /* [runs], as all that follows */
    int64_t *diverged_at;
    float *last_loss, *loss_sum, *grad_norm, *loss_limit;
    float clip_norm;        /* longest gradient, infinity for no clipping */
    float explosion_factor; /* training/state.limit_after */
    int64_t indices_step, indices_run, coefficients_step;
    int64_t runs, first, steps, cycle;
    int32_t sizes[MOST_STEPS]; /* examples of the batch */
} Args;

/* ---------------------------------------------------------------------------------------------------- normal numbers */
DEVICE void box_muller(uint32_t a, uint32_t b, float *cosine_out, float *sine_out) { /* native/normals.c, one lane */
    const float u = fmaf((float)a, 0x1p-32f, 0x1p-33f);
    const int32_t bits = F2I(u), exponent = (bits - 0x3f2aaaab) >> 23;
    const float f = I2F(bits - (exponent << 23)) - 1.0f;
    float p = fmaf(-2.8869912e-1f, f, 3.0806506e-1f);
    p = fmaf(p, f, -2.7806922e-1f), p = fmaf(p, f, 3.2825562e-1f), p = fmaf(p, f, -4.0035582e-1f);
    p = fmaf(p, f, 5.0016056e-1f), p = fmaf(p, f, -6.6666078e-1f), p = fmaf(p, f, 9.9999864e-1f), p = fmaf(p, f, -2.0f);
    const float radius = SQRT(fmaf(p, f, -1.38629436f * (float)exponent));
    const uint32_t quadrant = b + 0x20000000u;
    const float x = (float)(int32_t)(b << 2) * 0x1p-33f, z = x * x;
    float s = fmaf(-5.8782388e-1f, z, 2.5496302f);
    s = fmaf(s, z, -5.1677036f), s = fmaf(s, z, 3.1415926f), s *= x;
    float c = fmaf(2.3146938e-1f, z, -1.3350636f);
    c = fmaf(c, z, 4.0587081f), c = fmaf(c, z, -4.9348022f), c = fmaf(c, z, 1.0f);
    const bool swap = (quadrant >> 30) & 1;
    *cosine_out = I2F(F2I(swap ? s : c) ^ ((quadrant ^ (quadrant << 1)) & 0x80000000u)) * radius;
    *sine_out = I2F(F2I(swap ? c : s) ^ (quadrant & 0x80000000u)) * radius;
}

/* ---------------------------------------------------------------------------------------------------- matrix products */
DEVICE float4 load4(const float *p) { return *(const float4 *)p; }

/* A warp does 4 x 8 tiles, neighbours in pairs: of the addresses of 16 threads 8 and 2 differ, which is what shared memory
 * serves at once in loads of 16 bytes. Tasks beyond the ends of rows and columns have no tile. */
constexpr int tasks(int rows, int columns) { return (rows + 3) / 4 * ((columns + 7) / 8) * 32; }
template <int ROWS, int COLUMNS> DEVICE bool tile_of(int task, int *row, int *column) {
    constexpr int across = (COLUMNS + 7) / 8;
    const int lane = task % 32, warp = task / 32;
    *row = warp / across * 4 + lane % 2 + lane / 16 * 2, *column = warp % across * 8 + lane / 2 % 8;
    return (ROWS % 4 == 0 || *row < ROWS) && (COLUMNS % 8 == 0 || *column < COLUMNS);
}
/* The first task of this thread where others before them began with thread 0. */
DEVICE int first_after(int others) { return (TID + THREADS - others % THREADS) % THREADS; }

/* Z[b, o] = bias[o] + sum_k A[b, k] W[o, k]: TB x TO numbers per thread. */
template <int IN, int OUT, bool HIDDEN> DEVICE void forward(const float *w, const float *a, float *z) {
    constexpr int TB = 2, TO = OUT >= 32 ? 4 : 2, R = ROW(IN), RZ = ROW(OUT), BG = CHUNK / TB, OG = UP4(OUT) / TO;
    for (int t = TID; t < tasks(BG, OG); t += THREADS) {
        int row, og; /* rows og, og + OG, ... of W: neighbours read neighbouring rows */
        if (!tile_of<BG, OG>(t, &row, &og)) continue;
        const int b0 = row * TB;
        float sum[TB][TO];
        UNROLL for (int i = 0; i < TB; i++) UNROLL for (int j = 0; j < TO; j++) sum[i][j] = w[(og + j * OG) * R + UP4(IN)];
        UNROLL_8 for (int k = 0; k < UP4(IN); k += 4) {
            float4 x[TB], y[TO];
            UNROLL for (int i = 0; i < TB; i++) x[i] = load4(a + (b0 + i) * R + k);
            UNROLL for (int j = 0; j < TO; j++) y[j] = load4(w + (og + j * OG) * R + k);
            UNROLL for (int i = 0; i < TB; i++) UNROLL for (int j = 0; j < TO; j++) {
                sum[i][j] = fmaf(x[i].x, y[j].x, sum[i][j]), sum[i][j] = fmaf(x[i].y, y[j].y, sum[i][j]);
                sum[i][j] = fmaf(x[i].z, y[j].z, sum[i][j]), sum[i][j] = fmaf(x[i].w, y[j].w, sum[i][j]);
            }
        }
        UNROLL for (int i = 0; i < TB; i++) UNROLL for (int j = 0; j < TO; j++) {
            float v = sum[i][j];
            if (HIDDEN && ACTIVATION == RELU) v = v < 0 ? 0.0f : v; /* keeps NaN */
            if (HIDDEN && ACTIVATION == TANH) v = tanhf(v);
            z[(b0 + i) * RZ + og + j * OG] = v;
        }
    }
}
/* dW[o, k] (+)= sum_b dZ[b, o] A[b, k], and the bias from a column of ones beside it; 4 x 4 numbers per thread. Returns this
 * thread's sum of squares. */
template <int IN, int OUT> DEVICE float weights_gradient(const float *dz, const float *a, float *g, bool add, int others) {
    constexpr int R = ROW(IN), RZ = ROW(OUT), KG = UP4(IN) / 4, OG = UP4(OUT) / 4;
    float square = 0.0f;
    for (int t = TID; t < tasks(OG, KG); t += THREADS) {
        int row, column;
        if (!tile_of<OG, KG>(t, &row, &column)) continue;
        const int o0 = row * 4, k0 = column * 4;
        float sum[4][4] = {};
        if (add) {
            UNROLL for (int i = 0; i < 4; i++) {
                const float4 before = load4(g + (o0 + i) * R + k0);
                sum[i][0] = before.x, sum[i][1] = before.y, sum[i][2] = before.z, sum[i][3] = before.w;
            }
        }
        UNROLL_8 for (int b = 0; b < CHUNK; b++) { /* rows beyond the batch are 0 */
            const float4 d = load4(dz + b * RZ + o0), x = load4(a + b * R + k0);
            const float ds[4] = {d.x, d.y, d.z, d.w}, xs[4] = {x.x, x.y, x.z, x.w};
            UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++) sum[i][j] = fmaf(ds[i], xs[j], sum[i][j]);
        }
        UNROLL for (int i = 0; i < 4; i++) {
            const float4 row_of_four = {sum[i][0], sum[i][1], sum[i][2], sum[i][3]};
            *(float4 *)(g + (o0 + i) * R + k0) = row_of_four;
            UNROLL for (int j = 0; j < 4; j++) square = fmaf(sum[i][j], sum[i][j], square);
        }
    }
    for (int o = first_after(tasks(OG, KG) + others); o < UP4(OUT); o += THREADS) {
        float sum = add ? g[o * R + UP4(IN)] : 0.0f;
        UNROLL_8 for (int b = 0; b < CHUNK; b++) sum += dz[b * RZ + o];
        g[o * R + UP4(IN)] = sum, square = fmaf(sum, sum, square);
    }
    return square;
}
/* dA[b, k] = sigma'(A[b, k]) sum_o dZ[b, o] W[o, k]; the derivative is told from A = sigma(Z). Threads that have no tile of
 * dW begin. */
template <int IN, int OUT> DEVICE void inputs_gradient(const float *w, const float *dz, const float *a, float *da, int others) {
    constexpr int TB = 2, R = ROW(IN), RZ = ROW(OUT), BG = CHUNK / TB, KG = UP4(IN) / 4;
    for (int t = first_after(others); t < tasks(BG, KG); t += THREADS) {
        int row, column;
        if (!tile_of<BG, KG>(t, &row, &column)) continue;
        const int b0 = row * TB, k0 = column * 4;
        float sum[TB][4] = {};
        for (int o = 0; o < UP4(OUT); o += 4) {
            float4 d[TB];
            UNROLL for (int i = 0; i < TB; i++) d[i] = load4(dz + (b0 + i) * RZ + o);
            UNROLL for (int q = 0; q < 4; q++) {
                const float4 ws = load4(w + (o + q) * R + k0);
                UNROLL for (int i = 0; i < TB; i++) {
                    const float v = q == 0 ? d[i].x : q == 1 ? d[i].y : q == 2 ? d[i].z : d[i].w;
                    sum[i][0] = fmaf(v, ws.x, sum[i][0]), sum[i][1] = fmaf(v, ws.y, sum[i][1]);
                    sum[i][2] = fmaf(v, ws.z, sum[i][2]), sum[i][3] = fmaf(v, ws.w, sum[i][3]);
                }
            }
        }
        UNROLL for (int i = 0; i < TB; i++) {
            const float4 four = load4(a + (b0 + i) * R + k0);
            const float at[4] = {four.x, four.y, four.z, four.w};
            UNROLL for (int j = 0; j < 4; j++) {
                if (ACTIVATION == RELU && at[j] <= 0) sum[i][j] = 0.0f;
                if (ACTIVATION == TANH) sum[i][j] *= 1 - at[j] * at[j];
            }
            const float4 all = {sum[i][0], sum[i][1], sum[i][2], sum[i][3]};
            *(float4 *)(da + (b0 + i) * R + k0) = all;
        }
    }
}

/* The loss of each row; z becomes its gradient. Rows beyond batch, and columns beyond OUT, become 0. */
DEVICE float cross_entropy(float *row, int out, int target, float scale) {
    const float at = row[target];
    float largest = -INFINITY, sum = 0.0f;
    for (int j = 0; j < out; j++) largest = row[j] > largest ? row[j] : largest; /* overlooks NaN: it is in the sum */
    for (int j = 0; j < out; j++) row[j] = expf(row[j] - largest), sum += row[j];
    const float factor = scale / sum;
    for (int j = 0; j < out; j++) row[j] *= factor;
    row[target] -= scale;
    return logf(sum) + (largest - at);
}
DEVICE float squared_error(float *row, int out, const float *target, float scale) {
    float loss = 0.0f;
    for (int j = 0; j < out; j++) {
        const float error = row[j] - target[j];
        loss = fmaf(error, error, loss), row[j] = 2 * scale * error;
    }
    return loss;
}
DEVICE float logistic(float *row, float target, float scale) {
    const float u = -target * row[0], e = expf(-fabsf(u)); /* NaN where u is */
    row[0] = -target * (u > 0 ? 1.0f : e) / (1 + e) * scale;
    return (u > 0 ? u : 0.0f) + log1pf(e);
}
template <int OUT> DEVICE void losses_of(float *z, float *losses, const float *labels, const void *targets, const int64_t *rows, int batch, float scale) {
    for (int b = TID; b < CHUNK; b += THREADS) {
        float *row = z + b * ROW(OUT);
        float loss = 0.0f;
        if (b < batch) {
            if (LOSS == CROSS_ENTROPY) loss = cross_entropy(row, OUT, F2I(labels[b]), scale);
            if (LOSS == SQUARED_ERROR) loss = squared_error(row, OUT, (const float *)targets + rows[b] * OUT, scale);
            if (LOSS == LOGISTIC) loss = logistic(row, labels[b], scale);
        }
        for (int j = b < batch ? OUT : 0; j < UP4(OUT); j++) row[j] = 0.0f;
        losses[b] = loss;
    }
}

template <int l> DEVICE void all_forward(const float *y, float *acts) {
    forward<widths[l], widths[l + 1], (l + 1 < L)>(y + start_of(l), acts + act_of(l), acts + act_of(l + 1));
    SYNC();
    if constexpr (l + 1 < L) all_forward<l + 1>(y, acts);
}
/* Returns this thread's sum of squares of the gradient. */
template <int l> DEVICE float all_backward(const float *y, float *acts, const float *dz, float *own, float *g, bool add) {
    constexpr int in = widths[l], out = widths[l + 1];
    constexpr int of_weights = tasks(UP4(out) / 4, UP4(in) / 4), of_inputs = l > 0 ? tasks(CHUNK / 2, UP4(in) / 4) : 0;
    float square = weights_gradient<in, out>(dz, acts + act_of(l), g + start_of(l), add, of_inputs);
    if constexpr (l > 0) {
        float *da = !behind(l) ? own : ROOMY ? acts + act_of(l + 1) : own + DZ;
        inputs_gradient<in, out>(y + start_of(l), dz, acts + act_of(l), da, of_weights);
        SYNC();
        square += all_backward<l - 1>(y, acts, da, own, g, add);
    }
    return square;
}

DEVICE float block_sum(float value, float *scratch) {
#ifdef __CUDACC__
    UNROLL for (int s = 16; s > 0; s /= 2) value += __shfl_xor_sync(~0u, value, s);
    if (TID % 32 == 0) scratch[TID / 32] = value;
    SYNC();
    value = TID % 32 < THREADS / 32 ? scratch[TID % 32] : 0.0f;
    UNROLL for (int s = 16; s > 0; s /= 2) value += __shfl_xor_sync(~0u, value, s);
#endif
    return value; /* another barrier has to come before the next sum */
}

/* Numbers k ... k + 3 of an example, zeros beyond its end. */
DEVICE float4 some_of(const float *example, int k) {
    if (IN0 % 4 == 0) return load4(example + k);
    float4 v = {example[k], 0, 0, 0};
    if (k + 1 < IN0) v.y = example[k + 1];
    if (k + 2 < IN0) v.z = example[k + 2];
    if (k + 3 < IN0) v.w = example[k + 3];
    return v;
}

/* The losses of a chunk; every thread gets the same sum. */
DEVICE float sum_of(const float *losses) {
    float sum = 0.0f;
#ifdef __CUDACC__
    if (TID % 32 < CHUNK) sum = losses[TID % 32];
    UNROLL for (int s = 16; s > 0; s /= 2) sum += __shfl_xor_sync(~0u, sum, s);
#else
    for (int b = 0; b < CHUNK; b++) sum += losses[b];
#endif
    return sum;
}

/* Two numbers of a vector, which are beside one another wherever they belong to the same row of weights. */
DEVICE void load_two(const float *field, int at, int next, real *two) {
    if (at % 2 == 0 && next == at + 1) {
        const float2 v = *(const float2 *)(field + at);
        two[0] = v.x, two[1] = v.y;
    } else
        two[0] = field[at], two[1] = field[next];
}
DEVICE void store_two(float *field, int at, int next, const real *two) {
    if (at % 2 == 0 && next == at + 1) {
        const float2 v = {two[0], two[1]};
        *(float2 *)(field + at) = v;
    } else
        field[at] = two[0], field[next] = two[1];
}

/* The same of a vector in global memory, whose numbers j and j + 1 are side by side. */
DEVICE void load_flat(const float *field, int j, bool even, real *two) {
    if (D % 2 == 0 || (even && j + 1 < D)) {
        const float2 v = *(const float2 *)(field + j);
        two[0] = v.x, two[1] = v.y;
    } else
        two[0] = field[j], two[1] = j + 1 < D ? field[j + 1] : 0.0f;
}
DEVICE void store_flat(float *field, int j, bool even, const real *two) {
    if (D % 2 == 0 || (even && j + 1 < D)) {
        const float2 v = {two[0], two[1]};
        *(float2 *)(field + j) = v;
    } else {
        field[j] = two[0];
        if (j + 1 < D) field[j + 1] = two[1];
    }
}

/* Inputs and labels of a chunk, from example `from` of a batch of `size`; rows beyond it are 0. */
DEVICE void gather(const Args &p, const int64_t *rows, int from, int size, float *acts, float *labels) {
    const int batch = size - from < CHUNK ? size - from : CHUNK;
    for (int t = TID; t < CHUNK * (UP4(IN0) / 4); t += THREADS) {
        const int b = t / (UP4(IN0) / 4), k = t % (UP4(IN0) / 4) * 4;
        float4 v = {0, 0, 0, 0};
        if (b < batch) v = some_of(p.inputs + rows[from + b] * IN0, k);
        *(float4 *)(acts + b * ROW0 + k) = v;
    }
    if (LOSS != SQUARED_ERROR)
        for (int b = TID; b < batch; b += THREADS) {
            const int64_t row = rows[from + b];
            labels[b] = LOSS == CROSS_ENTROPY ? I2F((int)((const int64_t *)p.targets)[row]) : ((const float *)p.targets)[row];
        }
}

/* Calls LINES for numbers j, j + 1, j + 16 and j + 17 of the vector, whose two pairs are `part` 0 and 1, with v[k][i] the
 * numbers of vector k, and stores the vectors for which STORES(k) is true. BEFORE comes after the loads of global memory. */
#define FOUR_NUMBERS(block, BEFORE, LINES, STORES)                                                                  \
    {                                                                                                                  \
        real v[2][N_FIELDS][2];                                                                                        \
        UNROLL for (int part = 0; part < 2; part++) {                                                                  \
            const int j = block / 8 * 32 + block % 8 * 2 + part * 16;                                                  \
            UNROLL for (int k = 0; k < N_FIELDS; k++) if (!IS_SHARED(k) && j < D) load_flat(fields[k], j, even, v[part][k]); \
        }                                                                                                              \
        BEFORE                                                                                                         \
        UNROLL for (int part = 0; part < 2; part++) {                                                                  \
            const int j = block / 8 * 32 + block % 8 * 2 + part * 16;                                                  \
            if (j >= D) continue;                                                                                      \
            int at, next;                                                                                              \
            two_places_from<0>(j, &at, &next);                                                                         \
            UNROLL for (int k = 0; k < N_FIELDS; k++) if (IS_SHARED(k)) load_two(fields[k], at, next, v[part][k]);     \
            LINES                                                                                                      \
            UNROLL for (int k = 0; k < N_FIELDS; k++) if (STORES(k)) {                                                 \
                if (IS_SHARED(k)) store_two(fields[k], at, next, v[part][k]);                                          \
                else store_flat(fields[k], j, even, v[part][k]);                                                       \
            }                                                                                                          \
        }                                                                                                              \
    }

DEVICE void one_run(const Args &p, int64_t r, float *shared) {
    float *fields[N_FIELDS];
    UNROLL for (int k = 0; k < N_FIELDS; k++) fields[k] = IS_SHARED(k) ? shared + (ALL_SHARED ? k : 0) * PADDED : p.fields[k] + r * D;
    float *g = shared + N_SHARED * PADDED, *acts = g + PADDED, *own = acts + ACTS;
    float *scratch = own + (ROOMY ? 1 : 2) * DZ, *losses = scratch + 32, *labels = losses + CHUNK;
    const bool even = D % 2 == 0 || r % 2 == 0; /* pairs of global memory can be loaded at once */
    (void)even;
    for (int i = TID; i < SHARED_FLOATS; i += THREADS) shared[i] = 0.0f;
    SYNC();
    for (int j = TID; j < D; j += THREADS) {
        const int at = place(j);
        UNROLL for (int k = 0; k < N_FIELDS; k++) if (IS_SHARED(k)) fields[k][at] = p.fields[k][r * D + j];
    }
    bool alive = p.alive[r];
    float last_loss = p.last_loss[r], loss_sum = p.loss_sum[r], grad_norm = p.grad_norm[r];
    float limit = p.loss_limit[r];
    const float *y = fields[FIELD_AT];
    if (alive) gather(p, p.indices + r * p.indices_run, 0, p.sizes[0], acts, labels);
    SYNC();
    for (int64_t s = 0; s < p.steps; s++) {
        const float *c = p.coefficients + s * p.coefficients_step + r;
        RULE_COEFFICIENTS
        if (alive) {
            const int size = p.sizes[s];
            const int64_t *rows = p.indices + s * p.indices_step + r * p.indices_run;
            float loss = 0.0f, square = 0.0f;
            for (int from = 0; from < size; from += CHUNK) { /* the batch in chunks that fit */
                const int batch = size - from < CHUNK ? size - from : CHUNK;
                if (from > 0) {
                    SYNC();
                    gather(p, rows, from, size, acts, labels);
                    SYNC();
                }
                all_forward<0>(y, acts);
                float *out = acts + act_of(L);
                losses_of<widths[L]>(out, losses, labels, p.targets, rows + from, batch, 1.0f / (float)size);
                SYNC();
                loss += sum_of(losses);
                square = all_backward<L - 1>(y, acts, out, own, g, from > 0);
            }
            loss /= (float)size;
            const float whole = sqrtf(block_sum(square, scratch));
            if (loss <= limit && isfinite(whole)) {
                last_loss = loss, grad_norm = whole;
                real norm = whole > p.clip_norm ? p.clip_norm : whole; /* of the gradient that the rule gets */
                const real factor = whole > p.clip_norm ? 1 / whole * p.clip_norm : 1.0f; /* gradients.clipped */
                (void)norm;
#if NOISY
                const uint64_t step = (uint64_t)(p.first + s + 1), seed = p.seeds[r];
#endif
#define NO_STORES(k) 0
#ifdef RULE_NORMED
#define NORMED                                                                                                         \
    real gradients[2];                                                                                                 \
    load_two(g, at, next, gradients);                                                                                  \
    UNROLL for (int i = 0; i < 2; i++) if (j + i < D) {                                                                \
        const real gradient = gradients[i] * factor;                                                                   \
        RULE_NORMED                                                                                                    \
        squares = fmaf(normed, normed, squares);                                                                       \
    }
                float squares = 0.0f;
                for (int block = TID; block < (D + 31) / 32 * 8; block += THREADS) FOUR_NUMBERS(block, , NORMED, NO_STORES)
                SYNC();
                norm = sqrtf(block_sum(squares, scratch));
#endif
                if (s + 1 < p.steps) gather(p, rows + p.indices_step, 0, p.sizes[s + 1], acts, labels);
                for (int block = TID; block < (D + 31) / 32 * 8; block += THREADS) { /* four normals each */
                    real normals[4] = {0, 0, 0, 0}; /* the cosines of two pairs, then their sines */
#if NOISY
#define NORMALS                                                                                                        \
    uint32_t w[4] = {(uint32_t)block, (uint32_t)step, (uint32_t)(step >> 32), NOISE};                                  \
    philox(w, (uint32_t)seed, (uint32_t)(seed >> 32));                                                                 \
    box_muller(w[0], w[1], normals, normals + 2), box_muller(w[2], w[3], normals + 1, normals + 3);
#else
#define NORMALS
#endif
#define STEP                                                                                                           \
    real gradients[2];                                                                                                 \
    load_two(g, at, next, gradients);                                                                                  \
    UNROLL for (int i = 0; i < 2; i++) {                                                                               \
        const real xi = normals[2 * part + i], gradient = gradients[i] * factor;                                       \
        (void)xi;                                                                                                      \
        RULE_STEP                                                                                                      \
    }
                    FOUR_NUMBERS(block, NORMALS, STEP, STEP_STORES)
                }
                SYNC();
            } else {
                alive = false;
                if (TID == 0) p.diverged_at[r] = p.first + s;
            }
        }
        loss_sum += last_loss;
        if (p.first + s == 0) { /* the first loss decides on the largest one */
            limit = (last_loss < 1 ? 1 : last_loss) * p.explosion_factor;
            if (limit > LARGEST) limit = LARGEST;
        }
#ifdef RULE_END_CYCLE
        if (alive && (p.first + s + 1) % p.cycle == 0) {
            for (int block = TID; block < (D + 31) / 32 * 8; block += THREADS) {
#define END_CYCLE UNROLL for (int i = 0; i < 2; i++) { RULE_END_CYCLE }
                FOUR_NUMBERS(block, , END_CYCLE, CYCLE_STORES)
            }
            SYNC();
        }
#endif
    }
    for (int j = TID; j < D; j += THREADS) {
        const int at = place(j);
        UNROLL for (int k = 0; k < N_FIELDS; k++) if (IS_SHARED(k)) p.fields[k][r * D + j] = fields[k][at];
    }
    if (TID == 0) p.alive[r] = alive, p.last_loss[r] = last_loss, p.loss_sum[r] = loss_sum, p.grad_norm[r] = grad_norm, p.loss_limit[r] = limit;
}

#ifdef __CUDACC__
extern "C" __global__ void __launch_bounds__(N_THREADS, N_BLOCKS) cycles(const __grid_constant__ Args p) {
    extern __shared__ float4 memory[];
    one_run(p, blockIdx.x, (float *)memory);
}
#else
extern "C" void cycles(const Args *p) {
    float *shared = (float *)aligned_alloc(64, (SHARED_FLOATS * 4 + 63) / 64 * 64);
    for (int64_t r = 0; r < p->runs; r++) one_run(*p, r, shared);
    free(shared);
}
extern "C" int64_t args_size(void) { return sizeof(Args); }
extern "C" int64_t shared_bytes(void) { return SHARED_FLOATS * 4; }
#endif
