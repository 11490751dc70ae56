/* Tests of tools/images.h.

       cc -std=c99 -O1 -g -fsanitize=address,undefined tests/test_images.c -o test_images -lm
       ./test_images [tests/golden/images/images.bin]

   Golden files, and the pixels Pillow reads from them, come from tests/golden/make_images.py.
   Prints one line per test and a summary; exits with 1 if anything failed. All allocations of
   images.h go through test_malloc, so that each can be made to fail and none can leak unseen.    */

#include <stddef.h>

static void *test_malloc(size_t size);
static void *test_realloc(void *memory, size_t size);
static void test_free(void *memory);

#define IMG_MALLOC(size)          test_malloc(size)
#define IMG_REALLOC(memory, size) test_realloc(memory, size)
#define IMG_FREE(memory)          test_free(memory)
#define IMAGES_IMPLEMENTATION
#include "../tools/images.h"

static int passed, failed;

/* Reports one test; the reason is printed only when it failed. */
static void report(int good, const char *name, const char *format, ...)
{
    va_list args;
    if (good) {
        passed++;
        printf("ok %s\n", name);
        return;
    }
    failed++;
    printf("FAIL %s: ", name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

/* ---- Allocations: counted, and one of them may fail ------------------------------------------ */

static long live, calls, fail_at = -1;   /* blocks not freed; calls so far; which call fails      */

static void *test_malloc(size_t size)
{
    void *memory = calls++ == fail_at ? NULL : malloc(size);
    live += memory != NULL;
    return memory;
}

static void *test_realloc(void *memory, size_t size)
{
    void *grown;
    if (!memory)
        return test_malloc(size);
    grown = calls++ == fail_at ? NULL : realloc(memory, size);
    return grown;
}

static void test_free(void *memory)
{
    live -= memory != NULL;
    free(memory);
}

/* ---- Helpers --------------------------------------------------------------------------------- */

static const char *result_name(img_result result)
{
    switch (result) {
#define NAME(name, what, todo) case name: return #name;
        IMG_RESULTS(NAME)
#undef NAME
        default: return "?";
    }
}

static uint32_t seed = 1;

static unsigned draw(unsigned below)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % below;
}

static uint32_t checksum(const img_image *image)
{
    return img__crc32(image->rgb, image->w * image->h * 3);
}

static int largest_difference(const uint8_t *a, const uint8_t *b, size_t n)
{
    int most = 0;
    size_t i;
    for (i = 0; i < n; i++)
        if (abs(a[i] - b[i]) > most)
            most = abs(a[i] - b[i]);
    return most;
}

static unsigned u16(const uint8_t *p) { return (unsigned)(p[0] | p[1] << 8); }
static uint32_t u32(const uint8_t *p) { return u16(p) | (uint32_t)u16(p + 2) << 16; }

/* ---- Golden cases: the format is described in make_images.py --------------------------------- */

typedef struct golden {
    char           kind, name[256], result[256];
    size_t         w, h, size;
    const uint8_t *data, *pixels;
} golden;

/* Reads the case at *at and moves on. Returns 0 at the end. */
static int next_case(const uint8_t *file, size_t size, size_t *at, golden *g)
{
    const uint8_t *p = file + *at;
    if (*at >= size)
        return 0;
    memset(g, 0, sizeof *g);
    g->kind = (char)p[0];
    memcpy(g->name, p + 2, p[1]);
    p += 2 + p[1];
    memcpy(g->result, p + 1, p[0]);
    p += 1 + p[0];
    g->w = u16(p);
    g->h = u16(p + 2);
    g->size = u32(p + 4);
    g->data = p + 8;
    g->pixels = g->data + g->size;
    *at = (size_t)(g->pixels - file);
    if (g->kind == 'D' || g->kind == 'R')
        *at += g->w * g->h * 3;
    return 1;
}

static void test_decode(const golden *g)
{
    char why[IMG_ERROR_SIZE];
    img_image image;
    img_result result = img_load_memory(g->data, g->size, g->name, &image, why, sizeof why);
    int difference = -1;
    if (result == IMG_OK && image.w == g->w && image.h == g->h)
        difference = largest_difference(image.rgb, g->pixels, g->w * g->h * 3);
    report(difference == 0 && why[0] == 0, g->name, "%s, %lu x %lu, largest difference %d, \"%s\"",
           result_name(result), (unsigned long)image.w, (unsigned long)image.h, difference, why);
    img_free(&image);
}

static void test_refuse(const golden *g)
{
    char why[IMG_ERROR_SIZE], name[300];
    img_image image;
    img_result result = img_load_memory(g->data, g->size, "the-file", &image, why, sizeof why);
    snprintf(name, sizeof name, "refuse %s", g->name);
    report(strcmp(result_name(result), g->result) == 0 && strncmp(why, "the-file: ", 10) == 0
           && strstr(why, "; ") && !image.rgb, name, "%s instead of %s, \"%s\"",
           result_name(result), g->result, why);
    img_free(&image);
}

static void test_resize(const golden *g)
{
    img_image image;
    img_result result = img_resize(g->data + 4, u16(g->data), u16(g->data + 2), g->w, g->h, &image,
                                   NULL, 0);
    int difference = -1;
    if (result == IMG_OK && image.w == g->w && image.h == g->h)
        difference = largest_difference(image.rgb, g->pixels, g->w * g->h * 3);
    report(difference >= 0 && difference <= 1, g->name, "%s, largest difference %d",
           result_name(result), difference);
    img_free(&image);
}

static void test_written_size(const golden *g)
{
    char name[300];
    uint8_t *png;
    size_t size, pillow = u32(g->data + g->w * g->h * 3);
    img_encode_png(g->data, g->w, g->h, &png, &size, NULL, 0);
    snprintf(name, sizeof name, "size of %s as png", g->name);
    report(png && size <= pillow + pillow / 20 + 32, name, "%lu bytes, Pillow's has %lu",
           (unsigned long)size, (unsigned long)pillow);
    img_free_png(png);
}

/* Every shorter beginning of a file must be refused. */
static void test_truncation(const golden *g)
{
    char name[300];
    size_t size, accepted = 0, which = 0;
    snprintf(name, sizeof name, "every truncation of %s", g->name);
    for (size = 0; size < g->size; size++) {
        /* A copy of just this size lets the sanitizer see any read beyond it. */
        uint8_t *copy = (uint8_t *)malloc(size + 1);
        img_image image;
        memcpy(copy + 1, g->data, size);
        if (img_load_memory(copy + 1, size, NULL, &image, NULL, 0) == IMG_OK) {
            accepted++;
            which = size;
        }
        img_free(&image);
        free(copy);
    }
    report(accepted == 0, name, "%lu were accepted, such as %lu of %lu bytes",
           (unsigned long)accepted, (unsigned long)which, (unsigned long)g->size);
}

/* Changed bytes: PNG has checksums for all of them; JPEG has none, but must survive. */
static void test_flips(const golden *g, int tries)
{
    char name[300];
    uint8_t *copy = (uint8_t *)malloc(g->size);
    int i, accepted = 0, is_png = g->data[0] == 0x89;
    snprintf(name, sizeof name, "changed bytes in %s", g->name);
    for (i = 0; i < tries; i++) {
        int k, changes = is_png ? 1 : 1 + (int)draw(4);
        img_image image;
        memcpy(copy, g->data, g->size);
        for (k = 0; k < changes; k++)
            copy[draw((unsigned)g->size)] ^= (uint8_t)(1 + draw(255));
        accepted += img_load_memory(copy, g->size, NULL, &image, NULL, 0) == IMG_OK;
        img_free(&image);
    }
    report(!is_png || accepted == 0, name, "%d of %d were accepted", accepted, tries);
    free(copy);
}

/* Each allocation in turn fails: the result must say so and nothing may leak. */
static void test_allocation_failures(const golden *g)
{
    char name[300];
    img_image image;
    img_result result;
    long before = live;
    int bad = 0, rounds = 0;
    snprintf(name, sizeof name, "failed allocations reading %s", g->name);
    do {
        calls = 0;
        fail_at = rounds++;
        result = img_load_memory(g->data, g->size, NULL, &image, NULL, 0);
        if (result != IMG_OK && (result != IMG_ERROR_MEMORY || image.rgb || live != before))
            bad++;
        img_free(&image);
    } while (result != IMG_OK && rounds < 1000);
    fail_at = -1;
    report(bad == 0 && result == IMG_OK && live == before, name,
           "%d of %d wrong, %ld blocks leaked", bad, rounds, live - before);
}

static void test_golden(const char *path)
{
    uint8_t *file = NULL;
    size_t size = 0, at = 8;
    img__job job = img__begin(path, NULL, 0);
    golden g;
    int pngs = 0, jpegs = 0;
    if (!img__read_file(&job, path, 0, &file, &size) || size < 8 || memcmp(file, "IMGGOLD1", 8) != 0) {
        report(0, "golden file", "%s cannot be read; run tests/golden/make_images.py", path);
        test_free(file);
        return;
    }
    while (next_case(file, size, &at, &g)) {
        if (g.kind == 'D') {
            test_decode(&g);
            pngs += g.data[0] == 0x89;
            jpegs += g.data[0] == 0xFF;
        } else if (g.kind == 'E') {
            test_refuse(&g);
        } else if (g.kind == 'R') {
            test_resize(&g);
        } else {
            test_written_size(&g);
        }
    }
    report(pngs >= 40 && jpegs >= 60, "enough golden files", "%d PNG and %d JPEG", pngs, jpegs);
    for (at = 8; next_case(file, size, &at, &g);)
        if (g.kind == 'D') {
            test_truncation(&g);
            test_flips(&g, 200);
            test_allocation_failures(&g);
        }
    test_free(file);
}

/* ---- PNG writing ----------------------------------------------------------------------------- */

/* 0 noise, 1 flat, 2 gradient, 3 long repeats at long distances, 4 black and white noise */
static void paint(uint8_t *rgb, size_t w, size_t h, int kind)
{
    size_t i, n = w * h * 3;
    for (i = 0; i < n; i++)
        rgb[i] = (uint8_t)(kind == 0 ? draw(256) : kind == 1 ? 93
                           : kind == 2 ? i / 3 % w + i / 3 / w * 2
                           : kind == 3 ? (i < n / 2 ? draw(256) : rgb[i - n / 2]) : draw(2) * 255);
}

static void test_round_trips(void)
{
    static const size_t sizes[6][2] = {
        { 1, 1 }, { 1, 9 }, { 9, 1 }, { 2, 3 }, { 31, 17 }, { 200, 150 } };
    char name[64];
    int k, s;
    for (s = 0; s < 6; s++)
        for (k = 0; k < 5; k++) {
            size_t w = sizes[s][0], h = sizes[s][1], size, again_size;
            uint8_t *rgb = (uint8_t *)malloc(w * h * 3), *png, *again;
            img_image back;
            int good;
            paint(rgb, w, h, k);
            img_encode_png(rgb, w, h, &png, &size, NULL, 0);
            img_encode_png(rgb, w, h, &again, &again_size, NULL, 0);
            good = img_load_memory(png, size, NULL, &back, NULL, 0) == IMG_OK && back.w == w
                && back.h == h && memcmp(back.rgb, rgb, w * h * 3) == 0
                && size == again_size && memcmp(png, again, size) == 0;
            snprintf(name, sizeof name, "png round trip %lu x %lu kind %d", (unsigned long)w,
                     (unsigned long)h, k);
            report(good, name, "different pixels or bytes");
            img_free(&back);
            img_free_png(png);
            img_free_png(again);
            free(rgb);
        }
}

/* Written bytes must not change unnoticed, nor between compilers. The checksums, as that of the grid
   below, are of this program's own output, which no other makes: a failure prints the new ones. */
static void test_written_bytes(void)
{
    static const uint32_t expected[5] = {
        0x1A5138C9, 0x062F23BE, 0xF89D9315, 0xF8858FA6, 0xB623B3D7 };
    static uint8_t rgb[60 * 50 * 3];
    char name[64];
    int k;
    seed = 7;
    for (k = 0; k < 5; k++) {
        uint8_t *png;
        size_t size;
        uint32_t crc;
        paint(rgb, 60, 50, k);
        img_encode_png(rgb, 60, 50, &png, &size, NULL, 0);
        crc = img__crc32(png, size);
        snprintf(name, sizeof name, "png bytes of kind %d", k);
        report(crc == expected[k], name, "checksum 0x%08lX", (unsigned long)crc);
        img_free_png(png);
    }
}

static void test_files(void)
{
    static const char *path = "test_images.tmp.png";
    static uint8_t rgb[20 * 10 * 3], other[4 * 4 * 3];
    char why[IMG_ERROR_SIZE], temporary[64];
    img_image back;
    img_result result;
    FILE *file;
    paint(rgb, 20, 10, 0);
    result = img_save_png(path, other, 4, 4, why, sizeof why);
    if (result == IMG_OK)
        result = img_save_png(path, rgb, 20, 10, why, sizeof why);
    report(result == IMG_OK, "save over an existing file", "%s", why);
    result = img_load(path, &back, why, sizeof why);
    report(result == IMG_OK && back.w == 20 && memcmp(back.rgb, rgb, sizeof rgb) == 0,
           "load the saved file", "%s", why);
    img_free(&back);
    snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)getpid());
    file = fopen(temporary, "rb");
    report(!file, "no temporary file is left", "%s exists", temporary);
    if (file)
        fclose(file);
    remove(path);

    result = img_save_png("no/such/directory/x.png", rgb, 20, 10, why, sizeof why);
    report(result == IMG_ERROR_FILE && strstr(why, "no/such/directory/x.png"),
           "save into a missing directory", "%s, \"%s\"", result_name(result), why);
    result = img_load("no-such-file.png", &back, why, sizeof why);
    report(result == IMG_ERROR_FILE && strstr(why, "no-such-file.png") && !back.rgb,
           "load a missing file", "%s, \"%s\"", result_name(result), why);
    result = img_load(".", &back, why, sizeof why);
    report(result == IMG_ERROR_FILE && !back.rgb, "load a directory", "%s, \"%s\"",
           result_name(result), why);
    result = img_load("no-such-file.png", &back, why, 8);
    report(result == IMG_ERROR_FILE && strcmp(why, "no-such") == 0, "a short message buffer",
           "\"%s\"", why);
    result = img_save_png(NULL, rgb, 20, 10, why, sizeof why);
    report(result == IMG_ERROR_ARGUMENT, "save without a path", "%s", result_name(result));
    result = img_save_png(path, rgb, 0, 10, why, sizeof why);
    report(result == IMG_ERROR_ARGUMENT, "save without pixels", "%s", result_name(result));
    result = img_save_png(path, rgb, 20000, 10, why, sizeof why);
    report(result == IMG_ERROR_SIZE_LIMIT, "save too large a picture", "%s", result_name(result));
}

