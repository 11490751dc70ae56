/* Tests of section [DB-05] of dreambooth.h: JSON, files, safetensors.

     cc -std=c99 -O1 -g -fsanitize=address,undefined -I. -Itools tests/test_files.c -o build/test_files -lm
     build/test_files

   Prints one line per test and a summary; exits with 1 if anything failed. Temporary files go to a
   directory of their own under $TMPDIR or /tmp.                                                  */

#define DREAMBOOTH_IMPLEMENTATION
#include "../dreambooth.h"
#include "test.h"
#include "counting.h"

#include <dirent.h>
#include <locale.h>
#include <signal.h>
#include <sys/resource.h>

static char folder[512], path_buffer[8][700];

/* A name in the temporary directory; eight at a time. */
static const char *in_folder(const char *name)
{
    static int next;
    char *path = path_buffer[next++ % 8];
    snprintf(path, sizeof path_buffer[0], "%s/%s", folder, name);
    return path;
}

static void write_plain(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (f && n) fwrite(data, 1, n, f);
    if (f) fclose(f);
}

static int count_files(void)
{
    DIR *d = opendir(folder);
    int n = 0;
    while (d && readdir(d)) n++;
    if (d) closedir(d);
    return n - 2; /* . and .. */
}

static void clear_folder(void)
{
    DIR *d = opendir(folder);
    struct dirent *e;
    while (d && (e = readdir(d)) != NULL)
        if (e->d_name[0] != '.') remove(in_folder(e->d_name));
    if (d) closedir(d);
}

