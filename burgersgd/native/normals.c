/* Philox4x32-10 streams (Salmon et al. 2011) and Box-Muller normals; the contract is in burgersgd/streams.py.
 *
 * Compiled by burgersgd/native/__init__.py for the machine it runs on. A stream is cut into groups of 32 values (8 Philox
 * blocks); a group is computed whole, in vectors of the machine's width, and does not depend on anything around it, so
 * no result depends on n, on the number of rows or threads, or on alignment. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
#define WIDE_PRODUCT(a, b) ((u64s)_mm512_mul_epu32((__m512i)(a), (__m512i)(b)))
#define SQRT(a) ((floats)_mm512_sqrt_ps((__m512)(a)))
#elif defined(__AVX2__)
#define BYTES 32
#define WIDE_PRODUCT(a, b) ((u64s)_mm256_mul_epu32((__m256i)(a), (__m256i)(b)))
#define SQRT(a) ((floats)_mm256_sqrt_ps((__m256)(a)))
#else
#define BYTES 16
#ifdef __SSE2__
#define WIDE_PRODUCT(a, b) ((u64s)_mm_mul_epu32((__m128i)(a), (__m128i)(b)))
#define SQRT(a) ((floats)_mm_sqrt_ps((__m128)(a)))
#else
#define WIDE_PRODUCT(a, b) (((a) & LOW) * ((b) & LOW))
static inline float sqrt1(float a) { return __builtin_sqrtf(a); }
#define SQRT(a) ((floats){sqrt1((a)[0]), sqrt1((a)[1]), sqrt1((a)[2]), sqrt1((a)[3])})
#endif
#endif

#define BLOCKS (BYTES / 8) /* Philox blocks in one vector */
#define PAIRS (BYTES / 4)  /* pairs of words, so Box-Muller radii, in one vector */
#define GROUP 32           /* values in a group */
#define VECTORS (16 / PAIRS) /* of pairs in a group */
#define LOW UINT64_C(0xffffffff)

typedef uint64_t u64s __attribute__((vector_size(BYTES)));
typedef uint32_t u32s __attribute__((vector_size(BYTES)));
typedef int32_t i32s __attribute__((vector_size(BYTES)));
typedef float floats __attribute__((vector_size(BYTES)));

enum kind { INTEGERS, UNIFORMS, NORMALS, NORMALS_WIDENED }; /* int64, float32, float32, float64: as in streams.py */

typedef struct {
    uint64_t round_keys[10][2];
    uint64_t counter[3]; /* step low, step high, purpose */
} row_t;

static row_t row_of(uint64_t seed, uint32_t purpose, uint64_t step) {
    row_t row = {.counter = {step & LOW, step >> 32, purpose}};
    for (uint64_t i = 0; i < 10; i++) {
        row.round_keys[i][0] = ((seed & LOW) + i * 0x9E3779B9) & LOW;
        row.round_keys[i][1] = ((seed >> 32) + i * 0xBB67AE85) & LOW;
    }
    return row;
}

/* Words (2p, 2p + 1) of the 16 pairs p of a group, PAIRS in a vector, from the blocks first_block, first_block + 1, ...
 * Each 64-bit lane carries one block; only the low half of a lane counts until the end. The vectors of a group go through
 * the rounds side by side: a round waits for the products of the one before. */
static inline __attribute__((always_inline)) void philox(const row_t *row, uint32_t first_block, u32s *even, u32s *odd) {
    u64s c0[VECTORS], c1[VECTORS], c2[VECTORS], c3[VECTORS];
    const u64s m0 = UINT64_C(0xD2511F53) - (u64s){}, m1 = UINT64_C(0xCD9E8D57) - (u64s){};
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
        for (int lane = 0; lane < BLOCKS; lane++) c0[v][lane] = (uint32_t)(first_block + v * BLOCKS + lane);
        c1[v] = row->counter[0] - (u64s){}, c2[v] = row->counter[1] - (u64s){}, c3[v] = row->counter[2] - (u64s){};
    }
#pragma GCC unroll 10
    for (int i = 0; i < 10; i++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            u64s p0 = WIDE_PRODUCT(c0[v], m0), p1 = WIDE_PRODUCT(c2[v], m1);
            c0[v] = (p1 >> 32) ^ c1[v] ^ row->round_keys[i][0];
            c2[v] = (p0 >> 32) ^ c3[v] ^ row->round_keys[i][1];
            c1[v] = p1;
            c3[v] = p0;
        }
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
        even[v] = (u32s)((c0[v] & LOW) | (c2[v] << 32)); /* little-endian: words 0, 2 of block 0, words 0, 2 of block 1, ... */
        odd[v] = (u32s)((c1[v] & LOW) | (c3[v] << 32));
    }
}

