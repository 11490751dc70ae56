/* bench - times one thing and prints one line of JSON: its name, the multiplications and additions
   of one call, the most memory the process held, what a network's tape takes of it, what it ran
   on, and of every repetition the seconds and the share of the peak that `peak registers` reaches
   just before and after it.

   build/bench peak registers        multiply-adds on registers: what the processor can do
   build/bench peak gemm             the header's product on numbers near the processor
   build/bench op conv3x3    --B 1 --H 64 --W 64 --C 320 --OC 320    --pass fwd|dx|dw|bwd
   build/bench op linear     --B 4096 --C 320 --OC 1280              --pass fwd|dx|dw|bwd
   build/bench op attention  --B 1 --T 4096 --S 4096 --C 320 --heads 8 --pass fwd|bwd
   build/bench op group_norm --B 1 --H 64 --W 64 --C 320 --groups 32 --pass fwd|bwd (with silu)
   build/bench net world_base_forward --batch 16     the U-Net at --size 64, without gradients
   build/bench net world_base_train_step --batch 16  noise, forward, backward, AdamW, EMA
   build/bench net world_text --batch 16             the text encoder, 77 tokens
   build/bench net world_generate --batch 4          30 steps of DDIM, guidance 3
   build/bench net unet_sd15_forward                 Stable Diffusion 1.5, 64 x 64 latents
   build/bench net unet_sd15_train_step              noise, forward, backward, AdamW
   build/bench net clip_text                         its text encoder, 77 tokens
   build/bench net vae_decode                        its decoder, 512 x 512 pixels
   build/bench load world_base --file FILE           weights from FILE (written first, f16)

   Everywhere: --dtype f32|bf16  --threads N  --repetitions N  --device cpu|cuda|auto (cpu). A
   repetition is as many calls as fill 50 ms, after two to warm up; seconds and flops are those of
   one call. Networks are built as
   examples/world/base and tools/sd15.json say, with random weights: they cost the same time. */

#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include <time.h>

#include "device.h"

#define BASE "examples/world/base/"
enum { TOKENS = 77, STEPS = 30, FOR_NOISE = 1000, FOR_FILL };

static struct {
    const char *command, *name, *dtype, *pass, *device, *file;
    size_t B, H, W, C, OC, T, S, heads, groups, size, threads, repetitions;
} o = {"", "", "f32", "fwd", "cpu", "build/bench_weights.safetensors", 1, 64, 64, 320, 320, 4096,
       4096, 8, 32, 64, 0, 5};

/* A process measures one thing: a call of `run`, which a function of the table in main prepares. */
static db_ctx *ctx;
static db_tape *tape;
static double flops; /* of one call */
static double arena_mb; /* of a network's tape: all that a call holds beside the parameters */

static void run_tape(void) { db_run(tape, 0, 0); }
static void (*run)(void) = run_tape;

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

/* Fills x with n numbers in [0,1) as f32 or bf16, or i32 ids below 100. */
static void fill(void *x, db_dtype dtype, size_t n)
{
    const db_rng rng = {n, FOR_FILL, 0};
    size_t k;
    for (k = 0; k < n; k++)
        if (dtype == DB_I32) ((int32_t *)x)[k] = (int32_t)db_random_below(&rng, k, 100);
        else if (dtype == DB_BF16) ((uint16_t *)x)[k] = db__f32_to_bf16(db_random_uniform(&rng, k));
        else ((float *)x)[k] = db_random_uniform(&rng, k);
}

/* Plans the recorded tape, counts its work, and fills all that stays in the arena: inputs, and
   outputs too. */
static void prepare_tape(void)
{
    db_memory_plan plan = {0, 0, 0};
    size_t k;
    if (db_plan(tape, &plan) != DB_OK || db__ensure_arena(tape) != DB_OK)
        fail(db_last_error(ctx), "");
    flops = plan.flops, arena_mb = (double)plan.arena_bytes / 1e6;
    for (k = 0; k < tape->n_values; k++) {
        const db__value *v = &tape->value[k];
        if (v->kind == DB__KEPT)
            fill(tape->arena + v->offset, v->dtype, v->bytes / db_dtype_size(v->dtype));
    }
}

/* ---- peaks --------------------------------------------------------------------------------------
   CHAINS independent sums hide an instruction's latency and still fit the registers of every set.
   Their values tend to b / (1 - a), neither infinite nor subnormal. */

