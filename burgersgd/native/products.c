/* Products of matrices, by panels of columns and tiles of registers: part of mlp_gradient.c. */

/* C[i, :] = bias[i] + sum_k A(i, k) B[k, :] for `rows` rows and `vectors` vectors of columns (both constants after
 * inlining); A(i, k) = a[i * a_row + k * a_k]. Of the last vector only `last` lanes are stored. */
INLINE void F(tile)(const int rows, const int vectors, int64_t depth, const REAL *restrict a, int64_t a_row, int64_t a_k,
                    const REAL *restrict b, int64_t b_k, const REAL *restrict bias, REAL *restrict c, int64_t c_row,
                    int64_t last) {
    Vector sum[12][PANEL];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = bias ? bias[i] - (Vector){0} : (Vector){0};
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
        TILES(TILE_ROWS(vectors), vectors)                                                                            \
        TILES(4, vectors)                                                                                             \
        TILES(2, vectors)                                                                                             \
        TILES(1, vectors)                                                                                             \
    }
#define TILES(n, vectors)                                                                                             \
    for (; i + (n) <= rows; i += (n))                                                                                 \
        F(tile)(n, vectors, depth, a + i * a_row, a_row, a_k, b, b_k, bias ? bias + i : NULL, c + i * c_row, c_row, last);
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

/* to[k, :] = column k of `from`, of which there are `rows` rows, then zeros up to a whole vector. Rows of `from` have whole
 * vectors, too. */
static void F(transpose)(const REAL *from, int64_t from_row, int64_t rows, int64_t columns, REAL *to, int64_t to_row) {
    Mask lane = F(lane_numbers)();
    for (int64_t first = 0; first < rows; first += LANES)
        for (int64_t k = 0; k < columns; k += LANES) {
            const REAL *corner = from + first * from_row + k;
            Vector block[LANES];
            if (first + LANES <= rows) {
                UNROLL for (int i = 0; i < LANES; i++) block[i] = LOAD(corner + i * from_row);
            } else {
                UNROLL for (int i = 0; i < LANES; i++) block[i] = first + i < rows ? LOAD(corner + i * from_row) : (Vector){0};
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
            REAL *target = to + k * to_row + first;
            if (k + LANES <= columns) {
                UNROLL for (int i = 0; i < LANES; i++) STORE(target + i * to_row, block[i]);
            } else {
                UNROLL for (int i = 0; i < LANES; i++)
                    if (k + i < columns) STORE(target + i * to_row, block[i]);
            }
        }
}
