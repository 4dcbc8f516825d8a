/* The convolutional layers of LeNet-5, part of mlp_gradient.c, included once per REAL: two times a convolution with filters
 * of 5 x 5, ReLU and max pooling over 2 x 2, example by example, so that everything stays in the first-level cache.
 *
 * What makes it fast is that both layers are small:
 * - The first convolution adds up 6 filters for a few vectors of consecutive pixels; a tap is the image at another offset.
 * - The second one adds up all 16 filters, side by side in a vector, for some pixels of a row: its input is stored with the
 *   6 channels of a pixel side by side, so that a row of taps is 30 consecutive numbers.
 * - Backward, of the four pixels of a pool only the largest has a gradient: each layer visits these alone.
 * An element is summed in an order that depends on nothing but the shapes. */

#define FIRST 6   /* filters of the first layer */
#define SECOND 16 /* and of the second */
#define SIDE 5    /* of a filter */
#define ROW (SIDE * FIRST)        /* numbers of a row of taps of the second layer */
#define WIDE 32                   /* the same in whole vectors */
#define COPIES 4                  /* places where gradients are added up in turn: a sum is not read back at once */
#define BLOCKS ((int)(WIDE / LANES))
#define FILTERS ((int)(SECOND / LANES))
#define PIXELS (FILTERS == 1 || VECTOR_BYTES == 64 ? 10 : FILTERS == 2 ? 4 : 2) /* whose sums fit into the registers; even */

