/* gates - is the shipped base good enough? Held to renders by the classifier and metric networks.

   build/gates captions > examples/world/captions.txt
       512 captions that name class, colour, view and place of a photo of the validation split, and
       the scenes they belong to: INDEX<tab>CAPTION.

   build/gates run --captions FILE --model DIR --classifier DIR --metrics DIR --out DIR
       Draws every caption once (the tool's default sampler, seed = line, nothing selected) and
       renders its scene; prints and writes into OUT/gates.json
         - the share of attributes that the classifier recognises in either, and its confusions;
         - the diversity of "a [class]" pictures beside that of renders: mean LPIPS of pairs;
         - Frechet distances to renders, in DINO's features: of the pictures, of other renders;
       and OUT/gates.png, the first 64 pictures. --count N takes the first N captions,
       --precision bf16|f32, --threads N.

   build/gates restore --model DIR --virtual 256|1024 --metrics DIR --out DIR
       Renders --count scenes, 256 px of a picture of that size, makes them a quarter as large,
       restores them with the super-resolver DIR and with bicubic interpolation; prints LPIPS and
       PSNR to the render, writes OUT/restore.png with the first eight.

   build/gates subjects --metrics DIR
       Photos of the test subjects: how often two of one subject are more alike than two of
       different subjects of the class, by DINO, CLIP-I and LPIPS; and do they rank pairs alike?

   build/gates rare --model DIR --metrics DIR
       Does a reserved word mean anything before fine-tuning? "a [word] dog" beside "a dog": the
       largest cosine of their pooled encodings over all words, and whether 64 pictures of either
       can be told apart in DINO's features (a permutation test; "a cat" shows that it could).

   build/gates sheets --model DIR --out DIR
       Takes the first 64 captions through the cascade DIR: OUT/sheet256.png, and OUT/sheet1024.png
       with 256 px from the middle of each.                                                      */

#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#define WORLD_IMPLEMENTATION
#include "world.h"
#define IMAGES_IMPLEMENTATION
#include "images.h"
#define PROGRAM "gates"
#include "cli.h"
#include "classifier.h"
#include "pictures.h"
#include "statistics.h"
#include "threads.h"

enum { INDIVIDUALS = 40 }; /* of 100: as many as in the base's last pool */
enum { CAPTIONS = 512, SHEET = 64, S = 64, STEPS = 20, EACH = 8, AT_ONCE = 8 };
enum { ASKED = 4 };
static const int asked[ASKED] = {CLASSIFIER_class, CLASSIFIER_place, CLASSIFIER_color,
                                 CLASSIFIER_view};
static const double wanted[ASKED] = {0.95, 0.95, 0.90, 0.90}; /* of the share in renders */

static const char first_captions[] = "the first captions of the gates, nothing selected";

/* ---- the captions ---------------------------------------------------------------------------- */

static int says(const char *caption, const char *word) { return strstr(caption, word) != NULL; }

/* The first wording that names all that is asked for, 0 if there is none. */
static int full_caption(const world_scene *s, char *caption)
{
    uint64_t seed;
    if (s->head >= 0 || s->style != WORLD_PHOTO || s->color < 0) return 0;
    for (seed = 0; seed < 200; seed++) {
        world_caption_kept(s, seed, caption, WORLD_CAPTION_MAX);
        if (world_caption_rare(caption) < 0 && says(caption, world_class_name(s->object)) &&
            says(caption, world_color_name(s->color)) && says(caption, world_view_name(s->view)) &&
            says(caption, world_place_name(s->place)))
            return 1;
    }
    return 0;
}

static int write_captions(void)
{
    world_scene scene;
    char caption[WORLD_CAPTION_MAX];
    uint64_t i;
    int n = 0;
    for (i = 0; n < CAPTIONS; i++) {
        world_sample(world_seed(WORLD_VALIDATION, i), &scene);
        if (!full_caption(&scene, caption)) continue;
        printf("%llu\t%s\n", (unsigned long long)i, caption);
        n++;
    }
    return 0;
}

/* ---- what is compared ------------------------------------------------------------------------ */

typedef struct options {
    const char *captions, *model, *classifier, *metrics, *out, *precision;
    long count, threads, virtual_side;
    double noise_variance;
} options;

typedef struct material {
    size_t n;
    char (*caption)[WORLD_CAPTION_MAX];
    world_scene *scene, *stranger; /* of the captions; as many others of their kind */
    pictures drawn, rendered, other;
} material;

