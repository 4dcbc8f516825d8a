/* The network of one run, forwards and backwards: part of mlp_gradient.c. */

enum { CHUNK = 48 }; /* outputs of a layer that are computed at a time: whole vectors, and whole tiles */
#define BLOCK (PANEL * LANES) /* examples */

/* Places in a thread's workspace, in numbers: activations of every layer, batch-major [batch, stride]; two layers at a
 * time the other way round, [width, block_row] for every BLOCK of examples, in the forward pass, and gradients [batch,
 * stride] in the backward pass, in the same place; panels of weights; the sums of squares of the gradient's blocks. */
typedef struct {
    int64_t activation[MAX_LAYERS + 1], block[2], block_size, gradient[2], panel, panel_size, squares, size;
    F(ConvolutionPlaces) convolutions;
} F(Places);

INLINE int64_t F(block_row)(int64_t batch) { return F(vectors)(batch < BLOCK ? batch : BLOCK) * LANES; }

/* Number of W_l's first parameter, for every layer l; the last entry is d. */
static void F(first_parameters)(const Plan *plan, int64_t *first) {
    first[0] = plan->channels ? 6 * (25 * plan->channels + 1) + 16 * (25 * 6 + 1) : 0;
    for (int64_t l = 0; l < plan->layers; l++) first[l + 1] = first[l] + (plan->widths[l] + 1) * plan->widths[l + 1];
}

static F(Places) F(places)(const Plan *plan) {
    F(Places) places;
    int64_t next = 0, widest = 0, first[MAX_LAYERS + 1];
    F(first_parameters)(plan, first);
    for (int64_t l = 0; l <= plan->layers; l++) {
        places.activation[l] = next;
        next += plan->max_batch * F(stride)(plan->widths[l]);
        if (plan->widths[l] > widest) widest = plan->widths[l];
    }
    places.block_size = widest * F(block_row)(plan->max_batch);
    int64_t blocks = F(panels)(plan->max_batch) * places.block_size;
    int64_t gradient = plan->max_batch * F(stride)(widest);
    for (int i = 0; i < 2; i++) {
        places.block[i] = places.gradient[i] = next;
        next += blocks > gradient ? blocks : gradient;
    }
    places.panel = next;
    places.panel_size = F(stride)(widest) * PANEL * LANES; /* of each member of the team */
    next += plan->team * places.panel_size;
    next = (next + 15) / 16 * 16;
    places.squares = next;
    next += (first[plan->layers] / NORM_BLOCK + 1) * (int64_t)(sizeof(double) / sizeof(REAL));
    if (plan->channels) {
        next = (next + 15) / 16 * 16;
        places.convolutions = F(convolution_places)(plan, next);
        next = places.convolutions.size;
    }
    places.size = (next + 64) / 64 * 64;
    return places;
}

/* The activations of all layers for the rows of a batch; return the outputs [batch, stride]. Only those are batch-major
 * where no backward pass follows. */
