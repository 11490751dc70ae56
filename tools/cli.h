/* cli.h - what the commands of the tools share: flags, folders, pictures, progress.

   Included once, behind dreambooth.h and images.h. PROGRAM is the program's name.                */

#ifndef CLI_H
#define CLI_H

#include <ctype.h>
#include <dirent.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>

#include "device.h"

#ifndef PROGRAM
#define PROGRAM "dreambooth"
#endif
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* DeepFloyd's own IF, whose U-Nets read T5-XXL's states, rather than a small cascade. */
static inline int is_deepfloyd(const db_pipeline *p)
{
    return !p->vae && p->unet->config.encoder_hid_dim == 4096;
}

/* How small pixel models are drawn unless told otherwise: guidance, and the share of the steps that
   have it. In the last, nearly clean ones it adds grain to a fine-tuned model's pictures. */
#define PIXEL_GUIDANCE 4
#define PIXEL_GUIDANCE_STOP .6
static inline double usual_guidance(const db_pipeline *base)
{
    return base->vae ? 7.5 : is_deepfloyd(base) ? 7 : PIXEL_GUIDANCE;
}
static inline double usual_guidance_stop(const db_pipeline *base)
{
    return base->vae || is_deepfloyd(base) ? 1 : PIXEL_GUIDANCE_STOP;
}

static inline uint64_t hash_bytes(uint64_t hash, const void *data, size_t n)
{
    const uint8_t *at = (const uint8_t *)data;
    size_t k;
    for (k = 0; k < n; k++) hash = (hash ^ at[k]) * 0x100000001b3u; /* FNV-1a */
    return hash;
}
static const uint64_t hash_begin = 0xcbf29ce484222325u;

/* A line to stderr in which control characters, which may come from a file's names, are shown as ?
   rather than obeyed by the terminal. */
static inline void print_plainly(const char *text)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        fputc((c < 32 && c != '\n') || c == 127 ? '?' : c, stderr);
    }
    fputc('\n', stderr);
}

static inline int fail(const char *format, ...)
{
    char text[3 * 4096]; /* two paths and a reason */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fflush(stdout);
    fprintf(stderr, PROGRAM ": ");
    print_plainly(text);
    return 1;
}

static inline int file_exists(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file) fclose(file);
    return file != NULL;
}

/* ---- flags ----------------------------------------------------------------------------------- */

enum { MAX_LIST = 256 };

/* The last two are diffusers' flags that have no meaning here: one is told and skipped, the other
   an error. */
typedef enum kind { TEXT, WHOLE, REAL, SWITCH, LIST, IGNORED, REFUSED } kind;

typedef struct list {
    const char *item[MAX_LIST];
    size_t n;
} list;

typedef struct flag {
    const char *name;
    kind kind;
    void *value; /* const char **, long *, double *, int *, list *; of the last two NULL */
    const char *help; /* of the last two the reason */
} flag;

/* How many single-letter edits lead from a to b. */
static inline size_t distance(const char *a, const char *b)
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

static inline void print_flags(const char *command, const char *what, const flag *f)
{
    printf("build/" PROGRAM " %s: %s\n\n", command, what);
    for (; f->name; f++) {
        char value[96] = "";
        if (f->kind == IGNORED || f->kind == REFUSED) continue;
        if (f->kind == TEXT) {
            const char *preset = *(const char **)f->value;
            snprintf(value, sizeof value, "TEXT%s%s", preset ? " = " : "", preset ? preset : "");
        }
        if (f->kind == LIST) snprintf(value, sizeof value, "TEXT ...");
        if (f->kind == WHOLE) snprintf(value, sizeof value, "N = %ld", *(long *)f->value);
        if (f->kind == REAL) snprintf(value, sizeof value, "X = %g", *(double *)f->value);
        printf("  --%-30s %-24s %s\n", f->name, value, f->help);
    }
}