/* Box-Muller: radius sqrt(-2 log u) with u = (a + 1/2) / 2^32, angle 2 pi b / 2^32.
 * The polynomials are minimax (Remez) fits; each is good to 1e-7 in the normal number. */
static inline __attribute__((always_inline)) void box_muller(u32s a, u32s b, floats *cosines, floats *sines) {
    floats u = __builtin_convertvector(a, floats) * 0x1p-32f + 0x1p-33f;
    i32s exponent = ((i32s)u - 0x3f2aaaab) >> 23; /* u = 2^exponent (1 + f), f in [-1/3, 1/3) */
    floats f = (floats)((i32s)u - (exponent << 23)) - 1.0f;
    floats log1p = 3.0806506e-1f - 2.8869912e-1f * f; /* -2 log(1 + f) / f */
    log1p = log1p * f - 2.7806922e-1f;
    log1p = log1p * f + 3.2825562e-1f;
    log1p = log1p * f - 4.0035582e-1f;
    log1p = log1p * f + 5.0016056e-1f;
    log1p = log1p * f - 6.6666078e-1f;
    log1p = log1p * f + 9.9999864e-1f;
    log1p = log1p * f - 2.0f;
    floats radius = SQRT(log1p * f - 1.38629436f * __builtin_convertvector(exponent, floats));

    /* The angle is a multiple of pi/2, its parity and signs in the top bits of quadrant, and pi x, x in [-1/4, 1/4). */
    u32s quadrant = b + 0x20000000u;
    floats x = __builtin_convertvector((i32s)(b << 2), floats) * 0x1p-33f;
    floats z = x * x;
    floats sine = 2.5496302f - 5.8782388e-1f * z; /* sin(pi x) / x */
    sine = sine * z - 5.1677036f;
    sine = sine * z + 3.1415926f;
    sine = sine * x;
    floats cosine = 2.3146938e-1f * z - 1.3350636f; /* cos(pi x) */
    cosine = cosine * z + 4.0587081f;
    cosine = cosine * z - 4.9348022f;
    cosine = cosine * z + 1.0f;
    u32s s = (u32s)sine, c = (u32s)cosine, swap = (u32s)((i32s)(quadrant << 1) >> 31);
    *cosines = (floats)(((s & swap) | (c & ~swap)) ^ ((quadrant ^ (quadrant << 1)) & 0x80000000u)) * radius;
    *sines = (floats)(((c & swap) | (s & ~swap)) ^ (quadrant & 0x80000000u)) * radius;
}

/* The 32 normals of a group: the cosines of its 16 pairs, then their sines. */
static inline __attribute__((always_inline)) void group_of_normals(const row_t *row, uint32_t first_block, float *out) {
    u32s even[VECTORS], odd[VECTORS];
    philox(row, first_block, even, odd);
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
        floats cosines, sines;
        box_muller(even[v], odd[v], &cosines, &sines);
        memcpy(out + v * PAIRS, &cosines, BYTES);
        memcpy(out + 16 + v * PAIRS, &sines, BYTES);
    }
}

static inline void group_of_words(const row_t *row, uint32_t first_block, uint32_t *out) {
    u32s even[VECTORS], odd[VECTORS];
    philox(row, first_block, even, odd);
    for (int v = 0; v < VECTORS; v++)
        for (int lane = 0; lane < PAIRS; lane++) {
            out[2 * (v * PAIRS + lane)] = even[v][lane];
            out[2 * (v * PAIRS + lane) + 1] = odd[v][lane];
        }
}

/* Values [from, to) of one row, from a multiple of GROUP. */
static void fill_part(void *out, enum kind kind, const row_t *row, uint32_t first_block, int64_t from, int64_t to) {
    float normals[GROUP];
    uint32_t words[GROUP];
    for (int64_t j = from; j < to; j += GROUP) {
        uint32_t block = first_block + (uint32_t)(j / 4);
        int count = to - j < GROUP ? (int)(to - j) : GROUP;
        if (kind == NORMALS && count == GROUP) {
            group_of_normals(row, block, (float *)out + j);
        } else if (kind == NORMALS || kind == NORMALS_WIDENED) {
            group_of_normals(row, block, normals);
            if (kind == NORMALS) memcpy((float *)out + j, normals, count * sizeof(float));
            else for (int i = 0; i < count; i++) ((double *)out)[j + i] = normals[i];
        } else {
            group_of_words(row, block, words);
            if (kind == INTEGERS) for (int i = 0; i < count; i++) ((int64_t *)out)[j + i] = words[i];
            else for (int i = 0; i < count; i++) ((float *)out)[j + i] = (float)(words[i] >> 8) * 0x1p-24f;
        }
    }
}

