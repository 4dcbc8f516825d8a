/* The orders of n random keys of 63 bits (streams.py: permutations), ties in the order of i; one order per block of threads. As
 * the keys are random, their first bits put each near its place: of n buckets few hold more than some keys.
 *
 * CUDA and C++ as cycles.cu. streams_orders.py writes device.cu before it, and before that N_THREADS. */
typedef struct {
    int64_t *out;          /* [epochs, runs, n] */
    const uint64_t *seeds; /* [runs] */
    uint64_t first_epoch;
    int64_t runs, n;
    uint32_t purpose;
} Orders;

/* Shared memory of a block: 16 n bytes and a number per thread. */
typedef struct {
    uint64_t *keys;
    int *ends;   /* of the buckets in `sorted`, first their numbers of keys, then their starts */
    int *sorted; /* keys by their number */
    int *sums;   /* one per thread */
} Room;

DEVICE int bucket_of(uint64_t key, int n) { return (int)((key >> 32) * (uint64_t)n >> 31); }

/* ends[b] becomes the sum of all before it. */
DEVICE void starts_of(int *ends, int n, int *sums) {
    const int each = (n + THREADS - 1) / THREADS, from = TID * each, to = from + each < n ? from + each : n;
    int sum = 0;
    for (int b = from; b < to; b++) sum += ends[b];
    sums[TID] = sum;
    SYNC();
    for (int d = 1; d < THREADS; d *= 2) {
        const int before = TID >= d ? sums[TID - d] : 0;
        SYNC();
        sums[TID] += before;
        SYNC();
    }
    int start = sums[TID] - sum;
    for (int b = from; b < to; b++) {
        const int count = ends[b];
        ends[b] = start, start += count;
    }
    SYNC();
}

DEVICE void one_order(const Orders &p, int64_t which, Room room) {
    const int n = (int)p.n;
    const uint64_t epoch = p.first_epoch + which / p.runs, seed = p.seeds[which % p.runs];
    for (int b = TID; b < n; b += THREADS) room.ends[b] = 0;
    SYNC();
    for (int block = TID; block < (n + 1) / 2; block += THREADS) { /* two keys each */
        uint32_t w[4] = {(uint32_t)block, (uint32_t)epoch, (uint32_t)(epoch >> 32), p.purpose};
        philox(w, (uint32_t)seed, (uint32_t)(seed >> 32));
        for (int half = 0; half < 2; half++) {
            const int i = 2 * block + half;
            if (i >= n) break;
            const uint64_t key = (uint64_t)(w[2 * half] >> 1) << 32 | w[2 * half + 1];
            room.keys[i] = key;
            ADD(room.ends + bucket_of(key, n), 1);
        }
    }
    SYNC();
    starts_of(room.ends, n, room.sums);
    for (int i = TID; i < n; i += THREADS) room.sorted[ADD(room.ends + bucket_of(room.keys[i], n), 1)] = i;
    SYNC();
    for (int b = TID; b < n; b += THREADS) { /* a bucket's keys came in any order: sort them by (key, i) */
        const int from = b > 0 ? room.ends[b - 1] : 0, to = room.ends[b];
        for (int k = from + 1; k < to; k++) {
            const int i = room.sorted[k];
            const uint64_t key = room.keys[i];
            int at = k;
            for (; at > from; at--) {
                const int before = room.sorted[at - 1];
                if (room.keys[before] < key || (room.keys[before] == key && before < i)) break;
                room.sorted[at] = before;
            }
            room.sorted[at] = i;
        }
    }
    SYNC();
    for (int k = TID; k < n; k += THREADS) p.out[which * p.n + k] = room.sorted[k];
}

DEVICE Room room_in(void *memory, int64_t n) {
    uint64_t *keys = (uint64_t *)memory;
    int *ends = (int *)(keys + n);
    const Room room = {keys, ends, ends + n, ends + 2 * n};
    return room;
}

#ifdef __CUDACC__
extern "C" __global__ void __launch_bounds__(N_THREADS) orders(const __grid_constant__ Orders p) {
    extern __shared__ uint64_t memory[];
    one_order(p, blockIdx.x, room_in(memory, p.n));
}
#else
extern "C" void orders(const Orders *p, int64_t which, void *memory) { one_order(*p, which, room_in(memory, p->n)); }
#endif
