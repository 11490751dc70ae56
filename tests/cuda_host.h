/* cuda_host.h - runs dreambooth_cuda.cu on the processor, so that its kernels are checked where
   there is no GPU.

       g++ -x c++ -include tests/cuda_host.h -c dreambooth_cuda.cu

   A launch runs the blocks one after the other. Each thread of a block is a fiber that runs until
   it waits: at a barrier of the block, at an exchange within its warp, or at its end. What real
   hardware leaves undefined ends the program with a sentence: a barrier that not all threads of the
   block reach, an exchange without the whole warp. cuda_host_reverse turns the order of blocks and
   threads around: results that change had a race. Memory is the host's own, so that the address
   sanitizer watches every access. The twins of the PTX functions do what the PTX manual
   (ISA 8.5, 9.7.14: mma.m16n8k16, ldmatrix; 9.7.9: cp.async, cvt.rn.bf16x2) says; an asynchronous
   copy arrives as late as it may, when it is waited for. Allocations, launches and the recording of
   graphs fail where a test says so. */
#ifndef CUDA_HOST_H
#define CUDA_HOST_H

#include <functional>
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(n)
#define __align__(n) __attribute__((aligned(n)))

struct cuda_host_index {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(size_t x_ = 1, size_t y_ = 1, size_t z_ = 1)
        : x((unsigned)x_), y((unsigned)y_), z((unsigned)z_)
    {
    }
};
static cuda_host_index threadIdx, blockIdx, blockDim, gridDim;

extern "C" {
int cuda_host_reverse;                   /* the order of blocks and threads */
size_t cuda_host_free = (size_t)1 << 36; /* bytes that the GPU claims to have left */
size_t cuda_host_all = (size_t)1 << 36;  /* and to have */
int cuda_host_pending;                   /* an error of the program's own calls, not yet asked for */
long cuda_host_allocations = -1;         /* so many succeed, then memory is out; -1: all */
long cuda_host_life = -1;                /* so many launches, then the device is lost; -1: never */
int cuda_host_no_graphs;                 /* recording: 1 cannot begin, 2 end, 3 be instantiated */
int cuda_host_devices = 1; /* -1: an old driver, -2: none */
int cuda_host_ptx = 80; /* what kernels were compiled for; 0: not for this GPU */
unsigned long cuda_host_launches, cuda_host_graphs, cuda_host_prefetched;
}

/* ---- fibers ---------------------------------------------------------------------------------- */

enum { CUDA_HOST_THREADS = 1024, CUDA_HOST_STACK = 64 << 10, CUDA_HOST_COPIES = 64 };
enum cuda_host_state {
    CUDA_HOST_NEW,
    CUDA_HOST_READY,
    CUDA_HOST_AT_BARRIER,
    CUDA_HOST_AT_WARP,
    CUDA_HOST_DONE
};

struct cuda_host_copy { /* of 16 bytes, under way */
    void *to;
    const void *from;
    int bytes, group;
};
struct cuda_host_fiber {
    ucontext_t entry;
    jmp_buf at;
    char *stack;
    int entered;
    cuda_host_state state;
    cuda_host_copy copy[CUDA_HOST_COPIES];
    int copies, groups;
};
static cuda_host_fiber cuda_host_fibers[CUDA_HOST_THREADS];
static jmp_buf cuda_host_scheduler;
static unsigned cuda_host_thread; /* the one that runs */
static void (*cuda_host_body)(void *);
static void *cuda_host_arguments;
static uint32_t cuda_host_slot[CUDA_HOST_THREADS][8]; /* what a thread shows to its warp */

static inline void cuda_host_die(const char *why)
{
    printf("FAIL cuda_host: %s (block %u %u %u, thread %u of %u)\n", why, blockIdx.x, blockIdx.y,
           blockIdx.z, cuda_host_thread, blockDim.x);
    exit(1);
}
static inline void cuda_host_wait(cuda_host_state why)
{
    cuda_host_fibers[cuda_host_thread].state = why;
    if (!_setjmp(cuda_host_fibers[cuda_host_thread].at)) _longjmp(cuda_host_scheduler, 1);
    threadIdx.x = cuda_host_thread;
}
static void cuda_host_main(void)
{
    for (;;) {
        threadIdx.x = cuda_host_thread;
        cuda_host_body(cuda_host_arguments);
        if (cuda_host_fibers[cuda_host_thread].copies)
            cuda_host_die("a thread ends with copies under way");
        cuda_host_wait(CUDA_HOST_DONE);
    }
}
static inline void cuda_host_resume(unsigned t)
{
    cuda_host_fiber *f = &cuda_host_fibers[t];
    cuda_host_thread = t;
    if (_setjmp(cuda_host_scheduler)) return;
    if (f->entered) _longjmp(f->at, 1);
    f->entered = 1;
    if (!f->stack) f->stack = (char *)malloc(CUDA_HOST_STACK);
    getcontext(&f->entry);
    f->entry.uc_stack.ss_sp = f->stack, f->entry.uc_stack.ss_size = CUDA_HOST_STACK,
    f->entry.uc_link = NULL;
    makecontext(&f->entry, cuda_host_main, 0);
    setcontext(&f->entry);
}
/* A warp runs until all of it waits at a barrier or has ended, before the next one begins: a
   missing barrier shows. */
