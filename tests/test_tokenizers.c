/* Tests of section [DB-06] of dreambooth.h (tokenizers) and of tools/spiece.h.

     cc -std=c99 -O1 -g -fsanitize=address,undefined -I. -Itools tests/test_tokenizers.c \
        -o build/test_tokenizers -lm
     build/test_tokenizers [tests/golden/tokenizers]

   Texts and expected ids are made by tests/golden/make_tokenizers.py. Prints one line per test and
   a summary; exits with 1 if anything failed.

     build/test_tokenizers --encode PATH

   reads texts (size, newline, bytes, newline) and prints the ids of each in a line: what the
   script's comparisons at a larger scale use.                                                    */

#define DREAMBOOTH_IMPLEMENTATION
#include "../dreambooth.h"
#include "test.h"
#include "counting.h"
#define SPIECE_IMPLEMENTATION
#include "../tools/spiece.h"

static uint32_t noise(uint64_t i)
{
    db_rng rng;
    memset(&rng, 0, sizeof rng);
    rng.seed = 6;
    return db_random_bits(&rng, i);
}

static const char *golden = "tests/golden/tokenizers";

/* A name in the golden directory; four at a time. */
static const char *in_golden(const char *name)
{
    static char path[4][700];
    static int next;
    snprintf(path[next++ % 4], sizeof path[0], "%s/%s", golden, name);
    return path[(next - 1) % 4];
}

/* A file's bytes, followed by a NUL, in memory of their own. */
static char *read_plain(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    char *data = (char *)calloc(1, 1 << 20);
    *n = f && data ? fread(data, 1, (1 << 20) - 1, f) : 0;
    if (f) fclose(f);
    return data;
}

/* ---- golden ids ------------------------------------------------------------------------------ */

/* A text: a string, or {"hex": "..."} for bytes that are not UTF-8. */
static char *text_of(const db_json *item)
{
    const char *hex = item->type == DB_JSON_OBJECT ? db_json_string(item, "hex", "") : NULL;
    size_t n = hex ? strlen(hex) / 2 : item->length, i;
    char *text = (char *)calloc(1, n + 1);
    if (!text) exit(2);
    if (!hex) memcpy(text, item->string, n);
    for (i = 0; hex && i < n; i++) {
        unsigned value = 0;
        sscanf(hex + 2 * i, "%2x", &value);
        text[i] = (char)value;
    }
    return text;
}

/* Encodes every text and compares with the expected ids. */
static void check_ids(db_ctx *ctx, const db_tokenizer *tok, const db_json *texts,
                      const db_json *expected,
                      const char *name)
{
    static int32_t ids[10000];
    const db_json *text, *list, *id;
    size_t wrong = 0, index = 0, total = 0, i;
    for (text = texts->first, list = expected->first; text && list; text = text->next,
         list = list->next) {
        char *bytes = text_of(text);
        size_t n = db_tokenizer_split(tok, bytes, ids, 10000);
        int good = n == list->count;
        for (id = list->first, i = 0; good && id; id = id->next, i++) good = ids[i] == id->integer;
        if (!good && wrong++ == 0) printf("  first difference: text %zu, \"%s\"\n", index, bytes);
        total += n;
        index++;
        free(bytes);
    }
    if (wrong == 0 && index == texts->count && db_status(ctx) == DB_OK)
        test_pass(name, "%zu texts, %zu ids", index, total);
    else
        test_fail(name, "%zu of %zu texts differ; %s", wrong, index, db_last_error(ctx));
}

static void test_ids(void)
{
    static const char *const sets[] = {"world.model", "t5.model", "fallback.model", "raw.model",
                                       "rules.model", "spaces.model", "clip"};
    db_ctx *ctx = counting_context();
    const db_json *root = db_json_load(ctx, in_golden("tokenizers.json"));
    char name[64];
    int i;
    report(root != NULL, "golden_file", "%s", db_last_error(ctx));
    for (i = 0; root && i < 7; i++) {
        db_tokenizer *tok;
        snprintf(name, sizeof name, "golden_%s", sets[i]);
        if (db_tokenizer_load(ctx, in_golden(sets[i]), &tok) == DB_OK)
            check_ids(ctx, tok, db_json_get(root, "texts"),
                      db_json_get(db_json_get(root, "ids"), sets[i]), name);
        else
            report(0, name, "%s", db_last_error(ctx));
        db_tokenizer_free(tok);
        db_clear_error(ctx);
    }
    db_json_free(root);
    report(ctx->live_bytes == 0, "golden_frees_all", "%zu bytes are left", ctx->live_bytes);
    db_destroy(ctx);
}

