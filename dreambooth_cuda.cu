/* dreambooth_cuda.cu - the operations of dreambooth.h on an NVIDIA GPU

   Do this:

       nvcc -O3 -arch=native -c dreambooth_cuda.cu        (or #include it in a .cu of yours)

       db_config c = db_config_default();
       const char *why;
       c.backend = db_backend_cuda(&why);               // NULL, and *why says why: the CPU is taken
       db_create(&ctx, &c);

   Needs the CUDA runtime and nothing else; compute capability 7.5 and up. Tensor cores are used where
   it was compiled for 8.0 and up: without -arch nvcc compiles for less.

   Every function db__cu_run_NAME is the twin of db__cpu_NAME in dreambooth.h [DB-03c], which
   documents the arguments, and is tested against it (tests/test_ops.c with TEST_CUDA).
   tests/cuda_host.h runs the same kernels on the processor.

   Easy to get wrong
   - All memory of the backend is managed: host code (loading, saving) reads and writes parameters
     as if they were its own, but only while nothing runs; db_run ends by waiting (`sync`).
   - From its second run on a tape is a CUDA graph: an operation may not wait, allocate or look at
     numbers, and what changes from run to run (the noise's seed and step) lies in GPU memory.
   - Everything goes through the thread's own stream: another thread's recording forbids the use of
     the common one.
   - The output of act, act_dx and gate_dx may lie on an input: the thread that reads an element
     writes it, later; no __restrict__.
   - Sums have a fixed order: parts by shape, trees by thread index, no floating-point atomics. The
     same run gives the same bits.
   - A kernel without a result for a part of its grid still reaches every barrier of its block. */
#include "dreambooth.h"

#include <math.h>
#include <mutex>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef DB_LAUNCH
#include <cuda_runtime.h>
#define DB_LAUNCH(kernel, blocks, threads, ...) \
    kernel<<<(blocks), (threads), 0, cudaStreamPerThread>>>(__VA_ARGS__)
#endif

#ifdef __CUDACC__
#define DB__CU_UNROLL _Pragma("unroll")
#else
#define DB__CU_UNROLL
#endif

/* ---- numbers: f32, and bf16 as bits, rounded to nearest even as the CPU does ---------------- */

struct db__cu_bf16 {
    uint16_t bits;
};

static __device__ __forceinline__ uint16_t db__cu_round(float x)
{
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}
static __device__ __forceinline__ float db__cu_get(const float *p, size_t i) { return p[i]; }
static __device__ __forceinline__ float db__cu_get(const db__cu_bf16 *p, size_t i)
{
    return __uint_as_float((uint32_t)p[i].bits << 16);
}
static __device__ __forceinline__ void db__cu_set(float *p, size_t i, float x) { p[i] = x; }
static __device__ __forceinline__ void db__cu_set(db__cu_bf16 *p, size_t i, float x)
{
    p[i].bits = db__cu_round(x);
}

/* p[i] (+)= x */
template <class T>
static __device__ __forceinline__ void db__cu_put(T *p, size_t i, float x, int add)
{
    db__cu_set(p, i, add ? db__cu_get(p, i) + x : x);
}

/* ---- the few PTX instructions; tests/cuda_host.h has their twins --------------------------- */

#ifdef __CUDACC__
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define DB__CU_PTX(...) asm volatile(__VA_ARGS__)
#else
#define DB__CU_PTX(...) __trap() /* not reached: db__cu_tensor_cores() is 0 there */
#endif