static int read_captions(const options *o, material *m)
{
    FILE *file = fopen(o->captions, "r");
    char line[WORLD_CAPTION_MAX + 40], *tab;
    size_t room = (size_t)o->count, i;
    uint64_t index = 2u << 20;
    if (!file) return fail("cannot open %s", o->captions);
    m->caption = (char (*)[WORLD_CAPTION_MAX])calloc(room, sizeof *m->caption);
    m->scene = (world_scene *)calloc(room, sizeof *m->scene);
    for (m->n = 0; m->n < room && fgets(line, sizeof line, file); m->n++) {
        if (!(tab = strchr(line, '\t')))
            return fclose(file), fail("no tab in a line of %s", o->captions);
        tab[strcspn(tab, "\r\n")] = 0;
        snprintf(m->caption[m->n], WORLD_CAPTION_MAX, "%s", tab + 1);
        world_sample(world_seed(WORLD_VALIDATION, strtoull(line, NULL, 10)), &m->scene[m->n]);
    }
    fclose(file);
    m->stranger = (world_scene *)calloc(room, sizeof *m->stranger);
    for (i = 0; i < m->n; index++) {
        world_sample(world_seed(WORLD_VALIDATION, index), &m->stranger[i]);
        i += (size_t)full_caption(&m->stranger[i], line);
    }
    m->drawn = pictures_make(m->n, S), m->rendered = pictures_make(m->n, S),
    m->other = pictures_make(m->n, S);
    return m->n ? 0 : fail("no captions in %s", o->captions);
}

/* Draws n prompts from seeds first, first + 1, ... into to[at + k]. */
static int draw(db_pipeline *p, const char *const *prompts, size_t n, uint64_t first, pictures *to,
                size_t at)
{
    size_t k;
    for (k = 0; k < n; k += AT_ONCE)
        if (draw_into(p, DB_SAMPLER_DPMSOLVER, STEPS, PIXEL_GUIDANCE, prompts + k,
                      MIN(n - k, (size_t)AT_ONCE), first + k, to, at + k))
            return 1;
    return 0;
}

/* ---- the share of attributes recognised ------------------------------------------------------ */

/* right[a] of attribute asked[a]; confusion[a]: [truth][answer] counts, of the pictures drawn. */
static db_result recognise(classifier *net, const material *m, const pictures *p,
                           double right[ASKED], size_t *confusion[ASKED])
{
    int32_t *out = (int32_t *)malloc(m->n * CLASSIFIER_N * sizeof *out), truth[CLASSIFIER_N];
    size_t i, a;
    classifier_run(net, p->view, m->n, out);
    for (a = 0; a < ASKED; a++) {
        size_t values = classifier_attributes[asked[a]].values;
        right[a] = 0;
        for (i = 0; i < m->n; i++) {
            int32_t answer = out[i * CLASSIFIER_N + (size_t)asked[a]];
            classifier_truth(&m->scene[i], truth);
            right[a] += (answer == truth[asked[a]]) / (double)m->n;
            if (confusion) confusion[a][(size_t)truth[asked[a]] * values + (size_t)answer]++;
        }
    }
    free(out);
    return db_status(net->params.ctx);
}

/* ---- Frechet distance ------------------------------------------------------------------------ */

/* The eigenvalues of a symmetric a [n,n] (destroyed) by Jacobi's rotations; v [n,n] gets the
   eigenvectors as columns. */
static void eigen(double *a, double *v, size_t n)
{
    size_t sweep, p, q, k;
    for (p = 0; p < n * n; p++) v[p] = p % (n + 1) == 0;
    for (sweep = 0; sweep < 30; sweep++) {
        double off = 0, all = 0;
        for (p = 0; p < n; p++)
            for (q = 0; q < n; q++) *(p == q ? &all : &off) += a[p * n + q] * a[p * n + q];
        if (off <= 1e-22 * all) return;
        for (p = 0; p < n; p++)
            for (q = p + 1; q < n; q++) {
                double theta, t, c, s;
                if (a[p * n + q] == 0) continue;
                theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q]);
                t = (theta < 0 ? -1 : 1) / (fabs(theta) + sqrt(theta * theta + 1));
                c = 1 / sqrt(t * t + 1), s = t * c;
                for (k = 0; k < n; k++) { /* columns, then rows, then the vectors */
                    double x = a[k * n + p], y = a[k * n + q];
                    a[k * n + p] = c * x - s * y, a[k * n + q] = s * x + c * y;
                }
                for (k = 0; k < n; k++) {
                    double x = a[p * n + k], y = a[q * n + k];
                    a[p * n + k] = c * x - s * y, a[q * n + k] = s * x + c * y;
                }
                for (k = 0; k < n; k++) {
                    double x = v[k * n + p], y = v[k * n + q];
                    v[k * n + p] = c * x - s * y, v[k * n + q] = s * x + c * y;
                }
            }
    }
}

/* The root of a symmetric, non-negative matrix, into r. */
static void root(const double *matrix, double *r, size_t n)
{
    double *a = (double *)malloc(2 * n * n * sizeof *a), *v = a + n * n;
    size_t i, j, k;
    memcpy(a, matrix, n * n * sizeof *a);
    eigen(a, v, n);
    memset(r, 0, n * n * sizeof *r);
    for (i = 0; i < n; i++)
        for (j = 0; j < n; j++)
            for (k = 0; k < n; k++)
                r[i * n + j] += v[i * n + k] * sqrt(DB__MAX(a[k * n + k], 0)) * v[j * n + k];
    free(a);
}