/* ---- padding, truncation, queries ------------------------------------------------------------ */

/* ids joined by blanks. */
static const char *show(const int32_t *ids, size_t n)
{
    static char text[4096];
    size_t i, used = 0;
    text[0] = 0;
    for (i = 0; i < n && used < 4000; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, i ? " %d" : "%d", (int)ids[i]);
    return text;
}

static void test_prompts(void)
{
    db_ctx *ctx = counting_context();
    db_tokenizer *t5, *clip;
    int32_t ids[80], mask[80], split[80];
    int truncated = -1, good;
    size_t n, i;
    if (db_tokenizer_load(ctx, in_golden("world.model"), &t5) != DB_OK
        || db_tokenizer_load(ctx, in_golden("clip"), &clip) != DB_OK) {
        report(0, "prompt_load", "%s", db_last_error(ctx));
        return;
    }
    n = db_tokenizer_split(t5, "a photo of a sks dog", split, 80);
    good = db_tokenize(t5, "a photo of a sks dog", 77, ids, mask, &truncated) == DB_OK && n == 6
        && !truncated;
    for (i = 0; i < 77; i++)
        good &= ids[i] == (i < 6 ? split[i] : i == 6 ? 1 : 0) && mask[i] == (i < 7);
    report(good, "prompt_t5", "%s", show(ids, 77));
    good = db_tokenize(t5, "a photo of a sks dog", 4, ids, NULL, &truncated) == DB_OK && truncated
        && !memcmp(ids, split, 3 * sizeof *ids) && ids[3] == 1;
    report(good, "prompt_t5_truncated", "%s", show(ids, 4));
    good = db_tokenize(t5, "a photo of a sks dog", 7, ids, mask, &truncated) == DB_OK && !truncated
        && ids[6] == 1;
    report(good, "prompt_t5_just_fits", "%s", show(ids, 7));
    good = db_tokenize(t5, "", 3, ids, mask, NULL) == DB_OK && ids[0] == 1 && ids[1] == 0 && mask[0]
        && !mask[1];
    report(good, "prompt_t5_empty", "%s", show(ids, 3));
    good = db_tokenize(t5, "a", 0, ids, mask, NULL) == DB_ERROR_ARGUMENT;
    report(good, "prompt_t5_no_room", "%s", db_last_error(ctx));
    db_clear_error(ctx);

    n = db_tokenizer_split(clip, "a photo of a sks dog", split, 80);
    good = db_tokenize(clip, "a photo of a sks dog", 77, ids, mask, &truncated) == DB_OK
        && !truncated;
    for (i = 0; i < 77; i++)
        good &= ids[i] == (i == 0 ? db_tokenizer_special(clip,
                                                         DB_SPECIAL_BOS) : i <= n ? split[i - 1]
                           : db_tokenizer_special(clip, DB_SPECIAL_EOS)) && mask[i] == (i < n + 2);
    report(good, "prompt_clip", "%s", show(ids, 77));
    good = db_tokenize(clip, "a photo of a sks dog", 4, ids, mask, &truncated) == DB_OK && truncated
        && ids[1] == split[0] && ids[2] == split[1]
            && ids[3] == db_tokenizer_special(clip, DB_SPECIAL_EOS);
    report(good, "prompt_clip_truncated", "%s", show(ids, 4));
    good = db_tokenize(clip, "a", 1, ids, mask, NULL) == DB_ERROR_ARGUMENT;
    report(good, "prompt_clip_no_room", "%s", db_last_error(ctx));
    db_clear_error(ctx);

    report(db_tokenizer_size(t5) == 320 && db_tokenizer_kind_of(t5) == DB_TOKENIZER_T5
           && db_tokenizer_special(t5, DB_SPECIAL_PAD) == 0
               && db_tokenizer_special(t5, DB_SPECIAL_EOS) == 1
           && db_tokenizer_special(t5, DB_SPECIAL_UNK) == 2
               && db_tokenizer_special(t5, DB_SPECIAL_BOS) == -1,
           "query_t5", "%zu", db_tokenizer_size(t5));
    good = 1;
    for (i = 0; i < db_tokenizer_size(t5); i++)
        good &= db_tokenizer_find(t5, db_tokenizer_piece(t5, (int32_t)i)) == (int32_t)i;
    for (i = 0; i < db_tokenizer_size(clip); i++)
        good &= db_tokenizer_find(clip, db_tokenizer_piece(clip, (int32_t)i)) == (int32_t)i;
    report(good && db_tokenizer_find(t5, "no such piece") == -1 && !db_tokenizer_piece(t5, -1)
           && !db_tokenizer_piece(t5, 320)
               && db_tokenizer_find(clip, "") == -1, "query_pieces", "%s", "");
    report(db_tokenizer_score(t5, db_tokenizer_find(t5, "\xe2\x96\x81" "dog"))
           > db_tokenizer_score(t5, db_tokenizer_find(t5, "\xe2\x96\x81sks"))
           && db_tokenizer_score(clip, db_tokenizer_find(clip, "the</w>"))
           > db_tokenizer_score(clip,
                                (int32_t)db_tokenizer_size(clip) - 3), "query_scores", "%s", "");

    n = db_tokenizer_split(t5, "a photo of a sks dog", split, 2);
    report(n == 6, "split_counts_all", "%zu", n);
    n = db_tokenizer_split(clip, "a</w> <|endoftext|>b<|startoftext|>", split, 80);
    report(n > 4 && split[n - 1] == db_tokenizer_special(clip, DB_SPECIAL_BOS)
           && split[n - 3] == db_tokenizer_special(clip,
                                                   DB_SPECIAL_EOS), "split_clip_markers", "%s",
                                                   show(split, n));
    {
        char *word = (char *)malloc(20001); /* quadratic, but bounded; then refused */
        memset(word, 'a', 20000);
        word[20000] = 0;
        report(db_tokenizer_split(clip, word, NULL, 0) == 0 && db_status(ctx) == DB_ERROR_ARGUMENT,
               "split_long_word",
               "%s", db_last_error(ctx));
        db_clear_error(ctx);
        word[10000] = ' ';
        report(db_tokenizer_split(clip, word, NULL, 0) > 10
               && db_tokenizer_split(t5, word, NULL, 0) == 19999,
               "split_long_text", "%s", db_last_error(ctx));
        free(word);
    }
    db_tokenizer_free(t5);
    db_tokenizer_free(clip);
    report(ctx->live_bytes == 0, "prompts_free_all", "%zu bytes are left", ctx->live_bytes);
    db_destroy(ctx);
}