/* A fixed stream of random bits. */
static uint32_t noise(uint64_t i)
{
    db_rng rng;
    memset(&rng, 0, sizeof rng);
    rng.seed = 5;
    return db_random_bits(&rng, i);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static const char sample[] =
    "{ \"layers\": [2, 3.5, -1e2], \"act\" : \"gelu\", \"flag\": true, \"off\": false,\n"
    "  \"nothing\": null, \"deep\": {\"a\": {\"b\": [[], {}, [0]]}},\n"
    "  \"\\u00e9\": \"\\ud83d\\ude00\\n\","
    "  \"big\": 9223372036854775807, \"small\": -9223372036854775808, \"act\": \"silu\",\n"
    "  \"lambda_min_clipped\": -Infinity }\n";

static void test_json_values(void)
{
    db_ctx *ctx = counting_context();
    const db_json *root = db_json_parse(ctx, "sample", sample, strlen(sample)), *layers, *deep;
    int good = root && root->type == DB_JSON_OBJECT && root->count == 11;
    if (good) {
        layers = db_json_get(root, "layers");
        deep = db_json_at(db_json_get(db_json_get(db_json_get(root, "deep"), "a"), "b"), 2);
        good = layers->count == 3 && db_json_at(layers, 0)->integer == 2
            && db_json_at(layers, 1)->number == 3.5 && !db_json_at(layers, 1)->is_integer
            && db_json_at(layers, 2)->integer == -100 && !db_json_at(layers, 3)
            && !strcmp(db_json_string(root, "act", ""), "silu") /* the last one counts */
            && db_json_bool(root, "flag", 0) == 1 && db_json_bool(root, "off", 1) == 0
            && db_json_int(root, "nothing", 7) == 7 && db_json_int(root, "absent", 8) == 8
            && !strcmp(db_json_string(root, "\xc3\xa9", ""), "\xf0\x9f\x98\x80\n")
            && db_json_int(root, "big", 0) == INT64_MAX
                && db_json_int(root, "small", 0) == INT64_MIN
            && db_json_number(root, "lambda_min_clipped", 0) == -INFINITY
            && db_json_number(root, "big", 0) == 9223372036854775807.0
            && db_json_at(deep, 0)->integer == 0 && deep->line == 2
            && db_json_number(NULL, "x", 2.5) == 2.5 && !db_json_get(layers, "x")
            && db_status(ctx) == DB_OK;
    }
    report(good, "json_values", "%s", db_last_error(ctx));
    if (good) {
        int value = (int)db_json_int(root, "act", 5);
        report(value == 5 && db_status(ctx) == DB_ERROR_FORMAT
               && strstr(db_last_error(ctx), "sample:3:")
               && strstr(db_last_error(ctx), "\"act\" must be an integer"), "json_wrong_type", "%s",
               db_last_error(ctx));
        db_clear_error(ctx);
        db_json_int(db_json_get(root, "deep"), "a", 5);
        db_clear_error(ctx);
        report(db_json_int(layers, "x", 1) == 1 && db_status(ctx) == DB_OK, "json_get_of_array",
               "%s",
               db_last_error(ctx));
    }
    db_json_free(root);
    report(ctx->live_bytes == 0, "json_frees_all", "%zu bytes are left", ctx->live_bytes);
    db_destroy(ctx);
}

static void test_json_numbers(void)
{
    static const char *const numbers[] = {
        "0", "-0", "1", "-1", "0.1", "1e-05", "0.00085", "0.18215", "1.41423", "3.141592653589793",
        "1e22", "1e23", "1.7976931348623157e308", "2.2250738585072014e-308", "5e-324", "1e-400",
        "9007199254740993", "123456789012345678901234567890", "0.30000000000000004", "1E+2",
        "1.5e3",
        "100000000000000000000000000000000000000000", "6.0221e23",
        "0.000000000000000000000000000001",
        "4.35", "0.5", "2.00000000000000011102230246251565404236316680908203125"};
    static const char *const locales[] = {"C", "de_DE.UTF-8", "fr_FR.UTF-8", "de_DE"};
    db_ctx *ctx = counting_context();
    size_t i, l;
    char comma[16];
    int good = db__swap_point(comma, sizeof comma, "-0.5e3", ".", ",") &&
             !strcmp(comma, "-0,5e3") && !db__swap_point(comma, 3, "0.5", ".", ","),
        points = 0;
    for (l = 0; l < 4; l++) {
        if (!setlocale(LC_NUMERIC, locales[l])) continue;
        points++;
        for (i = 0; i < sizeof numbers / sizeof *numbers; i++) {
            const db_json *n = db_json_parse(ctx, "n", numbers[i], strlen(numbers[i]));
            double expected;
            setlocale(LC_NUMERIC, "C");
            expected = strtod(numbers[i], NULL);
            setlocale(LC_NUMERIC, locales[l]);
            if (!n || n->number != expected || signbit(n->number) != signbit(expected)) {
                good = 0;
                printf("  %s in %s: %.17g, not %.17g\n", numbers[i], locales[l],
                       n ? n->number : 0.0,
                       expected);
            }
            db_json_free(n);
        }
    }
    setlocale(LC_NUMERIC, "C");
    report(good, "json_numbers", "see above (%d locales)", points);

    for (i = 0, good = 1; i < 20000; i++) { /* random doubles, written and read back */
        uint64_t bits = (uint64_t)noise(2 * i) << 32 | noise(2 * i + 1);
        double value;
        char text[40];
        const db_json *n;
        memcpy(&value, &bits, 8);
        if (i < 2000) value = (double)(noise(i) % 100000) / 1000; /* and plain ones */
        if (value - value != 0) continue;
        snprintf(text, sizeof text, "%.17g", value);
        n = db_json_parse(ctx, "n", text, strlen(text));
        if (!n || n->number != value) good = 0;
        db_json_free(n);
    }
    report(good && ctx->live_bytes == 0, "json_number_round_trip", "%s", db_last_error(ctx));
    db_destroy(ctx);
}

static void test_json_strings(void)
{
    static const char tricky[] = "\x01\x1f\"\\/\b\f\n\r\t\x7f \xc3\xa9 \xe2\x96\x81"
                                 " \xf0\x9f\x98\x80 end";
    static const char escaped[] = "\"\\u0041\\u00E9\\u20ac\\uD834\\uDD1E\\\"\\\\\\/\\b\\f\\n\\r\\t"
                                  "\\u0000x\"";
    static const char plain[] = "A\xc3\xa9\xe2\x82\xac\xf0\x9d\x84\x9e\"\\/\b\f\n\r\t\0x";
    db_ctx *ctx = counting_context();
    db__text t;
    const db_json *n;
    memset(&t, 0, sizeof t);
    t.ctx = ctx;
    db__text_json_string(&t, tricky);
    n = db_json_parse(ctx, "s", t.data, t.length);
    report(n && n->length == strlen(tricky) && !strcmp(n->string, tricky), "json_string_round_trip",
           "%s",
           t.data ? t.data : "");
    db_json_free(n);
    db__text_free(&t);
    n = db_json_parse(ctx, "s", escaped, strlen(escaped));
    report(n && n->length == sizeof plain - 1 && !memcmp(n->string, plain, sizeof plain),
           "json_string_escapes", "%s", db_last_error(ctx));
    db_json_free(n);
    db_destroy(ctx);
}

static void test_json_strictness(void)
{
    static const char *const bad[] = {
        "", " ", "{", "}", "[", "]", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{\"a\"}", "{\"a\":}",
        "{\"a\":1,}", "{,}", "{a:1}", "{'a':1}", "{\"a\" 1}", "{1:2}", "\"", "\"a", "\"\\\"",
        "\"\\",
        "\"\\x\"", "\"\\u12\"", "\"\\u123g\"", "\"\\ud800\"", "\"\\ud800\\u0041\"", "\"\\udc00\"",
        "\"\\ud800\\ud800\"", "\"\t\"", "\"\n\"", "\"\x01\"", "01", "-01", "1.", ".5", "-", "-.5",
        "+1",
        "1e", "1e+", "1.e5", "0x10", "1e999", "-1e999", "1a", "nul", "nulll", "True", "truefalse",
        "nan", "inf", "-NaN", "+Infinity", "[1]]", "{}{}", "1 2", "// a\n1", "/* */ 1", "[1,,2]",
        "\xef\xbb\xbf{}", "\"\xff\"", "\"\xc3\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"",
        "\"\xf4\x90\x80\x80\"",
        "\"\xe2\x82\"", "\xa0", "\"a\" \xff"};
    static const char *const fine[] = {
        "0", " 1 ", "[]", "{}", "[[],{}]", "\"\"", "\t\n\r {\"a\" : [ ] } \n", "null", "true",
        "false",
        "-0", "0e0", "0E-0", "1E5", "NaN", "Infinity", "-Infinity", "{\"\":0}", "{\"a\":1,\"a\":2}",
        "\"\x7f\"", "\"\xf4\x8f\xbf\xbf\"", "\"\\u0000\"", "[1e-999]", "\"\xef\xbf\xbf\""};
    db_ctx *ctx = counting_context();
    size_t i;
    int good = 1;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        const db_json *n = db_json_parse(ctx, "bad", bad[i], strlen(bad[i]));
        if (n || db_status(ctx) != DB_ERROR_FORMAT || strncmp(db_last_error(ctx), "bad:", 4)) {
            printf("  taken: %s (%s)\n", bad[i], db_last_error(ctx));
            good = 0;
        }
        db_json_free(n);
        db_clear_error(ctx);
    }
    report(good, "json_refuses", "see above");
    for (i = 0, good = 1; i < sizeof fine / sizeof *fine; i++) {
        const db_json *n = db_json_parse(ctx, "fine", fine[i], strlen(fine[i]));
        if (!n) printf("  refused: %s: %s\n", fine[i], db_last_error(ctx));
        good &= n != NULL;
        db_json_free(n);
        db_clear_error(ctx);
    }
    report(good, "json_accepts", "see above");
    db_json_parse(ctx, "place.json", "{\n  \"\xc3\xa9\": tru\n}", 15);
    report(!strncmp(db_last_error(ctx), "place.json:2:8: not valid JSON: ", 32), "json_error_place",
           "%s",
           db_last_error(ctx));
    db_clear_error(ctx);
    report(!db_json_load(ctx, in_folder("absent.json")) && db_status(ctx) == DB_ERROR_FILE
           && strstr(db_last_error(ctx),
                     "absent.json"), "json_missing_file", "%s", db_last_error(ctx));
    report(ctx->live_bytes == 0, "json_errors_free_all", "%zu bytes are left", ctx->live_bytes);
    db_destroy(ctx);
}

static void test_json_damage(void)
{
    db_ctx *ctx = counting_context();
    size_t n = strlen(sample), i, taken = 0;
    char text[sizeof sample], deep[300];
    const db_json *root;
    int good = 1;
    for (i = 0; i < n - 1; i++) { /* the last byte is a newline */
        char *exact = (char *)malloc(i ? i : 1); /* so that the sanitizer sees a step too far */
        memcpy(exact, sample, i);
        root = db_json_parse(ctx, "cut", exact, i);
        taken += root != NULL;
        db_json_free(root);
        db_clear_error(ctx);
        free(exact);
    }
    report(taken == 0, "json_truncated", "%zu of %zu prefixes were taken", taken, n - 1);
    for (i = 0; i < 20000; i++) {
        memcpy(text, sample, n);
        text[noise(3 * i) % n] = (char)noise(3 * i + 1);
        text[noise(3 * i + 2) % n] ^= (char)(1 << i % 8);
        db_json_free(db_json_parse(ctx, "changed", text, n));
        db_clear_error(ctx);
    }
    report(ctx->live_bytes == 0, "json_changed_bytes", "%zu bytes are left", ctx->live_bytes);
    for (i = 0; i < 2; i++) {
        size_t levels = DB__JSON_MAX_DEPTH + i;
        memset(deep, '[', levels);
        memset(deep + levels, ']', levels);
        root = db_json_parse(ctx, "deep", deep, 2 * levels);
        good &= (root != NULL) == (i == 0);
        db_json_free(root);
    }
    report(good && strstr(db_last_error(ctx), "nested too deeply"), "json_depth", "%s",
           db_last_error(ctx));
    db_clear_error(ctx);
    for (i = 0, taken = 0; i < 10000; i++) { /* every allocation fails once */
        counting_fail_at = counting_calls + (long)i;
        root = db_json_parse(ctx, "oom", sample, n);
        counting_fail_at = -1;
        if (root) break;
        taken += db_status(ctx) != DB_ERROR_MEMORY;
        db_clear_error(ctx);
    }
    db_json_free(root);
    report(taken == 0 && i > 1 && ctx->live_bytes == 0, "json_out_of_memory",
           "%zu allocations, %zu wrong codes,"
           " %zu bytes left", i, taken, ctx->live_bytes);
    db_destroy(ctx);
}

/* A vocabulary as large as CLIP's. */
static void test_json_large(void)
{
    db_ctx *ctx = counting_context();
    db__text t;
    const db_json *root, *item;
    int i, good;
    memset(&t, 0, sizeof t);
    t.ctx = ctx;
    for (i = 0; i < 49408; i++) db__text_print(&t, "%s\"piece%d</w>\": %d", i ? ", " : "{", i, i);
    db__text_print(&t, "}");
    root = db_json_parse(ctx, "large", t.data, t.length);
    good = root && root->count == 49408;
    for (item = good ? root->first : NULL, i = 0; item; item = item->next, i++)
        good &= item->integer == i && item->is_integer;
    good = good && i == 49408 && db_json_int(root, "piece31337</w>", 0) == 31337;
    report(good, "json_large", "%d members", i);
    db_json_free(root);
    db__text_free(&t);
    db_destroy(ctx);
}

/* ---- numbers of half precision --------------------------------------------------------------- */

/* The f16 nearest to f, by trying all of one sign; ties go to the even one. */
static uint16_t nearest_f16(float f)
{
    uint16_t low = 0, high = 0x7C00; /* f lies between these two */
    double size = fabs((double)f), a, b;
    if (size >= 65520) return (uint16_t)((f < 0 ? 0x8000 : 0) | 0x7C00);
    while (high - low > 1) {
        uint16_t middle = (uint16_t)((low + high) / 2);
        if ((double)db__f16_to_f32(middle) <= size) low = middle;
        else high = middle;
    }
    a = size - (double)db__f16_to_f32(low);
    b = (high == 0x7C00 ? 65536.0 : (double)db__f16_to_f32(high)) - size;
    if (b < a || (a == b && (low & 1))) low = high;
    return (uint16_t)((signbit(f) ? 0x8000 : 0) | low);
}

static void test_half(void)
{
    size_t i, wrong = 0;
    for (i = 0; i < 65536; i++) {
        float f = db__f16_to_f32((uint16_t)i);
        int is_nan = (i & 0x7C00) == 0x7C00 && (i & 0x3FF);
        double expected = ldexp((double)((i & 0x3FF) + ((i & 0x7C00) ? 1024 : 0)),
                                (int)DB__MAX(i >> 10 & 31, 1) - 25);
        if ((i & 0x7C00) == 0x7C00) expected = INFINITY;
        if (is_nan ? f == f : (double)f != (i & 0x8000 ? -expected : expected)) wrong++;
        if (is_nan ? (db__f32_to_f16(f) & 0x7C00) != 0x7C00 || !(db__f32_to_f16(f) & 0x3FF)
                   : db__f32_to_f16(f) != i)
            wrong++;
        if (db__f32_to_bf16(db__bf16_to_f32((uint16_t)i)) != i
            && db__bf16_to_f32((uint16_t)i) == db__bf16_to_f32((uint16_t)i))
            wrong++;
    }
    report(wrong == 0, "half_every_value", "%zu wrong", wrong);
    for (i = 0, wrong = 0; i < 300000; i++) {
        uint32_t bits = noise(i), rounded;
        float f;
        if (i % 3) bits = (bits & 0x8FFFFFFFu) | 0x30000000u; /* mostly of f16's size */
        if (i % 3 == 2) bits &= 0xFFFFF000u;                  /* ties */
        memcpy(&f, &bits, 4);
        if (f != f) continue;
        if (db__f32_to_f16(f) != nearest_f16(f)) wrong++;
        rounded = (uint32_t)db__f32_to_bf16(f) << 16; /* a neighbour, the nearer, even */
        if (rounded != (bits & 0xFFFF0000u) && rounded != (bits & 0xFFFF0000u) + 0x10000u) wrong++;
        if ((bits & 0xFFFF) > 0x8000 ? rounded == (bits & 0xFFFF0000u)
            : (bits & 0xFFFF) < 0x8000 ? rounded != (bits & 0xFFFF0000u) : (rounded >> 16 & 1) != 0)
            wrong++;
    }
    report(wrong == 0, "half_rounding", "%zu wrong", wrong);
}

/* ---- files ----------------------------------------------------------------------------------- */

static int file_holds(db_ctx *ctx, const char *path, const char *text)
{
    db__mapping m;
    int good;
    if (db__map_file(ctx, path, &m) != DB_OK) return 0;
    good = m.bytes == strlen(text) && m.data && memcmp(m.data, text, m.bytes) == 0;
    db__unmap_file(ctx, &m);
    return good;
}

static void test_files(void)
{
    db_ctx *ctx = counting_context();
    const char *path = in_folder("file");
    db__writer w;
    db__mapping m;
    struct rlimit limit, small;
    static char zeros[100000];
    int good;

    good = db__write_file(ctx, path, "first", 5) == DB_OK && file_holds(ctx, path, "first")
        && db__write_file(ctx, path, "", 0) == DB_OK && file_holds(ctx, path, "")
        && db__write_file(ctx, path, "second", 6) == DB_OK && file_holds(ctx, path, "second")
        && count_files() == 1;
    report(good, "file_write_read", "%s; %d files", db_last_error(ctx), count_files());

    good = db__writer_open(&w, ctx, path) == DB_OK && db__writer_write(&w, "half", 4) == DB_OK
        && count_files() == 2;
    db__writer_abandon(&w);
    report(good && count_files() == 1 && file_holds(ctx, path, "second"), "file_abandoned",
           "%d files",
           count_files());

    good = db__write_file(ctx, in_folder("absent/file"), "x", 1) == DB_ERROR_FILE
        && strstr(db_last_error(ctx), "absent/file: cannot be created");
    report(good, "file_no_directory", "%s", db_last_error(ctx));
    db_clear_error(ctx);

    /* A full disk, by a limit on the size of files. */
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    small = limit;
    small.rlim_cur = 4096;
    setrlimit(RLIMIT_FSIZE, &small);
    good = db__write_file(ctx, path, zeros, sizeof zeros) == DB_ERROR_FILE;
    setrlimit(RLIMIT_FSIZE, &limit);
    report(good && strstr(db_last_error(ctx), "cannot be written") && count_files() == 1,
           "file_disk_full",
           "%s; %d files", db_last_error(ctx), count_files());
    db_clear_error(ctx);
    report(file_holds(ctx, path, "second"), "file_disk_full_keeps_old", "%s", db_last_error(ctx));

    report(db__map_file(ctx, folder, &m) == DB_ERROR_FILE
           && strstr(db_last_error(ctx), "is a directory"),
           "file_directory", "%s", db_last_error(ctx));
    db_clear_error(ctx);
    report(db__map_file(ctx, in_folder("absent"), &m) == DB_ERROR_FILE, "file_absent", "%s", "");
    db_clear_error(ctx);
    good = db__map_file(ctx, "/proc/self/status", &m) == DB_OK && m.bytes > 10; /* not mappable */
    db__unmap_file(ctx, &m);
    report(good || !db__file_exists("/proc/self/status"), "file_special", "%s", db_last_error(ctx));
    report(ctx->live_bytes == 0, "files_free_all", "%zu bytes are left", ctx->live_bytes);
    db_destroy(ctx);
    clear_folder();
}

/* ---- safetensors ----------------------------------------------------------------------------- */

/* Puts a header and `data_bytes` bytes 0, 1, 2 ... into one block; returns its size. */
static size_t assemble(unsigned char *out, const char *header, size_t data_bytes)
{
    size_t n = strlen(header), i;
    for (i = 0; i < 8; i++) out[i] = (unsigned char)((uint64_t)n >> 8 * i);
    memcpy(out + 8, header, n);
    for (i = 0; i < data_bytes; i++) out[8 + n + i] = (unsigned char)i;
    return 8 + n + data_bytes;
}

static void test_safetensors_round_trip(void)
{
    static const db_dtype dtypes[] = {DB_F64, DB_F32, DB_F16, DB_BF16};
    db_ctx *ctx = counting_context();
    const char *path = in_folder("model.safetensors");
    db_safetensors_writer *w;
    db_safetensors *st = NULL;
    float values[5000], back[5000];
    size_t dim[DB_FILE_MAX_DIMS], i, k, wrong = 0;
    char name[64];
    db__mapping m;

    for (i = 0; i < 5000; i++) values[i] = (float)noise(i) / 4294967296.0f * 200 - 100;
    w = db_safetensors_create(ctx, path);
    db_safetensors_add_metadata(w, "a \"key\"", "a\nvalue");
    for (k = 0; k < 4; k++)
        for (i = 0; i <= DB_FILE_MAX_DIMS; i++) {
            size_t d;
            for (d = 0; d < i; d++) dim[d] = d + 1 < 4 ? 2 + d : 1;
            snprintf(name, sizeof name, "part.%d.rank%d", (int)k, (int)i);
            db_safetensors_declare(w, name, dtypes[k], (int)i, dim);
        }
    dim[0] = 5000;
    db_safetensors_declare(w, "long", DB_F16, 1, dim);
    dim[1] = 0;
    db_safetensors_declare(w, "empty", DB_F32, 2, dim);
    dim[0] = 3;
    db_safetensors_declare(w, "flags \xc3\xa9\"\\", DB_BOOL, 1, dim);
    dim[0] = 2;
    db_safetensors_declare(w, "ids", DB_I64, 1, dim);
    for (k = 0; k < 4; k++)
        for (i = 0; i <= DB_FILE_MAX_DIMS; i++) {
            snprintf(name, sizeof name, "part.%d.rank%d", (int)k, (int)i);
            db_safetensors_write_f32(w, name, values);
        }
    db_safetensors_write_f32(w, "long", values);
    db_safetensors_write(w, "empty", NULL);
    db_safetensors_write(w, "flags \xc3\xa9\"\\", "\1\0\1");
    {
        int64_t ids[2] = {-5, 49407};
        db_safetensors_write(w, "ids", ids);
    }
    report(db_safetensors_finish(w) == DB_OK && count_files() == 1, "safetensors_write", "%s",
           db_last_error(ctx));

    report(db_safetensors_open(ctx, path, &st) == DB_OK && db_safetensors_count(st) == 40,
           "safetensors_open",
           "%s", db_last_error(ctx));
    if (!st) return;
    for (i = 0; i < 40; i++) {
        const db_file_tensor *t = db_safetensors_at(st, i);
        if (db_safetensors_find(st, t->name) != t) wrong++;
        if (t->count > 5000 || t->dtype == DB_I64 || t->dtype == DB_BOOL) continue;
        db_file_tensor_to_f32(t, back);
        for (k = 0; k < t->count; k++) {
            float expected = t->dtype == DB_F16 ? db__f16_to_f32(db__f32_to_f16(values[k]))
                           : t->dtype == DB_BF16 ? db__bf16_to_f32(db__f32_to_bf16(values[k]))
                               : values[k];
            if (back[k] != expected) wrong++;
        }
    }
    report(wrong == 0 && !db_safetensors_at(st, 40) && !db_safetensors_find(st, "absent"),
           "safetensors_values", "%zu wrong", wrong);
    db_file_tensor_to_f32(db_safetensors_find(st, "ids"), back);
    db_file_tensor_to_f32(db_safetensors_find(st, "flags \xc3\xa9\"\\"), back + 2);
    report(back[0] == -5 && back[1] == 49407 && back[2] == 1 && back[3] == 0 && back[4] == 1,
           "safetensors_integers", "%g %g %g", (double)back[0], (double)back[1], (double)back[2]);
    report(!strcmp(db_safetensors_metadata(st, "format"), "pt")
           && !strcmp(db_safetensors_metadata(st, "a \"key\""), "a\nvalue")
               && !db_safetensors_metadata(st, "x"),
           "safetensors_metadata", "%s", "");
    db_safetensors_close(st);

    /* Cut short at every length of the header and some of the data: refused, never read beyond. */
    db__map_file(ctx, path, &m);
    report(m.bytes > 8 && m.data[0] % 8 == 0, "safetensors_aligned", "a header of %d bytes",
           (int)m.data[0]);
    for (i = 0, wrong = 0; i < m.bytes; i += i < 5000 ? 1 : 997) {
        unsigned char *exact = (unsigned char *)malloc(i ? i : 1);
        memcpy(exact, m.data, i);
        if (db_safetensors_open_memory(ctx, "cut", exact, i, &st) != DB_ERROR_FORMAT || st) wrong++;
        db_clear_error(ctx);
        free(exact);
    }
    report(wrong == 0, "safetensors_truncated", "%zu lengths were not refused", wrong);
    for (i = 0; i < 20000; i++) { /* changed bytes: any result, but no crash and no leak */
        unsigned char *copy = (unsigned char *)malloc(m.bytes);
        size_t where = noise(2 * i) % 4000;
        memcpy(copy, m.data, m.bytes);
        copy[where] = (unsigned char)(i % 4 ? noise(2 * i + 1) : '0' + noise(2 * i + 1) % 10);
        if (db_safetensors_open_memory(ctx, "changed", copy, m.bytes, &st) == DB_OK)
            for (k = 0; k < db_safetensors_count(st); k++) {
                const db_file_tensor *t = db_safetensors_at(st, k);
                if (t->count <= 5000) db_file_tensor_to_f32(t, back);
            }
        db_safetensors_close(st);
        db_clear_error(ctx);
        free(copy);
        if (i % 4 == 0) i += 8;
    }
    db__unmap_file(ctx, &m);
    report(ctx->live_bytes == 0, "safetensors_changed_bytes", "%zu bytes are left",
           ctx->live_bytes);
    db_destroy(ctx);
    clear_folder();
}

static void test_safetensors_refused(void)
{
    static const struct {
        const char *name, *header;
        size_t data;
        const char *message; /* part of it */
    } cases[] = {
        {"overlap", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                    "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}", 6,
                    "tensor b: overlaps"},
        {"same_place", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                       "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
                       "overlaps"},
        {"hole", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                 "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[3,5]}}", 5,
                 "tensor b: begins behind a gap"},
        {"hole_at_start", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 3,
         "behind a gap"},
        {"extra_data", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 3,
         "1 bytes at its end"},
        {"data_of_nothing", "{}", 3, "3 bytes at its end"},
        {"missing_data", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 3,
         "its data ends at byte 4, but there are 3"},
        {"huge", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1000000,1000000],"
                 "\"data_offsets\":[0,4000000000000]}}", 4,
         "is the download complete"},
        {"overflow",
         "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "product that fits"},
        {"overflow_bytes",
         "{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0,
         "product that fits"},
        {"wrong_size", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4,
         "2 elements of type F32 are 8 bytes, but its offsets span 4"},
        {"negative", "{\"a\":{\"dtype\":\"U8\",\"shape\":[-4],\"data_offsets\":[0,4]}}", 4,
         "\"shape\""},
        {"backwards", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,0]}}", 4,
         "\"data_offsets\""},
        {"negative_offset", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[-4,0]}}", 4,
         "\"data_offsets\""},
        {"rank", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}",
         1, "at most 8"},
        {"dtype", "{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
         "tensor a: element type \"F8_E4M3\""},
        {"no_dtype", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "element type \"\""},
        {"no_shape", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "\"shape\""},
        {"no_offsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "\"data_offsets\""},
        {"three_offsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 1,
         "\"data_offsets\""},
        {"string_offsets",
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[\"0\",\"1\"]}}", 1,
         "\"data_offsets\""},
        {"fraction", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1.5],\"data_offsets\":[0,1]}}", 1,
         "\"shape\""},
        {"twice", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                  "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2,
                  "tensor a: is there twice"},
        {"not_an_object", "{\"a\":[1]}", 0, "is not an object"},
        {"array", "[1]", 0, "does not start with {"},
        {"nul_in_name", "{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
         1, "NUL"},
        {"bad_utf8", "{\"a\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
         "not UTF-8"},
        {"not_json", "{\"a\":", 0, "not valid JSON"},
        {"empty_header", "", 0, "does not start with {"}};
    db_ctx *ctx = counting_context();
    unsigned char block[1024];
    db_safetensors *st;
    size_t i, n;
    db_result r;
    char name[64];
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        n = assemble(block, cases[i].header, cases[i].data);
        r = db_safetensors_open_memory(ctx, "file", block, n, &st);
        snprintf(name, sizeof name, "safetensors_refuses_%s", cases[i].name);
        report(r != DB_OK && !st && !strncmp(db_last_error(ctx), "file:", 5)
               && strstr(db_last_error(ctx), cases[i].message), name, "%s", db_last_error(ctx));
        db_safetensors_close(st);
        db_clear_error(ctx);
    }
    for (i = 0; i < 8; i++) { /* huge lengths: refused before anything is allocated */
        n = assemble(block, "{}", 0);
        memset(block, 0, 8);
        block[i] = 0xFF;
        ctx->peak_bytes = ctx->live_bytes;
        r = db_safetensors_open_memory(ctx, "file", block, n, &st);
        if (r != DB_ERROR_FORMAT || ctx->peak_bytes > 10000) break;
        db_clear_error(ctx);
    }
    report(i == 8, "safetensors_refuses_long_header", "%zu bytes allocated", ctx->peak_bytes);
    db_clear_error(ctx);

    n = assemble(block,
                 "{\"e\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[3,3]},"
                 "\"s\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
                 "\"x\":{\"dtype\":\"I16\",\"shape\":[],\"data_offsets\":[3,5]},"
                 "\"__metadata__\":{\"k\":\"v\"}}  ", 5);
    r = db_safetensors_open_memory(ctx, "file", block, n, &st);
    if (r == DB_OK) { /* unordered, an empty tensor, a scalar, misaligned data, spaces at the end */
        float out[3] = {0, 0, 0};
        db_file_tensor_to_f32(db_safetensors_find(st, "x"), out);
        report(db_safetensors_count(st) == 3 && out[0] == 0x0403
               && db_safetensors_find(st, "e")->count == 0
               && !strcmp(db_safetensors_metadata(st, "k"),
                          "v"), "safetensors_unusual", "%g", (double)out[0]);
    } else {
        report(0, "safetensors_unusual", "%s", db_last_error(ctx));
    }
    db_safetensors_close(st);
    n = assemble(block, "{}", 0);
    report(db_safetensors_open_memory(ctx, "file", block, n, &st) == DB_OK
           && db_safetensors_count(st) == 0
           && !db_safetensors_find(st, ""), "safetensors_no_tensors", "%s", db_last_error(ctx));
    db_safetensors_close(st);
    report(ctx->live_bytes == 0, "safetensors_errors_free_all", "%zu bytes are left",
           ctx->live_bytes);
    db_destroy(ctx);
}

