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
   build/bench load --file FILE         the U-Net's weights, written to FILE as f16 first, into f32

   Everywhere: --dtype f32|bf16  --threads N  --repetitions N. A repetition is as many calls as fill 50 ms,
   after two to warm up; seconds and flops are those of one call. Networks are built from the configuration
   in examples/world/base and have random weights, which cost the same time.                         */

#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include <time.h>

#define BASE "examples/world/base/"
enum { MAX_INPUTS = 12, TOKENS = 77, STEPS = 30, FOR_NOISE = 1000, FOR_FILL };

static struct {
    const char *command, *name, *dtype, *pass, *file;
    size_t B, H, W, C, OC, T, S, heads, groups, size, threads, repetitions;
} o = {"", "", "f32", "fwd", "build/bench_weights.safetensors", 1, 64, 64, 320, 320, 4096, 4096, 8, 32, 64, 0, 5};

/* A process measures one thing: a call of `run`, which peak, op, net or load prepares. */
static void (*run)(void);
static double flops; /* of one call */
static db_ctx *ctx;
static db_tape *tape;
static struct { db_tensor tensor; db_dtype dtype; } inputs[MAX_INPUTS];
static size_t n_inputs;

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

/* n numbers in [0,1) as f32 or bf16, or i32 ids below 100. To be freed. */
static void *filled(db_dtype dtype, size_t n)
{
    const db_rng rng = {n, FOR_FILL, 0};
    void *x = malloc(n * sizeof(float));
    size_t k;
    if (!x) fail("out of memory", "");
    for (k = 0; k < n; k++)
        if (dtype == DB_I32) ((int32_t *)x)[k] = (int32_t)db_random_below(&rng, k, 100);
        else if (dtype == DB_BF16) ((uint16_t *)x)[k] = db__f32_to_bf16(db_random_uniform(&rng, k));
        else ((float *)x)[k] = db_random_uniform(&rng, k);
    return x;
}

/* An input of the tape, with a gradient if wanted; fill_inputs gives all of them their numbers. */
static db_tensor input(db_dtype dtype, int grad, int n_dims, const size_t *dim)
{
    db_tensor x = db_input(tape, dtype, n_dims, dim);
    if (grad) db_require_grad(tape, x);
    inputs[n_inputs].tensor = x, inputs[n_inputs++].dtype = dtype;
    return x;
}

static void fill_inputs(void)
{
    while (n_inputs > 0) {
        void *data = filled(inputs[n_inputs - 1].dtype, db_count(inputs[n_inputs - 1].tensor));
        db_upload(tape, inputs[--n_inputs].tensor, data);
        free(data);
    }
}

/* ---- peaks ------------------------------------------------------------------------------------------
   CHAINS independent sums hide an instruction's latency and still fit the registers of every set. Their
   values tend to b / (1 - a), neither infinite nor subnormal.                                        */

enum { CHAINS = 12, LOOP_STEPS = 1 << 20, PRODUCTS = 64, M = 96, K = 1152, N = 128 };