static void moments(const float *z, size_t n, size_t D, double *mean, double *cov)
{
    size_t b, i, j;
    memset(mean, 0, D * sizeof *mean), memset(cov, 0, D * D * sizeof *cov);
    for (b = 0; b < n; b++)
        for (i = 0; i < D; i++) mean[i] += (double)z[b * D + i] / (double)n;
    for (b = 0; b < n; b++)
        for (i = 0; i < D; i++)
            for (j = 0; j < D; j++)
                cov[i * D + j] += ((double)z[b * D + i] - mean[i]) *
                    ((double)z[b * D + j] - mean[j]) / (double)(n - 1);
}

/* |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2) of two sets of features [n,D] (Heusel et
   al., 2017, eq. 6). */
static double frechet(const float *a, const float *b, size_t n, size_t D)
{
    double *m = (double *)malloc((2 * D + 5 * D * D) * sizeof *m), distance = 0;
    double *m2 = m + D, *c1 = m2 + D, *c2 = c1 + D * D, *r = c2 + D * D, *x = r + D * D,
           *y = x + D * D;
    size_t i, j, k;
    moments(a, n, D, m, c1), moments(b, n, D, m2, c2);
    root(c1, r, D);
    memset(x, 0, 2 * D * D * sizeof *x);
    for (i = 0; i < D; i++)
        for (k = 0; k < D; k++)
            for (j = 0; j < D; j++) x[i * D + j] += r[i * D + k] * c2[k * D + j];
    for (i = 0; i < D; i++)
        for (k = 0; k < D; k++)
            for (j = 0; j < D; j++) y[i * D + j] += x[i * D + k] * r[k * D + j];
    root(y, x, D);
    for (i = 0; i < D; i++)
        distance += (m[i] - m2[i]) * (m[i] - m2[i]) + c1[i * D + i] + c2[i * D + i] -
            2 * x[i * D + i];
    free(m);
    return distance;
}

/* ---- diversity ------------------------------------------------------------------------------- */

/* The mean LPIPS of all pairs of a class's EACH pictures, averaged over the classes. */
static double diversity(db_lpips *net, const pictures *p)
{
    double sum = 0;
    size_t k;
    for (k = 0; k < WORLD_CLASSES; k++)
        sum += mean_lpips(net, p->view + k * EACH, EACH) / WORLD_CLASSES;
    return sum;
}

/* "a [class]" drawn, and photos of it rendered, as many of each class: no hybrids. */
static db_result class_pictures(db_pipeline *p, pictures *drawn, pictures *rendered)
{
    char prompt[WORLD_CLASSES][40];
    const char *prompts[EACH];
    size_t k, i, n = 0;
    uint64_t index = 1u << 20; /* scenes that no caption has */
    for (k = 0; k < WORLD_CLASSES && db_status(p->ctx) == DB_OK; k++) {
        const char *name = world_class_name((int)k);
        snprintf(prompt[k], sizeof prompt[k], "%s %s", strchr("aeiou", name[0]) ? "an" : "a", name);
        for (i = 0; i < EACH; i++) prompts[i] = prompt[k];
        draw(p, prompts, EACH, 1000000 + k * EACH, drawn, k * EACH);
        for (i = 0; i < EACH; index++) {
            world_scene scene;
            world_sample(world_seed(WORLD_VALIDATION, index), &scene);
            if (index % 100 < INDIVIDUALS) world_make_individual(&scene, index);
            if (scene.object != (int)k || scene.head >= 0 || scene.style != WORLD_PHOTO) continue;
            render(&scene, rendered, n++), i++;
        }
    }
    return db_status(p->ctx);
}

/* ---- the report ------------------------------------------------------------------------------ */

/* OUT/name.png: the first n pictures with their labels (or NULL), in `columns`. */
static int write_sheet(const options *o, const char *name, const char *title, const pictures *p,
                       const char *const *labels, size_t n, int columns, int scale)
{
    char path[4096], err[IMG_ERROR_SIZE];
    const uint8_t *each[SHEET];
    img_grid_config g = img_grid_config_default();
    img_image sheet;
    size_t i;
    for (i = 0; i < n; i++) each[i] = picture_at(p, i);
    g.title = title, g.scale = scale, g.columns = columns;
    snprintf(path, sizeof path, "%s/%s.png", o->out, name);
    if (img_grid(each, labels, n, p->side, p->side, &g, &sheet, err, sizeof err) != IMG_OK)
        return fail("%s", err);
    if (img_save_png(path, sheet.rgb, sheet.w, sheet.h, err, sizeof err) != IMG_OK)
        return fail("%s", err);
    img_free(&sheet);
    return 0;
}

static void write_confusion(FILE *f, const size_t *table, size_t values)
{
    size_t i, j;
    fprintf(f, "[");
    for (i = 0; i < values; i++) {
        fprintf(f, "%s[", i ? ", " : "");
        for (j = 0; j < values; j++) fprintf(f, "%s%zu", j ? ", " : "", table[i * values + j]);
        fprintf(f, "]");
    }
    fprintf(f, "]");
}

