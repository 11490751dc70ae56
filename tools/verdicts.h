/* verdicts.h - judges the claims of experiments.h by the records. Include after statistics.h and
   experiments.h.

   Subjects are the unit: seeds are averaged first, conditions are paired by subject. Tests are
   two-sided, except equivalence; Holm's correction runs over the claims with an id (H1 ...), and
   over the other claims of each experiment by themselves: these explore, and a family of all of
   them would be out of reach of 8 subjects. What speaks for the claims and what speaks against them
   is corrected in a row each, which is stricter than one row for both. What has not been measured
   counts there as p = 1.
   Agrees, or opposite ("differs" where two were to be alike): below .05 after correction, in the
   paper's direction or against it. Else inconclusive, with the power for the paper's difference and
   the difference that would have been found in 80 of 100 such experiments. No verdict before every
   cell of the experiment is there. */
#ifndef VERDICTS_H
#define VERDICTS_H

typedef struct outcome {
    size_t n;                  /* subjects, or what takes their place                          */
    double a, b;               /* means; b: of the condition that comes closest                */
    double difference, low, high, sd; /* of the differences: mean, 95 % interval of the median,
                                         deviation                                             */
    double p, against;         /* in the paper's direction, and in the other                   */
    double p_holm, against_holm;
    double power, detectable;  /* where inconclusive                                           */
    const char *verdict; /* "agrees", "opposite", "differs", "inconclusive", "incomplete"      */
} outcome;

/* A cell's value; not a number where it was not measured. */
static inline double cell_value(const records *all, const experiment *x, const char *condition,
                                int subject, int seed, const char *value)
{
    char name[512];
    const record *r;
    snprintf(name, sizeof name, "%s/%s/%s/%d", x->name, condition, x->subjects[subject], seed);
    r = records_find(all, name);
    return r ? record_get(r, value) : (double)NAN;
}

/* The mean over the seeds that have the value; not a number without any. */
static inline double subject_value(const records *all, const experiment *x, const char *condition,
                                   int subject, const char *value)
{
    double sum = 0;
    int seed, n = 0;
    for (seed = 0; seed < x->seeds; seed++) {
        double v = cell_value(all, x, condition, subject, seed, value);
        if (v == v) sum += v, n++;
    }
    return n ? sum / n : (double)NAN;
}

/* All subjects that have the value: into out, returns how many. */
static inline size_t condition_values(const records *all, const experiment *x,
                                      const char *condition, const char *value, double *out)
{
    size_t n = 0;
    int k;
    for (k = 0; k < x->n_subjects; k++) {
        double v = subject_value(all, x, condition, k, value);
        if (v == v) out[n++] = v;
    }
    return n;
}

static inline const experiment *experiment_named(const char *name)
{
    size_t e;
    for (e = 0; e < EXPERIMENTS && strcmp(experiments[e].name, name); e++) {}
    return &experiments[e];
}

/* Splits words, at most `most`; returns how many. */
static inline size_t split_words(const char *text, char out[][40], size_t most)
{
    size_t n = 0;
    while (*text && n < most) {
        size_t length = strcspn(text, " ");
        snprintf(out[n++], 40, "%.*s", (int)length, text);
        text += length + strspn(text + length, " ");
    }
    return n;
}

/* The pairs of a claim against one b: x of condition a, y of b; of each subject the means over the
   seeds that both have, so that a training which diverged takes its counterpart with it. */
static inline size_t claim_pairs(const records *all, const claim *c, const char *b, double *x,
                                 double *y)
{
    const experiment *e = experiment_named(c->experiment);
    size_t n = 0;
    int k;
    for (k = 0; k < e->n_subjects; k++) {
        int object = world_subject(world_subject_named(e->subjects[k])).object, seed, both = 0;
        x[n] = y[n] = 0;
        for (seed = 0; seed < e->seeds; seed++) {
            double u = cell_value(all, e, c->a, k, seed, c->value);
            double v = *b == '='         ? strtod(b + 1, NULL)
                : *b == '@'              ? cell_value(all, e, c->a, k, seed, b + 1)
                : c->relation == FOLLOWS ? log((double)world_class_frequency(object))
                                         : cell_value(all, e, b, k, seed, c->value);
            if (u == u && v == v) x[n] += u, y[n] += v, both++;
        }
        if (both) x[n] /= both, y[n] /= both, n++;
    }
    return n;
}

/* One comparison, before correction. */
static inline void compare(const claim *c, const double *x, const double *y, size_t n, outcome *o)
{
    double d[STAT_MAX], margin;
    stat_test t;
    size_t k;
    o->n = n, o->a = stat_mean(x, n), o->b = stat_mean(y, n);
    for (k = 0; k < n; k++) d[k] = floor((x[k] - y[k]) * 1e7 + .5) / 1e7; /* equal ones tie */
    o->difference = stat_mean(d, n), o->sd = stat_sd(d, n);
    stat_interval(d, n, &o->low, &o->high);
    if (c->relation == FOLLOWS) {
        o->difference = stat_spearman_test(x, y, n, &o->p, &o->against);
        o->p = fmin(1, 2 * o->p), o->against = fmin(1, 2 * o->against);
        o->low = o->high = o->sd = o->b = (double)NAN;
    } else if (c->relation == ALIKE) {
        margin = c->margin * fabs(o->b);
        o->p = stat_equivalence(d, n, margin);
        for (k = 0; k < n; k++) d[k] -= margin;
        o->against = stat_signed_rank(d, n).greater;
        for (k = 0; k < n; k++) d[k] += 2 * margin;
        o->against = fmin(1, 2 * fmin(o->against, stat_signed_rank(d, n).less));
    } else {
        t = stat_signed_rank(d, n);
        o->p = fmin(1, 2 * (c->relation == LESS ? t.less : t.greater));
        o->against = fmin(1, 2 * (c->relation == LESS ? t.greater : t.less));
    }
}

