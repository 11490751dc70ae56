/* statistics.h - the tests of the experiments: paired by subject, few subjects, no normality.

   Exact signed-rank test (Wilcoxon, 1945), Holm's correction (1979), equivalence as two one-sided
   tests (Schuirmann, 1987), the interval that belongs to the test (Hodges and Lehmann, 1963), rank
   correlation, power by simulation. Random numbers come from fixed streams: the same records give
   the same report. Include after dreambooth.h. tests/test_statistics.c compares with scipy.

   Easy to get wrong
   - Differences of zero carry no sign and are left out; equal sizes share their mean rank. The
     distribution is then of these very ranks: tables for 1 ... n are of no use.
   - With n pairs no two-sided p is below 2 / 2^n: .0078 for 8 subjects, .00006 for 15.
   - "Not significant" is no equivalence: that is shown against a margin, or not at all.          */
#ifndef STATISTICS_H
#define STATISTICS_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    STAT_MAX = 64,         /* pairs                                                       */
    STAT_SAMPLES = 10000,  /* permutations                                                */
    STAT_TRIALS = 2000,    /* simulated experiments                                       */
    STAT_PERMUTE = 9002,   /* purposes of the random streams                              */
    STAT_POWER
};

static inline double stat_mean(const double *x, size_t n)
{
    double sum = 0;
    size_t k;
    for (k = 0; k < n; k++) sum += x[k];
    return n ? sum / (double)n : (double)NAN;
}

/* Standard deviation of a sample: over n - 1. */
static inline double stat_sd(const double *x, size_t n)
{
    double mean = stat_mean(x, n), sum = 0;
    size_t k;
    for (k = 0; k < n; k++) sum += (x[k] - mean) * (x[k] - mean);
    return n > 1 ? sqrt(sum / (double)(n - 1)) : (double)NAN;
}

/* Twice the rank of each value (1 the smallest); equal values share the mean of their ranks. */
static inline void stat_ranks(const double *x, size_t n, int *twice)
{
    size_t i, j;
    for (i = 0; i < n; i++) {
        int below = 0, equal = 0;
        for (j = 0; j < n; j++) below += x[j] < x[i], equal += x[j] == x[i];
        twice[i] = 2 * below + equal + 1;
    }
}

/* ---- signed ranks ---------------------------------------------------------------------------- */

typedef struct stat_test {
    size_t n;                       /* differences that are not zero                      */
    double w;                       /* sum of the ranks of the positive ones              */
    double greater, less, two_sided; /* p of "the median is above", "below", "is not" zero */
} stat_test;

/* out[s], s = 0 ... sum of `twice`: the probability of that sum over the positive differences when
   every sign is a fair coin. Returns the largest s; out has room for n (n + 1) + 1 numbers. */
static inline size_t stat_signed_rank_distribution(const int *twice, size_t n, double *out)
{
    size_t total = 0, k, s;
    out[0] = 1;
    for (k = 0; k < n; k++) {
        size_t r = (size_t)twice[k];
        for (s = total + 1; s <= total + r; s++) out[s] = 0;
        total += r;
        for (s = total + 1; s-- > 0;) out[s] = (out[s] + (s >= r ? out[s - r] : 0)) / 2;
    }
    return total;
}

/* Wilcoxon's signed-rank test of n differences, n <= STAT_MAX, by the exact distribution. Values
   that are not numbers must have been left out. Without any difference every p is 1. */
static inline stat_test stat_signed_rank(const double *d, size_t n)
{
    double size[STAT_MAX], p[STAT_MAX * (STAT_MAX + 1) + 1];
    int twice[STAT_MAX], positive[STAT_MAX];
    stat_test t;
    size_t k, w = 0, total, s;
    memset(&t, 0, sizeof t);
    for (k = 0; k < n && k < STAT_MAX; k++)
        if (d[k] != 0) size[t.n] = fabs(d[k]), positive[t.n++] = d[k] > 0;
    stat_ranks(size, t.n, twice);
    for (k = 0; k < t.n; k++) w += positive[k] ? (size_t)twice[k] : 0;
    total = stat_signed_rank_distribution(twice, t.n, p);
    for (s = 0; s <= total; s++) {
        if (s >= w) t.greater += p[s];
        if (s <= w) t.less += p[s];
    }
    t.w = (double)w / 2;
    t.greater = fmin(t.greater, 1), t.less = fmin(t.less, 1);
    t.two_sided = fmin(1, 2 * fmin(t.greater, t.less));
    return t;
}