/* Bytes after the end of either format are common and harmless. */
static void test_trailing_bytes(void)
{
    static uint8_t rgb[5 * 5 * 3];
    uint8_t *png, *longer;
    size_t size;
    img_image image;
    img_encode_png(rgb, 5, 5, &png, &size, NULL, 0);
    longer = (uint8_t *)calloc(size + 9, 1);
    memcpy(longer, png, size);
    report(img_load_memory(longer, size + 9, NULL, &image, NULL, 0) == IMG_OK,
           "bytes after the end of a png", "refused");
    img_free(&image);
    img_free_png(png);
    free(longer);
}

/* ---- Crop, resize, grid, plot ---------------------------------------------------------------- */

static void test_crop_and_resize(void)
{
    static uint8_t rgb[7 * 5 * 3];
    img_image out;
    img_result result;
    paint(rgb, 7, 5, 0);
    result = img_crop(rgb, 7, 5, 2, 1, 4, 3, &out, NULL, 0);
    report(result == IMG_OK && out.w == 4 && out.h == 3 && !memcmp(out.rgb, rgb + (7 + 2) * 3, 12)
           && !memcmp(out.rgb + 24, rgb + (3 * 7 + 2) * 3, 12), "crop", "%s", result_name(result));
    img_free(&out);
    result = img_crop(rgb, 7, 5, 4, 1, 4, 3, &out, NULL, 0);
    report(result == IMG_ERROR_ARGUMENT && !out.rgb, "crop beyond the edge", "%s",
           result_name(result));
    result = img_crop(rgb, 7, 5, (size_t)-2, 1, 4, 3, &out, NULL, 0);
    report(result == IMG_ERROR_ARGUMENT && !out.rgb, "crop at -2", "%s", result_name(result));
    result = img_crop(rgb, 7, 5, 0, 0, 0, 3, &out, NULL, 0);
    report(result == IMG_ERROR_ARGUMENT && !out.rgb, "crop of no width", "%s", result_name(result));
    result = img_resize(rgb, 7, 5, 0, 3, &out, NULL, 0);
    report(result == IMG_ERROR_ARGUMENT && !out.rgb, "resize to nothing", "%s",
           result_name(result));
    result = img_resize(rgb, 7, 5, 3, 16385, &out, NULL, 0);
    report(result == IMG_ERROR_SIZE_LIMIT, "resize to 16385", "%s", result_name(result));
    result = img_resize(rgb, 7, 5, 7, 5, &out, NULL, 0);
    report(result == IMG_OK && !memcmp(out.rgb, rgb, sizeof rgb), "resize to the same size", "%s",
           result_name(result));
    img_free(&out);
}

