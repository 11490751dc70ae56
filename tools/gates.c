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
       --precision bf16|f32, --threads N.                                                        */

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
#include "threads.h"

enum { CAPTIONS = 512, S = 64, STEPS = 30, EACH = 8, AT_ONCE = 8 };
enum { ASKED = 4 };
static const int asked[ASKED] = {CLASSIFIER_class, CLASSIFIER_place, CLASSIFIER_color,
                                 CLASSIFIER_view};
static const double wanted[ASKED] = {0.95, 0.95, 0.90, 0.90}; /* of the share in renders */

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
    long count, threads;
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
        if (draw_into(p, DB_SAMPLER_DDIM, STEPS, 3, prompts + k, MIN(n - k, (size_t)AT_ONCE),
                      first + k, to, at + k))
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
            if (scene.object != (int)k || scene.head >= 0 || scene.style != WORLD_PHOTO) continue;
            render(&scene, rendered, n++), i++;
        }
    }
    return db_status(p->ctx);
}

/* ---- the report ------------------------------------------------------------------------------ */

static int write_sheet(const options *o, const material *m)
{
    char path[4096], err[IMG_ERROR_SIZE];
    const uint8_t *each[64];
    const char *labels[64];
    img_grid_config g = img_grid_config_default();
    img_image sheet;
    size_t i, n = DB__MIN(m->n, (size_t)64);
    for (i = 0; i < n; i++) each[i] = picture_at(&m->drawn, i), labels[i] = m->caption[i];
    g.title = "the first captions of the gates, nothing selected", g.scale = 2, g.columns = 8;
    snprintf(path, sizeof path, "%s/gates.png", o->out);
    if (img_grid(each, labels, n, S, S, &g, &sheet, err, sizeof err) != IMG_OK)
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
    size_t *confusion[ASKED], i, a;
    FILE *file;
    long task;
    int good = 1;
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
    if (o->metrics) {
        float *z;
        size_t D;
        const pictures *set[3] = {&m.rendered, &m.drawn, &m.other};
        pictures classes[2];
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
    }
    if (db_status(ctx) != DB_OK) return fail("%s", db_last_error(ctx));
    snprintf(path, sizeof path, "%s/gates.json", o->out);
    if (!(file = fopen(path, "w"))) return fail("cannot write %s", path);
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
    if (o->metrics) {
        good &= div[0] >= 0.9 * div[1];
        printf("diversity           %.3f    %.3f    %.3f    0.90%s\n", div[0], div[1],
               div[0] / div[1], div[0] >= 0.9 * div[1] ? "" : "  not reached");
        printf("Frechet distance    %.3f    %.3f (of other renders)\n", apart[0], apart[1]);
        fprintf(file, ",\n\"diversity\": {\"drawn\": %.4f, \"renders\": %.4f}", div[0], div[1]);
        fprintf(file, ",\n\"frechet\": {\"drawn\": %.4f, \"renders\": %.4f}", apart[0], apart[1]);
    }
    fprintf(file, "}\n");
    fclose(file);
    printf("%s\n", good ? "all gates reached" : "not all gates reached");
    good = write_sheet(o, &m) ? 1 : 0;
    classifier_free(net), db_vit_free(dino), db_lpips_free(lpips), db_pipeline_free(p);
    for (a = 0; a < ASKED; a++) free(confusion[a]);
    free((void *)prompts), free(m.caption), free(m.scene), free(m.stranger);
    pictures_free(&m.drawn), pictures_free(&m.rendered), pictures_free(&m.other);
    return good;
}

int main(int argc, char **argv)
{
    options o = {"examples/world/captions.txt", "examples/world/base",
                 "examples/world/metrics/classifier", NULL, "build", "f32", CAPTIONS, 0};
    const flag flags[] = {
        {"captions", TEXT, &o.captions, "lines of INDEX<tab>CAPTION"},
        {"model", TEXT, &o.model, "the base: a diffusers directory"},
        {"classifier", TEXT, &o.classifier, "its directory"},
        {"metrics", TEXT, &o.metrics, "a folder with dino and lpips; without it no distances"},
        {"out", TEXT, &o.out, "where gates.json and gates.png go"},
        {"precision", TEXT, &o.precision, "bf16 or f32"},
        {"count", WHOLE, &o.count, "captions"},
        {"threads", WHOLE, &o.threads, "0: all cores"},
        {NULL, TEXT, NULL, NULL}};
    db_config config = db_config_default();
    db_ctx *ctx = NULL;
    int status;
    let_threads_sleep(argv);
    if (argc > 1 && !strcmp(argv[1], "captions")) return write_captions();
    if (argc < 2 || strcmp(argv[1], "run")) return fail("captions or run?");
    status = parse(argc, argv, "run", "holds the base to renders of its captions", flags, NULL);
    if (status) return status != 2;
    if (!o.count) return fail("--count takes a number from 1");
    config.threads = (int)o.threads;
    config.compute = strcmp(o.precision, "bf16") ? DB_F32 : DB_BF16;
    if (db_create(&ctx, &config) != DB_OK) return fail("no context");
    status = run(&o, ctx);
    db_destroy(ctx);
    return status;
}