static inline int cuda_host_warp(unsigned first, unsigned end)
{
    unsigned k, ready, there, any = 0;
    do {
        for (k = first, ready = there = 0; k < end; k++) {
            unsigned t = cuda_host_reverse ? end - 1 - (k - first) : k;
            if (cuda_host_fibers[t].state <= CUDA_HOST_READY) cuda_host_resume(t), any = 1;
        }
        for (k = first; k < end; k++) there += cuda_host_fibers[k].state == CUDA_HOST_AT_WARP;
        if (there == 32)
            for (k = first, ready = 1; k < end; k++) cuda_host_fibers[k].state = CUDA_HOST_READY;
    } while (ready);
    return any;
}
static inline void cuda_host_block(unsigned n)
{
    unsigned k, w, done, waiting, warps = (n + 31) / 32;
    int moved = 1;
    for (k = 0; k < n; k++)
        cuda_host_fibers[k].state = CUDA_HOST_NEW,
        cuda_host_fibers[k].copies = cuda_host_fibers[k].groups = 0;
    while (moved) {
        for (w = moved = 0; w < warps; w++) {
            unsigned first = (cuda_host_reverse ? warps - 1 - w : w) * 32;
            moved |= cuda_host_warp(first, first + 32 < n ? first + 32 : n);
        }
        for (k = done = waiting = 0; k < n; k++) {
            done += cuda_host_fibers[k].state == CUDA_HOST_DONE;
            waiting += cuda_host_fibers[k].state == CUDA_HOST_AT_BARRIER;
        }
        if (done == n) return;
        if (waiting == n)
            for (k = 0, moved = 1; k < n; k++) cuda_host_fibers[k].state = CUDA_HOST_READY;
    }
    cuda_host_die("threads wait for others that never come");
}

template <class F> static void cuda_host_call(void *f) { (*(F *)f)(); }

/* A recording stream keeps launches instead. */
struct cuda_host_graph {
    std::vector<std::function<void()>> launch;
};
static cuda_host_graph *cuda_host_recording;

template <class F> static void cuda_host_launch(dim3 grid, dim3 block, F f)
{
    size_t k, n = (size_t)grid.x * grid.y * grid.z;
    if (cuda_host_recording) {
        cuda_host_recording->launch.push_back([=]() { cuda_host_launch(grid, block, f); });
        return;
    }
    if (cuda_host_life == 0) return;
    if (cuda_host_life > 0) cuda_host_life--;
    cuda_host_launches++;
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 ||
        block.x > CUDA_HOST_THREADS || block.y * block.z != 1)
        cuda_host_die("a launch with an impossible shape");
    gridDim.x = grid.x, gridDim.y = grid.y, gridDim.z = grid.z, blockDim.x = block.x,
    blockDim.y = blockDim.z = 1;
    cuda_host_body = cuda_host_call<F>, cuda_host_arguments = &f;
    for (k = 0; k < n; k++) {
        size_t b = cuda_host_reverse ? n - 1 - k : k;
        blockIdx.x = (unsigned)(b % grid.x), blockIdx.y = (unsigned)(b / grid.x % grid.y);
        blockIdx.z = (unsigned)(b / grid.x / grid.y);
        cuda_host_block(block.x);
    }
    cuda_host_arguments = NULL;
}
/* Arguments are taken now, as real launches do: a recorded one runs much later. */
template <class F, class... A> static void cuda_host_bind(dim3 grid, dim3 block, F f, A... a)
{
    cuda_host_launch(grid, block, [=]() { f(a...); });
}
#define DB_LAUNCH(kernel, blocks, threads, ...) \
    cuda_host_bind(blocks, threads, [](auto... values) { kernel(values...); }, __VA_ARGS__)