static int run(const options *o, db_ctx *ctx)
{
    material m;
    char path[4096];
    const char **prompts;
    db_pipeline *p = NULL;
    classifier *net = NULL;
    db_vit *dino = NULL;
    db_lpips *lpips = NULL;
    double drawn[ASKED], rendered[ASKED], div[2] = {0, 0}, apart[2] = {0, 0};
    const pictures *set[3] = {&m.rendered, &m.drawn, &m.other};
    pictures classes[2];
    size_t *confusion[ASKED], i, a, D;
    float *z;
    FILE *file;
    long task;
    int good = 1, bad;
    if (read_captions(o, &m)) return 1;
    prompts = (const char **)malloc(m.n * sizeof *prompts);
    for (i = 0; i < m.n; i++) prompts[i] = m.caption[i];
    for (a = 0; a < ASKED; a++) {
        size_t values = classifier_attributes[asked[a]].values;
        confusion[a] = (size_t *)calloc(values * values, sizeof *confusion[a]);
    }
    DB__OMP(omp parallel for schedule(dynamic))
    for (task = 0; task < (long)m.n; task++) {
        render(&m.scene[task], &m.rendered, (size_t)task);
        render(&m.stranger[task], &m.other, (size_t)task);
    }
    if (db_pipeline_load(ctx, o->model, &p) != DB_OK) return fail("%s", db_last_error(ctx));
    draw(p, prompts, m.n, 0, &m.drawn, 0);
    if (!(net = classifier_open(ctx, o->classifier, 1))) return fail("%s", db_last_error(ctx));
    recognise(net, &m, &m.drawn, drawn, confusion);
    recognise(net, &m, &m.rendered, rendered, NULL);
    snprintf(path, sizeof path, "%s/dino", o->metrics);
    if (db_vit_load(ctx, path, &dino) != DB_OK) return fail("%s", db_last_error(ctx));
    snprintf(path, sizeof path, "%s/lpips", o->metrics);
    if (db_lpips_load(ctx, path, &lpips) != DB_OK) return fail("%s", db_last_error(ctx));
    D = dino->config.hidden_size;
    z = (float *)malloc(3 * m.n * D * sizeof *z);
    for (i = 0; i < 3; i++) db_vit_embed(dino, set[i]->view, m.n, z + i * m.n * D);
    for (i = 0; i < 2; i++) apart[i] = frechet(z, z + (i + 1) * m.n * D, m.n, D);
    for (i = 0; i < 2; i++) classes[i] = pictures_make(WORLD_CLASSES * EACH, S);
    class_pictures(p, &classes[0], &classes[1]);
    for (i = 0; i < 2; i++) div[i] = diversity(lpips, &classes[i]), pictures_free(&classes[i]);
    free(z);
    if (db_status(ctx) != DB_OK) return fail("%s", db_last_error(ctx));
    snprintf(path, sizeof path, "%s/gates.json", o->out);
    if (!(file = begin_file(path))) return fail("cannot write %s", path);
    fprintf(file, "{\"captions\": %zu", m.n);
    printf("%zu captions       drawn   renders   ratio   asked\n", m.n);
    for (a = 0; a < ASKED; a++) {
        const char *name = classifier_attributes[asked[a]].name;
        double ratio = drawn[a] / rendered[a];
        good &= ratio >= wanted[a];
        printf("%-14s      %.3f    %.3f    %.3f    %.2f%s\n", name, drawn[a], rendered[a], ratio,
               wanted[a], ratio >= wanted[a] ? "" : "  not reached");
        fprintf(file, ",\n\"%s\": {\"drawn\": %.4f, \"renders\": %.4f, \"confusion\": ", name,
                drawn[a], rendered[a]);
        write_confusion(file, confusion[a], classifier_attributes[asked[a]].values);
        fprintf(file, "}");
    }
    good &= div[0] >= 0.9 * div[1];
    printf("diversity           %.3f    %.3f    %.3f    0.90%s\n", div[0], div[1],
           div[0] / div[1], div[0] >= 0.9 * div[1] ? "" : "  not reached");
    printf("Frechet distance    %.3f    %.3f (of other renders)\n", apart[0], apart[1]);
    fprintf(file, ",\n\"diversity\": {\"drawn\": %.4f, \"renders\": %.4f}", div[0], div[1]);
    fprintf(file, ",\n\"frechet\": {\"drawn\": %.4f, \"renders\": %.4f}", apart[0], apart[1]);
    fprintf(file, "}\n");
    if (end_file(file, path)) return 1;
    printf("%s\n", good ? "all gates reached" : "not all gates reached");
    bad = write_sheet(o, "gates", first_captions, &m.drawn, prompts, DB__MIN(m.n, (size_t)SHEET), 8,
                      2);
    classifier_free(net), db_vit_free(dino), db_lpips_free(lpips), db_pipeline_free(p);
    for (a = 0; a < ASKED; a++) free(confusion[a]);
    free((void *)prompts), free(m.caption), free(m.scene), free(m.stranger);
    pictures_free(&m.drawn), pictures_free(&m.rendered), pictures_free(&m.other);
    return bad || !good;
}

/* ---- super-resolution ------------------------------------------------------------------------ */

enum { BIG = 256, FACTOR = 4, SMALL = BIG / FACTOR, SR_STEPS = 10, SHOWN = 8 };