/* What streams.py packs, field by field. */
typedef struct {
    void *out;             /* [steps, runs, n], contiguous */
    const uint64_t *seeds; /* [runs] */
    uint64_t first_step;
    int64_t steps, runs, n;
    uint32_t purpose, first_block;
    int32_t kind, threads;
} request_t;

/* Groups [group, end) of all groups, counted through the rows. */
static void fill_groups(const request_t *r, int64_t group, int64_t end) {
    static const int64_t size[] = {[INTEGERS] = 8, [UNIFORMS] = 4, [NORMALS] = 4, [NORMALS_WIDENED] = 8};
    const int64_t groups = (r->n + GROUP - 1) / GROUP;
    while (group < end) {
        int64_t index = group / groups, from = group % groups, to = from + (end - group);
        if (to > groups) to = groups;
        row_t row = row_of(r->seeds[index % r->runs], r->purpose, r->first_step + (uint64_t)(index / r->runs));
        fill_part((char *)r->out + index * r->n * size[r->kind], r->kind, &row, r->first_block, from * GROUP,
                  to == groups ? r->n : to * GROUP);
        group += to - from;
    }
}

void fill(const request_t *r) {
    const int64_t total = r->steps * r->runs * ((r->n + GROUP - 1) / GROUP);
    if (r->threads == 1) { /* a parallel region of one thread costs 0.5 us */
        fill_groups(r, 0, total);
        return;
    }
#pragma omp parallel for num_threads(r->threads) schedule(static)
    for (int thread = 0; thread < r->threads; thread++)
        fill_groups(r, total * thread / r->threads, total * (thread + 1) / r->threads);
}

typedef struct {
    uint64_t key;
    int64_t i;
} keyed_t;

/* The order of n random keys of 63 bits, ties in the order of i. As the keys are random, their first bits put each near
 * its place, and a bucket holds one or two. */
static void order_row(int64_t *out, const row_t *row, int64_t n, uint64_t *keys, keyed_t *sorted, int64_t *ends) {
    int bits = 0;
    while (bits < 20 && ((int64_t)2 << bits) <= n) bits++;
    memset(ends, 0, ((size_t)1 << bits) * sizeof(int64_t));
    for (int64_t j = 0; j < n; j += GROUP / 2) {
        uint32_t words[GROUP];
        group_of_words(row, (uint32_t)(j / 2), words);
        const int count = n - j < GROUP / 2 ? (int)(n - j) : GROUP / 2;
        for (int i = 0; i < count; i++) {
            keys[j + i] = (uint64_t)(words[2 * i] >> 1) << 32 | words[2 * i + 1];
            ends[keys[j + i] >> (63 - bits)]++;
        }
    }
    for (int64_t b = 0, start = 0; b < (int64_t)1 << bits; b++) {
        const int64_t count = ends[b];
        ends[b] = start, start += count;
    }
    for (int64_t i = 0; i < n; i++) sorted[ends[keys[i] >> (63 - bits)]++] = (keyed_t){keys[i], i};
    for (int64_t i = 1; i < n; i++) { /* insertion: nothing moves out of its bucket */
        const keyed_t one = sorted[i];
        int64_t k = i;
        for (; k > 0 && sorted[k - 1].key > one.key; k--) sorted[k] = sorted[k - 1];
        sorted[k] = one;
    }
    for (int64_t i = 0; i < n; i++) out[i] = sorted[i].i;
}

static int order_rows(const request_t *r, int64_t from, int64_t to) {
    const size_t n = (size_t)r->n, buckets = n < 1 << 20 ? n + 1 : 1 << 20;
    char *memory = malloc(n * (sizeof(uint64_t) + sizeof(keyed_t)) + buckets * sizeof(int64_t));
    if (memory == NULL) return 1;
    keyed_t *sorted = (keyed_t *)memory;
    uint64_t *keys = (uint64_t *)(sorted + n);
    int64_t *ends = (int64_t *)(keys + n);
    for (int64_t index = from; index < to; index++) {
        const row_t row = row_of(r->seeds[index % r->runs], r->purpose, r->first_step + (uint64_t)(index / r->runs));
        order_row((int64_t *)r->out + index * r->n, &row, r->n, keys, sorted, ends);
    }
    free(memory);
    return 0;
}

/* Permutations of range(n), int64 [epochs, runs, n]; returns 1 if memory cannot be allocated. */
int orders(const request_t *r) {
    const int64_t total = r->steps * r->runs;
    if (r->threads == 1) return order_rows(r, 0, total);
    int failed = 0;
#pragma omp parallel for num_threads(r->threads) schedule(static) reduction(| : failed)
    for (int thread = 0; thread < r->threads; thread++)
        failed |= order_rows(r, total * thread / r->threads, total * (thread + 1) / r->threads);
    return failed;
}
