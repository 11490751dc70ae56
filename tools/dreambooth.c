/* dreambooth - the command-line tool: `build/dreambooth COMMAND --flag value ...`

   Each command is one function below: generate, upscale, eval, identifier, train, and those that
   look inside a model; `demo` does all of it. `--help` at each level. */

#define _POSIX_C_SOURCE 200809L
#include "dreambooth.h"
#include <limits.h>
#include <strings.h>
#define IMAGES_IMPLEMENTATION
#include "images.h"
#include "cli.h"
#include "threads.h"

/* ---- models: one stage, or a cascade of them ------------------------------------------------- */

enum { MAX_STAGES = 3 };

typedef struct cascade {
    db_pipeline *stage[MAX_STAGES]; /* owned; base first; a super-resolver alone is stage 0    */
    size_t n;
    db_pipeline *text;              /* the stage whose text encoder all use                    */
    db_pipeline *beside;            /* owned: where a lone super-resolver finds its text, or NULL */
} cascade;

static void free_cascade(cascade *c)
{
    size_t k;
    for (k = 0; k < c->n; k++) db_pipeline_free(c->stage[k]);
    db_pipeline_free(c->beside);
}

/* DIRECTORY is a diffusers pipeline, or a folder with pipelines named base, sr256, sr1024, of which
   the first `stages` are opened. `upscalers` (or NULL) follow. A super-resolver without a text
   encoder uses that of the base beside it. */
static int load_cascade(db_ctx *ctx, const char *directory, long stages, const list *upscalers,
                        cascade *c)
{
    static const char *const names[MAX_STAGES] = {"base", "sr256", "sr1024"};
    char path[4096];
    size_t k;
    memset(c, 0, sizeof *c);
    snprintf(path, sizeof path, "%s/base/model_index.json", directory);
    if (file_exists(path)) {
        for (k = 0; k < (size_t)stages && k < MAX_STAGES && db_status(ctx) == DB_OK; k++) {
            snprintf(path, sizeof path, "%s/%s/model_index.json", directory, names[k]);
            if (!file_exists(path)) break;
            snprintf(path, sizeof path, "%s/%s", directory, names[k]);
            if (db_pipeline_load(ctx, path, &c->stage[c->n]) == DB_OK) c->n++;
        }
    } else if (db_pipeline_load(ctx, directory, &c->stage[0]) == DB_OK) {
        c->n = 1;
    }
    for (k = 0; upscalers && k < upscalers->n && db_status(ctx) == DB_OK; k++) {
        if (c->n == MAX_STAGES) return fail("a cascade has at most %d stages", MAX_STAGES);
        if (db_pipeline_load(ctx, upscalers->item[k], &c->stage[c->n]) != DB_OK) break;
        if (!c->stage[c->n++]->super_resolution)
            return fail("%s is no super-resolution pipeline", upscalers->item[k]);
    }
    if (db_status(ctx) != DB_OK) return 1;
    c->text = c->stage[0];
    if (!c->text->text_encoder && c->text->super_resolution) {
        snprintf(path, sizeof path, "%s/../base", directory);
        if (db_pipeline_load(ctx, path, &c->beside) != DB_OK) return 1;
        c->text = c->beside;
    }
    return 0;
}

