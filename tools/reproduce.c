/* reproduce - reruns the paper's experiments on the shipped cascade and writes one report.

   build/reproduce plan       what will be run, and how long it takes
   build/reproduce run        runs what is not done yet; --only CELL computes one again and compares
   build/reproduce report     results.jsonl -> report.html, results.json
   build/reproduce protocol   the paper's protocol on a real checkpoint: 30 subjects, 25 prompts

   experiments.h is the plan, cells.h computes a cell, verdicts.h judges, report.h writes. Each
   cell's results are one line of build/paper/results.jsonl: a run that was stopped or killed goes
   on with the same command. Any number of processes may `run` in one folder: each takes a cell that
   no other works on; --jobs starts some.                                                        */

#define _POSIX_C_SOURCE 200809L
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include <sys/wait.h>
#include <unistd.h>
#define WORLD_IMPLEMENTATION
#include "world.h"
#define IMAGES_IMPLEMENTATION
#include "images.h"
#define PROGRAM "reproduce"
#include "cli.h"
#include "threads.h"
#include "classifier.h"
#include "pictures.h"
#include "statistics.h"
#include "records.h"
#include "experiments.h"
#include "cells.h"
#include "protocol.h"
#include "verdicts.h"
#include "html.h"
#include "report.h"

typedef struct options {
    common c;
    const char *folder, *experiment, *only, *dino, *clip, *lpips, *classifier;
    double budget, guidance;
    long jobs;
    int quick, micro, helper; /* helper: a process that another one started */
    int any_checkpoint;       /* the base may be of any form, not only as the shipped one is */
} options;

static options options_default(void)
{
    options o;
    memset(&o, 0, sizeof o);
    o.c = common_default; /* in f32, so that records of any two machines stand together */
    o.dino = "examples/world/metrics/dino", o.clip = "examples/world/metrics/clip";
    o.lpips = "examples/world/metrics/lpips", o.classifier = "examples/world/metrics/classifier";
    o.guidance = PIXEL_GUIDANCE, o.jobs = 1;
    return o;
}

/* A real checkpoint's: the world's networks do not measure it. */
static options options_protocol(void)
{
    options o = options_default();
    o.dino = o.clip = o.lpips = o.classifier = "", o.any_checkpoint = 1;
    return o;
}

#define SCALE_FLAGS(o)                                                                             \
    {"folder", TEXT, &(o).folder, "for results and pictures; build/paper, or build/paper-quick"},  \
    {"quick", SWITCH, &(o).quick, "a smoke test of ten minutes, without verdicts"},                \
    {"micro", SWITCH, &(o).micro, "smaller still, for the tests"}
#define PAPER_FLAGS(o)                                                                             \
    SCALE_FLAGS(o),                                                                                \
    {"experiment", TEXT, &(o).experiment, "this one alone"},                                       \
    {"dino", TEXT, &(o).dino, "directory of DINO"}, {"clip", TEXT, &(o).clip, "of CLIP"},          \
    {"lpips", TEXT, &(o).lpips, "of LPIPS"},                                                       \
    {"classifier", TEXT, &(o).classifier, "of the world's attribute classifier"}

static const scale *scale_of(const options *o) { return &scales[o->micro ? 2 : o->quick ? 1 : 0]; }

static const char *folder_for(const options *o)
{
    return o->folder ? o->folder : o->micro ? "build/paper-micro"
        : o->quick                          ? "build/paper-quick"
                                            : "build/paper";
}

static int check_experiment(const options *o)
{
    size_t e, nearest = 0;
    for (e = 0; o->experiment && e < EXPERIMENTS; e++) {
        if (!strcmp(experiments[e].name, o->experiment)) return 0;
        if (distance(o->experiment, experiments[e].name) <
            distance(o->experiment, experiments[nearest].name))
            nearest = e;
    }
    return o->experiment ? fail("there is no experiment \"%s\"; did you mean %s?", o->experiment,
                                experiments[nearest].name)
                         : 0;
}

/* ---- the workplace --------------------------------------------------------------------------- */