/* Reads the flags behind the command, --flag value or --flag=value; '-' and '_' are the same; what
   is no flag goes to `loose`, or is an error where that is NULL. Returns 0, 1 after a complaint, or
   2 after --help. */
static inline int parse(int argc, char **argv, const char *command, const char *what,
                        const flag *flags, list *loose)
{
    int i;
    for (i = 2; i < argc; i++) {
        const flag *f, *nearest = flags;
        char name[128], *end;
        const char *equals = strchr(argv[i], '='), *value;
        size_t k;
        if (strncmp(argv[i], "--", 2)) {
            if (!loose || loose->n == MAX_LIST)
                return fail("what is \"%s\"? Flags begin with --", argv[i]);
            loose->item[loose->n++] = argv[i];
            continue;
        }
        k = equals ? (size_t)(equals - argv[i]) - 2 : strlen(argv[i] + 2);
        snprintf(name, sizeof name, "%.*s", (int)k, argv[i] + 2);
        for (k = 0; name[k]; k++) name[k] = name[k] == '-' ? '_' : name[k];
        if (!strcmp(name, "help")) {
            print_flags(command, what, flags);
            return 2;
        }
        for (f = flags; f->name && strcmp(f->name, name); f++)
            if (distance(f->name, name) < distance(nearest->name, name)) nearest = f;
        if (!f->name)
            return fail("%s has no flag --%s; did you mean --%s?", command, name, nearest->name);
        if (f->kind == REFUSED) return fail("--%s: %s", name, f->help);
        if (f->kind == IGNORED) {
            fprintf(stderr, "note: --%s does nothing here: %s\n", name, f->help);
            i += !equals && i + 1 < argc && strncmp(argv[i + 1], "--", 2);
            continue;
        }
        if (f->kind == SWITCH) {
            if (equals) return fail("--%s takes no value", name);
            *(int *)f->value = 1;
            continue;
        }
        if (f->kind == LIST) {
            list *l = (list *)f->value;
            while (equals || (i + 1 < argc && strncmp(argv[i + 1], "--", 2))) {
                if (l->n == MAX_LIST) return fail("--%s takes at most %d values", name, MAX_LIST);
                l->item[l->n++] = equals ? equals + 1 : argv[++i];
                equals = NULL;
            }
            if (!l->n) return fail("--%s needs a value", name);
            continue;
        }
        value = equals ? equals + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (!value) return fail("--%s needs a value", name);
        if (f->kind == TEXT) {
            *(const char **)f->value = value;
        } else if (f->kind == REAL) {
            *(double *)f->value = strtod(value, &end);
            if (*end || end == value || isnan(*(double *)f->value))
                return fail("--%s takes a number, not \"%s\"", name, value);
        } else {
            errno = 0;
            *(long *)f->value = strtol(value, &end, 10);
            if (*end || end == value || errno || *(long *)f->value < 0)
                return fail("--%s takes a whole number from 0, not \"%s\"", name, value);
        }
    }
    return 0;
}

/* ---- commands -------------------------------------------------------------------------------- */

typedef struct tool_command {
    const char *name;
    int (*run)(int, char **);
    const char *what;
} tool_command;

/* Runs the command that argv[1] names. Without one, or for --help, lists all, and then `more`. */
static inline int run_command(int argc, char **argv, const tool_command *all, size_t n,
                              const char *more)
{
    size_t k, nearest = 0;
    for (k = 0; argc > 1 && k < n; k++) {
        if (!strcmp(argv[1], all[k].name)) return all[k].run(argc, argv);
        if (distance(argv[1], all[k].name) < distance(argv[1], all[nearest].name)) nearest = k;
    }
    if (argc > 1 && strcmp(argv[1], "--help"))
        return fail("there is no command \"%s\"; did you mean %s?", argv[1], all[nearest].name);
    printf("build/" PROGRAM " COMMAND --flag value ...\n\n");
    for (k = 0; k < n; k++) printf("  %-10s %s\n", all[k].name, all[k].what);
    printf("\nEach has --help.%s\n", more);
    return argc < 2;
}

