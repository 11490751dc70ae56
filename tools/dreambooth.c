/* dreambooth - the command-line tool: `build/dreambooth COMMAND --flag value ...`, `--help` at each level. */

#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#define IMAGES_IMPLEMENTATION
#include "images.h"
#include <ctype.h>
#include <dirent.h>
#include <signal.h>
#include <time.h>

/* ---- flags ------------------------------------------------------------------------------------- */

enum { MAX_LIST = 64 };

typedef enum kind { TEXT, WHOLE, REAL, SWITCH, LIST } kind;

typedef struct list {
    const char *item[MAX_LIST];
    size_t n;
} list;

typedef struct flag {
    const char *name;
    kind kind;
    void *value;      /* const char **, long *, double *, int *, list * */
    const char *help;
} flag;

static int fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "dreambooth: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    return 1;
}

/* How many single-letter edits lead from a to b. */
static size_t distance(const char *a, const char *b)
{
    size_t row[128], n = strlen(b), i, j;
    if (n > 126 || strlen(a) > 126) return 1000;
    for (j = 0; j <= n; j++) row[j] = j;
    for (i = 0; a[i]; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (j = 0; j < n; j++) {
            size_t change = diagonal + (a[i] != b[j]), best;
            diagonal = row[j + 1];
            best = row[j] + 1 < diagonal + 1 ? row[j] + 1 : diagonal + 1;
            row[j + 1] = change < best ? change : best;
        }
    }
    return row[n];
}

static void print_flags(const char *command, const char *what, const flag *flags)
{
    printf("build/dreambooth %s: %s\n\n", command, what);
    for (; flags->name; flags++) {
        char value[64] = "";
        if (flags->kind == TEXT) snprintf(value, sizeof value, "TEXT%s%s", *(const char **)flags->value ? " = " : "", *(const char **)flags->value ? *(const char **)flags->value : "");
        if (flags->kind == LIST) snprintf(value, sizeof value, "TEXT ...");
        if (flags->kind == WHOLE) snprintf(value, sizeof value, "N = %ld", *(long *)flags->value);
        if (flags->kind == REAL) snprintf(value, sizeof value, "X = %g", *(double *)flags->value);
        printf("  --%-32s %-28s %s\n", flags->name, value, flags->help);
    }
}

/* Reads the flags after the command; '-' and '_' are the same. Returns 0, 1 after a complaint, or 2 after --help. */
static int parse(int argc, char **argv, const char *command, const char *what, const flag *flags, list *loose)
{
    int i;
    for (i = 2; i < argc; i++) {
        const flag *f, *nearest = flags;
        char name[128];
        size_t k;
        if (strncmp(argv[i], "--", 2)) {
            if (!loose || loose->n == MAX_LIST) return fail("what is \"%s\"? Flags begin with --", argv[i]);
            loose->item[loose->n++] = argv[i];
            continue;
        }
        snprintf(name, sizeof name, "%s", argv[i] + 2);
        for (k = 0; name[k]; k++) name[k] = name[k] == '-' ? '_' : name[k];
        if (!strcmp(name, "help")) {
            print_flags(command, what, flags);
            return 2;
        }
        for (f = flags; f->name && strcmp(f->name, name); f++)
            if (distance(f->name, name) < distance(nearest->name, name)) nearest = f;
        if (!f->name) return fail("%s has no flag --%s; did you mean --%s?", command, name, distance(nearest->name, name) < 1000 ? nearest->name : "help");
        if (f->kind == SWITCH) {
            *(int *)f->value = 1;
            continue;
        }
        if (i + 1 == argc) return fail("--%s needs a value", name);
        if (f->kind == LIST) {
            list *l = (list *)f->value;
            while (i + 1 < argc && strncmp(argv[i + 1], "--", 2)) {
                if (l->n == MAX_LIST) return fail("--%s takes at most %d values", name, MAX_LIST);
                l->item[l->n++] = argv[++i];
            }
            continue;
        }
        i++;
        if (f->kind == TEXT) *(const char **)f->value = argv[i];
        else {
            char *end;
            double v = strtod(argv[i], &end);
            if (*end || end == argv[i]) return fail("--%s takes a number, not \"%s\"", name, argv[i]);
            if (f->kind == REAL) *(double *)f->value = v;
            else *(long *)f->value = (long)v;
        }
    }
    return 0;
}

/* ---- common ---------------------------------------------------------------------------------------- */

typedef struct common {
    const char *model, *precision, *isa;
    long threads;
    int quiet;
} common;

#define COMMON_FLAGS(c)                                                                              \
    {"pretrained_model_name_or_path", TEXT, &(c).model, "a diffusers directory"},                     \
    {"mixed_precision", TEXT, &(c).precision, "no or bf16"},                                          \
    {"threads", WHOLE, &(c).threads, "0: all cores"}, {"isa", TEXT, &(c).isa, "instruction set"},     \
    {"quiet", SWITCH, &(c).quiet, "no progress"}