enum { CHAINS = 12, LOOP_STEPS = 1 << 20, PRODUCTS = 64, M = 96, K = 1152, N = 128 };

#define REGISTER_LOOP(set, target, vector, set1, multiply_add)                                     \
    static target float loop_##set(void)                                                           \
    {                                                                                              \
        vector x[CHAINS], a = set1(0.999f), b = set1(0.001f);                                      \
        int step, k;                                                                               \
        DB__UNROLL for (k = 0; k < CHAINS; k++) x[k] = set1((float)k);                             \
        for (step = 0; step < LOOP_STEPS; step++) {                                                \
            DB__UNROLL for (k = 0; k < CHAINS; k++) x[k] = multiply_add(x[k], a, b);               \
        }                                                                                          \
        DB__UNROLL for (k = 1; k < CHAINS; k++) x[0] = multiply_add(x[0], x[k], b);                \
        return *(float *)x;                                                                        \
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
    db__k_amx_configure_amx_bf16(16, 16);
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

static const struct {
    const db__kernels *kernels;
    float (*loop)(void);
    double multiply_adds;
} loops[] = {
#ifdef DB__X86_BF16
    {&db__k_table_amx_bf16, loop_amx, 4 * 16 * 16 * 32},
    {&db__k_table_avx512bf16_bf16, loop_avx512bf16, CHAINS * 32},
#endif
#ifdef DB__X86
    {&db__k_table_avx512_f32, loop_avx512, CHAINS * 16},
    {&db__k_table_avx2_f32, loop_avx2, CHAINS * 8},
#endif
#ifdef DB__NEON
    {&db__k_table_neon_f32, loop_neon, CHAINS * 4},
#endif
    {&db__k_table_scalar_f32, loop_scalar, CHAINS}};

static float (*loop)(void);
static db__gemm product; /* the threads share A [M,K] and B [K,N]; each has a C [M,N] of its own */

static float loop_gemm(void)
{
    float c[M * N];
    db__gemm g = product;
    int k;
    for (g.c = c, k = 0; k < PRODUCTS; k++) db__kernels_for(ctx, tape->compute)->gemm(&g);
    return c[0];
}

static void run_loop(void)
{
    int k, threads = db__threads(ctx);
    DB__OMP(omp parallel for num_threads(threads) schedule(static))
    for (k = 0; k < threads; k++) loop();
}

static void peak_gemm(void)
{
    float *a = (float *)db__alloc(ctx, M * K, sizeof *a),
          *b = (float *)db__alloc(ctx, K * N, sizeof *b);
    product.m = M, product.k = product.lda = K, product.taps = product.a_k = 1,
    product.panels = N / 16, product.b_panel = K * 16, product.b_k = 16;
    product.a = a, product.b = b, product.ldc = N;
    fill(a, tape->compute, M * K), fill(b, tape->compute, K * N);
    flops = 2.0 * M * K * N * PRODUCTS * db__threads(ctx);
    loop = loop_gemm, run = run_loop;
}

static void peak_registers(void)
{
    size_t k = 0; /* sets without instructions for bf16 compute it as f32 */
    while (loops[k].kernels != db__kernels_for(ctx, tape->compute) &&
           loops[k].kernels != ctx->isa->f32)
        k++;
    flops = 2 * loops[k].multiply_adds * LOOP_STEPS * db__threads(ctx);
    loop = loops[k].loop, run = run_loop;
}

/* The peak of this moment, in operations a second: clocks and neighbours change it by half. */
static double peak_now(void)
{
    double kept = flops, began, peak;
    float (*kept_loop)(void) = loop;
    void (*kept_run)(void) = run;
    peak_registers();
    began = now();
    run_loop();
    peak = flops / (now() - began);
    flops = kept, loop = kept_loop, run = kept_run;
    return peak;
}

/* ---- operations ------------------------------------------------------------------------------ */

static size_t first_node;

/* The nodes from first_node on, reading what an earlier run of the whole tape has left in the
   arena. */
static void run_nodes(void)
{
    size_t n;
    for (flops = 0, n = first_node; n < tape->n_nodes; n++) {
        db_call c = db__call(tape, n);
        ctx->backend->run[tape->node[n].op](ctx, &c);
        flops += db__op_flops(tape->node[n].op, &c);
    }
    ctx->backend->sync(ctx);
}

static db_tensor operand(db_dtype dtype, int grad, int n_dims, const size_t *dim)
{
    db_tensor x = db_input(tape, dtype, n_dims, dim);
    if (grad) db_require_grad(tape, x);
    return x;
}

/* dx, dw: gradients of what flows through, and of weights. */
static db_tensor record_op(int dx, int dw)
{
    const size_t image[4] = {o.B, o.H, o.W, o.C}, rows[2] = {o.B, o.C},
                 kernel[4] = {o.OC, o.C, 3, 3};
    const size_t queries[3] = {o.B, o.T, o.C}, keys[3] = {o.B, o.S, o.C};
    db_dtype T = tape->compute;
    if (!strcmp(o.name, "linear"))
        return db_linear(tape, operand(T, dx, 2, rows), operand(DB_F32, dw, 2, kernel),
                         operand(DB_F32, dw, 1, &o.OC), db_none);
    if (!strcmp(o.name, "conv3x3"))
        return db_conv2d(tape, operand(T, dx, 4, image), operand(DB_F32, dw, 4, kernel),
                         operand(DB_F32, dw, 1, &o.OC), db_none, 1, 1, 1);
    if (!strcmp(o.name, "attention"))
        return db_attention(tape, operand(T, dx, 3, queries), operand(T, dx, 3, keys),
                            operand(T, dx, 3, keys), db_none, db_none, o.heads,
                            1 / sqrtf((float)(o.C / o.heads)), 0);
    return db_group_norm(tape, operand(T, dx, 4, image), operand(DB_F32, dw, 1, &o.C),
                         operand(DB_F32, dw, 1, &o.C), db_none, o.groups, 1e-5f, DB_ACT_SILU);
}

/* Forward is the whole tape; backward is what follows the gradient of a loss on the operation's
   output. */
static void op(void)
{
    int both = !strcmp(o.pass, "bwd"), dx = both || !strcmp(o.pass, "dx"),
        dw = both || !strcmp(o.pass, "dw");
    db_tensor y = record_op(dx, dw);
    db_keep(tape, y);
    if (dx || dw) {
        db_backward(
            tape, db_mse(tape, y, db_input(tape, DB_F32, y.n_dims, y.dim), db_none, db_none, NULL));
        first_node = tape->n_forward + 2; /* after d loss = 1 and the gradient of db_mse */
    } else if (strcmp(o.pass, "fwd")) fail("--pass is fwd, dx, dw or bwd, not ", o.pass);
    prepare_tape();
    run_tape();
    run = run_nodes;
}

/* ---- networks -------------------------------------------------------------------------------- */

static db_unet *unet;
static db_optimizer optimizer;
static db_schedule schedule;
static float *average, *words,
    *pixels; /* EMA of the parameters, text [2B,TOKENS,D], images [B,size,size,3] */

static void set_random(db_param_table *p)
{
    size_t k;
    fill(p->data, DB_F32, p->count);
    for (k = 0; k < p->count; k++) p->data[k] = 0.2f * p->data[k] - 0.1f;
}

/* The network of a configuration file of the shipped base or, without one, that part of Stable
   Diffusion 1.5. */
static void *make_network(const db__network *kind, const char *part, const char *world)
{
    const db_json *all = world ? NULL : db_json_load(ctx, "tools/sd15.json");
    const char *path = world ? world : "tools/sd15.json";
    void *config = db__alloc(ctx, 1, kind->config_bytes), *network = NULL;
    if (world) db__config_load(ctx, kind, path, config);
    else db__config_read(ctx, kind, db_json_get(all, part), path, config);
    if (db_status(ctx) == DB_OK) network = db__network_create(ctx, kind, config, path);
    if (!network) fail(db_last_error(ctx), "");
    set_random((db_param_table *)network);
    db_json_free(all);
    db__free(ctx, config);
    return network;
}

static void make_unet(void)
{
    const char *world = strstr(o.name, "sd15") ? NULL : BASE "unet/config.json";
    unet = (db_unet *)make_network(&db__unet_network, "unet", world);
}

static db_tensor image_input(size_t B, size_t channels)
{
    const size_t dim[4] = {B, o.size, o.size, channels};
    return db_input(tape, DB_F32, 4, dim);
}

static db_tensor record_unet(db_tensor x)
{
    const db_unet_config *c = &unet->config;
    const size_t dim[3] = {x.dim[0], TOKENS,
                           c->encoder_hid_dim ? c->encoder_hid_dim : c->cross_attention_dim};
    return db_unet_forward(tape, unet, x, db_input(tape, DB_F32, 1, dim),
                           db_input(tape, DB_F32, 3, dim), db_none, NULL);
}

static void unet_forward(void)
{
    make_unet();
    db_keep(tape, record_unet(image_input(o.B, unet->config.in_channels)));
    prepare_tape();
}

static void run_train_step(void)
{
    db_zero_grad(&unet->params);
    db_run(tape, 1, (uint32_t)optimizer.step);
    db_optimizer_step(&optimizer, 1e-4f, 1, NULL);
    if (average) db_ema_update(&unet->params, average, 0.9995f);
}

/* tools/pretrain.c's step without its auxiliary head: v-prediction, the loss weighted by pixel; and
   of the shipped base an average of the weights. */
static void unet_train_step(void)
{
    db_tensor x, eps, alpha, sigma, weight, v, pred;
    make_unet();
    x = image_input(o.B, unet->config.in_channels), eps = db_normal_like(tape, x, FOR_NOISE);
    alpha = db_input(tape, DB_F32, 1, x.dim), sigma = db_input(tape, DB_F32, 1, x.dim);
    weight = db_input(tape, DB_F32, 3, x.dim);
    if (!strstr(o.name, "sd15")) average = db_ema_create(&unet->params);
    db_optimizer_init(&optimizer, &unet->params, NULL);
    v = db_mix(tape, alpha, eps, sigma, x);
    pred = record_unet(db_mix(tape, alpha, x, sigma, eps));
    db_backward(tape, db_mse(tape, pred, v, db_none, weight, NULL));
    prepare_tape();
    run = run_train_step;
}

static void run_generate(void)
{
    db_sample_config c = db_sample_config_default();
    c.sampler = DB_SAMPLER_DDIM, c.num_inference_steps = STEPS, c.guidance_scale = 3;
    db_sample(unet, &schedule, &c, words, TOKENS, unet->config.encoder_hid_dim, o.B, o.size, o.size,
              3, pixels);
}

static void world_generate(void)
{
    db_memory_plan plan = {0, 0, 0};
    make_unet();
    record_unet(
        image_input(2 * o.B, 3)); /* only to count the work of a step: db_sample has its own tape */
    db_plan(tape, &plan);
    flops = STEPS * plan.flops;
    db_schedule_load(ctx, BASE "scheduler/scheduler_config.json", &schedule);
    words = (float *)db__alloc(ctx, 2 * o.B * TOKENS * unet->config.encoder_hid_dim, sizeof(float));
    pixels = (float *)db__alloc(ctx, o.B * o.size * o.size * 3, sizeof(float));
    run = run_generate;
}

static void text(void)
{
    const char *world = strstr(o.name, "clip") ? NULL : BASE "text_encoder/config.json";
    const size_t dim[2] = {o.B, TOKENS};
    db_text_encoder *e =
        (db_text_encoder *)make_network(&db__text_network, "text_encoder", world);
    db_keep(
        tape,
        db_text_forward(tape, e, db_input(tape, DB_I32, 2, dim), db_input(tape, DB_F32, 2, dim)));
    prepare_tape();
}

static void vae_decode(void)
{
    db_vae *v = (db_vae *)make_network(&db__vae_network, "vae", NULL);
    db_keep(tape, db_vae_decode_forward(tape, v, image_input(o.B, v->config.latent_channels)));
    prepare_tape();
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

/* ---- measuring ------------------------------------------------------------------------------- */

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

static void measure(void)
{
    const double shortest = 0.05; /* seconds of a repetition */
    double *seconds = (double *)malloc(o.repetitions * sizeof *seconds),
           *peak = (double *)malloc(o.repetitions * sizeof *peak), began, before;
    size_t calls, r, k;
    if (!seconds || !peak) fail("out of memory", "");
    run(); /* finds cold caches, fresh memory and a slow clock */
    began = now();
    run();
    calls = (size_t)(shortest / DB__MAX(now() - began, 1e-7)) + 1;
    for (before = peak_now(), r = 0; r < o.repetitions; r++) {
        began = now();
        for (k = 0; k < calls; k++) run();
        seconds[r] = (now() - began) / (double)calls;
        peak[r] = before, before = peak_now(), peak[r] = (peak[r] + before) / 2;
    }
    if (db_status(ctx) != DB_OK) fail(db_last_error(ctx), "");
    printf("{\"name\": \"%s %s\", \"flops\": %.0f, \"peak_mb\": %.1f, \"arena_mb\": %.1f, "
           "\"threads\": %d, \"isa\": \"%s\", \"dtype\": \"%s\"",
           o.command, o.name, flops, peak_mb(), arena_mb, db__threads(ctx),
           ctx->backend == db_backend_cpu() ? db_isa(ctx) : ctx->backend->name, o.dtype);
    for (printf(", \"seconds\": ["), r = 0; r < o.repetitions; r++)
        printf("%s%.9g", r ? ", " : "", seconds[r]);
    for (printf("], \"share_of_peak\": ["), r = 0; r < o.repetitions; r++)
        printf("%s%.4g", r ? ", " : "", flops / seconds[r] / peak[r]);
    printf("]}\n");
}

static void read_flags(int argc, char **argv)
{
    static const struct { const char *name; size_t *number; const char **text;
    } flag[] = {{"--B", &o.B, NULL},
                {"--batch", &o.B, NULL},
                {"--H", &o.H, NULL},
                {"--W", &o.W, NULL},
                {"--C", &o.C, NULL},
                {"--OC", &o.OC, NULL},
                {"--T", &o.T, NULL},
                {"--S", &o.S, NULL},
                {"--heads", &o.heads, NULL},
                {"--groups", &o.groups, NULL},
                {"--size", &o.size, NULL},
                {"--threads", &o.threads, NULL},
                {"--repetitions", &o.repetitions, NULL},
                {"--dtype", NULL, &o.dtype},
                {"--pass", NULL, &o.pass},
                {"--device", NULL, &o.device},
                {"--file", NULL, &o.file}};
    size_t f, n = sizeof flag / sizeof *flag;
    int k;
    for (k = 3; k < argc; k += 2) {
        for (f = 0; f < n && strcmp(flag[f].name, argv[k]); f++) {}
        if (f == n || k + 1 == argc) fail(f == n ? "unknown flag " : "no value after ", argv[k]);
        if (flag[f].text) *flag[f].text = argv[k + 1];
        else if ((*flag[f].number = (size_t)strtoul(argv[k + 1], NULL, 10)) == 0)
            fail("not a positive number after ", argv[k]);
    }
    if (strcmp(o.dtype, "f32") && strcmp(o.dtype, "bf16"))
        fail("--dtype is f32 or bf16, not ", o.dtype);
}

int main(int argc, char **argv)
{
    static const struct { const char *command, *name; void (*prepare)(void);
    } table[] = {{"peak", "registers", peak_registers},
                 {"peak", "gemm", peak_gemm},
                 {"load", "world_base", load},
                 {"op", "conv3x3", op},
                 {"op", "linear", op},
                 {"op", "attention", op},
                 {"op", "group_norm", op},
                 {"net", "world_base_forward", unet_forward},
                 {"net", "world_base_train_step", unet_train_step},
                 {"net", "world_text", text},
                 {"net", "world_generate", world_generate},
                 {"net", "unet_sd15_forward", unet_forward},
                 {"net", "unet_sd15_train_step", unet_train_step},
                 {"net", "clip_text", text},
                 {"net", "vae_decode", vae_decode}};
    size_t k = 0, n = sizeof table / sizeof *table;
    db_config config = db_config_default();
    if (argc > 2) o.command = argv[1], o.name = argv[2];
    while (k < n && (strcmp(table[k].command, o.command) || strcmp(table[k].name, o.name))) k++;
    if (k == n) fail("no such measurement; the top of tools/bench.c lists them: ", o.name);
    read_flags(argc, argv);
    config.threads = (int)o.threads;
    config.compute = strcmp(o.dtype, "bf16") ? DB_F32 : DB_BF16;
    if (!choose_device(o.device, &config)) return 1;
    if (db_create(&ctx, &config) != DB_OK || db_tape_create(ctx, &tape) != DB_OK)
        fail("no context: is $DB_ISA an instruction set of this machine?", "");
    table[k].prepare();
    if (db_status(ctx) != DB_OK) fail(db_last_error(ctx), "");
    measure();
    return 0; /* and the system takes everything back */
}