/* ---- damaged models -------------------------------------------------------------------------- */

/* Encodes some texts with whatever has been loaded. */
static void use(const db_tokenizer *tok)
{
    static const char *const texts[] = {"a photo of sks dog!",
                                        "  \xef\xbd\xb6\xef\xbe\x9e e\xcc\x81 \xff ",
                                        "<0x41> 1,000",
                                        "\xed\x95\x9c\xea\xb5\xad a b"};
    int32_t ids[64];
    size_t i;
    for (i = 0; i < 4; i++) db_tokenizer_split(tok, texts[i], ids, 64);
    db_tokenizer_find(tok, "\xe2\x96\x81" "dog");
}

static void test_spiece_damage(const char *file)
{
    db_ctx *ctx = counting_context();
    db_tokenizer *tok;
    size_t n, i, k, taken = 0, changes = strcmp(file, "t5.model") ? 6000 : 1500;
    char *data = read_plain(in_golden(file), &n), *copy = (char *)malloc(n), name[64];
    size_t step = n > 50000 ? 997 : 1;
    for (i = 0; i < n; i += step) { /* only at the end of a field can the rest be missing unseen */
        char *exact = (char *)malloc(i ? i : 1);
        memcpy(exact, data, i);
        if (db_tokenizer_load_spiece(ctx, "cut", exact, i, &tok) == DB_OK) {
            taken++;
            use(tok);
        }
        db_tokenizer_free(tok);
        db_clear_error(ctx);
        free(exact);
    }
    snprintf(name, sizeof name, "spiece_truncated_%s", file);
    report(taken < n / 8 && ctx->live_bytes == 0, name, "%zu of %zu taken, %zu bytes left", taken,
           n, ctx->live_bytes);
    for (i = 0, taken = 0; i < changes; i++) {
        memcpy(copy, data, n);
        for (k = 0; k < 1 + i % 3; k++) copy[noise(8 * i + k) % n] = (char)noise(8 * i + k + 4);
        if (db_tokenizer_load_spiece(ctx, "changed", copy, n, &tok) == DB_OK) {
            taken++;
            use(tok);
        }
        db_tokenizer_free(tok);
        db_clear_error(ctx);
    }
    snprintf(name, sizeof name, "spiece_changed_%s", file);
    report(taken > 0 && ctx->live_bytes == 0, name, "%zu taken, %zu bytes left", taken,
           ctx->live_bytes);
    free(data);
    free(copy);
    db_destroy(ctx);
}

