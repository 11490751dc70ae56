/* bench - times one thing and prints one line of JSON: its arguments, the seconds of every repetition, the
   multiplications and additions of one, the most memory the process held, and what it ran on.

   build/bench peak registers           multiply-adds on registers alone: what the processor can do
   build/bench peak gemm                the header's matrix product, on numbers that fit the second cache
   build/bench op conv3x3    --B 1 --H 64 --W 64 --C 320 --OC 320      --pass fwd|dx|dw|bwd
   build/bench op linear     --B 4096 --C 320 --OC 1280                --pass fwd|dx|dw|bwd
   build/bench op attention  --B 1 --T 4096 --S 4096 --C 320 --heads 8 --pass fwd|bwd
   build/bench op group_norm --B 1 --H 64 --W 64 --C 320 --groups 32   --pass fwd|bwd (with silu)
   build/bench net world_base_forward --batch 16 --size 64             the U-Net, without gradients
   build/bench net world_base_train_step --batch 16 --size 64          noise, forward, backward, AdamW, EMA
   build/bench net world_text --batch 16                               the text encoder, 77 tokens
   build/bench net world_generate --batch 4 --size 64                  30 steps of DDIM, guidance 3
   build/bench load --file FILE         the base's weights from a safetensors file, written first, into f32

   Everywhere: --dtype f32|bf16  --threads N  --repetitions N. Run it from the repository's root. Where a
   file of weights is missing, random ones do. A repetition is as many calls as fill 50 ms, after two to
   warm up; seconds and flops are those of one call.                                                 */

#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include <time.h>

#define BASE "examples/world/base/"
enum { MAX_INPUTS = 12, TOKENS = 77, STEPS = 30, FOR_NOISE = 1000, FOR_FILL };

typedef struct options {
    const char *command, *name, *dtype, *pass, *file;
    size_t B, H, W, C, OC, T, S, heads, groups, size, threads, repetitions;
} options;

/* What is timed is run(task); the rest is what that needs. */
typedef struct task {
    options o;
    db_ctx *ctx;
    void (*run)(struct task *);
    double flops;                              /* of one run */
    float (*loop)(struct task *, size_t steps); /* of a peak: what every thread does */
    db__gemm product;
    db_tape *tape;
    size_t first_node, n_inputs;               /* run_nodes starts at first_node */
    struct { db_tensor tensor; db_dtype dtype; float mean, deviation; } input[MAX_INPUTS];
    db_tensor loss;
    db_unet *unet;
    db_optimizer optimizer;
    db_schedule schedule;
    float *average, *words, *pixels;           /* EMA [params]; text states [2B,T,D]; images [B,H,W,3] */
} task;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *what, const char *detail)
{
    fprintf(stderr, "bench: %s%s\n", what, detail);
    exit(1);
}

/* n normal numbers as f32 or bf16, or small i32 ids. To be freed. */
static void *filled(db_dtype dtype, size_t n, float mean, float deviation)
{
    float *x = (float *)malloc(n * sizeof *x);
    db_rng rng;
    size_t k;
    if (!x) fail("out of memory", "");
    rng.seed = n, rng.purpose = FOR_FILL, rng.step = 0;
    db_random_normal(&rng, n, x);
    for (k = 0; k < n; k++) { /* bf16 is narrower: in place, from the start */
        float value = mean + deviation * x[k];
        if (dtype == DB_I32) ((int32_t *)(void *)x)[k] = (int32_t)(k % 100);
        else if (dtype == DB_BF16) ((uint16_t *)(void *)x)[k] = db__f32_to_bf16(value);
        else x[k] = value;
    }
    return x;
}

/* An input of the tape, and the distribution of the numbers that fill_inputs gives it. */
static db_tensor input(task *t, db_dtype dtype, float mean, float deviation, int n_dims, const size_t *dim)
{
    size_t k = t->n_inputs++;
    t->input[k].dtype = dtype, t->input[k].mean = mean, t->input[k].deviation = deviation;
    return t->input[k].tensor = db_input(t->tape, dtype, n_dims, dim);
}

static void fill_inputs(task *t)
{
    size_t k;
    for (k = 0; k < t->n_inputs; k++) {
        void *data = filled(t->input[k].dtype, db_count(t->input[k].tensor), t->input[k].mean, t->input[k].deviation);
        db_upload(t->tape, t->input[k].tensor, data);
        free(data);
    }
}

/* ---- peaks ------------------------------------------------------------------------------------------

   CHAINS independent sums hide an instruction's latency and still fit the registers of every set. Their
   values tend to b / (1 - a), neither infinite nor subnormal.                                          */

