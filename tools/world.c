/* world - renders the procedural world of world.h to files.

   build/world pool     --out FILE [--size 64] [--virtual SIZE] [--count 1000] [--samples 3]
                        [--split pretrain] [--seed 0] [--individuals 0] [--owned 0]
                        [--threads 2]
   build/world sheet    --out FILE.png [--kind random] [--size 64] [--columns 8] [--rows 8]
                        [--samples 3] [--split pretrain] [--seed 0] [--scale 1] [--captions 1]
   build/world subjects --out DIR [--name NAME] [--size 256] [--samples 3]
   build/world text     --out FILE [--count 1000] [--split pretrain] [--seed 0]
   build/world card     [--count 20000]

   pool      pre-rendered pictures for the trainer; --virtual 1024 --size 64 makes random windows
             of 64 px out of pictures of 1024 px; --individuals 40: so many of 100 have colours and
             marks of their own; --owned 20: 20 of the 40 are somebody's, always the same ones
   sheet     a labelled grid of pictures, to look at: random, individuals, owned, classes, places,
             colors, patterns, views, accessories, poses, expressions, styles, hybrids, glyphs,
             subjects, held_out
   subjects  each subject's photos as DIR/NAME/00.png, 01.png, ...; --name: of one alone
   text      sentences, one a line, to pre-train a text encoder
   card      what the world holds and how often, measured on a sample

   --seed is an index within --split (pretrain, metric, validation).                           */

#define WORLD_IMPLEMENTATION
#include "world.h"
#define IMAGES_IMPLEMENTATION
#include "images.h"

#include <sys/types.h>

typedef struct options {
    const char *out, *kind, *name;
    long size, virtual_size, count, samples, threads, columns, rows, scale, captions;
    long individuals, owned;
    world_split split;
    uint64_t seed;
} options;

static const char *const split_names[] = {"pretrain", "metric", "validation"};

/* Prints a message; returns the exit status of a failure. */
static int fail(const char *what, const char *detail)
{
    fprintf(stderr, "world: %s%s\n", what, detail ? detail : "");
    return 1;
}

/* Reads the options after the command. Returns 0, or 1 after a message. */
static int parse(int argc, char **argv, options *o)
{
    struct { const char *name; long *value; long low; } numbers[] = {
        {"--size", &o->size, 2},       {"--virtual", &o->virtual_size, 2},
        {"--count", &o->count, 1},     {"--samples", &o->samples, 1},
        {"--threads", &o->threads, 1}, {"--columns", &o->columns, 1},
        {"--rows", &o->rows, 1},       {"--scale", &o->scale, 1},
        {"--captions", &o->captions, 0}, {"--individuals", &o->individuals, 0},
        {"--owned", &o->owned, 0}};
    for (int i = 2; i < argc; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        int known = 0;
        if (!value) return fail("no value after ", name);
        for (size_t k = 0; k < sizeof numbers / sizeof numbers[0]; k++) {
            if (strcmp(name, numbers[k].name) != 0) continue;
            char *end;
            *numbers[k].value = strtol(value, &end, 10);
            if (*end || *numbers[k].value < numbers[k].low) return fail("bad value for ", name);
            known = 1;
        }
        if (!strcmp(name, "--out")) { o->out = value; known = 1; }
        if (!strcmp(name, "--kind")) { o->kind = value; known = 1; }
        if (!strcmp(name, "--name")) { o->name = value; known = 1; }
        if (!strcmp(name, "--seed")) { o->seed = strtoull(value, NULL, 10); known = 1; }
        if (!strcmp(name, "--split")) {
            for (int k = 0; k < 3; k++)
                if (!strcmp(value, split_names[k])) { o->split = (world_split)k; known = 1; }
            if (!known) return fail("no such split: ", value);
        }
        if (!known) return fail("unknown option ", name);
    }
    return 0;
}

/* ---- pool --------------------------------------------------------------------------------- */

static void report(uint64_t done, uint64_t count, void *user)
{
    (void)user;
    if (done % (WORLD__BATCH * 16) && done != count) return;
    printf("%llu of %llu pictures\n", (unsigned long long)done, (unsigned long long)count);
    fflush(stdout);
}