/* p of "the median of the differences lies within -margin ... margin": the larger of the two
   one-sided tests against its ends. */
static inline double stat_equivalence(const double *d, size_t n, double margin)
{
    double above[STAT_MAX] = {0}, below[STAT_MAX] = {0};
    size_t k;
    for (k = 0; k < n && k < STAT_MAX; k++) above[k] = d[k] + margin, below[k] = d[k] - margin;
    return fmax(stat_signed_rank(above, k).greater, stat_signed_rank(below, k).less);
}

/* Holm's correction of n p-values in place; those that are not numbers are not counted. */
static inline void stat_holm(double *p, size_t n)
{
    double before = 0, adjusted[STAT_MAX];
    size_t m = 0, k, i, done;
    int taken[STAT_MAX] = {0};
    for (k = 0; k < n; k++) adjusted[k] = p[k], m += p[k] == p[k];
    for (done = 0; done < m; done++) {
        for (i = n, k = 0; k < n; k++)
            if (!taken[k] && p[k] == p[k] && (i == n || p[k] < p[i])) i = k;
        taken[i] = 1;
        before = fmin(1, fmax(before, (double)(m - done) * p[i]));
        adjusted[i] = before;
    }
    memcpy(p, adjusted, n * sizeof *p);
}

/* ---- intervals, slopes, correlations --------------------------------------------------------- */

static inline int stat_ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The 95 % interval of the median difference that the signed-rank test does not reject: of the
   means of all pairs, each with itself too, the k-th from below to the k-th from above. Not numbers
   for fewer than 6 differences, which no such test rejects. Differences of zero, which the test
   leaves out, count here. */
static inline void stat_interval(const double *d, size_t n, double *low, double *high)
{
    double means[STAT_MAX * (STAT_MAX + 1) / 2], p[STAT_MAX * (STAT_MAX + 1) + 1], below;
    int twice[STAT_MAX];
    size_t m = 0, k = 0, i, j;
    *low = *high = (double)NAN;
    if (n > STAT_MAX) return;
    for (i = 0; i < n; i++) twice[i] = 2 * (int)(i + 1);
    stat_signed_rank_distribution(twice, n, p);
    for (below = p[0]; below <= .025; below += p[2 * k]) k++; /* rank sums 0 ... k - 1 */
    if (!k) return;
    for (i = 0; i < n; i++)
        for (j = i; j < n; j++) means[m++] = (d[i] + d[j]) / 2;
    qsort(means, m, sizeof *means, stat_ascending);
    *low = means[k - 1], *high = means[m - k];
}

/* Least squares: how much y rises for one unit of x. */
static inline double stat_slope(const double *x, const double *y, size_t n)
{
    double mx = stat_mean(x, n), my = stat_mean(y, n), xy = 0, xx = 0;
    size_t k;
    for (k = 0; k < n; k++) xy += (x[k] - mx) * (y[k] - my), xx += (x[k] - mx) * (x[k] - mx);
    return xy / xx;
}

/* Pearson's correlation; not a number when either never changes. */
static inline double stat_pearson(const double *x, const double *y, size_t n)
{
    double mx = stat_mean(x, n), my = stat_mean(y, n), xy = 0, xx = 0, yy = 0;
    size_t k;
    for (k = 0; k < n; k++) {
        xy += (x[k] - mx) * (y[k] - my);
        xx += (x[k] - mx) * (x[k] - mx), yy += (y[k] - my) * (y[k] - my);
    }
    return xy / sqrt(xx * yy);
}