/* The count of pixels of one colour. */
static size_t count_color(const img_image *image, uint32_t color)
{
    size_t i, n = 0;
    for (i = 0; i < image->w * image->h; i++) {
        const uint8_t *p = image->rgb + 3 * i;
        n += ((uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2]) == color;
    }
    return n;
}

static void test_font(void)
{
    int a, b, row, same = 0, bad = 0, ink;
    for (a = 0; a < 96; a++) {
        for (ink = 0, row = 0; row < 9; row++) {
            bad += strlen(img__font[a / 12 * 9 + row]) != 12 * 6 - 1;
            ink += memchr(img__font[a / 12 * 9 + row] + a % 12 * 6, '#', 5) != NULL;
        }
        bad += (a == 0) != (ink == 0);
        for (b = 0; b < a; b++) {
            for (row = 0; row < 9; row++)
                if (memcmp(img__font[a / 12 * 9 + row] + a % 12 * 6,
                           img__font[b / 12 * 9 + row] + b % 12 * 6, 5) != 0)
                    break;
            same += row == 9;
        }
    }
    report(bad == 0, "every glyph but the space has ink", "%d do not", bad);
    report(same == 0, "all glyphs differ", "%d pairs are equal", same);
}

static void test_grid(void)
{
    static uint8_t red[10 * 8 * 3], blue[10 * 8 * 3];
    const uint8_t *pictures[5] = { red, blue, red, NULL, red };
    const char *captions[5] = { "a dog", "a caption too long for one line", NULL, "empty", "" };
    img_grid_config c = img_grid_config_default();
    img_image grid;
    char why[IMG_ERROR_SIZE];
    img_result result;
    size_t i, lower;
    for (i = 0; i < 80; i++) {
        red[3 * i] = 255;
        blue[3 * i + 2] = 255;
    }
    c.scale = 3;
    c.columns = 3;
    c.title = "A title";
    result = img_grid(pictures, captions, 5, 10, 8, &c, &grid, why, sizeof why);
    report(result == IMG_OK, "grid", "%s", why);
    report(count_color(&grid, 0xFF0000) == 3 * 80 * 9 && count_color(&grid, 0x0000FF) == 80 * 9,
           "grid shows every pixel scaled", "%lu red and %lu blue",
           (unsigned long)count_color(&grid, 0xFF0000),
           (unsigned long)count_color(&grid, 0x0000FF));
    report(count_color(&grid, IMG__INK) > 50 && count_color(&grid, IMG__GREY) > 50,
           "grid has title and captions", "no ink");
    report(grid.w == 2 * 12 + 3 * 96 + 2 * 8, "grid width", "%lu", (unsigned long)grid.w);
    lower = grid.h;
    report(checksum(&grid) == 0xB83FCB4B, "grid pixels", "checksum 0x%08lX",
           (unsigned long)checksum(&grid));
    img_free(&grid);
    result = img_grid(pictures, NULL, 5, 10, 8, NULL, &grid, why, sizeof why);
    report(result == IMG_OK && grid.h < lower, "grid without captions and title", "%s", why);
    img_free(&grid);
    result = img_grid(pictures, NULL, 0, 10, 8, NULL, &grid, why, sizeof why);
    report(result == IMG_ERROR_ARGUMENT && !grid.rgb, "grid of nothing", "%s", result_name(result));
    c.scale = 5000;
    result = img_grid(pictures, NULL, 5, 10, 8, &c, &grid, why, sizeof why);
    report(result == IMG_ERROR_SIZE_LIMIT && !grid.rgb, "grid too large", "%s",
           result_name(result));
    c = img_grid_config_default();
    c.columns = 1;
    c.title = "\xC3\xA9t\xC3\xA9 \xF0\x9F\x90\xB6 \xFF\x80\x01 averylongwordwithoutspaces\n\nthird";
    result = img_grid(pictures, captions, 5, 10, 8, &c, &grid, why, sizeof why);
    report(result == IMG_OK, "grid with odd text", "%s", why);
    img_free(&grid);
}