static int command_pool(const options *o)
{
    char error[512];
    world_pool_config c = world_pool_config_default();
    c.size = (int)o->size;
    c.virtual_size = (int)(o->virtual_size ? o->virtual_size : o->size);
    c.count = (uint64_t)o->count;
    c.samples = (int)o->samples;
    c.threads = (int)o->threads;
    c.individuals = (int)o->individuals, c.owned = (int)o->owned;
    c.seed = world_seed(o->split, o->seed);
    c.progress = report;
    if (world_pool_write(o->out, &c, error, sizeof error)) return fail(error, NULL);
    return 0;
}

/* ---- sheet -------------------------------------------------------------------------------- */

/* A plain scene to vary one attribute of: a photo without accessory, pose or glyph. */
static void sample_plain(uint64_t seed, world_scene *s)
{
    do {
        world_sample(seed, s);
        seed += 1000003;
    } while (s->head >= 0 || s->style || s->accessory || s->glyph >= 0 || s->pose || s->expression
             || s->place == WORLD_POOL);
}

static int nth_animal(int n)
{
    for (int i = 0;; i = (i + 1) % WORLD_CLASSES)
        if (world_is_animal(i) && n-- == 0) return i;
}
static int nth_with_head(int n)
{
    for (int i = 0;; i = (i + 1) % WORLD_CLASSES)
        if (world_has_head(i) && n-- == 0) return i;
}
static int nth_with_label(int n)
{
    for (int i = 0;; i = (i + 1) % WORLD_CLASSES)
        if (world_has_label(i) && n-- == 0) return i;
}

/* The scene in a row and column of a sheet of this kind. Returns 0 for an unknown kind. */
static int sheet_scene(const char *kind, uint64_t seed, int row, int column, world_scene *s)
{
    uint64_t own = seed + 64 * (uint64_t)row + (uint64_t)column;
    if (!strcmp(kind, "random") || !strcmp(kind, "individuals")) {
        world_sample(own, s);
        if (*kind == 'i') world_make_individual(s, own);
        return 1;
    }
    if (!strcmp(kind, "owned")) {
        world_sample(own, s);
        s->object = (int8_t)(row % WORLD_CLASSES);
        world_make_owned(s, 1 + row / WORLD_CLASSES % WORLD_OWNERS);
        return 1;
    }
    if (!strcmp(kind, "subjects") || !strcmp(kind, "held_out")) {
        int i = row % world_n_subjects;
        if (!strcmp(kind, "held_out"))
            world_subject_view(i, (column * 5 + row) % WORLD_PLACES, column % WORLD_VIEWS, own, s);
        else
            world_subject_photo(i, column % world_subject(i).n_photos, s);
        return 1;
    }
    sample_plain(own, s);
    int view = column % 2 ? WORLD_SIDE : WORLD_FRONT;
    if (!strcmp(kind, "classes") || !strcmp(kind, "views")) {
        s->object = (int8_t)(row % WORLD_CLASSES);
        view = column % WORLD_VIEWS;
    } else if (!strcmp(kind, "places")) {
        s->place = (int8_t)(row % WORLD_PLACES);
        view = column % WORLD_VIEWS;
    } else if (!strcmp(kind, "colors")) {
        world_set_color(s, 0, row % WORLD_COLORS);
    } else if (!strcmp(kind, "patterns")) {
        s->pattern = (int8_t)(row % WORLD_PATTERNS);
    } else if (!strcmp(kind, "accessories")) {
        s->accessory = (int8_t)(row % WORLD_ACCESSORIES);
        s->object = (int8_t)(column % WORLD_CLASSES);
        view = column / WORLD_CLASSES % 2 ? WORLD_SIDE : WORLD_FRONT;
    } else if (!strcmp(kind, "poses")) {
        s->object = (int8_t)nth_animal(row % 7);
        s->pose = (int8_t)(column / 2 % WORLD_POSES);
    } else if (!strcmp(kind, "expressions")) {
        s->object = (int8_t)nth_animal(row % 7);
        s->expression = (int8_t)(column / 2 % WORLD_EXPRESSIONS);
    } else if (!strcmp(kind, "styles")) {
        s->style = (int8_t)(row % WORLD_STYLES);
    } else if (!strcmp(kind, "hybrids")) {
        s->head = (int8_t)nth_with_head(row % 7);
        s->object = (int8_t)(column % WORLD_CLASSES);
    } else if (!strcmp(kind, "glyphs")) {
        s->object = (int8_t)nth_with_label(column % 7);
        s->glyph = (int8_t)((8 * row + column) % WORLD_GLYPHS);
        view = WORLD_SIDE;
        s->pattern = WORLD_PLAIN;
    } else {
        return 0;
    }
    world_set_view(s, view, own);
    return 1;
}

