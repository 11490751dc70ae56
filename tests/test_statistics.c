/* test_statistics.c - tools/statistics.h against scipy: tests/golden/make_statistics.py. */

#define _POSIX_C_SOURCE 200809L
#include "dreambooth.h"
#include "statistics.h"
#include "test.h"

static size_t numbers(const db_json *list, double *out)
{
    const db_json *v;
    size_t n = 0;
    for (v = list ? list->first : NULL; v; v = v->next) out[n++] = v->number;
    return n;
}

/* The larger of the largest error so far and |a - b|. */
static double worse(double so_far, double a, double b)
{
    double d = fabs(a - b);
    return d > so_far || d != d ? d : so_far;
}

static void signed_ranks(const db_json *cases)
{
    const db_json *c;
    double d[STAT_MAX], worst = 0;
    size_t n = 0;
    for (c = cases->first; c; c = c->next, n++) {
        stat_test t = stat_signed_rank(d, numbers(db_json_get(c, "d"), d));
        worst = worse(worst, t.w, db_json_number(c, "w", -1));
        worst = worse(worst, t.greater, db_json_number(c, "greater", -1));
        worst = worse(worst, t.less, db_json_number(c, "less", -1));
        worst = worse(worst, t.two_sided, db_json_number(c, "two_sided", -1));
    }
    if (n && worst < 1e-12) test_pass("signed-rank test", "%zu cases, err %.1e", n, worst);
    else test_fail("signed-rank test", "%zu cases, err %.1e", n, worst);
}

static void equivalence(const db_json *cases)
{
    const db_json *c;
    double d[STAT_MAX], worst = 0;
    size_t n = 0;
    for (c = cases->first; c; c = c->next, n++)
        worst = worse(worst, db_json_number(c, "p", -1),
                      stat_equivalence(d, numbers(db_json_get(c, "d"), d),
                                       db_json_number(c, "margin", 0)));
    if (n && worst < 1e-12) test_pass("equivalence", "%zu cases, err %.1e", n, worst);
    else test_fail("equivalence", "%zu cases, err %.1e", n, worst);
}

static void holm(const db_json *cases)
{
    const db_json *c;
    double p[STAT_MAX], adjusted[STAT_MAX], worst = 0;
    size_t n = 0, k, m;
    for (c = cases->first; c; c = c->next, n++) {
        m = numbers(db_json_get(c, "p"), p), numbers(db_json_get(c, "adjusted"), adjusted);
        p[m] = (double)NAN; /* a test that could not be made takes no part */
        stat_holm(p, m + 1);
        for (k = 0; k < m; k++) worst = worse(worst, p[k], adjusted[k]);
    }
    if (n && worst < 1e-12) test_pass("Holm's correction", "%zu cases, err %.1e", n, worst);
    else test_fail("Holm's correction", "%zu cases, err %.1e", n, worst);
}

static void pairs(const db_json *cases)
{
    const db_json *c;
    double x[512], y[512], worst = 0, above, below, rho;
    size_t n = 0, m;
    for (c = cases->first; c; c = c->next, n++) {
        m = numbers(db_json_get(c, "x"), x), numbers(db_json_get(c, "y"), y);
        worst = worse(worst, stat_slope(x, y, m), db_json_number(c, "slope", -9));
        worst = worse(worst, stat_pearson(x, y, m), db_json_number(c, "pearson", -9));
        worst = worse(worst, stat_spearman(x, y, m), db_json_number(c, "spearman", -9));
    }
    if (n && worst < 1e-12) test_pass("slope, correlations", "%zu cases, err %.1e", n, worst);
    else test_fail("slope, correlations", "%zu cases, err %.1e", n, worst);
    for (m = 0; m < 5; m++) x[m] = (double)m, y[m] = (double)(m * m);
    rho = stat_spearman_test(x, y, 5, &above, &below); /* one order of 120 */
    test_check(rho > .999 && fabs(above - 1.0 / 120) < .005 && below > .99, "permutation test",
               "1 of 120 orders is as high");
}

static void power(const db_json *cases)
{
    /* 0 is above two of b, 1 above three, 2 above three and as large as the fourth, 3 above all */
    static const double a[] = {0, 1, 2, 3}, b[] = {-1.5, -.5, .5, 2};
    const db_json *c;
    double worst = 0, sd;
    size_t n = 0;
    for (c = cases->first; c; c = c->next, n++)
        worst = worse(worst, db_json_number(c, "power", -1),
                      stat_power((size_t)db_json_int(c, "n", 0), db_json_number(c, "mean", 0),
                                 db_json_number(c, "sd", 0), db_json_number(c, "alpha", 0),
                                 db_json_number(c, "margin", 0)));
    if (n && worst < .035) test_pass("power", "%zu cases, err %.3f", n, worst);
    else test_fail("power", "%zu cases, err %.3f", n, worst);
    sd = stat_detectable(15, 2, .05);
    test_check(fabs(stat_power(15, sd, 2, .05, 0) - .8) < .01, "smallest difference that is found",
               "a power of .8");
    test_check(isinf(stat_detectable(4, 1, .05)), "too few pairs", "no difference is found");
    test_check(stat_auc(a, 4, b, 4) == 12.5 / 16, "area under the curve", "12.5 of 16 pairs");
}

static void intervals(const db_json *cases)
{
    const db_json *c;
    double d[STAT_MAX] = {0}, worst = 0, low, high;
    size_t n = 0;
    for (c = cases->first; c; c = c->next, n++) {
        stat_interval(d, numbers(db_json_get(c, "d"), d), &low, &high);
        worst = worse(worse(worst, low, db_json_number(c, "low", -9)), high,
                      db_json_number(c, "high", -9));
    }
    stat_interval(d, 5, &low, &high);
    if (n && worst < 1e-12 && low != low) test_pass("interval", "%zu cases, err %.1e", n, worst);
    else test_fail("interval", "%zu cases, err %.1e; of five %g", n, worst, low);
}

int main(void)
{
    db_ctx *ctx = NULL;
    const db_json *all;
    db_create(&ctx, NULL);
    all = db_json_load(ctx, "tests/golden/statistics/cases.json");
    if (!all) {
        test_fail("golden file", "%s", db_last_error(ctx));
        return test_summary();
    }
    signed_ranks(db_json_get(all, "signed_rank"));
    equivalence(db_json_get(all, "equivalence"));
    holm(db_json_get(all, "holm"));
    pairs(db_json_get(all, "pairs"));
    power(db_json_get(all, "power"));
    intervals(db_json_get(all, "interval"));
    db_json_free(all);
    db_destroy(ctx);
    return test_summary();
}
