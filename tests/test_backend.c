/* Tests of what carries the operations: tape and memory plan, checkpointing, running out of memory,
   random numbers, optimiser, learning-rate schedules, errors. The operations themselves:
   test_ops.c.

       cc -std=c99 -O2 -fopenmp -I. -Itools tests/test_backend.c -o test_backend -lm
       ./test_backend [tests/golden/ops.safetensors] */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include "tests/test.h"

static const db_tensor none = {-1, 0, {0, 0, 0, 0}};

static db_tensor input(db_tape *t, db_dtype dtype, size_t a, size_t b, size_t c, size_t d)
{
    size_t dim[4];
    dim[0] = a, dim[1] = b, dim[2] = c, dim[3] = d;
    return db_input(t, dtype, d ? 4 : c ? 3 : b ? 2 : 1, dim);
}

static db_ctx *context(int threads, db_dtype compute, const char *isa)
{
    db_config c = db_config_default();
    db_ctx *ctx;
    c.threads = threads, c.compute = compute, c.isa = isa;
    if (db_create(&ctx, &c) == DB_OK) return ctx;
    test_fail("context", "could not be made");
    exit(test_summary());
}

/* ---- a small U-Net: skip connections across segments, noise, attention ----------------------- */

typedef struct model {
    db_tape *tape;
    db_param_table params;
    db_tensor x, temb, text, target, kept, loss;
} model;

static db_tensor block(db__net *n, const char *name, db_tensor x, db_tensor temb, size_t OC)
{
    size_t here = db__enter(n, "%s", name), C = x.n_dims ? x.dim[x.n_dims - 1] : 1;
    db_tensor ss = db__linear_layer(n, "time", db_activate(n->tape, temb, DB_ACT_SILU), 2 * OC, 1,
                                    none),
              h, shortcut = x;
    h = db__group_norm_layer(n, "norm1", x, none, 2, 1e-5f, DB_ACT_SILU);
    h = db__conv_layer(n, "conv1", h, OC, 3, none);
    h = db__group_norm_layer(n, "norm2", h, ss, 2, 1e-5f, DB_ACT_SILU);
    if (C != OC) shortcut = db__conv_layer(n, "shortcut", x, OC, 1, none);
    h = db__conv_layer(n, "conv2", h, OC, 3, shortcut);
    db__leave(n, here);
    return h;
}

static db_tensor attend(db__net *n, const char *name, db_tensor x, db_tensor text)
{
    db_tape *t = n->tape;
    size_t here = db__enter(n, "%s", name), C = x.n_dims ? x.dim[3] : 1, dim[3];
    db_tensor s, h, both;
    dim[0] = x.dim[0], dim[1] = x.dim[1] * x.dim[2], dim[2] = C;
    s = db_reshape(t, x, 3, dim);
    h = db__layer_norm_layer(n, "norm", s, 1e-5f);
    both = db_concat(t, db__linear_layer(n, "text", text, C, 1, none), h, 1);
    h = db_attention(t, db__linear_layer(n, "q", h, C, 0, none),
                     db__linear_layer(n, "k", both, C, 0, none),
                     db__linear_layer(n, "v", both, C, 0, none), none, none, 2, 0.5f, 0);
    h = db_activate(t, db__linear_layer(n, "out", h, C, 1, s), DB_ACT_SILU);
    h = db_gate(t, db__linear_layer(n, "ff", h, 2 * C, 1, none), DB_ACT_GELU);
    h = db__linear_layer(n, "down", h, C, 1, s);
    db__leave(n, here);
    return db_reshape(t, h, 4, x.dim);
}

static db_tensor network(db__net *n, model *m, int checkpoints)
{
    db_tape *t = n->tape;
    db_tensor x, a, b, temb;
    m->x = input(t, t->compute, 2, 8, 6, 4), m->temb = input(t, t->compute, 2, 10, 0, 0);
    m->text = input(t, t->compute, 2, 3, 6, 0), m->target = input(t, DB_F32, 2, 8, 6, 4);
    db_require_grad(t, m->x);
    temb = db_activate(t, db__linear_layer(n, "time", m->temb, 10, 1, none), DB_ACT_SILU);
    if (checkpoints) db_checkpoint_begin(t);
    x = db_weighted_sum(t, 1, m->x, 0.25f, db_cast(t, db_normal_like(t, m->x, 7), t->compute));
    a = block(n, "down0", x, temb, 8);
    if (checkpoints) db_checkpoint_end(t), db_checkpoint_begin(t);
    b = block(n, "down1", db_avg_pool2(t, a), temb, 8);
    b = attend(n, "attention", b, m->text);
    if (checkpoints) db_checkpoint_end(t);
    m->kept = b = db_activate(t, b, DB_ACT_GELU);
    if (checkpoints) db_checkpoint_begin(t);
    b = block(n, "up0", db_concat(t, db_upsample2(t, b, 2 * b.dim[1], 2 * b.dim[2]), a, 3), temb,
              6);
    if (checkpoints) db_checkpoint_end(t), db_checkpoint_begin(t);
    b = db__conv_layer(n, "out", db_multiply(t, b, b), 4, 3, none);
    if (checkpoints) db_checkpoint_end(t);
    return db_mse(t, b, m->target, none, none, NULL);
}

static void set_inputs(model *m)
{
    float v[384];
    uint16_t half[384];
    db_tensor in[4];
    size_t k, i;
    in[0] = m->x, in[1] = m->temb, in[2] = m->text, in[3] = m->target;
    for (k = 0; k < 4; k++) {
        test_formula((uint32_t)(20 + k), db_count(in[k]), 1, 0, 0, v);
        for (i = 0; i < db_count(in[k]); i++) half[i] = db__f32_to_bf16(v[i]);
        db_upload(m->tape, in[k],
                  k < 3 && m->tape->compute == DB_BF16 ? (const void *)half : (const void *)v);
    }
}

/* Records the model, ready to run; stops at the first failure, as a program would. */
static db_result model_create(model *m, db_ctx *ctx, int checkpoints)
{
    db__net net;
    size_t k;
    memset(m, 0, sizeof *m);
    memset(&net, 0, sizeof net);
    m->params.ctx = ctx;
    net.params = &m->params, net.declaring = 1;
    if (db_tape_create(ctx, &net.tape) != DB_OK) return db_status(ctx);
    network(&net, m, 0);
    db_tape_destroy(net.tape);
    if (db_status(ctx) != DB_OK || db__params_allocate(&m->params) != DB_OK) return db_status(ctx);
    if (db_params_require_grad(&m->params) != DB_OK) return db_status(ctx);
    for (k = 0; k < m->params.n; k++) {
        db_param *p = &m->params.item[k];
        int norm = p->n_dims == 1 && strstr(p->name, "norm") && strstr(p->name, "weight");
        test_formula((uint32_t)(100 + k), p->count, p->n_dims == 1 ? 0.5 : 0.3, norm, 1, p->data);
    }
    if (db_tape_create(ctx, &m->tape) != DB_OK) return db_status(ctx);
    net.tape = m->tape, net.declaring = 0;
    m->loss = network(&net, m, checkpoints);
    db_keep(m->tape, m->kept);
    if (db_backward(m->tape, m->loss) != DB_OK) return db_status(ctx);
    db_keep(m->tape, db_grad(m->tape, m->x));
    if (db_plan(m->tape, NULL) != DB_OK || db__ensure_arena(m->tape) != DB_OK)
        return db_status(ctx);
    memset(m->tape->arena, 0xFF, m->tape->arena_bytes);
    set_inputs(m);
    return db_status(ctx);
}