enum { CHAINS = 12, LOOP_STEPS = 1 << 20, PRODUCTS = 64, M = 96, K = 1152, N = 128 };

#define REGISTER_LOOP(set, target, vector, set1, multiply_add)                                      \
    static target float loop_##set(task *t, size_t steps)                                           \
    {                                                                                               \
        vector x[CHAINS], a = set1(0.999f), b = set1(0.001f);                                       \
        float used;                                                                                 \
        int k;                                                                                      \
        DB__UNROLL for (k = 0; k < CHAINS; k++) x[k] = set1((float)k);                              \
        for (; steps; steps--) {                                                                    \
            DB__UNROLL for (k = 0; k < CHAINS; k++) x[k] = multiply_add(x[k], a, b);                \
        }                                                                                           \
        DB__UNROLL for (k = 1; k < CHAINS; k++) x[0] = multiply_add(x[0], x[k], b);                 \
        memcpy(&used, x, sizeof used);                                                              \
        return (void)t, used;                                                                       \
    }

#define SCALAR_SET1(x) (x)
#define SCALAR_MULTIPLY_ADD(x, a, b) ((x) * (a) + (b))
REGISTER_LOOP(scalar, , float, SCALAR_SET1, SCALAR_MULTIPLY_ADD)
#ifdef DB__NEON
#define NEON_MULTIPLY_ADD(x, a, b) vfmaq_f32(b, x, a)
REGISTER_LOOP(neon, , float32x4_t, vdupq_n_f32, NEON_MULTIPLY_ADD)
#endif
#ifdef DB__X86
REGISTER_LOOP(avx2, DB__TARGET_AVX2, __m256, _mm256_set1_ps, _mm256_fmadd_ps)
REGISTER_LOOP(avx512, DB__TARGET_AVX512, __m512, _mm512_set1_ps, _mm512_fmadd_ps)
#endif
#ifdef DB__X86_BF16
#define PAIRS_MULTIPLY_ADD(x, a, b) _mm512_dpbf16_ps(x, (__m512bh)(a), (__m512bh)(b))
REGISTER_LOOP(avx512bf16, DB__TARGET_AVX512BF16, __m512, _mm512_set1_ps, PAIRS_MULTIPLY_ADD)

/* Four sums of products of 16 x 32 by 32 x 16 tiles; configuring the tiles has zeroed them. */
static DB__TARGET_AMX float loop_amx(task *t, size_t steps)
{
    for (db__k_tile_rows_amx_bf16(16, 16); steps; steps--) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return (void)t, 0.0f;
}
#endif

/* The threads share A [M,K] and B [K,N]; each has a C [M,N] of its own. */
static float loop_gemm(task *t, size_t steps)
{
    float c[M * N];
    db__gemm g = t->product;
    for (g.c = c; steps; steps--) db__kernels_for(t->ctx, t->tape->compute)->gemm(&g);
    return c[0];
}

static void run_loop(task *t)
{
    int k, threads = db__threads(t->ctx);
    DB__OMP(omp parallel for num_threads(threads) schedule(static))
    for (k = 0; k < threads; k++) {
        volatile float used = t->loop(t, t->loop == loop_gemm ? PRODUCTS : LOOP_STEPS); /* or it would be dropped */
        (void)used;
    }
}

static void peak(task *t)
{
    static const struct { const db__kernels *kernels; float (*loop)(task *, size_t); double multiply_adds; } row[] = {
#ifdef DB__X86_BF16
        {&db__k_table_amx_bf16, loop_amx, 4 * 16 * 16 * 32}, {&db__k_table_avx512bf16_bf16, loop_avx512bf16, CHAINS * 32},
#endif
#ifdef DB__X86
        {&db__k_table_avx512_f32, loop_avx512, CHAINS * 16}, {&db__k_table_avx2_f32, loop_avx2, CHAINS * 8},
#endif
#ifdef DB__NEON
        {&db__k_table_neon_f32, loop_neon, CHAINS * 4},
#endif
        {&db__k_table_scalar_f32, loop_scalar, CHAINS}};
    const db__kernels *kernels = db__kernels_for(t->ctx, t->tape->compute);
    db__gemm *g = &t->product;
    size_t k = 0;
    if (!strcmp(t->o.name, "gemm")) {
        g->m = M, g->k = g->lda = K, g->taps = 1, g->panels = N / 16, g->b_panel = K * 16, g->ldc = N;
        g->a = filled(t->tape->compute, M * K, 0, 1), g->b = filled(t->tape->compute, K * N, 0, 1);
        t->loop = loop_gemm, t->flops = 2.0 * M * K * N * PRODUCTS;
    } else { /* sets without instructions for bf16 compute it as f32 */
        while (row[k].kernels != kernels && row[k].kernels != t->ctx->isa->f32) k++;
        t->loop = row[k].loop, t->flops = 2 * row[k].multiply_adds * LOOP_STEPS;
    }
    t->flops *= db__threads(t->ctx);
    t->run = run_loop;
}