static void test_plot(void)
{
    static float y[200], gaps[200], x[200];
    img_curve curves[2] = { { "loss", NULL, y, 200 }, { "gaps", x, gaps, 200 } };
    img_plot_config c = img_plot_config_default();
    char why[IMG_ERROR_SIZE];
    img_image plot;
    img_result result;
    int i, kind;
    for (i = 0; i < 200; i++) {
        y[i] = 1.0f / (float)(1 + i);
        x[i] = (float)i / 2;
        gaps[i] = i % 3 ? 0.5f : NAN;
    }
    c.title = "A plot";
    c.x_label = "step";
    c.y_label = "loss";
    result = img_plot(curves, 2, &c, &plot, why, sizeof why);
    report(result == IMG_OK && plot.w == 800 && plot.h == 480, "plot", "%s", why);
    report(count_color(&plot, img__curve_color[0]) > 300
           && count_color(&plot, img__curve_color[1]) > 60
           && count_color(&plot, IMG__PALE) > 1000, "plot shows curves and grid lines",
           "%lu, %lu, %lu",
           (unsigned long)count_color(&plot, img__curve_color[0]),
           (unsigned long)count_color(&plot, img__curve_color[1]),
           (unsigned long)count_color(&plot, IMG__PALE));
    img_free(&plot);
    for (kind = 0; kind < 8; kind++) {
        char name[64];
        for (i = 0; i < 200; i++)
            y[i] = kind == 0 ? NAN : kind == 1 ? 0.25f : kind == 2 ? INFINITY : kind == 3 ? -5.0f
                 : kind == 4 ? (i % 2 ? 3e38f : -3e38f) : kind == 5 ? 1e-40f * (float)i
                 : kind == 6 ? (i == 7 ? 1.0f : NAN) : (float)exp(i - 100.0);
        c.log_y = kind % 2;
        c.smooth = kind < 4 ? 0 : 1000;
        snprintf(name, sizeof name, "plot of difficult values %d", kind);
        result = img_plot(curves, 1, &c, &plot, why, sizeof why);
        report(result == IMG_OK, name, "%s", why);
        img_free(&plot);
        c.log_y = !c.log_y;
        result = img_plot(curves, 2, &c, &plot, why, sizeof why);
        report(result == IMG_OK, name, "%s", why);
        img_free(&plot);
    }
    result = img_plot(NULL, 0, NULL, &plot, why, sizeof why);
    report(result == IMG_OK, "plot of nothing", "%s", why);
    img_free(&plot);
    c.w = 100;
    result = img_plot(curves, 1, &c, &plot, why, sizeof why);
    report(result == IMG_ERROR_ARGUMENT && !plot.rgb, "plot too small", "%s", result_name(result));
    curves[0].y = NULL;
    result = img_plot(curves, 1, NULL, &plot, why, sizeof why);
    report(result == IMG_ERROR_ARGUMENT && !plot.rgb, "plot without values", "%s",
           result_name(result));
}