/* ---- the context and its progress ------------------------------------------------------------ */

typedef struct common {
    const char *model, *precision, *isa, *device;
    long threads;
    int quiet;
} common;

#define COMMON_FLAGS(c)                                                                            \
    {"pretrained_model_name_or_path", TEXT, &(c).model, "a diffusers directory, or a cascade's"},  \
    {"mixed_precision", TEXT, &(c).precision, "no, bf16, or auto: bf16 where it is fast"},         \
    {"threads", WHOLE, &(c).threads, "0: all cores"},                                              \
    {"isa", TEXT, &(c).isa, "instruction set"},                                                    \
    {"device", TEXT, &(c).device, "cuda, cpu, or auto: the GPU if there is one"},                  \
    {"quiet", SWITCH, &(c).quiet, "no progress"},                                                  \
    {NULL, TEXT, NULL, NULL}

static const common common_default = {"examples/world", "no", NULL, "auto", 0, 0};

static volatile sig_atomic_t interrupted;
static inline void on_signal(int s) { (void)s, interrupted = 1; }

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What the progress bar shows besides what the library reports. */
static struct {
    int quiet, mute;      /* no bar; nothing from the log     */
    char stage[32];       /* "" or what is being sampled     */
    char detail[96];      /* losses                          */
    double began;
    size_t before;        /* steps that a resumed training had made */
    long shown;           /* the last tenth, or column, that was drawn; -1: none */
} bar;

static inline void bar_start(const char *stage)
{
    snprintf(bar.stage, sizeof bar.stage, "%s", stage);
    bar.detail[0] = 0;
    bar.began = now();
    bar.shown = -1;
}

/* A bar on a terminal, a plain line for every tenth otherwise. */
static inline void bar_draw(const char *what, size_t done, size_t total)
{
    double spent = now() - bar.began, each;
    int terminal = isatty(1), k, width = 30;
    long mark = terminal ? (long)done : (long)(done * 10 / total);
    char line[32];
    if (bar.quiet || mark == bar.shown) return;
    if (bar.shown < 0) bar.before = done - 1;
    each = spent / (double)(done - bar.before);
    bar.shown = mark;
    for (k = 0; k < width; k++) line[k] = (size_t)k * total < done * (size_t)width ? '#' : '.';
    line[width] = 0;
    printf("%s%-12s %s%s%s %zu/%zu %s  %.3g/s, %.0f s left%s", terminal ? "\r" : "",
           bar.stage[0] ? bar.stage : what, terminal ? "[" : "", terminal ? line : "",
           terminal ? "]" : "", done, total, bar.detail, 1 / fmax(each, 1e-9),
           each * (double)(total - done), terminal ? "\x1b[K" : "\n");
    if (terminal && done == total) printf("\n");
    fflush(stdout);
}

static inline int on_progress(void *user, const char *what, size_t done, size_t total)
{
    (void)user;
    if (strcmp(what, "training"))
        bar_draw(what, done, total); /* train draws its own, with losses */
    return interrupted;
}

static inline void print_log(void *user, db_log_level level, const char *line)
{
    (void)user;
    if (bar.mute) return;
    fflush(stdout);
    fprintf(stderr, "%s", level == DB_LOG_WARNING ? "warning: " : "");
    print_plainly(line);
}

/* For what draws and trains: the first Ctrl-C asks it to end in order, the second ends the program;
   SIGTERM asks every time. */
static inline void stop_in_order(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal; /* without SA_RESTART: who waits is woken */
    sigaction(SIGTERM, &action, NULL);
    action.sa_flags = (int)SA_RESETHAND;
    sigaction(SIGINT, &action, NULL);
}