/* ---- operations --------------------------------------------------------------------------------------- */

/* The nodes from first_node on, reading what an earlier run of the whole tape has left in the arena. */
static void run_nodes(task *t)
{
    size_t n;
    for (n = t->first_node; n < t->tape->n_nodes; n++) {
        db_call c = db__call(t->tape, n);
        c.scratch = t->tape->arena + t->tape->arena_bytes;
        t->ctx->backend->run[t->tape->node[n].op](t->ctx, &c);
    }
}

static db_tensor record_op(task *t, const options *o, int dx, int dw)
{
    const size_t shape[][4] = {{o->B, o->H, o->W, o->C}, {o->B, o->C}, {o->B, o->T, o->C}, {o->B, o->S, o->C}, {o->OC, o->C, 3, 3}};
    int conv = !strcmp(o->name, "conv3x3"), linear = !strcmp(o->name, "linear"), attention = !strcmp(o->name, "attention");
    db_dtype dtype = t->tape->compute;
    db_tensor x, w, b; /* attention's are queries, keys, values */
    if (!conv && !linear && !attention && strcmp(o->name, "group_norm")) fail("no operation ", o->name);
    x = input(t, dtype, 0, 1, attention ? 3 : linear ? 2 : 4, shape[attention ? 2 : linear ? 1 : 0]);
    w = attention ? input(t, dtype, 0, 1, 3, shape[3]) : input(t, DB_F32, 0, 1, conv ? 4 : linear ? 2 : 1, conv || linear ? shape[4] : &o->C);
    b = attention ? input(t, dtype, 0, 1, 3, shape[3]) : input(t, DB_F32, 0, 1, 1, conv || linear ? &o->OC : &o->C);
    if (dx) db_require_grad(t->tape, x);
    if (attention ? dx : dw) db_require_grad(t->tape, w), db_require_grad(t->tape, b);
    return conv      ? db_conv2d(t->tape, x, w, b, db__none, 1, 1, 1)
         : linear    ? db_linear(t->tape, x, w, b, db__none)
         : attention ? db_attention(t->tape, x, w, b, db__none, db__none, o->heads, 1 / sqrtf((float)(o->C / o->heads)), 0)
                     : db_group_norm(t->tape, x, w, b, db__none, o->groups, 1e-5f, DB_ACT_SILU);
}

/* Forward is the whole tape; backward is what follows the gradient of a loss on the operation's output. */
static void op(task *t)
{
    const char *pass = t->o.pass;
    int both = !strcmp(pass, "bwd"), dx = both || !strcmp(pass, "dx"), dw = both || !strcmp(pass, "dw");
    size_t n;
    db_tensor y = record_op(t, &t->o, dx, dw);
    db_keep(t->tape, y);
    if (dx || dw) {
        db_backward(t->tape, db_mse(t->tape, y, input(t, DB_F32, 0, 1, y.n_dims, y.dim), db__none, db__none, NULL));
        t->first_node = t->tape->n_forward + 2; /* after d loss = 1 and the gradient of db_mse */
    } else if (strcmp(pass, "fwd")) {
        fail("--pass is fwd, dx, dw or bwd, not ", pass);
    }
    fill_inputs(t);
    db_run(t->tape, 0, 0);
    for (n = t->first_node; n < t->tape->n_nodes; n++) {
        db_call c = db__call(t->tape, n);
        t->flops += db__op_flops(t->tape->node[n].op, &c);
    }
    t->run = run_nodes;
}

/* ---- networks -------------------------------------------------------------------------------------------- */

static db_result read_weights(db_param_table *p, const char *path)
{
    db_safetensors *st = NULL;
    if (db_safetensors_open(p->ctx, path, &st) == DB_OK) db_params_load(p, st, path);
    db_safetensors_close(st);
    return db_status(p->ctx);
}

/* The file's weights, or random ones where there is none. */
static void set_weights(db_param_table *p, const char *path)
{
    float *random = (float *)filled(DB_F32, p->count, 0, 0.05f);
    memcpy(p->data, random, p->count * sizeof *random);
    free(random);
    if (read_weights(p, path) == DB_ERROR_FILE) db_clear_error(p->ctx);
}