/* Small models with one fault each, written field by field. */
static void test_spiece_refused(void)
{
    static const struct {
        const char *name, *message;
    } cases[] = {
        {"nothing_wrong", ""}, {"two_unknown", "two unknown"}, {"no_unknown", "no unknown"},
        {"no_end", "no </s>"}, {"twice", "is there twice"}, {"empty_piece", "is empty"},
        {"type", "invalid type"}, {"score", "score"}, {"bpe", "only unigram"},
        {"byte_piece", "byte"}, {"byte_fallback", "256"}, {"short_table", "table is damaged"},
        {"long_table", "table is damaged"}, {"reserved_twice", "is there twice"},
        {"endless_varint", "not a SentencePiece model"}, {"group", "not a SentencePiece model"},
        {"no_pieces", "no pieces"}, {"wild_table", ""}, {"no_final_nul", "table is damaged"},
        {"far_value", ""}, {"byte_name", "no byte piece"}};
    db_ctx *ctx = counting_context();
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        spiece__bytes m, s;
        db_tokenizer *tok;
        char name[64];
        db_result r;
        memset(&m, 0, sizeof m);
        memset(&s, 0, sizeof s);
        if (i != 16) {
            spiece__piece(&m, 0, "<pad>", 0, 3);
            spiece__piece(&m, 0, i == 3 ? "</x>" : "</s>", 0, 3);
            spiece__piece(&m, 0, "<unk>", 0, i == 2 ? 3 : 2);
            spiece__piece(&m, 1, "dog", i == 7 ? NAN : -1, i == 6 ? 9 : 1);
            spiece__piece(&m, 0, "a", -3, 1);
        }
        if (i == 1) spiece__piece(&m, 0, "<unk2>", 0, 2);
        if (i == 4) spiece__piece(&m, 0, "a", -4, 1);
        if (i == 5) spiece__piece(&m, 0, "", -4, 1);
        if (i == 9) spiece__piece(&m, 0, "<0x41>", 0, 6);
        if (i == 13) spiece__piece(&m, 0, "<pad>", 0, 3);
        if (i == 8) spiece__number(&s, 3, 2);
        if (i == 10 || i == 20) spiece__number(&s, 35, 1);
        if (i == 20) spiece__piece(&m, 0, "<0x4g>", 0, 6);
        if (s.length) spiece__string(&m, 2, s.data, s.length);
        s.length = 0;
        if (i == 11) spiece__string(&s, 2, "\4\0\0\0\0\0\0\0", 8);
        if (i == 12) spiece__string(&s, 2, "\xf0\xff\xff\xff\0\0\0\0\0", 9);
        if (i == 17) { /* every unit of the table leads far away and says that a key ends */
            unsigned char table[4 + 1024 + 3];
            memset(table, 0xFF, sizeof table);
            memcpy(table, "\0\4\0\0", 4);
            for (size_t u = 0; u < 256; u++) {
                uint32_t unit = 0x7FFFFF00u | (uint32_t)u;
                memcpy(table + 4 + 4 * u, &unit, 4);
            }
            table[sizeof table - 1] = 0;
            spiece__string(&s, 2, table, sizeof table);
        }
        if (i == 18) spiece__string(&s, 2, "\4\0\0\0\0\0\0\0ab", 10);
        if (i == 19) { /* the rule for "d" gives a string far behind the end of the table */
            unsigned char table[4 + 1024 + 1];
            uint32_t root = 128u << 10, d = 'd' | 1u << 8 | 1u << 10, value = 0x80FFFFFFu;
            memset(table, 0, sizeof table);
            memcpy(table, "\0\4\0\0", 4);
            memcpy(table + 4, &root, 4);
            memcpy(table + 4 + 4 * (128 ^ 'd'), &d, 4);
            memcpy(table + 4 + 4 * (128 ^ 'd' ^ 1), &value, 4);
            spiece__string(&s, 2, table, sizeof table);
        }
        if (s.length) spiece__string(&m, 3, s.data, s.length);
        if (i == 14) spiece__put(&m, "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12);
        if (i == 15) spiece__put(&m, "\x0b", 1);
        r = db_tokenizer_load_spiece(ctx, "model", m.data, m.length, &tok);
        snprintf(name, sizeof name, "spiece_refuses_%s", cases[i].name);
        if (!*cases[i].message) {
            if (r == DB_OK) use(tok);
            report(r == DB_OK && db_status(ctx) == DB_OK, name, "%s", db_last_error(ctx));
        } else {
            report(r != DB_OK && !tok && !strncmp(db_last_error(ctx), "model:", 6)
                   && strstr(db_last_error(ctx), cases[i].message), name, "%s", db_last_error(ctx));
        }
        db_tokenizer_free(tok);
        db_clear_error(ctx);
        free(m.data);
        free(s.data);
    }
    report(ctx->live_bytes == 0, "spiece_errors_free_all", "%zu bytes are left", ctx->live_bytes);
    db_destroy(ctx);
}