static inline db_ctx *open_context(const common *c)
{
    db_config config = db_config_default();
    db_ctx *ctx = NULL;
    const char *asked = getenv("DB_ISA"),
               *isa = c->isa ? c->isa : asked && *asked ? asked : db_isa_name(0);
    int fast = !strcmp(isa, "amx") || !strcmp(isa, "avx512bf16");
    if (!strcmp(c->precision, "fp16")) {
        fail("--mixed_precision fp16: processors do not compute in it; bf16 is as small and has "
             "f32's range");
        return NULL;
    }
    if (strcmp(c->precision, "no") && strcmp(c->precision, "bf16") &&
        strcmp(c->precision, "auto")) {
        fail("--mixed_precision takes no, bf16 or auto, not \"%s\"", c->precision);
        return NULL;
    }
    if (!choose_device(c->device, &config)) return NULL;
    bar.quiet = c->quiet;
    config.threads = (int)c->threads;
    config.isa = c->isa;
    config.log = print_log;
    config.progress = on_progress;
    if (!strcmp(c->precision, "bf16") || (!strcmp(c->precision, "auto") && fast))
        config.compute = DB_BF16;
    if (db_create(&ctx, &config) != DB_OK)
        fail("this build or processor has no instruction set \"%s\"", isa);
    return ctx;
}

/* Prints the context's error, if there is one; the exit status. */
static inline int finish(db_ctx *ctx)
{
    int bad = db_status(ctx) != DB_OK;
    if (bad) fail("%s", db_last_error(ctx));
    db_destroy(ctx);
    return bad;
}

/* ---- folders --------------------------------------------------------------------------------- */