static uint64_t hash_contents(uint64_t hash, const char *path)
{
    char buffer[65536];
    size_t n;
    FILE *f = fopen(path, "rb");
    while (f && (n = fread(buffer, 1, sizeof buffer, f)) > 0) hash = hash_bytes(hash, buffer, n);
    if (f) fclose(f);
    return hash;
}
static uint64_t hash_file(uint64_t hash, const char *directory, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return hash_bytes(hash_contents(hash, path), name, strlen(name));
}

/* A checkpoint of any form: one file, or a directory's configurations and weights, whatever their
   shards and variants are called. */
static uint64_t hash_checkpoint(uint64_t hash, const char *checkpoint)
{
    static const char *const part[] = {"scheduler", "text_encoder", "tokenizer", "unet", "vae"};
    char path[4096];
    size_t k, i, n;
    hash = hash_contents(hash, checkpoint);
    for (k = 0; k < sizeof part / sizeof *part; k++) {
        char **names;
        snprintf(path, sizeof path, "%s/%s", checkpoint, part[k]);
        names = list_folder(path, &n);
        for (i = 0; names && i < n; i++) hash = hash_file(hash, path, names[i]), free(names[i]);
        free(names);
    }
    return hash;
}

static int has_weights(const char *directory)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    if (!*directory) return 0;
    if (file_exists(path)) return 1;
    fprintf(stderr, "note: %s is not there: its measures are left out\n", path);
    return 0;
}

/* Opens the metric networks that are there; the hash tells all weights that take part apart. */
static int open_workplace(workplace *w, const options *o, db_ctx *ctx)
{
    static char base[4096], sr[4096];
    uint64_t hash = hash_begin;
    networks *net = &w->net;
    memset(w, 0, sizeof *w);
    net->ctx = ctx;
    w->size = scale_of(o), w->folder = folder_for(o), w->guidance = o->guidance;
    snprintf(base, sizeof base, "%s/base/model_index.json", o->c.model);
    snprintf(sr, sizeof sr, "%s/sr256/model_index.json", o->c.model);
    if (file_exists(sr)) snprintf(sr, sizeof sr, "%s/sr256", o->c.model), net->sr = sr;
    if (file_exists(base)) snprintf(base, sizeof base, "%s/base", o->c.model), net->base = base;
    else net->base = o->c.model;
    if (has_weights(o->dino)) db_vit_load(ctx, o->dino, &net->dino);
    if (has_weights(o->clip)) db_clip_load(ctx, o->clip, &net->clip);
    if (has_weights(o->lpips)) db_lpips_load(ctx, o->lpips, &net->lpips);
    if (has_weights(o->classifier))
        net->classifier = classifier_open(ctx, o->classifier, 1);
    if (o->any_checkpoint) hash = hash_checkpoint(hash, net->base);
    else {
        hash = hash_file(hash, net->base, "unet/diffusion_pytorch_model.safetensors");
        hash = hash_file(hash, net->base, "text_encoder/model.safetensors");
    }
    if (net->sr) hash = hash_file(hash, net->sr, "unet/diffusion_pytorch_model.safetensors");
    if (net->dino) hash = hash_file(hash, o->dino, "model.safetensors");
    if (net->clip) hash = hash_file(hash, o->clip, "model.safetensors");
    if (net->lpips) hash = hash_file(hash, o->lpips, "model.safetensors");
    if (net->classifier) hash = hash_file(hash, o->classifier, "model.safetensors");
    snprintf(net->hash, sizeof net->hash, "%016llx", (unsigned long long)hash);
    return db_status(ctx) != DB_OK;
}

static void close_workplace(workplace *w)
{
    db_vit_free(w->net.dino), classifier_free(w->net.classifier);
    db_clip_free(w->net.clip), db_lpips_free(w->net.lpips);
    if (w->lock > 0) close(w->lock);
}

/* build/paper and all that lies in it. */
static int make_folders(const char *folder)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/cells", folder);
    return make_folder(path);
}

/* Several processes may work in one folder: see hold. */
static int open_lock(workplace *w)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/lock", w->folder);
    w->lock = open(path, O_RDWR | O_CREAT, 0666);
    return w->lock < 0 ? fail("cannot write %s: %s", path, strerror(errno)) : 0;
}