/* As the tool draws: small [SMALL,SMALL,3] to out [BIG,BIG,3], with `text` for the prompt. */
static db_result enlarge(db_pipeline *sr, db_pipeline *text, const char *prompt, uint64_t seed,
                         double variance, const float *small, float *out)
{
    db_sample_config c = db_sample_config_default();
    c.sampler = DB_SAMPLER_DPMSOLVER, c.num_inference_steps = SR_STEPS, c.guidance_scale = 1;
    c.seed = seed;
    return db_upscale(sr, text, &prompt, 1, NULL, &c, db_noise_level(&sr->image_noising, variance),
                      small, SMALL, SMALL, BIG, BIG, out);
}

static void bicubic(const float *small, float *out)
{
    static float narrow[SMALL * BIG * 3];
    double weights[16];
    db__resize_axis(DB_FILTER_BICUBIC, small, SMALL, SMALL, 3, narrow, BIG, weights);
    db__resize_axis(DB_FILTER_BICUBIC, narrow, 1, SMALL, BIG * 3, out, BIG, weights);
}

static double psnr(const db_image *a, const db_image *b)
{
    double sum = 0;
    size_t k, n = a->w * a->h * 3;
    for (k = 0; k < n; k++) sum += pow((double)a->rgb[k] - (double)b->rgb[k], 2);
    return 10 * log10(255 * 255 / (sum / (double)n + 1e-9));
}

static int restore(const options *o, db_ctx *ctx)
{
    static const char *const names[] = {"render", "given", "bicubic", "restored"};
    enum { RENDER, GIVEN, BICUBIC, RESTORED, KINDS };
    size_t n = (size_t)o->count, i, k, q;
    pictures p = pictures_make(KINDS * n, BIG);
    float *x = (float *)malloc(BIG * BIG * 3 * sizeof *x), small[SMALL * SMALL * 3];
    const char *labels[KINDS * SHOWN];
    double lpips[KINDS] = {0}, signal[KINDS] = {0};
    size_t closer = 0;
    char path[4096];
    db_pipeline *sr = NULL, *text = NULL;
    db_lpips *net = NULL;
    snprintf(path, sizeof path, "%s/../base", o->model);
    if (db_pipeline_load(ctx, o->model, &sr) != DB_OK ||
        db_pipeline_load(ctx, path, &text) != DB_OK)
        return fail("%s", db_last_error(ctx));
    snprintf(path, sizeof path, "%s/lpips", o->metrics);
    if (db_lpips_load(ctx, path, &net) != DB_OK) return fail("%s", db_last_error(ctx));
    for (i = 0; i < n && db_status(ctx) == DB_OK; i++) {
        const db_image *view = p.view + KINDS * i;
        int side = (int)o->virtual_side, corner = (side - BIG) / 2;
        char caption[WORLD_CAPTION_MAX];
        float d[2];
        world_scene scene;
        world_sample(world_seed(WORLD_VALIDATION, (3u << 20) + i), &scene);
        world_caption_kept(&scene, 0, caption, sizeof caption);
        world_render(&scene, side, corner, corner, BIG, BIG, 3, picture_at(&p, KINDS * i), NULL);
        to_floats(view[RENDER].rgb, BIG * BIG * 3, x);
        db_downsample(x, BIG, BIG, 3, FACTOR, small);
        for (q = 0; q < BIG * BIG * 3; q++)
            x[q] = small[(q / 3 / BIG / FACTOR * SMALL + q / 3 % BIG / FACTOR) * 3 + q % 3];
        db_to_rgb(x, BIG * BIG * 3, picture_at(&p, KINDS * i + GIVEN));
        bicubic(small, x);
        db_to_rgb(x, BIG * BIG * 3, picture_at(&p, KINDS * i + BICUBIC));
        if (enlarge(sr, text, caption, i, o->noise_variance, small, x) != DB_OK) break;
        db_to_rgb(x, BIG * BIG * 3, picture_at(&p, KINDS * i + RESTORED));
        for (k = BICUBIC; k <= RESTORED; k++) {
            db_image pair[2];
            pair[0] = view[RENDER], pair[1] = view[k];
            if (db_lpips_distances(net, pair, 2, d + k - BICUBIC) != DB_OK) break;
            lpips[k] += (double)d[k - BICUBIC] / (double)n;
            signal[k] += psnr(pair, pair + 1) / (double)n;
        }
        closer += d[1] < d[0];
    }
    if (db_status(ctx) != DB_OK) return fail("%s", db_last_error(ctx));
    printf("%zu renders        LPIPS     PSNR\n", n);
    for (k = BICUBIC; k <= RESTORED; k++)
        printf("%-14s    %7.4f  %7.2f\n", names[k], lpips[k], signal[k]);
    printf("restored is closer than bicubic in %zu of %zu\n", closer, n);
    for (k = 0; k < KINDS * SHOWN; k++) labels[k] = names[k % KINDS];
    k = (size_t)write_sheet(o, "restore", "held-out renders, nothing selected", &p, labels,
                            KINDS * DB__MIN(n, (size_t)SHOWN), KINDS * 2, 1);
    db_lpips_free(net), db_pipeline_free(sr), db_pipeline_free(text);
    pictures_free(&p), free(x);
    return (int)k;
}

