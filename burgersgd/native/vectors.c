/* Vectors of REAL, GCC's extension in the machine's width, and their elementary functions: part of mlp_gradient.c. */

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
/* Vectors in a panel of columns, and rows of a tile, so that the sums of a tile and their operands fit the registers. */
#if defined(__AVX512F__) || defined(__aarch64__) /* 32 registers, at most 24 of them for sums */
#define PANEL 4
#define TILE_ROWS(vectors) ((vectors) == 4 ? 6 : (vectors) == 3 ? 8 : 12)
#else /* 16 registers, 12 of them for sums */
#define PANEL 2
#define TILE_ROWS(vectors) ((vectors) == 2 ? 6 : 12)
#endif

/* for (int64_t i = 0; i < count; i++) body, distributed over the team; the result must not depend on the distribution. */
#ifdef _OPENMP
#define TEAM_FOR(count, ...)                                                                  \
    if (team > 1) {                                                                           \
        _Pragma("omp parallel for num_threads(team) schedule(dynamic)")                        \
        for (int64_t i = 0; i < (count); i++) __VA_ARGS__                                     \
    } else                                                                                    \
        for (int64_t i = 0; i < (count); i++) __VA_ARGS__
#define TEAM_MEMBER (team > 1 ? omp_get_thread_num() : 0)
#else
#define TEAM_FOR(count, ...) for (int64_t i = 0; i < (count); i++) __VA_ARGS__
#define TEAM_MEMBER 0
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define CONCAT(a, b) a##b
#define WITH_SUFFIX(name, suffix) CONCAT(name, suffix)
#define F(name) WITH_SUFFIX(name, SUFFIX)

#ifdef DOUBLE
#define REAL double
#define INTEGER int64_t
#define SUFFIX _f64
#else
#define REAL float
#define INTEGER int32_t
#define SUFFIX _f32
#endif
#define LANES ((int64_t)(VECTOR_BYTES / sizeof(REAL)))
typedef REAL F(Vector) __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL F(Unaligned) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER F(Mask) __attribute__((vector_size(VECTOR_BYTES)));
#define Vector F(Vector)
#define Mask F(Mask)
#define LOAD(p) ((Vector)*(const F(Unaligned) *)(p))
#define STORE(p, v) (*(F(Unaligned) *)(p) = (F(Unaligned))(v))
#define SELECT(mask, yes, no) F(select)(mask, yes, no)

INLINE Vector F(select)(Mask mask, Vector yes, Vector no) { return (Vector)((mask & (Mask)yes) | (~mask & (Mask)no)); }

INLINE int64_t F(vectors)(int64_t n) { return (n + LANES - 1) / LANES; }

/* Row stride of a [batch, n] array: whole vectors, and no multiple of 1 KiB, whose rows would share cache sets. */
INLINE int64_t F(stride)(int64_t n) {
    int64_t stride = F(vectors)(n) * LANES;
    return stride * sizeof(REAL) % 1024 ? stride : stride + LANES;
}

INLINE Mask F(lane_numbers)(void) {
    Mask lane;
    UNROLL for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane;
}

/* Lane i is lane which[i] of a followed by b. */
INLINE Vector F(shuffle)(Vector a, Vector b, Mask which) {
#ifdef __clang__
    Vector v;
    UNROLL for (int i = 0; i < LANES; i++) v[i] = which[i] < LANES ? a[which[i] % LANES] : b[which[i] % LANES];
    return v;
#else
    return __builtin_shuffle(a, b, which);
#endif
}

INLINE Vector F(load_some)(const REAL *p, int64_t n) {
    if (n >= LANES) return LOAD(p);
    Vector v = {0};
    if (n > 0) memcpy(&v, p, n * sizeof(REAL));
    return v;
}

static __attribute__((noinline)) void F(store_some)(REAL *p, Vector v, int64_t n) { memcpy(p, &v, n * sizeof(REAL)); }

INLINE void F(copy_row)(REAL *restrict to, const REAL *restrict from, int64_t n) {
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) STORE(to + j, LOAD(from + j));
    if (j < n) STORE(to + j, F(load_some)(from + j, n - j));
}

/* ---------------------------------------------------------------------------------------------- elementary functions */

/* ((c[0] x + c[1]) x + c[2]) x + ... */
#define POLYNOMIAL(x, ...) F(polynomial)(x, (const REAL[]){__VA_ARGS__}, sizeof((const REAL[]){__VA_ARGS__}) / sizeof(REAL))
INLINE Vector F(polynomial)(Vector x, const REAL *c, const int terms) {
    Vector y = c[0] - (Vector){0};
    UNROLL for (int i = 1; i < terms; i++) y = y * x + c[i];
    return y;
}

/* exp(x) = 2^n exp(r), |r| <= log(2) / 2, to about an ulp. Saturates where exp(x) would stop being a normal number:
 * the arguments here are <= 0 (softmax) or small (tanh). A NaN passes every comparison. */
INLINE Vector F(vector_exp)(Vector x) {
    const int is_float = sizeof(REAL) == 4, fraction_bits = is_float ? 23 : 52, exponent_bias = is_float ? 127 : 1023;
    const REAL lowest = is_float ? (REAL)-87.3 : (REAL)-708.3;
    const REAL rounding = is_float ? (REAL)0x1.8p23 : (REAL)0x1.8p52; /* adding it rounds to an integer */
    x = SELECT(x < lowest, lowest - (Vector){0}, x);
    Vector shifted = x * (REAL)1.44269504088896340736 + rounding, n = shifted - rounding, y;
    Vector r = x - n * (REAL)0.693145751953125; /* log(2) in two parts; n times the first is exact */
    r = r - n * (REAL)1.42860682030941723212e-6;
    if (is_float) /* Cephes' expf */
        y = POLYNOMIAL(r, 1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                       5.0000001201e-1f);
    else /* Taylor: the next term is below 1e-17 */
        y = POLYNOMIAL(r, 1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040,
                       1. / 720, 1. / 120, 1. / 24, 1. / 6, 1. / 2);
    y = y * (r * r) + r + (REAL)1;
    Mask power = ((Mask)shifted - (Mask)(rounding - (Vector){0}) + exponent_bias) << fraction_bits;
    return y * (Vector)power;
}

INLINE Vector F(vector_tanh)(Vector x) {
    const REAL one_from = sizeof(REAL) == 4 ? (REAL)9.02 : (REAL)19.07; /* tanh rounds to 1 there */
    Vector size = SELECT(x < 0, -x, x), s = x * x, near;
    size = SELECT(size > one_from, one_from - (Vector){0}, size);
    Vector far = (REAL)1 - (REAL)2 / (F(vector_exp)(size + size) + (REAL)1);
    far = SELECT(x < 0, -far, far);
    if (sizeof(REAL) == 4) /* Cephes' tanhf and tanh near 0 */
        near = POLYNOMIAL(s, -5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                          -3.33332819422e-1f);
    else
        near = POLYNOMIAL(s, -9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3) /
               POLYNOMIAL(s, 1, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3);
    near = near * s * x + x;
    return SELECT(size < (REAL)0.625, near, far);
}

/* Sum or maximum over the lanes, in every lane. */
#define ACROSS_LANES(v, combine)                                                        \
    UNROLL for (int step = 1; step < LANES; step *= 2) {                                \
        Vector other = F(shuffle)(v, v, F(lane_numbers)() ^ (INTEGER)step);         \
        v = combine;                                                                    \
    }