/* ---- records of cells ------------------------------------------------------------------------ */

/* What a record says before anything is computed. The key leaves out only how much is measured. */
static void describe_cell(const workplace *w, const options *o, const cell *c, record *r)
{
    /* what draws other pictures of the cell than the standard ones */
    enum { APART = MEASURE_TRACE | MEASURE_SR | MEASURE_METRICS | MEASURE_APPLICATIONS |
               MEASURE_PROTOCOL };
    const db_backend *gpu = w->net.ctx->config.backend;
    char in[32], whole[2 * RECORD_TEXT];
    uint64_t key = hash_begin;
    memset(r, 0, sizeof *r);
    cell_settings(c, w->size, w->guidance, o->any_checkpoint, r->settings, sizeof r->settings);
    snprintf(r->cell, sizeof r->cell, "%s", c->name);
    snprintf(r->networks, sizeof r->networks, "%s", w->net.hash);
    computed_in(w->net.ctx, in);
    snprintf(r->machine, sizeof r->machine, "%s, %s", gpu ? gpu->name : db_isa(w->net.ctx),
             precision_name(w->net.ctx));
    snprintf(r->command, sizeof r->command, "build/reproduce run%s --only '%s'",
             o->micro       ? " --micro"
                 : o->quick ? " --quick"
                            : "",
             c->name);
    snprintf(whole, sizeof whole, "%s subject %d seed %d measures %d networks %s %s", r->settings,
             c->subject, c->seed, c->measures & APART, w->net.hash, in);
    key = hash_bytes(key, whole, strlen(whole));
    snprintf(r->key, sizeof r->key, "%016llx", (unsigned long long)key);
}

static int measures_of(const char *cell_name)
{
    size_t e, n = strcspn(cell_name, "/");
    const char *seed = strrchr(cell_name, '/');
    for (e = 0; e < EXPERIMENTS; e++)
        if (strlen(experiments[e].name) == n && !strncmp(experiments[e].name, cell_name, n))
            return measures_with(&experiments[e], seed ? atoi(seed + 1) : 0);
    return 0;
}

/* The newest record with this key that measured at least as much; `name` NULL: of any cell. */
static const record *find_key(const records *all, const char *key, int measures, const char *name)
{
    size_t k;
    for (k = all->n; k-- > 0;) {
        const record *r = &all->item[k];
        if (!strcmp(r->key, key) && (!name || !strcmp(r->cell, name)) &&
            (measures_of(r->cell) & measures) == measures)
            return r;
    }
    return NULL;
}

/* Seconds that cell k takes on two free cores with AVX-512, by what it trains and draws; with what
   it is the first to need of the original model: class images, pictures of its prompts. */
static double expected_seconds(const cell *cells, size_t k, const scale *size)
{
    const cell *c = &cells[k];
    const settings *s = &c->settings;
    int m = c->measures, object = world_subject(c->subject).object, first = 1;
    double picture = .012 * (double)size->draw_steps, n, classes = s->classes, step;
    size_t j;
    if (m & MEASURE_METRICS) return 3;
    if (m & MEASURE_SR)
        return 4 + .05 * s->steps + 3.0 * .5 * (double)size->held_out;
    for (j = 0; j < k; j++) {
        const settings *other = &cells[j].settings;
        first = first && (cells[j].subject != c->subject || cells[j].seed != c->seed);
        if (world_subject(cells[j].subject).object == object &&
            other->class_guidance == s->class_guidance)
            classes = fmin(classes, fmax(0, s->classes - other->classes));
    }
    n = (double)((size->places + 1) * size->each) * (m & MEASURE_PROTOCOL ? 25.0 / 7 : 1) +
        (double)class_pictures_of(m, size);
    step = (s->lambda > 0 ? .055 : .03) * s->batch;
    if (!strcmp(s->train, "embedding")) step *= .8;
    return 3 + s->steps * step + n * picture * (m & MEASURE_TRACE ? TRACES : 1) +
        (first ? n * picture : 0) + (m & MEASURE_LEAKS ? 9 * picture * (double)size->leak : 0) +
        (m & MEASURE_APPLICATIONS ? 2 * 23 * picture * (double)size->shown : 0) +
        classes * .0076 * (double)size->class_steps * fmin(2, s->class_guidance);
}