static inline void __syncthreads(void) { cuda_host_wait(CUDA_HOST_AT_BARRIER); }
static inline void __syncwarp(void) { cuda_host_wait(CUDA_HOST_AT_WARP); }
static inline float __shfl_xor_sync(unsigned, float x, int mask)
{
    float y;
    memcpy(cuda_host_slot[cuda_host_thread], &x, 4);
    __syncwarp();
    memcpy(&y, cuda_host_slot[cuda_host_thread ^ (unsigned)mask], 4);
    __syncwarp();
    return y;
}
static inline uint32_t __float_as_uint(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static inline float __uint_as_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* ---- the twins of the PTX functions ---------------------------------------------------------- */

static inline void db__cu_copy_async(void *shared, const void *global, int bytes)
{
    cuda_host_fiber *f = &cuda_host_fibers[cuda_host_thread];
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16)
        cuda_host_die("cp.async of unaligned addresses");
    if (f->copies == CUDA_HOST_COPIES) cuda_host_die("too many copies under way");
    cuda_host_copy c = {shared, global, bytes, f->groups};
    f->copy[f->copies++] = c;
    memset(shared, 0xFF, 16); /* NaNs until it is waited for */
}
static inline void db__cu_copy_commit(void) { cuda_host_fibers[cuda_host_thread].groups++; }
/* All but the last `left` groups have arrived. */
template <int left> static inline void db__cu_copy_wait(void)
{
    cuda_host_fiber *f = &cuda_host_fibers[cuda_host_thread];
    int k, kept = 0;
    for (k = 0; k < f->copies; k++) {
        cuda_host_copy c = f->copy[k];
        if (c.group >= f->groups - left) {
            f->copy[kept++] = c;
            continue;
        }
        memset(c.to, 0, 16);
        memcpy(c.to, c.from, (size_t)c.bytes);
    }
    f->copies = kept;
}

/* Four 8 x 8 matrices of 16 bits; lane l names row l % 8 of matrix l / 8 and receives elements 2 (l
   % 4) and the next of row l / 4, or of column l / 4 where transposed. */
static inline void db__cu_load_matrices(uint32_t r[4], const void *row, int transposed)
{
    unsigned lane = cuda_host_thread % 32, warp = cuda_host_thread - lane;
    int m, e;
    if ((uintptr_t)row % 16) cuda_host_die("ldmatrix of an unaligned row");
    memcpy(cuda_host_slot[cuda_host_thread], &row, sizeof row);
    __syncwarp();
    for (m = 0; m < 4; m++)
        for (r[m] = 0, e = 0; e < 2; e++) {
            unsigned i = lane / 4, j = lane % 4 * 2 + (unsigned)e;
            const uint16_t *from;
            memcpy(&from, cuda_host_slot[warp + (unsigned)m * 8 + (transposed ? j : i)],
                   sizeof from);
            r[m] |= (uint32_t)from[transposed ? i : j] << 16 * e;
        }
    __syncwarp();
}

/* c += a b: a 16 x 16 and b 16 x 8 in bf16, c 16 x 8 in f32. Element (i, k) of a lies with lane 4
   (i % 8) + k / 2 % 4 in register i / 8 + 2 (k / 8); element (k, j) of b with lane 4 j + k / 2 % 4
   in register k / 8; of both in half k % 2. c[2 h + e] of lane l is element (l / 4 + 8 h, 2 (l % 4)
   + e). */
static inline void db__cu_multiply(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    unsigned lane = cuda_host_thread % 32, warp = cuda_host_thread - lane, k;
    int n;
    memcpy(cuda_host_slot[cuda_host_thread], a, 16);
    memcpy(cuda_host_slot[cuda_host_thread] + 4, b, 8);
    __syncwarp();
    for (n = 0; n < 4; n++) {
        unsigned i = lane / 4 + 8 * (unsigned)(n / 2), j = lane % 4 * 2 + (unsigned)(n % 2);
        for (k = 0; k < 16; k++) {
            uint32_t x = cuda_host_slot[warp + 4 * (i % 8) + k / 2 % 4][i / 8 + 2 * (k / 8)];
            uint32_t y = cuda_host_slot[warp + 4 * j + k / 2 % 4][4 + k / 8];
            c[n] += __uint_as_float(k % 2 ? x & 0xFFFF0000u : x << 16) *
                    __uint_as_float(k % 2 ? y & 0xFFFF0000u : y << 16);
        }
    }
    __syncwarp();
}

/* Two numbers as bf16: rounded to nearest, ties to even; a NaN becomes 0x7FFF */
static inline uint32_t db__cu_pair(float low, float high)
{
    uint32_t half[2];
    float x[2] = {low, high};
    for (int k = 0; k < 2; k++) {
        uint32_t bits = __float_as_uint(x[k]), rest = bits & 0xFFFFu;
        half[k] = bits >> 16;
        if (rest > 0x8000u || (rest == 0x8000u && half[k] % 2)) half[k]++;
        if (x[k] != x[k]) half[k] = 0x7FFF;
    }
    return half[0] | half[1] << 16;
}

