/* Tests of the operations: tape, forward and backward kernels, optimiser, random numbers.

       cc -std=c99 -O2 -fopenmp -I. -Itools tests/test_ops.c -o test_ops -lm
       ./test_ops [tests/golden/ops.safetensors]

   The golden file holds its own list of cases (see tests/golden/make_ops.py); this program knows
   how to record each operation. Every case runs

   - on every instruction set that the machine has, in f32 and in bf16, where a table of kernels
     serves two instruction sets once only (amx and avx512bf16 compute f32 as avx512 does);
   - compared with the golden values, and element for element with what the scalar f32 kernels
     gave, as the golden file has samples of the larger tensors. Limits: 1e-5 in f32. 1e-2 in
     bf16, whose stored activations carry 2^-9 = 2e-3 of rounding each; the inputs are bf16
     numbers already;
   - with one and with two threads, which have to agree to the last bit;
   - in an arena full of NaNs, so that nothing is used before it is written;
   - twice in a row, upon which gradients of parameters have doubled and all else is the same;
   - with each gradient asked for alone, which has to be the same as with all of them. */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include "tests/test.h"

enum { MAX_ARGS = 16, MAX_RESULTS = MAX_ARGS + 2, MAX_CASES = 400 };
static const double f32_limit = 1e-5, bf16_limit = 1e-2;
static const db_tensor none = {-1, 0, {0, 0, 0, 0}};

/* ---- a case, recorded ------------------------------------------------------------------------ */

typedef struct case_arg {
    const char *name;
    db_tensor t;
    int is_param, wanted; /* wanted: its gradient is to be compared */
    db_dtype dtype;
    size_t count;
    float *value; /* in the layout of the golden file */
} case_arg;

typedef struct recorded {
    const db_json *spec;
    db_ctx *ctx;
    db_tape *tape;
    db_param_table params;
    db__net net;
    case_arg arg[MAX_ARGS];
    size_t n;
    db_tensor y, loss; /* loss: set by operations that are losses themselves */
} recorded;

/* What a run gave: y, loss, then a gradient for every argument that has one. */
typedef struct result {
    const char *name;
    float *value;
    size_t count;
    int of_param;
} result;

typedef struct results {
    result r[MAX_RESULTS];
    size_t n;
} results;

static void free_results(results *r)
{
    while (r->n) free(r->r[--r->n].value);
}

static void *need(size_t bytes)
{
    void *memory = calloc(bytes + 1, 1);
    if (!memory) test_fail("memory", "the test itself has none left"), exit(test_summary());
    return memory;
}

/* The argument `name`, or none where the case leaves it out. */
static db_tensor A(const recorded *c, const char *name)
{
    size_t k;
    for (k = 0; k < c->n; k++)
        if (!strcmp(c->arg[k].name, name)) return c->arg[k].t;
    return none;
}
static size_t S(const recorded *c, const char *key) { return (size_t)db_json_int(c->spec, key, 0); }
static int I(const recorded *c, const char *key) { return (int)db_json_int(c->spec, key, 0); }
static float N(const recorded *c, const char *key)
{
    return (float)db_json_number(c->spec, key, 0);
}
static db_activation act(const recorded *c)
{
    static const char *const names[] = {"none", "silu", "gelu", "gelu_tanh", "quick_gelu", "relu"};
    const char *name = db_json_string(c->spec, "act", "none");
    int k = 0;
    while (strcmp(names[k], name)) k++;
    return (db_activation)k;
}

static db_tensor op_conv2d(recorded *c)
{
    return db_conv2d(c->tape, A(c, "x"), A(c, "w"), A(c, "bias"), A(c, "residual"), S(c, "stride"),
                     S(c, "pad_begin"), S(c, "pad_end"));
}
static db_tensor op_linear(recorded *c)
{
    return db_linear(c->tape, A(c, "x"), A(c, "w"), A(c, "bias"), A(c, "residual"));
}
static db_tensor op_group_norm(recorded *c)
{
    return db_group_norm(c->tape, A(c, "x"), A(c, "w"), A(c, "bias"), A(c, "scale_shift"),
                         S(c, "groups"), N(c, "eps"), act(c));
}
static db_tensor op_layer_norm(recorded *c)
{
    return db_layer_norm(c->tape, A(c, "x"), A(c, "w"), A(c, "bias"), N(c, "eps"));
}
static db_tensor op_rms_norm(recorded *c)
{
    return db_rms_norm(c->tape, A(c, "x"), A(c, "w"), N(c, "eps"));
}
static db_tensor op_activate(recorded *c) { return db_activate(c->tape, A(c, "x"), act(c)); }
static db_tensor op_gate(recorded *c) { return db_gate(c->tape, A(c, "x"), act(c)); }
static db_tensor op_multiply(recorded *c)
{
    db_tensor a = A(c, "a"), b = A(c, "b");
    return db_multiply(c->tape, a, b.id < 0 ? a : b);
}
static db_tensor op_weighted_sum(recorded *c)
{
    return db_weighted_sum(c->tape, N(c, "alpha"), A(c, "x"), N(c, "beta"),
                           I(c, "same") ? A(c, "x") : A(c, "z"));
}
static db_tensor op_concat(recorded *c)
{
    return db_concat(c->tape, A(c, "a"), A(c, "b"), I(c, "axis"));
}
static db_tensor op_slice(recorded *c)
{
    return db_slice(c->tape, A(c, "x"), S(c, "first"), S(c, "count"));
}
static db_tensor op_cast(recorded *c) { return db_cast(c->tape, A(c, "x"), DB_F32); }
static db_tensor op_cast_to_bf16(recorded *c)
{
    return db_cast(c->tape, db_cast(c->tape, A(c, "x"), DB_BF16), DB_F32);
}
static db_tensor op_avg_pool2(recorded *c) { return db_avg_pool2(c->tape, A(c, "x")); }
static db_tensor op_upsample2(recorded *c)
{
    db_tensor x = A(c, "x");
    return db_upsample2(c->tape, x, 2 * x.dim[1] - S(c, "less"), 2 * x.dim[2] - S(c, "less"));
}
static db_tensor op_attention(recorded *c)
{
    db_tensor q = A(c, "q"), k = A(c, "k"), v = A(c, "v");
    if (k.id < 0) k = q;
    if (v.id < 0) v = k;
    return db_attention(c->tape, q, k, v, A(c, "bias"), A(c, "mask"), S(c, "heads"), N(c, "scale"),
                        I(c, "causal"));
}
static db_tensor op_embedding(recorded *c)
{
    return db_embedding(c->tape, A(c, "ids"), A(c, "table"));
}
static db_tensor op_add_rows(recorded *c) { return db_add_rows(c->tape, A(c, "x"), A(c, "rows")); }
static db_tensor op_add_each(recorded *c) { return db_add_each(c->tape, A(c, "x"), A(c, "e")); }
static db_tensor op_mean_tokens(recorded *c) { return db_mean_tokens(c->tape, A(c, "x")); }
static db_tensor op_sinusoid(recorded *c)
{
    return db_sinusoid(c->tape, A(c, "x"), S(c, "D"), I(c, "cosine_first"), N(c, "shift"));
}
static db_tensor op_mix(recorded *c)
{
    return db_mix(c->tape, A(c, "p"), A(c, "x"), A(c, "q"), A(c, "z"));
}
static db_tensor op_position_bias(recorded *c)
{
    return db__position_bias(c->tape, A(c, "table"), S(c, "T"), S(c, "max_distance"));
}