/* Begins to copy the first `bytes` of 16 bytes into shared memory; zeros follow. */
static __device__ __forceinline__ void db__cu_copy_async(void *shared, const void *global,
                                                         int bytes)
{
    uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    (void)to, (void)global, (void)bytes;
    DB__CU_PTX("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}
static __device__ __forceinline__ void db__cu_copy_commit(void)
{
    DB__CU_PTX("cp.async.commit_group;" ::: "memory");
}
/* Waits until all but the last `left` groups have arrived. */
template <int left> static __device__ __forceinline__ void db__cu_copy_wait(void)
{
    DB__CU_PTX("cp.async.wait_group %0;" ::"n"(left) : "memory");
}
/* Four 8 x 8 matrices of bf16; lane l names row l % 8 of matrix l / 8. */
static __device__ __forceinline__ void db__cu_load_matrices(uint32_t r[4], const void *row,
                                                            int transposed)
{
    uint32_t from = (uint32_t)__cvta_generic_to_shared(row);
    (void)from;
    if (transposed)
        DB__CU_PTX("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                   : "r"(from)
                   : "memory");
    else
        DB__CU_PTX("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                   : "r"(from)
                   : "memory");
}
/* c [16][8] += a [16][16] b [16][8] */
static __device__ __forceinline__ void db__cu_multiply(float c[4], const uint32_t a[4],
                                                       const uint32_t b[2])
{
    DB__CU_PTX("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
               "{%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* Two numbers as bf16, rounded to nearest even; `low` in the lower half. */
static __device__ __forceinline__ uint32_t db__cu_pair(float low, float high)
{
    uint32_t both = 0;
    (void)low, (void)high;
    DB__CU_PTX("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
#endif

/* ---- helpers of the host part --------------------------------------------------------------- */

static size_t db__cu_count(const db_arg *a)
{
    size_t n = a->present ? 1 : 0;
    int d;
    for (d = 0; d < a->n_dims; d++) n *= a->dim[d];
    return n;
}
static size_t db__cu_up(size_t a, size_t b) { return (a + b - 1) / b; }
static size_t db__cu_min(size_t a, size_t b) { return a < b ? a : b; }
static size_t db__cu_max(size_t a, size_t b) { return a > b ? a : b; }

/* Memory for the call; NULL while measuring. */
template <class T> static T *db__cu_scratch(db_call *c, size_t n)
{
    char *at = (char *)c->scratch + c->scratch_used;
    c->scratch_used += db__cu_up(n * sizeof(T), 256) * 256;
    return c->measuring ? NULL : (T *)(void *)at;
}
template <class T> static T *db__cu_data(const db_arg *a) { return (T *)a->data; }

enum { DB__CU_THREADS = 256 };

/* Blocks of a kernel that walks n elements. */
static size_t db__cu_blocks(size_t n) { return db__cu_min(db__cu_up(n, DB__CU_THREADS), 1u << 20); }

/* for (i = 0; i < n; i++) over all threads of the grid */
#define DB__CU_EACH(i, n)                                                   \
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); \
         i += (size_t)gridDim.x * blockDim.x)

/* Runs the statement with T as the data type. */
#define DB__CU_TYPED(a, ...)         \
    do {                             \
        if ((a)->dtype == DB_BF16) { \
            typedef db__cu_bf16 T;   \
            __VA_ARGS__;             \
        } else {                     \
            typedef float T;         \
            __VA_ARGS__;             \
        }                            \
    } while (0)

/* The sum of x over the block, for all threads: a tree over their indices. `shared` has room for
 * blockDim.x. */
template <class S> static __device__ S db__cu_sum(S x, S *shared)
{
    __syncthreads();
    shared[threadIdx.x] = x;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    return shared[0];
}
/* The same for the largest. */
static __device__ float db__cu_max_of(float x, float *shared)
{
    __syncthreads();
    shared[threadIdx.x] = x;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half)
            shared[threadIdx.x] = fmaxf(shared[threadIdx.x], shared[threadIdx.x + half]);
        __syncthreads();
    }
    return shared[0];
}
static __device__ __forceinline__ float db__cu_warp_sum(float x)
{
    for (int m = 16; m; m /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, m);
    return x;
}
static __device__ __forceinline__ float db__cu_warp_max(float x)
{
    for (int m = 16; m; m /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, m));
    return x;
}

/* ---- sums over rows ----------------------------------------------------------------------------
   x [groups][P][C] -> sums of parts [groups][parts][C] -> y [groups][C] (+)= scale sum. */

template <class T> static __global__ void db__cu_columns(float *sum, const T *x, size_t groups,
                                                         size_t P, size_t C, size_t parts)
{
    DB__CU_EACH (i, groups * parts * C) {
        size_t ch = i % C, part = i / C % parts, g = i / C / parts, p;
        float s = 0;
        for (p = P * part / parts; p < P * (part + 1) / parts; p++)
            s += db__cu_get(x, (g * P + p) * C + ch);
        sum[i] = s;
    }
}
template <class T> static __global__ void db__cu_columns_end(T *y, const float *sum, size_t groups,
                                                             size_t parts, size_t C, float scale,
                                                             int add)
{
    DB__CU_EACH (i, groups * C) {
        float s = 0;
        size_t k;
        for (k = 0; k < parts; k++) s += sum[(i / C * parts + k) * C + i % C];
        db__cu_put(y, i, s * scale, add);
    }
}
static size_t db__cu_parts(size_t P) { return db__cu_min(db__cu_up(P, 64), 1024); }

template <class T, class Y> static void db__cu_sum_columns(db_call *c, Y *y, const T *x,
                                                           size_t groups, size_t P, size_t C,
                                                           float scale, int add)
{
    size_t parts = db__cu_parts(P);
    float *sum = db__cu_scratch<float>(c, groups * parts * C);
    if (c->measuring) return;
    DB_LAUNCH(db__cu_columns<T>, db__cu_blocks(groups * parts * C), DB__CU_THREADS, sum, x, groups,
              P, C, parts);
    DB_LAUNCH(db__cu_columns_end<Y>, db__cu_blocks(groups * C), DB__CU_THREADS, y, sum, groups,
              parts, C, scale, add);
}

/* ---- convolution and linear layers --------------------------------------------------------------
   Three matrix products without a copy of the patches (implicit GEMM):

     forward   y[pixel][oc]        = sum over (ky,kx,ic) of x[...]  w[ky][oc][kx][ic]
     input     dx[pixel][ic]       = sum over (ky,kx,oc) of dy[...] w[ky][oc][kx][ic]
     weights   dw[ky][oc][kx][ic]  = sum over pixels     of dy[...] x[...]

   The weights are first written as rows B[n][K] in the activations' type. Operands are read through
   db__cu_operand, eight neighbouring numbers at a time where the channels allow it.
   db__cu_conv_plain multiplies in f32; db__cu_conv_tensor in bf16 on tensor cores, three stages of
   copies ahead of the products.                             */

enum db__cu_mode { DB__CU_FORWARD, DB__CU_INPUT, DB__CU_WEIGHTS };

struct db__cu_conv {
    size_t B, H, W, IC, OH, OW, OC, k, stride, pad; /* x [B,H,W,IC], y [B,OH,OW,OC]  */
    size_t M, N, K, ldb;                            /* of the product                */
    size_t parts;                                   /* of K, for the weights' gradient */
    int by8;                                        /* eight channels lie together   */
};

static db__cu_conv db__cu_conv_of(const db_arg *x, const db_arg *y, const size_t *s, int mode)
{
    db__cu_conv v;
    v.B = x->dim[0], v.H = x->dim[1], v.W = x->dim[2], v.IC = x->dim[3];
    v.OH = y->dim[1], v.OW = y->dim[2], v.OC = y->dim[3];
    v.k = s[0], v.stride = s[1], v.pad = s[2], v.parts = 1;
    if (mode == DB__CU_FORWARD)
        v.M = v.B * v.OH * v.OW, v.N = v.OC, v.K = v.k * v.k * v.IC, v.by8 = v.IC % 8 == 0;
    if (mode == DB__CU_INPUT)
        v.M = v.B * v.H * v.W, v.N = v.IC, v.K = v.k * v.k * v.OC, v.by8 = v.OC % 8 == 0;
    if (mode == DB__CU_WEIGHTS)
        v.M = v.OC, v.N = v.k * v.IC, v.K = v.B * v.OH * v.OW,
        v.by8 = v.IC % 8 == 0 && v.OC % 8 == 0;
    v.ldb = db__cu_up(v.K, 8) * 8;
    return v;
}

/* The weights as rows: forward B[oc][(ky,kx,ic)], input B[ic][(ky,kx,oc)]; zeros up to ldb. */
template <class T>
static __global__ void db__cu_conv_pack(T *b, const float *w, db__cu_conv v, int mode)
{
    size_t inner = mode == DB__CU_FORWARD ? v.IC : v.OC;
    DB__CU_EACH (i, v.N * v.ldb) {
        size_t n = i / v.ldb, kk = i % v.ldb, c = kk % inner, kx = kk / inner % v.k,
               ky = kk / inner / v.k;
        size_t oc = mode == DB__CU_FORWARD ? n : c, ic = mode == DB__CU_FORWARD ? c : n;
        db__cu_set(b, i, kk < v.K ? w[((ky * v.OC + oc) * v.k + kx) * v.IC + ic] : 0);
    }
}

/* Where element (row, column) of an operand lies, NULL where it is zero. A: rows of pixels, columns
   of K; for the weights' gradient rows of pixels, columns of oc. */
template <class T> static __device__ __forceinline__ const T *
db__cu_operand_a(const db__cu_conv &v, const T *a, size_t row, size_t col, int mode)
{
    size_t c, kx, ky, px, py, b;
    long y, x;
    if (mode == DB__CU_WEIGHTS) return row < v.K && col < v.M ? a + row * v.OC + col : NULL;
    if (row >= v.M || col >= v.K) return NULL;
    if (mode == DB__CU_FORWARD) {
        c = col % v.IC, kx = col / v.IC % v.k, ky = col / v.IC / v.k;
        px = row % v.OW, py = row / v.OW % v.OH, b = row / v.OW / v.OH;
        y = (long)(py * v.stride + ky) - (long)v.pad, x = (long)(px * v.stride + kx) - (long)v.pad;
        if (y < 0 || x < 0 || y >= (long)v.H || x >= (long)v.W) return NULL;
        return a + ((b * v.H + (size_t)y) * v.W + (size_t)x) * v.IC + c;
    }
    c = col % v.OC, kx = col / v.OC % v.k, ky = col / v.OC / v.k;
    px = row % v.W, py = row / v.W % v.H, b = row / v.W / v.H;
    y = (long)(py + v.pad) - (long)ky, x = (long)(px + v.pad) - (long)kx;
    if (y < 0 || x < 0 || y % (long)v.stride || x % (long)v.stride) return NULL;
    y /= (long)v.stride, x /= (long)v.stride;
    if (y >= (long)v.OH || x >= (long)v.OW) return NULL;
    return a + ((b * v.OH + (size_t)y) * v.OW + (size_t)x) * v.OC + c;
}
/* B: rows of n, columns of K; for the weights' gradient rows of pixels, columns of (kx,ic), seen
 * from row ky. */
template <class T> static __device__ __forceinline__ const T *
db__cu_operand_b(const db__cu_conv &v, const T *b, size_t row, size_t col, size_t ky, int mode)
{
    size_t px, py, image;
    long y, x;
    if (mode != DB__CU_WEIGHTS) return row < v.N && col < v.ldb ? b + row * v.ldb + col : NULL;
    if (row >= v.K || col >= v.N) return NULL;
    px = row % v.OW, py = row / v.OW % v.OH, image = row / v.OW / v.OH;
    y = (long)(py * v.stride + ky) - (long)v.pad,
    x = (long)(px * v.stride + col / v.IC) - (long)v.pad;
    if (y < 0 || x < 0 || y >= (long)v.H || x >= (long)v.W) return NULL;
    return b + ((image * v.H + (size_t)y) * v.W + (size_t)x) * v.IC + col % v.IC;
}

/* What is done with a finished element of the product. */
template <class T> struct db__cu_out {
    T *y;              /* [M][N] */
    const float *bias; /* [N] or NULL */
    const T *residual; /* like y, or NULL */
    int add;
    float *sum; /* the weights' gradient: [parts][k][M][N] */
};
template <class T> static __device__ __forceinline__ void db__cu_conv_end(const db__cu_conv &v,
                                                                          const db__cu_out<T> &out,
                                                                          size_t m, size_t n,
                                                                          float x, int mode)
{
    if (m >= v.M || n >= v.N) return;
    if (mode == DB__CU_WEIGHTS) {
        out.sum[(blockIdx.z * v.M + m) * v.N + n] = x;
        return;
    }
    if (out.bias) x += out.bias[n];
    if (out.residual) x += db__cu_get(out.residual, m * v.N + n);
    db__cu_put(out.y, m * v.N + n, x, out.add);
}

enum { DB__CU_TILE = 64, DB__CU_STEP = 16 };

/* A block computes 64 x 64 elements, a thread 4 x 4 of them. blockIdx.z: part * k + ky. */
template <class T> static __global__ void __launch_bounds__(256)
    db__cu_conv_plain(db__cu_conv v, db__cu_out<T> out, const T *a, const T *b, int mode)
{
    __shared__ float as[DB__CU_STEP][DB__CU_TILE + 1], bs[DB__CU_STEP][DB__CU_TILE + 1];
    size_t m0 = (size_t)blockIdx.x * DB__CU_TILE, n0 = (size_t)blockIdx.y * DB__CU_TILE;
    size_t part = blockIdx.z / v.k, ky = blockIdx.z % v.k, k0, end = v.K;
    unsigned tx = threadIdx.x % 16, ty = threadIdx.x / 16, i, j, e;
    float acc[4][4] = {{0}};
    k0 = 0;
    if (mode == DB__CU_WEIGHTS) k0 = v.K * part / v.parts, end = v.K * (part + 1) / v.parts;
    for (; k0 < end; k0 += DB__CU_STEP) {
        for (e = threadIdx.x; e < DB__CU_STEP * DB__CU_TILE; e += 256) {
            unsigned kk = mode == DB__CU_WEIGHTS ? e / DB__CU_TILE : e % DB__CU_STEP;
            unsigned r = mode == DB__CU_WEIGHTS ? e % DB__CU_TILE : e / DB__CU_STEP;
            const T *pa = NULL, *pb = NULL;
            if (k0 + kk < end) {
                pa = mode == DB__CU_WEIGHTS ? db__cu_operand_a(v, a, k0 + kk, m0 + r, mode)
                                            : db__cu_operand_a(v, a, m0 + r, k0 + kk, mode);
                pb = mode == DB__CU_WEIGHTS ? db__cu_operand_b(v, b, k0 + kk, n0 + r, ky, mode)
                                            : db__cu_operand_b(v, b, n0 + r, k0 + kk, ky, mode);
            }
            as[kk][r] = pa ? db__cu_get(pa, 0) : 0;
            bs[kk][r] = pb ? db__cu_get(pb, 0) : 0;
        }
        __syncthreads();
        for (e = 0; e < DB__CU_STEP; e++)
            for (i = 0; i < 4; i++)
                for (j = 0; j < 4; j++) acc[i][j] += as[e][ty * 4 + i] * bs[e][tx + 16 * j];
        __syncthreads();
    }
    for (i = 0; i < 4; i++)
        for (j = 0; j < 4; j++)
            db__cu_conv_end(v, out, m0 + ty * 4 + i, n0 + tx + 16 * j, acc[i][j], mode);
}

/* dw (+)= the parts, in order */
static __global__ void db__cu_add_parts(float *dw, const float *sum, size_t n, size_t parts)
{
    DB__CU_EACH (i, n) {
        float s = 0;
        size_t p;
        for (p = 0; p < parts; p++) s += sum[p * n + i];
        dw[i] += s;
    }
}

/* ---- the same on tensor cores ----
   A block of four warps computes 64 x 64 elements, a warp 32 x 32, in steps of 32 along K. A tile
   lies in shared memory as the operand does: [row][K] with 40 numbers to a row, or [K][row] with 72
   for the weights' gradient, which ldmatrix transposes; both strides keep eight rows in different
   banks. */

enum {
    DB__CU_DEEP = 32,
    DB__CU_ROW = 40,
    DB__CU_ROW_T = 72,
    DB__CU_STAGE = 64 * DB__CU_ROW,
    DB__CU_STAGES = 3
};

/* Begins to copy eight numbers of an operand, from (row, col) on. */
static __device__ __forceinline__ void db__cu_chunk(const db__cu_conv &v, db__cu_bf16 *to,
                                                    const db__cu_bf16 *from, size_t row, size_t col,
                                                    size_t ky, size_t end, int is_b, int mode)
{
    int e;
    if (mode == DB__CU_WEIGHTS && row >= end) row = v.K; /* another part's: zeros */
    if (v.by8 || (is_b && mode != DB__CU_WEIGHTS)) {
        const db__cu_bf16 *p = is_b ? db__cu_operand_b(v, from, row, col, ky, mode)
                                    : db__cu_operand_a(v, from, row, col, mode);
        db__cu_copy_async(to, p ? p : from, p ? 16 : 0);
        return;
    }
    for (e = 0; e < 8; e++) {
        const db__cu_bf16 *p = is_b ? db__cu_operand_b(v, from, row, col + e, ky, mode)
                                    : db__cu_operand_a(v, from, row, col + e, mode);
        to[e].bits = p ? p->bits : 0;
    }
}
static __device__ __forceinline__ void db__cu_stage(const db__cu_conv &v, db__cu_bf16 *as,
                                                    db__cu_bf16 *bs, const db__cu_bf16 *a,
                                                    const db__cu_bf16 *b, size_t m0, size_t n0,
                                                    size_t k0, size_t ky, size_t end, int mode)
{
    unsigned e;
    for (e = threadIdx.x; e < 256 && k0 < end; e += 128) {
        if (mode == DB__CU_WEIGHTS) {
            unsigned r = e / 8, c = e % 8 * 8;
            db__cu_chunk(v, as + r * DB__CU_ROW_T + c, a, k0 + r, m0 + c, ky, end, 0, mode);
            db__cu_chunk(v, bs + r * DB__CU_ROW_T + c, b, k0 + r, n0 + c, ky, end, 1, mode);
        } else {
            unsigned r = e / 4, c = e % 4 * 8;
            db__cu_chunk(v, as + r * DB__CU_ROW + c, a, m0 + r, k0 + c, ky, end, 0, mode);
            db__cu_chunk(v, bs + r * DB__CU_ROW + c, b, n0 + r, k0 + c, ky, end, 1, mode);
        }
    }
    db__cu_copy_commit();
}

/* blockIdx.z: part * k + ky */
static __global__ void __launch_bounds__(128)
    db__cu_conv_tensor(db__cu_conv v, db__cu_out<db__cu_bf16> out, const db__cu_bf16 *a,
                       const db__cu_bf16 *b, int mode)
{
    __shared__ __align__(16) db__cu_bf16 as[DB__CU_STAGES][DB__CU_STAGE],
        bs[DB__CU_STAGES][DB__CU_STAGE];
    size_t m0 = (size_t)blockIdx.x * 64, n0 = (size_t)blockIdx.y * 64, part = blockIdx.z / v.k,
           ky = blockIdx.z % v.k;
    size_t begin = 0, end = v.K, step, steps;
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, wm = warp / 2 * 32,
             wn = warp % 2 * 32, i, j, q, kk;
    float acc[2][4][4];
    for (i = 0; i < 2; i++)
        for (j = 0; j < 4; j++)
            for (q = 0; q < 4; q++) acc[i][j][q] = 0;
    if (mode == DB__CU_WEIGHTS) begin = v.K * part / v.parts, end = v.K * (part + 1) / v.parts;
    steps = (end - begin + DB__CU_DEEP - 1) / DB__CU_DEEP;
    for (step = 0; step < DB__CU_STAGES - 1; step++)
        db__cu_stage(v, as[step], bs[step], a, b, m0, n0, begin + step * DB__CU_DEEP, ky, end,
                     mode);
    for (step = 0; step < steps; step++) {
        size_t ahead = step + DB__CU_STAGES - 1;
        const db__cu_bf16 *ta = as[step % DB__CU_STAGES], *tb = bs[step % DB__CU_STAGES];
        db__cu_copy_wait<DB__CU_STAGES - 2>();
        __syncthreads(); /* all copies are there; the stage before is no longer read */
        db__cu_stage(v, as[ahead % DB__CU_STAGES], bs[ahead % DB__CU_STAGES], a, b, m0, n0,
                     begin + ahead * DB__CU_DEEP, ky, end, mode);
        for (kk = 0; kk < DB__CU_DEEP; kk += 16) {
            uint32_t fa[2][4], fb[2][4];
            unsigned low = lane % 8, mid = lane / 8 % 2 * 8, high = lane / 16 * 8;
            for (i = 0; i < 2; i++)
                if (mode == DB__CU_WEIGHTS)
                    db__cu_load_matrices(
                        fa[i], ta + (kk + low + high) * DB__CU_ROW_T + wm + i * 16 + mid, 1);
                else
                    db__cu_load_matrices(
                        fa[i], ta + (wm + i * 16 + low + mid) * DB__CU_ROW + kk + high, 0);
            for (j = 0; j < 2; j++)
                if (mode == DB__CU_WEIGHTS)
                    db__cu_load_matrices(
                        fb[j], tb + (kk + low + mid) * DB__CU_ROW_T + wn + j * 16 + high, 1);
                else
                    db__cu_load_matrices(
                        fb[j], tb + (wn + j * 16 + low + high) * DB__CU_ROW + kk + mid, 0);
            for (i = 0; i < 2; i++)
                for (j = 0; j < 4; j++) db__cu_multiply(acc[i][j], fa[i], fb[j / 2] + j % 2 * 2);
        }
    }
    db__cu_copy_wait<0>();
    for (i = 0; i < 2; i++)
        for (j = 0; j < 4; j++)
            for (q = 0; q < 4; q++)
                db__cu_conv_end(v, out, m0 + wm + i * 16 + lane / 4 + q / 2 * 8,
                                n0 + wn + j * 8 + lane % 4 * 2 + q % 2, acc[i][j][q], mode);
}

/* Whether the kernels were compiled for tensor cores, as the thread's present GPU would run them:
   see DB__CU_PTX. */
static int db__cu_tensor_cores(void)
{
    static thread_local int known = -1, yes;
    cudaFuncAttributes built;
    int device = 0;
    if (cudaGetDevice(&device) == cudaSuccess && device != known) {
        yes = cudaFuncGetAttributes(&built, db__cu_conv_tensor) == cudaSuccess &&
            built.ptxVersion >= 80;
        known = device;
    }
    return yes;
}

static void db__cu_product(const db__cu_conv &v, const db__cu_out<float> &out, const float *a,
                           const float *b, int mode, dim3 grid)
{
    DB_LAUNCH(db__cu_conv_plain<float>, grid, 256, v, out, a, b, mode);
}
static void db__cu_product(const db__cu_conv &v, const db__cu_out<db__cu_bf16> &out,
                           const db__cu_bf16 *a, const db__cu_bf16 *b, int mode, dim3 grid)
{
    if (db__cu_tensor_cores())
        DB_LAUNCH(db__cu_conv_tensor, grid, 128, v, out, a, b, mode);
    else
        DB_LAUNCH(db__cu_conv_plain<db__cu_bf16>, grid, 256, v, out, a, b, mode);
}

/* out (+)= the convolution of `in`, or its transpose: db__cpu_conv2d, db__cpu_conv2d_dx */
template <class T> static void db__cu_conv_run(db_call *c, const db__cu_conv &v, const db_arg *to,
                                               const db_arg *in, const db_arg *w,
                                               const db_arg *bias, const db_arg *residual, int mode,
                                               int add)
{
    T *packed = db__cu_scratch<T>(c, v.N * v.ldb);
    db__cu_out<T> out;
    if (c->measuring) return;
    out.y = db__cu_data<T>(to), out.bias = bias && bias->present ? db__cu_data<float>(bias) : NULL;
    out.residual = residual && residual->present ? db__cu_data<T>(residual) : NULL;
    out.add = add, out.sum = NULL;
    DB_LAUNCH(db__cu_conv_pack<T>, db__cu_blocks(v.N * v.ldb), DB__CU_THREADS, packed,
              db__cu_data<float>(w), v, mode);
    db__cu_product(v, out, db__cu_data<T>(in), packed, mode,
                   dim3(db__cu_up(v.M, 64), db__cu_up(v.N, 64), 1));
}
static void db__cu_run_conv2d(db_ctx *ctx, db_call *c)
{
    db__cu_conv v = db__cu_conv_of(&c->a[1], &c->a[0], c->s, DB__CU_FORWARD);
    (void)ctx;
    DB__CU_TYPED(&c->a[0], db__cu_conv_run<T>(c, v, &c->a[0], &c->a[1], &c->a[2], &c->a[3],
                                              &c->a[4], DB__CU_FORWARD, 0));
}
static void db__cu_run_conv2d_dx(db_ctx *ctx, db_call *c)
{
    db__cu_conv v = db__cu_conv_of(&c->a[0], &c->a[1], c->s, DB__CU_INPUT);
    (void)ctx;
    DB__CU_TYPED(&c->a[0], db__cu_conv_run<T>(c, v, &c->a[0], &c->a[1], &c->a[2], NULL, NULL,
                                              DB__CU_INPUT, c->i[0]));
}
template <class T> static void db__cu_conv_weights(db_call *c, db__cu_conv v)
{
    const db_arg *dw = &c->a[0], *db = &c->a[1], *x = &c->a[2], *dy = &c->a[3];
    size_t tiles = db__cu_up(v.M, 64) * db__cu_up(v.N, 64) * v.k, n = v.k * v.M * v.N;
    float *sum;
    v.parts = db__cu_max(
        1, db__cu_min(db__cu_up(v.K, 256), 512 / tiles)); /* enough blocks for a large GPU */
    sum = db__cu_scratch<float>(c, v.parts * n);
    if (dw->present && !c->measuring) {
        db__cu_out<T> out;
        memset((void *)&out, 0, sizeof out);
        out.sum = sum;
        db__cu_product(v, out, db__cu_data<T>(dy), db__cu_data<T>(x), DB__CU_WEIGHTS,
                       dim3(db__cu_up(v.M, 64), db__cu_up(v.N, 64), v.parts * v.k));
        DB_LAUNCH(db__cu_add_parts, db__cu_blocks(n), DB__CU_THREADS, db__cu_data<float>(dw), sum,
                  n, v.parts);
    }
    if (db->present)
        db__cu_sum_columns(c, db__cu_data<float>(db), db__cu_data<T>(dy), 1, v.K, v.OC, 1, 1);
}
static void db__cu_run_conv2d_dw(db_ctx *ctx, db_call *c)
{
    db__cu_conv v = db__cu_conv_of(&c->a[2], &c->a[3], c->s, DB__CU_WEIGHTS);
    (void)ctx;
    DB__CU_TYPED(&c->a[2], db__cu_conv_weights<T>(c, v));
}

/* ---- activations ---------------------------------------------------------------------------- */

static __device__ __forceinline__ float db__cu_sigmoid(float x) { return 1 / (1 + expf(-x)); }
static __device__ float db__cu_act(float x, int act)
{
    switch (act) {
    case DB_ACT_SILU:
        return x * db__cu_sigmoid(x);
    case DB_ACT_GELU:
        return 0.5f * x * erfcf(-0.70710678f * x);
    case DB_ACT_GELU_TANH:
        return x * db__cu_sigmoid(1.5957691216f * x * (1 + 0.044715f * x * x));
    case DB_ACT_QUICK_GELU:
        return x * db__cu_sigmoid(1.702f * x);
    case DB_ACT_RELU:
        return x < 0 ? 0 : x; /* what is no number stays none */
    default:
        return x;
    }
}
static __device__ float db__cu_slope(float x, int act)
{
    float s,
        v = x; /* (x s)' = s (1 + v (1 - s)), v = x times the slope of the sigmoid's argument */
    switch (act) {
    case DB_ACT_SILU:
        s = db__cu_sigmoid(x);
        break;
    case DB_ACT_GELU:
        return 0.5f * erfcf(-0.70710678f * x) + x * 0.39894228f * expf(-0.5f * x * x);
    case DB_ACT_GELU_TANH:
        s = db__cu_sigmoid(1.5957691216f * x * (1 + 0.044715f * x * x));
        v = 1.5957691216f * x * (1 + 3 * 0.044715f * x * x);
        break;
    case DB_ACT_QUICK_GELU:
        s = db__cu_sigmoid(1.702f * x), v = 1.702f * x;
        break;
    case DB_ACT_RELU:
        return x > 0 ? 1.0f : 0.0f;
    default:
        return 1;
    }
    return s * (1 + v * (1 - s));
}

template <class T> static __global__ void db__cu_act_all(T *y, const T *x, size_t n, int act)
{
    DB__CU_EACH (i, n) db__cu_set(y, i, db__cu_act(db__cu_get(x, i), act));
}
template <class T>
static __global__ void db__cu_act_dx(T *dx, const T *dy, const T *x, size_t n, int act, int add)
{
    DB__CU_EACH (i, n)
        db__cu_put(dx, i, db__cu_get(dy, i) * db__cu_slope(db__cu_get(x, i), act), add);
}
/* rows x [values C | gates C]: y [C] = values act(gates) */
template <class T> static __global__ void db__cu_gate(T *y, const T *x, size_t n, size_t C, int act)
{
    DB__CU_EACH (i, n) {
        size_t value = i + i / C * C;
        db__cu_set(y, i, db__cu_get(x, value) * db__cu_act(db__cu_get(x, value + C), act));
    }
}
template <class T> static __global__ void db__cu_gate_dx(T *dx, const T *dy, const T *x, size_t n,
                                                         size_t C, int act, int add)
{
    DB__CU_EACH (i, n) {
        size_t value = i + i / C * C;
        float g = db__cu_get(dy, i), gate = db__cu_get(x, value + C);
        db__cu_put(dx, value + C, g * db__cu_get(x, value) * db__cu_slope(gate, act), add);
        db__cu_put(dx, value, g * db__cu_act(gate, act), add);
    }
}
template <class T>
static __global__ void db__cu_mul(T *y, const T *a, const T *b, size_t n, int add)
{
    DB__CU_EACH (i, n) db__cu_put(y, i, db__cu_get(a, i) * db__cu_get(b, i), add);
}
template <class T> static __global__ void db__cu_axpby(T *y, const T *x, const T *z, float alpha,
                                                       float beta, size_t n, int add)
{
    DB__CU_EACH (i, n)
        db__cu_put(y, i, alpha * db__cu_get(x, i) + (z ? beta * db__cu_get(z, i) : 0), add);
}
template <class T> static __global__ void db__cu_fill(T *y, float value, size_t n)
{
    DB__CU_EACH (i, n) db__cu_set(y, i, value);
}
static __global__ void db__cu_mix(float *y, const float *x, const float *z, const float *p,
                                  const float *q, size_t n, size_t per)
{
    DB__CU_EACH (i, n) y[i] = p[i / per] * x[i] + q[i / per] * z[i];
}

static void db__cu_run_act(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0],
                 DB_LAUNCH(db__cu_act_all<T>, db__cu_blocks(n), DB__CU_THREADS,
                           db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]), n, c->i[0]));
}
static void db__cu_run_act_dx(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0], DB_LAUNCH(db__cu_act_dx<T>, db__cu_blocks(n), DB__CU_THREADS,
                                     db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                                     db__cu_data<T>(&c->a[2]), n, c->i[0], c->i[1]));
}
static void db__cu_run_gate(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]), C = c->a[0].dim[c->a[0].n_dims - 1];
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0],
                 DB_LAUNCH(db__cu_gate<T>, db__cu_blocks(n), DB__CU_THREADS,
                           db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]), n, C, c->i[0]));
}
static void db__cu_run_gate_dx(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[1]), C = c->a[1].dim[c->a[1].n_dims - 1];
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0], DB_LAUNCH(db__cu_gate_dx<T>, db__cu_blocks(n), DB__CU_THREADS,
                                     db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                                     db__cu_data<T>(&c->a[2]), n, C, c->i[0], c->i[1]));
}
static void db__cu_run_mul(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0], DB_LAUNCH(db__cu_mul<T>, db__cu_blocks(n), DB__CU_THREADS,
                                     db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                                     db__cu_data<T>(&c->a[2]), n, c->i[0]));
}
static void db__cu_run_axpby(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0], DB_LAUNCH(db__cu_axpby<T>, db__cu_blocks(n), DB__CU_THREADS,
                                     db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                                     c->a[2].present ? db__cu_data<T>(&c->a[2]) : NULL, c->f[0],
                                     c->f[1], n, c->i[0]));
}
static void db__cu_run_fill(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0], DB_LAUNCH(db__cu_fill<T>, db__cu_blocks(n), DB__CU_THREADS,
                                     db__cu_data<T>(&c->a[0]), c->f[0], n));
}
static void db__cu_run_mix(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]), per = n / db__cu_count(&c->a[3]);
    (void)ctx;
    if (c->measuring) return;
    DB_LAUNCH(db__cu_mix, db__cu_blocks(n), DB__CU_THREADS, db__cu_data<float>(&c->a[0]),
              db__cu_data<float>(&c->a[1]), db__cu_data<float>(&c->a[2]),
              db__cu_data<float>(&c->a[3]), db__cu_data<float>(&c->a[4]), n, per);
}