/* One tensor "name" of two floats in a file. */
static void write_one(db_ctx *ctx, const char *path, const char *name, float value)
{
    float v[2];
    size_t dim = 2;
    db_safetensors_writer *w = db_safetensors_create(ctx, path);
    v[0] = v[1] = value;
    db_safetensors_declare(w, name, DB_F32, 1, &dim);
    db_safetensors_write_f32(w, name, v);
    db_safetensors_finish(w);
}

static int opens_with(db_ctx *ctx, const char *name, float value)
{
    db_safetensors *st;
    const db_file_tensor *t;
    float v[2] = {0, 0};
    if (db_weights_open(ctx, folder, "model", &st) != DB_OK) return 0;
    t = db_safetensors_find(st, name);
    if (t && t->count == 2) db_file_tensor_to_f32(t, v);
    db_safetensors_close(st);
    return v[0] == value && v[1] == value;
}

static int refuses_with(db_ctx *ctx, const char *message)
{
    db_safetensors *st;
    db_result r = db_weights_open(ctx, folder, "model", &st);
    int good = r != DB_OK && !st && strstr(db_last_error(ctx), message);
    if (!good) printf("  %s\n", db_last_error(ctx));
    db_safetensors_close(st);
    db_clear_error(ctx);
    return good;
}