/* The slopes of a claim's value over its conditions, one for each subject that has them all. */
static inline size_t claim_slopes(const records *all, const claim *c, double *slope)
{
    const experiment *e = experiment_named(c->experiment);
    char names[8][40];
    size_t m = split_words(c->a, names, 8), n = 0, j;
    int k;
    for (k = 0; k < e->n_subjects; k++) {
        double x[8], y[8];
        for (j = 0; j < m; j++)
            x[j] = (double)j, y[j] = subject_value(all, e, names[j], k, c->value);
        slope[n] = stat_slope(x, y, m) * (*c->b == '-' ? -1 : 1);
        n += slope[n] == slope[n];
    }
    return n;
}

static inline outcome judge_alone(const records *all, const claim *c)
{
    double x[STAT_MAX], y[STAT_MAX];
    char others[8][40];
    size_t n, m, k;
    outcome o, one;
    memset(&o, 0, sizeof o);
    if (c->relation == RISES) {
        n = claim_slopes(all, c, x);
        for (k = 0; k < n; k++) y[k] = 0;
        compare(c, x, y, n, &o);
        return o;
    }
    m = split_words(c->b, others, 8);
    if (!m) others[m++][0] = 0;
    for (k = 0; k < m; k++) { /* against every b: the weakest comparison counts */
        double against = o.against;
        memset(&one, 0, sizeof one);
        n = claim_pairs(all, c, others[k], x, y);
        compare(c, x, y, n, &one);
        if (!k || one.p > o.p) o = one;
        if (k) o.against = fmax(against, one.against);
    }
    return o;
}

/* Whether every cell of an experiment has its record. */
static inline int is_complete(const records *all, const experiment *x)
{
    char name[512];
    int k, seed, complete = 1;
    size_t c;
    for (c = 0; c < CONDITIONS; c++)
        for (k = 0; k < x->n_subjects && !strcmp(conditions[c].experiment, x->name); k++)
            for (seed = 0; seed < x->seeds; seed++) {
                snprintf(name, sizeof name, "%s/%s/%s/%d", x->name, conditions[c].name,
                         x->subjects[k], seed);
                complete = complete && records_find(all, name);
            }
    return complete;
}

/* Whether a claim belongs to a family: 0, the hypotheses; 1 + e, the rest of experiment e. */
static inline int in_family(const claim *c, size_t family)
{
    if (c->id[0] || !family) return c->id[0] && !family;
    return !strcmp(c->experiment, experiments[family - 1].name);
}

/* All claims, corrected: out [CLAIMS]. */
static inline void judge(const records *all, outcome *out)
{
    size_t k, i, family;
    for (k = 0; k < CLAIMS; k++) {
        out[k] = judge_alone(all, &claims[k]);
        out[k].p_holm = out[k].against_holm = (double)NAN;
        out[k].power = out[k].detectable = (double)NAN;
        out[k].verdict = is_complete(all, experiment_named(claims[k].experiment)) ? "inconclusive"
                                                                                  : "incomplete";
    }
    for (family = 0; family <= EXPERIMENTS; family++) {
        double p[CLAIMS], against[CLAIMS];
        size_t of[CLAIMS], m = 0, shown = 0;
        for (k = 0; k < CLAIMS; k++)
            if (in_family(&claims[k], family)) {
                if (out[k].n < 3 || !strcmp(out[k].verdict, "incomplete"))
                    out[k].p = out[k].against = 1;
                p[m] = out[k].p, against[m] = out[k].against, of[m++] = k;
            }
        stat_holm(p, m), stat_holm(against, m);
        for (i = 0; i < m; i++) shown += p[i] < .05;
        for (i = 0; i < m; i++) {
            outcome *o = &out[of[i]];
            const claim *c = &claims[of[i]];
            double alpha;
            o->p_holm = p[i], o->against_holm = against[i];
            if (p[i] < .05) o->verdict = "agrees";
            else if (against[i] < .05) o->verdict = c->relation == ALIKE ? "differs" : "opposite";
            if (strcmp(o->verdict, "inconclusive") || c->relation == FOLLOWS || o->n < 3) continue;
            alpha = .05 / (double)(m - shown); /* Holm's row has come so far */
            if (c->relation == ALIKE) {
                o->power = stat_power(o->n, 0, o->sd, alpha, c->margin * fabs(o->b));
            } else {
                if (c->paper == c->paper) o->power = stat_power(o->n, c->paper, o->sd, alpha, 0);
                o->detectable = stat_detectable(o->n, o->sd, alpha);
            }
        }
    }
}

#endif