/* What differs from run to run of a recorded tape. */
struct db__cu_draw {
    uint64_t seed;
    uint32_t step;
};
static thread_local const db__cu_draw *db__cu_recorded_draw; /* while recording: where it will be */
static __global__ void db__cu_set_draw(db__cu_draw *at, uint64_t seed, uint32_t step)
{
    at->seed = seed, at->step = step;
}

/* Philox4x32-10 and Box-Muller, four numbers to a counter: db__philox, db__fill_normal, [DB-01].
   at: seed and step, where they are not those given. */
static __global__ void db__cu_normal(float *y, size_t n, uint32_t purpose, db__cu_draw draw,
                                     const db__cu_draw *at)
{
    uint64_t seed = at ? at->seed : draw.seed;
    uint32_t step = at ? at->step : draw.step;
    DB__CU_EACH (i, (n + 3) / 4) {
        uint32_t r[4] = {(uint32_t)i, (uint32_t)((uint64_t)i >> 32), step, purpose},
                 key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
        int round, j;
        for (round = 0; round < 10; round++) {
            uint64_t p = (uint64_t)0xD2511F53u * r[0], q = (uint64_t)0xCD9E8D57u * r[2];
            r[0] = (uint32_t)(q >> 32) ^ r[1] ^ key[0], r[1] = (uint32_t)q;
            r[2] = (uint32_t)(p >> 32) ^ r[3] ^ key[1], r[3] = (uint32_t)p;
            key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
        }
        for (j = 0; j < 4; j += 2) { /* in double precision, as on the CPU */
            double radius = sqrt(-2.0 * log(((double)r[j] + 1.0) * (1.0 / 4294967296.0)));
            double angle = (double)r[j + 1] * (6.283185307179586 / 4294967296.0);
            if (i * 4 + j < n) y[i * 4 + j] = (float)(radius * cos(angle));
            if (i * 4 + j + 1 < n) y[i * 4 + j + 1] = (float)(radius * sin(angle));
        }
    }
}
static void db__cu_run_normal(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]);
    db__cu_draw draw = {c->seed, c->step};
    const db__cu_draw *at = db__cu_recorded_draw;
    (void)ctx;
    if (c->measuring) return;
    DB_LAUNCH(db__cu_normal, db__cu_blocks(db__cu_up(n, 4)), DB__CU_THREADS,
              db__cu_data<float>(&c->a[0]), n, (uint32_t)c->i[0], draw, at);
}

/* ---- copies ---------------------------------------------------------------------------------- */

template <class D, class S>
static __global__ void db__cu_copy(D *dst, const S *src, size_t rows, size_t n, size_t dst_stride,
                                   size_t dst_at, size_t src_stride, size_t src_at, int add)
{
    DB__CU_EACH (i, rows * n) {
        size_t r = i / n, e = i % n;
        db__cu_put(dst, r * dst_stride + dst_at + e, db__cu_get(src, r * src_stride + src_at + e),
                   add);
    }
}
template <class D, class S> static void db__cu_copy_typed(db_call *c)
{
    DB_LAUNCH((db__cu_copy<D, S>), db__cu_blocks(c->s[0] * c->s[1]), DB__CU_THREADS,
              db__cu_data<D>(&c->a[0]), db__cu_data<S>(&c->a[1]), c->s[0], c->s[1], c->s[2],
              c->s[3], c->s[4], c->s[5], c->i[0]);
}
static void db__cu_run_copy(db_ctx *ctx, db_call *c)
{
    (void)ctx;
    if (c->measuring) return;
    if (c->a[0].dtype == DB_BF16)
        DB__CU_TYPED(&c->a[1], db__cu_copy_typed<db__cu_bf16, T>(c));
    else
        DB__CU_TYPED(&c->a[1], db__cu_copy_typed<float, T>(c));
}

/* ---- resampling ------------------------------------------------------------------------------ */

struct db__cu_image {
    size_t B, H, W, C;
};
static db__cu_image db__cu_image_of(const db_arg *a)
{
    db__cu_image v = {a->dim[0], a->dim[1], a->dim[2], a->dim[3]};
    return v;
}
template <class T> static __global__ void db__cu_pool2(T *y, const T *x, db__cu_image to,
                                                       db__cu_image from, float scale, int add)
{
    DB__CU_EACH (i, to.B * to.H * to.W * to.C) {
        size_t ch = i % to.C, px = i / to.C % to.W, py = i / to.C / to.W % to.H,
               b = i / to.C / to.W / to.H, dy, dx;
        float s = 0;
        for (dy = 2 * py; dy < 2 * py + 2 && dy < from.H; dy++)
            for (dx = 2 * px; dx < 2 * px + 2 && dx < from.W; dx++)
                s += db__cu_get(x, ((b * from.H + dy) * from.W + dx) * to.C + ch);
        db__cu_put(y, i, s * scale, add);
    }
}
template <class T> static __global__ void db__cu_up2(T *y, const T *x, db__cu_image to,
                                                     db__cu_image from, float scale, int add)
{
    DB__CU_EACH (i, to.B * to.H * to.W * to.C) {
        size_t ch = i % to.C, px = i / to.C % to.W, py = i / to.C / to.W % to.H,
               b = i / to.C / to.W / to.H;
        db__cu_put(y, i,
                   scale * db__cu_get(x, ((b * from.H + py / 2) * from.W + px / 2) * to.C + ch),
                   add);
    }
}
template <class T> static __global__ void
db__cu_max_pool(T *y, const T *x, db__cu_image to, db__cu_image from, size_t k, size_t stride)
{
    DB__CU_EACH (i, to.B * to.H * to.W * to.C) {
        size_t ch = i % to.C, px = i / to.C % to.W, py = i / to.C / to.W % to.H,
               b = i / to.C / to.W / to.H, e;
        float most = -HUGE_VALF;
        for (e = 0; e < k * k; e++) {
            size_t row = b * from.H + py * stride + e / k;
            float v = db__cu_get(x, (row * from.W + px * stride + e % k) * to.C + ch);
            if (v > most || v != v) most = v;
        }
        db__cu_set(y, i, most);
    }
}
/* A pixel of dx collects from the windows in which it is the first of the largest. */
template <class T> static __global__ void db__cu_max_pool_dx(T *dx, const T *dy, const T *x,
                                                             const T *y, db__cu_image to,
                                                             db__cu_image from, size_t k,
                                                             size_t stride)
{
    DB__CU_EACH (i, from.B * from.H * from.W * from.C) {
        size_t C = from.C, ch = i % C, px = i / C % from.W, py = i / C / from.W % from.H,
               b = i / C / from.W / from.H, wy, wx, e;
        float s = 0;
        for (wy = py < k ? 0 : (py - k) / stride + 1; wy < to.H && wy * stride <= py; wy++)
            for (wx = px < k ? 0 : (px - k) / stride + 1; wx < to.W && wx * stride <= px; wx++) {
                size_t at = ((b * to.H + wy) * to.W + wx) * C + ch,
                       mine = (py - wy * stride) * k + px - wx * stride;
                float most = db__cu_get(y, at);
                for (e = 0; e < mine; e++)
                    if (db__cu_get(
                            x, ((b * from.H + wy * stride + e / k) * from.W + wx * stride + e % k) *
                                       C +
                                   ch) >= most)
                        break;
                if (e == mine && db__cu_get(x, i) >= most) s += db__cu_get(dy, at);
            }
        db__cu_put(dx, i, s, 1);
    }
}
static void db__cu_run_pool2(db_ctx *ctx, db_call *c)
{
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0],
                 DB_LAUNCH(db__cu_pool2<T>, db__cu_blocks(db__cu_count(&c->a[0])), DB__CU_THREADS,
                           db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                           db__cu_image_of(&c->a[0]), db__cu_image_of(&c->a[1]), c->f[0], c->i[0]));
}
static void db__cu_run_up2(db_ctx *ctx, db_call *c)
{
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0],
                 DB_LAUNCH(db__cu_up2<T>, db__cu_blocks(db__cu_count(&c->a[0])), DB__CU_THREADS,
                           db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                           db__cu_image_of(&c->a[0]), db__cu_image_of(&c->a[1]), c->f[0], c->i[0]));
}
static void db__cu_run_max_pool(db_ctx *ctx, db_call *c)
{
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0],
                 DB_LAUNCH(db__cu_max_pool<T>, db__cu_blocks(db__cu_count(&c->a[0])),
                           DB__CU_THREADS, db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                           db__cu_image_of(&c->a[0]), db__cu_image_of(&c->a[1]), c->s[0], c->s[1]));
}
static void db__cu_run_max_pool_dx(db_ctx *ctx, db_call *c)
{
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0],
                 DB_LAUNCH(db__cu_max_pool_dx<T>, db__cu_blocks(db__cu_count(&c->a[0])),
                           DB__CU_THREADS, db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                           db__cu_data<T>(&c->a[2]), db__cu_data<T>(&c->a[3]),
                           db__cu_image_of(&c->a[3]), db__cu_image_of(&c->a[2]), c->s[0], c->s[1]));
}

/* ---- group normalisation ------------------------------------------------------------------------
   y = act((xhat w + b) (1 + s) + h), fused; stats as the CPU has them: mean, rstd, what rounding the
   mean lost. */

struct db__cu_norm {
    size_t B, HW, C, G, cg;
};
static db__cu_norm db__cu_norm_of(const db_arg *x, size_t groups)
{
    db__cu_norm v;
    v.B = x->dim[0], v.C = x->dim[x->n_dims - 1], v.HW = db__cu_count(x) / v.B / v.C, v.G = groups,
    v.cg = v.C / groups;
    return v;
}

/* A block for each sample and group. Differences from the group's first number keep the digits of
 * large means. */
template <class T> static __global__ void __launch_bounds__(256)
    db__cu_group_stats(float *stats, const T *x, db__cu_norm v, float eps)
{
    __shared__ double shared[DB__CU_THREADS];
    size_t b = blockIdx.x / v.G, g = blockIdx.x % v.G, n = v.HW * v.cg, i;
    float x0 = db__cu_get(x, b * v.HW * v.C + g * v.cg), s = 0;
    double mean, var;
    for (i = threadIdx.x; i < n; i += blockDim.x)
        s += db__cu_get(x, (b * v.HW + i / v.cg) * v.C + g * v.cg + i % v.cg) - x0;
    mean = db__cu_sum((double)s, shared) / (double)n;
    for (i = threadIdx.x, s = 0; i < n; i += blockDim.x) {
        float d =
            db__cu_get(x, (b * v.HW + i / v.cg) * v.C + g * v.cg + i % v.cg) - x0 - (float)mean;
        s += d * d;
    }
    var = db__cu_sum((double)s, shared) / (double)n;
    if (threadIdx.x) return;
    mean += (double)x0;
    stats[blockIdx.x * 3] = (float)mean;
    stats[blockIdx.x * 3 + 1] = (float)(1 / sqrt(var + (double)eps));
    stats[blockIdx.x * 3 + 2] = (float)(mean - (double)(float)mean);
}