static void model_free(model *m)
{
    db_tape_destroy(m->tape);
    db__params_free(&m->params);
}

/* ---- gradient checkpointing ------------------------------------------------------------------ */

static void test_checkpointing(void)
{
    int half;
    for (half = 0; half < 2; half++) {
        const char *name = half ? "checkpointing bf16" : "checkpointing f32";
        db_ctx *ctx = context(2, half ? DB_BF16 : DB_F32, NULL);
        model a, b;
        float loss[2] = {0, 1}, dx[2][384], kept[2][384];
        size_t nodes;
        memset(dx, 0, sizeof dx);
        if (model_create(&a, ctx, 0) != DB_OK || model_create(&b, ctx, 1) != DB_OK ||
            db_run(a.tape, 5, 3) != DB_OK || db_run(b.tape, 5, 3) != DB_OK) {
            test_fail(name, "%s", db_last_error(ctx));
            exit(test_summary());
        }
        nodes = b.tape->n_nodes - a.tape->n_nodes;
        db_download(a.tape, a.loss, &loss[0]), db_download(b.tape, b.loss, &loss[1]);
        db_download(a.tape, a.kept, kept[0]), db_download(b.tape, b.kept, kept[1]);
        db_download(a.tape, db_grad(a.tape, a.x), dx[0]),
            db_download(b.tape, db_grad(b.tape, b.x), dx[1]);
        if (!(loss[0] > 0) || loss[0] != loss[1])
            test_fail(name, "the loss is %g with it, %g without", (double)loss[1], (double)loss[0]);
        else if (memcmp(kept[0], kept[1], db_count(a.kept) * sizeof(float)))
            test_fail(name, "an activation has other bits");
        else if (memcmp(dx[0], dx[1], db_count(a.x) * sizeof(float)))
            test_fail(name, "the gradient of the input has other bits");
        else if (memcmp(a.params.grad, b.params.grad, a.params.count * sizeof(float)))
            test_fail(name, "a parameter's gradient has other bits");
        else if (test_largest(a.params.grad, a.params.count) == 0)
            test_fail(name, "all gradients are zero");
        else if (nodes == 0 || b.tape->arena_bytes >= a.tape->arena_bytes)
            test_fail(name, "%zu operations more, %zu bytes instead of %zu", nodes,
                      b.tape->arena_bytes, a.tape->arena_bytes);
        else
            test_pass(name, "the same bits, %zu operations again, %zu bytes instead of %zu", nodes,
                      b.tape->arena_bytes, a.tape->arena_bytes);
        model_free(&a), model_free(&b);
        test_check(ctx->live_bytes == 0, half ? "tape frees all, bf16" : "tape frees all, f32",
                   "no memory left in use");
        db_destroy(ctx);
    }
}

/* ---- the memory plan ------------------------------------------------------------------------- */

static int in_arena(const db__value *v) { return v->kind == DB__ACTIVATION || v->kind == DB__KEPT; }

/* Bytes that the kernels of node n need for themselves. */
static size_t node_scratch(const db_tape *t, size_t n)
{
    db_call c = db__call(t, n);
    c.measuring = 1;
    t->ctx->backend->run[t->node[n].op](t->ctx, &c);
    return c.scratch_used;
}

static int apart(size_t at, size_t bytes, size_t other, size_t other_bytes)
{
    return at + bytes <= other || other + other_bytes <= at;
}

/* Elementwise operations whose output (argument 0) may take the place of input k. */
static int may_take_place(const db__node *node, size_t k)
{
    return (node->op == DB_OP_ACT && k == 1) || (node->op == DB_OP_ACT_DX && (k == 1 || k == 2)) ||
        (node->op == DB_OP_GATE_DX && k == 2);
}

/* By brute force: values that are in use at the same time lie apart, and apart from what the
   kernels use meanwhile. Only an elementwise operation may write over what it reads last. */
static void test_memory_plan(void)
{
    int checkpoints;
    for (checkpoints = 0; checkpoints < 2; checkpoints++) {
        const char *name = checkpoints ? "memory plan, checkpointed" : "memory plan";
        db_ctx *ctx = context(1, DB_F32, NULL);
        model m;
        db_memory_plan plan;
        size_t pairs = 0, sum = 0, most = 0, in_place = 0, i, j, n, k;
        int *first, *last, bad = -1, wrong = -1, late = -1, written_over[DB_OP_COUNT] = {0};
        model_create(&m, ctx, checkpoints);
        db_plan(m.tape, &plan);
        first = (int *)calloc(2 * m.tape->n_values, sizeof *first);
        if (!first || db_status(ctx) != DB_OK) {
            test_fail(name, "%s", db_last_error(ctx));
            exit(test_summary());
        }
        last = first + m.tape->n_values;
        for (i = 0; i < m.tape->n_values; i++) first[i] = last[i] = -1;
        for (n = 0; n < m.tape->n_nodes; n++)
            for (k = 0; k < DB_MAX_ARGS; k++) {
                int id = m.tape->node[n].arg[k].id;
                if (id < 0) continue;
                if (first[id] < 0) first[id] = (int)n;
                last[id] = (int)n;
            }
        for (i = 0; i < m.tape->n_values; i++)
            if (m.tape->value[i].kind == DB__KEPT) first[i] = 0, last[i] = (int)m.tape->n_nodes;
        for (i = 0; i < m.tape->n_values; i++) {
            const db__value *v = &m.tape->value[i], *w;
            if (!in_arena(v) || first[i] < 0) continue;
            sum += v->bytes;
            if (v->offset % DB__ALIGN || v->offset + v->bytes > plan.arena_bytes) bad = (int)i;
            for (j = 0; j < i; j++) {
                w = &m.tape->value[j];
                if (!in_arena(w) || first[j] < 0) continue;
                if (last[i] < first[j] || last[j] < first[i]) continue;
                pairs++;
                if (apart(v->offset, v->bytes, w->offset, w->bytes)) continue;
                n = (size_t)DB__MIN(last[i], last[j]); /* one ends where the other begins? */
                for (k = 1; k < DB_MAX_ARGS; k++) {
                    const db__node *node = &m.tape->node[n];
                    int out = node->arg[0].id, in = node->arg[k].id;
                    if (may_take_place(node, k) && v->offset == w->offset && v->bytes == w->bytes &&
                        ((out == (int)i && in == (int)j) || (out == (int)j && in == (int)i)) &&
                        first[out] == (int)n && last[in] == (int)n)
                        break;
                }
                if (k == DB_MAX_ARGS) bad = (int)i;
                else in_place++, written_over[m.tape->node[n].op] = 1;
            }
        }
        for (n = 0; n < m.tape->n_forward; n++) { /* norms, activations and gates are made again */
            const db__node *node = &m.tape->node[n];
            int out = node->arg[0].id;
            if ((node->op == DB_OP_GROUP_NORM || node->op == DB_OP_LAYER_NORM ||
                 node->op == DB_OP_ACT || node->op == DB_OP_GATE) &&
                m.tape->value[out].kind == DB__ACTIVATION && m.tape->value[out].needs_grad &&
                last[out] >= (int)m.tape->n_forward)
                late = out;
        }
        for (n = 0; n < m.tape->n_nodes; n++) { /* what is in use during node n */
            size_t own = node_scratch(m.tape, n), now = own;
            for (i = 0; i < m.tape->n_values; i++) {
                const db__value *v = &m.tape->value[i];
                if (!in_arena(v) || first[i] > (int)n || (int)n > last[i]) continue;
                now += v->bytes;
                if (own && !apart(v->offset, v->bytes, m.tape->node[n].scratch, own)) bad = (int)i;
            }
            if (own && m.tape->node[n].scratch + own > plan.arena_bytes) bad = (int)n;
            most = DB__MAX(most, now);
        }
        for (i = 0; i < m.tape->n_values;
             i++) { /* gradients stay where something that stays has them, and only there */
            int stays = 0, is_gradient = 0;
            for (j = 0; j < m.tape->n_values; j++) {
                if (m.tape->value[j].grad != (int)i || m.tape->value[i].kind == DB__PARAM_GRAD)
                    continue;
                is_gradient = 1;
                stays = stays || (m.tape->value[j].kind == DB__KEPT && m.tape->value[j].needs_grad);
            }
            if (is_gradient && stays != (m.tape->value[i].kind == DB__KEPT)) wrong = (int)i;
        }
        if (wrong >= 0)
            test_fail(name, "the gradient with number %d is %s", wrong,
                      m.tape->value[wrong].kind == DB__KEPT ? "kept in vain" : "not kept");
        else if (bad >= 0)
            test_fail(name, "value %d lies outside the arena or on what is in use", bad);
        else if (late >= 0)
            test_fail(name, "value %d, cheap to compute again, outlives the forward pass", late);
        else if (!written_over[DB_OP_ACT] || !written_over[DB_OP_ACT_DX] ||
                 !written_over[DB_OP_GATE_DX])
            test_fail(name, "activation %d, its gradient %d, a gate's %d write over their input",
                      written_over[DB_OP_ACT], written_over[DB_OP_ACT_DX],
                      written_over[DB_OP_GATE_DX]);
        else if (plan.n_operations != m.tape->n_nodes || plan.arena_bytes != m.tape->arena_bytes ||
                 plan.arena_bytes > most + most / 4)
            test_fail(name, "%zu bytes, at most %zu of them in use at once, take an arena of %zu",
                      sum, most, plan.arena_bytes);
        else
            test_pass(name,
                      "%zu pairs of values in use at once lie apart, %zu in place; %zu bytes, at "
                      "most %zu in use, take an arena of %zu",
                      pairs - in_place, in_place, sum, most, plan.arena_bytes);
        free(first);
        model_free(&m);
        db_destroy(ctx);
    }
}