/* Losses return their loss per sample, and set c->loss. */
static db_tensor op_mse(recorded *c)
{
    db_tensor each = none;
    c->loss = db_mse(c->tape, A(c, "pred"), A(c, "target"), A(c, "weight"), A(c, "pixel"), &each);
    if (N(c, "factor") < 1) c->loss = db_weighted_sum(c->tape, N(c, "factor"), c->loss, 0, none);
    return each;
}
static db_tensor op_cross_entropy(recorded *c)
{
    db_tensor plain = c->loss = db_cross_entropy(c->tape, A(c, "logits"), A(c, "targets"));
    if (N(c, "factor") < 1) c->loss = db_weighted_sum(c->tape, N(c, "factor"), c->loss, 0, none);
    return plain;
}

/* A U-Net's residual block and a transformer block: operations together, and the tape. */
static db_tensor op_resnet_block(recorded *c)
{
    db_tape *t = c->tape;
    db_tensor h = db_group_norm(t, A(c, "x"), A(c, "w0"), A(c, "b0"), none, 2, 1e-5f, DB_ACT_SILU);
    db_tensor shortcut = db_conv2d(t, A(c, "x"), A(c, "ks"), A(c, "cs"), none, 1, 0, 0);
    h = db_conv2d(t, h, A(c, "k0"), A(c, "c0"), none, 1, 1, 1);
    h = db_group_norm(t, h, A(c, "w1"), A(c, "b1"), A(c, "ss"), 4, 1e-5f, DB_ACT_SILU);
    return db_conv2d(t, h, A(c, "k1"), A(c, "c1"), shortcut, 1, 1, 1);
}
static db_tensor op_transformer_block(recorded *c)
{
    db_tape *t = c->tape;
    db_tensor x = A(c, "x"), n = db_layer_norm(t, x, A(c, "w0"), A(c, "b0"), 1e-5f),
              both = db_concat(t, A(c, "text"), n, 1), f;
    db_tensor q = db_linear(t, n, A(c, "wq"), none, none),
              k = db_linear(t, both, A(c, "wk"), none, none);
    db_tensor v = db_linear(t, both, A(c, "wv"), none, none),
              a = db_attention(t, q, k, v, none, none, 3, 0.5f, 0);
    x = db_linear(t, a, A(c, "wo"), A(c, "bo"), x);
    f = db_linear(t, db_layer_norm(t, x, A(c, "w1"), A(c, "b1"), 1e-5f), A(c, "wf"), A(c, "bf"),
                  none);
    f = db_gate(t, f, DB_ACT_GELU);
    return db_linear(t, f, A(c, "wp"), A(c, "bp"), x);
}

static const struct operation {
    const char *name;
    db_tensor (*record)(recorded *c);
} operations[] = {{"conv2d", op_conv2d},
                  {"linear", op_linear},
                  {"group_norm", op_group_norm},
                  {"layer_norm", op_layer_norm},
                  {"rms_norm", op_rms_norm},
                  {"activate", op_activate},
                  {"gate", op_gate},
                  {"multiply", op_multiply},
                  {"weighted_sum", op_weighted_sum},
                  {"concat", op_concat},
                  {"slice", op_slice},
                  {"cast", op_cast},
                  {"cast_to_bf16", op_cast_to_bf16},
                  {"avg_pool2", op_avg_pool2},
                  {"upsample2", op_upsample2},
                  {"attention", op_attention},
                  {"embedding", op_embedding},
                  {"add_rows", op_add_rows},
                  {"add_each", op_add_each},
                  {"mean_tokens", op_mean_tokens},
                  {"sinusoid", op_sinusoid},
                  {"mix", op_mix},
                  {"mse", op_mse},
                  {"cross_entropy", op_cross_entropy},
                  {"position_bias", op_position_bias},
                  {"resnet_block", op_resnet_block},
                  {"transformer_block", op_transformer_block}};
enum { N_OPERATIONS = sizeof operations / sizeof *operations };

static size_t read_dims(const db_json *array, size_t dim[4], int *n_dims)
{
    const db_json *d;
    size_t count = 1;
    *n_dims = 0;
    memset(dim, 0, 4 * sizeof *dim);
    for (d = array->first; d; d = d->next) count *= dim[(*n_dims)++] = (size_t)d->integer;
    return count;
}

/* Makes an argument's numbers, and declares it: a parameter in the table, an input on the tape */
static void declare(recorded *c, const db_json *spec, const char *only)
{
    case_arg *a = &c->arg[c->n++];
    const char *as = db_json_string(spec, "as", "");
    const db_json *v = db_json_get(spec, "values");
    size_t dim[4], k = 0;
    int n_dims;
    a->name = spec->key;
    a->count = read_dims(db_json_get(spec, "dim"), dim, &n_dims);
    a->value = (float *)need(a->count * sizeof(float));
    if (v) for (v = v->first; v; v = v->next) a->value[k++] = (float)v->number;
    else
        test_formula((uint32_t)db_json_int(spec, "seed", 0), a->count,
                     db_json_number(spec, "scale", 1), db_json_number(spec, "offset", 0),
                     I(c, "full"), a->value);
    a->wanted = db_json_int(spec, "grad", 0) && (!only || !strcmp(only, a->name));
    a->is_param = !strcmp(as, "param");
    a->dtype = !strcmp(as, "input") ? c->ctx->config.compute : !strcmp(as, "ids") ? DB_I32 : DB_F32;
    if (a->is_param) {
        db_param *p = db__params_declare(&c->params, a->name, n_dims, dim);
        if (p) p->frozen = !a->wanted;
    } else {
        a->t = db_input(c->tape, a->dtype, n_dims, dim);
        if (a->wanted) db_require_grad(c->tape, a->t);
    }
}

/* Puts the values of an argument where a run finds them. */
static void fill(recorded *c, const case_arg *a)
{
    size_t k;
    if (a->is_param) {
        db_param *p = db_params_find(&c->params, a->name);
        db_param_set(p, p->data, a->value);
    } else if (a->dtype == DB_F32) {
        db_upload(c->tape, a->t, a->value);
    } else if (a->dtype == DB_BF16) {
        uint16_t *half = (uint16_t *)need(a->count * sizeof *half);
        for (k = 0; k < a->count; k++) half[k] = db__f32_to_bf16(a->value[k]);
        db_upload(c->tape, a->t, half);
        free(half);
    } else {
        int32_t *id = (int32_t *)need(a->count * sizeof *id);
        for (k = 0; k < a->count; k++) id[k] = (int32_t)a->value[k];
        db_upload(c->tape, a->t, id);
        free(id);
    }
}

/* Makes the whole arena `byte`s before inputs are uploaded: values are written before they are
   used. */
static void poison(recorded *c, int byte)
{
    size_t k;
    if (db__ensure_arena(c->tape) != DB_OK) return;
    memset(c->tape->arena, byte, c->tape->arena_bytes);
    for (k = 0; k < c->n; k++) fill(c, &c->arg[k]);
}