/* xhat and u, the argument of the activation, of one element; *slope is du / dxhat. */
template <class T> static __device__ __forceinline__ float
db__cu_normed(const db__cu_norm &v, float x, size_t b, size_t ch, const float *stats,
              const float *w, const float *bias, const T *ss, float *xhat, float *slope)
{
    const float *st = stats + (b * v.G + ch / v.cg) * 3;
    float s = ss ? 1 + db__cu_get(ss, b * 2 * v.C + ch) : 1,
          h = ss ? db__cu_get(ss, b * 2 * v.C + v.C + ch) : 0;
    *xhat = (x - st[0] - st[2]) * st[1];
    *slope = w[ch] * s;
    return *xhat * *slope + bias[ch] * s + h;
}
template <class T> static __global__ void db__cu_group_norm(T *y, const T *x, const float *stats,
                                                            const float *w, const float *bias,
                                                            const T *ss, db__cu_norm v, int act)
{
    DB__CU_EACH (i, v.B * v.HW * v.C) {
        float xhat, slope;
        float u = db__cu_normed(v, db__cu_get(x, i), i / v.C / v.HW, i % v.C, stats, w, bias, ss,
                                &xhat, &slope);
        db__cu_set(y, i, db__cu_act(u, act));
    }
}
template <class T> static void db__cu_group_norm_typed(db_call *c)
{
    db__cu_norm v = db__cu_norm_of(&c->a[2], c->s[0]);
    if (!c->i[1]) /* else the statistics are there */
        DB_LAUNCH(db__cu_group_stats<T>, v.B * v.G, DB__CU_THREADS, db__cu_data<float>(&c->a[1]),
                  db__cu_data<T>(&c->a[2]), v, c->f[0]);
    DB_LAUNCH(db__cu_group_norm<T>, db__cu_blocks(v.B * v.HW * v.C), DB__CU_THREADS,
              db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[2]), db__cu_data<float>(&c->a[1]),
              db__cu_data<float>(&c->a[3]), db__cu_data<float>(&c->a[4]),
              c->a[5].present ? db__cu_data<T>(&c->a[5]) : NULL, v, c->i[0]);
}
static void db__cu_run_group_norm(db_ctx *ctx, db_call *c)
{
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[2], db__cu_group_norm_typed<T>(c));
}

/* What the three kernels of the gradient share. */
template <class T> struct db__cu_norm_back {
    db__cu_norm v;
    T *dx, *dss;
    float *dw, *dbias;
    const T *dy, *x, *ss;
    const float *stats, *w, *bias;
    int act, add, add_ss;
    size_t parts;
    float *sum;   /* [B][parts][2][C] of g and g xhat, g = dy act'(u) */
    float *total; /* [B][2][C]                                         */
    float *group; /* [B][G][2]: means of g slope and g slope xhat      */
};
template <class T>
static __device__ __forceinline__ float db__cu_norm_g(const db__cu_norm_back<T> &n, size_t b,
                                                      size_t i, size_t ch, float *xhat,
                                                      float *slope)
{
    float u =
        db__cu_normed(n.v, db__cu_get(n.x, i), b, ch, n.stats, n.w, n.bias, n.ss, xhat, slope);
    return db__cu_get(n.dy, i) * db__cu_slope(u, n.act);
}
template <class T> static __global__ void db__cu_norm_sums(db__cu_norm_back<T> n)
{
    DB__CU_EACH (i, n.v.B * n.parts * n.v.C) {
        size_t ch = i % n.v.C, part = i / n.v.C % n.parts, b = i / n.v.C / n.parts, p;
        float s = 0, d = 0, xhat, slope;
        for (p = n.v.HW * part / n.parts; p < n.v.HW * (part + 1) / n.parts; p++) {
            float g = db__cu_norm_g(n, b, (b * n.v.HW + p) * n.v.C + ch, ch, &xhat, &slope);
            s += g, d += g * xhat;
        }
        n.sum[((b * n.parts + part) * 2) * n.v.C + ch] = s;
        n.sum[((b * n.parts + part) * 2 + 1) * n.v.C + ch] = d;
    }
}
template <class T> static __global__ void db__cu_norm_channels(db__cu_norm_back<T> n)
{
    DB__CU_EACH (i, n.v.B * n.v.C) {
        size_t ch = i % n.v.C, b = i / n.v.C, part;
        double s = 0, d = 0;
        for (part = 0; part < n.parts; part++) {
            s += (double)n.sum[((b * n.parts + part) * 2) * n.v.C + ch];
            d += (double)n.sum[((b * n.parts + part) * 2 + 1) * n.v.C + ch];
        }
        n.total[b * 2 * n.v.C + ch] = (float)s, n.total[(b * 2 + 1) * n.v.C + ch] = (float)d;
        if (n.dss) {
            db__cu_put(n.dss, b * 2 * n.v.C + ch,
                       (float)((double)n.w[ch] * d + (double)n.bias[ch] * s), n.add_ss);
            db__cu_put(n.dss, (b * 2 + 1) * n.v.C + ch, (float)s, n.add_ss);
        }
    }
}
/* The groups' means; and, one thread to a channel, the weight's and bias's gradients over the batch
 * in order. */
template <class T> static __global__ void db__cu_norm_groups(db__cu_norm_back<T> n)
{
    DB__CU_EACH (i, n.v.B * n.v.G) {
        size_t b = i / n.v.G, g = i % n.v.G, ch;
        double m1 = 0, m2 = 0;
        for (ch = g * n.v.cg; ch < (g + 1) * n.v.cg; ch++) {
            double slope =
                (double)n.w[ch] * (n.ss ? 1 + (double)db__cu_get(n.ss, b * 2 * n.v.C + ch) : 1);
            m1 += slope * (double)n.total[b * 2 * n.v.C + ch],
                m2 += slope * (double)n.total[(b * 2 + 1) * n.v.C + ch];
        }
        n.group[i * 2] = (float)(m1 / ((double)n.v.HW * (double)n.v.cg)),
                    n.group[i * 2 + 1] = (float)(m2 / ((double)n.v.HW * (double)n.v.cg));
    }
    DB__CU_EACH (ch, n.v.C) {
        size_t b;
        float s = 0, d = 0;
        for (b = 0; b < n.v.B; b++) {
            float scale = n.ss ? 1 + db__cu_get(n.ss, b * 2 * n.v.C + ch) : 1;
            s += n.total[b * 2 * n.v.C + ch] * scale,
                d += n.total[(b * 2 + 1) * n.v.C + ch] * scale;
        }
        if (n.dbias) n.dbias[ch] += s;
        if (n.dw) n.dw[ch] += d;
    }
}
template <class T> static __global__ void db__cu_norm_dx(db__cu_norm_back<T> n)
{
    DB__CU_EACH (i, n.v.B * n.v.HW * n.v.C) {
        size_t ch = i % n.v.C, b = i / n.v.C / n.v.HW, group = b * n.v.G + ch / n.v.cg;
        float xhat, slope, g = db__cu_norm_g(n, b, i, ch, &xhat, &slope);
        db__cu_put(n.dx, i,
                   n.stats[group * 3 + 1] *
                       (g * slope - n.group[group * 2] - xhat * n.group[group * 2 + 1]),
                   n.add);
    }
}
template <class T> static void db__cu_group_norm_dx_typed(db_call *c)
{
    db__cu_norm_back<T> n;
    n.v = db__cu_norm_of(&c->a[5], c->s[0]);
    n.dx = c->a[0].present ? db__cu_data<T>(&c->a[0]) : NULL, n.dw = db__cu_data<float>(&c->a[1]),
    n.dbias = db__cu_data<float>(&c->a[2]);
    n.dss = c->a[3].present ? db__cu_data<T>(&c->a[3]) : NULL, n.dy = db__cu_data<T>(&c->a[4]),
    n.x = db__cu_data<T>(&c->a[5]);
    n.stats = db__cu_data<float>(&c->a[6]), n.w = db__cu_data<float>(&c->a[7]),
    n.bias = db__cu_data<float>(&c->a[8]);
    n.ss = c->a[9].present ? db__cu_data<T>(&c->a[9]) : NULL, n.act = c->i[0], n.add = c->i[1],
    n.add_ss = c->i[2];
    n.parts = db__cu_parts(n.v.HW);
    n.sum = db__cu_scratch<float>(c, n.v.B * n.parts * 2 * n.v.C);
    n.total = db__cu_scratch<float>(c, n.v.B * 2 * n.v.C);
    n.group = db__cu_scratch<float>(c, n.v.B * n.v.G * 2);
    if (c->measuring) return;
    DB_LAUNCH(db__cu_norm_sums<T>, db__cu_blocks(n.v.B * n.parts * n.v.C), DB__CU_THREADS, n);
    DB_LAUNCH(db__cu_norm_channels<T>, db__cu_blocks(n.v.B * n.v.C), DB__CU_THREADS, n);
    DB_LAUNCH(db__cu_norm_groups<T>, db__cu_blocks(db__cu_max(n.v.B * n.v.G, n.v.C)),
              DB__CU_THREADS, n);
    if (n.dx)
        DB_LAUNCH(db__cu_norm_dx<T>, db__cu_blocks(n.v.B * n.v.HW * n.v.C), DB__CU_THREADS, n);
}
static void db__cu_run_group_norm_dx(db_ctx *ctx, db_call *c)
{
    (void)ctx;
    DB__CU_TYPED(&c->a[5], db__cu_group_norm_dx_typed<T>(c));
}

/* ---- layer and RMS normalisation: a block for each row --------------------------------------- */

template <class T> static __global__ void __launch_bounds__(128)
    db__cu_layer_norm(T *y, float *stats, const T *x, const float *w, const float *bias, size_t C,
                      float eps, int rms)
{
    __shared__ float shared[128];
    size_t row = blockIdx.x, i;
    float s = 0, mean = 0, rstd;
    for (i = threadIdx.x; i < C && !rms; i += blockDim.x) s += db__cu_get(x, row * C + i);
    if (!rms) mean = db__cu_sum(s, shared) / (float)C;
    for (i = threadIdx.x, s = 0; i < C; i += blockDim.x) {
        float d = db__cu_get(x, row * C + i) - mean;
        s += d * d;
    }
    rstd = 1 / sqrtf(db__cu_sum(s, shared) / (float)C + eps);
    for (i = threadIdx.x; i < C; i += blockDim.x)
        db__cu_set(y, row * C + i,
                   (db__cu_get(x, row * C + i) - mean) * rstd * w[i] + (bias ? bias[i] : 0));
    if (threadIdx.x == 0) stats[row * 2] = mean, stats[row * 2 + 1] = rstd;
}
static void db__cu_run_layer_norm(db_ctx *ctx, db_call *c)
{
    size_t C = c->a[2].dim[c->a[2].n_dims - 1], N = db__cu_count(&c->a[2]) / C;
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[2], DB_LAUNCH(db__cu_layer_norm<T>, N, 128, db__cu_data<T>(&c->a[0]),
                                     db__cu_data<float>(&c->a[1]), db__cu_data<T>(&c->a[2]),
                                     db__cu_data<float>(&c->a[3]), db__cu_data<float>(&c->a[4]), C,
                                     c->f[0], c->i[0]));
}
template <class T> static __global__ void __launch_bounds__(128)
    db__cu_layer_norm_dx(T *dx, const T *dy, const T *x, const float *stats, const float *w,
                         size_t C, int rms, int add)
{
    __shared__ float shared[128];
    size_t row = blockIdx.x, i;
    float mean = stats[row * 2], rstd = stats[row * 2 + 1], s = 0, d = 0;
    for (i = threadIdx.x; i < C; i += blockDim.x) {
        float g = db__cu_get(dy, row * C + i) * w[i];
        s += g, d += g * (db__cu_get(x, row * C + i) - mean) * rstd;
    }
    s = db__cu_sum(s, shared) / (float)C, d = db__cu_sum(d, shared) / (float)C;
    if (rms) s = 0;
    for (i = threadIdx.x; i < C; i += blockDim.x) {
        float g = db__cu_get(dy, row * C + i) * w[i],
              xhat = (db__cu_get(x, row * C + i) - mean) * rstd;
        db__cu_put(dx, row * C + i, rstd * (g - s - xhat * d), add);
    }
}
/* The gradients of weight and bias, for parts of the rows: [parts][2][C] */
template <class T> static __global__ void db__cu_layer_norm_dw(float *sum, const T *dy, const T *x,
                                                               const float *stats, size_t N,
                                                               size_t C, size_t parts)
{
    DB__CU_EACH (i, parts * C) {
        size_t ch = i % C, part = i / C, row;
        float s = 0, d = 0;
        for (row = N * part / parts; row < N * (part + 1) / parts; row++) {
            float g = db__cu_get(dy, row * C + ch);
            s += g, d += g * (db__cu_get(x, row * C + ch) - stats[row * 2]) * stats[row * 2 + 1];
        }
        sum[part * 2 * C + ch] = d, sum[(part * 2 + 1) * C + ch] = s;
    }
}
static __global__ void db__cu_layer_norm_end(float *dw, float *dbias, const float *sum, size_t C,
                                             size_t parts)
{
    DB__CU_EACH (ch, C) {
        size_t part;
        float s = 0, d = 0;
        for (part = 0; part < parts; part++)
            d += sum[part * 2 * C + ch], s += sum[(part * 2 + 1) * C + ch];
        if (dw) dw[ch] += d;
        if (dbias) dbias[ch] += s;
    }
}
template <class T> static void db__cu_layer_norm_dx_typed(db_call *c)
{
    const db_arg *x = &c->a[4];
    size_t C = x->dim[x->n_dims - 1], N = db__cu_count(x) / C, parts = db__cu_parts(N);
    float *sum = db__cu_scratch<float>(c, parts * 2 * C), *dw = db__cu_data<float>(&c->a[1]),
          *dbias = db__cu_data<float>(&c->a[2]);
    if (c->measuring) return;
    if (c->a[0].present)
        DB_LAUNCH(db__cu_layer_norm_dx<T>, N, 128, db__cu_data<T>(&c->a[0]),
                  db__cu_data<T>(&c->a[3]), db__cu_data<T>(x), db__cu_data<float>(&c->a[5]),
                  db__cu_data<float>(&c->a[6]), C, c->i[0], c->i[1]);
    if (!dw && !dbias) return;
    DB_LAUNCH(db__cu_layer_norm_dw<T>, db__cu_blocks(parts * C), DB__CU_THREADS, sum,
              db__cu_data<T>(&c->a[3]), db__cu_data<T>(x), db__cu_data<float>(&c->a[5]), N, C,
              parts);
    DB_LAUNCH(db__cu_layer_norm_end, db__cu_blocks(C), DB__CU_THREADS, dw, dbias, sum, C, parts);
}
static void db__cu_run_layer_norm_dx(db_ctx *ctx, db_call *c)
{
    (void)ctx;
    DB__CU_TYPED(&c->a[4], db__cu_layer_norm_dx_typed<T>(c));
}

/* ---- attention ---------------------------------------------------------------------------------
   No score leaves the chip: forward keeps a running maximum and sum for each query, backward
   computes the scores again. In f32, for 7.5 and for heads beyond 160 channels a warp has one query
   (or, for dk and dv, one key) and walks the others 32 at a time: each lane computes the score of
   its own, then the lanes share out the channels of the sum. Tensor cores: see below. */

enum { DB__CU_WARPS = 4, DB__CU_HEAD = 512 };

struct db__cu_attn {
    size_t B, T, S, C, HS, heads;
    int causal;
    float scale;
    const float *bias, *mask; /* [heads,T,S], [B,S]; or NULL */
};
static db__cu_attn db__cu_attn_of(const db_call *c, const db_arg *q, const db_arg *k,
                                  const db_arg *bias, const db_arg *mask)
{
    db__cu_attn v;
    v.B = q->dim[0], v.T = q->dim[1], v.C = q->dim[2], v.S = k->dim[1], v.heads = c->s[0],
    v.HS = v.C / v.heads;
    v.causal = c->i[0], v.scale = c->f[0];
    v.bias = db__cu_data<float>(bias), v.mask = db__cu_data<float>(mask);
    return v;
}
/* Whether the head fits into a warp's registers; an error if not. */
static int db__cu_attn_fits(db_ctx *ctx, const db__cu_attn *v)
{
    char why[160];
    if (v->HS <= DB__CU_HEAD) return 1;
    snprintf(why, sizeof why,
             "attention on the GPU has heads of at most %d channels, not %zu: use --device cpu",
             (int)DB__CU_HEAD, v->HS);
    db_fail(ctx, DB_ERROR_UNSUPPORTED, why);
    return 0;
}

