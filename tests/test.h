/* test.h - what the tests share: one line per test, an error measure, golden files.

   Include after dreambooth.h. A test program calls test_pass or test_fail (or
   test_check) once per test and ends with `return test_summary();`, which is 1 if anything failed.

       ok conv2d avx512 f32: err 3.1e-07 (28 cases, 80 gradients)
       FAIL linear scalar f32: case "2-D", gradient of w: err 2.0e+00 > 1.0e-05 at 3 (-0.1, not 0.1)
       41 passed, 1 failed

   The error of values a against golden values b is max|a - b| / (max|b| + floor): relative to the
   largest value, because single elements of a sum may cancel to nothing. The floor keeps values
   that are zero in theory (attention's key biases) from being compared relatively to rounding
   noise; tests set it to 1e-3 of the largest value of the same kind. */
#ifndef TEST_H
#define TEST_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

#if defined(__GNUC__)
#define TEST_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define TEST_PRINTF(f, a)
#endif

static int test_passed, test_failed;

/* "ok NAME: note"; the note may be empty. */
TEST_PRINTF(2, 3) static inline void test_pass(const char *name, const char *note, ...)
{
    va_list args;
    test_passed++;
    printf("ok %s%s", name, *note ? ": " : "");
    va_start(args, note);
    vprintf(note, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
}

/* "FAIL NAME: why" */
TEST_PRINTF(2, 3) static inline void test_fail(const char *name, const char *why, ...)
{
    va_list args;
    test_failed++;
    printf("FAIL %s: ", name);
    va_start(args, why);
    vprintf(why, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
}

/* One or the other; the text says what is expected, and is printed only when that is not so. */
static inline int test_check(int good, const char *name, const char *expected)
{
    if (good) test_passed++, printf("ok %s\n", name);
    else test_fail(name, "%s", expected);
    return good;
}

static inline int test_summary(void)
{
    printf("%d passed, %d failed\n", test_passed, test_failed);
    return test_failed != 0;
}

/* ---- errors ---------------------------------------------------------------------------------- */

/* The larger of two errors; what is not a number is the largest. */
static inline double test_worse(double a, double b) { return b > a || b != b ? b : a; }

static inline double test_largest(const float *x, size_t n)
{
    double largest = 0;
    size_t k;
    for (k = 0; k < n; k++) largest = test_worse(largest, fabs((double)x[k]));
    return largest;
}

/* max|a - b| / (max|b| + floor); *at (or NULL) is where. A value that is not a number is an
   infinite error, and so is any difference from golden values that are all zero without a floor. */
static inline double test_error(const float *a, const float *b, size_t n, double floor, size_t *at)
{
    double worst = 0, scale = test_largest(b, n) + floor;
    size_t k, where = 0;
    for (k = 0; k < n; k++) {
        double d = fabs((double)a[k] - (double)b[k]);
        if (!(d <= worst)) {
            where = k;
            worst = d;
            if (d != d) break;
        }
    }
    if (at) *at = where;
    if (worst == 0) return 0;
    return worst != worst || scale == 0 ? HUGE_VAL : worst / scale;
}

/* ---- numbers that the golden scripts make too, instead of storing them ----------------------- */

static inline uint32_t test_hash(uint32_t seed, uint32_t i)
{
    uint32_t x = i * 0x9E3779B1u + seed * 0x85EBCA77u;
    x ^= x >> 16, x *= 0x85EBCA6Bu, x ^= x >> 13, x *= 0xC2B2AE35u;
    return x ^ x >> 16;
}

/* x rounded to the nearest bf16, ties to even */
static inline float test_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7FFFu + (bits >> 16 & 1u)) & 0xFFFF0000u;
    memcpy(&x, &bits, 4);
    return x;
}

/* offset + scale u, u in (-1,1) with 8 significant bits, rounded to bf16; or, full, 24 bits. */
static inline void test_formula(uint32_t seed, size_t n, double scale, double offset, int full,
                                float *out)
{
    size_t k;
    for (k = 0; k < n; k++) {
        uint32_t h = test_hash(seed, (uint32_t)k);
        double u = full ? (2.0 * (double)(h >> 8) + 1) / 16777216 - 1
                        : (2.0 * (double)(h >> 24) - 255) / 256;
        float v = (float)(offset + scale * u);
        out[k] = full ? v : test_bf16(v);
    }
}

/* ---- golden files ---------------------------------------------------------------------------- */

/* Opens a golden file or ends the program: without it nothing can be tested. */
static inline db_safetensors *test_golden(db_ctx *ctx, const char *path)
{
    db_safetensors *st = NULL;
    if (db_safetensors_open(ctx, path, &st) != DB_OK) {
        test_fail(path, "%s", db_last_error(ctx));
        exit(test_summary());
    }
    return st;
}

/* The golden tensor `name` as floats, to be freed; NULL and *count = 0 when there is none. */
static inline float *test_golden_values(const db_safetensors *st, const char *name, size_t *count)
{
    const db_file_tensor *f = db_safetensors_find(st, name);
    float *out;
    *count = f ? f->count : 0;
    out = f ? (float *)malloc((f->count + 1) * sizeof(float)) : NULL;
    if (out) db_file_tensor_to_f32(f, out);
    return out;
}

#endif