typedef REAL F(Taps) __attribute__((vector_size(8 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias)); /* SIDE and 3 more */
#define Taps F(Taps)

/* Places in the workspace, in numbers. */
typedef struct {
    int64_t image, planes, plane, pixels;                   /* of one example: padded image, first layer, second layer */
    int64_t pooled, pooled_row, winners, winners_row;       /* first layer after pooling, [height, width, FIRST] a row */
    int64_t chosen, chosen_row;                             /* second layer: which pixel of each pool is the largest */
    int64_t forward_weights, backward_weights;              /* [SIDE * ROW, SECOND], [SECOND, SIDE, WIDE] */
    int64_t first_sums, second_sums, bias_sums, copies;     /* gradients: [FIRST, channels, SIDE, 8], [SECOND, SIDE, WIDE] */
    int64_t size;
} F(ConvolutionPlaces);

static F(ConvolutionPlaces) F(convolution_places)(const Plan *plan, int64_t next) {
    const Images s = images_of(plan);
    F(ConvolutionPlaces) p;
#define TAKE(name, numbers) (p.name = next, next += ((numbers) + 2 * PANEL * LANES + 15) / 16 * 16)
    p.plane = s.width * 2 * s.h1 + 2 * PANEL * LANES;
    p.pooled_row = (s.h1 * s.w1 * FIRST + WIDE + 15) / 16 * 16;
    p.winners_row = FIRST * s.h1 * s.w1 + LANES;
    p.chosen_row = SECOND * s.h2 * s.w2;
    TAKE(image, s.channels * s.height * s.width);
    TAKE(planes, FIRST * p.plane);
    TAKE(pixels, 4 * s.h2 * s.w2 * SECOND);
    TAKE(pooled, plan->max_batch * p.pooled_row);
    TAKE(winners, plan->max_batch * p.winners_row);
    TAKE(chosen, plan->max_batch * p.chosen_row);
    TAKE(forward_weights, SIDE * ROW * SECOND);
    TAKE(backward_weights, SECOND * SIDE * WIDE);
    TAKE(first_sums, FIRST * s.channels * SIDE * 8);
    TAKE(second_sums, SECOND * SIDE * WIDE);
    TAKE(bias_sums, FIRST + SECOND);
    TAKE(copies, COPIES * p.pooled_row);
#undef TAKE
    p.size = next;
    return p;
}

/* The image with its border of zeros, which is there already. */
static void F(pad)(const Plan *plan, const Images *s, int64_t example, REAL *image) {
    const REAL *from = (const REAL *)plan->inputs + example * s->channels * plan->height * plan->width;
    for (int64_t c = 0; c < s->channels; c++)
        for (int64_t y = 0; y < plan->height; y++, from += plan->width)
            memcpy(image + (c * s->height + y + plan->padding) * s->width + plan->padding, from, plan->width * sizeof(REAL));
}

/* planes[f, p] = bias[f] + sum over taps of weight[f, tap] image[p + offset of the tap], p = 0, 1, ... over all rows. */
static void F(first_convolution)(const Images *s, const REAL *weights, const REAL *image, REAL *planes, int64_t plane) {
    const int64_t taps = s->channels * SIDE * SIDE, n = (2 * s->h1 - 1) * s->width + 2 * s->w1;
    const REAL *bias = weights + FIRST * taps;
    for (int64_t p = 0; p < n; p += PANEL * LANES) {
        Vector sum[FIRST][PANEL];
        const REAL *weight = weights;
        UNROLL for (int f = 0; f < FIRST; f++)
            UNROLL for (int j = 0; j < PANEL; j++) sum[f][j] = bias[f] - (Vector){0};
        for (int64_t c = 0; c < s->channels; c++)
            for (int64_t y = 0; y < SIDE; y++, weight += SIDE) {
                const REAL *row = image + (c * s->height + y) * s->width + p;
                UNROLL for (int x = 0; x < SIDE; x++) {
                    Vector in[PANEL];
                    UNROLL for (int j = 0; j < PANEL; j++) in[j] = LOAD(row + x + j * LANES);
                    UNROLL for (int f = 0; f < FIRST; f++)
                        UNROLL for (int j = 0; j < PANEL; j++) sum[f][j] += weight[f * taps + x] * in[j];
                }
            }
        UNROLL for (int f = 0; f < FIRST; f++)
            UNROLL for (int j = 0; j < PANEL; j++) STORE(planes + f * plane + p + j * LANES, sum[f][j]);
    }
}

/* Keep the larger number and where it is; the first of equal ones, and NaN, stay, as in torch's max_pool2d. */
#define KEEP_LARGER(value, place)                              \
    {                                                          \
        Vector other = value;                                  \
        Mask larger = (other > best) | (other != other);       \
        best = SELECT(larger, other, best);                    \
        where = (larger & (place)) | (~larger & where);        \
    }

/* ReLU and pooling of the first layer. */
static void F(first_pool)(const Images *s, const REAL *planes, int64_t plane, REAL *pooled, INTEGER *winners) {
    const Mask lane = F(lane_numbers)(), even = lane + lane;
    for (int64_t f = 0; f < FIRST; f++)
        for (int64_t y = 0; y < s->h1; y++)
            for (int64_t x = 0; x < s->w1; x += LANES) {
                const int64_t at = 2 * y * s->width + 2 * x, n = s->w1 - x < LANES ? s->w1 - x : LANES;
                const REAL *top = planes + f * plane + at, *bottom = top + s->width;
                const Vector a = LOAD(top), b = LOAD(top + LANES), c = LOAD(bottom), d = LOAD(bottom + LANES);
                const Mask place = even + (INTEGER)at;
                Vector best = F(shuffle)(a, b, even);
                Mask where = place;
                KEEP_LARGER(F(shuffle)(a, b, even + 1), place + 1)
                KEEP_LARGER(F(shuffle)(c, d, even), place + (INTEGER)s->width)
                KEEP_LARGER(F(shuffle)(c, d, even + 1), place + (INTEGER)(s->width + 1))
                best = SELECT(best < 0, (Vector){0}, best);
                REAL values[LANES];
                STORE(values, best);
                memcpy(winners + (f * s->h1 + y) * s->w1 + x, &where, n * sizeof(INTEGER));
                for (int64_t i = 0; i < n; i++) pooled[(y * s->w1 + x + i) * FIRST + f] = values[i];
            }
}

/* All filters of the second layer at n consecutive pixels of a row. */
INLINE void F(second_pixels)(const int n, int64_t row, const REAL *in, const REAL *weights, const REAL *bias, REAL *to) {
    Vector sum[10][FILTERS];
    UNROLL for (int i = 0; i < n; i++)
        UNROLL for (int v = 0; v < FILTERS; v++) sum[i][v] = LOAD(bias + v * LANES);
    for (int64_t y = 0; y < SIDE; y++, in += row)
        for (int64_t t = 0; t < ROW; t++, weights += SECOND)
            UNROLL for (int v = 0; v < FILTERS; v++) {
                Vector weight = LOAD(weights + v * LANES);
                UNROLL for (int i = 0; i < n; i++) sum[i][v] += in[i * FIRST + t] * weight;
            }
    UNROLL for (int i = 0; i < n; i++)
        UNROLL for (int v = 0; v < FILTERS; v++) STORE(to + i * SECOND + v * LANES, sum[i][v]);
}

static void F(second_convolution)(const Images *s, const REAL *in, const REAL *weights, const REAL *bias, REAL *pixels) {
    const int64_t row = s->w1 * FIRST, width = 2 * s->w2;
    for (int64_t y = 0; y < 2 * s->h2; y++) {
        int64_t x = 0;
        for (; x + PIXELS <= width; x += PIXELS)
            F(second_pixels)(PIXELS, row, in + y * row + x * FIRST, weights, bias, pixels + (y * width + x) * SECOND);
        for (; x + 2 <= width; x += 2)
            F(second_pixels)(2, row, in + y * row + x * FIRST, weights, bias, pixels + (y * width + x) * SECOND);
    }
}

/* ReLU and pooling of the second layer; features are [SECOND, h2, w2]. chosen: where in the first layer's pooled numbers
 * the taps of the largest pixel begin. */
static void F(second_pool)(const Images *s, const REAL *pixels, REAL *features, INTEGER *chosen) {
    const int64_t width = 2 * s->w2, area = s->h2 * s->w2;
    for (int64_t q = 0; q < area; q++) {
        const int64_t y = 2 * (q / s->w2), x = 2 * (q % s->w2);
        const INTEGER at = (INTEGER)((y * s->w1 + x) * FIRST), below = (INTEGER)(s->w1 * FIRST);
        for (int v = 0; v < FILTERS; v++) {
            const REAL *top = pixels + (y * width + x) * SECOND + v * LANES, *bottom = top + width * SECOND;
            Vector best = LOAD(top);
            Mask where = at - (Mask){0};
            KEEP_LARGER(LOAD(top + SECOND), at + FIRST - (Mask){0})
            KEEP_LARGER(LOAD(bottom), at + below - (Mask){0})
            KEEP_LARGER(LOAD(bottom + SECOND), at + below + FIRST - (Mask){0})
            best = SELECT(best < 0, (Vector){0}, best);
            memcpy(chosen + q * SECOND + v * LANES, &where, sizeof where);
            UNROLL for (int i = 0; i < LANES; i++) features[(v * LANES + i) * area + q] = best[i];
        }
    }
}

/* The number of W_2[o, f, y, x] in a run's parameters, from the start of W_2. */
#define TAP(o, f, y, x) ((((o) * FIRST + (f)) * SIDE + (y)) * SIDE + (x))

/* The features of a batch, [batch, stride], which are the inputs of the fully connected layers. */
static void F(features)(const Plan *plan, REAL *workspace, const F(ConvolutionPlaces) *p, const REAL *params,
                        const int64_t *indices, int64_t batch, REAL *features, int64_t stride) {
    const Images s = images_of(plan);
    const REAL *second = params + FIRST * (s.channels * SIDE * SIDE + 1);
    REAL *image = workspace + p->image, *weights = workspace + p->forward_weights;
    for (int64_t y = 0; y < SIDE; y++)
        for (int64_t x = 0; x < SIDE; x++)
            for (int64_t f = 0; f < FIRST; f++, weights += SECOND)
                for (int64_t o = 0; o < SECOND; o++) weights[o] = second[TAP(o, f, y, x)];
    memset(image, 0, s.channels * s.height * s.width * sizeof(REAL));
    for (int64_t i = 0; i < batch; i++) {
        REAL *pooled = workspace + p->pooled + i * p->pooled_row;
        F(pad)(plan, &s, indices[i], image);
        F(first_convolution)(&s, params, image, workspace + p->planes, p->plane);
        F(first_pool)(&s, workspace + p->planes, p->plane, pooled, (INTEGER *)(workspace + p->winners + i * p->winners_row));
        F(second_convolution)(&s, pooled, workspace + p->forward_weights, second + SECOND * FIRST * SIDE * SIDE,
                              workspace + p->pixels);
        F(second_pool)(&s, workspace + p->pixels, features + i * stride,
                       (INTEGER *)(workspace + p->chosen + i * p->chosen_row));
    }
}

/* Gradients of the second layer's filter o from one example, and what flows back into the first layer's pooled numbers. */
INLINE REAL F(second_filter)(int64_t area, int64_t row, const REAL *features, const REAL *gradients, const INTEGER *chosen,
                             const REAL *pooled, const REAL *weights, REAL *sums, REAL *copies, int64_t copy) {
    Vector sum[SIDE][BLOCKS], weight[SIDE][BLOCKS];
    REAL bias = 0;
    UNROLL for (int y = 0; y < SIDE; y++)
        UNROLL for (int v = 0; v < BLOCKS; v++) {
            sum[y][v] = LOAD(sums + y * WIDE + v * LANES);
            weight[y][v] = LOAD(weights + y * WIDE + v * LANES);
        }
    for (int64_t q = 0; q < area; q++) {
        const REAL g = features[q] <= 0 ? 0 : gradients[q];
        const REAL *in = pooled + chosen[q * SECOND];
        REAL *back = copies + q % COPIES * copy + chosen[q * SECOND];
        bias += g;
        UNROLL for (int y = 0; y < SIDE; y++, in += row, back += row)
            UNROLL for (int v = 0; v < BLOCKS; v++) {
                sum[y][v] += g * LOAD(in + v * LANES);
                STORE(back + v * LANES, LOAD(back + v * LANES) + g * weight[y][v]);
            }
    }
    UNROLL for (int y = 0; y < SIDE; y++)
        UNROLL for (int v = 0; v < BLOCKS; v++) STORE(sums + y * WIDE + v * LANES, sum[y][v]);
    return bias;
}

/* Gradients of the first layer's filter f, for one channel of one example. */
INLINE REAL F(first_filter)(int64_t area, int64_t width, const REAL *gradients, const INTEGER *winners, const REAL *image,
                            REAL *sums) {
    Taps sum[SIDE];
    REAL bias = 0;
    UNROLL for (int y = 0; y < SIDE; y++) sum[y] = *(const Taps *)(sums + 8 * y);
    for (int64_t q = 0; q < area; q++) {
        const REAL g = gradients[q * FIRST], *in = image + winners[q];
        bias += g;
        UNROLL for (int y = 0; y < SIDE; y++, in += width) sum[y] += g * *(const Taps *)in;
    }
    UNROLL for (int y = 0; y < SIDE; y++) *(Taps *)(sums + 8 * y) = sum[y];
    return bias;
}

/* From the gradients of the features to those of both layers' parameters. */
static void F(convolutions_backward)(const Plan *plan, REAL *workspace, const F(ConvolutionPlaces) *p, const REAL *params,
                                     const int64_t *indices, int64_t batch, const REAL *features, const REAL *gradients,
                                     int64_t stride, REAL *grad) {
    const Images s = images_of(plan);
    const int64_t taps = s.channels * SIDE * SIDE, area = s.h2 * s.w2, row = s.w1 * FIRST, n = p->pooled_row;
    const REAL *second = params + FIRST * (taps + 1);
    REAL *image = workspace + p->image, *weights = workspace + p->backward_weights, *copies = workspace + p->copies;
    REAL *first_sums = workspace + p->first_sums, *second_sums = workspace + p->second_sums;
    REAL *first_bias = workspace + p->bias_sums, *second_bias = first_bias + FIRST;
    memset(weights, 0, SECOND * SIDE * WIDE * sizeof(REAL));
    for (int64_t o = 0; o < SECOND; o++)
        for (int64_t y = 0; y < SIDE; y++)
            for (int64_t x = 0; x < SIDE; x++)
                for (int64_t f = 0; f < FIRST; f++)
                    weights[(o * SIDE + y) * WIDE + x * FIRST + f] = second[TAP(o, f, y, x)];
    memset(first_sums, 0, FIRST * s.channels * SIDE * 8 * sizeof(REAL));
    memset(second_sums, 0, SECOND * SIDE * WIDE * sizeof(REAL));
    memset(first_bias, 0, (FIRST + SECOND) * sizeof(REAL));
    memset(image, 0, s.channels * s.height * s.width * sizeof(REAL));
    for (int64_t i = 0; i < batch; i++) {
        const REAL *pooled = workspace + p->pooled + i * p->pooled_row;
        const INTEGER *chosen = (const INTEGER *)(workspace + p->chosen + i * p->chosen_row);
        const INTEGER *winners = (const INTEGER *)(workspace + p->winners + i * p->winners_row);
        memset(copies, 0, COPIES * n * sizeof(REAL));
        for (int64_t o = 0; o < SECOND; o++)
            second_bias[o] += F(second_filter)(area, row, features + i * stride + o * area, gradients + i * stride + o * area,
                                               chosen + o, pooled, weights + o * SIDE * WIDE, second_sums + o * SIDE * WIDE,
                                               copies, n);
        for (int64_t j = 0; j < n; j += LANES) {
            Vector g = (LOAD(copies + j) + LOAD(copies + n + j)) + (LOAD(copies + 2 * n + j) + LOAD(copies + 3 * n + j));
            STORE(copies + j, SELECT(LOAD(pooled + j) <= 0, (Vector){0}, g));
        }
        F(pad)(plan, &s, indices[i], image);
        for (int64_t f = 0; f < FIRST; f++)
            for (int64_t c = 0; c < s.channels; c++) {
                REAL bias = F(first_filter)(s.h1 * s.w1, s.width, copies + f, winners + f * s.h1 * s.w1,
                                            image + c * s.height * s.width, first_sums + (f * s.channels + c) * SIDE * 8);
                if (c == 0) first_bias[f] += bias;
            }
    }
    for (int64_t j = 0; j < FIRST * s.channels * SIDE; j++) memcpy(grad + j * SIDE, first_sums + j * 8, SIDE * sizeof(REAL));
    memcpy(grad + FIRST * taps, first_bias, FIRST * sizeof(REAL));
    grad += FIRST * (taps + 1);
    for (int64_t o = 0; o < SECOND; o++)
        for (int64_t y = 0; y < SIDE; y++)
            for (int64_t x = 0; x < SIDE; x++)
                for (int64_t f = 0; f < FIRST; f++)
                    grad[TAP(o, f, y, x)] = second_sums[(o * SIDE + y) * WIDE + x * FIRST + f];
    memcpy(grad + SECOND * FIRST * SIDE * SIDE, second_bias, SECOND * sizeof(REAL));
}

#undef FIRST
#undef SECOND
#undef SIDE
#undef ROW
#undef WIDE
#undef COPIES
#undef BLOCKS
#undef FILTERS
#undef PIXELS
#undef Taps
#undef KEEP_LARGER
#undef TAP