template <class T>
static __device__ __forceinline__ float db__cu_dot(const T *a, const T *b, size_t n)
{
    float s = 0;
    size_t i;
    for (i = 0; i < n; i++) s += db__cu_get(a, i) * db__cu_get(b, i);
    return s;
}
/* scale q k + bias + mask */
template <class T> static __device__ __forceinline__ float
db__cu_score(const db__cu_attn &v, const T *q, const T *k, size_t b, size_t h, size_t i, size_t j)
{
    float s = v.scale * db__cu_dot(q + (b * v.T + i) * v.C + h * v.HS,
                                   k + (b * v.S + j) * v.C + h * v.HS, v.HS);
    if (v.bias) s += v.bias[(h * v.T + i) * v.S + j];
    if (v.mask) s += v.mask[b * v.S + j];
    return s;
}
/* acc[channel] += sum over 32 rows of p[row] x[row][channel], the lane's channels being lane, lane
 * + 32, ... */
template <class T> static __device__ __forceinline__ void
db__cu_gather(float *acc, const float *p, const T *x, size_t ld, size_t rows, size_t HS)
{
    size_t r, u, lane = threadIdx.x % 32;
    DB__CU_UNROLL
    for (u = 0; u < DB__CU_HEAD / 32; u++)
        if (lane + 32 * u < HS)
            for (r = 0; r < rows; r++) acc[u] += p[r] * db__cu_get(x, r * ld + lane + 32 * u);
}

template <class T> static __global__ void __launch_bounds__(128)
    db__cu_attention(T *o, float *lse, const T *q, const T *k, const T *val, db__cu_attn v)
{
    __shared__ float shared[DB__CU_WARPS][32];
    size_t warp = threadIdx.x / 32, lane = threadIdx.x % 32,
           task = (size_t)blockIdx.x * DB__CU_WARPS + warp, u, j0;
    size_t i = task % v.T, h = task / v.T % v.heads, b = task / v.T / v.heads,
           n = v.causal ? (i + 1 < v.S ? i + 1 : v.S) : v.S;
    float acc[DB__CU_HEAD / 32], max = -3e38f, total = 0;
    if (task >= v.B * v.heads * v.T) return;
    DB__CU_UNROLL
    for (u = 0; u < DB__CU_HEAD / 32; u++) acc[u] = 0;
    for (j0 = 0; j0 < n; j0 += 32) {
        size_t j = j0 + lane;
        float s = j < n ? db__cu_score(v, q, k, b, h, i, j) : -HUGE_VALF,
              top = fmaxf(max, db__cu_warp_max(s)), shrink = expf(max - top);
        float p = expf(s - top);
        total = total * shrink + db__cu_warp_sum(p);
        max = top;
        shared[warp][lane] = p;
        __syncwarp();
        DB__CU_UNROLL
        for (u = 0; u < DB__CU_HEAD / 32; u++) acc[u] *= shrink;
        db__cu_gather(acc, shared[warp], val + (b * v.S + j0) * v.C + h * v.HS, v.C,
                      n - j0 < 32 ? n - j0 : 32, v.HS);
        __syncwarp();
    }
    DB__CU_UNROLL
    for (u = 0; u < DB__CU_HEAD / 32; u++)
        if (lane + 32 * u < v.HS)
            db__cu_set(o, (b * v.T + i) * v.C + h * v.HS + lane + 32 * u, acc[u] / total);
    if (lane == 0) lse[(b * v.heads + h) * v.T + i] = max + logf(total);
}
template <class T> struct db__cu_attn_back {
    db__cu_attn v;
    T *dq, *dk, *dv;
    float *dbias;
    const T *dout, *o, *q, *k, *val;
    const float *lse;
    float *delta; /* [B,heads,T]: dout o */
    int add_q, add_k, add_v;
};
/* A warp for each query */
template <class T> static __global__ void __launch_bounds__(128)
    db__cu_attention_delta(db__cu_attn_back<T> a)
{
    size_t task = (size_t)blockIdx.x * DB__CU_WARPS + threadIdx.x / 32, u;
    size_t i = task % a.v.T, h = task / a.v.T % a.v.heads, b = task / a.v.T / a.v.heads;
    size_t at = (b * a.v.T + i) * a.v.C + h * a.v.HS;
    float delta = 0;
    if (task >= a.v.B * a.v.heads * a.v.T) return;
    for (u = threadIdx.x % 32; u < a.v.HS; u += 32)
        delta += db__cu_get(a.dout, at + u) * db__cu_get(a.o, at + u);
    delta = db__cu_warp_sum(delta);
    if (threadIdx.x % 32 == 0) a.delta[task] = delta;
}
/* dq and dbias: a warp for each query; where there is a dbias, for all of the batch in order. */
template <class T> static __global__ void __launch_bounds__(128)
    db__cu_attention_dq(db__cu_attn_back<T> a)
{
    __shared__ float shared[DB__CU_WARPS][32];
    const db__cu_attn &v = a.v;
    size_t warp = threadIdx.x / 32, lane = threadIdx.x % 32,
           task = (size_t)blockIdx.x * DB__CU_WARPS + warp, u, j0;
    size_t i = task % v.T, h = task / v.T % v.heads, b = task / v.T / v.heads,
           last = a.dbias ? v.B : b + 1;
    size_t n = v.causal ? (i + 1 < v.S ? i + 1 : v.S) : v.S;
    float acc[DB__CU_HEAD / 32];
    if (task >= v.heads * v.T * (a.dbias ? 1 : v.B)) return;
    for (; b < last; b++) {
        size_t at = (b * v.T + i) * v.C + h * v.HS, stat = (b * v.heads + h) * v.T + i;
        DB__CU_UNROLL
        for (u = 0; u < DB__CU_HEAD / 32; u++) acc[u] = 0;
        for (j0 = 0; j0 < n; j0 += 32) {
            size_t j = j0 + lane;
            float ds = 0;
            if (j < n) {
                float p = expf(db__cu_score(v, a.q, a.k, b, h, i, j) - a.lse[stat]);
                ds = p * (db__cu_dot(a.dout + at, a.val + (b * v.S + j) * v.C + h * v.HS, v.HS) -
                          a.delta[stat]);
                if (a.dbias) a.dbias[(h * v.T + i) * v.S + j] += ds;
            }
            shared[warp][lane] = ds;
            __syncwarp();
            db__cu_gather(acc, shared[warp], a.k + (b * v.S + j0) * v.C + h * v.HS, v.C,
                          n - j0 < 32 ? n - j0 : 32, v.HS);
            __syncwarp();
        }
        DB__CU_UNROLL
        for (u = 0; u < DB__CU_HEAD / 32; u++)
            if (a.dq && lane + 32 * u < v.HS)
                db__cu_put(a.dq, at + lane + 32 * u, acc[u] * v.scale, a.add_q);
    }
}
/* dk and dv: a warp for each key */
template <class T> static __global__ void __launch_bounds__(128)
    db__cu_attention_dkv(db__cu_attn_back<T> a)
{
    __shared__ float ps[DB__CU_WARPS][32], ds[DB__CU_WARPS][32];
    const db__cu_attn &v = a.v;
    size_t warp = threadIdx.x / 32, lane = threadIdx.x % 32,
           task = (size_t)blockIdx.x * DB__CU_WARPS + warp, u, i0;
    size_t j = task % v.S, h = task / v.S % v.heads, b = task / v.S / v.heads,
           at = (b * v.S + j) * v.C + h * v.HS;
    float dk[DB__CU_HEAD / 32], dv[DB__CU_HEAD / 32];
    if (task >= v.B * v.heads * v.S) return;
    DB__CU_UNROLL
    for (u = 0; u < DB__CU_HEAD / 32; u++) dk[u] = dv[u] = 0;
    for (i0 = v.causal ? j / 32 * 32 : 0; i0 < v.T; i0 += 32) {
        size_t i = i0 + lane, stat = (b * v.heads + h) * v.T + i,
               first = (b * v.T + i0) * v.C + h * v.HS, rows = v.T - i0 < 32 ? v.T - i0 : 32;
        float p = 0, d = 0;
        if (i < v.T && (!v.causal || i >= j)) {
            p = expf(db__cu_score(v, a.q, a.k, b, h, i, j) - a.lse[stat]);
            d = p * (db__cu_dot(a.dout + (b * v.T + i) * v.C + h * v.HS, a.val + at, v.HS) -
                     a.delta[stat]);
        }
        ps[warp][lane] = p, ds[warp][lane] = d;
        __syncwarp();
        db__cu_gather(dv, ps[warp], a.dout + first, v.C, rows, v.HS);
        db__cu_gather(dk, ds[warp], a.q + first, v.C, rows, v.HS);
        __syncwarp();
    }
    DB__CU_UNROLL
    for (u = 0; u < DB__CU_HEAD / 32; u++)
        if (lane + 32 * u < v.HS) {
            if (a.dk) db__cu_put(a.dk, at + lane + 32 * u, dk[u] * v.scale, a.add_k);
            if (a.dv) db__cu_put(a.dv, at + lane + 32 * u, dv[u], a.add_v);
        }
}
/* ---- attention on tensor cores ----
   A block of four warps has 64 rows, a warp 16, whose channels (D, the head's rounded up, zeros
   behind) stay in registers; it walks the columns in tiles [column][D] in shared memory, the next
   one being copied meanwhile. Rows are queries and columns keys; for dk and dv it is the other way
   around. Products with a tile's transpose read it as it lies, sums over its columns through
   ldmatrix.trans. The scores' accumulators are, as pairs of bf16, already the left operand of the
   next product: element [2 h + e] of lane l is row l / 4 + 8 h, column 2 (l % 4) + e. */

template <int D> struct db__cu_head {
    enum { ROW = D + 8, COLS = D <= 80 ? 64 : 32, TILE = COLS * ROW }; /* 8 rows: different banks */
};

/* Begins to copy `rows` rows of one head from row `first` on; zeros from row `end` on. x: row 0 */
template <int D> static __device__ __forceinline__ void
db__cu_head_rows(db__cu_bf16 *to, const db__cu_bf16 *x, const db__cu_attn &v, size_t first,
                 size_t end, unsigned rows)
{
    unsigned e, k;
    for (e = threadIdx.x; e < rows * (D / 8); e += 128) {
        unsigned r = e / (D / 8), c = e % (D / 8) * 8;
        const db__cu_bf16 *from = x + (first + r) * v.C + c;
        db__cu_bf16 *at = to + r * db__cu_head<D>::ROW + c;
        if (v.HS % 8 == 0) {
            int there = first + r < end && c < v.HS;
            db__cu_copy_async(at, there ? from : x, there ? 16 : 0);
        } else {
            for (k = 0; k < 8; k++) at[k].bits = first + r < end && c + k < v.HS ? from[k].bits : 0;
        }
    }
}
/* The warp's 16 rows as left operands */
template <int D> static __device__ __forceinline__ void
db__cu_head_fragments(uint32_t f[D / 16][4], const db__cu_bf16 *rows)
{
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    DB__CU_UNROLL
    for (int kk = 0; kk < D / 16; kk++)
        db__cu_load_matrices(f[kk],
                             rows + (warp * 16 + lane % 16) * db__cu_head<D>::ROW + kk * 16 +
                                 lane / 16 * 8,
                             0);
}
/* s [16][16] = f times the transpose of the tile's columns from `at` on */
template <int D> static __device__ __forceinline__ void
db__cu_head_scores(float s[2][4], const uint32_t f[D / 16][4], const db__cu_bf16 *tile, unsigned at)
{
    unsigned lane = threadIdx.x % 32;
    DB__CU_UNROLL
    for (int q = 0; q < 4; q++) s[0][q] = s[1][q] = 0;
    DB__CU_UNROLL
    for (int kk = 0; kk < D / 16; kk++) {
        uint32_t b[4];
        db__cu_load_matrices(b,
                             tile + (at + lane % 8 + lane / 16 * 8) * db__cu_head<D>::ROW +
                                 kk * 16 + lane / 8 % 2 * 8,
                             0);
        db__cu_multiply(s[0], f[kk], b);
        db__cu_multiply(s[1], f[kk], b + 2);
    }
}
/* acc [16][D] += p [16][16] times the tile's columns from `at` on */
template <int D> static __device__ __forceinline__ void
db__cu_head_sum(float acc[D / 8][4], float p[2][4], const db__cu_bf16 *tile, unsigned at)
{
    unsigned lane = threadIdx.x % 32;
    uint32_t a[4] = {db__cu_pair(p[0][0], p[0][1]), db__cu_pair(p[0][2], p[0][3]),
                     db__cu_pair(p[1][0], p[1][1]), db__cu_pair(p[1][2], p[1][3])};
    DB__CU_UNROLL
    for (int j = 0; j < D / 16; j++) {
        uint32_t b[4];
        db__cu_load_matrices(
            b, tile + (at + lane % 16) * db__cu_head<D>::ROW + j * 16 + lane / 16 * 8, 1);
        db__cu_multiply(acc[2 * j], a, b);
        db__cu_multiply(acc[2 * j + 1], a, b + 2);
    }
}
/* The score of query i and key j from the product of their vectors; 0 in *there: not seen */
static __device__ __forceinline__ float db__cu_head_score(const db__cu_attn &v, float qk, size_t b,
                                                          size_t h, size_t i, size_t j, int *there)
{
    float s = v.scale * qk;
    *there = i < v.T && j < v.S && (!v.causal || j <= i);
    if (*there && v.bias) s += v.bias[(h * v.T + i) * v.S + j];
    if (*there && v.mask) s += v.mask[b * v.S + j];
    return s;
}

/* blockIdx.x: 64 queries of a head of a sample */
template <int D> static __global__ void __launch_bounds__(128)
    db__cu_attention_tensor(db__cu_bf16 *o, float *lse, const db__cu_bf16 *q, const db__cu_bf16 *k,
                            const db__cu_bf16 *val, db__cu_attn v)
{
    enum { COLS = db__cu_head<D>::COLS, TILE = db__cu_head<D>::TILE };
    __shared__ __align__(16) db__cu_bf16 tiles[4 * TILE]; /* two stages of keys and values */
    size_t blocks = (v.T + 63) / 64, i0 = blockIdx.x % blocks * 64;
    size_t h = blockIdx.x / blocks % v.heads, b = blockIdx.x / blocks / v.heads;
    size_t end = v.causal && i0 + 64 < v.S ? i0 + 64 : v.S, steps = (end + COLS - 1) / COLS, step;
    size_t keys = b * v.S * v.C + h * v.HS, queries = b * v.T * v.C + h * v.HS;
    unsigned lane = threadIdx.x % 32;
    size_t row = i0 + threadIdx.x / 32 * 16 + lane / 4; /* and row + 8 */
    uint32_t f[D / 16][4];
    float acc[D / 8][4], s[COLS / 8][4], max[2] = {-3e38f, -3e38f}, total[2] = {0, 0};
    db__cu_head_rows<D>(tiles, q + queries, v, i0, v.T, 64);
    db__cu_copy_commit();
    db__cu_copy_wait<0>();
    __syncthreads();
    db__cu_head_fragments<D>(f, tiles);
    __syncthreads();
    db__cu_head_rows<D>(tiles, k + keys, v, 0, v.S, COLS);
    db__cu_head_rows<D>(tiles + TILE, val + keys, v, 0, v.S, COLS);
    db__cu_copy_commit();
    DB__CU_UNROLL
    for (int j = 0; j < D / 8; j++)
        for (int e = 0; e < 4; e++) acc[j][e] = 0;
    for (step = 0; step < steps; step++) {
        const db__cu_bf16 *tile = tiles + step % 2 * 2 * TILE;
        db__cu_bf16 *next = tiles + (step + 1) % 2 * 2 * TILE;
        float top[2] = {max[0], max[1]}, sum[2] = {0, 0};
        db__cu_copy_wait<0>();
        __syncthreads(); /* the tile is there; nobody reads the one before */
        if (step + 1 < steps) {
            db__cu_head_rows<D>(next, k + keys, v, (step + 1) * COLS, v.S, COLS);
            db__cu_head_rows<D>(next + TILE, val + keys, v, (step + 1) * COLS, v.S, COLS);
            db__cu_copy_commit();
        }
        DB__CU_UNROLL
        for (int j = 0; j < COLS / 8; j += 2) db__cu_head_scores<D>(s + j, f, tile, j * 8);
        DB__CU_UNROLL
        for (int j = 0; j < COLS / 8; j++)
            for (int e = 0; e < 4; e++) {
                int there;
                s[j][e] = db__cu_head_score(v, s[j][e], b, h, row + e / 2 * 8,
                                            step * COLS + j * 8 + lane % 4 * 2 + e % 2, &there);
                if (!there) s[j][e] = -HUGE_VALF;
                top[e / 2] = fmaxf(top[e / 2], s[j][e]);
            }
        DB__CU_UNROLL
        for (int r = 0; r < 2; r++) { /* four lanes share a row */
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFu, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFu, top[r], 2));
        }
        DB__CU_UNROLL
        for (int j = 0; j < COLS / 8; j++)
            for (int e = 0; e < 4; e++) sum[e / 2] += s[j][e] = expf(s[j][e] - top[e / 2]);
        DB__CU_UNROLL
        for (int r = 0; r < 2; r++) {
            float shrink = expf(max[r] - top[r]);
            max[r] = top[r], total[r] = total[r] * shrink + sum[r];
            DB__CU_UNROLL
            for (int j = 0; j < D / 8; j++) acc[j][2 * r] *= shrink, acc[j][2 * r + 1] *= shrink;
        }
        DB__CU_UNROLL
        for (int j = 0; j < COLS / 8; j += 2)
            db__cu_head_sum<D>(acc, s + j, tile + TILE, j * 8);
    }
    DB__CU_UNROLL
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(0xFFFFFFFFu, total[r], 1);
        total[r] += __shfl_xor_sync(0xFFFFFFFFu, total[r], 2);
    }
    DB__CU_UNROLL
    for (int j = 0; j < D / 8; j++)
        for (int e = 0; e < 4; e++) {
            size_t i = row + e / 2 * 8, c = j * 8 + lane % 4 * 2 + e % 2;
            if (i < v.T && c < v.HS)
                db__cu_set(o, queries + i * v.C + c, acc[j][e] / total[e / 2]);
        }
    for (int r = 0; r < 2; r++)
        if (lane % 4 == 0 && row + r * 8 < v.T)
            lse[(b * v.heads + h) * v.T + row + r * 8] = max[r] + logf(total[r]);
}