/* Records case `spec`, with gradients of all that has one or of the argument `only`. */
static void record_case(recorded *c, db_ctx *ctx, const db_json *spec, const char *only)
{
    const struct operation *op = operations;
    const db_json *a;
    size_t k;
    db_tensor target = none, first_loss;
    memset(c, 0, sizeof *c);
    c->spec = spec, c->ctx = c->params.ctx = ctx;
    c->y = c->loss = none;
    if (db_tape_create(ctx, &c->tape) != DB_OK) return;
    for (a = db_json_get(spec, "args")->first; a; a = a->next) declare(c, a, only);
    if (c->params.n) db__params_allocate(&c->params);
    if (c->params.n) db_params_require_grad(&c->params);
    c->net.tape = c->tape, c->net.params = &c->params;
    for (k = 0; k < c->n; k++) {
        const db_param *p = c->arg[k].is_param ? db_params_find(&c->params, c->arg[k].name) : NULL;
        if (p)
            c->arg[k].t = db__weight(&c->net, p->name, p->dim[0], p->dim[1], p->dim[2], p->dim[3]);
    }
    while (strcmp(op->name, db_json_string(spec, "op", ""))) op++;
    c->y = op->record(c);
    if (I(c, "twice")) {
        first_loss = c->loss;
        target = op->record(c);
        if (c->loss.id >= 0) c->loss = db_weighted_sum(c->tape, 1, first_loss, 0.5f, c->loss);
        else c->y = db_weighted_sum(c->tape, 1, c->y, 0.5f, target);
    }
    if (c->loss.id < 0 && c->y.id >= 0) {
        case_arg *t = &c->arg[c->n++];
        t->name = "T";
        t->dtype = DB_F32;
        t->count = db_count(c->y);
        t->value = (float *)need(t->count * sizeof(float));
        test_formula((uint32_t)S(c, "seed"), t->count, 4, 0, 0, t->value);
        t->t = db_input(c->tape, DB_F32, c->y.n_dims, c->y.dim);
        c->loss = db_mse(c->tape, c->y, t->t, none, none, NULL);
    }
    db_keep(c->tape, c->y);
    db_keep(c->tape, c->loss);
    if (!I(c, "forward")) db_backward(c->tape, c->loss);
    for (k = 0; k < c->n; k++)
        if (c->arg[k].wanted && !c->arg[k].is_param)
            db_keep(c->tape, db_grad(c->tape, c->arg[k].t));
}

static void free_case(recorded *c)
{
    size_t k;
    for (k = 0; k < c->n; k++) free(c->arg[k].value);
    db_tape_destroy(c->tape);
    db__params_free(&c->params);
}

static float *add_result(results *out, const char *name, size_t count, int of_param)
{
    result *r = &out->r[out->n++];
    r->name = name, r->count = count, r->of_param = of_param;
    return r->value = (float *)need(count * sizeof(float));
}

static void collect(recorded *c, results *out)
{
    size_t k;
    out->n = 0;
    if (c->ctx->result != DB_OK) return;
    db_download(c->tape, c->y, add_result(out, "y", db_count(c->y), 0));
    db_download(c->tape, c->loss, add_result(out, "loss", 1, 0));
    for (k = 0; k < c->n; k++) {
        case_arg *a = &c->arg[k];
        float *value;
        if (!a->wanted) continue;
        value = add_result(out, a->name, a->count, a->is_param);
        if (a->is_param) {
            const db_param *p = db_params_find(&c->params, a->name);
            db_param_get(p, p->grad, value);
        } else if (db_grad(c->tape, a->t).id < 0) {
            value[0] = (float)NAN; /* there is no gradient */
        } else {
            db_download(c->tape, db_grad(c->tape, a->t), value);
        }
    }
}

/* ---- comparing ------------------------------------------------------------------------------- */

/* Why a test failed: the first reason, as text; empty while there is none. */
typedef struct verdict {
    char why[600];
    double worst;
    size_t cases, gradients;
} verdict;

DB__PRINTF(2, 3) static void object(verdict *v, const char *format, ...)
{
    va_list args;
    if (v->why[0]) return;
    va_start(args, format);
    vsnprintf(v->why, sizeof v->why, format, args);
    va_end(args);
}

static const char *title(const recorded *c) { return db_json_string(c->spec, "name", "?"); }

/* Notes an error; `what` is "y", "loss" or the argument whose gradient it is. */
static void judge(verdict *v, const recorded *c, const result *r, double err, double limit,
                  const char *against, size_t at, float got, float want)
{
    int is_value = !strcmp(r->name, "y") || !strcmp(r->name, "loss");
    v->worst = DB__MAX(v->worst, err);
    if (!(err <= limit))
        object(v, "case \"%s\", %s%s: err %.1e > %.1e against %s, at %zu (%g, not %g)", title(c),
               is_value ? "" : "gradient of ", r->name, err, limit, against, at, (double)got,
               (double)want);
}

/* The samples and checksums that make_ops.py stores of n numbers. */
enum { LIMIT = 256, SAMPLES = 160, TAIL = 8 };
static size_t take_samples(const float *x, size_t n, float *out, double sum[2])
{
    size_t k, m = 0, step = n / SAMPLES | 1;
    while (step % 3 == 0 || step % 5 == 0 || step % 7 == 0)
        step += 2; /* not always the same pixel of a kernel */
    sum[0] = sum[1] = 0;
    if (n <= LIMIT) {
        memcpy(out, x, n * sizeof *x);
        return n;
    }
    for (k = 0; k < n; k += step) out[m++] = x[k];
    for (k = n - TAIL; k < n; k++) out[m++] = x[k];
    for (k = 0; k < n; k++) {
        double u = (2.0 * (double)(test_hash(77, (uint32_t)k) >> 24) - 255) / 256;
        sum[0] += (double)x[k];
        sum[1] += (double)x[k] * u;
    }
    return m;
}

/* Results against the golden file. */
static void compare_golden(verdict *v, const recorded *c, const db_safetensors *golden,
                           const results *got, double limit)
{
    float *want[MAX_RESULTS], sampled[LIMIT + SAMPLES + TAIL];
    double floors[MAX_RESULTS], largest = 0, sum[2];
    size_t count[MAX_RESULTS], k, at;
    for (k = 0; k < got->n; k++) {
        char name[200];
        snprintf(name, sizeof name, "%s/%s/%s%s", db_json_string(c->spec, "op", ""), title(c),
                 k < 2 ? "" : "d ", got->r[k].name);
        want[k] = test_golden_values(golden, name, &count[k]);
        if (!want[k]) object(v, "the golden file has no %s", name);
        floors[k] = want[k] ? test_largest(want[k], count[k]) : 0;
        if (k >= 2) largest = DB__MAX(largest, floors[k]);
    }
    for (k = 0; k < got->n; k++) { /* the floor: 1e-3 of the largest gradient of the case, or of y
                                      or the loss itself */
        double floor = 1e-3 * (k >= 2 ? largest : floors[k]), err, scale;
        size_t n = take_samples(got->r[k].value, got->r[k].count, sampled, sum),
               sums = got->r[k].count > LIMIT ? 2 : 0;
        if (!want[k]) continue;
        if (n + sums != count[k]) {
            object(v, "case \"%s\", %s: %zu values, the golden file has %zu", title(c),
                   got->r[k].name, n + sums, count[k]);
        } else {
            err = test_error(sampled, want[k], n, floor, &at);
            judge(v, c, &got->r[k], err, limit, "PyTorch", at, sampled[at], want[k][at]);
            for (at = 0; at < sums;
                 at++) { /* errors of single elements add up like a random walk, or a bit faster */
                scale = (test_largest(want[k], n) + floor) * sqrt((double)got->r[k].count);
                err = fabs(sum[at] - (double)want[k][n + at]) / scale;
                judge(v, c, &got->r[k], err == err ? err / 10 : HUGE_VAL, limit,
                      "PyTorch's checksum", at, (float)sum[at], want[k][n + at]);
            }
        }
    }
    for (k = 0; k < got->n; k++) free(want[k]);
}