/* ---- as much of the runtime as the backend calls --------------------------------------------- */

#define CUDART_VERSION 13000
typedef int cudaError_t;
typedef void *cudaStream_t;
typedef cuda_host_graph *cudaGraph_t, *cudaGraphExec_t;
#define cudaStreamPerThread ((cudaStream_t)2)
enum {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorIllegalAddress = 700,
    cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
struct cudaFuncAttributes {
    int ptxVersion;
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
struct cudaMemLocation {
    cudaMemLocationType type;
    int id;
};
static inline const char *cudaGetErrorString(cudaError_t e)
{
    return e == cudaErrorMemoryAllocation ? "out of memory"
           : e == cudaErrorIllegalAddress ? "an illegal memory access was encountered"
           : e                            ? "an error"
                                          : "no error";
}
/* What every call reports: a lost device, or one that may not be made while recording. */
static inline cudaError_t cuda_host_state_of(void)
{
    if (cuda_host_recording) cuda_host_die("a call that recording forbids");
    return cuda_host_life == 0 ? cudaErrorIllegalAddress : cudaSuccess;
}
static inline cudaError_t cudaMalloc(void **p, size_t bytes)
{
    cudaError_t e = cuda_host_state_of();
    *p = NULL;
    if (e) return e;
    if (cuda_host_allocations == 0 || bytes > cuda_host_free) return cudaErrorMemoryAllocation;
    if (cuda_host_allocations > 0) cuda_host_allocations--;
    *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaMallocManaged(void **p, size_t bytes) { return cudaMalloc(p, bytes); }
static inline cudaError_t cudaFree(void *p) { return free(p), cuda_host_state_of(); }
static inline cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t)
{
    return memset(p, v, n), cuda_host_state_of();
}
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind,
                                          cudaStream_t)
{
    return memcpy(to, from, n), cuda_host_state_of();
}
static inline cudaError_t cudaMemPrefetchAsync(const void *, size_t bytes, cudaMemLocation,
                                               unsigned, cudaStream_t)
{
    return cuda_host_prefetched += bytes, cuda_host_state_of();
}
static inline cudaError_t cudaGetLastError(void)
{
    cudaError_t e = (cudaError_t)cuda_host_pending;
    cuda_host_pending = 0;
    return cuda_host_life == 0 ? cudaErrorIllegalAddress : e;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cuda_host_state_of(); }
static inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode)
{
    cudaError_t e = cuda_host_state_of();
    if (e || cuda_host_no_graphs == 1) return e ? e : cudaErrorStreamCaptureUnsupported;
    cuda_host_recording = new cuda_host_graph;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph)
{
    *graph = cuda_host_recording;
    cuda_host_recording = NULL;
    if (cuda_host_no_graphs != 2) return cudaSuccess;
    delete *graph;
    *graph = NULL;
    return cudaErrorStreamCaptureUnsupported;
}
static inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *out, cudaGraph_t graph,
                                                        unsigned long long)
{
    if (cuda_host_no_graphs == 3) return cudaErrorMemoryAllocation;
    *out = new cuda_host_graph(*graph);
    return cudaSuccess;
}
static inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
static inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) { return delete g, cudaSuccess; }
static inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t)
{
    cudaError_t e = cuda_host_state_of();
    if (e) return e;
    cuda_host_graphs++;
    for (size_t k = 0; k < graph->launch.size(); k++) graph->launch[k]();
    return cudaSuccess;
}
static inline cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
enum cudaDeviceAttr { cudaDevAttrIntegrated = 18, cudaDevAttrManagedMemory = 83 };
static inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int)
{
    return *value = which == cudaDevAttrManagedMemory, cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t *left, size_t *all)
{
    *left = cuda_host_free, *all = cuda_host_all;
    return cuda_host_state_of();
}
static inline cudaError_t cudaGetDeviceCount(int *n)
{
    *n = cuda_host_devices > 0 ? cuda_host_devices : 0;
    return cuda_host_devices < 0 ? cudaErrorInsufficientDriver
           : *n                  ? cudaSuccess
                                 : cudaErrorNoDevice;
}
template <class F> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, F *)
{
    a->ptxVersion = cuda_host_ptx;
    return cuda_host_ptx ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}
static inline cudaError_t cudaDriverGetVersion(int *v)
{
    return *v = cuda_host_devices == -2 ? 0 : 12000, cudaSuccess;
}
static inline cudaError_t cudaRuntimeGetVersion(int *v) { return *v = 13000, cudaSuccess; }

#endif
