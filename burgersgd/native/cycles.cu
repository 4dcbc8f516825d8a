/* One run per block of threads: whole cycles of a rule in one launch. The vector at which gradients are taken, the
 * gradient and the activations are in shared memory; the other vectors of the state too (ALL_SHARED), or they stay in
 * global memory, from which a multiprocessor's second-level cache serves them, so that two runs share a multiprocessor
 * and hide one another's waits.
 *
 * The same source is CUDA (NVRTC) and, with a single thread, C++ for the CPU, so that its arithmetic is tested without
 * a GPU. training/engines/persistent.py writes before it device.cu and mlp.cu, and before these N_LAYERS, WIDTHS, CHUNK
 * (examples that are in shared memory at once), MOST_STEPS, N_THREADS, N_BLOCKS (of a multiprocessor), N_FIELDS, FIELD_AT (the
 * vector at which gradients are taken), ALL_SHARED, N_COEFFICIENTS, NOISE, NOISY, ACTIVATION, LOSS, and the rule's
 * lines: RULE_COEFFICIENTS, RULE_STEP, STEP_STORES(k) and CYCLE_STORES(k) (whether they change vector k),
 * RULE_END_CYCLE, and RULE_NORMED, the vector whose norm the rule uses where that is not the gradient. A run is bitwise
 * equal alone and in a fleet. Every sum over k = 0, 1, 2, ... is taken in that order with fused multiply-adds. */
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

/* Two numbers of a vector, which are adjacent in memory if they belong to the same row of weights. */
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

/* The same for a vector in global memory, whose numbers j and j + 1 are adjacent. */
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
                real norm = whole > p.clip_norm ? p.clip_norm : whole; /* of the gradient after clipping */
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
        if (p.first + s == 0) { /* the first loss determines the limit of later ones */
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