static REAL *F(forward)(const Plan *plan, REAL *workspace, const REAL *params, const int64_t *indices, int64_t batch,
                        int backward_follows) {
    const int64_t *widths = plan->widths, layers = plan->layers, team = plan->team;
    const F(Places) places = F(places)(plan);
    REAL *inputs = workspace + places.activation[0];
    const int64_t inputs_row = F(stride)(widths[0]), block_row = F(block_row)(batch), blocks = F(panels)(batch);
    int64_t first[MAX_LAYERS + 1];
    F(first_parameters)(plan, first);
    if (plan->channels)
        F(features)(plan, workspace, &places.convolutions, params, indices, batch, inputs, inputs_row);
    TEAM_FOR(F(vectors)(batch), {
        int64_t from = i * LANES, n = batch - from < LANES ? batch - from : LANES;
        for (int64_t j = from; j < from + n && !plan->channels; j++)
            F(copy_row)(inputs + j * inputs_row, (const REAL *)plan->inputs + indices[j] * widths[0], widths[0]);
        F(transpose)(inputs + from * inputs_row, inputs_row, n, widths[0],
                     workspace + places.block[0] + from / BLOCK * places.block_size + from % BLOCK, block_row);
    })
    for (int64_t l = 0; l < layers; l++) { /* Z^T = W A^T + b: the vectors are examples */
        int64_t in = widths[l], out = widths[l + 1], stride = F(stride)(out), chunks = (out + CHUNK - 1) / CHUNK;
        const REAL *w = params + first[l], *bias = w + in * out;
        TEAM_FOR(blocks * chunks, {
            int64_t block = i % blocks, from = block * BLOCK, n = F(panel_columns)(from, batch);
            int64_t o = i / blocks * CHUNK, rows = out - o < CHUNK ? out - o : CHUNK;
            const REAL *a = workspace + places.block[l % 2] + block * places.block_size;
            REAL *z = workspace + places.block[(l + 1) % 2] + block * places.block_size + o * block_row;
            F(panel)(n, 1, rows, in, w + o * in, in, 1, a, block_row, bias + o, z, block_row);
            if (l < layers - 1) F(activate)(plan->activation, rows * block_row, z);
            if (l == layers - 1 || backward_follows)
                F(transpose)(z, block_row, rows, n, workspace + places.activation[l + 1] + from * stride + o, stride);
        })
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
    REAL *dz = F(forward)(plan, workspace, params, indices, batch, 1);
    int64_t first[MAX_LAYERS + 1];
    F(first_parameters)(plan, first);
    *loss = (REAL)F(mean_loss)(plan, indices, batch, dz);
    F(sum_rows)(batch, widths[layers], F(stride)(widths[layers]), dz, grad + first[layers] - widths[layers]);

    for (int64_t l = layers - 1; l >= 0; l--) {
        int64_t in = widths[l], in_stride = F(stride)(in), out = widths[l + 1], stride = F(stride)(out);
        const REAL *w = params + first[l], *a = workspace + places.activation[l];
        const int as_it_is = in % LANES == 0 && in * sizeof(REAL) <= 1024; /* W is small, and its rows are whole vectors */
        REAL *dw = grad + first[l], *da = workspace + places.gradient[l % 2];
        TEAM_FOR(F(panels)(in), {
            int64_t k = i * PANEL * LANES, columns = F(panel_columns)(k, in), width = F(vectors)(columns) * LANES;
            F(panel)(columns, 0, out, batch, dz, 1, stride, a + k, in_stride, NULL, dw + k, in); /* dW = dZ^T A */
            if (l > 0 || plan->channels) { /* dA = dZ W */
                REAL *copy = workspace + places.panel + TEAM_MEMBER * places.panel_size;
                for (int64_t o = 0; o < out && !as_it_is; o++) F(copy_row)(copy + o * width, w + o * in + k, columns);
                F(panel)(columns, 1, batch, out, dz, stride, 1, as_it_is ? w + k : copy, as_it_is ? in : width, NULL, da + k,
                         in_stride);
            }
            if (l > 0) { /* dZ and db of the previous layer */
                F(activate_backward)(plan->activation, batch, columns, in_stride, a + k, da + k);
                F(sum_rows)(batch, columns, in_stride, da + k, grad + first[l] - in + k);
            }
        })
        if (l == 0 && plan->channels)
            F(convolutions_backward)(plan, workspace, &places.convolutions, params, indices, batch, a, da, in_stride, grad);
        dz = da;
    }
    double *squares = (double *)(workspace + places.squares), total = 0;
    int64_t d = first[layers], blocks = (d + NORM_BLOCK - 1) / NORM_BLOCK;
    TEAM_FOR(blocks, {
        int64_t from = i * NORM_BLOCK;
        squares[i] = F(squared_norm)(d - from < NORM_BLOCK ? d - from : NORM_BLOCK, grad + from);
    })
    for (int64_t i = 0; i < blocks; i++) total += squares[i];
    *norm = (REAL)sqrt(total); /* torch.sqrt may round otherwise, by the number of runs */
}
