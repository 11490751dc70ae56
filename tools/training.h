/* training.h - what the tools that train networks share: flags, the state of a training, its
   learning rate.

   Include after the implementation of dreambooth.h. A training keeps parameters, their average,
   both moments and the step in --state FILE and goes on from it; it stops after the step in hand on
   SIGTERM or SIGINT. */
#ifndef TRAINING_H
#define TRAINING_H

#include <signal.h>
#include <time.h>

#include "device.h"

enum { FOR_INIT = 1000 }; /* the first purpose of a tool's random streams: initial weights */

typedef struct options {
    const char *dir, *text, *pool, *state, *sheets, *init, *device;
    long steps, batch, size, scale, warmup, decay, save_every, sheet_every, threads, seed;
    double lr, ema, aux;
    int bf16;
} options;

static volatile sig_atomic_t stop_asked;
static void on_signal(int s) { (void)s, stop_asked = 1; }

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int fail(const char *what, const char *detail)
{
    fprintf(stderr, "%s%s\n", what, detail ? detail : "");
    return 1;
}

/* Reads `--flag value` pairs from argv[2] on; 0 after a message. */
static int read_flags(options *o, int argc, char **argv)
{
    int k;
    if (argc % 2) return fail("a value is missing after ", argv[argc - 1]), 0;
    for (k = 2; k < argc; k += 2) {
        const struct { const char *name; long *n; double *d; const char **s;
        } flags[] = {{"--dir", NULL, NULL, &o->dir},
                     {"--text", NULL, NULL, &o->text},
                     {"--pool", NULL, NULL, &o->pool},
                     {"--state", NULL, NULL, &o->state},
                     {"--sheets", NULL, NULL, &o->sheets},
                     {"--init", NULL, NULL, &o->init},
                     {"--device", NULL, NULL, &o->device},
                     {"--steps", &o->steps, NULL, NULL},
                     {"--batch", &o->batch, NULL, NULL},
                     {"--size", &o->size, NULL, NULL},
                     {"--scale", &o->scale, NULL, NULL},
                     {"--warmup", &o->warmup, NULL, NULL},
                     {"--decay", &o->decay, NULL, NULL},
                     {"--save_every", &o->save_every, NULL, NULL},
                     {"--sheet_every", &o->sheet_every, NULL, NULL},
                     {"--threads", &o->threads, NULL, NULL},
                     {"--seed", &o->seed, NULL, NULL},
                     {"--lr", NULL, &o->lr, NULL},
                     {"--ema", NULL, &o->ema, NULL},
                     {"--aux", NULL, &o->aux, NULL}};
        size_t f, n = sizeof flags / sizeof *flags;
        char *end = argv[k + 1];
        for (f = 0; f < n && strcmp(flags[f].name, argv[k]); f++) {}
        if (!strcmp(argv[k], "--precision")) {
            o->bf16 = !strcmp(end, "bf16");
            if (!o->bf16 && strcmp(end, "f32")) return fail("--precision takes bf16, f32", NULL), 0;
            continue;
        }
        if (f == n) return fail("unknown flag ", argv[k]), 0;
        if (flags[f].s) *flags[f].s = end;
        else if (flags[f].n) *flags[f].n = strtol(end, &end, 10);
        else *flags[f].d = strtod(end, &end);
        if (!flags[f].s && (*end || end == argv[k + 1]))
            return fail("no number after ", argv[k]), 0;
    }
    if (o->save_every < 1 || (o->sheets && o->sheet_every < 1))
        return fail("--save_every and --sheet_every must be positive", NULL), 0;
    if (!o->dir) return fail("--dir is needed", NULL), 0;
    if (!o->text) o->text = o->dir;
    signal(SIGTERM, on_signal), signal(SIGINT, on_signal);
    return 1;
}

/* The exit status after a training's weights are saved: one that was stopped is not done. */
static int stopped(void)
{
    return stop_asked ? fail("stopped: the same command goes on", NULL) : 0;
}

/* ---- state: parameters, their average, both moments, the step -------------------------------- */

typedef struct trainer {
    db_param_table *params;
    db_optimizer opt;
    float *ema;
    uint64_t step, seen;
    double seconds;
} trainer;

static db_result save_state(const trainer *t, const char *path)
{
    db_ctx *ctx = t->params->ctx;
    db_safetensors_writer *w = db_safetensors_create(ctx, path);
    char text[64];
    size_t n = t->params->count;
    snprintf(text, sizeof text, "%llu %llu %.1f", (unsigned long long)t->step,
             (unsigned long long)t->seen, t->seconds);
    db_safetensors_add_metadata(w, "progress", text);
    db_safetensors_declare(w, "params", DB_F32, 1, &n);
    db_safetensors_declare(w, "ema", DB_F32, 1, &n);
    db_safetensors_declare(w, "m", DB_F32, 1, &n);
    db_safetensors_declare(w, "v", DB_F32, 1, &n);
    db_safetensors_write_f32(w, "params", t->params->data);
    db_safetensors_write_f32(w, "ema", t->ema);
    db_safetensors_write_f32(w, "m", t->opt.m);
    db_safetensors_write_f32(w, "v", t->opt.v);
    return db_safetensors_finish(w);
}