/* ---- run ------------------------------------------------------------------------------------- */

/* Computes one cell again, and compares with its record to the last digit; without one, adds it. */
static int run_only(const workplace *w, const options *o, const cell *c, const char *path)
{
    size_t skipped;
    records done = records_load(w->net.ctx, path, &skipped);
    record *r = (record *)malloc(sizeof *r);
    const record *old;
    size_t k, differing = 0;
    int bad;
    describe_cell(w, o, c, r);
    old = find_key(&done, r->key, 0, c->name);
    bad = compute_cell(w, c, r);
    for (k = 0; k < r->n && !bad; k++) {
        char now_is[32], was[32] = "-";
        snprintf(now_is, sizeof now_is, "%.9g", r->value[k].value);
        if (old) snprintf(was, sizeof was, "%.9g", record_get(old, r->value[k].name));
        printf("%-34s %-16s %-16s%s\n", r->value[k].name, now_is, was,
               old && strcmp(now_is, was) ? "DIFFERENT" : "");
        differing += old && strcmp(now_is, was);
    }
    if (!bad && !old) bad = record_append(r, path);
    if (!bad)
        printf("%s: %zu values, %s; %.1f s\n", c->name, r->n,
               !old             ? "recorded"
                   : differing  ? "not those of the record"
                                : "to the digit those of the record",
               r->seconds);
    if (!bad && differing && strcmp(old->machine, r->machine))
        printf("the record was made with %s, this with %s\n", old->machine, r->machine);
    free(r);
    records_free(&done);
    return bad || differing;
}

/* The first of the cells without a record that no other process works on, held for this one; n:
   none. A cell of a subject that another is at would wait for the class images which that one
   draws: such cells come last. *busy: the first that another works on; *there: how many have a
   record; *left: seconds that the others take. */
static size_t take_cell(const workplace *w, const options *o, const records *done,
                        const cell *cells, size_t n, size_t *busy, size_t *there, double *left)
{
    record *r = (record *)malloc(sizeof *r);
    char *open = (char *)calloc(n + 1, 1);
    size_t k, taken = n;
    int apart;
    *busy = n, *there = 0, *left = 0;
    for (k = 0; k < n; k++) {
        describe_cell(w, o, &cells[k], r);
        open[k] = !find_key(done, r->key, cells[k].measures, cells[k].name);
        if (open[k]) *left += expected_seconds(cells, k, w->size);
        else ++*there;
    }
    for (apart = 1; apart >= 0; apart--) {
        char engaged[world_n_subjects] = {0};
        for (k = 0; k < n && taken == n; k++) {
            if (!open[k] || (apart && engaged[cells[k].subject])) continue;
            describe_cell(w, o, &cells[k], r);
            if (hold(w, r->key, 0)) taken = k;
            else {
                engaged[cells[k].subject] = 1;
                if (*busy == n) *busy = k;
            }
        }
    }
    free(r), free(open);
    return taken;
}

/* Adds the record of an equal run under another cell's name. */
static int share_run(const record *equal, const cell *c, record *r, const char *path)
{
    char command[RECORD_TEXT];
    snprintf(command, sizeof command, "%s", r->command);
    *r = *equal;
    snprintf(r->cell, sizeof r->cell, "%s", c->name);
    snprintf(r->same_as, sizeof r->same_as, "%s", equal->same_as[0] ? equal->same_as : equal->cell);
    snprintf(r->command, sizeof r->command, "%s", command);
    r->seconds = 0;
    return record_append(r, path);
}

