/* `tiles` in C, for the CPU: the same two functions with one pass over the logits each. See native.py.
 *
 * A block of columns is small enough for the L1 cache, so whatever happens to it after it was read is free of memory
 * traffic. The next block is prefetched while this one is computed: hardware prefetchers stop at the end of a page.
 */

#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512") /* gcc's default of 256 bits is a quarter slower here */
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 1024        /* columns: one page of fp32 */
#define SLACK 20.0f       /* how far a value may exceed the shift: sums of exp(20) stay far inside fp32 */
#define CACHE_LINE 64     /* bytes */

enum dtype { FP32 = 0, BF16 = 1 };

static int64_t bytes_of(enum dtype dtype) { return dtype == FP32 ? 4 : 2; }

static float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Round to nearest even, NaN stays NaN. */
static uint16_t to_bf16(float value) {
    uint32_t bits = as_bits(value);
    return value != value ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float at(const char *row, int64_t j, enum dtype dtype) {
    return dtype == FP32 ? ((const float *)row)[j] : as_float((uint32_t)((const uint16_t *)row)[j] << 16);
}

/* The block in fp32: where it lies, or in `buffer`. */
static const float *load(const char *block, int64_t size, enum dtype dtype, float *restrict buffer) {
    if (dtype == FP32) return (const float *)block;
    for (int64_t j = 0; j < size; j++) buffer[j] = as_float((uint32_t)((const uint16_t *)block)[j] << 16);
    return buffer;
}

static void prefetch(const char *block, enum dtype dtype) {
    for (int64_t byte = 0; byte < BLOCK * bytes_of(dtype); byte += CACHE_LINE) __builtin_prefetch(block + byte);
}

/* exp(x) for x <= 88, NaN for NaN, 0 below -88. Cephes' polynomial: relative error below 1.2e-7. */
static inline float exp_fp32(float x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    x = x < -88.0f ? -88.0f : x;
    float shifted = x * 1.44269504f + round;
    float n = shifted - round;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * as_float((as_bits(shifted) + 127) << 23);
}

static float finite_shift(float top) { return top == -INFINITY ? 0.0f : top; }

/* Sum of exp(x - shift) and, in the same pass, the largest x. A NaN may escape the maximum, but not the sum. */
static float sum_exp(const float *x, int64_t size, float shift, float *largest) {
    float sum = 0, highest = -INFINITY;
#pragma omp simd reduction(+ : sum) reduction(max : highest)
    for (int64_t j = 0; j < size; j++) {
        sum += exp_fp32(x[j] - shift < SLACK ? x[j] - shift : x[j] - x[j] + SLACK);
        highest = x[j] > highest ? x[j] : highest;
    }
    *largest = highest;
    return sum;
}

/* Adds n columns to (top, rest, largest), rest = sum of exp(x - top). `top` is raised when a value exceeds it by SLACK,
 * `largest` by any that exceeds it. */
static void add_columns(const char *x, int64_t n, enum dtype dtype, float *top, double *rest, float *largest) {
    float buffer[BLOCK], highest;
    for (int64_t start = 0; start < n; start += BLOCK, x += BLOCK * bytes_of(dtype)) {
        int64_t size = n - start < BLOCK ? n - start : BLOCK;
        prefetch(x + BLOCK * bytes_of(dtype), dtype);
        const float *block = load(x, size, dtype, buffer);
        float sum = sum_exp(block, size, finite_shift(*top), &highest);
        if (highest > *largest) *largest = highest;
        if (highest > -INFINITY && !(highest - *top < SLACK)) {
            *rest *= exp((double)*top - highest);
            *top = highest;
            sum = sum_exp(block, size, *top, &highest);
        }
        *rest += sum;
    }
}

void row_stats(const char *logits, int64_t stride, int64_t rows, int64_t n, int64_t dtype, const int64_t *column,
               const uint8_t *skip, float *top, float *rest, float *target, float *largest) {
    for (int64_t i = 0; i < rows; i++) {
        const char *x = logits + i * stride;
        int64_t y = column[i];
        float highest = -INFINITY, exactly = -INFINITY;
        double sum = 0;
        if (!skip[i]) {
            add_columns(x, y < 0 ? n : y, dtype, &highest, &sum, &exactly);
            if (y >= 0) add_columns(x + (y + 1) * bytes_of(dtype), n - y - 1, dtype, &highest, &sum, &exactly);
        }
        top[i] = skip[i] ? 0 : highest;
        rest[i] = (float)sum;
        target[i] = y < 0 ? 0 : at(x, y, dtype);
        if (largest) largest[i] = exactly;
    }
}

/* In place when grad is logits: a block is read whole before it is written. */
void row_grad(const char *logits, int64_t stride, int64_t rows, int64_t n, int64_t dtype, const int64_t *column,
              const float *top, const float *scale, const float *dlogp, const float *target_grad, char *grad,
              int64_t grad_stride) {
    float buffer[BLOCK];
    for (int64_t i = 0; i < rows; i++) {
        char *out = grad + i * grad_stride;
        if (dlogp[i] == 0) {
            memset(out, 0, n * bytes_of(dtype));
            continue;
        }
        float shift = finite_shift(top[i]), factor = scale[i], minus_dlogp = -dlogp[i];
        for (int64_t start = 0; start < n; start += BLOCK) {
            int64_t size = n - start < BLOCK ? n - start : BLOCK;
            const char *x = logits + i * stride + start * bytes_of(dtype);
            prefetch(x + BLOCK * bytes_of(dtype), dtype);
            const float *block = load(x, size, dtype, buffer);
            float *dx = dtype == FP32 ? (float *)out + start : buffer;
#pragma GCC ivdep
            for (int64_t j = 0; j < size; j++) dx[j] = exp_fp32(block[j] - shift) * factor * minus_dlogp;
            if (dtype == BF16)
                for (int64_t j = 0; j < size; j++) ((uint16_t *)out)[start + j] = to_bf16(buffer[j]);
        }
        if (column[i] >= 0 && dtype == FP32) ((float *)out)[column[i]] = target_grad[i];
        if (column[i] >= 0 && dtype == BF16) ((uint16_t *)out)[column[i]] = to_bf16(target_grad[i]);
    }
}