static void write_index(const char *text)
{
    write_plain(in_folder("model.safetensors.index.json"), text, strlen(text));
}

static void test_weights(void)
{
    db_ctx *ctx = counting_context();
    report(refuses_with(ctx, "no weights"), "weights_absent", "see above");
    write_one(ctx, in_folder("model.fp16.safetensors"), "a", 16);
    report(opens_with(ctx, "a", 16), "weights_fp16_variant", "%s", db_last_error(ctx));
    write_one(ctx, in_folder("model-00001-of-00002.safetensors"), "a", 1);
    write_one(ctx, in_folder("model-00002-of-00002.safetensors"), "b", 2);
    write_index("{\"metadata\":{\"total_size\":16},\"weight_map\":{"
                "\"b\":\"model-00002-of-00002.safetensors\","
                "\"a\":\"model-00001-of-00002.safetensors\"}}");
    report(opens_with(ctx, "a", 1) && opens_with(ctx, "b", 2), "weights_shards", "%s",
           db_last_error(ctx));
    write_index("{\"weight_map\":{\"c\":\"model-00002-of-00002.safetensors\"}}");
    report(refuses_with(ctx, "lists tensor c"), "weights_shard_lacks", "see above");
    write_index("{\"weight_map\":{\"c\":\"model-00003-of-00002.safetensors\"}}");
    report(refuses_with(ctx, "model-00003-of-00002.safetensors: cannot be opened"),
           "weights_no_shard", "see above");
    write_index("{\"weight_map\":{\"c\":\"../model-00002-of-00002.safetensors\"}}");
    report(refuses_with(ctx, "not a file name"), "weights_shard_elsewhere", "see above");
    write_index("{\"weight_map\":{\"c\":5}}");
    report(refuses_with(ctx, "not a file name"), "weights_shard_number", "see above");
    write_index("{\"weight_map\":{}}");
    report(refuses_with(ctx, "weight_map"), "weights_empty_map", "see above");
    write_index("{\"weight_map\":");
    report(refuses_with(ctx, "not valid JSON"), "weights_bad_index", "see above");
    write_one(ctx, in_folder("model-00002-of-00002.safetensors"), "a", 2);
    write_index("{\"weight_map\":{\"a\":\"model-00002-of-00002.safetensors\","
                "\"b\":\"model-00001-of-00002.safetensors\"}}");
    report(refuses_with(ctx, "tensor a: is there twice"), "weights_same_name", "see above");
    write_one(ctx, in_folder("model.safetensors"), "a", 5);
    report(opens_with(ctx, "a", 5), "weights_single_file_first", "%s", db_last_error(ctx));
    report(ctx->live_bytes == 0, "weights_free_all", "%zu bytes are left", ctx->live_bytes);
    db_destroy(ctx);
    clear_folder();
}