/* Results against others of the same case: limit 0 asks for the same bits. */
static void compare_results(verdict *v, const recorded *c, const results *got, const results *want,
                            double limit, const char *against)
{
    size_t k, j, at;
    double largest = 0;
    for (k = 2; k < want->n; k++)
        largest = DB__MAX(largest, test_largest(want->r[k].value, want->r[k].count));
    for (k = 0; k < got->n; k++) {
        const result *g = &got->r[k];
        for (j = 0; j < want->n && strcmp(want->r[j].name, g->name); j++) continue;
        if (j == want->n || want->r[j].count != g->count) {
            object(v, "case \"%s\": no %s to compare with", title(c), g->name);
        } else if (limit > 0) {
            double err =
                test_error(g->value, want->r[j].value, g->count, k >= 2 ? 1e-3 * largest : 0, &at);
            judge(v, c, g, err, limit, against, at, g->value[at], want->r[j].value[at]);
        } else if (memcmp(g->value, want->r[j].value, g->count * sizeof(float))) {
            for (at = 0; !memcmp(g->value + at, want->r[j].value + at, sizeof(float)); at++)
                continue;
            object(v, "case \"%s\", %s%s: other bits than %s, at %zu (%.9g, not %.9g)", title(c),
                   k < 2 ? "" : "gradient of ", g->name, against, at, (double)g->value[at],
                   (double)want->r[j].value[at]);
        }
    }
}

/* ---- every case on every instruction set ----------------------------------------------------- */

typedef struct flavour { /* an instruction set or the GPU, a data type */
    char name[40];
    db_ctx *ctx[2]; /* with one thread, with two */
    db_dtype dtype;
} flavour;

enum { MAX_FLAVOURS = 16 };
static flavour flavours[MAX_FLAVOURS]; /* scalar f32 first */
static size_t n_flavours;

#ifdef TEST_CUDA
/* The scalar f32 kernels to compare with, then the GPU. Its second context, which elsewhere has two
   threads, here runs blocks and threads in the other order where that can be chosen: a race would
   show in the bits. */
#ifdef CUDA_ON_HOST
extern int cuda_host_reverse, cuda_host_devices, cuda_host_ptx, cuda_host_no_graphs,
    cuda_host_pending;
extern size_t cuda_host_free, cuda_host_all;
extern long cuda_host_allocations, cuda_host_life;
extern unsigned long cuda_host_launches, cuda_host_graphs, cuda_host_prefetched;
#else
static int cuda_host_reverse;
#endif

/* The flavour "7.5" is kernels compiled for GPUs whose tensor cores know no bf16: convolutions,
   products and attention take the plain ones. */
static int prepare(const flavour *f, const char *op)
{
#ifdef CUDA_ON_HOST
    const char *why;
    cuda_host_ptx = strstr(f->name, "7.5") ? 75 : 80;
    db_backend_cuda(&why);
#endif
    return !strstr(f->name, "7.5") || !strcmp(op, "conv2d") || !strcmp(op, "linear") ||
        !strcmp(op, "attention");
}
static void make_flavours(void)
{
    static const char *const names[] = {"scalar f32", "cuda f32", "cuda bf16", "cuda 7.5 bf16"};
    const char *why;
    const db_backend *cuda = db_backend_cuda(&why);
    size_t k;
    if (!cuda) {
        test_fail("a GPU", "%s", why);
        exit(test_summary());
    }
#ifdef CUDA_ON_HOST
    enum { N_FLAVOURS = 4 };
#else
    enum { N_FLAVOURS = 3 };
#endif
    for (k = 0; k < N_FLAVOURS; k++) {
        flavour *f = &flavours[n_flavours++];
        db_config config = db_config_default();
        config.isa = "scalar";
        config.backend = k ? cuda : NULL;
        f->dtype = config.compute = k >= 2 ? DB_BF16 : DB_F32;
        snprintf(f->name, sizeof f->name, "%s", names[k]);
        if (db_create(&f->ctx[0], &config) != DB_OK || db_create(&f->ctx[1], &config) != DB_OK) {
            test_fail(f->name, "no context");
            exit(test_summary());
        }
    }
}

/* ---- what the golden file does not hold: against the CPU ---- */

/* Largest pooling with its gradient, and noise; on context `ctx`. */
static db_result pool_and_noise(db_ctx *ctx, float *y, float *dx, float *noise)
{
    size_t dim[4] = {2, 7, 8, 3}, small[4] = {2, 3, 3, 3}, k;
    float x[336], zero[54];
    db_tape *t;
    db_tensor in, out, target, z, loss;
    if (db_tape_create(ctx, &t) != DB_OK) return db_status(ctx);
    in = db_input(t, DB_F32, 4, dim), target = db_input(t, DB_F32, 4, small);
    db_require_grad(t, in);
    out = db_max_pool(t, in, 3, 2), z = db_normal_like(t, in, 5);
    db_keep(t, out), db_keep(t, z);
    loss = db_mse(t, out, target, none, none, NULL);
    db_backward(t, loss);
    test_formula(9, 336, 1, 0, 0, x);
    for (k = 0; k < 336; k += 3) x[k] = 0.25f; /* ties */
    memset(zero, 0, sizeof zero);
    db_upload(t, in, x), db_upload(t, target, zero);
    db_run(t, 7, 3);
    db_download(t, out, y), db_download(t, z, noise), db_download(t, db_grad(t, in), dx);
    db_tape_destroy(t);
    return db_status(ctx);
}

/* What ten updates make of a table of a large, a frozen and a small parameter. */
enum { LARGE = 5001, SMALL = 300, TABLE = 2 * LARGE + SMALL, CODES = 2 * LARGE };
typedef struct trained {
    float w[TABLE], average[TABLE], scale[2][20], norm;
    uint8_t code[2][LARGE]; /* scale and code: of 8-bit moments */
} trained;