static int command_sheet(const options *o)
{
    int n = (int)(o->columns * o->rows), size = (int)o->size, status = 1;
    size_t bytes = (size_t)size * (size_t)size * 3;
    uint8_t *pixels = (uint8_t *)malloc((size_t)n * bytes);
    char *words = (char *)malloc((size_t)n * WORLD_CAPTION_MAX);
    const uint8_t **pictures = (const uint8_t **)malloc((size_t)n * sizeof *pictures);
    const char **captions = (const char **)malloc((size_t)n * sizeof *captions);
    uint64_t seed = world_seed(o->split, o->seed);
    int known = 1;
    char error[IMG_ERROR_SIZE];
    img_image grid = {0, 0, 0};
    if (!pixels || !words || !pictures || !captions) {
        status = fail("out of memory", NULL);
        goto done;
    }
#ifdef _OPENMP
    _Pragma("omp parallel for schedule(dynamic) num_threads((int)o->threads)")
#endif
    for (int i = 0; i < n; i++) {
        world_scene scene;
        pictures[i] = pixels + (size_t)i * bytes;
        captions[i] = words + (size_t)i * WORLD_CAPTION_MAX;
        if (!sheet_scene(o->kind, seed, i / (int)o->columns, i % (int)o->columns, &scene))
            known = 0;
        else world_render(&scene, size, 0, 0, size, size, (int)o->samples,
                          pixels + (size_t)i * bytes, NULL);
        if (known)
            world_caption(&scene, 1, words + (size_t)i * WORLD_CAPTION_MAX, WORLD_CAPTION_MAX);
    }
    if (!known) {
        status = fail("no such kind of sheet: ", o->kind);
        goto done;
    }
    {
        img_grid_config config = img_grid_config_default();
        config.columns = (size_t)o->columns;
        config.scale = (size_t)o->scale;
        config.text_scale = 1;
        status = img_grid(pictures, o->captions ? captions : NULL, (size_t)n, (size_t)size,
                          (size_t)size, &config, &grid, error, sizeof error)
              || img_save_png(o->out, grid.rgb, grid.w, grid.h, error, sizeof error);
        if (status) fail(error, NULL);
    }
done:
    img_free(&grid);
    free(pixels);
    free(words);
    free(pictures);
    free(captions);
    return status;
}

/* ---- subjects, text, card ----------------------------------------------------------------- */

static int command_subjects(const options *o)
{
    int size = (int)o->size;
    uint8_t *rgb = (uint8_t *)malloc((size_t)size * (size_t)size * 3);
    if (!rgb) return fail("out of memory", NULL);
    int status = 0, found = 0;
    mkdir(o->out, 0777); /* may exist; if it cannot be made, saving says so */
    for (int i = 0; i < world_n_subjects && !status; i++) {
        world_subject_info info = world_subject(i);
        char path[4096], error[IMG_ERROR_SIZE];
        if (o->name && strcmp(o->name, info.name)) continue;
        found = 1;
        snprintf(path, sizeof path, "%s/%s", o->out, info.name);
        mkdir(path, 0777);
        for (int k = 0; k < info.n_photos && !status; k++) {
            world_scene scene;
            world_subject_photo(i, k, &scene);
            world_render(&scene, size, 0, 0, size, size, (int)o->samples, rgb, NULL);
            snprintf(path, sizeof path, "%s/%s/%02d.png", o->out, info.name, k);
            if (img_save_png(path, rgb, (size_t)size, (size_t)size, error, sizeof error))
                status = fail(error, NULL);
        }
        printf("%-10s a %s, %s, %d photos\n", info.name, info.class_name,
               info.is_dev ? "development" : "test", info.n_photos);
    }
    free(rgb);
    return found ? status : fail("there is no subject ", o->name);
}