static db_result load_state(trainer *t, const char *path)
{
    db_ctx *ctx = t->params->ctx;
    db_safetensors *st = NULL;
    static const char *const names[] = {"params", "ema", "m", "v"};
    float *to[4];
    int k;
    unsigned long long step = 0, seen = 0;
    if (db_safetensors_open(ctx, path, &st) != DB_OK) return db_status(ctx);
    to[0] = t->params->data, to[1] = t->ema, to[2] = t->opt.m, to[3] = t->opt.v;
    for (k = 0; k < 4; k++) {
        const db_file_tensor *f = db_safetensors_find(st, names[k]);
        if (!f || f->count != t->params->count) {
            db_safetensors_close(st);
            return db__fail(ctx, DB_ERROR_SHAPE, "%s is the state of another network", path);
        }
        db_file_tensor_to_f32(f, to[k]);
    }
    if (db_safetensors_metadata(st, "progress"))
        sscanf(db_safetensors_metadata(st, "progress"), "%llu %llu %lf", &step, &seen, &t->seconds);
    t->step = t->opt.step = step, t->seen = seen;
    db_safetensors_close(st);
    return DB_OK;
}

/* Uniform with variance gain / fan_in; norms 1 and 0; what closes a residual branch starts at 0. */
static void initialise(db_param_table *p, uint64_t seed)
{
    size_t k, i;
    for (k = 0; k < p->n; k++) {
        db_param *item = &p->item[k];
        const char *name = item->name;
        size_t fan = item->n_dims > 1 ? item->count / item->dim[0] : 1;
        float scale = sqrtf(1.0f / (float)fan);
        db_rng rng;
        rng.seed = seed, rng.purpose = FOR_INIT, rng.step = (uint32_t)k;
        if (item->n_dims == 1) {
            for (i = 0; i < item->count; i++)
                item->data[i] = strstr(name, "norm") && strstr(name, "weight") ? 1.0f : 0.0f;
            continue;
        }
        if (strstr(name, "conv2.weight") || strstr(name, "conv_out.weight") ||
            strstr(name, "to_out") || strstr(name, "aux"))
            scale = 0;
        if (strstr(name, "shared.weight")) scale = 1;
        if (strstr(name, "SelfAttention.q"))
            scale = 1.0f / sqrtf((float)fan * 32.0f); /* T5: d_kv in q */
        db_random_normal(&rng, item->count, item->data);
        for (i = 0; i < item->count; i++) item->data[i] *= scale;
    }
}

/* Warm-up, constant, and a linear decay to nothing over the last `decay` of `steps`. */
static float learning_rate(const options *o, uint64_t step)
{
    double warm = DB__MIN(1.0, (double)(step + 1) / (double)(o->warmup + 1));
    double left =
        o->decay ? DB__MIN(1.0, (double)((uint64_t)o->steps - step) / (double)o->decay) : 1;
    return (float)(o->lr * warm * left);
}

static db_dtype config_dtype(const options *o) { return o->bf16 ? DB_BF16 : DB_F32; }

static float ema_decay(const options *o, uint64_t step)
{
    return (float)DB__MIN(o->ema, (double)(step + 1) / (double)(step + 10));
}

/* Weights of a finished training; what the file lacks (the auxiliary head) keeps its start. */
static db_result load_weights(db_param_table *params, const char *path)
{
    db_safetensors *st = NULL;
    float *row = (float *)malloc(params->count * sizeof *row);
    size_t k;
    if (row && db_safetensors_open(params->ctx, path, &st) == DB_OK) {
        for (k = 0; k < params->n; k++) {
            const db_file_tensor *f = db_safetensors_find(st, params->item[k].name);
            if (!f) continue;
            if (f->count != params->item[k].count) {
                db__fail(params->ctx, DB_ERROR_SHAPE, "%s: %s has another size", path, f->name);
                break;
            }
            db_file_tensor_to_f32(f, row);
            db_param_set(&params->item[k], params->item[k].data, row);
        }
        db_safetensors_close(st);
    }
    free(row);
    return db_status(params->ctx);
}

static db_result init_trainer(trainer *t, db_param_table *params, const options *o, int state_there)
{
    db_optimizer_config c = db_optimizer_config_default();
    c.beta2 = 0.99f;
    t->params = params;
    db_optimizer_init(&t->opt, params, &c);
    if (db_status(params->ctx) != DB_OK) return db_status(params->ctx);
    initialise(params, (uint64_t)o->seed);
    if (o->init && !state_there && load_weights(params, o->init) != DB_OK)
        return db_status(params->ctx);
    if (!(t->ema = db_ema_create(params))) return db_status(params->ctx);
    return state_there ? load_state(t, o->state) : DB_OK;
}

/* The context of a training; NULL after a message. */
static db_ctx *open_context(const options *o)
{
    db_config config = db_config_default();
    db_ctx *ctx = NULL;
    config.threads = (int)o->threads;
    config.compute = config_dtype(o);
    if (!choose_device(o->device ? o->device : "auto", &config)) return NULL;
    if (db_create(&ctx, &config) != DB_OK) fail("no context", NULL);
    return ctx;
}

static int state_exists(const options *o) { return o->state && db__file_exists(o->state); }

#endif