static void test_clip_refused(void)
{
    static const char good_vocab[] = "{\"a\":0,\"b\":1,\"a</w>\":2,\"b</w>\":3,\"ab\":4,"
                                     "\"ab</w>\":5,\"<|startoftext|>\":6,\"<|endoftext|>\":7}";
    static const struct {
        const char *name, *vocab, *merges, *message;
    } cases[] = {
        {"nothing_wrong", good_vocab, "#version: 0.2\na b\na b</w>\n", ""},
        {"windows_lines", good_vocab, "#version: 0.2\r\na b\r\n\r\na b</w>", ""},
        {"unknown_piece", good_vocab, "#version: 0.2\na b\na c\n", "merges:3: \"a c\""},
        {"unknown_result", good_vocab, "b a\n", "merges:1: \"b a\""},
        {"no_blank", good_vocab, "#\nab\n", "merges:2: \"ab\""},
        {"merge_twice", good_vocab, "a b\na b\n", "is there twice"},
        {"no_end", "{\"a\":0,\"<|startoftext|>\":1}", "", "has no <|endoftext|>"},
        {"id_twice", "{\"a\":0,\"b\":0}", "", "\"b\" has the id of \"a\""},
        {"id_too_large", "{\"a\":0,\"b\":2}", "", "not a number below"},
        {"id_negative", "{\"a\":-1}", "", "not a number below"},
        {"id_string", "{\"a\":\"0\"}", "", "not a number below"},
        {"piece_twice", "{\"a\":0,\"a\":1}", "", "is there twice"},
        {"array", "[]", "", "not an object"},
        {"empty", "{}", "", "not an object"},
        {"no_merges", good_vocab, "", ""},
        {"not_json", "{\"a\":", "", "not valid JSON"}};
    static const int32_t merged[] = {4, 5, 5, 7}, single[] = {0, 1, 0, 3, 0, 3, 7}; /* ABab ab c */
    db_ctx *ctx = counting_context();
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        db_tokenizer *tok;
        char name[64];
        int32_t ids[8];
        db_result r = db_tokenizer_load_clip(ctx, "vocab", cases[i].vocab, strlen(cases[i].vocab),
                                             "merges",
                                             cases[i].merges, strlen(cases[i].merges), &tok);
        snprintf(name, sizeof name, "clip_refuses_%s", cases[i].name);
        if (!*cases[i].message) {
            size_t n = r == DB_OK ? db_tokenizer_split(tok, "ABab ab c", ids, 8) : 0;
            const int32_t *expected = *cases[i].merges ? merged : single;
            report(n == (*cases[i].merges ? 4 : 7) && !memcmp(ids, expected, n * sizeof *ids), name,
                   "%s", db_last_error(ctx));
        } else {
            report(r != DB_OK && !tok && strstr(db_last_error(ctx), cases[i].message), name, "%s",
                   db_last_error(ctx));
        }
        db_tokenizer_free(tok);
        db_clear_error(ctx);
    }
    report(ctx->live_bytes == 0, "clip_errors_free_all", "%zu bytes are left", ctx->live_bytes);
    db_destroy(ctx);
}