static db_result train(db_ctx *ctx, int in_8bit, trained *out)
{
    static const char *const names[] = {"a", "frozen", "b"};
    static const size_t dim[] = {LARGE, LARGE, SMALL};
    size_t k, i, at;
    db_param_table p;
    db_optimizer o;
    db_optimizer_config c = db_optimizer_config_default();
    float *average = NULL;
    memset(&p, 0, sizeof p), memset(&o, 0, sizeof o);
    p.ctx = ctx, c.use_8bit_adam = in_8bit;
    for (k = 0; k < 3; k++) db__params_declare(&p, names[k], 1, &dim[k]);
    if (db__params_allocate(&p) == DB_OK) db_optimizer_init(&o, &p, &c);
    p.item[1].frozen = 1;
    for (k = 0; k < 3; k++) test_formula((uint32_t)k, dim[k], 1, 0, 1, p.item[k].data);
    if (db_status(ctx) == DB_OK) average = db_ema_create(&p);
    for (i = 0; i < 10 && db_status(ctx) == DB_OK; i++) {
        db_zero_grad(&p);
        for (k = 0; k < 3; k++) {
            test_formula((uint32_t)(i * 3 + k), dim[k], 1, 0, 1, p.item[k].grad);
            for (at = 0; at < dim[k]; at++) p.item[k].grad[at] *= powf(p.item[k].grad[at], 4);
        }
        db_optimizer_step(&o, 1e-2f, 0.5f, &out->norm);
        db_ema_update(&p, average, 0.75f);
    }
    for (k = at = 0; k < 3; at += dim[k++]) {
        memcpy(out->w + at, p.item[k].data, dim[k] * sizeof(float));
        memcpy(out->average + at, average + (p.item[k].data - p.data), dim[k] * sizeof(float));
    }
    if (in_8bit) {
        memcpy(out->scale[0], o.m, 20 * sizeof(float));
        memcpy(out->scale[1], o.v, 20 * sizeof(float));
        memcpy(out->code[0], o.m8, LARGE), memcpy(out->code[1], o.v8, LARGE);
    }
    db_ema_free(&p, average);
    db_optimizer_free(&o);
    db__params_free(&p);
    return db_status(ctx);
}
static void test_optimizer(void)
{
    static trained t[2];
    int k, in_8bit, off = 0, far = 0;
#ifdef CUDA_ON_HOST
    const double close = 1e-5;
#else
    const double close = 1e-3; /* sums in another order, and a code falls to its neighbour */
#endif
    for (in_8bit = 0; in_8bit < 2; in_8bit++) {
        const char *name = in_8bit ? "cuda adamw_8bit" : "cuda adamw";
        for (k = 0; k < 2; k++)
            if (train(flavours[k].ctx[0], in_8bit, &t[k]) != DB_OK)
                test_fail(name, "%s", db_last_error(flavours[k].ctx[0]));
        test_check(fabs((double)t[1].norm / (double)t[0].norm - 1) < 1e-6, "cuda squares",
                   "the CPU's norm");
        test_check(test_error(t[1].w, t[0].w, TABLE, 0, NULL) < (in_8bit ? close : 1e-6), name,
                   "the CPU's weights");
        test_check(test_error(t[1].average, t[0].average, TABLE, 0, NULL) <
                       (in_8bit ? close : 1e-6),
                   "cuda axpby", "the CPU's average of the weights");
    }
    for (k = 0; k < CODES; k++) {
        int d = abs((int)t[1].code[k / LARGE][k % LARGE] - (int)t[0].code[k / LARGE][k % LARGE]);
        off += d > 0, far += d > 1;
    }
    if (off > 5 || far)
        test_fail("cuda 8-bit codes", "%d of %d differ, %d by more than one", off, CODES, far);
    else test_pass("cuda 8-bit codes", "%d of %d differ, by one", off, CODES);
    test_check(test_error(t[1].scale[0], t[0].scale[0], 20, 0, NULL) < 1e-6
                   && test_error(t[1].scale[1], t[0].scale[1], 20, 0, NULL) < 1e-6,
               "cuda 8-bit scales", "the CPU's");
}

/* Attention of heads of HS channels and its gradients, 2 samples of T queries and S keys, with a
   bias where there is no causal mask; into `out`, which is returned: how many numbers. */
enum { ATTENTION_MAX = 200000 };
static size_t attend(const flavour *f, size_t HS, size_t heads, size_t T, size_t S, int causal,
                     float *out)
{
    static float x[ATTENTION_MAX];
    static uint16_t half[ATTENTION_MAX];
    size_t dim[4][3], n = 0, i;
    db_tape *t;
    db_tensor in[5], o, loss;
    int k;
    if (db_tape_create(f->ctx[0], &t) != DB_OK) return 0;
    for (k = 0; k < 4; k++) {
        dim[k][0] = 2, dim[k][1] = k == 1 || k == 2 ? S : T, dim[k][2] = heads * HS;
        in[k] = db_input(t, k == 3 ? DB_F32 : f->dtype, 3, dim[k]); /* q, k, v, target */
        if (k < 3) db_require_grad(t, in[k]);
    }
    dim[3][0] = heads, dim[3][1] = T, dim[3][2] = S;
    in[4] = causal ? none : db_input(t, DB_F32, 3, dim[3]);
    db_require_grad(t, in[4]);
    o = db_attention(t, in[0], in[1], in[2], in[4], none, heads, 1 / sqrtf((float)HS), causal);
    db_keep(t, o);
    loss = db_mse(t, o, in[3], none, none, NULL);
    db_backward(t, loss);
    for (k = 0; k < (causal ? 4 : 5); k++) {
        size_t count = db_count(in[k]);
        if (count > ATTENTION_MAX) return 0;
        test_formula((uint32_t)(HS * 8) + (uint32_t)k, count, 2, 0, 0, x);
        for (i = 0; i < count && k < 3; i++) {
            half[i] = db__f32_to_bf16(x[i]);
            x[i] = db__bf16_to_f32(half[i]);
        }
        db_upload(t, in[k], k < 3 && f->dtype == DB_BF16 ? (const void *)half : x);
    }
    db_run(t, 0, 0);
    for (k = 0; k < (causal ? 4 : 5); k++) {
        db_tensor got = k == 3 ? o : db_grad(t, in[k]);
        if (n + db_count(got) > ATTENTION_MAX) return 0;
        db_download(t, got, out + n);
        n += db_count(got);
    }
    db_tape_destroy(t);
    return n;
}
/* Each width of the tensor cores' attention, and what is too wide for them; with several tiles,
   ragged ends, queries that see all keys and keys that no query sees. Each result by itself. */