/* Runs what has no record yet, beside other processes that do the same. */
static int run_all(const workplace *w, const options *o, const cell *cells, size_t n,
                   const char *path)
{
    record *r = (record *)malloc(sizeof *r);
    double began = now(), left, expected, spent = 0;
    size_t there, busy, skipped;
    int bad = 0, stopped = 0, first = 1;
    for (; !bad && !stopped; first = 0) {
        records done = records_load(w->net.ctx, path, &skipped);
        size_t k = take_cell(w, o, &done, cells, n, &busy, &there, &left);
        const cell *c = &cells[k < n ? k : busy];
        const record *equal;
        records_free(&done);
        if (first && skipped && !o->helper)
            fprintf(stderr, "note: %zu lines of %s are no records\n", skipped, path);
        if (first && !o->helper) printf("%zu cells, %zu of them done\n", n, there);
        if (there == n) break;
        describe_cell(w, o, c, r);
        if (k == n) { /* see what comes of the other's */
            stopped = !hold(w, r->key, 1);
            if (stopped && !interrupted)
                bad = fail("cannot lock %s/lock: %s", w->folder, strerror(errno));
            release(w, r->key);
            continue;
        }
        done = records_load(w->net.ctx, path, &skipped); /* it may have been done meanwhile */
        equal = find_key(&done, r->key, c->measures, NULL);
        expected = expected_seconds(cells, k, w->size);
        if (equal && !find_key(&done, r->key, c->measures, c->name))
            bad = share_run(equal, c, r, path);
        else if (!equal && o->budget > 0 &&
                 now() - began + expected * (spent > 0 ? (now() - began) / spent : 1) >
                     60 * o->budget) {
            printf("stopped: the next cell would not fit the budget\n");
            stopped = 1;
        } else if (!equal) {
            bad = compute_cell(w, c, r);
            if (interrupted) { /* what was begun is done again */
                stopped = 1, bad = 0;
                db_clear_error(w->net.ctx);
            } else if (!bad && !(bad = record_append(r, path))) {
                there++, spent += expected, left -= expected;
                printf("%4zu/%zu %-44s %6.1f s", there, n, c->name, r->seconds);
                if (!isnan(record_get(r, "dino"))) printf("  dino %.3f", record_get(r, "dino"));
                printf("  about %.1f h left\n",
                       left * (now() - began) / spent / (double)o->jobs / 3600);
                fflush(stdout);
            }
        }
        release(w, r->key);
        records_free(&done);
    }
    free(r);
    if (o->helper || bad) return bad;
    if (there < n) printf("%zu of %zu cells are done; the same command goes on\n", there, n);
    else printf("all %zu cells are done\n", n);
    return bad;
}

/* Starts o->jobs - 1 more processes like this one; each gets its share of the threads. What they
   are is in child[]; a helper returns with o->helper set. */
static void start_helpers(options *o, pid_t *child)
{
    long k;
    if (!o->c.threads) o->c.threads = DB__MAX(1, sysconf(_SC_NPROCESSORS_ONLN) / o->jobs);
    fflush(stdout);
    for (k = 1; k < o->jobs && !o->helper; k++) {
        child[k] = fork();
        o->helper = child[k] == 0;
    }
}

/* Waits for them; not 0 if one failed. */
static int wait_for_helpers(const options *o, const pid_t *child)
{
    int bad = 0, status;
    long k;
    for (k = 1; k < o->jobs; k++) {
        if (child[k] <= 0) continue;
        if (interrupted) kill(child[k], SIGTERM);
        while (waitpid(child[k], &status, 0) < 0 && errno == EINTR)
            if (interrupted) kill(child[k], SIGTERM);
        bad = bad || status;
    }
    return bad;
}