static int command_text(const options *o)
{
    char line[WORLD_CAPTION_MAX];
    FILE *file = fopen(o->out, "w");
    int bad;
    if (!file) return fail("cannot write ", o->out);
    for (long i = 0; i < o->count; i++) {
        world_text(world_seed(o->split, o->seed + (uint64_t)i), line, sizeof line);
        fprintf(file, "%s\n", line);
    }
    bad = ferror(file) != 0;
    if (fclose(file) || bad) return fail("cannot write ", o->out);
    return 0;
}

/* Prints the share of each value of an attribute. */
static void print_shares(const char *title, const char *(*name)(int), const long *seen, int n,
                         long total)
{
    printf("\n%s\n", title);
    for (int i = 0; i < n; i++)
        printf("  %-24s %5.1f %%\n", name(i)[0] ? name(i) : "(none)",
               100.0 * (double)seen[i] / (double)total);
}

static int command_card(const options *o)
{
    long classes[WORLD_CLASSES] = {0}, colors[WORLD_COLORS] = {0}, places[WORLD_PLACES] = {0};
    long views[WORLD_VIEWS] = {0}, accessories[WORLD_ACCESSORIES] = {0}, styles[WORLD_STYLES] = {0};
    long patterns[WORLD_PATTERNS] = {0}, hybrids = 0, glyphs = 0, empty = 0, bare = 0, rare = 0;
    for (long i = 0; i < o->count; i++) {
        world_scene s;
        char caption[WORLD_CAPTION_MAX];
        world_sample(world_seed(o->split, o->seed + (uint64_t)i), &s);
        world_caption(&s, 1, caption, sizeof caption);
        classes[s.object]++;
        colors[s.color]++;
        patterns[s.pattern]++;
        places[s.place]++;
        views[s.view]++;
        accessories[s.accessory]++;
        styles[s.style]++;
        hybrids += s.head >= 0;
        glyphs += s.glyph >= 0;
        empty += !caption[0];
        bare += world_caption_is_bare(caption);
        rare += world_caption_rare(caption) >= 0;
    }
    double percent = 100.0 / (double)o->count;
    printf("%ld scenes: %.1f %% hybrids, %.1f %% with a painted letter or digit\n", o->count,
           percent * (double)hybrids, percent * (double)glyphs);
    printf("captions: %.1f %% empty, %.1f %% bare, %.1f %% with a rare word\n",
           percent * (double)empty, percent * (double)bare, percent * (double)rare);
    print_shares("classes (the body's, of a hybrid)", world_class_name, classes, WORLD_CLASSES,
                 o->count);
    print_shares("colours", world_color_name, colors, WORLD_COLORS, o->count);
    print_shares("patterns", world_pattern_name, patterns, WORLD_PATTERNS, o->count);
    print_shares("places", world_place_name, places, WORLD_PLACES, o->count);
    print_shares("views", world_view_name, views, WORLD_VIEWS, o->count);
    print_shares("accessories", world_accessory_name, accessories, WORLD_ACCESSORIES, o->count);
    print_shares("styles", world_style_name, styles, WORLD_STYLES, o->count);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(const options *);
        long size, samples, count;
    } commands[] = {{"pool", command_pool, 64, 3, 1000},
                    {"sheet", command_sheet, 64, 3, 0},
                    {"subjects", command_subjects, 256, 3, 0},
                    {"text", command_text, 0, 0, 1000},
                    {"card", command_card, 0, 0, 20000}};
    options o;
    memset(&o, 0, sizeof o);
    o.kind = "random";
    o.threads = 2;
    o.columns = o.rows = 8;
    o.scale = o.captions = 1;
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(argv[1], commands[i].name) != 0) continue;
        o.size = commands[i].size;
        o.samples = commands[i].samples;
        o.count = commands[i].count;
        if (parse(argc, argv, &o)) return 1;
        if (!o.out && commands[i].run != command_card) return fail("--out is missing", NULL);
        return commands[i].run(&o);
    }
    fprintf(stderr,
            "usage: world pool|sheet|subjects|text|card --out PATH ...  (see tools/world.c)\n");
    return 1;
}