/* Spearman's rank correlation of n <= 512 pairs. */
static inline double stat_spearman(const double *x, const double *y, size_t n)
{
    double rx[512], ry[512];
    int twice[512];
    size_t k;
    if (n > 512) return (double)NAN;
    stat_ranks(x, n, twice);
    for (k = 0; k < n; k++) rx[k] = twice[k];
    stat_ranks(y, n, twice);
    for (k = 0; k < n; k++) ry[k] = twice[k];
    return stat_pearson(rx, ry, n);
}

/* Spearman's correlation of n <= STAT_MAX pairs; p of "above" and "below" zero by permutations. */
static inline double stat_spearman_test(const double *x, const double *y, size_t n, double *greater,
                                        double *less)
{
    double rho = stat_spearman(x, y, n), z[STAT_MAX];
    size_t k, i, above = 1, below = 1;
    db_rng rng;
    *greater = *less = 1;
    if (n < 3 || rho != rho) return rho;
    rng.seed = 1, rng.purpose = STAT_PERMUTE, rng.step = (uint32_t)n;
    for (k = 0; k < STAT_SAMPLES; k++) {
        double other;
        memcpy(z, y, n * sizeof *z);
        for (i = n - 1; i > 0; i--) {
            size_t j = db_random_below(&rng, k * n + i, (uint32_t)(i + 1));
            double t = z[i];
            z[i] = z[j], z[j] = t;
        }
        other = stat_spearman(x, z, n);
        above += other >= rho, below += other <= rho;
    }
    *greater = (double)above / (STAT_SAMPLES + 1), *less = (double)below / (STAT_SAMPLES + 1);
    return rho;
}

/* How often a value of a is above one of b (equal ones count half): the area under the curve of
   hits over false alarms. */
static inline double stat_auc(const double *a, size_t n_a, const double *b, size_t n_b)
{
    double wins = 0;
    size_t i, j;
    for (i = 0; i < n_a; i++)
        for (j = 0; j < n_b; j++) wins += a[i] > b[j] ? 1 : a[i] == b[j] ? 0.5 : 0;
    return wins / (double)(n_a * n_b);
}

/* ---- power ----------------------------------------------------------------------------------- */

/* The share of simulated experiments, n normal differences of the given mean and deviation, in
   which the two-sided signed-rank test stays below alpha with the mean's sign. margin > 0: in which
   equivalence within it is shown instead. */
static inline double stat_power(size_t n, double mean, double sd, double alpha, double margin)
{
    size_t k, i, found = 0;
    float z[STAT_MAX];
    double d[STAT_MAX];
    db_rng rng;
    rng.seed = 1, rng.purpose = STAT_POWER;
    if (n < 2 || n > STAT_MAX || !(sd == sd)) return (double)NAN;
    for (k = 0; k < STAT_TRIALS; k++) {
        rng.step = (uint32_t)k;
        db_random_normal(&rng, n, z);
        for (i = 0; i < n; i++) d[i] = mean + sd * (double)z[i];
        if (margin > 0) {
            found += stat_equivalence(d, n, margin) < alpha;
        } else {
            stat_test t = stat_signed_rank(d, n);
            found += 2 * (mean < 0 ? t.less : t.greater) < alpha;
        }
    }
    return (double)found / STAT_TRIALS;
}

/* The smallest mean difference that is found in 80 % of such experiments. Infinite where n pairs
   cannot reach alpha at all. */
static inline double stat_detectable(size_t n, double sd, double alpha)
{
    double low = 0, high = 8;
    int k;
    if (!(stat_power(n, high * sd, sd, alpha, 0) > .8)) return (double)INFINITY;
    for (k = 0; k < 12; k++) {
        double middle = (low + high) / 2;
        if (stat_power(n, middle * sd, sd, alpha, 0) < .8) low = middle;
        else high = middle;
    }
    return high * sd;
}

#endif