static int run(int argc, char **argv)
{
    options o = options_default();
    const flag flags[] = {
        PAPER_FLAGS(o),
        {"only", TEXT, &o.only,
         "EXPERIMENT/CONDITION/SUBJECT/SEED: compute this one again and compare"},
        {"budget", REAL, &o.budget, "minutes after which no cell is begun; 0: none"},
        {"jobs", WHOLE, &o.jobs, "processes, each with its share of the threads"},
        COMMON_FLAGS(o.c)};
    int status = parse(argc, argv, "run", "runs what is not done yet", flags, NULL);
    char path[4096];
    enum { MOST_JOBS = 256 };
    pid_t child[MOST_JOBS];
    workplace w;
    cell *cells;
    size_t n, k;
    db_ctx *ctx;
    if (status) return status == 1;
    if (check_experiment(&o)) return 1;
    if (o.jobs < 1 || o.jobs > MOST_JOBS) return fail("--jobs takes 1 to %d", MOST_JOBS);
    o.c.quiet = 1;
    stop_in_order();
    if (!o.only) start_helpers(&o, child);
    ctx = open_context(&o.c);
    if (!ctx) return 1;
    if (open_workplace(&w, &o, ctx) || make_folders(w.folder) || open_lock(&w)) {
        close_workplace(&w);
        return finish(ctx) || 1;
    }
    snprintf(path, sizeof path, "%s/results.jsonl", w.folder);
    cells = list_cells(o.only ? NULL : o.experiment, w.size, &n);
    if (o.only) {
        for (k = 0; k < n && strcmp(cells[k].name, o.only); k++) {}
        status = k == n ? fail("there is no cell \"%s\"; build/reproduce plan --cells lists them",
                               o.only)
                        : run_only(&w, &o, &cells[k], path);
    } else {
        status = run_all(&w, &o, cells, n, path);
        if (!o.helper && wait_for_helpers(&o, child)) status = 1;
    }
    free(cells);
    close_workplace(&w);
    return finish(ctx) || status;
}

/* ---- plan ------------------------------------------------------------------------------------ */

static int plan(int argc, char **argv)
{
    options o = options_default();
    int list_them = 0;
    const flag flags[] = {PAPER_FLAGS(o),
                          {"cells", SWITCH, &list_them, "every cell with its settings"},
                          COMMON_FLAGS(o.c)};
    int status = parse(argc, argv, "plan", "what will be run", flags, NULL);
    workplace w;
    records planned;
    double total = 0;
    size_t k, n, last, runs = 0;
    cell *cells;
    db_ctx *ctx;
    if (status) return status == 1;
    if (check_experiment(&o)) return 1;
    ctx = open_context(&o.c);
    if (!ctx) return 1;
    memset(&w, 0, sizeof w), memset(&planned, 0, sizeof planned);
    w.net.ctx = ctx, w.size = scale_of(&o), w.guidance = o.guidance;
    printf("%-15s %5s %5s %7s  %s\n", "experiment", "cells", "new", "minutes", "paper");
    cells = list_cells(o.experiment, w.size, &n);
    for (k = 0; k < n; k = last) {
        const experiment *x = cells[k].of;
        double minutes = 0;
        size_t fresh = 0;
        for (last = k; last < n && cells[last].of == x; last++) {
            record r;
            describe_cell(&w, &o, &cells[last], &r);
            if (!find_key(&planned, r.key, cells[last].measures, NULL))
                fresh++, minutes += expected_seconds(cells, last, w.size) / 60;
            records_add(&planned, &r);
            if (list_them) printf("  %-46s %s\n", cells[last].name, r.settings);
        }
        printf("%-15s %5zu %5zu %7.0f  %s\n", x->name, last - k, fresh, minutes, x->paper);
        total += minutes, runs += fresh;
    }
    printf("%-15s %5zu %5zu %7.0f  %.1f hours on two free cores, AVX-512\n", "in all", n, runs,
           total, total / 60);
    records_free(&planned);
    free(cells);
    return finish(ctx);
}

/* ---- report ---------------------------------------------------------------------------------- */

static int report(int argc, char **argv)
{
    options o = options_default();
    const flag flags[] = {SCALE_FLAGS(o), COMMON_FLAGS(o.c)};
    int status =
        parse(argc, argv, "report", "results.jsonl -> report.html, results.json", flags, NULL);
    char path[4096];
    records all;
    size_t skipped;
    db_ctx *ctx;
    if (status) return status == 1;
    ctx = open_context(&o.c);
    if (!ctx) return 1;
    snprintf(path, sizeof path, "%s/results.jsonl", folder_for(&o));
    all = records_load(ctx, path, &skipped);
    if (!all.n) status = fail("%s holds no records: build/reproduce run comes first", path);
    else status = write_report(&all, scale_of(&o), o.guidance, folder_for(&o));
    records_free(&all);
    return finish(ctx) || status;
}