/* Two kinds of marks by turns, so many that sorting them pair by pair would take minutes. */
static void test_many_marks(void)
{
    enum { N = 200000 };
    db_ctx *ctx = counting_context();
    struct db__unicode *u = db__load_unicode(ctx);
    uint32_t *code = (uint32_t *)malloc(8 * N * sizeof *code);
    size_t k, n, wrong = 0;
    code[0] = 'b'; /* composes with neither */
    for (k = 1; k < N; k++) code[k] = k % 2 ? 0x300 : 0x316;
    n = db__nfc(u, code, N, code + 4 * N);
    for (k = 1; k < N; k++) wrong += code[k] != (k < N / 2 ? 0x316u : 0x300u);
    report(n == N && code[0] == 'b' && !wrong, "many_marks", "%zu are in the wrong place", wrong);
    free(code);
    db__free_unicode(ctx, u);
    db_destroy(ctx);
}

/* ---- tokenizer.json -------------------------------------------------------------------------- */

/* Writes a T5 model in the form that transformers 5 saves, and compares what both forms give. */
static void test_json_form(void)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static const char *const bad[] = {
        "[]", "{\"model\":{\"type\":\"WordPiece\"}}", "{\"model\":{\"type\":\"BPE\"}}", "{}",
        "{\"model\":{\"type\":\"Unigram\"}}",
        "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[1,2]]}}",
        "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\"]]}}",
        "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",0]],\"byte_fallback\":true}}",
        "{\"model\":{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":0}}}"};
    static const char clip[] =
        "{\"model\":{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":0,\"b\":1,"
        "\"a</w>\":2,\"b</w>\":3,\"ab\":4,\"ab</w>\":5,\"<|startoftext|>\":6,\"<|endoftext|>\":7},"
        "\"merges\":[[\"a\",\"b\"],\"a b</w>\"]}}";
    db_ctx *ctx = counting_context();
    const db_json *root = db_json_load(ctx, in_golden("tokenizers.json"));
    db_tokenizer *tok, *again = NULL;
    db__text t;
    size_t i, n;
    int32_t ids[8];
    unsigned char size[4];
    if (!root || db_tokenizer_load(ctx, in_golden("t5.model"), &tok) != DB_OK) {
        report(0, "json_form", "%s", db_last_error(ctx));
        return;
    }
    memset(&t, 0, sizeof t);
    t.ctx = ctx;
    db__text_print(&t,
                   "{\"added_tokens\":[{\"id\":0,\"special\":true},{\"id\":1,\"special\":true},"
                   "{\"id\":2,\"special\":true}],\"normalizer\":{\"type\":\"Sequence\","
                   "\"normalizers\":[{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"");
    for (i = 0; i < 4; i++) size[i] = (unsigned char)(tok->charsmap_units * 4 >> 8 * i);
    for (i = 0; i < tok->charsmap_bytes + 4; i += 3) { /* base64 */
        uint32_t bits = 0;
        size_t k;
        for (k = i; k < i + 3; k++) {
            bits <<= 8;
            if (k < tok->charsmap_bytes + 4) bits |= k < 4 ? size[k] : tok->charsmap[k - 4];
        }
        for (k = 0; k < 4; k++)
            db__text_append(&t,
                            i + k > tok->charsmap_bytes + 4 ? "="
                                : &digits[bits >> (18 - 6 * k) & 63], 1);
    }
    db__text_print(&t, "\"}]},\"model\":{\"type\":\"Unigram\",\"unk_id\":2,\"vocab\":[");
    for (i = 0; i < tok->size; i++) {
        db__text_print(&t, i ? ",[" : "[");
        db__text_json_string(&t, tok->piece[i].text);
        db__text_print(&t, ",");
        db__text_print(&t, "%.9g", (double)tok->piece[i].score);
        db__text_print(&t, "]");
    }
    db__text_print(&t, "]}}");
    if (db_tokenizer_load_json(ctx, "tokenizer.json", t.data, t.length, &again) == DB_OK)
        check_ids(ctx, again, db_json_get(root, "texts"),
                  db_json_get(db_json_get(root, "ids"), "t5.model"),
                  "json_form_t5");
    else
        report(0, "json_form_t5", "%s", db_last_error(ctx));
    db_tokenizer_free(tok);
    db_tokenizer_free(again);
    db__text_free(&t);
    db_json_free(root);
    db_clear_error(ctx);

    n = db_tokenizer_load_json(ctx, "clip", clip, strlen(clip), &tok) == DB_OK
        ? db_tokenizer_split(tok, "ABab", ids, 8) : 0;
    report(n == 2 && ids[0] == 4 && ids[1] == 5, "json_form_clip", "%s", db_last_error(ctx));
    db_tokenizer_free(tok);
    for (i = 0, n = 0; i < sizeof bad / sizeof *bad; i++) {
        db_clear_error(ctx);
        n += db_tokenizer_load_json(ctx, "bad", bad[i], strlen(bad[i]), &tok) == DB_OK || tok;
    }
    report(n == 0 && ctx->live_bytes == 0, "json_form_refuses", "%zu taken, %zu bytes left", n,
           ctx->live_bytes);
    db_destroy(ctx);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void test_out_of_memory(void)
{
    static const char *const names[] = {"world.model", "clip"};
    db_ctx *ctx = counting_context();
    db_tokenizer *tok;
    int32_t ids[77];
    char name[64];
    size_t i, k, wrong;
    for (k = 0; k < 2; k++) {
        for (i = 0, wrong = 0; i < 1000; i++) {
            db_result r;
            counting_fail_at = counting_calls + (long)i;
            r = db_tokenizer_load(ctx, in_golden(names[k]), &tok);
            if (r == DB_OK) r = db_tokenize(tok, "a photo of a sks dog \xc3\xa9", 77, ids, NULL,
                                            NULL);
            counting_fail_at = -1;
            db_tokenizer_free(tok);
            if (r == DB_OK) break;
            wrong += r != DB_ERROR_MEMORY || ctx->live_bytes != 0;
            db_clear_error(ctx);
        }
        snprintf(name, sizeof name, "out_of_memory_%s", names[k]);
        report(i > 8 && wrong == 0 && ctx->live_bytes == 0, name, "%zu of %zu wrong", wrong, i);
    }
    report(db_tokenizer_load(ctx, in_golden("absent"), &tok) == DB_ERROR_MISSING && !tok
           && strstr(db_last_error(ctx),
                     "no tokenizer"), "load_absent_directory", "%s", db_last_error(ctx));
    db_clear_error(ctx);
    report(db_tokenizer_load(ctx, in_golden("absent.model"), &tok) == DB_ERROR_FILE && !tok,
           "load_absent_file", "%s",
           db_last_error(ctx));
    db_destroy(ctx);
}

/* ---- tools/spiece.h -------------------------------------------------------------------------- */

static void test_make_spiece(void)
{
    static const spiece_word words[] = {{"dog", 100}, {"a", 5000}, {"cats", 1}, {"cat", 400},
                                        {"dog", 20},
                                        {"backpack", 1e-9}, {"hot-dog", 3}};
    static const char *const rare[] = {"sks", "xxy5syt00", "dog", "q7"};
    const char *path = "spiece_test.model";
    db_ctx *ctx = counting_context();
    db_tokenizer *tok = NULL;
    int32_t ids[300];
    char ascii[300];
    size_t pieces = spiece_write(path, words, 7, rare, 4, 64), i, n, unknown = 0, wrong = 0;
    int c;
    report(pieces % 64 == 0 && pieces > 190 && db_tokenizer_load(ctx, path, &tok) == DB_OK
           && db_tokenizer_size(tok) == pieces, "make_spiece", "%zu pieces; %s", pieces,
           db_last_error(ctx));
    remove(path);
    if (!tok) return;
    for (c = 32, n = 0; c < 127; c++) { /* every printable character, behind a space and inside */
        ascii[n++] = (char)c;
        ascii[n++] = (char)c;
        ascii[n++] = ' ';
    }
    ascii[n] = 0;
    n = db_tokenizer_split(tok, ascii, ids, 300);
    for (i = 0; i < n; i++) unknown += ids[i] == 2;
    report(unknown == 0 && n == 2 * 94, "make_spiece_covers_ascii", "%zu ids, %zu unknown", n,
           unknown);
    for (i = 0; i < 7; i++) wrong += db_tokenizer_split(tok, words[i].text, ids, 300) != 1;
    for (i = 0; i < 4; i++) wrong += db_tokenizer_split(tok, rare[i], ids, 300) != 1;
    report(wrong == 0, "make_spiece_whole_words", "%zu are cut", wrong);
    report(db_tokenizer_find(tok, "\xe2\x96\x81" "a") == 4
           && db_tokenizer_find(tok, "\xe2\x96\x81" "cat") == 5
           && db_tokenizer_find(tok, "\xe2\x96\x81" "dog") == 6, "make_spiece_order", "%s", "");
    report(db_tokenizer_split(tok, "catsks dogs", ids, 300) == 5, "make_spiece_unknown_word", "%s",
           show(ids, 5));
    db_tokenizer_free(tok);
    report(spiece_write("absent/directory/x", words, 1, NULL, 0, 0) == 0,
           "make_spiece_cannot_write", "%s", "");
    db_destroy(ctx);
}

/* ---- --encode -------------------------------------------------------------------------------- */

static int encode(const char *path)
{
    static char text[1 << 20];
    static int32_t ids[1 << 20];
    db_ctx *ctx = counting_context();
    db_tokenizer *tok;
    size_t n, i, count;
    if (db_tokenizer_load(ctx, path, &tok) != DB_OK) fprintf(stderr, "%s\n", db_last_error(ctx));
    while (tok && scanf("%zu", &n) == 1 && getchar() == '\n' && n < sizeof text
           && fread(text, 1, n, stdin) == n) {
        text[n] = 0;
        count = db_tokenizer_split(tok, text, ids, 1 << 20);
        for (i = 0; i < count; i++) printf(i ? " %d" : "%d", (int)ids[i]);
        printf("\n");
    }
    if (db_status(ctx) != DB_OK) fprintf(stderr, "%s\n", db_last_error(ctx));
    n = db_status(ctx) != DB_OK;
    db_tokenizer_free(tok);
    db_destroy(ctx);
    return (int)n;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--encode")) return encode(argv[2]);
    if (argc > 1) golden = argv[1];
    test_ids();
    test_prompts();
    test_spiece_refused();
    test_spiece_damage("world.model");
    test_spiece_damage("fallback.model");
    test_spiece_damage("t5.model");
    test_clip_refused();
    test_many_marks();
    test_json_form();
    test_out_of_memory();
    test_make_spiece();
    report(counting_live == 0, "contexts_free_all", "%ld blocks are left", counting_live);
    return test_summary();
}