enum { LIKENESSES = 3, PHOTOS = world_n_test * world_max_photos };

/* Likenesses [LIKENESSES][n][n] of n photos by DINO, CLIP's image tower, LPIPS. */
static db_result compare_photos(const options *o, db_ctx *ctx, const db_image *photo, size_t n,
                                double *out)
{
    char path[4096];
    db_vit *dino = NULL;
    db_clip *clip = NULL;
    db_lpips *lpips = NULL;
    float *z = NULL, *d = (float *)malloc(n * n * sizeof *d);
    size_t net, i, j, D, at = 0;
    snprintf(path, sizeof path, "%s/dino", o->metrics);
    db_vit_load(ctx, path, &dino);
    snprintf(path, sizeof path, "%s/clip", o->metrics);
    db_clip_load(ctx, path, &clip);
    snprintf(path, sizeof path, "%s/lpips", o->metrics);
    db_lpips_load(ctx, path, &lpips);
    for (net = 0; net < 2 && db_status(ctx) == DB_OK; net++) {
        D = net ? clip->config.projection_dim : dino->config.hidden_size;
        z = (float *)realloc(z, n * D * sizeof *z);
        if (net) db_clip_embed_images(clip, photo, n, z);
        else db_vit_embed(dino, photo, n, z);
        for (i = 0; i < n; i++)
            for (j = 0; j < n; j++)
                out[(net * n + i) * n + j] = db_cosine_paired(z + i * D, z + j * D, 1, D);
    }
    if (db_status(ctx) == DB_OK) db_lpips_distances(lpips, photo, n, d); /* pairs i < j */
    for (i = 0; i < n; i++)
        for (j = i + 1; j < n; j++, at++) out[(2 * n + i) * n + j] = -(double)d[at];
    free(z), free(d);
    db_vit_free(dino), db_clip_free(clip), db_lpips_free(lpips);
    return db_status(ctx);
}

static int subjects(const options *o, db_ctx *ctx)
{
    static const char *const names[LIKENESSES] = {"DINO", "CLIP-I", "LPIPS"};
    pictures p = pictures_make(PHOTOS, S);
    int of[PHOTOS], s, photo;
    double *like, *same, *other, *means[LIKENESSES], auc;
    size_t n = 0, i, j, k, n_same, n_other, pairs = 0;
    for (s = world_n_dev; s < world_n_subjects; s++)
        for (photo = 0; photo < world_subject(s).n_photos; photo++, n++) {
            world_scene scene;
            world_subject_photo(s, photo, &scene);
            render(&scene, &p, n);
            of[n] = s;
        }
    like = (double *)malloc(LIKENESSES * n * n * sizeof *like);
    same = (double *)malloc(2 * n * n * sizeof *same), other = same + n * n;
    for (k = 0; k < LIKENESSES; k++)
        means[k] = (double *)malloc(world_n_test * world_n_test * sizeof *means[k]);
    if (compare_photos(o, ctx, p.view, n, like) != DB_OK) return fail("%s", db_last_error(ctx));
    printf("%zu photos of %d subjects\n", n, (int)world_n_test);
    for (k = 0; k < LIKENESSES; k++) {
        double sum[world_n_subjects][world_n_subjects], count[world_n_subjects][world_n_subjects];
        int a, b;
        memset(sum, 0, sizeof sum), memset(count, 0, sizeof count);
        n_same = n_other = pairs = 0;
        for (i = 0; i < n; i++)
            for (j = i + 1; j < n; j++) {
                double x = like[(k * n + i) * n + j];
                if (world_subject(of[i]).object != world_subject(of[j]).object) continue;
                if (of[i] == of[j]) same[n_same++] = x;
                else other[n_other++] = x;
                sum[of[i]][of[j]] += x, count[of[i]][of[j]]++;
            }
        for (a = 0; a < world_n_subjects; a++)
            for (b = a; b < world_n_subjects; b++)
                if (count[a][b] > 0) means[k][pairs++] = sum[a][b] / count[a][b];
        auc = stat_auc(same, n_same, other, n_other);
        printf("%-8s AUC %.3f (%zu pairs of one subject, %zu of two of a class)", names[k], auc,
               n_same, n_other);
        if (k) printf("; ranks %zu pairs of subjects as DINO does: Spearman %.3f", pairs,
                      stat_spearman(means[0], means[k], pairs));
        printf("\n");
    }
    for (k = 0; k < LIKENESSES; k++) free(means[k]);
    free(like), free(same);
    pictures_free(&p);
    return 0;
}

enum { RARE_PICTURES = 64, SHUFFLES = 2000, FOR_SHUFFLE = 9101 };

/* Energy distance (Szekely and Rizzo, 2004) of two sets of n, rows at[0 ... n) and at[n ... 2n) of
   the distances d [2n,2n]. */