/* ---- protocol -------------------------------------------------------------------------------- */

static uint64_t hash_photos(const photos *p)
{
    uint64_t hash = hash_begin;
    size_t k;
    for (k = 0; k < p->n; k++)
        hash = hash_bytes(hash, p->view[k].rgb, p->view[k].w * p->view[k].h * 3);
    return hash;
}

/* Not 0 after a complaint about settings that the protocol has not, or that do not go together. */
static int check_protocol_settings(settings *s)
{
    settings usual = settings_default();
    if (!(s->lr > 0 && s->steps > 0))
        return fail("--settings must have lr= and steps=, as they suit the checkpoint");
    if (strcmp(s->train, "all") && strcmp(s->train, "attention") && strcmp(s->train, "cross") &&
        strcmp(s->train, "lora"))
        return fail("--settings: the protocol has train=all, attention, cross or lora, not %s",
                    s->train);
    if (!strcmp(s->train, "lora") != (s->rank > 0))
        return fail("--settings: train=lora and rank= go together");
    if (strcmp(s->noun, usual.noun) || s->photos != usual.photos || strcmp(s->shots, usual.shots) ||
        s->strength != usual.strength || s->noise != usual.noise)
        return fail("--settings: noun, photos, shots, strength and noise are the experiments'");
    if (strcmp(s->schedule, "constant") && strcmp(s->schedule, "cosine"))
        return fail("--settings: schedule= takes constant or cosine, not %s", s->schedule);
    if (s->classes == 0) s->lambda = 0;
    return 0;
}