/* The operation count of a convolution and an attention, forward and backward. */
static void test_operation_count(void)
{
    db_ctx *ctx = context(1, DB_F32, NULL);
    db_param_table p;
    db__net n;
    db_tensor x, q;
    db_memory_plan plan;
    double conv = 2.0 * 2 * 5 * 6 * 3 * 3 * 4 * 7, attention = 2.0 * 2 * 30 * 30 * 7;
    size_t dim[3] = {2, 30, 7};
    memset(&p, 0, sizeof p), memset(&n, 0, sizeof n), memset(&plan, 0, sizeof plan);
    p.ctx = ctx;
    n.params = &p, n.declaring = 1;
    db_tape_create(ctx, &n.tape);
    x = input(n.tape, DB_F32, 2, 5, 6, 4);
    q = db_reshape(n.tape, db__conv_layer(&n, "conv", x, 7, 3, none), 3, dim);
    db_plan(n.tape, NULL);
    db_tape_destroy(n.tape);
    db__params_allocate(&p), db_params_require_grad(&p);
    db_tape_create(ctx, &n.tape);
    x = input(n.tape, DB_F32, 2, 5, 6, 4);
    db_require_grad(n.tape, x);
    q = db_reshape(n.tape, db__conv_layer(&n, "conv", x, 7, 3, none), 3, dim);
    q = db_attention(n.tape, q, q, q, none, none, 1, 1, 0);
    db_backward(n.tape, db_mse(n.tape, q, input(n.tape, DB_F32, 2, 30, 7, 0), none, none, NULL));
    db_plan(n.tape, &plan);
    if (plan.flops != 3 * conv + 7 * attention)
        test_fail("operation count", "%g, not %g", plan.flops, 3 * conv + 7 * attention);
    else test_pass("operation count", "%g", plan.flops);
    db_tape_destroy(n.tape);
    db__params_free(&p);
    db_destroy(ctx);
}

/* A linear layer's first rows, with 77 rows and with 154, which are computed in different ways: the
   same bits, whatever joins the sums. */
static void test_company(void)
{
    enum { FEW = 77, MANY = 154, C = 40, WIDE = 48 };
    static float value[4][MANY * WIDE], y[2][MANY * WIDE];
    db_ctx *ctx = context(1, DB_F32, NULL);
    size_t k, with, OC;
    for (k = 0; k < 4; k++) test_formula(3 + (uint32_t)k, MANY * WIDE, 1, 0, 1, value[k]);
    for (OC = 20; OC <= WIDE; OC += WIDE - 20)
        for (with = 0; with < 4; with++) { /* bias, residual, both */
            char name[80];
            for (k = 0; k < 2; k++) {
                size_t rows = k ? MANY : FEW;
                db_tape *t;
                db_tensor x, w, bias = none, residual = none, out;
                db_tape_create(ctx, &t);
                x = input(t, DB_F32, rows, C, 0, 0), w = input(t, DB_F32, OC, C, 0, 0);
                if (with & 1) bias = input(t, DB_F32, OC, 0, 0, 0);
                if (with & 2) residual = input(t, DB_F32, rows, OC, 0, 0);
                out = db_linear(t, x, w, bias, residual);
                db_keep(t, out);
                db_upload(t, x, value[0]), db_upload(t, w, value[1]);
                if (with & 1) db_upload(t, bias, value[2]);
                if (with & 2) db_upload(t, residual, value[3]);
                db_run(t, 0, 0);
                db_download(t, out, y[k]);
                db_tape_destroy(t);
            }
            snprintf(name, sizeof name, "77 rows and 154 to %zu%s%s", OC, with & 1 ? ", bias" : "",
                     with & 2 ? ", residual" : "");
            test_check(db_status(ctx) == DB_OK && !memcmp(y[0], y[1], FEW * OC * sizeof(float)),
                       name, "the same bits");
        }
    db_destroy(ctx);
}

/* ---- a context for each of the caller's threads ---------------------------------------------- */

enum { NORMED = 12 * 12 * 16 };

/* d loss / d x of a group norm of one sample, with several threads: the sample is shared by them. */
static void gradient_of_norm(float *dx)
{
    float ones[16], x[NORMED], target[NORMED];
    db_ctx *ctx = context(3, DB_F32, NULL);
    db_tape *t;
    db_tensor in, w, b, to, loss;
    size_t k;
    for (k = 0; k < 16; k++) ones[k] = 1;
    test_formula(5, NORMED, 1, 0, 1, x), test_formula(6, NORMED, 1, 0, 1, target);
    db_tape_create(ctx, &t);
    in = input(t, DB_F32, 1, 12, 12, 16), to = input(t, DB_F32, 1, 12, 12, 16);
    w = input(t, DB_F32, 16, 0, 0, 0), b = input(t, DB_F32, 16, 0, 0, 0);
    db_require_grad(t, in);
    loss = db_mse(t, db_group_norm(t, in, w, b, none, 4, 1e-5f, DB_ACT_SILU), to, none, none, NULL);
    db_backward(t, loss);
    db_keep(t, db_grad(t, in));
    db_upload(t, in, x), db_upload(t, to, target), db_upload(t, w, ones), db_upload(t, b, ones);
    db_run(t, 0, 0);
    if (db_download(t, db_grad(t, in), dx) != DB_OK) memset(dx, 0, NORMED * sizeof *dx);
    db_tape_destroy(t);
    db_destroy(ctx);
}