static void test_attention(void)
{
    static const size_t shape[][5] = {
        /* HS, heads, T, S, causal */
        {32, 1, 70, 150, 0}, {12, 2, 65, 150, 1}, {40, 2, 65, 77, 0},   {48, 1, 130, 65, 1},
        {64, 1, 66, 130, 0}, {64, 1, 130, 130, 1}, {80, 1, 65, 129, 0}, {72, 1, 65, 130, 1},
        {160, 1, 33, 70, 0}, {100, 1, 66, 66, 1},  {168, 1, 9, 40, 0},  {168, 1, 40, 33, 1}};
    static float y[2][ATTENTION_MAX];
    size_t k, c, i, at = 0;
    for (k = 1; k < n_flavours; k++) {
        verdict v;
        char name[60];
        memset(&v, 0, sizeof v);
        snprintf(name, sizeof name, "attention's widths, %.30s", flavours[k].name);
        prepare(&flavours[k], "attention");
        for (c = 0; c < sizeof shape / sizeof *shape; c++) {
            const size_t *s = shape[c];
            size_t n[2], part[5], begin = 0;
            n[0] = attend(&flavours[0], s[0], s[1], s[2], s[3], (int)s[4], y[0]);
            n[1] = attend(&flavours[k], s[0], s[1], s[2], s[3], (int)s[4], y[1]);
            part[0] = part[3] = 2 * s[0] * s[1] * s[2], part[1] = part[2] = 2 * s[0] * s[1] * s[3];
            part[4] = s[4] ? 0 : s[1] * s[2] * s[3];
            if (!n[0] || n[1] != n[0]) object(&v, "case %zu: no result", c);
            for (i = 0; i < 5 && !v.why[0]; begin += part[i++]) {
                double err = part[i] ? test_error(y[1] + begin, y[0] + begin, part[i], 0, &at) : 0;
                v.worst = DB__MAX(v.worst, err);
                if (!(err < (flavours[k].dtype == DB_F32 ? f32_limit : bf16_limit)))
                    object(&v, "heads of %zu, %s: err %.1e at %zu (%g, not %g)", s[0],
                           i == 3       ? "o"
                               : i == 4 ? "dbias"
                               : i == 0 ? "dq"
                               : i == 1 ? "dk"
                                        : "dv",
                           err, at, (double)y[1][begin + at], (double)y[0][begin + at]);
            }
        }
        if (v.why[0]) test_fail(name, "%s", v.why);
        else test_pass(name, "err %.1e", v.worst);
    }
}
static void test_against_cpu(void)
{
    float y[2][54], dx[2][336], noise[2][336];
    int k;
    for (k = 0; k < 2; k++)
        if (pool_and_noise(flavours[k].ctx[0], y[k], dx[k], noise[k]) != DB_OK)
            test_fail("max_pool, normal", "%s", db_last_error(flavours[k].ctx[0]));
    test_check(!memcmp(y[0], y[1], sizeof *y), "cuda max_pool", "the CPU's bits");
    test_check(test_error(dx[1], dx[0], 336, 0, NULL) < 1e-6, "cuda max_pool_dx",
               "the CPU's gradient");
    test_check(test_error(noise[1], noise[0], 336, 0, NULL) < 2e-7, "cuda normal",
               "the CPU's noise");
}

#ifdef CUDA_ON_HOST
/* A small network with noise, run `runs` times; the table of w moves before run `move`. Returns the
   loss and the sum of gradients of each run, into out [2 runs]. */
static db_result runs_of(db_ctx *ctx, int runs, int move, float *out)
{
    size_t dim[2] = {9, 24}, wide[2] = {24, 24}, k;
    float x[9 * 24], *there, *gone = NULL;
    db_tape *t = NULL;
    db_tensor in, y, loss;
    db_param_table p;
    db__net net;
    int run;
    memset(&p, 0, sizeof p), memset(&net, 0, sizeof net);
    p.ctx = ctx;
    db__params_declare(&p, "w", 2, wide);
    if (db__params_allocate(&p) != DB_OK || db_params_require_grad(&p) != DB_OK ||
        db_tape_create(ctx, &t) != DB_OK)
        goto done;
    test_formula(3, 24 * 24, 1, 0, 0, p.item[0].data);
    net.tape = t, net.params = &p;
    in = db_input(t, DB_F32, 2, dim);
    y = db_weighted_sum(t, 1, in, 1, db_normal_like(t, in, 5));
    y = db_linear(t, y, db__weight(&net, "w", 24, 24, 0, 0), none, none);
    loss = db_mse(t, y, in, none, none, NULL);
    db_keep(t, loss);
    db_backward(t, loss);
    test_formula(4, 9 * 24, 1, 0, 0, x);
    for (run = 0; run < runs && db_status(ctx) == DB_OK; run++) {
        if (run == move && (there = (float *)ctx->backend->alloc(ctx, 24 * 24 * sizeof *there))) {
            memcpy(there, p.data, 24 * 24 * sizeof *there);
            memset(p.data, 0xFF, 24 * 24 * sizeof *there); /* NaNs in the old place */
            gone = p.item[0].data, p.item[0].data = there;
        }
        db_zero_grad(&p);
        x[0] = (float)run;
        db_upload(t, in, x);
        db_run(t, 7, (uint32_t)run);
        db_download(t, loss, &out[2 * run]);
        for (k = 0, out[2 * run + 1] = 0; k < 24 * 24; k++) out[2 * run + 1] += p.grad[k];
    }
done:
    db_tape_destroy(t);
    if (gone) ctx->backend->release(ctx, p.item[0].data);
    db__params_free(&p);
    return db_status(ctx);
}
/* A tape's runs from the second on are one launch of a graph, with the numbers of ordinary runs:
   also after parameters have moved, and where recording fails. */
static void test_graphs(void)
{
    enum { RUNS = 6 };
    db_ctx *ctx = flavours[1].ctx[0];
    float cpu[2 * RUNS], plain[2 * RUNS], got[2 * RUNS];
    unsigned long graphs;
    int why;
    db_backend ordinary = *ctx->backend;
    const db_backend *cuda = ctx->backend;
    ordinary.begin_run = NULL;
    ctx->backend = &ordinary;
    runs_of(flavours[0].ctx[0], RUNS, -1, cpu);
    test_check(runs_of(ctx, RUNS, -1, plain) == DB_OK
                   && test_error(plain, cpu, 2 * RUNS, 0, NULL) < 1e-5,
               "cuda without graphs", "the CPU's losses and gradients");
    ctx->backend = cuda;
    cuda_host_prefetched = 0, graphs = cuda_host_graphs;
    test_check(runs_of(ctx, RUNS, -1, got) == DB_OK && !memcmp(got, plain, sizeof got)
                   && cuda_host_graphs - graphs == RUNS - 1,
               "cuda graph", "the bits of ordinary runs, in one launch from the second run on");
    test_check(cuda_host_prefetched > 2 * 24 * 24 * sizeof(float), "cuda prefetching",
               "parameters and gradients brought to the GPU before the first run");
    graphs = cuda_host_graphs;
    test_check(runs_of(ctx, RUNS, 3, got) == DB_OK && !memcmp(got, plain, sizeof got)
                   && cuda_host_graphs - graphs == RUNS - 2,
               "cuda graph after a parameter has moved", "an ordinary run, then a new graph");
    for (why = 1; why <= 3; why++) {
        cuda_host_no_graphs = why, graphs = cuda_host_graphs;
        test_check(runs_of(ctx, RUNS, -1, got) == DB_OK && !memcmp(got, plain, sizeof got)
                       && cuda_host_graphs == graphs,
                   "cuda where recording fails", "the same bits from ordinary runs");
    }
    cuda_host_no_graphs = 0;
}