static int run_protocol(int argc, char **argv)
{
    static const experiment as_experiment = {"protocol", "section 4.1, Table 1", "", NULL, 0, 1, 0};
    options o = options_protocol();
    const char *subjects = NULL, *prompt_file = NULL, *changes = "";
    long each = 4, class_pictures = 16, steps = 50, class_steps = 100;
    const flag flags[] = {
        {"subjects", TEXT, &subjects, "a folder with a folder of photos for each subject"},
        {"prompts", TEXT, &prompt_file, "prompts_and_classes.txt: subjects' classes, and prompts"},
        {"settings", TEXT, &changes, "\"lr=5e-6 steps=800 classes=200 batch=1 word=ohwx ...\""},
        {"num_images", WHOLE, &each, "of each prompt"},
        {"class_pictures", WHOLE, &class_pictures, "of \"a [class]\", for PRES and drift"},
        {"num_inference_steps", WHOLE, &steps, "sampling steps"},
        {"class_steps", WHOLE, &class_steps, "of the class images"},
        {"guidance_scale", REAL, &o.guidance, ""},
        {"folder", TEXT, &o.folder, "for results and pictures; build/protocol"},
        {"dino", TEXT, &o.dino, "directory of ViT-S/16 (DINO); its measures are left out without"},
        {"clip", TEXT, &o.clip, "of CLIP; the same"},
        {"lpips", TEXT, &o.lpips, "of LPIPS; the same"},
        {"classifier", IGNORED, NULL, "it knows the world's renders alone"},
        {"micro", SWITCH, &o.micro, "pictures of 16 pixels, for the tests"},
        {"budget", REAL, &o.budget, "minutes after which no subject is begun; 0: none"},
        COMMON_FLAGS(o.c)};
    int status = parse(argc, argv, "protocol",
                       "the paper's protocol: every subject, every prompt, the means", flags, NULL);
    protocol *p = (protocol *)malloc(sizeof *p);
    record *r = (record *)malloc(sizeof *r);
    settings chosen = settings_default();
    scale size;
    records done, mine;
    workplace w;
    char path[4096], scale_name[64]; /* the name tells other pictures and prompts apart */
    double began = now();
    uint64_t what;
    size_t k, skipped;
    db_ctx *ctx;
    if (!status && (!subjects || !prompt_file))
        status = fail("protocol needs --subjects and --prompts");
    if (!status && (each < 1 || steps < 1 || class_steps < 1))
        status = fail("protocol needs a picture of each prompt, and a step for it");
    if (!status) status = read_protocol(prompt_file, p);
    if (!o.folder) o.folder = "build/protocol";
    o.c.quiet = 1;
    stop_in_order();
    if (!status) status = settings_change(&chosen, changes);
    if (!status) status = check_protocol_settings(&chosen);
    ctx = status ? NULL : open_context(&o.c);
    if (!ctx) {
        free(p), free(r);
        return status != 2;
    }
    status = open_workplace(&w, &o, ctx) || make_folders(o.folder) || open_lock(&w);
    size = *w.size;
    size.name = scale_name, size.each = (size_t)each, size.draw_steps = (size_t)steps;
    size.class_steps = (size_t)class_steps, size.class_pictures = (size_t)class_pictures;
    w.size = &size;
    snprintf(path, sizeof path, "%s/results.jsonl", o.folder);
    done = records_load(ctx, path, &skipped);
    memset(&mine, 0, sizeof mine);
    for (k = 0; k < p->n && !status; k++) {
        const record *there;
        char folder[2200];
        photos photo;
        cell c;
        memset(&c, 0, sizeof c);
        snprintf(folder, sizeof folder, "%.2000s/%s", subjects, p->subject[k].folder);
        if (load_photos(folder, 0, &photo)) {
            status = 1;
            break;
        }
        c.of = &as_experiment, c.subject = (int)(hash_photos(&photo) & 0x7FFFFFFF);
        c.settings = chosen, c.settings.photos = (double)photo.n;
        snprintf(c.name, sizeof c.name, "protocol/dreambooth/%.80s/0", p->subject[k].folder);
        what = hash_bytes(hash_begin, p->subject[k].class_noun, sizeof p->subject[k].class_noun);
        what = hash_bytes(what, p->template, sizeof p->template);
        snprintf(scale_name, sizeof scale_name, "protocol%s-%ldx%ld-%016llx",
                 o.micro ? "-micro" : "", each, class_pictures, (unsigned long long)what);
        describe_cell(&w, &o, &c, r);
        snprintf(r->command, sizeof r->command, "build/reproduce protocol ... --settings '%.300s'",
                 changes);
        there = find_key(&done, r->key, 0, c.name);
        if (there) {
            records_add(&mine, there);
        } else if (o.budget > 0 && now() - began > 60 * o.budget) {
            free_photos(&photo);
            printf("stopped by the budget; the same command goes on\n");
            break;
        } else if (!status) {
            status = protocol_subject(&w, p, k, &photo, &c, (size_t)class_pictures, r) ||
                record_append(r, path);
            if (!status) records_add(&mine, r);
            if (!status)
                printf("%3zu/%zu %-24s a %-16s %6.0f s  DINO %.3f  CLIP-I %.3f  CLIP-T %.3f\n",
                       k + 1, p->n, p->subject[k].folder, p->subject[k].class_noun, r->seconds,
                       record_get(r, "dino"), record_get(r, "clip_i"), record_get(r, "clip_t"));
            fflush(stdout);
        }
        free_photos(&photo);
    }
    if (interrupted) printf("stopped; the same command goes on\n"), db_clear_error(ctx), status = 0;
    if (!status) print_protocol(&mine);
    free(p), free(r);
    records_free(&done), records_free(&mine);
    close_workplace(&w);
    return finish(ctx) || status;
}

/* ---- main ------------------------------------------------------------------------------------ */

int main(int argc, char **argv)
{
    static const tool_command commands[] = {
        {"plan", plan, "what will be run, and how long it takes"},
        {"run", run, "runs what is not done yet; --only CELL: one again, compared to the digit"},
        {"report", report, "results.jsonl -> report.html, results.json"},
        {"protocol", run_protocol,
         "the paper's protocol on a real checkpoint: 30 subjects, 25 prompts"}};
    let_threads_sleep(argv);
    return run_command(argc, argv, commands, sizeof commands / sizeof *commands, "");
}