/* One stage's directory: DIRECTORY itself, or NAME in the folder of a cascade. */
static const char *stage_directory(const char *directory, const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s/model_index.json", directory, name);
    if (!file_exists(path)) return directory;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

/* Pixels along a side of the pictures it was made for. */
static size_t stage_size(const db_pipeline *p)
{
    return p->unet->config.sample_size * (p->vae ? db_vae_factor(p->vae) : 1);
}

/* ---- generate -------------------------------------------------------------------------------- */

typedef struct drawing {
    const char *negative, *scheduler;
    long steps, height, width, seed, stages, upscale_steps, upscale_tile;
    double guidance, guidance_stop, upscale_guidance, noise_variance;
    float *latents; /* the base's initial noise [n,C,h,w], owned by who reads it; or NULL */
} drawing;

static const drawing drawing_default = {NULL, NULL, 0, 0, 0, 0, 2, 0, 256, -1, -1, -1, -1, NULL};

#define UPSCALE_FLAGS(d)                                                                           \
    {"upscale_steps", WHOLE, &(d).upscale_steps,                                                   \
     "sampling steps of a super-resolver; 0: 10, of DeepFloyd's 50"},                              \
    {"upscale_tile", WHOLE, &(d).upscale_tile,                                                     \
     "it sees squares of so many pixels, which overlap; 0: whole pictures"},                       \
    {"upscale_guidance", REAL, &(d).upscale_guidance,                                              \
     "its guidance; 1: none; below 0: none, of DeepFloyd's 4"},                                    \
    {"noise_variance", REAL, &(d).noise_variance,                                                  \
     "put on its small image: 1e-5 where `train` has tuned it; below 0: 1e-3, of DeepFloyd's "     \
     ".154, its level 250"}

#define SCHEDULER_FLAG(d)                                                                          \
    {"scheduler", TEXT, &(d).scheduler,                                                            \
     "ddpm, ddim or dpmsolver++; without: dpmsolver++, of Stable Diffusion and DeepFloyd "         \
     "what their files name"}

#define DRAWING_FLAGS(d)                                                                           \
    {"negative_prompt", TEXT, &(d).negative, "what not to draw"},                                  \
    {"num_inference_steps", WHOLE, &(d).steps,                                                     \
     "sampling steps; 0: 20, of Stable Diffusion 50, of DeepFloyd IF 100"},                        \
    {"guidance_scale", REAL, &(d).guidance,                                                        \
     "up to 1: none; below 0: 4, of Stable Diffusion 7.5, of DeepFloyd IF 7"},                     \
    {"guidance_stop", REAL, &(d).guidance_stop,                                                    \
     "share of the steps that have it; below 0: .6, but with --latents, of Stable Diffusion and "  \
     "of DeepFloyd IF all"},                                                                       \
    SCHEDULER_FLAG(d),                                                                             \
    {"seed", WHOLE, &(d).seed, "of the first picture; the next gets the next"}, UPSCALE_FLAGS(d)

/* Samplers by our names and by diffusers' classes, in the order of db_sampler. */
static const char *const sampler_names[][2] = {{"ddpm", "DDPMScheduler"}, {"ddim", "DDIMScheduler"},
                                               {"dpmsolver++", "DPMSolverMultistepScheduler"}};

/* -1 after a complaint about `flag_name`. */
static int find_sampler(const char *name, const char *flag_name)
{
    int k, j;
    for (k = 0; k < 3; k++)
        for (j = 0; j < 2; j++)
            if (!strcmp(name, sampler_names[k][j])) return k;
    fail("--%s takes ddpm, ddim or dpmsolver++, not \"%s\"", flag_name, name);
    return -1;
}

static int check_drawing(const drawing *d)
{
    if (d->scheduler && find_sampler(d->scheduler, "scheduler") < 0) return 1;
    if (d->stages < 1 || d->stages > MAX_STAGES)
        return fail("--stages takes 1 to %d", (int)MAX_STAGES);
    if (d->upscale_tile % 8) return fail("--upscale_tile must be a multiple of 8");
    if (d->height % 8 || d->width % 8) return fail("--height and --width must be multiples of 8");
    if (d->noise_variance >= 1) return fail("--noise_variance must lie in [0,1)");
    return 0;
}

/* What was left to the models: of the first stage, and of the first that enlarges. */
static void complete_drawing(drawing *d, const cascade *c)
{
    const db_pipeline *base = c->stage[0],
                      *sr = base->super_resolution || c->n < 2 ? base : c->stage[1];
    int latent = base->vae != NULL, large = sr->super_resolution && is_deepfloyd(sr);
    if (!d->scheduler)
        d->scheduler = sampler_names[latent || is_deepfloyd(base) ? base->scheduler.sampler
                                                                  : DB_SAMPLER_DPMSOLVER][0];
    if (!d->steps) d->steps = latent ? 50 : is_deepfloyd(base) ? 100 : 20;
    if (d->guidance < 0) d->guidance = usual_guidance(base);
    if (d->guidance_stop < 0) d->guidance_stop = usual_guidance_stop(base);
    if (!d->upscale_steps) d->upscale_steps = large ? 50 : 10;
    if (d->upscale_guidance < 0) d->upscale_guidance = large ? 4 : 1;
    if (d->noise_variance < 0)
        d->noise_variance = large ? db_noise_variance(&sr->image_noising, 250) : 1e-3;
}

static db_sample_config sampling(const drawing *d, int upscaling)
{
    db_sample_config s = db_sample_config_default();
    s.sampler = (db_sampler)find_sampler(d->scheduler, "scheduler");
    s.num_inference_steps = (size_t)(upscaling ? d->upscale_steps : d->steps);
    s.guidance_scale = (float)MAX(upscaling ? d->upscale_guidance : d->guidance, 1.0);
    if (!upscaling) s.guidance_stop = (float)d->guidance_stop;
    s.seed = (uint64_t)d->seed;
    if (upscaling) s.tile = (size_t)d->upscale_tile;
    if (!upscaling &&
        d->latents) /* who gives the noise wants diffusers' picture: then its DDIM, too */
        s.latents = d->latents, s.use_clipped_model_output = 0;
    return s;
}

/* Draws n prompts through all stages: pictures[k] [n,h,w,3] of stage k, owned by the caller, with
   its size in h[k], w[k]. */
static int draw(const cascade *c, const drawing *d, const char *const *prompts, size_t n,
                float *pictures[MAX_STAGES], size_t h[MAX_STAGES], size_t w[MAX_STAGES])
{
    size_t k, base = stage_size(c->stage[0]);
    db_ctx *ctx = c->stage[0]->ctx;
    if (c->stage[0]->super_resolution)
        return fail("%s enlarges pictures; to draw some, name a base, or a cascade's folder",
                    c->stage[0]->directory);
    for (k = 0; k < c->n && db_status(ctx) == DB_OK; k++) {
        db_sample_config s = sampling(d, k > 0);
        size_t scale = k ? stage_size(c->stage[k]) / stage_size(c->stage[k - 1]) : 1;
        h[k] = k ? h[k - 1] * scale : d->height ? (size_t)d->height : base;
        w[k] = k ? w[k - 1] * scale : d->width ? (size_t)d->width : base;
        pictures[k] = (float *)malloc(n * h[k] * w[k] * 3 * sizeof(float));
        if (!pictures[k]) return fail("out of memory for %zu pictures of %zu x %zu", n, w[k], h[k]);
        bar_start(k ? "upscaling" : "drawing");
        if (k)
            db_upscale(c->stage[k], c->text, prompts, n, d->negative, &s,
                       db_noise_level(&c->stage[k]->image_noising, d->noise_variance),
                       pictures[k - 1], h[k - 1], w[k - 1], h[k], w[k], pictures[k]);
        else
            db_generate(c->stage[k], prompts, n, d->negative, &s, h[k], w[k], pictures[k]);
    }
    return db_status(ctx) != DB_OK;
}

/* The initial noise of n pictures, diffusers' argument `latents` [n,C,h,w], from a file's tensor of
   that name. It also says how large the pictures are, unless --height and --width did. */
static int load_latents(db_pipeline *base, const char *path, size_t n, drawing *d)
{
    size_t C = base->vae ? base->vae->config.latent_channels : 3,
           f = base->vae ? db_vae_factor(base->vae) : 1;
    const db_file_tensor *t;
    db_safetensors *st = NULL;
    int bad = 0;
    if (db_safetensors_open(base->ctx, path, &st) != DB_OK) return 1;
    t = db_safetensors_find(st, "latents");
    if (!t || t->n_dims != 4 || !t->count) {
        bad = fail("%s holds no tensor \"latents\" of shape [pictures, channels, height, width]",
                   path);
    } else {
        if (!d->height) d->height = (long)(t->dim[2] * f);
        if (!d->width) d->width = (long)(t->dim[3] * f);
        if (t->dim[0] != n || t->dim[1] != C || t->dim[2] * f != (size_t)d->height ||
            t->dim[3] * f != (size_t)d->width)
            bad = fail("%s: latents of shape [%zu,%zu,%zu,%zu], but %zu pictures of %ld x %ld "
                       "pixels need [%zu,%zu,%ld,%ld]",
                       path, t->dim[0], t->dim[1], t->dim[2], t->dim[3], n, d->width, d->height, n,
                       C, d->height / (long)f, d->width / (long)f);
    }
    if (!bad) {
        d->latents = (float *)malloc((t->count + 1) * sizeof(float));
        db_file_tensor_to_f32(t, d->latents);
    }
    db_safetensors_close(st);
    return bad;
}

enum { MOST_PICTURES = 100000, ON_A_GRID = 64 };

/* Whether a folder has no picture of the name of a command's first, or beside it the file that the
   command leaves there. */
static int is_own_folder(const char *out, const char *beside)
{
    char first[4096], mark[4096];
    snprintf(first, sizeof first, "%s/00000.png", out);
    snprintf(mark, sizeof mark, "%s/%s", out, beside);
    return !file_exists(first) || file_exists(mark);
}

static int generate(int argc, char **argv)
{
    common c = common_default;
    drawing d = drawing_default;
    list prompts = {{NULL}, 0}, upscalers = {{NULL}, 0};
    const char *out = "generated", *latents = NULL, *lora = NULL;
    long each = 1;
    const flag flags[] = {
        {"prompt", LIST, &prompts, "one or more"},
        {"num_images", WHOLE, &each, "of each prompt"},
        {"height", WHOLE, &d.height, "in pixels; 0: the model's"},
        {"width", WHOLE, &d.width, "in pixels; 0: the model's"},
        {"latents", TEXT, &latents,
         "safetensors with diffusers' initial noise \"latents\" [n,C,h,w]"},
        {"lora", TEXT, &lora, "folder or file of a LoRA beside the model's weights"},
        {"stages", WHOLE, &d.stages, "of a cascade's folder: 1 base, 2 sr256, 3 sr1024"},
        {"upscalers", LIST, &upscalers, "directories of further stages"},
        {"output_dir", TEXT, &out, "pictures, and a labelled grid of each stage's first 64"},
        DRAWING_FLAGS(d),
        COMMON_FLAGS(c)};
    int status = parse(argc, argv, "generate", "draws pictures of prompts", flags, NULL);
    float *pictures[MAX_STAGES] = {NULL, NULL, NULL};
    size_t h[MAX_STAGES], w[MAX_STAGES], n, k;
    const char **all;
    char path[4096], title[512];
    cascade m;
    db_ctx *ctx;
    double began = now();
    if (status) return status == 1;
    if (!prompts.n || each < 1 || each > MOST_PICTURES)
        return fail("generate needs --prompt, and 1 to %d pictures of it", MOST_PICTURES);
    if (!is_own_folder(out, "prompts.txt"))
        return fail("%s holds pictures that are not generate's: choose another --output_dir", out);
    if (check_drawing(&d)) return 1;
    stop_in_order();
    ctx = open_context(&c);
    if (!ctx) return 1;
    n = prompts.n * (size_t)each;
    all = (const char **)calloc(n, sizeof *all);
    for (k = 0; k < n; k++) all[k] = prompts.item[k / (size_t)each];
    status = load_cascade(ctx, c.model, d.stages, &upscalers, &m);
    if (latents && d.guidance_stop < 0) d.guidance_stop = 1; /* see sampling() */
    if (!status && d.stages == MAX_STAGES && m.n < MAX_STAGES)
        fprintf(stderr, "note: %s has no third stage; --upscalers names one\n", c.model);
    if (!status) complete_drawing(&d, &m);
    if (!status && lora) status = db_pipeline_load_lora(m.stage[0], lora) != DB_OK;
    if (!status && latents) status = load_latents(m.stage[0], latents, n, &d);
    if (!status) status = make_output_folder(out) || draw(&m, &d, all, n, pictures, h, w);
    for (k = 0; k < n && !status; k++) {
        size_t last = m.n - 1;
        snprintf(path, sizeof path, "%s/%05zu.png", out, k);
        status = save_picture(pictures[last] + k * h[last] * w[last] * 3, h[last], w[last], path);
    }
    if (!status) status = save_lines(out, "prompts.txt", all, n);
    snprintf(path, sizeof path, "%s/%05zu.png", out, n);
    if (!status && file_exists(path))
        fprintf(stderr, "note: %s and those after it are of an earlier run\n", path);
    for (k = 0; k < m.n && !status; k++) {
        snprintf(title, sizeof title, "%s, %zu px, %s %ld steps, guidance %g, seed %ld", c.model,
                 w[k], d.scheduler, k ? d.upscale_steps : d.steps,
                 k ? d.upscale_guidance : d.guidance, d.seed);
        snprintf(path, sizeof path, "%s/grid_%zu.png", out, w[k]);
        status = save_grid(pictures[k], MIN(n, (size_t)ON_A_GRID), h[k], w[k], all, 8, title, path);
    }
    if (!status) printf("%zu pictures in %s, %.1f s\n", n, out, now() - began);
    for (k = 0; k < MAX_STAGES; k++) free(pictures[k]);
    free((void *)all);
    free(d.latents);
    free_cascade(&m);
    return finish(ctx) || status;
}

/* ---- upscale --------------------------------------------------------------------------------- */

/* The pixels of a small picture [h][w][3] as blocks of f x f, to see what was given. */
static void show_small(const float *small, size_t h, size_t w, size_t f, float *blocks)
{
    size_t y, x;
    for (y = 0; y < h * f; y++)
        for (x = 0; x < w * f; x++)
            memcpy(blocks + (y * w * f + x) * 3, small + (y / f * w + x / f) * 3,
                   3 * sizeof *small);
}

/* Views and names without the grids that `generate` writes beside its pictures; returns how
   many. */
static size_t leave_out_grids(photos *p)
{
    size_t k, n = 0;
    for (k = 0; k < p->n; k++)
        if (strncmp(p->name[k], "grid_", 5) != 0) {
            p->view[n] = p->view[k];
            memmove(p->name[n++], p->name[k], sizeof p->name[0]);
        }
    return n;
}

static int upscale(int argc, char **argv)
{
    common c = common_default;
    drawing d = drawing_default;
    const char *in = NULL, *out = "upscaled", *prompt = "";
    int reduce = 0;
    const flag flags[] = {
        {"images", TEXT, &in, "a folder of pictures; the network halves sides, odd rows are lost"},
        {"prompt", TEXT, &prompt, "what they show"},
        {"downsample", SWITCH, &reduce, "first make them smaller by the same factor, to compare"},
        SCHEDULER_FLAG(d), {"seed", WHOLE, &d.seed, ""},
        {"output_dir", TEXT, &out, "pictures, and a labelled grid"}, UPSCALE_FLAGS(d),
        COMMON_FLAGS(c)};
    int status = parse(argc, argv, "upscale", "super-resolution of given pictures", flags, NULL);
    char path[4096];
    photos p;
    cascade m;
    db_ctx *ctx;
    size_t k, pictures, f = 4, even = 1; /* a small picture's sides are multiples of `even` */
    if (status) return status == 1;
    if (!in) return fail("upscale needs --images");
    if (is_same_folder(in, out)) return fail("--output_dir %s holds the pictures to enlarge", out);
    if (!is_own_folder(out, "grid_00000.png"))
        return fail("%s holds pictures that are not upscale's: choose another --output_dir", out);
    c.model = stage_directory(c.model, "sr256");
    if (check_drawing(&d)) return 1;
    stop_in_order();
    ctx = open_context(&c);
    if (!ctx) return 1;
    if (load_cascade(ctx, c.model, d.stages, NULL, &m) || load_photos(in, 0, &p) ||
        make_output_folder(out)) {
        free_cascade(&m);
        return finish(ctx) || 1;
    }
    if (!m.stage[0]->super_resolution) status = fail("%s is no super-resolution pipeline", c.model);
    else even = MAX(((size_t)1 << (m.stage[0]->unet->config.n_levels - 1)) / f, (size_t)1);
    complete_drawing(&d, &m);
    pictures = leave_out_grids(&p);
    for (k = 0; k < pictures && !status; k++) {
        db_sample_config s = sampling(&d, 1);
        size_t w = p.view[k].w, h = p.view[k].h, big_w, big_h, n = 0, i;
        size_t small_w = (reduce ? w / f : w) / even * even,
               small_h = (reduce ? h / f : h) / even * even;
        float *small = (float *)malloc(w * h * 3 * sizeof(float)), *grid, *result;
        const char *labels[3];
        big_w = small_w * f, big_h = small_h * f;
        grid = (float *)malloc((2 + (size_t)reduce) * big_w * big_h * 3 * sizeof(float));
        if (!small || !grid) status = fail("out of memory to enlarge %s", p.name[k]);
        if (!status) status = db_resize(ctx, &p.view[k], h, w, small) != DB_OK;
        if (status) {
            free(small), free(grid);
            break;
        }
        for (i = 0; i < small_h && !reduce && small_w < w; i++) /* the last odd column is lost */
            memmove(small + i * small_w * 3, small + i * w * 3, small_w * 3 * sizeof *small);
        if (reduce) { /* original, reduced, restored */
            for (i = 0; i < big_h; i++)
                memcpy(grid + i * big_w * 3, small + i * w * 3, big_w * 3 * sizeof(float));
            labels[n++] = "original";
            db_downsample(grid, big_h, big_w, 3, f, small);
        }
        show_small(small, small_h, small_w, f, grid + n * big_h * big_w * 3);
        labels[n++] = "given";
        result = grid + n * big_h * big_w * 3;
        labels[n++] = "restored";
        bar_start("upscaling");
        if (!status)
            status = db_upscale(m.stage[0], m.text, &prompt, 1, NULL, &s,
                                db_noise_level(&m.stage[0]->image_noising, d.noise_variance), small,
                                small_h, small_w, big_h, big_w, result) != DB_OK;
        snprintf(path, sizeof path, "%s/%05zu.png", out, k);
        if (!status) status = save_picture(result, big_h, big_w, path);
        snprintf(path, sizeof path, "%s/grid_%05zu.png", out, k);
        if (!status && save_grid(grid, n, big_h, big_w, labels, 3, p.name[k], path))
            fprintf(stderr, "note: %s has no grid\n", p.name[k]);
        free(small), free(grid);
    }
    if (!status) printf("%zu pictures in %s\n", pictures, out);
    free_photos(&p);
    free_cascade(&m);
    return finish(ctx) || status;
}

/* ---- eval ------------------------------------------------------------------------------------ */

static void print_scores(const db_scores *s, FILE *json)
{
    int first = 1;
    if (json) fprintf(json, "{");
#define SCORE(field, name, what)                                                                   \
    if (s->field == s->field) {                                                                    \
        if (json) fprintf(json, "%s\n  \"%s\": %.6f", first ? "" : ",", #field, s->field);         \
        else printf("%-26s %7.4f  %s\n", name, s->field, what);                                    \
        first = 0;                                                                                 \
    }
    DB_SCORES(SCORE)
#undef SCORE
    if (json) fprintf(json, "\n}\n");
}

static int eval(int argc, char **argv)
{
    common c = common_default;
    const char *dino = NULL, *clip = NULL, *lpips = NULL,
               *folder[5] = {NULL, NULL, NULL, NULL, NULL};
    const char *prompt_file = NULL, *out = NULL;
    const flag flags[] = {
        {"generated_dir", TEXT, &folder[0], "pictures of the subject, as generate writes them"},
        {"instance_data_dir", TEXT, &folder[1], "the photos it was learned from"},
        {"held_out_dir", TEXT, &folder[2], "photos it was not"},
        {"class_dir", TEXT, &folder[3], "the tuned model's \"a [class]\""},
        {"original_class_dir", TEXT, &folder[4], "the original model's"},
        {"prompts", TEXT, &prompt_file,
         "a line for each generated picture, without the identifier"},
        {"dino", TEXT, &dino, "directory of ViT-S/16 (DINO)"},
        {"clip", TEXT, &clip, "directory of CLIP"},
        {"lpips", TEXT, &lpips, "directory of LPIPS"},
        {"output_file", TEXT, &out, "the same as JSON"},
        COMMON_FLAGS(c)};
    int status =
        parse(argc, argv, "eval", "DINO, CLIP-I, CLIP-T, PRES, DIV of given folders", flags, NULL);
    photos set[5];
    db_evaluation e;
    db_scores scores;
    char **lines = NULL;
    const char **each = NULL;
    size_t n[5], k, n_lines = 0;
    db_ctx *ctx;
    memset(set, 0, sizeof set), memset(n, 0, sizeof n), memset(&e, 0, sizeof e);
    if (status) return status == 1;
    if (!dino && !clip && !lpips) return fail("eval needs at least one of --dino, --clip, --lpips");
    if (!folder[0] && !folder[3]) return fail("eval needs --generated_dir or --class_dir");
    ctx = open_context(&c);
    if (!ctx) return 1;
    if (dino) db_vit_load(ctx, dino, &e.dino);
    if (clip && db_status(ctx) == DB_OK) db_clip_load(ctx, clip, &e.clip);
    if (lpips && db_status(ctx) == DB_OK) db_lpips_load(ctx, lpips, &e.lpips);
    status = db_status(ctx) != DB_OK;
    for (k = 0; k < 5 && !status; k++) {
        if (folder[k]) status = load_photos(folder[k], 0, &set[k]);
        n[k] = leave_out_grids(&set[k]);
    }
    e.generated = set[0].view, e.n_generated = n[0], e.real = set[1].view, e.n_real = n[1];
    e.held_out = set[2].view, e.n_held_out = n[2], e.class_images = set[3].view, e.n_class = n[3];
    e.original_class = set[4].view, e.n_original = n[4];
    if (!status && prompt_file) {
        lines = load_lines(prompt_file, &n_lines);
        each = (const char **)calloc(e.n_generated + 1, sizeof *each);
        if (!lines) status = fail("cannot read %s", prompt_file);
        for (k = 0; k < e.n_generated && !status; k++) {
            const char *name = set[0].name[k];
            size_t at = (size_t)strtoul(name, NULL, 10); /* 00012.png -> 12 */
            if (!isdigit((unsigned char)*name))
                status = fail("%s: with --prompts a picture is called by its line's number, from "
                              "00000.png on",
                              name);
            else if (at >= n_lines)
                status = fail("%s has no line %zu for %s", prompt_file, at + 1, name);
            else each[k] = lines[at];
        }
        e.prompts = each;
    }
    if (!status && db_evaluate(ctx, &e, &scores) == DB_OK) {
        FILE *json = out ? begin_file(out) : NULL;
        print_scores(&scores, NULL);
        if (json) print_scores(&scores, json);
        if (out) status = end_file(json, out);
    }
    for (k = 0; k < 5; k++) free_photos(&set[k]);
    for (k = 0; k < n_lines; k++) free(lines[k]);
    free(lines), free((void *)each);
    db_vit_free(e.dino), db_clip_free(e.clip), db_lpips_free(e.lpips);
    return finish(ctx) || status;
}

/* ---- identifiers ----------------------------------------------------------------------------- */

/* The letters of a piece, without the mark of a word's beginning (SentencePiece) or end (CLIP);
   NULL when it is no whole word of lower-case letters. */
static const char *whole_word(const db_tokenizer *tok, int32_t id, char *out, size_t size)
{
    const char *p = db_tokenizer_piece(tok, id);
    size_t n, k;
    int spiece = db_tokenizer_kind_of(tok) == DB_TOKENIZER_T5;
    if (!p) return NULL;
    if (spiece && strncmp(p, "\xe2\x96\x81", 3)) return NULL;
    p += spiece ? 3 : 0;
    n = strlen(p);
    if (!spiece && (n < 4 || strcmp(p + n - 4, "</w>"))) return NULL;
    n -= spiece ? 0 : 4;
    for (k = 0; k < n; k++)
        if (p[k] < 'a' || p[k] > 'z') return NULL;
    if (!n || n >= size) return NULL;
    snprintf(out, size, "%.*s", (int)n, p);
    return out;
}

typedef struct candidate {
    int32_t id;
    float score;
} candidate;

static int rarest_first(const void *a, const void *b)
{
    float x = ((const candidate *)a)->score, y = ((const candidate *)b)->score;
    return x < y ? -1 : x > y ? 1 : ((const candidate *)a)->id - ((const candidate *)b)->id;
}

/* Whole words of 3 letters, the rarest first: [n] into out; returns how many there are. Paper,
   section 3.2: rare tokens first, then their text. */
static size_t rare_words(const db_tokenizer *tok, candidate *out, size_t n)
{
    size_t size = db_tokenizer_size(tok), found = 0, id;
    candidate *all = (candidate *)malloc((size + 1) * sizeof *all);
    char word[8];
    for (id = 0; id < size; id++)
        if (whole_word(tok, (int32_t)id, word, sizeof word) && strlen(word) == 3)
            all[found].id = (int32_t)id, all[found++].score = db_tokenizer_score(tok, (int32_t)id);
    qsort(all, found, sizeof *all, rarest_first);
    memcpy(out, all, MIN(found, n) * sizeof *all);
    free(all);
    return MIN(found, n);
}

/* What is wrong with an identifier, or NULL: the rifle of so many examples, unknown, split into
   letters, a common word. */
static const char *identifier_fault(const db_tokenizer *tok, const char *word)
{
    int32_t ids[256];
    size_t n = db_tokenizer_split(tok, word, ids, 256), k, letters = 0, rarer = 0, words = 0, id;
    char text[64];
    if (!strcasecmp(word, "sks")) return "is a rifle to models that have seen the web";
    if (!n) return "disappears: the tokenizer drops it";
    for (k = 0; k < n && k < 256; k++) {
        const char *p = db_tokenizer_piece(tok, ids[k]);
        if (ids[k] == db_tokenizer_special(tok, DB_SPECIAL_UNK))
            return "is unknown to the tokenizer";
        if (p && !strncmp(p, "\xe2\x96\x81", 3)) p += 3;
        letters += p && (strlen(p) <= 1 || !strcmp(p + 1, "</w>"));
    }
    if (n > 2 && letters + 1 >= n)
        return "splits into single letters, which have meanings of their own";
    if (n > 1) return NULL;
    for (id = 0; id < db_tokenizer_size(tok); id++) {
        if (!whole_word(tok, (int32_t)id, text, sizeof text)) continue;
        words++;
        rarer += db_tokenizer_score(tok, (int32_t)id) < db_tokenizer_score(tok, ids[0]);
    }
    return words && rarer * 4 > words ? "is a common word, with a meaning that resists" : NULL;
}

/* Warns about words of the instance prompt that the class prompt lacks and that make bad
   identifiers. Without a class prompt, the first and the last word are not taken for one. */
static void check_identifier(const db_tokenizer *tok, const char *prompt, const char *class_prompt)
{
    char text[1024], other[1026], wanted[128], *word, *next;
    size_t at = 0;
    if (!tok) return; /* drawing, and training, say so */
    snprintf(text, sizeof text, "%s", prompt);
    snprintf(other, sizeof other, " %s ", class_prompt ? class_prompt : "a an the photo of");
    for (word = strtok(text, " "); word; word = next, at++) {
        const char *fault;
        candidate rare[3];
        char name[3][8] = {"", "", ""};
        size_t k, n;
        next = strtok(NULL, " ");
        snprintf(wanted, sizeof wanted, " %s ", word);
        if (strstr(other, wanted) || (!class_prompt && !next)) continue;
        fault = identifier_fault(tok, word);
        if (!fault) continue;
        n = rare_words(tok, rare, 3);
        for (k = 0; k < n; k++) whole_word(tok, rare[k].id, name[k], sizeof name[k]);
        fprintf(stderr, "warning: the identifier \"%s\" %s; better: %s%s%s%s%s\n", word, fault,
                name[0], n > 1 ? ", " : "", name[1], n > 2 ? ", " : "", name[2]);
    }
}

static int identifier(int argc, char **argv)
{
    common c = common_default;
    list words = {{NULL}, 0};
    long n = 10;
    const flag flags[] = {{"count", WHOLE, &n, "how many to propose"}, COMMON_FLAGS(c)};
    int status = parse(argc, argv, "identifier",
                       "proposes rare identifiers; examines those that are given", flags, &words);
    candidate *rare;
    cascade m;
    db_ctx *ctx;
    size_t k, i, found;
    if (status) return status == 1;
    ctx = open_context(&c);
    if (!ctx) return 1;
    if (load_cascade(ctx, c.model, 1, NULL, &m) || !m.text->tokenizer) {
        free_cascade(&m);
        return finish(ctx) || fail("%s has no tokenizer", c.model);
    }
    n = MIN(n, (long)db_tokenizer_size(m.text->tokenizer));
    for (k = 0; k < words.n; k++) {
        int32_t ids[256];
        size_t pieces =
            MIN(db_tokenizer_split(m.text->tokenizer, words.item[k], ids, 256), (size_t)256);
        const char *fault = identifier_fault(m.text->tokenizer, words.item[k]);
        printf("%s:", words.item[k]);
        for (i = 0; i < pieces; i++)
            printf(" %s(%d)", db_tokenizer_piece(m.text->tokenizer, ids[i]), (int)ids[i]);
        printf("; %s\n", fault ? fault : "a usable identifier");
    }
    rare = (candidate *)calloc((size_t)n + 1, sizeof *rare);
    found = words.n ? 0 : rare_words(m.text->tokenizer, rare, (size_t)n);
    for (k = 0; k < found; k++) {
        char text[8];
        printf("%-6s id %d, score %.3f\n",
               whole_word(m.text->tokenizer, rare[k].id, text, sizeof text), (int)rare[k].id,
               (double)rare[k].score);
    }
    free(rare);
    free_cascade(&m);
    return finish(ctx);
}

/* ---- train ----------------------------------------------------------------------------------- */

typedef struct training {
    db_dreambooth_config config;
    const char *class_dir, *out, *resume;
    long n_class, class_steps, every, limit, sample_batch;
    double class_guidance;
    struct { /* pictures drawn every `every` steps to watch the training */
        const char *prompt, *scheduler;
        list images; /* super-resolution: what is enlarged */
        long n, every;
    } validation;
    int skip_text_encoder; /* not saved */
    int release; /* the text encoder and the autoencoder are not needed once training has begun */
} training;

typedef struct outcome { /* of a training */
    double seconds, class_seconds;
    size_t steps;
    db_memory_plan plan;
    float first, last; /* mean loss of the first and the last tenth */
} outcome;

/* Whether a file in the folder of class images is a picture that was not drawn here: neither
   00012.png, nor a grid. */
static int is_other_picture(const char *name)
{
    const char *end = strrchr(name, '.');
    if (strspn(name, "0123456789") == 5 && !strcmp(name + 5, ".png")) return 0;
    return end && strncmp(name, "grid_", 5) &&
        (!strcasecmp(end, ".png") || !strcasecmp(end, ".jpg") || !strcasecmp(end, ".jpeg"));
}

/* Names the model that draws: a hash of the first numbers of each of its tensors. */
static int name_model(db_pipeline *p, char name[32])
{
    db_param_table *table[2] = {&p->unet->params, NULL};
    uint64_t hash = hash_begin;
    size_t k, i;
    if (p->text_encoder) table[1] = &p->text_encoder->params;
    for (i = 0; i < 2 && table[i]; i++) {
        if (db_params_fill(table[i]) != DB_OK) return 1;
        for (k = 0; k < table[i]->n; k++)
            hash = hash_bytes(hash, table[i]->item[k].data,
                              MIN(table[i]->item[k].count, (size_t)16) * sizeof(float));
    }
    snprintf(name, 32, "model %016llx", (unsigned long long)hash);
    return 0;
}

/* The folder's prompt.txt says what its pictures were drawn for, and by which model: others are an
   error. Where it lacks, one is written if pictures are about to be drawn. */
static int check_class_folder(db_pipeline *p, const training *t, int draws)
{
    char path[4096], **lines, model[32];
    const char *own[2] = {t->config.class_prompt, model};
    size_t n, k;
    int bad;
    if (strpbrk(t->config.class_prompt, "\r\n")) return fail("--class_prompt is one line");
    snprintf(path, sizeof path, "%s/prompt.txt", t->class_dir);
    lines = load_lines(path, &n);
    bad = name_model(p, model);
    if (!bad && n && strcmp(lines[0], own[0]))
        bad = fail("%s holds class images of \"%s\", not of \"%s\": choose another "
                   "--class_data_dir", t->class_dir, lines[0], own[0]);
    if (!bad && n > 1 && !p->super_resolution && strcmp(lines[1], own[1]))
        bad = fail("%s holds class images that another model has drawn: choose another "
                   "--class_data_dir, or remove its prompt.txt to keep them", t->class_dir);
    if (!bad && draws && n < 2) bad = save_lines(t->class_dir, "prompt.txt", own, 2);
    for (k = 0; k < n; k++) free(lines[k]);
    free(lines);
    return bad;
}

/* Pixels along a side of what is drawn for and in training: the model's own, though it may train on
   smaller ones. */
static size_t drawn_size(const db_pipeline *p, const db_dreambooth_config *c)
{
    return MAX(stage_size(p), c->resolution);
}

/* Draws class images 0 ... n - 1 that are missing; image k is the same whichever others are. */
static int draw_class_images(db_pipeline *p, const training *t, size_t n, size_t S)
{
    enum { AT_ONCE = 64 };
    const char *prompts[AT_ONCE];
    size_t k, i, j, at_once = MIN((size_t)t->sample_batch, (size_t)AT_ONCE);
    float *pixels = (float *)malloc(at_once * S * S * 3 * sizeof(float));
    char path[4096];
    int bad = !pixels ? fail("out of memory for class images") : check_class_folder(p, t, 1);
    db_sample_config s = db_sample_config_default(); /* the ancestral sampler */
    s.num_inference_steps = (size_t)t->class_steps,
        s.guidance_scale = (float)MAX(t->class_guidance, 1.0);
    for (k = 0; k < n && !bad; k += MAX(j, (size_t)1)) {
        for (j = 0; j < at_once && k + j < n; j++) { /* a run of those that are missing */
            snprintf(path, sizeof path, "%s/%05zu.png", t->class_dir, k + j);
            if (file_exists(path)) break;
            prompts[j] = t->config.class_prompt;
        }
        if (!j) continue;
        s.seed = db_class_image_seed(t->config.class_prompt, k);
        bar_start("class images");
        bad = bad || db_generate(p, prompts, j, NULL, &s, S, S, pixels) != DB_OK;
        for (i = 0; i < j && !bad; i++) {
            snprintf(path, sizeof path, "%s/%05zu.png", t->class_dir, k + i);
            bad = save_picture(pixels + i * S * S * 3, S, S, path);
        }
    }
    free(pixels);
    return bad;
}

/* Reads a class image, its middle square scaled to S, into [S,S,3]. Not 0 after a message. */
static int read_class_image(db_ctx *ctx, const training *t, const char *name, size_t S, float *out)
{
    char path[4096], err[IMG_ERROR_SIZE];
    img_image image;
    db_image view;
    int bad;
    snprintf(path, sizeof path, "%s/%s", t->class_dir, name);
    if (img_load(path, &image, err, sizeof err) != IMG_OK) return fail("%s", err);
    view.rgb = image.rgb, view.w = image.w, view.h = image.h;
    bad = image.w < S || image.h < S
        ? fail("%s has less than %zu x %zu pixels: remove it, or choose another --class_data_dir",
               path, S, S)
        : square(ctx, &view, S, out);
    img_free(&image);
    return bad;
}

/* How many class images there are to draw: all, but for other pictures that are in the folder and
   those of 00000.png and so on that are there. Not 0 after a message. */
static int count_missing(db_pipeline *p, const training *t, size_t *missing)
{
    size_t n = (size_t)t->n_class, S = drawn_size(p, &t->config), k, files;
    char path[4096], **names;
    if (make_folder(t->class_dir)) return 1;
    names = list_folder(t->class_dir, &files);
    if (!names) return fail("cannot read the folder %s: %s", t->class_dir, strerror(errno));
    for (k = 0; k < files; k++) {
        n -= n && is_other_picture(names[k]);
        free(names[k]);
    }
    free(names);
    for (k = *missing = 0; k < n; k++) {
        snprintf(path, sizeof path, "%s/%05zu.png", t->class_dir, k);
        *missing += !file_exists(path);
    }
    if (*missing && p->super_resolution)
        return fail("a super-resolver draws no class images: put %ld pictures of at least %zu x "
                    "%zu pixels into %s", t->n_class, S, S, t->class_dir);
    return check_class_folder(p, t, 0);
}

/* Class images [n,S,S,3], n = t->n_class: other pictures that are in the folder, then 00000.png and
   so on, of which the untouched model draws those that are missing. NULL after a message. */
static float *class_images(db_pipeline *p, const training *t, size_t S, size_t missing)
{
    enum { SHOWN = 64 };
    size_t n = (size_t)t->n_class, P = S * S * 3, k, files, others = 0;
    float *pixels = (float *)malloc(n * P * sizeof(float));
    char path[4096], name[32], **names = list_folder(t->class_dir, &files);
    const char *labels[SHOWN];
    int bad = pixels ? 0 : fail("out of memory for %zu class images", n);
    for (k = 0; k < files; k++) {
        if (!bad && others < n && is_other_picture(names[k]))
            bad = read_class_image(p->ctx, t, names[k], S, pixels + others++ * P);
        free(names[k]);
    }
    free(names);
    if (missing) bad = bad || draw_class_images(p, t, n - others, drawn_size(p, &t->config));
    for (k = 0; k < n - others && !bad; k++) { /* what is stored is what is trained on */
        snprintf(name, sizeof name, "%05zu.png", k);
        bad = read_class_image(p->ctx, t, name, S, pixels + (others + k) * P);
    }
    if (bad) return free(pixels), NULL;
    for (k = 0; k < SHOWN; k++) labels[k] = "";
    snprintf(path, sizeof path, "%s/grid_class_%zu.png", t->class_dir, S);
    if (missing && save_grid(pixels, MIN(n, (size_t)SHOWN), S, S, labels, 8,
                             t->config.class_prompt, path))
        fprintf(stderr, "note: no grid of the class images\n");
    printf("%zu class images of \"%s\", %zu of them new\n", n, t->config.class_prompt, missing);
    return pixels;
}

/* The highest N of OUTPUT/checkpoint-N, or 0. Removes all but `keep`: that of step `own` (0: none),
   then the highest. */
static long newest_checkpoint(const char *out, long keep, long own)
{
    size_t files, k;
    char **names = list_folder(out, &files), path[4096];
    long *steps = names ? (long *)malloc((files + 1) * sizeof *steps) : NULL, best = 0;
    size_t n = 0, i, j;
    for (k = 0; names && k < files; k++) {
        snprintf(path, sizeof path, "%s/%s/state.safetensors", out, names[k]);
        if (steps && !strncmp(names[k], "checkpoint-", 11) && file_exists(path))
            steps[n++] = atol(names[k] + 11);
        free(names[k]);
    }
    free(names);
    for (i = 0; i < n; i++) {
        int newer = 0;
        best = MAX(best, steps[i]);
        for (j = 0; j < n; j++)
            newer += j != i && (steps[j] == own || (steps[i] != own && steps[j] > steps[i]));
        if (newer < keep) continue;
        snprintf(path, sizeof path, "%s/checkpoint-%ld/state.safetensors", out, steps[i]),
            remove(path);
        snprintf(path, sizeof path, "%s/checkpoint-%ld", out, steps[i]), remove(path);
    }
    free(steps);
    return best;
}

static int save_checkpoint(const db_dreambooth *d, const training *t)
{
    char path[4096];
    size_t step = db_dreambooth_steps_done(d);
    snprintf(path, sizeof path, "%s/checkpoint-%zu", t->out, step);
    if (make_folder(path)) return 1;
    snprintf(path, sizeof path, "%s/checkpoint-%zu/state.safetensors", t->out, step);
    if (db_dreambooth_save(d, path) != DB_OK) return 1;
    newest_checkpoint(t->out, t->limit > 0 ? t->limit : LONG_MAX, (long)step);
    return 0;
}

static int resume(db_dreambooth *d, const training *t)
{
    char path[4096];
    long newest = newest_checkpoint(t->out, LONG_MAX, 0);
    if (strcmp(t->resume, "latest")) {
        const char *name = strrchr(t->resume, '/'); /* as the scripts: in the output folder */
        snprintf(path, sizeof path, "%s/%s/state.safetensors", t->out, name ? name + 1 : t->resume);
        if (!file_exists(path)) snprintf(path, sizeof path, "%s/state.safetensors", t->resume);
    } else {
        if (!newest) return printf("no checkpoint in %s yet: from the beginning\n", t->out), 0;
        snprintf(path, sizeof path, "%s/checkpoint-%ld/state.safetensors", t->out, newest);
    }
    return db_dreambooth_resume(d, path) != DB_OK;
}

/* Whether resuming finds no checkpoint, but a finished model in whose place another would go. */
static int would_begin_anew(const training *t)
{
    static const char *const finished[] = {"model_index.json", "pytorch_lora_weights.safetensors"};
    char path[4096];
    int k, found = 0;
    for (k = 0; k < 2; k++) {
        snprintf(path, sizeof path, "%s/%s", t->out, finished[k]);
        found = found || file_exists(path);
    }
    return found && !strcmp(t->resume, "latest") && !newest_checkpoint(t->out, LONG_MAX, 0);
}

/* The losses of steps first, first + 1 ... */
static int draw_curves(float *const curve[3], size_t first, size_t n, int prior, const char *path)
{
    const char *const labels[] = {"total", "photos", "class"};
    img_curve curves[3];
    img_plot_config plot = img_plot_config_default();
    img_image picture;
    char err[IMG_ERROR_SIZE];
    size_t k;
    float *x = (float *)malloc((n + 1) * sizeof *x); /* which step */
    int bad;
    memset(curves, 0, sizeof curves);
    for (k = 0; k < n; k++) x[k] = (float)(first + k);
    for (k = 0; k < 3; k++)
        curves[k].label = labels[k], curves[k].x = x, curves[k].y = curve[k], curves[k].n = n;
    plot.title = "Denoising loss", plot.x_label = "step", plot.y_label = "mean squared error",
    plot.smooth = 20;
    bad = n && img_plot(curves, prior ? 3 : 1, &plot, &picture, err, sizeof err) != IMG_OK;
    if (n && !bad) {
        bad = img_save_png(path, picture.rgb, picture.w, picture.h, err, sizeof err) != IMG_OK;
        img_free(&picture);
    }
    free(x);
    return bad ? fail("%s", err) : 0;
}

static void print_plan(const db_pipeline *p, const training *t, const db_memory_plan *plan,
                       double step)
{
    const db_dreambooth_config *c = &t->config;
    size_t weights =
        p->unet->params.count + (c->train_text_encoder ? p->text_encoder->params.count : 0);
    size_t trained = weights,
           each = c->optimizer.use_8bit_adam ? 6 : 12; /* bytes beside a weight's own 4 */
    if (c->lora_rank)
        trained = p->unet->params.lora->params.count +
            (c->train_text_encoder ? p->text_encoder->params.lora->params.count : 0);
    printf("%.2fM parameters trained, %.0f MB with gradients and moments; activations and kernels "
           "%.0f MB; %zu operations, %.1f GFLOP a step; about %.0f s for %zu steps\n",
           (double)trained / 1e6,
           (double)(weights * 4 + trained * (each + (c->lora_rank ? 4 : 0))) / 1e6,
           (double)plan->arena_bytes / 1e6, plan->n_operations,
           plan->flops / 1e9, step * (double)c->max_train_steps, c->max_train_steps);
    fflush(stdout);
}

/* Tells what training needs before the hours that class images may take, and fails where it would:
   by a training with a blank one, which is thrown away. */
static int try_out(db_pipeline *p, db_pipeline *text, const photos *photo, const training *t)
{
    const db_dreambooth_config *c = &t->config;
    db_dreambooth *d = NULL;
    db_memory_plan plan;
    db_schedule untouched = p->scheduler; /* class images come from the model as it is */
    float *blank = (float *)calloc(c->resolution * c->resolution * 3, sizeof(float));
    double began;
    int status;
    if (!blank) return fail("out of memory for a class image");
    bar_start("encoding");
    status = db_dreambooth_create(p, text, c, photo->view, photo->n, blank, 1, &d) != DB_OK;
    began = now();
    status = status || db_dreambooth_rehearse(d) != DB_OK;
    if (!status) {
        db_dreambooth_plan(d, &plan);
        print_plan(p, t, &plan, now() - began);
    }
    db_dreambooth_free(d);
    db_lora_remove(&p->unet->params);
    if (text->text_encoder) db_lora_remove(&text->text_encoder->params);
    p->scheduler = untouched;
    free(blank);
    return status;
}

/* After Ctrl-C or a failure that leaves the training whole. */
static void keep_what_is_done(db_dreambooth *d, const training *t, db_ctx *ctx)
{
    if (db_status(ctx) != DB_OK && db_status(ctx) != DB_ERROR_CANCELLED)
        fail("%s", db_last_error(ctx));
    db_clear_error(ctx);
    if (!save_checkpoint(d, t))
        printf("\nstopped after step %zu; train goes on with --resume_from_checkpoint "
               "%s/checkpoint-%zu\n",
               db_dreambooth_steps_done(d), t->out, db_dreambooth_steps_done(d));
}

/* Draws pictures with the weights of now, always from the same noise, into
   OUTPUT/validation-STEP.png. */
static int validate(db_pipeline *p, db_pipeline *text, const training *t, size_t step)
{
    size_t S = p->super_resolution ? t->config.resolution : drawn_size(p, &t->config),
           n = (size_t)t->validation.n, k, small = 0;
    const char **prompts = (const char **)calloc(n, sizeof *prompts);
    float *pictures = (float *)malloc(n * S * S * 3 * sizeof(float)), *low = NULL;
    db_sample_config s = db_sample_config_default();
    char title[512], path[4096], err[IMG_ERROR_SIZE];
    int status = 0, done;
    s.sampler = (db_sampler)find_sampler(t->validation.scheduler, "validation_scheduler");
    s.num_inference_steps = 25, s.seed = t->config.seed;
    s.guidance_scale = (float)usual_guidance(p), s.guidance_stop = (float)usual_guidance_stop(p);
    if (p->super_resolution) {
        s.num_inference_steps = 10, s.guidance_scale = 1, small = S / t->config.upscale;
        low = (float *)malloc(n * small * small * 3 * sizeof(float));
        for (k = 0; k < n && !status; k++) {
            img_image image;
            db_image view;
            if (img_load(t->validation.images.item[k], &image, err, sizeof err) != IMG_OK) {
                status = fail("%s", err);
                break;
            }
            view.rgb = image.rgb, view.w = image.w, view.h = image.h;
            status = square(p->ctx, &view, small, low + k * small * small * 3);
            img_free(&image);
        }
    }
    for (k = 0; k < n; k++) prompts[k] = t->validation.prompt;
    bar_start("validation");
    if (status) done = 0;
    else if (low)
        done = db_upscale(p, text, prompts, n, NULL, &s, t->config.noise_level, low, small, small,
                          S, S, pictures) == DB_OK;
    else done = db_generate(p, prompts, n, NULL, &s, S, S, pictures) == DB_OK;
    snprintf(title, sizeof title, "after %zu steps: %s %zu steps, guidance %g, seed %llu", step,
             t->validation.scheduler, s.num_inference_steps, (double)s.guidance_scale,
             (unsigned long long)s.seed);
    snprintf(path, sizeof path, "%s/validation-%zu.png", t->out, step);
    status = !done || save_grid(pictures, n, S, S, prompts, 4, title, path);
    free((void *)prompts), free(pictures), free(low);
    bar_start("training");
    return status;
}

/* Fine-tunes p in place, with class images, checkpoints and resume, and writes it to t->out with
   its loss curve. */
static int fine_tune(db_pipeline *p, db_pipeline *text, const photos *photo, const training *t,
                     outcome *o)
{
    const db_dreambooth_config *c = &t->config;
    db_ctx *ctx = p->ctx;
    db_dreambooth *d = NULL;
    float *classes = NULL, *curve[3] = {NULL, NULL, NULL};
    size_t k, done = 0, first, tenth, missing = 0;
    char path[4096];
    double began;
    int status = 0, kept = 0; /* the model is written, or nothing can be */
    memset(o, 0, sizeof *o);
    if (c->class_prompt) {
        if (count_missing(p, t, &missing) || (missing && try_out(p, text, photo, t))) return 1;
        began = now();
        classes = class_images(p, t, c->resolution, missing);
        o->class_seconds = now() - began;
        if (!classes) return 1;
    }
    for (k = 0; k < 3; k++) curve[k] = (float *)calloc(c->max_train_steps + 1, sizeof(float));
    if (!curve[0] || !curve[1] || !curve[2]) {
        fail("out of memory for the losses of %zu steps", c->max_train_steps);
        for (k = 0; k < 3; k++) free(curve[k]);
        free(classes);
        return 1;
    }
    bar_start("encoding");
    bar.mute = missing > 0; /* what it says has been said */
    status = db_dreambooth_create(p, text, c, photo->view, photo->n, classes, (size_t)t->n_class,
                                  &d) != DB_OK;
    bar.mute = 0;
    if (!status && t->release && !t->validation.prompt) /* which draws with them */
        db_pipeline_release(text, !c->train_text_encoder && !t->skip_text_encoder, 1);
    if (!status && t->resume) status = resume(d, t);
    first = d ? db_dreambooth_steps_done(d) : 0;
    if (!status) {
        began = now();
        if (!missing) status = db_dreambooth_rehearse(d) != DB_OK; /* else try_out has */
        db_dreambooth_plan(d, &o->plan);
        if (!missing) print_plan(p, t, &o->plan, now() - began);
        began = now();
        bar_start("training");
    }
    while (!status && db_dreambooth_steps_done(d) < c->max_train_steps) {
        db_dreambooth_losses l;
        int unseen = 0; /* validation's pictures, which could not be drawn or written */
        db_result r = db_dreambooth_step(d, &l);
        if (r == DB_OK || r == DB_ERROR_CANCELLED)
            curve[0][done] = l.total, curve[1][done] = l.instance, curve[2][done] = l.prior, done++;
        if (r != DB_OK) {
            status = 1;
            break;
        }
        if (!c->class_prompt)
            snprintf(bar.detail, sizeof bar.detail, "loss %.4f", (double)l.total);
        else
            snprintf(bar.detail, sizeof bar.detail, "loss %.4f = %.4f + %g x %.4f", (double)l.total,
                     (double)l.instance, (double)c->prior_loss_weight, (double)l.prior);
        bar_draw("training", db_dreambooth_steps_done(d), c->max_train_steps);
        if (t->every && db_dreambooth_steps_done(d) % (size_t)t->every == 0)
            status = kept = save_checkpoint(d, t);
        if (!status && t->validation.prompt &&
            db_dreambooth_steps_done(d) % (size_t)t->validation.every == 0)
            unseen = validate(p, text, t, db_dreambooth_steps_done(d));
        if (db_status(ctx) == DB_ERROR_CANCELLED) {
            status = 1;
        } else if (unseen) { /* no reason to lose the training */
            if (db_status(ctx) != DB_OK) fail("%s", db_last_error(ctx));
            db_clear_error(ctx);
            fprintf(stderr, "note: no pictures of validation; the training goes on\n");
        }
    }
    if (!status) {
        o->seconds = now() - began, o->steps = done;
        tenth = MAX(done / 10, (size_t)1);
        for (k = 0; k < tenth && done; k++)
            o->first += curve[0][k] / (float)tenth,
                o->last += curve[0][done - 1 - k] / (float)tenth;
        snprintf(path, sizeof path, "%s/loss.png", t->out);
        db_text_encoder *own = p->text_encoder;
        if (t->skip_text_encoder) p->text_encoder = NULL;
        status = (c->lora_rank ? db_pipeline_save_lora(p, t->out, DB_F32)
                               : db_pipeline_save(p, t->out, DB_F16)) != DB_OK;
        p->text_encoder = own;
        kept = !status;
        status = status || draw_curves(curve, first, done, c->class_prompt != NULL, path);
    }
    if (!status) printf("%zu steps in %.1f s -> %s\n", done, o->seconds, t->out);
    else if (done && !kept && db_status(ctx) != DB_ERROR_NUMERIC) keep_what_is_done(d, t, ctx);
    db_dreambooth_free(d);
    for (k = 0; k < 3; k++) free(curve[k]);
    free(classes);
    return status;
}

static training training_default(void)
{
    training t;
    memset(&t, 0, sizeof t);
    t.config = db_dreambooth_config_default();
    t.class_dir = "class_images", t.out = "dreambooth-model";
    t.n_class = 100, t.class_steps = 100, t.class_guidance = 1, t.every = 500, t.sample_batch = 4;
    t.validation.scheduler = "DPMSolverMultistepScheduler", t.validation.n = 4,
    t.validation.every = 100;
    return t;
}

/* train_dreambooth.py's flags that have no meaning here. */
#define OTHER_FLAGS                                                                                \
    {"class_labels_conditioning", REFUSED, NULL,                                                   \
     "a super-resolver's class label is the noise level of its small image, in training as in "    \
     "sampling; set it with --noise_variance"},                                                    \
    {"push_to_hub", REFUSED, NULL, \
     "nothing here uses a network; upload --output_dir with huggingface-cli"},                     \
    {"hub_token", REFUSED, NULL, "nothing here uses a network"},                                   \
    {"hub_model_id", REFUSED, NULL, "nothing here uses a network"},                                \
    {"revision", REFUSED, NULL, "nothing here uses a network: name a directory on this machine"},  \
    {"tokenizer_name", REFUSED, NULL, \
     "the tokenizer is read from the model's directory; put another one there"},                   \
    {"prior_generation_precision", IGNORED, NULL,                                                  \
     "class images are drawn as --mixed_precision says"},                                          \
    {"report_to", IGNORED, NULL, "losses go to --output_dir/loss.png"},                            \
    {"logging_dir", IGNORED, NULL, "losses go to --output_dir/loss.png"},                          \
    {"dataloader_num_workers", IGNORED, NULL, "photos are read once, before the first step"},      \
    {"allow_tf32", IGNORED, NULL, "it concerns PyTorch on a GPU"},                                 \
    {"enable_xformers_memory_efficient_attention", IGNORED, NULL, \
     "attention never stores its whole matrix anyway"},                                            \
    {"set_grads_to_none", IGNORED, NULL, "it concerns PyTorch"},                                   \
    {"local_rank", IGNORED, NULL, "there is one process"}

/* The steps of so many epochs: train_dreambooth.py's count, an epoch being the longer of photos and
   class images. */
static size_t epoch_steps(size_t epochs, size_t n_photos, size_t n_class, size_t batch,
                          size_t accumulation)
{
    size_t batches = (MAX(n_photos, n_class) + batch - 1) / batch;
    return epochs * ((batches + accumulation - 1) / accumulation);
}

/* Flags whose meaning depends on the model. */
static int check_model_flags(const db_pipeline *p, const db_text_encoder *e, const training *t,
                             long tokens, int text_mask)
{
    int clip = e && e->config.kind == DB_TEXT_CLIP;
    size_t own = clip ? e->config.max_position_embeddings : (size_t)DB_PROMPT_TOKENS, k;
    char err[IMG_ERROR_SIZE];
    img_image image;
    if (tokens && (size_t)tokens != own)
        return fail("--tokenizer_max_length %ld: this model is sampled with %zu tokens, and so it "
                    "is trained",
                    tokens, own);
    if (text_mask && clip)
        return fail("--text_encoder_use_attention_mask: Stable Diffusion is sampled without a "
                    "mask, and so it is trained");
    if (t->config.train_text_encoder && p->super_resolution && !p->text_encoder)
        return fail("--train_text_encoder: %s reads the text encoder of another folder, where it "
                    "would not be saved; train it with the base",
                    p->directory);
    if (t->validation.prompt && p->super_resolution && !t->validation.images.n)
        return fail("a super-resolver's --validation_prompt needs --validation_images: the "
                    "pictures to enlarge");
    if (t->validation.images.n && !p->super_resolution)
        return fail("--validation_images are for a super-resolver; %s draws from the prompt alone",
                    p->directory);
    if (t->validation.images.n && !t->validation.prompt)
        return fail("--validation_images need --validation_prompt");
    for (k = 0; k < t->validation.images.n; k++) {
        if (img_load(t->validation.images.item[k], &image, err, sizeof err) != IMG_OK)
            return fail("%s", err);
        img_free(&image);
    }
    return 0;
}

static int train(int argc, char **argv)
{
    static const char *const schedules[] = {"constant", "constant_with_warmup", "linear",
                                            "cosine",   "cosine_with_restarts", "polynomial"};
    common c = common_default;
    training t = training_default();
    db_dreambooth_config *k = &t.config;
    const char *folder = NULL, *schedule = "constant", *variant = "";
    long steps = 0, batch = 4, accumulation = 1, seed = 0, resolution = 0, crop = 0, warmup = 500;
    long epochs = 0, tokens = 0, rank = 0;
    int prior = 0, overwrite = 0, scale_lr = 0, cached_text = 0, text_mask = 0, offset_noise = 0;
    double gamma = 0, offset = 0, alpha = 0;
    double lambda = 1, rate = 0, b1 = 0.9, b2 = 0.999, decay = 1e-2, eps = 1e-8, norm = 1,
           cycles = 1, power = 1, variance = 1e-5, dropout = 0;
    const flag flags[] = {
        {"instance_data_dir", TEXT, &folder, "the photos"},
        {"instance_prompt", TEXT, &k->instance_prompt, "\"a zxk dog\""},
        {"with_prior_preservation", SWITCH, &prior, "keep the class"},
        {"class_prompt", TEXT, &k->class_prompt, "\"a dog\""},
        {"class_data_dir", TEXT, &t.class_dir,
         "class images of one class and model; pictures that it lacks are drawn into it"},
        {"num_class_images", WHOLE, &t.n_class, ""},
        {"class_steps", WHOLE, &t.class_steps, "sampling steps of a class image (DDPM)"},
        {"class_guidance", REAL, &t.class_guidance, "and its guidance; 1: none"},
        {"prior_loss_weight", REAL, &lambda, "lambda"},
        {"output_dir", TEXT, &t.out, "a directory that diffusers loads"},
        {"overwrite", SWITCH, &overwrite, "even if it holds something"},
        {"resolution", WHOLE, &resolution, "0: the model's"},
        {"crop_size", WHOLE, &crop, "0: the resolution; 64 in super-resolution"},
        {"center_crop", SWITCH, &k->center_crop, "instead of random crops"},
        {"noise_variance", REAL, &variance, "super-resolution: on the small image"},
        {"train_text_encoder", SWITCH, &k->train_text_encoder, "the paper keeps it frozen"},
        {"sequential", SWITCH, &k->in_sequence,
         "class samples after the photos': less memory, more time"},
        {"snr_gamma", REAL, &gamma,
         "min-SNR weights, usually 5; 0: none; inf: the loss in epsilon"},
        {"noise_offset", REAL, &offset, "of each channel's noise, usually 0.1"},
        {"offset_noise", SWITCH, &offset_noise, "--noise_offset 0.1, by diffusers' name"},
        {"train_batch_size", WHOLE, &batch, "of each of the two terms"},
        {"max_train_steps", WHOLE, &steps, "0: of --num_train_epochs, or 400"},
        {"num_train_epochs", WHOLE, &epochs,
         "passes through the photos, or the class images if more"},
        {"learning_rate", REAL, &rate, "0: 5e-6; of a LoRA 5e-4"},
        {"scale_lr", SWITCH, &scale_lr, "times batch size and accumulation steps"},
        {"lr_scheduler", TEXT, &schedule, "constant, constant_with_warmup, linear, cosine, ..."},
        {"lr_warmup_steps", WHOLE, &warmup, "of all schedules but constant"},
        {"lr_num_cycles", REAL, &cycles, "of cosine_with_restarts"},
        {"lr_power", REAL, &power, "of polynomial"},
        {"gradient_accumulation_steps", WHOLE, &accumulation, ""},
        {"gradient_checkpointing", SWITCH, &k->gradient_checkpointing, "less memory, more time"},
        {"adam_beta1", REAL, &b1, ""},
        {"adam_beta2", REAL, &b2, ""},
        {"adam_weight_decay", REAL, &decay, ""},
        {"adam_epsilon", REAL, &eps, ""},
        {"max_grad_norm", REAL, &norm, "0: no clipping"},
        {"checkpointing_steps", WHOLE, &t.every, "0: none"},
        {"checkpoints_total_limit", WHOLE, &t.limit, "0: keep all"},
        {"resume_from_checkpoint", TEXT, &t.resume, "a checkpoint folder, or latest"},
        {"seed", WHOLE, &seed, ""},
        {"sample_batch_size", WHOLE, &t.sample_batch, "class images drawn together"},
        {"validation_prompt", TEXT, &t.validation.prompt,
         "draws it while training, into validation-STEP.png"},
        {"num_validation_images", WHOLE, &t.validation.n, ""},
        {"validation_steps", WHOLE, &t.validation.every, "how often"},
        {"validation_scheduler", TEXT, &t.validation.scheduler,
         "or DDPMScheduler, or DDIMScheduler"},
        {"validation_images", LIST, &t.validation.images,
         "super-resolution: small pictures to enlarge"},
        {"pre_compute_text_embeddings", SWITCH, &cached_text,
         "always, if the text encoder is frozen"},
        {"tokenizer_max_length", WHOLE, &tokens, "the model's; others are refused"},
        {"text_encoder_use_attention_mask", SWITCH, &text_mask,
         "T5 always, CLIP never, as in sampling"},
        {"rank", WHOLE, &rank, "a LoRA of that rank is trained, not the weights; 0: none"},
        {"lora_alpha", REAL, &alpha, "its factor is alpha / rank; 0: the rank"},
        {"use_8bit_adam", SWITCH, &k->optimizer.use_8bit_adam,
         "moments in a quarter of the memory"},
        {"lora_dropout", REAL, &dropout, "0; others are refused"},
        {"variant", TEXT, &variant, "fp16, if weights have no others; others are refused"},
        {"skip_save_text_encoder", SWITCH, &t.skip_text_encoder, ""},
        OTHER_FLAGS,
        COMMON_FLAGS(c)};
    int status = parse(argc, argv, "train", "teaches a model a subject from a folder of photos",
                       flags, NULL),
        i;
    photos photo;
    outcome o;
    cascade m;
    db_ctx *ctx;
    if (status) return status == 1;
    if (!folder || !k->instance_prompt)
        return fail("train needs --instance_data_dir and --instance_prompt");
    if (prior && !k->class_prompt)
        return fail("--with_prior_preservation needs --class_prompt, for instance \"a dog\"");
    if (!prior && k->class_prompt)
        fprintf(stderr, "--class_prompt does nothing without --with_prior_preservation\n");
    if (!prior) k->class_prompt = NULL;
    if (!batch || !accumulation || (prior && (!t.n_class || !t.class_steps || !t.sample_batch)))
        return fail("steps, batch sizes and the number of class images must be positive");
    if (*variant && strcmp(variant, "fp16"))
        return fail("--variant %s: the weights are read that have no variant, or else fp16; rename "
                    "the files of another, or leave the flag out", variant);
    if (dropout != 0)
        return fail(
            "--lora_dropout %g: LoRA has no dropout here; its default in diffusers is 0, too",
            dropout);
    if (gamma < 0 || offset < 0) return fail("--snr_gamma and --noise_offset must not be negative");
    if (variance < 0 || variance >= 1) return fail("--noise_variance must lie in [0,1)");
    k->snr_gamma = (float)gamma,
    k->noise_offset = (float)(offset_noise && offset == 0 ? 0.1 : offset);
    t.release = 1;
    if (cached_text && k->train_text_encoder)
        return fail("--pre_compute_text_embeddings and --train_text_encoder exclude each other: "
                    "embeddings that were computed before cannot be trained");
    if (t.validation.prompt &&
        (!t.validation.n || !t.validation.every ||
         find_sampler(t.validation.scheduler, "validation_scheduler") < 0))
        return fail("validation needs a scheduler, at least one picture and at least one step");
    for (i = 0; i < 6 && strcmp(schedules[i], schedule); i++) {}
    if (i == 6)
        return fail("--lr_scheduler takes constant, constant_with_warmup, linear, cosine, "
                    "cosine_with_restarts or polynomial, not \"%s\"",
                    schedule);
    k->lr_scheduler = (db_lr_schedule)i; /* the table has the enumeration's order */
    if (!overwrite && (t.resume ? would_begin_anew(&t) : is_folder_in_use(t.out)))
        return fail("%s exists and holds something: choose another --output_dir, go on with "
                    "--resume_from_checkpoint latest, or --overwrite",
                    t.out);
    c.model = stage_directory(c.model, "base");
    stop_in_order();
    ctx = open_context(&c);
    if (!ctx) return 1;
    if (load_cascade(ctx, c.model, MAX_STAGES, NULL, &m)) goto done;
    status = check_model_flags(m.stage[0], m.text->text_encoder, &t, tokens, text_mask);
    if (status) goto done;
    if (m.stage[0]->super_resolution) t.validation.n = (long)t.validation.images.n;
    k->resolution = resolution ? (size_t)resolution : stage_size(m.stage[0]);
    k->crop_size = crop                ? (size_t)crop
        : m.stage[0]->super_resolution ? MIN(k->resolution, (size_t)64)
                                       : k->resolution;
    k->prior_loss_weight = (float)lambda, k->train_batch_size = k->class_batch_size = (size_t)batch;
    k->gradient_accumulation_steps = (size_t)accumulation;
    if (rate == 0) rate = rank ? 5e-4 : 5e-6; /* the scripts' defaults */
    if (scale_lr) rate *= (double)batch * (double)accumulation;
    k->learning_rate = (float)rate, k->lr_warmup_steps = (size_t)warmup, k->lr_num_cycles = cycles,
    k->lr_power = power;
    k->seed = (uint64_t)seed;
    k->lora_rank = (size_t)rank, k->lora_alpha = (float)alpha;
    k->optimizer.beta1 = (float)b1, k->optimizer.beta2 = (float)b2,
    k->optimizer.weight_decay = (float)decay;
    k->optimizer.eps = (float)eps, k->optimizer.max_grad_norm = (float)norm;
    if (m.stage[0]->super_resolution)
        k->noise_level = db_noise_level(&m.stage[0]->image_noising, variance);
    if (load_photos(folder, k->resolution, &photo)) {
        status = 1;
        goto done;
    }
    k->max_train_steps = steps ? (size_t)steps
        : epochs               ? epoch_steps((size_t)epochs, photo.n, prior ? (size_t)t.n_class : 0,
                                             (size_t)batch, (size_t)accumulation)
                               : 400;
    check_identifier(m.text->tokenizer, k->instance_prompt, k->class_prompt);
    if (overwrite && !t.resume) newest_checkpoint(t.out, 0, 0);
    status = make_output_folder(t.out) || fine_tune(m.stage[0], m.text, &photo, &t, &o);
    free_photos(&photo);
done:
    free_cascade(&m);
    return finish(ctx) || status;
}

/* ---- tokenize, info -------------------------------------------------------------------------- */

static int tokenize(int argc, char **argv)
{
    common c = common_default;
    list texts = {{NULL}, 0};
    const flag flags[] = {COMMON_FLAGS(c)};
    int status = parse(argc, argv, "tokenize", "prints the ids of a text", flags, &texts);
    db_ctx *ctx;
    db_tokenizer *tok = NULL;
    char path[4096];
    size_t k, i;
    if (status) return status == 1;
    if (!texts.n) return fail("tokenize needs a text");
    c.model = stage_directory(c.model, "base");
    ctx = open_context(&c);
    if (!ctx) return 1;
    if (is_folder(c.model)) snprintf(path, sizeof path, "%s/tokenizer", c.model);
    else
        snprintf(path, sizeof path, "%s/tokenizer",
                 folder_of(c.model)); /* of a single file: beside it */
    if (!is_folder(path))
        snprintf(path, sizeof path, "%s", c.model); /* the tokenizer's own directory */
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

/* What one stage holds, and what a forward pass of it needs. */
static void describe(const db_pipeline *p, const char *path, const char *precision)
{
    const db_unet_config *u = &p->unet->config;
    size_t k, dim[4], text[3];
    db_memory_plan plan;
    db_tape *t = NULL;
    db_tensor x, time, words, labels = db_none;
    printf("%s: %s\n", p->single_file ? path : p->directory,
           p->super_resolution ? "IFSuperResolutionPipeline"
           : !p->vae           ? "IFPipeline"
           : p->single_file    ? "StableDiffusionPipeline, one file in the original (LDM) layout"
                               : "StableDiffusionPipeline");
    if (p->text_encoder)
        printf("text encoder   %s, %.2fM parameters, %zu layers, width %zu\n",
               p->text_encoder->config.kind == DB_TEXT_CLIP ? "CLIP" : "T5",
               (double)p->text_encoder->params.count / 1e6, p->text_encoder->config.num_layers,
               p->text_encoder->config.d_model);
    if (!p->tokenizer) printf("tokenizer      none\n");
    else printf("tokenizer      %zu pieces\n", db_tokenizer_size(p->tokenizer));
    if (p->vae)
        printf("autoencoder    %.2fM parameters, %zu pixels to a latent of %zu numbers, scale %g\n",
               (double)p->vae->params.count / 1e6, db_vae_factor(p->vae),
               p->vae->config.latent_channels, (double)p->vae->config.scaling_factor);
    printf("unet           %.2fM parameters, %zu tensors, channels",
           (double)p->unet->params.count / 1e6, p->unet->params.n);
    for (k = 0; k < u->n_levels; k++) printf(" %zu", u->block_out_channels[k]);
    printf(", %zu -> %zu, %zu px\n", u->in_channels, u->out_channels, stage_size(p));
    if (db_tape_create(p->ctx, &t) != DB_OK) return;
    dim[0] = 1, dim[1] = dim[2] = u->sample_size, dim[3] = u->in_channels;
    text[0] = 1, text[1] = DB_PROMPT_TOKENS,
    text[2] = u->encoder_hid_dim ? u->encoder_hid_dim : u->cross_attention_dim;
    x = db_input(t, DB_F32, 4, dim), time = db_input(t, DB_F32, 1, dim),
    words = db_input(t, DB_F32, 3, text);
    if (u->class_embed_timestep) labels = db_input(t, DB_F32, 1, dim);
    db_unet_forward(t, p->unet, x, time, words, labels, NULL);
    if (db_plan(t, &plan) == DB_OK)
        printf("forward pass   %.2f GFLOP, %.1f MB of activations (one picture, %s, %s)\n",
               plan.flops / 1e9, (double)plan.arena_bytes / 1e6, precision, db_isa(p->ctx));
    db_tape_destroy(t);
}

static int info(int argc, char **argv)
{
    common c = common_default;
    const flag flags[] = {COMMON_FLAGS(c)};
    int status = parse(argc, argv, "info",
                       "what a model directory holds, and what a forward pass needs", flags, NULL);
    size_t k;
    cascade m;
    db_ctx *ctx;
    if (status) return status == 1;
    ctx = open_context(&c);
    if (!ctx) return 1;
    status = load_cascade(ctx, c.model, MAX_STAGES, NULL, &m);
    for (k = 0; k < m.n && !status; k++) describe(m.stage[k], c.model, c.precision);
    free_cascade(&m);
    return finish(ctx) || status;
}

/* ---- convert --------------------------------------------------------------------------------- */

/* The smallest of f16, bf16 and f32 that holds every weight of an open file and of `so_far` (F64:
   nothing yet). */
static db_dtype widest(const db_safetensors *st, db_dtype so_far)
{
    size_t k;
    for (k = 0; k < db_safetensors_count(st); k++) {
        db_dtype d = db_safetensors_at(st, k)->dtype;
        if (d == DB_I64 || d == DB_I32) continue; /* position_ids */
        if (so_far == DB_F64 || d == so_far) so_far = d == DB_F64 ? DB_F32 : d;
        else so_far = DB_F32;
    }
    return so_far;
}

/* The data type of a pipeline's weights, in a directory or a file. */
static db_dtype stored_dtype(db_ctx *ctx, const char *path)
{
    static const char *const parts[][2] = {{"unet", "diffusion_pytorch_model"},
                                           {"vae", "diffusion_pytorch_model"},
                                           {"text_encoder", "model"}};
    db_dtype dtype = DB_F64;
    db_safetensors *st = NULL;
    char folder[4096];
    size_t k;
    for (k = 0; k < 3 && db_status(ctx) == DB_OK; k++) {
        snprintf(folder, sizeof folder, "%s/%s", path, parts[k][0]);
        if (!is_folder(path)) k = 3, db_safetensors_open(ctx, path, &st);
        else if (!is_folder(folder)) continue;
        else db_weights_open(ctx, folder, parts[k][1], &st);
        if (db_status(ctx) == DB_OK) dtype = widest(st, dtype);
        db_safetensors_close(st);
    }
    return dtype;
}

static int convert(int argc, char **argv)
{
    static const struct {
        const char *name;
        db_dtype dtype;
    } types[] = {{"f32", DB_F32}, {"f16", DB_F16}, {"bf16", DB_BF16}};
    static const char *const words[] = {"vocab.json", "merges.txt", "tokenizer.json",
                                        "tokenizer_config.json", "special_tokens_map.json"};
    common c = common_default;
    const char *out = NULL, *type = NULL;
    int overwrite = 0, status, file;
    const flag flags[] = {
        {"output_dir", TEXT, &out,
         "a directory in diffusers' layout; a name that ends in .safetensors: one LDM file"},
        {"dtype", TEXT, &type, "f32, f16 or bf16; without: as it is"},
        {"overwrite", SWITCH, &overwrite, "even if it exists"},
        COMMON_FLAGS(c)};
    db_dtype dtype = DB_F32;
    db_pipeline *p = NULL;
    db_ctx *ctx;
    size_t k, n;
    char from[4096], to[4096];
    status =
        parse(argc, argv, "convert",
              "a model from diffusers' layout to a single file, and back; to another data type",
              flags, NULL);
    if (status) return status == 1;
    if (!out)
        return fail("convert needs --output_dir: a directory, or a name that ends in .safetensors");
    for (k = 0; type && k < 3 && strcmp(types[k].name, type); k++) {}
    if (type && k == 3) return fail("--dtype takes f32, f16 or bf16, not \"%s\"", type);
    n = strlen(out), file = n > 12 && !strcmp(out + n - 12, ".safetensors");
    if (!overwrite && (file ? file_exists(out) : is_folder_in_use(out)))
        return fail("%s exists: choose another --output_dir, or --overwrite", out);
    if (strrchr(out, '.') &&
        (!strcmp(strrchr(out, '.'), ".ckpt") || !strcmp(strrchr(out, '.'), ".pt")))
        return fail("%s: pickles are not written; give a name that ends in .safetensors", out);
    c.model = stage_directory(c.model, "base");
    ctx = open_context(&c);
    if (!ctx) return 1;
    db_pipeline_load(ctx, c.model, &p);
    if (type) dtype = types[k].dtype;
    else if (p) dtype = stored_dtype(ctx, c.model);
    if (p && file) {
        db_pipeline_save_ldm(p, out, dtype);
        snprintf(from, sizeof from, "%s/tokenizer", p->directory);
        snprintf(to, sizeof to, "%s/tokenizer",
                 folder_of(out)); /* a single file has none: it goes beside it */
        if (db_status(ctx) == DB_OK && !is_folder(to) && is_folder(from)) {
            status = make_folder(to);
            for (k = 0; k < sizeof words / sizeof *words && !status; k++)
                status = copy_file(from, to, words[k]);
        }
    } else if (p) db_pipeline_save(p, out, dtype);
    if (p && !p->tokenizer)
        fprintf(stderr,
                "warning: no tokenizer lies beside %s: put vocab.json and merges.txt of another "
                "Stable Diffusion 1.x model into %s/tokenizer\n",
                c.model, file ? folder_of(out) : out);
    if (db_status(ctx) == DB_OK && !status)
        printf("%s -> %s, %s\n", c.model, out,
               dtype == DB_F32       ? "f32"
                   : dtype == DB_F16 ? "f16"
                                     : "bf16");
    db_pipeline_free(p);
    return finish(ctx) || status;
}

/* ---- probe ----------------------------------------------------------------------------------- */

/* A tensor of the input file as floats; 4-dimensional ones from [B,C,H,W] to [B,H,W,C]. NULL when
   there is none. */
static float *read_tensor(db_safetensors *st, const char *name, size_t dim[4])
{
    const db_file_tensor *f = db_safetensors_find(st, name);
    float *x, *y;
    size_t b, ch, p, P;
    int d;
    for (d = 0; d < 4; d++) dim[d] = f && d < f->n_dims ? f->dim[d] : 1;
    if (!f) return NULL;
    x = (float *)malloc((f->count + 1) * sizeof(float));
    db_file_tensor_to_f32(f, x);
    if (f->n_dims != 4) return x;
    y = (float *)malloc((f->count + 1) * sizeof(float));
    P = dim[2] * dim[3];
    for (b = 0; b < dim[0]; b++)
        for (ch = 0; ch < dim[1]; ch++)
            for (p = 0; p < P; p++) y[(b * P + p) * dim[1] + ch] = x[(b * dim[1] + ch) * P + p];
    free(x);
    ch = dim[1], dim[1] = dim[2], dim[2] = dim[3], dim[3] = ch;
    return y;
}

/* One number for each of B samples, from a tensor that has one for all or one for each. NULL when
   it has neither. */
static float *read_each(db_safetensors *st, const char *name, size_t B)
{
    size_t dim[4], k;
    const db_file_tensor *f = db_safetensors_find(st, name);
    float *x = read_tensor(st, name, dim), *each = NULL;
    if (x && (f->count == 1 || f->count == B)) {
        each = (float *)malloc((B + 1) * sizeof(float));
        for (k = 0; k < B; k++) each[k] = x[f->count > 1 ? k : 0];
    }
    free(x);
    return each;
}

static void write_output(db_ctx *ctx, const char *path, const char *name, const float *y,
                         int n_dims, const size_t *d, const float *loss)
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

/* One network of a pipeline, or of its own directory: the others are NULL. */
typedef struct part {
    enum { PART_UNET, PART_TEXT, PART_ENCODER, PART_DECODER } kind;
    db_unet *unet;
    db_text_encoder *text;
    db_vae *vae;
    db_param_table *params;
    db_pipeline *owner; /* when it came from a single file */
} part;

/* What the parts are called; the parameters that each has begin with ... ; its output. */
static const struct { const char *name, *folder, *prefix[2], *output;
} part_kinds[] = {{"unet", "unet", {"", ""}, "sample"},
                  {"text_encoder", "text_encoder", {"", ""}, "last_hidden_state"},
                  {"vae_encoder", "vae", {"encoder.", "quant_conv."}, "moments"},
                  {"vae_decoder", "vae", {"decoder.", "post_quant_conv."}, "sample"}};

static void load_part(db_ctx *ctx, const char *model, part *p)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s/config.json", model, part_kinds[p->kind].folder);
    if (!is_folder(model)) {
        if (db_pipeline_load(ctx, model, &p->owner) != DB_OK) return;
        p->unet = p->owner->unet, p->text = p->owner->text_encoder, p->vae = p->owner->vae;
    } else {
        if (file_exists(path))
            snprintf(path, sizeof path, "%s/%s", model, part_kinds[p->kind].folder);
        else snprintf(path, sizeof path, "%s", model); /* the part's own directory */
        if (p->kind == PART_UNET) db_unet_load(ctx, path, &p->unet);
        else if (p->kind == PART_TEXT) db_text_encoder_load(ctx, path, &p->text);
        else db_vae_load(ctx, path, &p->vae);
    }
    if (db_status(ctx) != DB_OK) return;
    p->params = p->kind == PART_UNET ? &p->unet->params
        : p->kind == PART_TEXT       ? &p->text->params
                                     : &p->vae->params;
}

static void free_part(part *p)
{
    if (!p->owner) db_unet_free(p->unet), db_text_encoder_free(p->text), db_vae_free(p->vae);
    db_pipeline_free(p->owner);
}

/* Records the part's forward pass on the input file's tensors, and uploads them when the tape is
   complete: `after` holds them until then. Returns the output, or none after a complaint. */
typedef struct uploads {
    db_tensor to[4];
    void *data[4]; /* owned */
    size_t n;
} uploads;

static db_tensor add_input(db_tape *t, uploads *u, db_dtype dtype, int n_dims, const size_t *dim,
                           void *data)
{
    u->data[u->n] = data;
    return u->to[u->n++] = db_input(t, dtype, n_dims, dim);
}

static int record_part(db_tape *t, const part *p, db_safetensors *st, const char *in, uploads *u,
                       db_tensor *y)
{
    int is_text = p->kind == PART_TEXT;
    const char *name = is_text ? "input_ids" : "sample";
    const db_file_tensor *f = db_safetensors_find(st, name);
    size_t d[4], dt[4], k;
    db_tensor x, second = db_none, words = db_none, labels = db_none;
    float *a, *b;
    if (!f || f->n_dims != (is_text ? 2 : 4))
        return fail("%s: %s must be there, with %d dimensions", in, name, is_text ? 2 : 4);
    a = read_tensor(st, name, d);
    if (is_text) {
        int32_t *ids = (int32_t *)malloc((f->count + 1) * sizeof *ids);
        for (k = 0; k < f->count; k++) ids[k] = (int32_t)a[k];
        free(a);
        x = add_input(t, u, DB_I32, 2, d, ids);
        for (k = 0; k < f->count; k++)
            if (ids[k] < 0 || (size_t)ids[k] >= p->text->config.vocab_size)
                return fail("%s: input_ids holds %d; the vocabulary has %zu entries", in,
                            (int)ids[k], p->text->config.vocab_size);
        b = read_tensor(st, "attention_mask", dt);
        if (b) {
            second = add_input(t, u, DB_F32, 2, d, b);
            if (dt[0] != d[0] || dt[1] != d[1])
                return fail("%s: attention_mask must have input_ids' shape", in);
            for (k = 0; k < f->count; k++) b[k] = b[k] > 0 ? 0.0f : -1e9f;
        }
        *y = db_text_forward(t, p->text, x, second);
        return 0;
    }
    x = add_input(t, u, DB_F32, 4, d, a);
    if (p->kind == PART_ENCODER) *y = db_vae_encode_forward(t, p->vae, x);
    if (p->kind == PART_DECODER) *y = db_vae_decode_forward(t, p->vae, x);
    if (p->kind != PART_UNET) return 0;
    b = read_each(st, "timestep", d[0]);
    if (!b) return fail("%s: timestep must be there, one for all samples or one for each", in);
    second = add_input(t, u, DB_F32, 1, d, b);
    f = db_safetensors_find(st, "encoder_hidden_states");
    if (!f || f->n_dims != 3 || f->dim[0] != d[0])
        return fail("%s: encoder_hidden_states must be there, [%zu,tokens,width]", in, d[0]);
    b = read_tensor(st, "encoder_hidden_states", dt);
    words = add_input(t, u, DB_F32, 3, dt, b);
    b = p->unet->config.class_embed_timestep ? read_each(st, "class_labels", d[0]) : NULL;
    if (b) labels = add_input(t, u, DB_F32, 1, d, b);
    else if (p->unet->config.class_embed_timestep)
        return fail("%s: class_labels must be there, one for all samples or one for each", in);
    *y = db_unet_forward(t, p->unet, x, second, words, labels, NULL);
    return 0;
}

/* Writes the gradients of the part's parameters under the names that its file has: transformers 5
   saves CLIP without the prefix text_model. */
static void save_gradients(db_ctx *ctx, const part *p, const char *model, const char *path)
{
    db_param_table own = *p->params;
    db_safetensors *st = NULL;
    char folder[4096];
    size_t k, bare = 0;
    snprintf(folder, sizeof folder, "%s/text_encoder", model);
    if (p->kind == PART_TEXT && !p->owner &&
        db_weights_open(ctx, is_folder(folder) ? folder : model, "model", &st) == DB_OK)
        bare = db_safetensors_find(st, p->params->item[0].name) ||
                strncmp(p->params->item[0].name, "text_model.", 11)
            ? 0
            : 11;
    db_safetensors_close(st);
    own.item = (db_param *)malloc((own.n + 1) * sizeof *own.item), own.n = 0;
    for (k = 0; k < p->params->n; k++) {
        const char *const *prefix = part_kinds[p->kind].prefix;
        db_param item = p->params->item[k];
        if (strncmp(item.name, prefix[0], strlen(prefix[0])) &&
            strncmp(item.name, prefix[1], strlen(prefix[1])))
            continue;
        item.name += bare;
        own.item[own.n++] = item;
    }
    db_params_save(&own, own.grad, path, DB_F32);
    free(own.item);
}

static int probe(int argc, char **argv)
{
    common c = common_default;
    const char *name = "unet", *in = NULL, *out = NULL, *grads = NULL;
    const flag flags[] = {
        {"part", TEXT, &name, "unet, text_encoder, vae_encoder or vae_decoder"},
        {"in", TEXT, &in, "safetensors with diffusers' argument names"},
        {"out", TEXT, &out, "safetensors with the output"},
        {"grads", TEXT, &grads, "also write the gradients of mean((output - target)^2)"},
        COMMON_FLAGS(c)};
    int status = parse(argc, argv, "probe", "runs one network on given tensors", flags, NULL);
    db_ctx *ctx;
    db_safetensors *st = NULL;
    db_tape *t = NULL;
    db_tensor y = db_none, loss = db_none, target = db_none;
    size_t k, d[4];
    float *result = NULL, *goal = NULL, value = 0;
    double began, opened, loaded;
    uploads u;
    part p;
    if (status) return status == 1;
    memset(&p, 0, sizeof p), memset(&u, 0, sizeof u);
    for (k = 0; k < 4 && strcmp(name, part_kinds[k].name); k++) {}
    if (k == 4)
        return fail("--part takes unet, text_encoder, vae_encoder or vae_decoder, not \"%s\"",
                    name);
    if (!in || !out) return fail("probe needs --in and --out");
    p.kind = k == 0 ? PART_UNET : k == 1 ? PART_TEXT : k == 2 ? PART_ENCODER : PART_DECODER;
    ctx = open_context(&c);
    if (!ctx) return 1;
    c.model = stage_directory(c.model, "base");
    began = now();
    if (db_safetensors_open(ctx, in, &st) == DB_OK) load_part(ctx, c.model, &p);
    opened = now();
    if (db_status(ctx) == DB_OK) db_params_fill(p.params);
    loaded = now();
    if (db_status(ctx) == DB_OK && grads) db_params_require_grad(p.params);
    if (db_status(ctx) == DB_OK) db_tape_create(ctx, &t);
    if (db_status(ctx) == DB_OK) status = record_part(t, &p, st, in, &u, &y);
    if (db_status(ctx) == DB_OK && !status) {
        db_keep(t, y);
        if (grads) {
            goal = read_tensor(st, "target", d);
            for (k = 0; k < 4; k++) status = status || d[k] != ((int)k < y.n_dims ? y.dim[k] : 1);
            if (!goal || status)
                status = fail("%s: --grads needs the tensor target, of the output's shape", in);
        }
    }
    if (db_status(ctx) == DB_OK && !status) {
        if (grads) {
            target = db_input(t, DB_F32, y.n_dims, y.dim);
            loss = db_mse(t, y, target, db_none, db_none, NULL);
            db_backward(t, loss);
            db_upload(t, target, goal);
        }
        for (k = 0; k < u.n; k++) db_upload(t, u.to[k], u.data[k]);
        db_run(t, 0, 0);
        result = (float *)malloc((db_count(y) + 1) * sizeof(float));
        db_download(t, y, result);
        if (grads) db_download(t, loss, &value);
        if (db_status(ctx) == DB_OK)
            write_output(ctx, out, part_kinds[p.kind].output, result, y.n_dims, y.dim,
                         grads ? &value : NULL);
        if (grads && db_status(ctx) == DB_OK) save_gradients(ctx, &p, c.model, grads);
        if (!c.quiet && db_status(ctx) == DB_OK)
            printf("%s: %.2fM parameters opened in %.2f s, read in %.2f s, computed in %.2f s\n",
                   name, (double)p.params->count / 1e6, opened - began, loaded - opened,
                   now() - loaded);
    }
    db_tape_destroy(t);
    for (k = 0; k < u.n; k++) free(u.data[k]);
    free(goal), free(result);
    db_safetensors_close(st);
    free_part(&p);
    return finish(ctx) || status;
}

/* ---- demo: all of it, on one subject --------------------------------------------------------- */

/* What is asked of the subject: PREFIX a[n] [adjective] zxk dog SUFFIX. Rows of six. */
static const struct { const char *before, *after, *shows; int animals;
} scenes[] = {{"", "on the moon", "new places", -1},
              {"", "in the snow", "", -1},
              {"", "in the forest", "", -1},
              {"", "under water", "", -1},
              {"", "on a cobblestone street", "", -1},
              {"", "on pink fabric", "", -1},
              {"", "seen from the side", "new views", -1},
              {"", "seen from the back", "", -1},
              {"", "seen from above", "", -1},
              {"", "wearing a hat", "accessories", -1},
              {"", "wearing a crown", "", -1},
              {"", "wearing sunglasses", "", -1},
              {"a pencil sketch of", "", "styles", -1},
              {"pixel art of", "", "", -1},
              {"a poster of", "", "", -1},
              {"a watercolour of", "", "", -1},
              {"purple", "", "colours", -1},
              {"green", "", "", -1},
              {"smiling", "", "expressions", 1},
              {"surprised", "", "", 1},
              {"angry", "", "", 1},
              {"sleeping", "", "", 1},
              {"jumping", "in the desert", "", 1},
              {"", "sitting on a red carpet", "", 1},
              {"red", "", "", 0},
              {"blue", "", "", 0},
              {"black", "", "", 0},
              {"striped", "", "patterns", 0},
              {"spotted", "", "", 0},
              {"yellow", "", "", 0}};
enum { COLUMNS = 6, SCENES = sizeof scenes / sizeof scenes[0], CLASS_PICTURES = 6 };

static int is_animal(const char *class_noun)
{
    static const char *const animals[] = {"dog", "cat", "duck", "rabbit", "bear", "turtle", "owl"};
    size_t k;
    for (k = 0; k < sizeof animals / sizeof *animals; k++)
        if (!strcmp(animals[k], class_noun)) return 1;
    return 0;
}

/* "a zxk dog on the moon": style before the article, adjectives behind it. */
static void scene_prompt(size_t k, const char *subject, char *out, size_t size)
{
    const char *before = scenes[k].before;
    int style = strstr(before, " of") != NULL, vowel = *before == 'a' && !style;
    snprintf(out, size, "%s%sa%s %s%s%s%s%s", style ? before : "", style ? " " : "",
             vowel ? "n" : "", style ? "" : before, *before && !style ? " " : "", subject,
             *scenes[k].after ? " " : "", scenes[k].after);
}

/* The photos of the first row and all pictures of one stage, labelled. */
static int demo_grid(db_ctx *ctx, const photos *photo, const float *pictures, size_t size,
                     char (*const prompts)[96], size_t n, const char *title, const char *path)
{
    size_t rows = 1 + (n + COLUMNS - 1) / COLUMNS, k, P = size * size * 3;
    float *all = (float *)calloc(rows * COLUMNS * P, sizeof *all);
    const char *labels[(1 + SCENES / COLUMNS) * COLUMNS + COLUMNS];
    char photo_label[COLUMNS][32];
    int bad = 0;
    for (k = 0; k < rows * COLUMNS; k++) labels[k] = NULL;
    for (k = 0; k < photo->n && k < COLUMNS && !bad; k++) {
        snprintf(photo_label[k], sizeof photo_label[k], "photo %zu", k + 1);
        labels[k] = photo_label[k];
        bad = square(ctx, &photo->view[k], size, all + k * P);
    }
    for (k = 0; k < n; k++) labels[COLUMNS + k] = prompts[k];
    memcpy(all + COLUMNS * P, pictures, n * P * sizeof *all);
    if (!bad) bad = save_grid(all, rows * COLUMNS, size, size, labels, COLUMNS, title, path);
    free(all);
    return bad;
}

/* Six pictures of "a dog" before and after, from the same noise. */
static int class_grid(const float *before, const float *after, size_t size, const char *prompt,
                      const char *path)
{
    size_t P = size * size * 3, k;
    float *all = (float *)malloc(2 * CLASS_PICTURES * P * sizeof *all);
    const char *labels[2 * CLASS_PICTURES];
    char title[256];
    int bad;
    for (k = 0; k < CLASS_PICTURES; k++) labels[k] = "before", labels[CLASS_PICTURES + k] = "after";
    memcpy(all, before, CLASS_PICTURES * P * sizeof *all);
    memcpy(all + CLASS_PICTURES * P, after, CLASS_PICTURES * P * sizeof *all);
    snprintf(title, sizeof title, "\"%s\" before and after fine-tuning", prompt);
    bad = save_grid(all, 2 * CLASS_PICTURES, size, size, labels, CLASS_PICTURES, title, path);
    free(all);
    return bad;
}

/* A photo [S][S][3] made small as pictures of the base are, and restored by the super-resolver:
   what the fine-tuning adds. */
static int restore(const cascade *m, const drawing *d, const char *prompt, const float *small,
                   float *out)
{
    db_pipeline *p = m->stage[1];
    db_sample_config s = sampling(d, 1);
    size_t S = stage_size(p), from = stage_size(m->stage[0]);
    bar_start("restoring");
    return db_upscale(p, m->text, &prompt, 1, NULL, &s,
                      db_noise_level(&p->image_noising, d->noise_variance), small, from, from, S, S,
                      out) != DB_OK;
}

static int demo(int argc, char **argv)
{
    common c = common_default;
    drawing d = drawing_default;
    training base = training_default(), sr = training_default();
    const char *folder = NULL, *noun = "dog", *word = "zxk", *out = "demo";
    long steps = 450, sr_steps = 600, batch = 4;
    double rate = 8e-4, sr_rate = 2e-3, gamma = HUGE_VAL;
    const flag flags[] = {{"instance_data_dir", TEXT, &folder, "photos of the subject"},
                          {"class_noun", TEXT, &noun, "what it is"},
                          {"identifier", TEXT, &word, "a rare word for it"},
                          {"output_dir", TEXT, &out, "all results; must be empty or not exist"},
                          {"max_train_steps", WHOLE, &steps, "of the base"},
                          {"learning_rate", REAL, &rate, "at first: a cosine leads to 0"},
                          {"snr_gamma", REAL, &gamma,
                           "of the base: min-SNR weights; inf: the loss in epsilon"},
                          {"upscaler_train_steps", WHOLE, &sr_steps, "of the super-resolver"},
                          {"upscaler_learning_rate", REAL, &sr_rate, ""},
                          {"train_batch_size", WHOLE, &batch, ""},
                          {"num_class_images", WHOLE, &base.n_class, ""},
                          {"class_steps", WHOLE, &base.class_steps, ""},
                          DRAWING_FLAGS(d),
                          COMMON_FLAGS(c)};
    char path[4096], class_dir[4096], base_dir[4096], sr_dir[4096], subject[64], class_prompt[72],
        instance[72], title[256];
    char prompts[SCENES][96];
    const char *each[SCENES], *classes[CLASS_PICTURES];
    float *before[MAX_STAGES] = {NULL, NULL, NULL}, *after[MAX_STAGES] = {NULL, NULL, NULL},
          *pictures[MAX_STAGES] = {NULL, NULL, NULL};
    size_t h[MAX_STAGES], w[MAX_STAGES], k, n = 0;
    double began = now(), at[5];
    photos photo, seen; /* by the super-resolver */
    outcome o[2];
    cascade m, base_only;
    db_ctx *ctx;
    FILE *summary;
    int status;
    base.n_class = 40, base.class_steps = 30, c.precision = "auto";
    d.noise_variance = 1e-5; /* what the super-resolver is tuned for, and draws with */
    status = parse(argc, argv, "demo",
                   "photos of a subject -> the subject in new places, through the whole cascade",
                   flags, NULL);
    if (status) return status == 1;
    if (!folder) return fail("demo needs --instance_data_dir");
    if (is_folder_in_use(out))
        return fail("%s exists and holds something: remove it, or choose another --output_dir",
                    out);
    if (!steps || !sr_steps || !batch) return fail("steps and batch sizes must be positive");
    if (check_drawing(&d)) return 1;
    stop_in_order();
    ctx = open_context(&c);
    if (!ctx) return 1;
    snprintf(subject, sizeof subject, "%s %s", word, noun),
        snprintf(instance, sizeof instance, "a %s", subject);
    snprintf(class_prompt, sizeof class_prompt, "a%s %s", strchr("aeiou", noun[0]) ? "n" : "",
             noun);
    for (k = 0; k < SCENES; k++) {
        if (scenes[k].animals >= 0 && scenes[k].animals != is_animal(noun)) continue;
        scene_prompt(k, subject, prompts[n], sizeof prompts[n]);
        each[n] = prompts[n], n++;
    }
    for (k = 0; k < CLASS_PICTURES; k++) classes[k] = class_prompt;
    if (load_cascade(ctx, c.model, d.stages, NULL, &m)) goto done;
    if (m.n < 2) status = fail("%s has no super-resolution stage", c.model);
    complete_drawing(&d, &m);
    if (status || load_photos(folder, 64, &photo)) {
        status = 1;
        goto done;
    }
    check_identifier(m.text->tokenizer, instance, class_prompt);
    snprintf(class_dir, sizeof class_dir, "%s/class_images", out),
        snprintf(path, sizeof path, "%s/model", out);
    snprintf(base_dir, sizeof base_dir, "%s/model/base", out),
        snprintf(sr_dir, sizeof sr_dir, "%s/model/sr256", out);
    status = make_output_folder(out) || make_folder(path) || make_folder(base_dir) ||
        make_folder(sr_dir);

    printf("\n%zu photos of \"%s\", a%s\n", photo.n, instance, class_prompt + 1);
    at[0] = now();
    base_only = m, base_only.n = 1;
    if (!status) status = draw(&base_only, &d, classes, CLASS_PICTURES, before, h, w);
    at[1] = now();

    base.config.instance_prompt = sr.config.instance_prompt = instance;
    base.config.class_prompt = class_prompt;
    base.config.resolution = stage_size(m.stage[0]), base.config.max_train_steps = (size_t)steps;
    base.config.lr_scheduler = DB_LR_COSINE, base.config.snr_gamma = (float)gamma;
    base.config.learning_rate = (float)rate, base.config.seed = sr.config.seed = (uint64_t)d.seed;
    base.config.train_batch_size = base.config.class_batch_size = (size_t)batch;
    base.class_dir = class_dir, base.out = base_dir, base.every = 0;
    if (!status) status = fine_tune(m.stage[0], m.text, &photo, &base, &o[0]);
    at[2] = now();

    sr.config.resolution = stage_size(m.stage[1]), sr.config.crop_size = 64;
    sr.config.max_train_steps = (size_t)sr_steps, sr.config.learning_rate = (float)sr_rate;
    sr.config.lr_scheduler = DB_LR_COSINE,
    sr.config.lr_warmup_steps = sr.config.max_train_steps / 20;
    sr.config.train_batch_size = (size_t)batch, sr.out = sr_dir, sr.every = 0;
    seen = photo;
    if (photo.n > 3) seen.n--; /* the last photo shows what it has learned from the others */
    if (!status) {
        const size_t S = stage_size(m.stage[1]), P = S * S * 3;
        float *shown = (float *)malloc(4 * P * sizeof *shown),
              *small = (float *)malloc(P * sizeof *small);
        static const char *const labels[] = {"photo", "made small", "restored before",
                                             "restored after"};
        sr.config.noise_level = db_noise_level(&m.stage[1]->image_noising, d.noise_variance);
        status = square(ctx, &photo.view[photo.n - 1], S, shown);
        db_downsample(shown, S, S, 3, S / stage_size(m.stage[0]), small);
        show_small(small, stage_size(m.stage[0]), stage_size(m.stage[0]),
                   S / stage_size(m.stage[0]), shown + P);
        if (!status) status = restore(&m, &d, instance, small, shown + 2 * P);
        if (!status) status = fine_tune(m.stage[1], m.text, &seen, &sr, &o[1]);
        if (!status) status = restore(&m, &d, instance, small, shown + 3 * P);
        snprintf(
            title, sizeof title,
            "a photo%s, restored from %zu px by the super-resolver before and after fine-tuning",
            photo.n > 3 ? " that it has not seen" : "", stage_size(m.stage[0]));
        snprintf(path, sizeof path, "%s/restored.png", out);
        if (!status) status = save_grid(shown, 4, S, S, labels, 4, title, path);
        free(shown), free(small);
    }
    at[3] = now();
    if (!status)
        status = move_file(base_dir, "loss.png", out, "loss.png") ||
            move_file(sr_dir, "loss.png", out, "loss_256.png");

    if (!status) status = draw(&m, &d, each, n, pictures, h, w);
    for (k = 0; k < m.n && !status; k++) {
        snprintf(title, sizeof title,
                 "%s: photos in, the subject in new places, views and guises; %zu px", instance,
                 w[k]);
        snprintf(path, sizeof path, "%s/grid_%zu.png", out, w[k]);
        status = demo_grid(ctx, &photo, pictures[k], w[k], prompts, n, title, path);
    }
    if (!status) status = draw(&base_only, &d, classes, CLASS_PICTURES, after, h, w);
    snprintf(path, sizeof path, "%s/class.png", out);
    if (!status) status = class_grid(before[0], after[0], w[0], class_prompt, path);
    at[4] = now();

    snprintf(path, sizeof path, "%s/summary.txt", out);
    summary = status ? NULL : begin_file(path);
    if (!status && !summary) status = end_file(NULL, path);
    if (summary) {
        fprintf(summary, "subject        \"%s\", %zu photos from %s\n", instance, photo.n, folder);
        fprintf(summary,
                "class          \"%s\", %ld images, DDPM %ld steps, guidance %g, lambda %g\n",
                class_prompt, base.n_class, base.class_steps, base.class_guidance,
                (double)base.config.prior_loss_weight);
        fprintf(summary,
                "base           %s: %zu steps, batch %ld + %ld, AdamW, learning rate %g (cosine), "
                "frozen text encoder, min-SNR gamma %g; loss %.4f -> %.4f\n",
                m.stage[0]->directory, o[0].steps, batch, batch, rate, gamma, (double)o[0].first,
                (double)o[0].last);
        fprintf(summary,
                "super-res.     %s: %zu steps, batch %ld, learning rate %g (cosine), noise "
                "variance %g; loss %.4f -> %.4f\n",
                m.stage[1]->directory, o[1].steps, batch, sr_rate, d.noise_variance,
                (double)o[1].first, (double)o[1].last);
        fprintf(summary,
                "drawn with     %s %ld steps, guidance %g in %g of them; upscaled in %ld steps, "
                "guidance %g; seed %ld\n",
                d.scheduler, d.steps, d.guidance, d.guidance_stop, d.upscale_steps,
                d.upscale_guidance, d.seed);
        if (c.threads) snprintf(title, sizeof title, "%ld", c.threads);
        fprintf(summary, "computed in    %s, %s, %s threads\n",
                strcmp(c.precision, "no") ? "bf16 where the processor is fast at it" : "f32",
                db_isa(ctx), c.threads ? title : "all");
        fprintf(summary,
                "seconds        class before %.1f, class images %.1f, base %.1f, super-resolution "
                "%.1f, drawing %.1f; in all %.1f\n",
                at[1] - at[0], o[0].class_seconds, o[0].seconds, o[1].seconds, at[4] - at[3],
                now() - began);
        fprintf(summary, "peak memory    %.0f MB\n", (double)db_peak_bytes(ctx) / 1e6);
        status = end_file(summary, path);
    }
    if (!status)
        printf("\n%s/grid_%zu.png, grid_%zu.png, restored.png, class.png, loss.png, loss_256.png, "
               "summary.txt, model/: %.0f s in all, at most %.0f MB\nmore pictures: build/" PROGRAM
               " generate --pretrained_model_name_or_path %s/model --noise_variance %g --prompt "
               "\"%s under water\"\n",
               out, w[0], w[m.n - 1], now() - began, (double)db_peak_bytes(ctx) / 1e6, out,
               d.noise_variance, instance);
    free_photos(&photo);
done:
    for (k = 0; k < MAX_STAGES; k++) free(before[k]), free(after[k]), free(pictures[k]);
    free_cascade(&m);
    return finish(ctx) || status;
}

/* ---- main ------------------------------------------------------------------------------------ */

int main(int argc, char **argv)
{
    static const tool_command commands[] = {
        {"demo", demo,
         "photos of a subject -> the subject in new places, through the whole cascade"},
        {"train", train, "fine-tunes one stage on a folder of photos"},
        {"generate", generate, "prompts -> pictures and labelled grids"},
        {"upscale", upscale, "super-resolution of given pictures"},
        {"eval", eval, "DINO, CLIP-I, CLIP-T, PRES, DIV of given folders"},
        {"identifier", identifier, "proposes rare identifiers, or examines given ones"},
        {"tokenize", tokenize, "a text -> its ids"},
        {"info", info, "what a model directory holds and needs"},
        {"convert", convert, "diffusers' directory <-> one LDM file; f32, f16, bf16"},
        {"probe", probe, "one network on given tensors, to compare with other implementations"}};
    let_threads_sleep(argv);
    return run_command(
        argc, argv, commands, sizeof commands / sizeof *commands,
        " Flags have the names of diffusers' train_dreambooth.py. A model is "
        "a directory in diffusers'\n"
        "layout or one .safetensors file of Stable Diffusion 1.x; without one, the shipped "
        "cascade. For instance\n\n"
        "  build/dreambooth train --pretrained_model_name_or_path stable-diffusion-v1-5 "
        "--instance_data_dir photos \\\n"
        "      --instance_prompt \"a photo of ohwx dog\" --resolution 512 --train_batch_size 1 "
        "--learning_rate 5e-6 \\\n"
        "      --lr_warmup_steps 0 --max_train_steps 400 --gradient_checkpointing --output_dir "
        "my-dog\n"
        "  build/dreambooth generate --pretrained_model_name_or_path my-dog --prompt \"a photo "
        "of ohwx dog in a bucket\"\n"
        "  build/dreambooth generate --pretrained_model_name_or_path IF-I-XL-v1.0 --upscalers "
        "IF-II-L-v1.0 --prompt \"a dog\"");
}