static void test_callers_threads(void)
{
    static float dx[4][NORMED];
    int k, alike = 1;
    gradient_of_norm(dx[3]);
    DB__OMP(omp parallel for num_threads(3) schedule(static))
    for (k = 0; k < 3; k++) gradient_of_norm(dx[k]);
    for (k = 0; k < 3; k++) alike = alike && !memcmp(dx[k], dx[3], sizeof dx[k]);
    test_check(alike && test_largest(dx[3], NORMED) > 0, "threads of the caller's",
               "a context each, the same bits");
}

/* ---- out of memory --------------------------------------------------------------------------- */

typedef struct allocator {
    long calls, fail_at, live;
} allocator;

static void *counting_allocate(void *user, size_t bytes)
{
    allocator *a = (allocator *)user;
    void *memory = a->calls++ == a->fail_at ? NULL : malloc(bytes);
    a->live += memory != NULL;
    return memory;
}

static void counting_release(void *user, void *memory)
{
    if (memory) ((allocator *)user)->live--;
    free(memory);
}

/* Two updates of the model, everything freed at the end; the first failure on the way. */
static db_result training(allocator *a, int checkpoints)
{
    db_config config = db_config_default();
    db_ctx *ctx;
    db_optimizer o;
    model m;
    db_result r;
    int k;
    config.allocate = counting_allocate, config.release = counting_release, config.user = a,
    config.threads = 1;
    r = db_create(&ctx, &config);
    if (r != DB_OK) return ctx ? DB_OK : r;
    memset(&o, 0, sizeof o);
    r = model_create(&m, ctx, checkpoints);
    if (r == DB_OK) r = db_optimizer_init(&o, &m.params, NULL);
    for (k = 0; k < 2 && r == DB_OK; k++) {
        r = db_run(m.tape, 1, 0);
        if (r == DB_OK) r = db_optimizer_step(&o, 1e-3f, 1, NULL);
    }
    if (r != db_status(ctx) || (r != DB_OK && !strstr(db_last_error(ctx), "memory")))
        r = DB_ERROR_ARGUMENT; /* says one thing, returns another */
    db_optimizer_free(&o);
    model_free(&m);
    db_destroy(ctx);
    return r;
}

static void test_out_of_memory(void)
{
    int checkpoints;
    for (checkpoints = 0; checkpoints < 2; checkpoints++) {
        const char *name = checkpoints ? "out of memory, checkpointed" : "out of memory";
        allocator a;
        long n;
        memset(&a, 0, sizeof a);
        for (n = 0; n < 10000; n++) {
            db_result r;
            a.calls = 0, a.fail_at = n;
            r = training(&a, checkpoints);
            if (a.live)
                test_fail(name, "when allocation %ld fails, %ld blocks are never freed", n, a.live);
            else if (a.calls > n && r != DB_ERROR_MEMORY)
                test_fail(name, "when allocation %ld fails, the result is \"%s\"", n,
                          db_result_name(r));
            else if (a.calls <= n && r != DB_OK)
                test_fail(name, "with all the memory it wants the result is \"%s\"",
                          db_result_name(r));
            else if (a.calls > n) continue;
            else test_pass(name, "each of %ld allocations", n);
            break;
        }
    }
}

/* ---- random numbers -------------------------------------------------------------------------- */

