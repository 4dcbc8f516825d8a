/* The gradient of an MLP in shared memory: layout of weights and activations, products, activations, losses.
 * cycles.cu says what is defined before it. */
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
/* The gradients with respect to the layers' inputs alternate between a separate buffer and the memory of the later layers'
 * activations, which are no longer needed; without room for them there, in a second buffer. */
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
/* The first task of this thread, where `others` earlier tasks were assigned from thread 0 on. */
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
/* dW[o, k] (+)= sum_b dZ[b, o] A[b, k], and the bias from a column of ones next to A; 4 x 4 numbers per thread. Returns this
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
/* dA[b, k] = sigma'(A[b, k]) sum_o dZ[b, o] W[o, k]; the derivative is computed from A = sigma(Z). The threads without a
 * tile of dW take the first tiles. */
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