/* Rows are queries: dq = scale ds k, and dbias, for all of the batch in order; `of_keys`: rows are
   keys, dk = scale ds^T q and dv = p^T dout. ds = p (dout v - delta). */
template <int D, int of_keys> static __global__ void __launch_bounds__(128)
    db__cu_attention_tensor_dx(db__cu_attn_back<db__cu_bf16> a)
{
    enum { COLS = db__cu_head<D>::COLS, TILE = db__cu_head<D>::TILE };
    __shared__ __align__(16) db__cu_bf16 tiles[4 * TILE];
    const db__cu_attn &v = a.v;
    const db__cu_bf16 *x = of_keys ? a.k : a.q, *dx = of_keys ? a.val : a.dout; /* of the rows */
    const db__cu_bf16 *y = of_keys ? a.q : a.k, *dy = of_keys ? a.dout : a.val; /* of the columns */
    size_t n = of_keys ? v.S : v.T, m = of_keys ? v.T : v.S; /* rows, columns */
    size_t blocks = (n + 63) / 64, r0 = blockIdx.x % blocks * 64, h = blockIdx.x / blocks % v.heads,
           b = blockIdx.x / blocks / v.heads, last = !of_keys && a.dbias ? v.B : b + 1;
    size_t begin = of_keys && v.causal ? r0 : 0,
           end = !of_keys && v.causal && r0 + 64 < m ? r0 + 64 : m, at;
    unsigned lane = threadIdx.x % 32, stage;
    size_t row = r0 + threadIdx.x / 32 * 16 + lane / 4; /* and row + 8 */
    for (; b < last; b++) {
        size_t rows = b * n * v.C + h * v.HS, cols = b * m * v.C + h * v.HS,
               stat = (b * v.heads + h) * v.T;
        uint32_t f[D / 16][4], df[D / 16][4];
        float acc[D / 8][4], acc_v[of_keys ? D / 8 : 1][4];
        __syncthreads(); /* the sample before is no longer read */
        db__cu_head_rows<D>(tiles, x + rows, v, r0, n, 64);
        db__cu_head_rows<D>(tiles + 64 * db__cu_head<D>::ROW, dx + rows, v, r0, n, 64);
        db__cu_copy_commit();
        db__cu_copy_wait<0>();
        __syncthreads();
        db__cu_head_fragments<D>(f, tiles);
        db__cu_head_fragments<D>(df, tiles + 64 * db__cu_head<D>::ROW);
        __syncthreads();
        db__cu_head_rows<D>(tiles, y + cols, v, begin, m, COLS);
        db__cu_head_rows<D>(tiles + TILE, dy + cols, v, begin, m, COLS);
        db__cu_copy_commit();
        DB__CU_UNROLL
        for (int j = 0; j < D / 8; j++)
            for (int e = 0; e < 4; e++) {
                acc[j][e] = 0;
                if (of_keys) acc_v[j][e] = 0;
            }
        for (at = begin, stage = 0; at < end; at += COLS, stage ^= 1) {
            const db__cu_bf16 *tile = tiles + stage * 2 * TILE;
            db__cu_bf16 *next = tiles + (stage ^ 1) * 2 * TILE;
            db__cu_copy_wait<0>();
            __syncthreads(); /* the tile is there; nobody reads the one before */
            if (at + COLS < end) {
                db__cu_head_rows<D>(next, y + cols, v, at + COLS, m, COLS);
                db__cu_head_rows<D>(next + TILE, dy + cols, v, at + COLS, m, COLS);
                db__cu_copy_commit();
            }
            for (unsigned c0 = 0; c0 < COLS; c0 += 16) {
                float p[2][4], ds[2][4];
                db__cu_head_scores<D>(p, f, tile, c0);
                db__cu_head_scores<D>(ds, df, tile + TILE, c0);
                DB__CU_UNROLL
                for (int e = 0; e < 8; e++) {
                    size_t r = row + e % 4 / 2 * 8, c = at + c0 + e / 4 * 8 + lane % 4 * 2 + e % 2;
                    size_t i = of_keys ? c : r, j = of_keys ? r : c;
                    int there;
                    float s = db__cu_head_score(v, p[e / 4][e % 4], b, h, i, j, &there);
                    s = there ? expf(s - a.lse[stat + i]) : 0;
                    p[e / 4][e % 4] = s;
                    ds[e / 4][e % 4] = there ? s * (ds[e / 4][e % 4] - a.delta[stat + i]) : 0;
                    if (!of_keys && there && a.dbias)
                        a.dbias[(h * v.T + i) * v.S + j] += ds[e / 4][e % 4];
                }
                db__cu_head_sum<D>(acc, ds, tile, c0);
                if (of_keys) db__cu_head_sum<D>(acc_v, p, tile + TILE, c0);
            }
        }
        db__cu_copy_wait<0>(); /* the first tile, where no column is seen */
        DB__CU_UNROLL
        for (int j = 0; j < D / 8; j++)
            for (int e = 0; e < 4; e++) {
                size_t r = row + e / 2 * 8, c = j * 8 + lane % 4 * 2 + e % 2;
                size_t i = rows + r * v.C + c;
                if (r >= n || c >= v.HS) continue;
                if (!of_keys && a.dq) db__cu_put(a.dq, i, acc[j][e] * v.scale, a.add_q);
                if (of_keys && a.dk) db__cu_put(a.dk, i, acc[j][e] * v.scale, a.add_k);
                if (of_keys && a.dv) db__cu_put(a.dv, i, acc_v[of_keys ? j : 0][e], a.add_v);
            }
    }
}

/* Which way: f32, or bf16 without tensor cores or with wide heads; else the least D that holds a
   head. */
template <class T> static void db__cu_attention_plain(db_call *c, const db__cu_attn &v)
{
    DB_LAUNCH(db__cu_attention<T>, db__cu_up(v.B * v.heads * v.T, DB__CU_WARPS), 32 * DB__CU_WARPS,
              db__cu_data<T>(&c->a[0]), db__cu_data<float>(&c->a[1]), db__cu_data<T>(&c->a[2]),
              db__cu_data<T>(&c->a[3]), db__cu_data<T>(&c->a[4]), v);
}
template <class T> static void db__cu_attention_dx_plain(const db__cu_attn_back<T> &a)
{
    if (a.dq || a.dbias)
        DB_LAUNCH(db__cu_attention_dq<T>,
                  db__cu_up(a.v.heads * a.v.T * (a.dbias ? 1 : a.v.B), DB__CU_WARPS),
                  32 * DB__CU_WARPS, a);
    if (a.dk || a.dv)
        DB_LAUNCH(db__cu_attention_dkv<T>, db__cu_up(a.v.B * a.v.heads * a.v.S, DB__CU_WARPS),
                  32 * DB__CU_WARPS, a);
}
template <int D> static void db__cu_attention_fast(db_call *c, const db__cu_attn &v)
{
    DB_LAUNCH(db__cu_attention_tensor<D>, v.B * v.heads * db__cu_up(v.T, 64), 128,
              db__cu_data<db__cu_bf16>(&c->a[0]), db__cu_data<float>(&c->a[1]),
              db__cu_data<db__cu_bf16>(&c->a[2]), db__cu_data<db__cu_bf16>(&c->a[3]),
              db__cu_data<db__cu_bf16>(&c->a[4]), v);
}
template <int D> static void db__cu_attention_dx_fast(const db__cu_attn_back<db__cu_bf16> &a)
{
    if (a.dq || a.dbias)
        DB_LAUNCH((db__cu_attention_tensor_dx<D, 0>),
                  (a.dbias ? 1 : a.v.B) * a.v.heads * db__cu_up(a.v.T, 64), 128, a);
    if (a.dk || a.dv)
        DB_LAUNCH((db__cu_attention_tensor_dx<D, 1>), a.v.B * a.v.heads * db__cu_up(a.v.S, 64), 128,
                  a);
}
/* Runs `run<D>(...)` with the least D that holds HS channels; 0 where there is none. */
#define DB__CU_HEADS(HS, run, ...)                                             \
    ((HS) <= 32 ? (run<32>(__VA_ARGS__), 1) : (HS) <= 48 ? (run<48>(__VA_ARGS__), 1) \
     : (HS) <= 64 ? (run<64>(__VA_ARGS__), 1) : (HS) <= 80 ? (run<80>(__VA_ARGS__), 1) \
     : (HS) <= 160 ? (run<160>(__VA_ARGS__), 1) : 0)

static void db__cu_run_attention(db_ctx *ctx, db_call *c)
{
    db__cu_attn v = db__cu_attn_of(c, &c->a[2], &c->a[3], &c->a[5], &c->a[6]);
    if (c->measuring || !db__cu_attn_fits(ctx, &v)) return;
    if (c->a[0].dtype == DB_BF16 && db__cu_tensor_cores() &&
        DB__CU_HEADS(v.HS, db__cu_attention_fast, c, v))
        return;
    DB__CU_TYPED(&c->a[0], db__cu_attention_plain<T>(c, v));
}
static int db__cu_attention_dx_try(const db__cu_attn_back<float> &) { return 0; }
static int db__cu_attention_dx_try(const db__cu_attn_back<db__cu_bf16> &a)
{
    return db__cu_tensor_cores() && DB__CU_HEADS(a.v.HS, db__cu_attention_dx_fast, a);
}
template <class T> static void db__cu_attention_dx_typed(db_ctx *ctx, db_call *c)
{
    db__cu_attn_back<T> a;
    a.v = db__cu_attn_of(c, &c->a[7], &c->a[8], &c->a[10], &c->a[11]);
    a.dq = db__cu_data<T>(&c->a[0]), a.dk = db__cu_data<T>(&c->a[1]),
    a.dv = db__cu_data<T>(&c->a[2]), a.dbias = db__cu_data<float>(&c->a[3]);
    a.dout = db__cu_data<T>(&c->a[4]), a.o = db__cu_data<T>(&c->a[5]),
    a.lse = db__cu_data<float>(&c->a[6]);
    a.q = db__cu_data<T>(&c->a[7]), a.k = db__cu_data<T>(&c->a[8]),
    a.val = db__cu_data<T>(&c->a[9]);
    a.add_q = c->i[1], a.add_k = c->i[2], a.add_v = c->i[3];
    a.delta = db__cu_scratch<float>(c, a.v.B * a.v.heads * a.v.T);
    if (c->measuring || !db__cu_attn_fits(ctx, &a.v)) return;
    DB_LAUNCH(db__cu_attention_delta<T>, db__cu_up(a.v.B * a.v.heads * a.v.T, DB__CU_WARPS),
              32 * DB__CU_WARPS, a);
    if (!db__cu_attention_dx_try(a)) db__cu_attention_dx_plain(a);
}
static void db__cu_run_attention_dx(db_ctx *ctx, db_call *c)
{
    DB__CU_TYPED(&c->a[5], db__cu_attention_dx_typed<T>(ctx, c));
}

/* ---- embeddings, sums over samples ----------------------------------------------------------- */

