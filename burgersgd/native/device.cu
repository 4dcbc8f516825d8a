/* What the sources for GPUs begin with: the same text is CUDA (NVRTC) and C++ for the CPU, there with a single thread, so that
 * their arithmetic is tested without a GPU. N_THREADS: threads of a block. */
#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define INFINITY __int_as_float(0x7f800000)
#else
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#endif

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define SYNC() __syncthreads()
#define TID ((int)threadIdx.x)
#define THREADS N_THREADS
#define UNROLL _Pragma("unroll")
#define UNROLL_8 _Pragma("unroll 8")
#define SQRT(x) __fsqrt_rn(x)
#define MULHI(a, b) __umulhi(a, b)
#define F2I(x) __float_as_int(x)
#define I2F(x) __int_as_float(x)
#define ADD(at, value) atomicAdd(at, value)
/* What engines/tracing.py writes. */
#define __builtin_fabs(x) fabs((double)(x))
#define __builtin_sqrt(x) sqrt((double)(x))
#define __builtin_exp(x) exp((double)(x))
#define __builtin_log(x) log((double)(x))
#define __builtin_log1p(x) log1p((double)(x))
#define __builtin_expm1(x) expm1((double)(x))
#define __builtin_tanh(x) tanh((double)(x))
#define __builtin_erf(x) erf((double)(x))
#define __builtin_pow(x, y) pow((double)(x), (double)(y))
#define __builtin_inf() __longlong_as_double(0x7ff0000000000000)
#define __builtin_nan(x) __longlong_as_double(0x7ff8000000000000)
#else
#define DEVICE static inline
#ifndef TID /* a test of several threads defines its own */
#define SYNC()
#define TID 0
#define THREADS 1
#endif
#define UNROLL
#define UNROLL_8
#define SQRT(x) sqrtf(x)
#define MULHI(a, b) (uint32_t)(((uint64_t)(a) * (b)) >> 32)
#define ADD(at, value) __atomic_fetch_add(at, value, __ATOMIC_RELAXED)
static inline int32_t F2I(float x) { int32_t i; memcpy(&i, &x, 4); return i; }
static inline float I2F(int32_t i) { float x; memcpy(&x, &i, 4); return x; }
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
#endif

/* Philox4x32-10 of Salmon et al. 2011: counter c becomes four random words. */
DEVICE void philox(uint32_t c[4], uint32_t k0, uint32_t k1) {
    UNROLL for (int i = 0; i < 10; i++) {
        const uint32_t h0 = MULHI(c[0], 0xD2511F53u), l0 = c[0] * 0xD2511F53u;
        const uint32_t h1 = MULHI(c[2], 0xCD9E8D57u), l1 = c[2] * 0xCD9E8D57u;
        c[0] = h1 ^ c[1] ^ k0, c[1] = l1, c[2] = h0 ^ c[3] ^ k1, c[3] = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
}