static const common common_default = {"examples/world/base", "no", NULL, 0, 0};

static void print_log(void *user, db_log_level level, const char *line)
{
    (void)user;
    fprintf(stderr, "%s%s\n", level == DB_LOG_WARNING ? "warning: " : "", line);
}

static db_ctx *open_context(const common *c)
{
    db_config config = db_config_default();
    db_ctx *ctx = NULL;
    config.threads = (int)c->threads;
    config.isa = c->isa;
    config.log = print_log;
    if (!strcmp(c->precision, "bf16")) config.compute = DB_BF16;
    else if (strcmp(c->precision, "no")) fail("--mixed_precision takes no or bf16, not \"%s\"", c->precision);
    if (db_create(&ctx, &config) != DB_OK) fail("this build or processor has no instruction set \"%s\"", c->isa ? c->isa : "?");
    return ctx;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Prints the context's error, if there is one; the exit status. */
static int finish(db_ctx *ctx)
{
    int bad = db_status(ctx) != DB_OK;
    if (bad) fail("%s", db_last_error(ctx));
    db_destroy(ctx);
    return bad;
}

static uint8_t to_byte(float x)
{
    float v = (x + 1) * 127.5f + 0.5f;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* Writes picture k of pixels [n][h][w][3] as PNG. */
static int save_picture(const float *pixels, size_t h, size_t w, const char *path)
{
    size_t i, n = h * w * 3;
    uint8_t *rgb = (uint8_t *)malloc(n);
    char err[IMG_ERROR_SIZE];
    int bad;
    for (i = 0; i < n; i++) rgb[i] = to_byte(pixels[i]);
    bad = img_save_png(path, rgb, w, h, err, sizeof err) != IMG_OK;
    free(rgb);
    return bad ? fail("%s", err) : 0;
}

/* A labelled grid of n pictures. */
static int save_grid(const float *pixels, size_t n, size_t h, size_t w, const char *const *labels, const char *title, const char *path)
{
    uint8_t *rgb = (uint8_t *)malloc(n * h * w * 3);
    const uint8_t **each = (const uint8_t **)malloc(n * sizeof *each);
    img_grid_config g = img_grid_config_default();
    img_image sheet;
    char err[IMG_ERROR_SIZE];
    size_t i;
    int bad;
    for (i = 0; i < n * h * w * 3; i++) rgb[i] = to_byte(pixels[i]);
    for (i = 0; i < n; i++) each[i] = rgb + i * h * w * 3;
    g.title = title, g.scale = w < 128 ? 2 : 1, g.columns = n < 8 ? n : 8;
    bad = img_grid(each, labels, n, w, h, &g, &sheet, err, sizeof err) != IMG_OK || img_save_png(path, sheet.rgb, sheet.w, sheet.h, err, sizeof err) != IMG_OK;
    if (!bad) img_free(&sheet);
    free(rgb);
    free((void *)each);
    return bad ? fail("%s", err) : 0;
}

static int make_folder(const char *path)
{
    if (mkdir(path, 0777) == 0 || errno == EEXIST) return 0;
    return fail("cannot make the folder %s: %s", path, strerror(errno));
}

static db_sampler sampler_named(const char *name)
{
    return !strcmp(name, "ddpm") ? DB_SAMPLER_DDPM : DB_SAMPLER_DDIM;
}

/* ---- generate ----------------------------------------------------------------------------------------- */

static int generate(int argc, char **argv)
{
    common c = common_default;
    list prompts = {{NULL}, 0};
    const char *negative = NULL, *scheduler = "ddim", *out = "generated";
    long per_prompt = 1, steps = 30, height = 0, width = 0, seed = 0;
    double guidance = 3;
    const flag flags[] = {{"prompt", LIST, &prompts, "one or more"}, {"negative_prompt", TEXT, &negative, ""}, {"num_images", WHOLE, &per_prompt, "of each prompt"},
        {"num_inference_steps", WHOLE, &steps, ""}, {"guidance_scale", REAL, &guidance, ""}, {"scheduler", TEXT, &scheduler, "ddpm or ddim"},
        {"height", WHOLE, &height, "0: the model's"}, {"width", WHOLE, &width, ""}, {"seed", WHOLE, &seed, ""}, {"output_dir", TEXT, &out, ""}, COMMON_FLAGS(c), {NULL, TEXT, NULL, NULL}};
    int status = parse(argc, argv, "generate", "draws pictures of prompts", flags, NULL);
    db_ctx *ctx;
    db_pipeline *p = NULL;
    if (status) return status == 1;
    if (!prompts.n) return fail("generate needs --prompt");
    if (strcmp(scheduler, "ddpm") && strcmp(scheduler, "ddim")) return fail("--scheduler takes ddpm or ddim");
    ctx = open_context(&c);
    if (!ctx) return 1;
    if (db_pipeline_load(ctx, c.model, &p) == DB_OK && !make_folder(out)) {
        size_t n = prompts.n * (size_t)per_prompt, k, H = (size_t)(height ? height : (long)p->unet->config.sample_size), W = (size_t)(width ? width : (long)H);
        const char **all = (const char **)calloc(n, sizeof *all);
        float *pixels = (float *)malloc(n * H * W * 3 * sizeof(float));
        db_sample_config s = db_sample_config_default();
        char path[4096], title[256];
        double began = now();
        s.sampler = sampler_named(scheduler), s.num_inference_steps = (size_t)steps, s.guidance_scale = (float)guidance, s.seed = (uint64_t)seed;
        for (k = 0; k < n; k++) all[k] = prompts.item[k / (size_t)per_prompt];
        if (db_generate(p, all, n, negative, &s, H, W, pixels) == DB_OK) {
            for (k = 0; k < n && !status; k++) snprintf(path, sizeof path, "%s/%05zu.png", out, k), status = save_picture(pixels + k * H * W * 3, H, W, path);
            snprintf(title, sizeof title, "%s, %s %ld steps, guidance %g, seed %ld", c.model, scheduler, steps, guidance, seed);
            snprintf(path, sizeof path, "%s/grid.png", out);
            status |= save_grid(pixels, n, H, W, all, title, path);
            printf("%zu pictures in %s, %.1f s\n", n, out, now() - began);
        }
        free((void *)all);
        free(pixels);
    } else {
        status = 1;
    }
    db_pipeline_free(p);
    return finish(ctx) || status;
}

/* ---- train -------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;
static void on_signal(int s) { (void)s, interrupted = 1; }

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The names in a folder, sorted, without those that begin with a dot; NULL when it cannot be read. */
static char **list_folder(const char *path, size_t *n)
{
    DIR *d = opendir(path);
    struct dirent *e;
    char **names = NULL;
    *n = 0;
    if (!d) return NULL;
    names = (char **)calloc(1, sizeof *names);
    while ((e = readdir(d))) {
        if (e->d_name[0] == '.') continue;
        names = (char **)realloc(names, (*n + 2) * sizeof *names);
        names[*n] = (char *)malloc(strlen(e->d_name) + 1);
        strcpy(names[(*n)++], e->d_name);
    }
    closedir(d);
    if (*n) qsort(names, *n, sizeof *names, by_name);
    return names;
}

/* Loads every picture of a folder that can be one; the others are named and left out. */
static img_image *load_photos(const char *folder, size_t resolution, size_t *n)
{
    size_t files, k;
    char **names = list_folder(folder, &files), path[4096], err[IMG_ERROR_SIZE];
    img_image *photos;
    *n = 0;
    if (!names) {
        fail("cannot read the folder %s", folder);
        return NULL;
    }
    photos = (img_image *)calloc(files + 1, sizeof *photos);
    for (k = 0; k < files; k++) {
        img_image *p = &photos[*n];
        snprintf(path, sizeof path, "%s/%s", folder, names[k]);
        free(names[k]);
        if (img_load(path, p, err, sizeof err) != IMG_OK) {
            fprintf(stderr, "skipped: %s\n", err);
        } else if (p->w < 32 || p->h < 32) {
            fprintf(stderr, "skipped: %s is a thumbnail of %zu x %zu pixels\n", path, p->w, p->h);
            img_free(p);
        } else {
            if (p->w < resolution || p->h < resolution) fprintf(stderr, "warning: %s has %zu x %zu pixels and is enlarged to %zu\n", path, p->w, p->h, resolution);
            ++*n;
        }
    }
    free(names);
    return photos;
}

/* Class images [n,S,S,3] from the folder, those that are missing drawn first by the untouched model. */
static float *class_images(db_pipeline *p, const char *folder, const char *prompt, size_t n, size_t S, const db_sample_config *sampling)
{
    float *pixels = (float *)malloc(n * S * S * 3 * sizeof(float));
    char path[4096], err[IMG_ERROR_SIZE];
    size_t k, i, drawn = 0;
    double began = now();
    if (make_folder(folder)) return NULL;
    for (k = 0; k < n; k++) {
        img_image image;
        float *x = pixels + k * S * S * 3;
        snprintf(path, sizeof path, "%s/%05zu.png", folder, k);
        if (!db__exists(path)) {
            db_sample_config c = *sampling;
            c.seed = db_class_image_seed(prompt, k);
            if (db_generate(p, &prompt, 1, NULL, &c, S, S, x) != DB_OK || save_picture(x, S, S, path)) return NULL;
            drawn++;
        }
        if (img_load(path, &image, err, sizeof err) != IMG_OK) return fail("%s", err), NULL;
        if (image.w != S || image.h != S) return fail("%s is not %zu x %zu pixels: remove it, or choose another --class_data_dir", path, S, S), NULL;
        for (i = 0; i < S * S * 3; i++) x[i] = (float)image.rgb[i] / 127.5f - 1; /* what is stored is what is trained on */
        img_free(&image);
    }
    if (drawn) printf("%zu class images of \"%s\" drawn in %.1f s\n", drawn, prompt, now() - began);
    return pixels;
}

/* The highest N of OUTPUT/checkpoint-N, or 0; with `keep`, removes all but the newest `keep` of them. */
static long newest_checkpoint(const char *out, long keep)
{
    size_t files, k;
    char **names = list_folder(out, &files), path[4096];
    long steps[1024], best = 0;
    int n = 0, i, j;
    for (k = 0; names && k < files; k++) {
        if (!strncmp(names[k], "checkpoint-", 11) && n < 1024) steps[n++] = atol(names[k] + 11);
        free(names[k]);
    }
    free(names);
    for (i = 0; i < n; i++) {
        int newer = 0;
        best = steps[i] > best ? steps[i] : best;
        for (j = 0; j < n; j++) newer += steps[j] > steps[i];
        if (keep > 0 && newer >= keep) {
            snprintf(path, sizeof path, "%s/checkpoint-%ld/state.safetensors", out, steps[i]), remove(path);
            snprintf(path, sizeof path, "%s/checkpoint-%ld", out, steps[i]), remove(path);
        }
    }
    return best;
}

static void save_checkpoint(const db_dreambooth *d, const char *out, long limit)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/checkpoint-%zu", out, db_dreambooth_steps_done(d));
    if (make_folder(path)) return;
    snprintf(path, sizeof path, "%s/checkpoint-%zu/state.safetensors", out, db_dreambooth_steps_done(d));
    if (db_dreambooth_save(d, path) == DB_OK && limit > 0) newest_checkpoint(out, limit);
}

static int train(int argc, char **argv)
{
    common c = common_default;
    db_dreambooth_config config = db_dreambooth_config_default();
    const char *photos_dir = NULL, *class_dir = "class_images", *prompt = NULL, *class_prompt = NULL, *out = "dreambooth-model", *resume = NULL, *scheduler = "constant";
    long n_class = 100, steps = 400, batch = 4, accumulation = 1, every = 500, limit = 0, seed = 0, resolution = 0, warmup = 0, class_steps = 100;
    int prior = 0, center = 0, checkpointing = 0, text_too = 0;
    double lambda = 1, rate = 5e-6, b1 = 0.9, b2 = 0.999, decay = 1e-2, eps = 1e-8, norm = 1, class_guidance = 1;
    const flag flags[] = {{"instance_data_dir", TEXT, &photos_dir, "the photos"}, {"instance_prompt", TEXT, &prompt, "\"a zxk dog\""},
        {"with_prior_preservation", SWITCH, &prior, "keep the class"}, {"class_prompt", TEXT, &class_prompt, "\"a dog\""}, {"class_data_dir", TEXT, &class_dir, "class images, completed if need be"},
        {"num_class_images", WHOLE, &n_class, ""}, {"class_steps", WHOLE, &class_steps, "sampling steps of a class image (DDPM)"}, {"class_guidance", REAL, &class_guidance, "and its guidance"},
        {"prior_loss_weight", REAL, &lambda, "lambda"}, {"output_dir", TEXT, &out, "a directory that diffusers loads"}, {"resolution", WHOLE, &resolution, "0: the model's"},
        {"center_crop", SWITCH, &center, "instead of random crops"}, {"train_text_encoder", SWITCH, &text_too, ""}, {"train_batch_size", WHOLE, &batch, "of each of the two terms"},
        {"max_train_steps", WHOLE, &steps, ""}, {"learning_rate", REAL, &rate, ""}, {"lr_scheduler", TEXT, &scheduler, "constant, constant_with_warmup, linear or cosine"},
        {"lr_warmup_steps", WHOLE, &warmup, ""}, {"gradient_accumulation_steps", WHOLE, &accumulation, ""}, {"gradient_checkpointing", SWITCH, &checkpointing, "less memory, more time"},
        {"adam_beta1", REAL, &b1, ""}, {"adam_beta2", REAL, &b2, ""}, {"adam_weight_decay", REAL, &decay, ""}, {"adam_epsilon", REAL, &eps, ""}, {"max_grad_norm", REAL, &norm, ""},
        {"checkpointing_steps", WHOLE, &every, ""}, {"checkpoints_total_limit", WHOLE, &limit, "0: keep all"}, {"resume_from_checkpoint", TEXT, &resume, "a checkpoint folder, or latest"},
        {"seed", WHOLE, &seed, ""}, COMMON_FLAGS(c), {NULL, TEXT, NULL, NULL}};
    int status = parse(argc, argv, "train", "teaches a model a subject from a folder of photos", flags, NULL);
    db_ctx *ctx;
    db_pipeline *p = NULL;
    db_dreambooth *d = NULL;
    img_image *photos = NULL;
    db_image *views = NULL;
    float *classes = NULL, *curve[3] = {NULL, NULL, NULL};
    size_t n_photos = 0, S, k, done = 0;
    char path[4096];
    if (status) return status == 1;
    if (!photos_dir || !prompt) return fail("train needs --instance_data_dir and --instance_prompt");
    if (prior && !class_prompt) return fail("--with_prior_preservation needs --class_prompt, for instance \"a dog\"");
    if (steps < 1 || batch < 1 || accumulation < 1 || (prior && n_class < 1)) return fail("steps, batch sizes and the number of class images must be positive");
    ctx = open_context(&c);
    if (!ctx) return 1;
    if (db_pipeline_load(ctx, c.model, &p) != DB_OK) return finish(ctx);
    S = resolution > 0 ? (size_t)resolution : p->unet->config.sample_size;
    photos = load_photos(photos_dir, S, &n_photos);
    if (!photos || !n_photos) status = fail("%s holds no photos (PNG or JPEG)", photos_dir);
    if (!status) status = make_folder(out);
    if (!status && prior) {
        db_sample_config s = db_sample_config_default(); /* the ancestral sampler */
        s.num_inference_steps = (size_t)class_steps, s.guidance_scale = (float)class_guidance;
        classes = class_images(p, class_dir, class_prompt, (size_t)n_class, S, &s);
        status = !classes;
    }
    if (!status) {
        config.instance_prompt = prompt, config.class_prompt = prior ? class_prompt : NULL, config.prior_loss_weight = (float)lambda;
        config.resolution = S, config.center_crop = center, config.train_batch_size = config.class_batch_size = (size_t)batch;
        config.gradient_accumulation_steps = (size_t)accumulation, config.gradient_checkpointing = checkpointing, config.max_train_steps = (size_t)steps;
        config.learning_rate = (float)rate, config.lr_warmup_steps = (size_t)warmup, config.train_text_encoder = text_too, config.seed = (uint64_t)seed;
        config.lr_scheduler = !strcmp(scheduler, "linear") ? DB_LR_LINEAR : !strcmp(scheduler, "cosine") ? DB_LR_COSINE : !strcmp(scheduler, "constant_with_warmup") ? DB_LR_CONSTANT_WITH_WARMUP : DB_LR_CONSTANT;
        config.optimizer.beta1 = (float)b1, config.optimizer.beta2 = (float)b2, config.optimizer.weight_decay = (float)decay, config.optimizer.eps = (float)eps, config.optimizer.max_grad_norm = (float)norm;
        views = (db_image *)calloc(n_photos, sizeof *views);
        for (k = 0; k < n_photos; k++) views[k].rgb = photos[k].rgb, views[k].w = photos[k].w, views[k].h = photos[k].h;
        status = db_dreambooth_create(p, p, &config, views, n_photos, classes, prior ? (size_t)n_class : 0, &d) != DB_OK;
    }
    if (!status && resume) {
        if (!strcmp(resume, "latest")) snprintf(path, sizeof path, "%s/checkpoint-%ld/state.safetensors", out, newest_checkpoint(out, 0));
        else snprintf(path, sizeof path, "%s/state.safetensors", resume);
        if (strcmp(resume, "latest") || newest_checkpoint(out, 0)) status = db_dreambooth_resume(d, path) != DB_OK;
    }
    if (!status) {
        db_memory_plan plan;
        double began = now();
        db_dreambooth_plan(d, &plan);
        printf("%zu photos%s; %.2fM parameters: %.0f MB with gradients and moments; activations %.0f MB, kernels %.0f MB; %.1f GFLOP a step\n", n_photos,
               prior ? ", prior preservation" : "", (double)p->unet->params.count / 1e6, (double)p->unet->params.count * 16 / 1e6, (double)plan.arena_bytes / 1e6,
               (double)plan.scratch_bytes / 1e6, plan.flops * (double)accumulation / 1e9);
        for (k = 0; k < 3; k++) curve[k] = (float *)calloc((size_t)steps + 1, sizeof(float));
        signal(SIGINT, on_signal), signal(SIGTERM, on_signal);
        while (db_dreambooth_steps_done(d) < (size_t)steps && !interrupted) {
            db_dreambooth_losses l;
            if (db_dreambooth_step(d, &l) != DB_OK) break;
            curve[0][done] = l.total, curve[1][done] = l.instance, curve[2][done] = l.prior, done++;
            if (!c.quiet && (done % 20 == 0 || done == 1)) {
                double each = (now() - began) / (double)done;
                printf("step %zu of %ld  loss %.4f  photos %.4f  class %.4f  %.2f s a step, %.0f s left\n", db_dreambooth_steps_done(d), steps, (double)l.total, (double)l.instance,
                       (double)l.prior, each, each * (double)((size_t)steps - db_dreambooth_steps_done(d)));
                fflush(stdout);
            }
            if (every > 0 && db_dreambooth_steps_done(d) % (size_t)every == 0) save_checkpoint(d, out, limit);
        }
        if (db_status(ctx) == DB_OK && interrupted) {
            save_checkpoint(d, out, limit);
            printf("stopped after step %zu; go on with --resume_from_checkpoint latest\n", db_dreambooth_steps_done(d));
        } else if (db_status(ctx) == DB_OK) {
            const char *const labels[] = {"total", "photos", "class"};
            img_curve curves[3];
            img_plot_config plot = img_plot_config_default();
            img_image picture;
            char err[IMG_ERROR_SIZE];
            db_pipeline_save(p, out, DB_F16);
            memset(curves, 0, sizeof curves);
            for (k = 0; k < 3; k++) curves[k].label = labels[k], curves[k].y = curve[k], curves[k].n = done;
            plot.title = "Loss", plot.x_label = "step", plot.smooth = 20;
            snprintf(path, sizeof path, "%s/loss.png", out);
            if (done && img_plot(curves, prior ? 3 : 1, &plot, &picture, err, sizeof err) == IMG_OK) img_save_png(path, picture.rgb, picture.w, picture.h, err, sizeof err), img_free(&picture);
            printf("trained for %zu steps in %.1f s -> %s\n", done, now() - began, out);
        }
    }
    db_dreambooth_free(d);
    for (k = 0; photos && k < n_photos; k++) img_free(&photos[k]);
    for (k = 0; k < 3; k++) free(curve[k]);
    free(photos), free(views), free(classes);
    db_pipeline_free(p);
    return finish(ctx) || status;
}

/* ---- tokenize, info ------------------------------------------------------------------------------------- */

static int tokenize(int argc, char **argv)
{
    common c = common_default;
    list texts = {{NULL}, 0};
    const flag flags[] = {COMMON_FLAGS(c), {NULL, TEXT, NULL, NULL}};
    int status = parse(argc, argv, "tokenize", "prints the ids of a text", flags, &texts);
    db_ctx *ctx;
    db_tokenizer *tok = NULL;
    char path[4096];
    size_t k, i;
    if (status) return status == 1;
    if (!texts.n) return fail("tokenize needs a text");
    ctx = open_context(&c);
    if (!ctx) return 1;
    snprintf(path, sizeof path, "%s/tokenizer", c.model);
    db_tokenizer_load(ctx, path, &tok);
    for (k = 0; k < texts.n && db_status(ctx) == DB_OK; k++) {
        int32_t ids[4096];
        size_t n = db_tokenizer_split(tok, texts.item[k], ids, 4096);
        for (i = 0; i < n && i < 4096; i++) printf("%s%d", i ? " " : "", (int)ids[i]);
        printf("\n");
    }
    db_tokenizer_free(tok);
    return finish(ctx);
}

static int info(int argc, char **argv)
{
    common c = common_default;
    const flag flags[] = {COMMON_FLAGS(c), {NULL, TEXT, NULL, NULL}};
    int status = parse(argc, argv, "info", "what a pipeline directory holds, and what a step of it needs", flags, NULL);
    db_ctx *ctx;
    db_pipeline *p = NULL;
    if (status) return status == 1;
    ctx = open_context(&c);
    if (!ctx) return 1;
    if (db_pipeline_load(ctx, c.model, &p) == DB_OK) {
        size_t k, dim[4], text[3];
        db_memory_plan plan;
        db_tape *t = NULL;
        const db_unet_config *u = &p->unet->config;
        printf("%s: %s\n", c.model, p->super_resolution ? "IFSuperResolutionPipeline" : "IFPipeline");
        if (p->text_encoder) printf("text encoder   %.2fM parameters, %zu layers, width %zu\n", (double)p->text_encoder->params.count / 1e6, p->text_encoder->config.num_layers, p->text_encoder->config.d_model);
        printf("unet           %.2fM parameters, %zu tensors, channels", (double)p->unet->params.count / 1e6, p->unet->params.n);
        for (k = 0; k < u->n_levels; k++) printf(" %zu", u->block_out_channels[k]);
        printf(", %zu -> %zu, %zu px\n", u->in_channels, u->out_channels, u->sample_size);
        db_tape_create(ctx, &t);
        dim[0] = 1, dim[1] = dim[2] = u->sample_size, dim[3] = u->in_channels;
        text[0] = 1, text[1] = DB_PROMPT_TOKENS, text[2] = u->encoder_hid_dim;
        db_unet_forward(t, p->unet, db_input(t, DB_F32, 4, dim), db_input(t, DB_F32, 1, dim), db_input(t, DB_F32, 3, text), u->class_embed_timestep ? db_input(t, DB_F32, 1, dim) : db__none, NULL);
        if (db_plan(t, &plan) == DB_OK)
            printf("forward pass   %.2f GFLOP, %.1f MB of activations, %.1f MB of scratch (one picture, %s, %s)\n", plan.flops / 1e9, (double)plan.arena_bytes / 1e6,
                   (double)plan.scratch_bytes / 1e6, c.precision, db_isa(ctx));
        db_tape_destroy(t);
    }
    db_pipeline_free(p);
    return finish(ctx);
}

/* ---- probe ------------------------------------------------------------------------------------------------ */

/* A tensor of the input file as floats; 4-dimensional ones from [B,C,H,W] to [B,H,W,C]. */
static float *read_tensor(db_safetensors *st, const char *name, size_t dim[4])
{
    const db_file_tensor *f = db_safetensors_find(st, name);
    float *x, *y;
    size_t b, ch, p, P;
    int d;
    if (!f) return NULL;
    for (d = 0; d < 4; d++) dim[d] = d < f->rank ? f->dim[d] : 1;
    x = (float *)malloc((f->count + 1) * sizeof(float));
    db_file_tensor_to_f32(f, x);
    if (f->rank != 4) return x;
    y = (float *)malloc((f->count + 1) * sizeof(float));
    P = dim[2] * dim[3];
    for (b = 0; b < dim[0]; b++)
        for (ch = 0; ch < dim[1]; ch++)
            for (p = 0; p < P; p++) y[(b * P + p) * dim[1] + ch] = x[(b * dim[1] + ch) * P + p];
    free(x);
    ch = dim[1], dim[1] = dim[2], dim[2] = dim[3], dim[3] = ch;
    return y;
}

static void write_output(db_ctx *ctx, const char *path, const char *name, const float *y, int n_dims, const size_t *d, const float *loss)
{
    db_safetensors_writer *w = db_safetensors_create(ctx, path);
    size_t dim[4], n = 1, b, ch, p, one = 1;
    float *x;
    int k;
    for (k = 0; k < n_dims; k++) dim[k] = d[k], n *= d[k];
    x = (float *)malloc(n * sizeof(float));
    memcpy(x, y, n * sizeof(float));
    if (n_dims == 4) {
        size_t P = d[1] * d[2];
        dim[1] = d[3], dim[2] = d[1], dim[3] = d[2];
        for (b = 0; b < d[0]; b++)
            for (ch = 0; ch < d[3]; ch++)
                for (p = 0; p < P; p++) x[(b * d[3] + ch) * P + p] = y[(b * P + p) * d[3] + ch];
    }
    db_safetensors_declare(w, name, DB_F32, n_dims, dim);
    if (loss) db_safetensors_declare(w, "loss", DB_F32, 1, &one);
    db_safetensors_write_f32(w, name, x);
    if (loss) db_safetensors_write_f32(w, "loss", loss);
    db_safetensors_finish(w);
    free(x);
}

static int probe(int argc, char **argv)
{
    common c = common_default;
    const char *part = "unet", *in = NULL, *out = NULL, *grads = NULL;
    const flag flags[] = {{"part", TEXT, &part, "unet or text_encoder"}, {"in", TEXT, &in, "safetensors with diffusers' argument names"}, {"out", TEXT, &out, "safetensors"},
        {"grads", TEXT, &grads, "also write the gradients of mean((output - target)^2)"}, COMMON_FLAGS(c), {NULL, TEXT, NULL, NULL}};
    int status = parse(argc, argv, "probe", "runs one network on given tensors", flags, NULL), is_unet;
    db_ctx *ctx;
    db_safetensors *st = NULL;
    db_unet *u = NULL;
    db_text_encoder *e = NULL;
    db_param_table *params = NULL;
    char path[4096];
    if (status) return status == 1;
    is_unet = !strcmp(part, "unet");
    if (!is_unet && strcmp(part, "text_encoder")) return fail("--part takes unet or text_encoder, not \"%s\"", part);
    if (!in || !out) return fail("probe needs --in and --out");
    ctx = open_context(&c);
    if (!ctx) return 1;
    snprintf(path, sizeof path, "%s/%s/config.json", c.model, part);
    if (db__exists(path)) snprintf(path, sizeof path, "%s/%s", c.model, part);
    else snprintf(path, sizeof path, "%s", c.model); /* the part's own directory */
    db_safetensors_open(ctx, in, &st);
    if (db_status(ctx) == DB_OK && is_unet) db_unet_load(ctx, path, &u);
    if (db_status(ctx) == DB_OK && !is_unet) db_text_encoder_load(ctx, path, &e);
    if (db_status(ctx) == DB_OK) {
        db_tape *t = NULL;
        db_tensor y, loss = db__none, target = db__none, input[4];
        size_t d[4], dt[4], dl[4], dg[4], k;
        float *a = read_tensor(st, is_unet ? "sample" : "input_ids", d), *b = read_tensor(st, is_unet ? "timestep" : "attention_mask", dl);
        float *words = read_tensor(st, "encoder_hidden_states", dt), *labels = read_tensor(st, "class_labels", dl), *goal = read_tensor(st, "target", dg), *result, value = 0;
        int32_t *ids = NULL;
        params = is_unet ? &u->params : &e->params;
        if (!a || !b || (is_unet && !words) || (grads && !goal)) {
            db_safetensors_close(st);
            return fail("%s lacks %s", in, !a || !b ? "its inputs" : is_unet && !words ? "encoder_hidden_states" : "target");
        }
        if (grads) db_params_require_grad(params);
        db_tape_create(ctx, &t);
        if (is_unet) {
            float *time = (float *)malloc(d[0] * sizeof(float));
            for (k = 0; k < d[0]; k++) time[k] = b[db_safetensors_find(st, "timestep")->count > 1 ? k : 0];
            input[0] = db_input(t, DB_F32, 4, d), input[1] = db_input(t, DB_F32, 1, d), input[2] = db_input(t, DB_F32, 3, dt);
            input[3] = labels ? db_input(t, DB_F32, 1, d) : db__none;
            y = db_unet_forward(t, u, input[0], input[1], input[2], input[3], NULL);
            free(b), b = time;
        } else {
            ids = (int32_t *)malloc(d[0] * d[1] * sizeof *ids);
            for (k = 0; k < d[0] * d[1]; k++) ids[k] = (int32_t)a[k], b[k] = b[k] > 0 ? 0.0f : -1e9f;
            input[0] = db_input(t, DB_I32, 2, d), input[1] = db_input(t, DB_F32, 2, d), input[2] = input[3] = db__none;
            y = db_text_forward(t, e, input[0], input[1]);
        }
        db_keep(t, y);
        if (grads) {
            target = db_input(t, DB_F32, y.n_dims, y.dim);
            loss = db_mse(t, y, target, db__none, db__none, NULL);
            db_backward(t, loss);
        }
        if (ids) db_upload(t, input[0], ids);
        else db_upload(t, input[0], a);
        db_upload(t, input[1], b), db_upload(t, input[2], words), db_upload(t, input[3], labels);
        if (grads) db_upload(t, target, goal);
        db_run(t, 0, 0);
        result = (float *)malloc((db_count(y) + 1) * sizeof(float));
        db_download(t, y, result), db_download(t, loss, &value);
        if (db_status(ctx) == DB_OK) write_output(ctx, out, is_unet ? "sample" : "last_hidden_state", result, y.n_dims, y.dim, grads ? &value : NULL);
        if (grads && db_status(ctx) == DB_OK) db_params_save(params, params->grad, grads, DB_F32);
        db_tape_destroy(t);
        free(a), free(b), free(words), free(labels), free(goal), free(ids), free(result);
    }
    db_safetensors_close(st);
    db_unet_free(u);
    db_text_encoder_free(e);
    return finish(ctx);
}

/* ---- main ---------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    const struct { const char *name; int (*run)(int, char **); const char *what; } commands[] = {
        {"train", train, "photos of a subject -> a model that knows it"},
        {"generate", generate, "prompts -> pictures and a labelled grid"},
        {"tokenize", tokenize, "a text -> its ids"},
        {"info", info, "what a model directory holds and needs"},
        {"probe", probe, "one network on given tensors, to compare with other implementations"}};
    size_t k, n = sizeof commands / sizeof *commands;
    for (k = 0; k < n; k++)
        if (argc > 1 && !strcmp(argv[1], commands[k].name)) return commands[k].run(argc, argv);
    printf("build/dreambooth COMMAND --flag value ...\n\n");
    for (k = 0; k < n; k++) printf("  %-10s %s\n", commands[k].name, commands[k].what);
    printf("\nEach has --help.\n");
    return argc > 1 && strcmp(argv[1], "--help") ? fail("there is no command \"%s\"", argv[1]) : argc < 2;
}