#define REGISTER_LOOP(set, target, vector, set1, multiply_add)                                      \
    static target float loop_##set(void)                                                            \
    {                                                                                               \
        vector x[CHAINS], a = set1(0.999f), b = set1(0.001f);                                       \
        int step, k;                                                                                \
        DB__UNROLL for (k = 0; k < CHAINS; k++) x[k] = set1((float)k);                              \
        for (step = 0; step < LOOP_STEPS; step++) {                                                 \
            DB__UNROLL for (k = 0; k < CHAINS; k++) x[k] = multiply_add(x[k], a, b);                \
        }                                                                                           \
        DB__UNROLL for (k = 1; k < CHAINS; k++) x[0] = multiply_add(x[0], x[k], b);                 \
        return *(float *)x;                                                                         \
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
static DB__TARGET_AMX float loop_amx(void)
{
    int step;
    db__k_tile_rows_amx_bf16(16, 16);
    for (step = 0; step < LOOP_STEPS; step++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 0;
}
#endif

static const struct { const db__kernels *kernels; float (*loop)(void); double multiply_adds; } loops[] = {
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

static db__gemm product; /* the threads share A [M,K] and B [K,N]; each has a C [M,N] of its own */

static float loop_gemm(void)
{
    float c[M * N];
    db__gemm g = product;
    int k;
    for (g.c = c, k = 0; k < PRODUCTS; k++) db__kernels_for(ctx, tape->compute)->gemm(&g);
    return c[0];
}

static float (*loop)(void);

static void run_loop(void)
{
    int k, threads = db__threads(ctx);
    DB__OMP(omp parallel for num_threads(threads) schedule(static))
    for (k = 0; k < threads; k++) loop();
}

static void peak(void)
{
    size_t k = 0;
    run = run_loop;
    if (!strcmp(o.name, "gemm")) {
        product.m = M, product.k = product.lda = K, product.taps = 1, product.panels = N / 16, product.b_panel = K * 16, product.ldc = N;
        product.a = filled(tape->compute, M * K), product.b = filled(tape->compute, K * N);
        loop = loop_gemm, flops = 2.0 * M * K * N * PRODUCTS * db__threads(ctx);
    } else if (!strcmp(o.name, "registers")) { /* sets without instructions for bf16 compute it as f32 */
        while (loops[k].kernels != db__kernels_for(ctx, tape->compute) && loops[k].kernels != ctx->isa->f32) k++;
        loop = loops[k].loop, flops = 2 * loops[k].multiply_adds * LOOP_STEPS * db__threads(ctx);
    } else fail("no peak of ", o.name);
}

/* ---- operations --------------------------------------------------------------------------------------- */

static size_t first_node;

/* The nodes from first_node on, reading what an earlier run of the whole tape has left in the arena. */
static void run_nodes(void)
{
    size_t n;
    for (n = first_node; n < tape->n_nodes; n++) {
        db_call c = db__call(tape, n);
        c.scratch = tape->arena + tape->arena_bytes;
        ctx->backend->run[tape->node[n].op](ctx, &c);
    }
}

/* dx, dw: gradients of what flows through, and of weights. */
static db_tensor record_op(int dx, int dw)
{
    const size_t image[4] = {o.B, o.H, o.W, o.C}, rows[2] = {o.B, o.C}, kernel[4] = {o.OC, o.C, 3, 3};
    const size_t queries[3] = {o.B, o.T, o.C}, keys[3] = {o.B, o.S, o.C};
    db_dtype T = tape->compute;
    if (!strcmp(o.name, "linear"))
        return db_linear(tape, input(T, dx, 2, rows), input(DB_F32, dw, 2, kernel), input(DB_F32, dw, 1, &o.OC), db__none);
    if (!strcmp(o.name, "conv3x3"))
        return db_conv2d(tape, input(T, dx, 4, image), input(DB_F32, dw, 4, kernel), input(DB_F32, dw, 1, &o.OC), db__none, 1, 1, 1);
    if (!strcmp(o.name, "attention"))
        return db_attention(tape, input(T, dx, 3, queries), input(T, dx, 3, keys), input(T, dx, 3, keys), db__none, db__none, o.heads,
                            1 / sqrtf((float)(o.C / o.heads)), 0);
    if (strcmp(o.name, "group_norm")) fail("no operation ", o.name);
    return db_group_norm(tape, input(T, dx, 4, image), input(DB_F32, dw, 1, &o.C), input(DB_F32, dw, 1, &o.C), db__none, o.groups, 1e-5f, DB_ACT_SILU);
}

/* Forward is the whole tape; backward is what follows the gradient of a loss on the operation's output. */
static void op(void)
{
    int both = !strcmp(o.pass, "bwd"), dx = both || !strcmp(o.pass, "dx"), dw = both || !strcmp(o.pass, "dw");
    db_tensor y = record_op(dx, dw);
    size_t n;
    db_keep(tape, y);
    if (dx || dw) {
        db_backward(tape, db_mse(tape, y, input(DB_F32, 0, y.n_dims, y.dim), db__none, db__none, NULL));
        first_node = tape->n_forward + 2; /* after d loss = 1 and the gradient of db_mse */
    } else if (strcmp(o.pass, "fwd")) fail("--pass is fwd, dx, dw or bwd, not ", o.pass);
    fill_inputs();
    db_run(tape, 0, 0);
    for (n = first_node; n < tape->n_nodes; n++) {
        db_call c = db__call(tape, n);
        flops += db__op_flops(tape->node[n].op, &c);
    }
    run = run_nodes;
}

/* ---- networks -------------------------------------------------------------------------------------------- */

static db_unet *unet;
static db_optimizer optimizer;
static db_tensor loss;
static db_schedule schedule;
static float *average, *words, *pixels; /* EMA of the parameters; [2B,TOKENS,D]; [B,size,size,3] */

static void set_random(db_param_table *p)
{
    const db_rng rng = {1, FOR_FILL, 0};
    size_t k;
    db_random_normal(&rng, p->count, p->data);
    for (k = 0; k < p->count; k++) p->data[k] *= 0.05f;
}

static void make_unet(void)
{
    db_unet_config c;
    db_unet_config_load(ctx, BASE "unet/config.json", &c);
    if (db_status(ctx) != DB_OK || db_unet_create(ctx, &c, &unet) != DB_OK) fail(db_last_error(ctx), "");
    set_random(&unet->params);
}

static db_tensor record_unet(db_tensor x)
{
    const size_t dim[3] = {x.dim[0], TOKENS, unet->config.encoder_hid_dim};
    return db_unet_forward(tape, unet, x, input(DB_F32, 0, 1, dim), input(DB_F32, 0, 3, dim), db__none, NULL);
}

/* tools/pretrain.c's step without its auxiliary head: v-prediction, the loss weighted by pixel. */
static void record_train_step(db_tensor x)
{
    db_tensor alpha = input(DB_F32, 0, 1, x.dim), sigma = input(DB_F32, 0, 1, x.dim), weight = input(DB_F32, 0, 3, x.dim);
    db_tensor eps = db_normal_like(tape, x, FOR_NOISE), v = db_mix(tape, alpha, eps, sigma, x), pred;
    db_optimizer_init(&optimizer, &unet->params, NULL);
    average = (float *)filled(DB_F32, unet->params.count);
    pred = record_unet(db_mix(tape, alpha, x, sigma, eps));
    loss = db_mse(tape, pred, v, db__none, weight, NULL);
    db_backward(tape, loss);
}

static void run_train_step(void)
{
    float value;
    db_zero_grad(&unet->params);
    db_run(tape, 1, (uint32_t)optimizer.step);
    db_download(tape, loss, &value);
    db_optimizer_step(&optimizer, 1e-4f, 1, NULL);
    db_ema_update(&unet->params, average, 0.9995f);
}

static void run_tape(void) { db_run(tape, 0, 0); }

static void run_generate(void)
{
    db_sample_config c = db_sample_config_default();
    c.sampler = DB_SAMPLER_DDIM, c.num_inference_steps = STEPS, c.guidance_scale = 3;
    db_sample(unet, &schedule, &c, words, TOKENS, unet->config.encoder_hid_dim, o.B, o.size, o.size, 3, pixels);
}

static void record_text(void)
{
    const size_t dim[2] = {o.B, TOKENS};
    db_text_config c;
    db_text_encoder *e;
    db_text_config_load(ctx, BASE "text_encoder/config.json", &c);
    if (db_status(ctx) != DB_OK || db_text_encoder_create(ctx, &c, &e) != DB_OK) fail(db_last_error(ctx), "");
    set_random(&e->params);
    db_keep(tape, db_text_forward(tape, e, input(DB_I32, 0, 2, dim), input(DB_F32, 0, 2, dim)));
}

static void net(void)
{
    int train = !strcmp(o.name, "world_base_train_step"), generate = !strcmp(o.name, "world_generate");
    const size_t image[4] = {generate ? 2 * o.B : o.B, o.size, o.size, 3};
    db_memory_plan plan = {0, 0, 0, 0};
    if (!strcmp(o.name, "world_text")) {
        record_text();
    } else {
        if (!train && !generate && strcmp(o.name, "world_base_forward")) fail("no network ", o.name);
        make_unet();
        if (train) record_train_step(input(DB_F32, 0, 4, image));
        else db_keep(tape, record_unet(input(DB_F32, 0, 4, image)));
    }
    db_plan(tape, &plan);
    run = train ? run_train_step : generate ? run_generate : run_tape;
    flops = plan.flops * (generate ? STEPS : 1);
    if (!generate) {
        fill_inputs();
        return;
    }
    db_schedule_load(ctx, BASE "scheduler/scheduler_config.json", &schedule); /* db_sample has a tape of its own */
    words = (float *)filled(DB_F32, 2 * o.B * TOKENS * unet->config.encoder_hid_dim);
    pixels = (float *)filled(DB_F32, o.B * o.size * o.size * 3);
}

static void run_load(void)
{
    db_safetensors *st = NULL;
    if (db_safetensors_open(ctx, o.file, &st) == DB_OK) db_params_load(&unet->params, st, o.file);
    db_safetensors_close(st);
}

static void load(void)
{
    make_unet();
    db_params_save(&unet->params, unet->params.data, o.file, DB_F16);
    run = run_load;
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

static void measure(int argc, char **argv)
{
    const double shortest = 0.05; /* seconds of a repetition */
    size_t calls, repetition, k;
    double began, seconds;
    run(); /* finds cold caches, fresh memory and a slow clock */
    began = now();
    run();
    seconds = now() - began;
    calls = (size_t)(shortest / DB__MAX(seconds, 1e-7)) + 1;
    printf("{\"name\": \"%s", o.command);
    for (k = 2; k < (size_t)argc; k++) printf(" %s", argv[k]);
    printf("\", \"seconds\": [");
    for (repetition = 0; repetition < o.repetitions; repetition++) {
        began = now();
        for (k = 0; k < calls; k++) run();
        printf("%s%.9g", repetition ? ", " : "", (now() - began) / (double)calls);
    }
    if (db_status(ctx) != DB_OK) fail(db_last_error(ctx), "");
    printf("], \"flops\": %.0f, \"peak_mb\": %.1f, \"threads\": %d, \"isa\": \"%s\", \"dtype\": \"%s\"}\n", flops, peak_mb(), db__threads(ctx),
           db_isa(ctx), o.dtype);
}

static void read_flags(int argc, char **argv, int k)
{
    static const struct { const char *name; size_t *number; const char **text; } flag[] = {
        {"--B", &o.B, NULL}, {"--batch", &o.B, NULL}, {"--H", &o.H, NULL}, {"--W", &o.W, NULL}, {"--C", &o.C, NULL}, {"--OC", &o.OC, NULL},
        {"--T", &o.T, NULL}, {"--S", &o.S, NULL}, {"--heads", &o.heads, NULL}, {"--groups", &o.groups, NULL}, {"--size", &o.size, NULL},
        {"--threads", &o.threads, NULL}, {"--repetitions", &o.repetitions, NULL}, {"--dtype", NULL, &o.dtype}, {"--pass", NULL, &o.pass},
        {"--file", NULL, &o.file}};
    size_t f, n = sizeof flag / sizeof *flag;
    for (; k < argc; k += 2) {
        for (f = 0; f < n && strcmp(flag[f].name, argv[k]); f++) {}
        if (f == n || k + 1 == argc) fail(f == n ? "unknown flag " : "no value after ", argv[k]);
        if (flag[f].text) *flag[f].text = argv[k + 1];
        else if ((*flag[f].number = (size_t)strtoul(argv[k + 1], NULL, 10)) == 0) fail("not a positive number after ", argv[k]);
    }
    if (strcmp(o.dtype, "f32") && strcmp(o.dtype, "bf16")) fail("--dtype is f32 or bf16, not ", o.dtype);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; void (*prepare)(void); } commands[] = {{"peak", peak}, {"op", op}, {"net", net}, {"load", load}};
    db_config config = db_config_default();
    size_t k = 0;
    if (argc > 1) o.command = argv[1];
    if (argc > 2) o.name = argv[2];
    while (k < 4 && strcmp(commands[k].name, o.command)) k++;
    if (k == 4) fail("peak, op, net or load? See the top of tools/bench.c", "");
    read_flags(argc, argv, commands[k].prepare == load ? 2 : 3);
    config.threads = (int)o.threads;
    config.compute = strcmp(o.dtype, "bf16") ? DB_F32 : DB_BF16;
    if (db_create(&ctx, &config) != DB_OK || db_tape_create(ctx, &tape) != DB_OK) fail("no context: is $DB_ISA an instruction set of this machine?", "");
    commands[k].prepare();
    if (db_status(ctx) != DB_OK) fail(db_last_error(ctx), "");
    measure(argc, argv);
    return 0; /* and the system takes everything back */
}