static void test_safetensors_misuse(void)
{
    static const struct {
        const char *name, *message;
    } cases[] = {{"wrong_order", "was written where a was declared"},
                 {"not_written", "never written"},
                 {"declared_late", "after the first tensor"}, {"twice", "declared twice"},
                 {"too_many", "nothing more was declared"}, {"rank", "out of range"},
                 {"integers", "cannot be written as I64"}, {"overflow", "overflows"}};
    db_ctx *ctx = counting_context();
    size_t i, dim[9] = {2, 1, 1, 1, 1, 1, 1, 1, 1}, huge[2];
    float v[2] = {1, 2};
    char name[64];
    write_one(ctx, in_folder("model.safetensors"), "old", 7);
    huge[0] = huge[1] = (size_t)-1 / 2;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        db_safetensors_writer *w = db_safetensors_create(ctx, in_folder("model.safetensors"));
        db_safetensors_declare(w, "a", i == 6 ? DB_I64 : DB_F32, 1, dim);
        if (i == 5) db_safetensors_declare(w, "r", DB_F32, 9, dim);
        if (i == 7) db_safetensors_declare(w, "r", DB_F32, 2, huge);
        db_safetensors_declare(w, i == 3 ? "a" : "b", DB_F32, 1, dim);
        if (i != 0) db_safetensors_write_f32(w, "a", v);
        if (i == 2) db_safetensors_declare(w, "c", DB_F32, 1, dim);
        if (i != 1) db_safetensors_write_f32(w, "b", v);
        if (i == 4) db_safetensors_write_f32(w, "c", v);
        snprintf(name, sizeof name, "safetensors_misuse_%s", cases[i].name);
        report(db_safetensors_finish(w) == DB_ERROR_ARGUMENT
               && strstr(db_last_error(ctx), cases[i].message)
               && count_files() == 1, name, "%s; %d files", db_last_error(ctx), count_files());
        db_clear_error(ctx);
    }
    report(opens_with(ctx, "old", 7), "safetensors_misuse_keeps_old", "%s", db_last_error(ctx));
    report(!db_safetensors_create(ctx, in_folder("absent/x")) && db_status(ctx) == DB_ERROR_FILE,
           "safetensors_create_fails", "%s", db_last_error(ctx));
    db_clear_error(ctx);
    report(db_safetensors_finish(NULL) != DB_OK && db_safetensors_write(NULL, "a", v) != DB_OK,
           "safetensors_null_writer", "%s", "");
    db_safetensors_abandon(NULL);
    db_destroy(ctx);
    clear_folder();
}