static void make_unet(task *t)
{
    db_unet_config c;
    if (db_unet_config_load(t->ctx, BASE "unet/config.json", &c) == DB_OK && db_unet_create(t->ctx, &c, &t->unet) == DB_OK)
        set_weights(&t->unet->params, BASE "unet/diffusion_pytorch_model.safetensors");
    if (db_status(t->ctx) != DB_OK) fail(db_last_error(t->ctx), "");
}

static db_tensor record_unet(task *t, db_tensor x)
{
    const size_t words[3] = {x.dim[0], TOKENS, t->unet->config.encoder_hid_dim};
    db_tensor time = input(t, DB_F32, 500, 0, 1, x.dim), text = input(t, DB_F32, 0, 1, 3, words);
    return db_unet_forward(t->tape, t->unet, x, time, text, db__none, NULL);
}

static void run_tape(task *t) { db_run(t->tape, 0, 0); }

static void run_train_step(task *t)
{
    float loss;
    db_zero_grad(&t->unet->params);
    db_run(t->tape, 1, (uint32_t)t->optimizer.step);
    db_download(t->tape, t->loss, &loss);
    db_optimizer_step(&t->optimizer, 1e-4f, 1, NULL);
    db_ema_update(&t->unet->params, t->average, 0.9995f);
}

/* tools/pretrain.c's step without its auxiliary head: v-prediction, loss weighted by pixel. */
static void record_train_step(task *t, db_tensor x)
{
    db_tensor eps = db_normal_like(t->tape, x, FOR_NOISE), v, pred, weight = input(t, DB_F32, 1, 0, 3, x.dim);
    db_tensor alpha = input(t, DB_F32, 0.8f, 0, 1, x.dim), sigma = input(t, DB_F32, 0.6f, 0, 1, x.dim), minus = input(t, DB_F32, -0.6f, 0, 1, x.dim);
    db_optimizer_init(&t->optimizer, &t->unet->params, NULL);
    t->average = (float *)filled(DB_F32, t->unet->params.count, 0, 0);
    v = db_mix(t->tape, alpha, eps, minus, x);
    pred = record_unet(t, db_mix(t->tape, alpha, x, sigma, eps));
    t->loss = db_mse(t->tape, pred, v, db__none, weight, NULL);
    db_backward(t->tape, t->loss);
    t->run = run_train_step;
}

static void run_generate(task *t)
{
    db_sample_config c = db_sample_config_default();
    c.sampler = DB_SAMPLER_DDIM, c.num_inference_steps = STEPS, c.guidance_scale = 3;
    db_sample(t->unet, &t->schedule, &c, t->words, TOKENS, t->unet->config.encoder_hid_dim, t->o.B, t->o.size, t->o.size, 3, t->pixels);
}

static void net(task *t)
{
    const char *name = t->o.name;
    int generate = !strcmp(name, "world_generate");
    const size_t ids[2] = {t->o.B, TOKENS}, image[4] = {generate ? 2 * t->o.B : t->o.B, t->o.size, t->o.size, 3};
    db_memory_plan plan = {0, 0, 0, 0};
    t->run = run_tape;
    if (!strcmp(name, "world_text")) {
        db_text_config c;
        db_text_encoder *e;
        if (db_text_config_load(t->ctx, BASE "text_encoder/config.json", &c) != DB_OK || db_text_encoder_create(t->ctx, &c, &e) != DB_OK) return;
        set_weights(&e->params, BASE "text_encoder/model.safetensors");
        db_keep(t->tape, db_text_forward(t->tape, e, input(t, DB_I32, 0, 0, 2, ids), input(t, DB_F32, 0, 0, 2, ids)));
    } else {
        db_tensor x = input(t, DB_F32, 0, 1, 4, image);
        make_unet(t);
        if (!strcmp(name, "world_base_train_step")) record_train_step(t, x);
        else if (generate || !strcmp(name, "world_base_forward")) db_keep(t->tape, record_unet(t, x));
        else fail("no network ", name);
    }
    db_plan(t->tape, &plan);
    t->flops = generate ? STEPS * plan.flops : plan.flops;
    if (generate) { /* db_sample records a tape of its own: this one only counted the work of a step */
        db_schedule_load(t->ctx, BASE "scheduler/scheduler_config.json", &t->schedule);
        t->words = (float *)filled(DB_F32, image[0] * TOKENS * t->unet->config.encoder_hid_dim, 0, 1);
        t->pixels = (float *)filled(DB_F32, t->o.B * t->o.size * t->o.size * 3, 0, 0);
        t->run = run_generate;
    } else {
        fill_inputs(t);
    }
}

static void run_load(task *t) { read_weights(&t->unet->params, t->o.file); }