/* Errors: code, figures, a suggestion; and the context works again afterwards. */
static void test_errors(void)
{
    db_ctx *ctx = flavours[1].ctx[0];
    const char *why;
    float y[54], dx[336], noise[336], runs[12];
    size_t room = cuda_host_free, eight = 8;
    db_param_table p;
    long k;
    int whole = 1;
    cuda_host_free = 1000;
    test_check(pool_and_noise(ctx, y, dx, noise) == DB_ERROR_MEMORY
                   && strstr(db_last_error(ctx), "0.0 of") && strstr(db_last_error(ctx), "batch"),
               "cuda out of memory", "DB_ERROR_MEMORY with the figures and what to do");
    db_clear_error(ctx);
    cuda_host_free = room, cuda_host_all = 1000; /* less than is held, wherever its pages are */
    test_check(pool_and_noise(ctx, y, dx, noise) == DB_ERROR_MEMORY, "cuda memory held by the host",
               "DB_ERROR_MEMORY");
    db_clear_error(ctx);
    cuda_host_all = room;
    memset(&p, 0, sizeof p);
    p.ctx = ctx;
    db__params_declare(&p, "w", 1, &eight);
    db__params_allocate(&p), db_params_require_grad(&p);
    cuda_host_pending = 2; /* cudaErrorMemoryAllocation, harmless to us */
    db_zero_grad(&p);
    test_check(db_status(ctx) == DB_OK, "cuda after an error of the program's", "none of ours");
    db_clear_error(ctx);
    db__params_free(&p);
    for (k = 0; k < 4; k++, db_clear_error(ctx)) { /* w, its gradient, arena, the graph's draw */
        cuda_host_allocations = k;
        whole &= runs_of(ctx, 3, -1, runs) == (k < 3 ? DB_ERROR_MEMORY : DB_OK);
    }
    test_check(whole, "cuda, each allocation fails",
               "DB_ERROR_MEMORY; ordinary runs where the graph's own memory is missing");
    cuda_host_allocations = -1;
    for (k = 1, whole = 0; k < 200; k++, db_clear_error(ctx)) { /* after k launches */
        cuda_host_life = k;
        if (runs_of(ctx, 3, -1, runs) == DB_OK) break;
        whole += db_status(ctx) == DB_ERROR_DEVICE
            && strstr(db_last_error(ctx), "illegal memory access")
            && strstr(db_last_error(ctx), "--resume_from_checkpoint");
    }
    cuda_host_life = -1;
    if (whole == k - 1 && k > 20 && k < 200)
        test_pass("cuda lost device", "after each of %d launches", whole);
    else
        test_fail("cuda lost device", "%d of %ld failures say DB_ERROR_DEVICE, why, what to do",
                  whole, k - 1);
    test_check(pool_and_noise(ctx, y, dx, noise) == DB_OK, "cuda after errors", "a run that works");
    cuda_host_devices = 0;
    test_check(!db_backend_cuda(&why) && strstr(why, "no NVIDIA GPU"), "cuda without a GPU",
               "NULL and why");
    cuda_host_devices = -1;
    test_check(!db_backend_cuda(&why) && strstr(why, "12.0") && strstr(why, "13.0"),
               "cuda with an old driver", "NULL, and both versions");
    cuda_host_devices = -2;
    test_check(!db_backend_cuda(&why) && strstr(why, "no NVIDIA driver"), "cuda without a driver",
               "NULL and why");
    cuda_host_devices = 1, cuda_host_ptx = 0;
    test_check(!db_backend_cuda(&why) && strstr(why, "no kernels"), "cuda without kernels",
               "NULL and why");
    cuda_host_ptx = 80;
}
#endif
#else
static int cuda_host_reverse;
static int prepare(const flavour *f, const char *op) { return f && op; }
static void make_flavours(void)
{
    const db__kernels *seen[2 * MAX_FLAVOURS];
    size_t n_seen = 0, n_isas = 0, k, j;
    int half, threads;
    while (db_isa_name(n_isas)) n_isas++;
    for (half = 0; half < 2; half++)
        for (k = n_isas; k-- > 0;) {
            flavour *f = &flavours[n_flavours];
            db_config config = db_config_default();
            config.compute = half ? DB_BF16 : DB_F32;
            config.isa = db_isa_name(k);
            f->dtype = config.compute;
            snprintf(f->name, sizeof f->name, "%s %s", config.isa, half ? "bf16" : "f32");
            for (threads = 1; threads <= 2; threads++) {
                config.threads = threads;
                if (db_create(&f->ctx[threads - 1], &config) != DB_OK) {
                    test_fail(f->name, "no context");
                    exit(test_summary());
                }
            }
            for (j = 0; j < n_seen && seen[j] != db__kernels_for(f->ctx[0], f->dtype); j++)
                continue;
            if (j < n_seen) {
                db_destroy(f->ctx[0]);
                db_destroy(f->ctx[1]);
                continue;
            }
            seen[n_seen++] = db__kernels_for(f->ctx[0], f->dtype);
            n_flavours++;
        }
}
#endif

/* Runs a recorded case `runs` times and collects the last run's results. */
static void run_case(verdict *v, recorded *c, int byte, int runs, results *out)
{
    int k;
    out->n = 0;
    if (c->ctx->result == DB_OK) poison(c, byte);
    for (k = 0; k < runs; k++) {
        if (k) poison(c, byte);
        if (c->ctx->result == DB_OK) db_run(c->tape, 1, 0);
    }
    collect(c, out);
    if (c->ctx->result != DB_OK) object(v, "case \"%s\": %s", title(c), db_last_error(c->ctx));
    db_clear_error(c->ctx);
}

/* After a second run: parameters' gradients twice as large, the rest as before. */
static void check_second_run(verdict *v, const recorded *c, const results *one, const results *two)
{
    size_t k, i;
    double largest = 0;
    for (k = 2; k < one->n; k++)
        largest = DB__MAX(largest, test_largest(one->r[k].value, one->r[k].count));
    for (k = 0; k < two->n; k++) {
        const result *r = &two->r[k];
        if (!r->of_param) {
            if (memcmp(r->value, one->r[k].value, r->count * sizeof(float)))
                object(v, "case \"%s\", %s%s: the second run gives other bits", title(c),
                       k < 2 ? "" : "gradient of ", r->name);
            continue;
        }
        for (i = 0; i < r->count; i++) r->value[i] *= 0.5f;
        if (!(test_error(r->value, one->r[k].value, r->count, 1e-3 * largest, NULL) < 1e-5))
            object(v, "case \"%s\", gradient of %s: two runs do not give twice that of one",
                   title(c), r->name);
    }
}

static void test_case(verdict *v, const flavour *f, const db_json *spec,
                      const db_safetensors *golden, results *scalar)
{
    recorded c;
    results got, again;
    size_t k;
    double limit = f->dtype == DB_F32 ? db_json_number(spec, "f32_limit", f32_limit)
                                      : db_json_number(spec, "bf16_limit", bf16_limit);
    int first = f == flavours;
    record_case(&c, f->ctx[0], spec, NULL);
    run_case(v, &c, 0xFF, 1, &got);
    v->cases++;
    v->gradients += got.n > 2 ? got.n - 2 : 0;
    compare_golden(v, &c, golden, &got, limit);
    if (!first) compare_results(v, &c, &got, scalar, limit, "scalar f32");
    if (got.n && f->dtype == DB_F32) {
        poison(&c, 0xFF);
        run_case(v, &c, 0x7E, 1, &again);
        check_second_run(v, &c, &got, &again);
        free_results(&again);
    }
    free_case(&c);

    record_case(&c, f->ctx[1], spec, NULL);
    cuda_host_reverse = 1;
    run_case(v, &c, 0x7E, 1, &again);
    cuda_host_reverse = 0;
    compare_results(v, &c, &again, &got, 0, "with one thread");
    free_results(&again);
    free_case(&c);

    for (k = 2; f->dtype == DB_F32 && k < got.n && got.n > 3; k++) {
        record_case(&c, f->ctx[0], spec, got.r[k].name);
        run_case(v, &c, 0xFF, 1, &again);
        compare_results(v, &c, &again, &got, 0, "with all gradients");
        free_results(&again);
        free_case(&c);
    }
    if (first) *scalar = got;
    else free_results(&got);
}