static void test_safetensors_out_of_memory(void)
{
    db_ctx *ctx = counting_context();
    size_t i, dim = 2, wrong = 0;
    db_safetensors *st;
    float v[2] = {1, 2};
    db_result r;
    for (i = 0; i < 1000; i++) {
        db_safetensors_writer *w;
        counting_fail_at = counting_calls + (long)i;
        w = db_safetensors_create(ctx, in_folder("model-00001.safetensors"));
        db_safetensors_add_metadata(w, "k", "v");
        db_safetensors_declare(w, "a", DB_F32, 1, &dim);
        db_safetensors_write_f32(w, "a", v);
        r = db_safetensors_finish(w);
        counting_fail_at = -1;
        if (r == DB_OK) break;
        wrong += db_status(ctx) != DB_ERROR_MEMORY || count_files() != 0 || ctx->live_bytes != 0;
        db_clear_error(ctx);
    }
    report(i > 3 && wrong == 0, "safetensors_write_out_of_memory", "%zu of %zu wrong", wrong, i);
    write_index("{\"weight_map\":{\"a\":\"model-00001.safetensors\"}}");
    for (i = 0, wrong = 0; i < 1000; i++) {
        counting_fail_at = counting_calls + (long)i;
        r = db_weights_open(ctx, folder, "model", &st);
        counting_fail_at = -1;
        if (r == DB_OK) break;
        wrong += db_status(ctx) != DB_ERROR_MEMORY || st || ctx->live_bytes != 0;
        db_clear_error(ctx);
    }
    db_safetensors_close(st);
    report(i > 5 && wrong == 0 && ctx->live_bytes == 0, "safetensors_open_out_of_memory",
           "%zu of %zu wrong",
           wrong, i);
    db_destroy(ctx);
    clear_folder();
}

int main(void)
{
    const char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/dreambooth_test_XXXXXX", temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) {
        printf("FAIL setup: cannot make %s\n", folder);
        return 1;
    }
    test_json_values();
    test_json_numbers();
    test_json_strings();
    test_json_strictness();
    test_json_damage();
    test_json_large();
    test_half();
    test_files();
    test_safetensors_round_trip();
    test_safetensors_refused();
    test_weights();
    test_safetensors_misuse();
    test_safetensors_out_of_memory();
    clear_folder();
    rmdir(folder);
    report(counting_live == 0, "contexts_free_all", "%ld blocks are left", counting_live);
    return test_summary();
}