static void load(task *t)
{
    make_unet(t);
    db_params_save(&t->unet->params, t->unet->params.data, t->o.file, DB_F16);
    t->run = run_load;
}

/* ---- measuring ---------------------------------------------------------------------------------------------- */

/* The process's largest resident memory in MB; 0 where the system does not tell. */
static double peak_mb(void)
{
    char line[256];
    double kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "VmHWM:", 6)) kb = atof(line + 6);
    if (f) fclose(f);
    return kb * 1024 / 1e6;
}

static void measure(task *t, int argc, char **argv)
{
    const double shortest = 0.05; /* seconds of a repetition */
    size_t calls, repetition, k;
    double began, seconds;
    int a;
    t->run(t); /* finds cold caches, fresh memory and a slow clock */
    began = now();
    t->run(t);
    seconds = now() - began;
    calls = (size_t)(shortest / DB__MAX(seconds, 1e-7)) + 1;
    printf("{\"name\": \"");
    for (a = 1; a < argc; a++) printf("%s%s", a > 1 ? " " : "", argv[a]);
    printf("\", \"seconds\": [");
    for (repetition = 0; repetition < t->o.repetitions; repetition++) {
        began = now();
        for (k = 0; k < calls; k++) t->run(t);
        printf("%s%.9g", repetition ? ", " : "", (now() - began) / (double)calls);
    }
    if (db_status(t->ctx) != DB_OK) fail(db_last_error(t->ctx), "");
    printf("], \"flops\": %.0f, \"peak_mb\": %.1f, \"threads\": %d, \"isa\": \"%s\", \"dtype\": \"%s\"}\n", t->flops, peak_mb(), db__threads(t->ctx),
           db_isa(t->ctx), t->o.dtype);
}

static void read_flags(options *o, int argc, char **argv, int k)
{
    const struct { const char *name; size_t *number; const char **text; } flag[] = {
        {"--B", &o->B, NULL}, {"--batch", &o->B, NULL}, {"--H", &o->H, NULL}, {"--W", &o->W, NULL}, {"--C", &o->C, NULL}, {"--OC", &o->OC, NULL},
        {"--T", &o->T, NULL}, {"--S", &o->S, NULL}, {"--heads", &o->heads, NULL}, {"--groups", &o->groups, NULL}, {"--size", &o->size, NULL},
        {"--threads", &o->threads, NULL}, {"--repetitions", &o->repetitions, NULL}, {"--dtype", NULL, &o->dtype}, {"--pass", NULL, &o->pass},
        {"--file", NULL, &o->file}};
    size_t f, n = sizeof flag / sizeof *flag;
    for (; k < argc; k += 2) {
        for (f = 0; f < n && strcmp(flag[f].name, argv[k]); f++) {}
        if (f == n || k + 1 == argc) fail(f == n ? "unknown flag " : "no value after ", argv[k]);
        if (flag[f].text) *flag[f].text = argv[k + 1];
        else if ((*flag[f].number = (size_t)strtoul(argv[k + 1], NULL, 10)) == 0) fail("not a positive number after ", argv[k]);
    }
}

int main(int argc, char **argv)
{
    task t;
    options *o = &t.o;
    db_config config = db_config_default();
    memset(&t, 0, sizeof t);
    o->command = argc > 1 ? argv[1] : "", o->name = argc > 2 ? argv[2] : "";
    o->dtype = "f32", o->pass = "fwd", o->file = "build/bench_weights.safetensors";
    o->B = 1, o->H = o->W = o->size = 64, o->C = o->OC = 320, o->T = o->S = 4096, o->heads = 8, o->groups = 32, o->repetitions = 5;
    read_flags(o, argc, argv, strcmp(o->command, "load") ? 3 : 2);
    if (strcmp(o->dtype, "f32") && strcmp(o->dtype, "bf16")) fail("--dtype is f32 or bf16, not ", o->dtype);
    config.threads = (int)o->threads;
    config.compute = strcmp(o->dtype, "bf16") ? DB_F32 : DB_BF16;
    if (db_create(&t.ctx, &config) != DB_OK || db_tape_create(t.ctx, &t.tape) != DB_OK) fail("no context: is there an instruction set $DB_ISA?", "");
    if (!strcmp(o->command, "peak")) peak(&t);
    else if (!strcmp(o->command, "op")) op(&t);
    else if (!strcmp(o->command, "net")) net(&t);
    else if (!strcmp(o->command, "load")) load(&t);
    else fail("peak, op, net or load? See the top of tools/bench.c", "");
    if (db_status(t.ctx) != DB_OK) fail(db_last_error(t.ctx), "");
    measure(&t, argc, argv);
    return 0; /* and the system takes everything back */
}