static __device__ __forceinline__ size_t db__cu_id(const int32_t *ids, size_t i, size_t V)
{
    size_t id = (size_t)ids[i];
    return id < V ? id : V - 1;
}
template <class T> static __global__ void
db__cu_embedding(T *y, const int32_t *ids, const float *table, size_t N, size_t C, size_t V)
{
    DB__CU_EACH (i, N * C) db__cu_set(y, i, table[db__cu_id(ids, i / C, V) * C + i % C]);
}
/* Where an id occurs first its row collects from all places, in order. */
template <class T> static __global__ void
db__cu_embedding_dw(float *dtable, const int32_t *ids, const T *dy, size_t N, size_t C, size_t V)
{
    DB__CU_EACH (i, N * C) {
        size_t n = i / C, ch = i % C, id = db__cu_id(ids, n, V), j;
        float s = 0;
        for (j = 0; j < n && db__cu_id(ids, j, V) != id; j++) continue;
        if (j == n) {
            for (; j < N; j++)
                if (db__cu_id(ids, j, V) == id) s += db__cu_get(dy, j * C + ch);
            dtable[id * C + ch] += s;
        }
    }
}
template <class T>
static __global__ void db__cu_add_rows(T *y, const T *x, const float *rows, size_t n, size_t RC)
{
    DB__CU_EACH (i, n) db__cu_set(y, i, db__cu_get(x, i) + rows[i % RC]);
}
template <class T>
static __global__ void db__cu_add_rows_dw(float *dp, const T *dy, size_t n, size_t RC)
{
    DB__CU_EACH (i, RC) {
        size_t j;
        float s = 0;
        for (j = i; j < n; j += RC) s += db__cu_get(dy, j);
        dp[i] += s;
    }
}
template <class T>
static __global__ void db__cu_add_each(T *y, const T *x, const T *e, size_t n, size_t P, size_t C)
{
    DB__CU_EACH (i, n) db__cu_set(y, i, db__cu_get(x, i) + db__cu_get(e, i / C / P * C + i % C));
}
template <class T>
static __global__ void db__cu_mean_dx(T *dx, const T *dy, size_t n, size_t P, size_t C, int add)
{
    DB__CU_EACH (i, n) db__cu_put(dx, i, db__cu_get(dy, i / C / P * C + i % C) / (float)P, add);
}
static void db__cu_run_embedding(db_ctx *ctx, db_call *c)
{
    size_t C = c->a[2].dim[1], N = db__cu_count(&c->a[1]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0], DB_LAUNCH(db__cu_embedding<T>, db__cu_blocks(N * C), DB__CU_THREADS,
                                     db__cu_data<T>(&c->a[0]), db__cu_data<int32_t>(&c->a[1]),
                                     db__cu_data<float>(&c->a[2]), N, C, c->a[2].dim[0]));
}
static void db__cu_run_embedding_dw(db_ctx *ctx, db_call *c)
{
    size_t C = c->a[0].dim[1], N = db__cu_count(&c->a[1]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[2], DB_LAUNCH(db__cu_embedding_dw<T>, db__cu_blocks(N * C), DB__CU_THREADS,
                                     db__cu_data<float>(&c->a[0]), db__cu_data<int32_t>(&c->a[1]),
                                     db__cu_data<T>(&c->a[2]), N, C, c->a[0].dim[0]));
}
static void db__cu_run_add_rows(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]), RC = db__cu_count(&c->a[2]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0], DB_LAUNCH(db__cu_add_rows<T>, db__cu_blocks(n), DB__CU_THREADS,
                                     db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                                     db__cu_data<float>(&c->a[2]), n, RC));
}
static void db__cu_run_add_rows_dw(db_ctx *ctx, db_call *c)
{
    size_t RC = db__cu_count(&c->a[0]), n = db__cu_count(&c->a[1]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[1],
                 DB_LAUNCH(db__cu_add_rows_dw<T>, db__cu_blocks(RC), DB__CU_THREADS,
                           db__cu_data<float>(&c->a[0]), db__cu_data<T>(&c->a[1]), n, RC));
}
static void db__cu_run_add_each(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]), C = c->a[2].dim[1], P = n / c->a[2].dim[0] / C;
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0], DB_LAUNCH(db__cu_add_each<T>, db__cu_blocks(n), DB__CU_THREADS,
                                     db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                                     db__cu_data<T>(&c->a[2]), n, P, C));
}
static void db__cu_run_add_each_de(db_ctx *ctx, db_call *c)
{
    size_t B = c->a[0].dim[0], C = c->a[0].dim[1], P = db__cu_count(&c->a[1]) / B / C;
    (void)ctx;
    DB__CU_TYPED(&c->a[0], db__cu_sum_columns(c, db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                                              B, P, C, 1, c->i[0]));
}
static void db__cu_run_mean(db_ctx *ctx, db_call *c)
{
    const size_t *dim = c->a[1].dim;
    (void)ctx;
    DB__CU_TYPED(&c->a[0], db__cu_sum_columns(c, db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                                              dim[0], dim[1], dim[2], 1.0f / (float)dim[1], 0));
}
static void db__cu_run_mean_dx(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0], DB_LAUNCH(db__cu_mean_dx<T>, db__cu_blocks(n), DB__CU_THREADS,
                                     db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]), n,
                                     c->a[0].dim[1], c->a[0].dim[2], c->i[0]));
}
template <class T> static __global__ void db__cu_sinusoid(T *y, const float *t, size_t B, size_t D,
                                                          int cosine_first, float shift)
{
    DB__CU_EACH (n, B * D) {
        size_t half = D / 2, i = n % D;
        double angle = exp(-log(10000.0) * (double)(i % half) / ((double)half - (double)shift)) *
                       (double)t[n / D];
        db__cu_set(y, n,
                   i >= 2 * half ? 0.0f
                                 : (float)((i < half) == !cosine_first ? sin(angle) : cos(angle)));
    }
}
static void db__cu_run_sinusoid(db_ctx *ctx, db_call *c)
{
    size_t B = c->a[0].dim[0], D = c->a[0].dim[1];
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[0], DB_LAUNCH(db__cu_sinusoid<T>, db__cu_blocks(B * D), DB__CU_THREADS,
                                     db__cu_data<T>(&c->a[0]), db__cu_data<float>(&c->a[1]), B, D,
                                     c->i[0], c->f[0]));
}

/* T5's bucket of a distance: db__t5_bucket */
static __device__ size_t db__cu_bucket(long distance, size_t buckets, size_t max_distance)
{
    size_t half = buckets / 2, exact = half / 2, n = (size_t)(distance < 0 ? -distance : distance),
           base = distance > 0 ? half : 0, far;
    if (n < exact) return base + n;
    far = exact + (size_t)(log((double)n / (double)exact) /
                           log((double)max_distance / (double)exact) * (double)(half - exact));
    return base + (far < half - 1 ? far : half - 1);
}
static __global__ void db__cu_position_bias(float *bias, const float *table, size_t heads, size_t T,
                                            size_t S, size_t buckets, size_t max_distance)
{
    DB__CU_EACH (n, heads * T * S)
        bias[n] =
            table[db__cu_bucket((long)(n % S) - (long)(n / S % T), buckets, max_distance) * heads +
                  n / S / T];
}
/* A block for each element of the table, whose threads share the distances. */
static __global__ void db__cu_position_bias_dw(float *dtable, const float *dbias, size_t heads,
                                               size_t T, size_t S, size_t buckets,
                                               size_t max_distance)
{
    __shared__ float shared[DB__CU_THREADS];
    size_t bucket = blockIdx.x / heads, h = blockIdx.x % heads, d, i;
    float s = 0;
    for (d = threadIdx.x; d < T + S - 1; d += blockDim.x) { /* key - query = d - (T - 1) */
        long distance = (long)d - (long)(T - 1);
        if (db__cu_bucket(distance, buckets, max_distance) != bucket) continue;
        for (i = 0; i < T; i++)
            if ((long)i + distance >= 0 && (long)i + distance < (long)S)
                s += dbias[(h * T + i) * S + (size_t)((long)i + distance)];
    }
    s = db__cu_sum(s, shared);
    if (threadIdx.x == 0) dtable[blockIdx.x] += s;
}
static void db__cu_run_position_bias(db_ctx *ctx, db_call *c)
{
    const size_t *dim = c->a[0].dim;
    (void)ctx;
    if (c->measuring) return;
    DB_LAUNCH(db__cu_position_bias, db__cu_blocks(dim[0] * dim[1] * dim[2]), DB__CU_THREADS,
              db__cu_data<float>(&c->a[0]), db__cu_data<float>(&c->a[1]), dim[0], dim[1], dim[2],
              c->a[1].dim[0], c->s[0]);
}
static void db__cu_run_position_bias_dw(db_ctx *ctx, db_call *c)
{
    const size_t *dim = c->a[1].dim;
    (void)ctx;
    if (c->measuring) return;
    DB_LAUNCH(db__cu_position_bias_dw, c->a[0].dim[0] * dim[0], DB__CU_THREADS,
              db__cu_data<float>(&c->a[0]), db__cu_data<float>(&c->a[1]), dim[0], dim[1], dim[2],
              c->a[0].dim[0], c->s[0]);
}

/* ---- losses ---------------------------------------------------------------------------------- */

struct db__cu_mse_shape {
    size_t B, P, CP, CT;
};
static db__cu_mse_shape db__cu_mse_of(const db_arg *pred, const db_arg *target)
{
    db__cu_mse_shape v;
    v.B = pred->dim[0], v.CP = pred->dim[pred->n_dims - 1], v.CT = target->dim[target->n_dims - 1],
    v.P = db__cu_count(pred) / v.B / v.CP;
    return v;
}
/* A block for each sample */
template <class T> static __global__ void __launch_bounds__(256)
    db__cu_mse(float *each, const T *pred, const float *target, const float *pixel,
               db__cu_mse_shape v)
{
    __shared__ double shared[DB__CU_THREADS];
    size_t b = blockIdx.x, p, ch;
    double s = 0;
    for (p = threadIdx.x; p < v.P; p += blockDim.x) {
        float here = 0;
        for (ch = 0; ch < v.CT; ch++) {
            float d =
                db__cu_get(pred, (b * v.P + p) * v.CP + ch) - target[(b * v.P + p) * v.CT + ch];
            here += d * d;
        }
        s += (double)(pixel ? here * pixel[b * v.P + p] : here);
    }
    s = db__cu_sum(s, shared);
    if (threadIdx.x == 0) each[b] = (float)(s / (double)(v.P * v.CT));
}
static __global__ void db__cu_mse_end(float *loss, const float *each, const float *weight, size_t B)
{
    size_t b;
    double total = 0;
    for (b = 0; b < B; b++) total += (double)each[b] * (weight ? (double)weight[b] : 1) / (double)B;
    *loss = (float)total;
}
template <class T> static __global__ void db__cu_mse_dx(T *dpred, const T *pred,
                                                        const float *target, const float *weight,
                                                        const float *pixel, const float *dloss,
                                                        db__cu_mse_shape v, int add)
{
    DB__CU_EACH (i, v.B * v.P * v.CP) {
        size_t ch = i % v.CP, p = i / v.CP;
        float scale = 2 * *dloss / (float)(v.B * v.P * v.CT);
        if (weight) scale *= weight[p / v.P];
        if (pixel) scale *= pixel[p];
        db__cu_put(dpred, i, ch < v.CT ? scale * (db__cu_get(pred, i) - target[p * v.CT + ch]) : 0,
                   add);
    }
}
static void db__cu_run_mse(db_ctx *ctx, db_call *c)
{
    db__cu_mse_shape v = db__cu_mse_of(&c->a[2], &c->a[3]);
    float *each = db__cu_data<float>(&c->a[1]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[2],
                 DB_LAUNCH(db__cu_mse<T>, v.B, DB__CU_THREADS, each, db__cu_data<T>(&c->a[2]),
                           db__cu_data<float>(&c->a[3]), db__cu_data<float>(&c->a[5]), v));
    DB_LAUNCH(db__cu_mse_end, 1, 1, db__cu_data<float>(&c->a[0]), each,
              db__cu_data<float>(&c->a[4]), v.B);
}
static void db__cu_run_mse_dx(db_ctx *ctx, db_call *c)
{
    db__cu_mse_shape v = db__cu_mse_of(&c->a[1], &c->a[2]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[1],
                 DB_LAUNCH(db__cu_mse_dx<T>, db__cu_blocks(v.B * v.P * v.CP), DB__CU_THREADS,
                           db__cu_data<T>(&c->a[0]), db__cu_data<T>(&c->a[1]),
                           db__cu_data<float>(&c->a[2]), db__cu_data<float>(&c->a[3]),
                           db__cu_data<float>(&c->a[4]), db__cu_data<float>(&c->a[5]), v, c->i[0]));
}

/* A block for each row: lse[n], and the row's loss. */
template <class T> static __global__ void __launch_bounds__(256)
    db__cu_cross_entropy(float *lse, float *each, const T *logits, const int32_t *target,
                         const float *soft, size_t V)
{
    __shared__ float most[DB__CU_THREADS];
    __shared__ double shared[DB__CU_THREADS];
    size_t n = blockIdx.x, j;
    float max = -3e38f;
    double s = 0, loss = 0;
    if (target && target[n] < 0) return; /* the whole block */
    for (j = threadIdx.x; j < V; j += blockDim.x) max = fmaxf(max, db__cu_get(logits, n * V + j));
    max = db__cu_max_of(max, most);
    for (j = threadIdx.x; j < V; j += blockDim.x)
        s += (double)expf(db__cu_get(logits, n * V + j) - max);
    s = (double)max + log(db__cu_sum(s, shared));
    for (j = threadIdx.x; j < V && soft; j += blockDim.x)
        loss += (double)soft[n * V + j] * (s - (double)db__cu_get(logits, n * V + j));
    loss = db__cu_sum(loss, shared);
    if (threadIdx.x) return;
    lse[n] = (float)s;
    each[n] = (float)(target ? s - (double)db__cu_get(logits, n * V + db__cu_id(target, n, V))
                             : loss);
}
static __device__ size_t db__cu_counted(const int32_t *target, size_t N)
{
    size_t n, counted = 0;
    for (n = 0; n < N; n++) counted += !target || target[n] >= 0;
    return counted;
}
static __global__ void db__cu_cross_entropy_end(float *loss, const float *each,
                                                const int32_t *target, size_t N)
{
    size_t n, counted = db__cu_counted(target, N);
    double total = 0;
    for (n = 0; n < N; n++)
        if (!target || target[n] >= 0) total += (double)each[n];
    *loss = counted ? (float)(total / (double)counted) : 0;
}
template <class T> static __global__ void __launch_bounds__(256)
    db__cu_cross_entropy_dx(T *dlogits, const T *logits, const float *lse, const int32_t *target,
                            const float *soft, const float *dloss, size_t N, size_t V)
{
    __shared__ float shared[DB__CU_THREADS];
    size_t n = blockIdx.x, j, counted = db__cu_counted(target, N);
    float weight = 0;
    for (j = threadIdx.x; j < V && soft; j += blockDim.x) weight += soft[n * V + j];
    weight = db__cu_sum(weight, shared);
    if (target) weight = target[n] >= 0 ? 1.0f : 0.0f;
    for (j = threadIdx.x; j < V; j += blockDim.x) {
        float aim = target ? (j == db__cu_id(target, n, V) ? 1.0f : 0.0f) : soft[n * V + j];
        db__cu_set(dlogits, n * V + j,
                   weight > 0 ? (expf(db__cu_get(logits, n * V + j) - lse[n]) * weight - aim) *
                                    *dloss / (float)counted
                              : 0);
    }
}
static void db__cu_run_cross_entropy(db_ctx *ctx, db_call *c)
{
    size_t N = db__cu_count(&c->a[1]), V = db__cu_count(&c->a[2]) / N;
    int hard = c->a[3].dtype == DB_I32;
    const int32_t *target = hard ? db__cu_data<int32_t>(&c->a[3]) : NULL;
    const float *soft = hard ? NULL : db__cu_data<float>(&c->a[3]);
    float *each = db__cu_scratch<float>(c, N);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[2],
                 DB_LAUNCH(db__cu_cross_entropy<T>, N, DB__CU_THREADS, db__cu_data<float>(&c->a[1]),
                           each, db__cu_data<T>(&c->a[2]), target, soft, V));
    DB_LAUNCH(db__cu_cross_entropy_end, 1, 1, db__cu_data<float>(&c->a[0]), each, target, N);
}
static void db__cu_run_cross_entropy_dx(db_ctx *ctx, db_call *c)
{
    size_t N = db__cu_count(&c->a[2]), V = db__cu_count(&c->a[1]) / N;
    int hard = c->a[3].dtype == DB_I32;
    const int32_t *target = hard ? db__cu_data<int32_t>(&c->a[3]) : NULL;
    const float *soft = hard ? NULL : db__cu_data<float>(&c->a[3]);
    (void)ctx;
    if (c->measuring) return;
    DB__CU_TYPED(&c->a[1],
                 DB_LAUNCH(db__cu_cross_entropy_dx<T>, N, DB__CU_THREADS, db__cu_data<T>(&c->a[0]),
                           db__cu_data<T>(&c->a[1]), db__cu_data<float>(&c->a[2]), target, soft,
                           db__cu_data<float>(&c->a[4]), N, V));
}

/* ---- the optimiser's ------------------------------------------------------------------------- */