static inline int is_folder(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

/* Where a file lies; until the next call. */
static inline const char *folder_of(const char *path)
{
    static char folder[4000];
    const char *slash = strrchr(path, '/');
    if (!slash) return ".";
    snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
    return folder;
}

static inline int is_same_folder(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Makes a folder, and those above it. */
static inline int make_folder(const char *path)
{
    char above[4096], *at;
    snprintf(above, sizeof above, "%s", path);
    for (at = above + 1; *above && *at; at++)
        if (*at == '/') {
            *at = 0;
            mkdir(above, 0777); /* what fails here fails below, too */
            *at = '/';
        }
    if (mkdir(path, 0777) == 0 || (errno == EEXIST && is_folder(path))) return 0;
    return fail("cannot make the folder %s: %s", path, strerror(errno));
}

/* Makes the folder of a command's results, and tries whether it can be written into: not after the
   hours that they take. */
static inline int make_output_folder(const char *path)
{
    char probe[4096];
    FILE *f;
    if (make_folder(path)) return 1;
    snprintf(probe, sizeof probe, "%s/.written", path);
    f = fopen(probe, "wb");
    if (!f) return fail("cannot write into %s: %s", path, strerror(errno));
    fclose(f);
    remove(probe);
    return 0;
}

static inline int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names in a folder, sorted, without those that begin with a dot; NULL when it cannot be read.
   Free each and the list. */
static inline char **list_folder(const char *path, size_t *n)
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

/* A file is written beside its place and put there when it is complete: who is killed meanwhile
   leaves the old one, or none. */
static inline FILE *begin_file(const char *path)
{
    char part[4200];
    snprintf(part, sizeof part, "%s.part", path);
    return fopen(part, "wb");
}

static inline int end_file(FILE *f, const char *path)
{
    char part[4200];
    int bad = !f || ferror(f);
    snprintf(part, sizeof part, "%s.part", path);
    if (f) bad = fclose(f) || bad;
    if (!bad) bad = rename(part, path);
    if (!bad) return 0;
    fail("cannot write %s: %s", path, strerror(errno));
    remove(part);
    return 1;
}

/* Ends a file that is not to be. */
static inline void drop_file(FILE *f, const char *path)
{
    char part[4200];
    snprintf(part, sizeof part, "%s.part", path);
    if (f) fclose(f);
    remove(part);
}

/* Copies FROM/NAME to TO/NAME if it is there. */
static inline int copy_file(const char *from, const char *to, const char *name)
{
    char source[4096], target[4096], buffer[65536];
    FILE *in, *out;
    size_t n;
    int bad;
    if (snprintf(source, sizeof source, "%s/%s", from, name) >= 4096 ||
        snprintf(target, sizeof target, "%s/%s", to, name) >= 4096)
        return fail("the path %s is too long", to);
    in = fopen(source, "rb");
    if (!in && (errno == ENOENT || errno == ENOTDIR)) return 0;
    if (!in) return fail("cannot read %s: %s", source, strerror(errno));
    out = begin_file(target);
    while (out && (n = fread(buffer, 1, sizeof buffer, in)) > 0) fwrite(buffer, 1, n, out);
    bad = ferror(in);
    fclose(in);
    if (!bad) return end_file(out, target);
    drop_file(out, target);
    return fail("cannot read %s", source);
}

static inline int is_folder_in_use(const char *path)
{
    size_t n, k;
    char **names = list_folder(path, &n);
    for (k = 0; names && k < n; k++) free(names[k]);
    free(names);
    return n > 0;
}

static inline int move_file(const char *from, const char *name, const char *to,
                            const char *new_name)
{
    char source[4096], target[4096];
    if (snprintf(source, sizeof source, "%s/%s", from, name) >= 4096 ||
        snprintf(target, sizeof target, "%s/%s", to, new_name) >= 4096)
        return fail("the path %s is too long", to);
    return rename(source, target)
        ? fail("cannot move %s to %s: %s", source, target, strerror(errno))
        : 0;
}

/* Writes lines to FOLDER/NAME. */
static inline int save_lines(const char *folder, const char *name, const char *const *lines,
                             size_t n)
{
    char path[4096];
    FILE *f;
    size_t k;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    f = begin_file(path);
    for (k = 0; f && k < n; k++) fprintf(f, "%s\n", lines[k]);
    return end_file(f, path);
}

/* The lines of a text file; free each and the list. NULL when it cannot be read. */
static inline char **load_lines(const char *path, size_t *n)
{
    FILE *f = fopen(path, "r");
    char *line = NULL, **lines = NULL;
    size_t room = 0;
    *n = 0;
    if (!f) return NULL;
    lines = (char **)calloc(1, sizeof *lines);
    while (getline(&line, &room, f) >= 0) {
        size_t mark = !*n && !strncmp(line, "\xEF\xBB\xBF", 3) ? 3 : 0; /* some editors' */
        line[strcspn(line, "\r\n")] = 0;
        lines = (char **)realloc(lines, (*n + 2) * sizeof *lines);
        lines[*n] = (char *)malloc(strlen(line + mark) + 1);
        strcpy(lines[(*n)++], line + mark);
    }
    free(line);
    fclose(f);
    return lines;
}

/* ---- pictures -------------------------------------------------------------------------------- */

/* Writes one picture [h][w][3] in [-1,1] as PNG. */
static inline int save_picture(const float *pixels, size_t h, size_t w, const char *path)
{
    uint8_t *rgb = (uint8_t *)malloc(h * w * 3);
    char err[IMG_ERROR_SIZE];
    int bad;
    if (!rgb) return fail("out of memory for %s", path);
    db_to_rgb(pixels, h * w * 3, rgb);
    bad = img_save_png(path, rgb, w, h, err, sizeof err) != IMG_OK;
    free(rgb);
    return bad ? fail("%s", err) : 0;
}

/* A labelled grid of pictures [n][h][w][3]; a label NULL leaves its place empty. */
static inline int save_grid(const float *pixels, size_t n, size_t h, size_t w,
                            const char *const *labels, size_t columns, const char *title,
                            const char *path)
{
    uint8_t *rgb = (uint8_t *)malloc(n * h * w * 3);
    const uint8_t **each = (const uint8_t **)malloc(n * sizeof *each);
    img_grid_config g = img_grid_config_default();
    img_image sheet;
    char err[IMG_ERROR_SIZE];
    size_t i;
    int bad;
    if (!rgb || !each) {
        free(rgb), free((void *)each);
        return fail("out of memory for %s", path);
    }
    db_to_rgb(pixels, n * h * w * 3, rgb);
    for (i = 0; i < n; i++) each[i] = labels[i] ? rgb + i * h * w * 3 : NULL;
    g.title = title, g.scale = w < 128 ? 2 : 1, g.columns = n < columns ? n : columns;
    bad = img_grid(each, labels, n, w, h, &g, &sheet, err, sizeof err) != IMG_OK;
    if (!bad) {
        bad = img_save_png(path, sheet.rgb, sheet.w, sheet.h, err, sizeof err) != IMG_OK;
        img_free(&sheet);
    }
    free(rgb);
    free((void *)each);
    return bad ? fail("%s", err) : 0;
}

typedef struct photos {
    img_image *image; /* owned               */
    db_image *view;   /* the same, borrowed  */
    char (*name)[256];
    size_t n;
} photos;

static inline void free_photos(photos *p)
{
    size_t k;
    for (k = 0; k < p->n; k++) img_free(&p->image[k]);
    free(p->image), free(p->view), free(p->name);
    memset(p, 0, sizeof *p);
}

/* Loads every picture of a folder that can be one; the others are named and left out. Not 0 when
   there is none. Pictures smaller than `resolution` get a warning; 0: none. */
static inline int load_photos(const char *folder, size_t resolution, photos *p)
{
    size_t files, k;
    char **names = list_folder(folder, &files), path[4096], err[IMG_ERROR_SIZE];
    memset(p, 0, sizeof *p);
    if (!names) return fail("cannot read the folder %s: %s", folder, strerror(errno));
    p->image = (img_image *)calloc(files + 1, sizeof *p->image);
    p->view = (db_image *)calloc(files + 1, sizeof *p->view);
    p->name = (char(*)[256])calloc(files + 1, sizeof *p->name);
    for (k = 0; k < files; k++) {
        img_image *i = &p->image[p->n];
        snprintf(path, sizeof path, "%s/%s", folder, names[k]);
        if (img_load(path, i, err, sizeof err) != IMG_OK) {
            fprintf(stderr, "skipped: ");
            print_plainly(err);
        } else if (i->w < 32 || i->h < 32) {
            fprintf(stderr, "skipped: %s is a thumbnail of %zu x %zu pixels\n", path, i->w, i->h);
            img_free(i);
        } else {
            if (i->w < resolution || i->h < resolution)
                fprintf(stderr, "warning: %s has %zu x %zu pixels and is enlarged to %zu\n", path,
                        i->w, i->h, resolution);
            p->view[p->n].rgb = i->rgb, p->view[p->n].w = i->w, p->view[p->n].h = i->h;
            snprintf(p->name[p->n], sizeof p->name[0], "%s", names[k]);
            p->n++;
        }
        free(names[k]);
    }
    free(names);
    if (p->n) return 0;
    free_photos(p);
    return fail("%s holds no photos (PNG or JPEG)", folder);
}

/* The middle square of a photo at size x size pixels, [size][size][3] in [-1,1]. */
static inline int square(db_ctx *ctx, const db_image *photo, size_t size, float *out)
{
    size_t shorter = MIN(photo->w, photo->h), y;
    size_t w = photo->w * size / shorter, h = photo->h * size / shorter;
    float *whole = w / size > 64 || h / size > 64 ? NULL
                                                  : (float *)malloc(w * h * 3 * sizeof *whole);
    int bad = whole ? db_resize(ctx, photo, h, w, whole) != DB_OK
                    : fail("no memory for a photo of %zu x %zu pixels at %zu x %zu", photo->w,
                           photo->h, w, h);
    for (y = 0; y < size && !bad; y++)
        memcpy(out + y * size * 3, whole + ((y + (h - size) / 2) * w + (w - size) / 2) * 3,
               size * 3 * sizeof *out);
    free(whole);
    return bad;
}

#endif