static void test_philox(void)
{
    static const struct { /* Random123's kat_vectors: philox4x32, 10 rounds */
        uint32_t counter[4], key[2], out[4];
    } known[] = {{{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
                 {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                  {0xffffffff, 0xffffffff},
                  {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
                 {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                  {0xa4093822, 0x299f31d0},
                  {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
    size_t k, j;
    int good = 1;
    for (k = 0; k < 3; k++) {
        uint32_t out[4];
        db_rng rng;
        uint64_t block = (uint64_t)known[k].counter[1] << 32 | known[k].counter[0];
        rng.seed = (uint64_t)known[k].key[1] << 32 | known[k].key[0],
        rng.step = known[k].counter[2], rng.purpose = known[k].counter[3];
        db__philox(rng.seed, rng.purpose, rng.step, block, out);
        good = good && !memcmp(out, known[k].out, sizeof out);
        for (j = 0; j < 4 && block < (uint64_t)1 << 62; j++)
            good = good && db_random_bits(&rng, block * 4 + j) == known[k].out[j];
    }
    test_check(good, "philox4x32-10", "Random123's published vectors");
}

static void test_distributions(void)
{
    enum { N = 200000 };
    db_rng rng = {1234567890123u, 3, 9};
    float *z = (float *)malloc(N * sizeof *z);
    double m[5] = {0, 0, 0, 0, 0}, mean = 0, square = 0, pairs = 0;
    size_t k, count[7] = {0, 0, 0, 0, 0, 0, 0};
    int inside = 1, even = 1;
    if (!z) exit(1);
    for (k = 0; k < N; k++) {
        float u = db_random_uniform(&rng, k);
        uint32_t below = db_random_below(&rng, k, 7);
        inside = inside && u >= 0 && u < 1 && below < 7;
        mean += (double)u / N, square += (double)u * (double)u / N;
        if (below < 7) count[below]++;
    }
    for (k = 0; k < 7; k++) even = even && fabs((double)count[k] - N / 7.0) < 5 * sqrt(N / 7.0);
    test_check(inside && fabs(mean - 0.5) < 0.004 && fabs(square - 1.0 / 3) < 0.004,
               "uniform numbers", "[0,1), mean 1/2, mean square 1/3");
    test_check(even, "random_below", "seven values equally often");
    db_random_normal(&rng, N, z);
    for (k = 0; k < N; k++) {
        double x = (double)z[k];
        m[1] += x / N, m[2] += x * x / N, m[3] += x * x * x / N, m[4] += x * x * x * x / N;
        if (k) pairs += x * (double)z[k - 1] / N;
    }
    /* five standard deviations of each of these means */
    if (!(fabs(m[1]) < 0.0112 && fabs(m[2] - 1) < 0.0158 && fabs(m[3]) < 0.0433 &&
          fabs(m[4] - 3) < 0.11 && fabs(pairs) < 0.0112))
        test_fail("normal numbers", "moments %g %g %g %g, neighbours %g", m[1], m[2], m[3], m[4],
                  pairs);
    else
        test_pass("normal numbers", "moments %.4f %.4f %.4f %.4f, neighbours %.4f", m[1], m[2],
                  m[3], m[4], pairs);
    free(z);
}

/* The tape's noise is the stream (seed, purpose, step), whatever the threads; another step, seed or
   purpose, other noise. */
static void test_noise(void)
{
    enum { N = 40003 };
    float *stream = (float *)malloc(2 * N * sizeof *stream), *out = stream + N;
    db_rng rng = {77, 5, 11};
    int threads, good = 1, changes = 1;
    if (!stream) exit(1);
    db_random_normal(&rng, N, stream);
    for (threads = 1; threads <= 2; threads++) {
        db_ctx *ctx = context(threads, DB_F32, NULL);
        db_tape *t;
        db_tensor x, y, z;
        db_tape_create(ctx, &t);
        x = input(t, DB_F32, 1, N, 0, 0);
        y = db_normal_like(t, x, 5), z = db_normal_like(t, x, 6);
        db_keep(t, y), db_keep(t, z);
        db_run(t, 77, 11);
        db_download(t, y, out);
        good = good && db_status(ctx) == DB_OK && !memcmp(out, stream, N * sizeof *out);
        db_download(t, z, out);
        changes = changes && memcmp(out, stream, N * sizeof *out);
        db_run(t, 77, 12), db_download(t, y, out);
        changes = changes && memcmp(out, stream, N * sizeof *out);
        db_run(t, (uint64_t)77 << 32, 11), db_download(t, y, out);
        changes = changes && memcmp(out, stream, N * sizeof *out);
        db_run(t, 77, 11), db_download(t, y, out);
        good = good && !memcmp(out, stream, N * sizeof *out);
        db_tape_destroy(t);
        db_destroy(ctx);
    }
    test_check(good, "noise of a tape",
               "the stream (seed, purpose, step), with one and two threads");
    test_check(changes, "noise changes", "other numbers for another purpose, step or seed");
    free(stream);
}

/* ---- optimiser ------------------------------------------------------------------------------- */

enum { ADAMW_STEPS = 8 };
static const size_t adamw_dim[3][4] = {{5, 7, 0, 0}, {33, 0, 0, 0}, {4, 2, 3, 3}};
static const int adamw_dims[3] = {2, 1, 4};

/* make_ops.py's eight updates; the fourth parameter is frozen. Returns why it is wrong, or NULL. */
static const char *adamw_run(db_ctx *ctx, const db_safetensors *golden, double *worst,
                             float bits[400])
{
    db_param_table p;
    db_optimizer o, refused;
    db_optimizer_config config = db_optimizer_config_default();
    size_t n_norms, n_lr, n, k, used = 0, eight = 8;
    float *norms = test_golden_values(golden, "adamw/norms", &n_norms),
          *lr = test_golden_values(golden, "adamw/lr", &n_lr);
    float *ema, row[80], norm = 0;
    const char *why = NULL;
    int step;
    char name[40];
    memset(&p, 0, sizeof p);
    p.ctx = ctx;
    for (k = 0; k < 3; k++)
        snprintf(name, sizeof name, "p%d", (int)k),
            db__params_declare(&p, name, adamw_dims[k], adamw_dim[k]);
    db__params_declare(&p, "frozen", 1, &eight)->frozen = 1;
    db__params_allocate(&p);
    config.beta2 = 0.99f, config.weight_decay = 0.05f, config.eps = 1e-3f;
    if (!norms || !lr || n_norms != ADAMW_STEPS || db_optimizer_init(&o, &p, &config) != DB_OK)
        return "no golden values, or no optimiser";
    for (k = 0; k < 3; k++) {
        test_formula((uint32_t)(9000 + k), p.item[k].count, 1, 0, 0, row);
        db_param_set(&p.item[k], p.item[k].data, row);
    }
    for (k = 0; k < 8; k++)
        p.item[3].data[k] = 2, p.item[3].grad[k] = 1000; /* neither moves nor counts */
    ema = (float *)calloc(p.count, sizeof *ema);
    memcpy(ema, p.data, p.count * sizeof *ema);
    for (step = 0; step < ADAMW_STEPS && !why; step++) {
        for (k = 0; k < 3; k++) {
            test_formula((uint32_t)(9100 + 10 * step + (int)k), p.item[k].count,
                         step < 4 ? 1 : 1.0 / 128, 0, 0, row);
            db_param_set(&p.item[k], p.item[k].grad, row);
        }
        if (db_optimizer_step(&o, lr[step], 0.25f, &norm) != DB_OK) why = db_last_error(ctx);
        if (!(fabs((double)norm / (double)norms[step] - 1) < 1e-5)) why = "a norm";
        db_ema_update(&p, ema, 0.875f);
    }
    if (o.step != ADAMW_STEPS) why = "the count of steps";
    *worst = 0;
    for (k = 0; k < 6; k++) {
        float *want;
        double err;
        snprintf(name, sizeof name, "adamw/%s%d", k < 3 ? "p" : "ema", (int)(k % 3));
        want = test_golden_values(golden, name, &n);
        db_param_get(&p.item[k % 3],
                     k < 3 ? p.item[k % 3].data : ema + (p.item[k % 3].data - p.data), row);
        err = want && n == p.item[k % 3].count ? test_error(row, want, n, 0, NULL) : HUGE_VAL;
        *worst = DB__MAX(*worst, err);
        if (!(err < 1e-6) && !why) why = k < 3 ? "a parameter" : "an average";
        memcpy(bits + used, row, p.item[k % 3].count * sizeof *row), used += p.item[k % 3].count;
        free(want);
    }
    for (k = 0; k < 8; k++)
        if (p.item[3].data[k] != 2) why = "a frozen parameter";
    /* a gradient that is not a number changes nothing */
    p.item[1].grad[3] = (float)NAN;
    memcpy(row, p.item[1].data, 33 * sizeof *row);
    if (db_optimizer_step(&o, 0.1f, 1, &norm) != DB_ERROR_NUMERIC || o.step != ADAMW_STEPS ||
        memcmp(row, p.item[1].data, 33 * sizeof *row))
        why = "an update with a gradient that is not a number";
    db_clear_error(ctx);
    if (db_optimizer_step(&o, (float)NAN, 1, NULL) != DB_ERROR_ARGUMENT) why = "a rate of NaN";
    db_clear_error(ctx);
    config.beta2 = 1;
    if (db_optimizer_init(&refused, &p, &config) != DB_ERROR_ARGUMENT) why = "a beta of 1";
    db_optimizer_free(&refused);
    db_clear_error(ctx);
    db_zero_grad(&p);
    if (test_largest(p.grad, p.count) != 0) why = "zero_grad";
    free(ema), free(norms), free(lr);
    db_optimizer_free(&o);
    db__params_free(&p);
    if (ctx->live_bytes) why = "freeing";
    return why;
}

static void test_optimizer(const db_safetensors *golden)
{
    size_t k;
    float first[400], second[400];
    memset(first, 0, sizeof first), memset(second, 0, sizeof second);
    for (k = 0; db_isa_name(k); k++) {
        char name[60];
        db_ctx *one = context(1, DB_F32, db_isa_name(k)), *two = context(2, DB_F32, db_isa_name(k));
        double worst;
        const char *why = adamw_run(one, golden, &worst, first),
                   *again = adamw_run(two, golden, &worst, second);
        snprintf(name, sizeof name, "adamw %.40s", db_isa_name(k));
        if (!why) why = again;
        if (!why && memcmp(first, second, sizeof first)) why = "other bits with two threads";
        if (why) test_fail(name, "%s (err %.1e)", why, worst);
        else
            test_pass(name, "err %.1e (3 parameters and averages, %d updates)", worst, ADAMW_STEPS);
        db_destroy(one), db_destroy(two);
    }
}

static void test_schedules(db_ctx *ctx, const db_safetensors *golden)
{
    static const char *const names[] = {"constant", "constant_with_warmup", "linear",
                                        "cosine",   "cosine_with_restarts", "polynomial"};
    const char *text = db_safetensors_metadata(golden, "schedules");
    const db_json *list = text ? db_json_parse(ctx, "schedules", text, strlen(text)) : NULL,
                  *s = list ? list->first : NULL;
    size_t k, n, i;
    for (k = 0; s; s = s->next, k++) {
        char name[80], key[20];
        const char *kind = db_json_at(s, 0)->string;
        uint64_t warmup = (uint64_t)db_json_at(s, 1)->integer,
                 total = (uint64_t)db_json_at(s, 2)->integer;
        double cycles = db_json_at(s, 3)->number, power = db_json_at(s, 4)->number,
               lr = db_json_at(s, 5)->number, worst = 0;
        float *want;
        int id = 0;
        while (strcmp(names[id], kind)) id++;
        snprintf(name, sizeof name, "learning rate %s, warmup %d of %d", kind, (int)warmup,
                 (int)total);
        snprintf(key, sizeof key, "lr/%d", (int)k);
        want = test_golden_values(golden, key, &n);
        for (i = 0; i < n; i++) {
            double factor = db_lr_factor((db_lr_schedule)id, lr, i, warmup, total, cycles, power);
            worst = test_worse(worst, fabs(factor - (double)want[i]));
        }
        if (n && worst < 1e-6) test_pass(name, "err %.1e", worst);
        else test_fail(name, "err %.1e over %zu updates", worst, n);
        free(want);
    }
    test_check(k == 11, "learning rates", "eleven schedules");
    db_json_free(list);
}

/* ---- errors ---------------------------------------------------------------------------------- */

/* Whether the last operation failed so, and the message holds both words. */
static void expect(db_ctx *ctx, const char *name, db_result code, const char *word,
                   const char *other)
{
    const char *text = db_last_error(ctx);
    if (db_status(ctx) != code || !strstr(text, word) || !strstr(text, other))
        test_fail(name, "\"%s\": %s, instead of \"%s\" with '%s' and '%s'",
                  db_result_name(db_status(ctx)), text, db_result_name(code), word, other);
    else test_pass(name, "%s", text);
    db_clear_error(ctx);
}

static void test_errors(void)
{
    db_ctx *ctx = context(1, DB_F32, NULL), *other = ctx;
    db_config config = db_config_default();
    db_backend lame = *db_backend_cpu();
    db_tape *t;
    db_tensor x, y, w, z;
    float numbers[2 * 5 * 6 * 4] = {0};
    size_t huge[4], k;
    const char *name;
    for (k = 0; k < 4; k++) huge[k] = (size_t)-1 / 3;
    db_fail(ctx, DB_ERROR_FILE, "first");
    test_check(db_fail(ctx, DB_ERROR_SHAPE, "second") == DB_ERROR_FILE, "a second failure",
               "returns the first one's code");
    expect(ctx, "the first failure", DB_ERROR_FILE, "first", "");
    db_tape_create(ctx, &t);
    x = input(t, DB_F32, 2, 5, 6, 4), w = input(t, DB_F32, 7, 3, 3, 3),
    y = input(t, DB_F32, 2, 9, 0, 0);
    db_conv2d(t, x, w, none, none, 1, 1, 1),
        expect(ctx, "error of conv2d", DB_ERROR_SHAPE, "[2, 5, 6, 4]", "[7, 3, 3, 3]");
    db_linear(t, x, y, none, none), expect(ctx, "error of linear", DB_ERROR_SHAPE, "4]", "[2, 9]");
    db_group_norm(t, x, y, y, none, 2, 1e-5f, DB_ACT_NONE);
    expect(ctx, "error of group_norm", DB_ERROR_SHAPE, "group_norm", "[2, 9]");
    db_layer_norm(t, x, y, none, 1e-5f),
        expect(ctx, "error of layer_norm", DB_ERROR_SHAPE, "layer_norm", "[2, 9]");
    db_multiply(t, x, y),
        expect(ctx, "error of multiply", DB_ERROR_SHAPE, "[2, 5, 6, 4]", "[2, 9]");
    db_weighted_sum(t, 1, x, 1, y),
        expect(ctx, "error of weighted_sum", DB_ERROR_SHAPE, "[2, 5, 6, 4]", "[2, 9]");
    db_concat(t, x, w, 0),
        expect(ctx, "error of concat", DB_ERROR_SHAPE, "[2, 5, 6, 4]", "[7, 3, 3, 3]");
    db_concat(t, x, x, 4),
        expect(ctx, "error of an axis", DB_ERROR_SHAPE, "no such axis", "[2, 5, 6, 4]");
    db_slice(t, y, 5, 5), expect(ctx, "error of slice", DB_ERROR_SHAPE, "slice", "[2, 9]");
    db_slice(t, y, (size_t)-1, 1),
        expect(ctx, "error of a slice that wraps around", DB_ERROR_SHAPE, "slice", "[2, 9]");
    db_mean_tokens(t, x),
        expect(ctx, "error of mean_tokens", DB_ERROR_SHAPE, "mean_tokens", "[2, 5, 6, 4]");
    db_attention(t, y, y, y, none, none, 2, 1, 0),
        expect(ctx, "error of attention", DB_ERROR_SHAPE, "attention", "[2, 9]");
    db_embedding(t, x, y), expect(ctx, "error of embedding", DB_ERROR_SHAPE, "embedding", "[2, 9]");
    db_mse(t, x, y, none, none, NULL),
        expect(ctx, "error of mse", DB_ERROR_SHAPE, "[2, 5, 6, 4]", "[2, 9]");
    db_avg_pool2(t, x),
        expect(ctx, "error of avg_pool2, odd size", DB_ERROR_SHAPE, "pool", "[2, 5, 6, 4]");
    db_linear(t, x, input(t, DB_F32, 8, 4, 0, 0), input(t, DB_F32, 7, 0, 0, 0), none),
        expect(ctx, "error of a bias", DB_ERROR_SHAPE, "[8, 4]", "[7]");
    db_group_norm(t, x, input(t, DB_F32, 4, 0, 0, 0), y, none, 2, 1e-5f, DB_ACT_NONE),
        expect(ctx, "error of group_norm's bias", DB_ERROR_SHAPE, "bias", "[2, 9]");
    db_layer_norm(t, x, input(t, DB_F32, 4, 0, 0, 0), y, 1e-5f),
        expect(ctx, "error of layer_norm's bias", DB_ERROR_SHAPE, "bias", "[2, 9]");
    db_mse(t, x, x, y, none, NULL),
        expect(ctx, "error of mse's weights", DB_ERROR_SHAPE, "weights [B]", "[2, 9]");
    db_conv2d(t, x, input(t, DB_F32, 7, 4, 1, 1), none, none, 1, 2, 1),
        expect(ctx, "error of a padding", DB_ERROR_SHAPE, "padding of 2", "kernel of 1");
    db_conv2d(t, x, input(t, DB_F32, 7, 4, 3, 3), none, none, 0, 1, 1),
        expect(ctx, "error of a stride", DB_ERROR_SHAPE, "stride of 0", "conv2d");
    db_max_pool(t, x, 2, 0),
        expect(ctx, "error of max_pool's stride", DB_ERROR_SHAPE, "max_pool", "stride, 0");
    db_max_pool(t, x, 0, 1),
        expect(ctx, "error of max_pool's window", DB_ERROR_SHAPE, "max_pool", "0 x 0");
    z = input(t, DB_F32, 9, 0, 0, 0);
    db_mse(t, z, z, none, none, &w),
        expect(ctx, "error of mse without a batch", DB_ERROR_SHAPE, "mean squared", "[9]");
    test_check(w.id < 0, "error of mse, *each", "db_none");
    db_add_each(t, z, input(t, DB_F32, 9, 9, 0, 0)),
        expect(ctx, "error of add_each", DB_ERROR_SHAPE, "add_each", "[9, 9]");
    w = input(t, DB_F32, 7, 3, 3, 3);
    db_sinusoid(t, input(t, DB_F32, 2, 0, 0, 0), 1, 1, 0),
        expect(ctx, "error of sinusoid", DB_ERROR_SHAPE, "sinusoid", "1");
    db_reshape(t, x, 5, huge), expect(ctx, "error of reshape", DB_ERROR_SHAPE, "1 to 4", "not 5");
    db_input(t, DB_F32, 0, huge),
        expect(ctx, "error of no dimension", DB_ERROR_SHAPE, "1 to 4", "not 0");
    db_cast(t, x, DB_F16), expect(ctx, "error of cast", DB_ERROR_ARGUMENT, "BF16", "F16");
    db_cast(t, input(t, DB_I32, 2, 0, 0, 0), DB_BF16),
        expect(ctx, "error of a cast of ids", DB_ERROR_ARGUMENT, "copy: an argument is I32", "F32");
    db_constant(t, DB_I32, 1, 2, y.dim),
        expect(ctx, "error of constant", DB_ERROR_ARGUMENT, "BF16", "I32");
    db_embedding(t, y, y), expect(ctx, "error of ids", DB_ERROR_ARGUMENT, "argument is F32", "I32");
    db_weighted_sum(t, 1, input(t, DB_U8, 2, 0, 0, 0), 0, none),
        expect(ctx, "error of bytes in a sum", DB_ERROR_ARGUMENT, "F32 or BF16", "U8");
    db_cross_entropy(t, y, input(t, DB_BF16, 2, 0, 0, 0)),
        expect(ctx, "error of targets", DB_ERROR_ARGUMENT, "cross_entropy: an argument is BF16",
               "F32");
    db_linear(t, none, y, none, none),
        expect(ctx, "error of no input", DB_ERROR_ARGUMENT, "operand", "none");
    db_multiply(t, input(t, DB_F32, 1, 0, 0, 0), none),
        expect(ctx, "error of one factor", DB_ERROR_ARGUMENT, "operand", "none");
    db_cast(t, none, DB_F32),
        expect(ctx, "error of a cast of none", DB_ERROR_ARGUMENT, "operand", "none");
    db_backward(t, none), expect(ctx, "error of no loss", DB_ERROR_ARGUMENT, "operand", "none");
    t->compute = DB_BF16;
    db_weighted_sum(t, 1, input(t, DB_BF16, 2, 9, 0, 0), 1, db_normal_like(t, y, 7)),
        expect(ctx, "error of mixed summands", DB_ERROR_ARGUMENT, "axpby: an argument is F32",
               "BF16");
    db_mix(t, y, input(t, DB_BF16, 18, 1, 0, 0), y, input(t, DB_F32, 18, 1, 0, 0)),
        expect(ctx, "error of mix", DB_ERROR_ARGUMENT, "mix: an argument is BF16", "F32");
    db_conv2d(t, x, input(t, DB_F32, 7, 4, 3, 3), none, none, 1, 1, 1),
        expect(ctx, "error of mixed types", DB_ERROR_ARGUMENT, "conv2d: an argument is F32", "BF16");
    t->compute = DB_F32;
    db_input(t, DB_F32, 4, huge),
        expect(ctx, "error of sizes that overflow", DB_ERROR_SHAPE, "too large", "[");
    db_conv2d(t, x, w, none, none, 1, 1, 1);
    test_check(db_multiply(t, x, x).id < 0 && db_run(t, 0, 0) == DB_ERROR_SHAPE &&
                   db_backward(t, x) == DB_ERROR_SHAPE,
               "an error sticks", "operations do nothing after one");
    {
        db_tape *second;
        db_schedule s;
        test_check(db_tape_create(ctx, &second) == DB_ERROR_SHAPE && !second &&
                       db_schedule_init(ctx, "linear", .1, .2, 9, &s) == DB_ERROR_SHAPE &&
                       !s.alphas_cumprod,
                   "an error sticks", "nothing new is made after one");
    }
    db_clear_error(ctx);
    z = db_multiply(t, x, x);
    db_plan(t, NULL);
    db_download(t, z, numbers),
        expect(ctx, "error of a value not kept", DB_ERROR_ARGUMENT, "db_download", "db_keep");
    db_upload(t, z, numbers),
        expect(ctx, "error of an upload to no input", DB_ERROR_ARGUMENT, "db_upload", "kept");
    db_download(t, db_grad(t, x), numbers),
        expect(ctx, "error of no gradient", DB_ERROR_ARGUMENT, "db_download", "there is not");
    db_multiply(t, x, x),
        expect(ctx, "error of recording after the plan", DB_ERROR_ARGUMENT, "planned", "added");
    test_check(input(t, DB_F32, 2, 9, 0, 0).id < 0, "an input after the plan", "is none");
    expect(ctx, "error of an input after the plan", DB_ERROR_ARGUMENT, "planned", "added");
    db_keep(t, z),
        expect(ctx, "error of keeping after the plan", DB_ERROR_ARGUMENT, "planned", "added");
    db_tape_destroy(t);
    db_tape_create(ctx, &t);
    x = input(t, DB_F32, 2, 9, 0, 0), db_require_grad(t, x);
    y = db_mse(t, x, input(t, DB_F32, 2, 9, 0, 0), none, none, NULL);
    db_backward(t, y), db_backward(t, y);
    expect(ctx, "error of two gradients", DB_ERROR_ARGUMENT, "one db_backward", "losses");
    db_tape_destroy(t);
    db_tape_create(ctx, &t);
    huge[0] = SIZE_MAX / 8, z = db_constant(t, DB_F32, 1, 1, huge);
    for (k = 0; k < 3; k++) db_keep(t, db_multiply(t, z, z));
    db_run(t, 0, 0), expect(ctx, "error of a sum that overflows", DB_ERROR_MEMORY, "activations",
                            "smaller batch");
    db_tape_destroy(t);
    test_check(ctx->live_bytes == 0, "errors free all", "no memory left in use");
    db_destroy(ctx);

    config.isa = "mmx";
    test_check(db_create(&other, &config) == DB_ERROR_UNSUPPORTED && !other,
               "an unknown instruction set", "refused, without a context");
    config = db_config_default();
    config.release = NULL;
    test_check(db_create(&other, &config) == DB_ERROR_ARGUMENT && !other,
               "allocate without release", "refused, without a context");
    config = db_config_default();
    config.compute = DB_F16;
    test_check(db_create(&other, &config) == DB_ERROR_ARGUMENT && !other,
               "activations in f16", "refused, without a context");
    config = db_config_default();
    lame.run[DB_OP_MUL] = NULL, lame.name = "lame";
    config.backend = &lame;
    if (db_create(&ctx, &config) != DB_OK) exit(1);
    db_tape_create(ctx, &t);
    x = input(t, DB_F32, 2, 2, 0, 0);
    db_multiply(t, x, x), db_run(t, 0, 0),
        expect(ctx, "an operation that a backend lacks", DB_ERROR_UNSUPPORTED, "lame", "mul");
    db_tape_destroy(t);
    db_destroy(ctx);
    for (k = 0; (name = db_isa_name(k)) != NULL; k++) {
        char text[60];
        snprintf(text, sizeof text, "instruction set %.40s", name);
        ctx = context(1, DB_F32, name);
        test_check(!strcmp(db_isa(ctx), name), text, "what was asked for");
        db_destroy(ctx);
        setenv("DB_ISA", name, 1);
        ctx = context(1, DB_F32, NULL);
        snprintf(text, sizeof text, "DB_ISA=%.40s", name);
        test_check(!strcmp(db_isa(ctx), name), text, "what was asked for");
        db_destroy(ctx);
        unsetenv("DB_ISA");
    }
    for (k = 0; k < 6; k++) {
        static const char *const all[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx", "neon"};
        size_t j;
        for (j = 0; db_isa_name(j) && strcmp(db_isa_name(j), all[k]); j++) {}
        if (!db_isa_name(j)) printf("   not run here: %s\n", all[k]);
    }
}

/* What is no number stays none, on every instruction set, and in bf16 too. */
static void test_not_numbers(void)
{
    static const uint32_t nan[4] = {0x7FC00000u, 0x7FFFFFFFu, 0xFFFFFFFFu, 0x7F800001u};
    static const db_activation acts[] = {DB_ACT_SILU, DB_ACT_GELU, DB_ACT_GELU_TANH,
                                         DB_ACT_QUICK_GELU, DB_ACT_RELU};
    enum { N = 4 * 8 + 4, ACTS = sizeof acts / sizeof *acts };
    const char *name;
    size_t isa, k, i, one = 1;
    for (isa = 0; (name = db_isa_name(isa)) != NULL; isa++) {
        float x[N], out[N], v[N];
        char label[60];
        size_t kept = 0, dim[3];
        db_ctx *ctx = context(1, DB_F32, name);
        db_tape *t;
        db_tensor in, values, y[ACTS + 2];
        dim[0] = 1, dim[1] = N / 4, dim[2] = 4;
        for (k = 0; k < N; k++) memcpy(&x[k], &nan[k % 4], 4), v[k] = (float)k;
        db_tape_create(ctx, &t);
        in = db_input(t, DB_F32, 3, dim), values = db_input(t, DB_F32, 3, dim);
        for (k = 0; k < ACTS; k++) y[k] = db_activate(t, in, acts[k]);
        y[ACTS] = db_cast(t, in, DB_BF16);
        y[ACTS + 1] = db_attention(t, in, values, values, none, none, one, 1, 0);
        for (k = 0; k < ACTS + 2; k++) db_keep(t, y[k]);
        db_upload(t, in, x), db_upload(t, values, v), db_run(t, 0, 0);
        for (k = 0; k < ACTS + 2; k++)
            for (db_download(t, y[k], out), i = 0; i < N; i++) kept += out[i] != out[i];
        snprintf(label, sizeof label, "no numbers, %s", name);
        if (kept == (ACTS + 2) * N) test_pass(label, "stay none");
        else
            test_fail(label, "%zu of %d stay none; %s", kept, (ACTS + 2) * N, db_last_error(ctx));
        db_tape_destroy(t);
        db_destroy(ctx);
    }
}

/* A group norm whose first pixel is far from all others. */
static void test_outlier(void)
{
    enum { S = 128, C = 8 };
    float *x = (float *)malloc(S * S * C * sizeof *x), one[C], nought[C] = {0};
    db_ctx *ctx = context(1, DB_F32, NULL);
    db_tape *t;
    db_tensor in, w, b, y;
    double mean = 0, square = 0, worst = 0;
    size_t k;
    for (k = 0; k < C; k++) one[k] = 1;
    for (k = 0; k < S * S * C; k++) {
        x[k] = k < C ? 900.6f : 17.792f + .01f * (float)(k * 7919 % 101);
        mean += (double)x[k] / (S * S * C);
    }
    for (k = 0; k < S * S * C; k++) square += pow((double)x[k] - mean, 2) / (S * S * C);
    db_tape_create(ctx, &t);
    in = input(t, DB_F32, 1, S, S, C), w = input(t, DB_F32, C, 0, 0, 0);
    b = input(t, DB_F32, C, 0, 0, 0);
    y = db_group_norm(t, in, w, b, none, 1, 1e-5f, DB_ACT_NONE), db_keep(t, y);
    db_upload(t, in, x), db_upload(t, w, one), db_upload(t, b, nought), db_run(t, 0, 0);
    for (k = 0; k < C; k++) nought[k] = x[S * S * C - 1 - k];
    db_download(t, y, x);
    for (k = 0; k < C; k++) {
        double wanted = ((double)nought[k] - mean) / sqrt(square + 1e-5);
        worst = test_worse(worst, fabs((double)x[S * S * C - 1 - k] - wanted));
    }
    test_check(db_status(ctx) == DB_OK && worst < 1e-5, "a group norm with an outlier", "exact");
    db_tape_destroy(t);
    db_destroy(ctx);
    free(x);
}

/* Ids beyond the table are its last row, targets beyond the classes the last of them. */
static void test_ids(void)
{
    static const int32_t ids[4] = {1, 7, -2, 2}, beyond[2] = {2, 9}, last[2] = {2, 2};
    float table[3 * 2], out[4 * 2], logits[2 * 3], loss[2];
    db_ctx *ctx = context(1, DB_F32, NULL);
    db_tape *t;
    db_tensor i, w, y, l, target, value;
    size_t k, dim[2] = {1, 4}, n = 2;
    for (k = 0; k < 6; k++) table[k] = (float)k, logits[k] = (float)(k * k % 5);
    db_tape_create(ctx, &t);
    i = db_input(t, DB_I32, 2, dim), w = input(t, DB_F32, 3, 2, 0, 0), y = db_embedding(t, i, w);
    l = input(t, DB_F32, 2, 3, 0, 0), target = db_input(t, DB_I32, 1, &n);
    value = db_cross_entropy(t, l, target);
    db_keep(t, y);
    db_upload(t, i, ids), db_upload(t, w, table), db_upload(t, l, logits);
    for (k = 0; k < 2; k++) {
        db_upload(t, target, k ? last : beyond);
        db_run(t, 0, 0);
        db_download(t, value, &loss[k]);
    }
    db_download(t, y, out);
    test_check(db_status(ctx) == DB_OK && out[0] == 2 && out[2] == 4 && out[4] == 4 && out[7] == 5,
               "ids beyond the table", "its last row");
    test_check(loss[0] == loss[1], "targets beyond the classes", "the last of them");
    db_tape_destroy(t);
    db_destroy(ctx);
}

int main(int argc, char **argv)
{
    db_ctx *ctx;
    db_safetensors *golden;
    let_threads_sleep(argv);
    ctx = context(1, DB_F32, NULL);
    golden = test_golden(ctx, argc > 1 ? argv[1] : "tests/golden/ops.safetensors");
    test_checkpointing();
    test_memory_plan();
    test_operation_count();
    test_company();
    test_callers_threads();
    test_out_of_memory();
    test_philox();
    test_distributions();
    test_noise();
    test_optimizer(golden);
    test_schedules(ctx, golden);
    test_errors();
    test_ids();
    test_not_numbers();
    test_outlier();
    db_safetensors_close(golden);
    db_destroy(ctx);
    return test_summary();
}