struct db__cu_adamw_step {
    float lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale;
};
/* One weight, its moments and its gradient */
static __device__ __forceinline__ void db__cu_adamw_one(float *w, float *m, float *v, float g,
                                                        const db__cu_adamw_step &a)
{
    float x = g * a.grad_scale;
    *m = a.beta1 * *m + (1 - a.beta1) * x;
    *v = a.beta2 * *v + (1 - a.beta2) * (x * x);
    *w = *w * (1 - a.lr * a.weight_decay) -
         a.lr / a.correction1 * *m / (sqrtf(*v * (1 / a.correction2)) + a.eps);
}
static __global__ void db__cu_adamw(float *w, float *m, float *v, const float *g, size_t n,
                                    db__cu_adamw_step a)
{
    DB__CU_EACH (i, n) db__cu_adamw_one(w + i, m + i, v + i, g[i], a);
}
/* The code nearest to x in [-1, 1]: db__8bit_encode, with a search by halves for its table. */
static __device__ uint8_t db__cu_encode(const float *map, int zero, float x)
{
    float size = fabsf(x);
    int low = zero, high = 255;
    while (low < high) { /* the least code that is 255 or whose upper border is not exceeded */
        int code = (low + high) / 2;
        if (size > (map[code] + map[code + 1]) * 0.5f) low = code + 1;
        else high = code;
    }
    if (x >= 0 || !zero) return (uint8_t)low;
    low = 2 * zero - low;
    return (uint8_t)(low < 0 ? 0 : low < zero ? low : zero - 1);
}
struct db__cu_moment { /* in 8 bits */
    float *scale;      /* [n / 256] */
    uint8_t *code;     /* [n]       */
    const float *map;  /* [256]     */
    int zero;
};
/* A block for each block of numbers, a thread for each number */
static __global__ void __launch_bounds__(256)
    db__cu_adamw_8bit(float *w, db__cu_moment m, db__cu_moment v, const float *g, size_t n,
                      db__cu_adamw_step a)
{
    __shared__ float shared[DB__CU_THREADS];
    size_t i = (size_t)blockIdx.x * DB__CU_THREADS + threadIdx.x;
    float mean = 0, square = 0, most_m, most_v;
    if (i < n) {
        mean = m.map[m.code[i]] * m.scale[blockIdx.x];
        square = v.map[v.code[i]] * v.scale[blockIdx.x];
        db__cu_adamw_one(w + i, &mean, &square, g[i], a);
    }
    most_m = db__cu_max_of(fabsf(mean), shared), most_v = db__cu_max_of(square, shared);
    if (i < n) {
        m.code[i] = db__cu_encode(m.map, m.zero, most_m > 0 ? mean / most_m : 0);
        v.code[i] = db__cu_encode(v.map, v.zero, most_v > 0 ? square / most_v : 0);
    }
    if (threadIdx.x == 0) m.scale[blockIdx.x] = most_m, v.scale[blockIdx.x] = most_v;
}
/* A block for each part */
static __global__ void __launch_bounds__(256)
    db__cu_squares(float *sums, const float *x, size_t n, size_t parts)
{
    __shared__ double shared[DB__CU_THREADS];
    size_t i = n * blockIdx.x / parts + threadIdx.x, end = n * (blockIdx.x + 1) / parts;
    float s = 0;
    double total;
    for (; i < end; i += blockDim.x) s += x[i] * x[i];
    total = db__cu_sum((double)s, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = (float)total;
}
static db__cu_adamw_step db__cu_adamw_step_of(const db_call *c)
{
    db__cu_adamw_step a = {c->f[0], c->f[1], c->f[2], c->f[3], c->f[4], c->f[5], c->f[6], c->f[7]};
    return a;
}
static void db__cu_run_adamw(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]);
    (void)ctx;
    DB_LAUNCH(db__cu_adamw, db__cu_blocks(n), DB__CU_THREADS, db__cu_data<float>(&c->a[0]),
              db__cu_data<float>(&c->a[1]), db__cu_data<float>(&c->a[2]),
              db__cu_data<float>(&c->a[3]), n, db__cu_adamw_step_of(c));
}
static void db__cu_run_adamw_8bit(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[0]);
    db__cu_moment m[2];
    int k;
    (void)ctx;
    for (k = 0; k < 2; k++)
        m[k].scale = db__cu_data<float>(&c->a[1 + k]),
        m[k].code = db__cu_data<uint8_t>(&c->a[3 + k]),
        m[k].map = db__cu_data<float>(&c->a[6 + k]), m[k].zero = c->i[k];
    DB_LAUNCH(db__cu_adamw_8bit, db__cu_up(n, DB__CU_THREADS), DB__CU_THREADS,
              db__cu_data<float>(&c->a[0]), m[0], m[1], db__cu_data<float>(&c->a[5]), n,
              db__cu_adamw_step_of(c));
}
static void db__cu_run_squares(db_ctx *ctx, db_call *c)
{
    size_t n = db__cu_count(&c->a[1]), parts = db__cu_count(&c->a[0]);
    (void)ctx;
    DB_LAUNCH(db__cu_squares, parts, DB__CU_THREADS, db__cu_data<float>(&c->a[0]),
              db__cu_data<float>(&c->a[1]), n, parts);
}

/* ---- memory and errors ----------------------------------------------------------------------- */

static db_result db__cu_check(db_ctx *ctx, cudaError_t e, const char *doing)
{
    char why[400];
    if (e == cudaSuccess) return db_status(ctx);
    snprintf(why, sizeof why,
             "the GPU failed while %s: %s; start again (a training from its last checkpoint, which "
             "is whole: --resume_from_checkpoint latest), or with --device cpu",
             doing, cudaGetErrorString(e));
    return db_fail(ctx, DB_ERROR_DEVICE, why);
}

/* All blocks of memory, in no order: a new tape's first run brings its context's to the GPU. */
struct db__cu_block {
    const db_ctx *ctx;
    int device;
    char *memory;
    size_t bytes;
    db__cu_block *next;
};
static db__cu_block *db__cu_all_blocks;
static std::mutex db__cu_blocks_mutex;

/* The present GPU. */
static int db__cu_device(void)
{
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) (void)cudaGetLastError();
    return device;
}
static int db__cu_remember(const db_ctx *ctx, void *memory, size_t bytes)
{
    db__cu_block *b = (db__cu_block *)malloc(sizeof *b);
    std::lock_guard<std::mutex> lock(db__cu_blocks_mutex);
    if (!b) return 0;
    b->ctx = ctx, b->device = db__cu_device();
    b->memory = (char *)memory, b->bytes = bytes, b->next = db__cu_all_blocks;
    db__cu_all_blocks = b;
    return 1;
}
static void db__cu_unremember(const void *memory)
{
    std::lock_guard<std::mutex> lock(db__cu_blocks_mutex);
    db__cu_block **b = &db__cu_all_blocks;
    while (*b && (*b)->memory != memory) b = &(*b)->next;
    if (*b) {
        db__cu_block *gone = *b;
        *b = gone->next;
        free(gone);
    }
}
/* Pages that the host wrote (weights from files) travel at the bus's speed, not fault by fault.
   Where the system cannot do that the faults remain. */
static void db__cu_prefetch(const db_ctx *ctx)
{
    std::lock_guard<std::mutex> lock(db__cu_blocks_mutex);
    int device = db__cu_device();
    for (db__cu_block *b = db__cu_all_blocks; b; b = b->next) {
        if (b->ctx != ctx) continue; /* another's, and maybe another GPU's */
#if CUDART_VERSION >= 13000
        cudaMemLocation there;
        memset(&there, 0, sizeof there);
        there.type = cudaMemLocationTypeDevice, there.id = device;
        if (cudaMemPrefetchAsync(b->memory, b->bytes, there, 0, cudaStreamPerThread)) break;
#else
        if (cudaMemPrefetchAsync(b->memory, b->bytes, device, cudaStreamPerThread)) break;
#endif
    }
    (void)cudaGetLastError();
}

/* What the present GPU is; 0 if it cannot be asked. */
static int db__cu_attribute(cudaDeviceAttr which)
{
    int value = 0;
    if (cudaDeviceGetAttribute(&value, which, db__cu_device()) != cudaSuccess)
        (void)cudaGetLastError(), value = 0;
    return value;
}

/* What all contexts hold of the present GPU. */
static size_t db__cu_held(void)
{
    std::lock_guard<std::mutex> lock(db__cu_blocks_mutex);
    size_t bytes = 0;
    int device = db__cu_device();
    for (const db__cu_block *b = db__cu_all_blocks; b; b = b->next)
        if (b->device == device) bytes += b->bytes;
    return bytes;
}
/* Zeroed memory that both sides reach. More than is free is refused, since the driver would swap
 * pages at every step (what the host wrote last counts as free, and comes back with the next run:
 * hence the sum of what is held, too); not where GPU and processor share the memory, of which the
 * system's cache of files counts as used. */
static void *db__cu_alloc(db_ctx *ctx, size_t bytes)
{
    void *p = NULL;
    size_t left = 0, all = 0, held = db__cu_held();
    cudaError_t e = cudaMemGetInfo(&left, &all);
    if (e == cudaSuccess) left = held >= all ? 0 : left < all - held ? left : all - held;
    if (e == cudaSuccess && (bytes <= left || db__cu_attribute(cudaDevAttrIntegrated)))
        e = cudaMallocManaged(&p, bytes);
    if (e == cudaSuccess && p) e = cudaMemsetAsync(p, 0, bytes, cudaStreamPerThread);
    if (e == cudaSuccess && p) e = cudaStreamSynchronize(cudaStreamPerThread);
    if (e == cudaSuccess && p && db__cu_remember(ctx, p, bytes)) return p;
    if (p) cudaFree(p);
    if (e == cudaSuccess || e == cudaErrorMemoryAllocation) {
        char why[400];
        (void)cudaGetLastError();
        snprintf(why, sizeof why,
                 "out of GPU memory: %.1f MB asked for, %.1f of %.1f MB free; use a smaller batch "
                 "or resolution, --gradient_checkpointing, --use_8bit_adam, or --device cpu",
                 (double)bytes / 1e6, (double)left / 1e6, (double)all / 1e6);
        db_fail(ctx, DB_ERROR_MEMORY, why);
    } else {
        db__cu_check(ctx, e, "allocating memory");
    }
    return NULL;
}
static void db__cu_release(db_ctx *ctx, void *memory)
{
    (void)ctx;
    if (!memory) return;
    db__cu_unremember(memory);
    cudaFree(memory);
}
static cudaError_t db__cu_copy_bytes(void *to, const void *from, size_t bytes)
{
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, cudaStreamPerThread);
    return e == cudaSuccess ? cudaStreamSynchronize(cudaStreamPerThread) : e;
}
static db_result db__cu_copy_in(db_ctx *ctx, void *device, const void *host, size_t bytes)
{
    return db__cu_check(ctx, db__cu_copy_bytes(device, host, bytes), "copying to it");
}
static db_result db__cu_copy_out(db_ctx *ctx, void *host, const void *device, size_t bytes)
{
    return db__cu_check(ctx, db__cu_copy_bytes(host, device, bytes), "copying from it");
}
/* Waits for all that was launched. */
static db_result db__cu_sync(db_ctx *ctx)
{
    cudaError_t launched = cudaGetLastError(), e = cudaStreamSynchronize(cudaStreamPerThread);
    return db__cu_check(ctx, launched != cudaSuccess ? launched : e, "computing");
}

/* ---- a tape's runs as a CUDA graph --------------------------------------------------------------
   The first run with given addresses is an ordinary one (it loads the kernels), the second is
   recorded and launched as a graph, and so is every later one: a step of thousands of kernels costs
   the host one call. Where recording does not work runs stay ordinary. */

struct db__cu_recording {
    uint64_t key;
    size_t runs;       /* with this key */
    int busy, refused; /* recording now; recording has failed once */
    db__cu_draw *draw; /* on the GPU */
    cudaGraphExec_t graph;
};

static void db__cu_drop_graph(db__cu_recording *r)
{
    if (r->graph) cudaGraphExecDestroy(r->graph);
    r->graph = NULL;
}
static int db__cu_begin_run(db_ctx *ctx, void **recording, uint64_t key, uint64_t seed,
                            uint32_t step)
{
    (void)cudaGetLastError(); /* of the program's own calls */
    if (!recording) return 0;
    db__cu_recording *r = (db__cu_recording *)*recording;
    if (!r) *recording = r = (db__cu_recording *)calloc(1, sizeof *r);
    if (!r) return 0;
    if (!r->runs || r->key != key) {
        db__cu_drop_graph(r);
        db__cu_prefetch(ctx);
        r->key = key, r->runs = 0;
    }
    if (!r->runs++ || r->refused) return 0;
    if (!r->draw && cudaMalloc((void **)&r->draw, sizeof *r->draw) != cudaSuccess) r->refused = 1;
    if (!r->refused) DB_LAUNCH(db__cu_set_draw, 1, 1, r->draw, seed, step);
    if (!r->refused && r->graph) {
        if (cudaGraphLaunch(r->graph, cudaStreamPerThread) == cudaSuccess) return 1;
        r->refused = 1;
    }
    if (!r->refused &&
        cudaStreamBeginCapture(cudaStreamPerThread, cudaStreamCaptureModeThreadLocal))
        r->refused = 1;
    if (r->refused) (void)cudaGetLastError(); /* a lost device stays lost: sync will say so */
    else r->busy = 1, db__cu_recorded_draw = r->draw;
    return 0;
}
static int db__cu_end_run(db_ctx *ctx, void *recording)
{
    db__cu_recording *r = (db__cu_recording *)recording;
    cudaGraph_t graph = NULL;
    cudaError_t e;
    if (!r || !r->busy) return 1;
    r->busy = 0, db__cu_recorded_draw = NULL;
    e = cudaStreamEndCapture(cudaStreamPerThread, &graph);
    if (db_status(ctx) == DB_OK) {
        if (e == cudaSuccess) e = cudaGraphInstantiateWithFlags(&r->graph, graph, 0);
        if (e == cudaSuccess) e = cudaGraphLaunch(r->graph, cudaStreamPerThread);
    }
    if (graph) cudaGraphDestroy(graph);
    if (e == cudaSuccess) return 1;
    db__cu_drop_graph(r);
    r->refused = 1;
    (void)cudaGetLastError();
    return 0;
}
static void db__cu_forget(db_ctx *ctx, void *recording)
{
    db__cu_recording *r = (db__cu_recording *)recording;
    (void)ctx;
    db__cu_drop_graph(r);
    if (r->draw) cudaFree(r->draw);
    free(r);
}

extern "C" const db_backend *db_backend_cuda(const char **why)
{
    static char text[300];
    static const db_backend cuda = {"cuda",
                                    db__cu_alloc,
                                    db__cu_release,
                                    db__cu_copy_in,
                                    db__cu_copy_out,
                                    db__cu_sync,
                                    db__cu_begin_run,
                                    db__cu_end_run,
                                    db__cu_forget,
                                    {db__cu_run_conv2d,        db__cu_run_conv2d_dx,
                                     db__cu_run_conv2d_dw,     db__cu_run_group_norm,
                                     db__cu_run_group_norm_dx, db__cu_run_layer_norm,
                                     db__cu_run_layer_norm_dx, db__cu_run_act,
                                     db__cu_run_act_dx,        db__cu_run_gate,
                                     db__cu_run_gate_dx,       db__cu_run_mul,
                                     db__cu_run_axpby,         db__cu_run_fill,
                                     db__cu_run_mix,           db__cu_run_normal,
                                     db__cu_run_copy,          db__cu_run_pool2,
                                     db__cu_run_up2,           db__cu_run_max_pool,
                                     db__cu_run_max_pool_dx,   db__cu_run_attention,
                                     db__cu_run_attention_dx,  db__cu_run_embedding,
                                     db__cu_run_embedding_dw,  db__cu_run_add_rows,
                                     db__cu_run_add_rows_dw,   db__cu_run_add_each,
                                     db__cu_run_add_each_de,   db__cu_run_mean,
                                     db__cu_run_mean_dx,       db__cu_run_sinusoid,
                                     db__cu_run_position_bias, db__cu_run_position_bias_dw,
                                     db__cu_run_mse,           db__cu_run_mse_dx,
                                     db__cu_run_cross_entropy, db__cu_run_cross_entropy_dx,
                                     db__cu_run_adamw,         db__cu_run_adamw_8bit,
                                     db__cu_run_squares}};
    int n = 0, driver = 0, runtime = 0;
    cudaFuncAttributes built; /* a kernel as this GPU would run it */
    cudaError_t e = cudaGetDeviceCount(&n);
    *why = "";
    if (e == cudaErrorInsufficientDriver) {
        cudaDriverGetVersion(&driver), cudaRuntimeGetVersion(&runtime);
        if (!driver) snprintf(text, sizeof text, "this machine has no NVIDIA driver");
        else
            snprintf(text, sizeof text,
                     "the NVIDIA driver supports CUDA %d.%d, this program was built with %d.%d: "
                     "install a newer driver",
                     driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    } else if (e != cudaSuccess || n == 0) {
        snprintf(text, sizeof text, "no NVIDIA GPU was found (%s)", cudaGetErrorString(e));
    } else if ((e = cudaFuncGetAttributes(&built, db__cu_conv_tensor)) != cudaSuccess) {
        cudaGetLastError(); /* which forgets it */
        snprintf(text, sizeof text,
                 "this program holds no kernels for the NVIDIA GPU (%s): build it with nvcc "
                 "-arch=native, or CUDA_ARCH=",
                 cudaGetErrorString(e));
    } else if (!db__cu_attribute(cudaDevAttrManagedMemory)) {
        snprintf(text, sizeof text, "the NVIDIA GPU, or this share of it, has no managed memory");
    } else {
        return &cuda;
    }
    *why = text;
    return NULL;
}