static double energy(const double *d, const size_t *at, size_t n)
{
    double within = 0, between = 0;
    size_t i, j;
    for (i = 0; i < 2 * n; i++)
        for (j = 0; j < 2 * n; j++)
            *((i < n) == (j < n) ? &within : &between) += d[at[i] * 2 * n + at[j]];
    return (between - within) / (double)(n * n);
}

/* p of sets a and b [n,D] having one distribution: how many of the orders of both together give
   an energy distance as large. */
static double set_apart(const float *a, const float *b, size_t n, size_t D, double *distance)
{
    double *d = (double *)malloc(4 * n * n * sizeof *d);
    size_t *at = (size_t *)malloc(2 * n * sizeof *at), i, j, k, larger = 1;
    db_rng rng;
    for (i = 0; i < 2 * n; at[i] = i, i++)
        for (j = 0; j < 2 * n; j++)
            d[i * 2 * n + j] = 1 - db_cosine_paired(i < n ? a + i * D : b + (i - n) * D,
                                                    j < n ? a + j * D : b + (j - n) * D, 1, D);
    *distance = energy(d, at, n);
    rng.seed = 1, rng.purpose = FOR_SHUFFLE, rng.step = 0;
    for (k = 0; k < SHUFFLES; k++) {
        for (i = 2 * n - 1; i > 0; i--) {
            size_t to = db_random_below(&rng, k * 2 * n + i, (uint32_t)(i + 1)), t = at[i];
            at[i] = at[to], at[to] = t;
        }
        larger += energy(d, at, n) >= *distance;
    }
    free(d), free(at);
    return (double)larger / (SHUFFLES + 1);
}

/* The mean of a prompt's encoded tokens: out [D]. */
static db_result pooled(db_pipeline *p, const char *prompt, float *out)
{
    enum { T = DB_PROMPT_TOKENS };
    size_t D = p->text_encoder->config.d_model, k, j;
    float *states = (float *)malloc(T * D * sizeof *states);
    int32_t ids[2 * T];
    db_tokenize(p->tokenizer, prompt, T, ids, ids + T, NULL);
    db_encode(p->text_encoder, p->tokenizer, &prompt, 1, T, states, NULL);
    memset(out, 0, D * sizeof *out);
    for (k = 0; k < T; k++)
        for (j = 0; j < D && ids[T + k]; j++) out[j] += states[k * D + j];
    free(states);
    return db_status(p->ctx);
}

static int rare(const options *o, db_ctx *ctx)
{
    enum { DOG, RARE, CAT, SETS };
    static const char *const names[SETS] = {"a dog", "a [word] dog", "a cat"};
    char path[4096], text[RARE_PICTURES][40];
    const char *prompts[RARE_PICTURES];
    db_pipeline *p = NULL;
    db_vit *dino = NULL;
    float *z[SETS], *plain, *with;
    double most = -1, distance;
    size_t k, s, D;
    snprintf(path, sizeof path, "%s/dino", o->metrics);
    if (db_pipeline_load(ctx, o->model, &p) != DB_OK || db_vit_load(ctx, path, &dino) != DB_OK)
        return fail("%s", db_last_error(ctx));
    D = p->text_encoder->config.d_model;
    plain = (float *)malloc(2 * D * sizeof *plain), with = plain + D;
    pooled(p, "a dog", plain);
    for (k = 0; k < world_n_rare; k++) {
        snprintf(text[0], sizeof text[0], "a %s dog", world_rare[k]);
        if (pooled(p, text[0], with) != DB_OK) break;
        most = fmax(most, db_cosine_paired(plain, with, 1, D));
    }
    printf("pooled encodings of \"a dog\" and of it with one of %d reserved words: cosine %.3f or "
           "less\n", (int)world_n_rare, most);
    D = dino->config.hidden_size;
    for (s = 0; s < SETS && db_status(ctx) == DB_OK; s++) {
        pictures drawn = pictures_make(RARE_PICTURES, S);
        for (k = 0; k < RARE_PICTURES; k++) {
            if (s == RARE) snprintf(text[k], sizeof text[k], "a %s dog", world_rare[k]);
            else snprintf(text[k], sizeof text[k], "%s", names[s]);
            prompts[k] = text[k];
        }
        draw(p, prompts, RARE_PICTURES, 1 + 1000 * s, &drawn, 0);
        z[s] = (float *)malloc(RARE_PICTURES * D * sizeof *z[s]);
        db_vit_embed(dino, drawn.view, RARE_PICTURES, z[s]);
        pictures_free(&drawn);
    }
    if (db_status(ctx) != DB_OK) return fail("%s", db_last_error(ctx));
    for (s = RARE; s < SETS; s++) {
        double chance = set_apart(z[DOG], z[s], RARE_PICTURES, D, &distance);
        printf("%d pictures of \"%s\" beside those of \"a dog\": energy distance %.4f, p = %.4f\n",
               (int)RARE_PICTURES, names[s], distance, chance);
    }
    for (s = 0; s < SETS; s++) free(z[s]);
    free(plain);
    db_vit_free(dino), db_pipeline_free(p);
    return 0;
}