static void test_operation(const char *op, const db_json *cases, const db_safetensors *golden)
{
    static results scalar[MAX_CASES];
    const db_json *spec;
    size_t k, n;
    for (k = 0; k < n_flavours; k++) {
        verdict v;
        char name[80];
        const flavour *f = &flavours[k];
        if (!prepare(f, op)) continue;
        memset(&v, 0, sizeof v);
        snprintf(name, sizeof name, "%.30s %.40s", op, f->name);
        for (spec = cases->first, n = 0; spec; spec = spec->next, n++) {
            if (strcmp(db_json_string(spec, "op", ""), op) ||
                (f->dtype == DB_BF16 && !db_json_int(spec, "bf16", 1)))
                continue;
            test_case(&v, f, spec, golden, &scalar[n]);
        }
        if (!v.cases) object(&v, "the golden file has no case");
        if (v.why[0]) test_fail(name, "%s", v.why);
        else test_pass(name, "err %.1e (%zu cases, %zu gradients)", v.worst, v.cases, v.gradients);
    }
    for (n = 0; n < MAX_CASES; n++) free_results(&scalar[n]);
}

/* ---- finite differences ---------------------------------------------------------------------- */

/* The loss of a recorded case with argument `a` moved by h times the direction d. */
static double moved_loss(recorded *c, case_arg *a, const float *d, double h)
{
    float *there = (float *)need(a->count * sizeof(float)), loss = 0;
    size_t k;
    memcpy(there, a->value, a->count * sizeof(float));
    for (k = 0; k < a->count; k++) a->value[k] = (float)((double)there[k] + h * (double)d[k]);
    poison(c, 0xFF);
    db_run(c->tape, 1, 0);
    db_download(c->tape, c->loss, &loss);
    memcpy(a->value, there, a->count * sizeof(float));
    free(there);
    return (double)loss;
}

/* Independently of PyTorch: the loss really changes by what the gradients say, along one direction
   for each argument of an operation's first case. Central differences in f32 are good for two or
   three digits. */
static void test_finite_differences(const char *op, const flavour *f, const db_json *cases)
{
    const db_json *spec = cases->first;
    verdict v;
    recorded c;
    results r;
    size_t k, i, j;
    char name[80];
    memset(&v, 0, sizeof v);
    while (spec && strcmp(db_json_string(spec, "op", ""), op)) spec = spec->next;
    if (!spec || db_json_int(spec, "forward", 0) || db_json_get(spec, "f32_limit"))
        return; /* rounding has no slope */
    snprintf(name, sizeof name, "finite differences %.30s", op);
    record_case(&c, f->ctx[0], spec, NULL);
    run_case(&v, &c, 0xFF, 1, &r);
    for (k = 2; k < r.n; k++) {
        double h = 1.0 / 256, numeric, analytic = 0, length = 0, err;
        float *d = (float *)need(r.r[k].count * sizeof(float));
        test_formula((uint32_t)(55 + k), r.r[k].count, 1, 0, 1, d);
        for (i = 0; i < r.r[k].count; i++) {
            analytic += (double)r.r[k].value[i] * (double)d[i];
            length += (double)r.r[k].value[i] * (double)r.r[k].value[i];
        }
        for (j = 0; strcmp(c.arg[j].name, r.r[k].name); j++) continue;
        numeric = (moved_loss(&c, &c.arg[j], d, h) - moved_loss(&c, &c.arg[j], d, -h)) / (2 * h);
        err = length > 0 ? fabs(numeric - analytic) / sqrt(length) : HUGE_VAL;
        v.worst = DB__MAX(v.worst, err);
        v.gradients++;
        if (!(err < 3e-3))
            object(&v, "case \"%s\", gradient of %s: the loss changes by %g, the gradient says %g",
                   title(&c), r.r[k].name, numeric, analytic);
        free(d);
    }
    if (v.why[0]) test_fail(name, "%s", v.why);
    else test_pass(name, "err %.1e (%zu directions)", v.worst, v.gradients);
    free_results(&r);
    free_case(&c);
}

/* What is no number stays none, and spoils nothing beside it: neither an activation nor the largest
   of a window may turn it into a number that looks like a result. */
static void test_no_numbers(const flavour *f)
{
    static const size_t dim[4] = {1, 4, 4, 4};
    enum { COUNT = 64, POOLED = 16 };
    float x[COUNT], y[COUNT];
    char name[80];
    size_t k, wrong = 0;
    int act;
    db_tape *t;
    db_tensor in, cast, out[DB_ACT_RELU + 1], most;
    if (!prepare(f, "activate") || db_tape_create(f->ctx[0], &t) != DB_OK) return;
    in = db_input(t, DB_F32, 4, dim), cast = db_cast(t, in, f->dtype);
    for (act = DB_ACT_SILU; act <= DB_ACT_RELU; act++)
        out[act] = db_activate(t, cast, (db_activation)act), db_keep(t, out[act]);
    most = db_max_pool(t, cast, 2, 2), db_keep(t, most);
    for (k = 0; k < COUNT; k++) x[k] = k == 21 ? (float)NAN : 1 - (float)(k % 3);
    db_upload(t, in, x);
    db_run(t, 1, 0);
    for (act = DB_ACT_SILU; act <= DB_ACT_RELU; act++) {
        db_download(t, out[act], y);
        for (k = 0; k < COUNT; k++) wrong += (y[k] != y[k]) != (k == 21);
    }
    db_download(t, most, y); /* row 1, column 1 lies in the first window */
    for (k = 0; k < POOLED; k++) wrong += (y[k] != y[k]) != (k == 1);
    snprintf(name, sizeof name, "%.40s: what is no number stays none", f->name);
    test_check(db_status(f->ctx[0]) == DB_OK && !wrong, name, "in activations and max_pool");
    db_tape_destroy(t);
}

int main(int argc, char **argv)
{
    db_ctx *ctx;
    db_safetensors *golden;
    const char *list;
    const db_json *cases;
    const flavour *best;
    size_t k;
    let_threads_sleep(argv);
    if (db_create(&ctx, NULL) != DB_OK) return 1;
    golden = test_golden(ctx, argc > 1 ? argv[1] : "tests/golden/ops.safetensors");
    list = db_safetensors_metadata(golden, "cases");
    cases = list ? db_json_parse(ctx, "cases", list, strlen(list)) : NULL;
    if (!cases || cases->count > MAX_CASES) {
        test_fail("list of cases", "%s", db_last_error(ctx));
        return test_summary();
    }
    make_flavours();
    for (k = 0; k < N_OPERATIONS; k++) test_operation(operations[k].name, cases, golden);
    for (k = 0; k < n_flavours; k++) test_no_numbers(&flavours[k]);
    for (k = 0; k + 1 < n_flavours && flavours[k + 1].dtype == DB_F32;) k++; /* the best for f32 */
    best = &flavours[k];
#ifdef TEST_CUDA
    test_against_cpu();
    test_attention();
    test_optimizer();
#ifdef CUDA_ON_HOST
    test_graphs();
    test_errors();
#endif
#endif
    for (k = 0; k < N_OPERATIONS; k++) test_finite_differences(operations[k].name, best, cases);

    for (k = 0; k < n_flavours; k++) db_destroy(flavours[k].ctx[0]), db_destroy(flavours[k].ctx[1]);
    db_json_free(cases);
    db_safetensors_close(golden);
    db_destroy(ctx);
    return test_summary();
}