/* Everything that is not reading, with each allocation failing in turn. */
static void test_other_allocation_failures(void)
{
    static uint8_t rgb[40 * 30 * 3];
    static float y[50];
    const uint8_t *pictures[2] = { rgb, rgb };
    const char *captions[2] = { "one", "two" };
    static const char *const names[5] = { "resize", "grid", "plot", "encode", "save" };
    img_curve curve = { "y", NULL, y, 50 };
    img_plot_config c = img_plot_config_default();
    int what;
    c.smooth = 5;
    paint(rgb, 40, 30, 0);
    for (what = 0; what < 5; what++) {
        char name[64];
        int rounds = 0, bad = 0;
        long before = live;
        img_result result;
        do {
            img_image out;
            uint8_t *png = NULL;
            size_t size;
            memset(&out, 0, sizeof out);
            calls = 0;
            fail_at = rounds++;
            result = what == 0 ? img_resize(rgb, 40, 30, 20, 10, &out, NULL, 0)
                   : what == 1 ? img_grid(pictures, captions, 2, 40, 30, NULL, &out, NULL, 0)
                   : what == 2 ? img_plot(&curve, 1, &c, &out, NULL, 0)
                   : what == 3 ? img_encode_png(rgb, 40, 30, &png, &size, NULL, 0)
                               : img_save_png("test_images.tmp.png", rgb, 40, 30, NULL, 0);
            if (result != IMG_OK
                && (result != IMG_ERROR_MEMORY || out.rgb || png || live != before))
                bad++;
            img_free(&out);
            img_free_png(png);
        } while (result != IMG_OK && rounds < 100);
        fail_at = -1;
        snprintf(name, sizeof name, "failed allocations: %s", names[what]);
        report(bad == 0 && result == IMG_OK && rounds > 1 && live == before, name,
               "%d of %d wrong, %ld blocks leaked", bad, rounds, live - before);
    }
    remove("test_images.tmp.png");
}

int main(int argc, char **argv)
{
    test_golden(argc > 1 ? argv[1] : "tests/golden/images/images.bin");
    test_round_trips();
    test_written_bytes();
    test_files();
    test_trailing_bytes();
    test_crop_and_resize();
    test_font();
    test_grid();
    test_plot();
    test_other_allocation_failures();
    report(live == 0, "no memory leaks", "%ld blocks", live);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