/* The first captions through all stages, one after the other; of the third its middle. */
static int sheets(const options *o, db_ctx *ctx)
{
    static const char *const stages[] = {"base", "sr256", "sr1024"};
    db_pipeline *p[3] = {NULL, NULL, NULL};
    pictures to[2];
    const char *labels[SHEET];
    options first = *o;
    material m;
    float *x = (float *)malloc(BIG * BIG * 3 * sizeof *x), small[SMALL * SMALL * 3];
    char path[4096];
    size_t i, k, y, n;
    int bad;
    first.count = SHEET;
    if (read_captions(&first, &m)) return 1;
    n = m.n;
    for (k = 0; k < 3; k++) {
        snprintf(path, sizeof path, "%s/%s", o->model, stages[k]);
        if (db_pipeline_load(ctx, path, &p[k]) != DB_OK) return fail("%s", db_last_error(ctx));
    }
    for (i = 0; i < n; i++) labels[i] = m.caption[i];
    for (k = 0; k < 2; k++) to[k] = pictures_make(n, BIG);
    draw(p[0], labels, n, 0, &m.drawn, 0);
    for (i = 0; i < n; i++) {
        to_floats(picture_at(&m.drawn, i), SMALL * SMALL * 3, small);
        if (enlarge(p[1], p[0], labels[i], i, o->noise_variance, small, x) != DB_OK) break;
        db_to_rgb(x, BIG * BIG * 3, picture_at(&to[0], i));
        for (y = 0; y < SMALL; y++)
            memcpy(small + y * SMALL * 3,
                   x + (((BIG - SMALL) / 2 + y) * BIG + (BIG - SMALL) / 2) * 3,
                   SMALL * 3 * sizeof *x);
        if (enlarge(p[2], p[0], labels[i], i, o->noise_variance, small, x) != DB_OK) break;
        db_to_rgb(x, BIG * BIG * 3, picture_at(&to[1], i));
    }
    if (db_status(ctx) != DB_OK) return fail("%s", db_last_error(ctx));
    bad = write_sheet(o, "sheet256", first_captions, &to[0], labels, n, 8, 1) ||
        write_sheet(o, "sheet1024", "256 px from the middle of the same at 1024 px", &to[1], labels,
                    n, 8, 1);
    for (k = 0; k < 3; k++) db_pipeline_free(p[k]);
    for (k = 0; k < 2; k++) pictures_free(&to[k]);
    pictures_free(&m.drawn), pictures_free(&m.rendered), pictures_free(&m.other);
    free(m.caption), free(m.scene), free(m.stranger), free(x);
    return bad;
}

int main(int argc, char **argv)
{
    options o = {"examples/world/captions.txt", "examples/world/base",
                 "examples/world/metrics/classifier", "examples/world/metrics", "build", "f32",
                 CAPTIONS, 0, 256, 1e-3};
    const flag flags[] = {
        {"captions", TEXT, &o.captions, "lines of INDEX<tab>CAPTION"},
        {"model", TEXT, &o.model, "the base; restore: a super-resolver; sheets: a cascade's folder"},
        {"classifier", TEXT, &o.classifier, "its directory"},
        {"metrics", TEXT, &o.metrics, "a folder with dino, clip and lpips"},
        {"out", TEXT, &o.out, "where the results go"},
        {"precision", TEXT, &o.precision, "bf16 or f32"},
        {"count", WHOLE, &o.count, "captions, renders"},
        {"noise_variance", REAL, &o.noise_variance, "put on the small picture"},
        {"virtual", WHOLE, &o.virtual_side, "restore: pixels of the whole picture"},
        {"threads", WHOLE, &o.threads, "0: all cores"},
        {NULL, TEXT, NULL, NULL}};
    static const struct { const char *name, *what; int (*run)(const options *, db_ctx *);
    } commands[] = {{"run", "holds the base to renders of its captions", run},
                    {"restore", "holds a super-resolver to renders", restore},
                    {"subjects", "holds the metric networks to photos of subjects", subjects},
                    {"rare", "does a reserved word mean anything?", rare},
                    {"sheets", "the first captions through all stages", sheets}};
    db_config config = db_config_default();
    db_ctx *ctx = NULL;
    int status;
    size_t k;
    let_threads_sleep(argv);
    if (argc > 1 && !strcmp(argv[1], "captions")) return write_captions();
    for (k = 0; argc > 1 && k < sizeof commands / sizeof *commands; k++)
        if (!strcmp(argv[1], commands[k].name)) break;
    if (argc < 2 || k == sizeof commands / sizeof *commands)
        return fail("captions, run, restore, subjects, rare or sheets?");
    status = parse(argc, argv, commands[k].name, commands[k].what, flags, NULL);
    if (status) return status != 2;
    if (!o.count) return fail("--count takes a number from 1");
    if (strcmp(o.precision, "bf16") && strcmp(o.precision, "f32"))
        return fail("--precision takes bf16 or f32");
    config.threads = (int)o.threads;
    config.compute = strcmp(o.precision, "bf16") ? DB_F32 : DB_BF16;
    if (db_create(&ctx, &config) != DB_OK) return fail("no context");
    status = commands[k].run(&o, ctx);
    db_destroy(ctx);
    return status;
}
