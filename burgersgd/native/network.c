/* The network of one run, forwards and backwards: part of mlp_gradient.c. */

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
